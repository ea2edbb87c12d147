//! The simulated runtime through its C interface: what it refuses, when work runs, where errors show, what it reports.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan_cann_sys::bindings::*;
use portolan_cann_sys::sim::{Adversary, Instead, PlannedFault, SimError, SimOptions, SimWorld};
use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::time::{Duration, Instant};

const CONTEXT_NULL: i32 = 107002;
const STREAM_CONTEXT: i32 = 107003;

/// Calls a function of the driver: its code.
macro_rules! call {
    ($world:expr, $name:ident($($arg:expr),* $(,)?)) => {
        // SAFETY: arguments as the interface asks for, or wrong ones that the simulator has to refuse.
        unsafe { ($world.libraries().runtime.$name().unwrap())($($arg),*) }
    };
}

fn world_of(options: SimOptions) -> SimWorld {
    let world = SimWorld::new(&options).unwrap();
    assert_eq!(call!(world, aclInit(null())), 0);
    assert_eq!(call!(world, aclrtSetDevice(0)), 0);
    world
}

fn world(adversary: Adversary) -> SimWorld {
    world_of(SimOptions { adversary, memory_bytes: 64 << 20, ..SimOptions::default() })
}

fn message(world: &SimWorld) -> String {
    world.libraries().recent_message().unwrap_or_default()
}

fn device_memory(world: &SimWorld, bytes: usize) -> *mut c_void {
    let mut address = null_mut();
    assert_eq!(call!(world, aclrtMalloc(&mut address, bytes, 0)), 0, "{}", message(world));
    address
}

fn pinned(world: &SimWorld, data: &[u8]) -> *mut c_void {
    let mut address = null_mut();
    assert_eq!(call!(world, aclrtMallocHost(&mut address, data.len())), 0);
    // SAFETY: just allocated, so long.
    unsafe { address.cast::<u8>().copy_from_nonoverlapping(data.as_ptr(), data.len()) };
    address
}

fn stream(world: &SimWorld) -> aclrtStream {
    let mut stream = null_mut();
    assert_eq!(call!(world, aclrtCreateStream(&mut stream)), 0);
    stream
}

fn event(world: &SimWorld) -> aclrtEvent {
    let mut event = null_mut();
    assert_eq!(call!(world, aclrtCreateEventExWithFlag(&mut event, ACL_EVENT_SYNC | ACL_EVENT_TIME_LINE)), 0);
    event
}

fn read(world: &SimWorld, address: *mut c_void, bytes: usize) -> Vec<u8> {
    let mut data = vec![0u8; bytes];
    let code =
        call!(world, aclrtMemcpy(data.as_mut_ptr().cast(), bytes, address, bytes, ACL_MEMCPY_DEVICE_TO_HOST));
    assert_eq!(code, 0, "{}", message(world));
    data
}

fn upload(world: &SimWorld, to: *mut c_void, from: *mut c_void, bytes: usize, on: aclrtStream) -> i32 {
    call!(world, aclrtMemcpyAsync(to, bytes, from, bytes, ACL_MEMCPY_HOST_TO_DEVICE, on))
}

fn copy(world: &SimWorld, to: *mut c_void, from: *mut c_void, bytes: usize, on: aclrtStream) -> i32 {
    call!(world, aclrtMemcpyAsync(to, bytes, from, bytes, ACL_MEMCPY_DEVICE_TO_DEVICE, on))
}

#[test]
fn a_thread_without_a_device_is_refused_with_the_documented_code() {
    let world = world(Adversary::Late);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut address = null_mut();
            assert_eq!(call!(world, aclrtMalloc(&mut address, 64, 0)), CONTEXT_NULL);
            assert!(message(&world).contains("aclrtSetDevice"), "{}", message(&world));
            // The message was read, and is gone.
            assert_eq!(call!(world, aclrtMalloc(&mut address, 64, 0)), CONTEXT_NULL);
            assert!(!message(&world).is_empty());
            assert!(message(&world).is_empty());
        });
    });
}

