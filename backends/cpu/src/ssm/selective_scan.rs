//! The selective scan: blocks of channels, each with its states in scratch for as long as its sequence runs.

use super::advance::{Exponential, Factors, advance, softplus};
use super::spans::{Span, Spans};
use super::view::{Rows, View};
use crate::Isa;
use crate::pool::{Team, scratch};
use crate::rows::for_each_range;
use crate::simd::{Kernel, Lanes, dispatch, math};
use core::ops::Range;
use portolan_ops::Unsupported;
use portolan_ops::ssm::SelectiveScanSpec;

/// Channels of a task at most: four lines of memory of every stream.
const WIDEST: usize = 64;

/// The longest state: scratch for its rates and numbers is bounded by it, at half a MiB.
const MAX_STATE: usize = 4096;

/// Whether the kernel takes it.
pub(crate) fn plan(spec: &SelectiveScanSpec) -> Result<(), Unsupported> {
    match spec.state() <= MAX_STATE {
        true => Ok(()),
        false => Err(Unsupported::Shape("a state of more than 4096 numbers")),
    }
}

/// The operands.
pub(crate) struct SelectiveScanViews {
    pub(crate) x: View,
    pub(crate) delta: View,
    pub(crate) a: View,
    pub(crate) b: View,
    pub(crate) c: View,
    pub(crate) d: Option<View>,
    pub(crate) z: Option<View>,
    pub(crate) delta_bias: Option<View>,
    pub(crate) initial: Option<View>,
    pub(crate) out: View,
    pub(crate) last: Option<View>,
}

/// Runs every channel's recurrence.
///
/// # Safety
/// The views hold what the spec describes, which [`plan`] took; nothing else touches them meanwhile, and outputs
/// overlap inputs only where the spec allows it.
pub(crate) unsafe fn selective_scan(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &SelectiveScanSpec,
    spans: &Spans,
    views: &SelectiveScanViews,
) {
    let padded = spec.state().next_multiple_of(16);
    // Rates and numbers of 64 short states take 16 KiB, half of a first-level cache.
    let width = if padded <= 32 { WIDEST } else { 16 };
    let blocks = spec.channels().div_ceil(width);
    let floats = (2 * width + 2) * padded;
    let work = spans.usual().saturating_mul(width * padded.max(1));
    for_each_range(team, max_threads, spans.count() * blocks, work, &|range| {
        scratch::with(floats * size_of::<f32>(), |memory| {
            dispatch(isa, Blocks { spec, spans, views, range, width, padded, memory: memory.cast() });
        });
    });
    // SAFETY: the caller's promise.
    unsafe { spans.clear::<2>(&views.out, 1, spec.channels()) };
}

struct Blocks<'a> {
    spec: &'a SelectiveScanSpec,
    spans: &'a Spans,
    views: &'a SelectiveScanViews,
    range: Range<usize>,
    width: usize,
    padded: usize,
    memory: *mut f32,
}

impl Kernel for Blocks<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let blocks = self.spec.channels().div_ceil(self.width);
        for index in self.range.clone() {
            let span = self.spans.get(index / blocks);
            // SAFETY: the memory has what one block needs, and the promise of `selective_scan`.
            unsafe { self.block::<L>(span, index % blocks * self.width) };
        }
    }
}

