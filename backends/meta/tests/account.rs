//! Peaks, costs and refusals of small programs, worked out by hand.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan_core::call::{Binary, Fill, RmsNorm};
use portolan_core::{Device, Registry, Stream, StreamOptions, Tensor, ops};
use portolan_meta::{Count, MetaBackend, MetaOptions};
use portolan_ops::{Cost, DType, OpError, Shape, TensorSpec, Unsupported};

fn open(count: Count) -> (Device, Stream) {
    let backend = MetaBackend::new(MetaOptions { count, ..MetaOptions::default() });
    let device = Registry::new().with(backend).open("meta:0").unwrap();
    let stream = device.stream(StreamOptions::default()).unwrap();
    (device, stream)
}

fn f32s(dims: &[usize]) -> TensorSpec {
    TensorSpec::of(DType::F32, dims).unwrap()
}

#[test]
fn the_peak_is_the_largest_sum_of_what_is_alive_together() {
    let (device, stream) = open(Count::Fused);
    // x: 3 · 5 · 4 = 60 bytes; w: 7 · 5 · 4 = 140; none a multiple of what a pool hands out.
    let x = stream.empty(&f32s(&[3, 5])).unwrap();
    let w = stream.empty(&f32s(&[7, 5])).unwrap();
    // y: 3 · 7 · 4 = 84, beside x and w: 284.
    let y = ops::gemm_nt(&stream, &x, &w).unwrap();
    assert_eq!(device.memory().unwrap().live_bytes, 284);
    drop((x, w));
    // z: 84, beside y: 168.
    let mut z = stream.empty(y.spec()).unwrap();
    stream.run(Binary::add(&y, &y, &mut z).unwrap()).unwrap();
    assert_eq!(device.memory().unwrap().live_bytes, 168);
    drop(y);
    // 250 more beside z: 334, the peak.
    let bytes = stream.empty(&TensorSpec::of(DType::U8, &[250]).unwrap()).unwrap();
    drop((z, bytes));
    let memory = device.memory().unwrap();
    assert_eq!((memory.live_bytes, memory.peak_live_bytes), (0, 334));

    let report = stream.report();
    // 2 · 3 · 7 · 5 operations and a sum of 21; 60 + 140 bytes read, 84 written, then 2 · 84 and 84.
    let want = Cost { flops: 210 + 21, bytes_read: 200 + 168, bytes_written: 168, bytes_comm: 0 };
    assert_eq!((report.fused, report.composed, report.launches), (want, want, 2));
}

#[test]
fn scratch_of_compositions_is_alive_while_they_run() {
    let run = |count| {
        let (device, stream) = open(count);
        let x = stream.empty(&f32s(&[16, 100])).unwrap();
        let mut out = stream.empty(x.spec()).unwrap();
        stream.run(RmsNorm::new(&x, &mut out, 1e-5).unwrap()).unwrap();
        let memory = device.memory().unwrap();
        assert_eq!(memory.live_bytes, 2 * 6400, "{count:?}");
        (memory.peak_live_bytes, stream.report())
    };
    let (peak, fused) = run(Count::Fused);
    assert_eq!((peak, fused.fused, fused.compositions_total()), (2 * 6400, fused.composed, 0));
    let (peak, composed) = run(Count::Composed);
    // At least the squares, as large as x, and a mean a row.
    assert!(peak >= 3 * 6400 + 16 * 4, "{peak}");
    assert_eq!((composed.fused, composed.compositions_total()), (fused.fused, 1));
    assert!(composed.composed.bytes_read > fused.fused.bytes_read);
}

#[test]
fn nothing_is_read_back_and_the_stream_goes_on() {
    let (_device, stream) = open(Count::Fused);
    let x = stream.upload(&[1.0f32; 6], &Shape::new(&[2, 3]).unwrap()).unwrap();
    stream.write(&x, &[2.0f32; 6]).unwrap();
    let no_data = |error: Option<OpError>| match error {
        Some(OpError::Unsupported { reason: Unsupported::NoData, device, .. }) => {
            device.to_string() == "meta:0"
        }
        _ => false,
    };
    assert!(no_data(stream.download::<f32>(&x).err()));
    assert!(no_data(stream.download::<f32>(&x.transpose(0, 1).unwrap()).err()));
    assert!(no_data(stream.download_bytes(x.buffer()).err()));
    // Far more than a host has: refused before anything is reserved for it.
    let large: Tensor = stream.empty(&f32s(&[1 << 20, 1 << 20])).unwrap();
    assert!(no_data(stream.download::<f32>(&large).err()));
    let none = stream.empty(&f32s(&[0])).unwrap();
    assert_eq!(stream.download::<f32>(&none).unwrap().wait().unwrap(), [0f32; 0]);
    stream.run(Fill::new(&mut x.clone(), 1.0).unwrap()).unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn a_graph_counts_its_operators_at_every_replay_and_none_at_capture() {
    let (_device, stream) = open(Count::Composed);
    let x = stream.empty(&f32s(&[4, 8])).unwrap();
    let mut out = stream.empty(x.spec()).unwrap();
    let step = |s: &Stream, out: &mut Tensor| s.run(RmsNorm::new(&x, out, 1e-5)?);
    step(&stream, &mut out.clone()).unwrap();
    let once = stream.report();
    let graph = stream.capture(|s| step(s, &mut out)).unwrap();
    assert_eq!(stream.report().fused, once.fused);
    for _ in 0..2 {
        graph.replay(&stream).unwrap();
    }
    let [row] = stream.report().operators[..] else { panic!("one operator ran") };
    assert_eq!(row.calls, 3);
    assert_eq!((row.fused.flops, row.composed.flops), (3 * once.fused.flops, 3 * once.composed.flops));
}
