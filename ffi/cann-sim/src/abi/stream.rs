//! Streams.

use super::milliseconds;
use crate::call::{driver, give};
use crate::error::{Fail, Result, code};
use crate::report::not_subscribed;
use crate::schedule::mix;
use crate::stream::{EVENT_SYNC, HostCall, Point, Stream, Work};
use crate::world::{Kind, handle, world};
use std::ffi::c_void;
use std::time::Duration;

/// How long destroying a stream waits for its work.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often *not yet* is said at most before what was asked for is run.
const MOST_POLLS: u64 = 8;

fn create(place: *mut *mut c_void) -> Result {
    let mut state = world().state();
    let (context, device) = state.current()?;
    state.room_for_stream(device)?;
    if place.is_null() {
        return Err(Fail::parameter("the place for the stream is NULL"));
    }
    let id = state.number();
    state.streams.insert(id, Stream::new(context, device));
    // SAFETY: not NULL, and the caller's place for the result.
    unsafe { give(place, handle(Kind::Stream, id), "stream") }
}

fn destroy(stream: *mut c_void, force: bool) -> Result {
    let mut state = world().state();
    if stream.is_null() {
        return Err(Fail::parameter("the stream is NULL"));
    }
    let id = state.stream_of(stream)?;
    state.refuse_captured_stream(id)?;
    let Some(found) = state.streams.get(&id) else { return Ok(()) };
    let (pending, hung) = (found.queue.len(), found.hung);
    let goal = Point { stream: id, seq: found.submitted };
    if pending > 0 && !force {
        state.violate(format!("{pending} pieces of work were pending"));
        if !hung {
            state = world().reach(state, &[goal], Some(PATIENCE))?.0;
        }
    }
    let lanes = state.streams.remove(&id).map_or(Vec::new(), |stream| stream.pending_lanes());
    state.drop_lanes(&lanes);
    world().changed.notify_all();
    Ok(())
}

fn synchronize(stream: *mut c_void, timeout: Option<Duration>) -> Result {
    let mut state = world().state();
    let id = state.stream_of(stream)?;
    state.refuse_captured_stream(id)?;
    let Some(found) = state.streams.get(&id) else { return Ok(()) };
    let goal = Point { stream: id, seq: found.submitted };
    let (mut state, reached) = world().reach(state, &[goal], timeout)?;
    if !reached {
        let text = format!("the stream has not finished within {timeout:?}");
        return Err(Fail::new(code::RT_STREAM_SYNC_TIMEOUT, text));
    }
    state.streams.get_mut(&id).map_or(Ok(()), Stream::verdict)
}

/// Whether so many answers *not yet* are enough.
pub(super) fn polled_enough(seed: u64, id: u64, polls: u64) -> bool {
    polls > 1 + mix(seed, id) % (MOST_POLLS - 1)
}

fn wait_event(
    stream: *mut c_void,
    event: *mut c_void,
    patience: Option<Duration>,
    name: &'static str,
) -> Result {
    let mut state = world().state();
    let id = state.stream_of(stream)?;
    let event_id = state.event_of(event)?;
    let Some(event) = state.events.get(&event_id) else { return Ok(()) };
    if event.flags & EVENT_SYNC == 0 && !event.is_external() {
        return Err(Fail::parameter(
            "the event was made without ACL_EVENT_SYNC, so no stream can wait for it",
        ));
    }
    let (point, renewable) = (event.latest, event.renewable);
    if state.wait_captured(id, event_id)? {
        return Ok(());
    }
    if point.is_none() && renewable {
        // Never recorded: complete.
        return Ok(());
    }
    if point.is_none() {
        state.violate("the event has not been recorded; the stream waits until somebody does".into());
    }
    world().submit(state, id, name, Work::Wait { event: event_id, point, patience }).map(drop)
}

