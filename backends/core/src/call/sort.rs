//! [`Sort`]: rows in order, and where their elements came from.

use super::Sort;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::sort::{SortOrder, SortSpec};

impl Sort {
    /// The elements of every row of `x` in order, and their places.
    ///
    /// # Errors
    /// As [`SortSpec::new`] and [`crate::Call::bind`].
    pub fn new(order: SortOrder, x: &Tensor, values: &mut Tensor, indices: &mut Tensor) -> Result<Self> {
        Self::bind(SortSpec::new(order, x.spec(), values.spec(), indices.spec())?, &[x, values, indices])
    }

    /// The elements of every row of `x` in order.
    ///
    /// # Errors
    /// As [`SortSpec::values_only`] and [`crate::Call::bind`].
    pub fn values_only(order: SortOrder, x: &Tensor, values: &mut Tensor) -> Result<Self> {
        Self::bind(SortSpec::values_only(order, x.spec(), values.spec())?, &[x, values])
    }

    /// The places of the elements of every row of `x` in order.
    ///
    /// # Errors
    /// As [`SortSpec::indices_only`] and [`crate::Call::bind`].
    pub fn indices_only(order: SortOrder, x: &Tensor, indices: &mut Tensor) -> Result<Self> {
        Self::bind(SortSpec::indices_only(order, x.spec(), indices.spec())?, &[x, indices])
    }
}

/// The elements of every row in order, and their places; see [`SortSpec`].
///
/// # Errors
/// As [`Sort::new`] and [`Stream::run`].
pub fn sort(stream: &Stream, order: SortOrder, x: &Tensor) -> Result<(Tensor, Tensor)> {
    let (values, indices) = SortSpec::out_specs(x.spec())?;
    let (mut values, mut indices) = (stream.empty(&values)?, stream.empty(&indices)?);
    stream.run(Sort::new(order, x, &mut values, &mut indices)?)?;
    Ok((values, indices))
}

/// The places of every row's elements in order; see [`SortSpec`].
///
/// # Errors
/// As [`Sort::indices_only`] and [`Stream::run`].
pub fn argsort(stream: &Stream, order: SortOrder, x: &Tensor) -> Result<Tensor> {
    let mut indices = stream.empty(&SortSpec::out_specs(x.spec())?.1)?;
    stream.run(Sort::indices_only(order, x, &mut indices)?)?;
    Ok(indices)
}
