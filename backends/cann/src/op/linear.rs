//! Linear layers: one product with its epilogue behind it. Over dense weights it is of floats; over codes with activations
//! rounded alike it is the vendor's product of codes: of 8-bit integers with a scale for each row on either side, and, where
//! there are 8-bit floats, of those in the blocks that DeepSeek-V3 stores its weights in.
//!
//! With 16-bit activations as they are it is the vendor's product that expands codes to the activations' type on the way,
//! where scales are of that type too: one that is rounded to it would be another scale. Else codes of 8 bits with one scale
//! for a row are multiplied as the whole numbers they are, which 16 bits hold, and scaled after.

use super::Native;
use super::dynamic_quantize::{tokens, wide_tokens};
use super::gemm::{Epilogue, finish, multiply, plan_product};
use super::prepack;
use super::scatter::contiguous;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::{AclTensor, NONE};
use crate::product::Product;
use crate::version::{DynamicQuant, QuantMatmul, WeightQuantBatchMatmul, any};
use portolan_core::{Call, Tensor};
use portolan_ops::kernel::Activation;
use portolan_ops::quant::{LinearSpec, Offset, QuantSpec, ScaleKind, WeightSpec};
use portolan_ops::{ActQuant, DType, Result, TensorSpec, Unsupported};

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
                    Codes::Expanded { .. } => Ok(()),
                    Codes::Whole => soc.has("aclnnMatmulGetWorkspaceSize"),
                    Codes::Rows if is_result(self) => soc.has_version(any::<QuantMatmul>),
                    Codes::Rows | Codes::Blocks => soc.has_version(sums_codes),
                }
            }
            WeightSpec::Packed(_) => prepack::plan_layer(soc, self),
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
                let zero = op.tensor("weight.offset");
                match codes(&run.soc(), spec, weight) {
                    Ok(Codes::Expanded { group }) => {
                        let parts = Expansion::new(run, x.dtype(), [&of, &scale], zero.as_ref(), group)?;
                        expanded_product(run, &x, &parts, epilogue.bias.as_ref(), &to)?;
                    }
                    Ok(Codes::Whole) => {
                        whole_product(run, &x, [&of, &scale], zero.as_ref(), &epilogue, &to)?;
                    }
                    Ok(Codes::Blocks) => blocks_product(run, &x, [&of, &scale], &epilogue, &to)?,
                    _ if is_result(spec) => rows_result(run, &x, [&of, &scale], &to)?,
                    _ => rows_product(run, &x, [&of, &scale], &epilogue, &to)?,
                }
            }
            WeightSpec::Packed(_) => {
                prepack::product(run, spec, &x, &op.require("weight.packed")?, &epilogue, &to)?;
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
    /// Codes that are expanded to the type of the activations, which are as they are: in groups of so many columns that
    /// share a scale, 0 for whole rows.
    Expanded { group: usize },
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
    if precision == ActQuant::None && spec.x().dtype().bits() == 16 {
        return match (plan_layer(soc, spec, weight), plan_whole(soc, spec.x(), weight)) {
            (Ok(group), _) => Ok(Codes::Expanded { group }),
            (Err(_), Ok(())) => Ok(Codes::Whole),
            (Err(why), Err(_)) => Err(why),
        };
    }
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
    plan_rows(soc, weight, precision).map(|()| Codes::Rows)
}

/// Whether codes are whole numbers of 8 bits, of rows that have one scale.
fn plan_whole(soc: &Soc<'_>, x: &TensorSpec, weight: &QuantSpec) -> Plan {
    plan_product(soc, [x])?;
    let (scheme, k) = (weight.scheme(), weight.k());
    let by_row = scheme.block[0] == 1 && scheme.block[1] >= k && k > 0;
    match scheme.code == DType::I8 && by_row && is_float(scheme.scale) && scheme.offset != Offset::Min {
        true => Ok(()),
        false => Err(Unsupported::Shape("8-bit codes, a scale for each row")),
    }
}

/// The columns that share a scale in a layer which the vendor's expanding product is all of.
fn plan_layer(
    soc: &Soc<'_>,
    spec: &LinearSpec,
    weight: &QuantSpec,
) -> core::result::Result<usize, Unsupported> {
    let x = spec.x().dtype();
    let group = plan_expansion(soc, x, weight)?;
    // The product comes rounded to 16 bits: nothing can follow that is not to see this, and no f16 is an f32 bias.
    let bias = spec.bias().is_none_or(|bias| x == DType::BF16 || bias.dtype() == x);
    match spec.out().dtype() == x && spec.activation() == Activation::Identity && bias {
        true => plan_expanding(soc).map(|()| group),
        false => Err(Unsupported::Precision),
    }
}

/// Whether the driver has the expanding product.
fn plan_expanding(soc: &Soc<'_>) -> Plan {
    soc.has_version(any::<WeightQuantBatchMatmul>)
}

