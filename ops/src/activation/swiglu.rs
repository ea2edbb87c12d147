//! SwiGLU: the gate of a feed-forward block, over two tensors or the two halves of one.

use crate::kernel::Activation;
use crate::norm::{EDGES, FLOATS, expect_rows, strided_pairs};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, Shape, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_writable, streaming_cost,
};

/// Multiplies by the sigmoid-weighted gate.
///
/// `out = gate / (1 + e^−gate) · up`
///
/// # Shapes
/// [`SwigluSpec::new`]: gate, up and out `[.., n]`. [`SwigluSpec::fused`]: gate_up `[.., 2n]`, the gate in
/// the first half of the last dimension and up in the second, out `[.., n]`. Any extent may be zero.
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
/// `5·numel(out)` operations: negated exponential, sum, quotient, product (the exponential counts as two).
///
/// # Errors
/// `Shape` (an odd last extent of gate_up too), `DType`, `Layout` (out overlaps itself).
///
/// # Composition
/// unary silu of gate into scratch of f32, binary multiply by up, cast to out; the halves of gate_up are views.
///
/// # Source
/// Shazeer, GLU Variants Improve Transformer, 2020.
#[derive(Clone, Debug, PartialEq)]
pub struct SwigluSpec {
    input: Input,
    out: TensorSpec,
}

#[derive(Clone, Debug, PartialEq)]
enum Input {
    Separate { gate: TensorSpec, up: TensorSpec },
    Fused { gate_up: TensorSpec, gate: TensorSpec, up: TensorSpec },
}

const OP: &str = "swiglu";

impl SwigluSpec {
    /// The form over two tensors.
    pub fn new(gate: &TensorSpec, up: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        expect_dtype(OP, "gate", gate, &FLOATS)?;
        expect_rows(OP, "gate", gate)?;
        expect_dims(OP, "up", up, gate.dims())?;
        expect_dtype(OP, "up", up, &[gate.dtype()])?;
        Self::with_out(Input::Separate { gate: *gate, up: *up }, gate, out)
    }

    /// The form over the halves of one tensor.
    pub fn fused(gate_up: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        let want = Self::out_spec(gate_up)?;
        let (n, last) = (want.shape().last(), want.rank() - 1);
        let (gate, up) = (gate_up.narrow(last, 0, n)?, gate_up.narrow(last, n, n)?);
        Self::with_out(Input::Fused { gate_up: *gate_up, gate, up }, &want, out)
    }

    /// The result of the fused form: contiguous, half as wide as gate_up.
    pub fn out_spec(gate_up: &TensorSpec) -> Result<TensorSpec> {
        expect_dtype(OP, "gate_up", gate_up, &FLOATS)?;
        expect_rows(OP, "gate_up", gate_up)?;
        let width = gate_up.shape().last();
        if width & 1 == 1 {
            let what = format!("gate_up is {}, expected an even last extent", gate_up.shape());
            return Err(OpError::shape(OP, what));
        }
        let shape: Shape = gate_up.shape().with_dim(gate_up.rank() - 1, width / 2)?;
        Ok(TensorSpec::new(gate_up.dtype(), shape))
    }

    fn with_out(input: Input, like: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        expect_dims(OP, "out", out, like.dims())?;
        expect_dtype(OP, "out", out, &[like.dtype()])?;
        expect_writable(OP, "out", out)?;
        Ok(Self { input, out: *out })
    }