#[test]
fn streams_and_events_of_another_context_are_refused() {
    let world = world(Adversary::Late);
    let (s, e) = (stream(&world), event(&world));
    assert_eq!(call!(world, aclrtSetDevice(1)), 0);
    assert_eq!(call!(world, aclrtSynchronizeStream(s)), STREAM_CONTEXT);
    assert_eq!(call!(world, aclrtSynchronizeEvent(e)), STREAM_CONTEXT);
    assert_eq!(call!(world, aclrtDestroyStream(s)), STREAM_CONTEXT);
    assert_eq!(call!(world, aclrtSetDevice(0)), 0);
    assert_eq!(call!(world, aclrtDestroyStream(s)), 0);
    assert_ne!(call!(world, aclrtSynchronizeStream(s)), 0);
    assert!(message(&world).contains("was destroyed"));
    assert_eq!(call!(world, aclrtDestroyEvent(e)), 0);
}

#[test]
fn fresh_memory_is_poison_and_wrong_ranges_are_named() {
    let world = world(Adversary::Late);
    let a = device_memory(&world, 100);
    assert_eq!(a.addr() % 64, 0);
    assert_eq!(read(&world, a, 100), [0xff; 100]);
    let mut data = [0u8; 101];
    let code = call!(world, aclrtMemcpy(data.as_mut_ptr().cast(), 101, a, 101, ACL_MEMCPY_DEVICE_TO_HOST));
    assert_ne!(code, 0);
    assert!(message(&world).contains("reach beyond allocation 1"), "no name");
    let code = call!(world, aclrtMemcpy(data.as_mut_ptr().cast(), 50, a, 100, ACL_MEMCPY_DEVICE_TO_HOST));
    assert_eq!(code, 107000);
    let mut none = null_mut();
    assert_ne!(call!(world, aclrtMalloc(&mut none, 0, 0)), 0);
    assert_eq!(call!(world, aclrtMalloc(&mut none, 1 << 30, 0)), 207018);
    assert_ne!(call!(world, aclrtFree(null_mut())), 0);
    assert_eq!(call!(world, aclrtFree(a)), 0);
    assert_ne!(call!(world, aclrtFree(a)), 0);
    assert!(message(&world).contains("freed by call"));
}

#[test]
fn free_and_total_bytes_add_up() {
    let world = world(Adversary::Late);
    let (mut before, mut after, mut total) = (0, 0, 0);
    assert_eq!(call!(world, aclrtGetMemInfo(ACL_HBM_MEM, &mut before, &mut total)), 0);
    let a = device_memory(&world, 1000);
    assert_eq!(call!(world, aclrtGetMemInfo(ACL_HBM_MEM, &mut after, &mut total)), 0);
    // Rounded up to 32 bytes, and 32 more.
    assert_eq!((before, total, before - after), (64 << 20, 64 << 20, 1024 + 32));
    assert_eq!(call!(world, aclrtFree(a)), 0);
}

#[test]
fn late_work_does_not_run_before_somebody_waits_and_early_work_does() {
    for (adversary, at_once) in [(Adversary::Late, false), (Adversary::Early, true)] {
        let world = world(adversary);
        let (s, a, host) = (stream(&world), device_memory(&world, 4), pinned(&world, &[1, 2, 3, 4]));
        assert_eq!(upload(&world, a, host, 4, s), 0);
        assert_eq!(read(&world, a, 4) == [1, 2, 3, 4], at_once, "{adversary:?}");
        assert_eq!(call!(world, aclrtSynchronizeStream(s)), 0);
        assert_eq!(read(&world, a, 4), [1, 2, 3, 4]);
    }
}

