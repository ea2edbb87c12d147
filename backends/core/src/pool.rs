//! The one memory pool: cuts the backend's segments into blocks and reuses them in stream order.
//!
//! A freed block belongs to the stream it was made on, which may reuse it at once, since its later work runs
//! behind its earlier work. Other streams get it only when that stream is idle. A block that other streams
//! used as well is parked behind one event for each of them, polled at later allocations.

use crate::backend::{Backend, MemoryTraits, Ordinal, RawEvent, Segment};
use crate::buffer::Point;
use crate::order::Slots;
use crate::returns::ReturnList;
use portolan_ops::{DeviceId, Holder, OpError, Result};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Blocks are multiples of this: a cache line pair, and the strictest vendor alignment rounded up.
const GRAIN: usize = 256;
/// Small requests share segments of this size; a 2 MiB page each.
const SMALL_SEGMENT: usize = 2 << 20;
/// Requests above this share segments of `LARGE_SEGMENT`, so that scratch of many sizes is reused.
const SMALL_REQUEST: usize = 256 << 10;
const LARGE_SEGMENT: usize = 32 << 20;
/// The owner of blocks that any stream may take. Stream numbers start at 1.
const ANYONE: u64 = 0;
/// Holders named in an out-of-memory error.
const HOLDERS: usize = 5;

/// A used piece of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) address: usize,
    /// Length asked for, with padding and rounded up to the grain.
    pub(crate) bytes: usize,
    /// Length asked for.
    asked: usize,
    segment: usize,
    offset: usize,
}

impl Block {
    const EMPTY: Block = Block { address: GRAIN, bytes: 0, asked: 0, segment: usize::MAX, offset: 0 };
}

/// A block on its way back.
pub(crate) struct Returned {
    block: Block,
    home: u64,
    label: Arc<str>,
    pub(crate) uses: SmallVec<[Point; 2]>,
}

impl Returned {
    pub(crate) fn new(block: Block, home: u64, label: Arc<str>) -> Self {
        Self { block, home, label, uses: SmallVec::new() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Used,
    Free(u64),
}

struct SegmentState {
    segment: Segment,
    blocks: BTreeMap<usize, (usize, State)>,
}

struct Parked {
    block: Block,
    home: u64,
    events: SmallVec<[Arc<dyn RawEvent>; 2]>,
}

/// What the pool needs of its device while the submission lock is held.
pub(crate) struct PoolContext<'a> {
    pub(crate) backend: &'a dyn Backend,
    pub(crate) ordinal: Ordinal,
    pub(crate) device: &'a DeviceId,
    pub(crate) timeout: Duration,
}

pub(crate) struct Pool {
    segments: Vec<Option<SegmentState>>,
    free: HashMap<u64, BTreeSet<(usize, usize, usize)>>,
    parked: Vec<Parked>,
    returns: Arc<ReturnList<Returned>>,
    holders: HashMap<Arc<str>, usize>,
    traits: MemoryTraits,
    in_use: usize,
    peak: usize,
    live: usize,
    peak_live: usize,
    reservations: u64,
    is_recorded: bool,
}

/// How much of the pool is used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PoolStats {
    /// Bytes in blocks that are held or parked.
    pub bytes_in_use: usize,
    /// The most bytes in use at one time.
    pub peak_bytes: usize,
    /// The same bytes as they were asked for: without padding, and not rounded up to whole blocks.
    pub live_bytes: usize,
    /// The most of those at one time.
    pub peak_live_bytes: usize,
    /// Bytes reserved from the backend.
    pub bytes_reserved: usize,
    /// `1 − largest free block / free bytes`; 0 when nothing is free.
    pub fragmentation: f64,
    /// Segments reserved since the device was opened.
    pub reservations: u64,
}

impl Pool {
    pub(crate) fn new(traits: MemoryTraits) -> Self {
        Self {
            segments: Vec::new(),
            free: HashMap::new(),
            parked: Vec::new(),
            returns: Arc::new(ReturnList::new()),
            holders: HashMap::new(),
            traits,
            in_use: 0,
            peak: 0,
            live: 0,
            peak_live: 0,
            reservations: 0,
            is_recorded: false,
        }
    }

