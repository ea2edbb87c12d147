//! Codes as numbers of 16 bits: the vendor's kernel, which takes a scale for every column. Rows of one scale are columns
//! of the transposed view.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::code;
use portolan_core::{Call, Tensor};
use portolan_ops::quant::{DequantizeSpec, Offset, QuantSpec, ScaleKind, WeightSpec};
use portolan_ops::{DType, OpError, Result, Unsupported};

/// Columns that share a scale, where rows divide into such groups.
pub(super) fn group(quant: &QuantSpec) -> core::result::Result<usize, Unsupported> {
    let [rows, columns] = quant.scheme().block;
    let columns = columns.min(quant.k());
    match rows == 1 && columns > 0 && quant.k().is_multiple_of(columns) {
        true => Ok(columns),
        false => Err(Unsupported::Shape("rows of whole groups")),
    }
}

impl Native for DequantizeSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        let WeightSpec::Quant(quant) = self.weight() else { return Err(Unsupported::NotImplemented) };
        let scheme = quant.scheme();
        // Pairs of 4 bits have no transposed view.
        if scheme.code != DType::I8 {
            return Err(Unsupported::DType(scheme.code));
        }
        if !matches!(scheme.scale, ScaleKind::F32 | ScaleKind::F16 | ScaleKind::BF16)
            || scheme.offset == Offset::Min
        {
            return Err(Unsupported::NotImplemented);
        }
        if !matches!(self.out().dtype(), DType::F16 | DType::BF16) {
            return Err(Unsupported::DType(self.out().dtype()));
        }
        if !quant.codes().is_contiguous() {
            return Err(Unsupported::Shape("codes one behind the other"));
        }
        group(quant)?;
        soc.compute_all([self.out(), quant.scale()])?;
        soc.has("aclnnAscendAntiQuantGetWorkspaceSize")
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let out = op.require("out")?;
        let WeightSpec::Quant(quant) = op.spec().weight() else { return Ok(()) };
        let group = group(quant).map_err(|_| OpError::internal("dequantize", "rows of no whole groups"))?;
        let dims = [out.numel() / group, group];
        // f32 holds every scale and zero point.
        let whole = |x: Tensor, sign: f64| -> Result<Tensor> {
            let wide = run.scratch(DType::F32, x.dims())?;
            run.store(&x, &wide)?;
            if sign != 1.0 {
                run.muls(&wide, sign, &wide)?;
            }
            wide.reshape(&[dims[0]])
        };
        let scale = whole(op.require("weight.scale")?, 1.0)?;
        let offset = op.tensor("weight.offset").map(|zero| whole(zero, -1.0)).transpose()?;
        let dense = out.reshape(&dims).ok().filter(|_| out.spec().is_contiguous());
        let result = dense.clone().map_or_else(|| run.scratch(out.dtype(), &dims), Ok)?;
        let codes = op.require("weight.codes")?.reshape(&dims)?.transpose(0, 1)?;
        let number = code(out.dtype()).map(i64::from);
        let number = number.ok_or_else(|| OpError::internal("dequantize", "a type without a number"))?;
        let [from, by, to] =
            [run.tensor(&codes)?, run.tensor(&scale)?, run.tensor(&result.transpose(0, 1)?)?];
        let offset = offset.as_ref().map(|offset| run.tensor(offset)).transpose()?;
        let squared = false;
        aclnn!(
            run,
            aclnnAscendAntiQuantGetWorkspaceSize,
            aclnnAscendAntiQuant,
            from,
            by,
            offset,
            number,
            squared,
            to
        )?;
        if dense.is_some() { Ok(()) } else { run.copy(&result.reshape(out.dims())?, &out) }
    }
}
