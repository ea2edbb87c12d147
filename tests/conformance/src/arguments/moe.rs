//! Arguments of mixtures of experts.

use super::quant::weight_of;
use super::{Arguments, Choices};
use portolan_ops::moe::{
    ExpertFfnSpec, ExpertsSpec, GateScore, GateUpOrder, GroupScore, GroupedGemmSpec, MoeGateSpec,
    MoePermuteSpec, MoeUnpermuteSpec,
};
use portolan_ops::quant::WeightSpec;
use portolan_ops::{DType, Result, TensorSpec};

impl Arguments for MoeGateSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (tokens, experts, top_k) = (from.few(), from.size(), from.few());
        let (score, dtype) = (from.one_of(&GateScore::ALL), from.dtype());
        let logits = from.of(dtype, &[tokens, experts])?;
        let (weights, ids) = MoeGateSpec::out_specs(&logits, top_k)?;
        let (weights, ids) = (from.like(&weights)?, from.like(&ids)?);
        let mut op = match from.byte() % 4 {
            0 => {
                let table = [from.few(), top_k];
                let (token_ids, table) = (from.indices(&[tokens])?, from.indices(&table)?);
                MoeGateSpec::hashed(score, &logits, &token_ids, &table, &weights, &ids)?
            }
            _ => MoeGateSpec::new(score, &logits, &weights, &ids)?,
        };
        if from.flag() {
            op = op.with_bias(&from.of(DType::F32, &[experts])?)?;
        }
        if from.flag() {
            let by = from.one_of(&[GroupScore::Max, GroupScore::TopTwo]);
            op = op.with_groups(from.few(), from.few(), by)?;
        }
        if from.flag() {
            op = op.with_renormalize();
        }
        if from.flag() { op.with_scale(from.real() as f32) } else { Ok(op) }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let logits = TensorSpec::of(dtype, &[2, 2])?;
        let (weights, ids) = MoeGateSpec::out_specs(&logits, 1)?;
        MoeGateSpec::new(GateScore::Softmax, &logits, &weights, &ids)
    }
}

impl Arguments for MoePermuteSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        // Without experts every id is a fault in the data.
        let (tokens, top_k, experts, width) = (from.few(), from.few(), from.few().max(1), from.size());
        let dtype = from.dtype();
        let x = from.of(dtype, &[tokens, width])?;
        let (ids, row_map) = (from.indices(&[tokens, top_k])?, from.indices(&[tokens, top_k])?);
        let per_expert = TensorSpec::of(DType::I32, &[experts])?;
        if from.flag() {
            let room = from.few();
            let out = from.of(dtype, &[experts, room, width])?;
            let (counts, dropped) = (from.like(&per_expert)?, from.like(&per_expert)?);
            return MoePermuteSpec::masked(&x, &ids, &out, &row_map, &counts, &dropped);
        }
        let out = from.of(dtype, &[tokens.saturating_mul(top_k), width])?;
        let offsets = from.indices(&[experts.saturating_add(1)])?;
        let op = MoePermuteSpec::contiguous(&x, &ids, &out, &row_map, &offsets)?;
        if from.flag() { op.with_capacity(from.size(), &from.like(&per_expert)?) } else { Ok(op) }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (x, ids) = (TensorSpec::of(dtype, &[2, 2])?, TensorSpec::of(DType::I32, &[2, 1])?);
        MoePermuteSpec::contiguous(&x, &ids, &x, &ids, &TensorSpec::of(DType::I32, &[3])?)
    }
}

impl Arguments for GroupedGemmSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (experts, n, k, rows) = (from.few(), from.size(), from.size(), from.few());
        let (weight, dtype) = (from.experts([experts, n, k])?, from.dtype());
        let mut op = if from.flag() {
            let (x, counts) = (from.of(dtype, &[experts, rows, k])?, from.indices(&[experts])?);
            let out = from.out(GroupedGemmSpec::out_spec(&x, &weight))?;
            GroupedGemmSpec::masked(&x, &weight, &counts, &out)?
        } else {
            let (x, offsets) = (from.of(dtype, &[rows, k])?, from.indices(&[experts.saturating_add(1)])?);
            let out = from.out(GroupedGemmSpec::out_spec(&x, &weight))?;
            GroupedGemmSpec::contiguous(&x, &weight, &offsets, &out)?
        };
        if from.flag() {
            op = op.with_bias(&from.of(DType::F32, &[experts, n])?)?;
        }
        if from.flag() {
            op = op.with_act_quant(from.act_quant())?;
        }
        Ok(if from.flag() { op.with_expected_rows(from.size()) } else { op })
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (weight, x) = experts_of(dtype, 1, 32)?;
        let (x, offsets) = (TensorSpec::of(x, &[1, 32])?, TensorSpec::of(DType::I32, &[2])?);
        GroupedGemmSpec::contiguous(&x, &weight, &offsets, &GroupedGemmSpec::out_spec(&x, &weight)?)
    }
}

