//! Graph capture (`aclmdlRI*`): the calls; what they mean is in `capture.rs` and `graph.rs`.

use super::milliseconds;
use crate::call::{driver, give};
use crate::capture::{Mode, exchange_mode};
use crate::error::{Fail, Result, code};
use crate::graph::Graph;
use crate::stream::{Point, Stream};
use crate::world::{Kind, State, handle, number_of, world};
use std::ffi::c_void;
use std::sync::MutexGuard;

/// The graph behind a handle, for a call on the current device.
fn graph_number(state: &State, graph: *mut c_void) -> Result<u64> {
    let (_, device) = state.current()?;
    if graph.is_null() {
        return Err(Fail::parameter("the graph is NULL"));
    }
    let id = number_of(Kind::Graph, graph)?;
    state.graph_of(id, device)?;
    Ok(id)
}

/// A stream that was named: NULL is no stream to capture.
fn named_stream(state: &State, stream: *mut c_void) -> Result<u64> {
    match stream.is_null() {
        false => state.stream_of(stream),
        true => {
            state.current()?;
            Err(Fail::new(code::RT_CAPTURE_IMPLICIT, "NULL is the default stream, which cannot be captured"))
        }
    }
}

/// Enqueues a run of a graph on a stream; where it ends.
fn execute(mut state: MutexGuard<'static, State>, id: u64, stream: u64, name: &'static str) -> Result<Point> {
    let after = match state.streams.get(&stream) {
        Some(found) if found.capture.is_some() => {
            return Err(Fail::new(code::RT_STREAM_CAPTURED, "a graph within a graph is not simulated"));
        }
        Some(found) if found.update.is_some() => {
            return Err(Fail::new(code::RT_TASK_GROUP_STATUS, "the stream updates a task group"));
        }
        found => found.map(|found| Point { stream, seq: found.submitted }),
    };
    let Some(graph) = state.graphs.remove(&id) else { return Ok(Point { stream, seq: 0 }) };
    let end = after.map_or(Point { stream, seq: 0 }, |after| Point { seq: after.seq + 1, ..after });
    let begun = state.begin_run(id, &graph, after, stream);
    let last = if begun.is_ok() { Some(end) } else { graph.last };
    state.graphs.insert(id, Graph { last, ..graph });
    world().submit(state, stream, name, begun?)
}

driver! {
    fn aclmdlRICaptureBegin(stream: *mut c_void, mode: i32) {
        let mut state = world().state();
        let id = named_stream(&state, stream)?;
        state.begin_capture(id, Mode::new(mode)?)
    }

    fn aclmdlRICaptureGetInfo(stream: *mut c_void, status: *mut i32, graph: *mut *mut c_void) {
        let state = world().state();
        let id = state.stream_of(stream)?;
        let (now, number) = state.capture_status(id);
        // SAFETY: the caller's place for the result.
        unsafe { give(status, now, "status") }?;
        if !graph.is_null() {
            // SAFETY: not NULL, and the caller's place for the result.
            unsafe { graph.write(number.map_or(core::ptr::null_mut(), |number| handle(Kind::Graph, number))) };
        }
        Ok(())
    }

    fn aclmdlRICaptureEnd(stream: *mut c_void, graph: *mut *mut c_void) {
        let mut state = world().state();
        let id = named_stream(&state, stream)?;
        if graph.is_null() {
            return Err(Fail::parameter("the place for the graph is NULL"));
        }
        let ended = state.end_capture(id);
        let made = ended.as_ref().map_or(core::ptr::null_mut(), |&number| handle(Kind::Graph, number));
        // SAFETY: not NULL, and the caller's place for the result.
        unsafe { graph.write(made) };
        ended.map(drop)
    }

    fn aclmdlRICaptureThreadExchangeMode(mode: *mut i32) {
        if mode.is_null() {
            return Err(Fail::parameter("mode is NULL"));
        }
        // SAFETY: not NULL; the caller's value, and the place for the one before.
        unsafe { mode.write(exchange_mode(Mode::new(mode.read())?) as i32) };
        Ok(())
    }

    fn aclmdlRIExecuteAsync(graph: *mut c_void, stream: *mut c_void) {
        let state = world().state();
        let id = state.stream_of(stream)?;
        let graph = graph_number(&state, graph)?;
        execute(state, graph, id, "aclmdlRIExecuteAsync").map(drop)
    }

    fn aclmdlRIExecute(graph: *mut c_void, timeout: i32) {
        let timeout = milliseconds(timeout)?;
        let mut state = world().state();
        let (context, device) = state.current()?;
        let graph = graph_number(&state, graph)?;
        let id = state.number();
        let stream = Stream { is_lane: true, ..Stream::new(context, device) };
        state.streams.insert(id, stream);
        let end = execute(state, graph, id, "aclmdlRIExecute")?;
        let (mut state, reached) = world().reach(world().state(), &[end], timeout)?;
        let ended = state.streams.remove(&id);
        if !reached {
            let lanes = ended.map_or(Vec::new(), |stream| stream.pending_lanes());
            state.drop_lanes(&lanes);
            let text = format!("the graph has not finished within {timeout:?}");
            return Err(Fail::new(code::RT_STREAM_SYNC_TIMEOUT, text));
        }
        ended.map_or(Ok(()), |mut stream| stream.verdict())
    }

    fn aclmdlRIDestroy(graph: *mut c_void) {
        let mut state = world().state();
        let id = graph_number(&state, graph)?;
        if state.graphs.get(&id).is_some_and(|graph| state.is_running(graph)) {
            let text = "a run of the graph has not ended; synchronise its stream first";
            return Err(Fail::new(code::RT_MODEL_RUNNING, text));
        }
        state.graphs.remove(&id);
        state.groups.retain(|_, (graph, _)| *graph != id);
        Ok(())
    }

    fn aclmdlRIDebugPrint(graph: *mut c_void) {
        let state = world().state();
        let id = graph_number(&state, graph)?;
        let Some(graph) = state.graphs.get(&id) else { return Ok(()) };
        eprintln!("simulated CANN: graph {id}: {} tasks in {} lanes", graph.tasks(), graph.lanes.len());
        for (number, lane) in graph.lanes.iter().enumerate() {
            let names: Vec<&str> = lane.nodes.iter().map(|node| node.name).collect();
            eprintln!("simulated CANN:   lane {number}: {}", names.join(", "));
        }
        Ok(())
    }

    fn aclmdlRICaptureTaskGrpBegin(stream: *mut c_void) {
        let mut state = world().state();
        let id = named_stream(&state, stream)?;
        state.begin_group(id)
    }

    fn aclmdlRICaptureTaskGrpEnd(stream: *mut c_void, group: *mut *mut c_void) {
        let mut state = world().state();
        let id = named_stream(&state, stream)?;
        if group.is_null() {
            return Err(Fail::parameter("the place for the group is NULL"));
        }
        let number = state.end_group(id)?;
        // SAFETY: not NULL, and the caller's place for the result.
        unsafe { give(group, handle(Kind::Group, number), "group") }
    }

    fn aclmdlRICaptureTaskUpdateBegin(stream: *mut c_void, group: *mut c_void) {
        let mut state = world().state();
        let id = state.stream_of(stream)?;
        let group = number_of(Kind::Group, group)?;
        state.begin_update(id, group)
    }

    fn aclmdlRICaptureTaskUpdateEnd(stream: *mut c_void) {
        let mut state = world().state();
        let id = state.stream_of(stream)?;
        state.end_update(id)
    }
}
