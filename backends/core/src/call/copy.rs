//! [`Copy`], [`Cast`] and [`Fill`]: elements moved, converted, or made of one number.

use super::{Cast, Copy, Fill};
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::kernel::{CastSpec, CopySpec, FillSpec};
use portolan_ops::{DType, Result, Shape, TensorSpec};

impl Copy {
    /// `out = x`, from any layout to any other.
    ///
    /// # Errors
    /// As [`CopySpec::new`] and [`crate::Call::bind`].
    pub fn new(x: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(CopySpec::new(x.spec(), out.spec())?, &[x, out])
    }
}

impl Cast {
    /// `out = x` in `out`'s element type.
    ///
    /// # Errors
    /// As [`CastSpec::new`] and [`crate::Call::bind`].
    pub fn new(x: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(CastSpec::new(x.spec(), out.spec())?, &[x, out])
    }
}

impl Fill {
    /// `value` into every element of `out`.
    ///
    /// # Errors
    /// As [`FillSpec::new`] and [`crate::Call::bind`].
    pub fn new(out: &mut Tensor, value: f64) -> Result<Self> {
        Self::bind(FillSpec::new(out.spec(), value)?, &[out])
    }
}

/// The same elements, contiguous; see [`CopySpec`].
///
/// # Errors
/// As [`Copy::new`] and [`Stream::run`].
pub fn contiguous(stream: &Stream, x: &Tensor) -> Result<Tensor> {
    let mut out = stream.empty(&x.spec().to_contiguous())?;
    stream.run(Copy::new(x, &mut out)?)?;
    Ok(out)
}

/// The elements as `dtype`; see [`CastSpec`].
///
/// # Errors
/// As [`Cast::new`] and [`Stream::run`].
pub fn cast(stream: &Stream, x: &Tensor, dtype: DType) -> Result<Tensor> {
    let mut out = stream.empty(&TensorSpec::new(dtype, *x.shape()))?;
    stream.run(Cast::new(x, &mut out)?)?;
    Ok(out)
}

/// A tensor of one number; see [`FillSpec`].
///
/// # Errors
/// As [`Fill::new`] and [`Stream::run`].
pub fn full(stream: &Stream, dtype: DType, shape: &Shape, value: f64) -> Result<Tensor> {
    let mut out = stream.empty(&TensorSpec::new(dtype, *shape))?;
    stream.run(Fill::new(&mut out, value)?)?;
    Ok(out)
}
