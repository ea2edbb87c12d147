//! Stable sorts of rows: one kernel, and a change of the places' type.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use portolan_core::{Call, Tensor};
use portolan_ops::sort::{SortOrder, SortSpec};
use portolan_ops::{DType, Result};

impl Native for SortSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        soc.compute_all([self.x()])?;
        soc.has("aclnnSortGetWorkspaceSize")
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let x = op.require("x")?;
        let values = op.tensor("values").map_or_else(|| run.scratch(x.dtype(), x.dims()), Ok)?;
        let places = sorted(run, &x, op.spec().order() == SortOrder::Descending, &values)?;
        op.tensor("indices").map_or(Ok(()), |indices| run.cast(&places, &indices))
    }
}

/// Sorts rows into `values`; gives where each element came from, as i64.
pub(super) fn sorted(run: &Run<'_, '_>, x: &Tensor, descending: bool, values: &Tensor) -> Result<Tensor> {
    let places = run.scratch(DType::I64, x.dims())?;
    let [from, to, at] = [run.tensor(x)?, run.tensor(values)?, run.tensor(&places)?];
    let (stable, last) = (true, -1i64);
    aclnn!(run, aclnnSortGetWorkspaceSize, aclnnSort, from, stable, last, descending, to, at)?;
    Ok(places)
}
