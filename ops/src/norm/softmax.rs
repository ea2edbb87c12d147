//! Softmax along the last dimension.

use super::{EDGES, expect_rows_out, rows_out, strided_pairs};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, TensorSpec, Tolerance,
    streaming_cost,
};

/// Turns each row into a distribution.
///
/// `out[.., i] = e^(scale·x[.., i] − m) / Σ_j e^(scale·x[.., j] − m)` with `m = max_j scale·x[.., j]`
///
/// # Shapes
/// x and out `[.., n]`. Any extent may be zero.
///
/// # DTypes
/// x out of f32, f16, bf16; out of x's type or f32. Computed in f32. A value of −inf has probability 0; a
/// row of nothing but −inf gives 0 everywhere, as a row of attention without a visible key does; a row that
/// holds NaN or +inf gives NaN everywhere.
///
/// # Layout
/// Any strides. out may be x (in place), where the types are equal.
///
/// # Determinism
/// `BatchInvariant`: a row depends on nothing but itself.
///
/// # Cost
/// `5·numel` operations: scale, maximum, difference with exponential, sum, quotient.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself), `Attribute` (scale not finite, or not above 0).
///
/// # Composition
/// In f32 scratch: cast x, unary scale, reduce max, binary subtract with the maximum broadcast (select 0 for
/// it where it is −inf), unary exp, reduce sum, binary divide (select 0 where the sum is 0), cast to out.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftmaxSpec {
    x: TensorSpec,
    out: TensorSpec,
    scale: f32,
}

const OP: &str = "softmax";

impl SoftmaxSpec {
    /// Softmax of x itself.
    pub fn new(x: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        expect_rows_out(OP, x, ("out", out), &[x.dtype(), DType::F32])?;
        Ok(Self { x: *x, out: *out, scale: 1.0 })
    }

    /// The result: contiguous, of x's extents and type.
    pub fn out_spec(x: &TensorSpec) -> Result<TensorSpec> {
        rows_out(OP, x)
    }

    /// Multiplies x first: one over a temperature, or the scale of attention scores.
    pub fn with_scale(mut self, scale: f32) -> Result<Self> {
        if !(scale.is_finite() && scale > 0.0) {
            return Err(OpError::attribute(
                OP,
                "scale",
                format!("is {scale}, expected a finite number above 0"),
            ));
        }
        self.scale = scale;
        Ok(self)
    }

    /// Logarithms of the weights.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Factor of x.
    pub fn scale(&self) -> f32 {
        self.scale
    }
    /// Length of a row.
    pub fn n(&self) -> usize {
        self.x.shape().last()
    }
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.x.shape().rows()
    }
}

impl Contract for SoftmaxSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        if self.x.dtype() == self.out.dtype() { &[("out", "x")] } else { &[] }
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, (self.x.numel() as u64).saturating_mul(5))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let mut out = Vec::with_capacity(inputs[0].len());
        for row in inputs[0].chunks(self.n().max(1)) {
            if row.iter().all(|&x| x == f64::NEG_INFINITY) {
                out.extend(row.iter().map(|_| 0.0));
                continue;
            }
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> =
                row.iter().map(|x| (f64::from(self.scale) * (x - largest)).exp()).collect();
            let sum: f64 = weights.iter().sum();
            out.extend(weights.iter().map(|w| w / sum));
        }
        vec![out]
    }

    /// For `|scale·x| ≤ 32`, as in every case: the product and the difference are each rounded at a
    /// magnitude of at most 64, which moves the exponent by at most `96·u` and the weight by that, relative
    /// to itself; so does the sum. The sum of n positive terms adds `√n·u`, exp and the quotient `8·u`.
    /// Then one rounding to the result's type, denormals as in the norm.
    fn tolerance(&self) -> Vec<Tolerance> {
        let u = DType::F32.unit_roundoff();
        let computed = Tolerance { abs: 0.0, rel: (200.0 + (self.n() as f64).sqrt()) * u };
        let spacing = if self.out.dtype() == DType::F16 { 2f64.powi(-25) } else { 2f64.powi(-126) };
        vec![Tolerance::rounded_to(self.out.dtype(), spacing).plus(computed)]
    }
}

