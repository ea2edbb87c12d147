//! Allocations: on the device, where addresses are not given out twice while there are others, and on the host.

mod mapping;

pub(crate) use mapping::{GRANULARITY, HUGE_GRANULARITY};

use crate::arena::{Arena, PAGE};
use crate::error::{Fail, Result, code};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What fresh memory is full of: no number in any float format, −1 in any integer.
pub(crate) const POISON: u8 = 0xff;
/// What stands before and behind every allocation, and must stay.
const REDZONE: u8 = 0xfd;
/// Bytes of it on either side, at least.
const REDZONE_BYTES: usize = 64;
/// What base addresses are multiples of, by the vendor's word.
pub(crate) const ALIGNMENT: usize = 64;
/// Freed allocations that are remembered, to name what is used after its end.
const REMEMBERED: usize = 4096;

/// One allocation of device memory.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) address: usize,
    /// Bytes asked for.
    pub(crate) bytes: usize,
    /// Bytes that kernels may read: with the padding.
    padded: usize,
    pub(crate) device: usize,
    /// Counts from 1.
    pub(crate) number: u64,
    /// The call that made it.
    pub(crate) call: u64,
    /// The pages that are its own.
    region: (usize, usize),
    /// The physical memory that was mapped there, where that was done by hand.
    physical: Option<u64>,
    /// Whether all of its pages may be used.
    overrun: bool,
}

impl Block {
    fn describe(&self) -> String {
        format!(
            "allocation {} ({} bytes at {:#x}, made by call {})",
            self.number, self.bytes, self.address, self.call
        )
    }
}

/// Pinned memory of the host.
pub(crate) struct Pinned {
    pub(crate) address: usize,
    pub(crate) bytes: usize,
    /// The program's own, which it has registered.
    registered: bool,
}

impl Pinned {
    fn new(bytes: usize) -> Result<Self> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping wherever the system likes.
        let at = unsafe { libc::mmap(core::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(Fail::new(
                code::RT_MEMORY_ALLOCATION,
                format!("the host has no {bytes} bytes to pin"),
            ));
        }
        // SAFETY: just mapped, writable, so long.
        unsafe { at.cast::<u8>().write_bytes(POISON, bytes) };
        Ok(Self { address: at.expose_provenance(), bytes, registered: false })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.registered {
            return;
        }
        // SAFETY: our own mapping; whoever still copies from or to it holds it too.
        unsafe { libc::munmap(core::ptr::with_exposed_provenance_mut(self.address), self.bytes) };
    }
}

/// All memory of a world.
pub(crate) struct Memory {
    arena: Arena,
    /// Addresses each device has.
    span: usize,
    /// Where each device's next allocation goes.
    next: Vec<usize>,
    used: Vec<usize>,
    /// Bytes each device has.
    pub(crate) limit: usize,
    padding: usize,
    /// What base addresses are multiples of here, and of nothing larger below a page.
    alignment: usize,
    live: BTreeMap<usize, Block>,
    freed: BTreeMap<usize, (Block, u64)>,
    pinned: BTreeMap<usize, Arc<Pinned>>,
    /// Ranges of addresses that programs have reserved, by their first: bytes, device and call.
    reserved: BTreeMap<usize, (usize, usize, u64)>,
    /// Physical memory that programs map by hand.
    physical: BTreeMap<u64, mapping::Physical>,
    made: u64,
}

impl Memory {
    pub(crate) fn new(
        devices: usize,
        limit: usize,
        padding: usize,
        alignment: usize,
    ) -> core::result::Result<Self, String> {
        // Eight times what can be held at once: addresses come back only after that much.
        let span = limit.saturating_mul(8).clamp(1 << 33, 1 << 40).next_multiple_of(PAGE);
        let arena = Arena::new(span.saturating_mul(devices))?;
        let next = (0..devices).map(|device| arena.base() + device * span).collect();
        let used = vec![0; devices];
        Ok(Self { arena, span, next, used, limit, padding, alignment, ..Self::none() })
    }

    /// Memory of no device.
    pub(crate) fn none() -> Self {
        let (live, freed, pinned) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (next, used, arena) = (Vec::new(), Vec::new(), Arena::none());
        let (reserved, physical) = (BTreeMap::new(), BTreeMap::new());
        Self {
            arena,
            span: 0,
            next,
            used,
            limit: 0,
            padding: 0,
            alignment: ALIGNMENT,
            live,
            freed,
            pinned,
            reserved,
            physical,
            made: 0,
        }
    }

