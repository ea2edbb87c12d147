//! Capture and replay: a graph is one operator that runs what was recorded, on memory of its own.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_core::call::{Attention, Binary, Fill, Softmax};
use portolan_core::{Lens, Stream, StreamOptions, Tensor};
use portolan_cpu::Executor;
use portolan_ops::kernel::BinaryKind;
use portolan_ops::{DType, OpError, Result, Shape, TensorSpec};
use rig::{device, down, every_executor, f32s, racing, sleeper, slow_copy, stream, up};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Three operators, with a temporary between: `out = softmax(x + x) · 2`.
fn step(s: &Stream, x: &Tensor, out: &mut Tensor) -> Result<()> {
    let mut sum = s.empty(x.spec())?;
    s.run(Binary::add(x, x, &mut sum)?)?;
    let mut soft = s.empty(x.spec())?;
    s.run(Softmax::new(&sum, &mut soft)?)?;
    s.run(Binary::scalar(BinaryKind::Mul, &soft, 2.0, out)?)
}

fn assert_capture_error<T: std::fmt::Debug>(result: Result<T>) {
    let error = result.unwrap_err();
    assert!(matches!(error, OpError::Capture { .. }), "{error}");
}

#[test]
fn a_replay_equals_the_eager_run_and_capture_runs_nothing() {
    for device in every_executor() {
        let s = stream(&device);
        let x = up(&s, &[0.5, 2.0, -1.0]);
        let mut out = up(&s, &[-7.0; 3]);
        let launches = s.report().launches;
        let graph = s.capture(|s| step(s, &x, &mut out)).unwrap();
        assert_eq!((graph.len(), s.report().launches), (3, launches));
        assert_eq!(down(&s, &out), [-7.0; 3]);
        graph.replay(&s).unwrap();
        let mut eager = s.empty(&f32s(3)).unwrap();
        step(&s, &x, &mut eager).unwrap();
        assert_eq!(down(&s, &out), down(&s, &eager));
        // Contents may change between replays.
        s.write(&x, &[1f32, 1.0, 1.0]).unwrap();
        graph.replay(&s).unwrap();
        step(&s, &x, &mut eager).unwrap();
        assert_eq!(down(&s, &out), down(&s, &eager));
        let report = s.report();
        assert_eq!(report.launches, launches + 2 + 6);
        assert_eq!(graph.cost().flops * 4, report.fused.flops);
    }
}

#[test]
fn a_graph_may_be_dropped_while_its_replay_is_in_flight() {
    for (executor, device) in racing(6) {
        let (s, other) = (stream(&device), stream(&device));
        let x = up(&s, &[2.5; 700]);
        let out = up(&s, &[0.0; 700]);
        let graph = s
            .capture(|s| {
                let inside = s.empty(x.spec())?;
                s.run(slow_copy(&x, &inside, Duration::from_millis(5)))?;
                s.run(slow_copy(&inside, &out, Duration::from_millis(5)))
            })
            .unwrap();
        graph.replay(&other).unwrap();
        drop(graph);
        for s in [&s, &other, &stream(&device)] {
            for i in 0..10 {
                up(s, &[i as f32; 700]);
            }
        }
        assert_eq!(down(&s, &out), [2.5; 700], "{executor:?}");
        assert!(device.memory().unwrap().bytes_in_use < 64 << 10);
    }
}

