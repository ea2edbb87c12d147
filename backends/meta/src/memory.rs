//! Device memory that is not there: addresses that nobody follows, within a limit that is kept.

use crate::MetaBackend;
use portolan_core::sync::{Mutex, lock};
use portolan_core::{Launch, Memory, MemoryInfo, MemoryTraits, Ordinal, RawCopy, Segment};
use portolan_ops::{DeviceId, OpError, Result, Unsupported};

/// Every segment starts on a multiple of this: a page, as drivers give them.
const ALIGNMENT: usize = 4096;
/// The first address: one that no process maps, so that a kernel that followed it would fault at once.
const BASE: usize = 1 << (usize::BITS - 4);
/// Bytes the device has where nobody says: beyond any real one, and few enough that sums cannot overflow.
const LIMIT: usize = 1 << (usize::BITS - 14);

/// Which addresses are taken.
pub(crate) struct Space {
    limit: usize,
    taken: Mutex<Taken>,
}

struct Taken {
    bytes: usize,
    next: usize,
}

impl Space {
    pub(crate) fn new(limit: Option<usize>) -> Self {
        Self { limit: limit.unwrap_or(LIMIT).min(LIMIT), taken: Mutex::new(Taken { bytes: 0, next: BASE }) }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    fn free(&self) -> usize {
        self.limit.saturating_sub(lock(&self.taken).bytes)
    }

    /// Addresses that no living segment has; `None` when the limit or the addresses are used up.
    fn take(&self, bytes: usize) -> Option<usize> {
        let taken = &mut *lock(&self.taken);
        let sum = taken.bytes.checked_add(bytes).filter(|&sum| sum <= self.limit)?;
        let next = taken.next.checked_add(bytes)?.checked_next_multiple_of(ALIGNMENT)?;
        taken.bytes = sum;
        Some(std::mem::replace(&mut taken.next, next))
    }

    fn give_back(&self, bytes: usize) {
        let taken = &mut *lock(&self.taken);
        taken.bytes = taken.bytes.saturating_sub(bytes);
        if taken.bytes == 0 {
            // Nobody holds an address, so all may be had again.
            taken.next = BASE;
        }
    }
}

impl Memory for MetaBackend {
    fn traits(&self, _device: Ordinal) -> MemoryTraits {
        // The least that any device asks for: what is counted is the program's need and no vendor's padding.
        MemoryTraits { alignment: 1, tail_padding: 0 }
    }

    fn reserve(&self, device: Ordinal, bytes: usize) -> Result<Segment> {
        match self.space.take(bytes) {
            Some(address) => Ok(Segment { address, bytes, handle: Box::new(()) }),
            None => Err(OpError::OutOfMemory {
                device: DeviceId::new("meta", device),
                requested: bytes,
                free: self.space.free(),
                total: self.space.limit(),
                holders: Vec::new(),
            }),
        }
    }

    fn release(&self, _device: Ordinal, segment: Segment) -> Result<()> {
        self.space.give_back(segment.bytes);
        Ok(())
    }

    fn copy(&self, launch: &Launch<'_>, copy: RawCopy) -> Result<()> {
        match copy {
            RawCopy::Upload { .. } => Ok(()),
            RawCopy::Download { .. } => {
                let hint = "run on a device that computes";
                Err(launch.unsupported("download".into(), Unsupported::NoData, hint))
            }
        }
    }

    fn memory_info(&self, _device: Ordinal) -> Result<MemoryInfo> {
        Ok(MemoryInfo { free: self.space.free(), total: self.space.limit() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn living_segments_share_no_address_and_the_limit_is_kept() {
        let space = Space::new(Some(10_000));
        let a = space.take(5000).unwrap();
        let b = space.take(4000).unwrap();
        assert!(b >= a + 5000 && b.is_multiple_of(ALIGNMENT));
        assert_eq!((space.take(1001), space.free()), (None, 1000));
        space.give_back(5000);
        assert!(space.take(5000).unwrap() >= b + 4000, "{b:#x} is alive");
    }

    #[test]
    fn addresses_do_not_run_out_over_time() {
        let space = Space::new(None);
        for _ in 0..100_000 {
            assert_eq!(space.take(LIMIT), Some(BASE));
            space.give_back(LIMIT);
        }
        assert_eq!(space.take(LIMIT + 1), None);
    }
}
