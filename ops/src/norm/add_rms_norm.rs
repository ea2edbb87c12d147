//! The residual sum and the norm that follows it, in one pass over the row.

use super::rms_norm::{flops, normalise, tolerance};
use super::{EDGES, expect_eps, expect_rows_out, rows_out, strided_pairs};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Operand, Result, TensorSpec, Tolerance, expect_dims,
    expect_dtype, rounded, streaming_cost,
};

/// Adds to the residual stream and normalises the sum.
///
/// `residual[.., i] ← residual[.., i] + x[.., i]`, then `out = rms_norm(residual) · weight`
///
/// # Shapes
/// x, residual and out `[.., n]`, weight `[n]`, absent for 1. Any extent may be zero.
///
/// # DTypes
/// x out of f32, f16, bf16; residual of x's type or f32; out of x's type; weight of x's type or f32. The
/// sum is taken in f32 and rounded to the residual's type; the norm sees the rounded sum, and is computed
/// as [`super::RmsNormSpec`] does.
///
/// # Layout
/// Any strides. residual is written in place; out may be x.
///
/// # Determinism
/// `BatchInvariant`: a row depends on nothing but itself.
///
/// # Cost
/// `4·numel + 4·rows` operations, `numel` more with a weight; x is read, residual read and written, out
/// written, each once.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (residual or out overlaps itself), `Attribute` (eps negative or not finite).
///
/// # Composition
/// binary `residual + x` in place, then rms_norm of residual; through f32 scratch where the types differ.
#[derive(Clone, Debug, PartialEq)]
pub struct AddRmsNormSpec {
    x: TensorSpec,
    residual: TensorSpec,
    weight: Option<TensorSpec>,
    out: TensorSpec,
    eps: f32,
}

const OP: &str = "add_rms_norm";

impl AddRmsNormSpec {
    /// The sum and its norm without weight.
    pub fn new(x: &TensorSpec, residual: &TensorSpec, out: &TensorSpec, eps: f32) -> Result<Self> {
        expect_rows_out(OP, x, ("residual", residual), &[x.dtype(), DType::F32])?;
        expect_rows_out(OP, x, ("out", out), &[x.dtype()])?;
        expect_eps(OP, eps)?;
        Ok(Self { x: *x, residual: *residual, weight: None, out: *out, eps })
    }

    /// The normalised result: contiguous, of x's extents and type.
    pub fn out_spec(x: &TensorSpec) -> Result<TensorSpec> {
        rows_out(OP, x)
    }

    /// Multiplies column i of the norm by `weight[i]`.
    pub fn with_weight(mut self, weight: &TensorSpec) -> Result<Self> {
        expect_dims(OP, "weight", weight, &[self.n()])?;
        expect_dtype(OP, "weight", weight, &[self.x.dtype(), DType::F32])?;
        self.weight = Some(*weight);
        Ok(self)
    }

    /// What is added.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// What it is added to.
    pub fn residual(&self) -> &TensorSpec {
        &self.residual
    }
    /// Factor of each column.
    pub fn weight(&self) -> Option<&TensorSpec> {
        self.weight.as_ref()
    }
    /// The norm of the sum.
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

impl Contract for AddRmsNormSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        visit(Operand { name: "residual", spec: &self.residual, access: Access::ReadWrite });
        if let Some(spec) = &self.weight {
            visit(Operand { name: "weight", spec, access: Access::Read });
        }
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        &[("out", "x")]
    }

    fn cost(&self) -> Cost {
        let numel = self.x.numel();
        let norm = flops(numel, self.rows(), self.weight.is_some());
        streaming_cost(self, norm.saturating_add(numel as u64))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        // The sum of two f32 values in f64, rounded to f32, is their f32 sum.
        let sum: Vec<f64> = inputs[0].iter().zip(inputs[1]).map(|(x, r)| f64::from((x + r) as f32)).collect();
        let seen: Vec<f64> = sum.iter().map(|&s| rounded(self.residual.dtype(), s)).collect();
        let out = normalise(&seen, self.n(), self.eps, inputs.get(2).copied());
        vec![sum, out]
    }

    /// The sum is rounded once to f32 on both sides, then to the residual's type; the norm of the same
    /// rounded sum is as far off as any norm.
    fn tolerance(&self) -> Vec<Tolerance> {
        let residual = match self.residual.dtype() {
            DType::F32 => Tolerance::EXACT,
            narrow => Tolerance::rounded_to(narrow, 2f64.powi(-25)),
        };
        vec![residual, tolerance(self.n(), self.out.dtype())]
    }
}

