//! Faults: they poison what depends on them, name their first cause, and nothing else.
//!
//! The fault is a gather whose index lies outside; a device that cannot see that cannot be held to this.

use crate::rig::{Check, Rig, Stop, down, ensure, ensure_eq, expect_data, f32s, launch_fault, refused, up};
use portolan_core::call::{Binary, Copy};
use portolan_core::{Pending, Stream, StreamOptions};
use portolan_ops::{OpError, Result, Shape};

/// The submissions that one of failed first, which must be the gather of stream `origin`; only a device that tells late may
/// name several.
fn poisoned<T>(rig: &Rig, result: Result<T>, origin: u64, what: &str) -> Check<(u64, u64)> {
    let (stream, op, seq, source) = match refused(result, what)? {
        OpError::Poisoned { stream, op, seq, source } => (stream, op, seq, source),
        other => return Err(Stop::Broken(format!("{what}: not Poisoned: {other}"))),
    };
    let text = source.to_string();
    ensure_eq!(stream, origin, "{what}: the stream of `{text}`");
    ensure!(text.contains('9'), "{what}: the index is not named: {text}");
    if let (OpError::Driver { message, .. }, true) = (source.as_ref(), rig.tells_late)
        && let Some((first, last, operators)) = interval(message)
    {
        ensure_eq!(first, seq, "{what}: the first of several submissions");
        ensure!(operators.contains("gather"), "{what}: the operator is not among them: {text}");
        return Ok((first, last));
    }
    ensure_eq!(op.as_ref(), "gather", "{what}: the operator of `{text}`");
    let of_data = matches!(*source, OpError::Data { .. });
    let driver = matches!(*source, OpError::Driver { .. });
    ensure!(of_data || driver && rig.tells_late, "{what}: not a fault of data: {text}");
    Ok((seq, seq))
}

/// `between submissions 1 and 3 (copy, gather): …`.
fn interval(message: &str) -> Option<(u64, u64, &str)> {
    let (first, rest) = message.strip_prefix("between submissions ")?.split_once(" and ")?;
    let (last, rest) = rest.split_once(" (")?;
    Some((first.parse().ok()?, last.parse().ok()?, rest.split_once(')')?.0))
}

/// The submission must be one of those named.
fn named((first, last): (u64, u64), submission: u64, what: &str) -> Check {
    ensure!((first..=last).contains(&submission), "{submission} is not what {what} names: {first} to {last}");
    Ok(())
}

/// Ends what a device that tells late could blame: what was done since the last wait counts as lost with the fault.
fn settle(rig: &Rig, stream: &Stream) -> Check {
    if rig.tells_late {
        stream.synchronize()?;
    }
    Ok(())
}

/// A stream that has failed, and knows it.
fn poisoned_stream(rig: &Rig) -> Check<Stream> {
    let s = rig.stream()?;
    launch_fault(&s)?;
    poisoned(rig, s.synchronize(), s.id(), "synchronize after the fault")?;
    Ok(s)
}

pub(crate) fn every_way_of_waiting_reports_the_fault_with_operator_number_and_cause(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let before = s.record()?;
    let out = launch_fault(&s)?;
    let event = s.record()?;
    // The third submission: after two uploads.
    named(poisoned(rig, s.synchronize(), s.id(), "synchronize")?, 3, "synchronize")?;
    named(poisoned(rig, event.synchronize(), s.id(), "the event")?, 3, "the event")?;
    poisoned(rig, event.is_complete(), s.id(), "the event's query")?;
    let mut copy = rig.stream()?.empty(out.spec())?;
    poisoned(rig, s.run(Copy::new(&out, &mut copy)?), s.id(), "run")?;
    poisoned(rig, s.upload(&[1f32], &Shape::new(&[1])?), s.id(), "upload")?;
    poisoned(rig, s.download::<f32>(&out), s.id(), "download")?;
    before.synchronize()?;
    ensure!(before.is_complete()?, "an event before the fault is not complete");
    Ok(())
}

pub(crate) fn a_pending_download_reports_the_fault_that_its_data_depends_on(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let x = up(&s, &[5.0; 3])?;
    let good = s.download::<f32>(&x)?;
    settle(rig, &s)?;
    let out = launch_fault(&s)?;
    poisoned(
        rig,
        s.download::<f32>(&out).and_then(Pending::wait),
        s.id(),
        "a download of the fault's output",
    )?;
    ensure_eq!(good.wait()?, [5.0; 3], "a download before the fault");
    Ok(())
}

