//! The reduction: elements of all ranks combined in rank order, in the compute type, rounded once.
//!
//! Always in rank order, since another one would save nothing here; so the bits do not depend on who comes when.

use super::transport::Window;
use super::turn::Turn;
use crate::elementwise::walk::Base;
use crate::simd::{Kernel, Lanes, dispatch};
use crate::value::{BLOCK, Value, with_value};
use core::ops::Range;
use portolan_core::meeting::Stop;
use portolan_ops::DType;
use portolan_ops::comm::ReduceOp;

/// Elements combined at a time: with their bytes, at most 32 KiB that stay in the nearest cache or the next.
const PIECE: usize = 2048;
/// Pieces of a task: half a megabyte of f32 from each rank.
const PIECES: usize = 64;

/// Elements `from` of window `window` of every rank combined into `into`, from element `to` of it on.
///
/// Nobody may be writing what is read; nobody else may use what is written, but for this rank's own element in the
/// same place.
pub(super) fn fold(
    turn: &Turn<'_>,
    reduce: ReduceOp,
    dtype: DType,
    window: usize,
    from: Range<usize>,
    into: Window,
    to: usize,
) -> Result<(), Stop> {
    let width = dtype.bytes_for(1);
    let windows = (0..turn.ranks().count()).map(|rank| {
        let window = turn.window(rank, window)?;
        turn.check(rank, from.start * width, from.len() * width, window)?;
        Ok(window)
    });
    let windows = windows.collect::<Result<Vec<_>, Stop>>()?;
    turn.check(turn.ranks().index(), to * width, from.len() * width, into)?;
    let out = Base::write(into.address as *mut u8);
    let pieces = from.len().div_ceil(PIECE);
    turn.tasks(pieces.div_ceil(PIECES), &|task| {
        for piece in task * PIECES..pieces.min((task + 1) * PIECES) {
            let start = piece * PIECE;
            let len = PIECE.min(from.len() - start);
            let part = Part {
                turn,
                windows: &windows,
                reduce,
                dtype,
                from: from.start + start,
                out,
                to: to + start,
                len,
            };
            with_value!(dtype, V => part.combine::<V>())?;
        }
        Ok(())
    })
}

/// One piece, all of it within its windows.
struct Part<'a> {
    turn: &'a Turn<'a>,
    windows: &'a [Window],
    reduce: ReduceOp,
    dtype: DType,
    from: usize,
    out: Base,
    to: usize,
    len: usize,
}

impl Part<'_> {
    fn combine<V: Value>(&self) -> Result<(), Stop> {
        let isa = self.turn.exec.isa;
        let width = self.dtype.bytes_for(1);
        let mut bytes = [0u8; PIECE * 8];
        let mut sum = [V::ZERO; PIECE];
        let sum = &mut sum[..self.len];
        for (rank, &window) in self.windows.iter().enumerate() {
            let (place, count) = (self.from * width, self.len * width);
            // SAFETY: `fold` has seen that the stretch lies within the window, whose memory stream order protects; the
            // buffer holds PIECE elements of at most 8 bytes.
            unsafe { self.turn.transport.read(rank, window, place, bytes.as_mut_ptr(), count)? };
            let (reduce, dtype) = (self.reduce, self.dtype);
            dispatch(isa, Take { reduce, dtype, bytes: &bytes[..count], sum, first: rank == 0 });
        }
        if self.reduce == ReduceOp::Mean {
            let ranks = V::of_f64(self.windows.len() as f64);
            sum.iter_mut().for_each(|value| *value = value.div(ranks));
        }
        dispatch(isa, Put { dtype: self.dtype, out: self.out, place: self.to, sum });
        Ok(())
    }
}

/// Combines one rank's elements into the sum.
struct Take<'a, V> {
    reduce: ReduceOp,
    dtype: DType,
    bytes: &'a [u8],
    sum: &'a mut [V],
    first: bool,
}

impl<V: Value> Kernel for Take<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut values = [V::ZERO; BLOCK];
        for (block, sum) in self.sum.chunks_mut(BLOCK).enumerate() {
            let values = &mut values[..sum.len()];
            // SAFETY: the bytes are as many as the sum's elements take.
            unsafe { V::load::<L>(self.dtype, self.bytes.as_ptr(), block * BLOCK, 1, values) };
            if self.first {
                sum.copy_from_slice(values);
                continue;
            }
            match self.reduce {
                ReduceOp::Sum | ReduceOp::Mean => each(sum, values, V::add),
                ReduceOp::Prod => each(sum, values, V::mul),
                ReduceOp::Max => each(sum, values, V::max),
                ReduceOp::Min => each(sum, values, V::min),
            }
        }
    }
}

#[inline(always)]
fn each<V: Copy>(sum: &mut [V], values: &[V], f: impl Fn(V, V) -> V) {
    for (sum, &value) in sum.iter_mut().zip(values) {
        *sum = f(*sum, value);
    }
}

/// Writes the sum, rounded, to elements that are writable and nobody else's.
struct Put<'a, V> {
    dtype: DType,
    out: Base,
    place: usize,
    sum: &'a [V],
}

impl<V: Value> Kernel for Put<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        // SAFETY: `fold` has seen that they lie within this rank's window; pieces are disjoint.
        unsafe { V::store::<L>(self.dtype, self.out.start(), self.place, 1, self.sum) };
    }
}
