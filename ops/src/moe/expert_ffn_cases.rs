//! The cases of the network of a mixture of experts.

use super::expert_ffn::{DOWN, ExpertFfnSpec, GATE_UP, GateUpOrder};
use super::experts::ExpertsSpec;
use super::moe_permute::routings;
use crate::quant::linear::{case_schemes, precisions};
use crate::quant::{ActQuant, QuantScheme};
use crate::{Case, Cases, DType, Fill, Result, TensorSpec};

/// One shape: tokens, places, experts, width, inner width.
pub(super) type Extents = [usize; 5];

pub(super) fn over(
    [x, out]: [DType; 2],
    [tokens, k, _, width, _]: Extents,
    gate_up: &ExpertsSpec,
    down: &ExpertsSpec,
) -> Result<ExpertFfnSpec> {
    let ids = TensorSpec::of(DType::I32, &[tokens, k])?;
    let of = |dtype, columns| TensorSpec::of(dtype, &[tokens, columns]);
    ExpertFfnSpec::new(&of(x, width)?, &ids, &ids.with_dtype(DType::F32), gate_up, down, &of(out, down.n())?)
}

pub(super) fn dense(dtype: DType, [_, _, experts, width, inner]: Extents) -> Result<[ExpertsSpec; 2]> {
    let of = |n, k| ExpertsSpec::dense(&TensorSpec::of(dtype, &[experts, n, k])?);
    Ok([of(2 * inner, width)?, of(width, inner)?])
}

fn filled(name: String, spec: ExpertFfnSpec, ids: Vec<f64>) -> Case<ExpertFfnSpec> {
    let weights = (0..spec.weights().numel()).map(|i| (i * 11 % 17) as f64 / 8.0 - 1.0).collect();
    let fills =
        spec.gate_up().fills(&GATE_UP).into_iter().chain(spec.down().fills(&DOWN)).collect::<Vec<_>>();
    let case = Case::new(name, spec).fill("expert_ids", Fill::Values(ids));
    let case = case.fill("weights", Fill::Values(weights));
    fills.into_iter().fold(case, |case, (operand, fill)| case.fill(operand, fill))
}

impl Cases for ExpertFfnSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        let edges: [(&str, Extents); 10] = [
            ("no_tokens", [0, 2, 4, 8, 6]),
            ("no_places", [3, 0, 4, 8, 6]),
            ("no_experts", [3, 2, 0, 8, 6]),
            ("no_width", [3, 2, 4, 0, 6]),
            ("no_inner", [3, 2, 4, 8, 0]),
            ("one", [1, 1, 1, 1, 1]),
            ("decode", [1, 6, 16, 64, 32]),
            ("all_experts", [5, 4, 4, 33, 17]),
            ("ragged", [19, 3, 5, 70, 37]),
            ("typical", [24, 6, 20, 64, 32]),
        ];
        let types = [
            [DType::F32, DType::F32, DType::F32],
            [DType::F32, DType::BF16, DType::F32],
            [DType::F16, DType::F16, DType::F16],
            [DType::BF16, DType::BF16, DType::BF16],
        ];
        for (edge, extents) in edges {
            let [tokens, k, experts, ..] = extents;
            for [x, w, out] in types {
                let [gate_up, down] = dense(w, extents)?;
                let spec = over([x, out], extents, &gate_up, &down)?;
                for (routing, ids) in routings(tokens * k, experts) {
                    let name = format!("expert_ffn/{x}_{w}_{out}/{edge}/{routing}");
                    cases.push(filled(name, spec.clone(), ids));
                }
            }
        }
        let extents = [9, 2, 4, 96, 64];
        let spread = |routing: usize| routings(18, 4).swap_remove(routing).1;
        for (index, (scheme_name, scheme)) in case_schemes(64)?.into_iter().enumerate() {
            let gate_up = ExpertsSpec::of(scheme, 4, 128, 96)?;
            let down = ExpertsSpec::of(scheme, 4, 96, 64)?;
            let x = [DType::F32, DType::BF16][index % 2];
            for (precision, act_quant) in precisions(&scheme) {
                let spec = over([x, DType::F32], extents, &gate_up, &down)?.with_act_quant(act_quant)?;
                cases.push(filled(format!("expert_ffn/{scheme_name}/{precision}"), spec, spread(index % 4)));
            }
        }
        // Rows that are no whole number of blocks: each expert's last is cut short, the next one's scales are its own. And
        // blocks of as many rows as the halves of such an expert have in common with them.
        for (block, precision, act_quant) in [
            ([128, 128], "none", ActQuant::None),
            ([128, 128], "f8", ActQuant::F8_GROUP),
            ([4, 128], "none", ActQuant::None),
        ] {
            let scheme = QuantScheme { block, ..QuantScheme::F8_BLOCK };
            let gate_up = ExpertsSpec::of(scheme, 4, 200, 150)?;
            let down = ExpertsSpec::of(scheme, 4, 140, 100)?;
            let spec =
                over([DType::F32; 2], [9, 2, 4, 150, 100], &gate_up, &down)?.with_act_quant(act_quant)?;
            let name = format!("expert_ffn/f8_{}x{}/{precision}/cut_blocks", block[0], block[1]);
            cases.push(filled(name, spec, spread(1)));
        }
        let [gate_up, down] = dense(DType::F32, extents)?;
        let quant = ExpertsSpec::of(QuantScheme::Q8_0, 4, 96, 64)?;
        let mixed = over([DType::F32; 2], extents, &gate_up, &quant)?;
        cases.push(filled("expert_ffn/dense_and_q8_0".into(), mixed, spread(0)));
        let plain = over([DType::F32; 2], extents, &gate_up, &down)?;
        let deepseek_v4 = plain.clone().with_limit(10.0)?;
        cases.push(filled("expert_ffn/limit".into(), deepseek_v4, spread(3)));
        let f32s = |dims: &[usize]| TensorSpec::of(DType::F32, dims);
        let gpt_oss = plain.with_order(GateUpOrder::Interleaved).with_limit(7.0)?.with_alpha(1.702)?;
        let gpt_oss = gpt_oss.with_up_offset(1.0)?.with_gate_up_bias(&f32s(&[4, 128])?)?;
        cases.push(filled("expert_ffn/gpt_oss".into(), gpt_oss.with_down_bias(&f32s(&[4, 96])?)?, spread(0)));
        // Gaps on every side.
        let x = f32s(&[96, 11])?.transpose(0, 1)?.narrow(0, 1, 9)?;
        let ids = TensorSpec::of(DType::I32, &[2, 9])?.transpose(0, 1)?;
        let weights = f32s(&[9, 5])?.narrow(1, 2, 2)?;
        let gate_up = ExpertsSpec::dense(&f32s(&[6, 96, 128])?.transpose(1, 2)?.narrow(0, 1, 4)?)?;
        let down = ExpertsSpec::dense(&f32s(&[4, 99, 70])?.narrow(1, 3, 96)?.narrow(2, 2, 64)?)?;
        let out = f32s(&[9, 100])?.narrow(1, 4, 96)?;
        let spec = ExpertFfnSpec::new(&x, &ids, &weights, &gate_up, &down, &out)?;
        let bias = f32s(&[96, 4])?.transpose(0, 1)?;
        cases.push(filled("expert_ffn/strided".into(), spec.with_down_bias(&bias)?, spread(3)));
        Ok(cases)
    }
}
