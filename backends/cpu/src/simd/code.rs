//! Types of a byte or half a byte over lanes: codes to f32 exactly, and f32 to the nearest code.
//!
//! Conversions are shifts and one multiplication or addition, but for the sixteen numbers of half a byte; the scalar
//! codec they are held against is `portolan_ops::codec`.

use super::lanes::Lanes;
use portolan_ops::DType;
use portolan_ops::codec::{Overflow, SmallFloat, code_value, e8m0_code};

/// An element type of at most 8 bits.
pub(crate) trait Code: Copy + Send + Sync + 'static {
    /// Which.
    const DTYPE: DType;
    /// Whether two codes share a byte.
    const HALF: bool = Self::DTYPE.is_sub_byte();
    /// Whether [`Code::encode`] takes numbers of any size.
    const BOUNDED: bool;

    /// The numbers of codes without sign.
    fn decode<L: Lanes>(codes: L::Int) -> L;
    /// The nearest codes, ties to even, other bits 0; integers for numbers in their range, NaN giving 0; floats
    /// as `overflow` says.
    fn encode<L: Lanes>(x: L, overflow: Overflow) -> L::Int;
    /// [`Code::encode`] of magnitudes that are not NaN with the signs of `sign`, the largest code for what is beyond it.
    #[inline(always)]
    fn encode_size<L: Lanes>(size: L, sign: L) -> L::Int {
        Self::encode(size.copysign(sign), Overflow::Saturate)
    }
    /// The nearest code of one number.
    fn encode_one(x: f32, overflow: Overflow) -> u8;
    /// The number of a code.
    #[inline(always)]
    fn decode_one(code: u8) -> f32 {
        code_value(Self::DTYPE, code).unwrap_or(0.0)
    }
}

/// Reads `count ≤ LEN` elements from element `place` on; the other lanes are the number of code 0.
///
/// # Safety
/// They are readable from `base`.
#[inline(always)]
pub(crate) unsafe fn load<L: Lanes, C: Code>(base: *const u8, place: usize, count: usize) -> L {
    // SAFETY: `count` elements are readable, and the copy holds 16.
    unsafe {
        if count == L::LEN && !C::HALF {
            return C::decode(L::load_bytes(base.add(place)));
        }
        if count == L::LEN && place.is_multiple_of(2) {
            return C::decode(L::load_nibbles(base.add(place / 2)));
        }
        let mut codes = [0u8; 16];
        for (i, code) in codes.iter_mut().enumerate().take(count) {
            *code = get::<C>(base, place + i);
        }
        C::decode(L::load_bytes(codes.as_ptr()))
    }
}

/// Writes the nearest codes of the first `count ≤ LEN` lanes from element `place` on.
///
/// # Safety
/// They are writable from `base`, and no other thread writes to the bytes they lie in.
#[inline(always)]
pub(crate) unsafe fn store<L: Lanes, C: Code>(
    base: *mut u8,
    place: usize,
    count: usize,
    x: L,
    overflow: Overflow,
) {
    let codes = C::encode(x, overflow);
    // SAFETY: `count` elements are writable, and the copy holds 16.
    unsafe {
        if count == L::LEN && !C::HALF {
            return L::store_bytes(codes, base.add(place));
        }
        if count == L::LEN && place.is_multiple_of(2) {
            return L::store_nibbles(codes, base.add(place / 2));
        }
        let mut bytes = [0u8; 16];
        L::store_bytes(codes, bytes.as_mut_ptr());
        for (i, &code) in bytes.iter().enumerate().take(count) {
            put::<C>(base, place + i, code);
        }
    }
}

/// The code at element `place`.
///
/// # Safety
/// It is readable from `base`.
#[inline(always)]
pub(crate) unsafe fn get<C: Code>(base: *const u8, place: usize) -> u8 {
    // SAFETY: the caller's promise.
    unsafe {
        match C::HALF {
            true => *base.add(place / 2) >> (place % 2 * 4) & 15,
            false => *base.add(place),
        }
    }
}

