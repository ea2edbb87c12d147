//! `portolan generate`: continues one text, token by token to stdout.

use crate::args::GenerateArgs;
use crate::failure::Failure;
use crate::trace::Tracing;
use crate::{interrupt, model, progress};
use portolan::TextModel;
use portolan::generate::{GenerateOptions, Generated, Session};
use std::io::{self, Write};
use std::ops::ControlFlow;

pub(crate) fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let tracing = Tracing::begin(&args.trace)?;
    let model = args.model.load(&tracing)?;
    let prompt = model.encode(&args.prompt)?;
    let needed = prompt.len().saturating_add(args.sampling.max_tokens as usize);
    let context = args.context.map_or(needed, |context| context as usize);
    let mut session = model.session(context)?;
    let options = args.sampling.options(model.stop_tokens());
    let (generated, written) = write(&model, &mut session, &prompt, &options)?;
    tracing.save()?;
    written?;
    writeln!(io::stdout())?;
    progress::say(&model::summary(&generated));
    interrupt::check()
}

/// Continues `prompt` to stdout until the model, a limit, Ctrl-C or the reader ends it; also whether stdout took it.
pub(crate) fn write(
    model: &TextModel,
    session: &mut Session<'_>,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Result<(Generated, io::Result<String>), Failure> {
    let _listening = interrupt::Listening::begin();
    let mut out = io::stdout();
    let mut written = Ok(String::new());
    let generated = model.write(session, prompt, options, &mut |text| {
        if let Ok(all) = &mut written {
            all.push_str(text);
        }
        if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            written = Err(error);
            return ControlFlow::Break(());
        }
        if interrupt::asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok((generated, written))
}
