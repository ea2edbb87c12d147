//! Linear layers: one product with its epilogue behind it. Over dense weights it is of floats; over codes with activations
//! rounded alike it is the vendor's product of codes: of 8-bit integers with a scale for each row on either side, and, where
//! there are 8-bit floats, of those in the blocks that DeepSeek-V3 stores its weights in.
//!
//! The vendor also multiplies 16-bit activations with codes that it expands on the way; it rounds the expanded weights to
//! 16 bits, which is less than the contract asks for. Codes alone are whole numbers that 16 bits hold: with one scale for a
//! row it comes after the product, and nothing is rounded twice. Groups of a row are composed.

use super::Native;
use super::dynamic_quantize::{tokens, wide_tokens};
use super::gemm::{Epilogue, finish, multiply, plan_product};
use super::scatter::contiguous;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::NONE;
use crate::product::Product;
use crate::version::{DynamicQuant, QuantMatmul, any};
use portolan_core::{Call, Tensor};
use portolan_ops::kernel::Activation;
use portolan_ops::quant::{LinearSpec, Offset, QuantSpec, ScaleKind, WeightSpec};
use portolan_ops::{ActQuant, DType, Result, Unsupported};

impl Native for LinearSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        match self.weight() {
            WeightSpec::Dense(weight) => {
                plan_product(soc, [self.x(), weight])?;
                soc.computes(self.out().dtype())?;
                soc.has("aclnnMatmulGetWorkspaceSize")
            }
            WeightSpec::Quant(weight) => {
                soc.compute_all([self.x(), self.out()])?;
                match codes(soc, self, weight)? {
                    Codes::Whole => soc.has("aclnnMatmulGetWorkspaceSize"),
                    Codes::Rows if is_result(self) => soc.has_version(any::<QuantMatmul>),
                    Codes::Rows | Codes::Blocks => soc.has_version(sums_codes),
                }
            }
            _ => Err(Unsupported::NotImplemented),
        }
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (spec, x, out) = (op.spec(), op.require("x")?, op.require("out")?);
        let epilogue =
            Epilogue { alpha: 1.0, added: None, bias: op.tensor("bias"), activation: spec.activation() };
        // Rows of any number of dimensions are rows of one matrix.
        let (rows, n, k) = (spec.rows(), spec.n(), spec.k());
        let x = match x.reshape(&[rows, k]) {
            Ok(rows) => rows,
            Err(_) => contiguous(run, &x)?.reshape(&[rows, k])?,
        };
        let direct = out.reshape(&[rows, n]).ok();
        let to = direct.clone().map_or_else(|| run.scratch(out.dtype(), &[rows, n]), Ok)?;
        match spec.weight() {
            WeightSpec::Quant(weight) => {
                let [of, scale] = [op.require("weight.codes")?, op.require("weight.scale")?];
                match codes(&run.soc(), spec, weight) {
                    Ok(Codes::Whole) => {
                        let zero = op.tensor("weight.offset");
                        whole_product(run, &x, [&of, &scale], zero.as_ref(), &epilogue, &to)?;
                    }
                    Ok(Codes::Blocks) => blocks_product(run, &x, [&of, &scale], &epilogue, &to)?,
                    _ if is_result(spec) => rows_result(run, &x, [&of, &scale], &to)?,
                    _ => rows_product(run, &x, [&of, &scale], &epilogue, &to)?,
                }
            }
            _ => multiply(run, &x, &op.require("weight")?.transpose(0, 1)?, &epilogue, &to)?,
        }
        if direct.is_some() { Ok(()) } else { run.copy(&to.reshape(out.dims())?, &out) }
    }
}

/// Whether what the vendor's product of codes gives is the result: 16 bits, nothing behind it.
fn is_result(spec: &LinearSpec) -> bool {
    spec.out().dtype() != DType::F32 && spec.bias().is_none() && spec.activation() == Activation::Identity
}

/// Whether a version gives sums of codes as they are, and takes blocks.
fn sums_codes(version: QuantMatmul) -> bool {
    version == QuantMatmul::V5
}

/// How codes of both factors share scales.
#[derive(Clone, Copy)]
enum Codes {
    /// 8-bit integers, a scale for each row.
    Rows,
    /// 8-bit integers with a scale for each row, activations of 16 bits as they are.
    Whole,
    /// 8-bit floats, a scale for 128 columns of the activations and for 128 × 128 of the weight.
    Blocks,
}

/// Extent of a block.
const BLOCK: usize = 128;

