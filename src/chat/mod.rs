//! Conversations in the form a model was trained on, by the template its own file carries.
//! The template is Jinja, rendered as the Python `transformers` library does, but within limits (`limit.rs`).
//! The result is text with special tokens spelled out (`render`), or tokens (`encode`).

mod calendar;
mod encode;
mod error;
mod json;
mod limit;
mod replace;

use std::collections::BTreeMap;
use std::time::SystemTime;

use minijinja::machinery::{CodeGenerator, Instructions, eval, make_string_output, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Error, ErrorKind, context};

pub use error::ChatError;

use crate::load::LoadError;
use crate::load::gguf::Metadata;
use crate::tokenizer::excerpt;
use limit::{Budget, check_tokens, on_deep_stack, replace_instructions};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user` or `assistant`, or whatever else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl ChatMessage {
    /// What `role` says.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A model's chat template.
///
/// # Examples
/// ```
/// use portolan::chat::{ChatMessage, ChatTemplate};
/// let template = ChatTemplate::new("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}", "", "")?;
/// assert_eq!(template.render(&[ChatMessage::new("user", "Hi")], false)?, "<user>Hi");
/// # Ok::<(), portolan::chat::ChatError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    bos: String,
    eos: String,
    now: Option<SystemTime>,
}

/// The longest template accepted; real ones reach 20 KiB.
const MAX_SOURCE_BYTES: usize = 256 << 10;
/// What any rendering may use, in bytes of text and in values: far beyond a context window.
const BASE_UNITS: u64 = 16 << 20;
/// How often a template may read the whole conversation over.
const READS: u64 = 256;
/// Instructions for any rendering, and more for each message: real templates need a few hundred.
const BASE_FUEL: u64 = 200_000;
const MESSAGE_FUEL: u64 = 20_000;
/// Raw text is printed without a charge: the number of instructions times the longest one stays below this.
const RAW_BYTES: u64 = 512 << 20;

impl ChatTemplate {
    /// A template by its source, with the texts of the begin and end tokens, which templates may use.
    ///
    /// # Errors
    /// [`ChatError::Syntax`] and [`ChatError::Unsupported`] for the source.
    pub fn new(
        source: impl Into<String>,
        bos_token: impl Into<String>,
        eos_token: impl Into<String>,
    ) -> Result<Self, ChatError> {
        let (source, bos, eos) = (source.into(), bos_token.into(), eos_token.into());
        if source.len() > MAX_SOURCE_BYTES {
            let why = format!("{} bytes long, the limit is {MAX_SOURCE_BYTES}", source.len());
            return Err(ChatError::Syntax { why });
        }
        on_deep_stack(|| compile(&source).map(|_| ()))?;
        Ok(Self { source, bos, eos, now: None })
    }

    /// The template of `tokenizer_config.json`, with the begin and end tokens named there.
    ///
    /// # Errors
    /// [`ChatError::Missing`] where there is none, and [`new`](Self::new)'s.
    pub fn from_config(text: &[u8]) -> Result<Self, ChatError> {
        let config: serde_json::Value = serde_json::from_slice(text).map_err(|error| ChatError::Missing {
            what: format!("tokenizer_config.json is not valid JSON: {error}"),
        })?;
        let template = &config["chat_template"];
        // Some files hold several by name.
        let named =
            || template.as_array()?.iter().find(|entry| entry["name"] == "default")?["template"].as_str();
        let source = template.as_str().or_else(named).ok_or_else(|| ChatError::Missing {
            what: "tokenizer_config.json has no chat_template".into(),
        })?;
        let token = |name: &str| {
            let value = &config[name];
            value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default().to_owned()
        };
        Self::new(source, token("bos_token"), token("eos_token"))
    }

