//! How codes become numbers, and numbers codes: code type, block of codes that share a scale, kind of scale, offset.
//!
//! Plain data, checked once; the tensors of a quantized weight are in `weight.rs`.

use crate::codec::{Overflow, SmallFloat};
use crate::{DType, OpError, Result};

/// How the scale of a block is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleKind {
    /// One f32 a block.
    F32,
    /// One f16 a block.
    F16,
    /// One bf16 a block.
    BF16,
    /// One power of two a block.
    E8M0,
    /// An integer a block times a float for every `outer_block` columns: `scale = f32(outer · inner)`.
    TwoLevel {
        /// Type of the integer: u8 or i8.
        inner: DType,
        /// Type of the float: f16.
        outer: DType,
        /// Columns of k that share the float; a multiple of the block's columns.
        outer_block: usize,
    },
}

impl ScaleKind {
    /// Element type of the tensor with one entry a block.
    pub fn dtype(self) -> DType {
        match self {
            ScaleKind::F32 => DType::F32,
            ScaleKind::F16 => DType::F16,
            ScaleKind::BF16 => DType::BF16,
            ScaleKind::E8M0 => DType::E8M0,
            ScaleKind::TwoLevel { inner, .. } => inner,
        }
    }

    /// Element type of the outer tensor and its columns of k, where there are two levels.
    pub fn outer(self) -> Option<(DType, usize)> {
        match self {
            ScaleKind::TwoLevel { outer, outer_block, .. } => Some((outer, outer_block)),
            _ => None,
        }
    }
}

/// What is added to a scaled code, or taken from a code before it is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offset {
    /// `w = code · scale`.
    None,
    /// `w = code · scale + min`; under two levels `min = f32(outer_offset · offset)`.
    Min,
    /// `w = (code − zero) · scale`.
    ZeroPoint,
}

/// How the codes of a quantized weight become numbers.
///
/// The value of a weight is *defined* in f32, each operation rounded once and never fused, which is what
/// file formats' reference readers compute: see [`QuantScheme::value`] and [`QuantScheme::product`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QuantScheme {
    /// Storage type of a code: i4, u4, i8, u8, f8e4m3, f8e5m2 or f4e2m1.
    pub code: DType,
    /// Bits of the range really used, so that a packer may squeeze: 5 for codes −16 to 15 or 0 to 31 held in
    /// bytes. A code out of this range has no defined value. Float codes use all of their bits.
    pub code_bits: u8,
    /// Rows of n and columns of k that share a scale; the last block of a row or column may be cut short.
    pub block: [usize; 2],
    /// How a scale is stored.
    pub scale: ScaleKind,
    /// What is added or subtracted.
    pub offset: Offset,
}

const fn gguf(code: DType, code_bits: u8, offset: Offset) -> QuantScheme {
    QuantScheme { code, code_bits, block: [1, 32], scale: ScaleKind::F16, offset }
}

const fn float(code: DType, block: [usize; 2], scale: ScaleKind) -> QuantScheme {
    QuantScheme { code, code_bits: code.bits() as u8, block, scale, offset: Offset::None }
}

const fn two_level(inner: DType) -> ScaleKind {
    ScaleKind::TwoLevel { inner, outer: DType::F16, outer_block: 256 }
}

