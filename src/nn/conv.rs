//! The short causal convolution in front of a recurrence (Gu and Dao 2023).

use crate::Error;
use crate::nn::{Batch, Loader};
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
    /// Loads `{name}.weight`, which files have as `[channels, 1, width]`, and `{name}.bias` if there is one.
    ///
    /// # Errors
    /// Those of the file and of the device.
    pub fn load(
        loader: &mut Loader<'_>,
        name: &str,
        layer: usize,
        channels: usize,
        width: usize,
        bias: bool,
    ) -> Result<Self, Error> {
        let weight = loader.parameters(&format!("{name}.weight"), layer, &[channels, 1, width])?;
        Ok(Self {
            weight: weight.reshape(&[channels, width])?,
            bias: if bias { Some(loader.vector(&format!("{name}.bias"), layer, channels)?) } else { None },
        })
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
        batch: &Batch,
        window: &Tensor,
    ) -> Result<Tensor, Error> {
        let out = stream.empty(&TensorSpec::of(DType::F32, x.dims())?)?;
        for run in batch.runs()? {
            let before = run.sequences(window)?;
            let mut op =
                call::CausalConv1d::new(&run.rows(x)?, &self.weight, &mut run.rows(&out)?)?.silu()?;
            if let Some(bias) = &self.bias {
                op = op.bias(bias)?;
            }
            if !run.is_new() {
                op = op.initial(&before)?;
            }
            stream.run(op.last(&mut before.clone())?)?;
        }
        Ok(out)
    }
}
