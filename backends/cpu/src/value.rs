//! Blocks of elements as values to compute with: f32 for f32, f16, bf16 and what is stored in fewer bits; f64 for
//! f64; i64 for the rest.
//!
//! A block stays in the nearest cache, so kernels are written once per value type, over plain slices, whatever
//! the element type and the strides; the compiler vectorises them for the instruction set of the caller.

use crate::simd::code::{Code, with_code};
use crate::simd::{Kernel, Lanes, Stored, code};
use half::{bf16, f16};
use portolan_ops::DType;
use portolan_ops::codec::Overflow;

/// Elements of a block: 2 to 4 KiB a buffer, so that the three of a kernel fit a 32 KiB cache with room to spare.
pub(crate) const BLOCK: usize = 512;

/// A number type that kernels compute with. Integers wrap.
pub(crate) trait Value: Copy + PartialOrd + Send + Sync + 'static {
    const ZERO: Self;
    const ONE: Self;
    /// Below or equal to every value but NaN.
    const LOWEST: Self;
    /// Above or equal to every value but NaN.
    const HIGHEST: Self;
    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    /// The quotient; integers truncate, and the divisor is not 0.
    fn div(self, b: Self) -> Self;
    /// The remainder with the sign of the first; for integers the divisor is not 0.
    fn rem(self, b: Self) -> Self;
    fn pow(self, b: Self) -> Self;
    fn is_nan(self) -> bool;
    /// The nearest value.
    fn of_f64(x: f64) -> Self;
    /// A key whose order is that of values, NaN greatest, −0 equal to +0.
    fn key(self) -> i64;

    /// Reads `buf.len()` elements of `dtype`.
    ///
    /// # Safety
    /// The elements at `place + i · stride` from `base` are readable.
    #[inline(always)]
    unsafe fn load<L: Lanes>(dtype: DType, base: *const u8, place: usize, stride: usize, buf: &mut [Self]) {
        L::apart(Load { dtype, base, place, stride, buf });
    }

    /// Writes `buf.len()` elements of `dtype`, rounded to nearest even, wrapped, or for bool `≠ 0`.
    ///
    /// # Safety
    /// The elements at `place + i · stride` from `base` are writable.
    #[inline(always)]
    unsafe fn store<L: Lanes>(dtype: DType, base: *mut u8, place: usize, stride: usize, buf: &[Self]) {
        L::apart(Store { dtype, base, place, stride, buf });
    }

    /// [`Value::load`] where it is called.
    ///
    /// # Safety
    /// As there.
    unsafe fn load_here<L: Lanes>(
        dtype: DType,
        base: *const u8,
        place: usize,
        stride: usize,
        buf: &mut [Self],
    );

    /// [`Value::store`] where it is called.
    ///
    /// # Safety
    /// As there.
    unsafe fn store_here<L: Lanes>(dtype: DType, base: *mut u8, place: usize, stride: usize, buf: &[Self]);

    /// The smaller, NaN if either is.
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        if self.is_nan() || self < b { self } else { b }
    }

    /// The larger, NaN if either is.
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        if self.is_nan() || self > b { self } else { b }
    }
}

/// [`Value::load`], compiled once for all whom a call costs nothing beside a block.
struct Load<'a, V> {
    dtype: DType,
    base: *const u8,
    place: usize,
    stride: usize,
    buf: &'a mut [V],
}

impl<V: Value> Kernel for Load<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        // SAFETY: by the promise of whoever called `Value::load`.
        unsafe { V::load_here::<L>(self.dtype, self.base, self.place, self.stride, self.buf) }
    }
}

/// [`Value::store`], as [`Load`].
struct Store<'a, V> {
    dtype: DType,
    base: *mut u8,
    place: usize,
    stride: usize,
    buf: &'a [V],
}

impl<V: Value> Kernel for Store<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        // SAFETY: by the promise of whoever called `Value::store`.
        unsafe { V::store_here::<L>(self.dtype, self.base, self.place, self.stride, self.buf) }
    }
}

