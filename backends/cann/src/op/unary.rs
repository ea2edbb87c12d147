//! Functions of every element: one kernel each; two for whether an element is finite.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use portolan_core::Call;
use portolan_ops::kernel::{Activation, UnaryKind, UnarySpec};
use portolan_ops::{DType, Result};

impl Native for UnarySpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        soc.compute_all([self.x(), self.out()])
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (x, out) = (op.require("x")?, op.require("out")?);
        let kind = op.spec().kind();
        let [a, b] = [run.tensor(&x)?, run.tensor(&out)?];
        match kind {
            UnaryKind::Neg => aclnn!(run, aclnnNegGetWorkspaceSize, aclnnNeg, a, b),
            UnaryKind::Abs => aclnn!(run, aclnnAbsGetWorkspaceSize, aclnnAbs, a, b),
            UnaryKind::Square => run.mul(&x, &x, &out),
            UnaryKind::Recip => aclnn!(run, aclnnReciprocalGetWorkspaceSize, aclnnReciprocal, a, b),
            UnaryKind::Sqrt => aclnn!(run, aclnnSqrtGetWorkspaceSize, aclnnSqrt, a, b),
            UnaryKind::Rsqrt => aclnn!(run, aclnnRsqrtGetWorkspaceSize, aclnnRsqrt, a, b),
            UnaryKind::Exp => aclnn!(run, aclnnExpGetWorkspaceSize, aclnnExp, a, b),
            UnaryKind::Log => aclnn!(run, aclnnLogGetWorkspaceSize, aclnnLog, a, b),
            UnaryKind::Sin => aclnn!(run, aclnnSinGetWorkspaceSize, aclnnSin, a, b),
            UnaryKind::Cos => aclnn!(run, aclnnCosGetWorkspaceSize, aclnnCos, a, b),
            UnaryKind::Tanh => aclnn!(run, aclnnTanhGetWorkspaceSize, aclnnTanh, a, b),
            UnaryKind::Erf => aclnn!(run, aclnnErfGetWorkspaceSize, aclnnErf, a, b),
            UnaryKind::Sigmoid => aclnn!(run, aclnnSigmoidGetWorkspaceSize, aclnnSigmoid, a, b),
            UnaryKind::Relu => run.activate(Activation::Relu, &x, &out),
            UnaryKind::Silu => run.activate(Activation::Silu, &x, &out),
            UnaryKind::Gelu => run.activate(Activation::Gelu, &x, &out),
            UnaryKind::GeluTanh => run.activate(Activation::GeluTanh, &x, &out),
            UnaryKind::Floor => aclnn!(run, aclnnFloorGetWorkspaceSize, aclnnFloor, a, b),
            UnaryKind::Ceil => aclnn!(run, aclnnCeilGetWorkspaceSize, aclnnCeil, a, b),
            UnaryKind::Round => aclnn!(run, aclnnRoundGetWorkspaceSize, aclnnRound, a, b),
            UnaryKind::Not => aclnn!(run, aclnnLogicalNotGetWorkspaceSize, aclnnLogicalNot, a, b),
            // Only a NaN differs from itself.
            UnaryKind::IsNan => {
                aclnn!(run, aclnnNeTensorGetWorkspaceSize, aclnnNeTensor, a, run.tensor(&x)?, b)
            }
            UnaryKind::IsFinite => {
                let size = run.scratch(x.dtype(), x.dims())?;
                aclnn!(run, aclnnAbsGetWorkspaceSize, aclnnAbs, a, run.tensor(&size)?)?;
                let infinity = run.scalar(DType::F32, f64::INFINITY)?;
                aclnn!(run, aclnnLtScalarGetWorkspaceSize, aclnnLtScalar, run.tensor(&size)?, infinity, b)
            }
            other => Err(run.unknown(op, other.name())),
        }
    }
}
