//! `portolan diff`: a model on two devices at once, operator by operator, down to the first that differs.

use crate::args::{DiffArgs, IsaArg};
use crate::failure::Failure;
use crate::interrupt;
use crate::progress::Bar;
use crate::trace::cannot_write;
use portolan::cpu::{CpuBackend, CpuOptions};
use portolan::explain::{Agreement, FaultPlan, Faulty, ShadowLog, expect_writable, save_call};
use portolan::fetch::{FetchOptions, resolve_model};
use portolan::generate::GenerateOptions;
use portolan::{DeviceId, Registry, Stream, StreamOptions, TextModel};
use std::io::Write;
use std::ops::ControlFlow;

pub(crate) fn run(args: &DiffArgs) -> Result<(), Failure> {
    let options = FetchOptions { cache: args.cache.clone(), ..FetchOptions::default() };
    let path = resolve_model(&args.model, &options)?;
    if let Some(file) = &args.save {
        expect_writable(file).map_err(|error| cannot_write(file, &error))?;
    }
    let plan: FaultPlan = args.fault.as_deref().unwrap_or_default().parse()?;

    let second = stream(&registry(args, args.against_isa)?, &args.against)?;
    let log = ShadowLog::new(&second);
    let (first, faulty) = shadowed(args, plan, &log)?;
    let bar = Bar::loading();
    let precision = args.precision.precision();
    let model = TextModel::open(&first, &path, precision, &mut |done, total| bar.set(done, total))?;
    drop(bar);
    let mut out = std::io::stdout();
    writeln!(out, "model    {}", path.display())?;
    for (what, stream) in [("on", &first), ("against", &second)] {
        writeln!(out, "{what:<8} {} ({})", stream.device().id(), stream.device().info().name)?;
    }

    let prompt = model.encode(&args.prompt)?;
    let mut session = model.session(prompt.len().saturating_add(args.max_tokens as usize))?;
    let options = GenerateOptions { max_tokens: args.max_tokens as usize, ..GenerateOptions::default() };
    let _listening = interrupt::Listening::begin();
    let ran =
        session.generate(&prompt, &options, &mut |_| match interrupt::asked() || log.first().is_some() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        });
    interrupt::check()?;

    let rows = log.agreements();
    table(&mut out, &rows)?;
    for struck in faulty.iter().flat_map(Faulty::struck) {
        writeln!(out, "planted: {struck}")?;
    }
    if let Some(found) = log.first() {
        writeln!(out, "first difference: {found}")?;
        if let Some(file) = &args.save {
            save_call(&found, file).map_err(|error| cannot_write(file, &error))?;
            writeln!(out, "saved to {}", file.display())?;
        }
        let place = if found.path.is_empty() { "outside of the layers" } else { &found.path };
        return Err(Failure::Message(format!("diff: {} at {place} differs", found.op)));
    }
    // A run that ended early has compared what came before.
    ran?;
    let compared: u64 = rows.iter().map(|row| row.compared).sum();
    let skipped: u64 = rows.iter().map(|row| row.skipped).sum();
    if compared == 0 {
        return Err(Failure::Message("diff: nothing could be compared; the table says why".into()));
    }
    writeln!(out, "all {compared} calls agree, {skipped} were not compared")?;
    Ok(())
}

fn registry(args: &DiffArgs, isa: Option<IsaArg>) -> Result<Registry, Failure> {
    let cpu = CpuBackend::new(CpuOptions {
        threads: args.threads.map(|threads| threads as usize),
        isa: isa.map(IsaArg::isa),
        ..CpuOptions::default()
    })?;
    Ok(portolan::registry()?.with(cpu))
}

fn stream(registry: &Registry, device: &str) -> Result<Stream, Failure> {
    Ok(registry.open(device)?.stream(StreamOptions::default())?)
}

/// The device in question, compared with the other one, and the faults planted under the comparison.
fn shadowed(args: &DiffArgs, plan: FaultPlan, log: &ShadowLog) -> Result<(Stream, Option<Faulty>), Failure> {
    let id: DeviceId = args.on.parse()?;
    let mut faulty = None;
    let registry = registry(args, args.isa)?;
    let registry = match plan.faults.is_empty() {
        true => registry,
        false => registry.wrap(id.backend(), |backend| {
            let (backend, planted) = plan.around(backend);
            faulty = Some(planted);
            backend
        }),
    };
    let registry = registry.wrap(id.backend(), |backend| log.around(backend));
    Ok((stream(&registry, &args.on)?, faulty))
}

fn table(out: &mut impl Write, rows: &[Agreement]) -> std::io::Result<()> {
    let width = rows.iter().map(|row| row.op.len()).max().unwrap_or(0).max("operator".len());
    writeln!(
        out,
        "{:<width$} {:>9} {:>10} {:>9} {:>8}  largest error / allowed",
        "operator", "compared", "identical", "differ", "skipped"
    )?;
    for row in rows {
        let worst = if row.compared == 0 { "-".into() } else { format!("{:.2}", row.worst) };
        writeln!(
            out,
            "{:<width$} {:>9} {:>10} {:>9} {:>8}  {worst}{}",
            row.op,
            row.compared,
            row.identical,
            row.diverged,
            row.skipped,
            row.why.as_ref().map_or(String::new(), |why| format!("  ({why})")),
        )?;
    }
    Ok(())
}