pub(crate) fn a_stream_that_waits_for_the_fault_is_poisoned_and_one_that_waited_before_is_not(
    rig: &Rig,
) -> Check {
    let (s, before, after) = (rig.stream()?, rig.stream()?, rig.stream()?);
    let (x, y) = (up(&before, &[1.0])?, up(&after, &[2.0])?);
    up(&s, &[0.0])?;
    before.wait(&s.record()?)?;
    settle(rig, &s)?;
    launch_fault(&s)?;
    let event = s.record()?;
    poisoned(rig, s.synchronize(), s.id(), "synchronize")?;
    let unhurt = after.record()?;
    after.wait(&event)?;
    poisoned(rig, after.synchronize(), s.id(), "a stream that waited for the fault")?;
    poisoned(rig, after.run(Binary::add(&y, &y, &mut y.clone())?), s.id(), "its next run")?;
    ensure_eq!(down(&before, &x)?, [1.0], "a stream that waited before the fault");
    // What the poisoned stream had done before it waited is as good as ever.
    unhurt.synchronize()?;
    ensure_eq!(down(&before, &y)?, [2.0], "what was written before the wait");
    Ok(())
}

pub(crate) fn poison_travels_through_a_stream_in_between(rig: &Rig) -> Check {
    let (a, b, c) = (rig.stream()?, rig.stream()?, rig.stream()?);
    let spare = up(&b, &[0.0])?;
    launch_fault(&a)?;
    b.wait(&a.record()?)?;
    c.wait(&b.record()?)?;
    poisoned(rig, a.synchronize(), a.id(), "the stream that failed")?;
    poisoned(rig, c.synchronize(), a.id(), "a stream two waits behind")?;
    drop(b);
    ensure_eq!(down(&rig.stream()?, &spare)?, [0.0], "what was written before");
    Ok(())
}

pub(crate) fn readers_of_what_a_poisoned_stream_wrote_last_are_tainted(rig: &Rig) -> Check {
    let (s, reader) = (rig.stream()?, rig.stream()?);
    let out = launch_fault(&s)?;
    poisoned(rig, s.synchronize(), s.id(), "synchronize")?;
    poisoned(rig, reader.download::<f32>(&out).and_then(Pending::wait), s.id(), "a reader of the output")?;
    // Also when the stream itself is gone.
    let id = s.id();
    drop(s);
    poisoned(
        rig,
        rig.stream()?.download::<f32>(&out).and_then(Pending::wait),
        id,
        "a reader after the stream",
    )?;
    Ok(())
}

pub(crate) fn what_was_written_before_the_fault_stays_good_and_so_does_a_new_stream(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let weight = up(&s, &[4.0; 3])?;
    settle(rig, &s)?;
    launch_fault(&s)?;
    poisoned(rig, s.synchronize(), s.id(), "synchronize")?;
    let recovered = rig.stream()?;
    let mut out = recovered.empty(&f32s(3)?)?;
    recovered.run(Binary::add(&weight, &weight, &mut out)?)?;
    ensure_eq!(down(&recovered, &out)?, [8.0; 3], "a sum on a new stream");
    Ok(())
}

pub(crate) fn an_operator_that_was_refused_taints_nothing(rig: &Rig) -> Check {
    let (s, other) = (poisoned_stream(rig)?, rig.stream()?);
    let x = up(&other, &[4.0; 3])?;
    poisoned(rig, s.write(&x, &[0f32; 3]), s.id(), "a write on a poisoned stream")?;
    poisoned(rig, s.run(Binary::add(&x, &x, &mut x.clone())?), s.id(), "a run on a poisoned stream")?;
    ensure_eq!(down(&other, &x)?, [4.0; 3], "the tensor both named");
    other.write(&x, &[1f32; 3])?;
    ensure_eq!(down(&other, &x)?, [1.0; 3], "the tensor written anew");
    Ok(())
}

pub(crate) fn independent_streams_go_on(rig: &Rig) -> Check {
    let (s, other) = (rig.stream()?, rig.stream()?);
    let x = up(&other, &[1.0; 3])?;
    launch_fault(&s)?;
    poisoned(rig, s.synchronize(), s.id(), "synchronize")?;
    for _ in 0..10 {
        other.run(Binary::add(&x, &x, &mut x.clone())?)?;
    }
    ensure_eq!(down(&other, &x)?, [1024.0; 3], "ten doublings");
    Ok(())
}

pub(crate) fn a_blocking_stream_names_the_operator_at_its_own_run(rig: &Rig) -> Check {
    let s = rig.stream_with(StreamOptions { blocking: true, ..StreamOptions::default() })?;
    expect_data(&s)?;
    let blamed = poisoned(rig, launch_fault(&s), s.id(), "the run itself")?;
    ensure_eq!(blamed, (3, 3), "the submission");
    Ok(())
}
