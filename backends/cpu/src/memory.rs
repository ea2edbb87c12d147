//! Device memory of the CPU: anonymous mappings within a limit.

use memmap2::{MmapMut, MmapOptions};
use portolan_core::sync::atomic::{AtomicUsize, Ordering};
use portolan_core::{Launch, Memory, MemoryInfo, MemoryTraits, Ordinal, RawCopy, Segment};
use portolan_ops::{DeviceId, OpError, Result};

use crate::CpuBackend;
use crate::queue::CpuStream;

/// Cache line, and the widest vector load.
const ALIGNMENT: usize = 64;

/// How many bytes are reserved, and how many may be.
pub(crate) struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(limit: Option<usize>) -> Self {
        Self { limit: limit.unwrap_or_else(|| available_bytes() / 10 * 8), used: AtomicUsize::new(0) }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    fn free(&self) -> usize {
        self.limit.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    fn take(&self, bytes: usize) -> bool {
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|&sum| sum <= self.limit)
        });
        taken.is_ok()
    }
}

/// What the system says is available; a careful guess where it does not say.
fn available_bytes() -> usize {
    let parse = |text: String| -> Option<usize> {
        let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
        line.split_whitespace().nth(1)?.parse::<usize>().ok()?.checked_mul(1024)
    };
    std::fs::read_to_string("/proc/meminfo").ok().and_then(parse).unwrap_or(4 << 30)
}

impl CpuBackend {
    fn out_of_memory(&self, device: Ordinal, requested: usize) -> OpError {
        OpError::OutOfMemory {
            device: DeviceId::new("cpu", device),
            requested,
            free: self.budget.free(),
            total: self.budget.limit(),
            holders: Vec::new(),
        }
    }
}

impl Memory for CpuBackend {
    fn traits(&self, _device: Ordinal) -> MemoryTraits {
        MemoryTraits { alignment: ALIGNMENT, tail_padding: 0 }
    }

    fn reserve(&self, device: Ordinal, bytes: usize) -> Result<Segment> {
        if !self.budget.take(bytes) {
            return Err(self.out_of_memory(device, bytes));
        }
        let mapped = MmapOptions::new().len(bytes).map_anon();
        let Ok(mut map) = mapped else {
            self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(self.out_of_memory(device, bytes));
        };
        // Large pages save translation misses on weights; where the kernel has none, nothing changes.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Segment { address: map.as_mut_ptr() as usize, bytes, handle: Box::new(map) })
    }

    fn release(&self, _device: Ordinal, segment: Segment) -> Result<()> {
        let bytes = segment.bytes;
        match segment.handle.downcast::<MmapMut>() {
            Ok(map) => drop(map),
            Err(_) => return Err(OpError::internal("release", "the segment is not one of the cpu backend")),
        }
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn copy(&self, launch: &Launch<'_>, copy: RawCopy) -> Result<()> {
        CpuStream::enqueue(launch, move |_| {
            match copy {
                // SAFETY: core checked that the range lies in a live block that this stream's order
                // protects; the host buffer is owned by this task and as long as the range.
                RawCopy::Upload { host, address } => unsafe {
                    core::ptr::copy_nonoverlapping(
                        host.address().cast_const(),
                        address as *mut u8,
                        host.len(),
                    );
                },
                // SAFETY: as above; nobody reads the host buffer before this copy's event.
                RawCopy::Download { address, host } => unsafe {
                    core::ptr::copy_nonoverlapping(address as *const u8, host.address(), host.len());
                },
            }
            Ok(())
        })
    }

    fn memory_info(&self, _device: Ordinal) -> Result<MemoryInfo> {
        Ok(MemoryInfo { free: self.budget.free(), total: self.budget.limit() })
    }
}
