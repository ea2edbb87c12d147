//! Normalisation of rows: by their root mean square, and by mean and deviation.

use crate::Error;
use crate::nn::{Heads, Layout, Loader};
use portolan_core::{Stream, Tensor, call, ops};
use portolan_ops::kernel::{BinaryKind, ReduceKind, UnaryKind};
use portolan_ops::{DType, Shape};

/// `x / √(mean(x²) + eps) · weight`.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// Loads a weight of length `hidden`.
    ///
    /// # Errors
    /// Those of the file and of the device.
    pub fn load(
        loader: &mut Loader<'_>,
        name: &str,
        layer: usize,
        hidden: usize,
        eps: f32,
    ) -> Result<Self, Error> {
        Ok(Self { weight: loader.vector(name, layer, hidden)?, eps })
    }

    /// Normalises every row.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward(&self, stream: &Stream, x: &Tensor) -> Result<Tensor, Error> {
        Ok(ops::rms_norm(stream, x, Some(&self.weight), self.eps)?)
    }

    /// Normalises every row where it lies.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward_in_place(&self, stream: &Stream, x: &Tensor) -> Result<(), Error> {
        stream.run(call::RmsNorm::new(x, &mut x.clone(), self.eps)?.weight(&self.weight)?)?;
        Ok(())
    }

    /// Adds `x` to `residual` in place, then normalises the sum.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward_add(&self, stream: &Stream, x: &Tensor, residual: &mut Tensor) -> Result<Tensor, Error> {
        Ok(ops::add_rms_norm(stream, x, residual, Some(&self.weight), self.eps)?)
    }
}

/// [`RmsNorm`] of each of several equal groups of a row, of which a rank has some, or a part of one.
#[derive(Clone, Debug)]
pub struct GroupRmsNorm {
    weight: Tensor,
    eps: f32,
    /// Columns of a group.
    width: usize,
    /// Groups of all ranks.
    groups: usize,
    /// The group of the first column here.
    group: usize,
    layout: Layout,
}

impl GroupRmsNorm {
    /// Loads what a rank has of a weight for so many heads of so many columns, in so many groups.
    ///
    /// # Errors
    /// Those of the file and of the device.
    pub fn load(
        loader: &mut Loader<'_>,
        name: &str,
        layer: usize,
        [heads, head_dim, groups]: [usize; 3],
        here: &Heads,
        eps: f32,
    ) -> Result<Self, Error> {
        let columns = here.queries.start * head_dim..here.queries.end * head_dim;
        Ok(Self {
            weight: loader.parameters(name, layer, &[heads * head_dim], &[columns])?,
            eps,
            width: heads / groups.max(1) * head_dim,
            groups,
            group: here.keys.start,
            layout: loader.layout().clone(),
        })
    }

    /// Normalises every row `[.., columns]`, together with the ranks that have other parts of its group.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward(&self, stream: &Stream, x: &Tensor) -> Result<Tensor, Error> {
        let (tokens, columns) = (x.shape().rows(), x.shape().last());
        if columns.is_multiple_of(self.width.max(1)) {
            let groups = columns / self.width.max(1);
            return Ok(ops::group_rms_norm(stream, x, groups, Some(&self.weight), self.eps)?);
        }
        // Each rank's sums in the column of its group; those of the other groups are added for their ranks.
        let squares = ops::unary(stream, UnaryKind::Square, x)?;
        let own = ops::reduce(stream, ReduceKind::Sum, &squares, &[x.shape().rank() - 1], true)?;
        let sums = ops::full(stream, DType::F32, &Shape::new(&[tokens, self.groups])?, 0.0)?;
        let sum = sums.narrow(1, self.group, 1)?;
        stream.run(call::Copy::new(&own.reshape(&[tokens, 1])?, &mut sum.clone())?)?;
        self.layout.sum(stream, &sums)?;
        let factor = own;
        stream.run(call::Binary::scalar(
            BinaryKind::Mul,
            &sum,
            1.0 / self.width as f64,
            &mut factor.reshape(&[tokens, 1])?,
        )?)?;
        let scalar = |kind, value: f64| call::Binary::scalar(kind, &factor, value, &mut factor.clone());
        stream.run(scalar(BinaryKind::Add, f64::from(self.eps))?)?;
        stream.run(call::Unary::new(UnaryKind::Rsqrt, &factor, &mut factor.clone())?)?;
        let normed = ops::binary(stream, BinaryKind::Mul, x, &factor)?;
        stream.run(call::Binary::new(BinaryKind::Mul, &normed, &self.weight, &mut normed.clone())?)?;
        Ok(normed)
    }
}

/// `(x − mean(x)) / √(variance(x) + eps) · weight + bias`.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// Loads `name.weight` and `name.bias`, both of length `hidden`.
    ///
    /// # Errors
    /// Those of the file and of the device.
    pub fn load(
        loader: &mut Loader<'_>,
        name: &str,
        layer: usize,
        hidden: usize,
        eps: f32,
    ) -> Result<Self, Error> {
        let mut vector = |part: &str| loader.vector(&format!("{name}.{part}"), layer, hidden);
        Ok(Self { weight: vector("weight")?, bias: vector("bias")?, eps })
    }

    /// Normalises every row.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward(&self, stream: &Stream, x: &Tensor) -> Result<Tensor, Error> {
        Ok(ops::layer_norm(stream, x, Some(&self.weight), Some(&self.bias), self.eps)?)
    }

    /// Adds `x` to `residual` in place, then normalises the sum.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward_add(&self, stream: &Stream, x: &Tensor, residual: &mut Tensor) -> Result<Tensor, Error> {
        stream.run(call::Binary::add(&residual.clone(), x, residual)?)?;
        self.forward(stream, residual)
    }
}
