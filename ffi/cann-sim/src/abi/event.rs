//! Events.

use super::{milliseconds, stream::polled_enough};
use crate::call::{driver, give};
use crate::error::{Fail, Result, code};
use crate::stream::{EVENT_SYNC, EVENT_TIME_LINE, Event, Point, Work};
use crate::world::{Kind, State, handle, world};
use std::ffi::c_void;
use std::time::Duration;

fn create(place: *mut *mut c_void, flags: u32, renewable: bool) -> Result {
    let mut state = world().state();
    let (context, device) = state.current()?;
    if flags == 0 || flags & !0x7b != 0 {
        return Err(Fail::parameter(format!("flags {flags:#x} are unknown")));
    }
    state.room_for_event(device)?;
    if place.is_null() {
        return Err(Fail::parameter("the place for the event is NULL"));
    }
    let id = state.number();
    let (latest, recordings, reached, polls, mark) = (None, 0, None, 0, None);
    let event = Event { context, device, flags, renewable, latest, recordings, reached, polls, mark };
    state.events.insert(id, event);
    // SAFETY: not NULL, and the caller's place for the result.
    unsafe { give(place, handle(Kind::Event, id), "event") }
}

fn synchronize(event: *mut c_void, timeout: Option<Duration>) -> Result {
    let state = world().state();
    let id = state.event_of(event)?;
    state.refuse_captured_event(id)?;
    let Some(point) = state.events.get(&id).and_then(|event| event.latest) else { return Ok(()) };
    let (state, reached) = world().reach(state, &[point], timeout)?;
    if !reached {
        let text = format!("the event was not reached within {timeout:?}");
        return Err(Fail::new(code::RT_EVENT_SYNC_TIMEOUT, text));
    }
    // What went wrong before the event is told here too; later work is no matter of this event.
    let stream = state.streams.get(&point.stream);
    match stream.and_then(|stream| stream.error.as_ref()) {
        Some((fail, at)) if *at <= point.seq => Err(fail.clone()),
        _ => Ok(()),
    }
}

/// When an event was reached, in microseconds of device time.
fn time(state: &State, id: u64) -> Result<(Point, u64)> {
    let event = state.events.get(&id).filter(|event| event.flags & EVENT_TIME_LINE != 0);
    let event = event.ok_or_else(|| {
        Fail::new(code::RT_EVENT_TIMESTAMP, "the event was made without ACL_EVENT_TIME_LINE")
    })?;
    match (event.latest, event.reached) {
        (Some(point), Some(at)) if state.reached(point) => Ok((point, at)),
        _ => Err(Fail::new(code::RT_EVENT_TIMESTAMP, "the event has not been reached; synchronise first")),
    }
}

driver! {
    fn aclrtCreateEvent(event: *mut *mut c_void) {
        create(event, EVENT_SYNC | EVENT_TIME_LINE, false)
    }

    fn aclrtCreateEventWithFlag(event: *mut *mut c_void, flags: u32) {
        create(event, flags, false)
    }

    fn aclrtCreateEventExWithFlag(event: *mut *mut c_void, flags: u32) {
        create(event, flags, true)
    }

    fn aclrtDestroyEvent(event: *mut c_void) {
        let mut state = world().state();
        let id = state.event_of(event)?;
        state.refuse_captured_event(id)?;
        state.events.remove(&id);
        world().changed.notify_all();
        Ok(())
    }

    fn aclrtRecordEvent(event: *mut c_void, stream: *mut c_void) {
        let mut state = world().state();
        let stream_id = state.stream_of(stream)?;
        let id = state.event_of(event)?;
        if state.record_event(stream_id, id)? {
            return Ok(());
        }
        let seq = state.streams.get(&stream_id).map_or(0, |stream| stream.submitted + 1);
        let Some(event) = state.events.get_mut(&id) else { return Ok(()) };
        event.recordings += 1;
        event.latest = Some(Point { stream: stream_id, seq });
        (event.reached, event.polls) = (None, 0);
        let work = Work::Record { event: id, recording: event.recordings };
        world().submit(state, stream_id, "aclrtRecordEvent", work).map(drop)
    }

    fn aclrtResetEvent(event: *mut c_void, stream: *mut c_void) {
        let state = world().state();
        let stream_id = state.stream_of(stream)?;
        let id = state.event_of(event)?;
        if state.capture_on(stream_id).is_none() {
            state.refuse_captured_event(id)?;
        } else if !state.events.get(&id).is_some_and(Event::is_external) {
            // Within a graph an event is an edge, which nothing takes back.
            return Ok(());
        }
        world().submit(state, stream_id, "aclrtResetEvent", Work::Reset { event: id }).map(drop)
    }

    fn aclrtQueryEventStatus(event: *mut c_void, status: *mut i32) {
        let mut state = world().state();
        let id = state.event_of(event)?;
        state.refuse_captured_event(id)?;
        let seed = state.schedule.seed;
        let mut done = true;
        let Some((latest, renewable, polls)) = state.events.get_mut(&id).map(|event| {
            event.polls += 1;
            (event.latest, event.renewable, event.polls)
        }) else {
            return Ok(());
        };
        match latest {
            None => done = renewable,
            Some(point) if state.reached(point) => {}
            Some(point) => {
                done = false;
                let hung = state.streams.get(&point.stream).is_some_and(|stream| stream.hung);
                if polled_enough(seed, id, polls) && !hung {
                    done = world().reach(state, &[point], Some(Duration::from_secs(10)))?.1;
                }
            }
        }
        // SAFETY: the caller's place for the result.
        unsafe { give(status, i32::from(done), "status") }
    }

    fn aclrtQueryEventWaitStatus(event: *mut c_void, status: *mut i32) {
        let state = world().state();
        let id = state.event_of(event)?;
        let mut queues = state.streams.values().flat_map(|stream| &stream.queue);
        let waits = queues.any(|task| matches!(task.work, Work::Wait { event, .. } if event == id));
        // SAFETY: the caller's place for the result.
        unsafe { give(status, i32::from(waits), "status") }
    }

    fn aclrtSynchronizeEvent(event: *mut c_void) {
        synchronize(event, None)
    }

    fn aclrtSynchronizeEventWithTimeout(event: *mut c_void, timeout: i32) {
        synchronize(event, milliseconds(timeout)?)
    }

    fn aclrtEventElapsedTime(milliseconds: *mut f32, start: *mut c_void, end: *mut c_void) {
        let state = world().state();
        let (start, end) = (state.event_of(start)?, state.event_of(end)?);
        let ((a, from), (b, until)) = (time(&state, start)?, time(&state, end)?);
        if a.stream != b.stream {
            let text = "the events were recorded on two streams";
            return Err(Fail::new(code::RT_EVENT_TIMESTAMP, text));
        }
        let elapsed = (until as f64 - from as f64) / 1000.0;
        // SAFETY: the caller's place for the result.
        unsafe { give(milliseconds, elapsed as f32, "milliseconds") }
    }

    fn aclrtEventGetTimestamp(event: *mut c_void, microseconds: *mut u64) {
        let state = world().state();
        let id = state.event_of(event)?;
        let (_, at) = time(&state, id)?;
        // SAFETY: the caller's place for the result.
        unsafe { give(microseconds, at, "microseconds") }
    }
}
