//! Root-mean-square norm: rows divided by the root of their mean square, times a weight.

use super::{EDGES, FLOATS, expect_eps, expect_rows_out, rows_out, strided_pairs};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, Operand, Result, TensorSpec, Tolerance, expect_dims,
    expect_dtype, streaming_cost,
};

/// Divides each row by the root of its mean square and multiplies by a weight.
///
/// `out[.., i] = x[.., i] / √(Σ_j x[.., j]² / n + eps) · weight[i]`
///
/// # Shapes
/// x and out `[.., n]`, weight `[n]`, absent for 1. Leading dimensions are rows. Any extent may be zero.
/// Group-wise: x and out `[.., groups, n]`, weight `[groups, n]`; each group is normalised alone, and has a
/// weight of its own.
///
/// # DTypes
/// x out of f32, f16, bf16; out of x's type; weight of x's type or f32. Squares accumulate in f32, the
/// quotient is multiplied by the weight in f32, and the product is rounded once. A row whose mean square
/// overflows f32 gives 0; a row of zeros with `eps = 0` gives NaN.
///
/// # Layout
/// Any strides. out may be x (in place).
///
/// # Determinism
/// `BatchInvariant`: a row depends on nothing but itself.
///
/// # Cost
/// `3·numel + 4·rows` operations, `numel` more with a weight; each operand is moved once.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself), `Attribute` (eps negative or not finite).
///
/// # Composition
/// In f32 scratch: cast x, binary `x·x`, reduce mean along n, unary `+ eps` and `rsqrt`, binary `x·r` with r
/// broadcast along n, binary `· weight`, cast to out.
///
/// # Source
/// Zhang and Sennrich, Root Mean Square Layer Normalization, 2019.
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNormSpec {
    x: TensorSpec,
    weight: Option<TensorSpec>,
    out: TensorSpec,
    eps: f32,
}

const OP: &str = "rms_norm";

impl RmsNormSpec {
    /// The norm without weight.
    pub fn new(x: &TensorSpec, out: &TensorSpec, eps: f32) -> Result<Self> {
        expect_rows_out(OP, x, ("out", out), &[x.dtype()])?;
        expect_eps(OP, eps)?;
        Ok(Self { x: *x, weight: None, out: *out, eps })
    }

    /// The result: contiguous, of x's extents and type.
    pub fn out_spec(x: &TensorSpec) -> Result<TensorSpec> {
        rows_out(OP, x)
    }

    /// Multiplies column i by `weight[i]`, or of group g by `weight[g, i]`.
    pub fn with_weight(mut self, weight: &TensorSpec) -> Result<Self> {
        let dims = self.x.dims();
        let grouped = weight.rank() == 2 && dims.len() >= 2;
        expect_dims(OP, "weight", weight, &dims[dims.len() - if grouped { 2 } else { 1 }..])?;
        expect_dtype(OP, "weight", weight, &[self.x.dtype(), DType::F32])?;
        self.weight = Some(*weight);
        Ok(self)
    }

    /// What is normalised.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// Factor of each column.
    pub fn weight(&self) -> Option<&TensorSpec> {
        self.weight.as_ref()
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Added to the mean square.
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

/// The norm of one row after another, in f64; weights of several rows repeat.
pub(super) fn normalise(x: &[f64], n: usize, eps: f32, weight: Option<&[f64]>) -> Vec<f64> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks(n.max(1)) {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / n as f64;
        let root = (mean + f64::from(eps)).sqrt();
        for x in row {
            let weight = weight.map_or(1.0, |w| w[out.len() % w.len()]);
            out.push(x / root * weight);
        }
    }
    out
}

/// Operations of [`normalise`]: squares and their sum, the quotient, the weight; four scalars a row.
pub(super) fn flops(numel: usize, rows: usize, weighted: bool) -> u64 {
    (numel as u64).saturating_mul(3 + u64::from(weighted)).saturating_add(4 * rows as u64)
}

/// The sum of n squares is a sum of positive terms: any order errs by at most `n·u`, independent
/// roundings by about `√n·u`, and the root halves it. We allow `(8 + √n)·u`: 8 for the mean, eps, root,
/// quotient, weight and an approximate reciprocal root of 4 ulp. Then one rounding to the result's type,
/// which errs by half a spacing of denormals below its normal range.
pub(super) fn tolerance(n: usize, out: DType) -> Tolerance {
    let computed = Tolerance { abs: 0.0, rel: (8.0 + (n as f64).sqrt()) * DType::F32.unit_roundoff() };
    let spacing = if out == DType::F16 { 2f64.powi(-25) } else { 2f64.powi(-126) };
    Tolerance::rounded_to(out, spacing).plus(computed)
}

impl Contract for RmsNormSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        if let Some(spec) = &self.weight {
            visit(Operand { name: "weight", spec, access: Access::Read });
        }
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        &[("out", "x")]
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, flops(self.x.numel(), self.rows(), self.weight.is_some()))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        vec![normalise(inputs[0], self.n(), self.eps, inputs.get(1).copied())]
    }

    /// Derived at the function of the same name above.
    fn tolerance(&self) -> Vec<Tolerance> {
        vec![tolerance(self.n(), self.out.dtype())]
    }
}

