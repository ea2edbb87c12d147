//! Writes into caches. With lengths on the host each sequence's new rows are one copy to where they belong; paged ones
//! go by slots, which the host counts out and uploads.

use super::Native;
use super::scatter::{contiguous, has_row_writes, write_rows};
use crate::aclnn::{Plan, Run, Soc};
use portolan_core::{Call, Tensor};
use portolan_ops::attention::KvCacheWriteSpec;
use portolan_ops::{DType, OpError, Result, Unsupported};

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
        if self.block_table().is_some() {
            // Slots would need the table's pages on the host.
            return Err(Unsupported::HostLengths);
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
        let lengths = new.iter().zip(all.iter()).map(|(&new, &all)| (new as usize, all as usize));
        if new.len() > MOST_COPIES {
            return slots(run, &x, &cache, lengths);
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
    x: &Tensor,
    cache: &Tensor,
    lengths: impl Iterator<Item = (usize, usize)>,
) -> Result<()> {
    let tokens = x.dims()[0];
    let room = cache.dims()[1];
    let mut slots: Vec<i32> = Vec::with_capacity(tokens);
    for (sequence, (new, all)) in lengths.enumerate() {
        slots.extend((all - new..all).map(|place| (sequence * room + place) as i32));
    }
    slots.resize(tokens, -1);
    let bytes: Vec<u8> = slots.into_iter().flat_map(i32::to_le_bytes).collect();
    let table = run.scratch(DType::I32, &[tokens])?;
    run.upload(&bytes, &table)?;
    let rows = contiguous(run, &run.typed(x, cache.dtype())?)?;
    write_rows(run, &rows, &table, cache)
}
