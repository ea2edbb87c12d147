//! Weights of linear layers in the vendor's blocks (FRACTAL_NZ), which the cube unit reads as they lie: for products whose
//! time is that of reading the weight.
//!
//! The blocks are of the matrix `[k, n]` that a product multiplies by, not of its transpose, so that nothing in blocks is
//! ever turned. The vendor's product over them has 16 bits on all sides and nothing behind it. A weight is packed for calls
//! that this is all of, and where nobody says which calls will come; others over it first make rows of it again.

use super::gemm::{Epilogue, KEEP_DTYPE, multiply};
use super::scatter::contiguous;
use super::{HINT, Native};
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::Blocks;
use crate::driver::Driver;
use crate::product::Product;
use portolan_core::{Call, Consumer, OpKind, Packing, Tensor};
use portolan_ops::kernel::Activation;
use portolan_ops::quant::{LinearSpec, PackedContent, PrepackSpec, UnpackSpec, WeightSpec};
use portolan_ops::{DType, Determinism, Layout, OpError, Result, Shape, TensorSpec, Unsupported};

/// The form's name.
const TAG: &str = "cann fractal_nz";

/// The form of a weight for a consumer, where blocks serve it.
pub(crate) fn packing(driver: &Driver, weight: &WeightSpec, consumer: Consumer<'_>) -> Option<Packing> {
    let soc = driver.soc(Determinism::RunToRun);
    let (blocks, _) = plan_blocks(&soc, weight).ok()?;
    let serves = consumer.call.is_none_or(|call| is_product(&soc, call));
    let size = blocks.dtype.bits() as usize / 8;
    let bytes = blocks.storage().iter().try_fold(size, |all, &n| all.checked_mul(n))?;
    (consumer.op == OpKind::Linear && serves).then_some(Packing { tag: TAG, bytes })
}

/// What makes blocks.
#[derive(Clone, Copy)]
enum Maker {
    /// A cast from a tensor in rows to one in blocks.
    Cast,
    /// On older drivers, a rearrangement in place.
    InPlace,
}

/// The blocks of a weight `[n, k]`, and what makes them, where the device has both that and the product.
fn plan_blocks(soc: &Soc<'_>, weight: &WeightSpec) -> core::result::Result<(Blocks, Maker), Unsupported> {
    let dtype = match weight.content() {
        PackedContent::Dense(dtype @ (DType::F16 | DType::BF16)) => dtype,
        PackedContent::Dense(dtype) => return Err(Unsupported::DType(dtype)),
        PackedContent::Quant(_) => return Err(Unsupported::NotImplemented),
    };
    if soc.product == Product::P310 {
        return Err(Unsupported::NotImplemented);
    }
    let blocks = Blocks { dtype, rows: weight.k(), columns: weight.n() };
    if blocks.rows < 2 || blocks.columns < 2 {
        return Err(Unsupported::Shape("more than one row and column of a weight in blocks"));
    }
    soc.has("aclnnMatmulWeightNzGetWorkspaceSize")?;
    let maker = match soc.has("aclnnNpuFormatCastGetWorkspaceSize") {
        Ok(()) => Maker::Cast,
        Err(why) if soc.product == Product::A5 => return Err(why),
        Err(why) => {
            soc.has("aclnnTransMatmulWeightGetWorkspaceSize").map_err(|_| why)?;
            Maker::InPlace
        }
    };
    Ok((blocks, maker))
}

/// Whether a call is the vendor's product over blocks and nothing else.
fn is_product(soc: &Soc<'_>, call: &LinearSpec) -> bool {
    let (x, out) = (call.x().dtype(), call.out().dtype());
    // That sums come as they are is said of the 950 only.
    let sums = soc.product == Product::A5 && out == DType::F32;
    let of_one_type = call.weight().content() == PackedContent::Dense(x) && (out == x || sums);
    of_one_type && call.bias().is_none() && call.activation() == Activation::Identity
}

/// Whether the device has a layer over a weight in blocks.
pub(super) fn plan_layer(soc: &Soc<'_>, layer: &LinearSpec) -> Plan {
    soc.promises_rows()?;
    soc.compute_all([layer.x(), layer.out()])?;
    plan_blocks(soc, layer.weight())?;
    match is_product(soc, layer) {
        true => Ok(()),
        false => soc.has("aclnnMatmulGetWorkspaceSize"),
    }
}

