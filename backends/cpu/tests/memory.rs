//! Memory as the CPU has it: limited, given back from any thread, never waited for; the rest is in conformance.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_core::call::{Binary, Fill};
use portolan_core::{Device, Memory, Registry, Stream, StreamOptions};
use portolan_cpu::{CpuBackend, CpuOptions, Executor};
use portolan_ops::{DType, ErrorKind, OpError, TensorSpec};
use rig::{custom, device_with, down, every_executor, f32s, queued, sleeper, slow_copy, stream, up};
use std::sync::Arc;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

fn limited(executor: Executor) -> Device {
    device_with(CpuOptions {
        executor,
        threads: Some(1),
        memory_limit: Some(64 * MIB),
        ..CpuOptions::default()
    })
}

fn label(text: &str) -> Arc<str> {
    text.into()
}

fn mib(n: usize) -> TensorSpec {
    TensorSpec::of(DType::U8, &[n * MIB]).unwrap()
}

#[test]
fn dropping_handles_never_blocks_whatever_is_in_flight() {
    let device = queued();
    let s = stream(&device);
    let x = s.empty(&f32s(1000)).unwrap();
    s.run(sleeper(&x, Duration::from_millis(800))).unwrap();
    let start = Instant::now();
    let pending = s.download::<f32>(&x).unwrap();
    drop(pending);
    drop(s);
    // The last handle of the stream, and of the device.
    drop(device);
    drop(x);
    assert!(start.elapsed() < Duration::from_millis(600), "{:?}", start.elapsed());
}

#[test]
fn a_kernel_may_drop_the_last_handles_of_everything() {
    let backend =
        CpuBackend::new(CpuOptions { memory_limit: Some(64 * MIB), ..CpuOptions::default() }).unwrap();
    {
        let device = Registry::new().with(backend.clone()).open("cpu").unwrap();
        let s = stream(&device);
        let x = s.empty(&f32s(10)).unwrap();
        let captured = (device.clone(), s.clone(), x.clone());
        let operands = vec![(x, portolan_ops::Access::ReadWrite)];
        s.run(custom("holder", operands, move |_| {
            std::thread::sleep(Duration::from_millis(30));
            assert!(captured.0.ordinal() == 0);
            Ok(())
        }))
        .unwrap();
    }
    assert_all_released(&backend);
}

