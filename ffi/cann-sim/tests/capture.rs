//! Graph capture through the C interface: what is recorded, how it runs again, and what may not happen meanwhile.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_cann_sys::bindings::*;
use portolan_cann_sys::sim::{Adversary, PlannedFault, SimOptions};
use rig::{World, call, operator};
use std::ffi::c_void;
use std::ptr::null_mut;

const UNJOINED: i32 = 107025;
const STREAM_CAPTURED: i32 = 107027;
const EVENT_CAPTURED: i32 = 107028;
const MODE: i32 = 107030;
const GROUP_STATUS: i32 = 107033;
const INVALIDATED: i32 = 507903;

impl World {
    fn begin(&self, stream: aclrtStream) {
        let mode = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;
        assert_eq!(call!(self.runtime(), aclmdlRICaptureBegin(stream, mode)), 0, "{}", self.message());
    }

    fn end(&self, stream: aclrtStream) -> Result<aclmdlRI, i32> {
        let mut graph = null_mut();
        match call!(self.runtime(), aclmdlRICaptureEnd(stream, &mut graph)) {
            0 => Ok(graph),
            code => {
                assert!(graph.is_null());
                Err(code)
            }
        }
    }

    fn execute(&self, graph: aclmdlRI, stream: aclrtStream) -> i32 {
        call!(self.runtime(), aclmdlRIExecuteAsync(graph, stream))
    }

    fn record(&self, event: aclrtEvent, stream: aclrtStream) -> i32 {
        call!(self.runtime(), aclrtRecordEvent(event, stream))
    }

    fn wait(&self, stream: aclrtStream, event: aclrtEvent) -> i32 {
        call!(self.runtime(), aclrtStreamWaitEvent(stream, event))
    }

    /// y = -x, in floats of a number's own memory, on a stream.
    fn negate(&self, x: *mut c_void, y: *mut c_void, count: i64, stream: aclrtStream) -> i32 {
        let (x, y) = (self.tensor(ACL_FLOAT, &[count], x), self.tensor(ACL_FLOAT, &[count], y));
        operator!(self, stream, aclnnNegGetWorkspaceSize, aclnnNeg, x, y)
    }

    /// y = x + alpha·x.
    fn scale(&self, x: *mut c_void, alpha: f32, y: *mut c_void, stream: aclrtStream) -> i32 {
        let (x, y, alpha) =
            (self.tensor(ACL_FLOAT, &[1], x), self.tensor(ACL_FLOAT, &[1], y), self.scalar(alpha));
        operator!(self, stream, aclnnAddGetWorkspaceSize, aclnnAdd, x, x, alpha, y)
    }
}

fn adversaries() -> Vec<(Adversary, u64)> {
    let seeded = (0..10).map(|seed| (Adversary::Seeded, seed));
    (0..10).map(|seed| (Adversary::Late, seed)).chain(seeded).chain([(Adversary::Early, 0)]).collect()
}

#[test]
fn captured_work_runs_with_every_run_of_the_graph_and_not_before() {
    let world = World::against(Adversary::Early, 0);
    let (s, t) = (world.stream(), world.stream());
    let (x, y) = (world.upload(&[1f32, 2.0]), world.upload(&[0f32, 0.0]));
    world.begin(s);
    assert_eq!(world.negate(x, y, 2, s), 0);
    let graph = world.end(s).unwrap();
    assert_eq!(world.floats(y, 2), [0.0, 0.0]);
    for values in [[1f32, 2.0], [3.0, -4.0]] {
        let from = world.pinned(&values);
        assert_eq!(world.copy(x, from, 8, t), 0);
        assert_eq!(world.execute(graph, t), 0, "{}", world.message());
        assert_eq!(world.synchronize(t), 0);
        assert_eq!(world.floats(y, 2), values.map(|v| -v));
    }
    assert_eq!(call!(world.runtime(), aclmdlRIExecute(graph, -1)), 0, "{}", world.message());
    assert_eq!(call!(world.runtime(), aclmdlRIDestroy(graph)), 0);
    assert_eq!(world.execute(graph, t), 107017);
    assert!(world.message().contains("was destroyed"));
}

