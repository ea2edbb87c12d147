//! Results that no cache holds are written past the caches, and are the same.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_core::call::{DynamicQuantize, LayerNorm, RmsNorm};
use portolan_core::{QuantTensor, Stream};
use portolan_cpu::{CpuOptions, Isa};
use portolan_ops::{QuantScheme, QuantSpec, Shape};
use rig::{device_with, stream};

const COLUMNS: usize = 4096;

/// The codes of `rows` rows of x from row `first` on.
fn codes(s: &Stream, scheme: QuantScheme, x: &[f32], first: usize, rows: usize) -> Vec<u8> {
    let x = &x[first * COLUMNS..(first + rows) * COLUMNS];
    let x = s.upload(x, &Shape::new(&[rows, COLUMNS]).unwrap()).unwrap();
    let spec = QuantSpec::of(scheme, rows, COLUMNS).unwrap();
    let [codes, scale] = [spec.codes(), spec.scale()].map(|part| s.empty(part).unwrap());
    let mut out = QuantTensor::new(scheme, codes, scale, None, None, None).unwrap();
    s.run(DynamicQuantize::new(&x, &mut out).unwrap()).unwrap();
    let mut bytes = s.download_bytes(out.codes().buffer()).unwrap().wait().unwrap();
    bytes.truncate(spec.codes().dtype().bytes_for(rows * COLUMNS));
    bytes
}

#[test]
fn codes_written_past_the_caches_are_those_that_stay_in_them() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.require().is_ok()) {
        let s = stream(&device_with(CpuOptions { isa: Some(isa), ..CpuOptions::default() }));
        // 16 MiB of codes and a little more at once; then in parts that are less.
        for (scheme, rows) in [(QuantScheme::F8_BLOCK, 4224), (QuantScheme::F8_GROUP, 4224)] {
            let x: Vec<f32> =
                (0..rows * COLUMNS).map(|i| ((i * 7919) % 10_007) as f32 / 64.0 - 70.0).collect();
            let whole = codes(&s, scheme, &x, 0, rows);
            let parts: Vec<u8> = [(0, 2048), (2048, rows - 2048)]
                .iter()
                .flat_map(|&(first, rows)| codes(&s, scheme, &x, first, rows))
                .collect();
            assert!(whole == parts, "{isa:?} {scheme:?}");
        }
    }
}

/// Rows `first .. first + rows` of x, normalised both ways.
fn norms(s: &Stream, x: &[f32], first: usize, rows: usize) -> [Vec<f32>; 2] {
    let dims = Shape::new(&[rows, COLUMNS]).unwrap();
    let weight: Vec<f32> = (0..COLUMNS).map(|i| 0.5 + i as f32 / COLUMNS as f32).collect();
    let weight = s.upload(&weight, &Shape::new(&[COLUMNS]).unwrap()).unwrap();
    let x = s.upload(&x[first * COLUMNS..(first + rows) * COLUMNS], &dims).unwrap();
    let [mut layer, mut rms] = [(); 2].map(|()| s.empty(x.spec()).unwrap());
    s.run(LayerNorm::new(&x, &mut layer, 1e-5).unwrap().weight(&weight).unwrap().bias(&weight).unwrap())
        .unwrap();
    s.run(RmsNorm::new(&x, &mut rms, 1e-5).unwrap().weight(&weight).unwrap()).unwrap();
    [layer, rms].map(|out| s.download::<f32>(&out).unwrap().wait().unwrap())
}

#[test]
fn norms_written_past_the_caches_are_those_that_stay_in_them() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.require().is_ok()) {
        let s = stream(&device_with(CpuOptions { isa: Some(isa), ..CpuOptions::default() }));
        let rows = 1025;
        let x: Vec<f32> = (0..rows * COLUMNS).map(|i| ((i * 7919) % 10_007) as f32 / 64.0 - 70.0).collect();
        let whole = norms(&s, &x, 0, rows);
        let parts = [norms(&s, &x, 0, 512), norms(&s, &x, 512, rows - 512)];
        for (i, whole) in whole.iter().enumerate() {
            let parts = parts.iter().flat_map(|part| &part[i]);
            assert!(whole.iter().zip(parts).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa:?} {i}");
        }
    }
}
