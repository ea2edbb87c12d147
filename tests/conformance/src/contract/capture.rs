//! Capture and replay: a graph is one operator that runs what was recorded, on memory of its own.

use crate::rig::{Check, Rig, Stop, down, ensure, ensure_eq, ensure_holds, f32s, launch_fault, refused, up};
use portolan_core::call::{Binary, Copy, Fill, Unary};
use portolan_core::{Event, Graph, OpKind, Stream, Tensor};
use portolan_ops::kernel::{BinaryKind, UnaryKind};
use portolan_ops::{OpError, Result, Shape};

/// Three operators, with temporaries between: `out = |x + x| · 2`.
fn step(s: &Stream, x: &Tensor, out: &mut Tensor) -> Result<()> {
    let mut sum = s.empty(x.spec())?;
    s.run(Binary::add(x, x, &mut sum)?)?;
    let mut size = s.empty(x.spec())?;
    s.run(Unary::new(UnaryKind::Abs, &sum, &mut size)?)?;
    s.run(Binary::scalar(BinaryKind::Mul, &size, 2.0, out)?)
}

fn refused_in_capture<T>(result: Result<T>, what: &str) -> Check {
    let error = refused(result, what)?;
    ensure!(matches!(error, OpError::Capture { .. }), "{what}: not a capture error: {error}");
    Ok(())
}

pub(crate) fn a_replay_equals_the_eager_run_and_capture_runs_nothing(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let x = up(&s, &[0.5, 2.0, -1.0])?;
    let mut out = up(&s, &[-7.0; 3])?;
    let launches = s.report().launches;
    let graph = s.capture(|s| step(s, &x, &mut out))?;
    ensure_eq!((graph.len(), s.report().launches), (3, launches), "operators captured, launches so far");
    ensure_holds(&s, &out, &[-7.0; 3], "the output after capture")?;
    graph.replay(&s)?;
    ensure_holds(&s, &out, &[2.0, 8.0, 4.0], "the output after a replay")?;
    // Contents may change between replays.
    s.write(&x, &[1f32, -3.0, 0.0])?;
    graph.replay(&s)?;
    ensure_holds(&s, &out, &[4.0, 12.0, 0.0], "the output after a second replay")?;
    let mut eager = s.empty(&f32s(3)?)?;
    step(&s, &x, &mut eager)?;
    ensure_holds(&s, &eager, &[4.0, 12.0, 0.0], "the output of an eager run")?;
    let report = s.report();
    ensure_eq!(graph.cost().flops * 3, report.fused.flops, "operations of two replays and an eager run");
    let calls: Vec<_> = report.operators.iter().map(|row| (row.kind, row.calls)).collect();
    ensure_eq!(calls, [(OpKind::Unary, 3), (OpKind::Binary, 6)], "calls of two replays and an eager run");
    Ok(())
}

pub(crate) fn eager_memory_never_aliases_the_graphs(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let x = up(&s, &[1.5; 700])?;
    let mut out = up(&s, &[0.0; 700])?;
    let graph = s.capture(|s| {
        // Dropped inside: eager work must not get this memory.
        let mut inside = s.empty(x.spec())?;
        s.run(Copy::new(&x, &mut inside)?)?;
        s.run(Binary::add(&inside, &inside, &mut out)?)
    })?;
    let other = rig.stream()?;
    for round in 0..10 {
        graph.replay(&s)?;
        let result = s.download::<f32>(&out)?;
        for s in [&s, &other] {
            let mut scribble = s.empty(&f32s(700)?)?;
            s.run(Fill::new(&mut scribble, -99.0)?)?;
        }
        ensure_eq!(result.wait()?, [3.0; 700], "round {round}");
    }
    Ok(())
}

pub(crate) fn a_graph_keeps_its_buffers_when_their_handles_are_dropped(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let mut out = up(&s, &[0.0; 700])?;
    let graph = {
        let x = up(&s, &[2.5; 700])?;
        s.capture(|s| s.run(Binary::add(&x, &x, &mut out)?))?
    };
    for i in 0..20 {
        up(&s, &[i as f32; 700])?;
    }
    graph.replay(&s)?;
    ensure_eq!(down(&s, &out)?, [5.0; 700], "the sum of a dropped tensor");
    Ok(())
}

pub(crate) fn a_graph_may_be_dropped_while_its_replay_is_in_flight(rig: &Rig) -> Check {
    let (s, other) = (rig.stream()?, rig.stream()?);
    let x = up(&s, &[2.5; 700])?;
    let mut out = up(&s, &[0.0; 700])?;
    let delay = rig.delay(&s)?;
    let graph = s.capture(|s| {
        let mut inside = s.empty(x.spec())?;
        s.run(Copy::new(&x, &mut inside)?)?;
        delay.run(s)?;
        s.run(Copy::new(&inside, &mut out)?)
    })?;
    graph.replay(&other)?;
    drop(graph);
    for s in [&s, &other, &rig.stream()?] {
        for i in 0..10 {
            up(s, &[i as f32; 700])?;
        }
    }
    ensure_eq!(down(&s, &out)?, [2.5; 700], "what the graph copied");
    Ok(())
}

pub(crate) fn a_tensor_that_escapes_the_closure_stays_valid(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let mut escaped = None;
    let graph = s.capture(|s| {
        let mut inside = s.empty(&f32s(100)?)?;
        s.run(Fill::new(&mut inside, 4.0)?)?;
        escaped = Some(inside);
        Ok(())
    })?;
    graph.replay(&s)?;
    drop(graph);
    for i in 0..10 {
        up(&s, &[i as f32; 100])?;
    }
    let Some(escaped) = escaped else { return Err(Stop::Broken("the closure did not run".into())) };
    ensure_eq!(down(&s, &escaped)?, [4.0; 100], "the tensor that escaped");
    Ok(())
}

