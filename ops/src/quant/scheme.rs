//! How integer codes become numbers: code type, block of codes that share a scale, kind of scale, offset.
//!
//! Plain data, checked once; the tensors of a quantized weight are in `weight.rs`.

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
    /// Storage type of a code: i4, u4, i8 or u8.
    pub code: DType,
    /// Bits of the range really used, so that a packer may squeeze: 5 for codes −16 to 15 or 0 to 31 held in
    /// bytes. A code out of this range has no defined value.
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
    /// `DType` for codes that are not i4, u4, i8 or u8 and for two-level types other than u8/i8 and f16;
    /// `Attribute` for an empty block, bits that the code type cannot hold, an outer block that does not
    /// hold whole blocks, and offsets that the kind of scale does not have.
    pub fn validate(&self) -> Result<()> {
        const OP: &str = "quant_scheme";
        if !matches!(self.code, DType::I4 | DType::U4 | DType::I8 | DType::U8) {
            return Err(OpError::dtype(OP, "code", self.code, "i4, u4, i8 or u8"));
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

    /// The smallest and the largest code.
    pub fn code_range(&self) -> (i32, i32) {
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

    /// The weight a code stands for, in f32, each operation rounded.
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
