//! `portolan bench`: prefill and decode speed on a fixed pattern of tokens, or the perplexity of a fixed text.

use crate::args::{BenchArgs, PrecisionArg, precision_name};
use crate::failure::Failure;
use crate::interrupt;
use crate::progress::Bar;
use portolan::generate::{GenerateOptions, Session, Timing, perplexity};
use portolan::models::{self, LanguageModel};
use portolan::{Stream, TextModel, load};
use std::io::Write;
use std::ops::ControlFlow;

/// What perplexity is measured on: some 300 tokens of plain prose.
const TEXT: &str = include_str!("perplexity.txt");

pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    if args.perplexity { run_perplexity(args) } else { run_speed(args) }
}

fn run_speed(args: &BenchArgs) -> Result<(), Failure> {
    let path = args.model.path()?;
    let opened = args.model.open()?;
    let source = load::open(&path)?;
    let bar = Bar::loading();
    let precision = args.model.precision.precision();
    let model =
        models::load(&opened.stream, source.as_ref(), precision, &mut |done, total| bar.set(done, total))?;
    drop((bar, source));
    let (prompt, generate) = (args.prompt as usize, args.generate as usize);
    let max = model.info().max_context;
    if prompt.saturating_add(generate) > max {
        let what = format!(
            "--prompt {prompt} and --generate {generate} exceed the model's context of {max} tokens; ask for less"
        );
        return Err(Failure::Usage(what));
    }
    let vocab = model.info().vocab;
    // Strides through the vocabulary, so that no two neighbours are alike.
    let prompt: Vec<u32> = (0..prompt).map(|i| ((i * 7919 + 13) % vocab) as u32).collect();
    let _listening = interrupt::Listening::begin();
    // Warms up memory, threads and caches.
    measure(model.as_ref(), &opened.stream, &prompt, 2)?;
    let timings = (0..args.repeat)
        .map(|_| measure(model.as_ref(), &opened.stream, &prompt, generate))
        .collect::<Result<Vec<Timing>, Failure>>()?;
    let prefill = median(timings.iter().map(Timing::prefill_rate).collect());
    let decode = median(timings.iter().map(Timing::decode_rate).collect());
    let device = opened.stream.device();
    let on_cpu = device.id().backend() == "cpu";
    let precision = precision_name(args.model.precision);
    let mut out = std::io::stdout();
    if args.json {
        let row = serde_json::json!({
            "model": path.display().to_string(),
            "device": device.id().to_string(),
            "device_name": device.info().name,
            "threads": on_cpu.then(|| opened.cpu.threads()),
            "isa": on_cpu.then(|| format!("{:?}", opened.cpu.isa()).to_lowercase()),
            "executor": on_cpu.then(|| format!("{:?}", args.model.executor).to_lowercase()),
            "precision": precision,
            "prompt_tokens": prompt.len(),
            "generated_tokens": generate,
            "repeat": args.repeat,
            "prefill_tokens_per_second": prefill,
            "decode_tokens_per_second": decode,
            "version": env!("CARGO_PKG_VERSION"),
        });
        writeln!(out, "{row}")?;
    } else {
        writeln!(out, "model    {}", path.display())?;
        writeln!(out, "device   {} ({}), precision {precision}", device.id(), device.info().name)?;
        writeln!(out, "prefill  {prefill:.1} tokens/s ({} tokens, median of {})", prompt.len(), args.repeat)?;
        writeln!(out, "decode   {decode:.1} tokens/s ({generate} tokens behind the prompt)")?;
    }
    Ok(())
}

/// One run from an empty cache.
fn measure(
    model: &dyn LanguageModel,
    stream: &Stream,
    prompt: &[u32],
    generate: usize,
) -> Result<Timing, Failure> {
    let mut session = Session::new(model, stream, prompt.len() + generate)?;
    let options = GenerateOptions { max_tokens: generate, ..GenerateOptions::default() };
    let generated = session.generate(prompt, &options, &mut |_| match interrupt::asked() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    })?;
    interrupt::check()?;
    Ok(generated.timing)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.len() % 2, values.as_slice()) {
        (_, []) => 0.0,
        (0, values) => (values[middle - 1] + values[middle]) / 2.0,
        (_, values) => values[middle],
    }
}

fn run_perplexity(args: &BenchArgs) -> Result<(), Failure> {
    let path = args.model.path()?;
    let opened = args.model.open()?;
    let source = load::open(&path)?;
    let (mut tokens, mut figures) = (0, Vec::new());
    for precision in [PrecisionArg::Exact, PrecisionArg::Fast] {
        let bar = Bar::loading();
        let model =
            TextModel::load(&opened.stream, source.as_ref(), precision.precision(), &mut |done, total| {
                bar.set(done, total);
            })?;
        let text = model.encode(TEXT)?;
        tokens = text.len();
        figures.push(perplexity(model.model(), model.stream(), &text)?);
    }
    let [exact, fast] = figures[..] else { return Ok(()) };
    let change = fast / exact - 1.0;
    let mut out = std::io::stdout();
    if args.json {
        let row = serde_json::json!({
            "model": path.display().to_string(),
            "tokens": tokens,
            "perplexity_exact": exact,
            "perplexity_fast": fast,
            "relative_change": change,
        });
        writeln!(out, "{row}")?;
    } else {
        writeln!(out, "model       {}", path.display())?;
        writeln!(
            out,
            "perplexity  exact {exact:.4}, fast {fast:.4} ({:+.3} %), {tokens} tokens",
            100.0 * change
        )?;
    }
    Ok(())
}
