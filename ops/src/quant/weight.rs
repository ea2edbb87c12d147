//! The weight operand: dense, quantized into planar tensors, or packed by a backend for itself.
//!
//! Every operator with a weight takes this one type; how codes become numbers is in `scheme.rs`.

use super::scheme::{Offset, QuantScheme, ScaleKind};
use crate::codec::SmallFloat;
use crate::{
    Access, DType, Fill, OpError, Operand, Result, Shape, TensorSpec, expect_dims, expect_dtype, expect_rank,
};
use std::sync::Arc;

const OP: &str = "weight";

/// A quantized weight `[n, k]`: its scheme and the tensors that carry it.
///
/// codes `[n, k]`; scale and offset have one entry a block, `[ceil(n / block[0]), ceil(k / block[1])]`
/// (the last block may be cut short); outer and outer offset one for every `outer_block` columns,
/// `[ceil(n / block[0]), ceil(k / outer_block)]`. Each tensor's rows are contiguous; rows may lie apart.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantSpec {
    scheme: QuantScheme,
    codes: TensorSpec,
    scale: TensorSpec,
    offset: Option<TensorSpec>,
    outer: Option<TensorSpec>,
    outer_offset: Option<TensorSpec>,
}

impl QuantSpec {
    /// A weight of the given tensors.
    ///
    /// # Errors
    /// As [`QuantScheme::validate`]; `Shape` and `DType` for a tensor that is missing, superfluous or not as
    /// the scheme wants it; `Layout` for rows with gaps between their elements.
    pub fn new(
        scheme: QuantScheme,
        codes: &TensorSpec,
        scale: &TensorSpec,
        offset: Option<&TensorSpec>,
        outer: Option<&TensorSpec>,
        outer_offset: Option<&TensorSpec>,
    ) -> Result<Self> {
        scheme.validate()?;
        expect_rank(OP, "weight.codes", codes, 2)?;
        expect_dtype(OP, "weight.codes", codes, &[scheme.code])?;
        expect_rows(OP, "weight.codes", codes)?;
        let (n, k) = (codes.dims()[0], codes.dims()[1]);
        let blocks = scheme.blocks(n, k);
        let part = |arg, got: Option<&TensorSpec>, want: Option<(DType, [usize; 2])>| match (got, want) {
            (None, None) => Ok(None),
            (Some(spec), Some((dtype, dims))) => {
                expect_dims(OP, arg, spec, &dims)?;
                expect_dtype(OP, arg, spec, &[dtype])?;
                expect_rows(OP, arg, spec)?;
                Ok(Some(*spec))
            }
            (Some(spec), None) => {
                Err(OpError::shape(OP, format!("{arg} is {}, the scheme has none", spec.shape())))
            }
            (None, Some((dtype, dims))) => {
                Err(OpError::shape(OP, format!("{arg} is missing, the scheme wants {dtype}{dims:?}")))
            }
        };
        let outer_want = scheme.scale.outer().map(|(dtype, block)| (dtype, [blocks[0], k.div_ceil(block)]));
        let offset_want = scheme.offset_dtype().map(|dtype| (dtype, blocks));
        let outer_offset_want = outer_want.filter(|_| scheme.has_outer_offset());
        part("weight.scale", Some(scale), Some((scheme.scale.dtype(), blocks)))?;
        Ok(Self {
            scheme,
            codes: *codes,
            scale: *scale,
            offset: part("weight.offset", offset, offset_want)?,
            outer: part("weight.outer", outer, outer_want)?,
            outer_offset: part("weight.outer_offset", outer_offset, outer_offset_want)?,
        })
    }

