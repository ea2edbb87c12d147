//! A model that reads and writes text: its file's tokenizer and chat template, and its weights on a device.
//!
//! What a program opens to talk; the parts are in `tokenizer`, `chat`, `models` and `generate`.

use crate::Error;
use crate::chat::{ChatError, ChatMessage, ChatTemplate};
use crate::generate::{GenerateOptions, Generated, Session};
use crate::load::{self, SourceMetadata, WeightSource};
use crate::models::{self, LanguageModel};
use crate::nn::{Precision, Progress};
use crate::tokenizer::{Tokenizer, TokenizerError};
use portolan_core::Stream;
use std::ops::ControlFlow;
use std::path::Path;

/// Tokenizer, chat template and weights of one file or folder.
///
/// ```no_run
/// use portolan::{StreamOptions, TextModel, generate::GenerateOptions, nn::Precision};
/// use std::ops::ControlFlow;
///
/// let stream = portolan::open("cpu:0")?.stream(StreamOptions::default())?;
/// let model = TextModel::open(&stream, "model.gguf".as_ref(), Precision::Fast, &mut |_, _| {})?;
/// let prompt = model.encode("The capital of France is")?;
/// let mut session = model.session(512)?;
/// model.write(&mut session, &prompt, &GenerateOptions::default(), &mut |text| {
///     print!("{text}");
///     ControlFlow::Continue(())
/// })?;
/// # Ok::<(), portolan::Error>(())
/// ```
pub struct TextModel {
    tokenizer: Tokenizer,
    template: Result<ChatTemplate, ChatError>,
    model: Box<dyn LanguageModel>,
    stream: Stream,
}

impl TextModel {
    /// Opens a GGUF file, a safetensors folder with `tokenizer.json`, or a safetensors file in such a folder,
    /// and loads its weights onto the stream's device.
    ///
    /// # Errors
    /// Those of the file, of its tokenizer and of the device. A missing chat template is an error of
    /// [`chat`](Self::chat) only.
    pub fn open(
        stream: &Stream,
        path: &Path,
        precision: Precision,
        progress: Progress<'_>,
    ) -> Result<Self, Error> {
        Self::load(stream, load::open(path)?.as_ref(), precision, progress)
    }

    /// As [`open`](Self::open), from a source that is open already.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn load(
        stream: &Stream,
        source: &dyn WeightSource,
        precision: Precision,
        progress: Progress<'_>,
    ) -> Result<Self, Error> {
        // Before the weights: a model without a vocabulary should say so at once.
        let (tokenizer, template) = match source.metadata() {
            SourceMetadata::Gguf(metadata) => {
                (Tokenizer::from_metadata(metadata)?, ChatTemplate::from_metadata(metadata))
            }
            _ => {
                let path = source.path();
                let beside =
                    |name: &str| if path.is_dir() { path.join(name) } else { path.with_file_name(name) };
                (
                    Tokenizer::from_file(beside("tokenizer.json"))?,
                    template_of(&beside("tokenizer_config.json")),
                )
            }
        };
        let model = models::load(stream, source, precision, progress)?;
        Ok(Self { tokenizer, template, model, stream: stream.clone() })
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The weights.
    pub fn model(&self) -> &dyn LanguageModel {
        self.model.as_ref()
    }

    /// The stream the model was loaded on.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Tokens that end an answer: those of the vocabulary and those of the configuration.
    pub fn stop_tokens(&self) -> Vec<u32> {
        let mut stop = self.tokenizer.stop_ids();
        for &id in self.model.info().eos {
            if !stop.contains(&id) {
                stop.push(id);
            }
        }
        stop
    }

    /// A text as tokens, with what the vocabulary puts before every text.
    ///
    /// # Errors
    /// Those of the tokenizer; `IdOutOfRange` where the vocabulary has tokens that the weights lack.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.within_weights(self.tokenizer.encode(text, true)?)
    }

    /// A conversation as tokens, ready for the model's answer. A special token spelled in a message is text.
    ///
    /// # Errors
    /// Those of the chat template (a file without one too) and of the tokenizer.
    pub fn chat(&self, messages: &[ChatMessage]) -> Result<Vec<u32>, Error> {
        self.within_weights(self.template()?.encode(&self.tokenizer, messages, true)?)
    }

    /// The chat template.
    ///
    /// # Errors
    /// `Missing` where the file has none, or none that can be used.
    pub fn template(&self) -> Result<&ChatTemplate, ChatError> {
        self.template.as_ref().map_err(|error| match error {
            ChatError::Missing { what } => ChatError::Missing { what: what.clone() },
            ChatError::Syntax { why } => ChatError::Syntax { why: why.clone() },
            other => ChatError::Missing { what: other.to_string() },
        })
    }

    /// An empty conversation of at most `max_len` tokens (no more than the model was made for).
    ///
    /// # Errors
    /// `OutOfMemory` for the cache.
    pub fn session(&self, max_len: usize) -> Result<Session<'_>, Error> {
        Session::new(self.model.as_ref(), &self.stream, max_len)
    }

    /// Continues `prompt` in `session` and hands out the text as it comes, in whole characters.
    ///
    /// # Errors
    /// As [`Session::generate`], and the tokenizer's for a token it has no text for.
    pub fn write(
        &self,
        session: &mut Session<'_>,
        prompt: &[u32],
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, Error> {
        let mut decoder = self.tokenizer.stream();
        let mut failure = None;
        let generated = session.generate(prompt, options, &mut |token| match decoder.push(token) {
            Ok(text) => on_text(&text),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        })?;
        if let Some(error) = failure {
            return Err(error.into());
        }
        let rest = decoder.finish();
        if !rest.is_empty() {
            let _ = on_text(&rest);
        }
        Ok(generated)
    }

    fn within_weights(&self, ids: Vec<u32>) -> Result<Vec<u32>, Error> {
        let vocab = self.model.info().vocab;
        match ids.iter().find(|&&id| id as usize >= vocab) {
            None => Ok(ids),
            Some(&id) => Err(TokenizerError::IdOutOfRange {
                what: "a token of the prompt, which the model's weights lack,",
                id: u64::from(id),
                vocab_size: vocab,
            }
            .into()),
        }
    }
}

/// The template in `tokenizer_config.json`, or in `chat_template.jinja` beside it, where newer checkpoints put it.
fn template_of(config: &Path) -> Result<ChatTemplate, ChatError> {
    let text = match std::fs::read(config) {
        Ok(text) => text,
        Err(error) => return Err(ChatError::Missing { what: format!("{}: {error}", config.display()) }),
    };
    let inside = ChatTemplate::from_config(&text);
    let file = config.with_file_name("chat_template.jinja");
    if !matches!(inside, Err(ChatError::Missing { .. })) || !file.is_file() {
        return inside;
    }
    let template = std::fs::read_to_string(&file)
        .map_err(|error| ChatError::Missing { what: format!("{}: {error}", file.display()) })?;
    let config: serde_json::Value = serde_json::from_slice(&text).map_err(|error| ChatError::Missing {
        what: format!("tokenizer_config.json is not valid JSON: {error}"),
    })?;
    let token = |name: &str| {
        let value = &config[name];
        value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default().to_owned()
    };
    ChatTemplate::new(template, token("bos_token"), token("eos_token"))
}
