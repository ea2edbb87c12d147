//! The weights of all experts as one operand: every tensor of a weight with the experts as its first dimension.
//!
//! What an expert's weight is, and how its codes become numbers, is [`WeightSpec`]'s affair; here is where each lies.

use crate::quant::{PackedContent, PackedSpec, QuantScheme, QuantSpec, WeightSpec};
use crate::{
    Access, DType, Fill, Layout, OpError, Operand, Result, Shape, TensorSpec, expect_dtype, expect_rank,
};
use std::sync::Arc;

const OP: &str = "experts";

/// What an operator calls the tensors of its experts' weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertNames {
    /// Of dense ones.
    pub dense: &'static str,
    /// Of quantized ones: codes, scale, offset, outer, outer offset.
    pub quant: [&'static str; 5],
    /// Of packed ones.
    pub packed: &'static str,
}

impl ExpertNames {
    /// The names of an operator with one weight, as in linear.
    pub const WEIGHT: ExpertNames = ExpertNames {
        dense: "weight",
        quant: ["weight.codes", "weight.scale", "weight.offset", "weight.outer", "weight.outer_offset"],
        packed: "weight.packed",
    };
}

/// The weights of `E` experts, each `[n, k]` and of one form: dense `[E, n, k]`; the parts of a quantized weight
/// with a leading dimension E; or packed bytes `[E, bytes]`.
///
/// Experts may lie apart (any first stride); within an expert a weight's own rules hold.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsSpec {
    count: usize,
    /// The first expert's; the others' lie further on by the first strides.
    one: WeightSpec,
    /// What `one` is made of, by slot: codes (or dense, or packed bytes), scale, offset, outer, outer offset.
    parts: Arc<[Option<TensorSpec>; 5]>,
}

impl ExpertsSpec {
    /// Dense weights `[E, n, k]`.
    ///
    /// # Errors
    /// `Shape` unless there are 3 dimensions; as [`WeightSpec::dense`].
    pub fn dense(weight: &TensorSpec) -> Result<Self> {
        expect_rank(OP, "weight", weight, 3)?;
        let one = WeightSpec::dense(&first(weight)?)?;
        Ok(Self { count: weight.dims()[0], one, parts: Arc::new([Some(*weight), None, None, None, None]) })
    }

    /// Quantized weights: the tensors of [`QuantSpec::new`], each with a leading dimension E.
    ///
    /// # Errors
    /// As [`QuantSpec::new`]; `Shape` for tensors of different numbers of experts, `Layout` for codes of half a byte
    /// that do not begin at a byte in every expert.
    pub fn quant(
        scheme: QuantScheme,
        codes: &TensorSpec,
        scale: &TensorSpec,
        offset: Option<&TensorSpec>,
        outer: Option<&TensorSpec>,
        outer_offset: Option<&TensorSpec>,
    ) -> Result<Self> {
        let parts = [Some(codes), Some(scale), offset, outer, outer_offset];
        let count = codes.dims().first().copied().unwrap_or(0);
        for (part, name) in parts.iter().zip(ExpertNames::WEIGHT.quant) {
            let Some(part) = part else { continue };
            expect_rank(OP, name, part, 3)?;
            if part.dims()[0] != count {
                let what = format!("{name} is {}, the codes are of {count} experts", part.shape());
                return Err(OpError::shape(OP, what));
            }
            if part.dtype().is_sub_byte() && count > 1 && !part.strides()[0].is_multiple_of(2) {
                return Err(OpError::layout(OP, name, format!("{part}: an expert begins within a byte")));
            }
        }
        let firsts = parts.map(|part| part.map(first).transpose());
        let [codes_1, scale_1, offset_1, outer_1, outer_offset_1] = firsts;
        let (Some(codes_1), Some(scale_1)) = (codes_1?, scale_1?) else {
            return Err(OpError::internal(OP, "a quantized weight without codes"));
        };
        let one = QuantSpec::new(
            scheme,
            &codes_1,
            &scale_1,
            offset_1?.as_ref(),
            outer_1?.as_ref(),
            outer_offset_1?.as_ref(),
        )?;
        Ok(Self { count, one: one.into(), parts: Arc::new(parts.map(|part| part.copied())) })
    }

