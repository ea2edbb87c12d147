//! Entries written or added at indices.
//!
//! Where rows of the first dimension are written, it is the vendor's write into a cache of rows, which passes over
//! padding as the contract does. The others go through a copy with one more slice in front: padding lands there.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::product::Product;
use portolan_core::{Call, Tensor};
use portolan_ops::kernel::{ScatterMode, ScatterSpec};
use portolan_ops::{DType, Result};

impl Native for ScatterSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        match self.mode() {
            ScatterMode::Set => soc.moves([self.x(), self.src(), self.out()]),
            ScatterMode::Add => soc.compute_all([self.x(), self.src(), self.out()]),
        }
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (spec, x, out) = (op.spec(), op.require("x")?, op.require("out")?);
        let index = op.require("index")?;
        let index = contiguous(run, &index)?.reshape(&[index.numel()])?;
        let dim = spec.dim();
        let mut slices = out.dims().to_vec();
        slices[dim] = index.numel();
        let src = contiguous(run, &op.require("src")?)?.reshape(&slices)?;
        let in_place = x.buffer().same(out.buffer()) && x.spec() == out.spec();
        if index.numel() == 0 {
            return if in_place { Ok(()) } else { run.copy(&x, &out) };
        }
        if spec.mode() == ScatterMode::Set && dim == 0 && has_row_writes(&run.soc()) {
            let (rows, width) = (out.dims()[0], out.dims()[1..].iter().product());
            if let Ok(view) = out.reshape(&[1, rows, 1, width]) {
                if !in_place {
                    run.copy(&x, &out)?;
                }
                return write_rows(run, &src.reshape(&[index.numel(), 1, width])?, &index, &view);
            }
        }
        beside(run, spec, &x, &index, &src, &out)
    }
}

/// Whether the device writes rows at slots. On 310P caches have another layout.
pub(super) fn has_row_writes(soc: &Soc<'_>) -> bool {
    soc.product != Product::P310 && soc.has("aclnnScatterPaCacheGetWorkspaceSize").is_ok()
}

/// Rows `[n, heads, width]` into slots of a cache `[blocks, places, heads, width]`; none for a slot below 0.
pub(super) fn write_rows(run: &Run<'_, '_>, rows: &Tensor, slots: &Tensor, cache: &Tensor) -> Result<()> {
    // −1 is the only number that the vendor passes over.
    let places = run.scratch(DType::I32, slots.dims())?;
    run.at_least(slots, -1.0, &places)?;
    let [from, to, at] = [run.bits(rows)?, run.bits(cache)?, run.tensor(&places)?];
    let none = || crate::descriptor::NONE;
    aclnn!(
        run,
        aclnnScatterPaCacheGetWorkspaceSize,
        aclnnScatterPaCache,
        from,
        to,
        at,
        none(),
        none(),
        none(),
        c"Norm"
    )
}

/// The tensor, or a copy whose elements lie one behind the other.
pub(crate) fn contiguous(run: &Run<'_, '_>, x: &Tensor) -> Result<Tensor> {
    if x.spec().is_contiguous() {
        return Ok(x.clone());
    }
    let copy = run.scratch(x.dtype(), x.dims())?;
    run.copy(x, &copy)?;
    Ok(copy)
}

/// Slices into a copy that has one more in front, for padding.
fn beside(
    run: &Run<'_, '_>,
    spec: &ScatterSpec,
    x: &Tensor,
    index: &Tensor,
    src: &Tensor,
    out: &Tensor,
) -> Result<()> {
    let dim = spec.dim();
    let adds = spec.mode() == ScatterMode::Add;
    let dtype = if adds && x.dtype().is_float() { DType::F32 } else { x.dtype() };
    let mut dims = x.dims().to_vec();
    dims[dim] += 1;
    let table = run.scratch(dtype, &dims)?;
    let body = table.narrow(dim, 1, dims[dim] - 1)?;
    // Sums with what nobody wrote there before would be no numbers, perhaps, and an exception.
    run.zero(&table.narrow(dim, 0, 1)?)?;
    run.store(x, &body)?;
    let places = run.scratch(DType::I32, index.dims())?;
    run.at_least(index, -1.0, &places)?;
    run.adds(&places, 1.0, &places)?;
    let dim_number = dim as i64;
    let at = run.tensor(&places)?;
    if adds {
        let src = run.typed(src, dtype)?;
        let (sums, terms, one) = (run.tensor(&table)?, run.tensor(&src)?, run.scalar(dtype, 1.0)?);
        aclnn!(run, aclnnIndexAddGetWorkspaceSize, aclnnIndexAdd, sums, dim_number, at, terms, one, sums)?;
    } else {
        let (into, from) = (run.bits(&table)?, run.bits(src)?);
        aclnn!(
            run,
            aclnnInplaceIndexCopyGetWorkspaceSize,
            aclnnInplaceIndexCopy,
            into,
            dim_number,
            at,
            from
        )?;
    }
    run.store(&body, out)
}
