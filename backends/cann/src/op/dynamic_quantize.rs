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

/// Codes and scale of every row; the scale of a row that holds no number is none either, its codes are anything.
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
