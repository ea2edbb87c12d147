//! Backends around the CPU: they change nothing of it, and find or do what they say.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_conformance::{CoreOnly, Subject, check_operator};
use portolan_core::call::{Binary, Softmax};
use portolan_core::decorate::{
    Decorate, Decorated, FaultKind, FaultPlan, Faulty, Moment, ShadowLog, Span, TraceLog,
};
use portolan_core::{
    Backend, Device, Experts, Lens, Op, OpKind, Packing, Registry, Scope, Stream, StreamOptions, Tensor,
    Weight, call, ops,
};
use portolan_cpu::{CpuBackend, CpuOptions, Executor, Isa};
use portolan_ops::kernel::{BinaryKind, UnaryKind};
use portolan_ops::norm::SoftmaxSpec;
use portolan_ops::{
    DType, Determinism, ErrorKind, OpError, QuantScheme, QuantSpec, Result, Shape, TensorSpec, WeightSpec,
};
use rig::{custom, down, f32s, sleeper, stream, up};
use std::sync::Arc;
use std::time::Duration;

fn cpu(executor: Executor, isa: Option<Isa>) -> Arc<CpuBackend> {
    let memory_limit = Some(256 << 20);
    CpuBackend::new(CpuOptions { executor, isa, threads: Some(1), memory_limit }).unwrap()
}

fn open(backend: Arc<dyn Backend>) -> Device {
    Registry::new().with(backend).open("cpu").unwrap()
}

fn inline() -> Arc<CpuBackend> {
    cpu(Executor::Inline, None)
}

/// Does nothing at all.
struct Forward(Arc<dyn Backend>);

impl Decorate for Forward {
    fn inner(&self) -> &dyn Backend {
        self.0.as_ref()
    }
}

/// Every decorator around `inner`, by name.
fn decorated(inner: &Arc<dyn Backend>) -> Vec<(&'static str, Arc<dyn Backend>)> {
    let second = stream(&open(cpu(Executor::Inline, Some(Isa::Portable))));
    vec![
        ("nothing", Decorated::new(Forward(inner.clone()))),
        ("trace", TraceLog::new().around(inner.clone())),
        ("fault", FaultPlan::new(1).around(inner.clone()).0),
        ("shadow", ShadowLog::new(&second).around(inner.clone())),
    ]
}

#[test]
fn every_operator_is_as_native_or_composed_behind_a_decorator_as_without() {
    // Of one nearly everything is native, of the other every fused operator is composed.
    let inners: [(&str, Arc<dyn Backend>); 2] = [("cpu", inline()), ("core", CoreOnly::new(inline()))];
    for (name, inner) in inners {
        let plain = open(inner.clone());
        for (around, backend) in decorated(&inner) {
            let device = open(backend);
            let every = if around == "shadow" { 101 } else { 29 };
            for level in [Determinism::RunToRun, Determinism::BatchInvariant] {
                let (with, without) =
                    (device.support_table(level).unwrap(), plain.support_table(level).unwrap());
                for (with, without) in with.iter().zip(&without) {
                    assert_eq!(with.total, without.total, "{around} around {name}: {}", with.kind);
                    assert_eq!(with.by_dtype, without.by_dtype, "{around} around {name}: {}", with.kind);
                }
            }
            for &kind in OpKind::ALL {
                let run = |device: &Device| {
                    let stream = stream(device);
                    let outcome =
                        check_operator(&Subject { stream: &stream, slack: 1.0 }, kind, every).unwrap();
                    assert!(outcome.failures.is_empty(), "{around} around {name}: {}", outcome.failures[0]);
                    let report = stream.report();
                    let composed: Vec<_> =
                        report.compositions.iter().filter(|(k, _, _)| *k == kind).cloned().collect();
                    (outcome.passed, outcome.unsupported, report.launches, composed, report.composed)
                };
                assert_eq!(run(&device), run(&plain), "{around} around {name}: {kind}");
            }
        }
    }
}