    /// A weight `[n, k]` whose tensors are all contiguous.
    ///
    /// # Errors
    /// As [`QuantScheme::validate`] and [`Shape::new`].
    pub fn of(scheme: QuantScheme, n: usize, k: usize) -> Result<Self> {
        scheme.validate()?;
        let blocks = scheme.blocks(n, k);
        let spec = |dtype, dims: [usize; 2]| TensorSpec::of(dtype, &dims);
        let outer = match scheme.scale.outer() {
            Some((dtype, block)) => Some(spec(dtype, [blocks[0], k.div_ceil(block)])?),
            None => None,
        };
        let offset = match scheme.offset_dtype() {
            Some(dtype) => Some(spec(dtype, blocks)?),
            None => None,
        };
        let outer_offset = outer.filter(|_| scheme.has_outer_offset());
        let (codes, scale) = (spec(scheme.code, [n, k])?, spec(scheme.scale.dtype(), blocks)?);
        Self::new(scheme, &codes, &scale, offset.as_ref(), outer.as_ref(), outer_offset.as_ref())
    }

    /// How codes become numbers.
    pub fn scheme(&self) -> &QuantScheme {
        &self.scheme
    }
    /// Codes `[n, k]`.
    pub fn codes(&self) -> &TensorSpec {
        &self.codes
    }
    /// Scales, one a block.
    pub fn scale(&self) -> &TensorSpec {
        &self.scale
    }
    /// Minima or zero points, one a block.
    pub fn offset(&self) -> Option<&TensorSpec> {
        self.offset.as_ref()
    }
    /// Factors of the scales, one for every outer block.
    pub fn outer(&self) -> Option<&TensorSpec> {
        self.outer.as_ref()
    }
    /// Factors of the minima, one for every outer block.
    pub fn outer_offset(&self) -> Option<&TensorSpec> {
        self.outer_offset.as_ref()
    }
    /// Rows: outputs of a linear layer.
    pub fn n(&self) -> usize {
        self.codes.dims()[0]
    }
    /// Columns: inputs of a linear layer.
    pub fn k(&self) -> usize {
        self.codes.dims()[1]
    }

    /// The tensors that are present, in their fixed order, with their names.
    fn parts(&self) -> impl Iterator<Item = (&'static str, &TensorSpec)> {
        [
            ("weight.codes", Some(&self.codes)),
            ("weight.scale", Some(&self.scale)),
            ("weight.offset", self.offset.as_ref()),
            ("weight.outer", self.outer.as_ref()),
            ("weight.outer_offset", self.outer_offset.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, spec)| spec.map(|spec| (name, spec)))
    }

    /// The weights `[n, k]` in row-major order, by the f32 rule of [`QuantScheme::value`].
    ///
    /// `inputs` are the tensors that are present, in the order codes, scale, offset, outer, outer offset.
    pub fn dequantize_f64(&self, inputs: &[&[f64]]) -> Vec<f64> {
        let (n, k) = (self.n(), self.k());
        let scheme = self.scheme;
        let [block_n, block_k] = scheme.block;
        let outer_block = scheme.scale.outer().map_or(1, |(_, block)| block);
        let (columns, outer_columns) = (k.div_ceil(block_k), k.div_ceil(outer_block));
        let mut rest = inputs.iter().copied().skip(2);
        let mut next = |present: bool| if present { rest.next() } else { None };
        let offsets = next(self.offset.is_some());
        let outer = next(self.outer.is_some());
        let outer_offset = next(self.outer_offset.is_some());
        let scaled = |values: Option<&[f64]>, factors: Option<&[f64]>, at: usize, outer_at: usize| {
            let inner = values.map_or(0.0, |v| v[at] as f32);
            factors.map_or(inner, |f| QuantScheme::product(f[outer_at] as f32, inner))
        };
        let mut out = Vec::with_capacity(n * k);
        for row in 0..n {
            for column in 0..k {
                let at = row / block_n * columns + column / block_k;
                let outer_at = row / block_n * outer_columns + column / outer_block;
                let scale = scaled(Some(inputs[1]), outer, at, outer_at);
                let offset = scaled(offsets, outer_offset, at, outer_at);
                let code = inputs[0][row * k + column] as f32;
                out.push(f64::from(scheme.value(code, scale, offset)));
            }
        }
        out
    }

