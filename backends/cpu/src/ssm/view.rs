//! A float operand and runs of its elements as f32.

use crate::elementwise::walk::Base;
use crate::rows::with_float;
use crate::simd::{Lanes, Stored};
use portolan_ops::{DType, MAX_RANK, TensorSpec};

/// A tensor of f32, f16 or bf16 in memory.
#[derive(Clone, Copy)]
pub(crate) struct View {
    base: Base,
    dtype: DType,
    offset: usize,
    strides: [usize; MAX_RANK],
}

impl View {
    /// What `spec` describes in the buffer that begins at `base`.
    pub(crate) fn new(spec: &TensorSpec, base: *mut u8) -> Self {
        let mut strides = [0; MAX_RANK];
        strides[..spec.rank()].copy_from_slice(spec.strides());
        Self { base: Base::write(base), dtype: spec.dtype(), offset: spec.layout().offset(), strides }
    }

    /// The place of the first element below `at`, in elements.
    #[inline(always)]
    fn place<const N: usize>(&self, at: [usize; N]) -> usize {
        let steps = at.iter().zip(&self.strides);
        self.offset + steps.map(|(index, stride)| index * stride).sum::<usize>()
    }

    /// Elements `first..` of the dimension behind the indices `at`, as many as `buf` holds.
    ///
    /// # Safety
    /// They are elements of the tensor, and readable.
    #[inline(always)]
    pub(super) unsafe fn load<L: Lanes, const N: usize>(
        &self,
        at: [usize; N],
        first: usize,
        buf: &mut [f32],
    ) {
        let stride = self.strides[N];
        let from = self.place(at) + first * stride;
        with_float!(self.dtype, T => {
            let from = self.base.start().cast_const().cast::<T>().wrapping_add(from);
            // SAFETY: the caller's promise.
            unsafe { read::<L, T>(from, stride, buf) };
        });
    }

    /// Element `first` of the dimension behind the indices `at`.
    ///
    /// # Safety
    /// It is an element of the tensor, and readable.
    #[inline(always)]
    pub(super) unsafe fn get<const N: usize>(&self, at: [usize; N], first: usize) -> f32 {
        let from = self.place(at) + first * self.strides[N];
        with_float!(self.dtype, T => {
            // SAFETY: the caller's promise.
            unsafe { self.base.start().cast_const().cast::<T>().wrapping_add(from).read_unaligned() }.to_f32()
        })
    }

    /// Writes elements `first..` of the dimension behind the indices `at`, rounded to nearest even.
    ///
    /// # Safety
    /// They are elements of the tensor, and writable.
    #[inline(always)]
    pub(super) unsafe fn store<L: Lanes, const N: usize>(&self, at: [usize; N], first: usize, buf: &[f32]) {
        let stride = self.strides[N];
        let to = self.place(at) + first * stride;
        with_float!(self.dtype, T => {
            let to = self.base.start().cast::<T>().wrapping_add(to);
            // SAFETY: the caller's promise.
            unsafe { write::<L, T>(buf, to, stride) };
        });
    }

    /// Rows of `n` elements of the last two dimensions below `at`, as they lie, if they are whole vectors of f32.
    #[inline(always)]
    pub(super) fn rows<L: Lanes, const N: usize>(&self, at: [usize; N], n: usize) -> Option<Rows> {
        let whole = self.dtype == DType::F32 && self.strides[N] == 1 && n.is_multiple_of(L::LEN);
        let start = self.base.start().cast::<f32>().wrapping_add(self.place(at));
        whole.then_some(Rows { start, stride: self.strides[N - 1] })
    }
}

/// Rows of f32 in memory.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// The first element of the first.
    pub(super) start: *mut f32,
    /// From row to row, in elements.
    pub(super) stride: usize,
}

impl Rows {
    /// Element `i` of row `row`.
    #[inline(always)]
    pub(super) fn at(&self, row: usize, i: usize) -> *mut f32 {
        self.start.wrapping_add(row * self.stride + i)
    }
}

/// # Safety
/// `buf.len()` elements are readable.
#[inline(always)]
unsafe fn read<L: Lanes, T: Stored>(from: *const T, stride: usize, buf: &mut [f32]) {
    if stride != 1 {
        for (i, value) in buf.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *value = unsafe { from.wrapping_add(i * stride).read_unaligned() }.to_f32();
        }
        return;
    }
    for (i, part) in buf.chunks_mut(L::LEN).enumerate() {
        let from = from.wrapping_add(i * L::LEN);
        // SAFETY: as many are readable as the part holds.
        unsafe {
            match part.len() == L::LEN {
                true => T::load::<L>(from).store(part.as_mut_ptr()),
                false => T::load_partial::<L>(from, part.len()).store_partial(part.as_mut_ptr(), part.len()),
            }
        }
    }
}

/// # Safety
/// `buf.len()` elements are writable.
#[inline(always)]
unsafe fn write<L: Lanes, T: Stored>(buf: &[f32], to: *mut T, stride: usize) {
    if stride != 1 {
        for (i, &value) in buf.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { to.wrapping_add(i * stride).write_unaligned(T::of_f32(value)) };
        }
        return;
    }
    for (i, part) in buf.chunks(L::LEN).enumerate() {
        let to = to.wrapping_add(i * L::LEN);
        // SAFETY: as many are writable as the part holds.
        unsafe {
            match part.len() == L::LEN {
                true => T::store(L::load(part.as_ptr()), to),
                false => T::store_partial(L::load_partial(part.as_ptr(), part.len()), to, part.len()),
            }
        }
    }
}
