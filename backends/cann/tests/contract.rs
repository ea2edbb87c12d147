//! The contract's areas beyond operators on simulated products. An index outside is the vendor's exception here, found when
//! one waits; `queue.rs` holds what is said of it more closely.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_cann_sys::sim::{Adversary, SimOptions, SimWorld};
use portolan_conformance::{Suite, Verdict};
use portolan_core::call::{Binary, Random};
use portolan_core::{Backend, Graph, Stream, Tensor};
use portolan_ops::kernel::{BinaryKind, RandomKind};
use portolan_ops::{DType, OpError, Result, TensorSpec};
use rig::{assert_empties, backend_in, f32s, open, options, shape, stream, world};
use std::sync::{Arc, Mutex};

/// Every schedule on one product; the others differ in their operators alone.
const RIGS: [(&str, Adversary); 6] = [
    ("A3", Adversary::Late),
    ("A3", Adversary::Early),
    ("A3", Adversary::Seeded),
    ("310P", Adversary::Seeded),
    ("A2", Adversary::Seeded),
    ("950", Adversary::Late),
];

/// Runs an area; every test must pass but those that may say that they cannot be done here.
fn area(pattern: &str, may_refuse: &[&str]) {
    area_on(&RIGS, 2, pattern, may_refuse);
}

/// The same on some rigs, with so many devices.
fn area_on(rigs: &[(&'static str, Adversary)], devices: u32, pattern: &str, may_refuse: &[&str]) {
    for (index, &(soc, adversary)) in rigs.iter().enumerate() {
        let worlds = Arc::new(Mutex::new(Vec::new()));
        let kept = worlds.clone();
        let suite = Suite::new(move || {
            let options = SimOptions { devices, ..options(soc, adversary, index as u64) };
            let world = SimWorld::new(&options).unwrap();
            let backend: Arc<dyn Backend> = backend_in(&world);
            kept.lock().unwrap().push(world);
            Ok(backend)
        });
        let suite = suite.tells_late().expected_failure(
            "comm/a_fault_that_was_inherited_ends_the_group_before_the_timeout",
            "the host learns of a device's fault when it waits for it, and the collective has run by then",
        );
        let report = suite.contract(pattern);
        Suite::assert(&report);
        assert!(report.skipped().is_none());
        for outcome in &report.outcomes {
            let Verdict::Unsupported(why) = &outcome.verdict else { continue };
            let name = &outcome.name;
            assert!(may_refuse.contains(&name.as_str()), "{soc}, {adversary:?}: {name} was refused: {why}");
        }
        drop(suite);
        for world in worlds.lock().unwrap().drain(..) {
            assert_empties(&world);
        }
    }
}

#[test]
fn memory() {
    area("memory/*", &[]);
}

#[test]
fn streams() {
    area("streams/*", &[]);
}

#[test]
fn events() {
    area("events/*", &[]);
}

#[test]
fn poison() {
    area("poison/*", &[]);
}

#[test]
fn capture() {
    area("capture/*", &[]);
}

/// Groups of up to eight ranks, each with a device.
const RANKS: u32 = 8;

/// One product where time matters: what differs between products is what they compute with.
fn rigs_of_groups() -> &'static [(&'static str, Adversary)] {
    if std::env::var_os("PORTOLAN_ALL_CASES").is_some() { &RIGS } else { &RIGS[..1] }
}

#[test]
fn collectives() {
    area_on(rigs_of_groups(), RANKS, "collectives/*", &[]);
}

#[test]
fn comm() {
    area_on(rigs_of_groups(), RANKS, "comm/*", &[]);
}

#[test]
fn expert_parallel() {
    // 310P has no product of f32, which the layers of experts are.
    let without = rigs_of_groups().iter().filter(|(soc, _)| *soc != "310P");
    area_on(&without.copied().collect::<Vec<_>>(), RANKS, "expert_parallel/*", &[]);
}

#[test]
fn errors() {
    // 310P has no product of f32, which one of them counts.
    area("errors/*", &["errors/the_report_adds_up_the_cost_of_every_run"]);
}

/// `out = (x + 1) · 2`, through a temporary.
fn two_operators(s: &Stream, x: &Tensor, out: &Tensor) -> Result<Graph> {
    s.capture(|s| {
        let mut inside = s.empty(x.spec())?;
        s.run(Binary::scalar(BinaryKind::Add, x, 1.0, &mut inside)?)?;
        s.run(Binary::scalar(BinaryKind::Mul, &inside, 2.0, &mut out.clone())?)
    })
}

#[test]
fn the_driver_replays_graphs_on_every_product() {
    for soc in ["310P", "A2", "A3", "950"] {
        let world = world(soc, Adversary::Seeded, 3);
        let device = open(&world);
        let (s, other) = (stream(&device), stream(&device));
        let (x, out) = (s.upload(&[1f32; 9], &shape(9)).unwrap(), s.empty(&f32s(9)).unwrap());
        let graph = two_operators(&s, &x, &out).unwrap();
        assert!(graph.is_recorded(), "{soc}");
        for value in [3f32, -5.0] {
            s.write(&x, &[value; 9]).unwrap();
            // Not the stream that it was captured on.
            graph.replay(&other).unwrap();
            let got = s.download::<f32>(&out).unwrap();
            assert_eq!(got.wait().unwrap(), [(value + 1.0) * 2.0; 9], "{soc}");
        }
        drop((graph, x, out, s, other, device));
        assert_empties(&world);
    }
}