    /// Fillings whose weights lie in [−3, 3]: codes over their whole range, scaled into [−2, 2], minima in [−1, 1].
    ///
    /// Codes are listed and not drawn, so that the extreme ones occur and none is out of range.
    pub fn fills(&self) -> Vec<(&'static str, Fill)> {
        let scheme = self.scheme;
        let (low, high) = scheme.code_range();
        let listed = |low: i32, high: i32, seed: u64| {
            let mut state = seed;
            let mut values = vec![f64::from(low), f64::from(high)];
            // A prime number of values, so that rows of usual lengths do not repeat each other.
            values.resize_with(1009, || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                f64::from(low + ((state >> 33) % (high - low + 1) as u64) as i32)
            });
            Fill::Values(values)
        };
        // (code − zero) spans the whole range, a signed code half of it.
        let span = if scheme.offset == Offset::ZeroPoint {
            f64::from(high - low)
        } else {
            f64::from(high.max(-low))
        };
        let step = 2.0 / span.max(1.0);
        let codes = match SmallFloat::of(scheme.code) {
            Some(format) => {
                // Every finite number of the format, in an order that no usual length of a row divides.
                let codes = (0..1009u32).map(|i| (i * 97 % (1 << format.bits())) as u8);
                let finite = codes.map(|code| f64::from(format.decode(code))).filter(|x| x.is_finite());
                Fill::Values([low, high].map(f64::from).into_iter().chain(finite).collect())
            }
            None => listed(low, high, 1),
        };
        let mut fills = vec![("weight.codes", codes)];
        match scheme.scale {
            ScaleKind::E8M0 => {
                let top = step.log2().floor() as i32;
                let powers = (0..7).map(|i| f64::from(top - i % 4).exp2()).collect();
                fills.push(("weight.scale", Fill::Values(powers)));
            }
            ScaleKind::TwoLevel { inner, .. } => {
                let (low, high) = if inner == DType::I8 { (-128, 127) } else { (0, 63) };
                fills.push(("weight.scale", listed(low, high, 2)));
                fills.push(("weight.outer", Fill::Range(0.0, step / f64::from(high + 1))));
                fills.push(("weight.offset", listed(0, 63, 3)));
                fills.push(("weight.outer_offset", Fill::Range(-1.0 / 64.0, 1.0 / 64.0)));
                return fills;
            }
            _ => fills.push(("weight.scale", Fill::Range(-step / 4.0, step))),
        }
        match scheme.offset {
            Offset::None => {}
            Offset::Min => fills.push(("weight.offset", Fill::Unit)),
            Offset::ZeroPoint => fills.push(("weight.offset", listed(low, high, 4))),
        }
        fills
    }
}

/// What a packed weight was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PackedContent {
    /// A dense matrix of this element type.
    Dense(DType),
    /// A quantized one.
    Quant(QuantScheme),
}

/// A weight in a form that only the backend that made it can read.
///
/// It is valid on its device, is never saved, and is turned back by `unpack`.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedSpec {
    content: PackedContent,
    dims: [usize; 2],
    bytes: TensorSpec,
    tag: &'static str,
}

impl PackedSpec {
    /// A packed `[n, k]` weight of `bytes` bytes in the form the backend calls `tag`.
    ///
    /// # Errors
    /// `Shape` when `[n, k]` or the number of bytes is not addressable.
    pub fn new(content: PackedContent, n: usize, k: usize, tag: &'static str, bytes: usize) -> Result<Self> {
        Self::within(content, n, k, tag, &TensorSpec::of(DType::U8, &[bytes])?)
    }

    /// The same with bytes that are part of a larger tensor.
    ///
    /// # Errors
    /// As [`PackedSpec::new`]; `Shape`, `DType` and `Layout` for bytes that are no run of u8.
    pub fn within(
        content: PackedContent,
        n: usize,
        k: usize,
        tag: &'static str,
        bytes: &TensorSpec,
    ) -> Result<Self> {
        Shape::new(&[n, k])?;
        if let PackedContent::Quant(scheme) = content {
            scheme.validate()?;
        }
        expect_rank(OP, "packed", bytes, 1)?;
        expect_dtype(OP, "packed", bytes, &[DType::U8])?;
        if !bytes.is_contiguous() {
            return Err(OpError::layout(OP, "packed", format!("{bytes}: its bytes must be contiguous")));
        }
        Ok(Self { content, dims: [n, k], bytes: *bytes, tag })
    }

