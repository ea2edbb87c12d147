//! GeGLU: a gated unit whose gate passes through GELU.

use super::gate::{Arrangement, Gated, cases};
use crate::kernel::Activation;
use crate::{Case, Cases, Contract, Cost, Operand, Result, TensorSpec, Tolerance, streaming_cost};

/// Which GELU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GeluKind {
    /// `x / 2 · (1 + erf(x / √2))`, the definition.
    Erf,
    /// `x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`, the approximation many models are trained with.
    Tanh,
}

impl GeluKind {
    /// The function as an activation.
    pub const fn activation(self) -> Activation {
        match self {
            GeluKind::Erf => Activation::Gelu,
            GeluKind::Tanh => Activation::GeluTanh,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            GeluKind::Erf => "geglu",
            GeluKind::Tanh => "geglu_tanh",
        }
    }
}

/// Multiplies by GELU of the gate.
///
/// `out = gelu(gate) · up`
///
/// # Shapes
/// [`GegluSpec::new`]: gate, up and out `[.., n]`. [`GegluSpec::fused`]: gate_up `[.., 2n]`, the gate in the
/// first half of the last dimension and up in the second, out `[.., n]`. [`GegluSpec::interleaved`]: the gate at
/// even places, up at odd ones. Any extent may be zero.
///
/// # DTypes
/// All of one type out of f32, f16, bf16. Computed in f32, rounded once. A gate of −inf gives NaN.
///
/// # Layout
/// Any strides. out may be gate or up (in place).
///
/// # Determinism
/// `BatchInvariant`: an element depends on its own inputs only.
///
/// # Cost
/// `7·numel(out)` operations with the error function (which counts as two), `10·numel(out)` with the tangent.
///
/// # Errors
/// `Shape` (an odd last extent of gate_up too), `DType`, `Layout` (out overlaps itself).
///
/// # Composition
/// unary gelu or gelu_tanh of the gate into scratch of f32, binary multiply by up, cast to out; parts of gate_up
/// are views.
///
/// # Source
/// Shazeer, GLU Variants Improve Transformer, 2020; Hendrycks and Gimpel, Gaussian Error Linear Units, 2016.
#[derive(Clone, Debug, PartialEq)]
pub struct GegluSpec {
    kind: GeluKind,
    gated: Gated,
}

impl GegluSpec {
    /// The form over two tensors.
    pub fn new(kind: GeluKind, gate: &TensorSpec, up: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        Ok(Self { kind, gated: Gated::separate(kind.name(), gate, up, out)? })
    }

    /// The form over the halves of one tensor.
    pub fn fused(kind: GeluKind, gate_up: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        Ok(Self { kind, gated: Gated::within(kind.name(), Arrangement::Halves, gate_up, out)? })
    }

    /// The form over the even and odd places of one tensor.
    pub fn interleaved(kind: GeluKind, gate_up: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        Ok(Self { kind, gated: Gated::within(kind.name(), Arrangement::Interleaved, gate_up, out)? })
    }

    /// The result of the forms over one tensor: contiguous, half as wide as gate_up.
    pub fn out_spec(kind: GeluKind, gate_up: &TensorSpec) -> Result<TensorSpec> {
        Gated::out_spec(kind.name(), gate_up)
    }

    /// Which GELU.
    pub fn kind(&self) -> GeluKind {
        self.kind
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
}

impl Contract for GegluSpec {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        self.gated.operands(visit);
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        self.gated.in_place()
    }

    /// With erf: a scale, the function (two), a sum, two products, the product with up. With tanh three more:
    /// a square, its product with a sum for the cube.
    fn cost(&self) -> Cost {
        let each = match self.kind {
            GeluKind::Erf => 7,
            GeluKind::Tanh => 10,
        };
        streaming_cost(self, (self.out().numel() as u64).saturating_mul(each))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let activation = self.kind.activation();
        vec![self.gated.map(inputs, |gate, up| activation.apply(gate) * up)]
    }

    /// `x/2 · (1 + t)` with `t` to 8 ulp is within `16·u` of itself; for t near −1 the sum cancels, and errs by
    /// that of t times `|x|/2`: at most `16·u` for |x| ≤ 8, as in every case. up of at most 2 doubles that, and
    /// the product adds one rounding.
    fn tolerance(&self) -> Vec<Tolerance> {
        vec![self.gated.tolerance(18.0, 32.0)]
    }
}

impl Cases for GegluSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut all = Vec::new();
        for kind in [GeluKind::Erf, GeluKind::Tanh] {
            all.extend(cases(kind.name(), 8.0, 2.0, |gated| Ok(Self { kind, gated }))?);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn values_known_from_the_normal_distribution() {
        let x = TensorSpec::of(DType::F32, &[4]).unwrap();
        let gate = [0.0, 1.0, -1.0, 40.0];
        // x·Φ(x), Φ(1) = 0.841344746068543 by the tables.
        let phi = 0.841_344_746_068_542_9;
        let want = [0.0, 2.0 * phi, -2.0 * (1.0 - phi), 80.0];
        let of = |kind| GegluSpec::new(kind, &x, &x, &x).unwrap().reference(&[&gate, &[2.0; 4]]).remove(0);
        let error = |got: &[f64]| got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
        assert!(error(&of(GeluKind::Erf)) < 1e-14);
        let tanh = error(&of(GeluKind::Tanh));
        assert!(tanh > 1e-5 && tanh < 1e-3, "an approximation, and another function: {tanh}");
    }

    #[test]
    fn both_kinds_name_themselves_in_messages() {
        let odd = TensorSpec::of(DType::F32, &[3]).unwrap();
        let message = |kind| GegluSpec::out_spec(kind, &odd).unwrap_err().to_string();
        assert_eq!(message(GeluKind::Erf), "geglu: gate_up is [3], expected an even last extent");
        assert!(message(GeluKind::Tanh).starts_with("geglu_tanh: "));
    }

    #[test]
    fn every_case_is_legal() {
        assert!(GegluSpec::cases().unwrap().len() > 200);
    }
}