impl QuantScheme {
    /// GGUF Q4_0: codes −8 to 7, f16 scale for 32.
    pub const Q4_0: QuantScheme = gguf(DType::I4, 4, Offset::None);
    /// GGUF Q4_1: codes 0 to 15, f16 scale and minimum for 32.
    pub const Q4_1: QuantScheme = gguf(DType::U4, 4, Offset::Min);
    /// GGUF Q5_0: codes −16 to 15, f16 scale for 32.
    pub const Q5_0: QuantScheme = gguf(DType::I8, 5, Offset::None);
    /// GGUF Q5_1: codes 0 to 31, f16 scale and minimum for 32.
    pub const Q5_1: QuantScheme = gguf(DType::U8, 5, Offset::Min);
    /// GGUF Q8_0: codes −128 to 127, f16 scale for 32.
    pub const Q8_0: QuantScheme = gguf(DType::I8, 8, Offset::None);
    /// GGUF Q4_K: codes 0 to 15, 6-bit scale and minimum for 32, f16 factors for 256.
    pub const Q4_K: QuantScheme = QuantScheme { scale: two_level(DType::U8), ..Self::Q4_1 };
    /// GGUF Q5_K: codes 0 to 31, 6-bit scale and minimum for 32, f16 factors for 256.
    pub const Q5_K: QuantScheme = QuantScheme { scale: two_level(DType::U8), ..Self::Q5_1 };
    /// GGUF Q6_K: codes −32 to 31, 8-bit scale for 16, f16 factor for 256.
    pub const Q6_K: QuantScheme = QuantScheme {
        code: DType::I8,
        code_bits: 6,
        block: [1, 16],
        scale: two_level(DType::I8),
        offset: Offset::None,
    };

    /// f8e4m3 in blocks of 128 × 128 with f32 scales, as DeepSeek-V3 stores its weights.
    pub const F8_BLOCK: QuantScheme = float(DType::F8E4M3, [128, 128], ScaleKind::F32);
    /// f8e4m3 in blocks of 128 × 128 with power-of-two scales.
    pub const F8_BLOCK_E8M0: QuantScheme = float(DType::F8E4M3, [128, 128], ScaleKind::E8M0);
    /// OCP MXFP8: f8e4m3 in groups of 32 with power-of-two scales.
    pub const MXFP8: QuantScheme = float(DType::F8E4M3, [1, 32], ScaleKind::E8M0);
    /// OCP MXFP4: f4e2m1 in groups of 32 with power-of-two scales.
    pub const MXFP4: QuantScheme = float(DType::F4E2M1, [1, 32], ScaleKind::E8M0);
    /// int8 with one f32 scale a row: per channel for weights, per token for activations.
    pub const INT8_ROW: QuantScheme = QuantScheme {
        code: DType::I8,
        code_bits: 8,
        block: [1, usize::MAX],
        scale: ScaleKind::F32,
        offset: Offset::None,
    };
    /// f8e4m3 with one f32 scale for every 128 columns of a row: what activations are rounded to.
    pub const F8_GROUP: QuantScheme = float(DType::F8E4M3, [1, 128], ScaleKind::F32);