#[test]
fn waiting_runs_what_is_required_and_nothing_more() {
    let world = world(Adversary::Late);
    let (a, b, c) = (stream(&world), stream(&world), stream(&world));
    let (x, y, z) = (device_memory(&world, 1), device_memory(&world, 1), device_memory(&world, 1));
    let one = pinned(&world, &[1]);
    let e = event(&world);
    assert_eq!(upload(&world, x, one, 1, a), 0);
    assert_eq!(call!(world, aclrtRecordEvent(e, a)), 0);
    assert_eq!(upload(&world, z, one, 1, a), 0);
    assert_eq!(call!(world, aclrtStreamWaitEvent(b, e)), 0);
    assert_eq!(copy(&world, y, x, 1, b), 0);
    assert_eq!(upload(&world, z, one, 1, c), 0);
    assert_eq!(call!(world, aclrtSynchronizeStream(b)), 0);
    assert_eq!((read(&world, x, 1), read(&world, y, 1)), (vec![1], vec![1]));
    // What a and c have beyond the event is still to come.
    assert_eq!(read(&world, z, 1), [0xff]);
    assert_eq!(call!(world, aclrtSynchronizeDevice()), 0);
    assert_eq!(read(&world, z, 1), [1]);
}

#[test]
fn a_missing_wait_gives_a_wrong_answer_every_time() {
    for seed in 0..20 {
        let options = SimOptions { seed, memory_bytes: 1 << 20, ..SimOptions::default() };
        let world = world_of(options);
        let (a, b) = (stream(&world), stream(&world));
        let (x, y) = (device_memory(&world, 1), device_memory(&world, 1));
        let one = pinned(&world, &[1]);
        assert_eq!(upload(&world, x, one, 1, a), 0);
        assert_eq!(copy(&world, y, x, 1, b), 0);
        assert_eq!(call!(world, aclrtSynchronizeStream(b)), 0);
        assert_eq!(read(&world, y, 1), [0xff], "seed {seed}");
    }
}

#[test]
fn work_of_two_streams_that_nothing_orders_is_reported_once() {
    let world = world(Adversary::Late);
    let (a, b, c) = (stream(&world), stream(&world), stream(&world));
    let (first, second) = (event(&world), event(&world));
    let (x, y) = (device_memory(&world, 4), device_memory(&world, 4));
    let one = pinned(&world, &[1; 4]);
    let reported = || {
        let lines = world.report().unwrap().lines().to_vec();
        lines.into_iter().filter(|line| line.contains("nothing orders the two")).collect::<Vec<_>>()
    };
    // Other bytes of one allocation, and then all of it behind two events.
    assert_eq!(upload(&world, x, one, 2, a), 0);
    assert_eq!(upload(&world, x.wrapping_byte_add(2), one, 2, b), 0);
    assert_eq!(call!(world, aclrtRecordEvent(first, a)), 0);
    assert_eq!(call!(world, aclrtStreamWaitEvent(c, first)), 0);
    assert_eq!(call!(world, aclrtRecordEvent(second, c)), 0);
    assert_eq!(call!(world, aclrtStreamWaitEvent(b, second)), 0);
    assert_eq!(copy(&world, y, x, 4, b), 0);
    // What the host has waited for.
    assert_eq!(call!(world, aclrtSynchronizeStream(b)), 0);
    assert_eq!(upload(&world, x, one, 4, a), 0);
    assert_eq!(reported(), [""; 0]);
    // Behind the event there is more.
    assert_eq!(call!(world, aclrtStreamWaitEvent(b, first)), 0);
    for _ in 0..2 {
        assert_eq!(copy(&world, y, x, 4, b), 0);
    }
    let [line] = reported().try_into().unwrap();
    assert!(line.starts_with("aclrtMemcpyAsync (call "), "{line}");
    assert!(line.contains("reads what aclrtMemcpyAsync (call "), "{line}");
}

