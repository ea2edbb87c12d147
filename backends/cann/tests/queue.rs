//! Copies, streams and events of the Ascend backend under every adversary: what operators will stand on.
#![allow(clippy::unwrap_used, missing_docs)]

mod mutants;
mod rig;

use portolan_cann::{CannBackend, CannOptions, Product};
use portolan_cann_sys::sim::{Adversary, PlannedFault, SimOptions, SimWorld};
use portolan_core::call::{Fill, Unary};
use portolan_core::{Backend, Registry, StreamOptions};
use portolan_ops::kernel::UnaryKind;
use portolan_ops::{ErrorKind, OpError};
use rig::{adversaries, assert_empties, backend_in, f32s, open, options, shape, stream, world};
use std::time::Duration;

#[test]
fn devices_are_named_after_their_chip_and_say_that_they_are_simulated() {
    for (soc, product, name) in [
        ("310P", Product::P310, "Ascend310P3 SIMULATED"),
        ("A2", Product::A2, "Ascend910B3 SIMULATED"),
        ("A3", Product::A3, "Ascend910_9391 SIMULATED"),
        ("950", Product::A5, "Ascend950 SIMULATED"),
    ] {
        let world = world(soc, Adversary::Late, 0);
        let backend = backend_in(&world);
        assert_eq!(backend.product().unwrap(), product);
        let devices = backend.devices().unwrap();
        assert_eq!(devices.len(), 2);
        assert_eq!((devices[1].id.to_string().as_str(), devices[1].name.as_str()), ("cann:1", name));
        assert_eq!(devices[0].memory_bytes, 256 << 20);
    }
}

#[test]
fn without_a_driver_the_backend_is_unavailable_and_says_what_is_missing() {
    let backend = CannBackend::new(CannOptions { folder: Some("/nowhere".into()), ..CannOptions::default() });
    let registry = Registry::new().with(backend);
    let unavailable = registry.unavailable();
    assert_eq!(unavailable.len(), 1);
    let text = unavailable[0].1.to_string();
    assert!(text.contains("libascendcl.so") && text.contains("ASCEND_HOME_PATH"), "{text}");
    assert_eq!(registry.open("cann:0").unwrap_err().kind(), ErrorKind::Unavailable);
}

#[test]
fn what_is_uploaded_comes_back_whatever_the_schedule() {
    for (adversary, seed) in adversaries() {
        let world = world("A3", adversary, seed);
        let device = open(&world);
        let s = stream(&device);
        let mut pending = Vec::new();
        for i in 0..20usize {
            let data: Vec<f32> = (0..i * 37).map(|k| (k + i) as f32).collect();
            let x = s.upload(&data, &shape(data.len())).unwrap();
            pending.push((s.download::<f32>(&x).unwrap(), data));
            // The tensor goes while its copies are in flight: its memory is the next one's.
            drop(x);
        }
        for (got, want) in pending.into_iter().rev() {
            assert_eq!(got.wait().unwrap(), want, "{adversary:?} {seed}");
        }
        drop((s, device));
        assert_empties(&world);
    }
}

#[test]
fn streams_that_share_a_tensor_are_ordered_whatever_the_schedule() {
    for soc in ["A2", "A3"] {
        for (adversary, seed) in adversaries() {
            let world = world(soc, adversary, seed);
            let device = open(&world);
            let (a, b, c) = (stream(&device), stream(&device), stream(&device));
            let x = a.upload(&[0f32; 100], &shape(100)).unwrap();
            let mut reads = Vec::new();
            for round in 0..10 {
                let value = round as f32;
                a.write(&x, &[value; 100]).unwrap();
                reads.push((b.download::<f32>(&x).unwrap(), value));
                c.write(&x, &[value + 0.5; 100]).unwrap();
                reads.push((b.download::<f32>(&x).unwrap(), value + 0.5));
            }
            for (got, want) in reads {
                assert_eq!(got.wait().unwrap(), [want; 100], "{soc} {adversary:?} {seed}");
            }
        }
    }
}

