//! Key-value caches, and the tokens of one forward pass.

use crate::Error;
use portolan_core::{Lens, Stream, Tensor, call};
use portolan_ops::{DType, Shape, TensorSpec};

/// Keys and values of every layer, for a fixed number of sequences and positions.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    batch: usize,
    max_len: usize,
}

impl KvCache {
    /// An empty cache: `batch` sequences of at most `max_len` positions.
    ///
    /// # Errors
    /// `OutOfMemory`, which names the cache among the holders.
    pub fn new(
        stream: &Stream,
        layers: usize,
        batch: usize,
        max_len: usize,
        heads: usize,
        head_dim: usize,
        dtype: DType,
    ) -> Result<Self, Error> {
        let spec = TensorSpec::of(dtype, &[batch, max_len, heads, head_dim])?;
        let label = "kv cache".into();
        let pair = |_| Ok((stream.empty_labelled(&spec, &label)?, stream.empty_labelled(&spec, &label)?));
        Ok(Self { layers: (0..layers).map(pair).collect::<Result<_, Error>>()?, batch, max_len })
    }

    /// Positions a sequence can have.
    pub fn max_len(&self) -> usize {
        self.max_len
    }

    /// Sequences.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Writes a layer's new keys and values behind those it has, and gives its caches.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn append(
        &mut self,
        stream: &Stream,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        batch: &Batch,
    ) -> Result<(Tensor, Tensor), Error> {
        let Some((keys, values)) = self.layers.get_mut(layer) else {
            return Err(portolan_ops::OpError::shape("kv_cache", format!("no layer {layer}")).into());
        };
        stream.run(call::KvCacheWrite::new(k, keys, &batch.q_lens, &batch.kv_lens)?)?;
        stream.run(call::KvCacheWrite::new(v, values, &batch.q_lens, &batch.kv_lens)?)?;
        Ok((keys.clone(), values.clone()))
    }
}

/// The tokens of one forward pass: of every sequence some, one sequence after the other.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Token ids, i32 `[tokens]`.
    pub ids: Tensor,
    /// Their positions, i32 `[tokens]`.
    pub positions: Tensor,
    /// Tokens of each sequence in this pass.
    pub q_lens: Lens,
    /// Tokens of each sequence so far, this pass included.
    pub kv_lens: Lens,
    /// Rows whose logits are wanted, i32; all when `None`.
    pub logit_rows: Option<Tensor>,
}

impl Batch {
    /// Tokens that follow `cached` earlier ones, per sequence; logits of every row.
    ///
    /// # Errors
    /// `Attribute` when ids or positions exceed i32, `OutOfMemory`, `Poisoned`.
    pub fn new(
        stream: &Stream,
        sequences: &[&[u32]],
        cached: &[usize],
        max_len: usize,
    ) -> Result<Self, Error> {
        let wrong = |what: String| Error::from(portolan_ops::OpError::shape("batch", what));
        if sequences.len() != cached.len() {
            return Err(wrong(format!("{} sequences and {} cached lengths", sequences.len(), cached.len())));
        }
        let (mut ids, mut positions, mut q_lens, mut kv_lens) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (tokens, &start) in sequences.iter().zip(cached) {
            let end = start.saturating_add(tokens.len());
            if end > max_len || end > i32::MAX as usize {
                return Err(wrong(format!("a sequence of {end} tokens, the cache holds {max_len}")));
            }
            for (i, &token) in tokens.iter().enumerate() {
                ids.push(i32::try_from(token).map_err(|_| wrong(format!("token id {token} is above i32")))?);
                positions.push((start + i) as i32);
            }
            q_lens.push(tokens.len() as u32);
            kv_lens.push(end as u32);
        }
        let shape = Shape::new(&[ids.len()])?;
        let longest = q_lens.iter().copied().max().unwrap_or(0);
        Ok(Self {
            ids: stream.upload(&ids, &shape)?,
            positions: stream.upload(&positions, &shape)?,
            q_lens: Lens::upload(stream, &q_lens, longest)?,
            kv_lens: Lens::upload(stream, &kv_lens, max_len.min(u32::MAX as usize) as u32)?,
            logit_rows: None,
        })
    }

    /// Asks for the logits of each sequence's last token only.
    ///
    /// # Errors
    /// `OutOfMemory`, `Poisoned`; `Shape` when a sequence has no token in this pass.
    pub fn last_rows_only(mut self, stream: &Stream, sequences: &[&[u32]]) -> Result<Self, Error> {
        let mut rows = Vec::new();
        let mut end = 0;
        for tokens in sequences {
            end += tokens.len();
            if tokens.is_empty() {
                return Err(portolan_ops::OpError::shape(
                    "batch",
                    "a sequence without tokens has no last row",
                )
                .into());
            }
            rows.push((end - 1) as i32);
        }
        self.logit_rows = Some(stream.upload(&rows, &Shape::new(&[rows.len()])?)?);
        Ok(self)
    }

    /// Asks for no logits: the pass only extends the cache.
    ///
    /// # Errors
    /// `OutOfMemory`, `Poisoned`.
    pub fn without_logits(mut self, stream: &Stream) -> Result<Self, Error> {
        self.logit_rows = Some(stream.upload::<i32>(&[], &Shape::new(&[0])?)?);
        Ok(self)
    }
}
