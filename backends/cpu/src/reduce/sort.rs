//! Stable sort of rows: keys and places packed into integers of which no two are equal, sorted by their bytes.
//!
//! Short rows are shared out whole; a long one is cut into parts, which are sorted apart and merged by pairs, each
//! round cut again at equal lengths of its results. The order asked for is unique, so no cut changes a bit.

use crate::elementwise::Exec;
use crate::elementwise::walk::{Base, Walk};
use crate::simd::{Kernel, Lanes, dispatch};
use crate::value::{BLOCK, Value, with_value};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, Ordering};
use portolan_ops::sort::{SortOrder, SortSpec};
use portolan_ops::{Contract, DType, MAX_RANK, OpError, Result};

/// Entries up to which comparisons beat counting bytes, whose tables alone are 1 Ki numbers.
const SHORT: usize = 512;

/// Entries of a part of a long row: two buffers of it fit half a second-level cache of 1 MiB.
const PART: usize = 16 * 1024;

/// Runs `spec`.
///
/// # Safety
/// The pointers are the starts of buffers that hold the operands' spans, given exactly where the spec has them, and
/// which do not overlap.
pub(crate) unsafe fn sort(
    exec: Exec<'_>,
    spec: &SortSpec,
    x: *const u8,
    values: Option<*mut u8>,
    indices: Option<*mut u8>,
) -> Result<()> {
    let inner = spec.x().rank() - 1;
    let operands = [Some(spec.x()), spec.values(), spec.indices()];
    let mut strides = [[0; 3]; MAX_RANK];
    for (d, stride) in strides[..inner].iter_mut().enumerate() {
        *stride = operands.map(|s| s.map_or(0, |s| s.strides()[d]));
    }
    let n = spec.n();
    let job = Job {
        exec,
        dtype: spec.x().dtype(),
        n,
        steps: operands.map(|s| s.map_or(0, |s| s.strides()[inner])),
        flip: if spec.order() == SortOrder::Descending { u64::MAX } else { 0 },
        x: Base::read(x),
        values: values.map(Base::write),
        indices: indices.map(Base::write),
        out_of_memory: AtomicBool::new(false),
    };
    if n == 0 {
        return Ok(());
    }
    let offsets = operands.map(|s| s.map_or(0, |s| s.layout().offset()));
    let walk =
        Walk::of_parts(&spec.x().dims()[..inner], &strides, offsets).cut_at(BLOCK, (16_384 / n).max(1));
    match job.dtype {
        DType::F64 | DType::I64 => job.rows::<u128>(&walk),
        _ => job.rows::<u64>(&walk),
    }
    if job.out_of_memory.into_inner() {
        let what = format!("no host memory to sort rows of {n}");
        return Err(OpError::Internal { op: spec.name().into(), what });
    }
    Ok(())
}

/// A key above a place of 32 bits: different for every element of a row, and ordered as a stable sort orders them.
trait Entry: Copy + Ord + Send + Sync + 'static {
    /// Bytes of the key.
    const PASSES: usize;
    /// The key's low bits as wide as it is, above the place.
    fn new(key: u64, place: u32) -> Self;
    fn place(self) -> usize;
    /// Byte `pass` of the key.
    fn digit(self, pass: usize) -> usize;
}

macro_rules! entry {
    ($type:ty, $key:ty, $passes:literal) => {
        impl Entry for $type {
            const PASSES: usize = $passes;
            #[inline(always)]
            fn new(key: u64, place: u32) -> Self {
                <$type>::from(key as $key) << 32 | <$type>::from(place)
            }
            #[inline(always)]
            fn place(self) -> usize {
                self as u32 as usize
            }
            #[inline(always)]
            fn digit(self, pass: usize) -> usize {
                (self >> (32 + 8 * pass)) as u8 as usize
            }
        }
    };
}
entry!(u64, u32, 4);
entry!(u128, u64, 8);

struct Job<'a> {
    exec: Exec<'a>,
    dtype: DType,
    n: usize,
    /// Distances between neighbours of a row, of x, values, indices.
    steps: [usize; 3],
    /// All ones to turn the order of keys around.
    flip: u64,
    x: Base,
    values: Option<Base>,
    indices: Option<Base>,
    out_of_memory: AtomicBool,
}