    pub(crate) fn returns(&self) -> Arc<ReturnList<Returned>> {
        self.returns.clone()
    }

    /// A block of at least `bytes` for work of `stream`.
    pub(crate) fn allocate(
        &mut self,
        stream: u64,
        bytes: usize,
        label: &Arc<str>,
        slots: &mut Slots,
        cx: &PoolContext<'_>,
    ) -> Result<Block> {
        self.collect(slots)?;
        if bytes == 0 {
            return Ok(Block::EMPTY);
        }
        let rounded = bytes
            .checked_add(self.traits.tail_padding)
            .and_then(|b| b.checked_next_multiple_of(GRAIN.max(self.traits.alignment)));
        let Some(rounded) = rounded.filter(|&b| b <= isize::MAX as usize) else {
            return Err(self.exhausted(bytes, cx));
        };
        match cx.backend.admit(cx.ordinal, bytes) {
            Ok(()) => {}
            Err(OpError::OutOfMemory { .. }) => return Err(self.exhausted(bytes, cx)),
            Err(other) => return Err(other),
        }
        if let Some(block) = self.find(stream, rounded, slots) {
            return Ok(self.hold(block, bytes, label));
        }
        if cx.backend.memory_info(cx.ordinal).is_ok_and(|info| rounded > info.total) {
            return Err(self.exhausted(bytes, cx));
        }
        if self.grow(rounded, cx).is_err() {
            self.squeeze(slots, cx)?;
            if let Some(block) = self.find(stream, rounded, slots) {
                return Ok(self.hold(block, bytes, label));
            }
            match self.grow(rounded, cx) {
                Ok(()) => {}
                Err(OpError::OutOfMemory { .. }) => return Err(self.exhausted(bytes, cx)),
                Err(other) => return Err(other),
            }
        }
        match self.find(stream, rounded, slots) {
            Some(block) => Ok(self.hold(block, bytes, label)),
            None => Err(OpError::internal(
                "pool",
                "a fresh segment has no room for the block it was reserved for",
            )),
        }
    }

    fn hold(&mut self, block: Block, asked: usize, label: &Arc<str>) -> Block {
        self.in_use += block.bytes;
        self.peak = self.peak.max(self.in_use);
        self.live += asked;
        self.peak_live = self.peak_live.max(self.live);
        match self.holders.get_mut(label) {
            Some(bytes) => *bytes += block.bytes,
            None => {
                self.holders.insert(label.clone(), block.bytes);
            }
        }
        Block { asked, ..block }
    }

    /// Takes in what was dropped, and what was parked and is done.
    fn collect(&mut self, slots: &Slots) -> Result<()> {
        for node in self.returns.take() {
            if let Some(bytes) = self.holders.get_mut(&node.label) {
                *bytes = bytes.saturating_sub(node.block.bytes);
                if *bytes == 0 {
                    self.holders.remove(&node.label);
                }
            }
            let mut events = SmallVec::new();
            for point in node.uses.iter().filter(|p| p.stream != node.home && !slots.has_seen(node.home, **p))
            {
                // The home stream does not wait for the others (behind a collective that could deadlock).
                if let Some(slot) = slots.get(point.stream).filter(|slot| !slot.raw.is_idle()) {
                    events.push(slot.raw.record()?);
                }
            }
            if events.is_empty() {
                self.put_back(node.block, self.owner(node.home, slots));
            } else {
                self.parked.push(Parked { block: node.block, home: node.home, events });
            }
        }
        let mut i = 0;
        while i < self.parked.len() {
            if self.parked[i].events.iter().all(|event| event.is_complete()) {
                let done = self.parked.swap_remove(i);
                self.put_back(done.block, self.owner(done.home, slots));
            } else {
                i += 1;
            }
        }
        Ok(())
    }

