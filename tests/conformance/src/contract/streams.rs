//! Order within and between streams: whatever the timing, the result is that of program order.

use crate::rig::{Check, Random, Rig, down, ensure_eq, f32s, up};
use portolan_core::call::{Binary, Copy};
use portolan_core::{Stream, Tensor};
use portolan_ops::Result;
use portolan_ops::kernel::BinaryKind;

const LEN: usize = 97;

/// A program over few tensors and streams: sums, products, copies, uploads, tensors replaced by fresh memory.
/// Every step names its stream at random; the model does the same on the host, in program order.
fn random_program(streams: &[Stream], seed: u64, steps: usize) -> Check {
    let mut random = Random(seed);
    let values = |step: usize| (0..LEN).map(|i| (step * 31 + i) as f32 * 0.25).collect::<Vec<f32>>();
    let mut model: Vec<Vec<f32>> = (0..5).map(values).collect();
    let mut tensors: Vec<Tensor> = model.iter().map(|data| up(&streams[0], data)).collect::<Result<_>>()?;
    let mut early = Vec::new();
    for step in 0..steps {
        let s = &streams[random.below(streams.len())];
        let out = random.below(tensors.len());
        let a = (out + 1 + random.below(tensors.len() - 1)) % tensors.len();
        let b = (out + 1 + random.below(tensors.len() - 1)) % tensors.len();
        match random.below(8) {
            0 | 1 => {
                let (x, y) = (tensors[a].clone(), tensors[b].clone());
                s.run(Binary::add(&x, &y, &mut tensors[out])?)?;
                model[out] = model[a].iter().zip(&model[b]).map(|(x, y)| x + y).collect();
            }
            2 | 3 => {
                let x = tensors[a].clone();
                s.run(Binary::scalar(BinaryKind::Mul, &x, 0.25, &mut tensors[out])?)?;
                model[out] = model[a].iter().map(|x| x * 0.25).collect();
            }
            4 => {
                // The old memory goes while work that reads it may be in flight.
                let mut fresh = s.empty(&f32s(LEN)?)?;
                s.run(Copy::new(&tensors[a], &mut fresh)?)?;
                tensors[out] = fresh;
                model[out] = model[a].clone();
            }
            5 => {
                s.write(&tensors[out], &values(step))?;
                model[out] = values(step);
            }
            6 => {
                // A temporary that dies at once.
                let mut sum = s.empty(&f32s(LEN)?)?;
                s.run(Binary::add(&tensors[a], &tensors[b], &mut sum)?)?;
                let other = &streams[random.below(streams.len())];
                other.run(Binary::scalar(BinaryKind::Mul, &sum, 0.5, &mut tensors[out])?)?;
                model[out] = model[a].iter().zip(&model[b]).map(|(x, y)| (x + y) * 0.5).collect();
            }
            _ => early.push((step, s.download::<f32>(&tensors[a])?, model[a].clone())),
        }
    }
    for (step, pending, want) in early {
        ensure_eq!(pending.wait()?, want, "seed {seed}: download of step {step}");
    }
    for (i, want) in model.iter().enumerate() {
        let s = &streams[random.below(streams.len())];
        ensure_eq!(&down(s, &tensors[i])?, want, "seed {seed}: tensor {i} at the end");
    }
    Ok(())
}

pub(crate) fn random_programs_over_streams_give_what_program_order_gives(rig: &Rig) -> Check {
    for seed in 0..4 {
        let streams = (0..2 + seed % 2).map(|_| rig.stream()).collect::<Result<Vec<_>>>()?;
        random_program(&streams, seed, 300)?;
    }
    Ok(())
}

pub(crate) fn an_upload_waits_for_earlier_work_of_its_stream(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let (x, y) = (up(&s, &[7.0; 4])?, up(&s, &[0.0; 4])?);
    rig.slow_copy(&s, &x, &y)?;
    s.write(&x, &[1f32; 4])?;
    ensure_eq!(down(&s, &y)?, [7.0; 4], "what was read before the upload");
    ensure_eq!(down(&s, &x)?, [1.0; 4], "what was uploaded");
    Ok(())
}

