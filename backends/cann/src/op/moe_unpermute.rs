//! Rows of experts back to their tokens: the vendor's weighted sum, which passes over places without a row.

use super::Native;
use super::scatter::contiguous;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::NONE;
use crate::product::Product;
use portolan_core::Call;
use portolan_ops::moe::MoeUnpermuteSpec;
use portolan_ops::{DType, Result, Unsupported};

/// `dropPadMode`: no capacity, row indices in the order of tokens.
const BY_ROW: i64 = 2;

impl Native for MoeUnpermuteSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        if soc.product == Product::P310 {
            return Err(Unsupported::NotImplemented);
        }
        if self.out().dtype() != self.y().dtype() {
            return Err(Unsupported::DType(self.out().dtype()));
        }
        if self.top_k() == 0 || self.y().numel() == 0 {
            return Err(Unsupported::Shape("rows, and a place for each token"));
        }
        soc.compute_all([self.y()])?;
        soc.has("aclnnMoeFinalizeRoutingV2GetWorkspaceSize")
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (y, map, out) = (op.require("y")?, op.require("row_map")?, op.require("out")?);
        let width = out.dims()[1];
        let y = contiguous(run, &y)?;
        let y = y.reshape(&[y.numel() / width, width])?;
        // −1 is the only number that the vendor passes over.
        let places = run.scratch(DType::I32, map.dims())?;
        run.at_least(&map, -1.0, &places)?;
        let places = places.reshape(&[map.numel()])?;
        let weights = op.tensor("weights").map_or_else(|| run.full(DType::F32, map.dims(), 1.0), Ok)?;
        let [rows, places, weights] = [run.tensor(&y)?, run.tensor(&places)?, run.tensor(&weights)?];
        let out = run.tensor(&out)?;
        aclnn!(
            run,
            aclnnMoeFinalizeRoutingV2GetWorkspaceSize,
            aclnnMoeFinalizeRoutingV2,
            rows,
            places,
            NONE,
            NONE,
            NONE,
            weights,
            NONE,
            BY_ROW,
            out
        )
    }
}
