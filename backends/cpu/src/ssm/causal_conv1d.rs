//! Causal convolution: a block of channels at a time, its window of rows in scratch as f32.

use super::spans::{Span, Spans};
use super::view::View;
use crate::Isa;
use crate::pool::{Team, scratch};
use crate::rows::for_each_range;
use crate::simd::{Kernel, Lanes, dispatch, math};
use core::ops::Range;
use portolan_ops::ssm::CausalConv1dSpec;

/// Channels of a task: half a KiB a row, several lines of memory at once.
const BLOCK: usize = 128;

/// Rows that are read together: with those before them they stay in the second-level cache for every filter.
const ROWS: usize = 32;

/// The operands.
pub(crate) struct ConvViews {
    pub(crate) x: View,
    pub(crate) weight: View,
    pub(crate) bias: Option<View>,
    pub(crate) initial: Option<View>,
    pub(crate) out: View,
    pub(crate) last: Option<View>,
}

/// Convolves every channel.
///
/// # Safety
/// The views hold what the spec describes, nothing else touches them meanwhile, and outputs overlap inputs only
/// where the spec allows it.
pub(crate) unsafe fn causal_conv1d(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &CausalConv1dSpec,
    spans: &Spans,
    views: &ConvViews,
) {
    let (blocks, width) = (spec.channels().div_ceil(BLOCK), spec.width());
    let floats = (width - 1 + ROWS + width + 2) * BLOCK;
    let elements = spans.usual() * BLOCK;
    for_each_range(team, max_threads, spans.count() * blocks, elements, &|range| {
        scratch::with(floats * size_of::<f32>(), |memory| {
            dispatch(isa, Blocks { spec, spans, views, range, memory: memory.cast() });
        });
    });
    // SAFETY: the caller's promise.
    unsafe { spans.clear::<2>(&views.out, 1, spec.channels()) };
}

struct Blocks<'a> {
    spec: &'a CausalConv1dSpec,
    spans: &'a Spans,
    views: &'a ConvViews,
    range: Range<usize>,
    memory: *mut f32,
}

impl Kernel for Blocks<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let blocks = self.spec.channels().div_ceil(BLOCK);
        for index in self.range {
            let span = self.spans.get(index / blocks);
            // SAFETY: the memory has what one block needs, and the promise of `causal_conv1d`.
            unsafe { block::<L>(self.spec, self.views, span, index % blocks * BLOCK, self.memory) };
        }
    }
}

/// # Safety
/// `memory` has room for a window of `width − 1 + ROWS` rows, `width` filter rows and two rows more.
#[inline(always)]
unsafe fn block<L: Lanes>(
    spec: &CausalConv1dSpec,
    views: &ConvViews,
    span: Span,
    first: usize,
    memory: *mut f32,
) {
    let (tokens, width) = (span.tokens, spec.width());
    let (before, count) = (width - 1, BLOCK.min(spec.channels() - first));
    // SAFETY: the caller's promise; every row holds BLOCK numbers, of which `count` are used.
    unsafe {
        let window = memory;
        let filter = window.add((before + ROWS) * BLOCK);
        let bias = filter.add(width * BLOCK);
        let result = bias.add(BLOCK);
        memory.write_bytes(0, (before + ROWS + width + 2) * BLOCK);
        let row = |start: *mut f32| core::slice::from_raw_parts_mut(start, count);

        for channel in 0..count {
            for j in 0..width {
                *filter.add(j * BLOCK + channel) = views.weight.get([first + channel], j);
            }
        }
        if let Some(view) = &views.bias {
            view.load::<L, 0>([], first, row(bias));
        }
        if let Some(view) = &views.initial {
            for j in 0..before {
                view.load::<L, 2>([span.state, j], first, row(window.add(j * BLOCK)));
            }
        }
        let mut t = 0;
        while t < tokens {
            let rows = ROWS.min(tokens - t);
            for i in 0..rows {
                views.x.load::<L, 2>(span.at(t + i), first, row(window.add((before + i) * BLOCK)));
            }
            for i in 0..rows {
                convolve::<L>(window.add(i * BLOCK), filter, bias, width, count, spec.has_silu(), result);
                views.out.store::<L, 2>(span.at(t + i), first, row(result));
            }
            core::ptr::copy(window.add(rows * BLOCK), window, before * BLOCK);
            t += rows;
        }
        if let Some(view) = &views.last {
            for j in 0..before {
                view.store::<L, 2>([span.state, j], first, row(window.add(j * BLOCK)));
            }
        }
    }
}

/// One row of the result from `width` rows of the window, oldest first.
///
/// # Safety
/// `window` and `filter` have `width` rows of BLOCK numbers, the others one.
#[inline(always)]
unsafe fn convolve<L: Lanes>(
    window: *const f32,
    filter: *const f32,
    bias: *const f32,
    width: usize,
    count: usize,
    silu: bool,
    result: *mut f32,
) {
    let mut i = 0;
    while i < count {
        // SAFETY: LEN divides BLOCK, and i is below it.
        unsafe {
            let mut sum = L::load(bias.add(i));
            for j in 0..width {
                let place = j * BLOCK + i;
                sum = L::load(window.add(place)).mul_add(L::load(filter.add(place)), sum);
            }
            let sum = if silu { math::silu(sum) } else { sum };
            sum.store(result.add(i));
        }
        i += L::LEN;
    }
}
