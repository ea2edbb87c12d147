//! Memory that programs put together themselves: reserved addresses, physical memory, mappings; registered host memory.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_cann_sys::bindings::*;
use portolan_cann_sys::sim::Adversary;
use rig::{World, call, operator};
use std::ffi::c_void;
use std::ptr::null_mut;

const MB: usize = 1 << 20;

fn properties(device: u32, attribute: aclrtMemAttr) -> aclrtPhysicalMemProp {
    aclrtPhysicalMemProp {
        handleType: ACL_MEM_HANDLE_TYPE_NONE,
        allocationType: ACL_MEM_ALLOCATION_TYPE_PINNED,
        memAttr: attribute,
        location: aclrtMemLocation { id: device, type_: ACL_MEM_LOCATION_TYPE_DEVICE },
        reserve: 0,
    }
}

impl World {
    fn reserve(&self, bytes: usize) -> *mut c_void {
        let mut range = null_mut();
        assert_eq!(call!(self.runtime(), aclrtReserveMemAddress(&mut range, bytes, 0, null_mut(), 0)), 0);
        range
    }

    fn physical(&self, bytes: usize) -> aclrtDrvMemHandle {
        let (mut memory, properties) = (null_mut(), properties(0, ACL_HBM_MEM_HUGE));
        let code = call!(self.runtime(), aclrtMallocPhysical(&mut memory, bytes, &properties, 0));
        assert_eq!(code, 0, "{}", self.message());
        memory
    }

    fn map(&self, at: *mut c_void, bytes: usize, memory: aclrtDrvMemHandle) -> i32 {
        call!(self.runtime(), aclrtMapMem(at, bytes, 0, memory, 0))
    }
}

#[test]
fn a_pool_grows_in_place_and_what_memory_holds_goes_with_it() {
    let world = World::against(Adversary::Late, 0);
    let runtime = world.runtime();
    let (range, first, second) = (world.reserve(8 * MB), world.physical(2 * MB), world.physical(4 * MB));
    assert_eq!(range.addr() % (2 * MB), 0);
    assert_eq!(world.map(range, 2 * MB, first), 0, "{}", world.message());
    assert_eq!(world.read::<u8>(range, 3), [0xff; 3]);
    let edge = range.wrapping_byte_add(2 * MB - 32);
    let from = world.pinned(&[1f32; 16]);
    // Over the edge of what is mapped.
    assert_eq!(world.copy(edge, from, 64, null_mut()), 107000);
    assert_eq!(world.map(range.wrapping_byte_add(2 * MB), 4 * MB, second), 0);
    assert_eq!(world.copy(edge, from, 64, null_mut()), 0, "{}", world.message());
    // A tensor across both.
    let (x, out) = (world.tensor(ACL_FLOAT, &[16], edge), world.memory(64));
    let y = world.tensor(ACL_FLOAT, &[16], out);
    assert_eq!(operator!(world, null_mut(), aclnnNegGetWorkspaceSize, aclnnNeg, x, y), 0);
    assert_eq!(world.synchronize(null_mut()), 0, "{}", world.message());
    assert_eq!(world.floats(out, 16), [-1.0; 16]);
    // The second moves behind, and takes its half along.
    let later = range.wrapping_byte_add(4 * MB);
    assert_eq!(call!(runtime, aclrtUnmapMem(range.wrapping_byte_add(2 * MB))), 0);
    assert_eq!(world.map(later, 4 * MB, second), 0);
    assert_eq!(world.floats(later, 9)[..8], [1.0; 8]);
    assert!(world.floats(later, 9)[8].is_nan());
    for (at, memory) in [(range, first), (later, second)] {
        assert_eq!(call!(runtime, aclrtUnmapMem(at)), 0);
        assert_eq!(call!(runtime, aclrtFreePhysical(memory)), 0);
    }
    assert_eq!(call!(runtime, aclrtReleaseMemAddress(range)), 0);
}

