//! Addresses and physical memory that programs put together, host memory that they register, and whose an address is.

use crate::call::{driver, give};
use crate::error::{Fail, Result, code};
use crate::memory::{GRANULARITY, HUGE_GRANULARITY};
use crate::profile::Family;
use crate::world::{Kind, State, handle, number_of, world};
use std::ffi::c_void;

/// `aclrtPhysicalMemProp`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Properties {
    handle_type: i32,
    allocation_type: i32,
    attribute: i32,
    location: Location,
    reserve: u64,
}

/// `aclrtMemLocation`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Location {
    id: u32,
    kind: i32,
}

/// `aclrtPtrAttributes`.
#[repr(C)]
struct Attributes {
    location: Location,
    page_bytes: u32,
    reserve: [u32; 4],
}

/// `aclrtMemLocationType`.
const HOST: i32 = 0;
const DEVICE: i32 = 1;
const UNREGISTERED: i32 = 2;
/// `aclrtMemAttr`: pages of 1 GB.
const HUGE_1G: [i32; 2] = [14, 17];

/// The device of physical memory to be, and what its sizes are multiples of.
///
/// # Safety
/// `properties` is NULL or may be read.
unsafe fn read(state: &State, properties: *const c_void) -> Result<(usize, usize)> {
    if properties.is_null() {
        return Err(Fail::parameter("the properties are NULL"));
    }
    // SAFETY: not NULL, and as the caller of this function says.
    let properties = unsafe { properties.cast::<Properties>().read_unaligned() };
    let Properties { handle_type, allocation_type, attribute, location, .. } = properties;
    if handle_type != 0 {
        let text = format!("handle type {handle_type}; memory of other processes is not simulated");
        return Err(Fail::new(code::RT_FEATURE_NOT_SUPPORT, text));
    }
    if allocation_type != 0 || location.kind != DEVICE {
        let text = format!(
            "allocation type {allocation_type} at location type {}; 0 and 1 are known",
            location.kind
        );
        return Err(Fail::parameter(text));
    }
    let granularity = match attribute {
        14 | 17 if state.profile.family == Family::A5 => {
            return Err(Fail::new(code::RT_FEATURE_NOT_SUPPORT, "this product has no pages of 1 GB"));
        }
        attribute if HUGE_1G.contains(&attribute) => HUGE_GRANULARITY,
        0..=17 => GRANULARITY,
        _ => return Err(Fail::parameter(format!("memory attribute {attribute} is unknown"))),
    };
    Ok((state.device(location.id.into())?, granularity))
}

driver! {
    fn aclrtMemGetAllocationGranularity(properties: *mut c_void, option: i32, granularity: *mut usize) {
        let state = world().state();
        state.current()?;
        if !matches!(option, 0 | 1) {
            return Err(Fail::parameter(format!("option {option}; 0 is the least, 1 the recommended")));
        }
        // SAFETY: the caller's properties, and its place for the result.
        unsafe {
            let (_, bytes) = read(&state, properties)?;
            give(granularity, bytes, "granularity")
        }
    }

    fn aclrtReserveMemAddress(address: *mut *mut c_void, size: usize, alignment: usize, expected: *mut c_void, flags: u64) {
        let mut state = world().state();
        let (_, device) = state.current()?;
        if alignment != 0 || flags > 1 {
            return Err(Fail::parameter(format!("alignment {alignment} and flags {flags}; 0 and 0 or 1 are known")));
        }
        if !expected.is_null() {
            return Err(Fail::new(code::RT_FEATURE_NOT_SUPPORT, "a wish for an address is not simulated"));
        }
        if address.is_null() {
            return Err(Fail::parameter("the place for the address is NULL"));
        }
        let call = state.log.last();
        let reserved = state.memory.reserve(device, size, call)?;
        // SAFETY: not NULL, and the caller's place for the result.
        unsafe { give(address, core::ptr::without_provenance_mut(reserved), "address") }
    }

    fn aclrtReleaseMemAddress(address: *mut c_void) {
        let mut state = world().state();
        state.current()?;
        state.memory.release(address.addr())
    }

    fn aclrtMallocPhysical(physical: *mut *mut c_void, size: usize, properties: *const c_void, flags: u64) {
        let mut state = world().state();
        state.current()?;
        if physical.is_null() || flags != 0 {
            return Err(Fail::parameter(format!("the place for the handle is NULL, or flags {flags} are not 0")));
        }
        // SAFETY: the caller's properties.
        let (device, granularity) = unsafe { read(&state, properties) }?;
        if !size.is_multiple_of(granularity) {
            return Err(Fail::parameter(format!("{size} bytes are not a multiple of {granularity}")));
        }
        let (number, call) = (state.number(), state.log.last());
        state.memory.make_physical(number, device, size, call)?;
        // SAFETY: not NULL, and the caller's place for the result.
        unsafe { give(physical, handle(Kind::Physical, number), "physical") }
    }

    fn aclrtFreePhysical(physical: *mut c_void) {
        let mut state = world().state();
        state.current()?;
        let number = number_of(Kind::Physical, physical)?;
        state.memory.free_physical(number)
    }

    fn aclrtMapMem(address: *mut c_void, size: usize, offset: usize, physical: *mut c_void, flags: u64) {
        let mut state = world().state();
        state.current()?;
        if offset != 0 || flags != 0 {
            return Err(Fail::parameter(format!("offset {offset} and flags {flags}; both have to be 0")));
        }
        let number = number_of(Kind::Physical, physical)?;
        state.memory.map_physical(address.addr(), size, number)
    }

    fn aclrtUnmapMem(address: *mut c_void) {
        let mut state = world().state();
        state.current()?;
        let call = state.log.last();
        state.memory.unmap_physical(address.addr(), call)
    }

    fn aclrtHostRegister(host: *mut c_void, size: u64, kind: i32, device: *mut *mut c_void) {
        let mut state = world().state();
        state.current()?;
        if kind != 0 {
            return Err(Fail::parameter(format!("registration type {kind}; 0 maps the memory for the device")));
        }
        if host.is_null() || device.is_null() {
            return Err(Fail::parameter("the memory, or the place for its device address, is NULL"));
        }
        let bytes = usize::try_from(size).map_err(|_| Fail::parameter(format!("{size} bytes")))?;
        state.memory.register_host(host.expose_provenance(), bytes)?;
        // SAFETY: not NULL, and the caller's place for the result.
        unsafe { give(device, host, "device") }
    }

    fn aclrtHostUnregister(host: *mut c_void) {
        let mut state = world().state();
        state.current()?;
        state.memory.unregister_host(host.addr())
    }

    fn aclrtPointerGetAttributes(address: *const c_void, attributes: *mut c_void) {
        let state = world().state();
        state.current()?;
        if address.is_null() {
            return Err(Fail::parameter("the address is NULL"));
        }
        let (id, kind, page_bytes) = match state.memory.location(address.addr()) {
            Some(Some(device)) => (u32::try_from(device).unwrap_or(u32::MAX), DEVICE, 2 << 20),
            Some(None) => (0, HOST, 4096),
            None => (0, UNREGISTERED, 0),
        };
        let location = Location { id, kind };
        // SAFETY: the caller's place for the result.
        unsafe { give(attributes.cast(), Attributes { location, page_bytes, reserve: [0; 4] }, "attributes") }
    }
}
