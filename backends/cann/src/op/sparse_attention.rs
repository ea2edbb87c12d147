//! Attention to listed entries of a latent cache: the vendor's sparse kernel, which reads a list up to its first −1. The
//! contract's padding may stand anywhere, so lists are sorted first: their order is of no consequence.

use super::Native;
use super::mla_decode::{parts, plan_latent};
use super::sort::sorted;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::{NONE, code};
use crate::product::Product;
use crate::version::{SparseFlashAttention, any};
use portolan_core::{Call, Tensor};
use portolan_ops::attention::SparseAttentionSpec;
use portolan_ops::{DType, OpError, Result, Unsupported};

/// Longest list.
const LONGEST: usize = 2048;
/// No bound.
const EVERYTHING: i64 = i32::MAX as i64;

impl Native for SparseAttentionSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        soc.promises_rows()?;
        let dtype = self.q().dtype();
        if !matches!(dtype, DType::F16 | DType::BF16) || soc.product == Product::P310 {
            return Err(Unsupported::DType(dtype));
        }
        if let Some(other) = [self.cache(), self.out()].iter().find(|spec| spec.dtype() != dtype) {
            return Err(Unsupported::DType(other.dtype()));
        }
        let sinks = self.scores().sinks().is_some();
        if self.cache_scale().is_some() || sinks || self.lse().is_some() {
            return Err(Unsupported::NotImplemented);
        }
        plan_latent(self.q().dims()[2], self.out().dims()[2])?;
        if !(1..=LONGEST).contains(&self.top_k()) {
            return Err(Unsupported::Shape("lists of 1 to 2048 entries"));
        }
        if self.cache().numel() == 0 || self.q_lens().count() == 0 {
            return Err(Unsupported::Shape("sequences, and room for entries"));
        }
        soc.has_version(any::<SparseFlashAttention>)
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (q, cache, out) = (op.require("q")?, op.require("cache")?, op.require("out")?);
        let (indices, table) = (op.require("indices")?, op.tensor("block_table"));
        let (tokens, count) = (q.dims()[0], indices.dims()[1]);
        let listed = run.scratch(DType::I32, indices.dims())?;
        sorted(run, &indices, true, &listed)?;
        // −1 is the only number that the vendor takes for padding.
        run.at_least(&listed, -1.0, &listed)?;
        let dense = out.spec().is_contiguous();
        let result = if dense { out.clone() } else { run.scratch(out.dtype(), out.dims())? };
        // Rows past the last sequence are not written.
        run.zero(&result)?;
        let [rows, positions, width] = *cache.dims() else { return Ok(()) };
        let (q_ends, all) = (run.running(&op.require("q_lens")?)?, op.spec().q_lens().count());
        let (entries, lens, layout) = match table {
            // Any position may be listed, so sequences are as long as their room.
            Some(_) => (
                cache.reshape(&[rows, positions, 1, width])?,
                run.full(DType::I32, &[all], op.spec().capacity() as f64)?,
                c"PA_BSND",
            ),
            None => (
                super::scatter::contiguous(run, &cache)?.reshape(&[rows * positions, 1, width])?,
                run.running(&run.full(DType::I32, &[all], positions as f64)?)?,
                c"TND",
            ),
        };
        let ([q, q_rotary], [entries, rotary]) = (parts(&q)?, parts(&entries)?);
        let [q, q_rotary, entries, rotary] =
            [run.tensor(&q)?, run.tensor(&q_rotary)?, run.tensor(&entries)?, run.tensor(&rotary)?];
        let listed = run.tensor(&listed.reshape(&[tokens, 1, count])?)?;
        let table = table.as_ref().map(|table| run.tensor(table)).transpose()?;
        let (q_ends, lens, to) = (run.tensor(&q_ends)?, run.tensor(&lens)?, run.tensor(&result)?);
        let scale = f64::from(op.spec().scale());
        // Entries one by one; no mask but the list; keys that are values; sums that nobody asks for.
        let (block, mask, latent, wants_sums) = (1i64, 0i64, 2i64, false);
        macro_rules! attend {
            ($plan:ident, $enqueue:ident, [$($sinks:expr)?]) => {
                aclnn!(
                    run,
                    $plan,
                    $enqueue,
                    q,
                    entries,
                    entries,
                    listed,
                    table,
                    q_ends,
                    lens,
                    q_rotary,
                    rotary,
                    $($sinks,)?
                    scale,
                    block,
                    c"TND",
                    layout,
                    mask,
                    EVERYTHING,
                    EVERYTHING,
                    latent,
                    wants_sums,
                    to,
                    NONE,
                    NONE
                )
            };
        }
        match run.newest(any::<SparseFlashAttention>)? {
            SparseFlashAttention::V2 => {
                attend!(aclnnSparseFlashAttentionV2GetWorkspaceSize, aclnnSparseFlashAttentionV2, [NONE])
            }
            SparseFlashAttention::V1 => {
                attend!(aclnnSparseFlashAttentionGetWorkspaceSize, aclnnSparseFlashAttention, [])
            }
        }?;
        if dense { Ok(()) } else { run.copy(&result, &out) }
    }
}

impl Run<'_, '_> {
    /// Running sums of lengths.
    fn running(&self, lens: &Tensor) -> Result<Tensor> {
        let sums = self.scratch(DType::I32, lens.dims())?;
        let number = code(DType::I32).ok_or_else(|| OpError::internal("lens", "a type without a number"))?;
        let (from, to) = (self.tensor(lens)?, self.tensor(&sums)?);
        aclnn!(self, aclnnCumsumGetWorkspaceSize, aclnnCumsum, from, 0i64, number, to)?;
        Ok(sums)
    }
}
