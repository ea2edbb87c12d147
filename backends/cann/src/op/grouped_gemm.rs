//! Products of every expert's rows with its weight. One behind the other they are the vendor's grouped product; each in a
//! room of its own they are a batch. Rows that no expert has are cleared behind either.

use super::Native;
use super::gemm::{Epilogue, multiply, plan_product};
use super::linear::{plan_rows, row_codes};
use super::scatter::contiguous;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::{AclInts, AclTensors};
use crate::product::Product;
use crate::version::{GroupedMatmul, any};
use portolan_core::{Call, Tensor};
use portolan_ops::kernel::Activation;
use portolan_ops::moe::GroupedGemmSpec;
use portolan_ops::quant::{QuantSpec, WeightSpec};
use portolan_ops::{DType, Result, Unsupported};

/// Most groups of one weight.
const MOST: usize = 1024;

impl Native for GroupedGemmSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        let weight = match self.weight().one() {
            WeightSpec::Dense(weight) => weight,
            WeightSpec::Quant(weight) => return plan_codes(soc, self, weight),
            _ => return Err(Unsupported::NotImplemented),
        };
        plan_product(soc, [self.x(), weight])?;
        let (experts, k) = (self.weight().count(), self.weight().k());
        if experts == 0 || k == 0 {
            return Err(Unsupported::Shape("experts, and columns"));
        }
        if self.counts().is_some() {
            return soc.has("aclnnMatmulGetWorkspaceSize");
        }
        if soc.product == Product::P310 || self.bias().is_some() {
            return Err(Unsupported::NotImplemented);
        }
        if let Some(other) = [weight, self.out()].iter().find(|spec| spec.dtype() != self.x().dtype()) {
            return Err(Unsupported::DType(other.dtype()));
        }
        if experts > MOST {
            return Err(Unsupported::Shape("at most 1024 experts"));
        }
        soc.has_version(any::<GroupedMatmul>)
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (x, out) = (op.require("x")?, op.require("out")?);
        if let WeightSpec::Quant(_) = op.spec().weight().one() {
            let (weight, scale) = (op.require("weight.codes")?, op.require("weight.scale")?);
            let by_column = run.typed(&scale.reshape(&weight.dims()[..2])?, DType::F32)?;
            let (codes, by_row) = row_codes(run, &contiguous(run, &x)?)?;
            let weight = contiguous(run, &weight)?.transpose(1, 2)?;
            let scales = Some([&by_column, &by_row]);
            return behind(run, [&codes, &weight], scales, &op.require("offsets")?, &out);
        }
        let weight = op.require("weight")?.transpose(1, 2)?;
        match op.tensor("counts") {
            Some(counts) => rooms(run, op, &x, &weight, &counts, &out),
            None => behind(run, [&x, &weight], None, &op.require("offsets")?, &out),
        }
    }
}

/// Whether a version takes a scale for each row.
fn scales_rows(version: GroupedMatmul) -> bool {
    version != GroupedMatmul::V3
}

/// Whether the vendor multiplies groups of such codes: of 8 bits on both sides, a scale for each row, results of 16 bits.
fn plan_codes(soc: &Soc<'_>, spec: &GroupedGemmSpec, weight: &QuantSpec) -> Plan {
    plan_rows(soc, weight, spec.act_quant())?;
    if spec.counts().is_some() || spec.bias().is_some() {
        return Err(Unsupported::NotImplemented);
    }
    let (x, out) = (spec.x().dtype(), spec.out().dtype());
    if !matches!(out, DType::F16 | DType::BF16) || x != out {
        return Err(Unsupported::DType(out));
    }
    if !(1..=MOST).contains(&spec.weight().count()) {
        return Err(Unsupported::Shape("1 to 1024 experts"));
    }
    soc.compute_all([spec.x(), weight.scale()])?;
    soc.has_version(scales_rows)
}

/// `[E, C, k]` times `[E, k, n]`, of which each expert keeps its first rows.
fn rooms(
    run: &Run<'_, '_>,
    op: &Call<GroupedGemmSpec>,
    x: &Tensor,
    weight: &Tensor,
    counts: &Tensor,
    out: &Tensor,
) -> Result<()> {
    let (experts, room, n) = (out.dims()[0], out.dims()[1], out.dims()[2]);
    let bias = op.tensor("bias").map(|bias| bias.reshape(&[experts, 1, n])).transpose()?;
    let epilogue = Epilogue { alpha: 1.0, added: None, bias, activation: Activation::Identity };
    multiply(run, x, weight, &epilogue, out)?;
    let beyond = run.scratch(DType::Bool, &[experts, room])?;
    at_or_behind(run, &places(run, room)?, &counts.reshape(&[experts, 1])?, &beyond)?;
    run.zero_where(&beyond.reshape(&[experts, room, 1])?, out)
}