#[test]
fn a_block_freed_on_one_stream_is_not_overwritten_while_another_reads_it() {
    for (adversary, seed) in adversaries() {
        let world = world("A3", adversary, seed);
        let device = open(&world);
        let (home, guest) = (stream(&device), stream(&device));
        for round in 0..5 {
            let x = home.upload(&[round as f32; 1000], &shape(1000)).unwrap();
            let read = guest.download::<f32>(&x).unwrap();
            drop(x);
            let others: Vec<_> = (0..8).map(|_| home.upload(&[-1f32; 1000], &shape(1000)).unwrap()).collect();
            home.synchronize().unwrap();
            assert_eq!(read.wait().unwrap(), [round as f32; 1000], "{adversary:?} {seed}");
            drop(others);
        }
    }
}

#[test]
fn explicit_events_order_measure_and_complete() {
    for (adversary, seed) in adversaries() {
        let world = world("A2", adversary, seed);
        let device = open(&world);
        let (a, b) = (stream(&device), stream(&device));
        let x = a.empty(&f32s(1000)).unwrap();
        let start = a.record().unwrap();
        a.write(&x, &[1f32; 1000]).unwrap();
        let end = a.record().unwrap();
        b.wait(&end).unwrap();
        let behind = b.record().unwrap();
        behind.synchronize().unwrap();
        assert!(start.is_complete().unwrap() && end.is_complete().unwrap());
        assert!(end.elapsed_since(&start).unwrap() > Duration::ZERO);
        assert!(behind.elapsed_since(&start).is_err());
    }
}

#[test]
fn handles_of_events_and_pinned_memory_are_used_again() {
    let world = world("310P", Adversary::Late, 3);
    let device = open(&world);
    let s = stream(&device);
    let x = s.empty(&f32s(1000)).unwrap();
    // Far more than the product has.
    for _ in 0..3000 {
        s.write(&x, &[1f32; 1000]).unwrap();
        s.record().unwrap().synchronize().unwrap();
    }
    let calls = world.calls(0).unwrap();
    let count = |name: &str| calls.iter().filter(|call| call.name == name).count();
    assert!(count("aclrtCreateEventExWithFlag") <= 4, "{}", count("aclrtCreateEventExWithFlag"));
    assert!(count("aclrtMallocHost") <= 4, "{}", count("aclrtMallocHost"));
}

#[test]
fn every_call_has_its_context_on_whatever_thread() {
    let world = world("A3", Adversary::Seeded, 5);
    let registry = Registry::new().with(backend_in(&world));
    let devices = [registry.open("cann:0").unwrap(), registry.open("cann:1").unwrap()];
    let streams = devices.each_ref().map(stream);
    // Tensors of both devices are made and dropped by turns, on threads that never saw the driver.
    std::thread::scope(|scope| {
        for worker in 0..4u8 {
            let streams = streams.clone();
            scope.spawn(move || {
                for round in 0..10u8 {
                    let tensors = streams.each_ref().map(|s| s.upload(&[worker, round], &shape(2)).unwrap());
                    for (s, x) in streams.iter().zip(&tensors).rev() {
                        assert_eq!(s.download::<u8>(x).unwrap().wait().unwrap(), [worker, round]);
                    }
                }
            });
        }
    });
    drop((streams, devices, registry));
    let refused = world.calls(0).unwrap().into_iter().find(|call| call.code == Some(107002));
    assert_eq!(refused, None);
    assert_empties(&world);
}

