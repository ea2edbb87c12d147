//! `portolan check`: the built-in model on every device, executor and thread count against the f64 oracle.
//!
//! Two promises are checked at once: the answer is right, and no configuration changes a bit of it. Exact activations
//! are compared at every token of one sequence; int8 ones at the tokens of many short sequences where the oracle says that no
//! code hangs on the last bit (`Int8Logits::margins`).

use crate::args::CheckArgs;
use crate::failure::Failure;
use portolan::cpu::{CpuBackend, CpuOptions, Executor};
use portolan::models::{LanguageModel, Llama, OracleLlama, embedded};
use portolan::nn::{Batch, KvCache, Precision};
use portolan::{DType, Device, Registry, StreamOptions};
use std::io::Write;

/// The largest error accepted, as a fraction of the largest logit.
const LIMIT: f64 = 1e-4;
const THREADS: [usize; 4] = [1, 2, 3, 8];
const EXECUTORS: [(&str, Executor); 3] =
    [("inline", Executor::Inline), ("queued", Executor::Queued), ("chaotic", Executor::Chaotic { seed: 1 })];
/// The largest error an activation may have before it is rounded to int8, as a fraction of the largest of its group.
const ACTIVATION_ERROR: f64 = 16.0 * f32::EPSILON as f64;
/// Tokens a workload must have to compare.
const ENOUGH: usize = 40;

/// What a configuration runs, and what it should answer.
struct Workload {
    name: &'static str,
    precision: Precision,
    /// All of one length.
    sequences: Vec<Vec<u32>>,
    /// Tokens of a sequence that run at once; the others follow one by one.
    prefill: usize,
    /// Logits `[sequences · tokens, vocab]`.
    want: Vec<f64>,
    /// Which tokens are compared.
    settled: Vec<bool>,
}

impl Workload {
    fn exact(oracle: &OracleLlama) -> Result<Self, Failure> {
        let sequences = vec![sequence(0, 43)];
        let want = oracle.logits(&sequences[0])?;
        Ok(Self {
            name: "exact",
            precision: Precision::Exact,
            prefill: 37,
            settled: vec![true; 43],
            sequences,
            want,
        })
    }

    fn int8(oracle: &OracleLlama) -> Result<Self, Failure> {
        let sequences: Vec<Vec<u32>> = (0..40).map(|s| sequence(s, 6)).collect();
        let (mut want, mut settled) = (Vec::new(), Vec::new());
        for tokens in &sequences {
            let answer = oracle.int8_logits(tokens)?;
            want.extend(answer.logits);
            settled.extend(answer.margins.iter().map(|&margin| margin > ACTIVATION_ERROR));
        }
        Ok(Self { name: "int8", precision: Precision::Fast, prefill: 4, sequences, want, settled })
    }

    /// Tokens of a sequence.
    fn len(&self) -> usize {
        self.sequences.first().map_or(0, Vec::len)
    }

    fn compared(&self) -> usize {
        self.settled.iter().filter(|&&settled| settled).count()
    }
}

/// Sequence `s`, so that no two are alike.
fn sequence(s: usize, len: usize) -> Vec<u32> {
    (0..len).map(|t| ((s * 53 + t * 29 + s * t * 7 + 5) % 128) as u32).collect()
}

/// One way to run the model.
struct Configuration {
    device: Device,
    executor: &'static str,
    threads: String,
}

