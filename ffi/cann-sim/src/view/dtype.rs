//! Element types by the vendor's numbers, and what their bits mean.

use portolan_ops::codec::{Overflow, SmallFloat, e8m0_code, e8m0_value};

macro_rules! element_types {
    ($( $variant:ident = $code:literal, $bits:literal, $name:literal; )*) => {
        /// Element types, by the vendor's numbers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum Dtype { $( $variant = $code, )* }

        impl Dtype {
            /// The type with a vendor's number.
            pub(crate) fn from_code(code: i64) -> Option<Dtype> {
                match code { $( $code => Some(Dtype::$variant), )* _ => None }
            }

            /// Bits of one element.
            pub(crate) const fn bits(self) -> usize {
                match self { $( Dtype::$variant => $bits, )* }
            }

            /// The name used in messages.
            pub(crate) const fn name(self) -> &'static str {
                match self { $( Dtype::$variant => $name, )* }
            }
        }
    };
}

element_types! {
    F32 = 0, 32, "FLOAT";
    F16 = 1, 16, "FLOAT16";
    I8 = 2, 8, "INT8";
    I32 = 3, 32, "INT32";
    U8 = 4, 8, "UINT8";
    I16 = 6, 16, "INT16";
    U16 = 7, 16, "UINT16";
    U32 = 8, 32, "UINT32";
    I64 = 9, 64, "INT64";
    U64 = 10, 64, "UINT64";
    F64 = 11, 64, "DOUBLE";
    Bool = 12, 8, "BOOL";
    C64 = 16, 64, "COMPLEX64";
    C128 = 17, 128, "COMPLEX128";
    Bf16 = 27, 16, "BF16";
    I4 = 29, 4, "INT4";
    U1 = 30, 1, "UINT1";
    C32 = 33, 32, "COMPLEX32";
    HiF8 = 34, 8, "HIFLOAT8";
    F8E5M2 = 35, 8, "FLOAT8_E5M2";
    F8E4M3 = 36, 8, "FLOAT8_E4M3FN";
    E8M0 = 37, 8, "FLOAT8_E8M0";
    F6E3M2 = 38, 6, "FLOAT6_E3M2";
    F6E2M3 = 39, 6, "FLOAT6_E2M3";
    F4E2M1 = 40, 4, "FLOAT4_E2M1";
    F4E1M2 = 41, 4, "FLOAT4_E1M2";
}

impl Dtype {
    /// Whether the simulator knows what bits of the type mean. Tensors may have the others; no operator takes them.
    pub(crate) const fn is_simulated(self) -> bool {
        !matches!(
            self,
            Dtype::C32
                | Dtype::C64
                | Dtype::C128
                | Dtype::U1
                | Dtype::HiF8
                | Dtype::F6E3M2
                | Dtype::F6E2M3
                | Dtype::F4E1M2
        )
    }

    /// 16 bits or more of floating point.
    pub(crate) const fn is_float(self) -> bool {
        matches!(self, Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F64)
    }

    /// Integers of a byte or more.
    pub(crate) const fn is_int(self) -> bool {
        matches!(
            self,
            Dtype::I8
                | Dtype::U8
                | Dtype::I16
                | Dtype::U16
                | Dtype::I32
                | Dtype::U32
                | Dtype::I64
                | Dtype::U64
        )
    }

    /// Types that only the 950 computes with.
    pub(crate) const fn is_narrow_float(self) -> bool {
        matches!(self, Dtype::F8E5M2 | Dtype::F8E4M3 | Dtype::E8M0 | Dtype::F4E2M1)
    }

    /// `x` rounded to this type and back, as a store followed by a load would do.
    pub(crate) fn round(self, x: f64) -> f64 {
        match self {
            Dtype::F64 => x,
            Dtype::F32 => f64::from(x as f32),
            _ => self.decode(self.encode(x)),
        }
    }

    /// The bits of the nearest element to `x`, ties to even. Integers take the integer part and saturate, as do
    /// floats of 8 bits and fewer.
    pub(crate) fn encode(self, x: f64) -> u64 {
        let small = |format: SmallFloat| u64::from(format.encode(x, Overflow::Saturate));
        match self {
            Dtype::F64 => x.to_bits(),
            Dtype::F32 => u64::from((x as f32).to_bits()),
            Dtype::F16 => nearest(x, 5, 10),
            Dtype::Bf16 => nearest(x, 8, 7),
            Dtype::F8E4M3 => small(SmallFloat::E4M3),
            Dtype::F8E5M2 => small(SmallFloat::E5M2),
            Dtype::F4E2M1 => small(SmallFloat::E2M1),
            Dtype::E8M0 => u64::from(e8m0_code(x)),
            Dtype::I64 => x as i64 as u64,
            Dtype::I32 => u64::from(x as i32 as u32),
            Dtype::I16 => u64::from(x as i16 as u16),
            Dtype::I8 => u64::from(x as i8 as u8),
            Dtype::I4 => (x as i8).clamp(-8, 7) as u64 & 15,
            Dtype::U64 => x as u64,
            Dtype::U32 => u64::from(x as u32),
            Dtype::U16 => u64::from(x as u16),
            Dtype::U8 => u64::from(x as u8),
            Dtype::Bool => u64::from(x != 0.0),
            // Refused before anything computes.
            _ => 0,
        }
    }

