//! Devices and contexts.

use super::milliseconds;
use crate::call::{driver, give};
use crate::context::set_current;
use crate::error::{Fail, Result, code};
use crate::stream::Point;
use crate::world::{Kind, State, World, handle, number_of, world};
use std::ffi::c_void;
use std::sync::MutexGuard;
use std::time::Duration;

/// `ACL_HOST`: the program runs beside the device, not on it.
const RUN_ON_HOST: i32 = 1;

/// A number that `aclrtDevAttr` names.
fn attribute(state: &State, attribute: i32) -> Result<i64> {
    let profile = &state.profile;
    match attribute {
        // AI CPUs; AI cores, which here are those for matrices; vector cores.
        1 => Ok(6),
        101 | 102 => Ok(profile.cores.0),
        201 => Ok(profile.cores.1),
        301 => Ok(i64::try_from(state.memory.limit).unwrap_or(i64::MAX)),
        302 => Ok(profile.l2_bytes),
        501 => Ok(0),
        601 => Ok(profile.architecture),
        _ => {
            let text = format!("attribute {attribute} is not one that the simulator has a value for");
            Err(Fail::new(code::RT_FEATURE_NOT_SUPPORT, text))
        }
    }
}

/// Waits for every stream of a context.
fn synchronize(
    world: &'static World,
    state: MutexGuard<'static, State>,
    context: u64,
    timeout: Option<Duration>,
) -> Result<MutexGuard<'static, State>> {
    let mut state = state;
    let captured = state.streams.iter().find(|(_, s)| s.context == context && s.capture.is_some());
    if let Some(id) = captured.map(|(&id, _)| id) {
        state.refuse_captured_stream(id)?;
    }
    let streams = state.streams.iter().filter(|(_, stream)| stream.context == context);
    let goals: Vec<Point> =
        streams.map(|(&id, stream)| Point { stream: id, seq: stream.submitted }).collect();
    let (mut state, reached) = world.reach(state, &goals, timeout)?;
    if !reached {
        let text = format!("the device has not finished within {timeout:?}");
        return Err(Fail::new(code::RT_STREAM_SYNC_TIMEOUT, text));
    }
    for goal in &goals {
        if let Some(stream) = state.streams.get_mut(&goal.stream) {
            stream.verdict()?;
        }
    }
    Ok(state)
}

/// Takes one `aclrtSetDevice` back, or all; the last one ends whatever the device holds.
fn reset(id: i32, all: bool) -> Result {
    let mut state = world().state();
    let device = state.device(id.into())?;
    let shared = state.contexts.iter().find(|(_, c)| c.device == device && c.shared.is_some());
    let Some(context) = shared.map(|(&id, _)| id) else {
        return Err(Fail::new(code::RT_CONTEXT_NULL, format!("aclrtSetDevice({id}) was not called")));
    };
    let left = state.contexts.get_mut(&context).and_then(|c| c.shared.as_mut()).map(|count| {
        *count = if all { 0 } else { count.saturating_sub(1) };
        *count
    });
    if left == Some(0) {
        state.break_captures(|stream| stream.context == context, "its device was reset");
        let streams = state.streams.values().filter(|s| s.context == context);
        let hung = streams.clone().any(|s| s.hung);
        if !hung {
            // What goes wrong now has nobody left to be told.
            let ended = synchronize(world(), state, context, None);
            state = ended.unwrap_or_else(|_| world().state());
        }
        let call = state.log.last();
        state.memory.forget(device, call);
        state.graphs.retain(|_, graph| graph.device != device);
        let State { graphs, groups, .. } = &mut *state;
        groups.retain(|_, (graph, _)| graphs.contains_key(graph));
        state.end_context(context);
    }
    Ok(())
}

