//! `portolan chat`: a conversation over stdin and stdout, with or without a terminal.

use crate::args::ChatArgs;
use crate::failure::Failure;
use crate::generate::write;
use crate::trace::Tracing;
use crate::{interrupt, model, progress};
use portolan::chat::ChatMessage;
use std::io::{self, BufRead, IsTerminal, Write};

/// Bytes of one line, so that an endless one cannot take all memory.
const MAX_LINE: u64 = 1 << 20;

pub(crate) fn run(args: &ChatArgs) -> Result<(), Failure> {
    let tracing = Tracing::begin(&args.trace)?;
    let model = args.model.load(&tracing)?;
    // A model without a template should say so before anybody types.
    model.template()?;
    let start: Vec<ChatMessage> = args.system.iter().map(|text| ChatMessage::new("system", text)).collect();
    let mut messages = start.clone();
    let mut session = model.session(args.context as usize)?;
    let options = args.sampling.options(model.stop_tokens());
    let talking = io::stdin().is_terminal() && io::stderr().is_terminal();
    if talking {
        progress::say("one line a turn; /reset forgets the conversation, /exit ends it");
    }
    while let Some(line) = read_line(talking)? {
        match line.trim() {
            "" => continue,
            "/exit" => break,
            "/reset" => {
                messages.clone_from(&start);
                continue;
            }
            command if command.starts_with('/') && !command.contains(' ') => {
                progress::say(&format!("{command} is not a command; there are /reset and /exit"));
                continue;
            }
            text => messages.push(ChatMessage::new("user", text)),
        }
        let prompt = model.chat(&messages)?;
        if prompt.len() > session.max_len() {
            let full = format!(
                "the conversation has {} tokens, the context holds {}; shorten it, or start with a longer --context",
                prompt.len(),
                session.max_len()
            );
            if !talking {
                return Err(Failure::Message(full));
            }
            progress::say(&format!("{full}; /reset forgets it"));
            messages.pop();
            continue;
        }
        let (generated, written) = write(&model, &mut session, &prompt, &options)?;
        // After every answer: a conversation may end by a signal while it waits for a line.
        tracing.save()?;
        messages.push(ChatMessage::new("assistant", written?));
        writeln!(io::stdout())?;
        progress::say(&model::summary(&generated));
        interrupt::check()?;
    }
    Ok(())
}

/// The next line of stdin; nothing at its end.
fn read_line(talking: bool) -> Result<Option<String>, Failure> {
    if talking {
        let mut terminal = io::stderr();
        let _ = write!(terminal, "> ").and_then(|()| terminal.flush());
    }
    let mut line = Vec::new();
    let read = io::Read::take(io::stdin().lock(), MAX_LINE).read_until(b'\n', &mut line)?;
    if read as u64 == MAX_LINE {
        return Err(Failure::Message(format!(
            "a line of stdin is longer than {MAX_LINE} bytes; send shorter lines"
        )));
    }
    match String::from_utf8(line) {
        Ok(line) => Ok((read > 0).then_some(line)),
        Err(_) => Err(Failure::Message("a line of stdin is not UTF-8; convert the input".into())),
    }
}