    /// Quantized weights whose tensors are all contiguous.
    ///
    /// # Errors
    /// As [`QuantSpec::of`].
    pub fn of(scheme: QuantScheme, count: usize, n: usize, k: usize) -> Result<Self> {
        let one = QuantSpec::of(scheme, n, k)?;
        let stacked = |part: &TensorSpec| {
            let [rows, columns] = [part.dims()[0], part.dims()[1]];
            TensorSpec::of(part.dtype(), &[count, rows, columns])
        };
        let optional = |part: Option<&TensorSpec>| part.map(stacked).transpose();
        Self::quant(
            scheme,
            &stacked(one.codes())?,
            &stacked(one.scale())?,
            optional(one.offset())?.as_ref(),
            optional(one.outer())?.as_ref(),
            optional(one.outer_offset())?.as_ref(),
        )
    }

    /// Weights in a backend's own form: `u8 [E, bytes]`, each expert's as [`PackedSpec::new`] has them.
    ///
    /// # Errors
    /// `Shape`, `DType` and `Layout` for other tensors than that; as [`PackedSpec::within`].
    pub fn packed(
        content: PackedContent,
        n: usize,
        k: usize,
        tag: &'static str,
        bytes: &TensorSpec,
    ) -> Result<Self> {
        expect_rank(OP, "packed", bytes, 2)?;
        expect_dtype(OP, "packed", bytes, &[DType::U8])?;
        let one = PackedSpec::within(content, n, k, tag, &first(bytes)?)?;
        Ok(Self {
            count: bytes.dims()[0],
            one: one.into(),
            parts: Arc::new([Some(*bytes), None, None, None, None]),
        })
    }

    /// Number of experts.
    pub fn count(&self) -> usize {
        self.count
    }
    /// The first expert's weight.
    pub fn one(&self) -> &WeightSpec {
        &self.one
    }
    /// Rows of each weight: outputs.
    pub fn n(&self) -> usize {
        self.one.n()
    }
    /// Columns of each weight: inputs.
    pub fn k(&self) -> usize {
        self.one.k()
    }
    /// What reading one expert costs.
    pub fn bytes_each(&self) -> usize {
        self.one.bytes()
    }

    /// The weight of one expert, as views of the stacked tensors.
    ///
    /// # Errors
    /// `Shape` when there is no such expert.
    pub fn expert(&self, index: usize) -> Result<WeightSpec> {
        let view = |slot: usize| self.parts[slot].as_ref().map(|part| part.select(0, index)).transpose();
        let first = view(0)?.ok_or_else(|| OpError::internal(OP, "experts without a tensor"))?;
        Ok(match &self.one {
            WeightSpec::Dense(_) => WeightSpec::dense(&first)?,
            WeightSpec::Packed(one) => {
                PackedSpec::within(one.content(), one.n(), one.k(), one.tag(), &first)?.into()
            }
            WeightSpec::Quant(one) => {
                let scale = view(1)?.ok_or_else(|| OpError::internal(OP, "codes without a scale"))?;
                let (offset, outer, outer_offset) = (view(2)?, view(3)?, view(4)?);
                let parts = [offset.as_ref(), outer.as_ref(), outer_offset.as_ref()];
                QuantSpec::new(*one.scheme(), &first, &scale, parts[0], parts[1], parts[2])?.into()
            }
        })
    }

    /// Bytes from one expert to the next, by slot: codes (or dense, or packed), scale, offset, outer, outer offset.
    pub fn expert_strides(&self) -> [usize; 5] {
        let bytes = |part: &TensorSpec| part.dtype().bytes_for(part.strides()[0]);
        self.parts.each_ref().map(|part| part.as_ref().map_or(0, bytes))
    }

    /// Visits the stacked tensors by their names.
    pub fn visit<'a>(&'a self, names: &ExpertNames, access: Access, visit: &mut dyn FnMut(Operand<'a>)) {
        let names = match &self.one {
            WeightSpec::Dense(_) => [names.dense; 5],
            WeightSpec::Quant(_) => names.quant,
            WeightSpec::Packed(_) => [names.packed; 5],
        };
        for (part, name) in self.parts.iter().zip(names) {
            if let Some(spec) = part {
                visit(Operand { name, spec, access });
            }
        }
    }