fn assert_all_released(backend: &CpuBackend) {
    let start = Instant::now();
    loop {
        let info = backend.memory_info(0).unwrap();
        if info.free == info.total {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{} of {} free", info.free, info.total);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn dropping_a_device_gives_all_memory_back() {
    for executor in [Executor::Inline, Executor::Queued, Executor::Chaotic { seed: 1 }] {
        let options = CpuOptions { executor, memory_limit: Some(256 * MIB), ..CpuOptions::default() };
        let backend = CpuBackend::new(options).unwrap();
        let device = Registry::new().with(backend.clone()).open("cpu").unwrap();
        let (a, b) = (stream(&device), stream(&device));
        let (x, y) = (up(&a, &[1.0; 5000]), up(&b, &[1.0; 5000]));
        let large = a.empty(&mib(40)).unwrap();
        let graph = a.capture(|s| s.run(Binary::add(&x, &y, &mut s.empty(&f32s(5000))?)?)).unwrap();
        graph.replay(&b).unwrap();
        a.run(sleeper(&x, Duration::from_millis(30))).unwrap();
        drop((x, y, large, graph, a, b, device));
        assert_all_released(&backend);
    }
}

#[test]
fn fragmentation_is_the_free_part_outside_the_largest_free_block() {
    let device = queued();
    let s = stream(&device);
    let blocks: Vec<_> = (0..32).map(|_| s.empty(&mib(1)).unwrap()).collect();
    assert_eq!(device.memory().unwrap().fragmentation, 0.0);
    let kept: Vec<_> = blocks.into_iter().enumerate().filter(|(i, _)| i % 2 == 1).collect();
    let stats = device.memory().unwrap();
    assert_eq!(stats.fragmentation, 1.0 - 1.0 / 16.0);
    drop(kept);
    assert_eq!(device.memory().unwrap().fragmentation, 0.0);
}

#[test]
fn running_out_names_the_largest_holders_and_the_pool_stays_usable() {
    for executor in [Executor::Inline, Executor::Queued, Executor::Chaotic { seed: 5 }] {
        let device = limited(executor);
        let s = stream(&device);
        let weights = s.empty_labelled(&mib(40), &label("weights")).unwrap();
        let cache = s.empty_labelled(&mib(12), &label("kv cache")).unwrap();
        let more = s.empty_labelled(&mib(2), &label("weights")).unwrap();
        let error = s.empty(&mib(32)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
        let OpError::OutOfMemory { requested, total, free, holders, .. } = &error else { panic!("{error}") };
        assert_eq!((*requested, *total), (32 * MIB, 64 * MIB));
        assert!(*free <= 10 * MIB, "{free}");
        let holders: Vec<_> = holders.iter().map(|h| (h.label.as_ref(), h.bytes)).collect();
        assert_eq!(holders, [("weights", 42 * MIB), ("kv cache", 12 * MIB)]);
        assert!(error.to_string().contains("kv cache"), "{error}");
        drop((cache, more));
        let x = up(&s, &[3.0; 1000]);
        assert_eq!(down(&s, &x), [3.0; 1000]);
        drop(weights);
        s.empty(&mib(60)).unwrap();
    }
}

#[test]
fn free_segments_are_given_up_and_parked_blocks_waited_for_before_memory_runs_out() {
    for executor in [Executor::Queued, Executor::Chaotic { seed: 2 }] {
        let device = limited(executor);
        let (a, b) = (stream(&device), stream(&device));
        let x = a.empty(&mib(40)).unwrap();
        b.run(sleeper(&x, Duration::from_millis(30))).unwrap();
        a.run(sleeper(&x, Duration::from_millis(30))).unwrap();
        drop(x);
        // Too much beside the first one: that has to go back first.
        let y = b.empty(&mib(50)).unwrap();
        drop(y);
        a.empty(&mib(60)).unwrap();
        assert!(device.memory().unwrap().bytes_reserved <= 64 * MIB);
    }
}

#[test]
fn the_pool_of_a_dropped_graph_is_given_back_when_memory_is_short() {
    let device = limited(Executor::Queued);
    let s = stream(&device);
    let mut out = s.empty(&f32s(10)).unwrap();
    for _ in 0..4 {
        let graph = s
            .capture(|s| {
                let mut inside = s.empty(&TensorSpec::of(DType::F32, &[10 * MIB])?)?;
                s.run(Fill::new(&mut inside, 1.0)?)?;
                let part = inside.narrow(0, 0, 10)?;
                s.run(Binary::add(&part, &part, &mut out)?)
            })
            .unwrap();
        graph.replay(&s).unwrap();
        drop(graph);
    }
    assert_eq!(down(&s, &out), [2.0; 10]);
}

#[test]
fn requests_beyond_all_memory_are_errors_and_cost_nothing() {
    let device = queued();
    let s = stream(&device);
    let x = up(&s, &[1.0]);
    s.run(sleeper(&x, Duration::from_millis(500))).unwrap();
    let start = Instant::now();
    for dims in [
        &[usize::MAX][..],
        &[usize::MAX, 2],
        &[usize::MAX / 2, 0, 3],
        &[1 << 59],
        &[1 << 30, 1 << 29],
        &[1 << 40],
    ] {
        for dtype in [DType::F64, DType::F32, DType::U8, DType::U4] {
            let result = TensorSpec::of(dtype, dims).and_then(|spec| s.empty(&spec));
            let error = result.unwrap_err();
            let shape = matches!(error, OpError::Shape { .. });
            assert!(shape || error.kind() == ErrorKind::ResourceExhausted, "{dims:?}: {error}");
        }
    }
    // What can never fit is refused without waiting for anybody.
    assert!(start.elapsed() < Duration::from_millis(400), "{:?}", start.elapsed());
}

#[test]
fn ten_thousand_steps_leave_the_memory_flat() {
    let device = queued();
    let (s, side) = (stream(&device), stream(&device));
    let mut x = up(&s, &[1.0; 300]);
    let mut warm = None;
    for step in 0..10_000 {
        let mut y = s.empty(&f32s(300)).unwrap();
        s.run(Binary::add(&x, &x, &mut y).unwrap()).unwrap();
        let mut z = side.empty(&f32s(300)).unwrap();
        side.run(Binary::add(&y, &x, &mut z).unwrap()).unwrap();
        x = if step % 7 == 0 { up(&s, &[1.0; 300]) } else { y };
        if step % 50 == 0 {
            s.synchronize().unwrap();
            side.synchronize().unwrap();
        }
        if step == 1000 {
            warm = Some(device.memory().unwrap());
        }
    }
    s.synchronize().unwrap();
    side.synchronize().unwrap();
    let (warm, end) = (warm.unwrap(), device.memory().unwrap());
    assert_eq!(end.bytes_reserved, warm.bytes_reserved);
    assert!(end.bytes_in_use <= 8 << 10, "{end:?}");
}

#[test]
fn many_short_streams_leave_nothing_behind() {
    let device = queued();
    let keep: Stream = stream(&device);
    let x = up(&keep, &[1.0; 1000]);
    for _ in 0..100 {
        let s = device.stream(StreamOptions::default()).unwrap();
        let y = s.empty(&f32s(200_000)).unwrap();
        s.run(sleeper(&y, Duration::ZERO)).unwrap();
        s.run(slow_copy(&x, &s.empty(&f32s(1000)).unwrap(), Duration::ZERO)).unwrap();
        s.synchronize().unwrap();
    }
    assert!(device.memory().unwrap().bytes_reserved <= 64 * MIB);
}

#[test]
fn a_closed_device_leaves_nothing_behind() {
    for device in every_executor() {
        let s = stream(&device);
        let label = label("kept by a pool that is not freed");
        let x = s.empty_labelled(&f32s(100), &label).unwrap();
        s.synchronize().unwrap();
        drop((x, s, device));
        assert_eq!(Arc::strong_count(&label), 1);
    }
}
