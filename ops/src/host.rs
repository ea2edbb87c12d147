//! Tensors in host memory as f64 values and as storage bytes: what oracles and devices exchange in tests.
//!
//! The codec is written for exactness, not speed: one rounding, straight from f64, in every element type.
//! Which values a case is filled with ([`Fill::draw`]) is decided here too, so that all backends see the same.

use crate::codec::{Overflow, SmallFloat, code_value, e8m0_code, nearest_binary};
use crate::layout::places;
use crate::philox::philox_block;
use crate::{DType, Fill, OpError, Result, TensorSpec};

/// A tensor in host memory: a spec, and the bytes a device allocation for it would hold.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    spec: TensorSpec,
    bytes: Vec<u8>,
}

impl HostTensor {
    /// Encodes `values`, given in logical row-major order; bytes no element covers hold `fill`.
    ///
    /// Where positions share an element (a broadcast stride), the last value written stays, so an oracle
    /// should be given [`HostTensor::to_f64`] and not `values`.
    ///
    /// # Errors
    /// `Shape` when there are not exactly `numel` values, `Layout` when the span does not fit in memory.
    pub fn from_f64(spec: &TensorSpec, values: &[f64], fill: u8) -> Result<Self> {
        if values.len() != spec.numel() {
            return Err(OpError::shape("encode", format!("{} values for {spec}", values.len())));
        }
        let mut tensor = Self::filled(spec, fill)?;
        with_format(spec.dtype(), Encode { spec, values, bytes: &mut tensor.bytes });
        Ok(tensor)
    }

    /// A tensor whose every byte is `fill`.
    ///
    /// # Errors
    /// `Layout` when the span does not fit in memory.
    pub fn filled(spec: &TensorSpec, fill: u8) -> Result<Self> {
        let span = spec.span_bytes();
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(span).map_err(|_| {
            OpError::layout("encode", "tensor", format!("{spec} spans {span} bytes, more than fit in memory"))
        })?;
        bytes.resize(span, fill);
        Self::from_bytes(spec, bytes)
    }

    /// Wraps bytes as downloaded; there may be more than the spec spans.
    ///
    /// # Errors
    /// `Shape` when there are too few.
    pub fn from_bytes(spec: &TensorSpec, bytes: Vec<u8>) -> Result<Self> {
        if bytes.len() < spec.span_bytes() {
            return Err(OpError::shape(
                "decode",
                format!("{} bytes for {spec}, which spans {}", bytes.len(), spec.span_bytes()),
            ));
        }
        Ok(Self { spec: *spec, bytes })
    }

    /// Element type, extents and layout.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// The storage, from the allocation's first byte.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The storage, for a kernel to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The elements, exactly, in logical row-major order.
    pub fn to_f64(&self) -> Vec<f64> {
        with_format(self.spec.dtype(), Decode { spec: &self.spec, bytes: &self.bytes })
    }

    /// The first byte outside every element that no longer holds `fill`: proof that a kernel overstepped.
    pub fn overstepped(&self, fill: u8) -> Option<usize> {
        let whole = self.spec.is_contiguous() && self.spec.layout().offset() == 0;
        if whole && self.bytes.len() == self.spec.span_bytes() {
            return None;
        }
        let mut covered = vec![false; self.bytes.len()];
        let bits = self.spec.dtype().bits() as usize;
        visit(&self.spec, |place| {
            let start = place * bits / 8;
            covered[start..start + bits.div_ceil(8)].fill(true);
        });
        (0..self.bytes.len()).find(|&i| !covered[i] && self.bytes[i] != fill)
    }
}

