//! State-space layers and linear attention: the short causal convolution in front of them, and the recurrences
//! themselves, with a state that is handed in and out so that a sequence may be cut anywhere.
//!
//! Sequences lie beside one another, all of one length, or one behind the other in a single row of tokens, with
//! their lengths on the device: `with_lens` says so, and `lens.rs` holds what the operators share about it.

pub mod causal_conv1d;
pub mod gated_delta_rule;
mod lens;
pub mod selective_scan;
pub mod ssd_scan;

pub use causal_conv1d::CausalConv1dSpec;
pub use gated_delta_rule::GatedDeltaRuleSpec;
pub use selective_scan::SelectiveScanSpec;
pub use ssd_scan::SsdScanSpec;

use crate::{DType, LensSpec, Result, TensorSpec, expect_dims, expect_dtype, expect_writable};

/// The element types these operators take.
const FLOATS: [DType; 3] = crate::norm::FLOATS;

/// `x / (1 + e^−x)`.
fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `ln(1 + e^x)`, without overflow.
fn softplus(x: f64) -> f64 {
    if x.is_nan() { x } else { x.max(0.0) + (-x.abs()).exp().ln_1p() }
}

/// Fails unless a parameter has these extents, and x's type or f32.
fn expect_parameter(
    op: &'static str,
    arg: &'static str,
    got: &TensorSpec,
    dims: &[usize],
    x: &TensorSpec,
) -> Result<()> {
    expect_dims(op, arg, got, dims)?;
    expect_dtype(op, arg, got, &[x.dtype(), DType::F32])
}

/// Fails unless a state has these extents and is f32; a written one may not overlap itself.
fn expect_state(
    op: &'static str,
    arg: &'static str,
    got: &TensorSpec,
    dims: &[usize],
    written: bool,
) -> Result<()> {
    expect_dims(op, arg, got, dims)?;
    expect_dtype(op, arg, got, &[DType::F32])?;
    if written { expect_writable(op, arg, got) } else { Ok(()) }
}

/// A recurrence's error in units of f32's rounding, for decays that forget: as the cases draw them, what is
/// more than 32 steps old weighs less than e^−16, so no more steps than these add up.
///
/// A step rounds its exponent, the exponential (2 ulp), two or three products and a sum: 8 roundings of values
/// of the size of the state, doubled for states a few times larger than 1.
fn recurrence_error(steps: usize) -> f64 {
    16.0 * (steps.min(32) as f64 + 1.0) * DType::F32.unit_roundoff()
}

/// A sequence's inputs by position: those that are present follow one another.
struct Inputs<'a, 'b>(core::slice::Iter<'b, &'a [f64]>);

impl<'a, 'b> Inputs<'a, 'b> {
    fn of(inputs: &'b [&'a [f64]]) -> Self {
        Self(inputs.iter())
    }

    fn next(&mut self) -> &'a [f64] {
        self.0.next().copied().unwrap_or_default()
    }

    fn optional(&mut self, spec: &Option<TensorSpec>) -> Option<&'a [f64]> {
        spec.map(|_| self.next())
    }

    fn lens(&mut self, spec: &Option<LensSpec>) -> Option<&'a [f64]> {
        spec.as_ref().map(|_| self.next())
    }
}