/// Writes a code to element `place`; the other half of its byte stays.
///
/// # Safety
/// It is writable from `base`, and no other thread writes to its byte.
#[inline(always)]
pub(crate) unsafe fn put<C: Code>(base: *mut u8, place: usize, code: u8) {
    // SAFETY: the caller's promise.
    unsafe {
        if C::HALF {
            let (byte, shift) = (base.add(place / 2), place % 2 * 4);
            *byte = *byte & !(15 << shift) | (code & 15) << shift;
        } else {
            *base.add(place) = code;
        }
    }
}

/// What a small float's conversions are made of; all exact.
struct Format {
    /// Its largest code, sign apart.
    top: i32,
    /// Code less the sign, and where the sign is moved from.
    magnitude: i32,
    /// What the exponent field of an f32 has more.
    lift: i32,
    /// The smallest normal number.
    normal: f32,
}

impl Format {
    const fn new(bits: u32, bias: i32, top: u8) -> Self {
        Format {
            top: top as i32,
            magnitude: (1 << (bits - 1)) - 1,
            lift: (127 - bias) << 23,
            normal: f32::from_bits(((1 - bias + 127) as u32) << 23),
        }
    }
}

/// `SHIFT`: from a code's mantissa to an f32's. `SIGN`: from a code's sign to an f32's.
#[inline(always)]
fn decode_float<L: Lanes, const SHIFT: u32, const SIGN: u32>(codes: L::Int, format: &Format) -> L {
    let magnitude = L::and_int(codes, L::splat_int(format.magnitude));
    let fields = L::shl_int::<SHIFT>(magnitude);
    let normal = L::from_bits(L::add_int(fields, L::splat_int(format.lift)));
    // Below the smallest normal number codes go on in steps as large as those above it: on a line that is the lower of
    // both there, and the upper everywhere else. No product of a subnormal f32, which takes some processors hundreds of
    // cycles.
    let number = normal.min(normal.mul_add(L::splat(2.0), L::splat(-format.normal)));
    let sign = L::from_bits(L::shl_int::<SIGN>(codes));
    if format.top == format.magnitude {
        return number.copysign(sign);
    }
    // Above the largest code all exponent bits are set: infinity or NaN.
    let special = L::splat(format.top as f32).lt(L::from_int(magnitude));
    let beyond = L::from_bits(L::add_int(
        L::and_int(fields, L::splat_int(0x7f_ffff)),
        L::splat_int(f32::INFINITY.to_bits() as i32),
    ));
    L::select(special, beyond, number).copysign(sign)
}

/// The code of a magnitude that is not NaN, with the sign of `x`. `limit`: what larger ones are taken for.
#[inline(always)]
fn encode_float<L: Lanes, const SHIFT: u32, const SIGN: u32>(
    size: L,
    x: L,
    format: &Format,
    limit: f32,
) -> L::Int {
    // The bound is the first operand, so that NaN stays.
    let size = L::splat(limit).min(size);
    // Subnormal numbers have the last place of the smallest normal ones.
    let normal = L::splat(format.normal);
    let power = L::from_bits(L::and_int(size.bits(), L::splat_int(0x7f80_0000))).max(normal).bits();
    // Added to 2^SHIFT times that power of two, the number is rounded, to even, to its last place as a code.
    let large = L::add_int(power, L::splat_int((SHIFT as i32) << 23));
    let units = L::sub_int(size.add(L::from_bits(large)).bits(), large);
    let code = L::add_int(units, L::shr_int::<SHIFT>(L::sub_int(power, normal.bits())));
    let sign = L::and_int(L::shr_int::<SIGN>(x.bits()), L::splat_int(format.magnitude + 1));
    L::or_int(code, sign)
}

