//! Functions of two elements: one kernel each. A number as second operand becomes a tensor without dimensions where the
//! vendor has no form for numbers.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use portolan_core::{Call, Tensor};
use portolan_ops::kernel::{BinaryKind, BinarySpec, Rhs};
use portolan_ops::{DType, Result};

/// `DivMod` without fraction.
const TRUNCATE: i32 = 1;

impl Native for BinarySpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        soc.compute_all([self.a(), self.out()])
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (spec, a, out) = (op.spec(), op.require("a")?, op.require("out")?);
        let b = match spec.b() {
            Rhs::Tensor(_) => op.require("b")?,
            Rhs::Scalar(value) => {
                if let Some(done) = scalar(run, spec.kind(), &a, *value, &out) {
                    return done;
                }
                // Of the type computed in, which the number is rounded to and the elements are brought to.
                let dtype = if a.dtype().is_float() { DType::F32 } else { a.dtype() };
                run.full(dtype, &[], *value)?
            }
        };
        tensors(run, op, &a, &b, &out)
    }
}

/// The vendor's form for numbers, where there is one that means the same.
fn scalar(run: &Run<'_, '_>, kind: BinaryKind, a: &Tensor, value: f64, out: &Tensor) -> Option<Result<()>> {
    let computes = a.dtype() != DType::Bool;
    // A bound that is no number bounds nothing in the vendor's clamp.
    let bounds = computes && !value.is_nan();
    Some(match kind {
        BinaryKind::Add if computes => run.adds(a, value, out),
        BinaryKind::Mul if computes => run.muls(a, value, out),
        BinaryKind::Sub if computes => subs(run, a, value, out),
        BinaryKind::Div if a.dtype().is_float() => divs(run, a, value, out),
        BinaryKind::Pow => pows(run, a, value, out),
        BinaryKind::Max if bounds => run.at_least(a, value, out),
        BinaryKind::Min if bounds => at_most(run, a, value, out),
        _ => return None,
    })
}

fn subs(run: &Run<'_, '_>, a: &Tensor, value: f64, out: &Tensor) -> Result<()> {
    let (value, one) = (run.scalar(a.dtype(), value)?, run.scalar(a.dtype(), 1.0)?);
    aclnn!(run, aclnnSubsGetWorkspaceSize, aclnnSubs, run.tensor(a)?, value, one, run.tensor(out)?)
}

fn divs(run: &Run<'_, '_>, a: &Tensor, value: f64, out: &Tensor) -> Result<()> {
    let value = run.scalar(a.dtype(), value)?;
    aclnn!(run, aclnnDivsGetWorkspaceSize, aclnnDivs, run.tensor(a)?, value, run.tensor(out)?)
}

fn pows(run: &Run<'_, '_>, a: &Tensor, value: f64, out: &Tensor) -> Result<()> {
    let value = run.scalar(a.dtype(), value)?;
    aclnn!(
        run,
        aclnnPowTensorScalarGetWorkspaceSize,
        aclnnPowTensorScalar,
        run.tensor(a)?,
        value,
        run.tensor(out)?
    )
}

fn at_most(run: &Run<'_, '_>, a: &Tensor, value: f64, out: &Tensor) -> Result<()> {
    let value = run.scalar(a.dtype(), value)?;
    aclnn!(run, aclnnClampMaxGetWorkspaceSize, aclnnClampMax, run.tensor(a)?, value, run.tensor(out)?)
}

fn tensors(run: &Run<'_, '_>, op: &Call<BinarySpec>, a: &Tensor, b: &Tensor, out: &Tensor) -> Result<()> {
    let (kind, dtype) = (op.spec().kind(), a.dtype());
    let [x, y, z] = [run.tensor(a)?, run.tensor(b)?, run.tensor(out)?];
    match (kind, dtype) {
        (BinaryKind::Add | BinaryKind::Or, DType::Bool) => {
            aclnn!(run, aclnnLogicalOrGetWorkspaceSize, aclnnLogicalOr, x, y, z)
        }
        (BinaryKind::And, DType::Bool) => {
            aclnn!(run, aclnnLogicalAndGetWorkspaceSize, aclnnLogicalAnd, x, y, z)
        }
        (BinaryKind::Xor, DType::Bool) => aclnn!(run, aclnnNeTensorGetWorkspaceSize, aclnnNeTensor, x, y, z),
        (BinaryKind::Add, _) => run.add(a, b, 1.0, out),
        (BinaryKind::Sub, _) => {
            aclnn!(run, aclnnSubGetWorkspaceSize, aclnnSub, x, y, run.scalar(dtype, 1.0)?, z)
        }
        (BinaryKind::Mul, _) => aclnn!(run, aclnnMulGetWorkspaceSize, aclnnMul, x, y, z),
        (BinaryKind::Div, _) if dtype.is_float() => aclnn!(run, aclnnDivGetWorkspaceSize, aclnnDiv, x, y, z),
        (BinaryKind::Div, _) => aclnn!(run, aclnnDivModGetWorkspaceSize, aclnnDivMod, x, y, TRUNCATE, z),
        (BinaryKind::Rem, _) => aclnn!(run, aclnnFmodTensorGetWorkspaceSize, aclnnFmodTensor, x, y, z),
        (BinaryKind::Min, _) => aclnn!(run, aclnnMinimumGetWorkspaceSize, aclnnMinimum, x, y, z),
        (BinaryKind::Max, _) => aclnn!(run, aclnnMaximumGetWorkspaceSize, aclnnMaximum, x, y, z),
        (BinaryKind::Pow, _) => {
            aclnn!(run, aclnnPowTensorTensorGetWorkspaceSize, aclnnPowTensorTensor, x, y, z)
        }
        (BinaryKind::And, _) => {
            aclnn!(run, aclnnBitwiseAndTensorGetWorkspaceSize, aclnnBitwiseAndTensor, x, y, z)
        }
        (BinaryKind::Or, _) => {
            aclnn!(run, aclnnBitwiseOrTensorGetWorkspaceSize, aclnnBitwiseOrTensor, x, y, z)
        }
        (BinaryKind::Xor, _) => {
            aclnn!(run, aclnnBitwiseXorTensorGetWorkspaceSize, aclnnBitwiseXorTensor, x, y, z)
        }
        (other, _) => Err(run.unknown(op, other.name())),
    }
}