/// One expert `[n, k]` of a type, and the type of numbers it is multiplied with.
fn experts_of(dtype: DType, n: usize, k: usize) -> Result<(ExpertsSpec, DType)> {
    Ok(match weight_of(dtype)? {
        (WeightSpec::Quant(weight), x) => (ExpertsSpec::of(*weight.scheme(), 1, n, k)?, x),
        (_, x) => (ExpertsSpec::dense(&TensorSpec::of(dtype, &[1, n, k])?)?, x),
    })
}

impl Arguments for ExpertFfnSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (tokens, top_k, experts) = (from.few(), from.few(), from.few());
        let (width, inner, out_width) = (from.size(), from.size(), from.size());
        let twice = inner.saturating_mul(2);
        let gate_up = from.experts([experts, twice, width])?;
        let down = match from.byte() % 4 {
            0 => from.experts([experts, out_width, inner])?,
            // Mostly of the same form.
            _ => match gate_up.one() {
                WeightSpec::Quant(one) => ExpertsSpec::of(*one.scheme(), experts, out_width, inner)?,
                WeightSpec::Dense(one) => {
                    ExpertsSpec::dense(&from.of(one.dtype(), &[experts, out_width, inner])?)?
                }
                _ => from.experts([experts, out_width, inner])?,
            },
        };
        let dtype = from.dtype();
        let x = from.of(dtype, &[tokens, width])?;
        let (ids, weights) = (from.indices(&[tokens, top_k])?, from.of(DType::F32, &[tokens, top_k])?);
        let out = from.out(ExpertFfnSpec::out_spec(&x, &gate_up, &down))?;
        let mut op = ExpertFfnSpec::new(&x, &ids, &weights, &gate_up, &down, &out)?;
        if from.flag() {
            op = op.with_gate_up_bias(&from.of(DType::F32, &[experts, twice])?)?;
        }
        if from.flag() {
            op = op.with_down_bias(&from.of(DType::F32, &[experts, out_width])?)?;
        }
        if from.flag() {
            op = op.with_order(GateUpOrder::Interleaved);
        }
        if from.flag() {
            op = op.with_limit(from.real() as f32)?;
        }
        if from.flag() {
            op = op.with_alpha(from.real() as f32)?.with_up_offset(from.real() as f32)?;
        }
        if from.flag() { op.with_act_quant(from.act_quant()) } else { Ok(op) }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let ((gate_up, x), (down, _)) = (experts_of(dtype, 64, 32)?, experts_of(dtype, 1, 32)?);
        let (x, ids) = (TensorSpec::of(x, &[1, 32])?, TensorSpec::of(DType::I32, &[1, 1])?);
        let out = ExpertFfnSpec::out_spec(&x, &gate_up, &down)?;
        ExpertFfnSpec::new(&x, &ids, &ids.with_dtype(DType::F32), &gate_up, &down, &out)
    }
}

impl Arguments for MoeUnpermuteSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (tokens, top_k, rows, width) = (from.few(), from.few(), from.few(), from.size());
        let dtype = from.dtype();
        let y = match from.flag() {
            true => from.of(dtype, &[rows, width])?,
            false => {
                let experts = from.few();
                from.of(dtype, &[experts, rows, width])?
            }
        };
        let row_map = from.indices(&[tokens, top_k])?;
        let out = from.out(MoeUnpermuteSpec::out_spec(&y, &row_map))?;
        let op = MoeUnpermuteSpec::new(&y, &row_map, &out)?;
        if from.flag() { op.with_weights(&from.of(DType::F32, &[tokens, top_k])?) } else { Ok(op) }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (y, row_map) = (TensorSpec::of(dtype, &[2, 2])?, TensorSpec::of(DType::I32, &[2, 1])?);
        MoeUnpermuteSpec::new(&y, &row_map, &MoeUnpermuteSpec::out_spec(&y, &row_map)?)
    }
}
