//! Functions about weights and quantisation that are no operators: they plan nothing and touch no device.

use crate::call::{driver, give};
use crate::error::{Fail, Result};
use crate::tensor::{Descriptor, FRACTAL_NZ, lookup};
use crate::view::Dtype;
use core::ffi::c_void;

/// Elements of matrices in whole fractal blocks, and the shape of those blocks.
fn blocks(shape: &[i64], dtype: Dtype) -> Result<Vec<i64>> {
    let [lead @ .., rows, cols] = shape else {
        return Err(Fail::invalid(format!("a weight of shape {shape:?} has fewer than 2 dimensions")));
    };
    if shape.iter().any(|&size| size < 0) || dtype.bits() > 64 {
        return Err(Fail::invalid(format!("no weight has shape {shape:?} of {}", dtype.name())));
    }
    let width = 256 / dtype.bits() as i64;
    Ok([lead, &[(cols + width - 1) / width, (rows + 15) / 16, 16, width]].concat())
}

/// An array that the caller releases.
///
/// # Safety
/// Both places are NULL or may be written.
unsafe fn hand_out<V: Copy>(values: &[V], place: *mut *mut V, count: *mut u64) -> Result {
    if place.is_null() || count.is_null() {
        return Err(Fail::null("the place for the result"));
    }
    // SAFETY: a fresh piece of memory, as large as what is written; then the caller's places, which are not NULL.
    unsafe {
        let copy: *mut V = libc::malloc(size_of_val(values).max(1)).cast();
        if copy.is_null() {
            return Err(Fail::new(crate::error::code::INTERNAL, "the host is out of memory"));
        }
        copy.copy_from_nonoverlapping(values.as_ptr(), values.len());
        place.write(copy);
        count.write(values.len() as u64);
    }
    Ok(())
}

/// The floats a caller points at.
///
/// # Safety
/// `values` is NULL or the beginning of `count` floats.
unsafe fn floats(values: *const f32, count: u64, name: &str) -> Result<Vec<f32>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if values.is_null() {
        return Err(Fail::null(name));
    }
    // SAFETY: the caller vouches for the length; the floats are copied at once.
    Ok(unsafe { core::slice::from_raw_parts(values, count as usize) }.to_vec())
}

driver! {
    fn aclnnCalculateMatmulWeightSizeV2(shape: *const c_void, dtype: i32, elements: *mut u64) {
        if shape.is_null() {
            return Err(Fail::null("tensorShape"));
        }
        let Descriptor::IntArray(shape) = lookup(shape)? else {
            return Err(Fail::invalid("tensorShape is no aclIntArray"));
        };
        let dtype = Dtype::from_code(i64::from(dtype)).ok_or_else(|| Fail::invalid(format!("aclDataType {dtype} is unknown")))?;
        let count = blocks(&shape, dtype)?.iter().product::<i64>();
        // SAFETY: the caller's place for the result.
        unsafe { give(elements, count as u64, "weightTensorSize") }
    }

    fn aclnnNpuFormatCastCalculateSizeAndFormat(
        source: *const c_void,
        format: i32,
        additional: i32,
        shape: *mut *mut i64,
        size: *mut u64,
        actual: *mut i32,
    ) {
        if source.is_null() {
            return Err(Fail::null("srcTensor"));
        }
        let Descriptor::Tensor(tensor) = lookup(source)? else {
            return Err(Fail::invalid("srcTensor is no aclTensor"));
        };
        if format != FRACTAL_NZ {
            return Err(Fail::invalid(format!("dstFormat = {format} is no format the simulator casts to")));
        }
        if additional != -1 && additional != tensor.dtype() as i32 {
            return Err(Fail::invalid(format!("additionalDtype = {additional} is no mode the simulator knows")));
        }
        let blocks = blocks(tensor.shape(), tensor.dtype())?;
        // SAFETY: the caller's places for the results.
        unsafe {
            give(actual, FRACTAL_NZ, "actualFormat")?;
            hand_out(&blocks, shape, size)
        }
    }

    fn aclnnTransQuantParam(
        scale: *const f32,
        scales: u64,
        offset: *const f32,
        offsets: u64,
        parameters: *mut *mut u64,
        count: *mut u64,
    ) {
        // SAFETY: the caller vouches for both arrays.
        let (scale, offset) = unsafe { (floats(scale, scales, "scale")?, floats(offset, offsets, "offset")?) };
        if !offset.is_empty() && offset.len() != 1 && scale.len() != 1 && offset.len() != scale.len() {
            return Err(Fail::invalid(format!("{} scales and {} offsets", scale.len(), offset.len())));
        }
        let at = |values: &[f32], i: usize| values.get(if values.len() == 1 { 0 } else { i }).copied().unwrap_or(0.0);
        let packed: Vec<u64> = (0..scale.len().max(offset.len()))
            .map(|i| super::quant_matmul::packed(at(&scale, i), f64::from(at(&offset, i))))
            .collect();
        // SAFETY: the caller's places for the results.
        unsafe { hand_out(&packed, parameters, count) }
    }
}
