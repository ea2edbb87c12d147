//! Numbers as codes of 8 bits with a scale for each row or group of a row: the vendor's kernel of tokens, and what the
//! contract says of rows that hold no number, found apart: their scale is none, their codes are 0.

use super::Native;
use super::dequantize::group;
use super::scatter::contiguous;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::{NONE, code};
use portolan_core::{Call, Tensor};
use portolan_ops::quant::{DynamicQuantizeSpec, ScaleKind};
use portolan_ops::{DType, OpError, Result, Unsupported};

impl Native for DynamicQuantizeSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        let (quant, dtype) = (self.quant(), self.x().dtype());
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
        soc.has("aclnnDynamicQuantGetWorkspaceSize")
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (x, codes, scale) = (op.require("x")?, op.require("codes")?, op.require("scale")?);
        let group = group(op.spec().quant())
            .map_err(|_| OpError::internal("dynamic_quantize", "rows of no whole groups"))?;
        let rows = x.numel() / group;
        let x = contiguous(run, &x)?.reshape(&[rows, group])?;
        let (codes, scale) = (codes.reshape(&[rows, group])?, scale.reshape(&[rows])?);
        tokens(run, &x, &codes, &scale)?;
        // What is no number differs from itself.
        let (spoiled, a) = (run.scratch(DType::Bool, &[rows])?, run.tensor(&scale)?);
        aclnn!(run, aclnnNeTensorGetWorkspaceSize, aclnnNeTensor, a, a, run.tensor(&spoiled)?)?;
        run.zero_where(&spoiled.reshape(&[rows, 1])?, &codes)
    }
}

/// Codes and scale of every row of 16-bit numbers; the scale of a row that holds no number is none either, its codes are
/// anything.
pub(super) fn tokens(run: &Run<'_, '_>, x: &Tensor, codes: &Tensor, scale: &Tensor) -> Result<()> {
    let [from, to, by] = [run.tensor(x)?, run.tensor(codes)?, run.tensor(scale)?];
    aclnn!(run, aclnnDynamicQuantGetWorkspaceSize, aclnnDynamicQuant, from, NONE, to, by)?;
    // 0 for every number, else none; and so are their sums.
    let (zeros, sums) = (run.scratch(x.dtype(), x.dims())?, run.scratch(DType::F32, scale.dims())?);
    run.muls(x, 0.0, &zeros)?;
    let (row, keep) = (run.ints(&[1])?, false);
    let number = code(DType::F32).ok_or_else(|| OpError::internal("quantize", "a type without a number"))?;
    let (from, to) = (run.tensor(&zeros)?, run.tensor(&sums)?);
    aclnn!(run, aclnnReduceSumGetWorkspaceSize, aclnnReduceSum, from, row, keep, number, to)?;
    run.add(scale, &sums, 1.0, scale)
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
