//! `portolan explain`: what a vendor's error code means, and what to do about it.

use crate::args::ExplainArgs;
use crate::failure::Failure;
use portolan::cann;
use std::io::Write;

pub(crate) fn run(args: &ExplainArgs) -> Result<(), Failure> {
    let entry = cann::explain(args.code).ok_or_else(|| {
        let (first, last) = (cann::CATALOGUE.first(), cann::CATALOGUE.last());
        let range = first.zip(last).map(|(first, last)| format!(" ({} to {})", first.code, last.code));
        Failure::Message(format!(
            "{} is none of the {} CANN codes known here{}; the driver's own message says more",
            args.code,
            cann::CATALOGUE.len(),
            range.unwrap_or_default()
        ))
    })?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "CANN {} {}", entry.code, entry.name)?;
    writeln!(out, "cause:  {}", entry.cause)?;
    writeln!(out, "next:   {}", entry.next)?;
    Ok(())
}
