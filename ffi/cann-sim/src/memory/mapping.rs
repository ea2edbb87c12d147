//! Memory that programs put together by hand: ranges of addresses, physical memory, and the mapping of one to the other.
//!
//! Pools use it to grow in place, so a range may reach over mappings that lie side by side. What physical memory holds
//! goes with it, wherever it is mapped next.

use super::{Block, Memory, POISON, Pinned};
use crate::error::{Fail, Result, code};
use std::sync::Arc;

/// What sizes and addresses of mappings are multiples of, and of those with pages of 1 GB.
pub(crate) const GRANULARITY: usize = 2 << 20;
pub(crate) const HUGE_GRANULARITY: usize = 1 << 30;

/// Physical memory.
pub(super) struct Physical {
    device: usize,
    bytes: usize,
    call: u64,
    /// Where it is mapped.
    at: Option<usize>,
    /// What it holds while it is not; nothing before the first time.
    content: Option<Vec<u8>>,
}

impl Memory {
    /// Reserves addresses, of which none can be used before something is mapped there.
    pub(crate) fn reserve(&mut self, device: usize, bytes: usize, call: u64) -> Result<usize> {
        if bytes == 0 || !bytes.is_multiple_of(GRANULARITY) {
            return Err(Fail::parameter(format!("{bytes} bytes are not a multiple of {GRANULARITY}")));
        }
        let room = bytes.checked_add(GRANULARITY).and_then(|room| self.place(device, room));
        let Some(start) = room else {
            return Err(Fail::new(
                code::RT_DEVICE_OUT_OF_MEMORY,
                "the device has no such range of addresses",
            ));
        };
        let start = start.next_multiple_of(GRANULARITY);
        self.reserved.insert(start, (bytes, device, call));
        Ok(start)
    }

    /// Gives reserved addresses back.
    pub(crate) fn release(&mut self, address: usize) -> Result {
        let Some(&(bytes, ..)) = self.reserved.get(&address) else {
            return Err(Fail::parameter(format!("{address:#x} was not given by aclrtReserveMemAddress")));
        };
        let mapped = self.live.range(address..address + bytes).count();
        if mapped > 0 {
            return Err(Fail::parameter(format!("{mapped} mappings are still in the range")));
        }
        self.reserved.remove(&address);
        Ok(())
    }

    /// New physical memory, under a number.
    pub(crate) fn make_physical(&mut self, number: u64, device: usize, bytes: usize, call: u64) -> Result {
        if bytes == 0 || !bytes.is_multiple_of(GRANULARITY) {
            return Err(Fail::parameter(format!("{bytes} bytes are not a multiple of {GRANULARITY}")));
        }
        let room = self.limit - self.used[device];
        if bytes > room {
            let text = format!("device {device} has {room} of {} bytes, {bytes} were asked for", self.limit);
            return Err(Fail::new(code::RT_DEVICE_OUT_OF_MEMORY, text));
        }
        self.used[device] += bytes;
        self.physical.insert(number, Physical { device, bytes, call, at: None, content: None });
        Ok(())
    }

    /// Ends physical memory.
    pub(crate) fn free_physical(&mut self, number: u64) -> Result {
        let Some(physical) = self.physical.get(&number) else { return Err(gone()) };
        if let Some(at) = physical.at {
            return Err(Fail::parameter(format!("it is still mapped at {at:#x}; unmap it first")));
        }
        self.used[physical.device] -= physical.bytes;
        self.physical.remove(&number);
        Ok(())
    }