#[test]
fn what_is_no_operator_passes_a_decorator_too() {
    let inner = inline();
    let weight: WeightSpec = QuantSpec::of(QuantScheme::Q4_0, 32, 64).unwrap().into();
    let packing: Option<Packing> =
        portolan_core::FusedOps::packing(inner.as_ref(), 0, &weight, OpKind::Linear.into());
    assert!(packing.is_some());
    let inner: Arc<dyn Backend> = inner;
    for (around, backend) in decorated(&inner) {
        assert_eq!(backend.packing(0, &weight, OpKind::Linear.into()), packing, "{around}");
        assert_eq!(backend.traits(0).alignment, inner.traits(0).alignment, "{around}");
        assert_eq!(backend.memory_info(0).unwrap().total, inner.memory_info(0).unwrap().total, "{around}");
        assert_eq!(backend.devices().unwrap()[0].name, inner.devices().unwrap()[0].name, "{around}");
        assert!(backend.new_id().is_ok(), "{around}");
        let device = open(backend);
        let s = stream(&device);
        let x = up(&s, &[1.0, 2.0]);
        let operands = vec![(x.clone(), portolan_ops::Access::ReadWrite)];
        let reference = Arc::new(|x: &[&[f64]]| vec![x[0].iter().map(|x| x * 3.0).collect()]);
        let kernel = custom("triple", operands.clone(), |operands| {
            operands[0].write::<f32>()?.iter_mut().for_each(|x| *x *= 3.0);
            Ok(())
        });
        let kernel = kernel.kernel("cpu").unwrap().clone();
        let (cost, exact) = (portolan_ops::Cost::default(), portolan_ops::Tolerance::EXACT);
        let op = portolan_core::CustomOp::new("triple", operands, cost, exact, reference).unwrap();
        s.run(op.with_kernel("cpu", kernel)).unwrap();
        assert_eq!(down(&s, &x), [3.0, 6.0], "{around}");
    }
}

fn traced(inner: Arc<dyn Backend>) -> (TraceLog, Stream) {
    let log = TraceLog::new();
    let stream = stream(&open(log.around(inner)));
    (log, stream)
}

fn ends(span: &Span) -> Duration {
    span.start + span.took
}

#[test]
fn a_span_is_when_the_kernel_ran_and_not_when_it_was_enqueued() {
    for executor in [Executor::Inline, Executor::Queued] {
        let (log, s) = traced(cpu(executor, None));
        let x = s.empty(&f32s(4)).unwrap();
        // Enqueued within microseconds of each other; the second can only begin when the first has slept.
        s.run(sleeper(&x, Duration::from_millis(60))).unwrap();
        s.run(sleeper(&x, Duration::from_millis(1))).unwrap();
        s.synchronize().unwrap();
        let spans = log.spans();
        let [first, second] = spans.as_slice() else { panic!("{spans:?}") };
        assert!(
            first.took >= Duration::from_millis(60) && second.took >= Duration::from_millis(1),
            "{spans:?}"
        );
        assert!(second.start >= ends(first), "{spans:?}");
        assert_eq!(log.lanes()[first.lane].stream, s.id());
    }
}

#[test]
fn a_composed_operator_contains_its_parts_and_says_why() {
    let (log, s) = traced(CoreOnly::new(inline()));
    let x = up(&s, &[1.0, 2.0, 3.0, 4.0]).reshape(&[2, 2]).unwrap();
    let mut out = s.empty(x.spec()).unwrap();
    let op = Softmax::new(&x, &mut out).unwrap();
    let cost = op.cost();
    s.run(op).unwrap();
    s.synchronize().unwrap();
    let spans = log.spans();
    let whole = spans.iter().find(|span| span.kind == Some(OpKind::Softmax)).unwrap();
    assert_eq!((whole.cost, whole.depth), (cost, 0));
    assert_eq!(whole.composed, Some(portolan_ops::Unsupported::NotImplemented));
    assert_eq!(&*whole.operands, &*format!("x {0}, → out {0}", x.spec()));
    let parts: Vec<&Span> = spans.iter().filter(|span| span.depth == 1).collect();
    assert!(parts.len() > 2, "{spans:?}");
    for part in parts {
        assert!(part.start >= whole.start && ends(part) <= ends(whole), "{part:?} in {whole:?}");
        assert_eq!(part.composed, None);
    }
    let upload = spans.iter().find(|span| span.op == "upload").unwrap();
    assert_eq!((upload.cost.bytes_written, upload.kind), (16, None));
}

