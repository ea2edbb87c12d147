//! Memory: aligned, reused in stream order and never before, accounted, limited, and given back.

use crate::rig::{Check, Rig, Stop, down, ensure, ensure_eq, ensure_holds, f32s, refused, up};
use portolan_core::Tensor;
use portolan_core::call::{Binary, Fill};
use portolan_ops::{DType, ErrorKind, OpError, Result, TensorSpec};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

fn bytes(n: usize) -> Result<TensorSpec> {
    TensorSpec::of(DType::U8, &[n])
}

fn address(x: &Tensor) -> usize {
    x.buffer().address()
}

pub(crate) fn allocations_are_aligned(rig: &Rig) -> Check {
    let alignment = rig.backend.traits(rig.device.ordinal()).alignment;
    ensure!(alignment.is_power_of_two(), "an alignment of {alignment} is no power of two");
    let s = rig.stream()?;
    let mut kept = Vec::new();
    for len in [1, 3, 63, 64, 65, 1000, 4097, MIB + 1] {
        let x = s.empty(&bytes(len)?)?;
        ensure!(address(&x).is_multiple_of(alignment), "{:#x} for {len} bytes: not {alignment}", address(&x));
        kept.push(x);
    }
    Ok(())
}

pub(crate) fn allocations_that_live_together_do_not_overlap(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let all: Vec<(Tensor, Vec<f32>)> = (1..60)
        .map(|i| {
            let data = vec![i as f32; i * 7];
            Ok((up(&s, &data)?, data))
        })
        .collect::<Result<_>>()?;
    for (x, want) in &all {
        ensure_eq!(&down(&s, x)?, want, "a tensor of {} elements", want.len());
    }
    Ok(())
}

pub(crate) fn a_freed_block_is_reused_at_once_by_its_own_stream(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let x = up(&s, &[1.0; 1000])?;
    let freed = address(&x);
    // In flight or not: later work of the stream runs behind it.
    rig.keep_busy(&s)?;
    drop(x);
    ensure_eq!(address(&s.empty(&f32s(1000)?)?), freed, "the address of the next block");
    Ok(())
}

pub(crate) fn a_freed_block_is_not_reused_before_foreign_streams_passed(rig: &Rig) -> Check {
    for round in 0..3 {
        let (home, guest) = (rig.stream()?, rig.stream()?);
        let mark = round as f32 + 0.5;
        let x = up(&home, &[mark; 500])?;
        let freed = address(&x);
        let out = up(&guest, &[0.0; 500])?;
        rig.slow_copy(&guest, &x, &out)?;
        drop(x);
        let passed = guest.record()?;
        let others: Vec<_> =
            (0..20).map(|i| up(&home, &[-1.0 - i as f32; 500])).collect::<Result<Vec<_>>>()?;
        home.synchronize()?;
        // Had the guest passed meanwhile, reuse was legal.
        if !passed.is_complete()? {
            ensure!(others.iter().all(|t| address(t) != freed), "the block was reused while it was read");
        }
        ensure_eq!(down(&guest, &out)?, [mark; 500], "what the guest read");
        drop(others);
        let again = (0..30).map(|_| home.empty(&f32s(500)?)).collect::<Result<Vec<_>>>()?;
        ensure!(again.iter().any(|t| address(t) == freed), "the block never came back");
    }
    Ok(())
}

pub(crate) fn a_block_goes_to_another_stream_only_when_its_own_is_idle(rig: &Rig) -> Check {
    let (a, b) = (rig.stream()?, rig.stream()?);
    let delay = rig.delay(&a)?;
    let x = a.empty(&f32s(1000)?)?;
    let freed = address(&x);
    delay.run(&a)?;
    let passed = a.record()?;
    drop(x);
    let busy = (0..60).map(|_| b.empty(&f32s(1000)?)).collect::<Result<Vec<_>>>()?;
    if !passed.is_complete()? {
        ensure!(busy.iter().all(|t| address(t) != freed), "a busy stream's block went to another stream");
    }
    a.synchronize()?;
    drop(busy);
    // A stream may be known to be idle a little after its last event. More each time: b keeps what it once had.
    for round in 1..6 {
        std::thread::sleep(Duration::from_millis(5));
        let idle = (0..2000 * round).map(|_| b.empty(&f32s(1000)?)).collect::<Result<Vec<_>>>()?;
        if idle.iter().any(|t| address(t) == freed) {
            return Ok(());
        }
    }
    Err(Stop::Broken("an idle stream's block never went to another one".into()))
}

