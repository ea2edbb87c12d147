//! Rotary embedding: cosine and sine once per token, then every head rotated.
//!
//! A token's table is computed where it is used, so it never leaves the first-level cache.

use super::view::{View, read_row, write_row};
use crate::pool::scratch;
use crate::simd::{Kernel, Lanes, dispatch, math};
use crate::{Isa, Team};
use portolan_ops::rope::{RopeSpec, RopeStyle};

/// Elements a task rotates: some 10 µs.
const ELEMENTS_PER_TASK: usize = 32 << 10;

/// One rotation.
#[derive(Clone, Debug)]
pub(crate) struct RopeTask {
    x: View<3>,
    positions: View<1>,
    out: View<3>,
    dims: [usize; 3],
    style: RopeStyle,
    inv_freq: Vec<f32>,
    /// Factors of cosine and sine.
    scales: [f32; 2],
}

impl RopeTask {
    /// From the base addresses of x, positions and out.
    pub(crate) fn new(spec: &RopeSpec, x: *const u8, positions: *const u8, out: *mut u8) -> Self {
        let dims = spec.x().dims();
        Self {
            x: View::new(spec.x(), x as *mut u8),
            positions: View::new(spec.positions(), positions as *mut u8),
            out: View::new(spec.out(), out),
            dims: [dims[0], dims[1], dims[2]],
            style: spec.style(),
            inv_freq: spec.inv_freq(),
            // A rotation backwards has the same cosines and negated sines.
            scales: [spec.mscale(), if spec.is_inverse() { -spec.mscale() } else { spec.mscale() }],
        }
    }
}

/// Rotates.
///
/// # Safety
/// The task's buffers are alive, hold what its contract says and are not touched by others meanwhile; out is
/// x's very view or overlaps it nowhere; the processor has `isa`.
pub(crate) unsafe fn rope(team: &Team, max_threads: usize, isa: Isa, task: &RopeTask) {
    let [tokens, heads, dim] = task.dims;
    if tokens == 0 || heads == 0 || dim == 0 {
        return;
    }
    let share = (ELEMENTS_PER_TASK / (heads * dim)).max(1);
    // Cosine, sine, and the two sides of every pair, in whole vectors.
    let room = task.inv_freq.len().next_multiple_of(16);
    team.run_with(tokens.div_ceil(share), max_threads, &|i| {
        scratch::with((4 * room + dim.next_multiple_of(16)) * size_of::<f32>(), |base| {
            let (first, end) = (i * share, ((i + 1) * share).min(tokens));
            dispatch(isa, Rotate { task, first, end, room, base: base.cast() });
        });
    });
}

struct Rotate<'a> {
    task: &'a RopeTask,
    first: usize,
    end: usize,
    /// Four tables of `room` floats and one row.
    room: usize,
    base: *mut f32,
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let task = self.task;
        let [_, heads, dim] = task.dims;
        let half = task.inv_freq.len();
        let (cos, room) = (self.base, self.room);
        let [sin, a, b, row] = [1, 2, 3, 4].map(|i| cos.wrapping_add(i * room));
        // SAFETY: the promise of `rope`; tables have `room` floats, and padding lanes are computed from 0.
        unsafe {
            cos.write_bytes(0, 4 * room);
            for token in self.first..self.end {
                let position = task.positions.int([token]) as f32;
                table::<L>(task, position, cos, sin);
                for head in 0..heads {
                    let (from, to) = (task.x.at([token, head, 0]), task.out.at([token, head, 0]));
                    read_row::<L>(task.x.dtype(), from, task.x.inner(), dim, row);
                    match task.style {
                        RopeStyle::SplitHalf => {
                            a.copy_from_nonoverlapping(row, half);
                            b.copy_from_nonoverlapping(row.add(half), half);
                            rotate::<L>(a, b, cos, sin, half);
                            row.copy_from_nonoverlapping(a, half);
                            row.add(half).copy_from_nonoverlapping(b, half);
                        }
                        RopeStyle::Interleaved => {
                            for i in 0..half {
                                (*a.add(i), *b.add(i)) = (*row.add(2 * i), *row.add(2 * i + 1));
                            }
                            rotate::<L>(a, b, cos, sin, half);
                            for i in 0..half {
                                (*row.add(2 * i), *row.add(2 * i + 1)) = (*a.add(i), *b.add(i));
                            }
                        }
                    }
                    write_row::<L>(task.out.dtype(), row, task.out.inner(), dim, to);
                }
            }
        }
    }
}

/// Cosine and sine of every pair's angle, times their factors.
#[inline(always)]
unsafe fn table<L: Lanes>(task: &RopeTask, position: f32, cos: *mut f32, sin: *mut f32) {
    let half = task.inv_freq.len();
    let scales = task.scales.map(L::splat);
    for i in (0..half).step_by(L::LEN) {
        let n = L::LEN.min(half - i);
        // SAFETY: n frequencies from i on exist; the tables have whole vectors.
        unsafe {
            let angle = L::load_partial(task.inv_freq.as_ptr().add(i), n).mul(L::splat(position));
            let (s, c) = math::sin_cos(angle);
            c.mul(scales[0]).store(cos.add(i));
            s.mul(scales[1]).store(sin.add(i));
        }
    }
}

#[inline(always)]
unsafe fn rotate<L: Lanes>(a: *mut f32, b: *mut f32, cos: *const f32, sin: *const f32, half: usize) {
    for i in (0..half).step_by(L::LEN) {
        // SAFETY: all four have whole vectors.
        unsafe {
            let (x, y) = (L::load(a.add(i)), L::load(b.add(i)));
            let (c, s) = (L::load(cos.add(i)), L::load(sin.add(i)));
            y.neg_mul_add(s, x.mul(c)).store(a.add(i));
            y.mul_add(c, x.mul(s)).store(b.add(i));
        }
    }
}