#[test]
fn a_planned_mistake_is_another_argument() {
    let world = world(Adversary::Late);
    let mistake = |at, argument: &str, instead| {
        let (call, argument) = ("aclrtMemsetAsync".to_owned(), argument.to_owned());
        PlannedFault::Argument { call, at, argument, instead }
    };
    let earlier = |argument: &str, plus| {
        let (call, argument) = ("aclrtMemsetAsync".to_owned(), argument.to_owned());
        Instead::Earlier { call, at: 1, argument, plus }
    };
    let (s, x) = (stream(&world), device_memory(&world, 4));
    let set = |value, bytes| call!(world, aclrtMemsetAsync(x, 4, value, bytes, s));
    world
        .plan(&[
            mistake(2, "bytes", Instead::Number(9)),
            mistake(3, "address", earlier("address", 1)),
            mistake(3, "value", Instead::Number(6)),
            mistake(4, "bytes", earlier("nothing", 0)),
        ])
        .unwrap();
    assert_eq!((set(5, 2), set(5, 2), set(5, 1), set(5, 1)), (0, 107000, 0, 500000));
    assert!(message(&world).contains("call 1 of aclrtMemsetAsync has no number nothing"));
    assert_eq!(call!(world, aclrtSynchronizeStream(s)), 0);
    assert_eq!(read(&world, x, 4), [5, 6, 0xff, 0xff]);
}

#[test]
fn a_seed_replays_and_seeds_differ() {
    // Four streams write one byte without any order: who is last is the seed's choice.
    let outcome = |seed| {
        let options =
            SimOptions { adversary: Adversary::Seeded, seed, memory_bytes: 1 << 20, ..SimOptions::default() };
        let world = world_of(options);
        let x = device_memory(&world, 1);
        for round in 0..6u8 {
            for i in 0..4u8 {
                let s = stream(&world);
                assert_eq!(upload(&world, x, pinned(&world, &[round * 4 + i]), 1, s), 0);
            }
        }
        let seen = read(&world, x, 1);
        assert_eq!(call!(world, aclrtSynchronizeDevice()), 0);
        (seen, read(&world, x, 1))
    };
    let all: Vec<_> = (0..10).map(outcome).collect();
    assert_eq!(all, (0..10).map(outcome).collect::<Vec<_>>());
    assert!(all.iter().any(|one| *one != all[0]), "ten seeds, one order: {all:?}");
}

#[test]
fn memory_freed_before_its_use_is_a_fault_that_names_it() {
    let world = world(Adversary::Late);
    let (s, x, host) = (stream(&world), device_memory(&world, 8), pinned(&world, &[5; 8]));
    assert_eq!(upload(&world, x, host, 8, s), 0);
    assert_eq!(call!(world, aclrtFree(x)), 0);
    assert_eq!(call!(world, aclrtSynchronizeStream(s)), 507015);
    let text = message(&world);
    assert!(text.contains("allocation 1") && text.contains("freed by call"), "{text}");
    // Told once, in the mode that goes on after errors.
    assert_eq!(call!(world, aclrtSynchronizeStream(s)), 0);

    let y = device_memory(&world, 8);
    assert_eq!(upload(&world, y, host, 8, s), 0);
    assert_eq!(call!(world, aclrtFreeHost(host)), 0);
    assert_eq!(call!(world, aclrtSynchronizeStream(s)), 507015);
    assert!(message(&world).contains("pinned memory"));
}

#[test]
fn a_stream_that_stops_on_errors_skips_the_rest_and_says_so_each_time() {
    let world = world(Adversary::Late);
    let s = stream(&world);
    assert_eq!(call!(world, aclrtSetStreamFailureMode(s, 1)), 0);
    let (x, y, host) = (device_memory(&world, 1), device_memory(&world, 1), pinned(&world, &[1]));
    let (before, after) = (event(&world), event(&world));
    assert_eq!(call!(world, aclrtRecordEvent(before, s)), 0);
    assert_eq!(upload(&world, x, host, 1, s), 0);
    assert_eq!(upload(&world, y, host, 1, s), 0);
    assert_eq!(call!(world, aclrtRecordEvent(after, s)), 0);
    assert_eq!(call!(world, aclrtFree(x)), 0);
    for _ in 0..2 {
        assert_eq!(call!(world, aclrtSynchronizeStream(s)), 507015);
    }
    assert_eq!(call!(world, aclrtSynchronizeEvent(before)), 0);
    assert_eq!(call!(world, aclrtSynchronizeEvent(after)), 507015);
    assert_eq!(read(&world, y, 1), [0xff]);
}

