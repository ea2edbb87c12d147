//! Element types: which exist, how many bits they take, and the Rust types that carry them.

use core::fmt;

/// The type of one tensor element.
///
/// Sub-byte types are stored two per byte, low nibble first.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE binary64.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// OCP 8-bit float, 4 exponent and 3 mantissa bits, no infinities.
    F8E4M3,
    /// OCP 8-bit float, 5 exponent and 2 mantissa bits.
    F8E5M2,
    /// OCP 4-bit float, 2 exponent and 1 mantissa bits; two per byte.
    F4E2M1,
    /// OCP shared scale: a power of two, 2^(code − 127); code 255 is NaN.
    E8M0,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer; the index type of every operator.
    I32,
    /// 8-bit signed integer.
    I8,
    /// 8-bit unsigned integer.
    U8,
    /// 4-bit signed integer, −8 to 7; two per byte.
    I4,
    /// 4-bit unsigned integer, 0 to 15; two per byte.
    U4,
    /// One byte, 0 or 1.
    Bool,
}

impl DType {
    /// Every element type, widest first.
    pub const ALL: [DType; 15] = [
        DType::F64,
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::F8E4M3,
        DType::F8E5M2,
        DType::F4E2M1,
        DType::E8M0,
        DType::I64,
        DType::I32,
        DType::I8,
        DType::U8,
        DType::I4,
        DType::U4,
        DType::Bool,
    ];

    /// Bits one element takes in memory: 4, 8, 16, 32 or 64.
    pub const fn bits(self) -> u32 {
        match self {
            DType::F64 | DType::I64 => 64,
            DType::F32 | DType::I32 => 32,
            DType::F16 | DType::BF16 => 16,
            DType::F8E4M3 | DType::F8E5M2 | DType::E8M0 | DType::I8 | DType::U8 | DType::Bool => 8,
            DType::F4E2M1 | DType::I4 | DType::U4 => 4,
        }
    }

    /// Bytes that `numel` packed elements take, rounded up; saturates at `usize::MAX`.
    pub const fn bytes_for(self, numel: usize) -> usize {
        match self.bits() {
            4 => numel.div_ceil(2),
            bits => numel.saturating_mul(bits as usize / 8),
        }
    }

    /// Whether two elements share a byte.
    pub const fn is_sub_byte(self) -> bool {
        self.bits() < 8
    }

    /// Whether this is a floating-point type of 16 bits or more, one that operators compute in.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }

    /// Whether this is a floating-point type of fewer than 16 bits: stored, and converted to be computed with.
    pub const fn is_storage_float(self) -> bool {
        matches!(self, DType::F8E4M3 | DType::F8E5M2 | DType::F4E2M1 | DType::E8M0)
    }

    /// Whether this is an integer type of 8 bits or more (`Bool` is not).
    pub const fn is_int(self) -> bool {
        matches!(self, DType::I64 | DType::I32 | DType::I8 | DType::U8)
    }

    /// Unit roundoff `u`: half the distance from 1 to the next number; 0 for integers.
    pub const fn unit_roundoff(self) -> f64 {
        match self {
            DType::F64 => 1.0 / (1u64 << 53) as f64,
            DType::F32 => 1.0 / (1u64 << 24) as f64,
            DType::F16 => 1.0 / (1u64 << 11) as f64,
            DType::BF16 => 1.0 / (1u64 << 8) as f64,
            DType::F8E4M3 => 1.0 / 16.0,
            DType::F8E5M2 => 1.0 / 8.0,
            DType::F4E2M1 => 1.0 / 4.0,
            _ => 0.0,
        }
    }

    /// The lower-case name used in messages: `f32`, `bf16`, `i4`, …
    pub const fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F8E4M3 => "f8e4m3",
            DType::F8E5M2 => "f8e5m2",
            DType::F4E2M1 => "f4e2m1",
            DType::E8M0 => "e8m0",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::I8 => "i8",
            DType::U8 => "u8",
            DType::I4 => "i4",
            DType::U4 => "u4",
            DType::Bool => "bool",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type that carries one tensor element.
///
/// `bool` is an element too, which is why the bound is `CheckedBitPattern` and not `Pod`: a download
/// checks the bytes before it makes a `bool` of them.
pub trait Element: bytemuck::NoUninit + bytemuck::CheckedBitPattern + Send + Sync + 'static {
    /// The element type this Rust type carries.
    const DTYPE: DType;
}

macro_rules! element {
    ($($rust:ty => $dtype:ident),* $(,)?) => { $(impl Element for $rust { const DTYPE: DType = DType::$dtype; })* };
}
element! { f64 => F64, f32 => F32, half::f16 => F16, half::bf16 => BF16, i64 => I64, i32 => I32, i8 => I8, u8 => U8, bool => Bool }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_byte_elements_round_up_to_whole_bytes() {
        assert_eq!(DType::U4.bytes_for(0), 0);
        assert_eq!(DType::U4.bytes_for(1), 1);
        assert_eq!(DType::I4.bytes_for(3), 2);
        assert_eq!(DType::F32.bytes_for(3), 12);
        assert_eq!(DType::F64.bytes_for(usize::MAX), usize::MAX);
    }

    #[test]
    fn element_sizes_agree_with_their_dtype() {
        fn check<T: Element>() {
            assert_eq!(T::DTYPE.bytes_for(1), size_of::<T>(), "{}", T::DTYPE);
        }
        check::<f64>();
        check::<f32>();
        check::<half::f16>();
        check::<half::bf16>();
        check::<i64>();
        check::<i32>();
        check::<i8>();
        check::<u8>();
        check::<bool>();
    }
}
