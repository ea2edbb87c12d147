//! Latent attention as attention with one key head, whose values are the first columns of the keys.

use super::attention::attend;
use super::begin;
use super::paged_attention::{entries_of, pages_in_use};
use crate::call::MlaDecode;
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::{Result, Unsupported};

/// Views the cache (its pages gathered first) as keys and values of one head, then attends to it.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn mla_decode(l: &Launch<'_>, op: &MlaDecode, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let (query, cache) = (op.spec().query(), op.require("cache")?);
    let [outer, inner, width] = [cache.dims()[0], cache.dims()[1], cache.dims()[2]];
    let cache = cache.reshape(&[outer, inner, 1, width])?;
    let table = op.tensor("block_table");
    let mut pages: Option<Tensor> = None;
    attend(&p, op, query, &mut |visible, first, count| {
        let keys = match &table {
            None => cache.narrow(0, first, count)?,
            Some(table) => {
                let pages = match &pages {
                    Some(pages) => pages.clone(),
                    None => pages.insert(pages_in_use(&p, visible, table, inner, outer)?).clone(),
                };
                entries_of(&p, &cache, &pages.narrow(0, first, count)?)?
            }
        };
        let values = keys.narrow(3, 0, query.v_head_dim())?;
        Ok([keys, values])
    })
}
