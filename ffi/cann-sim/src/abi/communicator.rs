//! Communicators: how they are made, what they answer, how they end.

use crate::call::{driver, enter, give};
use crate::collective::{Root, Settings, describe, hccl, of_runtime, wrong};
use crate::error::{Fail, Result};
use crate::world::{Kind, handle, world};
use std::cell::Cell;
use std::ffi::{c_char, c_void};

/// Bytes of `HcclRootInfo`, and what the first of them say here.
const ROOT_INFO: usize = 4108;
const MARK: &[u8; 24] = b"simulated CANN root info";

/// Which world the information is of.
fn this_world() -> u64 {
    core::ptr::from_ref(world()).addr() as u64
}

/// # Safety
/// `info` is NULL or as long as `HcclRootInfo`.
unsafe fn read_root(info: *const c_void) -> Result<Root> {
    if info.is_null() {
        return Err(Fail::new(hccl::E_PTR, "the root information is NULL"));
    }
    // SAFETY: not NULL, and so long as the caller of this function says.
    let bytes = unsafe { core::slice::from_raw_parts(info.cast::<u8>(), 40) };
    let word =
        |at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
    if &bytes[..24] != MARK || word(24) != this_world() {
        return Err(wrong("the root information was not made by HcclGetRootInfo of this driver"));
    }
    Ok(Root::Info(word(32)))
}

fn check_place(place: *mut *mut c_void) -> Result {
    if place.is_null() {
        return Err(Fail::new(hccl::E_PTR, "the place for the communicator is NULL"));
    }
    Ok(())
}

/// # Safety
/// `info` is NULL or as long as its type, `comm` NULL or may be written.
unsafe fn init(
    size: u32,
    info: *const c_void,
    rank: u32,
    settings: Option<Settings>,
    comm: *mut *mut c_void,
) -> Result {
    check_place(comm)?;
    // SAFETY: as the caller of this function says.
    let root = unsafe { read_root(info) }?;
    if size == 0 || rank >= size {
        return Err(wrong(format!("rank {rank} of {size}")));
    }
    let settings = match (settings, root) {
        (Some(settings), _) => settings,
        (None, Root::Info(number)) => Settings::new(format!("simulated-group-{number}")),
        (None, Root::Part { .. }) => return Err(wrong("not the information of a root")),
    };
    let made = world().join(world().state(), root, size, rank, &settings)?;
    // SAFETY: not NULL, and the caller's place for the result.
    unsafe { give(comm, made, "comm") }
}