    /// Pages for an allocation: fresh ones, or where those have run out a gap.
    fn place(&mut self, device: usize, bytes: usize) -> Option<usize> {
        let first = self.arena.base() + device * self.span;
        let end = first + self.span;
        let fresh = self.next[device];
        if bytes <= end - fresh {
            self.next[device] = fresh + bytes;
            return Some(fresh);
        }
        let mut from = first;
        let blocks = self.live.range(first..end).map(|(_, block)| block.region);
        let reserved = self.reserved.range(first..end).map(|(&start, &(bytes, ..))| (start, start + bytes));
        let mut taken: Vec<(usize, usize)> = blocks.chain(reserved).collect();
        taken.sort_unstable();
        for (start, after) in taken {
            if start.saturating_sub(from) >= bytes {
                return Some(from);
            }
            from = from.max(after);
        }
        (end - from >= bytes).then_some(from)
    }

    /// New device memory, full of poison.
    pub(crate) fn allocate(&mut self, device: usize, bytes: usize, call: u64) -> Result<usize> {
        if bytes == 0 {
            return Err(Fail::parameter("size is 0"));
        }
        let room = self.limit - self.used[device];
        let exhausted = || {
            let text = format!("device {device} has {room} of {} bytes, {bytes} were asked for", self.limit);
            Fail::new(code::RT_DEVICE_OUT_OF_MEMORY, text)
        };
        let padded = bytes.checked_next_multiple_of(32).and_then(|n| n.checked_add(self.padding));
        let padded = padded.filter(|&padded| padded <= room).ok_or_else(exhausted)?;
        // The redzone before it is what keeps an address from being aligned better than it has to be.
        let front = self.alignment;
        let pages = (front + padded + REDZONE_BYTES).next_multiple_of(PAGE);
        let Some(start) = self.place(device, pages) else {
            return Err(Fail::new(code::RT_DEVICE_OUT_OF_MEMORY, "device memory is too fragmented"));
        };
        let address = start + front;
        self.arena.fill(start, front, REDZONE);
        self.arena.fill(address, padded, POISON);
        self.arena.fill(address + padded, start + pages - address - padded, REDZONE);
        self.used[device] += padded;
        self.made += 1;
        let (number, region) = (self.made, (start, start + pages));
        let (physical, overrun) = (None, false);
        let block = Block { address, bytes, padded, device, number, call, region, physical, overrun };
        self.live.insert(address, block);
        Ok(address)
    }

    /// Ends an allocation, whoever uses it.
    pub(crate) fn free(&mut self, address: usize, call: u64) -> Result {
        if self.live.get(&address).is_some_and(|block| block.physical.is_some()) {
            return Err(Fail::parameter(format!("{address:#x} was mapped; unmap it with aclrtUnmapMem")));
        }
        let Some(block) = self.live.remove(&address) else {
            return Err(Fail::parameter(match self.holder(address) {
                Some(block) => format!("{address:#x} is inside {}; free its first address", block.describe()),
                None => self.unknown(address),
            }));
        };
        let damage = self.damage(&block);
        self.used[block.device] -= block.padded;
        self.arena.discard(block.region.0, block.region.1 - block.region.0);
        self.freed.insert(address, (block, call));
        if self.freed.len() > REMEMBERED {
            self.freed.pop_first();
        }
        match damage {
            None => Ok(()),
            Some(text) => Err(Fail::new(code::INTERNAL, text)),
        }
    }

    /// What was written outside an allocation, if anything was.
    fn damage(&self, block: &Block) -> Option<String> {
        if block.physical.is_some() || block.overrun {
            // Nothing of it stands around memory that was mapped by hand, or may be used up to its last page.
            return None;
        }
        let (start, end) = block.region;
        let before = self.arena.differs(start, block.address - start, REDZONE);
        let rear = block.address + block.padded;
        let behind = self.arena.differs(rear, end - rear, REDZONE);
        (before + behind > 0).then(|| {
            format!("{before} bytes before and {behind} bytes behind {} were overwritten", block.describe())
        })
    }

    /// The allocation that an address lies in.
    fn holder(&self, address: usize) -> Option<&Block> {
        let block = self.live.range(..=address).next_back()?.1;
        let end = if block.overrun { block.region.1 } else { block.address + block.padded };
        (address < end).then_some(block)
    }

