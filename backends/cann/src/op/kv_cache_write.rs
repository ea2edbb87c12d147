//! Writes into caches. With lengths on the host each sequence's new rows are one copy to where they belong; of many
//! sequences, and into pages, they go by slots. The host counts out the places, the device finds their pages.

use super::Native;
use super::scatter::{contiguous, has_row_writes, write_rows};
use crate::aclnn::{Plan, Run, Soc, aclnn};
use portolan_core::{Call, Tensor};
use portolan_ops::attention::KvCacheWriteSpec;
use portolan_ops::{DType, OpError, Result, Unsupported};

/// A slot below 0, also with the first slot of a page added to it: caches have fewer.
const SKIPPED: i32 = -(1 << 30);
/// More sequences than this are written by slots: a copy each would cost more than the upload of the slots.
const MOST_COPIES: usize = 8;

impl Native for KvCacheWriteSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        if self.scale().is_some() {
            return Err(Unsupported::NotImplemented);
        }
        soc.compute_all([self.x(), self.cache()])?;
        let (Some(new), Some(all)) = (self.q_lens().host(), self.kv_lens().host()) else {
            return Err(Unsupported::HostLengths);
        };
        if new.iter().zip(all.iter()).any(|(new, all)| new > all) {
            return Err(Unsupported::Shape("no more new rows than the sequence has"));
        }
        if let Some(table) = self.block_table() {
            let [pages, page, ..] = *self.cache().dims() else { return Err(Unsupported::NotImplemented) };
            let fits = |slots: Option<usize>| slots.is_some_and(|slots| slots < 1 << 30);
            if !by_slots(self, soc) || self.cache().numel() == 0 || table.numel() == 0 {
                return Err(Unsupported::Shape("contiguous pages, and room in them"));
            }
            return match fits(pages.checked_mul(page)) && fits(Some(table.numel())) {
                true => soc.has("aclnnGatherV2GetWorkspaceSize"),
                false => Err(Unsupported::Shape("fewer than 2^30 positions")),
            };
        }
        match new.len() > MOST_COPIES && !by_slots(self, soc) {
            true => Err(Unsupported::Shape("at most 8 sequences")),
            false => Ok(()),
        }
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (spec, x, cache) = (op.spec(), op.require("x")?, op.require("cache")?);
        let (Some(new), Some(all)) = (spec.q_lens().host(), spec.kv_lens().host()) else {
            return Err(OpError::internal("kv_cache_write", "lengths are not on the host"));
        };
        if x.numel() == 0 {
            return Ok(());
        }
        let lengths = new.iter().zip(all.iter()).map(|(&new, &all)| (new as usize, all as usize));
        if let Some(table) = op.tensor("block_table") {
            let slots = paged_slots(run, &table, cache.dims()[1], x.dims()[0], lengths)?;
            return write(run, &x, &slots, &cache);
        }
        if new.len() > MOST_COPIES {
            let slots = slots(run, x.dims()[0], cache.dims()[1], lengths)?;
            return write(run, &x, &slots, &cache);
        }
        let mut token = 0;
        for (sequence, (new, all)) in lengths.enumerate() {
            if new > 0 {
                let room = cache.select(0, sequence)?.narrow(0, all - new, new)?;
                run.store(&x.narrow(0, token, new)?, &room)?;
            }
            token += new;
        }
        Ok(())
    }
}

/// Whether the device writes rows of this cache at slots.
fn by_slots(spec: &KvCacheWriteSpec, soc: &Soc<'_>) -> bool {
    has_row_writes(soc) && spec.cache().is_contiguous()
}

/// One slot a token, those past the last sequence skipped.
fn slots(
    run: &Run<'_, '_>,
    tokens: usize,
    room: usize,
    lengths: impl Iterator<Item = (usize, usize)>,
) -> Result<Tensor> {
    let mut slots: Vec<i32> = Vec::with_capacity(tokens);
    for (sequence, (new, all)) in lengths.enumerate() {
        slots.extend((all - new..all).map(|place| (sequence * room + place) as i32));
    }
    slots.resize(tokens, SKIPPED);
    run.numbers(&slots, &[tokens])
}

/// The same in pages of `page` positions: the page of each token from the table, times its positions, and the place in it.
fn paged_slots(
    run: &Run<'_, '_>,
    table: &Tensor,
    page: usize,
    tokens: usize,
    lengths: impl Iterator<Item = (usize, usize)>,
) -> Result<Tensor> {
    let of_sequence = table.dims()[1];
    let (mut entries, mut places) = (Vec::with_capacity(2 * tokens), Vec::with_capacity(tokens));
    for (sequence, (new, all)) in lengths.enumerate() {
        entries.extend((all - new..all).map(|at| (sequence * of_sequence + at / page) as i32));
        places.extend((all - new..all).map(|at| (at % page) as i32));
    }
    entries.resize(tokens, 0);
    places.resize(tokens, SKIPPED);
    let both = run.numbers(&[entries, places].concat(), &[2, tokens])?;
    let (entries, places) = (both.select(0, 0)?, both.select(0, 1)?);
    let slots = run.scratch(DType::I32, &[tokens])?;
    let table = contiguous(run, table)?.reshape(&[table.numel()])?;
    let (from, at, to) = (run.tensor(&table)?, run.tensor(&entries)?, run.tensor(&slots)?);
    aclnn!(run, aclnnGatherV2GetWorkspaceSize, aclnnGatherV2, from, 0i64, at, to)?;
    // A page that is absent is below 0, and so are its slots.
    run.at_least(&slots, -1.0, &slots)?;
    run.muls(&slots, page as f64, &slots)?;
    run.add(&slots, &places, 1.0, &slots)?;
    Ok(slots)
}

/// Rows into slots, none for a slot below 0.
fn write(run: &Run<'_, '_>, x: &Tensor, slots: &Tensor, cache: &Tensor) -> Result<()> {
    let rows = contiguous(run, &run.typed(x, cache.dtype())?)?;
    write_rows(run, &rows, slots, cache)
}

impl Run<'_, '_> {
    /// Numbers of the host as a tensor.
    fn numbers(&self, numbers: &[i32], dims: &[usize]) -> Result<Tensor> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let tensor = self.scratch(DType::I32, dims)?;
        self.upload(&bytes, &tensor)?;
        Ok(tensor)
    }
}