macro_rules! small_float {
    ($(#[$doc:meta])* $name:ident, $dtype:ident, $format:ident, $shift:literal, $sign:literal, $bits:literal, $bias:literal, $top:literal, $infinity:expr, $nan:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl $name {
            const FORMAT: Format = Format::new($bits, $bias, $top);
        }

        impl Code for $name {
            const DTYPE: DType = DType::$dtype;
            const BOUNDED: bool = true;
            #[inline(always)]
            fn decode<L: Lanes>(codes: L::Int) -> L {
                decode_float::<L, $shift, $sign>(codes, &Self::FORMAT)
            }
            #[inline(always)]
            fn encode<L: Lanes>(x: L, overflow: Overflow) -> L::Int {
                let infinity: Option<f32> = $infinity;
                let limit = match (overflow, infinity) {
                    (Overflow::Infinity, Some(beyond)) => beyond,
                    _ => const { SmallFloat::$format.largest() },
                };
                let code = L::from_bits(encode_float::<L, $shift, $sign>(x.abs(), x, &Self::FORMAT, limit));
                L::select(x.unordered(), L::from_bits(L::splat_int($nan)), code).bits()
            }
            #[inline(always)]
            fn encode_size<L: Lanes>(size: L, sign: L) -> L::Int {
                let limit = const { SmallFloat::$format.largest() };
                encode_float::<L, $shift, $sign>(size, sign, &Self::FORMAT, limit)
            }
            #[inline(always)]
            fn encode_one(x: f32, overflow: Overflow) -> u8 {
                SmallFloat::$format.encode(f64::from(x), overflow)
            }
        }
    };
}
small_float! {
    /// f8e4m3.
    E4m3, F8E4M3, E4M3, 20, 24, 8, 7, 0x7e, None, 0x7f
}
small_float! {
    /// f8e5m2; what would follow the largest number has the code of infinity.
    E5m2, F8E5M2, E5M2, 21, 24, 8, 15, 0x7b, Some(65536.0), 0x7f
}

/// f4e2m1.
#[derive(Clone, Copy)]
pub(crate) struct E2m1;

/// Its numbers, by code.
pub(crate) static HALF_BYTES: [f32; 16] = {
    let mut numbers = [0.0; 16];
    let mut code = 0;
    while code < 16 {
        numbers[code] = SmallFloat::E2M1.decode(code as u8);
        code += 1;
    }
    numbers
};

impl Code for E2m1 {
    const DTYPE: DType = DType::F4E2M1;
    const BOUNDED: bool = true;
    #[inline(always)]
    fn decode<L: Lanes>(codes: L::Int) -> L {
        L::look_up(&HALF_BYTES, codes)
    }
    #[inline(always)]
    fn encode<L: Lanes>(x: L, _: Overflow) -> L::Int {
        let code = L::from_bits(Self::encode_size(x.abs(), x));
        L::select(x.unordered(), L::from_bits(L::splat_int(7)), code).bits()
    }
    #[inline(always)]
    fn encode_size<L: Lanes>(size: L, sign: L) -> L::Int {
        // Codes count steps of 1/2, from 2 on of 1 and from 4 on of 2: the lowest of three lines, and so after
        // rounding. At 2^22 the last place is 1/2: there each line is rounded to whole codes by one addition, ties to
        // even, and the code stands in its lowest bits.
        const ZERO: f32 = 4_194_304.0;
        let halves = size.add(L::splat(ZERO));
        let ones = size.mul_add(L::splat(0.5), L::splat(ZERO + 1.0));
        let twos = size.mul_add(L::splat(0.25), L::splat(ZERO + 2.0));
        let code = halves.min(ones).min(twos.min(L::splat(ZERO + 3.5))).bits();
        let sign = L::and_int(L::shr_int::<28>(sign.bits()), L::splat_int(8));
        L::or_int(L::and_int(code, L::splat_int(7)), sign)
    }
    #[inline(always)]
    fn encode_one(x: f32, overflow: Overflow) -> u8 {
        SmallFloat::E2M1.encode(f64::from(x), overflow)
    }
}

/// e8m0.
#[derive(Clone, Copy)]
pub(crate) struct E8m0;