    /// The template an open GGUF file carries, with its begin and end tokens.
    ///
    /// # Errors
    /// [`ChatError::Missing`] where there is none, and [`new`](Self::new)'s.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, ChatError> {
        let missing = |error: LoadError| ChatError::Missing { what: error.to_string() };
        let source = metadata.string("tokenizer.chat_template").map_err(missing)?;
        let token = |key: &str| {
            let id = usize::try_from(metadata.u64(key).ok()?).ok()?;
            metadata.strings("tokenizer.ggml.tokens").ok()?.get(id).cloned()
        };
        let bos = token("tokenizer.ggml.bos_token_id").unwrap_or_default();
        Self::new(source, bos, token("tokenizer.ggml.eos_token_id").unwrap_or_default())
    }

    /// The same template with a fixed date for templates that print one; otherwise it is today's, in UTC.
    #[must_use]
    pub fn with_time(mut self, now: SystemTime) -> Self {
        self.now = Some(now);
        self
    }

    /// The conversation as one text; `add_generation_prompt` ends it where the model is to go on.
    ///
    /// # Errors
    /// [`ChatError::Refused`] in the template's own words, [`ChatError::Limit`] for a template that would not end,
    /// [`ChatError::Render`] for any other failure.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String, ChatError> {
        on_deep_stack(|| self.render_here(messages, add_generation_prompt))
    }

    fn render_here(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let bytes: usize =
            messages.iter().map(|message| message.role.len() + message.content.len() + 64).sum();
        let budget = Budget::new((bytes as u64).saturating_mul(READS).saturating_add(BASE_UNITS));
        let (instructions, longest) = compile(&self.source)?;
        let fuel = (messages.len() as u64).saturating_mul(MESSAGE_FUEL).saturating_add(BASE_FUEL);
        let mut env = replace::environment(&budget, self.now.unwrap_or_else(SystemTime::now));
        env.set_fuel(Some(fuel.min(RAW_BYTES / longest as u64)));
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role.as_str(), content => message.content.as_str() })
            .collect();
        let root = context! {
            messages, add_generation_prompt, bos_token => self.bos.as_str(), eos_token => self.eos.as_str(),
        };
        let blocks = BTreeMap::new();
        let mut text = String::new();
        let ended = {
            let mut out = make_string_output(&mut text);
            eval(&env, &instructions, root, &blocks, &mut out, AutoEscape::None).map(|_| ())
        };
        match ended {
            Ok(()) => Ok(text),
            Err(_) if budget.is_spent() => Err(ChatError::Limit { what: "text or nesting" }),
            Err(error) => Err(render_error(&error)),
        }
    }
}

/// Compiles within the limits; also the length of the longest raw text, at least one.
fn compile(source: &str) -> Result<(Instructions<'_>, usize), ChatError> {
    check_tokens(source, syntax()?)?;
    let tree = parse(source, "chat template", syntax()?).map_err(|error| syntax_error(&error))?;
    let mut code = CodeGenerator::new("chat template", source);
    code.compile_stmt(&tree);
    let (mut instructions, blocks) = code.finish();
    if !blocks.is_empty() {
        return Err(ChatError::Unsupported { what: "block".into() });
    }
    let longest = replace_instructions(&mut instructions)?;
    Ok((instructions, longest.max(1)))
}

/// As `transformers` sets it: a block's line leaves no blank behind, and a last newline is dropped.
fn syntax() -> Result<SyntaxConfig, ChatError> {
    let mut builder = SyntaxConfig::builder();
    builder.trim_blocks(true).lstrip_blocks(true).build().map_err(|error| syntax_error(&error))
}

fn syntax_error(error: &Error) -> ChatError {
    ChatError::Syntax { why: excerpt(&format!("line {}: {}", error.line().unwrap_or(0), detail(error))) }
}

fn render_error(error: &Error) -> ChatError {
    let text = detail(error);
    if error.kind() == ErrorKind::OutOfFuel {
        return ChatError::Limit { what: "work" };
    }
    if let Some(why) = text.strip_prefix(REFUSED) {
        return ChatError::Refused { why: excerpt(why) };
    }
    ChatError::Render { why: format!("line {}: {}", error.line().unwrap_or(0), excerpt(&text)) }
}

fn detail(error: &Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), str::to_owned)
}

/// Marks the template's own refusals among all errors.
const REFUSED: &str = "raise_exception: ";
