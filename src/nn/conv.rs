//! The short causal convolution in front of a recurrence (Gu and Dao 2023).

use crate::Error;
use crate::nn::{Loader, Sequences};
use core::ops::Range;
use portolan_core::{Stream, Tensor, call};
use portolan_ops::{DType, TensorSpec};

/// Every channel convolved with a filter of its own that looks back, then SiLU.
#[derive(Clone, Debug)]
pub struct CausalConv {
    /// `[channels, width]`.
    weight: Tensor,
    bias: Option<Tensor>,
}

impl CausalConv {
    /// Loads `{name}.weight`, which files have as `[channels, 1, width]`, and `{name}.bias` if there is one: of them the
    /// stretches of channels that a rank has.
    ///
    /// # Errors
    /// Those of the file and of the device.
    pub fn load(
        loader: &mut Loader<'_>,
        name: &str,
        layer: usize,
        [channels, width]: [usize; 2],
        here: &[Range<usize>],
        bias: bool,
    ) -> Result<Self, Error> {
        let weight = loader.parameters(&format!("{name}.weight"), layer, &[channels, 1, width], here)?;
        let weight = weight.reshape(&[weight.dims()[0], width])?;
        let bias = match bias {
            true => Some(loader.parameters(&format!("{name}.bias"), layer, &[channels], here)?),
            false => None,
        };
        Ok(Self { weight, bias })
    }

    /// `[tokens, channels]` to the same, behind the rows of `window [batch, width − 1, channels]`, which become those
    /// that the next pass goes on from.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward(
        &self,
        stream: &Stream,
        x: &Tensor,
        sequences: &Sequences,
        window: &Tensor,
    ) -> Result<Tensor, Error> {
        let out = stream.empty(&TensorSpec::of(DType::F32, x.dims())?)?;
        let op = call::CausalConv1d::new(&sequences.rows(x)?, &self.weight, &mut sequences.rows(&out)?)?;
        let op = op.silu()?;
        let op = match &self.bias {
            Some(bias) => op.bias(bias)?,
            None => op,
        };
        let op = match sequences.lens() {
            Some(lens) => op.lens(lens)?,
            None => op,
        };
        let op = if sequences.are_new() { op } else { op.initial(window)? };
        stream.run(op.last(&mut window.clone())?)?;
        Ok(out)
    }
}