impl Cases for SoftmaxSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        let inf = f64::INFINITY;
        for (dtype, result) in [
            (DType::F32, DType::F32),
            (DType::F16, DType::F16),
            (DType::BF16, DType::BF16),
            (DType::F16, DType::F32),
            (DType::BF16, DType::F32),
        ] {
            let named = |name: &str| format!("{OP}/{dtype}_{result}/{name}");
            for (name, dims) in EDGES {
                let spec = Self::new(&TensorSpec::of(dtype, dims)?, &TensorSpec::of(result, dims)?)?;
                cases.push(Case::new(named(name), spec).fill("x", Fill::Range(-8.0, 8.0)));
            }
            for ((name, x, _), (_, _, out)) in strided_pairs(dtype)?.into_iter().zip(strided_pairs(result)?) {
                cases.push(Case::new(named(name), Self::new(&x, &out)?.with_scale(0.125)?));
            }
            let x = TensorSpec::of(dtype, &[4, 37])?;
            let spec = Self::new(&x, &TensorSpec::of(result, &[4, 37])?)?;
            // Largest first, last and in the middle; without subtracting the maximum, f16 and f32 overflow.
            let wide = Fill::Range(-32.0, 32.0);
            cases.push(Case::new(named("wide"), spec.clone()).fill("x", wide));
            let steep = spec.clone().with_scale(4.0)?;
            cases.push(Case::new(named("steep"), steep).fill("x", Fill::Range(-8.0, 8.0)));
            let equal = Fill::Range(3.0, 3.0);
            cases.push(Case::new(named("equal"), spec.clone()).fill("x", equal));
            let masked = (0..4 * 37).map(|i| if i % 3 == 0 { -inf } else { f64::from(i % 7) }).collect();
            cases.push(Case::new(named("masked"), spec.clone()).fill("x", Fill::Values(masked)));
            // Rows: all masked, one visible, a NaN, an infinity.
            let mut rows = vec![-inf; 4 * 37];
            rows[37 + 20] = 1.0;
            rows[74..].fill(1.0);
            rows[74 + 36] = f64::NAN;
            rows[111 + 3] = inf;
            cases.push(Case::new(named("not_finite"), spec).fill("x", Fill::Values(rows)));
        }
        let x = TensorSpec::of(DType::F32, &[2, 49_152])?;
        cases.push(
            Case::new("softmax/f32_f32/vocabulary", Self::new(&x, &x)?).fill("x", Fill::Range(-9.0, 9.0)),
        );
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn softmax(x: &[f64], scale: f32) -> Vec<f64> {
        let spec = TensorSpec::of(DType::F32, &[x.len()]).unwrap();
        SoftmaxSpec::new(&spec, &spec).unwrap().with_scale(scale).unwrap().reference(&[x]).remove(0)
    }

    #[test]
    fn logarithms_of_probabilities_give_them_back() {
        let p = [0.5, 0.25, 0.125, 0.125];
        let got = softmax(&p.map(f64::ln), 1.0);
        assert!(got.iter().zip(p).all(|(g, p)| (g - p).abs() < 1e-15), "{got:?}");
        // A scale of 2 squares the weights: 16, 4, 1, 1 of 22.
        let got = softmax(&p.map(f64::ln), 2.0);
        assert!((got[0] - 16.0 / 22.0).abs() < 1e-15, "{got:?}");
    }

    #[test]
    fn rows_that_are_not_finite_follow_the_contract() {
        let inf = f64::INFINITY;
        assert_eq!(softmax(&[-inf, -inf], 1.0), [0.0, 0.0]);
        assert_eq!(softmax(&[-inf, 7.0], 1.0), [0.0, 1.0]);
        assert!(softmax(&[-inf, f64::NAN], 1.0).iter().all(|x| x.is_nan()));
        assert!(softmax(&[1.0, inf], 1.0).iter().all(|x| x.is_nan()));
    }

    #[test]
    fn bad_arguments_are_refused() {
        let x = TensorSpec::of(DType::F32, &[2, 3]).unwrap();
        let half = TensorSpec::of(DType::F16, &[2, 3]).unwrap();
        assert!(SoftmaxSpec::new(&x, &half).is_err());
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(SoftmaxSpec::new(&x, &x).unwrap().with_scale(scale).is_err(), "{scale}");
        }
    }

    #[test]
    fn every_case_is_legal() {
        assert!(SoftmaxSpec::cases().unwrap().len() > 80);
    }

    proptest! {
        #[test]
        fn a_row_sums_to_one_and_a_shift_changes_nothing(
            x in prop::collection::vec(-20.0..20.0f64, 1..50), shift in -100.0..100.0f64,
        ) {
            let plain = softmax(&x, 1.0);
            prop_assert!((plain.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            let shifted = softmax(&x.iter().map(|x| x + shift).collect::<Vec<_>>(), 1.0);
            for (p, s) in plain.iter().zip(&shifted) {
                prop_assert!((p - s).abs() <= 1e-12);
            }
        }
    }
}
