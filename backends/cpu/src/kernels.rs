//! The kernel core on the CPU: each method hands the operator to its file in `op/`.

use crate::{CpuBackend, op};
use portolan_core::{Kernels, Launch, Op, call};
use portolan_ops::{Result, Unsupported};

impl Kernels for CpuBackend {
    fn gemm(&self, launch: &Launch<'_>, op: &call::Gemm) -> Result<()> {
        op::gemm::launch(launch, op)
    }
    fn unary(&self, launch: &Launch<'_>, op: &call::Unary) -> Result<()> {
        Err(launch.unsupported(op.op_name(), Unsupported::NotImplemented, "use another device"))
    }
    fn binary(&self, launch: &Launch<'_>, op: &call::Binary) -> Result<()> {
        Err(launch.unsupported(op.op_name(), Unsupported::NotImplemented, "use another device"))
    }
    fn compare(&self, launch: &Launch<'_>, op: &call::Compare) -> Result<()> {
        Err(launch.unsupported(op.op_name(), Unsupported::NotImplemented, "use another device"))
    }
    fn select(&self, launch: &Launch<'_>, op: &call::Select) -> Result<()> {
        Err(launch.unsupported(op.op_name(), Unsupported::NotImplemented, "use another device"))
    }
    fn reduce(&self, launch: &Launch<'_>, op: &call::Reduce) -> Result<()> {
        Err(launch.unsupported(op.op_name(), Unsupported::NotImplemented, "use another device"))
    }
    fn scan(&self, launch: &Launch<'_>, op: &call::Scan) -> Result<()> {
        Err(launch.unsupported(op.op_name(), Unsupported::NotImplemented, "use another device"))
    }
    fn top_k(&self, launch: &Launch<'_>, op: &call::TopK) -> Result<()> {
        Err(launch.unsupported(op.op_name(), Unsupported::NotImplemented, "use another device"))
    }
    fn gather(&self, launch: &Launch<'_>, op: &call::Gather) -> Result<()> {
        Err(launch.unsupported(op.op_name(), Unsupported::NotImplemented, "use another device"))
    }
    fn scatter(&self, launch: &Launch<'_>, op: &call::Scatter) -> Result<()> {
        Err(launch.unsupported(op.op_name(), Unsupported::NotImplemented, "use another device"))
    }
    fn copy_strided(&self, launch: &Launch<'_>, op: &call::Copy) -> Result<()> {
        Err(launch.unsupported(op.op_name(), Unsupported::NotImplemented, "use another device"))
    }
    fn cast(&self, launch: &Launch<'_>, op: &call::Cast) -> Result<()> {
        Err(launch.unsupported(op.op_name(), Unsupported::NotImplemented, "use another device"))
    }
    fn fill(&self, launch: &Launch<'_>, op: &call::Fill) -> Result<()> {
        Err(launch.unsupported(op.op_name(), Unsupported::NotImplemented, "use another device"))
    }
    fn random(&self, launch: &Launch<'_>, op: &call::Random) -> Result<()> {
        Err(launch.unsupported(op.op_name(), Unsupported::NotImplemented, "use another device"))
    }
}
