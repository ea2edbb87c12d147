//! The scan of heads with one rate each: token by token for a few tokens, by chunks (`ssd_chunk`) for more.

use super::advance::{Factors, Uniform, advance, softplus};
use super::spans::{Span, Spans};
use super::ssd_chunk::Chunks;
use super::view::{Rows, View};
use crate::Isa;
use crate::pool::{Team, scratch};
use crate::rows::for_each_range;
use crate::simd::{Kernel, Lanes, dispatch};
use core::ops::Range;
use portolan_ops::Unsupported;
use portolan_ops::ssm::SsdScanSpec;

/// Heads of a task at most: they share the scores of their group's b and c.
const HEADS: usize = 4;

/// Fewer tokens than these are taken one by one: a chunk would move a state twice, the other way round.
const FEW: usize = 8;

/// The longest side of a state: scratch is bounded by it.
const MAX_SIDE: usize = 1024;

/// Whether the kernel takes it.
pub(crate) fn plan(spec: &SsdScanSpec) -> Result<(), Unsupported> {
    match spec.state() <= MAX_SIDE && spec.head_dim() <= MAX_SIDE {
        true => Ok(()),
        false => Err(Unsupported::Shape("a state with a side above 1024")),
    }
}

/// The operands.
pub(crate) struct SsdScanViews {
    pub(crate) x: View,
    pub(crate) delta: View,
    pub(crate) a: View,
    pub(crate) b: View,
    pub(crate) c: View,
    pub(crate) d: Option<View>,
    pub(crate) delta_bias: Option<View>,
    pub(crate) initial: Option<View>,
    pub(crate) out: View,
    pub(crate) last: Option<View>,
}

/// Runs every head's recurrence.
///
/// # Safety
/// The views hold what the spec describes, which [`plan`] took; nothing else touches them meanwhile, and outputs
/// overlap inputs only where the spec allows it.
pub(crate) unsafe fn ssd_scan(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &SsdScanSpec,
    spans: &Spans,
    views: &SsdScanViews,
) {
    if spec.heads() == 0 {
        return;
    }
    let each = spec.heads() / spec.groups();
    let together = each.min(HEADS);
    let few = if spans.shortest() < FEW { Few::floats(spec) } else { 0 };
    let longest = spans.longest();
    let chunks = if longest < FEW { 0 } else { Chunks::floats(spec, longest, together) };
    let floats = few.max(chunks);
    let tasks = spans.count() * spec.groups() * each.div_ceil(together);
    let work = spec.head_dim().max(1) * spec.state().max(1) * together;
    for_each_range(team, max_threads, tasks, spans.usual().saturating_mul(work), &|range| {
        scratch::with(floats * size_of::<f32>(), |memory| {
            dispatch(isa, Heads { spec, spans, views, range, together, memory: memory.cast() });
        });
    });
    // SAFETY: the caller's promise.
    unsafe { spans.clear::<3>(&views.out, spec.heads(), spec.head_dim()) };
}

struct Heads<'a> {
    spec: &'a SsdScanSpec,
    spans: &'a Spans,
    views: &'a SsdScanViews,
    range: Range<usize>,
    together: usize,
    memory: *mut f32,
}

impl Kernel for Heads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { spec, views, memory, together, .. } = self;
        let each = spec.heads() / spec.groups();
        let blocks = each.div_ceil(together);
        for index in self.range {
            let (sequence, group) = (index / blocks / spec.groups(), index / blocks % spec.groups());
            let span = self.spans.get(sequence);
            let start = index % blocks * together;
            let heads = group * each + start..group * each + each.min(start + together);
            // SAFETY: the memory has what either needs, and the promise of `ssd_scan`.
            unsafe {
                if span.tokens < FEW {
                    for head in heads {
                        Few { spec, views, memory }.head::<L>(span, group, head);
                    }
                } else {
                    Chunks::new(spec, views, memory, span, group, heads).run::<L>();
                }
            }
        }
    }
}