#[test]
fn branches_of_a_graph_keep_their_order_against_every_adversary_and_runs_follow_each_other() {
    for (adversary, seed) in adversaries() {
        let world = World::against(adversary, seed);
        let (s, side, t) = (world.stream(), world.stream(), world.stream());
        let (fork, join) = (world.event(), world.event());
        let (x, a, b) = (world.upload(&[1f32]), world.upload(&[9f32]), world.upload(&[9f32]));
        world.begin(s);
        assert_eq!(world.negate(x, a, 1, s), 0);
        assert_eq!(world.record(fork, s), 0);
        assert_eq!(world.wait(side, fork), 0);
        // b = 3·a on the side, then x = -b on the first stream again: x is multiplied by 3 with each run.
        assert_eq!(world.scale(a, 2.0, b, side), 0);
        assert_eq!(world.record(join, side), 0);
        assert_eq!(world.wait(s, join), 0);
        assert_eq!(world.negate(b, x, 1, s), 0);
        let graph = world.end(s).unwrap();
        for on in [s, t, s] {
            assert_eq!(world.execute(graph, on), 0);
        }
        assert_eq!(world.synchronize(s), 0, "{}", world.message());
        assert_eq!(world.floats(x, 1), [27.0], "{adversary:?} {seed}");
        // The side stream is nobody's now, and the event is as before the capture.
        assert_eq!(world.synchronize(side), 0);
        assert_eq!(call!(world.runtime(), aclrtSynchronizeEvent(fork)), 0);
    }
}

#[test]
fn a_missing_edge_within_a_graph_gives_a_wrong_answer() {
    let wrong = (0..10).filter(|&seed| {
        let world = World::against(Adversary::Late, seed);
        let (s, side) = (world.stream(), world.stream());
        let (fork, join) = (world.event(), world.event());
        let (x, a, b) = (world.upload(&[1f32]), world.upload(&[9f32]), world.upload(&[9f32]));
        world.begin(s);
        assert_eq!(world.record(fork, s), 0);
        assert_eq!(world.negate(x, a, 1, s), 0);
        // The fork was recorded before a was written.
        assert_eq!(world.wait(side, fork), 0);
        assert_eq!(world.scale(a, 2.0, b, side), 0);
        assert_eq!(world.record(join, side), 0);
        assert_eq!(world.wait(s, join), 0);
        let graph = world.end(s).unwrap();
        assert_eq!(world.execute(graph, s), 0);
        assert_eq!(world.synchronize(s), 0);
        world.floats(b, 1) != [-3.0]
    });
    let wrong = wrong.count();
    assert!((1..10).contains(&wrong), "{wrong} of 10 seeds");
}

#[test]
fn a_stream_that_is_not_joined_back_spoils_the_capture() {
    let world = World::of("A3");
    let (s, side) = (world.stream(), world.stream());
    let fork = world.event();
    let (x, y) = (world.upload(&[1f32]), world.memory(4));
    world.begin(s);
    assert_eq!(world.record(fork, s), 0);
    assert_eq!(world.wait(side, fork), 0);
    assert_eq!(world.negate(x, y, 1, side), 0);
    assert_eq!(world.end(side), Err(107036));
    assert_eq!(world.end(s), Err(UNJOINED));
    assert!(world.message().contains("were not joined back"));
    // The streams are usable again.
    assert_eq!((world.synchronize(s), world.synchronize(side)), (0, 0));
    assert_eq!(world.end(s), Err(107029));
}

