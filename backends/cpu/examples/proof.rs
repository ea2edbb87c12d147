//! One configuration of the CPU backend against the whole suite: `proof ISA EXECUTOR SEED`, for
//! `scripts/full-proof.sh`.
//!
//! ISA is `portable`, `avx2` or `avx512`; EXECUTOR is `inline`, `queued` or `chaotic`; SEED chooses delays and
//! random views. Prints one line of counts; the exit code is 1 when something failed.

use portolan_conformance::Suite;
use portolan_cpu::{CpuBackend, CpuOptions, Executor, Isa};
use std::process::ExitCode;

fn options(arguments: &[String]) -> Option<(CpuOptions, u64)> {
    let [isa, executor, seed] = arguments else { return None };
    let isa = Isa::ALL.into_iter().find(|known| format!("{known:?}").eq_ignore_ascii_case(isa))?;
    let seed = seed.parse().ok()?;
    let executor = match executor.as_str() {
        "inline" => Executor::Inline,
        "queued" => Executor::Queued,
        "chaotic" => Executor::Chaotic { seed },
        _ => return None,
    };
    Some((CpuOptions { isa: Some(isa), executor, threads: Some(2), ..CpuOptions::default() }, seed))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((options, seed)) = options(&arguments) else {
        eprintln!("usage: proof portable|avx2|avx512 inline|queued|chaotic SEED");
        return ExitCode::from(2);
    };
    let report = Suite::new(move || Ok(CpuBackend::new(options.clone())?)).seed(seed).run();
    println!("{report}");
    ExitCode::from(u8::from(report.failures().next().is_some()))
}
