//! Allocations.

use crate::call::{driver, give};
use crate::error::{Fail, Result, code};
use crate::profile::Family;
use crate::stream::Point;
use crate::world::world;
use std::ffi::c_void;

/// Allocates on the current device.
///
/// # Safety
/// `place` is NULL or may be written.
unsafe fn allocate(place: *mut *mut c_void, bytes: usize, policy: i32) -> Result {
    let mut state = world().state();
    let (_, device) = state.current()?;
    match policy {
        0..=5 => {}
        6 | 7 if state.profile.family != Family::A5 => {}
        6 | 7 => return Err(Fail::new(code::RT_FEATURE_NOT_SUPPORT, "this product has no pages of 1 GB")),
        _ => return Err(Fail::parameter(format!("policy {policy} is unknown"))),
    }
    if place.is_null() {
        return Err(Fail::parameter("the place for the address is NULL"));
    }
    let call = state.log.last();
    let address = state.memory.allocate(device, bytes, call)?;
    // SAFETY: as the caller of this function says.
    unsafe { give(place, core::ptr::without_provenance_mut(address), "address") }
}

fn free(address: *mut c_void) -> Result {
    let mut state = world().state();
    state.current()?;
    if address.is_null() {
        return Err(Fail::parameter("the address is NULL"));
    }
    let call = state.log.last();
    state.memory.free(address.addr(), call)
}

driver! {
    fn aclrtMalloc(address: *mut *mut c_void, size: usize, policy: i32) {
        // SAFETY: the caller's place for the result.
        unsafe { allocate(address, size, policy) }
    }

    fn aclrtMallocAlign32(address: *mut *mut c_void, size: usize, policy: i32) {
        // SAFETY: the caller's place for the result.
        unsafe { allocate(address, size, policy) }
    }

    fn aclrtMallocCached(address: *mut *mut c_void, size: usize, policy: i32) {
        // SAFETY: the caller's place for the result.
        unsafe { allocate(address, size, policy) }
    }

    fn aclrtMallocWithCfg(address: *mut *mut c_void, size: usize, policy: i32, config: *mut c_void) {
        if !config.is_null() {
            return Err(Fail::new(code::RT_FEATURE_NOT_SUPPORT, "attributes of an allocation are not simulated"));
        }
        // SAFETY: the caller's place for the result.
        unsafe { allocate(address, size, policy) }
    }

    fn aclrtFree(address: *mut c_void) {
        free(address)
    }

    fn aclrtFreeWithDevSync(address: *mut c_void) {
        let state = world().state();
        let (_, device) = state.current()?;
        let streams = state.streams.iter().filter(|(_, stream)| stream.device == device);
        let goals: Vec<Point> =
            streams.map(|(&id, stream)| Point { stream: id, seq: stream.submitted }).collect();
        drop(world().reach(state, &goals, None)?);
        free(address)
    }

    fn aclrtMallocHost(address: *mut *mut c_void, size: usize) {
        let mut state = world().state();
        state.current()?;
        if address.is_null() {
            return Err(Fail::parameter("the place for the address is NULL"));
        }
        let pinned = state.memory.pin(size)?;
        // SAFETY: not NULL, and the caller's place for the result.
        unsafe { give(address, core::ptr::with_exposed_provenance_mut(pinned), "address") }
    }

    fn aclrtFreeHost(address: *mut c_void) {
        let mut state = world().state();
        state.current()?;
        if address.is_null() {
            return Err(Fail::parameter("the address is NULL"));
        }
        state.memory.unpin(address.addr())
    }

    fn aclrtGetMemInfo(attribute: i32, free: *mut usize, total: *mut usize) {
        let state = world().state();
        let (_, device) = state.current()?;
        // DDR is another memory of other products; every attribute of HBM and of all memory is the same one here.
        if !matches!(attribute, 0..=17) {
            return Err(Fail::parameter(format!("attribute {attribute} is unknown")));
        }
        let (free_bytes, total_bytes) = state.memory.info(device);
        // SAFETY: the caller's places for the results.
        unsafe {
            give(free, free_bytes, "free")?;
            give(total, total_bytes, "total")
        }
    }
}
