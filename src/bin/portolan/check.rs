//! `portolan check`: the built-in model on every device, executor and thread count against the f64 oracle.
//!
//! Two promises are checked at once: the answer is right, and no configuration changes a bit of it.

use crate::args::CheckArgs;
use crate::failure::Failure;
use portolan::cpu::{CpuBackend, CpuOptions, Executor};
use portolan::models::{Llama, OracleLlama, embedded};
use portolan::nn::{Batch, Precision};
use portolan::{Device, Registry, StreamOptions};
use std::io::Write;

/// The largest error accepted, as a fraction of the largest logit.
const LIMIT: f64 = 1e-4;
const THREADS: [usize; 4] = [1, 2, 3, 8];
const EXECUTORS: [(&str, Executor); 3] =
    [("inline", Executor::Inline), ("queued", Executor::Queued), ("chaotic", Executor::Chaotic { seed: 1 })];
/// Tokens run at once, and tokens run one by one behind them.
const PREFILL: usize = 37;
const DECODE: usize = 6;

/// One way to run the model.
struct Configuration {
    device: Device,
    executor: &'static str,
    threads: String,
}

pub(crate) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let source = embedded()?;
    let oracle = OracleLlama::load(&source)?;
    let tokens: Vec<u32> = (0..PREFILL + DECODE).map(|i| ((i * 29 + 5) % 128) as u32).collect();
    let want = oracle.logits(&tokens)?;
    say(&format!(
        "built-in model: 2 layers, hidden 64, {PREFILL} tokens at once and {DECODE} one by one; largest error accepted {LIMIT:e}"
    ));
    say(&format!(
        "{:<8} {:<9} {:>7}  {:>13}  first differing bit",
        "device", "executor", "threads", "largest error"
    ));
    let (mut rows, mut wrong) = (0, 0);
    let mut first: Option<(String, Vec<f32>)> = None;
    for configuration in configurations(args.device.as_deref())? {
        crate::interrupt::check()?;
        let device = configuration.device.id().to_string();
        let got = answer(&configuration.device, &source, &tokens)?;
        let error = largest_error(&got, &want);
        // The first configuration of a device is what its others are held to.
        if first.as_ref().is_none_or(|(known, _)| *known != device) {
            first = Some((device.clone(), got.clone()));
        }
        let bit = first.as_ref().and_then(|(_, reference)| first_differing_bit(reference, &got));
        let good = error <= LIMIT && bit.is_none();
        rows += 1;
        wrong += usize::from(!good);
        say(&format!(
            "{device:<8} {:<9} {:>7}  {error:>13.2e}  {}{}",
            configuration.executor,
            configuration.threads,
            bit.map_or("none".into(), |bit| bit.to_string()),
            if good { "" } else { "  WRONG" },
        ));
    }
    if wrong > 0 {
        let what =
            format!("check: {wrong} of {rows} configurations are wrong; please report the table above");
        return Err(Failure::Message(what));
    }
    say(&format!("all {rows} configurations agree with the oracle, bit for bit with each other"));
    Ok(())
}

/// A line of the table. Whoever closed stdout still gets the exit code of the whole check.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The CPU in every executor and thread count, every other device as it comes.
fn configurations(wanted: Option<&str>) -> Result<Vec<Configuration>, Failure> {
    let registry = portolan::registry()?;
    // An unknown name is an error that lists the known ones.
    let wanted = wanted.map(|id| registry.open(id)).transpose()?;
    let mut all = Vec::new();
    for info in registry.devices() {
        if wanted.as_ref().is_some_and(|device| device.id() != info.id) {
            continue;
        }
        let id = info.id.to_string();
        if info.id.backend() != "cpu" {
            all.push(Configuration { device: registry.open(&id)?, executor: "-", threads: "-".into() });
            continue;
        }
        for (executor_name, executor) in EXECUTORS {
            for threads in THREADS {
                let options = CpuOptions { threads: Some(threads), executor, ..CpuOptions::default() };
                let device = Registry::new().with(CpuBackend::new(options)?).open(&id)?;
                all.push(Configuration { device, executor: executor_name, threads: threads.to_string() });
            }
        }
    }
    Ok(all)
}

/// Logits of every token: the first ones in one pass, the rest token by token through the cache.
fn answer(
    device: &Device,
    source: &dyn portolan::load::WeightSource,
    tokens: &[u32],
) -> Result<Vec<f32>, Failure> {
    let stream = device.stream(StreamOptions::default())?;
    let model = Llama::load(&stream, source, Precision::Exact, &mut |_, _| {})?;
    let mut cache = model.cache(&stream, 1, tokens.len())?;
    let mut logits = Vec::new();
    let mut pass = |start: usize, end: usize| -> Result<(), Failure> {
        let batch = Batch::new(&stream, &[&tokens[start..end]], &[start], tokens.len())?;
        let out = model.forward(&stream, &batch, &mut cache)?;
        logits.extend(stream.download::<f32>(&out)?.wait()?);
        Ok(())
    };
    pass(0, PREFILL)?;
    (PREFILL..tokens.len()).try_for_each(|at| pass(at, at + 1))?;
    Ok(logits)
}

/// max |Δ| / max |logit|; a missing, superfluous or undefined logit is an infinite error.
fn largest_error(got: &[f32], want: &[f64]) -> f64 {
    if got.len() != want.len() || got.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let largest = want.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    got.iter().zip(want).fold(0.0, |max: f64, (got, want)| max.max((f64::from(*got) - want).abs())) / largest
}

/// Counted from the first bit of the first logit, lowest bits first.
fn first_differing_bit(a: &[f32], b: &[f32]) -> Option<usize> {
    if a.len() != b.len() {
        return Some(32 * a.len().min(b.len()));
    }
    let at = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits())?;
    Some(32 * at + (a[at].to_bits() ^ b[at].to_bits()).trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_bit_is_found_where_it_is() {
        let a = [1.0f32, 2.0, 3.0];
        let mut b = a;
        assert_eq!(first_differing_bit(&a, &b), None);
        b[1] = f32::from_bits(b[1].to_bits() ^ 1 << 5);
        assert_eq!(first_differing_bit(&a, &b), Some(32 + 5));
        assert_eq!(first_differing_bit(&a, &a[..2]), Some(64));
        assert_eq!(first_differing_bit(&[0.0], &[-0.0]), Some(31));
    }

    #[test]
    fn what_is_not_a_number_is_no_small_error() {
        assert_eq!(largest_error(&[f32::NAN, 1.0], &[1.0, 1.0]), f64::INFINITY);
        assert_eq!(largest_error(&[1.0], &[1.0, 1.0]), f64::INFINITY);
        assert_eq!(largest_error(&[1.0, 2.0], &[1.0, 4.0]), 0.5);
    }
}