    /// What it was made from.
    pub fn content(&self) -> PackedContent {
        self.content
    }
    /// The bytes, `u8 [bytes]`.
    pub fn bytes(&self) -> &TensorSpec {
        &self.bytes
    }
    /// The backend's name of the form.
    pub fn tag(&self) -> &'static str {
        self.tag
    }
    /// Rows.
    pub fn n(&self) -> usize {
        self.dims[0]
    }
    /// Columns.
    pub fn k(&self) -> usize {
        self.dims[1]
    }
}

/// The weight operand of linear, embedding and expert operators: `[n, k]`, one row an output.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
pub enum WeightSpec {
    /// A matrix of floats.
    Dense(TensorSpec),
    /// Codes with scales; shared, since five tensors are much to copy for every call.
    Quant(Arc<QuantSpec>),
    /// A backend's own form of either.
    Packed(PackedSpec),
}

impl From<QuantSpec> for WeightSpec {
    fn from(quant: QuantSpec) -> Self {
        WeightSpec::Quant(Arc::new(quant))
    }
}

impl From<PackedSpec> for WeightSpec {
    fn from(packed: PackedSpec) -> Self {
        WeightSpec::Packed(packed)
    }
}

impl WeightSpec {
    /// A dense weight.
    ///
    /// # Errors
    /// `Shape` unless it has 2 dimensions, `DType` unless it is f32, f16 or bf16.
    pub fn dense(weight: &TensorSpec) -> Result<Self> {
        expect_rank(OP, "weight", weight, 2)?;
        expect_dtype(OP, "weight", weight, &[DType::F32, DType::F16, DType::BF16])?;
        Ok(WeightSpec::Dense(*weight))
    }

    /// Rows: outputs of a linear layer.
    pub fn n(&self) -> usize {
        match self {
            WeightSpec::Dense(spec) => spec.dims().first().copied().unwrap_or(0),
            WeightSpec::Quant(quant) => quant.n(),
            WeightSpec::Packed(packed) => packed.n(),
        }
    }

    /// Columns: inputs of a linear layer.
    pub fn k(&self) -> usize {
        match self {
            WeightSpec::Dense(spec) => spec.dims().get(1).copied().unwrap_or(0),
            WeightSpec::Quant(quant) => quant.k(),
            WeightSpec::Packed(packed) => packed.k(),
        }
    }

    /// Bytes of all its tensors: what reading the weight once costs.
    pub fn bytes(&self) -> usize {
        let mut sum = 0usize;
        self.visit(Access::Read, &mut |operand| sum = sum.saturating_add(operand.spec.bytes()));
        sum
    }

    /// The scheme, where there are codes behind it.
    pub fn scheme(&self) -> Option<&QuantScheme> {
        match self {
            WeightSpec::Dense(_) => None,
            WeightSpec::Quant(quant) => Some(quant.scheme()),
            WeightSpec::Packed(packed) => match &packed.content {
                PackedContent::Dense(_) => None,
                PackedContent::Quant(scheme) => Some(scheme),
            },
        }
    }

    /// The form a packer starts from.
    pub fn content(&self) -> PackedContent {
        match self {
            WeightSpec::Dense(spec) => PackedContent::Dense(spec.dtype()),
            WeightSpec::Quant(quant) => PackedContent::Quant(quant.scheme),
            WeightSpec::Packed(packed) => packed.content,
        }
    }

    /// Visits its tensors: `weight`; or `weight.codes`, `.scale`, `.offset`, `.outer`, `.outer_offset`,
    /// those that are present; or `weight.packed`.
    pub fn visit<'a>(&'a self, access: Access, visit: &mut dyn FnMut(Operand<'a>)) {
        match self {
            WeightSpec::Dense(spec) => visit(Operand { name: "weight", spec, access }),
            WeightSpec::Quant(quant) => {
                quant.parts().for_each(|(name, spec)| visit(Operand { name, spec, access }));
            }
            WeightSpec::Packed(packed) => {
                visit(Operand { name: "weight.packed", spec: &packed.bytes, access });
            }
        }
    }

