//! Products of every expert's rows with its weight. One behind the other they are the vendor's grouped product; each in a
//! room of its own they are a batch, or groups of whole rooms where codes are expanded. Rows that no expert has are cleared
//! behind either.

use super::gemm::{Epilogue, multiply, plan_product};
use super::linear::{Expansion, plan_expansion, plan_rows, row_codes};
use super::scatter::contiguous;
use super::{HINT, Native};
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::{AclInts, AclTensors};
use crate::product::Product;
use crate::version::{GroupedMatmul, any};
use portolan_core::{Call, Tensor};
use portolan_ops::kernel::Activation;
use portolan_ops::moe::GroupedGemmSpec;
use portolan_ops::quant::{QuantSpec, ScaleKind, WeightSpec};
use portolan_ops::{ActQuant, DType, Result, Unsupported};

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
        let (spec, x, out) = (op.spec(), op.require("x")?, op.require("out")?);
        if let WeightSpec::Quant(weight) = spec.weight().one() {
            let (codes, scale) = (op.require("weight.codes")?, op.require("weight.scale")?);
            if expands(spec) {
                let group = plan_expansion(&run.soc(), x.dtype(), weight);
                let group =
                    group.map_err(|why| run.launch().unsupported(run.launch().op_name(), why, HINT))?;
                let zero = op.tensor("weight.offset");
                let weight = Expansion::new(run, x.dtype(), [&codes, &scale], zero.as_ref(), group)?;
                return expanded(run, op, &x, &weight, &out);
            }
            let by_column = run.typed(&scale.reshape(&codes.dims()[..2])?, DType::F32)?;
            let (x, by_row) = row_codes(run, &contiguous(run, &x)?)?;
            let beside = Beside { scales: Some([&by_column, &by_row]), ..Beside::default() };
            return behind(run, &x, &contiguous(run, &codes)?, beside, &op.require("offsets")?, &out);
        }
        let weight = op.require("weight")?;
        match op.tensor("counts") {
            Some(counts) => rooms(run, op, &x, &weight.transpose(1, 2)?, &counts, &out),
            None => behind(run, &x, &weight, Beside::default(), &op.require("offsets")?, &out),
        }
    }
}

/// Whether a version takes a scale for each row.
fn scales_rows(version: GroupedMatmul) -> bool {
    version != GroupedMatmul::V3
}

/// Whether codes are to meet activations of 16 bits as they are.
fn expands(spec: &GroupedGemmSpec) -> bool {
    spec.act_quant() == ActQuant::None && spec.x().dtype().bits() == 16
}

/// Whether the vendor multiplies groups of such codes, results of 16 bits: with activations of 16 bits that codes are
/// expanded to, or of 8 bits on both sides, a scale for each row.
fn plan_codes(soc: &Soc<'_>, spec: &GroupedGemmSpec, weight: &QuantSpec) -> Plan {
    if expands(spec) {
        plan_expansion(soc, spec.x().dtype(), weight)?;
        // Of groups, the vendor has no products with 4-bit floats, and none with powers of two.
        if weight.scheme().code == DType::F4E2M1 || weight.scheme().scale == ScaleKind::E8M0 {
            return Err(Unsupported::DType(weight.scheme().code));
        }
    } else {
        plan_rows(soc, weight, spec.act_quant())?;
        if spec.counts().is_some() {
            return Err(Unsupported::NotImplemented);
        }
    }
    if spec.bias().is_some() {
        return Err(Unsupported::NotImplemented);
    }
    let (x, out) = (spec.x().dtype(), spec.out().dtype());
    if !matches!(out, DType::F16 | DType::BF16) || x != out {
        return Err(Unsupported::DType(out));
    }
    if !(1..=MOST).contains(&spec.weight().count()) {
        return Err(Unsupported::Shape("1 to 1024 experts"));
    }
    soc.compute_all([spec.x()])?;
    soc.has_version(|version| expands(spec) || scales_rows(version))
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
    let (experts, n) = (out.dims()[0], out.dims()[2]);
    let bias = op.tensor("bias").map(|bias| bias.reshape(&[experts, 1, n])).transpose()?;
    let epilogue = Epilogue { alpha: 1.0, added: None, bias, activation: Activation::Identity };
    multiply(run, x, weight, &epilogue, out)?;
    clear_beyond(run, counts, out)
}

