//! Hadamard transform: butterflies over a block in the nearest cache that holds it.
//!
//! Additions and subtractions only, in a fixed order, then one factor: the same bits on every path.

use super::activation::row_offset;
use crate::elementwise::Exec;
use crate::pool::scratch;
use crate::rows::for_each_range;
use crate::simd::{Kernel, Lanes, dispatch};
use crate::value::Value;
use portolan_ops::TensorSpec;
use portolan_ops::quant::HadamardSpec;

/// Elements of the first step, whose partners are closer than a vector is long.
const FIRST: usize = 16;

/// An address that tasks share.
#[derive(Clone, Copy)]
struct Shared(*mut u8);
// SAFETY: every task reads and writes blocks of its own.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}
impl Shared {
    /// Taken through a method, so that closures capture the whole and not the pointer inside.
    fn get(self) -> *mut u8 {
        self.0
    }
}

/// Transforms every block of every row.
///
/// # Safety
/// The pointers are the base addresses of the spec's operands, which overlap only where they are the same view, and
/// nothing else touches them meanwhile.
pub(crate) unsafe fn hadamard(exec: Exec<'_>, spec: &HadamardSpec, x: *const u8, out: *mut u8) {
    let block = spec.block();
    let per_row = spec.x().shape().last() / block;
    let (x, out) = (Shared(x.cast_mut()), Shared(out));
    for_each_range(exec.team, exec.max_threads, spec.x().shape().rows() * per_row, block, &|range| {
        scratch::with(block * 4, |memory| {
            // SAFETY: the scratch holds the block, initialised here.
            let buf = unsafe {
                memory.write_bytes(0, block * 4);
                core::slice::from_raw_parts_mut(memory.cast::<f32>(), block)
            };
            for index in range {
                let (row, column) = (index / per_row, index % per_row * block);
                let part = Part { x: spec.x(), from: x.get(), out: spec.out(), to: out.get(), row, column };
                dispatch(exec.isa, Transform { part, buf });
            }
        });
    });
}

/// One block of both operands.
struct Part<'a> {
    x: &'a TensorSpec,
    from: *const u8,
    out: &'a TensorSpec,
    to: *mut u8,
    row: usize,
    column: usize,
}

struct Transform<'a> {
    part: Part<'a>,
    buf: &'a mut [f32],
}

impl Kernel for Transform<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Transform { part, buf } = self;
        let place = |spec: &TensorSpec| {
            let stride = spec.strides().last().copied().unwrap_or(1);
            (row_offset(spec, part.row) + part.column * stride, stride)
        };
        let (from, to) = (place(part.x), place(part.out));
        // SAFETY: the block lies within both operands, by the promise of `hadamard`.
        unsafe { f32::load::<L>(part.x.dtype(), part.from, from.0, from.1, buf) };
        butterflies::<L>(buf);
        let factor = (1.0 / (buf.len() as f64).sqrt()) as f32;
        buf.iter_mut().for_each(|v| *v *= factor);
        // SAFETY: as above.
        unsafe { f32::store::<L>(part.out.dtype(), part.to, to.0, to.1, buf) };
    }
}

/// The transform, not normalised, of a power of two of numbers.
#[inline(always)]
fn butterflies<L: Lanes>(x: &mut [f32]) {
    let (firsts, rest) = x.as_chunks_mut::<FIRST>();
    for part in firsts {
        near::<1>(part);
        near::<2>(part);
        near::<4>(part);
        near::<8>(part);
    }
    if !rest.is_empty() {
        // A block shorter than the first step.
        let mut half = 1;
        while half < rest.len() {
            for pair in rest.chunks_exact_mut(2 * half) {
                for i in 0..half {
                    (pair[i], pair[half + i]) = (pair[i] + pair[half + i], pair[i] - pair[half + i]);
                }
            }
            half *= 2;
        }
        return;
    }
    let mut half = FIRST;
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (a, b) in a.chunks_exact_mut(L::LEN).zip(b.chunks_exact_mut(L::LEN)) {
                // SAFETY: both hold a vector; halves are multiples of 16.
                unsafe {
                    let (left, right) = (L::load(a.as_ptr()), L::load(b.as_ptr()));
                    left.add(right).store(a.as_mut_ptr());
                    left.sub(right).store(b.as_mut_ptr());
                }
            }
        }
        half *= 2;
    }
}

/// Partners `HALF` apart.
#[inline(always)]
fn near<const HALF: usize>(x: &mut [f32; FIRST]) {
    let before = *x;
    for (i, v) in x.iter_mut().enumerate() {
        let partner = before[i ^ HALF];
        *v = if i & HALF == 0 { before[i] + partner } else { partner - before[i] };
    }
}
