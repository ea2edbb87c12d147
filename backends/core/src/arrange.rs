//! Elements in other places: joining, cutting, padding, rolling and mirroring, as copies between views.

use crate::call::{Copy, Fill, Gather};
use crate::index::countdown;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::arrange::{concat_spec, extent_of, pad_spec, rolled, split_specs};
use portolan_ops::{Result, TensorSpec};

/// Joins tensors along a dimension.
///
/// # Shapes
/// parts alike but for dimension `dim`, whose extents add up. Any extent may be zero.
///
/// # DTypes
/// All of one type.
///
/// # Layout
/// Any strides; the result is contiguous.
///
/// # Cost
/// One copy a part: each element is read and written once.
///
/// # Errors
/// As [`concat_spec`] and [`Stream::run`].
pub fn concat(stream: &Stream, parts: &[&Tensor], dim: usize) -> Result<Tensor> {
    let specs: Vec<&TensorSpec> = parts.iter().map(|part| part.spec()).collect();
    let out = stream.empty(&concat_spec(&specs, dim)?)?;
    let lens: Vec<usize> = parts.iter().map(|part| part.dims()[dim]).collect();
    for (part, mut place) in parts.iter().zip(split(&out, dim, &lens)?) {
        stream.run(Copy::new(part, &mut place)?)?;
    }
    Ok(out)
}

/// Cuts a tensor along a dimension into pieces of `lens` entries, which are views of it: nothing is copied.
///
/// # Errors
/// As [`split_specs`].
pub fn split(x: &Tensor, dim: usize, lens: &[usize]) -> Result<Vec<Tensor>> {
    let pieces = split_specs(x.spec(), dim, lens)?;
    pieces.into_iter().map(|piece| Tensor::new(x.buffer().clone(), piece)).collect()
}

/// Surrounds a tensor with `value`: `(before, after)` entries for each dimension.
///
/// # DTypes
/// f64, f32, f16, bf16, i64, i32, i8, u8, bool; integers want a number they hold.
///
/// # Layout
/// Any strides; the result is contiguous.
///
/// # Cost
/// One copy, and one fill a border: each element is written once.
///
/// # Errors
/// As [`pad_spec`], [`Fill::new`] and [`Stream::run`].
pub fn pad(stream: &Stream, x: &Tensor, padding: &[(usize, usize)], value: f64) -> Result<Tensor> {
    let out = stream.empty(&pad_spec(x.spec(), padding)?)?;
    // The borders of a dimension take the inside of those before it and the whole of those after it, so that
    // they do not overlap.
    let mut inside = out.clone();
    for (dim, &(before, after)) in padding.iter().enumerate() {
        let extent = x.dims()[dim];
        for (start, len) in [(0, before), (before + extent, after)] {
            if len > 0 {
                stream.run(Fill::new(&mut inside.narrow(dim, start, len)?, value)?)?;
            }
        }
        inside = inside.narrow(dim, before, extent)?;
    }
    stream.run(Copy::new(x, &mut inside)?)?;
    Ok(out)
}

/// Moves the entries of a dimension `shift` places on; those that leave one end enter at the other.
///
/// `out[(i + shift) mod extent] = x[i]`
///
/// # DTypes
/// All that copy.
///
/// # Layout
/// Any strides; the result is contiguous.
///
/// # Cost
/// Two copies: each element is read and written once.
///
/// # Errors
/// `Shape` without that dimension; as [`Copy::new`] and [`Stream::run`].
pub fn roll(stream: &Stream, x: &Tensor, dim: usize, shift: isize) -> Result<Tensor> {
    let extent = extent_of("roll", x.spec(), dim)?;
    let start = rolled(extent, shift);
    let out = stream.empty(&x.spec().to_contiguous())?;
    let sources = split(x, dim, &[extent - start, start])?;
    let mut places = split(&out, dim, &[start, extent - start])?;
    places.swap(0, 1);
    for (source, place) in sources.iter().zip(&mut places) {
        stream.run(Copy::new(source, place)?)?;
    }
    Ok(out)
}

/// Reverses the entries of a dimension.
///
/// `out[i] = x[extent − 1 − i]`
///
/// # Shapes
/// The dimension has less than 2³¹ entries.
///
/// # DTypes
/// All of whole bytes.
///
/// # Layout
/// Any strides; the result is contiguous.
///
/// # Cost
/// One gather: each element is read and written once, beside an index an entry.
///
/// # Errors
/// `Shape` without that dimension; as [`Gather::slices`] and [`Stream::run`].
pub fn flip(stream: &Stream, x: &Tensor, dim: usize) -> Result<Tensor> {
    let extent = extent_of("flip", x.spec(), dim)?;
    let mut out = stream.empty(&x.spec().to_contiguous())?;
    let backwards = countdown(stream, extent)?;
    stream.run(Gather::slices(x, dim, &backwards, &mut out)?)?;
    Ok(out)
}