#[test]
fn a_fault_poisons_its_stream_and_no_other_and_keeps_the_vendors_words() {
    let world = world("A3", Adversary::Late, 0);
    let device = open(&world);
    let (a, b) = (stream(&device), stream(&device));
    let x = a.upload(&[1f32; 10], &shape(10)).unwrap();
    a.synchronize().unwrap();
    // The segment is taken away under the library's feet, as another library's bug would.
    let segment = world.calls(0).unwrap().into_iter().find(|call| call.name == "aclrtMalloc").unwrap();
    assert_eq!(segment.code, Some(0));
    let address = core::ptr::without_provenance_mut(x.buffer().address());
    let y = b.upload(&[2f32; 10], &shape(10)).unwrap();
    b.synchronize().unwrap();
    let pending = a.download::<f32>(&x).unwrap();
    let runtime = &world.libraries().runtime;
    // SAFETY: the first block of the only segment is at the segment's address.
    unsafe {
        assert_eq!((runtime.aclrtSetDevice().unwrap())(0), 0);
        assert_eq!((runtime.aclrtFree().unwrap())(address), 0);
        assert_eq!((runtime.aclrtResetDevice().unwrap())(0), 0);
    }
    let error = pending.wait().unwrap_err();
    let OpError::Poisoned { source, op, .. } = &error else { panic!("{error}") };
    assert_eq!(op, "copy");
    let OpError::Driver { code, name, message, .. } = source.as_ref() else { panic!("{source}") };
    assert_eq!((*code, name.as_ref()), (507015, "RT_AICORE_EXCEPTION"));
    assert!(message.contains("freed by call") && message.contains("blocking streams"), "{message}");
    assert!(a.write(&x, &[0f32; 10]).is_err());
    b.synchronize().unwrap();
    drop(y);
}

/// The driver tells of failures where one waits: a stream that waits behind each launch knows which it was.
#[test]
fn a_stream_that_blocks_names_the_launch_that_failed_and_another_an_interval() {
    for blocking in [true, false] {
        let world = world("A3", Adversary::Late, 0);
        let s = open(&world).stream(StreamOptions { blocking, ..StreamOptions::default() }).unwrap();
        let x = s.upload(&[1f32], &shape(1)).unwrap();
        let mut y = s.empty(&f32s(1)).unwrap();
        s.synchronize().unwrap();
        world.plan(&[PlannedFault::Kernel { at: 2, code: 507015 }]).unwrap();
        let mut neg = || s.run(Unary::new(UnaryKind::Neg, &x, &mut y).unwrap());
        let failed = [neg(), neg(), neg()].iter().position(Result::is_err);
        assert_eq!(failed, blocking.then_some(1));
        let OpError::Poisoned { seq, source, .. } = s.synchronize().unwrap_err() else {
            panic!("not poisoned")
        };
        // The upload was the first submission.
        assert_eq!(seq, if blocking { 3 } else { 2 });
        assert_eq!(source.to_string().contains("between submissions 2 and 4"), !blocking, "{source}");
    }
}

#[test]
fn a_wait_ends_with_the_streams_timeout() {
    let world = world("A3", Adversary::Late, 0);
    let device = open(&world);
    let options = StreamOptions { timeout: Duration::from_millis(40), ..StreamOptions::default() };
    let s = device.stream(options).unwrap();
    let x = s.upload(&[1f32], &shape(1)).unwrap();
    // Nothing hangs by itself yet: the driver is told to say so.
    let call = "aclrtSynchronizeStreamWithTimeout".into();
    world.plan(&[PlannedFault::Call { call, at: 1, code: 507046 }]).unwrap();
    let error = s.synchronize().unwrap_err();
    assert!(matches!(error, OpError::Timeout { .. }), "{error}");
    // It was only late.
    assert_eq!(s.download::<f32>(&x).unwrap().wait().unwrap(), [1.0]);
}

