//! The k largest elements of every row, with their places.

use super::reduce::nan_greatest;
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, Shape, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_writable, streaming_cost,
};

const OP: &str = "top_k";
const DTYPES: [DType; 7] =
    [DType::F32, DType::F16, DType::BF16, DType::F64, DType::I64, DType::I32, DType::U8];

/// Finds the k largest elements of every row, largest first.
///
/// `values[r, j] = x[r, indices[r, j]]`, with `indices[r, ..]` the places of the k largest
///
/// # Shapes
/// x `[.., n]`, values and indices `[.., k]`, `k ≤ n`. Any extent may be zero.
///
/// # DTypes
/// x and values of one type out of f32, f16, bf16, f64, i64, i32, u8; indices i32.
///
/// # Layout
/// Any strides.
///
/// # Determinism
/// NaN is greatest; of equal elements the lowest place comes first (−0 equals +0). `Fast` may return other
/// places of equal values; from `RunToRun` on places are exact.
///
/// # Cost
/// One operation per element of x.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (a result overlaps itself).
#[derive(Clone, Debug, PartialEq)]
pub struct TopKSpec {
    x: TensorSpec,
    values: TensorSpec,
    indices: TensorSpec,
}

impl TopKSpec {
    /// The k largest of x's rows, k being the last extent of values.
    pub fn new(x: &TensorSpec, values: &TensorSpec, indices: &TensorSpec) -> Result<Self> {
        let (want_values, want_indices) = Self::out_specs(x, values.shape().last())?;
        expect_dims(OP, "values", values, want_values.dims())?;
        expect_dims(OP, "indices", indices, want_indices.dims())?;
        expect_dtype(OP, "values", values, &[x.dtype()])?;
        expect_dtype(OP, "indices", indices, &[DType::I32])?;
        expect_writable(OP, "values", values)?;
        expect_writable(OP, "indices", indices)?;
        Ok(Self { x: *x, values: *values, indices: *indices })
    }

    /// The results for x and k: values and indices, contiguous.
    pub fn out_specs(x: &TensorSpec, k: usize) -> Result<(TensorSpec, TensorSpec)> {
        expect_dtype(OP, "x", x, &DTYPES)?;
        let n = x.shape().last();
        if x.rank() == 0 || k > n || n > i32::MAX as usize {
            let what = format!("x is {}, k is {k}; expected rows of at least k and below 2^31", x.shape());
            return Err(OpError::shape(OP, what));
        }
        let shape: Shape = x.shape().with_dim(x.rank() - 1, k)?;
        Ok((TensorSpec::new(x.dtype(), shape), TensorSpec::new(DType::I32, shape)))
    }

    /// Rows to search.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// The largest elements.
    pub fn values(&self) -> &TensorSpec {
        &self.values
    }
    /// Their places.
    pub fn indices(&self) -> &TensorSpec {
        &self.indices
    }
    /// How many of each row.
    pub fn k(&self) -> usize {
        self.values.shape().last()
    }
}

impl Contract for TopKSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        visit(Operand { name: "values", spec: &self.values, access: Access::Write });
        visit(Operand { name: "indices", spec: &self.indices, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, self.x.numel() as u64)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let n = self.x.shape().last();
        let (mut values, mut indices) = (Vec::new(), Vec::new());
        // A row without elements has no results either.
        for row in inputs[0].chunks(n.max(1)) {
            let mut order: Vec<usize> = (0..n).collect();
            // Stable, so equal elements stay in ascending order of place.
            order.sort_by(|&i, &j| nan_greatest(row[j], row[i]));
            values.extend(order.iter().take(self.k()).map(|&i| row[i]));
            indices.extend(order.iter().take(self.k()).map(|&i| i as f64));
        }
        vec![values, indices]
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        vec![Tolerance::EXACT; 2]
    }
}

impl Cases for TopKSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        let shapes: [(&str, &[usize], usize); 9] = [
            ("empty_rows", &[0, 5], 2),
            ("empty_k", &[3, 5], 0),
            ("one", &[1], 1),
            ("all", &[4, 9], 9),
            ("first", &[7, 33], 1),
            ("unaligned", &[5, 37], 3),
            ("experts", &[16, 64], 8),
            ("long", &[2, 5003], 40),
            ("deep", &[2, 3, 300], 100),
        ];
        for dtype in DTYPES {
            let ties = Fill::Values(vec![3.0, 1.0, 4.0, 1.0, 5.0, 2.0, 6.0, 5.0, 3.0, 5.0, 0.0]);
            for (edge, dims, k) in shapes {
                let x = TensorSpec::of(dtype, dims)?;
                let (values, indices) = Self::out_specs(&x, k)?;
                let spec = Self::new(&x, &values, &indices)?;
                cases.push(Case::new(format!("top_k/{dtype}/{edge}"), spec.clone()));
                cases.push(Case::new(format!("top_k/{dtype}/{edge}_ties"), spec).fill("x", ties.clone()));
            }
            let x = TensorSpec::of(dtype, &[29, 6])?.transpose(0, 1)?.narrow(1, 3, 20)?;
            let values = TensorSpec::of(dtype, &[6, 9])?.narrow(1, 2, 4)?;
            let indices = TensorSpec::of(DType::I32, &[4, 6])?.transpose(0, 1)?;
            let spec = Self::new(&x, &values, &indices)?;
            cases.push(Case::new(format!("top_k/{dtype}/strided"), spec));
            if dtype.is_float() {
                let x = TensorSpec::of(dtype, &[5, 19])?;
                let (values, indices) = Self::out_specs(&x, 6)?;
                let special = vec![0.0, f64::NAN, -0.0, f64::INFINITY, 1.0, f64::NEG_INFINITY, -1.0];
                let case = Case::new(format!("top_k/{dtype}/special"), Self::new(&x, &values, &indices)?);
                cases.push(case.fill("x", Fill::Values(special)));
            }
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_comes_first_and_ties_go_to_the_lowest_place() {
        let x = TensorSpec::of(DType::F32, &[2, 4]).unwrap();
        let (values, indices) = TopKSpec::out_specs(&x, 3).unwrap();
        let spec = TopKSpec::new(&x, &values, &indices).unwrap();
        let got = spec.reference(&[&[1.0, 2.0, 2.0, 1.0, 0.0, f64::NAN, f64::INFINITY, 5.0]]);
        assert_eq!(got[1], [1.0, 2.0, 0.0, 1.0, 2.0, 3.0]);
        assert_eq!(got[0][..3], [2.0, 2.0, 1.0]);
        assert!(got[0][3].is_nan());
    }

    #[test]
    fn more_than_a_row_holds_is_refused() {
        let x = TensorSpec::of(DType::F32, &[2, 4]).unwrap();
        assert!(TopKSpec::out_specs(&x, 5).is_err());
        assert!(TopKSpec::out_specs(&TensorSpec::of(DType::F32, &[]).unwrap(), 1).is_err());
    }

    #[test]
    fn every_case_is_legal() {
        assert!(TopKSpec::cases().unwrap().len() > 120);
    }
}
