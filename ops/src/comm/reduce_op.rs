//! How the values of ranks are combined into one.

use crate::kernel::edges::FLOATS;
use crate::kernel::rounding::{multiplied, summed, wrapped};
use crate::{DType, Fill, Tolerance};

/// How ranks' values are combined. f16 and bf16 are computed in f32 and rounded once; integers wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReduceOp {
    /// Sum.
    Sum,
    /// Product.
    Prod,
    /// Largest; NaN if any is.
    Max,
    /// Smallest; NaN if any is.
    Min,
    /// Sum divided by the number of ranks; floats only.
    Mean,
}

const NUMBERS: [DType; 7] =
    [DType::F32, DType::F16, DType::BF16, DType::F64, DType::I64, DType::I32, DType::U8];

impl ReduceOp {
    /// Every combination.
    pub const ALL: [ReduceOp; 5] =
        [ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Max, ReduceOp::Min, ReduceOp::Mean];

    /// Its name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            ReduceOp::Sum => "sum",
            ReduceOp::Prod => "prod",
            ReduceOp::Max => "max",
            ReduceOp::Min => "min",
            ReduceOp::Mean => "mean",
        }
    }

    /// The element types it takes.
    pub const fn dtypes(self) -> &'static [DType] {
        match self {
            ReduceOp::Mean => &FLOATS,
            _ => &NUMBERS,
        }
    }

    /// Operations that make one element out of those of `ranks` ranks.
    pub(crate) fn flops(self, ranks: u64) -> u64 {
        ranks - 1 + u64::from(self == ReduceOp::Mean)
    }

    /// The combination of equally long values, in rank order.
    pub(crate) fn of(self, dtype: DType, ranks: &[&[f64]]) -> Vec<f64> {
        let one = |a: f64, b: f64| match self {
            ReduceOp::Sum if dtype.is_int() => wrapped(dtype, a as i128 + b as i128),
            ReduceOp::Prod if dtype.is_int() => wrapped(dtype, a as i128 * b as i128),
            ReduceOp::Sum | ReduceOp::Mean => a + b,
            ReduceOp::Prod => a * b,
            ReduceOp::Max | ReduceOp::Min if a.is_nan() || b.is_nan() => f64::NAN,
            ReduceOp::Max => a.max(b),
            ReduceOp::Min => a.min(b),
        };
        let divisor = if self == ReduceOp::Mean { ranks.len() as f64 } else { 1.0 };
        let len = ranks.first().map_or(0, |values| values.len());
        (0..len)
            .map(|i| ranks.iter().map(|values| values[i]).reduce(one).unwrap_or(f64::NAN) / divisor)
            .collect()
    }

    /// For one number of each of `ranks` ranks, as [`ReduceOp::fill`] draws them: sums of numbers in [−1, 1] and
    /// products of numbers near 1 in the compute type, in any order, rounded once; a mean divides the error of
    /// the sum by the number of ranks and adds one rounding.
    pub(crate) fn tolerance(self, dtype: DType, ranks: usize) -> Tolerance {
        match self {
            ReduceOp::Sum => summed(dtype, ranks),
            ReduceOp::Prod => multiplied(dtype, ranks + 1),
            ReduceOp::Mean => {
                let sum = summed(dtype, ranks);
                Tolerance { abs: sum.abs / ranks as f64, rel: 0.0 }.plus(multiplied(dtype, 1))
            }
            ReduceOp::Max | ReduceOp::Min => Tolerance::EXACT,
        }
    }

    /// What cases are filled with.
    pub(crate) fn fill(self, dtype: DType) -> Fill {
        match self {
            ReduceOp::Prod if dtype.is_float() => Fill::Range(0.9, 1.1),
            // Signed powers of two: exact in f64 at every step, also where they wrap.
            ReduceOp::Prod => Fill::Values(vec![1.0, -2.0, 2.0, 64.0, -1.0]),
            _ => Fill::Unit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_meet_values_known_by_hand() {
        let (a, b, c) = ([1.0, 200.0], [2.0, 100.0], [3.0, 1.0]);
        let of = |op: ReduceOp, dtype| op.of(dtype, &[&a, &b, &c]);
        assert_eq!(of(ReduceOp::Sum, DType::F32), [6.0, 301.0]);
        assert_eq!(of(ReduceOp::Sum, DType::U8), [6.0, 45.0]);
        assert_eq!(of(ReduceOp::Prod, DType::U8), [6.0, 32.0]);
        assert_eq!(of(ReduceOp::Max, DType::F32), [3.0, 200.0]);
        assert_eq!(of(ReduceOp::Min, DType::F32), [1.0, 1.0]);
        assert_eq!(of(ReduceOp::Mean, DType::F32), [2.0, 301.0 / 3.0]);
        assert!(ReduceOp::Max.of(DType::F32, &[&[1.0], &[f64::NAN]])[0].is_nan());
    }
}
