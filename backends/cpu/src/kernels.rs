//! The kernel core on the CPU: each method hands the operator to its file in `op/`.

use crate::{CpuBackend, op};
use portolan_core::{Kernels, Launch, call};
use portolan_ops::Result;

impl Kernels for CpuBackend {
    fn gemm(&self, launch: &Launch<'_>, op: &call::Gemm) -> Result<()> {
        op::gemm::launch(launch, op)
    }
    fn unary(&self, launch: &Launch<'_>, op: &call::Unary) -> Result<()> {
        op::unary::launch(launch, op)
    }
    fn binary(&self, launch: &Launch<'_>, op: &call::Binary) -> Result<()> {
        op::binary::launch(launch, op)
    }
    fn compare(&self, launch: &Launch<'_>, op: &call::Compare) -> Result<()> {
        op::compare::launch(launch, op)
    }
    fn select(&self, launch: &Launch<'_>, op: &call::Select) -> Result<()> {
        op::select::launch(launch, op)
    }
    fn reduce(&self, launch: &Launch<'_>, op: &call::Reduce) -> Result<()> {
        op::reduce::launch(launch, op)
    }
    fn scan(&self, launch: &Launch<'_>, op: &call::Scan) -> Result<()> {
        op::scan::launch(launch, op)
    }
    fn top_k(&self, launch: &Launch<'_>, op: &call::TopK) -> Result<()> {
        op::top_k::launch(launch, op)
    }
    fn gather(&self, launch: &Launch<'_>, op: &call::Gather) -> Result<()> {
        op::gather::launch(launch, op)
    }
    fn scatter(&self, launch: &Launch<'_>, op: &call::Scatter) -> Result<()> {
        op::scatter::launch(launch, op)
    }
    fn copy_strided(&self, launch: &Launch<'_>, op: &call::Copy) -> Result<()> {
        op::copy::launch(launch, op)
    }
    fn cast(&self, launch: &Launch<'_>, op: &call::Cast) -> Result<()> {
        op::cast::launch(launch, op)
    }
    fn fill(&self, launch: &Launch<'_>, op: &call::Fill) -> Result<()> {
        op::fill::launch(launch, op)
    }
    fn random(&self, launch: &Launch<'_>, op: &call::Random) -> Result<()> {
        op::random::launch(launch, op)
    }
}