    /// Whether a range that begins in an allocation stays in its pages; then all of them may be used from now on.
    pub(crate) fn overrun(&mut self, address: usize, bytes: usize) -> bool {
        let near = self.live.range_mut(..=address).next_back().map(|(_, block)| block);
        let Some(block) = near.filter(|block| block.physical.is_none()) else { return false };
        let inside = address < block.region.1 && bytes <= block.region.1 - address;
        block.overrun |= inside;
        inside
    }

    fn unknown(&self, address: usize) -> String {
        if !self.arena.contains(address) {
            return format!("{address:#x} is no device address");
        }
        let past = self.freed.range(..=address).next_back().map(|(_, past)| past);
        match past.filter(|(block, _)| address < block.address + block.padded) {
            Some((block, call)) => format!("{address:#x} was {}, freed by call {call}", block.describe()),
            None => format!("{address:#x} is in no allocation"),
        }
    }

    /// Whether an address is one of a device's.
    pub(crate) fn is_device(&self, address: usize) -> bool {
        self.arena.contains(address)
    }

    /// The living allocation that a range lies in.
    pub(crate) fn block(&self, address: usize, bytes: usize) -> Result<&Block> {
        let block = self.holder(address).ok_or_else(|| Fail::parameter(self.unknown(address)))?;
        if self.end_of(block) - address.min(self.end_of(block)) < bytes {
            let text = format!("{bytes} bytes from {address:#x} on reach beyond {}", block.describe());
            return Err(Fail::parameter(text));
        }
        Ok(block)
    }

    /// Where the simulator sees a range of one living allocation, or of host memory that was registered.
    pub(crate) fn map(&self, address: usize, bytes: usize) -> Result<*mut u8> {
        if !self.arena.contains(address)
            && self.pinned(address, bytes).is_some_and(|pinned| pinned.registered)
        {
            return Ok(core::ptr::with_exposed_provenance_mut(address));
        }
        self.block(address, bytes)?;
        Ok(self.arena.pointer(address))
    }

    /// Free and total bytes of a device.
    pub(crate) fn info(&self, device: usize) -> (usize, usize) {
        (self.limit - self.used[device], self.limit)
    }

    /// New pinned memory of the host.
    pub(crate) fn pin(&mut self, bytes: usize) -> Result<usize> {
        if bytes == 0 {
            return Err(Fail::parameter("size is 0"));
        }
        let pinned = Pinned::new(bytes)?;
        let address = pinned.address;
        self.pinned.insert(address, Arc::new(pinned));
        Ok(address)
    }

    /// Ends pinned memory; a copy in flight keeps it until it is done.
    pub(crate) fn unpin(&mut self, address: usize) -> Result {
        self.release_host(address, false)
    }

    /// Ends pinned memory of one kind.
    fn release_host(&mut self, address: usize, registered: bool) -> Result {
        match self.pinned.get(&address).is_some_and(|pinned| pinned.registered == registered) {
            true => {
                self.pinned.remove(&address);
                Ok(())
            }
            false => {
                let maker =
                    if registered { "registered with aclrtHostRegister" } else { "given by aclrtMallocHost" };
                Err(Fail::parameter(format!("{address:#x} was not {maker}")))
            }
        }
    }

    /// The pinned memory that a range of host memory lies in.
    pub(crate) fn pinned(&self, address: usize, bytes: usize) -> Option<Arc<Pinned>> {
        let (_, pinned) = self.pinned.range(..=address).next_back()?;
        let end = pinned.address + pinned.bytes;
        (address < end && bytes <= end - address).then(|| pinned.clone())
    }

    /// Everything that is still held, for the report at the end.
    pub(crate) fn leaks(&self) -> Value {
        let blocks = self.live.values().map(|block| {
            json!({ "number": block.number, "bytes": block.bytes, "device": block.device, "call": block.call })
        });
        json!({
            "reserved": self.reserved.len(),
            "physical": self.physical.len(),
            "device": blocks.collect::<Value>(),
            "host": self.pinned.values().map(|pinned| json!({ "bytes": pinned.bytes })).collect::<Value>(),
        })
    }

    /// Every allocation that was written outside of.
    pub(crate) fn all_damage(&self) -> Vec<String> {
        self.live.values().filter_map(|block| self.damage(block)).collect()
    }

    /// Frees what a device holds; for its reset.
    pub(crate) fn forget(&mut self, device: usize, call: u64) {
        self.forget_mappings(device, call);
        let held: Vec<usize> =
            self.live.values().filter(|block| block.device == device).map(|block| block.address).collect();
        for address in held {
            // Damage was reported, or will not be any more.
            let _ = self.free(address, call);
        }
    }