driver! {
    fn aclrtCreateStream(stream: *mut *mut c_void) {
        create(stream)
    }

    fn aclrtCreateStreamWithConfig(stream: *mut *mut c_void, priority: u32, flags: u32) {
        if flags & !0x3f != 0 {
            return Err(Fail::parameter(format!("flags {flags:#x} are unknown")));
        }
        create(stream)
    }

    fn aclrtDestroyStream(stream: *mut c_void) {
        destroy(stream, false)
    }

    fn aclrtDestroyStreamForce(stream: *mut c_void) {
        destroy(stream, true)
    }

    fn aclrtSynchronizeStream(stream: *mut c_void) {
        synchronize(stream, None)
    }

    fn aclrtSynchronizeStreamWithTimeout(stream: *mut c_void, timeout: i32) {
        synchronize(stream, milliseconds(timeout)?)
    }

    fn aclrtStreamQuery(stream: *mut c_void, status: *mut i32) {
        let mut state = world().state();
        let id = state.stream_of(stream)?;
        state.refuse_captured_stream(id)?;
        let seed = state.schedule.seed;
        let mut done = true;
        if let Some(stream) = state.streams.get_mut(&id) {
            stream.polls += 1;
            let goal = Point { stream: id, seq: stream.submitted };
            done = stream.done >= goal.seq;
            if !done && polled_enough(seed, id, stream.polls) && !stream.hung {
                done = world().reach(state, &[goal], Some(PATIENCE))?.1;
            }
        }
        // SAFETY: the caller's place for the result.
        unsafe { give(status, i32::from(!done), "status") }
    }

    fn aclrtStreamAbort(stream: *mut c_void) {
        let mut state = world().state();
        let id = state.stream_of(stream)?;
        state.refuse_captured_stream(id)?;
        let lanes = state.streams.get_mut(&id).map_or(Vec::new(), Stream::abort);
        state.drop_lanes(&lanes);
        world().changed.notify_all();
        Ok(())
    }

    fn aclrtStreamWaitEvent(stream: *mut c_void, event: *mut c_void) {
        let patience = world().state().wait_timeout;
        wait_event(stream, event, patience, "aclrtStreamWaitEvent")
    }

    fn aclrtStreamWaitEventWithTimeout(stream: *mut c_void, event: *mut c_void, seconds: i32) {
        let seconds = u64::try_from(seconds)
            .map_err(|_| Fail::parameter(format!("a timeout of {seconds} seconds; 0 is for ever")))?;
        let patience = (seconds > 0).then(|| Duration::from_secs(seconds));
        wait_event(stream, event, patience, "aclrtStreamWaitEventWithTimeout")
    }

    fn aclrtSubscribeReport(thread: u64, stream: *mut c_void) {
        let mut state = world().state();
        let id = state.stream_of(stream)?;
        state.subscribe(id, thread)
    }

    fn aclrtUnSubscribeReport(thread: u64, stream: *mut c_void) {
        let mut state = world().state();
        let id = state.stream_of(stream)?;
        state.unsubscribe(id, thread)
    }

    fn aclrtProcessReport(timeout: i32) {
        let timeout = milliseconds(timeout)?;
        world().process_reports(timeout)
    }

    fn aclrtLaunchCallback(
        function: Option<unsafe extern "C" fn(*mut c_void)>,
        argument: *mut c_void,
        block: i32,
        stream: *mut c_void,
    ) {
        let state = world().state();
        let id = state.stream_of(stream)?;
        let Some(function) = function else {
            return Err(Fail::parameter("the function is NULL"));
        };
        let blocks = match block {
            0 => false,
            1 => true,
            _ => return Err(Fail::parameter(format!("block type {block}; 0 does not hold the stream up, 1 does"))),
        };
        if !state.subscribers.contains_key(&id) {
            return Err(not_subscribed("the stream's reports go to no thread"));
        }
        let work = Work::Report { call: HostCall { function, argument }, blocks };
        world().submit(state, id, "aclrtLaunchCallback", work).map(drop)
    }

    fn aclrtSetStreamFailureMode(stream: *mut c_void, mode: u64) {
        let mut state = world().state();
        if mode > 1 {
            return Err(Fail::parameter(format!("mode {mode}; 0 goes on after an error, 1 stops")));
        }
        if stream.is_null() {
            return Err(Fail::parameter("the stream is NULL"));
        }
        let id = state.stream_of(stream)?;
        if let Some(stream) = state.streams.get_mut(&id) {
            stream.stop_on_error = mode == 1;
        }
        Ok(())
    }

    fn aclrtLaunchHostFunc(
        stream: *mut c_void,
        function: Option<unsafe extern "C" fn(*mut c_void)>,
        argument: *mut c_void,
    ) {
        let state = world().state();
        let id = state.stream_of(stream)?;
        let Some(function) = function else {
            return Err(Fail::parameter("the function is NULL"));
        };
        let work = Work::Host(HostCall { function, argument });
        world().submit(state, id, "aclrtLaunchHostFunc", work).map(drop)
    }
}