    fn owner(&self, home: u64, slots: &Slots) -> u64 {
        if slots.get(home).is_some() { home } else { ANYONE }
    }

    /// Marks a block free for `owner` and joins it with free neighbours of the same owner.
    fn put_back(&mut self, block: Block, owner: u64) {
        self.in_use = self.in_use.saturating_sub(block.bytes);
        self.live = self.live.saturating_sub(block.asked);
        self.insert_free(block.segment, block.offset, block.bytes, owner);
    }

    fn insert_free(&mut self, segment: usize, mut offset: usize, mut bytes: usize, owner: u64) {
        let Some(Some(state)) = self.segments.get_mut(segment) else { return };
        let list = self.free.entry(owner).or_default();
        state.blocks.remove(&offset);
        if let Some((&before, &(length, State::Free(o)))) = state.blocks.range(..offset).next_back()
            && o == owner
            && before + length == offset
        {
            state.blocks.remove(&before);
            list.remove(&(length, segment, before));
            (offset, bytes) = (before, bytes + length);
        }
        if let Some(&(length, State::Free(o))) = state.blocks.get(&(offset + bytes))
            && o == owner
        {
            state.blocks.remove(&(offset + bytes));
            list.remove(&(length, segment, offset + bytes));
            bytes += length;
        }
        state.blocks.insert(offset, (bytes, State::Free(owner)));
        list.insert((bytes, segment, offset));
    }

    /// The smallest free block that fits: the stream's own, then anyone's, then those of idle streams.
    fn find(&mut self, stream: u64, bytes: usize, slots: &Slots) -> Option<Block> {
        if let Some(block) = self.take_from(stream, bytes).or_else(|| self.take_from(ANYONE, bytes)) {
            return Some(block);
        }
        // A faulted stream keeps its blocks until it is gone: its device work may still be running.
        let idle: SmallVec<[u64; 4]> = self
            .free
            .keys()
            .copied()
            .filter(|&id| id != stream && id != ANYONE)
            .filter(|&id| slots.get(id).is_none_or(|s| s.raw.fault().is_none() && s.raw.is_idle()))
            .collect();
        let moved = idle.iter().filter(|&&id| self.give_to_anyone(id)).count() != 0;
        // Neighbours of one's own and of anyone's join only under one owner.
        if moved { self.take_from(ANYONE, bytes) } else { None }
    }

    fn take_from(&mut self, owner: u64, bytes: usize) -> Option<Block> {
        let list = self.free.get_mut(&owner)?;
        let &(length, segment, offset) = list.range((bytes, 0, 0)..).next()?;
        list.remove(&(length, segment, offset));
        let state = self.segments.get_mut(segment)?.as_mut()?;
        state.blocks.insert(offset, (bytes, State::Used));
        if length > bytes {
            state.blocks.insert(offset + bytes, (length - bytes, State::Free(owner)));
            list.insert((length - bytes, segment, offset + bytes));
        }
        Some(Block { address: state.segment.address + offset, bytes, asked: 0, segment, offset })
    }

    /// Frees a stream's blocks for every stream; for a stream that is idle or gone.
    pub(crate) fn give_to_anyone(&mut self, stream: u64) -> bool {
        let Some(list) = self.free.remove(&stream) else { return false };
        for &(bytes, segment, offset) in &list {
            self.insert_free(segment, offset, bytes, ANYONE);
        }
        !list.is_empty()
    }

    fn grow(&mut self, bytes: usize, cx: &PoolContext<'_>) -> Result<()> {
        let preferred = if bytes <= SMALL_REQUEST {
            SMALL_SEGMENT
        } else {
            bytes.max(LARGE_SEGMENT).next_multiple_of(SMALL_SEGMENT)
        };
        // Near the limit an exact segment may still fit where a comfortable one does not.
        let segment =
            cx.backend.reserve(cx.ordinal, preferred).or_else(|_| cx.backend.reserve(cx.ordinal, bytes))?;
        self.reservations += 1;
        let length = segment.bytes;
        let state = SegmentState { segment, blocks: BTreeMap::new() };
        let index = match self.segments.iter().position(Option::is_none) {
            Some(index) => {
                self.segments[index] = Some(state);
                index
            }
            None => {
                self.segments.push(Some(state));
                self.segments.len() - 1
            }
        };
        self.insert_free(index, 0, length, ANYONE);
        Ok(())
    }

