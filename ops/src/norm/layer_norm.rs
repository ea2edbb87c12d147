//! Layer norm: rows shifted to mean 0 and divided by their standard deviation, times a weight, plus a bias.

use super::{EDGES, FLOATS, expect_eps, expect_rows_out, rows_out, strided_pairs};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, TensorSpec, Tolerance,
    expect_dims, expect_dtype, streaming_cost,
};

/// Shifts each row to mean 0, divides it by its standard deviation, multiplies by a weight and adds a bias.
///
/// `out[.., i] = (x[.., i] − mean) / √(variance + eps) · weight[i] + bias[i]`, with `mean = Σ_j x[.., j] / n` and
/// `variance = Σ_j (x[.., j] − mean)² / n`
///
/// # Shapes
/// x and out `[.., n]`, weight and bias `[n]`, absent for 1 and 0. Leading dimensions are rows. Any extent may be
/// zero.
///
/// # DTypes
/// x out of f32, f16, bf16; out of x's type; weight and bias of x's type or f32, both of one type. Sums
/// accumulate in f32; everything up to the result is in f32 and rounded once. A row of equal elements with
/// `eps = 0` gives NaN, and so does one that is not finite.
///
/// # Layout
/// Any strides. out may be x (in place).
///
/// # Determinism
/// `BatchInvariant`: a row depends on nothing but itself.
///
/// # Cost
/// `5·numel + 5·rows` operations (sum, difference, square and its sum, quotient), `numel` more with a weight
/// and with a bias; each operand is moved once.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself), `Attribute` (eps negative or not finite).
///
/// # Composition
/// In f32 scratch: cast x, reduce mean along n, binary `x − mean`, unary square, reduce mean, unary `+ eps` and
/// `rsqrt`, binary multiply with it, `· weight`, `+ bias`, cast to out.
///
/// # Source
/// Ba, Kiros and Hinton, Layer Normalization, 2016.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNormSpec {
    x: TensorSpec,
    weight: Option<TensorSpec>,
    bias: Option<TensorSpec>,
    out: TensorSpec,
    eps: f32,
}

const OP: &str = "layer_norm";

impl LayerNormSpec {
    /// The norm without weight and bias.
    pub fn new(x: &TensorSpec, out: &TensorSpec, eps: f32) -> Result<Self> {
        expect_rows_out(OP, x, ("out", out), &[x.dtype()])?;
        expect_eps(OP, eps)?;
        Ok(Self { x: *x, weight: None, bias: None, out: *out, eps })
    }

    /// The result: contiguous, of x's extents and type.
    pub fn out_spec(x: &TensorSpec) -> Result<TensorSpec> {
        rows_out(OP, x)
    }

    /// Multiplies column i by `weight[i]`.
    pub fn with_weight(mut self, weight: &TensorSpec) -> Result<Self> {
        self.check_columns("weight", weight, self.bias.as_ref())?;
        self.weight = Some(*weight);
        Ok(self)
    }

    /// Adds `bias[i]` to column i, after the weight.
    pub fn with_bias(mut self, bias: &TensorSpec) -> Result<Self> {
        self.check_columns("bias", bias, self.weight.as_ref())?;
        self.bias = Some(*bias);
        Ok(self)
    }

    fn check_columns(&self, arg: &'static str, spec: &TensorSpec, other: Option<&TensorSpec>) -> Result<()> {
        expect_dims(OP, arg, spec, &[self.n()])?;
        expect_dtype(OP, arg, spec, &[self.x.dtype(), DType::F32])?;
        match other {
            Some(other) if other.dtype() != spec.dtype() => {
                Err(OpError::dtype(OP, arg, spec.dtype(), format!("{}, as its partner", other.dtype())))
            }
            _ => Ok(()),
        }
    }