#[test]
fn pageable_memory_is_copied_before_the_call_returns_and_the_host_alone_is_refused() {
    let world = world(Adversary::Late);
    let (s, x) = (stream(&world), device_memory(&world, 3));
    let mut data = vec![1u8, 2, 3];
    assert_eq!(upload(&world, x, data.as_mut_ptr().cast(), 3, s), 0);
    data.fill(9);
    assert_eq!(read(&world, x, 3), [1, 2, 3]);
    let host = data.as_mut_ptr().cast();
    assert_eq!(call!(world, aclrtMemcpyAsync(host, 3, host, 3, ACL_MEMCPY_HOST_TO_HOST, s)), 207000);
    // The kind is taken at its word.
    assert_eq!(call!(world, aclrtMemcpyAsync(x, 3, host, 3, ACL_MEMCPY_DEVICE_TO_DEVICE, s)), 107000);
}

#[test]
fn rectangles_leave_the_bytes_between_alone() {
    let world = world(Adversary::Late);
    let (s, x, host) = (stream(&world), device_memory(&world, 8), pinned(&world, &[1, 2, 3, 4, 5, 6]));
    let code = call!(world, aclrtMemcpy2dAsync(x, 4, host, 3, 2, 2, ACL_MEMCPY_HOST_TO_DEVICE, s));
    assert_eq!(code, 0, "{}", message(&world));
    assert_eq!(call!(world, aclrtMemsetAsync(x.wrapping_byte_add(7), 1, 7, 1, s)), 0);
    assert_eq!(call!(world, aclrtSynchronizeStream(s)), 0);
    assert_eq!(read(&world, x, 8), [1, 2, 0xff, 0xff, 4, 5, 0xff, 7]);
}

#[test]
fn waits_end_in_time_and_a_stream_that_hangs_can_be_aborted() {
    let world = world(Adversary::Late);
    let s = stream(&world);
    let mut never = null_mut();
    assert_eq!(call!(world, aclrtCreateEvent(&mut never)), 0);
    assert_eq!(call!(world, aclrtStreamWaitEvent(s, never)), 0);
    let start = Instant::now();
    assert_eq!(call!(world, aclrtSynchronizeStreamWithTimeout(s, 30)), 507046);
    assert!(start.elapsed() >= Duration::from_millis(30));
    let e = event(&world);
    assert_eq!(call!(world, aclrtRecordEvent(e, s)), 0);
    assert_eq!(call!(world, aclrtSynchronizeEventWithTimeout(e, 10)), 507047);
    assert_eq!(call!(world, aclrtSynchronizeStreamWithTimeout(s, 0)), 107000);
    assert_eq!(call!(world, aclrtStreamAbort(s)), 0);
    assert_eq!(call!(world, aclrtSynchronizeStream(s)), 107023);
    assert!(world.report().unwrap().lines().iter().any(|line| line.contains("has not been recorded")));
}

#[test]
fn whoever_only_asks_is_answered_in_the_end() {
    let world = world(Adversary::Late);
    let (s, x, host) = (stream(&world), device_memory(&world, 1), pinned(&world, &[1]));
    let e = event(&world);
    assert_eq!(upload(&world, x, host, 1, s), 0);
    assert_eq!(call!(world, aclrtRecordEvent(e, s)), 0);
    let mut status = ACL_EVENT_RECORDED_STATUS_NOT_READY;
    let mut asked = 0;
    while status == ACL_EVENT_RECORDED_STATUS_NOT_READY {
        assert_eq!(call!(world, aclrtQueryEventStatus(e, &mut status)), 0);
        asked += 1;
    }
    assert!((2..=10).contains(&asked), "{asked}");
    let mut status = ACL_STREAM_STATUS_NOT_READY;
    assert_eq!(call!(world, aclrtStreamQuery(s, &mut status)), 0);
    assert_eq!(status, ACL_STREAM_STATUS_COMPLETE);
}