impl Cases for RmsNormSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for dtype in FLOATS {
            for weight in [None, Some(dtype), Some(DType::F32)] {
                let named = |name: &str| match weight {
                    Some(w) => format!("{OP}/{dtype}_{w}/{name}"),
                    None => format!("{OP}/{dtype}/{name}"),
                };
                let build = |x: &TensorSpec, out: &TensorSpec, eps| -> Result<Self> {
                    let spec = Self::new(x, out, eps)?;
                    match weight {
                        Some(w) => spec.with_weight(&TensorSpec::of(w, &[x.shape().last()])?),
                        None => Ok(spec),
                    }
                };
                if weight == Some(DType::F32) && dtype == DType::F32 {
                    continue;
                }
                for (name, dims) in EDGES {
                    let x = TensorSpec::of(dtype, dims)?;
                    cases.push(Case::new(named(name), build(&x, &x, 1e-5)?));
                }
                for (name, x, out) in strided_pairs(dtype)? {
                    cases.push(Case::new(named(name), build(&x, &out, 1e-6)?));
                }
                let x = TensorSpec::of(dtype, &[4, 67])?;
                cases.push(Case::new(named("zeros"), build(&x, &x, 1e-6)?).fill("x", Fill::Range(0.0, 0.0)));
                cases
                    .push(Case::new(named("no_eps"), build(&x, &x, 0.0)?).fill("x", Fill::Range(1.0, 100.0)));
                cases.push(Case::new(named("nan"), build(&x, &x, 1e-6)?).fill("x", nan_in_the_first_row()));
                if let Some(w) = weight {
                    for (name, dims, groups) in
                        [("one_group", &[5, 1, 9][..], [1, 9]), ("groups", &[2, 3, 4, 33], [4, 33])]
                    {
                        let x = TensorSpec::of(dtype, dims)?;
                        let spec = Self::new(&x, &x, 1e-6)?.with_weight(&TensorSpec::of(w, &groups)?)?;
                        cases.push(Case::new(named(name), spec));
                    }
                    for (name, x, out) in strided_pairs(dtype)? {
                        let spec = Self::new(&x, &out, 1e-6)?;
                        let spec = spec.with_weight(&TensorSpec::of(w, &[33, 5])?.transpose(0, 1)?)?;
                        cases.push(Case::new(named(&format!("groups_{name}")), spec));
                    }
                }
                let apart = TensorSpec::of(DType::F32, &[67, 2])?.select(1, 1)?;
                if weight == Some(DType::F32) {
                    let spec = Self::new(&x, &x, 1e-6)?.with_weight(&apart)?;
                    cases.push(Case::new(named("weight_apart"), spec));
                }
            }
        }
        Ok(cases)
    }
}

