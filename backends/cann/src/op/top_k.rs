//! The largest entries of every row: the vendor's selection where any order of equals will do, else a stable sort.

use super::Native;
use super::sort::sorted;
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
        let all = run.scratch(x.dtype(), x.dims())?;
        let places = sorted(run, &x, true, &all)?;
        let last = x.dims().len() - 1;
        run.copy(&all.narrow(last, 0, k)?, &values)?;
        run.cast(&places.narrow(last, 0, k)?, &indices)
    }
}
