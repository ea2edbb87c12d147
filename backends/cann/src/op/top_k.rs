//! The largest entries of every row: the vendor's selection where any order of equals will do, else a stable sort.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use portolan_core::Call;
use portolan_ops::kernel::TopKSpec;
use portolan_ops::{DType, Determinism, Result};

impl Native for TopKSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        soc.computes(self.x().dtype())
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (x, values, indices) = (op.require("x")?, op.require("values")?, op.require("indices")?);
        let (k, last) = (op.spec().k(), x.dims().len() as i64 - 1);
        if run.soc().determinism == Determinism::Fast {
            let places = run.scratch(DType::I64, indices.dims())?;
            let [from, to, at] = [run.tensor(&x)?, run.tensor(&values)?, run.tensor(&places)?];
            let (k, largest, sorted) = (k as i64, true, true);
            aclnn!(run, aclnnTopkGetWorkspaceSize, aclnnTopk, from, k, last, largest, sorted, to, at)?;
            return run.cast(&places, &indices);
        }
        let (sorted, places) = (run.scratch(x.dtype(), x.dims())?, run.scratch(DType::I64, x.dims())?);
        let [from, to, at] = [run.tensor(&x)?, run.tensor(&sorted)?, run.tensor(&places)?];
        let (stable, descending) = (true, true);
        aclnn!(run, aclnnSortGetWorkspaceSize, aclnnSort, from, stable, last, descending, to, at)?;
        let last = x.dims().len() - 1;
        run.copy(&sorted.narrow(last, 0, k)?, &values)?;
        run.cast(&places.narrow(last, 0, k)?, &indices)
    }
}