    /// Out of room: waits for what is parked and for other streams, then gives empty segments back.
    pub(crate) fn squeeze(&mut self, slots: &Slots, cx: &PoolContext<'_>) -> Result<()> {
        for parked in &self.parked {
            for event in &parked.events {
                event.synchronize(cx.timeout)?;
            }
        }
        self.collect(slots)?;
        let healthy: SmallVec<[u64; 4]> =
            slots.iter().filter(|s| s.raw.fault().is_none()).map(|s| s.id).collect();
        for id in healthy {
            if self.free.get(&id).is_some_and(|list| !list.is_empty())
                && let Some(slot) = slots.get(id)
            {
                slot.raw.synchronize(cx.timeout)?;
                self.give_to_anyone(id);
            }
        }
        if self.is_recorded { Ok(()) } else { self.release_empty(cx) }
    }

    /// From now on a driver's graph may use whatever was handed out, also after it came back: segments stay to the end.
    pub(crate) fn keep_segments(&mut self) {
        self.is_recorded = true;
    }

    /// Gives every segment without a used block back to the backend.
    fn release_empty(&mut self, cx: &PoolContext<'_>) -> Result<()> {
        for index in 0..self.segments.len() {
            let whole = self.segments[index].as_ref().is_some_and(|s| {
                s.blocks.len() == 1 && s.blocks.get(&0) == Some(&(s.segment.bytes, State::Free(ANYONE)))
            });
            if whole && let Some(state) = self.segments[index].take() {
                if let Some(list) = self.free.get_mut(&ANYONE) {
                    list.remove(&(state.segment.bytes, index, 0));
                }
                cx.backend.release(cx.ordinal, state.segment)?;
            }
        }
        Ok(())
    }

    fn exhausted(&self, requested: usize, cx: &PoolContext<'_>) -> OpError {
        let mut holders: Vec<Holder> =
            self.holders.iter().map(|(label, &bytes)| Holder { label: label.clone(), bytes }).collect();
        holders.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.label.cmp(&b.label)));
        holders.truncate(HOLDERS);
        let (free, total) = cx.backend.memory_info(cx.ordinal).map_or((0, 0), |info| (info.free, info.total));
        let unused: usize = self.free.values().flatten().map(|&(bytes, _, _)| bytes).sum();
        OpError::OutOfMemory {
            device: cx.device.clone(),
            requested,
            free: free.saturating_add(unused),
            total,
            holders,
        }
    }

    pub(crate) fn stats(&mut self, slots: &Slots) -> Result<PoolStats> {
        self.collect(slots)?;
        let free: usize = self.free.values().flatten().map(|&(bytes, _, _)| bytes).sum();
        let largest =
            self.free.values().filter_map(|list| list.last()).map(|&(bytes, _, _)| bytes).max().unwrap_or(0);
        Ok(PoolStats {
            bytes_in_use: self.in_use,
            peak_bytes: self.peak,
            live_bytes: self.live,
            peak_live_bytes: self.peak_live,
            bytes_reserved: self.segments.iter().flatten().map(|s| s.segment.bytes).sum(),
            fragmentation: if free == 0 { 0.0 } else { 1.0 - largest as f64 / free as f64 },
            reservations: self.reservations,
        })
    }

    /// Gives everything back; for a pool whose buffers and streams are gone.
    pub(crate) fn close(&mut self, backend: &dyn Backend, ordinal: Ordinal) {
        for state in self.segments.iter_mut().filter_map(Option::take) {
            // Nobody is left to tell: the device handle itself is going away.
            let _ = backend.release(ordinal, state.segment);
        }
        self.free.clear();
    }
}
