//! The `portolan` command: looks at devices and files, fetches models, generates text, measures, checks itself.
//!
//! One file a subcommand; what they share of the command line is in `args.rs`, what computes is in the library.

mod args;
mod bench;
mod chat;
mod check;
mod devices;
mod diff;
mod explain;
mod failure;
mod fetch;
mod generate;
mod inspect;
mod interrupt;
mod model;
mod ops;
mod plan;
mod progress;
mod trace;

use args::{Command, CommandLine};
use clap::Parser;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A bug in the library should still be one line that says what happened.
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.to_string().replace('\n', " ");
        progress::say(&format!("error: internal error: {text}; please report this"));
    }));
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => {
            // Help and version go to stdout with 0, everything else to stderr with 2. Whoever asked for help has not
            // got it when it cannot be written.
            let printed = error.print().and_then(|()| std::io::stdout().flush());
            return match printed {
                Err(failed) if !error.use_stderr() => failure::Failure::from(failed).report(),
                _ => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)),
            };
        }
    };
    let done = interrupt::install().and_then(|()| match &line.command {
        Command::Devices => devices::run(),
        Command::Ops(args) => ops::run(args),
        Command::Check(args) => check::run(args),
        Command::Fetch(args) => fetch::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Explain(args) => explain::run(args),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // A terminal that hung up can be neither read nor written; why the work ended is the signal.
        Err(_) if interrupt::asked() => failure::Failure::Interrupted.report(),
        Err(failure) => failure.report(),
    }
}