#[test]
fn a_driver_without_a_symbol_refuses_its_operators_by_name_and_no_others() {
    let hidden = ["aclnnInplaceFillScalarGetWorkspaceSize", "aclnnErf"].map(str::to_owned).to_vec();
    let world = SimWorld::new(&SimOptions { hidden, ..options("A3", Adversary::Late, 0) }).unwrap();
    let device = open(&world);
    let s = stream(&device);
    let error = s.run(Fill::new(&mut s.empty(&f32s(4)).unwrap(), 1.0).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let text = error.to_string();
    assert!(text.contains("cann:0") && text.contains("aclnnInplaceFillScalarGetWorkspaceSize"), "{text}");
    let x = s.upload(&[1f32, -2.0], &shape(2)).unwrap();
    let mut y = s.empty(&f32s(2)).unwrap();
    // A symbol of the second phase counts as well: nothing is planned that cannot be launched.
    let error = s.run(Unary::new(UnaryKind::Erf, &x, &mut y).unwrap()).unwrap_err();
    assert!(error.to_string().contains("the driver has no aclnnErf"), "{error}");
    s.run(Unary::new(UnaryKind::Neg, &x, &mut y).unwrap()).unwrap();
    assert_eq!(s.download::<f32>(&y).unwrap().wait().unwrap(), [-1.0, 2.0]);
    drop((x, y, s, device));
    assert_empties(&world);
}

#[test]
fn a_driver_without_the_newer_events_does_as_well() {
    let hidden = vec!["aclrtCreateEventExWithFlag".to_owned()];
    let world = SimWorld::new(&SimOptions { hidden, ..options("A2", Adversary::Late, 0) }).unwrap();
    let device = open(&world);
    let (a, b) = (stream(&device), stream(&device));
    for round in 0..50u8 {
        let x = a.upload(&[round], &shape(1)).unwrap();
        assert_eq!(b.download::<u8>(&x).unwrap().wait().unwrap(), [round]);
    }
    drop((a, b, device));
    assert_empties(&world);
}

/// Every driver call of a small program fails in turn, with an error of the driver's, and as a lost device.
#[test]
fn whichever_call_fails_the_error_is_typed_nothing_hangs_and_a_new_device_works() {
    let program = |world: &SimWorld| -> Result<Vec<f32>, OpError> {
        let registry = Registry::new().with(backend_in(world));
        let device = registry.open("cann:0")?;
        let timeout = Duration::from_secs(20);
        let options = StreamOptions { timeout, ..StreamOptions::default() };
        let (a, b) = (device.stream(options.clone())?, device.stream(options)?);
        let x = a.upload(&[1f32, 2.0], &shape(2))?;
        let first = b.download::<f32>(&x)?;
        b.write(&x, &[3f32, 4.0])?;
        let second = a.download::<f32>(&x)?;
        let mut all = first.wait()?;
        all.extend(second.wait()?);
        a.synchronize()?;
        Ok(all)
    };
    let whole = world("A3", Adversary::Late, 0);
    assert_eq!(program(&whole).unwrap(), [1.0, 2.0, 3.0, 4.0]);
    let count = whole.calls(0).unwrap().len() as u64;
    assert!(count > 30, "{count}");
    let mut failed = 0;
    for at in 1..=count {
        for lost in [false, true] {
            let world = world("A3", Adversary::Late, 0);
            let fault = match lost {
                false => PlannedFault::Call { call: "*".into(), at, code: 500000 },
                true => PlannedFault::Lost { at, code: 507899 },
            };
            world.plan(&[fault]).unwrap();
            match program(&world) {
                Ok(all) => {
                    assert_eq!(all, [1.0, 2.0, 3.0, 4.0], "call {at}: a wrong answer without an error")
                }
                Err(error) => {
                    failed += 1;
                    let kinds = [ErrorKind::DeviceLost, ErrorKind::Unavailable];
                    assert!(kinds.contains(&error.kind()), "call {at}: {error}");
                }
            }
            world.plan(&[]).unwrap();
            assert_eq!(program(&world).unwrap(), [1.0, 2.0, 3.0, 4.0], "after call {at}");
        }
    }
    assert!(failed > 30, "{failed}");
}