    /// How many tensors there are.
    pub fn parts(&self) -> usize {
        self.parts.iter().flatten().count()
    }

    /// The weight `[n, k]` of one expert from the stacked tensors' values; `None` for packed ones.
    pub fn dequantize_f64(&self, index: usize, inputs: &[&[f64]]) -> Option<Vec<f64>> {
        let own = |values: &&[f64]| -> Vec<f64> {
            let each = values.len() / self.count.max(1);
            values[index * each..(index + 1) * each].to_vec()
        };
        let parts: Vec<Vec<f64>> = inputs.iter().map(own).collect();
        let slices: Vec<&[f64]> = parts.iter().map(Vec::as_slice).collect();
        self.one.dequantize_f64(&slices)
    }

    /// Fillings for the tensors in a case; see [`QuantSpec::fills`].
    pub fn fills(&self, names: &ExpertNames) -> Vec<(&'static str, Fill)> {
        let renamed = |name: &str| ExpertNames::WEIGHT.quant.iter().position(|known| *known == name);
        let fills = self.one.fills().into_iter();
        fills.filter_map(|(name, fill)| renamed(name).map(|slot| (names.quant[slot], fill))).collect()
    }
}

/// The view of the first entry, also where there is none: without its first dimension.
fn first(spec: &TensorSpec) -> Result<TensorSpec> {
    let [_, dims @ ..] = spec.dims() else {
        return Err(OpError::shape(OP, "a tensor without dimensions has no experts"));
    };
    let layout = Layout::new(&spec.strides()[1..], spec.layout().offset())?;
    TensorSpec::with_layout(spec.dtype(), Shape::new(dims)?, layout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expert_is_a_view_of_every_tensor() {
        let experts = ExpertsSpec::of(QuantScheme::Q4_1, 3, 4, 64).unwrap();
        assert_eq!((experts.count(), experts.n(), experts.k(), experts.parts()), (3, 4, 64, 3));
        assert_eq!(experts.expert_strides(), [4 * 32, 4 * 2 * 2, 4 * 2 * 2, 0, 0]);
        let WeightSpec::Quant(second) = experts.expert(1).unwrap() else { panic!("not quantized") };
        assert_eq!(second.codes().layout().offset(), 4 * 64);
        assert_eq!(second.scale().layout().offset(), 4 * 2);
        assert!(experts.expert(3).is_err());
        let dense = ExpertsSpec::dense(&TensorSpec::of(DType::BF16, &[2, 3, 5]).unwrap()).unwrap();
        assert_eq!(dense.expert_strides()[0], 30);
        assert_eq!(dense.dequantize_f64(1, &[&(0..30).map(f64::from).collect::<Vec<_>>()]).unwrap()[0], 15.0);
    }

    #[test]
    fn parts_of_different_numbers_of_experts_are_refused() {
        let of = |dtype, dims: &[usize]| TensorSpec::of(dtype, dims).unwrap();
        let codes = of(DType::I8, &[3, 4, 64]);
        let new = |scale: &TensorSpec| ExpertsSpec::quant(QuantScheme::Q8_0, &codes, scale, None, None, None);
        assert!(new(&of(DType::F16, &[3, 4, 2])).is_ok());
        let e = new(&of(DType::F16, &[2, 4, 2])).unwrap_err();
        assert!(e.to_string().contains("the codes are of 3 experts"), "{e}");
        assert!(new(&of(DType::F16, &[4, 2])).is_err());
        assert!(ExpertsSpec::dense(&of(DType::F32, &[4, 2])).is_err());
        let content = PackedContent::Dense(DType::F32);
        assert!(ExpertsSpec::packed(content, 4, 2, "x", &of(DType::U8, &[3, 32])).is_ok());
        assert!(ExpertsSpec::packed(content, 4, 2, "x", &of(DType::I8, &[3, 32])).is_err());
    }

    #[test]
    fn no_experts_are_a_stack_too() {
        let none = ExpertsSpec::of(QuantScheme::MXFP4, 0, 4, 64).unwrap();
        assert_eq!((none.count(), none.n()), (0, 4));
    }
}