    /// Maps physical memory, whole, to reserved addresses.
    pub(crate) fn map_physical(&mut self, address: usize, bytes: usize, number: u64) -> Result {
        let Some(physical) = self.physical.get(&number) else { return Err(gone()) };
        if let Some(at) = physical.at {
            let text =
                format!("it is mapped at {at:#x}; a second mapping of the same memory is not simulated");
            return Err(Fail::new(code::RT_FEATURE_NOT_SUPPORT, text));
        }
        if bytes != physical.bytes || !address.is_multiple_of(GRANULARITY) {
            let text =
                format!("{bytes} bytes at {address:#x} for physical memory of {} bytes", physical.bytes);
            return Err(Fail::parameter(format!("{text}; addresses are multiples of {GRANULARITY}")));
        }
        let (device, call) = (physical.device, physical.call);
        let range = self.reserved.range(..=address).next_back();
        let inside = range.is_some_and(|(&start, &(room, owner, _))| {
            owner == device && address - start < room && bytes <= room - (address - start)
        });
        if !inside {
            return Err(Fail::parameter(format!(
                "{bytes} bytes at {address:#x} lie in no reserved range of the device"
            )));
        }
        let before = self.live.range(..address + bytes).next_back();
        if before.is_some_and(|(_, block)| block.address + block.bytes > address) {
            return Err(Fail::parameter(format!(
                "something is mapped in {bytes} bytes at {address:#x} already"
            )));
        }
        let content = self.physical.get_mut(&number).and_then(|physical| {
            physical.at = Some(address);
            physical.content.take()
        });
        match content {
            None => self.arena.fill(address, bytes, POISON),
            // SAFETY: the range lies in the arena, and is nobody else's.
            Some(content) => unsafe {
                self.arena.pointer(address).copy_from_nonoverlapping(content.as_ptr(), bytes);
            },
        }
        self.made += 1;
        let (region, physical) = ((address, address + bytes), Some(number));
        let block = Block {
            address,
            bytes,
            padded: bytes,
            device,
            number: self.made,
            call,
            region,
            physical,
            overrun: false,
        };
        self.live.insert(address, block);
        Ok(())
    }

    /// Takes a mapping back.
    pub(crate) fn unmap_physical(&mut self, address: usize, call: u64) -> Result {
        let number = self.live.get(&address).and_then(|block| block.physical);
        let (Some(number), Some(block)) = (number, self.live.get(&address)) else {
            return Err(Fail::parameter(format!("nothing was mapped at {address:#x} with aclrtMapMem")));
        };
        let mut content = vec![0; block.bytes];
        // SAFETY: the range lies in one living mapping.
        unsafe { content.as_mut_ptr().copy_from_nonoverlapping(self.arena.pointer(address), content.len()) };
        self.arena.discard(address, content.len());
        if let Some(block) = self.live.remove(&address) {
            self.freed.insert(address, (block, call));
        }
        if let Some(physical) = self.physical.get_mut(&number) {
            (physical.at, physical.content) = (None, Some(content));
        }
        Ok(())
    }

    /// Where the bytes from a block on end: mappings that lie side by side go on into each other.
    pub(super) fn end_of(&self, block: &Block) -> usize {
        let mut end = if block.overrun { block.region.1 } else { block.address + block.bytes };
        if block.physical.is_some() {
            while let Some(next) = self.live.get(&end).filter(|next| next.physical.is_some()) {
                end += next.bytes;
            }
        }
        end
    }

    /// Takes back everything that was put together by hand on a device.
    pub(super) fn forget_mappings(&mut self, device: usize, call: u64) {
        let mapped = self.live.values().filter(|block| block.device == device && block.physical.is_some());
        for address in mapped.map(|block| block.address).collect::<Vec<_>>() {
            // It is mapped.
            let _ = self.unmap_physical(address, call);
        }
        let freed: usize = self.physical.values().filter(|p| p.device == device).map(|p| p.bytes).sum();
        self.used[device] -= freed;
        self.physical.retain(|_, physical| physical.device != device);
        self.reserved.retain(|_, (_, owner, _)| *owner != device);
    }

    /// Treats memory of the program as pinned.
    pub(crate) fn register_host(&mut self, address: usize, bytes: usize) -> Result {
        if bytes == 0 {
            return Err(Fail::parameter("size is 0"));
        }
        let end = address.checked_add(bytes).filter(|_| !self.arena.contains(address));
        let end =
            end.ok_or_else(|| Fail::parameter(format!("{bytes} bytes at {address:#x} are no host memory")))?;
        let before = self.pinned.range(..end).next_back();
        if before.is_some_and(|(_, pinned)| pinned.address + pinned.bytes > address) {
            return Err(Fail::parameter("a part of it is pinned or registered already"));
        }
        self.pinned.insert(address, Arc::new(Pinned { address, bytes, registered: true }));
        Ok(())
    }

    /// Takes a registration back.
    pub(crate) fn unregister_host(&mut self, address: usize) -> Result {
        self.release_host(address, true)
    }

    /// Whose an address is: the device's number, or `None` of pinned or registered host memory.
    pub(crate) fn location(&self, address: usize) -> Option<Option<usize>> {
        match self.holder(address) {
            Some(block) => Some(Some(block.device)),
            None => self.pinned(address, 1).map(|_| None),
        }
    }
}

fn gone() -> Fail {
    Fail::new(code::RT_INVALID_HANDLE, "the physical memory was freed")
}