#[test]
fn a_replayed_operator_stands_where_it_was_recorded() {
    let (log, s) = traced(inline());
    let x = up(&s, &[1.0]);
    let graph = {
        let _layer = Scope::numbered("layers", 5);
        s.capture(|s| s.run(Binary::scalar(BinaryKind::Add, &x, 1.0, &mut x.clone())?)).unwrap()
    };
    let _elsewhere = Scope::named("elsewhere");
    graph.replay(&s).unwrap();
    s.run(Binary::scalar(BinaryKind::Mul, &x, 2.0, &mut x.clone()).unwrap()).unwrap();
    assert_eq!(down(&s, &x), [4.0]);
    let place =
        |kind| log.spans().iter().find(|span| span.kind == Some(kind)).map(|span| span.path.to_string());
    assert_eq!(place(OpKind::Binary).as_deref(), Some("layers.5"));
    let paths: Vec<String> = log.spans().iter().map(|span| span.path.to_string()).collect();
    assert_eq!(paths.iter().filter(|path| *path == "elsewhere").count(), 2, "{paths:?}");
}

#[test]
fn spans_beyond_the_limit_are_counted() {
    let log = TraceLog::with_limit(600);
    let s = stream(&open(log.around(inline())));
    let x = up(&s, &[1.0]);
    for _ in 0..999 {
        s.run(Binary::scalar(BinaryKind::Add, &x, 1.0, &mut x.clone()).unwrap()).unwrap();
    }
    s.synchronize().unwrap();
    assert_eq!((log.spans().len(), log.lost()), (600, 400));
}

/// Uploads, allocates, launches natively and composed, captures and replays, downloads.
fn work(device: &Device) -> Result<Vec<f32>> {
    let s = stream(device);
    let x = s.upload(&[0.5f32; 12], &Shape::new(&[3, 4])?)?;
    let weight = s.upload(&[0.25f32; 8], &Shape::new(&[2, 4])?)?;
    let weight = s.prepack(&Weight::Dense(weight), OpKind::Linear)?;
    let mut y = ops::linear(&s, &x, &weight)?;
    s.run(portolan_core::call::Softmax::bind(SoftmaxSpec::new(y.spec(), y.spec())?, &[&y, &y.clone()])?)?;
    let graph = s.capture(|s| {
        let sum = ops::binary(s, BinaryKind::Add, &y, &y)?;
        s.run(Binary::add(&sum, &y, &mut y.clone())?)
    })?;
    graph.replay(&s)?;
    let out = ops::rms_norm(&s, &y, None, 1e-5)?;
    y = out;
    s.download::<f32>(&y)?.wait()
}

/// The workload under a plan: what it gave, and whether a fault struck.
fn provoke(plan: &FaultPlan) -> (Device, Faulty, Arc<CpuBackend>, Result<Vec<f32>>) {
    let cpu = cpu(Executor::Queued, None);
    let (backend, faulty) = plan.clone().around(cpu.clone());
    let device = open(backend);
    let result = work(&device);
    (device, faulty, cpu, result)
}