impl Fill {
    /// The values this filling gives a tensor, in logical order and rounded to its element type.
    ///
    /// Deterministic: value `i` is made of lane `i % 4` of block `i / 4` of the Philox stream of `seed`.
    pub fn draw(&self, spec: &TensorSpec, seed: u64) -> Vec<f64> {
        let (dtype, numel) = (spec.dtype(), spec.numel());
        let mut drawn: Vec<f64> = match self {
            Fill::Values(values) if values.is_empty() => vec![0.0; numel],
            Fill::Values(values) => values.iter().copied().cycle().take(numel).collect(),
            Fill::Range(low, high) => uniform(dtype, [*low, *high], numel, seed),
            Fill::Unit => {
                let range = match dtype {
                    DType::Bool => [0.0, 2.0],
                    // A scale is positive: ¼ to 2.
                    DType::E8M0 => [0.25, 2.0],
                    DType::U8 | DType::U4 => [0.0, 8.0],
                    _ if dtype.is_int() || dtype == DType::I4 => [-8.0, 8.0],
                    _ => [-1.0, 1.0],
                };
                uniform(dtype, range, numel, seed)
            }
        };
        with_format(dtype, Round(&mut drawn));
        drawn
    }
}

fn uniform(dtype: DType, [low, high]: [f64; 2], numel: usize, seed: u64) -> Vec<f64> {
    let whole = !dtype.is_float() && !dtype.is_storage_float();
    let mut drawn = Vec::with_capacity(numel.next_multiple_of(4));
    for block in 0..numel.div_ceil(4) {
        for bits in philox_block(seed, block as u64) {
            let value = low + (high - low) * (f64::from(bits) / 4_294_967_296.0);
            drawn.push(if whole { value.floor() } else { value });
        }
    }
    drawn.truncate(numel);
    drawn
}

/// The nearest value of an element type, ties to even; integers truncate and saturate, NaN gives 0, bool is `x ≠ 0`;
/// types below 16 bits as [`SmallFloat`] and [`e8m0_code`] say, f8e5m2 overflowing to infinity.
pub fn rounded(dtype: DType, value: f64) -> f64 {
    let mut value = [value];
    with_format(dtype, Round(&mut value));
    value[0]
}

/// Calls `f` with the place of every element, in elements from the allocation's start, in logical order.
fn visit(spec: &TensorSpec, f: impl FnMut(usize)) {
    places(spec.dims(), spec.strides(), spec.layout().offset(), f);
}

/// Bits of the nearest number of a binary format with the given field widths, ties to even; NaN is quiet.
fn narrow(value: f64, exponent_bits: u32, mantissa_bits: u32) -> u16 {
    let infinity = ((1u64 << exponent_bits) - 1) << mantissa_bits;
    let sign = u64::from(value.is_sign_negative()) << (exponent_bits + mantissa_bits);
    let bits = if value.is_nan() {
        infinity | 1 << (mantissa_bits - 1)
    } else if value.is_infinite() {
        infinity
    } else {
        nearest_binary(value.abs(), exponent_bits, mantissa_bits).min(infinity)
    };
    (sign | bits) as u16
}

/// What is done with the elements of a type: its loop is compiled for each type, so that nothing is asked per element.
trait OnElements {
    type Out;

    /// Elements of whole bytes.
    fn whole<const N: usize>(
        self,
        encode: impl Fn(f64) -> [u8; N],
        decode: impl Fn([u8; N]) -> f64,
    ) -> Self::Out;

    /// Two elements a byte, the first in the lower bits; codes have no bits above those four.
    fn nibbles(self, encode: impl Fn(f64) -> u8, decode: impl Fn(u8) -> f64) -> Self::Out;
}

