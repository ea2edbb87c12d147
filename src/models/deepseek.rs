//! DeepSeek-V3: attention over latent entries that all heads share, experts in limited groups behind a few layers without
//! any (DeepSeek-AI 2024).

use super::{LanguageModel, ModelInfo};
use crate::Error;
use crate::load::WeightSource;
use crate::load::config::DeepseekConfig;
use crate::load::names::DEEPSEEK;
use crate::nn::{
    Backbone, Batch, Cache, Decoder, LatentCache, Layout, Linear, Loader, MoeLayer, Precision, Progress,
    RmsNorm, Share,
};
use portolan_core::{Lens, Scope, Stream, Tensor, call, ops};
use portolan_ops::{DType, TensorSpec};

/// Of norms between two products, whatever the configuration says of the others.
const INNER_EPS: f32 = 1e-6;

/// A model's weights on a device.
#[derive(Clone, Debug)]
pub struct DeepseekV3 {
    config: DeepseekConfig,
    precision: Precision,
    backbone: Backbone,
    attention: Vec<LatentAttention>,
    ffn: Vec<MoeLayer>,
}

impl DeepseekV3 {
    /// Loads a model from an open folder.
    ///
    /// # Errors
    /// Those of the file (missing tensors, wrong extents) and of the device (memory).
    pub fn load(
        stream: &Stream,
        source: &dyn WeightSource,
        precision: Precision,
        progress: Progress<'_>,
    ) -> Result<Self, Error> {
        Self::load_rank(stream, source, precision, &Layout::default(), progress)
    }

    /// Loads what one rank has of a model.
    ///
    /// # Errors
    /// As [`load`](Self::load); `Attribute` where the ranks cannot share it equally.
    pub fn load_rank(
        stream: &Stream,
        source: &dyn WeightSource,
        precision: Precision,
        layout: &Layout,
        progress: Progress<'_>,
    ) -> Result<Self, Error> {
        let config = DeepseekConfig::from_source(source)?;
        let mut loader = Loader::new(stream, source, DEEPSEEK, precision, progress).of_rank(layout);
        let backbone = Backbone::load(&mut loader, &config.moe.decoder.backbone(), &Decoder::NORMS)?;
        let (mut attention, mut ffn) = (Vec::new(), Vec::new());
        for i in 0..config.moe.decoder.layers {
            attention.push(LatentAttention::load(&mut loader, &config, i)?);
            ffn.push(MoeLayer::load(&mut loader, &config.moe, i)?);
        }
        stream.synchronize()?;
        Ok(Self { config, precision, backbone, attention, ffn })
    }

    /// What the model is made of.
    pub fn config(&self) -> &DeepseekConfig {
        &self.config
    }
}

/// One layer's attention.
#[derive(Clone, Debug)]
struct LatentAttention {
    /// Of this rank.
    heads: usize,
    query: Query,
    /// To a latent entry and the part of a key that all heads share.
    entry: Linear,
    entry_norm: RmsNorm,
    /// From an entry to each head's key, `[heads, nope_dim, kv_rank]`, and to its value, `[heads, v_head_dim, kv_rank]`.
    key: Tensor,
    value: Tensor,
    output: Linear,
}

/// How queries are made.
#[derive(Clone, Debug)]
enum Query {
    Direct(Linear),
    Compressed(Box<(Linear, RmsNorm, Linear)>),
}