/// Nothing is held by anybody, and everything goes back with the device.
fn assert_nothing_leaks(device: Device, cpu: &CpuBackend, what: &str) {
    use portolan_core::Memory;
    // Handles are gone; streams are forgotten when the device is next asked.
    assert_eq!(device.memory().unwrap().bytes_in_use, 0, "{what}");
    drop(device);
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while cpu.memory_info(0).unwrap().free != cpu.memory_info(0).unwrap().total {
        assert!(std::time::Instant::now() < end, "{what}: memory was not given back");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs the workload with `kind` at its first, second, … occurrence until it no longer strikes; `check` sees each.
fn at_every_occurrence(kind: FaultKind, check: impl Fn(u64, &Device, Result<Vec<f32>>)) {
    let mut strikes = 0;
    for n in 1.. {
        let (device, faulty, cpu, result) = provoke(&FaultPlan::new(n).with(kind, Moment::Nth(n)));
        if faulty.struck().is_empty() {
            assert!(result.is_ok(), "nothing struck, yet: {result:?}");
            break;
        }
        strikes += 1;
        check(n, &device, result);
        assert_nothing_leaks(device, &cpu, &format!("{kind:?} at {n}"));
    }
    assert!(strikes > 4, "{kind:?} struck {strikes} times only");
}

#[test]
fn out_of_memory_at_any_allocation_is_that_error_and_leaks_nothing() {
    let (_, _, _, right) = provoke(&FaultPlan::default());
    let right = right.unwrap();
    at_every_occurrence(FaultKind::OutOfMemory, |n, device, result| {
        match result {
            Err(OpError::OutOfMemory { requested, .. }) => assert!(requested > 0, "{n}"),
            // A graph's allocation is tried again once the device's pool has been squeezed, and then succeeds.
            Ok(values) => assert_eq!(values, right, "{n}"),
            Err(other) => panic!("{n}: {other}"),
        }
        // The fault is past, and the device works.
        assert_eq!(work(device).unwrap(), right, "{n}");
    });
}

#[test]
fn a_refused_launch_is_the_drivers_error_and_poisons_nothing() {
    let (_, _, _, right) = provoke(&FaultPlan::default());
    at_every_occurrence(FaultKind::Refused, |n, device, result| {
        let error = result.unwrap_err();
        assert!(
            matches!(&error, OpError::Driver { name, .. } if name == "INJECTED_LAUNCH_FAILURE"),
            "{n}: {error}"
        );
        assert_eq!(error.kind(), ErrorKind::DeviceLost);
        assert_eq!(&work(device).unwrap(), right.as_ref().unwrap(), "{n}");
    });
    // The stream itself goes on.
    let (backend, _) = "refused@1:binary".parse::<FaultPlan>().unwrap().around(inline());
    let s = stream(&open(backend));
    let x = up(&s, &[1.0]);
    let add = || Binary::scalar(BinaryKind::Add, &x, 1.0, &mut x.clone()).unwrap();
    s.run(add()).unwrap_err();
    s.run(add()).unwrap();
    assert_eq!(down(&s, &x), [2.0]);
}

#[test]
fn a_failed_kernel_poisons_its_stream_and_whoever_relies_on_it_and_no_other() {
    let (_, _, _, right) = provoke(&FaultPlan::default());
    at_every_occurrence(FaultKind::Failed, |n, device, result| {
        let error = result.unwrap_err();
        let OpError::Poisoned { source, .. } = &error else { panic!("{n}: {error}") };
        assert!(
            matches!(source.as_ref(), OpError::Driver { name, .. } if name == "INJECTED_KERNEL_FAILURE"),
            "{error}"
        );
        assert_eq!(&work(device).unwrap(), right.as_ref().unwrap(), "{n}");
    });
    let (backend, _) = "failed@2:binary".parse::<FaultPlan>().unwrap().around(cpu(Executor::Queued, None));
    let device = open(backend);
    let (one, other, third) = (stream(&device), stream(&device), stream(&device));
    let (x, y) = (up(&one, &[1.0]), up(&third, &[5.0]));
    let before = {
        one.run(Binary::scalar(BinaryKind::Add, &x, 1.0, &mut x.clone()).unwrap()).unwrap();
        one.download::<f32>(&x).unwrap()
    };
    one.run(Binary::scalar(BinaryKind::Add, &x, 1.0, &mut x.clone()).unwrap()).unwrap();
    let poisoned = |result: Result<()>| match result.unwrap_err() {
        OpError::Poisoned { stream, op, .. } => assert_eq!((stream, op.as_ref()), (one.id(), "add")),
        error => panic!("{error}"),
    };
    poisoned(one.synchronize());
    // Reads what the failed kernel should have written.
    poisoned(
        other.run(Binary::scalar(BinaryKind::Add, &x, 1.0, &mut other.empty(x.spec()).unwrap()).unwrap()),
    );
    assert_eq!(before.wait().unwrap(), [2.0], "work before the fault is good");
    assert_eq!(down(&third, &y), [5.0], "a stream without that edge goes on");
}

#[test]
fn a_lost_device_poisons_every_stream_and_answers_nothing_more() {
    at_every_occurrence(FaultKind::Lost, |n, device, result| {
        let error = result.unwrap_err();
        assert!(
            matches!(&error, OpError::Driver { name, .. } if name == "INJECTED_DEVICE_LOST"),
            "{n}: {error}"
        );
        let error = device.stream(StreamOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeviceLost, "{n}: {error}");
    });
    let (backend, _) = "lost@1:binary".parse::<FaultPlan>().unwrap().around(inline());
    let device = open(backend);
    let (one, other) = (stream(&device), stream(&device));
    let (x, y) = (up(&one, &[1.0]), up(&other, &[1.0]));
    one.run(Binary::scalar(BinaryKind::Add, &x, 1.0, &mut x.clone()).unwrap()).unwrap_err();
    for s in [&one, &other] {
        assert_eq!(s.synchronize().unwrap_err().kind(), ErrorKind::DeviceLost);
        assert!(matches!(s.download::<f32>(&y), Err(OpError::Poisoned { .. })));
        assert_eq!(s.empty(&f32s(1)).unwrap_err().kind(), ErrorKind::DeviceLost);
    }
}

#[test]
fn a_wrong_result_is_off_in_one_element_chosen_by_the_seed() {
    let spoiled = |seed: u64| {
        let plan: FaultPlan = format!("seed={seed}; wrong(0.5)@2:binary:here").parse().unwrap();
        let s = stream(&open(plan.around(inline()).0));
        let x = up(&s, &[0.0; 64]);
        let add = |out: &mut Tensor| s.run(Binary::scalar(BinaryKind::Add, &x, 1.0, out).unwrap()).unwrap();
        add(&mut s.empty(x.spec()).unwrap());
        let _here = Scope::named("here");
        let (mut first, mut second) = (s.empty(x.spec()).unwrap(), s.empty(x.spec()).unwrap());
        add(&mut first);
        add(&mut second);
        assert_eq!(down(&s, &first), [1.0; 64]);
        let wrong: Vec<usize> =
            down(&s, &second).iter().enumerate().filter(|(_, y)| **y != 1.0).map(|(i, _)| i).collect();
        let [at] = wrong[..] else { panic!("{wrong:?}") };
        assert_eq!(down(&s, &second)[at], 1.5);
        at
    };
    assert_eq!(spoiled(1), spoiled(1));
    assert!((2..9).any(|seed| spoiled(seed) != spoiled(1)));
}

#[test]
fn instruction_sets_agree_on_every_operator() {
    let second = stream(&open(cpu(Executor::Inline, Some(Isa::Portable))));
    let log = ShadowLog::new(&second);
    let s = stream(&open(log.around(inline())));
    for &kind in OpKind::ALL {
        let outcome = check_operator(&Subject { stream: &s, slack: 1.0 }, kind, 17).unwrap();
        assert!(outcome.failures.is_empty(), "{}", outcome.failures[0]);
        if let Some(first) = log.first() {
            panic!("{first}");
        }
    }
    let compared: u64 = log.agreements().iter().map(|row| row.compared).sum();
    assert!(compared > 200, "{compared}");
    assert!(log.agreements().iter().all(|row| row.diverged == 0 && row.worst <= 1.0));
}

#[test]
fn a_packed_weight_is_compared_in_the_other_devices_own_form() {
    for weight in [Some(QuantScheme::Q4_0), None] {
        let second = stream(&open(cpu(Executor::Inline, Some(Isa::Portable))));
        let log = ShadowLog::new(&second);
        let (backend, _) = "wrong(0.01)@2:linear".parse::<FaultPlan>().unwrap().around(inline());
        let s = stream(&open(log.around(backend)));
        let x = up(&s, &[0.5; 64]).reshape(&[1, 64]).unwrap();
        let plain = match weight {
            None => Weight::Dense(s.upload(&[0.125f32; 64 * 16], &Shape::new(&[16, 64]).unwrap()).unwrap()),
            Some(scheme) => {
                let spec = QuantSpec::of(scheme, 16, 64).unwrap();
                let zeros = |spec: &TensorSpec| {
                    let host = portolan_core::HostBuffer::zeroed(spec.span_bytes()).unwrap();
                    s.upload_bytes(spec, host, &"weight".into()).unwrap()
                };
                let (codes, scale) = (zeros(spec.codes()), zeros(spec.scale()));
                portolan_core::QuantTensor::new(scheme, codes, scale, None, None, None).unwrap().into()
            }
        };
        let packed = s.prepack(&plain, OpKind::Linear).unwrap();
        assert!(matches!(packed, Weight::Packed(_)));
        ops::linear(&s, &x, &packed).unwrap();
        assert!(log.first().is_none());
        let out = ops::linear(&s, &x, &packed).unwrap();
        let found = log.first().unwrap();
        assert_eq!((found.op.as_ref(), found.operand.as_str()), ("linear", "out"));
        assert!((found.mismatch.got - found.mismatch.want - 0.01).abs() < 1e-5, "{found}");
        assert_eq!(f64::from(down(&s, &out)[found.mismatch.index]), found.mismatch.got);
        assert_eq!(found.element, [0, found.mismatch.index]);
        assert_eq!(found.input("x").unwrap().to_f64(), [0.5; 64]);
        let weights = if weight.is_none() { "weight" } else { "weight.codes" };
        assert_eq!(found.input(weights).unwrap().to_f64().len(), 16 * 64);
        let row = log.agreements().into_iter().find(|row| row.op == "linear").unwrap();
        assert_eq!((row.compared, row.diverged, row.skipped), (2, 1, 0));
    }
}

#[test]
fn an_error_of_a_thousandth_is_found_in_a_product_of_a_models_size() {
    const K: usize = 4096;
    // Small weights, and one large number among many small ones, as behind a norm of a language model.
    let x: Vec<f32> = (0..3 * K).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 3.0).collect();
    let outlier = |mut x: Vec<f32>| {
        x[K + 17] = 60.0;
        x
    };
    let weight: Vec<f32> = (0..64 * K).map(|i| ((i * 104_729 % 2003) as f32 / 1001.5 - 1.0) * 0.05).collect();
    let positive = |values: &[f32]| values.iter().map(|x| x.abs() + 0.02).collect::<Vec<f32>>();
    for (x, weight, finds) in [
        (x.clone(), weight.clone(), true),
        (outlier(x.clone()), weight.clone(), true),
        // Terms that do not cancel: sums of hundreds err by more, and are not to be called different for it.
        (positive(&x), positive(&weight), false),
    ] {
        for packed in [false, true] {
            let log = ShadowLog::new(&stream(&open(cpu(Executor::Inline, Some(Isa::Portable)))));
            let (backend, _) = "wrong(0.001)@2:linear".parse::<FaultPlan>().unwrap().around(inline());
            let s = stream(&open(log.around(backend)));
            let x = up(&s, &x).reshape(&[3, K]).unwrap();
            let weight: Weight = up(&s, &weight).reshape(&[64, K]).unwrap().into();
            let weight = if packed { s.prepack(&weight, OpKind::Linear).unwrap() } else { weight };
            ops::linear(&s, &x, &weight).unwrap();
            assert!(log.first().is_none(), "{}", log.first().unwrap());
            ops::linear(&s, &x, &weight).unwrap();
            assert!(log.first().is_some() || !finds, "{:?}", log.agreements());
        }
    }
}

/// What runs on a stream, from numbers and weights that a model has.
type Work = fn(&Stream) -> Result<()>;

/// Numbers between −size and size that nothing connects, not even with those of another size.
fn numbers(count: usize, size: f32) -> Vec<f32> {
    let mixed = |i: usize| {
        let x = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ u64::from(size.to_bits()) << 24);
        let x = (x ^ x >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((x ^ x >> 32) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|i| mixed(i) * size).collect()
}

fn tensor(s: &Stream, dims: &[usize], size: f32) -> Result<Tensor> {
    up(s, &numbers(dims.iter().product(), size)).reshape(dims)
}

fn ints(s: &Stream, values: &[i32]) -> Tensor {
    s.upload(values, &Shape::new(&[values.len()]).unwrap()).unwrap()
}

/// Experts of small codes with scales, or dense ones, in the device's own form.
fn packed(s: &Stream, dims: [usize; 3], size: f32, coded: bool, consumer: OpKind) -> Result<Experts> {
    if !coded {
        return s.prepack_experts(&Experts::dense(tensor(s, &dims, size)?)?, consumer);
    }
    let codes: Vec<i8> = numbers(dims.iter().product(), 127.0).iter().map(|&x| x as i8).collect();
    let codes = s.upload(&codes, &Shape::new(&dims)?)?;
    let scale = tensor(s, &[dims[0], dims[1], dims[2] / 32], size / 254.0)?;
    let scale = ops::cast(s, &ops::unary(s, UnaryKind::Abs, &scale)?, DType::F16)?;
    s.prepack_experts(&Experts::quant(QuantScheme::Q8_0, codes, scale, None, None, None)?, consumer)
}

fn grouped(s: &Stream, experts: &Experts) -> Result<()> {
    let mut out = s.empty(&f32s(20 * 48))?.reshape(&[20, 48])?;
    let offsets = ints(s, &[0, 7, 7, 18, 20]);
    s.run(call::GroupedGemm::contiguous(&tensor(s, &[20, 2048], 3.0)?, experts, &offsets, &mut out)?)
}

fn network(s: &Stream, gate_up: &Experts, down: &Experts) -> Result<()> {
    let ids = ints(s, &(0..24).map(|i| if i == 5 { -1 } else { i * 3 % 5 }).collect::<Vec<_>>());
    let (ids, weights) = (ids.reshape(&[12, 2])?, tensor(s, &[12, 2], 0.7)?);
    ops::expert_ffn(s, &tensor(s, &[12, 1024], 2.0)?, &ids, &weights, gate_up, down).map(|_| ())
}

/// Operators that sum products besides linear, at a model's sizes.
const PRODUCTS: [(&str, Work); 12] = [
    ("gemm", |s| {
        let mut out = s.empty(&f32s(6 * 32))?.reshape(&[6, 32])?;
        s.run(call::Gemm::nt(&tensor(s, &[6, 4096], 3.0)?, &tensor(s, &[32, 4096], 0.05)?, &mut out)?)
    }),
    ("gemm", |s| {
        let mut out = s.empty(&f32s(2 * 5 * 9))?.reshape(&[2, 5, 9])?;
        s.run(call::Gemm::nn(&tensor(s, &[2, 5, 2048], 0.1)?, &tensor(s, &[2, 2048, 9], 8.0)?, &mut out)?)
    }),
    ("gemm", |s| {
        let mut out = s.empty(&f32s(5 * 7))?.reshape(&[5, 7])?;
        let (a, c) = (tensor(s, &[4096, 5], 0.2)?, tensor(s, &[5, 7], 4.0)?);
        let gemm = call::Gemm::tn(&a, &tensor(s, &[4096, 7], 2.0)?, &mut out)?;
        s.run(gemm.alpha(0.5)?.accumulate(&c, 0.25)?)
    }),
    ("grouped_gemm", |s| grouped(s, &Experts::dense(tensor(s, &[4, 48, 2048], 0.05)?)?)),
    ("grouped_gemm", |s| grouped(s, &packed(s, [4, 48, 2048], 0.05, false, OpKind::GroupedGemm)?)),
    ("grouped_gemm", |s| grouped(s, &packed(s, [4, 48, 2048], 0.05, true, OpKind::GroupedGemm)?)),
    ("expert_ffn", |s| {
        let gate_up = Experts::dense(tensor(s, &[5, 2 * 96, 1024], 0.05)?)?;
        network(s, &gate_up, &Experts::dense(tensor(s, &[5, 1024, 96], 0.1)?)?)
    }),
    ("expert_ffn", |s| {
        let gate_up = packed(s, [5, 2 * 96, 1024], 0.05, false, OpKind::ExpertFfn)?;
        network(s, &gate_up, &packed(s, [5, 1024, 96], 0.1, false, OpKind::ExpertFfn)?)
    }),
    ("expert_ffn", |s| {
        let gate_up = packed(s, [5, 2 * 96, 1024], 0.05, true, OpKind::ExpertFfn)?;
        network(s, &gate_up, &packed(s, [5, 1024, 96], 0.1, true, OpKind::ExpertFfn)?)
    }),
    // Of two forms.
    ("expert_ffn", |s| {
        let gate_up = packed(s, [5, 2 * 96, 1024], 0.05, true, OpKind::ExpertFfn)?;
        network(s, &gate_up, &Experts::dense(tensor(s, &[5, 1024, 96], 0.1)?)?)
    }),
    // A prefill whose cache has numbers of nobody behind the sequences' ends.
    ("attention", |s| {
        let (q, k) = (tensor(s, &[21, 8, 64], 3.0)?, tensor(s, &[2, 64, 2, 64], 2.0)?);
        let v = tensor(s, &[2, 64, 2, 64], 1.5)?;
        for cache in [&k, &v] {
            let mut behind = cache.narrow(1, 50, 14)?;
            s.run(call::Copy::new(&tensor(s, behind.dims(), 1e6)?, &mut behind)?)?;
        }
        let (q_lens, kv_lens) = (Lens::upload(s, &[13, 8], 13)?, Lens::upload(s, &[40, 8], 64)?);
        let (mut out, mut lse) = (s.empty(q.spec())?, s.empty(&f32s(21 * 8))?.reshape(&[21, 8])?);
        s.run(call::Attention::new(&q, &k, &v, &q_lens, &kv_lens, &mut out)?.lse(&mut lse)?)
    }),
    ("attention", |s| {
        let (q, k, v) = (
            tensor(s, &[2, 4, 128], 6.0)?,
            tensor(s, &[2, 300, 2, 128], 4.0)?,
            tensor(s, &[2, 300, 2, 128], 1.0)?,
        );
        let (q_lens, kv_lens) = (Lens::upload(s, &[1, 1], 1)?, Lens::upload(s, &[300, 171], 300)?);
        s.run(call::Attention::new(&q, &k, &v, &q_lens, &kv_lens, &mut s.empty(q.spec())?)?)
    }),
];

#[test]
fn an_error_of_a_thousandth_is_found_in_every_operator_that_sums_products() {
    for (at, (op, work)) in PRODUCTS.iter().enumerate() {
        let log = ShadowLog::new(&stream(&open(cpu(Executor::Inline, Some(Isa::Portable)))));
        let (backend, _) = format!("wrong(0.001)@2:{op}").parse::<FaultPlan>().unwrap().around(inline());
        let s = stream(&open(log.around(backend)));
        work(&s).unwrap();
        assert!(log.first().is_none(), "{at}: {}", log.first().unwrap());
        let row = log.agreements().into_iter().find(|row| row.op.starts_with(op)).unwrap();
        assert_eq!((row.compared, row.skipped), (1, 0), "{row:?}");
        assert!(row.worst < 0.5, "{at}: {row:?} leaves little room");
        work(&s).unwrap();
        let found = log.first().unwrap_or_else(|| panic!("{at}: {:?}", log.agreements()));
        assert_eq!((found.kind.name(), found.mismatch.failures), (*op, 1), "{at}: {found}");
    }
}