#[test]
fn waiting_for_what_is_only_recorded_is_refused_and_ends_the_capture() {
    let world = World::of("A3");
    let s = world.stream();
    let runtime = world.runtime();
    let (x, y, e) = (world.upload(&[1f32]), world.memory(4), world.event());
    let mut status = 9;
    let mut info = (ACL_MODEL_RI_CAPTURE_STATUS_NONE, null_mut());
    let checks: [&dyn Fn() -> i32; 4] = [
        &|| world.synchronize(s),
        &|| call!(runtime, aclrtSynchronizeDevice()),
        &|| call!(runtime, aclrtDestroyStream(s)),
        &|| call!(runtime, aclrtStreamAbort(s)),
    ];
    for check in checks {
        world.begin(s);
        assert_eq!(world.negate(x, y, 1, s), 0);
        assert_eq!(call!(runtime, aclmdlRICaptureGetInfo(s, &mut info.0, &mut info.1)), 0);
        assert_eq!(info.0, ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE);
        assert!(!info.1.is_null());
        assert_eq!(check(), STREAM_CAPTURED);
        assert_eq!(call!(runtime, aclmdlRICaptureGetInfo(s, &mut info.0, &mut info.1)), 0);
        assert_eq!((info.0, info.1), (ACL_MODEL_RI_CAPTURE_STATUS_INVALIDATED, null_mut()));
        assert_eq!(world.negate(x, y, 1, s), INVALIDATED);
        assert_eq!(world.end(s), Err(INVALIDATED));
    }
    assert!(world.message().contains("aclrtStreamAbort was called on a stream in it"));
    world.begin(s);
    assert_eq!(world.record(e, s), 0);
    assert_eq!(call!(runtime, aclrtSynchronizeEvent(e)), EVENT_CAPTURED);
    assert_eq!(call!(runtime, aclrtQueryEventStatus(e, &mut status)), EVENT_CAPTURED);
    assert_eq!(call!(runtime, aclrtDestroyEvent(e)), EVENT_CAPTURED);
    let other = world.stream();
    assert_eq!(world.record(e, other), EVENT_CAPTURED);
    let graph = world.end(s).unwrap();
    assert_eq!(call!(runtime, aclmdlRIDestroy(graph)), 0);
    assert_eq!(call!(runtime, aclrtDestroyEvent(e)), 0);
}

#[test]
fn captures_begin_on_streams_of_their_own_and_end_where_they_began() {
    let world = World::of("A3");
    let s = world.stream();
    let runtime = world.runtime();
    assert_eq!(call!(runtime, aclmdlRICaptureBegin(null_mut(), ACL_MODEL_RI_CAPTURE_MODE_GLOBAL)), 107031);
    assert_eq!(call!(runtime, aclmdlRICaptureBegin(s, 3)), 107000);
    world.begin(s);
    assert_eq!(call!(runtime, aclmdlRICaptureBegin(s, ACL_MODEL_RI_CAPTURE_MODE_GLOBAL)), STREAM_CAPTURED);
    let (e, default) = (world.event(), null_mut());
    assert_eq!(world.record(e, s), 0);
    assert_eq!(world.wait(default, e), 107031);
    let address = s.expose_provenance();
    let elsewhere = std::thread::scope(|scope| {
        let end = || {
            assert_eq!(call!(runtime, aclrtSetDevice(0)), 0);
            world.end(std::ptr::with_exposed_provenance_mut(address)).unwrap_err()
        };
        scope.spawn(end).join().unwrap()
    });
    assert_eq!(elsewhere, 107038);
    assert!(world.end(s).is_ok());
    // A relaxed capture may end anywhere.
    assert_eq!(call!(runtime, aclmdlRICaptureBegin(s, ACL_MODEL_RI_CAPTURE_MODE_RELAXED)), 0);
    let ended = std::thread::scope(|scope| {
        let end = || {
            assert_eq!(call!(runtime, aclrtSetDevice(0)), 0);
            world.end(std::ptr::with_exposed_provenance_mut(address)).is_ok()
        };
        scope.spawn(end).join().unwrap()
    });
    assert!(ended);
}

#[test]
fn two_captures_and_the_world_outside_do_not_mix() {
    let world = World::of("A3");
    let (a, b) = (world.stream(), world.stream());
    let (ours, before) = (world.event(), world.event());
    assert_eq!(world.record(before, a), 0);
    world.begin(a);
    world.begin(b);
    assert_eq!(world.wait(a, before), 107024);
    assert_eq!(world.record(ours, a), 0);
    assert_eq!(world.wait(b, ours), 107032);
    assert_eq!(world.record(ours, b), 107032);
    // An event that was never recorded counts as complete, as outside.
    assert_eq!(world.wait(a, world.event()), 0);
    assert!(world.end(a).is_ok() && world.end(b).is_ok());
}

