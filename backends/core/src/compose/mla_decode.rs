//! Latent attention as attention with one key head, whose values are the first columns of the keys.

use super::attention::{attend, decoded};
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
    let scale = op.tensor("cache_scale").map(|scale| scale.reshape(&[outer, inner, 1, 1])).transpose()?;
    let table = op.tensor("block_table");
    let mut pages: Option<Tensor> = None;
    attend(&p, op, query, &mut |visible, first, count| {
        let pages = match (&table, &pages) {
            (None, _) => None,
            (Some(_), Some(pages)) => Some(pages.clone()),
            (Some(table), None) => {
                Some(pages.insert(pages_in_use(&p, visible, table, inner, outer)?).clone())
            }
        };
        let part = |cache: &Tensor| match &pages {
            None => cache.narrow(0, first, count),
            Some(pages) => entries_of(&p, cache, &pages.narrow(0, first, count)?),
        };
        let mut keys = part(&cache)?;
        if let Some(scale) = &scale {
            let scale = part(scale)?;
            keys = decoded(&p, &keys, &scale.reshape(&scale.dims()[..3])?)?;
        }
        let values = keys.narrow(3, 0, query.v_head_dim())?;
        Ok([keys, values])
    })
}
