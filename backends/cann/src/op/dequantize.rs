//! Codes as numbers. Integers of 8 bits become numbers of 16: the vendor's kernel takes a scale for every column, and rows of
//! one scale are columns of the transposed view. Small floats in groups of 32 that share a power of two have a kernel of
//! their own.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::code;
use crate::product::Product;
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

/// Whether these are small floats in groups of 32 that share a power of two, on a product that has such.
pub(super) fn is_mx(soc: &Soc<'_>, quant: &QuantSpec) -> bool {
    let scheme = quant.scheme();
    soc.product == Product::A5
        && matches!(scheme.code, DType::F8E4M3 | DType::F8E5M2 | DType::F4E2M1)
        && scheme.scale == ScaleKind::E8M0
        && scheme.block == [1, MX_GROUP]
}

/// Whether the device's kernels take such groups: pairs of elements fill bytes.
pub(super) fn plan_mx(quant: &QuantSpec) -> Plan {
    let (n, k) = (quant.n(), quant.k());
    match n > 0 && k > 0 && (quant.scheme().code != DType::F4E2M1 || k.is_multiple_of(2)) {
        true => Ok(()),
        false => Err(Unsupported::Shape("rows of whole bytes")),
    }
}

/// Elements that share a power of two.
pub(super) const MX_GROUP: usize = 32;

/// Memory for the powers of two of `[n, k]` as the vendor has them, in pairs, the last one filled up: as `[n, pairs, 2]`,
/// and those that are there, `[n, groups]`.
pub(super) fn mx_scales(run: &Run<'_, '_>, n: usize, k: usize) -> Result<[Tensor; 2]> {
    let (groups, pairs) = (k.div_ceil(MX_GROUP), k.div_ceil(2 * MX_GROUP));
    let scales = run.scratch(DType::E8M0, &[n, pairs, 2])?;
    let flat = scales.reshape(&[n, 2 * pairs])?.narrow(1, 0, groups)?;
    Ok([scales, flat])
}

impl Native for DequantizeSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        let WeightSpec::Quant(quant) = self.weight() else { return Err(Unsupported::NotImplemented) };
        let scheme = quant.scheme();
        if is_mx(soc, quant) {
            plan_mx(quant)?;
            return soc.has("aclnnAntiMxQuantGetWorkspaceSize");
        }
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
        if is_mx(&run.soc(), quant) {
            return powers(run, &op.require("weight.codes")?, &op.require("weight.scale")?, &out);
        }
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

/// Small floats times the power of two of their group.
fn powers(run: &Run<'_, '_>, codes: &Tensor, scale: &Tensor, out: &Tensor) -> Result<()> {
    let [scales, flat] = mx_scales(run, out.dims()[0], out.dims()[1])?;
    // What fills the last pair up is read by nobody, but written.
    run.zero(&scales)?;
    run.copy(scale, &flat)?;
    let dense = out.spec().is_contiguous();
    let result = if dense { out.clone() } else { run.scratch(out.dtype(), out.dims())? };
    let number = code(out.dtype()).map(i64::from);
    let number = number.ok_or_else(|| OpError::internal("dequantize", "a type without a number"))?;
    let [from, by, to] = [run.tensor(codes)?, run.tensor(&scales)?, run.tensor(&result)?];
    let last = -1i64;
    aclnn!(run, aclnnAntiMxQuantGetWorkspaceSize, aclnnAntiMxQuant, from, by, last, number, to)?;
    if dense { Ok(()) } else { run.copy(&result, out) }
}
