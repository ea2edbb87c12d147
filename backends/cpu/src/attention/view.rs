//! Raw operands: where a tensor's elements lie, without ownership.
//!
//! Kernels get them from specs and base addresses; bounds were checked when the operator was built.

use half::{bf16, f16};
use portolan_ops::{DType, TensorSpec};

use crate::simd::code::{self, Code, E4m3, E5m2};
use crate::simd::{Lanes, Stored};

/// The first element of a tensor, its element type, and its strides in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<const N: usize> {
    start: *mut u8,
    dtype: DType,
    strides: [usize; N],
}

// SAFETY: a view is an address; whoever reads or writes through it answers for the access (architecture §6).
unsafe impl<const N: usize> Send for View<N> {}
// SAFETY: as above.
unsafe impl<const N: usize> Sync for View<N> {}

impl<const N: usize> View<N> {
    /// The tensor `spec`, whose buffer begins at `base`. Missing dimensions get stride 0.
    pub(crate) fn new(spec: &TensorSpec, base: *mut u8) -> Self {
        let mut strides = [0; N];
        strides.iter_mut().zip(spec.strides()).for_each(|(to, &stride)| *to = stride);
        let dtype = spec.dtype();
        let bytes = spec.layout().offset().wrapping_mul(dtype.bits() as usize / 8);
        Self { start: base.wrapping_add(bytes), dtype, strides }
    }

    /// Element type.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of one element.
    pub(crate) fn width(&self) -> usize {
        self.dtype.bits() as usize / 8
    }

    /// Stride of the last dimension, in elements.
    pub(crate) fn inner(&self) -> usize {
        self.strides[N - 1]
    }

    /// Stride of dimension `dim`, in bytes.
    pub(crate) fn step(&self, dim: usize) -> usize {
        self.strides[dim].wrapping_mul(self.width())
    }

    /// The address of an element.
    pub(crate) fn at(&self, index: [usize; N]) -> *mut u8 {
        let offset = index.iter().zip(&self.strides).fold(0, |sum: usize, (i, s)| sum + i * s);
        self.start.wrapping_add(offset * self.width())
    }

    /// An i32 element.
    ///
    /// # Safety
    /// The view is of i32 and the index lies within its extents, readable.
    pub(crate) unsafe fn int(&self, index: [usize; N]) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { self.at(index).cast::<i32>().read_unaligned() }
    }
}

/// Reads `len` elements that lie `stride` apart as f32.
///
/// # Safety
/// They are readable and of `dtype`; `to` has room for `len`.
#[inline(always)]
pub(super) unsafe fn read_row<L: Lanes>(
    dtype: DType,
    from: *const u8,
    stride: usize,
    len: usize,
    to: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::F16 => read::<L, f16>(from.cast(), stride, len, to),
            DType::BF16 => read::<L, bf16>(from.cast(), stride, len, to),
            _ => read::<L, f32>(from.cast(), stride, len, to),
        }
    }
}

#[inline(always)]
unsafe fn read<L: Lanes, T: Stored>(from: *const T, stride: usize, len: usize, to: *mut f32) {
    // SAFETY: the caller's promise: len elements on either side.
    unsafe {
        if stride != 1 {
            for i in 0..len {
                *to.add(i) = from.add(i * stride).read_unaligned().to_f32();
            }
            return;
        }
        let whole = len - len % L::LEN;
        let mut i = 0;
        while i < whole {
            T::load::<L>(from.add(i)).store(to.add(i));
            i += L::LEN;
        }
        if whole < len {
            T::load_partial::<L>(from.add(whole), len - whole).store_partial(to.add(whole), len - whole);
        }
    }
}

/// Reads `len` codes that lie `stride` apart as f32, times their scale.
///
/// # Safety
/// They are readable and of `dtype`; `to` has room for `len`.
#[inline(always)]
pub(super) unsafe fn read_codes<L: Lanes>(
    dtype: DType,
    from: *const u8,
    stride: usize,
    scale: f32,
    len: usize,
    to: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::F8E4M3 => decode::<L, E4m3>(from, stride, scale, len, to),
            DType::F8E5M2 => decode::<L, E5m2>(from, stride, scale, len, to),
            _ => read_int8(from.cast(), stride, scale, len, to),
        }
    }
}

/// # Safety
/// As [`read_codes`], for codes of `C`.
#[inline(always)]
unsafe fn decode<L: Lanes, C: Code>(from: *const u8, stride: usize, scale: f32, len: usize, to: *mut f32) {
    // SAFETY: the caller's promise: len codes and as many numbers.
    unsafe {
        if stride != 1 {
            for i in 0..len {
                *to.add(i) = C::decode_one(*from.add(i * stride)) * scale;
            }
            return;
        }
        let whole = len - len % L::LEN;
        for i in (0..whole).step_by(L::LEN) {
            code::load::<L, C>(from, i, L::LEN).mul(L::splat(scale)).store(to.add(i));
        }
        if whole < len {
            let rest = code::load::<L, C>(from, whole, len - whole).mul(L::splat(scale));
            rest.store_partial(to.add(whole), len - whole);
        }
    }
}

/// # Safety
/// As [`read_codes`], for int8.
#[inline(always)]
unsafe fn read_int8(from: *const i8, stride: usize, scale: f32, len: usize, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        if stride == 1 {
            // Plain enough for the compiler to widen whole vectors, in whatever instruction set this is inlined.
            for i in 0..len {
                *to.add(i) = f32::from(*from.add(i)) * scale;
            }
        } else {
            for i in 0..len {
                *to.add(i) = f32::from(*from.add(i * stride)) * scale;
            }
        }
    }
}

/// Writes `len` f32 as elements that lie `stride` apart, rounded to nearest even.
///
/// # Safety
/// `from` has `len` values; the elements are writable and of `dtype`.
#[inline(always)]
pub(super) unsafe fn write_row<L: Lanes>(
    dtype: DType,
    from: *const f32,
    stride: usize,
    len: usize,
    to: *mut u8,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::F16 => write::<L, f16>(from, stride, len, to.cast()),
            DType::BF16 => write::<L, bf16>(from, stride, len, to.cast()),
            _ => write::<L, f32>(from, stride, len, to.cast()),
        }
    }
}

#[inline(always)]
unsafe fn write<L: Lanes, T: Stored>(from: *const f32, stride: usize, len: usize, to: *mut T) {
    // SAFETY: the caller's promise: len elements on either side.
    unsafe {
        if stride != 1 {
            for i in 0..len {
                to.add(i * stride).write_unaligned(T::of_f32(*from.add(i)));
            }
            return;
        }
        let whole = len - len % L::LEN;
        let mut i = 0;
        while i < whole {
            T::store(L::load(from.add(i)), to.add(i));
            i += L::LEN;
        }
        if whole < len {
            T::store_partial(L::load_partial(from.add(whole), len - whole), to.add(whole), len - whole);
        }
    }
}
