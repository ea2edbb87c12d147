//! The network of a mixture of experts as the vendor's operators for its parts, one behind the other: routing, two grouped
//! products with the gated unit between, the weighted sum back. What passes between them is f32, or, where the contract lets
//! it be rounded, of the 16 bits that grouped products of such factors give.

use super::Native;
use crate::aclnn::{Plan, Run, Soc};
use portolan_core::{Bind, Call, Tensor};
use portolan_ops::activation::SwigluSpec;
use portolan_ops::moe::{ExpertFfnSpec, ExpertsSpec, GroupedGemmSpec, MoePermuteSpec, MoeUnpermuteSpec};
use portolan_ops::quant::WeightSpec;
use portolan_ops::{DType, Result, TensorSpec, Unsupported};

impl Native for ExpertFfnSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        for experts in [self.gate_up(), self.down()] {
            match experts.one() {
                WeightSpec::Dense(weight) if weight.dtype() == self.between() => {}
                WeightSpec::Dense(_) => return Err(Unsupported::Precision),
                _ => return Err(Unsupported::NotImplemented),
            }
        }
        let parts = Parts::of(self).map_err(|_| Unsupported::NotImplemented)?;
        parts.permute.plan(soc)?;
        parts.plan(soc)?;
        parts.unpermute.plan(soc)
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let parts = Parts::of(op.spec())?;
        let made = |spec: &TensorSpec| run.launch().scratch(spec);
        let [routed, row_map, offsets] = [made(&parts.routed)?, made(&parts.row_map)?, made(&parts.offsets)?];
        let get = |name| op.require(name);
        let (x, ids, weights, out) = (get("x")?, get("expert_ids")?, get("weights")?, get("out")?);
        let (permute, unpermute) = (parts.permute.clone(), parts.unpermute.clone());
        part(run, permute, &[&x, &ids, &routed, &row_map, &offsets])?;
        let y = network(run, parts, [&routed, &offsets], [&get("gate_up")?, &get("down")?])?;
        part(run, unpermute, &[&y, &row_map, &weights, &out])
    }
}

/// What the experts make of rows that lie by expert, each one's from an offset to the next.
pub(crate) fn network(
    run: &Run<'_, '_>,
    parts: Parts,
    [routed, offsets]: [&Tensor; 2],
    [gate_up, down]: [&Tensor; 2],
) -> Result<Tensor> {
    let made = |spec: &TensorSpec| run.launch().scratch(spec);
    let [both, hidden, y] = [made(parts.gate_up.out())?, made(parts.unit.out())?, made(parts.down.out())?];
    part(run, parts.gate_up, &[routed, gate_up, offsets, &both])?;
    part(run, parts.unit, &[&both, &hidden])?;
    part(run, parts.down, &[&hidden, down, offsets, &y])?;
    Ok(y)
}

/// Launches a part as if it had been called, of which it books nothing.
fn part<C: Native + Bind>(run: &Run<'_, '_>, spec: C, operands: &[&Tensor]) -> Result<()> {
    C::launch(run, &Call::bind(spec, operands)?)
}

/// The operators that the network is made of, and what passes between them.
pub(crate) struct Parts {
    routed: TensorSpec,
    row_map: TensorSpec,
    offsets: TensorSpec,
    permute: MoePermuteSpec,
    gate_up: GroupedGemmSpec,
    unit: SwigluSpec,
    down: GroupedGemmSpec,
    unpermute: MoeUnpermuteSpec,
}

impl Parts {
    /// Whether the device has the network without its routing.
    pub(crate) fn plan(&self, soc: &Soc<'_>) -> Plan {
        self.gate_up.plan(soc)?;
        self.unit.plan(soc)?;
        self.down.plan(soc)
    }

    pub(crate) fn of(spec: &ExpertFfnSpec) -> Result<Self> {
        let rows = spec.tokens().saturating_mul(spec.top_k());
        let routed = TensorSpec::of(spec.x().dtype(), &[rows, spec.gate_up().k()])?;
        let row_map = TensorSpec::of(DType::I32, &[spec.tokens(), spec.top_k()])?;
        let offsets = TensorSpec::of(DType::I32, &[spec.gate_up().count().saturating_add(1)])?;
        let product = |x: &TensorSpec, experts: &ExpertsSpec, bias: Option<&TensorSpec>| {
            let out = TensorSpec::of(spec.between(), &[rows, experts.n()])?;
            let product = GroupedGemmSpec::contiguous(x, experts, &offsets, &out)?;
            let product = product.with_act_quant(spec.act_quant())?;
            match bias {
                Some(bias) => product.with_bias(bias),
                None => Ok(product),
            }
        };
        let unit = spec.unit_in(spec.between(), rows)?;
        let gate_up = product(&routed, spec.gate_up(), spec.gate_up_bias())?;
        let down = product(unit.out(), spec.down(), spec.down_bias())?;
        let unpermute = MoeUnpermuteSpec::new(down.out(), &row_map, spec.out())?;
        Ok(Self {
            permute: MoePermuteSpec::contiguous(spec.x(), spec.expert_ids(), &routed, &row_map, &offsets)?,
            gate_up,
            unit,
            down,
            unpermute: unpermute.with_weights(spec.weights())?,
            routed,
            row_map,
            offsets,
        })
    }
}