/// The step size of one token and head, behind its bias; softplus is still to come.
///
/// # Safety
/// They exist.
#[inline(always)]
pub(super) unsafe fn step_size(views: &SsdScanViews, at: [usize; 2], head: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let bias = views.delta_bias.as_ref().map_or(0.0, |view| view.get([], head));
        views.delta.get(at, head) + bias
    }
}

/// A head's tokens one by one, its state in rows as it lies in memory.
struct Few<'a> {
    spec: &'a SsdScanSpec,
    views: &'a SsdScanViews,
    memory: *mut f32,
}

impl Few<'_> {
    fn sides(spec: &SsdScanSpec) -> [usize; 2] {
        [spec.head_dim(), spec.state()].map(|side| side.next_multiple_of(16))
    }

    /// A state, b and c, and three vectors of a head.
    fn floats(spec: &SsdScanSpec) -> usize {
        let [rows, columns] = Self::sides(spec);
        rows * columns + 2 * columns + 3 * rows
    }

    /// # Safety
    /// The head exists; the memory has [`Few::floats`].
    #[inline(always)]
    unsafe fn head<L: Lanes>(&self, span: Span, group: usize, head: usize) {
        let Self { spec, views, memory } = *self;
        let [height, width] = Self::sides(spec);
        let (count, n, tokens) = (spec.head_dim(), spec.state(), span.tokens);
        // SAFETY: the caller's promise; the memory is written before it is read, here or below.
        unsafe {
            memory.write_bytes(0, Self::floats(spec));
            let kept = Rows { start: memory, stride: width };
            let b = memory.add(height * width);
            let c = b.add(width);
            let (x, input, y) = (c.add(width), c.add(width + height), c.add(width + 2 * height));
            let row = |start: *mut f32, len| core::slice::from_raw_parts_mut(start, len);
            // Whole vectors are read and written where they lie, by the first and the last token.
            let direct = |view: &Option<View>| match view {
                Some(view) if tokens > 0 => view.rows::<L, 3>([span.state, head, 0], n),
                _ => None,
            };
            let (begin, end) = (direct(&views.initial), direct(&views.last));
            if let (Some(view), None) = (&views.initial, begin) {
                for p in 0..count {
                    view.load::<L, 3>([span.state, head, p], 0, row(kept.at(p, 0), n));
                }
            }
            let rate = views.a.get([], head);
            let skip = views.d.as_ref().map_or(0.0, |view| view.get([], head));
            for t in 0..tokens {
                views.b.load::<L, 3>(span.head(t, group), 0, row(b, n));
                views.c.load::<L, 3>(span.head(t, group), 0, row(c, n));
                views.x.load::<L, 3>(span.head(t, head), 0, row(x, count));
                let mut step = L::splat(step_size(views, span.at(t), head));
                if spec.has_softplus() {
                    step = softplus(step);
                }
                let mut i = 0;
                while i < count {
                    step.mul(L::load(x.add(i))).store(input.add(i));
                    i += L::LEN;
                }
                let decay = crate::simd::math::exp(step.mul(L::splat(rate))).to_array()[0];
                let from = if t == 0 { begin.unwrap_or(kept) } else { kept };
                let to = if t + 1 == tokens { end.unwrap_or(kept) } else { kept };
                let factors = Factors { input, b, c, n };
                advance::<L, _>(Uniform(decay), factors, [from, to], count, y);
                if views.d.is_some() {
                    skip_connection::<L>(skip, x, y, count);
                }
                views.out.store::<L, 3>(span.head(t, head), 0, row(y, count));
            }
            if let (Some(view), None) = (&views.last, end) {
                for p in 0..count {
                    view.store::<L, 3>([span.state, head, p], 0, row(kept.at(p, 0), n));
                }
            }
        }
    }
}

/// `y += d · x`.
///
/// # Safety
/// Both have `count` numbers, rounded up to a multiple of 16.
#[inline(always)]
pub(super) unsafe fn skip_connection<L: Lanes>(d: f32, x: *const f32, y: *mut f32, count: usize) {
    let mut i = 0;
    while i < count {
        // SAFETY: the caller's promise.
        unsafe { L::splat(d).mul_add(L::load(x.add(i)), L::load(y.add(i))).store(y.add(i)) };
        i += L::LEN;
    }
}