#[test]
fn calls_that_no_graph_holds_are_refused_where_the_modes_say_so() {
    let world = World::of("A3");
    let runtime = world.runtime();
    let (s, x, host) = (world.stream(), world.memory(4), [1u8; 4]);
    let unsafe_call = || call!(runtime, aclrtMemset(x, 4, 0, 4));
    let address = x.expose_provenance();
    let on_another_thread = |mine: Option<i32>| {
        let other = || {
            assert_eq!(call!(runtime, aclrtSetDevice(0)), 0);
            if let Some(mine) = mine {
                let mut mode = mine as aclmdlRICaptureMode;
                assert_eq!(call!(runtime, aclmdlRICaptureThreadExchangeMode(&mut mode)), 0);
                assert_eq!(mode, ACL_MODEL_RI_CAPTURE_MODE_GLOBAL);
            }
            call!(runtime, aclrtMemset(std::ptr::with_exposed_provenance_mut(address), 4, 0, 4))
        };
        std::thread::scope(|scope| scope.spawn(other).join().unwrap())
    };
    // The mode of the capture; what this thread may do, and others in each mode of their own.
    let (global, local, relaxed) = (0, 1, 2);
    let table = [(global, MODE, [MODE, 0, 0]), (local, MODE, [0, 0, 0]), (relaxed, 0, [0, 0, 0])];
    for (mode, here, others) in table {
        assert_eq!(call!(runtime, aclmdlRICaptureBegin(s, mode)), 0);
        assert_eq!(unsafe_call(), here, "mode {mode}");
        let got = [on_another_thread(None), on_another_thread(Some(1)), on_another_thread(Some(2))];
        assert_eq!(got, others, "mode {mode}");
        // A copy of pageable memory is none that a graph could hold, whatever the mode.
        assert_eq!(world.copy(x, host.as_ptr().cast_mut().cast(), 4, s), MODE);
        assert!(world.end(s).is_ok());
    }
    // A thread may take it upon itself.
    world.begin(s);
    let mut mode = ACL_MODEL_RI_CAPTURE_MODE_RELAXED;
    assert_eq!(call!(runtime, aclmdlRICaptureThreadExchangeMode(&mut mode)), 0);
    assert_eq!(unsafe_call(), 0);
    assert_eq!(call!(runtime, aclmdlRICaptureThreadExchangeMode(&mut mode)), 0);
    assert_eq!((mode, unsafe_call()), (ACL_MODEL_RI_CAPTURE_MODE_RELAXED, MODE));
    assert!(world.end(s).is_ok());
    assert_eq!(unsafe_call(), 0);
}

#[test]
fn memory_of_a_graph_that_was_freed_is_named_when_it_runs() {
    let world = World::of("A3");
    let s = world.stream();
    let (x, y) = (world.upload(&[1f32]), world.memory(4));
    world.begin(s);
    assert_eq!(world.negate(x, y, 1, s), 0);
    let graph = world.end(s).unwrap();
    assert_eq!(call!(world.runtime(), aclrtFree(x)), 0);
    assert_eq!(world.execute(graph, s), 0);
    assert_eq!(world.synchronize(s), 507015);
    let message = world.message();
    assert!(message.contains("aclnnNeg") && message.contains("freed by call"), "{message}");
}

