//! Choice between two operands by a condition, with broadcasting.

use super::broadcast::stretched;
use super::edges::{BYTE_CODES, MOVABLE, edges};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, OpError, Operand, Result, TensorSpec, Tolerance, expect_dims,
    expect_dtype, expect_writable, streaming_cost,
};

const OP: &str = "select";

/// Chooses between two operands element by element.
///
/// `out[i] = cond[i] ? a[i] : b[i]`
///
/// # Shapes
/// cond, a and b broadcast to out: trailing dimensions aligned, extents of 1 repeated.
///
/// # DTypes
/// cond bool; a, b and out of one type of whole bytes. Bits are moved, never converted.
///
/// # Layout
/// Any strides. out may be the very view a, or the very view b.
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
pub struct SelectSpec {
    cond: TensorSpec,
    a: TensorSpec,
    b: TensorSpec,
    out: TensorSpec,
}

impl SelectSpec {
    /// The choice of a where cond holds, else of b.
    pub fn new(cond: &TensorSpec, a: &TensorSpec, b: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        let want = Self::out_spec(cond, a, b)?;
        expect_dims(OP, "out", out, want.dims())?;
        expect_dtype(OP, "out", out, &[want.dtype()])?;
        expect_writable(OP, "out", out)?;
        Ok(Self { cond: *cond, a: *a, b: *b, out: *out })
    }

    /// The result: contiguous, of a's type and the joint shape.
    pub fn out_spec(cond: &TensorSpec, a: &TensorSpec, b: &TensorSpec) -> Result<TensorSpec> {
        expect_dtype(OP, "cond", cond, &[DType::Bool])?;
        if a.dtype().is_sub_byte() {
            return Err(OpError::dtype(OP, "a", a.dtype(), "a type of whole bytes"));
        }
        expect_dtype(OP, "b", b, &[a.dtype()])?;
        let joint = a.shape().broadcast(b.shape()).and_then(|shape| shape.broadcast(cond.shape()));
        let shape = joint.map_err(|_| {
            let what = format!("cond is {}, a is {}, b is {}", cond.shape(), a.shape(), b.shape());
            OpError::shape(OP, format!("{what}: they do not broadcast"))
        })?;
        Ok(TensorSpec::new(a.dtype(), shape))
    }

    /// Condition.
    pub fn cond(&self) -> &TensorSpec {
        &self.cond
    }
    /// Chosen where cond holds.
    pub fn a(&self) -> &TensorSpec {
        &self.a
    }
    /// Chosen elsewhere.
    pub fn b(&self) -> &TensorSpec {
        &self.b
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
}

impl Contract for SelectSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "cond", spec: &self.cond, access: Access::Read });
        visit(Operand { name: "a", spec: &self.a, access: Access::Read });
        visit(Operand { name: "b", spec: &self.b, access: Access::Read });
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        &[("out", "a"), ("out", "b")]
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, 0)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let shape = self.out.shape();
        let cond = stretched(inputs[0], self.cond.shape(), shape);
        let a = stretched(inputs[1], self.a.shape(), shape);
        let b = stretched(inputs[2], self.b.shape(), shape);
        vec![cond.iter().zip(a.iter().zip(&b)).map(|(&c, (&a, &b))| if c != 0.0 { a } else { b }).collect()]
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }
}

impl Cases for SelectSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for dtype in MOVABLE.into_iter().chain(BYTE_CODES) {
            for edge in edges(dtype, dtype)? {
                let cond = TensorSpec::new(DType::Bool, *edge.x.shape());
                let b = TensorSpec::new(dtype, *edge.x.shape());
                let spec = Self::new(&cond, &edge.x, &b, &edge.out)?;
                cases.push(Case::new(format!("select/{dtype}/{}", edge.name), spec));
            }
            for (name, cond, a, b) in [
                ("broadcast_mask", &[5, 33][..], &[2, 5, 33][..], &[][..]),
                ("broadcast_values", &[4, 3, 7], &[7], &[3, 1]),
                ("broadcast_column", &[6, 1], &[6, 19], &[6, 19]),
            ] {
                let cond = TensorSpec::of(DType::Bool, cond)?;
                let (a, b) = (TensorSpec::of(dtype, a)?, TensorSpec::of(dtype, b)?);
                let spec = Self::new(&cond, &a, &b, &Self::out_spec(&cond, &a, &b)?)?;
                cases.push(Case::new(format!("select/{dtype}/{name}"), spec));
            }
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_chooses_between_a_row_and_a_number() {
        let cond = TensorSpec::of(DType::Bool, &[2, 2]).unwrap();
        let a = TensorSpec::of(DType::F32, &[2]).unwrap();
        let b = TensorSpec::of(DType::F32, &[]).unwrap();
        let out = SelectSpec::out_spec(&cond, &a, &b).unwrap();
        let spec = SelectSpec::new(&cond, &a, &b, &out).unwrap();
        let got = spec.reference(&[&[1.0, 0.0, 0.0, 1.0], &[5.0, 6.0], &[-1.0]]);
        assert_eq!(got, [vec![5.0, -1.0, -1.0, 6.0]]);
    }

    #[test]
    fn the_message_names_all_three_shapes() {
        let cond = TensorSpec::of(DType::Bool, &[2]).unwrap();
        let a = TensorSpec::of(DType::F32, &[3]).unwrap();
        let e = SelectSpec::out_spec(&cond, &a, &a).unwrap_err();
        assert_eq!(e.to_string(), "select: cond is [2], a is [3], b is [3]: they do not broadcast");
    }

    #[test]
    fn every_case_is_legal() {
        assert!(SelectSpec::cases().unwrap().len() > 100);
    }
}