/// Reads elements of type `T` and converts them.
///
/// # Safety
/// As [`Value::load`].
#[inline(always)]
unsafe fn read<T: Copy, V: Copy>(
    base: *const u8,
    place: usize,
    stride: usize,
    buf: &mut [V],
    f: impl Fn(T) -> V,
) {
    let from = base.cast::<T>();
    if stride == 1 {
        for (i, value) in buf.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *value = f(unsafe { from.add(place + i).read_unaligned() });
        }
    } else {
        for (i, value) in buf.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *value = f(unsafe { from.add(place + i * stride).read_unaligned() });
        }
    }
}

/// Converts values and writes them as elements of type `T`.
///
/// # Safety
/// As [`Value::store`].
#[inline(always)]
unsafe fn write<T, V: Copy>(base: *mut u8, place: usize, stride: usize, buf: &[V], f: impl Fn(V) -> T) {
    let to = base.cast::<T>();
    if stride == 1 {
        for (i, &value) in buf.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { to.add(place + i).write_unaligned(f(value)) };
        }
    } else {
        for (i, &value) in buf.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { to.add(place + i * stride).write_unaligned(f(value)) };
        }
    }
}

/// Reads through vectors where elements are adjacent.
///
/// # Safety
/// As [`Value::load`].
#[inline(always)]
unsafe fn read_lanes<L: Lanes, T: Stored>(base: *const u8, place: usize, stride: usize, buf: &mut [f32]) {
    if stride != 1 {
        // SAFETY: the caller's promise.
        return unsafe { read::<T, f32>(base, place, stride, buf, T::to_f32) };
    }
    let from = base.cast::<T>().wrapping_add(place);
    let mut i = 0;
    while i + L::LEN <= buf.len() {
        // SAFETY: the caller's promise; the buffer has LEN more.
        unsafe { T::load::<L>(from.add(i)).store(buf.as_mut_ptr().add(i)) };
        i += L::LEN;
    }
    let rest = buf.len() - i;
    if rest > 0 {
        // SAFETY: as above, with `rest` more.
        unsafe { T::load_partial::<L>(from.add(i), rest).store_partial(buf.as_mut_ptr().add(i), rest) };
    }
}

/// Writes through vectors where elements are adjacent.
///
/// # Safety
/// As [`Value::store`].
#[inline(always)]
unsafe fn write_lanes<L: Lanes, T: Stored>(base: *mut u8, place: usize, stride: usize, buf: &[f32]) {
    if stride != 1 {
        // SAFETY: the caller's promise.
        return unsafe { write::<T, f32>(base, place, stride, buf, T::of_f32) };
    }
    let to = base.cast::<T>().wrapping_add(place);
    let mut i = 0;
    while i + L::LEN <= buf.len() {
        // SAFETY: the caller's promise; the buffer has LEN more.
        unsafe { T::store(L::load(buf.as_ptr().add(i)), to.add(i)) };
        i += L::LEN;
    }
    let rest = buf.len() - i;
    if rest > 0 {
        // SAFETY: as above, with `rest` more.
        unsafe { T::store_partial(L::load_partial(buf.as_ptr().add(i), rest), to.add(i), rest) };
    }
}

/// Reads codes of a byte or half a byte as numbers.
///
/// # Safety
/// As [`Value::load`].
#[inline(always)]
unsafe fn read_codes<L: Lanes, C: Code>(base: *const u8, place: usize, stride: usize, buf: &mut [f32]) {
    for (i, part) in buf.chunks_mut(if stride == 1 { L::LEN } else { 1 }).enumerate() {
        // SAFETY: the caller's promise; the part is as long as what is stored.
        unsafe {
            if stride == 1 {
                let lanes = code::load::<L, C>(base, place + i * L::LEN, part.len());
                lanes.store_partial(part.as_mut_ptr(), part.len());
            } else {
                part[0] = C::decode_one(code::get::<C>(base, place + i * stride));
            }
        }
    }
}

