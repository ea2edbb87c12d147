//! Quantization of tensors that no cache holds.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_core::call::DynamicQuantize;
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
