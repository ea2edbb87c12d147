//! Relations of two elements: one kernel each, with a tensor or a number.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use portolan_core::Call;
use portolan_ops::Result;
use portolan_ops::kernel::{CompareKind, CompareSpec, Rhs};

impl Native for CompareSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        soc.compute_all([self.a()])
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (kind, a) = (op.spec().kind(), op.require("a")?);
        let (x, out) = (run.tensor(&a)?, run.tensor(&op.require("out")?)?);
        match op.spec().b() {
            Rhs::Tensor(_) => {
                let y = run.tensor(&op.require("b")?)?;
                match kind {
                    CompareKind::Eq => aclnn!(run, aclnnEqTensorGetWorkspaceSize, aclnnEqTensor, x, y, out),
                    CompareKind::Ne => aclnn!(run, aclnnNeTensorGetWorkspaceSize, aclnnNeTensor, x, y, out),
                    CompareKind::Lt => aclnn!(run, aclnnLtTensorGetWorkspaceSize, aclnnLtTensor, x, y, out),
                    CompareKind::Le => aclnn!(run, aclnnLeTensorGetWorkspaceSize, aclnnLeTensor, x, y, out),
                    CompareKind::Gt => aclnn!(run, aclnnGtTensorGetWorkspaceSize, aclnnGtTensor, x, y, out),
                    CompareKind::Ge => aclnn!(run, aclnnGeTensorGetWorkspaceSize, aclnnGeTensor, x, y, out),
                }
            }
            Rhs::Scalar(value) => {
                let y = run.scalar(a.dtype(), *value)?;
                match kind {
                    CompareKind::Eq => aclnn!(run, aclnnEqScalarGetWorkspaceSize, aclnnEqScalar, x, y, out),
                    CompareKind::Ne => aclnn!(run, aclnnNeScalarGetWorkspaceSize, aclnnNeScalar, x, y, out),
                    CompareKind::Lt => aclnn!(run, aclnnLtScalarGetWorkspaceSize, aclnnLtScalar, x, y, out),
                    CompareKind::Le => aclnn!(run, aclnnLeScalarGetWorkspaceSize, aclnnLeScalar, x, y, out),
                    CompareKind::Gt => aclnn!(run, aclnnGtScalarGetWorkspaceSize, aclnnGtScalar, x, y, out),
                    CompareKind::Ge => aclnn!(run, aclnnGeScalarGetWorkspaceSize, aclnnGeScalar, x, y, out),
                }
            }
        }
    }
}