pub(crate) fn dropping_a_device_gives_all_memory_back(rig: &Rig) -> Check {
    let (backend, ordinal) = (rig.backend.clone(), rig.device.ordinal());
    // A device of its own: the rig's stays open.
    let own = Rig::new(backend.clone())?;
    let before = backend.memory_info(ordinal)?.free;
    let (a, b) = (own.stream()?, own.stream()?);
    let (x, y) = (up(&a, &[1.0; 5000])?, up(&b, &[1.0; 5000])?);
    let large = a.empty(&bytes(8 * MIB)?)?;
    let graph = a.capture(|s| s.run(Binary::add(&x, &y, &mut s.empty(&f32s(5000)?)?)?))?;
    graph.replay(&b)?;
    own.keep_busy(&a)?;
    ensure!(backend.memory_info(ordinal)?.free < before, "memory in use is not missing from what is free");
    drop((x, y, large, graph, a, b, own));
    let start = Instant::now();
    loop {
        let free = backend.memory_info(ordinal)?.free;
        if free == before {
            return Ok(());
        }
        // The last work may be in flight, so what remains comes back a little later.
        if start.elapsed() > Duration::from_secs(10) {
            return Err(Stop::Broken(format!("{} bytes did not come back", before.saturating_sub(free))));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn the_high_water_mark_and_the_bytes_in_use_are_what_was_held(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let (a, b) = (s.empty(&bytes(3 * MIB)?)?, s.empty(&bytes(5 * MIB)?)?);
    drop(a);
    let c = s.empty(&bytes(MIB)?)?;
    let stats = rig.device.memory()?;
    // Devices with padding behind allocations hold a little more.
    let within = |got: usize, want: usize| (want..want + (64 << 10)).contains(&got);
    ensure!(within(stats.bytes_in_use, 6 * MIB), "{stats:?}: 6 MiB are in use");
    ensure!(within(stats.peak_bytes, 8 * MIB), "{stats:?}: at most 8 MiB were");
    ensure_eq!((stats.live_bytes, stats.peak_live_bytes), (6 * MIB, 8 * MIB), "bytes asked for in {stats:?}");
    ensure!(stats.bytes_reserved >= stats.bytes_in_use, "{stats:?}: less is reserved than used");
    ensure_eq!(s.report().peak_bytes, stats.peak_bytes, "the report's peak");
    drop((b, c));
    ensure_eq!(rig.device.memory()?.bytes_in_use, 0, "bytes in use at the end");
    Ok(())
}

pub(crate) fn running_out_names_the_largest_holders_and_the_pool_stays_usable(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let weights = s.empty_labelled(&bytes(4 * MIB)?, &"weights".into())?;
    let cache = s.empty_labelled(&bytes(2 * MIB)?, &"kv cache".into())?;
    let limit = rig.backend.memory_info(rig.device.ordinal())?.total;
    let error = refused(s.empty(&bytes(limit)?), "all memory beside what is held")?;
    ensure_eq!(error.kind(), ErrorKind::ResourceExhausted, "the kind of `{error}`");
    let OpError::OutOfMemory { requested, total, holders, .. } = &error else {
        return Err(Stop::Broken(format!("not OutOfMemory: {error}")));
    };
    ensure!(*requested >= limit && *total == limit, "asked for {limit} of {limit}: {error}");
    let labels: Vec<&str> = holders.iter().map(|h| h.label.as_ref()).collect();
    ensure_eq!(labels, ["weights", "kv cache"], "the holders in `{error}`");
    ensure!(error.to_string().contains("kv cache"), "the text names them: {error}");
    let x = up(&s, &[3.0; 1000])?;
    ensure_holds(&s, &x, &[3.0; 1000], "work afterwards")?;
    drop((weights, cache));
    s.empty(&bytes(7 * MIB)?)?;
    Ok(())
}

pub(crate) fn tensors_without_elements_take_nothing_and_work_everywhere(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let spec = TensorSpec::of(DType::F32, &[3, 0, 2])?;
    let (x, mut out) = (s.empty(&spec)?, s.empty(&spec)?);
    s.run(Binary::add(&x, &x, &mut out)?)?;
    s.run(Fill::new(&mut out, 1.0)?)?;
    ensure_eq!(down(&s, &out)?, [0f32; 0], "the result");
    s.write(&out, &[0f32; 0])?;
    ensure_eq!(down(&s, &up(&s, &[])?)?, [0f32; 0], "an empty upload");
    let stats = rig.device.memory()?;
    ensure_eq!((stats.bytes_in_use, stats.bytes_reserved), (0, 0), "bytes in use and reserved");
    Ok(())
}

pub(crate) fn a_thousand_steps_leave_the_memory_flat(rig: &Rig) -> Check {
    let (s, side) = (rig.stream()?, rig.stream()?);
    let mut x = up(&s, &[1.0; 300])?;
    let mut warm = 0;
    for step in 0..1000 {
        let mut y = s.empty(&f32s(300)?)?;
        s.run(Binary::add(&x, &x, &mut y)?)?;
        let mut z = side.empty(&f32s(300)?)?;
        side.run(Binary::add(&y, &x, &mut z)?)?;
        x = if step % 7 == 0 { up(&s, &[1.0; 300])? } else { y };
        if step % 50 == 0 {
            s.synchronize()?;
            side.synchronize()?;
        }
        if step == 200 {
            warm = rig.device.memory()?.bytes_reserved;
        }
    }
    s.synchronize()?;
    side.synchronize()?;
    let end = rig.device.memory()?;
    ensure_eq!(end.bytes_reserved, warm, "bytes reserved after 1000 steps and after 200");
    ensure!(end.bytes_in_use <= 8 << 10, "{} bytes are held by two tensors", end.bytes_in_use);
    Ok(())
}

pub(crate) fn many_short_streams_leave_nothing_behind(rig: &Rig) -> Check {
    let keep = rig.stream()?;
    let x = up(&keep, &[1.0; 1000])?;
    for _ in 0..30 {
        let s = rig.stream()?;
        let mut y = s.empty(&f32s(200_000)?)?;
        s.run(Fill::new(&mut y, 1.0)?)?;
        s.run(Binary::add(&x, &x, &mut s.empty(&f32s(1000)?)?)?)?;
        s.synchronize()?;
    }
    let reserved = rig.device.memory()?.bytes_reserved;
    ensure!(reserved <= 64 * MIB, "{reserved} bytes are reserved after 30 streams that used 1 MiB each");
    Ok(())
}
