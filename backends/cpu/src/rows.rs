//! Rows of a strided tensor: what operators along the last dimension read and write, and how their rows are
//! shared out. Norms, softmax, gated activations and sampling are written over it.

use crate::pool::Team;
use crate::simd::{Lanes, Stored};
use core::marker::PhantomData;
use core::ops::Range;
use portolan_ops::{MAX_RANK, TensorSpec};

/// Calls `$body` with the type name `$type` standing for the element type `$dtype`: f16, bf16, else f32.
macro_rules! with_float {
    ($dtype:expr, $type:ident => $body:expr) => {
        match $dtype {
            portolan_ops::DType::F16 => {
                type $type = half::f16;
                $body
            }
            portolan_ops::DType::BF16 => {
                type $type = half::bf16;
                $body
            }
            _ => {
                type $type = f32;
                $body
            }
        }
    };
}
pub(crate) use with_float;

/// The rows of one tensor; a tensor of one dimension is one row.
pub(crate) struct Rows<T> {
    start: *mut T,
    leading: usize,
    dims: [usize; MAX_RANK],
    strides: [usize; MAX_RANK],
    inner: usize,
}

// SAFETY: addresses only; what they are used for is promised where a row is read or written.
unsafe impl<T> Sync for Rows<T> {}

impl<T: Stored> Rows<T> {
    /// The rows of a tensor of element type `T` whose allocation begins at `base`.
    pub(crate) fn new(spec: &TensorSpec, base: *const u8) -> Self {
        let mut rows = Self {
            start: base.cast_mut().cast::<T>().wrapping_add(spec.layout().offset()),
            leading: spec.rank().saturating_sub(1),
            dims: [1; MAX_RANK],
            strides: [0; MAX_RANK],
            inner: spec.strides().last().copied().unwrap_or(1),
        };
        if spec.shape().last() <= 1 {
            rows.inner = 1;
        }
        rows.dims[..rows.leading].copy_from_slice(&spec.dims()[..rows.leading]);
        rows.strides[..rows.leading].copy_from_slice(&spec.strides()[..rows.leading]);
        rows
    }

    /// Whether the elements of a row follow each other.
    pub(crate) fn is_unit(&self) -> bool {
        self.inner == 1
    }

    /// Row `index` in row-major order of the leading dimensions. `UNIT` claims [`Rows::is_unit`].
    #[inline]
    pub(crate) fn row<const UNIT: bool>(&self, mut index: usize) -> Row<'_, T, UNIT> {
        let mut place = 0;
        for dim in (0..self.leading).rev() {
            place += index % self.dims[dim] * self.strides[dim];
            index /= self.dims[dim];
        }
        Row { start: self.start.wrapping_add(place), stride: self.inner, rows: PhantomData }
    }
}

/// One row. `UNIT` rows load whole vectors; others lane by lane, with the same values in the same lanes.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a, T, const UNIT: bool> {
    start: *mut T,
    stride: usize,
    rows: PhantomData<&'a Rows<T>>,
}

impl<T: Stored, const UNIT: bool> Row<'_, T, UNIT> {
    /// The elements of a slice, to read.
    #[inline(always)]
    pub(crate) fn of(values: &[T]) -> Self {
        Row { start: values.as_ptr().cast_mut(), stride: 1, rows: PhantomData }
    }

    #[inline(always)]
    fn place(&self, i: usize) -> *mut T {
        self.start.wrapping_add(if UNIT { i } else { i * self.stride })
    }

    /// Element `i`.
    ///
    /// # Safety
    /// It is within the row, and readable.
    #[inline(always)]
    pub(crate) unsafe fn get(&self, i: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { self.place(i).read_unaligned() }.to_f32()
    }

    /// Elements `i..i + count`, `count ≤ LEN`; the other lanes are 0.
    ///
    /// # Safety
    /// They are within the row, and readable.
    #[inline(always)]
    pub(crate) unsafe fn load<L: Lanes>(&self, i: usize, count: usize) -> L {
        if !UNIT {
            let mut values = [0.0; 16];
            for (lane, value) in values.iter_mut().enumerate().take(count) {
                // SAFETY: the caller's promise.
                *value = unsafe { self.get(i + lane) };
            }
            return L::from_array(&values);
        }
        // SAFETY: the caller's promise.
        unsafe {
            match count == L::LEN {
                true => T::load(self.place(i)),
                false => T::load_partial(self.place(i), count),
            }
        }
    }

    /// As [`Row::load`], with `fill` in the other lanes.
    ///
    /// # Safety
    /// As [`Row::load`].
    #[inline(always)]
    pub(crate) unsafe fn load_or<L: Lanes>(&self, i: usize, count: usize, fill: f32) -> L {
        // SAFETY: the caller's promise.
        let loaded = unsafe { self.load::<L>(i, count) };
        if count == L::LEN {
            return loaded;
        }
        let lane = L::from_array(&core::array::from_fn(|i| i as f32));
        L::select(lane.lt(L::splat(count as f32)), loaded, L::splat(fill))
    }

    /// Elements `2i, 2i + 2, …` and `2i + 1, 2i + 3, …`, `count ≤ LEN` of each; the other lanes are 0.
    ///
    /// # Safety
    /// They are within the row, and readable.
    #[inline(always)]
    pub(crate) unsafe fn load_pairs<L: Lanes>(&self, i: usize, count: usize) -> (L, L) {
        let first = L::LEN.min(2 * count);
        // SAFETY: the caller's promise.
        let (a, b) =
            unsafe { (self.load::<L>(2 * i, first), self.load::<L>(2 * i + first, 2 * count - first)) };
        a.deinterleave(b)
    }

    /// Writes lanes `0..count` to elements `i..i + count`, rounded to nearest even.
    ///
    /// # Safety
    /// They are within the row, and writable.
    #[inline(always)]
    pub(crate) unsafe fn store<L: Lanes>(&self, i: usize, count: usize, lanes: L) {
        if !UNIT {
            for (lane, &value) in lanes.to_array().iter().enumerate().take(count) {
                // SAFETY: the caller's promise.
                unsafe { self.place(i + lane).write_unaligned(T::of_f32(value)) };
            }
            return;
        }
        // SAFETY: the caller's promise.
        unsafe {
            match count == L::LEN {
                true => T::store(lanes, self.place(i)),
                false => T::store_partial(lanes, self.place(i), count),
            }
        }
    }
}

/// Calls `body` for ranges that cover all rows, on the threads of the team.
///
/// A range holds about 16 Ki elements, enough to pay for waking a thread, and depends on the shape only.
pub(crate) fn for_each_range(
    team: &Team,
    max_threads: usize,
    rows: usize,
    n: usize,
    body: &(dyn Fn(Range<usize>) + Sync),
) {
    let per_task = (16 * 1024 / n.max(1)).max(1);
    team.run_with(rows.div_ceil(per_task), max_threads, &|task| {
        let start = task * per_task;
        body(start..rows.min(start + per_task));
    });
}
