//! Codecs of the storage types below 16 bits: which number a code stands for, and the code a number rounds to.
//!
//! Exact and plain, one rounding straight from f64: what fast conversions in kernels are held against.

use crate::DType;

/// What becomes of numbers beyond the largest finite one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// The largest finite number of their sign, infinities included.
    Saturate,
    /// Infinity, as IEEE rounding has it; in formats without one the same as [`Overflow::Saturate`].
    Infinity,
}

/// A float format of at most 8 bits: sign, exponent, mantissa, and what its topmost codes mean.
///
/// A number rounds to the nearest of the format, ties to the even code. Numbers less than half the smallest
/// positive one round to a zero of their sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SmallFloat {
    exponent_bits: u32,
    mantissa_bits: u32,
    /// Code of the largest finite number.
    top: u8,
    infinity: Option<u8>,
    nan: Option<u8>,
}

impl SmallFloat {
    /// OCP E4M3: up to 448, no infinities; codes 0x7f and 0xff are NaN, the first is written.
    pub const E4M3: SmallFloat =
        SmallFloat { exponent_bits: 4, mantissa_bits: 3, top: 0x7e, infinity: None, nan: Some(0x7f) };
    /// OCP E5M2: up to 57344, infinities at 0x7c, NaN above; 0x7f is written.
    pub const E5M2: SmallFloat =
        SmallFloat { exponent_bits: 5, mantissa_bits: 2, top: 0x7b, infinity: Some(0x7c), nan: Some(0x7f) };
    /// OCP E2M1: 0, ½, 1, 1½, 2, 3, 4, 6 and their negatives; NaN is written as 6, as processors do.
    pub const E2M1: SmallFloat =
        SmallFloat { exponent_bits: 2, mantissa_bits: 1, top: 0x7, infinity: None, nan: None };

    /// The format of an element type, if it is one of these.
    pub const fn of(dtype: DType) -> Option<SmallFloat> {
        match dtype {
            DType::F8E4M3 => Some(Self::E4M3),
            DType::F8E5M2 => Some(Self::E5M2),
            DType::F4E2M1 => Some(Self::E2M1),
            _ => None,
        }
    }

    /// Bits of a code, the sign included.
    pub const fn bits(self) -> u32 {
        1 + self.exponent_bits + self.mantissa_bits
    }

    /// The largest finite number.
    pub const fn largest(self) -> f32 {
        self.decode(self.top)
    }

    /// Exponent of the largest finite number: 8, 15 and 2.
    pub const fn largest_exponent(self) -> i32 {
        (self.top >> self.mantissa_bits) as i32 - self.bias()
    }

    const fn bias(self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }

    /// The number a code stands for, exactly; bits above the format's are ignored.
    pub const fn decode(self, code: u8) -> f32 {
        let sign = (code as u32 >> (self.bits() - 1) & 1) << 31;
        let magnitude = code as u32 & ((1 << (self.bits() - 1)) - 1);
        if magnitude > self.top as u32 {
            let infinite = matches!(self.infinity, Some(infinity) if magnitude == infinity as u32);
            return f32::from_bits(sign | if infinite { 0x7f80_0000 } else { 0x7fc0_0000 });
        }
        let (exponent, fraction) = (magnitude >> self.mantissa_bits, magnitude << (23 - self.mantissa_bits));
        let bits = if exponent == 0 {
            // 2^(1 − bias) times the fraction: the fraction under a leading one, less that one.
            let one = f32::from_bits(((128 - self.bias()) as u32) << 23);
            (f32::from_bits(one.to_bits() | fraction) - one).to_bits()
        } else {
            ((exponent as i32 + 127 - self.bias()) as u32) << 23 | fraction & 0x7f_ffff
        };
        f32::from_bits(sign | bits)
    }

    /// The code of the nearest number.
    pub fn encode(self, x: f64, overflow: Overflow) -> u8 {
        if x.is_nan() {
            return self.nan.unwrap_or(self.top);
        }
        let beyond = match (overflow, self.infinity) {
            (Overflow::Infinity, Some(infinity)) => infinity,
            _ => self.top,
        };
        let sign = u8::from(x.is_sign_negative()) << (self.bits() - 1);
        if x.is_infinite() {
            return sign | beyond;
        }
        let code = nearest_binary(x.abs(), self.exponent_bits, self.mantissa_bits);
        sign | if code > u64::from(self.top) { beyond } else { code as u8 }
    }
}

