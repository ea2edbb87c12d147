//! The k largest of a row: a sorted short list while streaming for small k, a selection of all for large k.

use crate::elementwise::Exec;
use crate::elementwise::walk::{Base, Walk};
use crate::movement::copy::copy_run;
use crate::simd::{Kernel, Lanes, dispatch};
use crate::value::{BLOCK, Value, with_value};
use core::cmp::Reverse;
use core::marker::PhantomData;
use portolan_core::sync::atomic::{AtomicBool, Ordering};
use portolan_ops::kernel::TopKSpec;
use portolan_ops::{Contract, DType, MAX_RANK, OpError, Result, TensorSpec};

/// Up to here an insertion into a sorted list beats selecting from the whole row: the list fits 8 cache lines, and
/// of random elements only some k·ln(n/k) get in.
const SHORT: usize = 32;

/// Runs `spec`.
///
/// # Safety
/// The pointers are the starts of buffers that hold the operands' spans, which do not overlap.
pub(crate) unsafe fn top_k(
    exec: Exec<'_>,
    spec: &TopKSpec,
    x: *const u8,
    values: *mut u8,
    indices: *mut u8,
) -> Result<()> {
    if spec.k() == 0 {
        return Ok(());
    }
    let inner = spec.x().rank() - 1;
    let n = spec.x().dims()[inner];
    let mut strides = [[0; 3]; MAX_RANK];
    for (d, stride) in strides[..inner].iter_mut().enumerate() {
        *stride = [spec.x().strides()[d], spec.values().strides()[d], spec.indices().strides()[d]];
    }
    let offset = |s: &TensorSpec| s.layout().offset();
    let offsets = [offset(spec.x()), offset(spec.values()), offset(spec.indices())];
    let walk =
        Walk::of_parts(&spec.x().dims()[..inner], &strides, offsets).cut_at(BLOCK, (16_384 / n).max(1));
    let steps = [spec.x(), spec.values(), spec.indices()].map(|s| s.strides()[inner]);
    let (x, values, indices) = (Base::read(x), Base::write(values), Base::write(indices));
    let (dtype, bytes, k) = (spec.x().dtype(), spec.x().dtype().bytes_for(1), spec.k());
    let out_of_memory = AtomicBool::new(false);
    walk.run(exec, &|run| {
        let mut list: Vec<(i64, u32)> = Vec::new();
        // A short list holds one more before it drops the least.
        let capacity = if k <= SHORT { k + 1 } else { n };
        if list.try_reserve_exact(capacity).is_err() {
            out_of_memory.store(true, Ordering::Relaxed);
            return;
        }
        for row in 0..run.len {
            let places = [0, 1, 2].map(|i| run.places[i] + row * run.strides[i]);
            list.clear();
            with_value!(dtype, V => {
                let place = places[0];
                let list = &mut list;
                dispatch(exec.isa, Collect::<V> { dtype, x, place, step: steps[0], n, k, list, value: PhantomData })
            });
            if k > SHORT {
                list.select_nth_unstable_by_key(k - 1, |&(key, at)| (Reverse(key), at));
                list.truncate(k);
                list.sort_unstable_by_key(|&(key, at)| (Reverse(key), at));
            }
            for (j, &(_, at)) in list.iter().enumerate() {
                let from = places[0] + at as usize * steps[0];
                // SAFETY: the row lies within the operands, as the caller promised. The element itself is copied,
                // so that −0 and NaN keep their bits.
                unsafe {
                    copy_run(bytes, x, values, 1, [from, places[1] + j * steps[1]], [1, 1]);
                    indices.start().cast::<i32>().add(places[2] + j * steps[2]).write_unaligned(at as i32);
                }
            }
        }
    });
    if out_of_memory.into_inner() {
        let what = format!("no host memory to select {k} of {n}");
        return Err(OpError::Internal { op: spec.name().into(), what });
    }
    Ok(())
}

/// Collects keys and places of a row: the k largest in order for small k, all of them for large k.
struct Collect<'a, V> {
    dtype: DType,
    x: Base,
    place: usize,
    step: usize,
    n: usize,
    k: usize,
    list: &'a mut Vec<(i64, u32)>,
    value: PhantomData<V>,
}

impl<V: Value> Kernel for Collect<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut buf = [V::ZERO; BLOCK];
        let mut i = 0;
        while i < self.n {
            let block = &mut buf[..BLOCK.min(self.n - i)];
            let place = self.place + i * self.step;
            // SAFETY: the row lies within x, as the caller of `top_k` promised.
            unsafe { V::load::<L>(self.dtype, self.x.start(), place, self.step, block) };
            for (j, &value) in block.iter().enumerate() {
                let (key, at) = (value.key(), (i + j) as u32);
                if self.k > SHORT {
                    self.list.push((key, at));
                } else if self.list.len() < self.k || self.list.last().is_some_and(|&(least, _)| key > least)
                {
                    // Behind its equals, which came earlier.
                    let to = self.list.partition_point(|&(other, _)| other >= key);
                    self.list.insert(to, (key, at));
                    self.list.truncate(self.k);
                }
            }
            i += BLOCK;
        }
    }
}
