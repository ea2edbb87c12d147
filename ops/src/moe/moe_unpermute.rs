//! Rows of experts brought back to their tokens, and summed there by weight.

use super::moe_permute::routings;
use crate::norm::FLOATS;
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, Shape, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_rank, expect_writable, streaming_cost,
};

const OP: &str = "moe_unpermute";

/// Sums the rows of every token's experts.
///
/// `out[t, ..] = Σ_j weights[t, j] · y[row_map[t, j], ..]` over j with `row_map[t, j] ≥ 0`
///
/// # Shapes
/// y `[R, H]` or `[E, C, H]` (then row_map counts rows of `[E·C, H]`), row_map and weights `[T, k]`, out `[T, H]`.
/// Without weights each counts 1. Any extent may be zero.
///
/// # DTypes
/// y f32, f16 or bf16; out of y's type or f32; weights f32, row_map i32. Summed in f32, rounded once.
///
/// # Layout
/// Any strides.
///
/// # Determinism
/// `BatchInvariant`: the sum goes through j in rising order. A place without a row adds nothing, whatever its weight.
///
/// # Cost
/// `2·T·k·H` operations (half without weights); reads T·k rows of y.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself). A row of R or more is a data fault.
///
/// # Composition
/// For each j: gather of rows, binary multiply by the weight (select 0 for it where there is no row), binary add;
/// cast to out.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeUnpermuteSpec {
    y: TensorSpec,
    row_map: TensorSpec,
    weights: Option<TensorSpec>,
    out: TensorSpec,
}

impl MoeUnpermuteSpec {
    /// The plain sum of each token's rows.
    pub fn new(y: &TensorSpec, row_map: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        let want = Self::out_spec(y, row_map)?;
        expect_dims(OP, "out", out, want.dims())?;
        expect_dtype(OP, "out", out, &[y.dtype(), DType::F32])?;
        expect_writable(OP, "out", out)?;
        Ok(Self { y: *y, row_map: *row_map, weights: None, out: *out })
    }

    /// The result: contiguous, of y's type.
    pub fn out_spec(y: &TensorSpec, row_map: &TensorSpec) -> Result<TensorSpec> {
        if y.rank() != 2 && y.rank() != 3 {
            let what = format!("y is {}, expected [rows, width] or [experts, room, width]", y.shape());
            return Err(OpError::shape(OP, what));
        }
        expect_dtype(OP, "y", y, &FLOATS)?;
        expect_rank(OP, "row_map", row_map, 2)?;
        expect_dtype(OP, "row_map", row_map, &[DType::I32])?;
        if y.shape().rows() > i32::MAX as usize {
            return Err(OpError::shape(OP, format!("y is {}, expected fewer than 2^31 rows", y.shape())));
        }
        Ok(TensorSpec::new(y.dtype(), Shape::new(&[row_map.dims()[0], y.shape().last()])?))
    }

    /// Multiplies each row by its weight.
    pub fn with_weights(mut self, weights: &TensorSpec) -> Result<Self> {
        expect_dims(OP, "weights", weights, self.row_map.dims())?;
        expect_dtype(OP, "weights", weights, &[DType::F32])?;
        self.weights = Some(*weights);
        Ok(self)
    }

    /// Rows of experts.
    pub fn y(&self) -> &TensorSpec {
        &self.y
    }
    /// The rows of each token.
    pub fn row_map(&self) -> &TensorSpec {
        &self.row_map
    }
    /// How much each of them counts.
    pub fn weights(&self) -> Option<&TensorSpec> {
        self.weights.as_ref()
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.row_map.dims()[0]
    }
    /// Rows of each token.
    pub fn top_k(&self) -> usize {
        self.row_map.dims()[1]
    }
}

impl Contract for MoeUnpermuteSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "y", spec: &self.y, access: Access::Read });
        visit(Operand { name: "row_map", spec: &self.row_map, access: Access::Read });
        if let Some(spec) = &self.weights {
            visit(Operand { name: "weights", spec, access: Access::Read });
        }
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        let terms = (self.row_map.numel() as u64).saturating_mul(self.y.shape().last() as u64);
        let each = 1 + u64::from(self.weights.is_some());
        let mut cost = streaming_cost(self, terms.saturating_mul(each));
        let unread = (self.y.numel() as u64).saturating_sub(terms);
        cost.bytes_read = cost.bytes_read.saturating_sub(self.y.dtype().bytes_for(unread as usize) as u64);
        cost
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let (k, width) = (self.top_k(), self.y.shape().last());
        let mut out = vec![0.0; self.out.numel()];
        for (pair, &row) in inputs[1].iter().enumerate().filter(|(_, row)| **row >= 0.0) {
            let weight = if self.weights.is_some() { inputs[2][pair] } else { 1.0 };
            for i in 0..width {
                out[pair / k * width + i] += weight * inputs[0][row as usize * width + i];
            }
        }
        vec![out]
    }

    /// Rows and weights lie in [−1, 1], so partial sums of k terms are at most k, and k of them are rounded (and as
    /// many products on the portable path): `(k² + k)·u`. Then one rounding to the result's type.
    fn tolerance(&self) -> Vec<Tolerance> {
        let k = self.top_k() as f64;
        let accumulated = (k * k + k) * DType::F32.unit_roundoff();
        vec![Tolerance::rounded_to(self.out.dtype(), accumulated)]
    }
}

