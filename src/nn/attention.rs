//! Grouped-query attention with rotary positions (Ainslie et al. 2023, Su et al. 2021).

use crate::Error;
use crate::load::config::LlamaConfig;
use crate::nn::{Batch, Heads, KvCache, Linear, Loader, RmsNorm, Share};
use core::ops::Range;
use portolan_core::{Scope, Stream, Tensor, call};
use portolan_ops::TensorSpec;
use portolan_ops::attention::AttentionMask;

/// One layer's attention over its cache; q, k and v come out of one product.
#[derive(Clone, Debug)]
pub struct Attention {
    layer: usize,
    /// Of this rank.
    heads: usize,
    kv_heads: usize,
    qkv: Linear,
    /// Norms of each head's q and k.
    qk_norms: Option<(RmsNorm, RmsNorm)>,
    o: Linear,
}

impl Attention {
    /// Key and value heads of this rank, of which a cache has to have as many.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Loads a rank's heads of the attention of a layer.
    ///
    /// # Errors
    /// Those of the file and of the device.
    pub fn load(loader: &mut Loader<'_>, config: &LlamaConfig, layer: usize) -> Result<Self, Error> {
        let (hidden, head_dim) = (config.hidden, config.head_dim);
        let (q, kv) = (config.q_width(), config.kv_width());
        let Heads { queries, keys } = loader.layout().heads(config.num_heads, config.num_kv_heads)?;
        let elements = |heads: &Range<usize>| heads.start * head_dim..heads.end * head_dim;
        let qkv = [
            Share::whole("layers.{i}.q", q, hidden).rows(elements(&queries)),
            Share::whole("layers.{i}.k", kv, hidden).rows(elements(&keys)),
            Share::whole("layers.{i}.v", kv, hidden).rows(elements(&keys)),
        ];
        let o = Share::whole("layers.{i}.o", hidden, q).columns(elements(&queries));
        let o_bias = config.o_bias && loader.layout().is_first();
        let norm = |name: &str, loader: &mut Loader<'_>| {
            RmsNorm::load(loader, name, layer, head_dim, config.rms_eps)
        };
        Ok(Self {
            layer,
            heads: queries.len(),
            kv_heads: keys.len(),
            qkv: Linear::load_shares(loader, &qkv, layer, config.qkv_bias)?,
            qk_norms: match config.qk_norm {
                false => None,
                true => Some((
                    norm("layers.{i}.q_norm.weight", loader)?,
                    norm("layers.{i}.k_norm.weight", loader)?,
                )),
            },
            o: Linear::load_shares(loader, &[o], layer, o_bias)?,
        })
    }

    /// `[tokens, hidden]` to this rank's part of the same: writes the tokens' keys and values into the cache, then attends to
    /// all of them.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward(
        &self,
        stream: &Stream,
        config: &LlamaConfig,
        x: &Tensor,
        batch: &Batch,
        cache: &mut KvCache,
    ) -> Result<Tensor, Error> {
        let _scope = Scope::named("attention");
        let (heads, kv_heads, head_dim) = (self.heads, self.kv_heads, config.head_dim);
        let tokens = x.dims()[0];
        let qkv = self.qkv.forward(stream, x)?.reshape(&[tokens, heads + 2 * kv_heads, head_dim])?;
        let (q, k) = (qkv.narrow(1, 0, heads)?, qkv.narrow(1, heads, kv_heads)?);
        if let Some((q_norm, k_norm)) = &self.qk_norms {
            q_norm.forward_in_place(stream, &q)?;
            k_norm.forward_in_place(stream, &k)?;
        }
        // Queries and keys lie side by side, so one call turns both, in place.
        let qk = qkv.narrow(1, 0, heads + kv_heads)?;
        let rope =
            call::Rope::new(config.rope_style, &qk, &batch.positions, config.rope_theta, &mut qk.clone())?;
        stream.run(rope.rotary_dim(config.rotary_dim)?.scaling(config.rope_scaling)?)?;
        let v = qkv.narrow(1, heads + kv_heads, kv_heads)?;
        let (keys, values) = cache.append(stream, self.layer, &k, &v, batch)?;
        let mut out = stream.empty(&TensorSpec::of(x.dtype(), &[tokens, heads, head_dim])?)?;
        let attention = call::Attention::new(&q, &keys, &values, &batch.q_lens, &batch.kv_lens, &mut out)?;
        let mask = config
            .sliding_window
            .map_or(AttentionMask::Causal, |window| AttentionMask::Window(window as u32));
        stream.run(attention.mask(mask)?)?;
        self.o.forward(stream, &out.reshape(&[tokens, heads * head_dim])?)
    }
}