/// Fills four rows of 67 with a NaN in the first: the others must not notice.
fn nan_in_the_first_row() -> Fill {
    Fill::Values((0..4 * 67).map(|i| if i == 40 { f64::NAN } else { f64::from(i % 9) - 4.0 }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(dims: &[usize]) -> TensorSpec {
        TensorSpec::of(DType::F32, dims).unwrap()
    }

    #[test]
    fn a_row_by_hand() {
        let norm = RmsNormSpec::new(&spec(&[2, 2]), &spec(&[2, 2]), 0.0).unwrap();
        // Mean squares 25/2 and 2: roots 5/√2 and √2.
        let r = core::f64::consts::SQRT_2;
        let want = [3.0 * r / 5.0, 4.0 * r / 5.0, r, 0.0];
        let got = norm.reference(&[&[3.0, 4.0, 2.0, 0.0]]).remove(0);
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-15), "{got:?}");
        let weighted = norm.with_weight(&spec(&[2])).unwrap();
        let got = weighted.reference(&[&[3.0, 4.0, 2.0, 0.0], &[10.0, 0.0]]).remove(0);
        assert!((got[0] - 6.0 * r).abs() < 1e-14 && got[1] == 0.0 && got[3] == 0.0, "{got:?}");
    }

    #[test]
    fn groups_are_normalised_alone_and_weighed_each_by_its_own() {
        let x = spec(&[2, 2, 2]);
        let norm = RmsNormSpec::new(&x, &x, 0.0).unwrap().with_weight(&spec(&[2, 2])).unwrap();
        let values = [1.0, 1.0, 10.0, 10.0, -2.0, 2.0, 0.0, 3.0];
        let got = norm.reference(&[&values, &[1.0, 2.0, 3.0, 4.0]]).remove(0);
        let root = core::f64::consts::SQRT_2;
        let want = [1.0, 2.0, 3.0, 4.0, -1.0, 2.0, 0.0, 4.0 * root];
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-14), "{got:?}");
    }

    #[test]
    fn the_result_does_not_change_with_the_scale_of_x() {
        let norm = RmsNormSpec::new(&spec(&[1, 5]), &spec(&[1, 5]), 0.0).unwrap();
        let x = [0.25, -1.0, 3.0, 0.5, -2.0];
        let scaled = x.map(|x| x * 1024.0);
        assert_eq!(norm.reference(&[&x]), norm.reference(&[&scaled]));
    }

    #[test]
    fn bad_arguments_are_refused() {
        let x = spec(&[2, 3]);
        for eps in [-1e-6, f32::NAN, f32::INFINITY] {
            assert!(RmsNormSpec::new(&x, &x, eps).is_err(), "{eps}");
        }
        assert!(RmsNormSpec::new(&spec(&[]), &spec(&[]), 0.0).is_err());
        assert!(RmsNormSpec::new(&x, &spec(&[3, 2]), 0.0).is_err());
        assert!(RmsNormSpec::new(&x, &x, 0.0).unwrap().with_weight(&spec(&[2])).is_err());
        assert!(RmsNormSpec::new(&x, &x, 0.0).unwrap().with_weight(&spec(&[3, 3])).is_err());
        assert!(RmsNormSpec::new(&x, &x, 0.0).unwrap().with_weight(&spec(&[])).is_err());
        let row = spec(&[3]);
        assert!(RmsNormSpec::new(&row, &row, 0.0).unwrap().with_weight(&spec(&[1, 3])).is_err());
        let i32s = TensorSpec::of(DType::I32, &[2, 3]).unwrap();
        assert!(RmsNormSpec::new(&i32s, &i32s, 0.0).is_err());
        let repeated = spec(&[1, 3]).broadcast_to(x.shape()).unwrap();
        assert!(RmsNormSpec::new(&x, &repeated, 0.0).is_err());
    }

    #[test]
    fn the_cost_counts_every_operand_once() {
        let x = TensorSpec::of(DType::BF16, &[4, 8]).unwrap();
        let cost = RmsNormSpec::new(&x, &x, 0.0).unwrap().with_weight(&spec(&[8])).unwrap().cost();
        assert_eq!((cost.flops, cost.bytes_read, cost.bytes_written), (4 * 32 + 16, 64 + 32, 64));
    }

    #[test]
    fn every_case_is_legal() {
        assert!(RmsNormSpec::cases().unwrap().len() > 100);
    }
}
