//! Events: complete when the work before them is, waited for by other streams, measured on one.

use crate::rig::{Check, Rig, down, ensure, ensure_eq, refused, up};
use portolan_ops::ErrorKind;
use std::time::Duration;

pub(crate) fn an_event_is_complete_when_the_work_before_it_is(rig: &Rig) -> Check {
    let (s, other) = (rig.stream()?, rig.stream()?);
    let delay = rig.delay(&s)?;
    for _ in 0..3 {
        delay.run(&s)?;
        let first = s.record()?;
        delay.run(&s)?;
        let second = s.record()?;
        // Asked in this order: the later one complete and the earlier one not would break the order.
        let (later, earlier) = (second.is_complete()?, first.is_complete()?);
        ensure!(earlier || !later, "an event is complete before one recorded earlier");
        second.synchronize()?;
        ensure!(
            first.is_complete()? && second.is_complete()?,
            "an event that was waited for is not complete"
        );
    }
    let event = other.record()?;
    event.synchronize()?;
    ensure!(event.is_complete()?, "an event of an idle stream is not complete");
    Ok(())
}

pub(crate) fn an_event_does_not_wait_for_later_work(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let delay = rig.delay(&s)?;
    let early = s.record()?;
    delay.run(&s)?;
    let late = s.record()?;
    early.synchronize()?;
    late.synchronize()?;
    ensure!(early.is_complete()?, "an event before the work is not complete after it");
    Ok(())
}

pub(crate) fn a_stream_that_waits_for_an_event_runs_behind_it(rig: &Rig) -> Check {
    let (a, b) = (rig.stream()?, rig.stream()?);
    let delay = rig.delay(&a)?;
    for _ in 0..3 {
        delay.run(&a)?;
        let awaited = a.record()?;
        b.wait(&awaited)?;
        let behind = b.record()?;
        behind.synchronize()?;
        ensure!(awaited.is_complete()?, "a stream went on before the event it waits for was complete");
    }
    Ok(())
}

pub(crate) fn an_event_does_not_cover_what_its_stream_waited_for_later(rig: &Rig) -> Check {
    let (a, b, c) = (rig.stream()?, rig.stream()?, rig.stream()?);
    let (x, y) = (up(&a, &[7.0; 4])?, up(&a, &[0.0; 4])?);
    a.synchronize()?;
    let early = b.record()?;
    rig.slow_copy(&a, &x, &y)?;
    // b now waits for a; c waits for b as it was before.
    b.wait(&a.record()?)?;
    c.wait(&early)?;
    ensure_eq!(down(&c, &y)?, [7.0; 4], "what c reads of a's work");
    Ok(())
}

pub(crate) fn events_measure_the_time_between_them_on_one_stream(rig: &Rig) -> Check {
    let (a, b) = (rig.stream()?, rig.stream()?);
    let delay = rig.delay(&a)?;
    let start = a.record()?;
    delay.run(&a)?;
    let middle = a.record()?;
    delay.run(&a)?;
    let end = a.record()?;
    end.synchronize()?;
    let (part, whole) = (middle.elapsed_since(&start)?, end.elapsed_since(&start)?);
    ensure!(whole > Duration::ZERO && part <= whole, "{part:?} of {whole:?} between events");
    let error = refused(b.record()?.elapsed_since(&start), "the time between events of two streams")?;
    ensure_eq!(error.kind(), ErrorKind::InvalidArgument, "the kind of `{error}`");
    Ok(())
}
