//! Order between streams: whatever the timing, the result is that of program order.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_core::call::{Binary, Copy};
use portolan_core::{Stream, Tensor};
use portolan_cpu::Executor;
use portolan_ops::Access;
use portolan_ops::kernel::BinaryKind;
use rig::{custom, device, down, f32s, queued, racing, slow_copy, stream, up};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const LEN: usize = 97;
const LATE: Duration = Duration::from_millis(15);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % n as u64) as usize
    }
}

/// A program over few tensors and streams: sums, halves, copies, uploads, tensors replaced by fresh memory.
/// Every step names its stream at random; the model does the same on the host, in program order.
fn random_program(streams: &[Stream], seed: u64, steps: usize) {
    let mut random = Random(seed);
    let values = |step: usize| (0..LEN).map(|i| (step * 31 + i) as f32 * 0.25).collect::<Vec<f32>>();
    let mut model: Vec<Vec<f32>> = (0..5).map(values).collect();
    let mut tensors: Vec<Tensor> = model.iter().map(|data| up(&streams[0], data)).collect();
    let mut early = Vec::new();
    for step in 0..steps {
        let s = &streams[random.below(streams.len())];
        let out = random.below(tensors.len());
        let a = (out + 1 + random.below(tensors.len() - 1)) % tensors.len();
        let b = (out + 1 + random.below(tensors.len() - 1)) % tensors.len();
        match random.below(8) {
            0 | 1 => {
                let (x, y) = (tensors[a].clone(), tensors[b].clone());
                s.run(Binary::add(&x, &y, &mut tensors[out]).unwrap()).unwrap();
                model[out] = model[a].iter().zip(&model[b]).map(|(x, y)| x + y).collect();
            }
            2 | 3 => {
                let x = tensors[a].clone();
                s.run(Binary::scalar(BinaryKind::Mul, &x, 0.25, &mut tensors[out]).unwrap()).unwrap();
                model[out] = model[a].iter().map(|x| x * 0.25).collect();
            }
            4 => {
                // The old memory goes while work that reads it may be in flight.
                let mut fresh = s.empty(&f32s(LEN)).unwrap();
                s.run(Copy::new(&tensors[a], &mut fresh).unwrap()).unwrap();
                tensors[out] = fresh;
                model[out] = model[a].clone();
            }
            5 => {
                s.write(&tensors[out], &values(step)).unwrap();
                model[out] = values(step);
            }
            6 => {
                // A temporary that dies at once.
                let mut sum = s.empty(&f32s(LEN)).unwrap();
                s.run(Binary::add(&tensors[a], &tensors[b], &mut sum).unwrap()).unwrap();
                let other = &streams[random.below(streams.len())];
                other.run(Binary::scalar(BinaryKind::Mul, &sum, 0.5, &mut tensors[out]).unwrap()).unwrap();
                model[out] = model[a].iter().zip(&model[b]).map(|(x, y)| (x + y) * 0.5).collect();
            }
            _ => early.push((step, s.download::<f32>(&tensors[a]).unwrap(), model[a].clone())),
        }
    }
    for (step, pending, want) in early {
        assert_eq!(pending.wait().unwrap(), want, "seed {seed}: download of step {step}");
    }
    for (i, want) in model.iter().enumerate() {
        let s = &streams[random.below(streams.len())];
        assert_eq!(&down(s, &tensors[i]), want, "seed {seed}: tensor {i} at the end");
    }
}

#[test]
fn random_programs_over_streams_give_what_program_order_gives() {
    for (seed, (_, device)) in racing(12).enumerate() {
        let streams: Vec<Stream> = (0..2 + seed % 2).map(|_| stream(&device)).collect();
        random_program(&streams, seed as u64, 300);
    }
    let inline = device(Executor::Inline);
    random_program(&[stream(&inline), stream(&inline)], 5, 300);
}

#[test]
fn a_read_waits_for_the_write_of_another_stream() {
    let device = queued();
    let (a, b) = (stream(&device), stream(&device));
    let (x, y) = (up(&a, &[7.0; 4]), up(&a, &[0.0; 4]));
    a.run(slow_copy(&x, &y, LATE)).unwrap();
    assert_eq!(down(&b, &y), [7.0; 4]);
}

#[test]
fn a_write_waits_for_the_read_of_another_stream() {
    let device = queued();
    let (a, b) = (stream(&device), stream(&device));
    let (x, y) = (up(&a, &[7.0; 4]), up(&a, &[0.0; 4]));
    a.run(slow_copy(&x, &y, LATE)).unwrap();
    b.write(&x, &[1f32; 4]).unwrap();
    assert_eq!((down(&b, &y), down(&a, &x)), (vec![7.0; 4], vec![1.0; 4]));
}

#[test]
fn a_write_waits_for_the_write_of_another_stream() {
    let device = queued();
    let (a, b) = (stream(&device), stream(&device));
    let (x, y) = (up(&a, &[7.0; 4]), up(&a, &[0.0; 4]));
    a.run(slow_copy(&x, &y, LATE)).unwrap();
    b.write(&y, &[1f32; 4]).unwrap();
    assert_eq!(down(&b, &y), [1.0; 4]);
}

