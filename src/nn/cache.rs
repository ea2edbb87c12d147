//! What models keep of the tokens they have run, for a fixed number of sequences: keys and values, one latent entry for
//! all heads, or the state of a recurrence.

use crate::Error;
use crate::nn::{Batch, Sequences};
use portolan_core::{Stream, Tensor, call, ops};
use portolan_ops::{DType, OpError, Shape, TensorSpec};

/// What a model keeps, of the kind that it needs.
#[derive(Clone, Debug)]
pub enum Cache {
    /// Keys and values of every head.
    KeyValue(KvCache),
    /// One entry a token, from which the keys and values of all heads are made.
    Latent(LatentCache),
    /// Sums that every token changes.
    Recurrent(Recurrence),
}

impl Cache {
    /// Positions a sequence can have.
    pub fn max_len(&self) -> usize {
        match self {
            Cache::KeyValue(cache) => cache.max_len(),
            Cache::Latent(cache) => cache.max_len,
            Cache::Recurrent(recurrence) => recurrence.max_len,
        }
    }

    /// Sequences.
    pub fn batch(&self) -> usize {
        match self {
            Cache::KeyValue(cache) => cache.batch(),
            Cache::Latent(cache) => cache.batch,
            Cache::Recurrent(recurrence) => recurrence.batch,
        }
    }

    /// Behind how many of its first `keep` tokens a sequence that ran `ran` can go on. Entries may be dropped from any
    /// token on; a recurrence has no way back, and begins anew unless all is kept.
    pub fn resumes_at(&self, keep: usize, ran: usize) -> usize {
        match self {
            Cache::Recurrent(_) if keep != ran => 0,
            _ => keep,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Cache::KeyValue(_) => "keys and values",
            Cache::Latent(_) => "latent entries",
            Cache::Recurrent(_) => "a recurrence",
        }
    }

    fn wrong(&self, wanted: &str) -> Error {
        let what = format!("is of {}, the model keeps {wanted}: use the cache that it makes", self.kind());
        OpError::attribute("model", "cache", what).into()
    }

    /// Keys and values.
    ///
    /// # Errors
    /// `Attribute` for a cache of another kind of model.
    pub fn key_value(&mut self) -> Result<&mut KvCache, Error> {
        match self {
            Cache::KeyValue(cache) => Ok(cache),
            other => Err(other.wrong("keys and values")),
        }
    }

    /// Latent entries.
    ///
    /// # Errors
    /// `Attribute` for a cache of another kind of model.
    pub fn latent(&mut self) -> Result<&mut LatentCache, Error> {
        match self {
            Cache::Latent(cache) => Ok(cache),
            other => Err(other.wrong("latent entries")),
        }
    }

    /// States of a recurrence.
    ///
    /// # Errors
    /// `Attribute` for a cache of another kind of model.
    pub fn recurrent(&mut self) -> Result<&mut Recurrence, Error> {
        match self {
            Cache::Recurrent(recurrence) => Ok(recurrence),
            other => Err(other.wrong("a recurrence")),
        }
    }
}

impl From<KvCache> for Cache {
    fn from(cache: KvCache) -> Self {
        Cache::KeyValue(cache)
    }
}

/// A layer's part of a cache.
fn layer_of<'a, T>(op: &'static str, layers: &'a mut [T], layer: usize) -> Result<&'a mut T, Error> {
    layers.get_mut(layer).ok_or_else(|| OpError::shape(op, format!("no layer {layer}")).into())
}

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
        let (keys, values) = layer_of("kv_cache", &mut self.layers, layer)?;
        stream.run(call::KvCacheWrite::new(k, keys, &batch.q_lens, &batch.kv_lens)?)?;
        stream.run(call::KvCacheWrite::new(v, values, &batch.q_lens, &batch.kv_lens)?)?;
        Ok((keys.clone(), values.clone()))
    }
}

/// One entry a token and layer, which all heads share (DeepSeek-AI 2024).
#[derive(Clone, Debug)]
pub struct LatentCache {
    layers: Vec<Tensor>,
    batch: usize,
    max_len: usize,
}

impl LatentCache {
    /// An empty cache: `batch` sequences of at most `max_len` entries `[width]`.
    ///
    /// # Errors
    /// `OutOfMemory`, which names the cache among the holders.
    pub fn new(
        stream: &Stream,
        layers: usize,
        batch: usize,
        max_len: usize,
        width: usize,
        dtype: DType,
    ) -> Result<Self, Error> {
        let spec = TensorSpec::of(dtype, &[batch, max_len, 1, width])?;
        let label = "latent cache".into();
        let layers = (0..layers).map(|_| Ok(stream.empty_labelled(&spec, &label)?));
        Ok(Self { layers: layers.collect::<Result<_, Error>>()?, batch, max_len })
    }