/// `[M, k]` times the weight of the expert whose row it is; scales of codes are by expert and column, and by row.
fn behind(
    run: &Run<'_, '_>,
    [x, weight]: [&Tensor; 2],
    scales: Option<[&Tensor; 2]>,
    offsets: &Tensor,
    out: &Tensor,
) -> Result<()> {
    let (experts, rows) = (weight.dims()[0], out.dims()[0]);
    let ends = run.scratch(DType::I64, &[experts])?;
    run.cast(&offsets.narrow(0, 1, experts)?, &ends)?;
    let dense = out.spec().is_contiguous();
    let result = if dense { out.clone() } else { run.scratch(out.dtype(), out.dims())? };
    let x = contiguous(run, x)?;
    let (from, by, to) = (run.tensors(&[&x])?, run.tensors(&[weight])?, run.tensors(&[&result])?);
    let ends = run.tensor(&ends)?;
    let none = || -> Option<AclTensors<'static>> { None };
    let scales =
        scales.map(|[column, row]| Ok((run.tensors(&[column])?, run.tensors(&[row])?))).transpose()?;
    let (by_column, by_row) = scales.unzip();
    // One result; rows are split; running sums; no activation.
    let (split, kind, sums, activation) = (3i64, 0i64, 0i64, 0i64);
    macro_rules! grouped {
        ($plan:ident, $enqueue:ident, [$($tuning:expr)?]) => {
            aclnn!(
                run,
                $plan,
                $enqueue,
                from,
                by,
                none(), // bias
                by_column,
                none(), // offset
                none(), // antiquantScale, antiquantOffset
                none(),
                by_row,
                ends,
                none(), // activation's input, scale, offset
                none(),
                none(),
                split,
                kind,
                sums,
                activation,
                $($tuning,)?
                to,
                none(),
                none()
            )
        };
    }
    let untuned: Option<AclInts<'static>> = None;
    match run.newest(|version| by_row.is_none() || scales_rows(version))? {
        GroupedMatmul::V5 => {
            grouped!(aclnnGroupedMatmulV5GetWorkspaceSize, aclnnGroupedMatmulV5, [untuned])
        }
        GroupedMatmul::V4 => grouped!(aclnnGroupedMatmulV4GetWorkspaceSize, aclnnGroupedMatmulV4, []),
        // Lists of groups are running sums here, and nothing else.
        GroupedMatmul::V3 => aclnn!(
            run,
            aclnnGroupedMatmulV3GetWorkspaceSize,
            aclnnGroupedMatmulV3,
            from,
            by,
            none(), // bias
            by_column,
            none(), // offset
            none(), // antiquantScale, antiquantOffset
            none(),
            ends,
            split,
            kind,
            to
        ),
    }?;
    if !dense {
        run.copy(&result, out)?;
    }
    // The first expert's sum starts at row 0, wherever its rows do.
    let place = places(run, rows)?;
    let [before, after] = [run.scratch(DType::Bool, &[rows])?, run.scratch(DType::Bool, &[rows])?];
    let (row, first) = (run.tensor(&place)?, run.tensor(&offsets.narrow(0, 0, 1)?)?);
    let early = run.tensor(&before)?;
    aclnn!(run, aclnnLtTensorGetWorkspaceSize, aclnnLtTensor, row, first, early)?;
    at_or_behind(run, &place, &offsets.narrow(0, experts, 1)?, &after)?;
    let (late, other) = (run.tensor(&after)?, run.tensor(&before)?);
    aclnn!(run, aclnnLogicalOrGetWorkspaceSize, aclnnLogicalOr, early, late, other)?;
    run.zero_where(&before.reshape(&[rows, 1])?, out)
}

/// 0, 1, 2, …
pub(super) fn places(run: &Run<'_, '_>, count: usize) -> Result<Tensor> {
    let places = run.scratch(DType::I32, &[count])?;
    let number = |value: usize| run.scalar(DType::I32, value as f64);
    let (start, end, step) = (number(0)?, number(count)?, number(1)?);
    aclnn!(run, aclnnArangeGetWorkspaceSize, aclnnArange, start, end, step, run.tensor(&places)?)?;
    Ok(places)
}

/// `out = a ≥ b`, broadcast.
pub(super) fn at_or_behind(run: &Run<'_, '_>, a: &Tensor, b: &Tensor, out: &Tensor) -> Result<()> {
    let [a, b, out] = [run.tensor(a)?, run.tensor(b)?, run.tensor(out)?];
    aclnn!(run, aclnnGeTensorGetWorkspaceSize, aclnnGeTensor, a, b, out)
}