    /// A scheme whose codes use the whole range of their type.
    ///
    /// # Errors
    /// As [`QuantScheme::validate`].
    pub fn new(code: DType, block: [usize; 2], scale: ScaleKind, offset: Offset) -> Result<Self> {
        let scheme = QuantScheme { code, code_bits: code.bits().min(64) as u8, block, scale, offset };
        scheme.validate()?;
        Ok(scheme)
    }

    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// `DType` for codes of another type than those named at [`QuantScheme::code`] and for two-level types other
    /// than u8/i8 and f16; `Attribute` for an empty block, bits that the code type cannot hold or a float code
    /// does not have, an outer block that does not hold whole blocks, and offsets that the kind of scale or of
    /// code does not have.
    pub fn validate(&self) -> Result<()> {
        const OP: &str = "quant_scheme";
        if !matches!(self.code, DType::I4 | DType::U4 | DType::I8 | DType::U8) && !self.is_float() {
            let wanted = "i4, u4, i8, u8, f8e4m3, f8e5m2 or f4e2m1";
            return Err(OpError::dtype(OP, "code", self.code, wanted));
        }
        if self.is_float() && u32::from(self.code_bits) != self.code.bits() {
            let what = format!("is {}, expected {} for {}", self.code_bits, self.code.bits(), self.code);
            return Err(OpError::attribute(OP, "code_bits", what));
        }
        if self.is_float() && self.offset != Offset::None {
            let what = format!("is {:?}, which float codes do not have", self.offset);
            return Err(OpError::attribute(OP, "offset", what));
        }
        if self.code_bits < 2 || u32::from(self.code_bits) > self.code.bits() {
            let what = format!("is {}, expected 2 to {} for {}", self.code_bits, self.code.bits(), self.code);
            return Err(OpError::attribute(OP, "code_bits", what));
        }
        if self.block.contains(&0) {
            return Err(OpError::attribute(
                OP,
                "block",
                format!("is {:?}, expected at least [1, 1]", self.block),
            ));
        }
        if let ScaleKind::TwoLevel { inner, outer, outer_block } = self.scale {
            if !matches!(inner, DType::U8 | DType::I8) {
                return Err(OpError::dtype(OP, "inner scale", inner, "u8 or i8"));
            }
            if outer != DType::F16 {
                return Err(OpError::dtype(OP, "outer scale", outer, "f16"));
            }
            if outer_block == 0 || outer_block % self.block[1] != 0 {
                let what = format!("is {outer_block}, expected a multiple of {}", self.block[1]);
                return Err(OpError::attribute(OP, "outer_block", what));
            }
        }
        match (self.offset, self.scale) {
            (Offset::Min, ScaleKind::E8M0) => {
                Err(OpError::attribute(OP, "offset", "is a minimum, which power-of-two scales do not have"))
            }
            (Offset::ZeroPoint, ScaleKind::TwoLevel { .. }) => {
                Err(OpError::attribute(OP, "offset", "is a zero point, which two-level scales do not have"))
            }
            _ => Ok(()),
        }
    }

    /// Whether codes are floats.
    pub fn is_float(&self) -> bool {
        SmallFloat::of(self.code).is_some()
    }

    /// The smallest and the largest code; of float codes, the finite numbers they stand for.
    pub fn code_range(&self) -> (i32, i32) {
        if let Some(format) = SmallFloat::of(self.code) {
            return (-format.largest() as i32, format.largest() as i32);
        }
        let bits = self.code_bits.clamp(1, 30);
        match self.code {
            DType::U4 | DType::U8 => (0, (1 << bits) - 1),
            _ => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
        }
    }

    /// Element type of the offset tensor with one entry a block, if there is one.
    ///
    /// A minimum is of the scale's type (u8 under two levels); a zero point is a byte of the code's sign.
    pub fn offset_dtype(&self) -> Option<DType> {
        match (self.offset, self.scale) {
            (Offset::None, _) => None,
            (Offset::Min, ScaleKind::TwoLevel { .. }) => Some(DType::U8),
            (Offset::Min, scale) => Some(scale.dtype()),
            (Offset::ZeroPoint, _) if matches!(self.code, DType::U4 | DType::U8) => Some(DType::U8),
            (Offset::ZeroPoint, _) => Some(DType::I8),
        }
    }

    /// Whether minima have an outer factor of their own.
    pub fn has_outer_offset(&self) -> bool {
        self.offset == Offset::Min && self.scale.outer().is_some()
    }

    /// Blocks along n and along k of an `[n, k]` weight.
    pub fn blocks(&self, n: usize, k: usize) -> [usize; 2] {
        [n.div_ceil(self.block[0].max(1)), k.div_ceil(self.block[1].max(1))]
    }

    /// A two-level scale or minimum: the product, rounded to f32.
    pub fn product(outer: f32, inner: f32) -> f32 {
        outer * inner
    }

    /// The weight a code stands for, in f32, each operation rounded. A float code comes as its number.
    ///
    /// `offset` is the minimum or the zero point; it is ignored where the scheme has none. A negative
    /// outer offset (K-quants subtract) makes `+ min` equal to their `− dmin·m` bit for bit.
    pub fn value(&self, code: f32, scale: f32, offset: f32) -> f32 {
        match self.offset {
            Offset::None => code * scale,
            Offset::Min => code * scale + offset,
            Offset::ZeroPoint => (code - offset) * scale,
        }
    }

