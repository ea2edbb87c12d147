//! The feed-forward layer of many experts, of which each token goes to a few (Shazeer et al. 2017).

use crate::Error;
use crate::load::config::MoeConfig;
use crate::nn::{Ffn, Linear, Loader};
use portolan_core::{ExpertParallel, Experts, Stream, Tensor, call, ops};
use portolan_ops::kernel::{BinaryKind, UnaryKind};
use portolan_ops::moe::{GateScore, GroupScore, MoeGateSpec};

/// A feed-forward layer of a model of which some layers have experts.
#[derive(Clone, Debug)]
pub enum MoeLayer {
    /// One network for every token.
    Dense(Box<Ffn>),
    /// Experts, and the one that every token goes to.
    Sparse(Box<(MoeFfn, Option<SharedExpert>)>),
}

/// The expert that every token goes to.
#[derive(Clone, Debug)]
pub struct SharedExpert {
    /// Says how much it counts, where it does not count whole.
    router: Option<Linear>,
    ffn: Ffn,
}

impl MoeLayer {
    /// Loads what a rank has of what the configuration has in a layer.
    ///
    /// # Errors
    /// Those of the file and of the device.
    pub fn load(loader: &mut Loader<'_>, config: &MoeConfig, i: usize) -> Result<Self, Error> {
        let hidden = config.decoder.hidden;
        if !config.is_sparse(i) {
            let ffn = Ffn::load(loader, "layers.{i}", i, hidden, config.decoder.ffn, false)?;
            return Ok(MoeLayer::Dense(Box::new(ffn)));
        }
        let shared = match config.shared_ffn {
            None => None,
            Some(width) => Some(SharedExpert {
                router: match config.shared_router {
                    true => Some(Linear::load(loader, &[("layers.{i}.shared.router", 1)], i, hidden, false)?),
                    false => None,
                },
                ffn: Ffn::load(loader, "layers.{i}.shared", i, hidden, width, false)?,
            }),
        };
        Ok(MoeLayer::Sparse(Box::new((MoeFfn::load(loader, config, i)?, shared))))
    }

    /// `[tokens, hidden]` to this rank's part of the same.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward(&self, stream: &Stream, x: &Tensor) -> Result<Tensor, Error> {
        let (moe, shared) = match self {
            MoeLayer::Dense(ffn) => return ffn.forward(stream, x),
            MoeLayer::Sparse(sparse) => sparse.as_ref(),
        };
        let routed = moe.forward(stream, x)?;
        if let Some(shared) = shared {
            let shared = shared.forward(stream, x)?;
            stream.run(call::Binary::add(&routed, &shared, &mut routed.clone())?)?;
        }
        Ok(routed)
    }
}

impl SharedExpert {
    /// `ffn(x)`, times `σ(router(x))` where there is a router.
    fn forward(&self, stream: &Stream, x: &Tensor) -> Result<Tensor, Error> {
        let out = self.ffn.forward(stream, x)?;
        let Some(router) = &self.router else { return Ok(out) };
        let weight = ops::unary(stream, UnaryKind::Sigmoid, &router.forward(stream, x)?)?;
        Ok(ops::binary(stream, BinaryKind::Mul, &out, &weight)?)
    }
}

/// A router and its experts: `Σ weight_e · down_e(silu(gate_e(x)) · up_e(x))` over the best experts by score.
#[derive(Clone, Debug)]
pub struct MoeFfn {
    router: Linear,
    /// Added to scores for the choice.
    bias: Option<Tensor>,
    /// Finds the experts of this rank, where it has not all.
    parallel: Option<ExpertParallel>,
    gate_up: Experts,
    down: Experts,
    top_k: usize,
    score: GateScore,
    groups: Option<(usize, usize)>,
    renormalize: bool,
    scale: f32,
}

impl MoeFfn {
    /// Loads the router and a rank's experts of a layer.
    ///
    /// # Errors
    /// Those of the file and of the device.
    pub fn load(loader: &mut Loader<'_>, config: &MoeConfig, layer: usize) -> Result<Self, Error> {
        let (hidden, width, count) = (config.decoder.hidden, config.expert_ffn, config.experts);
        let gate_up =
            [("layers.{i}.experts.{e}.gate.weight", width), ("layers.{i}.experts.{e}.up.weight", width)];
        let down = [("layers.{i}.experts.{e}.down.weight", hidden)];
        let parallel = loader.layout().experts(loader.stream(), count)?;
        let here = parallel.as_ref().map_or(0..count, ExpertParallel::experts);
        Ok(Self {
            router: Linear::load(loader, &[("layers.{i}.router", count)], layer, hidden, false)?,
            bias: match config.choice_bias {
                true => Some(loader.vector("layers.{i}.router.bias", layer, count)?),
                false => None,
            },
            gate_up: loader.experts(&gate_up, layer, here.clone(), hidden)?,
            down: loader.experts(&down, layer, here, width)?,
            parallel,
            top_k: config.top_k,
            score: config.score,
            groups: config.groups,
            renormalize: config.renormalize,
            scale: config.scale,
        })
    }

    /// `[tokens, hidden]` to this rank's part of the same.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward(&self, stream: &Stream, x: &Tensor) -> Result<Tensor, Error> {
        let logits = self.router.forward(stream, x)?;
        let (weights, ids) = MoeGateSpec::out_specs(logits.spec(), self.top_k)?;
        let (mut weights, mut ids) = (stream.empty(&weights)?, stream.empty(&ids)?);
        let mut gate = call::MoeGate::new(self.score, &logits, &mut weights, &mut ids)?;
        if let Some(bias) = &self.bias {
            gate = gate.bias(bias)?;
        }
        if let Some((groups, open)) = self.groups {
            gate = gate.groups(groups, open, GroupScore::TopTwo)?;
        }
        if self.renormalize {
            gate = gate.renormalize()?;
        }
        stream.run(gate.scale(self.scale)?)?;
        Ok(match &self.parallel {
            None => ops::expert_ffn(stream, x, &ids, &weights, &self.gate_up, &self.down)?,
            Some(parallel) => {
                parallel.expert_ffn_of_all(stream, (x, &ids, &weights), &self.gate_up, &self.down)?
            }
        })
    }
}