#[test]
fn work_on_unrelated_tensors_is_not_ordered() {
    let device = queued();
    let (a, b) = (stream(&device), stream(&device));
    let (x, y) = (up(&a, &[7.0; 4]), up(&a, &[0.0; 4]));
    let other = up(&b, &[3.0; 4]);
    a.synchronize().unwrap();
    a.run(slow_copy(&x, &y, Duration::from_millis(300))).unwrap();
    let start = std::time::Instant::now();
    assert_eq!(down(&b, &other), [3.0; 4]);
    // Reading what the busy stream reads is no reason to wait either.
    assert_eq!(down(&b, &x), [7.0; 4]);
    assert!(start.elapsed() < Duration::from_millis(250), "{:?}", start.elapsed());
}

/// A kernel that counts, and one that notes the count it sees: order without any shared operand.
#[test]
fn an_explicit_event_orders_work_that_shares_no_operand() {
    for (executor, device) in racing(4) {
        let (a, b) = (stream(&device), stream(&device));
        let (x, y) = (up(&a, &[0.0]), up(&b, &[0.0]));
        let count = Arc::new(AtomicUsize::new(0));
        let counting = count.clone();
        a.run(custom("count", vec![(x, Access::ReadWrite)], move |_| {
            std::thread::sleep(LATE);
            counting.store(1, Ordering::SeqCst);
            Ok(())
        }))
        .unwrap();
        b.wait(&a.record().unwrap()).unwrap();
        b.run(custom("note", vec![(y.clone(), Access::ReadWrite)], move |operands| {
            operands[0].write::<f32>()?[0] = count.load(Ordering::SeqCst) as f32;
            Ok(())
        }))
        .unwrap();
        assert_eq!(down(&b, &y), [1.0], "{executor:?}");
    }
}

#[test]
fn an_event_does_not_cover_what_its_stream_waited_for_later() {
    let device = queued();
    let (a, b, c) = (stream(&device), stream(&device), stream(&device));
    let (x, y) = (up(&a, &[7.0; 4]), up(&a, &[0.0; 4]));
    a.synchronize().unwrap();
    let early = b.record().unwrap();
    a.run(slow_copy(&x, &y, LATE)).unwrap();
    // b now waits for a; c waits for b as it was before.
    b.wait(&a.record().unwrap()).unwrap();
    c.wait(&early).unwrap();
    assert_eq!(down(&c, &y), [7.0; 4]);
}

#[test]
fn order_is_inherited_through_a_stream_in_between() {
    for (executor, device) in racing(4) {
        let (a, b, c) = (stream(&device), stream(&device), stream(&device));
        let (x, mut y, mut z) = (up(&a, &[7.0; 4]), up(&a, &[0.0; 4]), up(&a, &[0.0; 4]));
        let w = up(&a, &[0.0; 4]);
        a.run(slow_copy(&x, &y, LATE)).unwrap();
        b.run(Copy::new(&y, &mut z).unwrap()).unwrap();
        c.wait(&b.record().unwrap()).unwrap();
        c.run(Copy::new(&w, &mut y).unwrap()).unwrap();
        assert_eq!((down(&c, &z), down(&b, &y)), (vec![7.0; 4], vec![0.0; 4]), "{executor:?}");
    }
}

#[test]
fn events_measure_the_time_between_them_on_one_stream() {
    let device = queued();
    let (a, b) = (stream(&device), stream(&device));
    let (x, y) = (up(&a, &[7.0; 4]), up(&a, &[0.0; 4]));
    let start = a.record().unwrap();
    a.run(slow_copy(&x, &y, LATE)).unwrap();
    let end = a.record().unwrap();
    end.synchronize().unwrap();
    assert!(end.is_complete().unwrap());
    assert!(end.elapsed_since(&start).unwrap() >= LATE);
    assert!(b.record().unwrap().elapsed_since(&start).is_err());
}

#[test]
fn host_threads_may_share_a_stream_or_have_their_own() {
    for (executor, device) in racing(3) {
        let shared = stream(&device);
        let total = up(&shared, &[0.0; LEN]);
        let one = up(&shared, &[1.0; LEN]);
        std::thread::scope(|scope| {
            for own in [false, true, false, true] {
                let (s, one, total) = (shared.clone(), &one, total.clone());
                let s = if own { stream(&device) } else { s };
                scope.spawn(move || {
                    for _ in 0..50 {
                        // In place: each sum depends on all before, whichever thread they came from.
                        s.run(Binary::add(&total, one, &mut total.clone()).unwrap()).unwrap();
                    }
                });
            }
        });
        assert_eq!(down(&shared, &total), [200.0; LEN], "{executor:?}");
    }
}

#[test]
fn streams_may_come_and_go_while_their_results_stay() {
    for (executor, device) in racing(3) {
        let keep = stream(&device);
        let mut x = up(&keep, &[1.0; LEN]);
        for _ in 0..40 {
            let s = stream(&device);
            let mut next = s.empty(&f32s(LEN)).unwrap();
            s.run(Binary::scalar(BinaryKind::Add, &x, 1.0, &mut next).unwrap()).unwrap();
            x = next;
        }
        assert_eq!(down(&keep, &x), [41.0; LEN], "{executor:?}");
    }
}