/// Writes numbers as the nearest codes of a byte or half a byte, floats overflowing to infinity where there is one.
///
/// # Safety
/// As [`Value::store`].
#[inline(always)]
unsafe fn write_codes<L: Lanes, C: Code>(base: *mut u8, place: usize, stride: usize, buf: &[f32]) {
    for (i, part) in buf.chunks(if stride == 1 { L::LEN } else { 1 }).enumerate() {
        // SAFETY: the caller's promise; the part is as long as what is loaded.
        unsafe {
            if stride == 1 {
                let lanes = L::load_partial(part.as_ptr(), part.len());
                code::store::<L, C>(base, place + i * L::LEN, part.len(), lanes, Overflow::Infinity);
            } else {
                let code = C::encode_one(part[0], Overflow::Infinity);
                code::put::<C>(base, place + i * stride, code);
            }
        }
    }
}

macro_rules! real {
    ($type:ident, $bits:ident, $signed:ident) => {
        const ZERO: Self = 0.0;
        const ONE: Self = 1.0;
        const LOWEST: Self = $type::NEG_INFINITY;
        const HIGHEST: Self = $type::INFINITY;
        #[inline(always)]
        fn add(self, b: Self) -> Self {
            self + b
        }
        #[inline(always)]
        fn sub(self, b: Self) -> Self {
            self - b
        }
        #[inline(always)]
        fn mul(self, b: Self) -> Self {
            self * b
        }
        #[inline(always)]
        fn div(self, b: Self) -> Self {
            self / b
        }
        #[inline(always)]
        fn rem(self, b: Self) -> Self {
            self % b
        }
        #[inline(always)]
        fn pow(self, b: Self) -> Self {
            self.powf(b)
        }
        #[inline(always)]
        fn is_nan(self) -> bool {
            self != self
        }
        #[inline(always)]
        fn of_f64(x: f64) -> Self {
            x as $type
        }
        #[inline(always)]
        fn key(self) -> i64 {
            if self != self {
                return i64::MAX;
            }
            // Adding 0 makes −0 positive; negative numbers count down from −1.
            let bits = (self + 0.0).to_bits() as $signed;
            i64::from(if bits < 0 { bits ^ $signed::MAX } else { bits })
        }
    };
}

impl Value for f32 {
    real!(f32, u32, i32);

