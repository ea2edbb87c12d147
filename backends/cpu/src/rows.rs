//! Rows of a strided tensor of any float type, read and written as f32 a piece at a time: what operators along the
//! last dimension are written over, and how their rows are shared out.
//!
//! A piece stays in the first-level cache, so a kernel is one for all element types and strides: it works where the
//! elements lie if they are neighbours of f32, else on a copy.

use crate::Isa;
use crate::pool::Team;
use crate::simd::{Lanes, PAST};
use crate::value::Value;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ops::Range;
use portolan_ops::{DType, MAX_RANK, TensorSpec};

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

/// Elements of a piece: a multiple of all the vectors that a kernel keeps partial results in, so that where pieces
/// end changes no bit.
pub(crate) const PIECE: usize = 1024;

/// The pieces of a row of `n` elements: where each begins, and how many it has.
#[inline(always)]
pub(crate) fn pieces(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).step_by(PIECE).map(move |i| (i, PIECE.min(n - i)))
}

/// Room for the copy of a piece; filled with zeros only if a copy is made.
#[repr(align(64))]
pub(crate) struct Room {
    values: [MaybeUninit<f32>; PIECE],
    is_filled: bool,
}

impl Room {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self { values: [const { MaybeUninit::uninit() }; PIECE], is_filled: false }
    }

    #[inline(always)]
    fn start(&mut self) -> *mut f32 {
        self.values.as_mut_ptr().cast()
    }

    /// The first `count` values.
    fn values(&mut self, count: usize) -> &mut [f32] {
        if !self.is_filled {
            self.values.fill(MaybeUninit::new(0.0));
            self.is_filled = true;
        }
        let count = count.min(PIECE);
        // SAFETY: filled above, and nothing empties it.
        unsafe { core::slice::from_raw_parts_mut(self.start(), count) }
    }
}

/// The rows of one tensor; a tensor of one dimension is one row.
pub(crate) struct Rows {
    base: *mut u8,
    dtype: DType,
    first: usize,
    leading: usize,
    dims: [usize; MAX_RANK],
    strides: [usize; MAX_RANK],
    inner: usize,
    past: bool,
}

// SAFETY: addresses only; what they are used for is promised where a row is read or written.
unsafe impl Sync for Rows {}

impl Rows {
    /// The rows of a float tensor whose allocation begins at `base`.
    pub(crate) fn new(spec: &TensorSpec, base: *const u8) -> Self {
        let mut rows = Self {
            base: base.cast_mut(),
            dtype: spec.dtype(),
            first: spec.layout().offset(),
            leading: spec.rank().saturating_sub(1),
            dims: [1; MAX_RANK],
            strides: [0; MAX_RANK],
            inner: spec.strides().last().copied().unwrap_or(1),
            past: false,
        };
        if spec.shape().last() <= 1 {
            rows.inner = 1;
        }
        rows.dims[..rows.leading].copy_from_slice(&spec.dims()[..rows.leading]);
        rows.strides[..rows.leading].copy_from_slice(&spec.strides()[..rows.leading]);
        rows
    }

    /// Results that are `len` elements in all: more than caches hold is written past them, and
    /// [`Rows::finish`] ends a task.
    pub(crate) fn written(mut self, isa: Isa, len: usize) -> Self {
        let lines = self.dtype == DType::F32 && self.inner == 1 && isa != Isa::Portable;
        self.past = lines && len.saturating_mul(size_of::<f32>()) >= PAST;
        self
    }

    /// Orders what was written past the caches before what this thread does next.
    #[inline(always)]
    pub(crate) fn finish<L: Lanes>(&self) {
        if self.past {
            L::finish_past();
        }
    }

    /// Whether the elements of a row follow each other.
    pub(crate) fn is_unit(&self) -> bool {
        self.inner == 1
    }

    /// Row `index` in row-major order of the leading dimensions.
    #[inline]
    pub(crate) fn row(&self, mut index: usize) -> Row<'_> {
        let mut place = self.first;
        for dim in (0..self.leading).rev() {
            place += index % self.dims[dim] * self.strides[dim];
            index /= self.dims[dim];
        }
        let (base, dtype, stride, past) = (self.base, self.dtype, self.inner, self.past);
        Row { base, dtype, place, stride, past, rows: PhantomData }
    }
}

/// One row.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    base: *mut u8,
    dtype: DType,
    place: usize,
    stride: usize,
    past: bool,
    rows: PhantomData<&'a Rows>,
}

