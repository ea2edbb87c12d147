//! From the options of a command to a stream and a loaded model.

use crate::args::ModelArgs;
use crate::failure::Failure;
use crate::progress::Bar;
use crate::trace::Tracing;
use portolan::cpu::{CpuBackend, CpuOptions};
use portolan::fetch::{FetchOptions, resolve_model};
use portolan::generate::{Finish, Generated};
use portolan::{Registry, Stream, StreamOptions, TextModel};
use std::path::PathBuf;
use std::sync::Arc;

/// An open device and what its path is called.
pub(crate) struct Opened {
    pub(crate) stream: Stream,
    pub(crate) cpu: Arc<CpuBackend>,
}

impl ModelArgs {
    /// The model's file or folder.
    pub(crate) fn path(&self) -> Result<PathBuf, Failure> {
        let options = FetchOptions { cache: self.cache.clone(), ..FetchOptions::default() };
        Ok(resolve_model(&self.model, &options)?)
    }

    /// A stream of the device asked for.
    pub(crate) fn open(&self) -> Result<Opened, Failure> {
        self.open_traced(&Tracing::default())
    }

    fn open_traced(&self, tracing: &Tracing) -> Result<Opened, Failure> {
        let cpu = CpuBackend::new(CpuOptions {
            threads: self.threads.map(|threads| threads as usize),
            isa: self.isa.map(|isa| isa.isa()),
            executor: self.executor.executor(),
            ..CpuOptions::default()
        })?;
        let registry: Registry = tracing.wrap(portolan::registry()?.with(cpu.clone()), &self.device)?;
        let stream = registry.open(&self.device)?.stream(StreamOptions::default())?;
        Ok(Opened { stream, cpu })
    }

    /// The model with its vocabulary, loaded behind a progress bar.
    pub(crate) fn load(&self, tracing: &Tracing) -> Result<TextModel, Failure> {
        let path = self.path()?;
        let opened = self.open_traced(tracing)?;
        let bar = Bar::loading();
        let precision = self.precision.precision();
        Ok(TextModel::open(&opened.stream, &path, precision, &mut |done, total| bar.set(done, total))?)
    }
}

/// Speeds and why the text ended, in one line.
pub(crate) fn summary(generated: &Generated) -> String {
    let timing = &generated.timing;
    let finish = match generated.finish {
        Finish::Stop => "the model ended it",
        Finish::Length => "as many tokens as asked for (--max-tokens)",
        Finish::Context => "the context is full (--context)",
        Finish::Cancelled => "interrupted",
    };
    let speed = |tokens: usize, rate: f64| match tokens {
        0 => "-".into(),
        _ => format!("{rate:.1} tokens/s"),
    };
    format!(
        "prefill {} tokens, {}; decode {} tokens, {}; ended: {finish}",
        timing.prompt_tokens,
        speed(timing.prompt_tokens, timing.prefill_rate()),
        timing.decoded_tokens,
        speed(timing.decoded_tokens, timing.decode_rate()),
    )
}
