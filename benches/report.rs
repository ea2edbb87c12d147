//! Times a kernel and its limit in turn, and says what fraction of the limit the kernel reached.
//!
//! Only ratios within one run are evidence on a shared machine: every sample is a measurement of the limit
//! and then one of the kernel, and the median of those ratios is held against the floor.

use crate::limits::{Limit, Limits};
use criterion::{Criterion, SamplingMode};
use portolan::OpError;
use std::time::{Duration, Instant};

/// How a kernel is judged.
#[derive(Clone, Copy)]
pub(crate) struct Goal {
    /// What bounds it.
    pub(crate) limit: Limit,
    /// Threads of the kernel and of the limit.
    pub(crate) threads: usize,
    /// The fraction of the limit that it has to reach, if one was promised.
    pub(crate) floor: Option<f64>,
}

/// A kernel, ready to be timed.
pub(crate) struct Job {
    /// Operations or bytes of one run, as the operator's own cost says.
    pub(crate) amount: u64,
    /// Runs it so many times and waits until all are finished.
    pub(crate) run: Box<dyn FnMut(u64) -> Result<(), OpError>>,
}

/// Times a job under criterion's id and prints its summary. `setup` runs only where the filter wants the id.
pub(crate) fn measure(
    c: &mut Criterion,
    limits: &mut Limits,
    id: &str,
    goal: Goal,
    setup: impl FnOnce() -> Result<Job, OpError>,
) {
    let mut setup = Some(setup);
    let mut job = None;
    // Rate of the kernel, rate of the limit.
    let mut pairs: Vec<(f64, f64)> = Vec::new();
    let mut group = c.benchmark_group(format!("{}_threads", goal.threads));
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_millis(1500));
    group.bench_function(id, |bencher| {
        if let Some(setup) = setup.take() {
            job = Some(setup().unwrap_or_else(|error| panic!("{id}: {error}")));
            // The first measurement of a limit takes and fills its memory: within the warm-up that would be all of it,
            // and samples of a single cold run would follow.
            limits.measure(goal.limit, goal.threads);
        }
        let Some(job) = &mut job else { return };
        bencher.iter_custom(|runs| {
            let limit = limits.measure(goal.limit, goal.threads);
            let start = Instant::now();
            (job.run)(runs).unwrap_or_else(|error| panic!("{id}: {error}"));
            let took = start.elapsed();
            let rate = job.amount as f64 * runs as f64 / took.as_secs_f64();
            pairs.push((rate, limit.unwrap_or(f64::NAN)));
            took
        });
    });
    group.finish();
    if !pairs.is_empty() {
        println!("{}", summary(id, goal, &pairs));
    }
}

fn summary(id: &str, goal: Goal, pairs: &[(f64, f64)]) -> String {
    let (unit, name) = (goal.limit.unit(), goal.limit.name());
    let head =
        format!("{id}, {} threads: {:.1} {unit}", goal.threads, median(pairs.iter().map(|p| p.0)) / 1e9);
    if pairs.iter().any(|pair| pair.1.is_nan()) {
        return format!("{head}; {name}: this processor has no such instructions");
    }
    let limit = median(pairs.iter().map(|p| p.1)) / 1e9;
    let ratios = || pairs.iter().map(|pair| pair.0 / pair.1);
    let ratio = median(ratios());
    let (low, high) = ratios().fold((f64::MAX, 0.0f64), |(low, high), r| (low.min(r), high.max(r)));
    let verdict = match goal.floor {
        None => "no floor".to_owned(),
        Some(floor) => {
            let verdict = if ratio >= floor { "PASS" } else { "BELOW" };
            format!("floor {:.0} %: {verdict}", 100.0 * floor)
        }
    };
    format!(
        "{head}; {name} {limit:.1} {unit}; {:.1} % of it ({:.1} to {:.1} in {} pairs); {verdict}",
        100.0 * ratio,
        100.0 * low,
        100.0 * high,
        pairs.len(),
    )
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
