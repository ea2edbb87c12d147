//! A float operand and runs of its elements as f32.

use crate::elementwise::walk::Base;
use crate::rows::with_float;
use crate::simd::Lanes;
use crate::value::Value;
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
        // SAFETY: the caller's promise.
        unsafe { f32::load::<L>(self.dtype, self.base.start(), from, stride, buf) };
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
            crate::simd::Stored::to_f32(unsafe { self.base.start().cast_const().cast::<T>().wrapping_add(from).read_unaligned() })
        })
    }

    /// Element `index` of i32 numbers in one dimension.
    ///
    /// # Safety
    /// It is an element of the tensor, which is i32, and readable.
    pub(super) unsafe fn int(&self, index: usize) -> i32 {
        let start = self.base.start().cast_const().cast::<i32>();
        // SAFETY: the caller's promise.
        unsafe { start.wrapping_add(self.offset + index * self.strides[0]).read_unaligned() }
    }

    /// Writes 0 to the first `n` elements of the dimension behind the indices `at`.
    ///
    /// # Safety
    /// They are elements of the tensor, and writable.
    pub(super) unsafe fn clear<const N: usize>(&self, at: [usize; N], n: usize) {
        let (start, size, stride) = (self.place(at), self.dtype.bytes_for(1), self.strides[N]);
        // Bits of 0 are the number 0 in every float type.
        let (runs, len) = if stride == 1 { (usize::from(n > 0), n) } else { (n, 1) };
        for i in 0..runs {
            let to = self.base.start().wrapping_add((start + i * stride) * size);
            // SAFETY: the caller's promise.
            unsafe { to.write_bytes(0, len * size) };
        }
    }

    /// Writes elements `first..` of the dimension behind the indices `at`, rounded to nearest even.
    ///
    /// # Safety
    /// They are elements of the tensor, and writable.
    #[inline(always)]
    pub(super) unsafe fn store<L: Lanes, const N: usize>(&self, at: [usize; N], first: usize, buf: &[f32]) {
        let stride = self.strides[N];
        let to = self.place(at) + first * stride;
        // SAFETY: the caller's promise.
        unsafe { f32::store::<L>(self.dtype, self.base.start(), to, stride, buf) };
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