#[test]
fn events_keep_the_time_of_their_stream() {
    let world = world(Adversary::Late);
    let (s, t) = (stream(&world), stream(&world));
    let (start, end, other) = (event(&world), event(&world), event(&world));
    let x = device_memory(&world, 1 << 20);
    let mut elapsed = -1f32;
    assert_eq!(call!(world, aclrtRecordEvent(start, s)), 0);
    assert_eq!(call!(world, aclrtMemsetAsync(x, 1 << 20, 0, 1 << 20, s)), 0);
    assert_eq!(call!(world, aclrtRecordEvent(end, s)), 0);
    assert_eq!(call!(world, aclrtRecordEvent(other, t)), 0);
    assert_eq!(call!(world, aclrtEventElapsedTime(&mut elapsed, start, end)), 107006);
    assert_eq!(call!(world, aclrtSynchronizeDevice()), 0);
    assert_eq!(call!(world, aclrtEventElapsedTime(&mut elapsed, start, end)), 0);
    assert!(elapsed > 0.0, "{elapsed}");
    assert_eq!(call!(world, aclrtEventElapsedTime(&mut elapsed, start, other)), 107006);
}

unsafe extern "C" fn set_flag(flag: *mut c_void) {
    // SAFETY: the test passes a flag that outlives the stream.
    unsafe { &*flag.cast::<std::sync::atomic::AtomicBool>() }
        .store(true, std::sync::atomic::Ordering::SeqCst);
}

#[test]
fn a_stream_calls_functions_of_the_program_in_order_and_without_being_asked() {
    let world = world(Adversary::Late);
    let flag = std::sync::atomic::AtomicBool::new(false);
    let s = stream(&world);
    let code = call!(world, aclrtLaunchHostFunc(s, Some(set_flag), (&raw const flag).cast_mut().cast()));
    assert_eq!(code, 0);
    let start = Instant::now();
    while !flag.load(std::sync::atomic::Ordering::SeqCst) {
        assert!(start.elapsed() < Duration::from_secs(20), "never called");
        std::thread::yield_now();
    }
    assert_eq!(call!(world, aclrtSynchronizeStream(s)), 0);
}

#[test]
fn planned_faults_happen_where_they_were_planned() {
    let faults = vec![
        PlannedFault::Call { call: "aclrtMalloc".into(), at: 2, code: 207018 },
        PlannedFault::Lost { at: 9, code: 507899 },
    ];
    // Calls: init 1, set device 2, malloc 3 to 5 with two messages, sizes 8, and 9.
    let world = world_of(SimOptions { faults, ..SimOptions::default() });
    let mut address = null_mut();
    let codes: Vec<i32> = (0..3).map(|_| call!(world, aclrtMalloc(&mut address, 64, 0))).collect();
    assert_eq!(codes, [0, 207018, 0]);
    let mut count = 0;
    for _ in 0..4 {
        assert_eq!(call!(world, aclrtGetDeviceCount(&mut count)), 0);
    }
    assert_eq!(call!(world, aclrtMalloc(&mut address, 64, 0)), 507899);
    assert_eq!(call!(world, aclrtSynchronizeDevice()), 507899);
}

