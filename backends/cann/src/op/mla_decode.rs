//! Attention to a latent cache: the vendor's fused kernel, to which an entry is a key and value of 512 elements and 64
//! rotary ones, which count for the scores only. Both are columns of the cache's rows, and of the queries'.

use super::Native;
use super::attention::{Fused, plan_pages, plan_query};
use crate::aclnn::{Plan, Run, Soc};
use portolan_core::{Call, Tensor};
use portolan_ops::attention::MlaDecodeSpec;
use portolan_ops::{Result, Unsupported};

/// Elements of an entry that are also its value, and those behind them.
pub(super) const LATENT: usize = 512;
pub(super) const ROTARY: usize = 64;

/// Whether the vendor's latent kernels take rows of `width` elements, of which `rank` are the value.
pub(super) fn plan_latent(width: usize, rank: usize) -> Plan {
    match rank == LATENT && width == LATENT + ROTARY {
        true => Ok(()),
        false => Err(Unsupported::Shape("entries of 512 elements and 64 rotary ones")),
    }
}

/// The columns of a row that are also its value, and the rotary ones.
pub(super) fn parts(rows: &Tensor) -> Result<[Tensor; 2]> {
    let last = rows.dims().len() - 1;
    Ok([rows.narrow(last, 0, LATENT)?, rows.narrow(last, LATENT, ROTARY)?])
}

impl Native for MlaDecodeSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        if self.cache_scale().is_some() {
            return Err(Unsupported::NotImplemented);
        }
        let query = self.query();
        plan_latent(query.head_dim(), query.v_head_dim())?;
        plan_query(soc, query, [self.cache(), self.cache()], true)?;
        if self.block_table().is_some() { plan_pages(self.cache().dims()[1]) } else { Ok(()) }
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (q, cache, table) = (op.require("q")?, op.require("cache")?, op.tensor("block_table"));
        let ([q, q_rotary], [entries, rotary]) = (parts(&q)?, parts(&cache)?);
        let [rows, positions, _] = *cache.dims() else { return Ok(()) };
        // Pages are rows of all heads, of which there is one; sequences have a dimension of heads.
        let page = if table.is_some() { positions as i64 } else { 0 };
        let laid_out = |x: Tensor| match page {
            0 => x.reshape(&[rows, positions, 1, x.dims()[2]]),
            _ => Ok(x),
        };
        let entries = laid_out(entries)?;
        let call = Fused {
            query: op.spec().query(),
            keys: entries.clone(),
            values: entries,
            rotary: Some([q_rotary, laid_out(rotary)?]),
            table,
            page,
            lse: op.tensor("lse"),
        };
        call.launch(run, &q, &op.require("out")?)
    }
}