impl Cases for AddRmsNormSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for (dtype, residual, weight) in [
            (DType::F32, DType::F32, DType::F32),
            (DType::F16, DType::F16, DType::F16),
            (DType::BF16, DType::BF16, DType::BF16),
            (DType::BF16, DType::BF16, DType::F32),
            (DType::F16, DType::F32, DType::F32),
            (DType::BF16, DType::F32, DType::BF16),
        ] {
            let named = |name: &str| format!("{OP}/{dtype}_{residual}_{weight}/{name}");
            for (name, dims) in EDGES {
                let x = TensorSpec::of(dtype, dims)?;
                let spec = Self::new(&x, &TensorSpec::of(residual, dims)?, &x, 1e-5)?;
                let weight = TensorSpec::of(weight, &[x.shape().last()])?;
                cases.push(Case::new(named(name), spec.with_weight(&weight)?));
            }
            for ((name, x, out), (_, other, _)) in
                strided_pairs(dtype)?.into_iter().zip(strided_pairs(residual)?)
            {
                let stream = if name == "repeated_row" { other.to_contiguous() } else { other };
                cases.push(Case::new(named(name), Self::new(&x, &stream, &out, 1e-6)?));
            }
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(dtype: DType, dims: &[usize]) -> TensorSpec {
        TensorSpec::of(dtype, dims).unwrap()
    }

    #[test]
    fn the_norm_sees_the_rounded_sum() {
        let x = spec(DType::BF16, &[1, 2]);
        let add = AddRmsNormSpec::new(&x, &x, &x, 0.0).unwrap();
        // 1 + 2^-9 rounds to 1 in bf16: both columns become equal, so their norms are exactly 1.
        let results = add.reference(&[&[1.0, 0.5], &[2f64.powi(-9), 0.5]]);
        assert_eq!(results, [vec![1.0 + 2f64.powi(-9), 1.0], vec![1.0, 1.0]]);
    }

    #[test]
    fn results_come_in_the_order_of_the_operands() {
        let x = spec(DType::F32, &[1, 2]);
        let add = AddRmsNormSpec::new(&x, &x, &x, 0.0).unwrap().with_weight(&spec(DType::F32, &[2])).unwrap();
        let mut written = Vec::new();
        add.operands(&mut |o| {
            if o.access.writes() {
                written.push(o.name);
            }
        });
        assert_eq!(written, ["residual", "out"]);
        let results = add.reference(&[&[1.0, 1.0], &[2.0, -4.0], &[5.0, 7.0]]);
        assert_eq!(results, [vec![3.0, -3.0], vec![5.0, -7.0]]);
        assert_eq!(add.cost().bytes_read, 8 + 8 + 8);
        assert_eq!(add.cost().bytes_written, 16);
    }

    #[test]
    fn a_residual_narrower_than_x_is_refused() {
        let (wide, narrow) = (spec(DType::F32, &[1, 2]), spec(DType::BF16, &[1, 2]));
        assert!(AddRmsNormSpec::new(&wide, &narrow, &wide, 0.0).is_err());
        assert!(AddRmsNormSpec::new(&narrow, &wide, &narrow, 0.0).is_ok());
    }

    #[test]
    fn every_case_is_legal() {
        assert!(AddRmsNormSpec::cases().unwrap().len() > 80);
    }
}