/// Exponent and mantissa fields, as one integer, of the number nearest to a finite positive one, ties to even;
/// the exponent field may overflow.
#[inline]
pub(crate) fn nearest_binary(magnitude: f64, exponent_bits: u32, mantissa_bits: u32) -> u64 {
    let lowest = 2 - (1 << (exponent_bits - 1));
    let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(lowest);
    // In units of the last place; scaling by a power of two is exact, so this is the only rounding.
    let power = f64::from_bits(((1023 + mantissa_bits as i32 - exponent) as u64) << 52);
    let units = magnitude * power;
    // The leading one of a normal number carries into the exponent field; so does a rounding overflow.
    (((exponent - lowest) as u64) << mantissa_bits) + units.round_ties_even() as u64
}

/// The scale an e8m0 code stands for: `2^(code − 127)`, NaN for 255.
pub const fn e8m0_value(code: u8) -> f32 {
    match code {
        // Below the smallest normal number.
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        code => f32::from_bits((code as u32) << 23),
    }
}

/// The e8m0 code of the nearest power of two, ties to the even code.
///
/// Saturates at `2^−127`, 0 included, and at `2^127`, infinity included. NaN and numbers below 0, which are no
/// scales, give NaN.
pub fn e8m0_code(x: f64) -> u8 {
    if x.is_nan() || x < 0.0 {
        return 255;
    }
    if x <= f64::from(e8m0_value(0)) {
        return 0;
    }
    if x >= f64::from(e8m0_value(254)) {
        return 254;
    }
    // Between 2^−127 and 2^127 an f64 is normal: round its mantissa away, ties to the even exponent. The code
    // is even where the exponent field of an f64 is (their biases differ by 896).
    let bits = x.to_bits();
    let half = (1u64 << 51) - 1 + (bits >> 52 & 1);
    (((bits + half) >> 52) as i64 - 1023 + 127).clamp(0, 254) as u8
}

