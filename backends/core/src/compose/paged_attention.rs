//! Paged attention: the pages in use are gathered, the rest is contiguous attention.

use super::attention::{Visible, attend, scaled};
use super::begin;
use super::parts::Parts;
use crate::call::PagedAttention;
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, CompareKind};
use portolan_ops::{Result, Unsupported};

/// Gathers the pages that hold visible keys, then attends to them as to a contiguous cache.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn paged_attention(l: &Launch<'_>, op: &PagedAttention, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let (table, page_size) = (op.require("block_table")?, op.spec().page_size());
    let (cache, num_pages) = ([op.require("k")?, op.require("v")?], op.spec().k().dims()[0]);
    let mut pages: Option<Tensor> = None;
    attend(&p, op, op.spec().query(), &mut |visible, first, count| {
        let pages = match &pages {
            Some(pages) => pages.clone(),
            None => pages.insert(pages_in_use(&p, visible, &table, page_size, num_pages)?).clone(),
        };
        let pages = pages.narrow(0, first, count)?;
        let entries = [entries_of(&p, &cache[0], &pages)?, entries_of(&p, &cache[1], &pages)?];
        let scales = |name| {
            let Some(scale) = op.tensor(name) else { return Ok(None) };
            let [outer, inner, heads] = [scale.dims()[0], scale.dims()[1], scale.dims()[2]];
            let scales = entries_of(&p, &scale.reshape(&[outer, inner, heads, 1])?, &pages)?;
            scales.reshape(&[count, scales.dims()[1], heads]).map(Some)
        };
        scaled(&p, entries, &[scales("k_scale")?, scales("v_scale")?])
    })
}

/// The entries `[count, keys, heads, width]` of the pages `[count, pages]` of a cache.
pub(super) fn entries_of(p: &Parts<'_, '_>, cache: &Tensor, pages: &Tensor) -> Result<Tensor> {
    let [page_size, heads, width] = [cache.dims()[1], cache.dims()[2], cache.dims()[3]];
    let [count, pages_each] = [pages.dims()[0], pages.dims()[1]];
    p.gather(cache, 0, pages)?.reshape(&[count, pages_each * page_size, heads, width])
}

/// The page of each block of keys, `[batch, pages]`: −1 where no visible key lies. A page that is absent
/// though one lies there is past the last page, a data fault when it is gathered.
pub(super) fn pages_in_use(
    p: &Parts<'_, '_>,
    visible: &Visible,
    table: &Tensor,
    page_size: usize,
    num_pages: usize,
) -> Result<Tensor> {
    let count = visible.max.div_ceil(page_size);
    let table = table.narrow(1, 0, count)?;
    // Longer pages than any sequence are one page; so all positions fit an i32.
    let page_size = page_size.min(visible.max) as f64;
    let begin = p.scalar(BinaryKind::Mul, &p.iota(count)?, page_size)?;
    let mut used = p.compare(CompareKind::Lt, &begin, &visible.end)?;
    if let Some(start) = &visible.start {
        let last = p.scalar(BinaryKind::Add, &begin, page_size - 1.0)?;
        used = p.binary(BinaryKind::And, &used, &p.compare(CompareKind::Ge, &last, start)?)?;
    }
    let absent = p.compare_scalar(CompareKind::Lt, &table, 0.0)?;
    p.select_or(&used, &p.replace(&absent, num_pages as f64, &table)?, -1.0)
}
