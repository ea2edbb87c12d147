//! Embedding: rows of a weight chosen by token number, dequantized where the weight is quantized.
//!
//! The forms of a weight are in `quant/weight.rs`.

use crate::quant::linear::case_schemes;
use crate::quant::{QuantSpec, WeightSpec};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_writable,
};

const OP: &str = "embedding";

/// Looks up rows of a weight.
///
/// `out[.., k] = weight[ids[..], k]`; rows of negative ids (padding) are 0
///
/// # Shapes
/// ids `[..]`, weight `[n, k]`, out `[.., k]` with ids' extents. Any extent may be zero.
///
/// # DTypes
/// ids i32; weight dense f32, f16, bf16 or quantized (by the f32 rule of
/// [`QuantScheme::value`](crate::QuantScheme::value)); out f32, f16 or bf16, rounded once.
///
/// # Layout
/// Any strides for ids, a dense weight and out; rows of a quantized weight's tensors are contiguous.
///
/// # Determinism
/// The same bits at every level.
///
/// # Cost
/// No operations; reads ids and as many rows as there are ids, writes out.
///
/// # Errors
/// `Shape`, `DType`, `Layout`; `Unsupported` forms of weight are an `Attribute` error; an id of n or more is a
/// `Data` fault when the operator runs.
///
/// # Composition
/// gather, after dequantize where the weight is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingSpec {
    ids: TensorSpec,
    weight: WeightSpec,
    out: TensorSpec,
}

impl EmbeddingSpec {
    /// Looks up `ids` in `weight`.
    pub fn new(ids: &TensorSpec, weight: &WeightSpec, out: &TensorSpec) -> Result<Self> {
        expect_dtype(OP, "ids", ids, &[DType::I32])?;
        if let WeightSpec::Packed(_) = weight {
            return Err(OpError::attribute(OP, "weight", "is packed; give the dense or quantized one"));
        }
        expect_dtype(OP, "out", out, &[DType::F32, DType::F16, DType::BF16])?;
        expect_dims(OP, "out", out, Self::out_spec(ids, weight, out.dtype())?.dims())?;
        expect_writable(OP, "out", out)?;
        Ok(Self { ids: *ids, weight: weight.clone(), out: *out })
    }

    /// The result: contiguous, of the given type.
    pub fn out_spec(ids: &TensorSpec, weight: &WeightSpec, dtype: DType) -> Result<TensorSpec> {
        let mut dims: smallvec::SmallVec<[usize; 8]> = ids.dims().into();
        dims.push(weight.k());
        TensorSpec::of(dtype, &dims)
    }

    /// Token numbers.
    pub fn ids(&self) -> &TensorSpec {
        &self.ids
    }
    /// Weight.
    pub fn weight(&self) -> &WeightSpec {
        &self.weight
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
}

impl Contract for EmbeddingSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "ids", spec: &self.ids, access: Access::Read });
        self.weight.visit(Access::Read, visit);
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        let (ids, n) = (self.ids.numel() as u64, self.weight.n().max(1) as u64);
        let rows = (self.weight.bytes() as u64 / n).saturating_mul(ids);
        Cost {
            bytes_read: rows.saturating_add(self.ids.bytes() as u64),
            bytes_written: self.out.bytes() as u64,
            ..Cost::default()
        }
    }

    /// A row whose id is out of range, which a backend must refuse, is NaN here.
    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let Some(weights) = self.weight.dequantize_f64(&inputs[1..]) else { return Vec::new() };
        let k = self.weight.k();
        let mut out = Vec::with_capacity(self.out.numel());
        for &id in inputs[0] {
            let row = (id >= 0.0).then(|| weights.get(id as usize * k..(id as usize + 1) * k));
            match row {
                None => out.resize(out.len() + k, 0.0),
                Some(Some(row)) => out.extend_from_slice(row),
                Some(None) => out.resize(out.len() + k, f64::NAN),
            }
        }
        vec![out]
    }

    /// Movement is exact, and so is the f32 rule; a narrower result rounds once.
    fn tolerance(&self) -> Vec<Tolerance> {
        let exact = match &self.weight {
            WeightSpec::Dense(spec) => spec.dtype() == self.out.dtype(),
            _ => false,
        };
        vec![match self.out.dtype() {
            DType::F32 => Tolerance::EXACT,
            _ if exact => Tolerance::EXACT,
            // Below the smallest normal f16, 2^−14, the spacing is 2^−24 and no longer relative.
            dtype => Tolerance::rounded_to(dtype, 0.5f64.powi(25)),
        }]
    }
}

impl Cases for EmbeddingSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        let mut weights = Vec::new();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            weights.push((dtype.name(), WeightSpec::dense(&TensorSpec::of(dtype, &[13, 96])?)?));
        }
        for (name, scheme) in case_schemes(96)? {
            weights.push((name, WeightSpec::from(QuantSpec::of(scheme, 13, 96)?)));
        }
        for (name, weight) in &weights {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                for (edge, dims) in
                    [("empty", &[0usize][..]), ("scalar", &[]), ("one", &[1]), ("batch", &[3, 5])]
                {
                    let ids = TensorSpec::of(DType::I32, dims)?;
                    let spec = Self::new(&ids, weight, &Self::out_spec(&ids, weight, dtype)?)?;
                    let case = Case::new(format!("embedding/{name}_{dtype}/{edge}"), spec)
                        .fill("ids", Fill::Values(vec![12.0, -1.0, 0.0, 7.0, 7.0, 3.0]));
                    let fills = weight.fills();
                    cases.push(fills.into_iter().fold(case, |case, (part, fill)| case.fill(part, fill)));
                }
            }
        }
        let ids = TensorSpec::of(DType::I32, &[4, 9])?.narrow(1, 2, 5)?;
        let out = TensorSpec::of(DType::F32, &[5, 4, 100])?.transpose(0, 1)?.narrow(2, 3, 96)?;
        let spec = Self::new(&ids, &weights[0].1, &out)?;
        let ids = Fill::Values(vec![12.0, -5.0, 0.0, 7.0, 1.0, 3.0, 9.0]);
        cases.push(Case::new("embedding/f32_f32/strided", spec).fill("ids", ids));
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_ids_give_zeros_and_others_their_row() {
        let ids = TensorSpec::of(DType::I32, &[3]).unwrap();
        let weight = WeightSpec::dense(&TensorSpec::of(DType::F32, &[2, 2]).unwrap()).unwrap();
        let out = EmbeddingSpec::out_spec(&ids, &weight, DType::F32).unwrap();
        let spec = EmbeddingSpec::new(&ids, &weight, &out).unwrap();
        let got = spec.reference(&[&[1.0, -1.0, 0.0], &[1.0, 2.0, 3.0, 4.0]]);
        assert_eq!(got, [vec![3.0, 4.0, 0.0, 0.0, 1.0, 2.0]]);
        assert_eq!(spec.cost().bytes_read, 12 + 3 * 8);
    }

    #[test]
    fn every_case_is_legal() {
        assert!(EmbeddingSpec::cases().unwrap().len() > 90);
    }
}