/// How every type stores a number, and which number its bytes are.
fn with_format<U: OnElements>(dtype: DType, user: U) -> U::Out {
    let code = |code: u8| code_value(dtype, code).map_or(f64::NAN, f64::from);
    let byte = |[byte]: [u8; 1]| code(byte);
    match dtype {
        DType::F64 => user.whole(f64::to_le_bytes, f64::from_le_bytes),
        DType::F32 => user.whole(|v| (v as f32).to_le_bytes(), |b| f32::from_le_bytes(b).into()),
        DType::F16 => {
            user.whole(|v| narrow(v, 5, 10).to_le_bytes(), |b| half::f16::from_le_bytes(b).to_f64())
        }
        DType::BF16 => {
            user.whole(|v| narrow(v, 8, 7).to_le_bytes(), |b| half::bf16::from_le_bytes(b).to_f64())
        }
        DType::I64 => user.whole(|v| (v as i64).to_le_bytes(), |b| i64::from_le_bytes(b) as f64),
        DType::I32 => user.whole(|v| (v as i32).to_le_bytes(), |b| i32::from_le_bytes(b).into()),
        DType::I8 => user.whole(|v| (v as i8).to_le_bytes(), byte),
        DType::U8 => user.whole(|v| [v as u8], byte),
        DType::Bool => user.whole(|v| [u8::from(v != 0.0)], byte),
        DType::F8E4M3 => user.whole(|v| [SmallFloat::E4M3.encode(v, Overflow::Saturate)], byte),
        DType::F8E5M2 => user.whole(|v| [SmallFloat::E5M2.encode(v, Overflow::Infinity)], byte),
        DType::E8M0 => user.whole(|v| [e8m0_code(v)], byte),
        DType::F4E2M1 => user.nibbles(|v| SmallFloat::E2M1.encode(v, Overflow::Saturate), code),
        DType::I4 => user.nibbles(|v| v.clamp(-8.0, 7.0) as i8 as u8 & 15, code),
        DType::U4 => user.nibbles(|v| v.clamp(0.0, 15.0) as u8, code),
    }
}

/// Writes values to their places.
struct Encode<'a> {
    spec: &'a TensorSpec,
    values: &'a [f64],
    bytes: &'a mut [u8],
}

impl OnElements for Encode<'_> {
    type Out = ();

    fn whole<const N: usize>(self, encode: impl Fn(f64) -> [u8; N], _: impl Fn([u8; N]) -> f64) {
        let (elements, mut values) = (self.bytes.as_chunks_mut::<N>().0, self.values.iter());
        visit(self.spec, |place| {
            if let Some(&value) = values.next() {
                elements[place] = encode(value);
            }
        });
    }

    fn nibbles(self, encode: impl Fn(f64) -> u8, _: impl Fn(u8) -> f64) {
        let mut values = self.values.iter();
        visit(self.spec, |place| {
            if let Some(&value) = values.next() {
                let (byte, shift) = (&mut self.bytes[place / 2], 4 * (place % 2));
                *byte = *byte & !(15 << shift) | encode(value) << shift;
            }
        });
    }
}

/// Reads the values at their places.
struct Decode<'a> {
    spec: &'a TensorSpec,
    bytes: &'a [u8],
}

impl OnElements for Decode<'_> {
    type Out = Vec<f64>;

    fn whole<const N: usize>(self, _: impl Fn(f64) -> [u8; N], decode: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        let (elements, mut values) = (self.bytes.as_chunks::<N>().0, Vec::with_capacity(self.spec.numel()));
        visit(self.spec, |place| values.push(decode(elements[place])));
        values
    }

    fn nibbles(self, _: impl Fn(f64) -> u8, decode: impl Fn(u8) -> f64) -> Vec<f64> {
        let mut values = Vec::with_capacity(self.spec.numel());
        visit(self.spec, |place| values.push(decode(self.bytes[place / 2] >> (4 * (place % 2)) & 15)));
        values
    }
}

/// Replaces values by what is left of them once they are stored.
struct Round<'a>(&'a mut [f64]);