/// Whether the vendor's products expand such codes to activations of type `x`: the columns that share a scale, 0 for whole
/// rows.
pub(super) fn plan_expansion(
    soc: &Soc<'_>,
    x: DType,
    weight: &QuantSpec,
) -> core::result::Result<usize, Unsupported> {
    soc.promises_rows()?;
    soc.computes(x)?;
    if soc.product == Product::P310 || x.bits() != 16 {
        return Err(Unsupported::NotImplemented);
    }
    let (scheme, k) = (weight.scheme(), weight.k());
    // The vendor has (code + offset) · scale. The offset that a minimum is, minimum / scale, is seldom a number of 16
    // bits, and would have to be rounded.
    if scheme.offset == Offset::Min {
        return Err(Unsupported::Precision);
    }
    match scheme.code {
        DType::I8 | DType::I4 => {}
        DType::F8E4M3 | DType::F4E2M1 if soc.product == Product::A5 => {}
        code => return Err(Unsupported::DType(code)),
    }
    let powers = scheme.scale == ScaleKind::E8M0 && scheme.is_float();
    if !powers && scheme.scale.dtype() != x || scheme.scale.outer().is_some() {
        return Err(Unsupported::Precision);
    }
    let group = scheme.block[1].min(k);
    if scheme.block[0] != 1 || k == 0 || !weight.codes().is_contiguous() {
        return Err(Unsupported::Shape("scales of single rows, which lie one behind the other"));
    }
    if scheme.code.is_sub_byte() && !k.is_multiple_of(2) {
        return Err(Unsupported::Shape("rows of whole bytes"));
    }
    let whole_groups = group.is_multiple_of(GROUPS) && k.is_multiple_of(group);
    match group == k {
        true if powers => Err(Unsupported::Shape("more than one group of 32 columns")),
        true => Ok(0),
        false if whole_groups && (group == GROUPS || !powers) => Ok(group),
        false => Err(Unsupported::Shape("whole groups of a multiple of 32 columns")),
    }
}

/// What numbers of columns that share a scale are multiples of; of those that share a power of two, the number.
const GROUPS: usize = 32;

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

/// A weight `[n, k]`, or a stack of such, as the vendor's expanding products take it: codes, scales and offsets all turned.
pub(super) struct Expansion {
    codes: Tensor,
    scale: Tensor,
    /// What is added to codes.
    offset: Option<Tensor>,
    group: usize,
}

impl Expansion {
    /// The parts of a weight whose scales are shared by `group` columns, 0 for whole rows.
    pub(super) fn new(
        run: &Run<'_, '_>,
        x: DType,
        [codes, scale]: [&Tensor; 2],
        zero: Option<&Tensor>,
        group: usize,
    ) -> Result<Self> {
        // One scale for a row has no dimension of groups.
        let shared = |part: Tensor| match group {
            0 => part.reshape(&part.dims()[..part.dims().len() - 1]),
            _ => Ok(part),
        };
        let offset = zero.map(|zero| {
            let offset = run.scratch(x, zero.dims())?;
            run.cast(zero, &offset)?;
            run.muls(&offset, -1.0, &offset)?;
            shared(offset)
        });
        let scale = shared(contiguous(run, scale)?)?;
        Ok(Self { codes: contiguous(run, codes)?, scale, offset: offset.transpose()?, group })
    }

    /// Codes as they are stored.
    pub(super) fn codes(&self) -> &Tensor {
        &self.codes
    }

    /// `[k, n]`, `[groups, n]` and the same of offsets, or `[n]` where rows have one scale.
    pub(super) fn descriptors<'a>(
        &self,
        run: &'a Run<'_, '_>,
    ) -> Result<(AclTensor<'a>, AclTensor<'a>, Option<AclTensor<'a>>)> {
        let part = |part: &Tensor| if self.group == 0 { run.tensor(part) } else { run.turned(part) };
        Ok((run.turned(&self.codes)?, part(&self.scale)?, self.offset.as_ref().map(part).transpose()?))
    }
}

/// `out = x · wᵀ + bias`, the weight expanded to the type of x and out.
fn expanded_product(
    run: &Run<'_, '_>,
    x: &Tensor,
    weight: &Expansion,
    bias: Option<&Tensor>,
    out: &Tensor,
) -> Result<()> {
    let x = contiguous(run, x)?;
    let dense = out.spec().is_contiguous();
    let result = if dense { out.clone() } else { run.scratch(out.dtype(), out.dims())? };
    // f32 holds every bf16.
    let bias = bias.map(|bias| match x.dtype() {
        DType::BF16 => run.typed(&contiguous(run, bias)?, DType::F32),
        _ => contiguous(run, bias),
    });
    let bias = bias.transpose()?;
    let (codes, scale, offset) = weight.descriptors(run)?;
    let (from, to, added) = (run.tensor(&x)?, run.tensor(&result)?, bias.as_ref().map(|b| run.tensor(b)));
    let (added, group, precise) = (added.transpose()?, weight.group as i32, 0i32);
    macro_rules! product {
        ($plan:ident, $enqueue:ident, [$($precise:expr)?]) => {
            aclnn!(
                run,
                $plan,
                $enqueue,
                from,
                codes,
                scale,
                offset,
                NONE, // scale and offset of y
                NONE,
                added,
                group,
                $($precise,)?
                to
            )
        };
    }
    match run.newest(any)? {
        WeightQuantBatchMatmul::V3 => {
            product!(aclnnWeightQuantBatchMatmulV3GetWorkspaceSize, aclnnWeightQuantBatchMatmulV3, [precise])
        }
        WeightQuantBatchMatmul::V2 => {
            product!(aclnnWeightQuantBatchMatmulV2GetWorkspaceSize, aclnnWeightQuantBatchMatmulV2, [])
        }
    }?;
    if dense { Ok(()) } else { run.copy(&result, out) }
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