    #[inline(always)]
    unsafe fn load_here<L: Lanes>(
        dtype: DType,
        base: *const u8,
        place: usize,
        stride: usize,
        buf: &mut [Self],
    ) {
        // SAFETY: the caller's promise, in each arm.
        unsafe {
            match dtype {
                DType::F32 => read_lanes::<L, f32>(base, place, stride, buf),
                DType::F16 => read_lanes::<L, f16>(base, place, stride, buf),
                DType::BF16 => read_lanes::<L, bf16>(base, place, stride, buf),
                dtype => {
                    with_code!(dtype, C => read_codes::<L, C>(base, place, stride, buf), _ => buf.fill(0.0))
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn store_here<L: Lanes>(dtype: DType, base: *mut u8, place: usize, stride: usize, buf: &[Self]) {
        // SAFETY: the caller's promise, in each arm.
        unsafe {
            match dtype {
                DType::F32 => write_lanes::<L, f32>(base, place, stride, buf),
                DType::F16 => write_lanes::<L, f16>(base, place, stride, buf),
                DType::BF16 => write_lanes::<L, bf16>(base, place, stride, buf),
                DType::Bool => write(base, place, stride, buf, |v: f32| u8::from(v != 0.0)),
                dtype => with_code!(dtype, C => write_codes::<L, C>(base, place, stride, buf), _ => ()),
            }
        }
    }
}

impl Value for f64 {
    real!(f64, u64, i64);

    #[inline(always)]
    unsafe fn load_here<L: Lanes>(_: DType, base: *const u8, place: usize, stride: usize, buf: &mut [Self]) {
        // SAFETY: the caller's promise.
        unsafe { read(base, place, stride, buf, |v: f64| v) }
    }

    #[inline(always)]
    unsafe fn store_here<L: Lanes>(dtype: DType, base: *mut u8, place: usize, stride: usize, buf: &[Self]) {
        // SAFETY: the caller's promise, in each arm.
        unsafe {
            match dtype {
                DType::Bool => write(base, place, stride, buf, |v: f64| u8::from(v != 0.0)),
                _ => write(base, place, stride, buf, |v: f64| v),
            }
        }
    }
}

impl Value for i64 {
    const ZERO: Self = 0;
    const ONE: Self = 1;
    const LOWEST: Self = i64::MIN;
    const HIGHEST: Self = i64::MAX;
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.wrapping_add(b)
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        self.wrapping_sub(b)
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.wrapping_mul(b)
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        if b == 0 { 0 } else { self.wrapping_div(b) }
    }
    #[inline(always)]
    fn rem(self, b: Self) -> Self {
        if b == 0 { 0 } else { self.wrapping_rem(b) }
    }
    #[inline(always)]
    fn pow(self, _: Self) -> Self {
        0
    }
    #[inline(always)]
    fn is_nan(self) -> bool {
        false
    }
    #[inline(always)]
    fn of_f64(x: f64) -> Self {
        x as i64
    }
    #[inline(always)]
    fn key(self) -> i64 {
        self
    }

    #[inline(always)]
    unsafe fn load_here<L: Lanes>(
        dtype: DType,
        base: *const u8,
        place: usize,
        stride: usize,
        buf: &mut [Self],
    ) {
        // SAFETY: the caller's promise, in each arm.
        unsafe {
            match dtype {
                DType::I64 => read(base, place, stride, buf, |v: i64| v),
                DType::I32 => read(base, place, stride, buf, |v: i32| i64::from(v)),
                DType::I8 => read(base, place, stride, buf, |v: i8| i64::from(v)),
                _ => read(base, place, stride, buf, |v: u8| i64::from(v)),
            }
        }
    }

    #[inline(always)]
    unsafe fn store_here<L: Lanes>(dtype: DType, base: *mut u8, place: usize, stride: usize, buf: &[Self]) {
        // SAFETY: the caller's promise, in each arm.
        unsafe {
            match dtype {
                DType::I64 => write(base, place, stride, buf, |v: i64| v),
                DType::I32 => write(base, place, stride, buf, |v: i64| v as i32),
                DType::Bool => write(base, place, stride, buf, |v: i64| u8::from(v != 0)),
                _ => write(base, place, stride, buf, |v: i64| v as u8),
            }
        }
    }
}

/// Evaluates `$body` with `$value` bound to the value type of an element type.
macro_rules! with_value {
    ($dtype:expr, $value:ident => $body:expr) => {
        match $dtype {
            portolan_ops::DType::F32
            | portolan_ops::DType::F16
            | portolan_ops::DType::BF16
            | portolan_ops::DType::F8E4M3
            | portolan_ops::DType::F8E5M2
            | portolan_ops::DType::F4E2M1
            | portolan_ops::DType::E8M0
            | portolan_ops::DType::I4
            | portolan_ops::DType::U4 => {
                type $value = f32;
                $body
            }
            portolan_ops::DType::F64 => {
                type $value = f64;
                $body
            }
            _ => {
                type $value = i64;
                $body
            }
        }
    };
}
pub(crate) use with_value;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_numbers_with_nan_greatest_and_one_zero() {
        let sorted = [f32::NEG_INFINITY, -1.0, -1e-40, 0.0, 1e-40, 2.0, f32::INFINITY, f32::NAN];
        assert!(sorted.windows(2).all(|w| w[0].key() < w[1].key()));
        assert_eq!((-0.0f32).key(), 0.0f32.key());
        assert_eq!((-0.0f64).key(), 0.0f64.key());
        assert_eq!((-f32::NAN).key(), f32::NAN.key());
        assert!((-2.0f64).key() < (-1.0f64).key() && f64::INFINITY.key() < f64::NAN.key());
    }
}