    /// What is normalised.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// Factor of each column.
    pub fn weight(&self) -> Option<&TensorSpec> {
        self.weight.as_ref()
    }
    /// What is added to each column.
    pub fn bias(&self) -> Option<&TensorSpec> {
        self.bias.as_ref()
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Added to the variance.
    pub fn eps(&self) -> f32 {
        self.eps
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

impl Contract for LayerNormSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        if let Some(spec) = &self.weight {
            visit(Operand { name: "weight", spec, access: Access::Read });
        }
        if let Some(spec) = &self.bias {
            visit(Operand { name: "bias", spec, access: Access::Read });
        }
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        &[("out", "x")]
    }

    fn cost(&self) -> Cost {
        let each = 5 + u64::from(self.weight.is_some()) + u64::from(self.bias.is_some());
        let flops = (self.x.numel() as u64).saturating_mul(each).saturating_add(5 * self.rows() as u64);
        streaming_cost(self, flops)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let n = self.n();
        let weight = self.weight.map(|_| inputs[1]);
        let bias = self.bias.map(|_| inputs[1 + usize::from(weight.is_some())]);
        let mut out = Vec::with_capacity(inputs[0].len());
        for row in inputs[0].chunks(n.max(1)) {
            let mean = row.iter().sum::<f64>() / n as f64;
            let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n as f64;
            let root = (variance + f64::from(self.eps)).sqrt();
            for (i, x) in row.iter().enumerate() {
                out.push((x - mean) / root * weight.map_or(1.0, |w| w[i]) + bias.map_or(0.0, |b| b[i]));
            }
        }
        vec![out]
    }

    /// The mean of n numbers of size at most M errs by about `(4 + √n)·u·M`, each difference by that and `u·M`
    /// more; divided by a deviation of at least M / 10, as in every case, and weighed by at most 1, that is
    /// `10·(5 + √n)·u` absolute. The error of the mean squared is negligible in the variance, which is otherwise
    /// as far off as a mean square, and so is its root: `(8 + √n)·u` relative, as for the root-mean-square norm,
    /// here of the part before the bias, so both of 1 and relative. Then one rounding to the result's type.
    fn tolerance(&self) -> Vec<Tolerance> {
        let u = DType::F32.unit_roundoff();
        let root = (self.n() as f64).sqrt();
        // A normalised element is at most √n.
        let scaled = if self.bias.is_some() { root.min(8.0) * (8.0 + root) * u } else { 0.0 };
        let computed = Tolerance { abs: 10.0 * (5.0 + root) * u + scaled, rel: (8.0 + root) * u };
        let spacing = if self.out.dtype() == DType::F16 { 2f64.powi(-25) } else { 2f64.powi(-126) };
        vec![Tolerance::rounded_to(self.out.dtype(), spacing).plus(computed)]
    }
}

impl Cases for LayerNormSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for dtype in FLOATS {
            let mut forms = vec![("plain", None), ("own", Some(dtype))];
            if dtype != DType::F32 {
                forms.push(("f32", Some(DType::F32)));
            }
            for (form, columns) in forms {
                let named = |name: &str| format!("{OP}/{dtype}/{form}/{name}");
                let build = |x: &TensorSpec, out: &TensorSpec, eps| -> Result<Self> {
                    let spec = Self::new(x, out, eps)?;
                    match columns {
                        Some(columns) => {
                            let columns = TensorSpec::of(columns, &[x.shape().last()])?;
                            spec.with_weight(&columns)?.with_bias(&columns)
                        }
                        None => Ok(spec),
                    }
                };
                for (name, dims) in EDGES {
                    let x = TensorSpec::of(dtype, dims)?;
                    cases.push(Case::new(named(name), build(&x, &x, 1e-5)?));
                }
                for (name, x, out) in strided_pairs(dtype)? {
                    cases.push(Case::new(named(name), build(&x, &out, 1e-6)?));
                }
                let x = TensorSpec::of(dtype, &[4, 67])?;
                let far = Fill::Range(3.0, 5.0);
                cases.push(Case::new(named("far_from_zero"), build(&x, &x, 1e-5)?).fill("x", far));
                let equal = Fill::Range(3.0, 3.0);
                cases.push(Case::new(named("equal"), build(&x, &x, 1e-5)?).fill("x", equal));
                let large = Fill::Range(-100.0, 100.0);
                cases.push(Case::new(named("no_eps"), build(&x, &x, 0.0)?).fill("x", large));
                // Rows: a NaN, an infinity, two that must not notice.
                let value = |i: usize| match i {
                    40 => f64::NAN,
                    70 => f64::INFINITY,
                    _ => (i % 9) as f64 - 4.0,
                };
                let fill = Fill::Values((0..4 * 67).map(value).collect());
                cases.push(Case::new(named("not_finite"), build(&x, &x, 1e-6)?).fill("x", fill));
            }
            let x = TensorSpec::of(dtype, &[4, 67])?;
            let apart = TensorSpec::of(DType::F32, &[67, 2])?.select(1, 1)?;
            let plain = Self::new(&x, &x, 1e-6)?;
            let weighed = plain.clone().with_weight(&apart)?;
            cases.push(Case::new(format!("{OP}/{dtype}/weight_only"), weighed));
            cases.push(Case::new(format!("{OP}/{dtype}/bias_only"), plain.with_bias(&apart)?));
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(dims: &[usize]) -> TensorSpec {
        TensorSpec::of(DType::F32, dims).unwrap()
    }

