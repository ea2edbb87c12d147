//! Stable sort of every row, with the places its elements came from.

use crate::kernel::nan_greatest;
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_writable, streaming_cost,
};

const OP: &str = "sort";
const DTYPES: [DType; 7] =
    [DType::F32, DType::F16, DType::BF16, DType::F64, DType::I64, DType::I32, DType::U8];

/// Which end comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SortOrder {
    /// The smallest first; NaN last.
    Ascending,
    /// The largest first; NaN before all.
    Descending,
}

/// Sorts every row, and says where each element came from.
///
/// `values[r, j] = x[r, indices[r, j]]`, with `indices[r, ..]` the places in order
///
/// # Shapes
/// x, values and indices `[.., n]`, n below 2³¹. Either result may be absent, not both. Any extent may be zero.
///
/// # DTypes
/// x and values of one type out of f32, f16, bf16, f64, i64, i32, u8; indices i32. Bits are moved, never
/// converted.
///
/// # Layout
/// Any strides.
///
/// # Determinism
/// NaN is greatest; equal elements stay in the order of their places, in both directions (−0 equals +0). `Fast`
/// may exchange equal elements; from `RunToRun` on the sort is stable.
///
/// # Cost
/// `numel · ⌈log₂ n⌉` comparisons.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (a result overlaps itself).
///
/// # Composition
/// top_k of all n; ascending, of each row reversed (gather), with results reversed again.
#[derive(Clone, Debug, PartialEq)]
pub struct SortSpec {
    order: SortOrder,
    x: TensorSpec,
    values: Option<TensorSpec>,
    indices: Option<TensorSpec>,
}

impl SortSpec {
    /// The elements in order, and their places.
    pub fn new(order: SortOrder, x: &TensorSpec, values: &TensorSpec, indices: &TensorSpec) -> Result<Self> {
        Self::checked(order, x, Some(values), Some(indices))
    }

    /// The elements in order.
    pub fn values_only(order: SortOrder, x: &TensorSpec, values: &TensorSpec) -> Result<Self> {
        Self::checked(order, x, Some(values), None)
    }

    /// The places of the elements in order.
    pub fn indices_only(order: SortOrder, x: &TensorSpec, indices: &TensorSpec) -> Result<Self> {
        Self::checked(order, x, None, Some(indices))
    }

    fn checked(
        order: SortOrder,
        x: &TensorSpec,
        values: Option<&TensorSpec>,
        indices: Option<&TensorSpec>,
    ) -> Result<Self> {
        let (want_values, want_indices) = Self::out_specs(x)?;
        for (arg, spec, want) in [("values", values, want_values), ("indices", indices, want_indices)] {
            if let Some(spec) = spec {
                expect_dims(OP, arg, spec, want.dims())?;
                expect_dtype(OP, arg, spec, &[want.dtype()])?;
                expect_writable(OP, arg, spec)?;
            }
        }
        Ok(Self { order, x: *x, values: values.copied(), indices: indices.copied() })
    }

    /// The results for x: values and indices, contiguous.
    pub fn out_specs(x: &TensorSpec) -> Result<(TensorSpec, TensorSpec)> {
        expect_dtype(OP, "x", x, &DTYPES)?;
        if x.rank() == 0 || x.shape().last() > i32::MAX as usize {
            let what = format!("x is {}, expected rows of less than 2^31 elements", x.shape());
            return Err(OpError::shape(OP, what));
        }
        Ok((x.to_contiguous(), TensorSpec::new(DType::I32, *x.shape())))
    }

    /// Which end comes first.
    pub fn order(&self) -> SortOrder {
        self.order
    }
    /// Rows to sort.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// The elements in order.
    pub fn values(&self) -> Option<&TensorSpec> {
        self.values.as_ref()
    }
    /// Their places.
    pub fn indices(&self) -> Option<&TensorSpec> {
        self.indices.as_ref()
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

impl Contract for SortSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        if let Some(spec) = &self.values {
            visit(Operand { name: "values", spec, access: Access::Write });
        }
        if let Some(spec) = &self.indices {
            visit(Operand { name: "indices", spec, access: Access::Write });
        }
    }