/// The vendor's product of such codes with activations of such a precision. Sums of integer codes are exact, so a row's bits
/// depend on no other row.
fn codes(soc: &Soc<'_>, spec: &LinearSpec, weight: &QuantSpec) -> core::result::Result<Codes, Unsupported> {
    let (scheme, k, precision) = (weight.scheme(), weight.k(), spec.act_quant());
    if scheme.code == DType::F8E4M3 && soc.product == Product::A5 {
        soc.promises_rows()?;
        let blocks = scheme.block == [BLOCK, BLOCK] && scheme.scale == ScaleKind::F32;
        return match blocks && precision == ActQuant::F8_GROUP {
            true if k > 0 => Ok(Codes::Blocks),
            true => Err(Unsupported::Shape("columns")),
            false => Err(Unsupported::NotImplemented),
        };
    }
    if scheme.code != DType::I8 {
        return Err(Unsupported::DType(scheme.code));
    }
    if precision == ActQuant::None && matches!(spec.x().dtype(), DType::F16 | DType::BF16) {
        plan_product(soc, [spec.x()])?;
        let by_row = scheme.block[0] == 1 && scheme.block[1] >= k && k > 0;
        return match by_row && is_float(scheme.scale) && scheme.offset != Offset::Min {
            true => Ok(Codes::Whole),
            false => Err(Unsupported::Shape("a scale for each row")),
        };
    }
    plan_rows(soc, weight, precision).map(|()| Codes::Rows)
}

fn is_float(scale: ScaleKind) -> bool {
    matches!(scale, ScaleKind::F32 | ScaleKind::F16 | ScaleKind::BF16)
}

/// Whether 8-bit integers on both sides share scales by whole rows, on a product that multiplies such.
pub(super) fn plan_rows(soc: &Soc<'_>, weight: &QuantSpec, precision: ActQuant) -> Plan {
    let (scheme, k) = (weight.scheme(), weight.k());
    let whole_rows = matches!(precision, ActQuant::Int8 { group } if group >= k);
    if soc.product == Product::P310 || !is_float(scheme.scale) || scheme.offset != Offset::None || !whole_rows
    {
        return Err(Unsupported::NotImplemented);
    }
    if scheme.code != DType::I8 || scheme.block[0] != 1 || scheme.block[1] < k || k == 0 {
        return Err(Unsupported::Shape("8-bit codes, a scale for each row"));
    }
    soc.has_version(any::<DynamicQuant>)
}

/// Codes of activations, a scale for each row.
pub(super) fn row_codes(run: &Run<'_, '_>, x: &Tensor) -> Result<(Tensor, Tensor)> {
    let (codes, scale) = (run.scratch(DType::I8, x.dims())?, run.scratch(DType::F32, &x.dims()[..1])?);
    match x.dtype() {
        DType::F32 => wide_tokens(run, x, &codes, &scale)?,
        _ => tokens(run, x, &codes, &scale)?,
    }
    Ok((codes, scale))
}

/// `out = epilogue((x · (codes − zero)ᵀ) · scale)`, x and the codes in 16 bits, which hold both.
fn whole_product(
    run: &Run<'_, '_>,
    x: &Tensor,
    [codes, scale]: [&Tensor; 2],
    zero: Option<&Tensor>,
    epilogue: &Epilogue,
    out: &Tensor,
) -> Result<()> {
    let weight = run.scratch(x.dtype(), codes.dims())?;
    run.cast(codes, &weight)?;
    if let Some(zero) = zero {
        run.add(&weight, &run.typed(zero, x.dtype())?, -1.0, &weight)?;
    }
    let by_column = run.typed(&scale.reshape(&[out.dims()[1]])?, DType::F32)?;
    let sums = run.scratch(DType::F32, out.dims())?;
    let nothing = Epilogue { alpha: 1.0, added: None, bias: None, activation: Activation::Identity };
    multiply(run, x, &weight.transpose(0, 1)?, &nothing, &sums)?;
    run.mul(&sums, &by_column, &sums)?;
    finish(run, &sums, epilogue, out)
}

