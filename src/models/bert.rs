//! BERT encoders (Devlin et al. 2018) and the sentence embeddings made of them (Reimers and Gurevych 2019): learned
//! positions, attention over the whole text, GELU, norms behind each part; the mean of all tokens, of length 1.

use crate::Error;
use crate::load::WeightSource;
use crate::load::config::BertConfig;
use crate::load::names::BERT;
use crate::nn::{Batch, Embedding, KvCache, LayerNorm, Linear, Loader, Precision, Progress};
use portolan_core::{Scope, Stream, Tensor, call, ops};
use portolan_ops::attention::AttentionMask;
use portolan_ops::kernel::ScatterMode;
use portolan_ops::{DType, OpError, Shape, TensorSpec};

/// An encoder's weights on a device.
#[derive(Clone, Debug)]
pub struct Bert {
    config: BertConfig,
    embedding: Embedding,
    positions: Embedding,
    /// What is added to every token for being of the first kind, `[1, hidden]`.
    token_type: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    /// `1/√hidden` in every column: turns a root mean square of 1 into a length of 1.
    to_length: Tensor,
}

#[derive(Clone, Debug)]
struct Layer {
    qkv: Linear,
    o: Linear,
    attn_norm: LayerNorm,
    up: Linear,
    down: Linear,
    ffn_norm: LayerNorm,
}

impl Bert {
    /// Loads an encoder from an open folder.
    ///
    /// # Errors
    /// Those of the file (missing tensors, wrong extents) and of the device (memory).
    pub fn load(
        stream: &Stream,
        source: &dyn WeightSource,
        precision: Precision,
        progress: Progress<'_>,
    ) -> Result<Self, Error> {
        let config = BertConfig::from_source(source)?;
        let (hidden, eps) = (config.hidden, config.norm_eps);
        let mut loader = Loader::new(stream, source, BERT, precision, progress);
        let embedding = Embedding::load(&mut loader, "embedding.weight", config.vocab, hidden)?;
        let positions = Embedding::load(&mut loader, "positions.weight", config.max_positions, hidden)?;
        let types = Embedding::load(&mut loader, "token_types.weight", config.token_types, hidden)?;
        let token_type = types.forward(stream, &stream.upload(&[0i32], &Shape::new(&[1])?)?)?;
        let norm = LayerNorm::load(&mut loader, "norm", 0, hidden, eps)?;
        let mut layers = Vec::new();
        for i in 0..config.layers {
            layers.push(Layer::load(&mut loader, &config, i)?);
        }
        let to_length = ops::full(stream, DType::F32, &Shape::new(&[hidden])?, 1.0 / (hidden as f64).sqrt())?;
        stream.synchronize()?;
        Ok(Self { config, embedding, positions, token_type, norm, layers, to_length })
    }

    /// What the model is made of.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Embeddings `[sentences, hidden]` of texts as tokens, each of length 1 (0 for a text without tokens).
    ///
    /// # Errors
    /// `Shape` for a text of more tokens than the model has positions; as [`Stream::run`].
    pub fn embed(&self, stream: &Stream, sentences: &[&[u32]]) -> Result<Tensor, Error> {
        let states = self.states(stream, sentences)?;
        let _scope = Scope::named("pooling");
        let owners =
            sentences.iter().enumerate().flat_map(|(at, tokens)| tokens.iter().map(move |_| at as i32));
        let owners: Vec<i32> = owners.collect();
        let owners = stream.upload(&owners, &Shape::new(&[owners.len()])?)?;
        // The sum has the mean's direction, which is all that is left at length 1.
        let dims = Shape::new(&[sentences.len(), self.config.hidden])?;
        let sums = ops::full(stream, DType::F32, &dims, 0.0)?;
        stream.run(call::Scatter::new(ScatterMode::Add, &sums, 0, &owners, &states, &mut sums.clone())?)?;
        // Smaller than any real mean square, so that it counts for a text of no tokens only.
        Ok(ops::rms_norm(stream, &sums, Some(&self.to_length), f32::MIN_POSITIVE)?)
    }