impl Job<'_> {
    fn rows<E: Entry>(&self, walk: &Walk<3>) {
        if self.n > 2 * PART {
            (0..walk.numel()).for_each(|row| self.long_row::<E>(walk.places(row)));
            return;
        }
        walk.run(self.exec, &|run| {
            let Some([mut entries, mut spare]) = self.buffers::<E>() else { return };
            for row in 0..run.len {
                let places = [0, 1, 2].map(|i| run.places[i] + row * run.strides[i]);
                self.read(places[0], 0, &mut entries);
                sort_entries(&mut entries, &mut spare);
                self.write(places, 0, &entries);
            }
        });
    }

    /// One row on all threads.
    fn long_row<E: Entry>(&self, places: [usize; 3]) {
        let Some([mut entries, mut spare]) = self.buffers::<E>() else { return };
        let (mut from, mut to) = (Shared::of(&mut entries), Shared::of(&mut spare));
        let parts = self.n.div_ceil(PART);
        let part = |i: usize| (i * PART, PART.min(self.n - i * PART));
        self.each(parts, &|i| {
            let (start, len) = part(i);
            // SAFETY: parts are disjoint pieces of both buffers, which outlive the tasks.
            let (entries, spare) = unsafe { (from.piece(start, len), to.piece(start, len)) };
            self.read(places[0], start, entries);
            sort_entries(entries, spare);
        });
        let mut sorted = PART;
        while sorted < self.n {
            self.each(parts, &|i| {
                let (start, len) = part(i);
                // The pair of sorted runs whose merger holds this part; a last run without a partner is copied.
                let first = start / (2 * sorted) * (2 * sorted);
                let middle = self.n.min(first + sorted);
                let end = self.n.min(middle + sorted);
                // SAFETY: nobody writes `from` meanwhile, and the parts of `to` are disjoint.
                let (a, b, out) = unsafe {
                    (from.read(first, middle - first), from.read(middle, end - middle), to.piece(start, len))
                };
                merge_from(a, b, start - first, out);
            });
            core::mem::swap(&mut from, &mut to);
            sorted *= 2;
        }
        self.each(parts, &|i| {
            let (start, len) = part(i);
            // SAFETY: nobody writes the buffer any more.
            self.write(places, start, unsafe { from.read(start, len) });
        });
    }

    fn each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.exec.team.run_with(tasks, self.exec.max_threads, task);
    }

    /// Two buffers for a row, unless there is no memory for them.
    fn buffers<E: Entry>(&self) -> Option<[Vec<E>; 2]> {
        let buffer = || {
            let mut buffer = Vec::new();
            buffer.try_reserve_exact(self.n).ok()?;
            buffer.resize(self.n, E::new(0, 0));
            Some(buffer)
        };
        let buffers = buffer().zip(buffer());
        if buffers.is_none() {
            self.out_of_memory.store(true, Ordering::Relaxed);
        }
        buffers.map(|(a, b)| [a, b])
    }

    /// The entries of elements `first..` of the row of x that begins at `place`.
    fn read<E: Entry>(&self, place: usize, first: usize, entries: &mut [E]) {
        with_value!(self.dtype, V => dispatch(self.exec.isa, Read::<V, E> {
            job: self, place, first, entries, value: PhantomData,
        }));
    }

    /// Writes the results of entries that are the `first..` ones of their row.
    fn write<E: Entry>(&self, places: [usize; 3], first: usize, entries: &[E]) {
        if let Some(values) = self.values {
            let step = self.steps[1];
            let places = [places[0], places[1] + first * step];
            // SAFETY: the row lies within the operands, as the caller of `sort` promised.
            unsafe {
                match self.dtype.bits() {
                    64 => self.pick::<u64, E>(values, places, entries),
                    32 => self.pick::<u32, E>(values, places, entries),
                    16 => self.pick::<u16, E>(values, places, entries),
                    _ => self.pick::<u8, E>(values, places, entries),
                }
            }
        }
        if let Some(indices) = self.indices {
            let (start, step) = (indices.start().cast::<i32>(), self.steps[2]);
            for (j, entry) in entries.iter().enumerate() {
                // SAFETY: as above.
                unsafe { start.add(places[2] + (first + j) * step).write_unaligned(entry.place() as i32) };
            }
        }
    }

    /// Copies elements, so that −0 and NaN keep their bits.
    ///
    /// # Safety
    /// `T` is as wide as the elements; the places of a row of x and of the first value are within the operands.
    unsafe fn pick<T: Copy, E: Entry>(&self, values: Base, [x, to]: [usize; 2], entries: &[E]) {
        let (from, to) =
            (self.x.start().cast::<T>().wrapping_add(x), values.start().cast::<T>().wrapping_add(to));
        for (j, entry) in entries.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let value = from.add(entry.place() * self.steps[0]).read_unaligned();
                to.add(j * self.steps[1]).write_unaligned(value);
            }
        }
    }
}

struct Read<'a, V, E> {
    job: &'a Job<'a>,
    place: usize,
    first: usize,
    entries: &'a mut [E],
    value: PhantomData<V>,
}

impl<V: Value, E: Entry> Kernel for Read<'_, V, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut buf = [V::ZERO; BLOCK];
        let wide = E::PASSES == 8;
        let step = self.job.steps[0];
        let mut first = self.first;
        for block in self.entries.chunks_mut(BLOCK) {
            let values = &mut buf[..block.len()];
            // SAFETY: the row lies within x, as the caller of `sort` promised.
            unsafe {
                V::load::<L>(self.job.dtype, self.job.x.start(), self.place + first * step, step, values)
            };
            for (i, (entry, value)) in block.iter_mut().zip(&*values).enumerate() {
                // Signed keys to unsigned ones; those of 32 bits are below i32::MAX, but NaN's, which comes to it.
                let key = match wide {
                    true => value.key() as u64 ^ 1 << 63,
                    false => u64::from(Ord::min(value.key(), i64::from(i32::MAX)) as i32 as u32 ^ 1 << 31),
                };
                *entry = E::new(key ^ self.job.flip, (first + i) as u32);
            }
            first += block.len();
        }
    }
}