impl Cases for MoeUnpermuteSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        // Tokens, places, rows, width.
        let edges: [(&str, [usize; 4]); 8] = [
            ("no_tokens", [0, 2, 6, 8]),
            ("no_places", [3, 0, 6, 8]),
            ("no_rows", [3, 2, 0, 8]),
            ("no_width", [3, 2, 6, 0]),
            ("one", [1, 1, 1, 1]),
            ("unaligned", [17, 3, 51, 37]),
            ("many_places", [5, 12, 60, 70]),
            ("typical", [67, 6, 402, 64]),
        ];
        let types = FLOATS.into_iter().flat_map(|y| [(y, y), (y, DType::F32)]);
        for (y_type, out_type) in types.filter(|&(y, out)| y != DType::F32 || out == DType::F32) {
            for (edge, [tokens, k, rows, width]) in edges {
                let y = TensorSpec::of(y_type, &[rows, width])?;
                let row_map = TensorSpec::of(DType::I32, &[tokens, k])?;
                let out = TensorSpec::of(out_type, &[tokens, width])?;
                let plain = Self::new(&y, &row_map, &out)?;
                let weighted = plain.clone().with_weights(&TensorSpec::of(DType::F32, &[tokens, k])?)?;
                let room = TensorSpec::of(y_type, &[3, rows / 3, width])?;
                let masked =
                    Self::new(&room, &row_map, &out)?.with_weights(&row_map.with_dtype(DType::F32))?;
                let specs =
                    [("plain", plain, rows), ("weighted", weighted, rows), ("masked", masked, rows / 3 * 3)];
                for (form, spec, rows) in specs {
                    // Rows are routed as tokens are: any of them, one for all, some for none.
                    for (routing, fill) in routings(tokens * k, rows) {
                        let name = format!("moe_unpermute/{form}/{y_type}_{out_type}/{edge}/{routing}");
                        let case = Case::new(name, spec.clone()).fill("row_map", Fill::Values(fill));
                        // A weight that is no number does no harm where there is no row.
                        let weights = (0..tokens * k).map(|i| match routing {
                            "padding" if i % 2 == 0 => f64::NAN,
                            _ => (i * 11 % 17) as f64 / 8.0 - 1.0,
                        });
                        cases.push(case.fill("weights", Fill::Values(weights.collect())));
                    }
                }
            }
            let y = TensorSpec::of(y_type, &[4, 19, 5])?.permute(&[2, 0, 1])?;
            let row_map = TensorSpec::of(DType::I32, &[3, 9])?.transpose(0, 1)?;
            let out = TensorSpec::of(out_type, &[9, 40])?.narrow(1, 3, 19)?;
            let weights = TensorSpec::of(DType::F32, &[9, 5])?.narrow(1, 1, 3)?;
            let fill = Fill::Values((0..27).map(|i| f64::from(i * 11 % 21 - 1)).collect());
            let spec = Self::new(&y, &row_map, &out)?.with_weights(&weights)?;
            let name = format!("moe_unpermute/strided/{y_type}_{out_type}");
            cases.push(Case::new(name, spec).fill("row_map", fill));
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(dtype: DType, dims: &[usize]) -> TensorSpec {
        TensorSpec::of(dtype, dims).unwrap()
    }

    #[test]
    fn a_sum_by_hand() {
        let map = of(DType::I32, &[2, 2]);
        let spec = MoeUnpermuteSpec::new(&of(DType::F32, &[3, 2]), &map, &of(DType::F32, &[2, 2])).unwrap();
        let y = [1.0, 2.0, 10.0, 20.0, 100.0, 200.0];
        assert_eq!(spec.reference(&[&y, &[2.0, 0.0, -1.0, 1.0]])[0], [101.0, 202.0, 10.0, 20.0]);
        let spec = spec.with_weights(&map.with_dtype(DType::F32)).unwrap();
        let got = spec.reference(&[&y, &[2.0, 0.0, -1.0, 1.0], &[0.5, 3.0, f64::NAN, 2.0]]);
        assert_eq!(got[0], [53.0, 106.0, 20.0, 40.0]);
        assert_eq!(spec.cost().flops, 16);
    }

    #[test]
    fn extents_and_types_that_do_not_fit_are_refused() {
        let (y, map, out) = (of(DType::F16, &[6, 4]), of(DType::I32, &[3, 2]), of(DType::F16, &[3, 4]));
        let new = MoeUnpermuteSpec::new;
        assert!(new(&y, &map, &out).is_ok());
        assert!(new(&of(DType::F16, &[2, 3, 4]), &map, &out).is_ok());
        assert!(new(&of(DType::F16, &[4]), &map, &out).is_err());
        assert!(new(&y, &map, &of(DType::BF16, &[3, 4])).is_err());
        assert!(new(&y, &map, &of(DType::F16, &[3, 5])).is_err());
        assert!(new(&y, &of(DType::I64, &[3, 2]), &out).is_err());
        assert!(new(&y, &map, &out).unwrap().with_weights(&of(DType::F32, &[3, 3])).is_err());
        let e = new(&of(DType::F32, &[2]), &map, &out).unwrap_err();
        assert!(matches!(e, OpError::Shape { .. }), "{e}");
    }

    #[test]
    fn every_case_is_legal() {
        assert!(MoeUnpermuteSpec::cases().unwrap().len() > 300);
    }
}