pub(crate) fn a_download_waits_for_earlier_work_of_its_stream(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let (x, y) = (up(&s, &[7.0; 4])?, up(&s, &[0.0; 4])?);
    s.synchronize()?;
    rig.slow_copy(&s, &x, &y)?;
    ensure_eq!(down(&s, &y)?, [7.0; 4], "what the copy wrote");
    Ok(())
}

pub(crate) fn a_read_waits_for_the_write_of_another_stream(rig: &Rig) -> Check {
    let (a, b) = (rig.stream()?, rig.stream()?);
    let (x, y) = (up(&a, &[7.0; 4])?, up(&a, &[0.0; 4])?);
    a.synchronize()?;
    rig.slow_copy(&a, &x, &y)?;
    ensure_eq!(down(&b, &y)?, [7.0; 4], "what the other stream reads");
    Ok(())
}

pub(crate) fn a_write_waits_for_the_read_of_another_stream(rig: &Rig) -> Check {
    let (a, b) = (rig.stream()?, rig.stream()?);
    let (x, y) = (up(&a, &[7.0; 4])?, up(&a, &[0.0; 4])?);
    rig.slow_copy(&a, &x, &y)?;
    b.write(&x, &[1f32; 4])?;
    ensure_eq!((down(&b, &y)?, down(&a, &x)?), (vec![7.0; 4], vec![1.0; 4]), "the copy, and its source");
    Ok(())
}

pub(crate) fn a_write_waits_for_the_write_of_another_stream(rig: &Rig) -> Check {
    let (a, b) = (rig.stream()?, rig.stream()?);
    let (x, y) = (up(&a, &[7.0; 4])?, up(&a, &[0.0; 4])?);
    rig.slow_copy(&a, &x, &y)?;
    b.write(&y, &[1f32; 4])?;
    // Only once both are done: the earlier write must not come last.
    a.synchronize()?;
    ensure_eq!(down(&b, &y)?, [1.0; 4], "what was written last");
    Ok(())
}

pub(crate) fn order_is_inherited_through_a_stream_in_between(rig: &Rig) -> Check {
    let (a, b, c) = (rig.stream()?, rig.stream()?, rig.stream()?);
    let (x, mut y, mut z) = (up(&a, &[7.0; 4])?, up(&a, &[0.0; 4])?, up(&a, &[0.0; 4])?);
    let w = up(&a, &[0.0; 4])?;
    rig.slow_copy(&a, &x, &y)?;
    b.run(Copy::new(&y, &mut z)?)?;
    c.wait(&b.record()?)?;
    c.run(Copy::new(&w, &mut y)?)?;
    ensure_eq!((down(&c, &z)?, down(&b, &y)?), (vec![7.0; 4], vec![0.0; 4]), "copy, then overwritten source");
    Ok(())
}

pub(crate) fn host_threads_may_share_a_stream_or_have_their_own(rig: &Rig) -> Check {
    let shared = rig.stream()?;
    let total = up(&shared, &[0.0; LEN])?;
    let one = up(&shared, &[1.0; LEN])?;
    let work = |s: Stream, total: Tensor| -> Result<()> {
        // In place: each sum depends on all before, whichever thread they came from.
        (0..50).try_for_each(|_| s.run(Binary::add(&total, &one, &mut total.clone())?))
    };
    let streams = [shared.clone(), rig.stream()?, shared.clone(), rig.stream()?];
    std::thread::scope(|scope| {
        let threads = streams.map(|s| {
            let (total, work) = (total.clone(), &work);
            scope.spawn(move || work(s, total))
        });
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    ensure_eq!(down(&shared, &total)?, [200.0; LEN], "the sum of all threads");
    Ok(())
}

pub(crate) fn streams_may_come_and_go_while_their_results_stay(rig: &Rig) -> Check {
    let keep = rig.stream()?;
    let mut x = up(&keep, &[1.0; LEN])?;
    for _ in 0..40 {
        let s = rig.stream()?;
        let mut next = s.empty(&f32s(LEN)?)?;
        s.run(Binary::scalar(BinaryKind::Add, &x, 1.0, &mut next)?)?;
        x = next;
    }
    ensure_eq!(down(&keep, &x)?, [41.0; LEN], "the result of 40 streams");
    Ok(())
}
