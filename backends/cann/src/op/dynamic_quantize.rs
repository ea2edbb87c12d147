//! Numbers as codes with a scale for each row or group of a row: the vendor's kernels of tokens, and of groups of 32 that
//! share a power of two. What the contract says of groups that hold no number is found apart: their scale is none, their
//! codes are 0.

use super::Native;
use super::dequantize::{MX_GROUP, group, is_mx, mx_scales, plan_mx};
use super::scatter::contiguous;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::{NONE, code};
use crate::version::{DynamicMxQuant, DynamicQuant, any};
use portolan_core::{Call, Tensor};
use portolan_ops::quant::{DynamicQuantizeSpec, ScaleKind};
use portolan_ops::{DType, OpError, Result, Unsupported};

impl Native for DynamicQuantizeSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        let (quant, dtype) = (self.quant(), self.x().dtype());
        if is_mx(soc, quant) {
            plan_mx(quant)?;
            return soc.has_version(any::<DynamicMxQuant>);
        }
        if quant.scheme().code != DType::I8 || quant.scheme().code_bits != 8 {
            return Err(Unsupported::DType(quant.scheme().code));
        }
        if quant.scheme().scale != ScaleKind::F32 {
            return Err(Unsupported::DType(quant.scheme().scale.dtype()));
        }
        if !matches!(dtype, DType::F16 | DType::BF16) {
            return Err(Unsupported::DType(dtype));
        }
        if !quant.codes().is_contiguous() || !quant.scale().is_contiguous() {
            return Err(Unsupported::Shape("codes and scales one behind the other"));
        }
        group(quant)?;
        soc.computes(dtype)?;
        soc.has_version(any::<DynamicQuant>)
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (x, codes, scale) = (op.require("x")?, op.require("codes")?, op.require("scale")?);
        if is_mx(&run.soc(), op.spec().quant()) {
            return powers(run, &x, &codes, &scale);
        }
        let group = group(op.spec().quant())
            .map_err(|_| OpError::internal("dynamic_quantize", "rows of no whole groups"))?;
        let rows = x.numel() / group;
        let x = contiguous(run, &x)?.reshape(&[rows, group])?;
        let (codes, scale) = (codes.reshape(&[rows, group])?, scale.reshape(&[rows])?);
        tokens(run, &x, &codes, &scale)?;
        let spoiled = no_numbers(run, &scale)?;
        run.zero_where(&spoiled.reshape(&[rows, 1])?, &codes)
    }
}

/// Codes and scale of every row of 16-bit numbers; the scale of a row that holds no number is none either, its codes are
/// anything.
pub(super) fn tokens(run: &Run<'_, '_>, x: &Tensor, codes: &Tensor, scale: &Tensor) -> Result<()> {
    let [from, to, by] = [run.tensor(x)?, run.tensor(codes)?, run.tensor(scale)?];
    let number = number(codes)?;
    // No smoothing, no groups, no offsets.
    match run.newest(any::<DynamicQuant>)? {
        DynamicQuant::V3 => aclnn!(
            run,
            aclnnDynamicQuantV3GetWorkspaceSize,
            aclnnDynamicQuantV3,
            from,
            NONE,
            NONE,
            number,
            true,
            c"pertoken",
            to,
            by,
            NONE
        ),
        DynamicQuant::V2 => aclnn!(
            run,
            aclnnDynamicQuantV2GetWorkspaceSize,
            aclnnDynamicQuantV2,
            from,
            NONE,
            NONE,
            number,
            to,
            by,
            NONE
        ),
        DynamicQuant::V1 => {
            aclnn!(run, aclnnDynamicQuantGetWorkspaceSize, aclnnDynamicQuant, from, NONE, to, by)
        }
    }?;
    run.add(scale, &nothing(run, x)?, 1.0, scale)
}

/// The vendor's number of the codes' type, as an argument.
fn number(codes: &Tensor) -> Result<i64> {
    let number = code(codes.dtype()).map(i64::from);
    number.ok_or_else(|| OpError::internal("quantize", "a type without a number"))
}

/// 0 for every row of `x [rows, columns]` that holds numbers alone, else none.
fn nothing(run: &Run<'_, '_>, x: &Tensor) -> Result<Tensor> {
    // As it is of each element, and so of their sum.
    let (zeros, sums) = (run.scratch(x.dtype(), x.dims())?, run.scratch(DType::F32, &x.dims()[..1])?);
    run.muls(x, 0.0, &zeros)?;
    let (row, keep) = (run.ints(&[1])?, false);
    let number = code(DType::F32).ok_or_else(|| OpError::internal("quantize", "a type without a number"))?;
    let (from, to) = (run.tensor(&zeros)?, run.tensor(&sums)?);
    aclnn!(run, aclnnReduceSumGetWorkspaceSize, aclnnReduceSum, from, row, keep, number, to)?;
    Ok(sums)
}

