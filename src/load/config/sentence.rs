//! What sentence-transformers writes beside an encoder: how its tokens become one vector, and how long a text may be.

use crate::load::error::{LoadError, Result, printable};
use crate::load::json::read_json;
use serde_json::Value;
use std::path::Path;

/// How a folder's encoder is used on sentences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentenceConfig {
    /// The most tokens of a text that are read, those around it included; the model's own limit where not said.
    pub max_tokens: Option<usize>,
}

impl SentenceConfig {
    /// Reads `sentence_bert_config.json` and `1_Pooling/config.json` where they are.
    ///
    /// # Errors
    /// `Key` for a pooling other than the mean of the tokens, and for a length that leaves no room for a text.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let pooling = folder.join("1_Pooling").join("config.json");
        if pooling.is_file() {
            check_pooling(&pooling, &read_json(&pooling)?)?;
        }
        let lengths = folder.join("sentence_bert_config.json");
        let max_tokens = match lengths.is_file() {
            true => longest_text(&lengths, &read_json(&lengths)?)?,
            false => None,
        };
        Ok(Self { max_tokens })
    }
}

/// Accepts the mean alone: another vector of the same length would look as good and mean something else.
fn check_pooling(path: &Path, json: &Value) -> Result<()> {
    let entries = json.as_object().into_iter().flatten();
    let modes = entries.filter(|(key, value)| key.starts_with("pooling_mode") && **value != false);
    let modes: Vec<String> = modes.map(|(key, value)| format!("{key}: {value}")).collect();
    match modes.as_slice() {
        [one] if one == "pooling_mode_mean_tokens: true" => Ok(()),
        seen => {
            let seen = printable(&seen.join(", "));
            Err(LoadError::key(path, "pooling_mode", seen, "pooling_mode_mean_tokens alone"))
        }
    }
}

fn longest_text(path: &Path, json: &Value) -> Result<Option<usize>> {
    let seen = &json["max_seq_length"];
    match seen.as_u64().and_then(|longest| usize::try_from(longest).ok()) {
        None if seen.is_null() => Ok(None),
        Some(longest) if longest > 2 => Ok(Some(longest)),
        _ => {
            let seen = printable(&seen.to_string());
            Err(LoadError::key(path, "max_seq_length", seen, "a whole number above 2"))
        }
    }
}