#[test]
fn a_hidden_symbol_is_missing_and_no_other() {
    let hidden = vec!["aclrtLaunchHostFunc".to_owned()];
    let world = world_of(SimOptions { hidden, ..SimOptions::default() });
    let runtime = &world.libraries().runtime;
    let error = runtime.aclrtLaunchHostFunc().unwrap_err().to_string();
    assert!(error.contains("aclrtLaunchHostFunc") && error.contains("libascendcl.so"), "{error}");
    assert!(runtime.aclrtCreateStream().is_ok() && runtime.aclrtLaunchCallback().is_ok());
    let unknown = SimOptions { hidden: vec!["aclrtNothing".into()], ..SimOptions::default() };
    assert!(matches!(SimWorld::new(&unknown), Err(SimError::Folder { .. })));
}

#[test]
fn worlds_know_nothing_of_each_other() {
    let a = world_of(SimOptions { soc: "A2".into(), devices: 1, ..SimOptions::default() });
    let b = world_of(SimOptions { soc: "950".into(), devices: 3, ..SimOptions::default() });
    let soc = |world: &SimWorld| {
        let name = call!(world, aclrtGetSocName());
        // SAFETY: a text that lives as long as the library.
        unsafe { std::ffi::CStr::from_ptr(name) }.to_str().unwrap().to_owned()
    };
    assert_eq!((soc(&a).as_str(), soc(&b).as_str()), ("Ascend910B3", "Ascend950"));
    let (mut one, mut three) = (0, 0);
    assert_eq!(call!(a, aclrtGetDeviceCount(&mut one)), 0);
    assert_eq!(call!(b, aclrtGetDeviceCount(&mut three)), 0);
    assert_eq!((one, three), (1, 3));
    let address = device_memory(&a, 64);
    assert_ne!(call!(b, aclrtFree(address)), 0);
    let bad = SimOptions { soc: "A9".into(), ..SimOptions::default() };
    assert!(matches!(SimWorld::new(&bad), Err(SimError::Refused(_))));
}

#[test]
fn the_log_has_every_call_with_arguments_and_result() {
    let world = world(Adversary::Late);
    let mut address = null_mut();
    call!(world, aclrtMalloc(&mut address, 640, 0));
    call!(world, aclrtFree(address));
    call!(world, aclrtFree(address));
    let calls = world.calls(0).unwrap();
    let names: Vec<&str> = calls.iter().map(|call| call.name.as_str()).collect();
    assert_eq!(names, ["aclInit", "aclrtSetDevice", "aclrtMalloc", "aclrtFree", "aclrtFree"]);
    assert_eq!(calls[2].arguments["size"], 640);
    assert_eq!(calls[3].arguments["address"], format!("{address:p}"));
    assert_eq!((calls[3].code, calls[4].code), (Some(0), Some(107000)));
    assert!(calls[4].message.contains("freed by call 4"), "{}", calls[4].message);
    assert_eq!(world.calls(4).unwrap().len(), 1);
}

#[test]
fn what_is_left_is_reported_by_kind() {
    let world = world(Adversary::Late);
    assert!(world.report().unwrap().is_clean());
    let address = device_memory(&world, 10);
    let (s, e, host) = (stream(&world), event(&world), pinned(&world, &[1]));
    let dims = [2i64, 3];
    // SAFETY: arrays as long as their counts.
    let tensor = unsafe {
        (world.libraries().descriptors.aclCreateTensor().unwrap())(
            dims.as_ptr(),
            2,
            ACL_FLOAT,
            null(),
            0,
            ACL_FORMAT_ND,
            dims.as_ptr(),
            2,
            address,
        )
    };
    let report = world.report().unwrap().to_string();
    for part in ["allocation 1 of 10 bytes", "1 bytes of pinned", "1 streams", "1 events", "1 aclTensor"] {
        assert!(report.contains(part), "{part}: {report}");
    }
    // SAFETY: made above.
    assert_eq!(unsafe { (world.libraries().descriptors.aclDestroyTensor().unwrap())(tensor) }, 0);
    // SAFETY: a second time, which is refused.
    assert_eq!(unsafe { (world.libraries().descriptors.aclDestroyTensor().unwrap())(tensor) }, 161002);
    assert_eq!(call!(world, aclrtDestroyStream(s)), 0);
    assert_eq!(call!(world, aclrtDestroyEvent(e)), 0);
    assert_eq!(call!(world, aclrtFreeHost(host)), 0);
    assert_eq!(call!(world, aclrtFree(address)), 0);
    assert!(world.report().unwrap().is_clean(), "{}", world.report().unwrap());
}

