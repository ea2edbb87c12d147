//! Functions that streams leave for threads of the program, waits that end in time, and what the driver says of itself.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_cann_sys::bindings::*;
use rig::{World, call};
use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

type Callback = Option<unsafe extern "C" fn(*mut c_void)>;

/// Functions of the runtime that the table of symbols does not list.
struct Reports {
    subscribe: Subscribe,
    unsubscribe: Subscribe,
    process: Process,
}

type Subscribe = unsafe extern "C" fn(u64, aclrtStream) -> i32;
type Process = unsafe extern "C" fn(i32) -> i32;

impl World {
    fn reports(&self) -> Reports {
        let find = |name| self.runtime().address(name).unwrap();
        // SAFETY: the vendor's prototypes of these three.
        unsafe {
            Reports {
                subscribe: std::mem::transmute::<*mut c_void, Subscribe>(find("aclrtSubscribeReport")),
                unsubscribe: std::mem::transmute::<*mut c_void, Subscribe>(find("aclrtUnSubscribeReport")),
                process: std::mem::transmute::<*mut c_void, Process>(find("aclrtProcessReport")),
            }
        }
    }

    fn launch(&self, function: Callback, argument: *const AtomicU32, block: i32, stream: aclrtStream) -> i32 {
        call!(self.runtime(), aclrtLaunchCallback(function, argument.cast_mut().cast(), block, stream))
    }
}

fn this_thread() -> u64 {
    unsafe extern "C" {
        fn pthread_self() -> u64;
    }
    // SAFETY: takes nothing and cannot fail.
    unsafe { pthread_self() }
}

unsafe extern "C" fn count(counter: *mut c_void) {
    // SAFETY: the test passes a counter that outlives the stream.
    unsafe { &*counter.cast::<AtomicU32>() }.fetch_add(1, Ordering::SeqCst);
}

#[test]
fn a_thread_that_subscribed_calls_what_the_stream_left_and_holds_it_up_where_asked() {
    let world = World::of("A3");
    let (s, counter, reports) = (world.stream(), AtomicU32::new(0), world.reports());
    assert_eq!(world.launch(Some(count), &counter, 0, s), 107015);
    let address = s.expose_provenance();
    let (ready, go) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(call!(world.runtime(), aclrtSetDevice(0)), 0);
            let stream = std::ptr::with_exposed_provenance_mut(address);
            // SAFETY: a stream of this world; functions of the runtime.
            unsafe {
                assert_eq!((reports.process)(5), 107012);
                assert_eq!((reports.subscribe)(this_thread(), stream), 0);
                assert_eq!((reports.subscribe)(this_thread(), stream), 107011);
                assert_eq!((reports.process)(5), 507012);
                ready.wait();
                go.wait();
                while counter.load(Ordering::SeqCst) < 2 {
                    assert_eq!((reports.process)(20_000), 0);
                }
                assert_eq!((reports.unsubscribe)(this_thread(), stream), 0);
                assert_eq!((reports.unsubscribe)(this_thread(), stream), 107015);
            }
        });
        ready.wait();
        assert_eq!(world.launch(Some(count), &counter, 0, s), 0);
        // The stream does not wait for the first, whose thread is not there yet; it does for the second.
        assert_eq!(world.synchronize(s), 0);
        assert_eq!(world.launch(Some(count), &counter, 1, s), 0);
        assert_eq!(call!(world.runtime(), aclrtSynchronizeStreamWithTimeout(s, 20)), 507046);
        assert_eq!(counter.load(Ordering::SeqCst), 0);
        go.wait();
        assert_eq!(world.synchronize(s), 0);
        assert_eq!(counter.load(Ordering::SeqCst), 2);
    });
    assert_eq!(world.launch(None, &counter, 0, s), 107000);
    assert_eq!(world.launch(Some(count), &counter, 2, s), 107000);
}

#[test]
fn a_wait_with_a_timeout_fails_its_stream_and_one_without_does_not() {
    let world = World::of("A3");
    let runtime = world.runtime();
    let s = world.stream();
    let mut never = null_mut();
    assert_eq!(call!(runtime, aclrtCreateEvent(&mut never)), 0);
    let start = Instant::now();
    assert_eq!(call!(runtime, aclrtStreamWaitEventWithTimeout(s, never, 1)), 0);
    assert_eq!(world.synchronize(s), 107019);
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert!(world.message().contains("was not reached within 1s"), "{}", world.message());
    assert_eq!(call!(runtime, aclrtStreamWaitEventWithTimeout(s, never, -1)), 107000);
    // The default of all waits.
    assert_eq!(call!(runtime, aclrtSetOpWaitTimeout(1)), 0);
    assert_eq!(call!(runtime, aclrtStreamWaitEvent(s, never)), 0);
    assert_eq!(world.synchronize(s), 107019);
    // For ever: nothing comes of it but the host's own timeout.
    assert_eq!(call!(runtime, aclrtStreamWaitEventWithTimeout(s, never, 0)), 0);
    assert_eq!(call!(runtime, aclrtSynchronizeStreamWithTimeout(s, 1500)), 507046);
    assert_eq!(call!(runtime, aclrtStreamAbort(s)), 0);
    // Work that is only late is none that takes too long.
    let (t, e) = (world.stream(), world.event());
    assert_eq!(call!(runtime, aclrtRecordEvent(e, t)), 0);
    assert_eq!(call!(runtime, aclrtStreamWaitEventWithTimeout(s, e, 1)), 0);
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(world.synchronize(s), 107023);
    assert_eq!(world.synchronize(s), 0);
}

#[test]
fn the_driver_says_what_it_is() {
    let world = World::of("A2");
    let runtime = world.runtime();
    let mut value = -1;
    for (information, want) in [(0, 20), (1, 40), (2, 192 << 20)] {
        assert_eq!(call!(runtime, aclGetDeviceCapability(0, information, &mut value)), 0);
        assert_eq!(value, want);
    }
    assert_eq!(call!(runtime, aclGetDeviceCapability(0, 3, &mut value)), 107000);
    assert_eq!(call!(runtime, aclGetDeviceCapability(9, 0, &mut value)), 107001);
    assert_eq!(call!(runtime, aclrtGetDeviceInfo(0, ACL_DEV_ATTR_NPU_ARCH, &mut value)), 0);
    assert_eq!(value, 2201);
    let (mut name, mut text, mut number) = (*b"runtime\0", [0 as c_char; 128], 0);
    let package: *mut c_char = name.as_mut_ptr().cast();
    assert_eq!(call!(runtime, aclsysGetVersionStr(package, text.as_mut_ptr())), 0);
    // SAFETY: a text with its zero byte.
    assert_eq!(unsafe { CStr::from_ptr(text.as_ptr()) }, c"9.1.0");
    assert_eq!(call!(runtime, aclsysGetVersionNum(package, &mut number)), 0);
    assert_eq!(number, 90_100_000);
    name[0] = b'x';
    let package: *mut c_char = name.as_mut_ptr().cast();
    assert_eq!(call!(runtime, aclsysGetVersionNum(package, &mut number)), 107000);
}
