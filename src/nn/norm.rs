//! Normalisation of rows: by their root mean square, and by mean and deviation.

use crate::Error;
use crate::nn::Loader;
use portolan_core::{Stream, Tensor, call, ops};

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