#[test]
fn a_group_of_tasks_is_replaced_in_the_order_of_the_updating_stream() {
    for (adversary, seed) in adversaries() {
        let world = World::against(adversary, seed);
        let (s, updates) = (world.stream(), world.stream());
        let runtime = world.runtime();
        let (x, y) = (world.upload(&[1f32]), world.memory(4));
        world.begin(s);
        assert_eq!(call!(runtime, aclmdlRICaptureTaskGrpBegin(s)), 0);
        assert_eq!(world.scale(x, 1.0, y, s), 0);
        let mut group = null_mut();
        assert_eq!(call!(runtime, aclmdlRICaptureTaskGrpEnd(s, &mut group)), 0);
        let graph = world.end(s).unwrap();
        for alpha in [4f32, 5.0] {
            assert_eq!(call!(runtime, aclmdlRICaptureTaskUpdateBegin(updates, group)), 0);
            assert_eq!(world.scale(x, alpha, y, updates), 0, "{}", world.message());
            assert_eq!(call!(runtime, aclmdlRICaptureTaskUpdateEnd(updates)), 0);
            let updated = world.event();
            assert_eq!(world.record(updated, updates), 0);
            assert_eq!(world.wait(s, updated), 0);
            assert_eq!(world.execute(graph, s), 0);
            let ran = world.event();
            assert_eq!(world.record(ran, s), 0);
            assert_eq!(world.wait(updates, ran), 0);
            assert_eq!(world.synchronize(s), 0);
            assert_eq!(world.floats(y, 1), [1.0 + alpha], "{adversary:?} {seed}");
        }
    }
}

#[test]
fn a_graph_waits_for_external_events_anew_with_each_run() {
    let world = World::of("A3");
    let (s, t) = (world.stream(), world.stream());
    let runtime = world.runtime();
    let mut external = null_mut();
    assert_eq!(call!(runtime, aclrtCreateEventWithFlag(&mut external, ACL_EVENT_EXTERNAL)), 0);
    let (x, y) = (world.upload(&[0f32]), world.memory(4));
    world.begin(s);
    assert_eq!(world.wait(s, external), 0);
    assert_eq!(call!(runtime, aclrtResetEvent(external, s)), 0);
    assert_eq!(world.negate(x, y, 1, s), 0);
    let graph = world.end(s).unwrap();
    for value in [2f32, 3.0] {
        assert_eq!(world.execute(graph, s), 0);
        assert_eq!(call!(runtime, aclrtSynchronizeStreamWithTimeout(s, 20)), 507046);
        assert_eq!(call!(runtime, aclmdlRIDestroy(graph)), 107037);
        assert_eq!(world.copy(x, world.pinned(&[value]), 4, t), 0);
        assert_eq!(world.record(external, t), 0);
        assert_eq!(world.synchronize(s), 0);
        assert_eq!(world.floats(y, 1), [-value]);
    }
    assert_eq!(call!(runtime, aclmdlRIDestroy(graph)), 0);
}

#[test]
fn groups_hold_operators_only_and_updates_fit_them() {
    let world = World::of("A3");
    let (s, side, updates) = (world.stream(), world.stream(), world.stream());
    let runtime = world.runtime();
    let (x, y) = (world.upload(&[1f32]), world.memory(4));
    let (mut group, fork) = (null_mut(), world.event());
    assert_eq!(call!(runtime, aclmdlRICaptureTaskGrpBegin(s)), 107029);
    world.begin(s);
    assert_eq!(call!(runtime, aclmdlRICaptureTaskGrpEnd(s, &mut group)), GROUP_STATUS);
    assert_eq!(world.record(fork, s), 0);
    assert_eq!(world.wait(side, fork), 0);
    assert_eq!(call!(runtime, aclmdlRICaptureTaskGrpBegin(s)), 0);
    assert_eq!(call!(runtime, aclmdlRICaptureTaskGrpBegin(s)), GROUP_STATUS);
    assert_eq!(world.negate(x, y, 1, side), 107034);
    assert_eq!(world.copy(y, x, 4, s), 207000);
    assert_eq!(world.negate(x, y, 1, s), 0);
    assert_eq!(call!(runtime, aclmdlRICaptureTaskGrpEnd(s, &mut group)), 0);
    assert_eq!(call!(runtime, aclmdlRICaptureTaskUpdateBegin(updates, group)), 107026);
    let join = world.event();
    assert_eq!((world.record(join, side), world.wait(s, join)), (0, 0));
    let graph = world.end(s).unwrap();

    assert_eq!(call!(runtime, aclmdlRICaptureTaskUpdateEnd(updates)), GROUP_STATUS);
    assert_eq!(call!(runtime, aclmdlRICaptureTaskUpdateBegin(updates, group)), 0);
    assert_eq!(call!(runtime, aclmdlRICaptureTaskUpdateBegin(s, group)), GROUP_STATUS);
    assert_eq!(world.scale(x, 1.0, y, updates), 107000);
    assert!(world.message().contains("aclnnAdd in the place of aclnnNeg"));
    assert_eq!(world.copy(y, x, 4, updates), 207000);
    assert_eq!(call!(runtime, aclmdlRICaptureTaskUpdateEnd(updates)), GROUP_STATUS);
    assert!(world.message().contains("0 of the group's 1 tasks"));
    assert_eq!(call!(runtime, aclmdlRIDestroy(graph)), 0);
    assert_eq!(call!(runtime, aclmdlRICaptureTaskUpdateBegin(updates, group)), 107017);
}

