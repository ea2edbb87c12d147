//! Rows of a dense weight by index, converted behind that where the result has another type.

use super::Native;
use super::gather::rows;
use crate::aclnn::{Plan, Run, Soc};
use portolan_core::Call;
use portolan_ops::embedding::EmbeddingSpec;
use portolan_ops::kernel::GatherForm;
use portolan_ops::quant::WeightSpec;
use portolan_ops::{Result, Unsupported};

impl Native for EmbeddingSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        let WeightSpec::Dense(weight) = self.weight() else { return Err(Unsupported::NotImplemented) };
        soc.compute_all([weight, self.out()])?;
        soc.has("aclnnGatherV2GetWorkspaceSize")
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (weight, ids, out) = (op.require("weight")?, op.require("ids")?, op.require("out")?);
        if weight.dtype() == out.dtype() {
            return rows(run, GatherForm::Slices, &weight, 0, &ids, &out);
        }
        let found = run.scratch(weight.dtype(), out.dims())?;
        rows(run, GatherForm::Slices, &weight, 0, &ids, &found)?;
        run.cast(&found, &out)
    }
}
