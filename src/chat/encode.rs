//! A conversation as tokens: the template's special tokens are tokens, those that a message spells are text.
//!
//! Templates cut, trim and compare what is said, so a message goes through them as it is; only a special token
//! spelled in it is broken by a mark, a character that nothing else in the conversation uses, which the tokenizer
//! takes out again.

use super::{ChatMessage, ChatTemplate};
use crate::Error;
use crate::tokenizer::Tokenizer;

/// Unicode's noncharacters for a program's own use, then its private planes.
const MARKS: [std::ops::RangeInclusive<char>; 3] =
    ['\u{FDD0}'..='\u{FDEF}', '\u{F0000}'..='\u{FFFFD}', '\u{100000}'..='\u{10FFFD}'];

impl ChatTemplate {
    /// The conversation as tokens of `tokenizer`; `add_generation_prompt` ends it where the model is to go on.
    ///
    /// What messages say is encoded as plain text: nobody ends a turn by typing the token that ends turns.
    ///
    /// # Errors
    /// As [`render`](Self::render), and the tokenizer's.
    ///
    /// # Examples
    /// ```
    /// use portolan::chat::{ChatMessage, ChatTemplate};
    /// use portolan::tokenizer::{GgufMerges, GgufVocab, Tokenizer};
    ///
    /// let tokens = ["<", "e", ">", "<e>"].map(String::from).to_vec();
    /// let vocab = GgufVocab {
    ///     types: Some(vec![1, 1, 1, 3]),
    ///     pre: Some("gpt-2".into()),
    ///     ..GgufVocab::new(tokens, GgufMerges::Ranked(Vec::new()))
    /// };
    /// let tokenizer = Tokenizer::from_gguf(&vocab)?;
    /// let template = ChatTemplate::new("{% for m in messages %}{{ m.content }}<e>{% endfor %}", "", "")?;
    /// let ids = template.encode(&tokenizer, &[ChatMessage::new("user", "<e>")], false)?;
    /// assert_eq!(ids, [0, 1, 2, 3]);
    /// # Ok::<(), portolan::Error>(())
    /// ```
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, Error> {
        let used = |mark: &char| {
            self.source.contains(*mark)
                || messages.iter().any(|said| said.content.contains(*mark) || said.role.contains(*mark))
        };
        // A conversation of all 131,000 would lose one of them.
        let mark = MARKS.into_iter().flatten().find(|mark| !used(mark)).unwrap_or('\u{FDD0}');
        let marked: Vec<ChatMessage> = messages
            .iter()
            .map(|said| ChatMessage::new(said.role.as_str(), tokenizer.mark_special(&said.content, mark)))
            .collect();
        Ok(tokenizer.encode_marked(&self.render(&marked, add_generation_prompt)?, mark)?)
    }
}