impl Row<'_> {
    /// The elements of a slice, to read.
    #[inline(always)]
    pub(crate) fn of(values: &[f32]) -> Self {
        let base = values.as_ptr().cast_mut().cast();
        Row { base, dtype: DType::F32, place: 0, stride: 1, past: false, rows: PhantomData }
    }

    /// The elements of a slice.
    #[inline(always)]
    pub(crate) fn of_mut(values: &mut [f32]) -> Self {
        let base = values.as_mut_ptr().cast();
        Row { base, dtype: DType::F32, place: 0, stride: 1, past: false, rows: PhantomData }
    }

    /// Whether elements are f32.
    #[inline(always)]
    pub(crate) fn is_f32(&self) -> bool {
        self.dtype == DType::F32
    }

    #[inline(always)]
    fn in_place(&self, i: usize) -> Option<*mut f32> {
        let here = self.is_f32() && self.stride == 1;
        here.then(|| self.base.cast::<f32>().wrapping_add(self.place + i))
    }

    /// Element `i`.
    ///
    /// # Safety
    /// It is within the row, and readable.
    pub(crate) unsafe fn get(&self, i: usize) -> f32 {
        with_float!(self.dtype, T => {
            let at = self.base.cast::<T>().wrapping_add(self.place + i * self.stride);
            // SAFETY: the caller's promise.
            crate::simd::Stored::to_f32(unsafe { at.read_unaligned() })
        })
    }

    /// Where elements `i..i + count` can be read as f32: where they lie, or in `room`.
    ///
    /// # Safety
    /// They are within the row, and readable; `count ≤ PIECE`.
    #[inline(always)]
    pub(crate) unsafe fn read<L: Lanes>(&self, i: usize, count: usize, room: &mut Room) -> *const f32 {
        if let Some(here) = self.in_place(i) {
            return here;
        }
        // SAFETY: the caller's promise.
        unsafe { self.copy::<L>(i, room.values(count)) };
        room.start()
    }

    /// As [`Row::read`], to a buffer of the caller's in any case.
    ///
    /// # Safety
    /// Elements `i..i + to.len()` are within the row, and readable.
    #[inline(always)]
    pub(crate) unsafe fn copy<L: Lanes>(&self, i: usize, to: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { f32::load::<L>(self.dtype, self.base, self.place + i * self.stride, self.stride, to) }
    }

    /// Where the values of elements from `i` on are put for [`Row::write`]: where they belong, or in `room`.
    #[inline(always)]
    pub(crate) fn target(&self, i: usize, room: &mut Room) -> *mut f32 {
        self.in_place(i).filter(|_| !self.past).unwrap_or_else(|| room.start())
    }

    /// Makes values elements `i..i + count`, rounded to nearest even, unless they lie there already.
    ///
    /// # Safety
    /// The elements are within the row, and writable; `from` has as many values.
    #[inline(always)]
    pub(crate) unsafe fn write<L: Lanes>(&self, i: usize, count: usize, from: *const f32) {
        let here = self.in_place(i);
        let lines = |to: *mut f32| to.align_offset(L::LEN * size_of::<f32>()) == 0;
        if let Some(to) = here.filter(|&to| self.past && lines(to) && count.is_multiple_of(L::LEN)) {
            for at in (0..count).step_by(L::LEN) {
                // SAFETY: the caller's promise.
                unsafe { L::load(from.add(at)).store_past(to.add(at)) };
            }
        } else if here.is_none_or(|here| !core::ptr::eq(here, from)) {
            // SAFETY: the caller's promise.
            unsafe {
                let values = core::slice::from_raw_parts(from, count);
                f32::store::<L>(self.dtype, self.base, self.place + i * self.stride, self.stride, values);
            }
        }
    }
}

/// The first `count ≤ LEN` values from `from` on; the other lanes are 0.
///
/// # Safety
/// They are readable.
#[inline(always)]
pub(crate) unsafe fn load<L: Lanes>(from: *const f32, count: usize) -> L {
    // SAFETY: the caller's promise.
    unsafe { if count == L::LEN { L::load(from) } else { L::load_partial(from, count) } }
}

/// As [`load`], with `fill` in the other lanes.
///
/// # Safety
/// As [`load`].
#[inline(always)]
pub(crate) unsafe fn load_or<L: Lanes>(from: *const f32, count: usize, fill: f32) -> L {
    // SAFETY: the caller's promise.
    let loaded = unsafe { load::<L>(from, count) };
    if count == L::LEN {
        return loaded;
    }
    let lane = L::from_array(&core::array::from_fn(|i| i as f32));
    L::select(lane.lt(L::splat(count as f32)), loaded, L::splat(fill))
}

/// Writes the first `count ≤ LEN` lanes.
///
/// # Safety
/// They are writable.
#[inline(always)]
pub(crate) unsafe fn store<L: Lanes>(to: *mut f32, count: usize, lanes: L) {
    // SAFETY: the caller's promise.
    unsafe { if count == L::LEN { lanes.store(to) } else { lanes.store_partial(to, count) } }
}

/// The vectors of a piece: where each begins, and how many lanes it has.
#[inline(always)]
pub(crate) fn vectors<L: Lanes>(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).step_by(L::LEN).map(move |i| (i, L::LEN.min(count - i)))
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
