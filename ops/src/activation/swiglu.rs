//! SwiGLU: the gate of a feed-forward block, over two tensors or within one, with the clamps some models add.

use super::gate::{Arrangement, Gated, cases};
use crate::{Case, Cases, Contract, Cost, OpError, Operand, Result, TensorSpec, Tolerance, streaming_cost};

/// Multiplies by the sigmoid-weighted gate.
///
/// `out = g / (1 + e^(−alpha·g)) · (u + up_offset)`, where `g = min(gate, limit)` and
/// `u = min(max(up, −limit), limit)`; without a limit `g = gate` and `u = up`
///
/// # Shapes
/// [`SwigluSpec::new`]: gate, up and out `[.., n]`. [`SwigluSpec::fused`]: gate_up `[.., 2n]`, the gate in
/// the first half of the last dimension and up in the second, out `[.., n]`. [`SwigluSpec::interleaved`]: the
/// gate at even places, up at odd ones. Any extent may be zero.
///
/// # DTypes
/// All of one type out of f32, f16, bf16. Computed in f32, rounded once. A gate of −inf gives NaN (a limit
/// does not bound the gate from below); NaN stays NaN.
///
/// # Layout
/// Any strides. out may be gate or up (in place).
///
/// # Determinism
/// `BatchInvariant`: an element depends on its own inputs only.
///
/// # Cost
/// `5·numel(out)` operations: negated exponential, sum, quotient, product (the exponential counts as two); 3 more
/// with a limit, 1 more with an alpha other than 1, 1 more with an offset other than 0.
///
/// # Errors
/// `Shape` (an odd last extent of gate_up too), `DType`, `Layout` (out overlaps itself), `Attribute` (limit or
/// alpha not a finite number above 0, offset not finite).
///
/// # Composition
/// In f32 scratch: binary min and max with the limit, unary silu of the gate (with an alpha: sigmoid of the
/// multiple, times the gate), binary add of the offset, binary multiply, cast to out; parts of gate_up are views.
///
/// # Source
/// Shazeer, GLU Variants Improve Transformer, 2020. The limit is that of DeepSeek-V4 (10) and GPT-OSS (7, with
/// alpha 1.702, up_offset 1 and interleaved operands).
#[derive(Clone, Debug, PartialEq)]
pub struct SwigluSpec {
    gated: Gated,
    limit: Option<f32>,
    alpha: f32,
    up_offset: f32,
}

const OP: &str = "swiglu";

impl SwigluSpec {
    /// The form over two tensors.
    pub fn new(gate: &TensorSpec, up: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        Ok(Self::over(Gated::separate(OP, gate, up, out)?))
    }

    /// The form over the halves of one tensor.
    pub fn fused(gate_up: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        Ok(Self::over(Gated::within(OP, Arrangement::Halves, gate_up, out)?))
    }

    /// The form over the even and odd places of one tensor.
    pub fn interleaved(gate_up: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        Ok(Self::over(Gated::within(OP, Arrangement::Interleaved, gate_up, out)?))
    }

    /// The result of the forms over one tensor: contiguous, half as wide as gate_up.
    pub fn out_spec(gate_up: &TensorSpec) -> Result<TensorSpec> {
        Gated::out_spec(OP, gate_up)
    }

    fn over(gated: Gated) -> Self {
        Self { gated, limit: None, alpha: 1.0, up_offset: 0.0 }
    }

    /// Bounds the gate from above by `limit`, and up to `[−limit, limit]`.
    pub fn with_limit(mut self, limit: f32) -> Result<Self> {
        self.limit = Some(positive("limit", limit)?);
        Ok(self)
    }

    /// Multiplies the gate by `alpha` inside the sigmoid.
    pub fn with_alpha(mut self, alpha: f32) -> Result<Self> {
        self.alpha = positive("alpha", alpha)?;
        Ok(self)
    }

    /// Adds `up_offset` to up, after the limit.
    pub fn with_up_offset(mut self, up_offset: f32) -> Result<Self> {
        if !up_offset.is_finite() {
            let what = format!("is {up_offset}, expected a finite number");
            return Err(OpError::attribute(OP, "up_offset", what));
        }
        self.up_offset = up_offset;
        Ok(self)
    }

    /// The gate: an operand, or a view of `gate_up`.
    pub fn gate(&self) -> &TensorSpec {
        self.gated.gate()
    }
    /// What is gated: an operand, or a view of `gate_up`.
    pub fn up(&self) -> &TensorSpec {
        self.gated.up()
    }
    /// The operand that holds both, in the forms over one tensor.
    pub fn gate_up(&self) -> Option<&TensorSpec> {
        self.gated.gate_up()
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        self.gated.out()
    }
    /// Bound of the gate from above and of up from both sides.
    pub fn limit(&self) -> Option<f32> {
        self.limit
    }
    /// Factor of the gate inside the sigmoid.
    pub fn alpha(&self) -> f32 {
        self.alpha
    }
    /// What is added to up.
    pub fn up_offset(&self) -> f32 {
        self.up_offset
    }

    /// The unit of one element, in f64.
    fn apply(&self, gate: f64, up: f64) -> f64 {
        // Comparisons, so that NaN stays.
        let (gate, up) = match self.limit.map(f64::from) {
            None => (gate, up),
            Some(limit) => (
                if gate > limit { limit } else { gate },
                if up > limit {
                    limit
                } else if up < -limit {
                    -limit
                } else {
                    up
                },
            ),
        };
        gate / (1.0 + (-f64::from(self.alpha) * gate).exp()) * (up + f64::from(self.up_offset))
    }
}