    /// The code that `x` is rounded to (of a float code, its number), in f32, each operation rounded.
    ///
    /// `q` is `x / scale`, or `(x − min) / scale`; the code is the nearest to `q`, ties to even, plus the zero
    /// point, saturating at [`QuantScheme::code_range`]. NaN gives what the code type makes of it, integers 0.
    /// Where the scale is 0 or NaN, the code is 0.
    pub fn code_of(&self, x: f32, scale: f32, offset: f32) -> f32 {
        if scale == 0.0 || scale.is_nan() {
            return 0.0;
        }
        let q = if self.offset == Offset::Min { (x - offset) / scale } else { x / scale };
        if let Some(format) = SmallFloat::of(self.code) {
            return format.decode(format.encode(f64::from(q), Overflow::Saturate));
        }
        if q.is_nan() {
            return 0.0;
        }
        let (low, high) = self.code_range();
        let zero = if self.offset == Offset::ZeroPoint { offset } else { 0.0 };
        (q.round_ties_even() + zero).clamp(low as f32, high as f32)
    }

    /// The largest code that [`QuantScheme::block_scale`] aims at: as [`QuantScheme::code_range`], but the same
    /// on both sides of 0.
    pub fn symmetric_top(&self) -> f32 {
        self.code_range().1 as f32
    }