/// The number a code of an 8-bit or 4-bit type stands for, if `dtype` is one.
pub fn code_value(dtype: DType, code: u8) -> Option<f32> {
    Some(match dtype {
        DType::E8M0 => e8m0_value(code),
        DType::U8 | DType::Bool => f32::from(code),
        DType::I8 => f32::from(code as i8),
        DType::U4 => f32::from(code & 15),
        DType::I4 => f32::from((code << 4) as i8 >> 4),
        dtype => SmallFloat::of(dtype)?.decode(code),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox_block;

    const FORMATS: [SmallFloat; 3] = [SmallFloat::E4M3, SmallFloat::E5M2, SmallFloat::E2M1];

    /// The standard's formula, in f64 and by fields; `None` for what is not a number.
    fn by_fields(format: SmallFloat, code: u8) -> Option<f64> {
        let (e, m, bias) = match format {
            SmallFloat::E4M3 => (4, 3, 7),
            SmallFloat::E5M2 => (5, 2, 15),
            _ => (2, 1, 1),
        };
        let sign = if code >> (e + m) & 1 == 1 { -1.0 } else { 1.0 };
        let exponent = i32::from(code >> m & ((1 << e) - 1));
        let fraction = f64::from(code & ((1 << m) - 1)) / f64::from(1 << m);
        let special = match format {
            SmallFloat::E4M3 => code & 0x7f == 0x7f,
            SmallFloat::E5M2 => exponent == 31,
            _ => false,
        };
        let value = match exponent {
            0 => fraction * 2f64.powi(1 - bias),
            _ => (1.0 + fraction) * 2f64.powi(exponent - bias),
        };
        (!special).then_some(sign * value)
    }

    #[test]
    fn every_code_stands_for_the_standards_number() {
        for format in FORMATS {
            for code in 0..1u16 << format.bits() {
                let (code, got) = (code as u8, format.decode(code as u8));
                match by_fields(format, code) {
                    Some(want) => {
                        assert_eq!(f64::from(got).to_bits(), want.to_bits(), "{format:?} {code:#x}")
                    }
                    None if format == SmallFloat::E5M2 && code & 3 == 0 => {
                        assert_eq!(got, if code > 0x7f { f32::NEG_INFINITY } else { f32::INFINITY });
                    }
                    None => assert!(got.is_nan(), "{format:?} {code:#x}"),
                }
            }
        }
        assert_eq!(FORMATS.map(SmallFloat::largest), [448.0, 57344.0, 6.0]);
        assert_eq!(FORMATS.map(SmallFloat::largest_exponent), [8, 15, 2]);
        assert_eq!(FORMATS.map(|f| f.decode(1)), [2f32.powi(-9), 2f32.powi(-16), 0.5]);
        let two_to = |code: u8| 2f64.powi(i32::from(code) - 127);
        assert!((0..255).all(|code| f64::from(e8m0_value(code)) == two_to(code)) && e8m0_value(255).is_nan());
    }

    /// The nearest of `table` (codes with ascending values) by looking at all of it, ties to the even code.
    fn search(table: &[(u8, f64)], x: f64) -> u8 {
        let distance = |entry: &(u8, f64)| (entry.1 - x).abs();
        let mut best = &table[0];
        for entry in table {
            let (here, least) = (distance(entry), distance(best));
            if here < least || (here == least && entry.0.is_multiple_of(2)) {
                best = entry;
            }
        }
        best.0
    }

    /// Every value, every tie, their neighbours among f64 and f32, and numbers in between and beyond.
    fn probes(table: &[(u8, f64)]) -> Vec<f64> {
        let mut points: Vec<f64> = table.iter().map(|&(_, value)| value).collect();
        points.extend(table.windows(2).map(|pair| (pair[0].1 + pair[1].1) / 2.0));
        let mut probes = Vec::new();
        for &x in &points {
            let narrow = x as f32;
            probes.extend([x, x.next_up(), x.next_down()]);
            probes.extend([narrow, narrow.next_up(), narrow.next_down()].map(f64::from));
        }
        let largest = table[table.len() - 1].1;
        probes.extend([1.01, 1.49, 1.5, 2.0, 1e10].map(|factor| factor * largest));
        for i in 0..4000 {
            let [a, b, ..] = philox_block(11, i);
            let fraction = f64::from(a) / f64::from(u32::MAX);
            let at = b as usize % (table.len() - 1);
            probes.push(table[at].1 + fraction * (table[at + 1].1 - table[at].1));
        }
        probes
    }

    #[test]
    fn every_number_rounds_to_the_nearest_code() {
        for format in FORMATS {
            let half = 1u8 << (format.bits() - 1);
            let table: Vec<(u8, f64)> =
                (0..=format.top).filter_map(|code| Some((code, by_fields(format, code)?))).collect();
            for x in probes(&table) {
                let want = search(&table, x.abs());
                let sign = if x.is_sign_negative() { half } else { 0 };
                assert_eq!(format.encode(x, Overflow::Saturate), sign | want, "{format:?} {x:e}");
                assert_eq!(format.encode(-x, Overflow::Saturate), (sign ^ half) | want, "{format:?} {x:e}");
            }
        }
        let table: Vec<(u8, f64)> = (0..255).map(|code| (code, f64::from(e8m0_value(code)))).collect();
        for x in probes(&table).into_iter().filter(|x| *x >= 0.0) {
            assert_eq!(e8m0_code(x), search(&table, x), "{x:e}");
        }
    }

    #[test]
    fn what_is_beyond_the_format_is_as_stated() {
        use Overflow::{Infinity, Saturate};
        let (e4m3, e5m2, e2m1) = (SmallFloat::E4M3, SmallFloat::E5M2, SmallFloat::E2M1);
        for overflow in [Saturate, Infinity] {
            let both = |f: SmallFloat, x| [f.encode(x, overflow), f.encode(-x, overflow)];
            assert_eq!(both(e4m3, f64::INFINITY), [0x7e, 0xfe]);
            assert_eq!(both(e4m3, 1e300), [0x7e, 0xfe]);
            assert_eq!(both(e2m1, f64::INFINITY), [7, 15]);
            assert_eq!([e4m3, e5m2, e2m1].map(|f| f.encode(f64::NAN, overflow)), [0x7f, 0x7f, 7]);
        }
        // 61440 lies half way between the largest number and where the next would be.
        for (x, code) in [(61439.0, 0x7b), (61440.0, 0x7c), (1e300, 0x7c), (f64::INFINITY, 0x7c)] {
            assert_eq!((e5m2.encode(x, Infinity), e5m2.encode(-x, Infinity)), (code, code | 0x80), "{x}");
            assert_eq!(e5m2.encode(x, Saturate), 0x7b);
        }
        for (x, code) in [(0.0, 0), (-0.0, 0), (1e-300, 0), (1e300, 254), (f64::INFINITY, 254)] {
            assert_eq!(e8m0_code(x), code, "{x}");
        }
        assert!([f64::NAN, -1e-300, f64::NEG_INFINITY].into_iter().all(|x| e8m0_code(x) == 255));
    }

    #[test]
    fn every_code_survives_the_way_there_and_back() {
        for format in FORMATS {
            for code in 0..1u16 << format.bits() {
                let value = f64::from(format.decode(code as u8));
                assert!(value.is_nan() || format.encode(value, Overflow::Infinity) == code as u8);
            }
        }
        assert!((0..=255).all(|code| e8m0_code(f64::from(e8m0_value(code))) == code));
        assert_eq!(code_value(DType::I4, 0x0f), Some(-1.0));
        assert_eq!(code_value(DType::F4E2M1, 0x0f), Some(-6.0));
        assert_eq!(code_value(DType::F32, 0), None);
    }
}