#[test]
fn mappings_that_make_no_sense_are_refused() {
    let world = World::of("A3");
    let runtime = world.runtime();
    let mut place = null_mut();
    assert_eq!(call!(runtime, aclrtReserveMemAddress(&mut place, MB, 0, null_mut(), 0)), 107000);
    let (range, memory, other) = (world.reserve(4 * MB), world.physical(2 * MB), world.physical(2 * MB));
    assert_eq!(world.map(range, 4 * MB, memory), 107000);
    assert_eq!(world.map(range.wrapping_byte_add(MB), 2 * MB, memory), 107000);
    assert_eq!(world.map(range.wrapping_byte_add(4 * MB), 2 * MB, memory), 107000);
    assert_eq!(world.map(range, 2 * MB, memory), 0);
    assert_eq!(world.map(range.wrapping_byte_add(2 * MB), 2 * MB, memory), 207000);
    assert_eq!(world.map(range, 2 * MB, other), 107000);
    assert_eq!(call!(runtime, aclrtFree(range)), 107000);
    assert!(world.message().contains("aclrtUnmapMem"));
    assert_eq!(call!(runtime, aclrtFreePhysical(memory)), 107000);
    assert_eq!(call!(runtime, aclrtReleaseMemAddress(range)), 107000);
    let report = world.0.report().unwrap().to_string();
    assert!(report.contains("1 ranges of addresses") && report.contains("2 pieces of physical"), "{report}");
    assert_eq!(call!(runtime, aclrtUnmapMem(range)), 0);
    assert_eq!(call!(runtime, aclrtUnmapMem(range)), 107000);
    assert_eq!(call!(runtime, aclrtFreePhysical(memory)), 0);
    assert_eq!(call!(runtime, aclrtFreePhysical(memory)), 107017);
    // What is too much, and what is of a kind that the product or the simulator does not have.
    let mut wanted = properties(0, ACL_HBM_MEM_HUGE);
    let mut granularity = 0;
    let ask = |wanted: &mut aclrtPhysicalMemProp, granularity: &mut usize| {
        call!(runtime, aclrtMemGetAllocationGranularity(wanted, 0, granularity))
    };
    assert_eq!((ask(&mut wanted, &mut granularity), granularity), (0, 2 * MB));
    assert_eq!(call!(runtime, aclrtMallocPhysical(&mut place, 64 * MB, &wanted, 0)), 207018);
    wanted.memAttr = ACL_MEM_HUGE1G;
    assert_eq!((ask(&mut wanted, &mut granularity), granularity), (0, 1 << 30));
    wanted.handleType = ACL_MEM_HANDLE_TYPE_POSIX;
    assert_eq!(ask(&mut wanted, &mut granularity), 207000);
    assert_eq!(ask(&mut properties(7, ACL_HBM_MEM_HUGE), &mut granularity), 107001);
    let newest = World::of("950");
    let mut wanted = properties(0, ACL_MEM_HUGE1G);
    let code = call!(newest.runtime(), aclrtMemGetAllocationGranularity(&mut wanted, 1, &mut granularity));
    assert_eq!(code, 207000);
    // A reset takes everything back.
    assert_eq!(call!(runtime, aclrtResetDevice(0)), 0);
    assert!(world.0.report().unwrap().is_clean(), "{}", world.0.report().unwrap());
}

#[test]
fn work_in_memory_that_was_unmapped_is_a_fault_that_names_it() {
    let world = World::of("A3");
    let (range, memory, s) = (world.reserve(2 * MB), world.physical(2 * MB), world.stream());
    assert_eq!(world.map(range, 2 * MB, memory), 0);
    assert_eq!(world.copy(range, world.pinned(&[1f32]), 4, s), 0);
    assert_eq!(call!(world.runtime(), aclrtUnmapMem(range)), 0);
    assert_eq!(world.synchronize(s), 507015);
    assert!(world.message().contains("freed by call"), "{}", world.message());
}

#[test]
fn registered_host_memory_is_pinned_and_kernels_reach_it() {
    let world = World::of("A3");
    let (runtime, s) = (world.runtime(), world.stream());
    let mut host = vec![2f32; 64];
    let at: *mut c_void = host.as_mut_ptr().cast();
    let mut device = null_mut();
    assert_eq!(call!(runtime, aclrtHostRegister(at, 256, 0, &mut device)), 0, "{}", world.message());
    assert_eq!(call!(runtime, aclrtHostRegister(at.wrapping_byte_add(128), 8, 0, &mut device)), 107000);
    // The copy is not over when the call returns, as it would be from pageable memory.
    let out = world.memory(256);
    assert_eq!(world.copy(out, at, 256, s), 0);
    host.fill(3.0);
    assert_eq!(world.synchronize(s), 0);
    assert_eq!(world.floats(out, 64), [3.0; 64]);
    let attributes = |at: *mut c_void| -> (aclrtMemLocationType, u32) {
        let mut found =
            aclrtPtrAttributes { location: aclrtMemLocation { id: 9, type_: 9 }, pageSize: 9, rsv: [9; 4] };
        assert_eq!(call!(runtime, aclrtPointerGetAttributes(at, &mut found)), 0);
        (found.location.type_, found.location.id)
    };
    assert_eq!(attributes(at).0, ACL_MEM_LOCATION_TYPE_HOST);
    assert_eq!(attributes(out), (ACL_MEM_LOCATION_TYPE_DEVICE, 0));
    assert_eq!(attributes((&raw mut host).cast()).0, ACL_MEM_LOCATION_TYPE_UNREGISTERED);
    assert_eq!(call!(runtime, aclrtFreeHost(at)), 107000);
    assert_eq!(call!(runtime, aclrtHostUnregister(at)), 0);
    assert_eq!(call!(runtime, aclrtHostUnregister(at)), 107000);
    assert_eq!(attributes(at).0, ACL_MEM_LOCATION_TYPE_UNREGISTERED);
}
