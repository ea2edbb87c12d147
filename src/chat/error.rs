//! What can be wrong with a chat template or with rendering one.
//! Kept beside `mod.rs`, which renders.

/// Why a conversation could not be put into a model's own form.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The template is no valid Jinja.
    #[error("chat template: {why}; the file is damaged, or give the prompt as plain text")]
    Syntax {
        /// Where and what.
        why: String,
    },
    /// The template, or a configuration that should hold one, is not what it should be.
    #[error(
        "chat template: {what}; use a model file that carries a chat template, or give the prompt as plain text"
    )]
    Missing {
        /// What is missing or malformed.
        what: String,
    },
    /// The template does something chat templates never need.
    #[error("chat template: `{what}` is not supported; give the prompt as plain text")]
    Unsupported {
        /// The construct.
        what: String,
    },
    /// The template refused this conversation.
    #[error("chat template: the model's template refuses this conversation: {why}")]
    Refused {
        /// The template's own words, shortened.
        why: String,
    },
    /// Rendering failed.
    #[error("chat template: {why}; this conversation does not fit the template, or the template is damaged")]
    Render {
        /// Where and what.
        why: String,
    },
    /// The template ran too long or made too much text.
    #[error(
        "chat template: stopped after too much {what}; the template is damaged or hostile, or the conversation is too long"
    )]
    Limit {
        /// What ran out.
        what: &'static str,
    },
}
