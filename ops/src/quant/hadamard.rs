//! Hadamard transform of blocks of every row: spreads outliers over a block before it is quantized.

use crate::{
    Access, Case, Cases, Contract, Cost, DType, OpError, Operand, Result, TensorSpec, Tolerance, expect_dims,
    expect_dtype, expect_writable, streaming_cost,
};

const OP: &str = "hadamard";

/// Applies the normalised Walsh–Hadamard transform to every block of a row.
///
/// `out[.., i] = Σ_j (−1)^popcount(i & j) · x[.., j] / √block`, i and j counted within the block
///
/// The transform is its own inverse, and orthogonal: `(x·H)·(w·H)ᵀ = x·wᵀ`.
///
/// # Shapes
/// x and out `[.., k]` with k a multiple of the block. Any extent may be zero.
///
/// # DTypes
/// f32, f16 or bf16; out of x's type. Sums are f32, rounded once to out.
///
/// # Layout
/// Any strides. out may be x (in place).
///
/// # Determinism
/// `BatchInvariant`: a block depends on nothing but itself.
///
/// # Cost
/// `log2(block) + 1` operations per element.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself), `Attribute` (a block that is no power of two up to 32768).
///
/// # Composition
/// gemm_nt with a matrix of ±1; above 256 the block is a matrix whose rows and columns are transformed in turn.
///
/// # Source
/// Fino and Algazi, Unified matrix treatment of the fast Walsh–Hadamard transform, 1976.
#[derive(Clone, Debug, PartialEq)]
pub struct HadamardSpec {
    x: TensorSpec,
    out: TensorSpec,
    block: usize,
}

impl HadamardSpec {
    /// The largest block: 128 KiB of f32, which a second-level cache holds.
    pub const LARGEST: usize = 1 << 15;

    /// The transform in blocks of `block`.
    pub fn new(x: &TensorSpec, out: &TensorSpec, block: usize) -> Result<Self> {
        if !block.is_power_of_two() || block > Self::LARGEST {
            let what = format!("is {block}, expected a power of two up to {}", Self::LARGEST);
            return Err(OpError::attribute(OP, "block", what));
        }
        if x.rank() == 0 || !x.shape().last().is_multiple_of(block) {
            let what = format!("x is {}, its last extent must be a multiple of {block}", x.shape());
            return Err(OpError::shape(OP, what));
        }
        expect_dtype(OP, "x", x, &[DType::F32, DType::F16, DType::BF16])?;
        expect_dims(OP, "out", out, x.dims())?;
        expect_dtype(OP, "out", out, &[x.dtype()])?;
        expect_writable(OP, "out", out)?;
        Ok(Self { x: *x, out: *out, block })
    }

    /// What is transformed.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Elements that are transformed together.
    pub fn block(&self) -> usize {
        self.block
    }
}

impl Contract for HadamardSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        &[("out", "x")]
    }

    fn cost(&self) -> Cost {
        let each = u64::from(self.block.trailing_zeros()) + 1;
        streaming_cost(self, (self.x.numel() as u64).saturating_mul(each))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let root = (self.block as f64).sqrt();
        let mut out = Vec::with_capacity(inputs[0].len());
        for block in inputs[0].chunks(self.block) {
            for i in 0..block.len() {
                let signed = block.iter().enumerate().map(
                    |(j, &x)| {
                        if (i & j).count_ones() % 2 == 0 { x } else { -x }
                    },
                );
                out.push(signed.sum::<f64>() / root);
            }
        }
        vec![out]
    }

    /// A sum of `block` numbers in [−1, 1] in f32, in any order, with `2·(block + 8)·u` allowed as for matrix
    /// products, over the root; the factor and its product round twice. Then one rounding to out's type.
    fn tolerance(&self) -> Vec<Tolerance> {
        let u = DType::F32.unit_roundoff();
        let summed = 2.0 * (self.block as f64 + 8.0) * u / (self.block as f64).sqrt();
        let factor = Tolerance { abs: 0.0, rel: 4.0 * u };
        vec![Tolerance::rounded_to(self.out.dtype(), summed).plus(factor)]
    }
}

impl Cases for HadamardSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (edge, dims, block) in [
                ("empty_rows", &[0usize, 64][..], 64),
                ("empty_k", &[3, 0], 16),
                ("one", &[1], 1),
                ("vector", &[128], 128),
                ("two", &[3, 6], 2),
                ("four", &[3, 12], 4),
                ("eight", &[5, 24], 8),
                ("sixteen", &[2, 3, 48], 16),
                ("typical", &[7, 256], 64),
                ("blocks", &[2, 1536], 512),
                ("whole", &[3, 4096], 4096),
            ] {
                let x = TensorSpec::of(dtype, dims)?;
                cases.push(Case::new(format!("hadamard/{dtype}/{edge}"), Self::new(&x, &x, block)?));
            }
            let x = TensorSpec::of(dtype, &[64, 5])?.transpose(0, 1)?;
            let out = TensorSpec::of(dtype, &[5, 70])?.narrow(1, 3, 64)?;
            cases.push(Case::new(format!("hadamard/{dtype}/strided"), Self::new(&x, &out, 32)?));
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(k: usize, block: usize) -> HadamardSpec {
        let x = TensorSpec::of(DType::F32, &[k]).unwrap();
        HadamardSpec::new(&x, &x, block).unwrap()
    }

    #[test]
    fn four_numbers_by_hand() {
        assert_eq!(spec(4, 4).reference(&[&[1.0, 2.0, 3.0, 4.0]]), [[5.0, -1.0, -2.0, 0.0]]);
        assert_eq!(spec(4, 1).reference(&[&[1.0, 2.0, 3.0, 4.0]]), [[1.0, 2.0, 3.0, 4.0]]);
        assert_eq!(spec(4, 4).cost().flops, 12);
    }

    #[test]
    fn the_transform_is_its_own_inverse_and_keeps_lengths() {
        let x: Vec<f64> = (0..64).map(|i| f64::from(i * 29 % 31) - 15.0).collect();
        let y = spec(64, 32).reference(&[&x]).remove(0);
        let back = spec(64, 32).reference(&[&y]).remove(0);
        assert!(x.iter().zip(&back).all(|(a, b)| (a - b).abs() < 1e-12));
        let length = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>();
        assert!((length(&x) - length(&y)).abs() < 1e-9);
    }

    #[test]
    fn blocks_that_do_not_fit_are_refused() {
        let x = TensorSpec::of(DType::F32, &[2, 96]).unwrap();
        for block in [0, 3, 64, 96, 1 << 16] {
            assert!(HadamardSpec::new(&x, &x, block).is_err(), "{block}");
        }
        assert!(HadamardSpec::new(&x, &x, 32).is_ok());
        let half = TensorSpec::of(DType::F16, &[2, 96]).unwrap();
        assert!(HadamardSpec::new(&x, &half, 32).is_err());
    }

    #[test]
    fn every_case_is_legal() {
        assert!(HadamardSpec::cases().unwrap().len() > 30);
    }
}