#[test]
fn events_and_streams_run_out_where_the_product_says() {
    let world = world_of(SimOptions { soc: "310P".into(), ..SimOptions::default() });
    let mut place = null_mut();
    let made =
        (0..2000).take_while(|_| call!(world, aclrtCreateEventExWithFlag(&mut place, ACL_EVENT_SYNC)) == 0);
    assert_eq!(made.count(), 1023);
    let made = (0..2000).take_while(|_| call!(world, aclrtCreateStream(&mut place)) == 0);
    assert_eq!(made.count(), 1024);
}

#[test]
fn a_list_owns_its_members() {
    let world = world(Adversary::Late);
    let d = &world.libraries().descriptors;
    let dims = [4i64];
    // SAFETY: arrays as long as their counts; handles of this driver.
    unsafe {
        let make = || {
            (d.aclCreateTensor().unwrap())(
                dims.as_ptr(),
                1,
                ACL_FLOAT16,
                null(),
                0,
                ACL_FORMAT_ND,
                dims.as_ptr(),
                1,
                null_mut(),
            )
        };
        let members = [make().cast_const(), make().cast_const()];
        let list = (d.aclCreateTensorList().unwrap())(members.as_ptr(), 2);
        let mut size = 0;
        assert_eq!((d.aclGetTensorListSize().unwrap())(list, &mut size), 0);
        assert_eq!(size, 2);
        assert_eq!((d.aclDestroyTensorList().unwrap())(list), 0);
        assert_eq!((d.aclDestroyTensor().unwrap())(members[0]), 161002);
        let mut value = 2.5f32;
        let scalar = (d.aclCreateScalar().unwrap())((&raw mut value).cast(), ACL_FLOAT);
        assert_eq!((d.aclDestroyScalar().unwrap())(scalar), 0);
        assert_eq!((d.aclDestroyScalar().unwrap())(null()), 0);
        // An unknown element type, and a negative extent.
        assert!(
            (d.aclCreateTensor().unwrap())(
                dims.as_ptr(),
                1,
                99,
                null(),
                0,
                ACL_FORMAT_ND,
                dims.as_ptr(),
                1,
                null_mut()
            )
            .is_null()
        );
        let bad = [-1i64];
        assert!(
            (d.aclCreateTensor().unwrap())(
                bad.as_ptr(),
                1,
                ACL_FLOAT,
                null(),
                0,
                ACL_FORMAT_ND,
                bad.as_ptr(),
                1,
                null_mut()
            )
            .is_null()
        );
        assert!(message(&world).contains("-1 is negative"));
    }
    assert!(world.report().unwrap().is_clean());
}

/// A child process that follows a device address ends by a signal, with the allocation named on standard error.
#[test]
fn a_host_that_touches_device_memory_is_stopped_and_told_what_it_touched() {
    const CHILD: &str = "PORTOLAN_CANN_SIM_TOUCH";
    if std::env::var_os(CHILD).is_some() {
        let world = world(Adversary::Late);
        let address = device_memory(&world, 128);
        // SAFETY: none: this is what has to fault.
        let value = unsafe { address.cast::<u8>().wrapping_add(5).read_volatile() };
        println!("read {value}");
        return;
    }
    let name = "a_host_that_touches_device_memory_is_stopped_and_told_what_it_touched";
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(!child.status.success(), "{said}");
    assert!(said.contains("byte 5 of allocation 1 (128 bytes)") && said.contains("aclrtMalloc"), "{said}");
}