/// As [`rooms`] and [`behind`], the weights expanded.
fn expanded(
    run: &Run<'_, '_>,
    op: &Call<GroupedGemmSpec>,
    x: &Tensor,
    weight: &Expansion,
    out: &Tensor,
) -> Result<()> {
    let beside = Beside { expansion: Some(weight), ..Beside::default() };
    let Some(counts) = op.tensor("counts") else {
        return behind(run, x, weight.codes(), beside, &op.require("offsets")?, out);
    };
    // Every room is a group: what it has beyond its rows is multiplied as well.
    let [experts, room, n] = [out.dims()[0], out.dims()[1], out.dims()[2]];
    let rows = experts * room;
    let x = contiguous(run, x)?.reshape(&[rows, x.dims()[2]])?;
    let dense = out.spec().is_contiguous();
    let result = if dense { out.clone() } else { run.scratch(out.dtype(), out.dims())? };
    let ends = run.scratch(DType::I64, &[experts])?;
    count_up(run, [room, rows + 1, room], &ends)?;
    grouped(run, &x, weight.codes(), beside, &ends, &result.reshape(&[rows, n])?)?;
    if !dense {
        run.copy(&result, out)?;
    }
    clear_beyond(run, &counts, out)
}

/// What stands beside the factors of a grouped product.
#[derive(Clone, Copy, Default)]
struct Beside<'a> {
    /// Of codes on both sides: scales by expert and column, and by row.
    scales: Option<[&'a Tensor; 2]>,
    /// Of codes that are expanded.
    expansion: Option<&'a Expansion>,
}

/// `[M, k]` times the weight `[E, n, k]` of the expert whose row it is.
fn behind(
    run: &Run<'_, '_>,
    x: &Tensor,
    weight: &Tensor,
    beside: Beside<'_>,
    offsets: &Tensor,
    out: &Tensor,
) -> Result<()> {
    let (experts, rows) = (weight.dims()[0], out.dims()[0]);
    let ends = run.scratch(DType::I64, &[experts])?;
    run.cast(&offsets.narrow(0, 1, experts)?, &ends)?;
    let dense = out.spec().is_contiguous();
    let result = if dense { out.clone() } else { run.scratch(out.dtype(), out.dims())? };
    grouped(run, &contiguous(run, x)?, weight, beside, &ends, &result)?;
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

/// The vendor's product of rows up to each expert's end with its weight `[n, k]`; rows behind the last are not written.
fn grouped(
    run: &Run<'_, '_>,
    x: &Tensor,
    weight: &Tensor,
    beside: Beside<'_>,
    ends: &Tensor,
    out: &Tensor,
) -> Result<()> {
    let (from, to) = (run.tensors(&[x])?, run.tensors(&[out])?);
    let none = || -> Option<AclTensors<'static>> { None };
    let scales = beside.scales.map(|[column, row]| Ok((run.tensors(&[column])?, run.tensors(&[row])?)));
    let (by_column, by_row) = scales.transpose()?.unzip();
    let (codes, factor, added) = match beside.expansion {
        Some(expansion) => {
            let (codes, factor, added) = expansion.descriptors(run)?;
            let added = added.map(|added| run.list(vec![added]));
            (codes, Some(run.list(vec![factor])), added)
        }
        None => (run.turned(weight)?, None, None),
    };
    let (by, ends) = (run.list(vec![codes]), run.tensor(ends)?);
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
                factor,
                added,
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
            factor,
            added,
            ends,
            split,
            kind,
            to
        ),
    }
}

/// 0s in the rows that experts do not have of their rooms, `[E, C, n]`.
fn clear_beyond(run: &Run<'_, '_>, counts: &Tensor, out: &Tensor) -> Result<()> {
    let [experts, room] = [out.dims()[0], out.dims()[1]];
    let beyond = run.scratch(DType::Bool, &[experts, room])?;
    at_or_behind(run, &places(run, room)?, &counts.reshape(&[experts, 1])?, &beyond)?;
    run.zero_where(&beyond.reshape(&[experts, room, 1])?, out)
}

/// 0, 1, 2, …
pub(super) fn places(run: &Run<'_, '_>, count: usize) -> Result<Tensor> {
    let places = run.scratch(DType::I32, &[count])?;
    count_up(run, [0, count, 1], &places)?;
    Ok(places)
}

/// Whole numbers from the first on, below the second, the third apart.
fn count_up(run: &Run<'_, '_>, range: [usize; 3], out: &Tensor) -> Result<()> {
    let [start, end, step] = range.map(|value| run.scalar(DType::I32, value as f64));
    let (start, end, step) = (start?, end?, step?);
    aclnn!(run, aclnnArangeGetWorkspaceSize, aclnnArange, start, end, step, run.tensor(out)?)
}

/// `out = a ≥ b`, broadcast.
pub(super) fn at_or_behind(run: &Run<'_, '_>, a: &Tensor, b: &Tensor, out: &Tensor) -> Result<()> {
    let [a, b, out] = [run.tensor(a)?, run.tensor(b)?, run.tensor(out)?];
    aclnn!(run, aclnnGeTensorGetWorkspaceSize, aclnnGeTensor, a, b, out)
}