    /// The last layer's states `[tokens, hidden]`, one sentence after the other.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    pub fn states(&self, stream: &Stream, sentences: &[&[u32]]) -> Result<Tensor, Error> {
        let config = &self.config;
        let longest = sentences.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
        if longest > config.max_positions {
            let what =
                format!("a text of {longest} tokens, the model has {} positions", config.max_positions);
            return Err(OpError::shape("bert", what).into());
        }
        let batch = Batch::new(stream, sentences, &vec![0; sentences.len()], longest)?;
        // Keys and values of one layer at a time, each sentence in a row of its own.
        let (heads, head_dim) = (config.num_heads, config.head_dim());
        let mut keys = KvCache::new(stream, 1, sentences.len(), longest, heads, head_dim, DType::F32)?;
        let mut x = self.embedding.forward(stream, &batch.ids)?;
        let places = self.positions.forward(stream, &batch.positions)?;
        stream.run(call::Binary::add(&x.clone(), &self.token_type, &mut x)?)?;
        x = self.norm.forward_add(stream, &places, &mut x)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let _scope = Scope::numbered("layers", i);
            let attended = layer.attention(stream, config, &x, &batch, &mut keys)?;
            x = layer.attn_norm.forward_add(stream, &attended, &mut x)?;
            let _scope = Scope::named("ffn");
            let inner = layer.up.forward_activated(stream, &x, config.activation)?;
            x = layer.ffn_norm.forward_add(stream, &layer.down.forward(stream, &inner)?, &mut x)?;
        }
        Ok(x)
    }
}

impl Layer {
    fn load(loader: &mut Loader<'_>, config: &BertConfig, i: usize) -> Result<Self, Error> {
        let (hidden, ffn, eps) = (config.hidden, config.ffn, config.norm_eps);
        let qkv = [("layers.{i}.q", hidden), ("layers.{i}.k", hidden), ("layers.{i}.v", hidden)];
        Ok(Self {
            qkv: Linear::load(loader, &qkv, i, hidden, true)?,
            o: Linear::load(loader, &[("layers.{i}.o", hidden)], i, hidden, true)?,
            attn_norm: LayerNorm::load(loader, "layers.{i}.attn_norm", i, hidden, eps)?,
            up: Linear::load(loader, &[("layers.{i}.up", ffn)], i, hidden, true)?,
            down: Linear::load(loader, &[("layers.{i}.down", hidden)], i, ffn, true)?,
            ffn_norm: LayerNorm::load(loader, "layers.{i}.ffn_norm", i, hidden, eps)?,
        })
    }

    fn attention(
        &self,
        stream: &Stream,
        config: &BertConfig,
        x: &Tensor,
        batch: &Batch,
        cache: &mut KvCache,
    ) -> Result<Tensor, Error> {
        let _scope = Scope::named("attention");
        let (tokens, heads, head_dim) = (x.dims()[0], config.num_heads, config.head_dim());
        let qkv = self.qkv.forward(stream, x)?.reshape(&[tokens, 3 * heads, head_dim])?;
        let (k, v) = (qkv.narrow(1, heads, heads)?, qkv.narrow(1, 2 * heads, heads)?);
        let (keys, values) = cache.append(stream, 0, &k, &v, batch)?;
        let mut out = stream.empty(&TensorSpec::of(x.dtype(), &[tokens, heads, head_dim])?)?;
        let q = qkv.narrow(1, 0, heads)?;
        let attention = call::Attention::new(&q, &keys, &values, &batch.q_lens, &batch.kv_lens, &mut out)?;
        stream.run(attention.mask(AttentionMask::Full)?)?;
        self.o.forward(stream, &out.reshape(&[tokens, heads * head_dim])?)
    }
}
