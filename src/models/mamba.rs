//! Mamba: a selective state space in every layer, no attention (Gu and Dao 2023).

use super::{LanguageModel, ModelInfo};
use crate::Error;
use crate::load::WeightSource;
use crate::load::config::MambaConfig;
use crate::load::names::MAMBA;
use crate::nn::{
    Backbone, Batch, Cache, CausalConv, LayerState, Layout, Linear, Loader, Precision, Progress, Recurrence,
    Sequences, Share,
};
use core::ops::Range;
use portolan_core::{Scope, Stream, Tensor, call, ops};
use portolan_ops::kernel::UnaryKind;

/// A model's weights on a device.
#[derive(Clone, Debug)]
pub struct Mamba {
    config: MambaConfig,
    /// With the channels of this rank.
    share: MambaConfig,
    backbone: Backbone,
    mixers: Vec<Mixer>,
}

/// A layer: what it convolves and scans beside a gate.
#[derive(Clone, Debug)]
struct Mixer {
    /// To what is convolved, and the gate.
    input: Linear,
    conv: CausalConv,
    /// To what steps are made from, and the factors b and c.
    selection: Linear,
    /// To every channel's step, without its bias.
    step: Linear,
    step_bias: Tensor,
    a: Tensor,
    d: Tensor,
    output: Linear,
    layout: Layout,
}

impl Mamba {
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
        let config = MambaConfig::from_source(source)?;
        let mut share = config.clone();
        share.base.inner = layout.share(config.base.inner, "channels")?.len();
        let mut loader = Loader::new(stream, source, MAMBA, precision, progress).of_rank(layout);
        let backbone = Backbone::load(&mut loader, &config.base.backbone(), &["norm"])?;
        let mixers = (0..config.base.layers).map(|i| Mixer::load(&mut loader, &config, i));
        let mixers = mixers.collect::<Result<_, Error>>()?;
        stream.synchronize()?;
        Ok(Self { config, share, backbone, mixers })
    }

    /// What the model is made of.
    pub fn config(&self) -> &MambaConfig {
        &self.config
    }
}

impl Mixer {
    fn load(loader: &mut Loader<'_>, config: &MambaConfig, i: usize) -> Result<Self, Error> {
        let (base, rank) = (&config.base, config.dt_rank);
        let (hidden, inner, state) = (base.hidden, base.inner, base.state);
        let layout = loader.layout().clone();
        let here = layout.share(inner, "channels")?;
        let all = std::slice::from_ref(&here);
        let gates = inner + here.start..inner + here.end;
        let input = Share::of_rows("layers.{i}.in", 2 * inner, hidden, &[here.clone(), gates]);
        let selection = Share::whole("layers.{i}.x", rank + 2 * state, inner).columns(here.clone());
        let step = Share::whole("layers.{i}.dt", inner, rank).rows(here.clone());
        let output = Share::whole("layers.{i}.out", hidden, inner).columns(here.clone());
        let conv = [inner, base.conv_width];
        Ok(Self {
            input: Linear::load_shares(loader, &input, i, base.bias)?,
            conv: CausalConv::load(loader, "layers.{i}.conv", i, conv, all, base.conv_bias)?,
            selection: Linear::load_shares(loader, &[selection], i, false)?,
            step: Linear::load_shares(loader, &[step], i, false)?,
            step_bias: loader.parameters("layers.{i}.dt.bias", i, &[inner], all)?,
            a: rates(loader, i, &[inner, state], all)?,
            d: loader.parameters("layers.{i}.d", i, &[inner], all)?,
            output: Linear::load_shares(loader, &[output], i, base.bias && layout.is_first())?,
            layout,
        })
    }

    /// `[tokens, hidden]` to this rank's part of the same, behind a layer's states.
    fn forward(
        &self,
        stream: &Stream,
        config: &MambaConfig,
        x: &Tensor,
        sequences: &Sequences,
        before: &LayerState,
    ) -> Result<Tensor, Error> {
        let (inner, rank, states) = (config.base.inner, config.dt_rank, config.base.state);
        let projected = self.input.forward(stream, x)?;
        let (x, gate) = (projected.narrow(1, 0, inner)?, projected.narrow(1, inner, inner)?);
        let x = self.conv.forward(stream, &x, sequences, &before.window)?;
        // Every rank's steps are made from the channels of all.
        let selected = self.selection.forward(stream, &x)?;
        self.layout.sum(stream, &selected)?;
        let delta = self.step.forward(stream, &selected.narrow(1, 0, rank)?)?;
        let b = selected.narrow(1, rank, states)?;
        let c = selected.narrow(1, rank + states, states)?;
        let [rows, delta, b, c, gate] = [&x, &delta, &b, &c, &gate].map(|rows| sequences.rows(rows));
        let rows = rows?;
        // In place: nothing else reads what was convolved.
        let scan = call::SelectiveScan::new(&rows, &delta?, &self.a, &b?, &c?, &mut rows.clone())?;
        let scan = scan.delta_bias(&self.step_bias)?.softplus()?.d(&self.d)?.z(&gate?)?;
        let scan = match sequences.lens() {
            Some(lens) => scan.lens(lens)?,
            None => scan,
        };
        let scan = if sequences.are_new() { scan } else { scan.initial(&before.state)? };
        stream.run(scan.last(&mut before.state.clone())?)?;
        self.output.forward(stream, &x)
    }
}

/// Rates of decay `−e^a_log`, of which files have the logarithm.
pub(super) fn rates(
    loader: &mut Loader<'_>,
    layer: usize,
    dims: &[usize],
    rows: &[Range<usize>],
) -> Result<Tensor, Error> {
    let logarithm = loader.parameters("layers.{i}.a_log", layer, dims, rows)?;
    let stream = loader.stream();
    let rates = ops::unary(stream, UnaryKind::Exp, &logarithm)?;
    stream.run(call::Unary::new(UnaryKind::Neg, &rates, &mut rates.clone())?)?;
    Ok(rates)
}

impl LanguageModel for Mamba {
    fn info(&self) -> ModelInfo<'_> {
        self.config.base.info()
    }

    fn cache(&self, stream: &Stream, batch: usize, max_len: usize) -> Result<Cache, Error> {
        let base = &self.share.base;
        let (window, state) = ([base.conv_width - 1, base.inner], [base.inner, base.state]);
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
