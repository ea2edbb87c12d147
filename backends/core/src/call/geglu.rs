//! [`Geglu`]: the gated unit with GELU.

use super::Geglu;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::activation::{GegluSpec, GeluKind};

impl Geglu {
    /// `out = gelu(gate) · up`; `out` may be either.
    ///
    /// # Errors
    /// As [`GegluSpec::new`] and [`crate::Call::bind`].
    pub fn new(kind: GeluKind, gate: &Tensor, up: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(GegluSpec::new(kind, gate.spec(), up.spec(), out.spec())?, &[gate, up, out])
    }

    /// The same over one tensor `[.., 2n]`: gate first, up second.
    ///
    /// # Errors
    /// As [`GegluSpec::fused`] and [`crate::Call::bind`].
    pub fn fused(kind: GeluKind, gate_up: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(GegluSpec::fused(kind, gate_up.spec(), out.spec())?, &[gate_up, out])
    }

    /// The same over one tensor `[.., 2n]`: gate at even places, up at odd ones.
    ///
    /// # Errors
    /// As [`GegluSpec::interleaved`] and [`crate::Call::bind`].
    pub fn interleaved(kind: GeluKind, gate_up: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(GegluSpec::interleaved(kind, gate_up.spec(), out.spec())?, &[gate_up, out])
    }
}

/// `gelu(gate) · up` of one tensor `[.., 2n]`, gate first; see [`GegluSpec`].
///
/// # Errors
/// As [`Geglu::fused`] and [`Stream::run`].
pub fn geglu(stream: &Stream, kind: GeluKind, gate_up: &Tensor) -> Result<Tensor> {
    let mut out = stream.empty(&GegluSpec::out_spec(kind, gate_up.spec())?)?;
    stream.run(Geglu::fused(kind, gate_up, &mut out)?)?;
    Ok(out)
}