impl Code for E8m0 {
    const DTYPE: DType = DType::E8M0;
    const BOUNDED: bool = true;
    #[inline(always)]
    fn decode<L: Lanes>(codes: L::Int) -> L {
        // The ends, 2^−127 and NaN, both have the topmost bit of the mantissa.
        let number = L::from_int(codes);
        let half = L::from_bits(L::splat_int(1 << 22));
        let extra = L::select(number.lt(L::splat(1.0)), half, L::zero());
        let extra = L::select(L::splat(254.0).lt(number), half, extra);
        L::from_bits(L::add_int(L::shl_int::<23>(codes), extra.bits()))
    }
    #[inline(always)]
    fn encode<L: Lanes>(x: L, _: Overflow) -> L::Int {
        // 2^127, and NaN stays.
        let size = L::splat(1.701_411_8e38).min(x);
        let bits = size.bits();
        let odd = L::and_int(L::shr_int::<23>(bits), L::splat_int(1));
        let rounded = L::add_int(L::add_int(bits, L::splat_int((1 << 22) - 1)), odd);
        let normal = L::from_bits(L::shr_int::<23>(rounded));
        // Below the normal numbers: between 2^−127 and 2^−126, the tie to the former.
        let tie = L::from_bits(L::splat_int(0x60_0000));
        let one = L::from_bits(L::splat_int(1));
        let small = L::select(tie.lt(size), one, L::zero());
        let code = L::select(size.lt(L::splat(f32::MIN_POSITIVE)), small, normal);
        let nan = L::from_bits(L::splat_int(255));
        let code = L::select(size.lt(L::zero()), nan, code);
        L::select(size.unordered(), nan, code).bits()
    }
    #[inline(always)]
    fn encode_one(x: f32, _: Overflow) -> u8 {
        e8m0_code(f64::from(x))
    }
}

macro_rules! integer {
    ($(#[$doc:meta])* $name:ident, $dtype:ident, $mask:literal, $left:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Code for $name {
            const DTYPE: DType = DType::$dtype;
            const BOUNDED: bool = false;
            #[inline(always)]
            fn decode<L: Lanes>(codes: L::Int) -> L {
                // The sign of a signed code is spread by shifting it to the end and back.
                L::from_int(L::shr_int::<$left>(L::shl_int::<$left>(codes)))
            }
            #[inline(always)]
            fn encode<L: Lanes>(x: L, _: Overflow) -> L::Int {
                let number = L::select(x.unordered(), L::zero(), x);
                L::and_int(number.to_int(), L::splat_int($mask))
            }
            #[inline(always)]
            fn encode_one(x: f32, _: Overflow) -> u8 {
                x.round_ties_even() as i32 as u8 & $mask
            }
        }
    };
}
integer! {
    /// i8.
    Int8, I8, 0xff, 24
}
integer! {
    /// u8.
    Uint8, U8, 0xff, 0
}
integer! {
    /// i4.
    Int4, I4, 0xf, 28
}
integer! {
    /// u4.
    Uint4, U4, 0xf, 0
}