/// Sorts entries that stand in the order of their places; `spare` is as long.
fn sort_entries<E: Entry>(entries: &mut [E], spare: &mut [E]) {
    if entries.len() <= SHORT {
        return entries.sort_unstable();
    }
    let mut counts = [[0u32; 256]; 8];
    for entry in entries.iter() {
        for (pass, counts) in counts.iter_mut().enumerate().take(E::PASSES) {
            counts[entry.digit(pass)] += 1;
        }
    }
    let len = entries.len();
    let (mut from, mut to) = (&mut *entries, &mut *spare);
    let mut swapped = false;
    for (pass, counts) in counts.iter_mut().enumerate().take(E::PASSES) {
        // A byte that all keys share orders nothing: the upper ones of small integers, the lower ones of halves.
        if counts.iter().any(|&count| count as usize == len) {
            continue;
        }
        let mut next = 0;
        for count in counts.iter_mut() {
            next += core::mem::replace(count, next);
        }
        for &entry in from.iter() {
            let at = &mut counts[entry.digit(pass)];
            to[*at as usize] = entry;
            *at += 1;
        }
        core::mem::swap(&mut from, &mut to);
        swapped = !swapped;
    }
    if swapped {
        to.copy_from_slice(from);
    }
}

/// The entries from place `skip` on of the merger of two sorted runs, as many as `out` takes.
fn merge_from<E: Entry>(a: &[E], b: &[E], skip: usize, out: &mut [E]) {
    // How many of a are among the first `skip`: the least i whose a[i] is above b[skip − i − 1].
    let (mut low, mut high) = (skip.saturating_sub(b.len()), skip.min(a.len()));
    while low < high {
        let middle = (low + high) / 2;
        if a[middle] < b[skip - middle - 1] { low = middle + 1 } else { high = middle }
    }
    let (mut i, mut j) = (low, skip - low);
    for slot in out {
        let take_a = j >= b.len() || (i < a.len() && a[i] < b[j]);
        *slot = if take_a { a[i] } else { b[j] };
        i += usize::from(take_a);
        j += usize::from(!take_a);
    }
}

/// A buffer of which tasks write disjoint pieces.
#[derive(Clone, Copy)]
struct Shared<E>(*mut E);

// SAFETY: what tasks do with it is promised where a piece is taken.
unsafe impl<E: Send> Send for Shared<E> {}
// SAFETY: as above.
unsafe impl<E: Send> Sync for Shared<E> {}

impl<E> Shared<E> {
    fn of(buffer: &mut Vec<E>) -> Self {
        Self(buffer.as_mut_ptr())
    }

    /// # Safety
    /// The piece lies within the buffer, which is alive, and nobody else touches it meanwhile.
    unsafe fn piece<'a>(&self, start: usize, len: usize) -> &'a mut [E] {
        // SAFETY: the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.0.add(start), len) }
    }

    /// # Safety
    /// The piece lies within the buffer, which is alive, and nobody writes it meanwhile.
    unsafe fn read<'a>(&self, start: usize, len: usize) -> &'a [E] {
        // SAFETY: the caller's promise.
        unsafe { core::slice::from_raw_parts(self.0.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_sort_as_comparisons_do(
            keys in prop::collection::vec(prop_oneof![0u64..4, any::<u64>(), 0u64..70_000], SHORT..3 * SHORT),
        ) {
            fn check<E: Entry + core::fmt::Debug>(keys: &[u64]) -> core::result::Result<(), TestCaseError> {
                let mut entries: Vec<E> = (0..).zip(keys).map(|(i, &key)| E::new(key, i)).collect();
                let (mut want, mut spare) = (entries.clone(), entries.clone());
                want.sort();
                sort_entries(&mut entries, &mut spare);
                prop_assert_eq!(entries, want);
                Ok(())
            }
            check::<u64>(&keys)?;
            check::<u128>(&keys)?;
        }

        #[test]
        fn a_merger_can_begin_anywhere(
            a in prop::collection::vec(0u64..50, 0..20), b in prop::collection::vec(0u64..50, 0..20),
        ) {
            let entries = |keys: &[u64], first: u32| -> Vec<u64> {
                let mut run: Vec<u64> = (first..).zip(keys).map(|(i, &key)| Entry::new(key, i)).collect();
                run.sort_unstable();
                run
            };
            let (a, b) = (entries(&a, 0), entries(&b, a.len() as u32));
            let mut want = [&a[..], &b[..]].concat();
            want.sort_unstable();
            for skip in 0..=want.len() {
                let mut out = vec![0; want.len() - skip];
                merge_from(&a, &b, skip, &mut out);
                prop_assert_eq!(&out[..], &want[skip..]);
            }
        }
    }
}
