//! Copy between two layouts of the same extents and element type.

use super::edges::{BYTE_CODES, MOVABLE, edges};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Operand, Result, TensorSpec, Tolerance, expect_dims,
    expect_dtype, expect_writable, streaming_cost,
};

const OP: &str = "copy_strided";

/// Copies a tensor into another layout.
///
/// `out[i] = x[i]`
///
/// # Shapes
/// x and out alike; any extent may be zero. A source to repeat is passed as a broadcast view.
///
/// # DTypes
/// Any, both alike. Bits are moved, never converted. The unused half of the last byte of a row of a sub-byte
/// type is left alone.
///
/// # Layout
/// Any strides.
///
/// # Determinism
/// Every level.
///
/// # Cost
/// No arithmetic.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself).
#[derive(Clone, Debug, PartialEq)]
pub struct CopySpec {
    x: TensorSpec,
    out: TensorSpec,
}

impl CopySpec {
    /// The copy of x into out.
    pub fn new(x: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        expect_dims(OP, "out", out, x.dims())?;
        expect_dtype(OP, "out", out, &[x.dtype()])?;
        expect_writable(OP, "out", out)?;
        Ok(Self { x: *x, out: *out })
    }

    /// Source.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
}

impl Contract for CopySpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, 0)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        vec![inputs[0].to_vec()]
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }
}

impl Cases for CopySpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for dtype in MOVABLE.into_iter().chain(BYTE_CODES) {
            for edge in edges(dtype, dtype)? {
                let spec = Self::new(&edge.x, &edge.out)?;
                cases.push(Case::new(format!("{OP}/{dtype}/{}", edge.name), spec));
            }
            let x = TensorSpec::of(dtype, &[2, 3, 4, 5, 6])?.permute(&[4, 2, 0, 3, 1])?;
            cases.push(Case::new(format!("{OP}/{dtype}/permuted"), Self::new(&x, &x.to_contiguous())?));
        }
        for dtype in [DType::I4, DType::U4, DType::F4E2M1] {
            for (name, dims) in
                [("row", &[7][..]), ("even", &[5, 32]), ("odd", &[3, 5, 9]), ("empty", &[0, 4])]
            {
                let x = TensorSpec::of(dtype, dims)?;
                cases.push(Case::new(format!("{OP}/{dtype}/{name}"), Self::new(&x, &x)?));
            }
            let x = TensorSpec::of(dtype, &[6, 4, 13])?.transpose(0, 1)?.narrow(1, 2, 3)?;
            cases.push(Case::new(format!("{OP}/{dtype}/strided"), Self::new(&x, &x.to_contiguous())?));
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_types_must_agree() {
        let x = TensorSpec::of(DType::F32, &[2, 3]).unwrap();
        let e = CopySpec::new(&x, &x.transpose(0, 1).unwrap()).unwrap_err();
        assert_eq!(e.to_string(), "copy_strided: out is [3, 2], expected [2, 3]");
        assert!(CopySpec::new(&x, &TensorSpec::of(DType::F16, &[2, 3]).unwrap()).is_err());
        let repeated = x.narrow(0, 0, 1).unwrap().broadcast_to(x.shape()).unwrap();
        assert!(CopySpec::new(&repeated, &x).is_ok() && CopySpec::new(&x, &repeated).is_err());
    }

    #[test]
    fn values_keep_their_logical_order() {
        let x = TensorSpec::of(DType::I8, &[2, 2]).unwrap();
        let spec = CopySpec::new(&x, &x.transpose(0, 1).unwrap()).unwrap();
        assert_eq!(spec.reference(&[&[1.0, 2.0, 3.0, 4.0]]), [vec![1.0, 2.0, 3.0, 4.0]]);
    }

    #[test]
    fn every_case_is_legal() {
        assert!(CopySpec::cases().unwrap().len() > 100);
    }
}