/// Evaluates `$body` with `$code` bound to the code type of an element type; `$otherwise` for wider ones.
macro_rules! with_code {
    ($dtype:expr, $code:ident => $body:expr, _ => $otherwise:expr) => {{
        macro_rules! with {
            ($type:ident) => {{
                type $code = $crate::simd::code::$type;
                $body
            }};
        }
        match $dtype {
            portolan_ops::DType::F8E4M3 => with!(E4m3),
            portolan_ops::DType::F8E5M2 => with!(E5m2),
            portolan_ops::DType::F4E2M1 => with!(E2m1),
            portolan_ops::DType::E8M0 => with!(E8m0),
            portolan_ops::DType::I8 => with!(Int8),
            portolan_ops::DType::U8 => with!(Uint8),
            portolan_ops::DType::I4 => with!(Int4),
            portolan_ops::DType::U4 => with!(Uint4),
            _ => $otherwise,
        }
    }};
}
pub(crate) use with_code;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::simd::{Kernel, dispatch};

    /// Encodes numbers, and decodes codes, in vectors.
    struct Both<'a, C> {
        x: &'a [f32],
        overflow: Overflow,
        code: core::marker::PhantomData<C>,
    }

    impl<C: Code> Kernel for Both<'_, C> {
        type Output = (Vec<u8>, Vec<f32>);
        #[inline(always)]
        fn run<L: Lanes>(self) -> Self::Output {
            let codes = if C::HALF { 16usize } else { 256 };
            let (mut encoded, mut decoded) = (vec![0u8; self.x.len()], Vec::new());
            let all: Vec<u8> = match C::HALF {
                true => (0..8u8).map(|i| (2 * i) | ((2 * i + 1) << 4)).collect(),
                false => (0..=255).collect(),
            };
            let mut packed = vec![0u8; self.x.len()];
            for (i, part) in self.x.chunks(L::LEN).enumerate() {
                // SAFETY: within the vectors; a part is at most LEN long.
                unsafe {
                    let x = L::load_partial(part.as_ptr(), part.len());
                    store::<L, C>(packed.as_mut_ptr(), i * L::LEN, part.len(), x, self.overflow);
                    for (j, code) in encoded[i * L::LEN..].iter_mut().enumerate().take(part.len()) {
                        *code = get::<C>(packed.as_ptr(), i * L::LEN + j);
                    }
                }
            }
            for i in (0..codes).step_by(L::LEN) {
                // SAFETY: within the codes.
                let lanes = unsafe { load::<L, C>(all.as_ptr(), i, L::LEN) }.to_array();
                decoded.extend_from_slice(&lanes[..L::LEN]);
            }
            (encoded, decoded)
        }
    }

    fn check<C: Code>(numbers: &[f32]) {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.require().is_ok()) {
            for overflow in [Overflow::Saturate, Overflow::Infinity] {
                let both = Both::<C> { x: numbers, overflow, code: core::marker::PhantomData };
                let (encoded, decoded) = dispatch(isa, both);
                for (code, &got) in decoded.iter().enumerate() {
                    let want = C::decode_one(code as u8);
                    let equal = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
                    assert!(equal, "{} on {isa:?}: {code:#x} is {want:e}, got {got:e}", C::DTYPE);
                }
                for (x, got) in numbers.iter().zip(encoded) {
                    let want = C::encode_one(*x, overflow);
                    assert_eq!(got, want, "{} {overflow:?} on {isa:?}: {x:e}", C::DTYPE);
                }
            }
        }
    }

    /// Every f32 with at most 12 bits of mantissa around where 8-bit formats live, its neighbours, and the ends.
    fn numbers() -> Vec<f32> {
        let mut numbers = vec![0.0, f32::MAX, f32::INFINITY, f32::NAN, f32::MIN_POSITIVE, 61440.0];
        for exponent in (60..190).chain([0, 1, 2, 252, 253, 254]) {
            for mantissa in 0..128u32 {
                let x = f32::from_bits(exponent << 23 | mantissa << 16);
                numbers.extend([x, x.next_up(), x.next_down()]);
            }
        }
        let negative: Vec<f32> = numbers.iter().map(|x| -x).collect();
        numbers.extend(negative);
        numbers
    }

    #[test]
    fn small_floats_convert_as_the_codec_does_on_every_path() {
        let numbers = numbers();
        check::<E4m3>(&numbers);
        check::<E5m2>(&numbers);
        check::<E2m1>(&numbers);
        check::<E8m0>(&numbers);
    }

    #[test]
    fn integers_round_to_even_on_every_path() {
        let within = |low: f32, high: f32| -> Vec<f32> {
            let mut numbers: Vec<f32> = numbers().into_iter().filter(|x| *x >= low && *x <= high).collect();
            numbers.extend((low as i32 * 2..=high as i32 * 2).map(|i| i as f32 / 2.0));
            numbers.push(f32::NAN);
            numbers
        };
        check::<Int8>(&within(-128.0, 127.0));
        check::<Uint8>(&within(0.0, 255.0));
        check::<Int4>(&within(-8.0, 7.0));
        check::<Uint4>(&within(0.0, 15.0));
    }

    #[test]
    fn codes_at_odd_places_leave_their_neighbours_alone() {
        let mut bytes = [0x55u8; 4];
        // SAFETY: elements 3 to 6 of 8.
        unsafe {
            for (i, code) in [9u8, 10, 11, 12].into_iter().enumerate() {
                put::<E2m1>(bytes.as_mut_ptr(), 3 + i, code);
            }
            assert_eq!(bytes, [0x55, 0x95, 0xba, 0x5c]);
            assert_eq!(get::<E2m1>(bytes.as_ptr(), 3), 9);
        }
    }
}