#[test]
fn graphs_take_streams_events_and_tasks_of_a_budget() {
    let world = World::new(SimOptions {
        soc: "310P".into(),
        memory_bytes: 1 << 20,
        graph_tasks: Some(2),
        ..SimOptions::default()
    });
    let runtime = world.runtime();
    let (s, event, x) = (world.stream(), world.event(), world.memory(4));
    world.begin(s);
    assert_eq!(world.record(event, s), 0);
    let set = || call!(runtime, aclrtMemsetAsync(x, 4, 0, 4, s));
    assert_eq!((set(), set(), set()), (0, 0, 207005));
    let graph = world.end(s).unwrap();
    let mut place = null_mut();
    let made = |place: &mut aclrtStream| call!(runtime, aclrtCreateStream(place));
    // 1024 streams: one is ours, one is the graph's lane.
    let streams = (0..2000).take_while(|_| made(&mut place) == 0).count();
    assert_eq!(streams, 1022);
    assert_eq!(call!(runtime, aclmdlRICaptureBegin(s, 0)), 207008);
    let events =
        (0..2000).take_while(|_| call!(runtime, aclrtCreateEventExWithFlag(&mut place, ACL_EVENT_SYNC)) == 0);
    // 1023 events: one is ours, and once more in the graph.
    assert_eq!(events.count(), 1021);
    assert_eq!(call!(runtime, aclmdlRIDestroy(graph)), 0);
    assert_eq!(made(&mut place), 0);
}

#[test]
fn a_kernel_that_fails_or_hangs_in_a_graph_shows_on_the_stream_of_its_run() {
    let world = World::of("A3");
    let runtime = world.runtime();
    let s = world.stream();
    let (x, y) = (world.upload(&[1f32]), world.memory(4));
    world.begin(s);
    assert_eq!(world.negate(x, y, 1, s), 0);
    let graph = world.end(s).unwrap();
    world.0.plan(&[PlannedFault::Kernel { at: 1, code: 507015 }, PlannedFault::Hang { at: 2 }]).unwrap();
    assert_eq!(world.execute(graph, s), 0);
    assert_eq!(world.synchronize(s), 507015);
    let message = world.message();
    assert!(message.contains("aclmdlRIExecuteAsync") && message.contains("aclnnNeg"), "{message}");
    assert_eq!(call!(runtime, aclmdlRIExecute(graph, 20)), 507046);
    assert_eq!(call!(runtime, aclmdlRIExecute(graph, -1)), 0, "{}", world.message());
    assert_eq!(world.floats(y, 1), [-1.0]);
    assert!(call!(runtime, aclmdlRIDestroy(graph)) == 0);
}

#[test]
fn what_is_left_of_captures_is_reported() {
    let world = World::of("A3");
    let s = world.stream();
    world.begin(s);
    assert!(world.0.report().unwrap().to_string().contains("1 captures"));
    assert!(world.end(s).is_ok());
    let report = world.0.report().unwrap().to_string();
    assert!(report.contains("1 graphs") && !report.contains("captures"), "{report}");
    assert_eq!(call!(world.runtime(), aclrtResetDevice(0)), 0);
    assert!(!world.0.report().unwrap().to_string().contains("graphs"));
}