    /// Tells what an address is, without allocating.
    pub(crate) fn explain(&self, address: usize, out: &mut impl core::fmt::Write) {
        let near = self.live.range(..=address).next_back().map(|(_, block)| block);
        let past = self.freed.range(..=address).next_back().map(|(_, past)| past);
        let _ = match (near, past) {
            (Some(block), _) if address < block.address + block.padded => {
                let at = address - block.address;
                write!(out, ", byte {at} of allocation {} ({} bytes)", block.number, block.bytes)
            }
            (_, Some((block, call))) if address < block.address + block.padded => {
                write!(out, ", in allocation {}, which call {call} freed", block.number)
            }
            _ => write!(out, ", which is in no allocation"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Memory {
        Memory::new(2, 1 << 20, 32, ALIGNMENT).unwrap()
    }

    #[test]
    fn addresses_are_aligned_padded_poisoned_and_not_reused() {
        let mut m = memory();
        let mut seen = Vec::new();
        for bytes in [1, 32, 33, 4096, 100_000] {
            let address = m.allocate(0, bytes, 1).unwrap();
            assert_eq!(address % (2 * ALIGNMENT), ALIGNMENT);
            assert_eq!(m.arena.differs(address, bytes.next_multiple_of(32) + 32, POISON), 0);
            assert!(!seen.contains(&address));
            seen.push(address);
            m.free(address, 2).unwrap();
        }
        assert_eq!(m.info(0), (1 << 20, 1 << 20));
    }

    #[test]
    fn a_wider_alignment_holds_exactly_and_its_redzone_is_watched() {
        let mut m = Memory::new(1, 1 << 20, 32, 512).unwrap();
        let a = m.allocate(0, 100, 1).unwrap();
        assert_eq!(a % 1024, 512);
        m.arena.fill(a - 512, 1, 0);
        assert!(m.free(a, 2).unwrap_err().text.contains("1 bytes before"));
    }

    #[test]
    fn ranges_beyond_their_allocation_and_after_its_end_are_named() {
        let mut m = memory();
        let a = m.allocate(1, 100, 7).unwrap();
        assert!(m.map(a + 40, 60).is_ok());
        let beyond = m.map(a + 40, 61).unwrap_err();
        assert!(beyond.text.contains("reach beyond allocation 1 (100 bytes"), "{}", beyond.text);
        let inside = m.free(a + 64, 8).unwrap_err();
        assert!(inside.text.contains("is inside allocation 1"), "{}", inside.text);
        m.free(a, 9).unwrap();
        let late = m.map(a, 1).unwrap_err();
        assert!(late.text.contains("freed by call 9"), "{}", late.text);
        assert!(m.free(a, 10).is_err() && m.free(8, 10).is_err());
    }

    #[test]
    fn an_overrun_allocation_has_its_pages_and_no_more() {
        let mut m = memory();
        let a = m.allocate(0, 100, 1).unwrap();
        let left = PAGE - ALIGNMENT;
        assert!(m.map(a, left).is_err() && !m.overrun(a, left + 1));
        assert!(m.map(a, left).is_err(), "nothing was allowed yet");
        assert!(m.overrun(a + 64, 100));
        assert!(m.map(a, left).is_ok() && m.map(a + left - 1, 1).is_ok() && m.map(a, left + 1).is_err());
        m.arena.fill(a + left - 1, 1, 0);
        m.free(a, 2).unwrap();
    }

    #[test]
    fn the_limit_holds_for_each_device() {
        let mut m = memory();
        let a = m.allocate(0, (1 << 20) - 32, 1).unwrap();
        assert_eq!(m.allocate(0, 1, 2).unwrap_err().code, code::RT_DEVICE_OUT_OF_MEMORY);
        assert_eq!(m.allocate(0, usize::MAX, 2).unwrap_err().code, code::RT_DEVICE_OUT_OF_MEMORY);
        m.allocate(1, 1, 3).unwrap();
        m.free(a, 4).unwrap();
        m.allocate(0, 1, 5).unwrap();
    }

    #[test]
    fn a_byte_outside_an_allocation_is_noticed() {
        let mut m = memory();
        let a = m.allocate(0, 64, 1).unwrap();
        // 64 bytes and the padding of 32 are the kernels'.
        m.arena.fill(a + 64, 32, 0);
        assert!(m.all_damage().is_empty());
        m.arena.fill(a + 96, 1, 0);
        assert_eq!(m.all_damage().len(), 1);
        assert!(m.free(a, 2).unwrap_err().text.contains("1 bytes behind allocation 1"));
    }
}