    fn cost(&self) -> Cost {
        let rounds = u64::from(self.n().max(1).next_power_of_two().ilog2());
        streaming_cost(self, (self.x.numel() as u64).saturating_mul(rounds))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let (mut values, mut indices) = (Vec::new(), Vec::new());
        for row in inputs[0].chunks(self.n().max(1)) {
            let mut order: Vec<usize> = (0..row.len()).collect();
            // Stable, so equal elements stay in ascending order of place.
            order.sort_by(|&i, &j| match self.order {
                SortOrder::Ascending => nan_greatest(row[i], row[j]),
                SortOrder::Descending => nan_greatest(row[j], row[i]),
            });
            values.extend(order.iter().map(|&i| row[i]));
            indices.extend(order.iter().map(|&i| i as f64));
        }
        let results = [self.values.map(|_| values), self.indices.map(|_| indices)];
        results.into_iter().flatten().collect()
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        vec![Tolerance::EXACT; usize::from(self.values.is_some()) + usize::from(self.indices.is_some())]
    }
}

impl Cases for SortSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        let shapes: [(&str, &[usize]); 9] = [
            ("no_rows", &[0, 5]),
            ("empty_rows", &[3, 0]),
            ("one", &[1]),
            ("one_column", &[4, 1]),
            ("short_rows", &[33, 7]),
            ("unaligned", &[5, 37]),
            ("experts", &[2, 3, 64]),
            ("long", &[2, 1031]),
            ("longer", &[1, 5003]),
        ];
        for (order, direction) in [(SortOrder::Ascending, "ascending"), (SortOrder::Descending, "descending")]
        {
            for dtype in DTYPES {
                let named = |edge: &str| format!("sort/{direction}/{dtype}/{edge}");
                let ties = Fill::Values(vec![3.0, 1.0, 4.0, 1.0, 5.0, 2.0, 6.0, 5.0, 3.0, 5.0, 0.0]);
                // Several bytes of a key, both signs where the type has them.
                let wide = match dtype {
                    DType::U8 => Fill::Range(0.0, 256.0),
                    DType::F16 => Fill::Range(-60_000.0, 60_000.0),
                    _ => Fill::Range(-1e9, 1e9),
                };
                for (edge, dims) in shapes {
                    let x = TensorSpec::of(dtype, dims)?;
                    let (values, indices) = Self::out_specs(&x)?;
                    let spec = Self::new(order, &x, &values, &indices)?;
                    cases.push(Case::new(named(edge), spec.clone()).fill("x", wide.clone()));
                    cases.push(Case::new(named(&format!("{edge}_ties")), spec).fill("x", ties.clone()));
                }
                let x = TensorSpec::of(dtype, &[29, 6])?.transpose(0, 1)?.narrow(1, 3, 20)?;
                let values = TensorSpec::of(dtype, &[6, 29])?.narrow(1, 2, 20)?;
                let indices = TensorSpec::of(DType::I32, &[20, 6])?.transpose(0, 1)?;
                cases.push(Case::new(named("strided"), Self::new(order, &x, &values, &indices)?));
                cases.push(Case::new(named("values_only"), Self::values_only(order, &x, &values)?));
                cases.push(Case::new(named("indices_only"), Self::indices_only(order, &x, &indices)?));
                let row = TensorSpec::of(dtype, &[1, 37])?
                    .broadcast_to(TensorSpec::of(dtype, &[3, 37])?.shape())?;
                let (values, indices) = Self::out_specs(&row)?;
                cases.push(Case::new(named("repeated_row"), Self::new(order, &row, &values, &indices)?));
                if dtype.is_float() {
                    let x = TensorSpec::of(dtype, &[5, 19])?;
                    let (values, indices) = Self::out_specs(&x)?;
                    let special =
                        vec![0.0, f64::NAN, -0.0, f64::INFINITY, 1.0, f64::NEG_INFINITY, -1.0, 6e-8, -6e-8];
                    let case = Case::new(named("special"), Self::new(order, &x, &values, &indices)?);
                    cases.push(case.fill("x", Fill::Values(special)));
                }
            }
            // Rows long enough to be sorted in parts.
            let x = TensorSpec::of(DType::F32, &[1, 70_001])?;
            let (values, indices) = Self::out_specs(&x)?;
            let spec = Self::new(order, &x, &values, &indices)?;
            let case = Case::new(format!("sort/{direction}/f32/parts"), spec.clone());
            cases.push(case.fill("x", Fill::Range(-1e9, 1e9)));
            let case = Case::new(format!("sort/{direction}/f32/parts_ties"), spec);
            cases.push(case.fill("x", Fill::Values(vec![2.0, 1.0, 2.0, 0.5])));
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sorted(order: SortOrder, x: &[f64]) -> Vec<Vec<f64>> {
        let x_spec = TensorSpec::of(DType::F64, &[x.len()]).unwrap();
        let (values, indices) = SortSpec::out_specs(&x_spec).unwrap();
        SortSpec::new(order, &x_spec, &values, &indices).unwrap().reference(&[x])
    }

    #[test]
    fn equal_elements_keep_their_order_in_both_directions() {
        let x = [2.0, f64::NAN, -0.0, 2.0, 0.0, f64::INFINITY];
        assert_eq!(sorted(SortOrder::Ascending, &x)[1], [2.0, 4.0, 0.0, 3.0, 5.0, 1.0]);
        assert_eq!(sorted(SortOrder::Descending, &x)[1], [1.0, 5.0, 0.0, 3.0, 2.0, 4.0]);
    }

    #[test]
    fn results_come_in_the_order_of_operands() {
        let x = TensorSpec::of(DType::I32, &[3]).unwrap();
        let argsort = SortSpec::indices_only(SortOrder::Ascending, &x, &x).unwrap();
        assert_eq!(argsort.reference(&[&[7.0, -1.0, 7.0]]), [vec![1.0, 0.0, 2.0]]);
        let values = SortSpec::values_only(SortOrder::Descending, &x, &x).unwrap();
        assert_eq!(values.reference(&[&[7.0, -1.0, 8.0]]), [vec![8.0, 7.0, -1.0]]);
        assert_eq!(values.cost().flops, 6);
    }

    #[test]
    fn every_case_is_legal() {
        assert!(SortSpec::cases().unwrap().len() > 300);
    }

    proptest! {
        #[test]
        fn values_are_in_order_and_places_a_permutation(x in prop::collection::vec(-4i8..4, 0..40)) {
            let x: Vec<f64> = x.into_iter().map(f64::from).collect();
            let results = sorted(SortOrder::Ascending, &x);
            prop_assert!(results[0].windows(2).all(|w| w[0] <= w[1]));
            let mut places = results[1].clone();
            for (value, &place) in results[0].iter().zip(&places) {
                prop_assert_eq!(*value, x[place as usize]);
            }
            places.sort_by(f64::total_cmp);
            prop_assert!(places.iter().enumerate().all(|(i, &p)| p == i as f64));
        }

        #[test]
        fn arguments_are_legal_exactly_where_the_contract_says(
            dims in prop::collection::vec(0usize..5, 0..4), other in prop::collection::vec(0usize..5, 0..4),
        ) {
            let (x, out) = (TensorSpec::of(DType::F16, &dims).unwrap(), TensorSpec::of(DType::F16, &other).unwrap());
            let legal = !dims.is_empty() && dims == other;
            prop_assert_eq!(SortSpec::values_only(SortOrder::Ascending, &x, &out).is_ok(), legal);
            prop_assert!(SortSpec::indices_only(SortOrder::Ascending, &x, &out).is_err());
            let mask = TensorSpec::of(DType::Bool, &dims).unwrap();
            prop_assert!(SortSpec::out_specs(&mask).is_err());
        }
    }
}
