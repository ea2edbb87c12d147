//! Device memory as the driver hands it out, pinned host memory, and copies between the two.

use crate::CannBackend;
use crate::context::OnDevice;
use crate::driver::{Driver, call, try_call};
use crate::error;
use crate::product::Product;
use crate::queue::CannStream;
use portolan_cann_sys::bindings::{
    ACL_DDR_MEM, ACL_HBM_MEM, ACL_MEM_MALLOC_HUGE_FIRST, ACL_MEMCPY_HOST_TO_DEVICE,
};
use portolan_core::sync::atomic::Ordering;
use portolan_core::sync::lock;
use portolan_core::{Launch, Memory, MemoryInfo, MemoryTraits, Ordinal, RawCopy, Segment};
use portolan_ops::{DeviceId, OpError, Result};
use std::sync::Arc;

/// What the driver's addresses are multiples of, and what its own padding is counted from.
const ALIGNMENT: usize = 64;
/// Pinned memory comes in powers of two from here, so that few sizes serve many copies.
const SMALLEST_PINNED: usize = 4 << 10;
/// A copy goes in pieces of so many bytes, so that a model's weights take no more host memory than a few of them.
pub(crate) const PIECE: usize = 16 << 20;
/// So many bytes of a device's pinned memory may be in flight; a copy beyond waits for earlier ones of its stream.
const MOST_IN_FLIGHT: usize = 64 << 20;
/// So many bytes that nobody uses are kept on each device.
const MOST_KEPT_BYTES: usize = 64 << 20;
/// So many pieces are kept on each device.
const MOST_KEPT: usize = 64;

/// Free and total bytes of a device.
pub(crate) fn info(driver: &Arc<Driver>, device: Ordinal) -> Result<MemoryInfo> {
    let on = OnDevice::enter(driver, device)?;
    // Inference cards have no HBM.
    let attribute = if driver.product() == Product::P310 { ACL_DDR_MEM } else { ACL_HBM_MEM };
    let (mut free, mut total) = (0, 0);
    call!(on.driver, device, aclrtGetMemInfo(attribute, &mut free, &mut total))?;
    Ok(MemoryInfo { free, total })
}

/// Device memory of the driver's own making.
pub(crate) fn take(driver: &Arc<Driver>, device: Ordinal, bytes: usize) -> Result<usize> {
    let on = OnDevice::enter(driver, device)?;
    let mut address = core::ptr::null_mut();
    let taken = try_call!(on.driver, aclrtMalloc(&mut address, bytes, ACL_MEM_MALLOC_HUGE_FIRST));
    match taken.map_err(error::unavailable)? {
        Ok(()) => Ok(address.addr()),
        Err(failed) if error::is_out_of_memory(&failed) => {
            let MemoryInfo { free, total } = info(driver, device)?;
            let device = DeviceId::new("cann", device);
            Err(OpError::OutOfMemory { device, requested: bytes, free, total, holders: Vec::new() })
        }
        Err(failed) => Err(error::driver(device, failed)),
    }
}

/// Device memory with these bytes in it, before anything that is enqueued from now on.
pub(crate) fn constant(on: &OnDevice<'_>, bytes: &[u8]) -> Result<usize> {
    // Vector units may read past the end.
    let room = bytes.len() + on.driver.product().tail_padding();
    let address = take(on.driver, on.device, room)?;
    let to = core::ptr::without_provenance_mut(address);
    let (from, kind) = (bytes.as_ptr().cast(), ACL_MEMCPY_HOST_TO_DEVICE);
    let copied = call!(on.driver, on.device, aclrtMemcpy(to, room, from, bytes.len(), kind));
    match copied {
        Ok(()) => Ok(address),
        Err(error) => {
            // The copy's error is what is told.
            let _ = call!(on.driver, on.device, aclrtFree(to));
            Err(error)
        }
    }
}

impl Memory for CannBackend {
    fn traits(&self, _device: Ordinal) -> MemoryTraits {
        // Without a driver there are no devices, and nobody to ask.
        let padding = self.driver().map_or(0, |driver| driver.product().tail_padding());
        MemoryTraits { alignment: ALIGNMENT, tail_padding: padding }
    }

    fn reserve(&self, device: Ordinal, bytes: usize) -> Result<Segment> {
        Ok(Segment { address: take(self.driver()?, device, bytes)?, bytes, handle: Box::new(()) })
    }

    fn release(&self, device: Ordinal, segment: Segment) -> Result<()> {
        let on = OnDevice::enter(self.driver()?, device)?;
        call!(on.driver, device, aclrtFree(core::ptr::without_provenance_mut(segment.address)))
    }

    fn copy(&self, launch: &Launch<'_>, copy: RawCopy) -> Result<()> {
        let stream = CannStream::of(launch)?;
        match copy {
            RawCopy::Upload { host, address } => stream.upload(launch, &host, address),
            RawCopy::Download { address, host } => stream.download(launch, address, host),
        }
    }

    fn memory_info(&self, device: Ordinal) -> Result<MemoryInfo> {
        info(self.driver()?, device)
    }
}

/// Host memory that the device may read and write by itself.
pub(crate) struct PinnedBytes {
    pub(crate) address: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory that one owner at a time touches.
unsafe impl Send for PinnedBytes {}
// SAFETY: as above.
unsafe impl Sync for PinnedBytes {}

impl PinnedBytes {
    /// At least `bytes` bytes: kept ones, or new ones.
    pub(crate) fn take(on: &OnDevice<'_>, bytes: usize) -> Result<Self> {
        let size = bytes.max(SMALLEST_PINNED);
        let size = if size <= PIECE { size.next_power_of_two() } else { size };
        on.driver.device(on.device)?.staged.fetch_add(size, Ordering::Relaxed);
        {
            let mut kept = lock(&on.driver.device(on.device)?.idle_pinned);
            if let Some(at) = kept.iter().position(|pinned| pinned.bytes == size) {
                return Ok(kept.swap_remove(at));
            }
        }
        let mut address = core::ptr::null_mut();
        call!(on.driver, on.device, aclrtMallocHost(&mut address, size)).inspect_err(|_| {
            let _ =
                on.driver.device(on.device).map(|device| device.staged.fetch_sub(size, Ordering::Relaxed));
        })?;
        Ok(Self { address: address.cast(), bytes: size })
    }

    /// Whether a piece of so many bytes would go beyond what may be in flight.
    pub(crate) fn must_wait(on: &OnDevice<'_>, bytes: usize) -> Result<bool> {
        Ok(on.driver.device(on.device)?.staged.load(Ordering::Relaxed) + bytes > MOST_IN_FLIGHT)
    }

    /// Gives memory back that no copy uses any more.
    pub(crate) fn give_back(self, on: &OnDevice<'_>) -> Result<()> {
        let device = on.driver.device(on.device)?;
        device.staged.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.bytes <= PIECE {
            let mut kept = lock(&device.idle_pinned);
            let bytes: usize = kept.iter().map(|pinned| pinned.bytes).sum();
            if kept.len() < MOST_KEPT && bytes + self.bytes <= MOST_KEPT_BYTES {
                kept.push(self);
                return Ok(());
            }
        }
        call!(on.driver, on.device, aclrtFreeHost(self.address.cast()))
    }
}