/// `out = epilogue(x · wᵀ)` over a weight in blocks.
pub(super) fn product(
    run: &Run<'_, '_>,
    layer: &LinearSpec,
    x: &Tensor,
    packed: &Tensor,
    epilogue: &Epilogue,
    out: &Tensor,
) -> Result<()> {
    let (blocks, _) = blocks(run, layer.weight())?;
    if !is_product(&run.soc(), layer) {
        return multiply(run, x, &rows(run, packed, blocks)?.transpose(0, 1)?, epilogue, out);
    }
    let dense = out.spec().is_contiguous();
    let result = if dense { out.clone() } else { run.scratch(out.dtype(), out.dims())? };
    let (a, b, to) = (run.tensor(x)?, run.blocks(packed, blocks)?, run.tensor(&result)?);
    aclnn!(run, aclnnMatmulWeightNzGetWorkspaceSize, aclnnMatmulWeightNz, a, b, to, KEEP_DTYPE)?;
    if dense { Ok(()) } else { run.copy(&result, out) }
}

/// The plan's blocks, asked for again.
fn blocks(run: &Run<'_, '_>, weight: &WeightSpec) -> Result<(Blocks, Maker)> {
    let launch = run.launch();
    plan_blocks(&run.soc(), weight).map_err(|why| launch.unsupported(launch.op_name(), why, HINT))
}

impl Native for PrepackSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        plan_blocks(soc, self.weight()).map(drop)
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (blocks, maker) = blocks(run, op.spec().weight())?;
        let (weight, packed) = (op.require("weight")?.transpose(0, 1)?, op.require("packed")?);
        match maker {
            // How large blocks are could be asked of the driver, in memory that only C++ gives back; it is documented.
            Maker::Cast => {
                let weight = contiguous(run, &weight)?;
                let (from, to) = (run.tensor(&weight)?, run.blocks(&packed, blocks)?);
                aclnn!(run, aclnnNpuFormatCastGetWorkspaceSize, aclnnNpuFormatCast, from, to)
            }
            Maker::InPlace => {
                let spec = TensorSpec::of(blocks.dtype, weight.dims())?;
                run.copy(&weight, &typed(&packed, spec.shape(), blocks.dtype)?)?;
                let both = run.to_be_blocks(&packed, blocks)?;
                aclnn!(run, aclnnTransMatmulWeightGetWorkspaceSize, aclnnTransMatmulWeight, both)
            }
        }
    }
}

impl Native for UnpackSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        plan_blocks(soc, self.weight()).map(drop)
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (blocks, _) = blocks(run, op.spec().weight())?;
        let (packed, weight) = (op.require("packed")?, op.require("weight")?);
        let stored = in_order(&packed, blocks)?;
        match weight.reshape(stored.dims()) {
            Ok(whole) => run.copy(&stored, &whole),
            Err(_) => run.copy(&rows(run, &packed, blocks)?, &weight),
        }
    }
}

/// A copy of a weight in blocks as rows `[n, k]`.
fn rows(run: &Run<'_, '_>, packed: &Tensor, blocks: Blocks) -> Result<Tensor> {
    let stored = in_order(packed, blocks)?;
    let copy = run.scratch(blocks.dtype, stored.dims())?;
    run.copy(&stored, &copy)?;
    let [columns, width, rows, height] = [0, 1, 2, 3].map(|axis| stored.dims()[axis]);
    copy.reshape(&[columns * width, rows * height])?.narrow(0, 0, blocks.columns)?.narrow(1, 0, blocks.rows)
}

/// The elements of blocks in the order of the weight `[n, k]`, n and k in two dimensions each, filled up to whole blocks.
fn in_order(packed: &Tensor, blocks: Blocks) -> Result<Tensor> {
    typed(packed, &Shape::new(&blocks.storage())?, blocks.dtype)?.permute(&[0, 3, 1, 2])
}

/// The first bytes of a packed weight as elements.
fn typed(packed: &Tensor, shape: &Shape, dtype: DType) -> Result<Tensor> {
    let (start, size) = (packed.spec().byte_range().0, dtype.bits() as usize / 8);
    if !start.is_multiple_of(size) {
        return Err(OpError::layout(
            "prepack",
            "packed",
            format!("begins at byte {start}, within an element"),
        ));
    }
    let layout = Layout::contiguous(shape).with_offset(start / size);
    Tensor::new(packed.buffer().clone(), TensorSpec::with_layout(dtype, *shape, layout)?)
}
