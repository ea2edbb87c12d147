//! A program that runs for long: what the device holds does not grow with the number of steps.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_core::call::Binary;
use portolan_core::{Device, PoolStats, Stream};
use portolan_ops::{Access, DType, ErrorKind, Shape, TensorSpec};
use rig::{custom, down, f32s, launch_fault, queued, stream, up};

const WARM_UP: usize = 500;
const STEPS: usize = 10_000;

/// Two streams that read each other's results through views, a download, a custom operator, refused calls; now and
/// then a graph with memory of its own, and a stream that fails and goes.
fn step(device: &Device, a: &Stream, b: &Stream, i: usize) {
    let (rows, value) = (1 + i % 13, (i % 100) as f32);
    let x = up(a, &vec![value; rows * 64]).reshape(&[rows, 64]).unwrap();
    let mut sum = a.empty(&TensorSpec::of(DType::F32, &[64, rows]).unwrap()).unwrap();
    let turned = x.transpose(0, 1).unwrap();
    a.run(Binary::add(&turned, &turned, &mut sum).unwrap()).unwrap();
    drop(x);

    let last = sum.select(1, rows - 1).unwrap();
    let out = b.empty(&f32s(64)).unwrap();
    let operands = vec![(last.clone(), Access::Read), (out.clone(), Access::Write)];
    b.run(custom("every_other", operands, move |operands| {
        let [x, out] = operands else { unreachable!() };
        let x = x.read::<f32>()?;
        out.write::<f32>()?.iter_mut().enumerate().for_each(|(at, slot)| *slot = x[at * rows]);
        Ok(())
    }))
    .unwrap();
    // The home stream of `sum` and `last` is not the one that reads them.
    drop((sum, last));
    assert_eq!(down(b, &out), [2.0 * value; 64]);

    assert!(Binary::add(&out, &up(a, &[0.0; 3]), &mut out.clone()).is_err());
    assert!(a.upload(&[0f32; 3], &Shape::new(&[4]).unwrap()).is_err());

    if i.is_multiple_of(50) {
        let graph = a
            .capture(|s| {
                let mut inner = s.empty(&f32s(64))?;
                s.run(Binary::add(&out, &out, &mut inner)?)?;
                s.run(Binary::add(&inner, &out, &mut out.clone())?)
            })
            .unwrap();
        graph.replay(b).unwrap();
        graph.replay(a).unwrap();
        assert_eq!(down(a, &out), [18.0 * value; 64]);
        let whole = a.empty(&TensorSpec::of(DType::U8, &[1 << 40]).unwrap());
        assert_eq!(whole.unwrap_err().kind(), ErrorKind::ResourceExhausted);
    }
    if i.is_multiple_of(100) {
        let doomed = stream(device);
        let made = launch_fault(&doomed).unwrap();
        let outcome = doomed.download::<f32>(&made).and_then(|pending| pending.wait());
        assert!(outcome.is_err());
    }
}

/// After everything has finished.
fn held(device: &Device, streams: [&Stream; 2]) -> PoolStats {
    streams.iter().for_each(|s| s.synchronize().unwrap());
    device.memory().unwrap()
}

/// Resident memory of this process, where the system tells.
fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
}

#[test]
fn bytes_in_use_are_flat_over_ten_thousand_steps() {
    let device = queued();
    let (a, b) = (stream(&device), stream(&device));
    (0..WARM_UP).for_each(|i| step(&device, &a, &b, i));
    let (before, kib) = (held(&device, [&a, &b]), resident_kib());
    (WARM_UP..WARM_UP + STEPS).for_each(|i| step(&device, &a, &b, i));
    let after = held(&device, [&a, &b]);
    println!("{before:?}\n{after:?}\nresident: {kib:?} KiB, then {:?} KiB", resident_kib());
    assert_eq!(after.bytes_in_use, 0);
    assert_eq!((after.bytes_in_use, after.bytes_reserved), (before.bytes_in_use, before.bytes_reserved));
}
