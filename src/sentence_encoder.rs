//! A model that turns sentences into vectors: a folder's WordPiece vocabulary, and its encoder's weights on a device.
//!
//! What a program opens to compare texts; the parts are in `tokenizer` and `models`.

use crate::Error;
use crate::load;
use crate::load::config::SentenceConfig;
use crate::models::Bert;
use crate::nn::{Precision, Progress};
use crate::tokenizer::Tokenizer;
use portolan_core::Stream;
use std::path::Path;

/// Tokenizer and weights of one sentence encoder, as sentence-transformers saves them.
///
/// ```no_run
/// use portolan::{SentenceEncoder, StreamOptions, nn::Precision};
///
/// let stream = portolan::open("cpu:0")?.stream(StreamOptions::default())?;
/// let encoder = SentenceEncoder::open(&stream, "all-MiniLM-L6-v2".as_ref(), Precision::Exact, &mut |_, _| {})?;
/// let vectors = encoder.embed(&["A keeper of lights", "He who minds the beacon"])?;
/// let alike: f32 = vectors[0].iter().zip(&vectors[1]).map(|(a, b)| a * b).sum();
/// println!("cosine {alike:.2}");
/// # Ok::<(), portolan::Error>(())
/// ```
#[derive(Debug)]
pub struct SentenceEncoder {
    tokenizer: Tokenizer,
    bert: Bert,
    stream: Stream,
    max_tokens: usize,
}

impl SentenceEncoder {
    /// Opens a folder with `config.json`, safetensors and `tokenizer.json`, and loads its weights onto the stream's
    /// device. `sentence_bert_config.json` may shorten the texts that are read.
    ///
    /// # Errors
    /// Those of the files and of the device; `Key` for a folder whose `1_Pooling/config.json` asks for anything but
    /// the mean of the tokens.
    pub fn open(
        stream: &Stream,
        folder: &Path,
        precision: Precision,
        progress: Progress<'_>,
    ) -> Result<Self, Error> {
        // Before the weights: what cannot be used should say so at once.
        let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json"))?;
        let sentence = SentenceConfig::from_folder(folder)?;
        let bert = Bert::load(stream, load::open(folder)?.as_ref(), precision, progress)?;
        let max_tokens = sentence.max_tokens.unwrap_or(usize::MAX).min(bert.config().max_positions);
        Ok(Self { tokenizer, bert, stream: stream.clone(), max_tokens })
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The weights.
    pub fn bert(&self) -> &Bert {
        &self.bert
    }

    /// The most tokens of a text that are read, those around it included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// A text as tokens, with those around it. Of a text that is too long the end is left out.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = self.tokenizer.encode(text, true)?;
        if ids.len() > self.max_tokens {
            let around = self.tokenizer.encode("", true)?;
            // Behind the text stands the last of these, where there is one.
            let behind = around.len().saturating_sub(1).min(self.max_tokens);
            let tail = ids.split_off(ids.len() - behind);
            ids.truncate(self.max_tokens - behind);
            ids.extend(tail);
        }
        Ok(ids)
    }

    /// A vector of length 1 for each text; the product of two is their cosine.
    ///
    /// # Errors
    /// Those of the tokenizer and of the device; `NotFinite` where the weights are damaged.
    pub fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, Error> {
        let ids = texts.iter().map(|text| self.encode(text)).collect::<Result<Vec<_>, Error>>()?;
        let sentences: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        let vectors = self.bert.embed(&self.stream, &sentences)?;
        let values = self.stream.download::<f32>(&vectors)?.wait()?;
        if values.iter().any(|x| !x.is_finite()) {
            return Err(Error::NotFinite);
        }
        Ok(values.chunks(self.bert.config().hidden).map(<[f32]>::to_vec).collect())
    }
}
