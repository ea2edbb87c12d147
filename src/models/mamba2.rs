//! Mamba-2: a state space of heads in every layer, each of which decays by one number a token (Dao and Gu 2024).

use super::mamba::rates;
use super::{LanguageModel, ModelInfo};
use crate::Error;
use crate::load::WeightSource;
use crate::load::config::Mamba2Config;
use crate::load::names::MAMBA2;
use crate::nn::{
    Backbone, Batch, Cache, CausalConv, GroupRmsNorm, LayerState, Layout, Linear, Loader, Precision,
    Progress, Recurrence, Sequences, Share,
};
use core::ops::Range;
use portolan_core::{Scope, Stream, Tensor, call};

/// A model's weights on a device.
#[derive(Clone, Debug)]
pub struct Mamba2 {
    config: Mamba2Config,
    /// With the heads and groups of this rank.
    share: Mamba2Config,
    backbone: Backbone,
    mixers: Vec<Mixer>,
}

/// A layer: what it convolves and scans beside a gate, and the norm behind it.
#[derive(Clone, Debug)]
struct Mixer {
    /// To the gate, what is convolved, and every head's step.
    input: Linear,
    conv: CausalConv,
    step_bias: Tensor,
    a: Tensor,
    d: Tensor,
    norm: GroupRmsNorm,
    output: Linear,
}

impl Mamba2 {
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
        let config = Mamba2Config::from_source(source)?;
        let heads = layout.heads(config.num_heads, config.groups)?;
        let mut share =
            Mamba2Config { num_heads: heads.queries.len(), groups: heads.keys.len(), ..config.clone() };
        share.base.inner = share.num_heads * share.head_dim;
        let mut loader = Loader::new(stream, source, MAMBA2, precision, progress).of_rank(layout);
        let backbone = Backbone::load(&mut loader, &config.base.backbone(), &["norm"])?;
        let mixers = (0..config.base.layers).map(|i| Mixer::load(&mut loader, &config, i));
        let mixers = mixers.collect::<Result<_, Error>>()?;
        stream.synchronize()?;
        Ok(Self { config, share, backbone, mixers })
    }

    /// What the model is made of.
    pub fn config(&self) -> &Mamba2Config {
        &self.config
    }
}

impl Mixer {
    fn load(loader: &mut Loader<'_>, config: &Mamba2Config, i: usize) -> Result<Self, Error> {
        let (base, heads, channels) = (&config.base, config.num_heads, config.conv_channels());
        let (hidden, inner, factors) = (base.hidden, base.inner, config.groups * base.state);
        let layout = loader.layout().clone();
        let here = layout.heads(heads, config.groups)?;
        let stretch =
            |of: &Range<usize>, each: usize, from: usize| from + of.start * each..from + of.end * each;
        // The gate, what is scanned, factors b and c, steps; in the middle what is convolved.
        let convolved = |from: usize| {
            let factor = |at: usize| stretch(&here.keys, base.state, from + inner + at);
            [stretch(&here.queries, config.head_dim, from), factor(0), factor(factors)]
        };
        let columns = stretch(&here.queries, config.head_dim, 0);
        let mut rows = vec![columns.clone()];
        rows.extend(convolved(inner));
        rows.push(stretch(&here.queries, 1, inner + channels));
        let input = Share::of_rows("layers.{i}.in", inner + channels + heads, hidden, &rows);
        let output = Share::whole("layers.{i}.out", hidden, inner).columns(columns);
        let (conv, all) = ([channels, base.conv_width], std::slice::from_ref(&here.queries));
        let norm = [heads, config.head_dim, config.groups];
        Ok(Self {
            input: Linear::load_shares(loader, &input, i, base.bias)?,
            conv: CausalConv::load(loader, "layers.{i}.conv", i, conv, &convolved(0), base.conv_bias)?,
            step_bias: loader.parameters("layers.{i}.dt.bias", i, &[heads], all)?,
            a: rates(loader, i, &[heads], all)?,
            d: loader.parameters("layers.{i}.d", i, &[heads], all)?,
            norm: GroupRmsNorm::load(loader, "layers.{i}.gate_norm.weight", i, norm, &here, base.rms_eps)?,
            output: Linear::load_shares(loader, &[output], i, base.bias && layout.is_first())?,
        })
    }

    /// `[tokens, hidden]` to this rank's part of the same, behind a layer's states.
    fn forward(
        &self,
        stream: &Stream,
        config: &Mamba2Config,
        x: &Tensor,
        sequences: &Sequences,
        before: &LayerState,
    ) -> Result<Tensor, Error> {
        let (base, heads, groups) = (&config.base, config.num_heads, config.groups);
        let (inner, channels, factors) = (base.inner, config.conv_channels(), groups * base.state);
        let tokens = x.dims()[0];
        let projected = self.input.forward(stream, x)?;
        let delta = projected.narrow(1, inner + channels, heads)?;
        let conv =
            self.conv.forward(stream, &projected.narrow(1, inner, channels)?, sequences, &before.window)?;
        let x = conv.narrow(1, 0, inner)?.reshape(&[tokens, heads, config.head_dim])?;
        let factor = |at| conv.narrow(1, at, factors)?.reshape(&[tokens, groups, base.state]);
        let (b, c) = (factor(inner)?, factor(inner + factors)?);
        let scanned = stream.empty(&x.spec().to_contiguous())?;
        let [x, delta, b, c, out] = [&x, &delta, &b, &c, &scanned].map(|rows| sequences.rows(rows));
        let scan = call::SsdScan::new(&x?, &delta?, &self.a, &b?, &c?, &mut out?)?;
        let scan = scan.delta_bias(&self.step_bias)?.softplus()?.d(&self.d)?;
        let scan = match sequences.lens() {
            Some(lens) => scan.lens(lens)?,
            None => scan,
        };
        let scan = if sequences.are_new() { scan } else { scan.initial(&before.state)? };
        stream.run(scan.last(&mut before.state.clone())?)?;
        let scanned = scanned.reshape(&[tokens, inner])?;
        stream.run(call::Swiglu::new(&projected.narrow(1, 0, inner)?, &scanned, &mut scanned.clone())?)?;
        self.output.forward(stream, &self.norm.forward(stream, &scanned)?)
    }
}

impl LanguageModel for Mamba2 {
    fn info(&self) -> ModelInfo<'_> {
        self.config.base.info()
    }

    fn cache(&self, stream: &Stream, batch: usize, max_len: usize) -> Result<Cache, Error> {
        let (config, base) = (&self.share, &self.share.base);
        let window = [base.conv_width - 1, config.conv_channels()];
        let state = [config.num_heads, config.head_dim, base.state];
        Ok(Cache::Recurrent(Recurrence::new(stream, base.layers, batch, max_len, &window, &state)?))
    }

    fn forward(&self, stream: &Stream, batch: &Batch, cache: &mut Cache) -> Result<Tensor, Error> {
        let (recurrence, sequences) = (cache.recurrent()?, batch.sequences()?);
        recurrence.begin(stream, &sequences)?;
        self.backbone.forward(stream, batch, &mut |layer, _, x| {
            let _scope = Scope::named("mixer");
            self.mixers[layer].forward(stream, &self.share, x, &sequences, recurrence.layer(layer)?)
        })
    }
}