driver! {
    fn HcclGetRootInfo(info: *mut c_void) {
        let mut state = world().state();
        state.current().map_err(of_runtime)?;
        if info.is_null() {
            return Err(Fail::new(hccl::E_PTR, "the place for the root information is NULL"));
        }
        let number = state.number();
        state.open_root(Root::Info(number));
        // SAFETY: not NULL, and as long as its type.
        let bytes = unsafe {
            info.cast::<u8>().write_bytes(0, ROOT_INFO);
            core::slice::from_raw_parts_mut(info.cast::<u8>(), 40)
        };
        bytes[..24].copy_from_slice(MARK);
        bytes[24..32].copy_from_slice(&this_world().to_le_bytes());
        bytes[32..].copy_from_slice(&number.to_le_bytes());
        Ok(())
    }

    fn HcclCommInitRootInfo(size: u32, info: *const c_void, rank: u32, comm: *mut *mut c_void) {
        // SAFETY: the caller's information, and its place for the result.
        unsafe { init(size, info, rank, None, comm) }
    }

    fn HcclCommInitRootInfoConfig(
        size: u32,
        info: *const c_void,
        rank: u32,
        config: *const c_void,
        comm: *mut *mut c_void,
    ) {
        // SAFETY: the caller's information and configuration.
        let settings = unsafe {
            let Root::Info(number) = read_root(info)? else { return Err(wrong("not the information of a root")) };
            let mut settings = Settings::new(format!("simulated-group-{number}"));
            settings.read(config)?;
            settings
        };
        // SAFETY: the caller's information, and its place for the result.
        unsafe { init(size, info, rank, Some(settings), comm) }
    }

    fn HcclCommInitAll(count: u32, devices: *mut i32, comms: *mut *mut c_void) {
        if devices.is_null() || comms.is_null() {
            return Err(Fail::new(hccl::E_PTR, "devices or comms is NULL"));
        }
        if count == 0 {
            return Err(wrong("no devices"));
        }
        // SAFETY: not NULL, and as long as the count says.
        let ids = unsafe { core::slice::from_raw_parts(devices, count as usize) };
        let mut state = world().state();
        let devices = ids.iter().map(|&id| state.device(id.into())).collect::<Result<Vec<_>>>();
        let devices = devices.map_err(|fail| wrong(fail.text))?;
        if let Some(at) = (1..devices.len()).find(|&at| devices[..at].contains(&devices[at])) {
            return Err(wrong(format!("device {} is there twice; every rank needs its own", devices[at])));
        }
        let settings = Settings::new(state.clique_name());
        for (rank, made) in state.make_clique(&devices, settings).into_iter().enumerate() {
            // SAFETY: as many places as devices.
            unsafe { comms.add(rank).write(handle(Kind::Comm, made)) };
        }
        Ok(())
    }

    fn HcclCreateSubCommConfig(
        parent: *mut *mut c_void,
        count: u32,
        ranks: *mut u32,
        number: u64,
        rank: u32,
        config: *mut c_void,
        comm: *mut *mut c_void,
    ) {
        check_place(parent)?;
        check_place(comm)?;
        let mut state = world().state();
        // SAFETY: not NULL, and the caller's communicator.
        let whole = state.comm_of(unsafe { parent.read() })?;
        if ranks.is_null() {
            // Not one of the part's ranks.
            // SAFETY: not NULL, and the caller's place for the result.
            return unsafe { give(comm, core::ptr::null_mut(), "comm") };
        }
        // SAFETY: not NULL, and as long as the count says.
        let ids = unsafe { core::slice::from_raw_parts(ranks, count as usize) };
        let found = state.comms.get(&whole).ok_or_else(|| wrong("the communicator is gone"))?;
        let (clique, own) = (found.clique, found.rank);
        let all = state.cliques.get(&clique).map_or(0, |clique| clique.size);
        let fits = ids.iter().all(|&id| id < all) && ids.get(rank as usize) == Some(&own);
        if !fits {
            return Err(wrong(format!("rank {own} of {all} is not number {rank} of {ids:?}")));
        }
        let root = Root::Part { clique, number };
        state.open_root(root);
        let mut settings = Settings::new(format!("simulated-group-{clique}-{number}"));
        if !config.is_null() {
            // SAFETY: not NULL, and as long as it says.
            unsafe { settings.read(config.cast_const()) }?;
        }
        let made = world().join(state, root, count, rank, &settings)?;
        // SAFETY: not NULL, and the caller's place for the result.
        unsafe { give(comm, made, "comm") }
    }

    fn HcclGetRankSize(comm: *mut c_void, size: *mut u32) {
        let state = world().state();
        let clique = state.comms.get(&state.any_comm(comm)?).map_or(0, |comm| comm.clique);
        let count = state.cliques.get(&clique).map_or(0, |clique| clique.size);
        // SAFETY: the caller's place for the result.
        unsafe { give(size, count, "size") }.map_err(as_pointer)
    }

    fn HcclGetRankId(comm: *mut c_void, rank: *mut u32) {
        let state = world().state();
        let own = state.comms.get(&state.any_comm(comm)?).map_or(0, |comm| comm.rank);
        // SAFETY: the caller's place for the result.
        unsafe { give(rank, own, "rank") }.map_err(as_pointer)
    }

    fn HcclGetCommName(comm: *mut c_void, name: *mut c_char) {
        let state = world().state();
        let clique = state.comms.get(&state.any_comm(comm)?).map_or(0, |comm| comm.clique);
        if name.is_null() {
            return Err(Fail::new(hccl::E_PTR, "the place for the name is NULL"));
        }
        let text = state.cliques.get(&clique).map_or("", |clique| clique.settings.name.as_str());
        let bytes = &text.as_bytes()[..text.len().min(127)];
        // SAFETY: not NULL, and the caller gives 128 bytes.
        unsafe {
            name.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            name.add(bytes.len()).write(0);
        }
        Ok(())
    }

    fn HcclGetCommAsyncError(comm: *mut c_void, error: *mut i32) {
        let state = world().state();
        let latest = state.comms.get(&state.any_comm(comm)?).map_or(0, |comm| comm.error);
        // SAFETY: the caller's place for the result.
        unsafe { give(error, latest, "error") }.map_err(as_pointer)
    }

    fn HcclCommSuspend(comm: *mut c_void) {
        suspend(comm, true)
    }

    fn HcclCommResume(comm: *mut c_void) {
        suspend(comm, false)
    }

    fn HcclCommDestroy(comm: *mut c_void) {
        let mut state = world().state();
        let id = state.any_comm(comm)?;
        state.end_comm(id);
        world().changed.notify_all();
        Ok(())
    }
}

fn suspend(comm: *mut c_void, suspended: bool) -> Result {
    let mut state = world().state();
    let id = state.any_comm(comm)?;
    if let Some(comm) = state.comms.get_mut(&id) {
        if comm.suspended == suspended {
            return Err(wrong("the communicator is in that state already"));
        }
        comm.suspended = suspended;
        // What went wrong is over with.
        comm.error = if suspended { comm.error } else { 0 };
    }
    Ok(())
}

fn as_pointer(fail: Fail) -> Fail {
    Fail::new(hccl::E_PTR, fail.text)
}

/// What a code means; lives as long as the library.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
extern "C" fn HcclGetErrorString(code: i32) -> *const c_char {
    enter("HcclGetErrorString", || vec![("code", code.into())], || Ok(()));
    describe(code).as_ptr()
}

/// How many fields of a configuration the driver reads: the buffer's size, the order of reductions, and the name.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
extern "C" fn HcclGetCommConfigCapability() -> u32 {
    let fields = Cell::new(0);
    enter("HcclGetCommConfigCapability", Vec::new, || {
        fields.set(3);
        Ok(())
    });
    fields.get()
}
