//! Mamba: a selective state space in every layer, no attention (Gu and Dao 2023).

use super::{LanguageModel, ModelInfo};
use crate::Error;
use crate::load::WeightSource;
use crate::load::config::MambaConfig;
use crate::load::names::MAMBA;
use crate::nn::{
    Backbone, Batch, Cache, CausalConv, LayerState, Linear, Loader, Precision, Progress, Recurrence,
    Sequences,
};
use portolan_core::{Scope, Stream, Tensor, call, ops};
use portolan_ops::kernel::UnaryKind;

/// A model's weights on a device.
#[derive(Clone, Debug)]
pub struct Mamba {
    config: MambaConfig,
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
        let config = MambaConfig::from_source(source)?;
        let mut loader = Loader::new(stream, source, MAMBA, precision, progress);
        let backbone = Backbone::load(&mut loader, &config.base.backbone(), &["norm"])?;
        let mixers = (0..config.base.layers).map(|i| Mixer::load(&mut loader, &config, i));
        let mixers = mixers.collect::<Result<_, Error>>()?;
        stream.synchronize()?;
        Ok(Self { config, backbone, mixers })
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
        Ok(Self {
            input: Linear::load(loader, &[("layers.{i}.in", 2 * inner)], i, hidden, base.bias)?,
            conv: CausalConv::load(loader, "layers.{i}.conv", i, inner, base.conv_width, base.conv_bias)?,
            selection: Linear::load(loader, &[("layers.{i}.x", rank + 2 * state)], i, inner, false)?,
            step: Linear::load(loader, &[("layers.{i}.dt", inner)], i, rank, false)?,
            step_bias: loader.vector("layers.{i}.dt.bias", i, inner)?,
            a: rates(loader, i, &[inner, state])?,
            d: loader.vector("layers.{i}.d", i, inner)?,
            output: Linear::load(loader, &[("layers.{i}.out", hidden)], i, inner, base.bias)?,
        })
    }

    /// `[tokens, hidden]` to the same, behind a layer's states.
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
        let selected = self.selection.forward(stream, &x)?;
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
pub(super) fn rates(loader: &mut Loader<'_>, layer: usize, dims: &[usize]) -> Result<Tensor, Error> {
    let logarithm = loader.parameters("layers.{i}.a_log", layer, dims)?;
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
        let base = &self.config.base;
        let (window, state) = ([base.conv_width - 1, base.inner], [base.inner, base.state]);
        Ok(Cache::Recurrent(Recurrence::new(stream, base.layers, batch, max_len, &window, &state)?))
    }

    fn forward(&self, stream: &Stream, batch: &Batch, cache: &mut Cache) -> Result<Tensor, Error> {
        let (recurrence, sequences) = (cache.recurrent()?, batch.sequences()?);
        recurrence.begin(stream, &sequences)?;
        self.backbone.forward(stream, batch, &mut |layer, _, x| {
            let _scope = Scope::named("mixer");
            self.mixers[layer].forward(stream, &self.config, x, &sequences, recurrence.layer(layer)?)
        })
    }
}