    /// Writes a layer's new entries `[tokens, width]` behind those it has, and gives them all: `[batch, max_len, width]`.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn append(
        &mut self,
        stream: &Stream,
        layer: usize,
        entries: &Tensor,
        batch: &Batch,
    ) -> Result<Tensor, Error> {
        let cache = layer_of("latent_cache", &mut self.layers, layer)?;
        let width = cache.shape().last();
        let entries = entries.reshape(&[entries.dims()[0], 1, width])?;
        stream.run(call::KvCacheWrite::new(&entries, cache, &batch.q_lens, &batch.kv_lens)?)?;
        Ok(cache.reshape(&[self.batch, self.max_len, width])?)
    }
}

/// What a layer's convolution and recurrence go on from, in f32.
#[derive(Clone, Debug)]
pub struct LayerState {
    /// The rows that the next token's filter covers, `[batch, width − 1, channels]`.
    pub window: Tensor,
    /// The recurrence's state, `[batch, ..]`.
    pub state: Tensor,
}

/// States of every layer: as large for one token as for any number of them.
#[derive(Clone, Debug)]
pub struct Recurrence {
    layers: Vec<LayerState>,
    batch: usize,
    max_len: usize,
}

impl Recurrence {
    /// States of 0 for `batch` sequences, which their owner wants to be of at most `max_len` tokens; `window` and
    /// `state` are a sequence's extents.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(
        stream: &Stream,
        layers: usize,
        batch: usize,
        max_len: usize,
        window: &[usize],
        state: &[usize],
    ) -> Result<Self, Error> {
        let zeros =
            |dims: &[usize]| ops::full(stream, DType::F32, &Shape::new(&[&[batch], dims].concat())?, 0.0);
        let layer = |_| Ok(LayerState { window: zeros(window)?, state: zeros(state)? });
        Ok(Self { layers: (0..layers).map(layer).collect::<Result<_, Error>>()?, batch, max_len })
    }

    /// Makes the states those that the sequences of a pass begin with: 0 for new ones, unless all are: then no operator
    /// reads them.
    ///
    /// # Errors
    /// As [`Stream::run`]; `Shape` for other numbers of sequences.
    pub fn begin(&mut self, stream: &Stream, sequences: &Sequences) -> Result<(), Error> {
        if sequences.are_new() {
            return Ok(());
        }
        for LayerState { window, state } in &self.layers {
            for new in sequences.new_ones() {
                for states in [window, state] {
                    let mut states = states.narrow(0, new.start, new.len())?;
                    stream.run(call::Fill::new(&mut states, 0.0)?)?;
                }
            }
        }
        Ok(())
    }

    /// A layer's states: those behind the last pass, and behind [`begin`](Self::begin) those before the next.
    ///
    /// # Errors
    /// `Shape` when there is no such layer.
    pub fn layer(&mut self, layer: usize) -> Result<&mut LayerState, Error> {
        layer_of("recurrence", &mut self.layers, layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portolan_core::StreamOptions;

    #[test]
    fn only_a_recurrence_begins_anew() {
        let stream = crate::open("cpu:0").unwrap().stream(StreamOptions::default()).unwrap();
        let mut caches = [
            Cache::from(KvCache::new(&stream, 1, 2, 8, 1, 4, DType::F32).unwrap()),
            Cache::Latent(LatentCache::new(&stream, 1, 2, 8, 4, DType::F32).unwrap()),
            Cache::Recurrent(Recurrence::new(&stream, 1, 2, 8, &[3, 5], &[5, 4]).unwrap()),
        ];
        let resumes = |keep| caches.each_ref().map(|cache| cache.resumes_at(keep, 5));
        assert_eq!((resumes(5), resumes(3), resumes(0)), ([5; 3], [3, 3, 0], [0; 3]));
        assert!(caches.iter().all(|cache| (cache.batch(), cache.max_len()) == (2, 8)));
        assert!(caches[0].latent().is_err() && caches[1].recurrent().is_err());
        let error = caches[2].key_value().map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("is of a recurrence, the model keeps keys and values"), "{error}");
        assert!(caches[2].recurrent().unwrap().layer(1).is_err());
    }
}
