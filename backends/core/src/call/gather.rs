//! [`Gather`] and [`Scatter`]: entries by index.

use super::{Gather, Scatter};
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::kernel::{GatherForm, GatherSpec, ScatterMode, ScatterSpec};

impl Gather {
    /// Slices of `x` along `dim` by index.
    ///
    /// # Errors
    /// As [`GatherSpec::slices`] and [`crate::Call::bind`].
    pub fn slices(x: &Tensor, dim: usize, index: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(GatherSpec::slices(x.spec(), dim, index.spec(), out.spec())?, &[x, index, out])
    }

    /// Elements of `x` along `dim`, one index an element.
    ///
    /// # Errors
    /// As [`GatherSpec::elements`] and [`crate::Call::bind`].
    pub fn elements(x: &Tensor, dim: usize, index: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(GatherSpec::elements(x.spec(), dim, index.spec(), out.spec())?, &[x, index, out])
    }
}

impl Scatter {
    /// `out = x` with slices of `src` written or added along `dim`; `out` may be `x` itself.
    ///
    /// # Errors
    /// As [`ScatterSpec::new`] and [`crate::Call::bind`].
    pub fn new(
        mode: ScatterMode,
        x: &Tensor,
        dim: usize,
        index: &Tensor,
        src: &Tensor,
        out: &mut Tensor,
    ) -> Result<Self> {
        let spec = ScatterSpec::new(mode, x.spec(), dim, index.spec(), src.spec(), out.spec())?;
        Self::bind(spec, &[x, index, src, out])
    }
}

/// Rows of `x` by index; see [`GatherSpec`].
///
/// # Errors
/// As [`Gather::slices`] and [`Stream::run`].
pub fn gather_rows(stream: &Stream, x: &Tensor, index: &Tensor) -> Result<Tensor> {
    let mut out = stream.empty(&GatherSpec::out_spec(GatherForm::Slices, x.spec(), 0, index.spec())?)?;
    stream.run(Gather::slices(x, 0, index, &mut out)?)?;
    Ok(out)
}
