//! The network of a mixture of experts from its parts: to the experts, two products with the unit between, back.

use super::begin;
use super::grouped_gemm::experts_of;
use crate::call::{ExpertFfn, GroupedGemm, MoePermute, MoeUnpermute, Swiglu};
use crate::experts::Experts;
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::moe::expert_ffn as names;
use portolan_ops::{DType, Result, Unsupported};

/// moe_permute, grouped_gemm, swiglu, grouped_gemm, moe_unpermute; f32 between the products.
///
/// # Errors
/// As the parts; `Unsupported` for packed weights and where the stream denies compositions.
pub fn expert_ffn(l: &Launch<'_>, op: &ExpertFfn, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let spec = op.spec();
    let (tokens, k) = (spec.tokens(), spec.top_k());
    let (x, ids, out) = (op.require("x")?, op.require("expert_ids")?, op.require("out")?);
    let rows = tokens * k;
    let (gate_up, down) =
        (experts_of(op, spec.gate_up(), &names::GATE_UP)?, experts_of(op, spec.down(), &names::DOWN)?);

    let mut routed = p.scratch(x.dtype(), &[rows, x.dims()[1]])?;
    let mut row_map = p.scratch(DType::I32, &[tokens, k])?;
    let mut offsets = p.scratch(DType::I32, &[spec.gate_up().count() + 1])?;
    p.run(MoePermute::contiguous(&x, &ids, &mut routed, &mut row_map, &mut offsets)?)?;

    let product = |x: &Tensor, experts: &Experts, bias: &str| -> Result<Tensor> {
        let mut out = p.scratch(DType::F32, &[rows, experts.spec().n()])?;
        let product = GroupedGemm::contiguous(x, experts, &offsets, &mut out)?.act_quant(spec.act_quant())?;
        let product = product.expected_rows(spec.expected_places())?;
        p.run(match op.tensor(bias) {
            Some(bias) => product.bias(&bias)?,
            None => product,
        })?;
        Ok(out)
    };
    let both = product(&routed, &gate_up, "gate_up_bias")?;
    let hidden = p.scratch(DType::F32, &[rows, spec.inner()])?;
    p.run(Swiglu::bind(spec.unit(rows)?, &[&both, &hidden])?)?;
    let y = product(&hidden, &down, "down_bias")?;
    let weights = op.require("weights")?;
    p.result(&out, |out| p.run(MoeUnpermute::new(&y, &row_map, out)?.weights(&weights)?))
}