    /// The scale of a block whose largest magnitude is `largest` (NaN or infinite if it holds such a number).
    ///
    /// `f32(largest / top)` with [`QuantScheme::symmetric_top`]; as a power of two `2^(⌊log2 largest⌋ − e)`, `e`
    /// being the exponent of the largest code, at least `2^−127` (OCP Microscaling 1.0, 6.3; the largest numbers
    /// may saturate). NaN where `largest` is no finite number.
    pub fn block_scale(&self, largest: f32) -> f32 {
        if !largest.is_finite() {
            return f32::NAN;
        }
        if self.scale != ScaleKind::E8M0 {
            return largest / self.symmetric_top();
        }
        // As an f64 every positive f32 is normal, so that its exponent field is the floor of its logarithm.
        let exponent = ((f64::from(largest).to_bits() >> 52) as i32 - 1023).max(-1000);
        let top = (f64::from(self.symmetric_top()).to_bits() >> 52) as i32 - 1023;
        f64::from_bits((((exponent - top).max(-127) + 1023) as u64) << 52) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_formats_schemes_are_legal() {
        use QuantScheme as S;
        for scheme in [S::Q4_0, S::Q4_1, S::Q5_0, S::Q5_1, S::Q8_0, S::Q4_K, S::Q5_K, S::Q6_K] {
            scheme.validate().unwrap();
        }
        assert_eq!(S::Q5_0.code_range(), (-16, 15));
        assert_eq!(S::Q5_1.code_range(), (0, 31));
        assert_eq!(S::Q6_K.code_range(), (-32, 31));
        assert_eq!(S::Q4_0.code_range(), (-8, 7));
        assert_eq!(S::Q8_0.code_range(), (-128, 127));
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let new = QuantScheme::new;
        assert!(new(DType::F32, [1, 32], ScaleKind::F32, Offset::None).is_err());
        assert!(new(DType::U4, [1, 0], ScaleKind::F32, Offset::None).is_err());
        assert!(new(DType::U4, [1, 32], ScaleKind::E8M0, Offset::Min).is_err());
        assert!(new(DType::U4, [1, 32], two_level(DType::U8), Offset::ZeroPoint).is_err());
        assert!(new(DType::U4, [1, 48], two_level(DType::U8), Offset::Min).is_err());
        assert!(new(DType::U4, [1, 32], two_level(DType::I32), Offset::Min).is_err());
        assert!(QuantScheme { code_bits: 9, ..QuantScheme::Q8_0 }.validate().is_err());
        assert!(new(DType::F8E4M3, [1, 32], ScaleKind::F32, Offset::Min).is_err());
        assert!(new(DType::E8M0, [1, 32], ScaleKind::F32, Offset::None).is_err());
        assert!(QuantScheme { code_bits: 5, ..QuantScheme::MXFP8 }.validate().is_err());
    }

    #[test]
    fn float_schemes_are_legal_and_know_their_range() {
        use QuantScheme as S;
        for scheme in [S::F8_BLOCK, S::F8_BLOCK_E8M0, S::F8_GROUP, S::MXFP8, S::MXFP4, S::INT8_ROW] {
            scheme.validate().unwrap();
        }
        assert_eq!((S::F8_BLOCK.code_range(), S::MXFP4.code_range()), ((-448, 448), (-6, 6)));
        assert_eq!((S::INT8_ROW.blocks(3, 70), S::F8_BLOCK.blocks(130, 129)), ([3, 1], [2, 2]));
    }

    #[test]
    fn numbers_round_to_codes_by_the_rule() {
        let code = |scheme: QuantScheme, x, scale, offset| scheme.code_of(x, scale, offset);
        assert_eq!(code(QuantScheme::INT8_ROW, 2.5, 1.0, 0.0), 2.0);
        assert_eq!(code(QuantScheme::INT8_ROW, -1e9, 1.0, 0.0), -128.0);
        assert_eq!(code(QuantScheme::Q4_1, 3.3, 0.5, 1.0), 5.0);
        assert_eq!(code(QuantScheme::MXFP4, 5.0, 0.5, 0.0), 6.0);
        assert_eq!(code(QuantScheme::MXFP4, 5.0, 2.0, 0.0), 2.0);
        let zero = QuantScheme::new(DType::U8, [1, 8], ScaleKind::F32, Offset::ZeroPoint).unwrap();
        assert_eq!(code(zero, -1.0, 0.25, 128.0), 124.0);
        for scheme in [QuantScheme::INT8_ROW, QuantScheme::F8_BLOCK] {
            assert_eq!([0.0, f32::NAN].map(|scale| code(scheme, 3.0, scale, 0.0)), [0.0, 0.0]);
        }
        assert_eq!(code(QuantScheme::INT8_ROW, f32::NAN, 1.0, 0.0), 0.0);
        assert!(code(QuantScheme::F8_BLOCK, f32::NAN, 1.0, 0.0).is_nan());
    }

    #[test]
    fn block_scales_are_quotients_or_powers_of_two() {
        assert_eq!(QuantScheme::INT8_ROW.block_scale(254.0), 2.0);
        assert_eq!(QuantScheme::F8_BLOCK.block_scale(448.0), 1.0);
        let mx = QuantScheme::MXFP4;
        for (largest, scale) in [(6.0, 1.0), (4.0, 1.0), (3.999, 0.5), (8.0, 2.0), (1.0, 0.25)] {
            assert_eq!(mx.block_scale(largest), scale, "{largest}");
        }
        let least = 2f32.powi(-127);
        assert_eq!([0.0, f32::from_bits(1), least].map(|x| mx.block_scale(x)), [least; 3]);
        assert_eq!(mx.block_scale(f32::MAX), 2f32.powi(125));
        for scheme in [mx, QuantScheme::F8_BLOCK] {
            assert!(scheme.block_scale(f32::INFINITY).is_nan() && scheme.block_scale(f32::NAN).is_nan());
        }
    }

    #[test]
    fn every_operation_is_rounded_once_and_never_fused() {
        // With a fused multiply-add the sum would keep the product's low bits.
        let (code, scale) = (3.0f32, 0.1f32);
        let min = -(code * scale);
        assert_eq!(QuantScheme::Q4_1.value(code, scale, min), 0.0);
        assert_ne!(code.mul_add(scale, min), 0.0);
        let int4 = QuantScheme::new(DType::U4, [1, 64], ScaleKind::F32, Offset::ZeroPoint).unwrap();
        assert_eq!(int4.value(3.0, 0.5, 8.0), -2.5);
    }
}