/// Which entries are no numbers: those that differ from themselves.
fn no_numbers(run: &Run<'_, '_>, x: &Tensor) -> Result<Tensor> {
    let (mask, a) = (run.scratch(DType::Bool, x.dims())?, run.tensor(x)?);
    aclnn!(run, aclnnNeTensorGetWorkspaceSize, aclnnNeTensor, a, a, run.tensor(&mask)?)?;
    Ok(mask)
}

/// The power of two that no number has.
const NO_POWER: f64 = 255.0;

/// Small floats in groups of 32, and the powers of two that they share.
fn powers(run: &Run<'_, '_>, x: &Tensor, codes: &Tensor, scale: &Tensor) -> Result<()> {
    let (n, k) = (x.dims()[0], x.dims()[1]);
    let (groups, whole) = (k.div_ceil(MX_GROUP), k.next_multiple_of(MX_GROUP));
    // The last group of a row is filled up with zeros, which change no scale.
    let (rows, result) = if whole == k && codes.spec().is_contiguous() {
        (contiguous(run, x)?, codes.clone())
    } else {
        let rows = run.scratch(x.dtype(), &[n, whole])?;
        run.zero(&rows)?;
        run.copy(x, &rows.narrow(1, 0, k)?)?;
        (rows, run.scratch(codes.dtype(), &[n, whole])?)
    };
    let [scales, flat] = mx_scales(run, n, k)?;
    let number = number(codes)?;
    let [from, to, by] = [run.tensor(&rows)?, run.tensor(&result)?, run.tensor(&scales)?];
    // Scales by the floor of logarithms, as the format's own text has them.
    let (last, group, floors) = (-1i64, MX_GROUP as i64, 0i64);
    macro_rules! quantize {
        ($plan:ident, $enqueue:ident, [$($largest:expr)?]) => {
            aclnn!(run, $plan, $enqueue, from, last, c"rint", number, group, floors, $($largest,)? to, by)
        };
    }
    match run.newest(any::<DynamicMxQuant>)? {
        // Floors of logarithms know no largest number.
        DynamicMxQuant::V2 => {
            quantize!(aclnnDynamicMxQuantV2GetWorkspaceSize, aclnnDynamicMxQuantV2, [0f64])
        }
        DynamicMxQuant::V1 => quantize!(aclnnDynamicMxQuantGetWorkspaceSize, aclnnDynamicMxQuant, []),
    }?;
    let spoiled = no_numbers(run, &nothing(run, &rows.reshape(&[n * groups, MX_GROUP])?)?)?;
    run.zero_where(&spoiled.reshape(&[n * groups, 1])?, &result.reshape(&[n * groups, MX_GROUP])?)?;
    let (mask, none) = (spoiled.reshape(&[n, groups])?, run.scalar(DType::I32, NO_POWER)?);
    run.copy(&flat, scale)?;
    let (by, mask) = (run.bits(scale)?, run.tensor(&mask)?);
    aclnn!(run, aclnnInplaceMaskedFillScalarGetWorkspaceSize, aclnnInplaceMaskedFillScalar, by, mask, none)?;
    if result.buffer().same(codes.buffer()) { Ok(()) } else { run.copy(&result.narrow(1, 0, k)?, codes) }
}

/// The same of numbers in f32, which the vendor's kernel does not take, as codes of i8 or f8e4m3.
pub(super) fn wide_tokens(run: &Run<'_, '_>, x: &Tensor, codes: &Tensor, scale: &Tensor) -> Result<()> {
    let rows = scale.numel();
    let (numbers, largest) = (run.scratch(DType::F32, x.dims())?, run.scratch(DType::F32, &[rows])?);
    let [from, to, most, by] =
        [run.tensor(x)?, run.tensor(&numbers)?, run.tensor(&largest)?, run.tensor(scale)?];
    aclnn!(run, aclnnAbsGetWorkspaceSize, aclnnAbs, from, to)?;
    let integer = codes.dtype() == DType::I8;
    let top = run.scalar(DType::F32, if integer { 127.0 } else { 448.0 })?;
    let (row, keep) = (run.ints(&[1])?, false);
    aclnn!(run, aclnnAmaxGetWorkspaceSize, aclnnAmax, to, row, keep, most)?;
    aclnn!(run, aclnnDivsGetWorkspaceSize, aclnnDivs, most, top, by)?;
    run.muls(&largest, 0.0, &largest)?;
    run.add(scale, &largest, 1.0, scale)?;
    // A row of zeros is divided by something, and is zeros.
    run.at_least(scale, f64::from(f32::from_bits(1)), &largest)?;
    let divisor = run.tensor(&largest.reshape(&[rows, 1])?)?;
    aclnn!(run, aclnnDivGetWorkspaceSize, aclnnDiv, from, divisor, to)?;
    if integer {
        aclnn!(run, aclnnRoundGetWorkspaceSize, aclnnRound, to, to)?;
    }
    run.cast(&numbers, codes)
}
