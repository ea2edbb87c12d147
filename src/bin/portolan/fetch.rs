//! `portolan fetch`: brings a known model into the cache folder and prints its path.

use crate::args::FetchArgs;
use crate::failure::Failure;
use crate::{interrupt, progress};
use portolan::fetch::FetchOptions;
use std::io::Write;
use std::ops::ControlFlow;

pub(crate) fn run(args: &FetchArgs) -> Result<(), Failure> {
    let options = FetchOptions { cache: args.cache.clone(), ..FetchOptions::default() };
    let _listening = interrupt::Listening::begin();
    let bar = progress::Bar::bytes();
    let path = portolan::fetch::fetch(&args.name, &options, &mut |at| {
        bar.show(at);
        if interrupt::asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    drop(bar);
    writeln!(std::io::stdout(), "{}", path.display())?;
    Ok(())
}