    /// How many tensors [`WeightSpec::visit`] visits.
    pub fn parts(&self) -> usize {
        let mut count = 0;
        self.visit(Access::Read, &mut |_| count += 1);
        count
    }

    /// The weights `[n, k]` in row-major order from its tensors in visiting order; `None` for a packed
    /// weight, whose bytes only its backend can read.
    pub fn dequantize_f64(&self, inputs: &[&[f64]]) -> Option<Vec<f64>> {
        match self {
            WeightSpec::Dense(_) => Some(inputs[0].to_vec()),
            WeightSpec::Quant(quant) => Some(quant.dequantize_f64(inputs)),
            WeightSpec::Packed(_) => None,
        }
    }

    /// Fillings for its tensors in a case; see [`QuantSpec::fills`].
    pub fn fills(&self) -> Vec<(&'static str, Fill)> {
        match self {
            WeightSpec::Quant(quant) => quant.fills(),
            _ => Vec::new(),
        }
    }
}

/// Fails with `Layout` when the elements of a row lie apart, or the rows on top of each other.
fn expect_rows(op: &'static str, arg: &'static str, got: &TensorSpec) -> Result<()> {
    let [rows, columns] = [got.dims()[0], got.dims()[1]];
    let [step, stride] = [got.strides()[0], got.strides()[1]];
    if (columns > 1 && stride != 1) || (rows > 1 && columns > 0 && step < columns) {
        return Err(OpError::layout(op, arg, format!("{got}: rows must be contiguous; copy it first")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(code: DType, offset: Offset) -> QuantScheme {
        QuantScheme::new(code, [1, 4], ScaleKind::F32, offset).unwrap()
    }

    #[test]
    fn bytes_are_those_of_the_file_format() {
        // GGUF blocks of 32: 18, 20 and 34 bytes; of 256 with scales kept as bytes instead of 6 bits.
        for (scheme, per_256) in [
            (QuantScheme::Q4_0, 8 * 18),
            (QuantScheme::Q4_1, 8 * 20),
            (QuantScheme::Q8_0, 8 * 34),
            (QuantScheme::Q4_K, 128 + 16 + 4),
        ] {
            assert_eq!(WeightSpec::from(QuantSpec::of(scheme, 3, 512).unwrap()).bytes(), 6 * per_256);
        }
        let bytes = |scheme| WeightSpec::from(QuantSpec::of(scheme, 256, 512).unwrap()).bytes();
        assert_eq!(bytes(QuantScheme::MXFP4), 256 * (256 + 16));
        assert_eq!(bytes(QuantScheme::F8_BLOCK), 256 * 512 + 2 * 4 * 4);
    }

    #[test]
    fn minima_and_zero_points_by_hand() {
        let codes = [0.0, 1.0, 2.0, 15.0, 3.0];
        let min = QuantSpec::of(group(DType::U4, Offset::Min), 1, 5).unwrap();
        let got = min.dequantize_f64(&[&codes, &[0.5, 2.0], &[-1.0, 10.0]]);
        assert_eq!(got, [-1.0, -0.5, 0.0, 6.5, 16.0]);
        let zero = QuantSpec::of(group(DType::U4, Offset::ZeroPoint), 1, 5).unwrap();
        let got = zero.dequantize_f64(&[&codes, &[0.5, 2.0], &[8.0, 1.0]]);
        assert_eq!(got, [-4.0, -3.5, -3.0, 3.5, 4.0]);
    }

    #[test]
    fn blocks_of_several_rows_share_their_scale() {
        let scheme = QuantScheme { block: [2, 2], ..QuantScheme::F8_BLOCK };
        let q = QuantSpec::of(scheme, 3, 3).unwrap();
        let codes = [1.0, 2.0, 448.0, -0.5, 3.0, 4.0, 5.0, 6.0, 7.0];
        let got = q.dequantize_f64(&[&codes, &[1.0, 0.5, 2.0, 10.0]]);
        assert_eq!(got, [1.0, 2.0, 224.0, -0.5, 3.0, 2.0, 10.0, 12.0, 70.0]);
    }

    #[test]
    fn two_level_scales_are_rounded_before_they_meet_the_code() {
        let q = QuantSpec::of(QuantScheme::Q4_K, 1, 33).unwrap();
        let (d, dmin) =
            (f64::from(half::f16::from_f32(0.013).to_f32()), f64::from(half::f16::from_f32(0.07).to_f32()));
        let codes: Vec<f64> = (0..33).map(|i| f64::from(i % 16)).collect();
        let got = q.dequantize_f64(&[&codes, &[61.0, 3.0], &[17.0, 2.0], &[d], &[-dmin]]);
        let want = |code: f32, s: f32, m: f32| (d as f32 * s) * code - dmin as f32 * m;
        assert_eq!(got[15], f64::from(want(15.0, 61.0, 17.0)));
        assert_eq!(got[32], f64::from(want(0.0, 3.0, 2.0)));
    }

    #[test]
    fn parts_that_are_missing_superfluous_or_wrong_are_refused() {
        let q = QuantSpec::of(QuantScheme::Q4_1, 2, 64).unwrap();
        let new = |scheme, scale, offset| QuantSpec::new(scheme, q.codes(), scale, offset, None, None);
        assert!(new(QuantScheme::Q4_1, q.scale(), q.offset()).is_ok());
        let e = new(QuantScheme::Q4_1, q.scale(), None).unwrap_err();
        assert_eq!(e.to_string(), "weight: weight.offset is missing, the scheme wants f16[2, 2]");
        assert!(new(QuantScheme::Q4_0, q.scale(), None).is_err());
        let wide = TensorSpec::of(DType::F16, &[2, 3]).unwrap();
        assert!(new(QuantScheme::Q4_1, &wide, q.offset()).is_err());
        let apart = TensorSpec::of(DType::F16, &[2, 4]).unwrap().narrow(1, 1, 2).unwrap();
        assert!(new(QuantScheme::Q4_1, &apart, q.offset()).is_ok());
        let turned = TensorSpec::of(DType::F16, &[2, 2]).unwrap().transpose(0, 1).unwrap();
        assert!(new(QuantScheme::Q4_1, &turned, q.offset()).is_err());
        assert!(QuantSpec::of(QuantScheme::Q4_1, usize::MAX, 64).is_err());
        assert!(PackedSpec::new(q_content(), usize::MAX, 2, "x", 1).is_err());
    }

    fn q_content() -> PackedContent {
        PackedContent::Quant(QuantScheme::Q4_1)
    }

    #[test]
    fn fillings_name_parts_that_exist_and_keep_weights_small() {
        use QuantScheme as S;
        for scheme in [
            S::Q4_0,
            S::Q4_1,
            S::Q8_0,
            S::Q6_K,
            S::Q5_K,
            S::F8_BLOCK,
            S::F8_BLOCK_E8M0,
            S::MXFP8,
            S::MXFP4,
            S::INT8_ROW,
        ] {
            let weight = WeightSpec::from(QuantSpec::of(scheme, 5, 300).unwrap());
            let fills = weight.fills();
            let mut inputs: Vec<Vec<f64>> = Vec::new();
            weight.visit(Access::Read, &mut |part| {
                let (_, fill) = fills.iter().find(|(name, _)| *name == part.name).unwrap();
                inputs.push(match fill {
                    Fill::Values(values) => values.iter().copied().cycle().take(part.spec.numel()).collect(),
                    Fill::Range(_, high) => vec![*high; part.spec.numel()],
                    Fill::Unit => vec![1.0; part.spec.numel()],
                });
            });
            let slices: Vec<&[f64]> = inputs.iter().map(Vec::as_slice).collect();
            let weights = weight.dequantize_f64(&slices).unwrap();
            let largest = weights.iter().fold(0.0, |m: f64, w| m.max(w.abs()));
            assert!(largest > 0.9 && largest <= 3.0, "{scheme:?}: {largest}");
        }
    }
}
