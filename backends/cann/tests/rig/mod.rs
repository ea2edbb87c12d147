//! What the tests of the Ascend backend share: simulated worlds, and devices in them.
#![allow(dead_code)]

use portolan_cann::{CannBackend, CannOptions};
use portolan_cann_sys::sim::{Adversary, SimOptions, SimWorld};
use portolan_core::{Device, Registry, Stream, StreamOptions};
use portolan_ops::{DType, Shape, TensorSpec};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) fn backend_in(world: &SimWorld) -> Arc<CannBackend> {
    CannBackend::new(CannOptions { folder: Some(world.folder().to_owned()), ..CannOptions::default() })
}

/// A world of a product, small enough for tests.
pub(crate) fn options(soc: &str, adversary: Adversary, seed: u64) -> SimOptions {
    SimOptions { soc: soc.into(), adversary, seed, memory_bytes: 256 << 20, ..SimOptions::default() }
}

pub(crate) fn world(soc: &str, adversary: Adversary, seed: u64) -> SimWorld {
    SimWorld::new(&options(soc, adversary, seed)).unwrap()
}

pub(crate) fn open(world: &SimWorld) -> Device {
    Registry::new().with(backend_in(world)).open("cann:0").unwrap()
}

pub(crate) fn stream(device: &Device) -> Stream {
    device.stream(StreamOptions { timeout: Duration::from_secs(60), ..StreamOptions::default() }).unwrap()
}

pub(crate) fn shape(len: usize) -> Shape {
    Shape::new(&[len]).unwrap()
}

pub(crate) fn f32s(len: usize) -> TensorSpec {
    TensorSpec::of(DType::F32, &[len]).unwrap()
}

/// The adversaries that tests with several streams or frees run under.
pub(crate) fn adversaries() -> Vec<(Adversary, u64)> {
    let seeded = (0..20).map(|seed| (Adversary::Seeded, seed));
    let late = (0..20).map(|seed| (Adversary::Late, seed));
    late.chain(seeded).chain([(Adversary::Early, 0)]).collect()
}

/// Nothing is left in a world whose devices were dropped, or will be soon: work in flight is waited for elsewhere.
pub(crate) fn assert_empties(world: &SimWorld) {
    let start = Instant::now();
    loop {
        let report = world.report().unwrap();
        if report.is_clean() {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{report}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
