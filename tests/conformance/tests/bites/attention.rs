//! Faults in attention: each forgets one of the things that may be asked of it.

use portolan_core::{Backend, Call, Dispatch, Launch, SpecRef, Tensor};
use portolan_ops::Result;
use portolan_ops::attention::{
    AttentionMask, AttentionScores, AttentionSpec, MergeAttentionSpec, SparseAttentionSpec,
};

/// What attention forgets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Forgets {
    /// To bound its scores.
    SoftCap,
    /// What distance takes from a score.
    Slopes,
    /// The explicit mask.
    Mask,
    /// The logits that join each row's sum.
    Sinks,
    /// To write the logarithm of the sum.
    Lse,
    /// The window of latent attention.
    LatentWindow,
    /// The last entry of each list of a sparse attention.
    LastIndex,
    /// The last part of those that are merged.
    LastPart,
}

/// Each with the operator that it is about, and what the names, or the messages, of all tests that it fails have in
/// common: one of these.
pub(crate) const ALL: [(Forgets, &str, &[&str]); 8] = [
    (Forgets::SoftCap, "attention", &["/soft_cap", "/everything"]),
    (Forgets::Slopes, "attention", &["/alibi", "/everything"]),
    (Forgets::Mask, "attention", &["/mask_", "/everything"]),
    (Forgets::Sinks, "attention", &["/sinks", "/everything"]),
    (Forgets::Lse, "attention", &["lse ["]),
    (Forgets::LatentWindow, "mla_decode", &["window"]),
    (Forgets::LastIndex, "sparse_attention", &["oracle/sparse_attention/"]),
    (Forgets::LastPart, "merge_attention", &["oracle/merge_attention/"]),
];

impl Forgets {
    /// Runs the call without what is forgotten; whether that was part of it.
    pub(crate) fn run<C: Dispatch>(
        self,
        backend: &dyn Backend,
        launch: &Launch<'_>,
        op: &Call<C>,
    ) -> Result<bool> {
        match op.spec().spec_ref() {
            SpecRef::Attention(spec) => match self.attention(spec)? {
                Some(left) => run(backend, launch, left, op, &[]),
                None => Ok(false),
            },
            SpecRef::MlaDecode(spec) if self == Forgets::LatentWindow => match spec.query().mask() {
                AttentionMask::Window(_) => {
                    run(backend, launch, spec.clone().with_mask(AttentionMask::Causal)?, op, &[])
                }
                _ => Ok(false),
            },
            SpecRef::SparseAttention(spec) if self == Forgets::LastIndex && spec.top_k() > 0 => {
                if spec.cache_scale().is_some() || spec.block_table().is_some() {
                    return Ok(false);
                }
                let indices = op.require("indices")?.narrow(1, 0, spec.top_k() - 1)?;
                run(backend, launch, shorter_lists(spec, &indices)?, op, &[("indices", indices)])
            }
            SpecRef::MergeAttention(spec) if self == Forgets::LastPart && spec.num_parts() > 1 => {
                let rest = |name| op.require(name)?.narrow(0, 0, spec.num_parts() - 1);
                let (parts, lses) = (rest("parts")?, rest("lses")?);
                let mut fewer = MergeAttentionSpec::new(parts.spec(), lses.spec(), spec.out())?;
                if let Some(lse) = spec.lse() {
                    fewer = fewer.with_lse(lse)?;
                }
                run(backend, launch, fewer, op, &[("parts", parts), ("lses", lses)])
            }
            _ => Ok(false),
        }
    }

    /// The same attention without it, where it has it.
    fn attention(self, spec: &AttentionSpec) -> Result<Option<AttentionSpec>> {
        let (query, scores): (_, &AttentionScores) = (spec.query(), spec.query().scores());
        let (q, lens, out) = (query.q(), [query.q_lens(), query.kv_lens()], query.out());
        let plain = match spec.scales() {
            None => AttentionSpec::new(q, spec.k(), spec.v(), lens[0], lens[1], out)?,
            Some(by) => {
                AttentionSpec::quantized(q, [spec.k(), by.k()], [spec.v(), by.v()], lens[0], lens[1], out)?
            }
        };
        let (mut left, mut forgotten) = (plain.with_mask(query.mask())?.with_scale(query.scale())?, false);
        let mut keeps = |what: Forgets| {
            forgotten |= what == self;
            what != self
        };
        if let Some(lse) = query.lse().filter(|_| keeps(Forgets::Lse)) {
            left = left.with_lse(lse)?;
        }
        if let Some(cap) = scores.soft_cap().filter(|_| keeps(Forgets::SoftCap)) {
            left = left.with_soft_cap(cap)?;
        }
        if let Some(mask) = scores.attn_mask().filter(|_| keeps(Forgets::Mask)) {
            left = left.with_attn_mask(mask)?;
        }
        if let Some(slopes) = scores.slopes().filter(|_| keeps(Forgets::Slopes)) {
            left = left.with_slopes(slopes)?;
        }
        if let Some(sinks) = scores.sinks().filter(|_| keeps(Forgets::Sinks)) {
            left = left.with_sinks(sinks)?;
        }
        Ok(forgotten.then_some(left))
    }
}

fn shorter_lists(spec: &SparseAttentionSpec, indices: &Tensor) -> Result<SparseAttentionSpec> {
    let (q, cache, lens, out) = (spec.q(), spec.cache(), spec.q_lens(), spec.out());
    let mut shorter = SparseAttentionSpec::new(q, cache, indices.spec(), lens, spec.scale(), out)?;
    if let Some(sinks) = spec.scores().sinks() {
        shorter = shorter.with_sinks(sinks)?;
    }
    if let Some(lse) = spec.lse() {
        shorter = shorter.with_lse(lse)?;
    }
    Ok(shorter)
}

/// Runs a contract on the tensors of a call, some of them replaced.
fn run<C: Dispatch, D: Dispatch>(
    backend: &dyn Backend,
    launch: &Launch<'_>,
    contract: C,
    op: &Call<D>,
    replaced: &[(&str, Tensor)],
) -> Result<bool> {
    let mut names = Vec::new();
    contract.operands(&mut |operand| names.push(operand.name));
    let tensor = |name: &'static str| match replaced.iter().find(|(other, _)| *other == name) {
        Some((_, tensor)) => Ok(tensor.clone()),
        None => op.require(name),
    };
    let tensors = names.into_iter().map(tensor).collect::<Result<Vec<_>>>()?;
    let call = Call::bind(contract, &tensors.iter().collect::<Vec<_>>())?;
    C::dispatch(backend, launch, &call).map(|()| true)
}
