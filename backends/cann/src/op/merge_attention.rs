//! Attentions to parts of the keys as the attention to all: the vendor's update, whose weights are those of the
//! contract where every part saw a key. What a part without any holds is cleared before, and rows that no part has
//! anything for behind it.

use super::Native;
use super::scatter::contiguous;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::product::Product;
use portolan_core::{Call, Tensor};
use portolan_ops::attention::MergeAttentionSpec;
use portolan_ops::{DType, Result, Unsupported};

impl Native for MergeAttentionSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        if soc.product == Product::P310 {
            return Err(Unsupported::NotImplemented);
        }
        if self.parts().numel() == 0 {
            return Err(Unsupported::Shape("parts, and values in them"));
        }
        soc.compute_all([self.parts(), self.out()])?;
        soc.has("aclnnAttentionUpdateGetWorkspaceSize")
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (parts, lses, out) = (op.require("parts")?, op.require("lses")?, op.require("out")?);
        let (count, rows, width) = (parts.dims()[0], lses.dims()[1] * lses.dims()[2], out.dims()[2]);
        let unseen = run.scratch(DType::Bool, lses.dims())?;
        run.is_nothing(&lses, &unseen)?;
        // Weights of 0 do not clear what is no number.
        let seen = run.scratch(out.dtype(), parts.dims())?;
        run.store(&parts, &seen)?;
        run.zero_where(&unseen.reshape(&[lses.dims(), &[1]].concat())?, &seen)?;
        let sums = contiguous(run, &lses)?;
        let (sums, seen) = (sums.reshape(&[count, rows])?, seen.reshape(&[count, rows, width])?);
        let each = |x: &Tensor| (0..count).map(|i| x.select(0, i)).collect::<Result<Vec<_>>>();
        let (sums, seen) = (each(&sums)?, each(&seen)?);
        let lse = op.tensor("lse");
        let dense = |x: &Tensor| x.spec().is_contiguous();
        let result = if dense(&out) { out.clone() } else { run.scratch(out.dtype(), out.dims())? };
        let total = match &lse {
            Some(lse) if !dense(lse) => Some(run.scratch(DType::F32, lse.dims())?),
            other => other.clone(),
        };
        let (from, weights) =
            (run.tensors(&seen.iter().collect::<Vec<_>>())?, run.tensors(&sums.iter().collect::<Vec<_>>())?);
        let to = run.tensor(&result.reshape(&[rows, width])?)?;
        let total_out = match &total {
            Some(total) => Some(run.tensor(&total.reshape(&[rows])?)?),
            None => None,
        };
        let wants_total = i64::from(total_out.is_some());
        aclnn!(
            run,
            aclnnAttentionUpdateGetWorkspaceSize,
            aclnnAttentionUpdate,
            weights,
            from,
            wants_total,
            to,
            total_out
        )?;
        let (largest, empty) =
            (run.scratch(DType::F32, out.dims().split_at(2).0)?, run.scratch(DType::Bool, &out.dims()[..2])?);
        let (over_parts, keep) = (run.ints(&[0])?, false);
        let (from, most) = (run.tensor(&lses)?, run.tensor(&largest)?);
        aclnn!(run, aclnnAmaxGetWorkspaceSize, aclnnAmax, from, over_parts, keep, most)?;
        run.is_nothing(&largest, &empty)?;
        run.zero_where(&empty.reshape(&[&out.dims()[..2], &[1]].concat())?, &result)?;
        if !dense(&out) {
            run.copy(&result, &out)?;
        }
        let (Some(lse), Some(total)) = (lse, total) else { return Ok(()) };
        let (sums, mask, none) =
            (run.tensor(&total)?, run.tensor(&empty)?, run.scalar(DType::F32, f64::NEG_INFINITY)?);
        aclnn!(
            run,
            aclnnInplaceMaskedFillScalarGetWorkspaceSize,
            aclnnInplaceMaskedFillScalar,
            sums,
            mask,
            none
        )?;
        if dense(&lse) { Ok(()) } else { run.copy(&total, &lse) }
    }
}