    #[test]
    fn rows_by_hand() {
        let x = spec(&[2, 2]);
        let norm = LayerNormSpec::new(&x, &x, 0.0).unwrap();
        // Means 5 and 0, deviations 2 and 3.
        let values = [3.0, 7.0, -3.0, 3.0];
        assert_eq!(norm.reference(&[&values]), [vec![-1.0, 1.0, -1.0, 1.0]]);
        let full = norm.with_weight(&spec(&[2])).unwrap().with_bias(&spec(&[2])).unwrap();
        assert_eq!(full.reference(&[&values, &[2.0, 4.0], &[10.0, 20.0]]), [vec![8.0, 24.0, 8.0, 24.0]]);
        let biased = LayerNormSpec::new(&x, &x, 0.0).unwrap().with_bias(&spec(&[2])).unwrap();
        assert_eq!(biased.reference(&[&values, &[10.0, 20.0]]), [vec![9.0, 21.0, 9.0, 21.0]]);
    }

    #[test]
    fn the_cost_counts_every_operand_once() {
        let x = TensorSpec::of(DType::BF16, &[4, 8]).unwrap();
        let norm = LayerNormSpec::new(&x, &x, 0.0).unwrap();
        let cost = norm.with_weight(&spec(&[8])).unwrap().with_bias(&spec(&[8])).unwrap().cost();
        assert_eq!((cost.flops, cost.bytes_read, cost.bytes_written), (7 * 32 + 20, 64 + 64, 64));
    }

    #[test]
    fn weight_and_bias_are_of_one_type() {
        let x = TensorSpec::of(DType::F16, &[2, 3]).unwrap();
        let half = TensorSpec::of(DType::F16, &[3]).unwrap();
        let norm = LayerNormSpec::new(&x, &x, 0.0).unwrap().with_weight(&half).unwrap();
        let e = norm.with_bias(&spec(&[3])).unwrap_err();
        assert_eq!(e.to_string(), "layer_norm: bias is f32, expected f16, as its partner");
    }

    #[test]
    fn every_case_is_legal() {
        assert!(LayerNormSpec::cases().unwrap().len() > 140);
    }

    proptest! {
        #[test]
        fn a_row_has_mean_0_and_deviation_1_and_forgets_shift_and_scale(
            x in prop::collection::vec(-20.0..20.0f64, 2..50), shift in -100.0..100.0f64, scale in 0.1..10.0f64,
        ) {
            prop_assume!(x.iter().any(|v| (v - x[0]).abs() > 1e-3));
            let spec = spec(&[x.len()]);
            let norm = LayerNormSpec::new(&spec, &spec, 0.0).unwrap();
            let got = norm.reference(&[&x]).remove(0);
            let n = got.len() as f64;
            prop_assert!(got.iter().sum::<f64>().abs() < 1e-9 * n);
            prop_assert!((got.iter().map(|v| v * v).sum::<f64>() / n - 1.0).abs() < 1e-9);
            let moved: Vec<f64> = x.iter().map(|v| v * scale + shift).collect();
            for (a, b) in got.iter().zip(&norm.reference(&[&moved])[0]) {
                prop_assert!((a - b).abs() < 1e-6);
            }
        }

        #[test]
        fn arguments_are_legal_exactly_where_the_contract_says(
            dims in prop::collection::vec(0usize..5, 0..4), columns in 0usize..5, eps in any::<f32>(),
        ) {
            let x = spec(&dims);
            let made = LayerNormSpec::new(&x, &x, eps);
            prop_assert_eq!(made.is_ok(), !dims.is_empty() && eps.is_finite() && eps >= 0.0);
            if let Ok(norm) = made {
                let fits = dims.last() == Some(&columns);
                prop_assert_eq!(norm.clone().with_weight(&spec(&[columns])).is_ok(), fits);
                prop_assert_eq!(norm.with_bias(&spec(&[columns])).is_ok(), fits);
            }
        }
    }
}