    /// The number that bits stand for; 64-bit integers to the precision of an f64.
    pub(crate) fn decode(self, bits: u64) -> f64 {
        match self {
            Dtype::F64 => f64::from_bits(bits),
            Dtype::F32 => f64::from(f32::from_bits(bits as u32)),
            Dtype::F16 => f64::from(half_value(bits as u16)),
            Dtype::Bf16 => f64::from(f32::from_bits((bits as u32) << 16)),
            Dtype::F8E4M3 => f64::from(SmallFloat::E4M3.decode(bits as u8)),
            Dtype::F8E5M2 => f64::from(SmallFloat::E5M2.decode(bits as u8)),
            Dtype::F4E2M1 => f64::from(SmallFloat::E2M1.decode(bits as u8)),
            Dtype::E8M0 => f64::from(e8m0_value(bits as u8)),
            Dtype::U64 => bits as f64,
            _ if !self.is_simulated() => f64::NAN,
            _ => self.decode_int(bits) as f64,
        }
    }

    /// The integer that bits of an integer type stand for, modulo 2^64; a float's integer part.
    pub(crate) fn decode_int(self, bits: u64) -> i64 {
        match self {
            Dtype::I64 | Dtype::U64 => bits as i64,
            Dtype::I32 => i64::from(bits as i32),
            Dtype::U32 => i64::from(bits as u32),
            Dtype::I16 => i64::from(bits as i16),
            Dtype::U16 => i64::from(bits as u16),
            Dtype::I8 => i64::from(bits as i8),
            Dtype::U8 => i64::from(bits as u8),
            Dtype::Bool => i64::from(bits as u8 != 0),
            Dtype::I4 => i64::from((bits as u8) << 4) << 56 >> 60,
            _ => self.decode(bits) as i64,
        }
    }

    /// The bits of an integer, wrapped into an integer type; rounded into a float type.
    pub(crate) fn encode_int(self, x: i64) -> u64 {
        match self {
            Dtype::Bool => u64::from(x != 0),
            Dtype::I4 => x as u64 & 15,
            _ if self.is_int() => x as u64 & mask(self.bits()),
            _ => self.encode(x as f64),
        }
    }
}

const fn mask(bits: usize) -> u64 {
    if bits == 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// A binary float of at most 16 bits with IEEE specials, rounded from f64 once, ties to even.
fn nearest(x: f64, exponent_bits: i32, mantissa_bits: i32) -> u64 {
    let sign = u64::from(x.is_sign_negative()) << (exponent_bits + mantissa_bits);
    let infinity = ((1u64 << exponent_bits) - 1) << mantissa_bits;
    if x.is_nan() {
        return sign | infinity | 1 << (mantissa_bits - 1);
    }
    let magnitude = x.abs();
    if magnitude.is_infinite() {
        return sign | infinity;
    }
    let lowest = 2 - (1 << (exponent_bits - 1));
    let bits = magnitude.to_bits();
    let code = if (bits >> 52) as i32 - 1023 >= lowest {
        // Half a unit of what is kept, less the last bit where that leaves a tie to an even one; a carry walks into the
        // exponent.
        let lost = 52 - mantissa_bits;
        let rounded = bits + (1 << (lost - 1)) - 1 + (bits >> lost & 1);
        (rounded >> lost) - (((1022 + lowest) as u64) << mantissa_bits)
    } else {
        // Units of the last place; the scaling is exact, so this rounds once.
        (magnitude * 2f64.powi(mantissa_bits - lowest)).round_ties_even() as u64
    };
    sign | code.min(infinity)
}

pub(super) fn half_value(bits: u16) -> f32 {
    let (sign, magnitude) = (u32::from(bits >> 15) << 31, u32::from(bits & 0x7fff));
    let value = if magnitude >= 0x7c00 {
        0x7f80_0000 | (magnitude & 0x3ff) << 13
    } else {
        // The exponent's bias is 112 less; the product is exact, below the normal numbers too.
        (f32::from_bits(magnitude << 13) * 2f32.powi(112)).to_bits()
    };
    f32::from_bits(sign | value)
}