impl OnElements for Round<'_> {
    type Out = ();

    fn whole<const N: usize>(self, encode: impl Fn(f64) -> [u8; N], decode: impl Fn([u8; N]) -> f64) {
        self.0.iter_mut().for_each(|value| *value = decode(encode(*value)));
    }

    fn nibbles(self, encode: impl Fn(f64) -> u8, decode: impl Fn(u8) -> f64) {
        self.0.iter_mut().for_each(|value| *value = decode(encode(*value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_type_gives_back_what_it_can_hold() {
        for dtype in DType::ALL {
            let (zero, low) = match dtype {
                DType::U8 | DType::U4 | DType::Bool => (0.0, 0.0),
                DType::E8M0 => (0.5, 2f64.powi(-127)),
                _ => (0.0, -1.0),
            };
            let spec = TensorSpec::of(dtype, &[2, 3]).unwrap();
            let values = [zero, 1.0, low, 1.0, 1.0, zero];
            assert_eq!(HostTensor::from_f64(&spec, &values, 0xA5).unwrap().to_f64(), values, "{dtype}");
        }
    }

    #[test]
    fn nibbles_are_low_first_and_signed_where_they_should_be() {
        let spec = |d| TensorSpec::of(d, &[3]).unwrap();
        let t = HostTensor::from_f64(&spec(DType::I4), &[-8.0, 7.0, -1.0], 0).unwrap();
        assert_eq!((t.bytes(), t.to_f64()), (&[0x78, 0x0F][..], vec![-8.0, 7.0, -1.0]));
        let t = HostTensor::from_f64(&spec(DType::U4), &[3.0, 15.0, 99.0], 0).unwrap();
        assert_eq!((t.bytes(), t.to_f64()), (&[0xF3, 0x0F][..], vec![3.0, 15.0, 15.0]));
    }

    #[test]
    fn strided_elements_leave_the_gaps_alone() {
        let spec =
            TensorSpec::of(DType::I8, &[3, 4]).unwrap().narrow(1, 1, 2).unwrap().transpose(0, 1).unwrap();
        let mut t = HostTensor::from_f64(&spec, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0xEE).unwrap();
        assert_eq!(t.bytes(), [0xEE, 1, 4, 0xEE, 0xEE, 2, 5, 0xEE, 0xEE, 3, 6]);
        assert_eq!(t.overstepped(0xEE), None);
        t.bytes_mut()[3] = 0;
        assert_eq!(t.overstepped(0xEE), Some(3));
    }

    #[test]
    fn narrow_floats_round_once() {
        let f16 = |x| rounded(DType::F16, x);
        // Just above a tie of f16 but exactly a tie after rounding to f32: double rounding would go down.
        let tie = 1.0 + 2f64.powi(-11);
        assert_eq!((f16(tie), f16(tie + 2f64.powi(-40))), (1.0, 1.0 + 2f64.powi(-10)));
        assert_eq!((f16(65519.9), f16(65520.0), f16(-1e300)), (65504.0, f64::INFINITY, f64::NEG_INFINITY));
        assert_eq!((f16(2f64.powi(-25)), f16(2f64.powi(-25) * 1.01)), (0.0, 2f64.powi(-24)));
        assert_eq!(rounded(DType::BF16, 1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
        assert!(f16(f64::NAN).is_nan() && f16(-0.0).is_sign_negative());
    }

    #[test]
    fn every_f16_and_bf16_survives() {
        for bits in 0..=u16::MAX {
            let (h, b) = (half::f16::from_bits(bits), half::bf16::from_bits(bits));
            assert!(h.is_nan() || narrow(h.to_f64(), 5, 10) == bits, "{bits:#x}");
            assert!(b.is_nan() || narrow(b.to_f64(), 8, 7) == bits, "{bits:#x}");
        }
    }

    proptest! {
        #[test]
        fn the_nearest_f16_is_chosen(x in -70000.0..70000.0f64, scale in -30i32..1) {
            let x = x * 2f64.powi(scale);
            let bits = narrow(x, 5, 10);
            prop_assume!(bits & 0x7FFF < 0x7BFF && bits & 0x7FFF > 0);
            let at = |b: u16| (half::f16::from_bits(b).to_f64() - x).abs();
            prop_assert!(at(bits) <= at(bits + 1) && at(bits) <= at(bits - 1));
        }

        #[test]
        fn draws_repeat_and_stay_in_range(seed in any::<u64>(), low in -5.0..0.0f64) {
            let spec = TensorSpec::of(DType::F32, &[37]).unwrap();
            let fill = Fill::Range(low, low + 3.0);
            let drawn = fill.draw(&spec, seed);
            prop_assert_eq!(&drawn, &fill.draw(&spec, seed));
            prop_assert!(drawn.iter().all(|&x| low as f32 as f64 <= x && x <= (low + 3.0) as f32 as f64));
            prop_assert_ne!(drawn, fill.draw(&spec, seed ^ 1));
        }
    }
}