#[test]
fn what_cannot_be_captured_is_refused_and_the_stream_goes_on() {
    for device in every_executor() {
        let (s, other) = (stream(&device), stream(&device));
        let x = up(&s, &[1.0; 3]);
        let mut out = up(&s, &[0.0; 3]);
        let event = s.record().unwrap();
        let foreign = other.record().unwrap();
        let inner = s.capture(|s| step(s, &x, &mut out.clone())).unwrap();
        let graph = s
            .capture(|s| {
                assert_capture_error(s.capture(|_| Ok(())).map(|_| ()));
                assert_capture_error(other.capture(|_| Ok(())).map(|_| ()));
                assert_capture_error(s.upload(&[1f32], &Shape::new(&[1])?));
                assert_capture_error(s.write(&x, &[1f32; 3]));
                assert_capture_error(s.download::<f32>(&x).map(|_| ()));
                assert_capture_error(s.synchronize());
                assert_capture_error(s.record().map(|_| ()));
                assert_capture_error(s.wait(&foreign));
                assert_capture_error(event.synchronize());
                assert_capture_error(event.is_complete());
                assert_capture_error(inner.replay(s));
                assert_capture_error(inner.replay(&other));
                assert_capture_error(other.run(sleeper(&x, Duration::ZERO)));
                assert_capture_error(other.empty(&f32s(3)));
                assert_capture_error(other.upload(&[1f32], &Shape::new(&[1])?));
                assert_capture_error(other.record().map(|_| ()));
                assert_capture_error(other.synchronize());
                assert_capture_error(foreign.synchronize());
                std::thread::scope(|scope| {
                    let thread = scope.spawn(|| {
                        assert_capture_error(s.run(sleeper(&x, Duration::ZERO)));
                        assert_capture_error(s.empty(&f32s(3)));
                    });
                    thread.join().unwrap();
                });
                step(s, &x, &mut out)
            })
            .unwrap();
        assert_eq!(graph.len(), 3);
        graph.replay(&s).unwrap();
        let got = down(&s, &out);
        assert!(got.iter().all(|v| (v - 2.0 / 3.0).abs() < 1e-6), "{got:?}");
        other.synchronize().unwrap();
    }
}

#[test]
fn a_closure_that_fails_or_panics_leaves_the_stream_as_it_was() {
    for device in every_executor() {
        let s = stream(&device);
        let x = up(&s, &[1.0; 3]);
        let result = s.capture(|s| {
            s.run(Fill::new(&mut x.clone(), 9.0)?)?;
            Err(OpError::internal("closure", "changed its mind"))
        });
        assert!(result.err().unwrap().to_string().contains("changed its mind"));
        let panic = catch_unwind(AssertUnwindSafe(|| {
            let _ = s.capture(|_| std::panic::resume_unwind(Box::new("out")));
        }));
        assert!(panic.is_err());
        assert_eq!(down(&s, &x), [1.0; 3]);
        stream(&device).synchronize().unwrap();
    }
}

#[test]
fn attention_over_device_lengths_replays_while_the_lengths_grow() {
    const MAX: usize = 40;
    for executor in [Executor::Queued, Executor::Chaotic { seed: 4 }] {
        let device = device(executor);
        let s = device.stream(StreamOptions::default()).unwrap();
        let (heads, dim) = (2, 16);
        let ramp = |n: usize| (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect::<Vec<f32>>();
        let tensor =
            |dims: &[usize]| s.upload(&ramp(dims.iter().product()), &Shape::new(dims).unwrap()).unwrap();
        let q = tensor(&[1, heads, dim]);
        let (k, v) = (tensor(&[1, MAX, heads, dim]), tensor(&[1, MAX, heads, dim]));
        let mut out = s.empty(&TensorSpec::of(DType::F32, &[1, heads, dim]).unwrap()).unwrap();
        let lens = |n: i32, max: u32| {
            Lens::new(s.upload(&[n], &Shape::new(&[1]).unwrap()).unwrap(), max, None).unwrap()
        };
        let (q_lens, kv_lens) = (lens(1, 1), lens(1, MAX as u32));
        let graph = s.capture(|s| s.run(Attention::new(&q, &k, &v, &q_lens, &kv_lens, &mut out)?)).unwrap();
        let mut seen = Vec::new();
        for len in [1, 2, 3, 17, 39, 40] {
            s.write(kv_lens.tensor(), &[len]).unwrap();
            graph.replay(&s).unwrap();
            let replayed = down(&s, &out);
            let mut eager = s.empty(out.spec()).unwrap();
            let exact = Lens::upload(&s, &[len as u32], MAX as u32).unwrap();
            s.run(Attention::new(&q, &k, &v, &q_lens, &exact, &mut eager).unwrap()).unwrap();
            let eager = down(&s, &eager);
            assert!(replayed.iter().zip(&eager).all(|(a, b)| (a - b).abs() < 1e-5), "length {len}");
            assert!(!seen.contains(&replayed), "length {len} changed nothing");
            seen.push(replayed);
        }
    }
}
