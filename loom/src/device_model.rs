//! The submission lock of a device, the way of freed memory back to its pool, and the way of faults.

use crate::sync::thread;
use crate::toy::{bytes, device, device_thread, stream};
use portolan_ops::OpError;

/// One grain of the pool.
const BLOCK: usize = 256;

#[test]
fn one_stream_takes_the_work_of_two_threads_in_the_order_of_its_numbers() {
    loom::model(|| {
        let (device, books) = device();
        let s = stream(&device);
        let (x, y) = (s.empty(&bytes(BLOCK)).unwrap(), s.empty(&bytes(BLOCK)).unwrap());
        let other = {
            let s = s.clone();
            // The toy's queue fails when a submission's number is not above the one before.
            thread::spawn(move || s.write(&y, &[0u8; BLOCK]).unwrap())
        };
        s.write(&x, &[0u8; BLOCK]).unwrap();
        other.join().unwrap();
        s.synchronize().unwrap();
        let books = books.lock().unwrap();
        assert_eq!((books.executed.len(), &books.executed), (2, &books.submitted));
    });
}

#[test]
fn two_streams_write_one_buffer_in_the_order_of_submission() {
    loom::model(|| {
        let (device, books) = device();
        let streams = [stream(&device), stream(&device)];
        let x = streams[0].empty(&bytes(BLOCK)).unwrap();
        let other = {
            let (s, x) = (streams[1].clone(), x.clone());
            thread::spawn(move || s.write(&x, &[0u8; BLOCK]).unwrap())
        };
        streams[0].write(&x, &[0u8; BLOCK]).unwrap();
        other.join().unwrap();
        // Either may be worked off first: the later one waits on the device.
        let devices = [0, 1].map(|number| device_thread(&books, number, 1));
        devices.into_iter().for_each(|thread| thread.join().unwrap());
        streams.iter().for_each(|s| s.synchronize().unwrap());
        let books = books.lock().unwrap();
        assert_eq!((books.executed.len(), &books.executed), (2, &books.submitted));
    });
}

#[test]
fn freed_memory_is_not_reused_before_the_streams_that_used_it_have_passed() {
    loom::model(|| {
        let (device, books) = device();
        let (home, guest) = (stream(&device), stream(&device));
        let x = home.empty(&bytes(BLOCK)).unwrap();
        let address = x.buffer().address();
        guest.write(&x, &[0u8; BLOCK]).unwrap();
        let worker = device_thread(&books, 1, 1);
        let dropper = thread::spawn(move || drop(x));
        let y = home.empty(&bytes(BLOCK)).unwrap();
        if y.buffer().address() == address {
            assert!(books.lock().unwrap().in_flight.is_empty(), "reused while the guest stream writes it");
        }
        worker.join().unwrap();
        dropper.join().unwrap();
        guest.synchronize().unwrap();
        drop(y);
        assert_eq!(device.memory().unwrap().bytes_in_use, 0);
    });
}

#[test]
fn memory_of_a_stream_that_went_on_another_thread_is_given_back() {
    loom::model(|| {
        let (device, books) = device();
        let (stays, goes) = (stream(&device), stream(&device));
        let x = goes.empty(&bytes(2 * BLOCK)).unwrap();
        let leaver = thread::spawn(move || drop((goes, x)));
        // Takes the submission lock, and with it whatever has been left so far.
        device.memory().unwrap();
        leaver.join().unwrap();
        assert_eq!(device.memory().unwrap().bytes_in_use, 0);
        // All of the first segment is free for the one stream that is left.
        let all: Vec<_> = (0..8).map(|_| stays.empty(&bytes(256 << 10)).unwrap()).collect();
        assert_eq!(device.memory().unwrap().reservations, 1);
        drop((all, stays, device));
        assert_eq!(books.lock().unwrap().segments, 0);
    });
}

#[test]
fn whoever_reads_the_result_of_a_failed_copy_is_told() {
    loom::model(|| {
        let (device, books) = device();
        let [writes, reads, bystander] = [(); 3].map(|()| stream(&device));
        let (x, y) = (writes.empty(&bytes(BLOCK)).unwrap(), bystander.empty(&bytes(BLOCK)).unwrap());
        books.lock().unwrap().bad = Some((0, x.buffer().address()));
        writes.write(&x, &[0u8; BLOCK]).unwrap();
        let worker = device_thread(&books, 0, 2);
        // Its own copy would succeed. Refused at once, or by whoever waits: the failure may come before or after.
        let outcome = reads.download::<u8>(&x).and_then(|pending| pending.wait());
        assert!(matches!(outcome, Err(OpError::Poisoned { .. })), "{outcome:?}");
        worker.join().unwrap();
        assert!(matches!(reads.synchronize(), Err(OpError::Poisoned { .. })));
        bystander.write(&y, &[0u8; BLOCK]).unwrap();
        bystander.synchronize().unwrap();
    });
}