driver! {
    fn aclrtGetDeviceCount(count: *mut u32) {
        let devices = world().state().devices;
        // SAFETY: the caller's place for the result.
        unsafe { give(count, u32::try_from(devices).unwrap_or(u32::MAX), "count") }
    }

    fn aclrtSetDevice(id: i32) {
        let mut state = world().state();
        let device = state.device(id.into())?;
        let context = state.shared_context(device);
        if let Some(count) = state.contexts.get_mut(&context).and_then(|context| context.shared.as_mut()) {
            *count += 1;
        }
        set_current(Some(context));
        Ok(())
    }

    fn aclrtGetDevice(id: *mut i32) {
        let (_, device) = world().state().current()?;
        // SAFETY: the caller's place for the result.
        unsafe { give(id, i32::try_from(device).unwrap_or(i32::MAX), "id") }
    }

    fn aclrtResetDevice(id: i32) {
        reset(id, false)
    }

    fn aclrtResetDeviceForce(id: i32) {
        reset(id, true)
    }

    fn aclrtGetRunMode(mode: *mut i32) {
        // SAFETY: the caller's place for the result.
        unsafe { give(mode, RUN_ON_HOST, "mode") }
    }

    fn aclrtSynchronizeDevice() {
        let state = world().state();
        let (context, _) = state.current()?;
        synchronize(world(), state, context, None).map(drop)
    }

    fn aclrtSynchronizeDeviceWithTimeout(timeout: i32) {
        let timeout = milliseconds(timeout)?;
        let state = world().state();
        let (context, _) = state.current()?;
        synchronize(world(), state, context, timeout).map(drop)
    }

    fn aclrtGetDeviceInfo(id: u32, attribute: i32, value: *mut i64) {
        let state = world().state();
        state.device(id.into())?;
        let found = self::attribute(&state, attribute)?;
        // SAFETY: the caller's place for the result.
        unsafe { give(value, found, "value") }
    }

    fn aclGetDeviceCapability(id: u32, information: i32, value: *mut i64) {
        let state = world().state();
        state.device(id.into())?;
        let found = match information {
            0 => state.profile.cores.0,
            1 => state.profile.cores.1,
            2 => state.profile.l2_bytes,
            _ => return Err(Fail::parameter(format!("information {information} is unknown"))),
        };
        // SAFETY: the caller's place for the result.
        unsafe { give(value, found, "value") }
    }

    fn aclrtDeviceCanAccessPeer(can: *mut i32, device: i32, peer: i32) {
        let state = world().state();
        let (a, b) = (state.device(device.into())?, state.device(peer.into())?);
        // SAFETY: the caller's place for the result.
        unsafe { give(can, i32::from(a != b), "can") }
    }

    fn aclrtDeviceEnablePeerAccess(peer: i32, flags: u32) {
        let mut state = world().state();
        let (_, device) = state.current()?;
        let peer = state.device(peer.into())?;
        if flags != 0 || peer == device {
            return Err(Fail::parameter(format!("peer {peer} of device {device} with flags {flags}")));
        }
        state.peers.insert((device, peer));
        Ok(())
    }

    fn aclrtDeviceDisablePeerAccess(peer: i32) {
        let mut state = world().state();
        let (_, device) = state.current()?;
        let peer = state.device(peer.into())?;
        match state.peers.remove(&(device, peer)) {
            true => Ok(()),
            false => Err(Fail::parameter(format!("access to device {peer} was not enabled"))),
        }
    }

    fn aclrtSetSysParamOpt(option: i32, value: i64) {
        world().state().current()?;
        known_option(option)
    }

    fn aclrtCtxSetSysParamOpt(option: i32, value: i64) {
        world().state().current()?;
        known_option(option)
    }

    fn aclrtSetOpWaitTimeout(seconds: u32) {
        let mut state = world().state();
        state.current()?;
        // 0 is for ever.
        state.wait_timeout = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
        Ok(())
    }

    fn aclrtSetOpExecuteTimeOut(seconds: u32) {
        world().state().current().map(drop)
    }

    fn aclrtCreateContext(context: *mut *mut c_void, id: i32) {
        let mut state = world().state();
        let device = state.device(id.into())?;
        let made = state.make_context(device, None);
        set_current(Some(made));
        // SAFETY: the caller's place for the result.
        unsafe { give(context, handle(Kind::Context, made), "context") }
    }

    fn aclrtDestroyContext(context: *mut c_void) {
        let mut state = world().state();
        let id = context_of(&state, context)?;
        if state.contexts.get(&id).is_some_and(|context| context.shared.is_some()) {
            return Err(Fail::parameter("the device's own context ends with aclrtResetDevice"));
        }
        let pending = state.streams.values().filter(|stream| stream.context == id && !stream.queue.is_empty());
        let pending = pending.count();
        if pending > 0 {
            state.violate(format!("{pending} streams of the context have work pending"));
        }
        state.break_captures(|stream| stream.context == id, "its context was destroyed");
        state.end_context(id);
        Ok(())
    }

    fn aclrtSetCurrentContext(context: *mut c_void) {
        let state = world().state();
        let id = context_of(&state, context)?;
        set_current(Some(id));
        Ok(())
    }

    fn aclrtGetCurrentContext(context: *mut *mut c_void) {
        let (id, _) = world().state().current()?;
        // SAFETY: the caller's place for the result.
        unsafe { give(context, handle(Kind::Context, id), "context") }
    }
}

/// `aclSysParamOpt` has four members.
fn known_option(option: i32) -> Result {
    match option {
        0..=3 => Ok(()),
        _ => Err(Fail::parameter(format!("option {option} is unknown"))),
    }
}

fn context_of(state: &State, context: *mut c_void) -> Result<u64> {
    if context.is_null() {
        return Err(Fail::parameter("context is NULL"));
    }
    let id = number_of(Kind::Context, context)?;
    match state.contexts.contains_key(&id) {
        true => Ok(id),
        false => Err(Fail::new(code::RT_CONTEXT_NULL, format!("context {context:p} was destroyed"))),
    }
}