impl LatentAttention {
    fn load(loader: &mut Loader<'_>, config: &DeepseekConfig, i: usize) -> Result<Self, Error> {
        let decoder = &config.moe.decoder;
        let (hidden, heads, rank) = (decoder.hidden, decoder.num_heads, config.kv_rank);
        let (nope, value) = (config.nope_dim(), config.v_head_dim);
        let share = loader.layout().share(heads, "heads")?;
        let rows = |each: usize| share.start * each..share.end * each;
        let linear = |loader: &mut Loader<'_>, name: &str, n: usize, k: usize| {
            Linear::load(loader, &[(name, n)], i, k, false)
        };
        let of_heads = |loader: &mut Loader<'_>, name: &str, k: usize| {
            let share = Share::whole(name, decoder.q_width(), k).rows(rows(decoder.head_dim));
            Linear::load_shares(loader, &[share], i, false)
        };
        let query = match config.q_rank {
            None => Query::Direct(of_heads(loader, "layers.{i}.q", hidden)?),
            Some(q_rank) => Query::Compressed(Box::new((
                linear(loader, "layers.{i}.q_a", q_rank, hidden)?,
                RmsNorm::load(loader, "layers.{i}.q_a_norm.weight", i, q_rank, INNER_EPS)?,
                of_heads(loader, "layers.{i}.q_b", q_rank)?,
            ))),
        };
        let raised = Share::whole("layers.{i}.kv_b", heads * (nope + value), rank).rows(rows(nope + value));
        let raised = loader.dense(&raised, i)?.reshape(&[share.len(), nope + value, rank])?;
        let output = Share::whole("layers.{i}.o", hidden, heads * value).columns(rows(value));
        Ok(Self {
            heads: share.len(),
            query,
            entry: linear(loader, "layers.{i}.kv_a", config.entry_width(), hidden)?,
            entry_norm: RmsNorm::load(loader, "layers.{i}.kv_a_norm.weight", i, rank, INNER_EPS)?,
            key: raised.narrow(1, 0, nope)?,
            value: raised.narrow(1, nope, value)?,
            output: Linear::load_shares(loader, &[output], i, false)?,
        })
    }

    /// `[tokens, hidden]` to this rank's part of the same: writes the tokens' entries into the cache, then attends to all of them.
    fn forward(
        &self,
        stream: &Stream,
        config: &DeepseekConfig,
        x: &Tensor,
        batch: &Batch,
        cache: &mut LatentCache,
        layer: usize,
    ) -> Result<Tensor, Error> {
        let _scope = Scope::named("attention");
        let decoder = &config.moe.decoder;
        let (tokens, heads, rope_dim) = (x.dims()[0], self.heads, config.rope_dim());
        let q = match &self.query {
            Query::Direct(q) => q.forward(stream, x)?,
            Query::Compressed(parts) => {
                let (down, norm, up) = parts.as_ref();
                let narrow = down.forward(stream, x)?;
                norm.forward_in_place(stream, &narrow)?;
                up.forward(stream, &narrow)?
            }
        };
        let q = q.reshape(&[tokens, heads, decoder.head_dim])?;
        let entry = self.entry.forward(stream, x)?;
        self.entry_norm.forward_in_place(stream, &entry.narrow(1, 0, config.kv_rank)?)?;
        let rotated = entry.narrow(1, config.kv_rank, rope_dim)?.reshape(&[tokens, 1, rope_dim])?;
        for x in [q.narrow(2, config.nope_dim(), rope_dim)?, rotated] {
            let (style, theta) = (decoder.rope_style, decoder.rope_theta);
            let rope = call::Rope::new(style, &x, &batch.positions, theta, &mut x.clone())?;
            stream.run(rope.scaling(decoder.rope_scaling)?)?;
        }
        let entries = cache.append(stream, layer, &entry, batch)?;
        let out = match longest(batch)? {
            Some(kv_lens) => self.naive(stream, config, &q, &entries, batch, &kv_lens)?,
            None => self.absorbed(stream, config, &q, &entries, batch)?,
        };
        self.output.forward(stream, &out.reshape(&[tokens, heads * config.v_head_dim])?)
    }

    /// Keys and values of every head are made from the entries: the fewest operations where many queries share them.
    fn naive(
        &self,
        stream: &Stream,
        config: &DeepseekConfig,
        q: &Tensor,
        entries: &Tensor,
        batch: &Batch,
        kv_lens: &Lens,
    ) -> Result<Tensor, Error> {
        let (sequences, width) = (entries.dims()[0], config.entry_width());
        let (heads, nope, rank) = (self.heads, config.nope_dim(), config.kv_rank);
        let len = kv_lens.spec("deepseek", "kv_lens")?.max() as usize;
        // In f32, as the products are, and without what lies behind the longest sequence.
        let entries = ops::cast(stream, &entries.narrow(1, 0, len)?, DType::F32)?;
        let entries = entries.reshape(&[1, sequences * len, width])?;
        let made = |width| stream.empty(&TensorSpec::of(DType::F32, &[sequences * len, heads, width])?);
        let (keys, values) = (made(config.moe.decoder.head_dim)?, made(config.v_head_dim)?);
        let latent = entries.narrow(2, 0, rank)?.broadcast_to(&[heads, sequences * len, rank])?;
        let mut into = keys.narrow(2, 0, nope)?.transpose(0, 1)?;
        stream.run(call::Gemm::nt(&latent, &self.key, &mut into)?)?;
        stream.run(call::Gemm::nt(&latent, &self.value, &mut values.transpose(0, 1)?)?)?;
        let rotated = entries.narrow(2, rank, config.rope_dim())?.transpose(0, 1)?;
        let mut into = keys.narrow(2, nope, config.rope_dim())?;
        stream.run(call::Copy::new(&rotated.broadcast_to(into.dims())?, &mut into)?)?;
        let by_sequence = |x: &Tensor| x.reshape(&[sequences, len, heads, x.dims()[2]]);
        let (keys, values) = (by_sequence(&keys)?, by_sequence(&values)?);
        let mut out = stream.empty(&TensorSpec::of(DType::F32, &[q.dims()[0], heads, config.v_head_dim])?)?;
        let attention = call::Attention::new(q, &keys, &values, &batch.q_lens, kv_lens, &mut out)?;
        stream.run(attention.scale(config.scale)?)?;
        Ok(out)
    }

    /// Queries are taken into the latent space and results brought out of it: entries are read once for all heads.
    fn absorbed(
        &self,
        stream: &Stream,
        config: &DeepseekConfig,
        q: &Tensor,
        entries: &Tensor,
        batch: &Batch,
    ) -> Result<Tensor, Error> {
        let (tokens, heads) = (q.dims()[0], self.heads);
        let (nope, rope, rank) = (config.nope_dim(), config.rope_dim(), config.kv_rank);
        let made = |width| stream.empty(&TensorSpec::of(DType::F32, &[tokens, heads, width])?);
        let (latent_q, mut latent, out) = (made(rank + rope)?, made(rank)?, made(config.v_head_dim)?);
        let mut into = latent_q.narrow(2, 0, rank)?.transpose(0, 1)?;
        stream.run(call::Gemm::nn(&q.narrow(2, 0, nope)?.transpose(0, 1)?, &self.key, &mut into)?)?;
        stream.run(call::Copy::new(&q.narrow(2, nope, rope)?, &mut latent_q.narrow(2, rank, rope)?)?)?;
        let (q_lens, kv_lens) = (&batch.q_lens, &batch.kv_lens);
        let decode = call::MlaDecode::new(&latent_q, entries, q_lens, kv_lens, config.scale, &mut latent)?;
        stream.run(decode)?;
        stream.run(call::Gemm::nt(&latent.transpose(0, 1)?, &self.value, &mut out.transpose(0, 1)?)?)?;
        Ok(out)
    }
}