pub(crate) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let source = embedded()?;
    let oracle = OracleLlama::load(&source)?;
    let workloads = [Workload::exact(&oracle)?, Workload::int8(&oracle)?];
    say("built-in model: 2 layers, hidden 64; a part of every sequence at once, the rest token by token");
    for work in &workloads {
        let (name, count, len, compared) = (work.name, work.sequences.len(), work.len(), work.compared());
        say(&format!(
            "{name}: {count} x {len} tokens, {compared} compared; largest error accepted {LIMIT:e}"
        ));
        if compared < ENOUGH {
            return Err(Failure::Message(format!("check: {compared} tokens are too few to compare")));
        }
    }
    say(&format!(
        "{:<8} {:<9} {:>7}  {:<9} {:>13}  first differing bit",
        "device", "executor", "threads", "precision", "largest error"
    ));
    let (mut rows, mut wrong) = (0, 0);
    let mut first: Vec<(String, &str, Vec<f32>)> = Vec::new();
    for configuration in configurations(args.device.as_deref())? {
        for work in &workloads {
            crate::interrupt::check()?;
            let device = configuration.device.id().to_string();
            let got = answer(&configuration.device, &source, work)?;
            let error = largest_error(&got, work);
            // The first configuration of a device is what its others are held to.
            let known = first.iter().find(|(of, name, _)| *of == device && *name == work.name);
            let bit = known.and_then(|(_, _, reference)| first_differing_bit(reference, &got));
            if known.is_none() {
                first.push((device.clone(), work.name, got));
            }
            let good = error <= LIMIT && bit.is_none();
            rows += 1;
            wrong += usize::from(!good);
            say(&format!(
                "{device:<8} {:<9} {:>7}  {:<9} {error:>13.2e}  {}{}",
                configuration.executor,
                configuration.threads,
                work.name,
                bit.map_or("none".into(), |bit| bit.to_string()),
                if good { "" } else { "  WRONG" },
            ));
        }
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

/// The CPU in every executor and thread count, every other device that computes as it comes.
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
        if !info.keeps_data {
            if wanted.is_some() {
                let what =
                    format!("check: {id} keeps no data, so there is no answer to check; name another device");
                return Err(Failure::Usage(what));
            }
            continue;
        }
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

/// Logits of every token of every sequence, in the order of the oracle's.
fn answer(
    device: &Device,
    source: &dyn portolan::load::WeightSource,
    work: &Workload,
) -> Result<Vec<f32>, Failure> {
    let stream = device.stream(StreamOptions::default())?;
    let model = Llama::load(&stream, source, work.precision, &mut |_, _| {})?;
    let (config, count, len) = (model.config(), work.sequences.len(), work.len());
    // A half-width cache rounds too, on last bits, and the oracle does not follow it.
    let (heads, head_dim) = (config.num_kv_heads, config.head_dim);
    let mut cache = KvCache::new(&stream, config.layers, count, len, heads, head_dim, DType::F32)?.into();
    let vocab = config.vocab;
    let mut logits = vec![f32::NAN; count * len * vocab];
    let mut pass = |start: usize, end: usize| -> Result<(), Failure> {
        let parts: Vec<&[u32]> = work.sequences.iter().map(|tokens| &tokens[start..end]).collect();
        let batch = Batch::new(&stream, &parts, &vec![start; count], len)?;
        let out = model.forward(&stream, &batch, &mut cache)?;
        let rows = stream.download::<f32>(&out)?.wait()?;
        for (i, row) in rows.chunks(vocab).enumerate() {
            let (sequence, token) = (i / (end - start), start + i % (end - start));
            let at = (sequence * len + token) * vocab;
            if let Some(to) = logits.get_mut(at..at + row.len()) {
                to.copy_from_slice(row);
            }
        }
        Ok(())
    };
    pass(0, work.prefill)?;
    (work.prefill..len).try_for_each(|at| pass(at, at + 1))?;
    Ok(logits)
}

/// max |Δ| / max |logit| over the tokens compared; a missing, superfluous or undefined logit is an infinite error.
fn largest_error(got: &[f32], work: &Workload) -> f64 {
    if got.len() != work.want.len() || got.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let largest = work.want.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    let vocab = got.len() / work.settled.len().max(1);
    let rows =
        got.chunks(vocab).zip(work.want.chunks(vocab)).zip(&work.settled).filter(|(_, settled)| **settled);
    let differences = rows.flat_map(|((got, want), _)| got.iter().zip(want));
    differences.fold(0.0, |max: f64, (got, want)| max.max((f64::from(*got) - want).abs())) / largest
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
        let error = |got: &[f32], want: &[f64], settled: &[bool]| {
            let (want, settled) = (want.to_vec(), settled.to_vec());
            let precision = Precision::Fast;
            largest_error(
                got,
                &Workload { name: "", precision, sequences: Vec::new(), prefill: 0, want, settled },
            )
        };
        assert_eq!(error(&[f32::NAN, 1.0], &[1.0, 1.0], &[true]), f64::INFINITY);
        assert_eq!(error(&[1.0], &[1.0, 1.0], &[true]), f64::INFINITY);
        assert_eq!(error(&[1.0, 2.0], &[1.0, 4.0], &[true]), 0.5);
        // Of two tokens the second one is not compared.
        assert_eq!(error(&[1.0, 2.0, 3.0, 5.0], &[1.0, 3.0, 4.0, 4.0], &[true, false]), 0.25);
    }
}
