//! Codecs of elements, and views over a small memory.

use super::testing::{Arena, BASE};
use super::*;

#[test]
fn sixteen_bit_floats_round_once_to_nearest_even() {
    // 1 + 2⁻¹¹ is a tie and goes to 1; a last bit of an f64 more goes up, which rounding by way of f32 misses.
    let tie = 1.0 + 2f64.powi(-11);
    assert_eq!(Dtype::F16.encode(tie), 0x3c00);
    assert_eq!(Dtype::F16.encode(tie + 2f64.powi(-40)), 0x3c01);
    assert_eq!(Dtype::F16.encode(65519.0), 0x7bff);
    assert_eq!(Dtype::F16.encode(65520.0), 0x7c00);
    assert_eq!(Dtype::F16.encode(2f64.powi(-25)), 0);
    assert_eq!(Dtype::F16.encode(-1.5 * 2f64.powi(-25)), 0x8001);
    assert_eq!(Dtype::Bf16.encode(1.0 + 2f64.powi(-8)), 0x3f80);
    assert_eq!(Dtype::Bf16.encode(1.0 + 3.0 * 2f64.powi(-8)), 0x3f82);
    assert_eq!(Dtype::Bf16.encode(f64::from(f32::MAX)), 0x7f80);
    for bits in 0..=u16::MAX {
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let value = dtype.decode(u64::from(bits));
            assert!(value.is_nan() || dtype.encode(value) == u64::from(bits), "{dtype:?} {bits:#x}");
        }
    }
}

#[test]
fn integers_saturate_from_floats_and_wrap_from_integers() {
    assert_eq!([300.0, -300.0, -1.9].map(|x| Dtype::I8.encode(x)), [127, 0x80, 0xff]);
    assert_eq!([9.0, -9.0].map(|x| Dtype::I4.decode_int(Dtype::I4.encode(x))), [7, -8]);
    assert_eq!(Dtype::U8.encode_int(257), 1);
    assert_eq!(Dtype::I32.decode_int(Dtype::I32.encode_int(1 << 31)), -(1 << 31));
    assert_eq!((0..16).map(|x| Dtype::I4.decode_int(x)).sum::<i64>(), -8);
    // `aclDataType` leaves 5, 13 to 15, 18 to 26, and 28 to others.
    let known: Vec<i64> = (-1..64).filter(|&code| Dtype::from_code(code).is_some()).collect();
    assert_eq!(known[..14], [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 16, 17]);
    assert_eq!(known[14..], [27, 29, 30, 33, 34, 35, 36, 37, 38, 39, 40, 41]);
    assert!(known.iter().all(|&code| Dtype::from_code(code).is_some_and(|dtype| dtype as i64 == code)));
    let opaque =
        known.iter().filter(|&&code| Dtype::from_code(code).is_some_and(|dtype| !dtype.is_simulated()));
    assert_eq!(opaque.count(), 8);
}

#[test]
fn views_read_what_they_describe() {
    let arena = Arena::new(256);
    let whole = Tensor::contiguous(Dtype::I32, &[3, 4], BASE);
    whole.write_i64(&arena, &(0..12).collect::<Vec<_>>()).unwrap();
    let rows = |view: &Tensor| view.read_i64(&arena).unwrap();
    assert_eq!(rows(&whole.transposed()), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
    assert_eq!(rows(&whole.narrow(1, 1, 2, 2)), [1, 3, 5, 7, 9, 11]);
    assert_eq!(rows(&whole.narrow(0, 1, 1, 1).broadcast(&[2, 4]).unwrap()), [4, 5, 6, 7, 4, 5, 6, 7]);
    assert!(rows(&whole.narrow(0, 0, 0, 1)).is_empty());
    assert!(whole.broadcast(&[4, 4]).is_none());
    assert!(whole.is_contiguous() && !whole.transposed().is_contiguous());
    let scalar = Tensor::contiguous(Dtype::I32, &[], BASE + 20);
    assert_eq!(rows(&scalar), [5]);
    assert_eq!(rows(&scalar.broadcast(&[2, 1]).unwrap()), [5, 5]);
}

#[test]
fn four_bit_elements_lie_low_nibble_first() {
    let arena = Arena::new(64);
    let view = Tensor::contiguous(Dtype::I4, &[5], BASE);
    view.write_i64(&arena, &[1, -2, 3, -4, 5]).unwrap();
    let bytes = Tensor::contiguous(Dtype::U8, &[3], BASE).read_i64(&arena).unwrap();
    // The sixth nibble keeps what was there.
    assert_eq!(bytes, [0xe1, 0xc3, 0xa5]);
    assert_eq!(view.narrow(0, 1, 2, 2).read_i64(&arena).unwrap(), [-2, -4]);
}

#[test]
fn fractal_blocks_hold_sixteen_rows_of_32_bytes() {
    let arena = Arena::new(4096);
    let (rows, cols) = (17, 20);
    let mut matrix = Tensor::contiguous(Dtype::F16, &[rows, cols], BASE);
    matrix.format = Format::FractalNz;
    let values: Vec<f64> = (0..rows * cols).map(|i| i as f64).collect();
    matrix.write_f64(&arena, &values).unwrap();
    // Storage [2 column blocks, 2 row blocks, 16, 16].
    let raw = Tensor::contiguous(Dtype::F16, &[2, 2, 16, 16], BASE);
    let at = |index: [usize; 4]| {
        let view = (0..4).fold(raw.clone(), |view, axis| view.narrow(axis, index[axis], 1, 1));
        view.read_f64(&arena).unwrap()[0]
    };
    assert_eq!(at([0, 0, 3, 5]), (3 * cols + 5) as f64);
    assert_eq!(at([1, 0, 3, 2]), (3 * cols + 18) as f64);
    assert_eq!(at([1, 1, 0, 3]), (16 * cols + 19) as f64);
    assert_eq!(matrix.read_f64(&arena).unwrap(), values);
    let turned = matrix.transposed().read_f64(&arena).unwrap();
    assert_eq!(turned[5 * rows + 3], (3 * cols + 5) as f64);
}

#[test]
fn memory_outside_is_refused() {
    let arena = Arena::new(16);
    let fault = Tensor::contiguous(Dtype::F32, &[5], BASE).read_f64(&arena).unwrap_err();
    assert_eq!(fault.status, 507035);
    assert!(fault.message.contains("20 bytes"), "{}", fault.message);
}