impl Blocks<'_> {
    /// Channels `first..` of one sequence.
    ///
    /// # Safety
    /// They exist; `memory` has rates and states of `width` rows, and two rows more, of `padded` numbers.
    #[inline(always)]
    unsafe fn block<L: Lanes>(&self, span: Span, first: usize) {
        let Self { spec, views, width, padded, memory, .. } = *self;
        let (tokens, n) = (span.tokens, spec.state());
        let count = width.min(spec.channels() - first);
        // SAFETY: the caller's promise; all that is read of the memory was written, here or below.
        unsafe {
            let kept = Rows { start: memory, stride: padded };
            let rates = Rows { start: memory.add(width * padded), stride: padded };
            let (b, c) = (memory.add(2 * width * padded), memory.add((2 * width + 1) * padded));
            // Numbers behind a row's end stay 0, here and in scratch rows below.
            b.write_bytes(0, 2 * padded);
            let row = |start: *mut f32, len| core::slice::from_raw_parts_mut(start, len);

            let rates = match views.a.rows::<L, 1>([first], n) {
                Some(rates) => rates,
                None => {
                    rates.start.write_bytes(0, width * padded);
                    for i in 0..count {
                        views.a.load::<L, 1>([first + i], 0, row(rates.at(i, 0), n));
                    }
                    rates
                }
            };
            // Whole vectors are read and written where they lie, by the first and the last token.
            let direct = |view: &Option<View>| match view {
                Some(view) if tokens > 0 => view.rows::<L, 2>([span.state, first], n),
                _ => None,
            };
            let (begin, end) = (direct(&views.initial), direct(&views.last));
            if begin.is_none() {
                kept.start.write_bytes(0, width * padded);
            }
            if let (Some(view), None) = (&views.initial, begin) {
                for i in 0..count {
                    view.load::<L, 2>([span.state, first + i], 0, row(kept.at(i, 0), n));
                }
            }
            let mut channels = Channels::new::<L>(self, first, count);
            for t in 0..tokens {
                views.b.load::<L, 2>(span.at(t), 0, row(b, n));
                views.c.load::<L, 2>(span.at(t), 0, row(c, n));
                channels.read::<L>(self, span.at(t));
                let from = if t == 0 { begin.unwrap_or(kept) } else { kept };
                let to = if t + 1 == tokens { end.unwrap_or(kept) } else { kept };
                let factors = Factors { input: channels.input.as_ptr(), b, c, n };
                let decay = Exponential { step: channels.step.as_ptr(), rates };
                advance::<L, _>(decay, factors, [from, to], count, channels.y.as_mut_ptr());
                channels.write::<L>(self, span.at(t));
            }
            if let (Some(view), None) = (&views.last, end) {
                for i in 0..count {
                    view.store::<L, 2>([span.state, first + i], 0, row(kept.at(i, 0), n));
                }
            }
        }
    }
}

/// What a block of channels has of one token; places from `count` on are not used.
struct Channels {
    first: usize,
    count: usize,
    x: [f32; WIDEST],
    step: [f32; WIDEST],
    input: [f32; WIDEST],
    y: [f32; WIDEST],
    d: [f32; WIDEST],
    bias: [f32; WIDEST],
}

impl Channels {
    /// # Safety
    /// Channels `first..first + count` exist.
    #[inline(always)]
    unsafe fn new<L: Lanes>(blocks: &Blocks<'_>, first: usize, count: usize) -> Self {
        let none = [0.0; WIDEST];
        let mut new = Self { first, count, x: none, step: none, input: none, y: none, d: none, bias: none };
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(view) = &blocks.views.d {
                view.load::<L, 0>([], first, &mut new.d[..count]);
            }
            if let Some(view) = &blocks.views.delta_bias {
                view.load::<L, 0>([], first, &mut new.bias[..count]);
            }
        }
        new
    }

    /// Step sizes and inputs of one token.
    ///
    /// # Safety
    /// It exists.
    #[inline(always)]
    unsafe fn read<L: Lanes>(&mut self, blocks: &Blocks<'_>, at: [usize; 2]) {
        let views = blocks.views;
        // SAFETY: the caller's promise; LEN divides the buffers' length.
        unsafe {
            views.x.load::<L, 2>(at, self.first, &mut self.x[..self.count]);
            views.delta.load::<L, 2>(at, self.first, &mut self.step[..self.count]);
            let mut i = 0;
            while i < self.count {
                let mut step = L::load(self.step.as_ptr().add(i));
                if views.delta_bias.is_some() {
                    step = step.add(L::load(self.bias.as_ptr().add(i)));
                }
                if blocks.spec.has_softplus() {
                    step = softplus(step);
                }
                step.store(self.step.as_mut_ptr().add(i));
                step.mul(L::load(self.x.as_ptr().add(i))).store(self.input.as_mut_ptr().add(i));
                i += L::LEN;
            }
        }
    }

    /// The result of one token from the sums over its states.
    ///
    /// # Safety
    /// It exists.
    #[inline(always)]
    unsafe fn write<L: Lanes>(&mut self, blocks: &Blocks<'_>, at: [usize; 2]) {
        let views = blocks.views;
        // The gate takes the place of the inputs, which the state has taken up.
        let gate = &mut self.input;
        // SAFETY: the caller's promise; LEN divides the buffers' length.
        unsafe {
            if let Some(view) = &views.z {
                view.load::<L, 2>(at, self.first, &mut gate[..self.count]);
            }
            let mut i = 0;
            while i < self.count {
                let place = self.y.as_mut_ptr().add(i);
                let mut y = L::load(place);
                if views.d.is_some() {
                    y = L::load(self.d.as_ptr().add(i)).mul_add(L::load(self.x.as_ptr().add(i)), y);
                }
                if views.z.is_some() {
                    y = y.mul(math::silu(L::load(gate.as_ptr().add(i))));
                }
                y.store(place);
                i += L::LEN;
            }
            views.out.store::<L, 2>(at, self.first, &self.y[..self.count]);
        }
    }
}