/// The lengths of a pass that prefills, bounded by the longest; `None` for one that decodes, or whose lengths only the
/// device knows: then nothing says how few of the cache's entries there are.
fn longest(batch: &Batch) -> Result<Option<Lens>, Error> {
    let lens = batch.kv_lens.spec("deepseek", "kv_lens")?;
    match lens.host() {
        Some(host) if batch.q_lens.spec("deepseek", "q_lens")?.max() > 1 => {
            let longest = host.iter().copied().max().unwrap_or(0);
            Ok(Some(Lens::new(batch.kv_lens.tensor().clone(), longest, Some(host.clone()))?))
        }
        _ => Ok(None),
    }
}

impl LanguageModel for DeepseekV3 {
    fn info(&self) -> ModelInfo<'_> {
        self.config.moe.decoder.info()
    }

    fn cache(&self, stream: &Stream, batch: usize, max_len: usize) -> Result<Cache, Error> {
        let (layers, width) = (self.config.moe.decoder.layers, self.config.entry_width());
        let dtype = self.precision.cache_dtype();
        Ok(Cache::Latent(LatentCache::new(stream, layers, batch, max_len, width, dtype)?))
    }

    fn forward(&self, stream: &Stream, batch: &Batch, cache: &mut Cache) -> Result<Tensor, Error> {
        let cache = cache.latent()?;
        self.backbone.forward(stream, batch, &mut |layer, part, x| {
            if part == 0 {
                return self.attention[layer].forward(stream, &self.config, x, batch, cache, layer);
            }
            let _scope = Scope::named("ffn");
            self.ffn[layer].forward(stream, x)
        })
    }
}
