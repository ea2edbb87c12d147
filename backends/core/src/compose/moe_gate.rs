//! The router from softmax or unary functions, top_k and gathers.

use super::begin;
use super::parts::Parts;
use crate::call::{MoeGate, Softmax, Sort, TopK};
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, CompareKind, ReduceKind, TopKSpec, UnaryKind};
use portolan_ops::moe::{GateScore, GroupScore};
use portolan_ops::sort::SortOrder;
use portolan_ops::{DType, Result, Unsupported};

/// Scores in f32; the choice by top_k of logits or of scores with their bias, or by the table; then the weights of
/// what was chosen.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn moe_gate(l: &Launch<'_>, op: &MoeGate, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let spec = op.spec();
    let logits = p.f32(&op.require("logits")?)?;
    let scores = scores(&p, spec.score(), &logits)?;
    let ids = match op.tensor("table") {
        Some(table) => {
            let tokens = op.require("token_ids")?;
            let rows = p.gather(&table, 0, &tokens)?;
            let padding = p.compare_scalar(CompareKind::Lt, &tokens.reshape(&[spec.tokens(), 1])?, 0.0)?;
            let rows = p.replace(&padding, -1.0, &rows)?;
            p.scalar_in_place(BinaryKind::Max, &rows, -1.0)?;
            rows
        }
        None => {
            let by = match (op.tensor("bias"), spec.chooses_by_logits()) {
                (Some(bias), _) => p.binary(BinaryKind::Add, &scores, &bias)?,
                (None, true) => logits,
                (None, false) => scores.clone(),
            };
            choose(&p, op, &by)?
        }
    };
    p.store(&ids, &op.require("expert_ids")?)?;
    // An index below zero gathers 0.
    let weights = p.gather_elements(&scores, 1, &ids)?;
    if spec.renormalize() {
        let sum = p.reduce(ReduceKind::Sum, &weights, 1)?;
        let zero = p.compare_scalar(CompareKind::Eq, &sum, 0.0)?;
        p.binary_in_place(BinaryKind::Div, &weights, &p.replace(&zero, 1.0, &sum)?)?;
    }
    if spec.scale() != 1.0 {
        p.scalar_in_place(BinaryKind::Mul, &weights, f64::from(spec.scale()))?;
    }
    p.store(&weights, &op.require("weights")?)
}

fn scores(p: &Parts<'_, '_>, score: GateScore, logits: &Tensor) -> Result<Tensor> {
    match score {
        GateScore::Softmax => {
            let mut out = p.scratch(DType::F32, logits.dims())?;
            p.run(Softmax::new(logits, &mut out)?)?;
            Ok(out)
        }
        GateScore::Sigmoid => p.unary(UnaryKind::Sigmoid, logits),
        GateScore::SqrtSoftplus => {
            // max(a, 0) + ln(1 + e), e = e^(−|a|). The logarithm of u = f32(1 + e) is that of another number than
            // 1 + e, by a factor that (u − 1) / e has too; where u is 1, ln(1 + e) is e.
            let e = p.unary(UnaryKind::Abs, logits)?;
            p.unary_in_place(UnaryKind::Neg, &e)?;
            p.unary_in_place(UnaryKind::Exp, &e)?;
            let u = p.scalar(BinaryKind::Add, &e, 1.0)?;
            let left = p.scalar(BinaryKind::Sub, &u, 1.0)?;
            let lost = p.compare_scalar(CompareKind::Eq, &left, 0.0)?;
            p.unary_in_place(UnaryKind::Log, &u)?;
            p.binary_in_place(BinaryKind::Mul, &u, &e)?;
            let quotient = p.binary(BinaryKind::Div, &u, &p.replace(&lost, 1.0, &left)?)?;
            let log = p.select(&lost, &e, &quotient)?;
            let out = p.scalar(BinaryKind::Max, logits, 0.0)?;
            p.binary_in_place(BinaryKind::Add, &out, &log)?;
            p.unary_in_place(UnaryKind::Sqrt, &out)?;
            Ok(out)
        }
    }
}

/// The experts of each row in order of choice, `[T, k]`.
fn choose(p: &Parts<'_, '_>, op: &MoeGate, by: &Tensor) -> Result<Tensor> {
    let spec = op.spec();
    let (tokens, experts, k) = (spec.tokens(), spec.num_experts(), spec.top_k());
    let Some((n_group, topk_group, score)) = spec.groups() else {
        return top_places(p, by, k);
    };
    let size = experts / n_group;
    let grouped = by.reshape(&[tokens, n_group, size])?;
    let ranks = match score {
        GroupScore::TopTwo if size > 1 => {
            let (values, places) = TopKSpec::out_specs(grouped.spec(), 2)?;
            let (mut values, mut places) = (p.launch().scratch(&values)?, p.launch().scratch(&places)?);
            p.run(TopK::new(&grouped, &mut values, &mut places)?)?;
            p.reduce(ReduceKind::Sum, &values, 2)?
        }
        _ if size == 1 => grouped,
        _ => p.reduce(ReduceKind::Max, &grouped, 2)?,
    };
    let groups = top_places(p, &ranks.reshape(&[tokens, n_group])?, topk_group)?;
    // In ascending order, so that of equal experts the lowest comes first.
    let mut open = p.scratch(DType::I32, &[tokens, topk_group])?;
    p.run(Sort::values_only(SortOrder::Ascending, &groups, &mut open)?)?;
    p.scalar_in_place(BinaryKind::Mul, &open, size as f64)?;
    let members = p.binary(BinaryKind::Add, &open.reshape(&[tokens, topk_group, 1])?, &p.iota(size)?)?;
    let members = members.reshape(&[tokens, topk_group * size])?;
    let places = top_places(p, &p.gather_elements(by, 1, &members)?, k)?;
    p.gather_elements(&members, 1, &places)
}

/// The places of the k largest of each row.
fn top_places(p: &Parts<'_, '_>, x: &Tensor, k: usize) -> Result<Tensor> {
    let (values, places) = TopKSpec::out_specs(x.spec(), k)?;
    let (mut values, mut places) = (p.launch().scratch(&values)?, p.launch().scratch(&places)?);
    p.run(TopK::new(x, &mut values, &mut places)?)?;
    Ok(places)
}