#[test]
fn bytes_of_the_host_that_a_graph_copies_are_its_own() {
    let world = world("A3", Adversary::Late, 5);
    let device = open(&world);
    let s = stream(&device);
    let random = |s: &Stream| -> Result<Tensor> {
        let mut out = s.empty(&TensorSpec::of(DType::F32, &[300])?)?;
        s.run(Random::new(RandomKind::Uniform, 7, &mut out)?)?;
        Ok(out)
    };
    let eager = random(&s).unwrap();
    let want = s.download::<f32>(&eager).unwrap().wait().unwrap();
    let mut out = None;
    let graph = s
        .capture(|s| {
            out = Some(random(s)?);
            Ok(())
        })
        .unwrap();
    let out = out.unwrap();
    for _ in 0..3 {
        // Takes and gives back pinned memory of every size.
        s.upload(&[9f32; 5000], &shape(5000)).unwrap();
        graph.replay(&s).unwrap();
        assert_eq!(s.download::<f32>(&out).unwrap().wait().unwrap(), want);
    }
    drop((graph, eager, out, s, device));
    assert_empties(&world);
}

#[test]
fn a_graph_beyond_the_drivers_tasks_is_refused_by_name_and_all_goes_on() {
    let options = SimOptions { graph_tasks: Some(1), ..options("A3", Adversary::Late, 0) };
    let world = SimWorld::new(&options).unwrap();
    let device = open(&world);
    let s = stream(&device);
    let (x, out) = (s.upload(&[1f32; 9], &shape(9)).unwrap(), s.upload(&[0f32; 9], &shape(9)).unwrap());
    let OpError::Capture { what } = two_operators(&s, &x, &out).map(drop).unwrap_err() else { panic!() };
    assert!(
        what.contains("2 operators") && what.contains("took 1 task") && what.contains("207005"),
        "{what}"
    );
    assert_eq!(s.download::<f32>(&out).unwrap().wait().unwrap(), [0.0; 9]);
    let small = s.capture(|s| s.run(Binary::scalar(BinaryKind::Add, &x, 1.0, &mut out.clone())?)).unwrap();
    small.replay(&s).unwrap();
    assert_eq!(s.download::<f32>(&out).unwrap().wait().unwrap(), [2.0; 9]);
    drop((small, x, out, s, device));
    // What was planned while recording and could not be enqueued: the vendor documents no way to release an executor that
    // is not repeatable.
    assert_eq!(world.report().unwrap().lines(), ["1 aclOpExecutor"]);
}

#[test]
fn a_graph_beyond_the_devices_streams_is_refused_before_anything_is_recorded() {
    let world = world("310P", Adversary::Late, 0);
    let device = open(&world);
    let s = stream(&device);
    let (x, out) = (s.upload(&[1f32; 9], &shape(9)).unwrap(), s.empty(&f32s(9)).unwrap());
    // Of 1024 streams one stays free, and a capture takes two.
    let mut others: Vec<Stream> = (0..1022).map(|_| stream(&device)).collect();
    let before = world.calls(0).unwrap().last().map_or(0, |call| call.number);
    let OpError::Capture { what } = two_operators(&s, &x, &out).map(drop).unwrap_err() else { panic!() };
    assert!(what.contains("wants 2 streams") && what.contains("1024") && what.contains("1023 are"), "{what}");
    let calls = world.calls(before).unwrap();
    assert!(!calls.iter().any(|call| call.name.starts_with("aclmdlRI")), "{calls:?}");
    others.pop();
    two_operators(&s, &x, &out).unwrap().replay(&s).unwrap();
    assert_eq!(s.download::<f32>(&out).unwrap().wait().unwrap(), [4.0; 9]);
    drop((others, x, out, s, device));
    assert_empties(&world);
}

#[test]
fn a_driver_without_graphs_replays_operator_by_operator() {
    let hidden = vec!["aclmdlRICaptureBegin".to_owned()];
    let world = SimWorld::new(&SimOptions { hidden, ..options("A2", Adversary::Late, 0) }).unwrap();
    let device = open(&world);
    let s = stream(&device);
    let (x, out) = (s.upload(&[1f32; 9], &shape(9)).unwrap(), s.empty(&f32s(9)).unwrap());
    let graph = two_operators(&s, &x, &out).unwrap();
    assert!(!graph.is_recorded());
    graph.replay(&s).unwrap();
    assert_eq!(s.download::<f32>(&out).unwrap().wait().unwrap(), [4.0; 9]);
    drop((graph, x, out, s, device));
    assert_empties(&world);
}

#[test]
fn copies_of_any_size_take_a_bounded_amount_of_pinned_memory() {
    let world = world("A3", Adversary::Late, 0);
    let device = open(&world);
    let s = stream(&device);
    let data: Vec<i32> = (0..21 << 20).collect();
    let x = s.upload(&data, &shape(data.len())).unwrap();
    assert!(
        s.download::<i32>(&x).unwrap().wait().unwrap() == data,
        "84 MiB differ after a copy there and back"
    );
    let sizes = world.calls(0).unwrap().into_iter().filter(|call| call.name == "aclrtMallocHost");
    let bytes: u64 = sizes.map(|call| call.arguments["size"].as_u64().unwrap()).sum();
    // 64 MiB in flight and as much that is kept; 168 MiB were copied.
    assert!(bytes <= 128 << 20, "{bytes} bytes of pinned memory");
    drop((x, s, device));
    assert_empties(&world);
}