/// Everything that a capture of `s` refuses.
fn refuse_all(s: &Stream, other: &Stream, x: &Tensor, inner: &Graph, [event, foreign]: [&Event; 2]) -> Check {
    refused_in_capture(s.capture(|_| Ok(())), "capture")?;
    refused_in_capture(other.capture(|_| Ok(())), "capture of another stream")?;
    refused_in_capture(s.upload(&[1f32], &Shape::new(&[1])?), "upload")?;
    refused_in_capture(s.write(x, &[1f32; 3]), "write")?;
    refused_in_capture(s.download::<f32>(x), "download")?;
    refused_in_capture(s.synchronize(), "synchronize")?;
    refused_in_capture(s.record(), "record")?;
    refused_in_capture(s.wait(foreign), "wait")?;
    refused_in_capture(event.synchronize(), "event synchronize")?;
    refused_in_capture(event.is_complete(), "event query")?;
    refused_in_capture(inner.replay(s), "replay")?;
    refused_in_capture(inner.replay(other), "replay on another stream")?;
    refused_in_capture(other.run(Fill::new(&mut x.clone(), 3.0)?), "run on another stream")?;
    refused_in_capture(other.upload(&[1f32], &Shape::new(&[1])?), "upload on another stream")?;
    refused_in_capture(other.synchronize(), "synchronize of another stream")
}

pub(crate) fn what_cannot_be_captured_is_refused_and_the_stream_goes_on(rig: &Rig) -> Check {
    let (s, other) = (rig.stream()?, rig.stream()?);
    let x = up(&s, &[1.0; 3])?;
    let mut out = up(&s, &[0.0; 3])?;
    let (event, foreign) = (s.record()?, other.record()?);
    let inner = s.capture(|s| step(s, &x, &mut out.clone()))?;
    let mut refusals = Ok(());
    let graph = s.capture(|s| {
        refusals = refuse_all(s, &other, &x, &inner, [&event, &foreign]);
        step(s, &x, &mut out)
    })?;
    refusals?;
    ensure_eq!(graph.len(), 3, "operators captured");
    graph.replay(&s)?;
    ensure_holds(&s, &out, &[4.0; 3], "the replay")?;
    Ok(other.synchronize()?)
}

pub(crate) fn a_closure_that_fails_leaves_the_stream_as_it_was(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let x = up(&s, &[1.0; 3])?;
    let result = s.capture(|s| {
        s.run(Fill::new(&mut x.clone(), 9.0)?)?;
        Err(OpError::internal("closure", "changed its mind"))
    });
    let error = refused(result, "a closure that fails")?;
    ensure!(error.to_string().contains("changed its mind"), "the closure's own error: {error}");
    ensure_holds(&s, &x, &[1.0; 3], "what the closure would have overwritten")?;
    Ok(rig.stream()?.synchronize()?)
}

pub(crate) fn replays_on_other_streams_are_ordered_with_everything_that_shares_a_tensor(rig: &Rig) -> Check {
    let streams = [rig.stream()?, rig.stream()?, rig.stream()?];
    let x = up(&streams[0], &[1.0; 50])?;
    // In place through a temporary: each replay depends on all before, whichever stream it ran on.
    let graph = streams[0].capture(|s| {
        let mut inside = s.empty(x.spec())?;
        s.run(Copy::new(&x, &mut inside)?)?;
        s.run(Binary::scalar(BinaryKind::Add, &inside, 1.0, &mut x.clone())?)
    })?;
    let mut want = 1.0;
    for round in 0..60 {
        graph.replay(&streams[round % 3])?;
        want += 1.0;
        if round % 5 == 0 {
            let s = &streams[(round / 5) % 3];
            s.run(Binary::scalar(BinaryKind::Mul, &x, 0.5, &mut x.clone())?)?;
            want *= 0.5;
        }
    }
    ensure_eq!(down(&streams[1], &x)?, [want; 50], "after 60 replays on three streams");
    Ok(())
}

pub(crate) fn a_graph_of_another_device_or_on_a_poisoned_stream_is_refused(rig: &Rig) -> Check {
    let other = Rig::new(rig.backend.clone())?;
    let (a, b) = (rig.stream()?, other.stream()?);
    let x = up(&a, &[1.0; 3])?;
    let graph = a.capture(|s| s.run(Fill::new(&mut x.clone(), 2.0)?))?;
    let error = refused(graph.replay(&b), "a replay on another device")?;
    ensure!(matches!(error, OpError::Device { .. }), "a replay on another device: {error}");
    let error = refused(b.capture(|s| s.run(Fill::new(&mut x.clone(), 2.0)?)), "a foreign operand")?;
    ensure!(matches!(error, OpError::Device { .. }), "a foreign operand: {error}");
    let failed = rig.stream()?;
    launch_fault(&failed)?;
    refused(failed.synchronize(), "synchronize after a fault")?;
    let error = refused(graph.replay(&failed), "a replay on a poisoned stream")?;
    ensure!(matches!(error, OpError::Poisoned { .. }), "a replay on a poisoned stream: {error}");
    // Refused, so it touched nothing.
    graph.replay(&a)?;
    ensure_eq!(down(&a, &x)?, [2.0; 3], "the replay");
    Ok(())
}