fn positive(arg: &'static str, value: f32) -> Result<f32> {
    match value.is_finite() && value > 0.0 {
        true => Ok(value),
        false => Err(OpError::attribute(OP, arg, format!("is {value}, expected a finite number above 0"))),
    }
}

impl Contract for SwigluSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        self.gated.operands(visit);
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        self.gated.in_place()
    }

    fn cost(&self) -> Cost {
        let clamps = if self.limit.is_some() { 3 } else { 0 };
        let each = 5 + clamps + u64::from(self.alpha != 1.0) + u64::from(self.up_offset != 0.0);
        streaming_cost(self, (self.out().numel() as u64).saturating_mul(each))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        vec![self.gated.map(inputs, |gate, up| self.apply(gate, up))]
    }

    /// An exponential of 2 ulp, two sums, a quotient and two products: at most `16·u` in f32, relative. The
    /// product with an alpha is rounded at a magnitude of at most 36 in every case, which moves the exponent,
    /// and so the sigmoid, by `36·u` more. Sums with the offset are of exact numbers.
    fn tolerance(&self) -> Vec<Tolerance> {
        vec![self.gated.tolerance(if self.alpha == 1.0 { 16.0 } else { 52.0 }, 0.0)]
    }
}

impl Cases for SwigluSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut all = cases(OP, 20.0, 20.0, |gated| Ok(Self::over(gated)))?;
        // Limits inside the ranges drawn, so that both sides of each are seen.
        all.extend(cases("swiglu/limit", 20.0, 2.0, |gated| Self::over(gated).with_limit(0.75))?);
        let gpt_oss = |gated| Self::over(gated).with_limit(7.0)?.with_alpha(1.702)?.with_up_offset(1.0);
        all.extend(cases("swiglu/gpt_oss", 20.0, 20.0, gpt_oss)?);
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use proptest::prelude::*;

    fn spec(dims: &[usize]) -> TensorSpec {
        TensorSpec::of(DType::F32, dims).unwrap()
    }

    fn unit() -> SwigluSpec {
        let x = spec(&[1]);
        SwigluSpec::new(&x, &x, &x).unwrap()
    }

    #[test]
    fn a_gate_by_hand() {
        let x = spec(&[3]);
        let got =
            SwigluSpec::new(&x, &x, &x).unwrap().reference(&[&[0.0, 3f64.ln(), 100.0], &[5.0, 4.0, 2.0]]);
        // silu(ln 3) = ln 3 · 3/4.
        assert!((got[0][1] - 3.0 * 3f64.ln()).abs() < 1e-15, "{got:?}");
        assert_eq!((got[0][0], got[0][2]), (0.0, 200.0));
    }

    #[test]
    fn a_limit_bounds_the_gate_from_above_and_up_from_both_sides() {
        let limited = unit().with_limit(10.0).unwrap();
        let at = |gate: f64, up: f64| limited.reference(&[&[gate], &[up]])[0][0];
        let free = |gate: f64, up: f64| unit().reference(&[&[gate], &[up]])[0][0];
        assert_eq!(at(50.0, 3.0), free(10.0, 3.0));
        assert_eq!(at(2.0, 50.0), free(2.0, 10.0));
        assert_eq!(at(2.0, -50.0), free(2.0, -10.0));
        // No lower bound on the gate.
        assert_eq!(at(-50.0, 3.0), free(-50.0, 3.0));
        assert!(at(f64::NAN, 1.0).is_nan() && at(1.0, f64::NAN).is_nan());
    }

    #[test]
    fn the_gpt_oss_unit_by_hand() {
        let unit = unit().with_limit(7.0).unwrap().with_alpha(2.0).unwrap().with_up_offset(1.0).unwrap();
        // With alpha 2, the gate ½·ln 3 has a sigmoid of 3/4; up 1 counts as 2.
        let got = unit.reference(&[&[0.5 * 3f64.ln()], &[1.0]])[0][0];
        assert!((got - 0.75 * 3f64.ln()).abs() < 1e-15, "{got}");
        assert_eq!(unit.cost().flops, 10);
    }

    #[test]
    fn an_odd_width_is_refused() {
        let e = SwigluSpec::fused(&spec(&[2, 5]), &spec(&[2, 2])).unwrap_err();
        assert_eq!(e.to_string(), "swiglu: gate_up is [2, 5], expected an even last extent");
        assert!(SwigluSpec::interleaved(&spec(&[2, 5]), &spec(&[2, 2])).is_err());
        assert!(SwigluSpec::fused(&spec(&[]), &spec(&[])).is_err());
        assert!(SwigluSpec::new(&spec(&[2]), &spec(&[3]), &spec(&[2])).is_err());
    }

    #[test]
    fn every_case_is_legal() {
        assert!(SwigluSpec::cases().unwrap().len() > 300);
    }

    proptest! {
        #[test]
        fn attributes_are_legal_exactly_where_the_contract_says(value in any::<f32>()) {
            prop_assert_eq!(unit().with_limit(value).is_ok(), value.is_finite() && value > 0.0);
            prop_assert_eq!(unit().with_alpha(value).is_ok(), value.is_finite() && value > 0.0);
            prop_assert_eq!(unit().with_up_offset(value).is_ok(), value.is_finite());
        }

        #[test]
        fn a_limit_beyond_the_operands_changes_nothing(gate in -9.0..9.0f64, up in -9.0..9.0f64) {
            let inputs: [&[f64]; 2] = [&[gate], &[up]];
            prop_assert_eq!(unit().with_limit(9.0).unwrap().reference(&inputs), unit().reference(&inputs));
        }
    }
}