/// `out = epilogue(x · wᵀ)`, both in blocks of 8-bit floats.
fn blocks_product(
    run: &Run<'_, '_>,
    x: &Tensor,
    [weight, scale]: [&Tensor; 2],
    epilogue: &Epilogue,
    out: &Tensor,
) -> Result<()> {
    let (rows, k) = (x.dims()[0], x.dims()[1]);
    let whole = k.next_multiple_of(BLOCK);
    let x = if whole == k {
        contiguous(run, &run.typed(x, DType::F32)?)?
    } else {
        // The last group of a row is filled up with zeros, which change no scale.
        let filled = run.scratch(DType::F32, &[rows, whole])?;
        run.zero(&filled)?;
        run.store(x, &filled.narrow(1, 0, k)?)?;
        filled
    };
    let groups = [rows * whole / BLOCK, BLOCK];
    let (codes, by_group) = (run.scratch(DType::F8E4M3, &groups)?, run.scratch(DType::F32, &groups[..1])?);
    wide_tokens(run, &x.reshape(&groups)?, &codes, &by_group)?;
    let codes = contiguous(run, &codes.reshape(&[rows, whole])?.narrow(1, 0, k)?)?;
    let by_group = by_group.reshape(&[rows, whole / BLOCK])?;
    let direct = epilogue.is_nothing() && out.spec().is_contiguous();
    let result = if direct { out.clone() } else { run.scratch(DType::F32, out.dims())? };
    let (a, b) = (run.tensor(&codes)?, run.tensor(&contiguous(run, weight)?)?);
    let (by_group, by_block) = (run.tensor(&by_group)?, run.tensor(&contiguous(run, scale)?)?);
    let (as_is, turned, to) = (false, true, run.tensor(&result)?);
    // Along k, n and m.
    let groups = BLOCK as i64 | (BLOCK as i64) << 16 | 1 << 32;
    aclnn!(
        run,
        aclnnQuantMatmulV5GetWorkspaceSize,
        aclnnQuantMatmulV5,
        a,
        b,
        by_group,
        by_block,
        NONE, // scale of y
        NONE, // offsets
        NONE,
        NONE,
        NONE, // bias
        as_is,
        turned,
        groups,
        to
    )?;
    if direct { Ok(()) } else { finish(run, &result, epilogue, out) }
}

/// `out[m, n] = Σ_k x[m, k] · w[n, k]`, both 8-bit integers with a scale for each row, rounded once to 16 bits.
fn rows_result(run: &Run<'_, '_>, x: &Tensor, [weight, scale]: [&Tensor; 2], out: &Tensor) -> Result<()> {
    let dense = out.spec().is_contiguous();
    let result = if dense { out.clone() } else { run.scratch(out.dtype(), out.dims())? };
    let (codes, by_row) = row_codes(run, &contiguous(run, x)?)?;
    let by_column = run.typed(&scale.reshape(&[out.dims()[1]])?, DType::F32)?;
    let [a, b] = [run.tensor(&codes)?, run.tensor(&contiguous(run, weight)?)?];
    let [columns, tokens, to] = [run.tensor(&by_column)?, run.tensor(&by_row)?, run.tensor(&result)?];
    let (as_is, turned, no_groups) = (false, true, 0i64);
    match run.newest(any::<QuantMatmul>)? {
        QuantMatmul::V5 => aclnn!(
            run,
            aclnnQuantMatmulV5GetWorkspaceSize,
            aclnnQuantMatmulV5,
            a,
            b,
            tokens,
            columns,
            NONE, // scale of y
            NONE, // offsets
            NONE,
            NONE,
            NONE, // bias
            as_is,
            turned,
            no_groups,
            to
        ),
        QuantMatmul::V4 => aclnn!(
            run,
            aclnnQuantMatmulV4GetWorkspaceSize,
            aclnnQuantMatmulV4,
            a,
            b,
            columns,
            NONE, // offset
            tokens,
            NONE, // bias
            as_is,
            turned,
            to
        ),
    }?;
    if dense { Ok(()) } else { run.copy(&result, out) }
}

/// `out[m, n] = epilogue(Σ_k x[m, k] · w[n, k])`, both 8-bit integers with a scale for each row.
fn rows_product(
    run: &Run<'_, '_>,
    x: &Tensor,
    [weight, scale]: [&Tensor; 2],
    epilogue: &Epilogue,
    out: &Tensor,
) -> Result<()> {
    let (rows, n) = (x.dims()[0], out.dims()[1]);
    let x = contiguous(run, x)?;
    let (codes, by_row) = row_codes(run, &x)?;
    let by_column = run.typed(&scale.reshape(&[n])?, DType::F32)?;
    let (as_is, turned) = (false, true);
    let (a, b) = (run.tensor(&codes)?, run.tensor(&contiguous(run, weight)?)?);
    let (sums, numbers) = (run.scratch(DType::I32, out.dims())?, run.scratch(DType::F32, out.dims())?);
    let (to, no_groups) = (run.tensor(&sums)?, 0i64);
    aclnn!(
        run,
        aclnnQuantMatmulV5GetWorkspaceSize,
        aclnnQuantMatmulV5,
        a,
        b,
        NONE, // scales of x1, x2 and y
        NONE,
        NONE,
        NONE, // offsets
        NONE,
        NONE,
        NONE, // bias
        as_is,
        turned,
        no_groups,
        to
    )?;
    run.mul(&sums, &by_column, &numbers)?;
    run.mul(&numbers, &by_row.reshape(&[rows, 1])?, &numbers)?;
    finish(run, &numbers, epilogue, out)
}
