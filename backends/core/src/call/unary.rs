//! [`Unary`]: a function of every element.

use super::Unary;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::kernel::{UnaryKind, UnarySpec};

impl Unary {
    /// `out = kind(x)`; `out` may be `x` itself where the types agree.
    ///
    /// # Errors
    /// As [`UnarySpec::new`] and [`crate::Call::bind`].
    pub fn new(kind: UnaryKind, x: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(UnarySpec::new(kind, x.spec(), out.spec())?, &[x, out])
    }
}

/// `kind(x)`; see [`UnarySpec`].
///
/// # Errors
/// As [`Unary::new`] and [`Stream::run`].
pub fn unary(stream: &Stream, kind: UnaryKind, x: &Tensor) -> Result<Tensor> {
    let mut out = stream.empty(&UnarySpec::out_spec(kind, x.spec())?)?;
    stream.run(Unary::new(kind, x, &mut out)?)?;
    Ok(out)
}