    /// The gate: an operand, or a view of `gate_up`.
    pub fn gate(&self) -> &TensorSpec {
        match &self.input {
            Input::Separate { gate, .. } | Input::Fused { gate, .. } => gate,
        }
    }
    /// What is gated: an operand, or a view of `gate_up`.
    pub fn up(&self) -> &TensorSpec {
        match &self.input {
            Input::Separate { up, .. } | Input::Fused { up, .. } => up,
        }
    }
    /// The operand that holds both, in the fused form.
    pub fn gate_up(&self) -> Option<&TensorSpec> {
        match &self.input {
            Input::Separate { .. } => None,
            Input::Fused { gate_up, .. } => Some(gate_up),
        }
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
}

impl Contract for SwigluSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        match &self.input {
            Input::Separate { gate, up } => {
                visit(Operand { name: "gate", spec: gate, access: Access::Read });
                visit(Operand { name: "up", spec: up, access: Access::Read });
            }
            Input::Fused { gate_up, .. } => {
                visit(Operand { name: "gate_up", spec: gate_up, access: Access::Read });
            }
        }
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        match self.input {
            Input::Separate { .. } => &[("out", "gate"), ("out", "up")],
            Input::Fused { .. } => &[],
        }
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, (self.out.numel() as u64).saturating_mul(5))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let gated = |gate: f64, up: f64| Activation::Silu.apply(gate) * up;
        let n = self.out.shape().last();
        vec![match &self.input {
            Input::Separate { .. } => inputs[0].iter().zip(inputs[1]).map(|(&g, &u)| gated(g, u)).collect(),
            Input::Fused { .. } => inputs[0]
                .chunks(2 * n.max(1))
                .flat_map(|row| (0..n).map(|i| gated(row[i], row[n + i])))
                .collect(),
        }]
    }

    /// An exponential of 2 ulp, a sum, a quotient and two products: at most `16·u` in f32, relative. Then
    /// one rounding to the result's type, which errs by half a spacing of denormals below its normal range.
    fn tolerance(&self) -> Vec<Tolerance> {
        let computed = Tolerance { abs: 0.0, rel: 16.0 * DType::F32.unit_roundoff() };
        let spacing = if self.out.dtype() == DType::F16 { 2f64.powi(-25) } else { 2f64.powi(-126) };
        vec![Tolerance::rounded_to(self.out.dtype(), spacing).plus(computed)]
    }
}

impl Cases for SwigluSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for dtype in FLOATS {
            let wide = || Fill::Range(-20.0, 20.0);
            for (name, dims) in EDGES {
                let x = TensorSpec::of(dtype, dims)?;
                let spec = Self::new(&x, &x, &x)?;
                cases.push(Case::new(format!("{OP}/{dtype}/{name}"), spec).fill("gate", wide()));
                let both = x.shape().with_dim(x.rank() - 1, 2 * x.shape().last())?;
                let spec = Self::fused(&TensorSpec::new(dtype, both), &x)?;
                cases.push(Case::new(format!("{OP}/{dtype}/fused_{name}"), spec).fill("gate_up", wide()));
            }
            for (name, gate, out) in strided_pairs(dtype)? {
                let spec = Self::new(&gate, &out, &out)?;
                cases.push(Case::new(format!("{OP}/{dtype}/{name}"), spec));
            }
            let gate_up = TensorSpec::of(dtype, &[5, 3, 70])?.narrow(2, 3, 66)?.transpose(0, 1)?;
            let spec = Self::fused(&gate_up, &TensorSpec::of(dtype, &[3, 5, 33])?)?;
            cases.push(Case::new(format!("{OP}/{dtype}/fused_strided"), spec));
            let x = TensorSpec::of(dtype, &[37])?;
            let edges = vec![f64::INFINITY, f64::NAN, -0.0, 1e4, -1e4, 80.0, -80.0, 1e-7];
            let case = Case::new(format!("{OP}/{dtype}/not_finite"), Self::new(&x, &x, &x)?);
            cases.push(case.fill("gate", Fill::Values(edges)).fill("up", Fill::Range(1.0, 2.0)));
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(dims: &[usize]) -> TensorSpec {
        TensorSpec::of(DType::F32, dims).unwrap()
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
    fn both_forms_agree() {
        let x = spec(&[2, 2]);
        let separate = SwigluSpec::new(&x, &x, &x).unwrap();
        let fused = SwigluSpec::fused(&spec(&[2, 4]), &x).unwrap();
        assert_eq!(
            separate.reference(&[&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]]),
            fused.reference(&[&[1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0]]),
        );
        assert_eq!((fused.gate().strides(), fused.up().layout().offset()), (&[4usize, 1][..], 2));
        assert_eq!(separate.cost(), fused.cost());
    }

    #[test]
    fn an_odd_width_is_refused() {
        let e = SwigluSpec::fused(&spec(&[2, 5]), &spec(&[2, 2])).unwrap_err();
        assert_eq!(e.to_string(), "swiglu: gate_up is [2, 5], expected an even last extent");
        assert!(SwigluSpec::fused(&spec(&[]), &spec(&[])).is_err());
        assert!(SwigluSpec::new(&spec(&[2]), &spec(&[3]), &spec(&[2])).is_err());
    }

    #[test]
    fn every_case_is_legal() {
        assert!(SwigluSpec::cases().unwrap().len() > 60);
    }
}
