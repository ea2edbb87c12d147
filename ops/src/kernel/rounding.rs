//! How results of the kernel core are rounded: tolerances in units in the last place, wrapping integers.
//!
//! Every element-wise operator computes f16 and bf16 in f32 and rounds once; the allowances follow from that.

use crate::{DType, Tolerance};

/// The type an operator on `dtype` computes in: f64 for f64, f32 for the narrower floats.
pub(crate) fn compute_type(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Half the smallest positive number of a float type: the rounding error of results below its normal range.
fn half_smallest(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-25),
        DType::BF16 => 2f64.powi(-134),
        DType::F32 => 2f64.powi(-150),
        _ => 0.0,
    }
}

/// `n` units in the last place of the type computed in (half a unit is correct rounding), then one rounding
/// to `out` where that is narrower. One unit in the last place is at most `2u` of the value.
pub(crate) fn ulps(out: DType, n: f64) -> Tolerance {
    if !out.is_float() {
        return Tolerance::EXACT;
    }
    let compute = compute_type(out);
    let computed =
        Tolerance { abs: 2.0 * n * half_smallest(compute), rel: 2.0 * n * compute.unit_roundoff() };
    if out == compute { computed } else { computed.plus(rounding(out)) }
}

/// One rounding to `out`, also below its normal range.
pub(crate) fn rounding(out: DType) -> Tolerance {
    Tolerance { abs: half_smallest(out), rel: out.unit_roundoff() }
}

/// A sum of `terms` numbers of size at most 1 in the compute type, any order, then one rounding to `out`.
///
/// The worst case is `terms²·u`; with independent rounding errors of partial sums of size √terms it is about
/// `terms·u/√3`. Allowed are `2·(terms + 8)·u`, as for matrix products.
pub(crate) fn summed(out: DType, terms: usize) -> Tolerance {
    if !out.is_float() {
        return Tolerance::EXACT;
    }
    let accumulated = 2.0 * (terms as f64 + 8.0) * compute_type(out).unit_roundoff();
    rounding(out).plus(Tolerance { abs: accumulated, rel: 0.0 })
}

/// A product of `factors` numbers in the compute type: one rounding each, doubled, then one to `out`.
pub(crate) fn multiplied(out: DType, factors: usize) -> Tolerance {
    if !out.is_float() {
        return Tolerance::EXACT;
    }
    let rel = 2.0 * factors as f64 * compute_type(out).unit_roundoff();
    rounding(out).plus(Tolerance { abs: 0.0, rel })
}

/// An exact integer result, wrapped to the width of `dtype`.
pub(crate) fn wrapped(dtype: DType, value: i128) -> f64 {
    match dtype {
        DType::I32 => f64::from(value as i32),
        DType::I8 => f64::from(value as i8),
        DType::U8 => f64::from(value as u8),
        DType::Bool => f64::from(u8::from(value != 0)),
        _ => value as i64 as f64,
    }
}

/// Whether `value` is a number that an integer type (or bool) holds exactly.
pub(crate) fn holds_integer(dtype: DType, value: f64) -> bool {
    // i64 up to 2^53: beyond that an f64 attribute does not name one integer.
    let whole = value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0;
    whole && wrapped(dtype, value as i128) == value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_wrap_to_their_width() {
        assert_eq!(wrapped(DType::I32, 1 << 31), -2147483648.0);
        assert_eq!(wrapped(DType::U8, -1), 255.0);
        assert_eq!(wrapped(DType::I8, 200), -56.0);
    }

    #[test]
    fn fractions_and_large_values_are_not_held() {
        assert!(holds_integer(DType::I32, -3.0) && holds_integer(DType::Bool, 1.0));
        for (dtype, value) in [
            (DType::I32, 0.5),
            (DType::U8, -1.0),
            (DType::U8, 256.0),
            (DType::Bool, 2.0),
            (DType::I64, 1e300),
            (DType::I64, f64::NAN),
            (DType::I64, f64::INFINITY),
        ] {
            assert!(!holds_integer(dtype, value), "{dtype} {value}");
        }
    }
}
