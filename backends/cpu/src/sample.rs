//! Choosing tokens: one row of logits at a time, without sorting the vocabulary.
//!
//! Truncations find the one bucket of a coarse histogram that their threshold falls into and sort only that.

use crate::Isa;
use crate::pool::{Team, scratch};
use crate::rows::{self, Row, Rows};
use crate::simd::{Kernel, Lanes, dispatch, math};
use portolan_ops::TensorSpec;
use portolan_ops::sample::SampleSpec;

/// Chooses a token for every row.
///
/// # Safety
/// The pointers are the starts of allocations that hold what the spec describes, `history` is given exactly
/// where the spec has one, and nothing else touches them meanwhile.
#[allow(clippy::too_many_arguments, reason = "the operands of the operator, one each")]
pub(crate) unsafe fn sample(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &SampleSpec,
    logits: *const u8,
    uniforms: *const u8,
    history: Option<*const u8>,
    out: *mut u8,
) {
    let operands = Operands { spec, uniforms, history, out };
    let logits = Rows::new(spec.logits(), logits);
    team.run_with(spec.batch(), max_threads, &|row| operands.choose(isa, row, logits.row(row)));
}

struct Operands<'a> {
    spec: &'a SampleSpec,
    uniforms: *const u8,
    history: Option<*const u8>,
    out: *mut u8,
}

// SAFETY: each row reads its own uniform and history and writes its own token, so threads share only reads.
unsafe impl Sync for Operands<'_> {}

impl Operands<'_> {
    fn choose(&self, isa: Isa, row: usize, logits: Row<'_>) {
        let spec = self.spec;
        // SAFETY: the row exists, by the promise of `sample`.
        let uniform = unsafe { place::<f32>(spec.uniforms(), self.uniforms, &[row]).read_unaligned() };
        scratch::with(size_of::<f32>() * spec.vocab(), |block| {
            // SAFETY: the block has room for vocab values, is aligned, and is ours until it is given back.
            let weights = unsafe {
                block.write_bytes(0, size_of::<f32>() * spec.vocab());
                core::slice::from_raw_parts_mut(block.cast::<f32>(), spec.vocab())
            };
            let token = dispatch(isa, Choose { operands: self, row, logits, uniform, weights });
            // SAFETY: the row exists, and out overlaps nothing, by the promise of `sample`.
            unsafe { place::<i32>(spec.out(), self.out, &[row]).cast_mut().write_unaligned(token as i32) };
        });
    }

    /// Replaces the logits of the tokens in the row's history; from the operand's own, so that a token seen
    /// twice is penalised once.
    fn penalise(&self, row: usize, logits: Row<'_>, values: &mut [f32]) {
        let Some((spec, history)) = self.spec.history().zip(self.history) else { return };
        let penalty = self.spec.repetition_penalty();
        for i in 0..spec.shape().last() {
            // SAFETY: the place exists, by the promise of `sample`.
            let token = unsafe { place::<i32>(spec, history, &[row, i]).read_unaligned() };
            let Ok(token) = usize::try_from(token) else { continue };
            if let Some(value) = values.get_mut(token) {
                // SAFETY: the token is within the vocabulary.
                let l = unsafe { logits.get(token) };
                *value = if l > 0.0 { l / penalty } else { l * penalty };
            }
        }
    }
}

/// The address of one element of a tensor whose allocation begins at `base`.
fn place<T>(spec: &TensorSpec, base: *const u8, index: &[usize]) -> *const T {
    let steps = index.iter().zip(spec.strides()).map(|(i, stride)| i * stride);
    base.cast::<T>().wrapping_add(spec.layout().offset() + steps.sum::<usize>())
}

/// One row: `weights` receives the logits, then the weights, of which truncation zeroes all but the survivors.
struct Choose<'a> {
    operands: &'a Operands<'a>,
    row: usize,
    logits: Row<'a>,
    uniform: f32,
    weights: &'a mut [f32],
}

impl Kernel for Choose<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<L: Lanes>(self) -> usize {
        let (spec, weights) = (self.operands.spec, self.weights);
        // SAFETY: the row is as long as the vocabulary.
        unsafe { self.logits.copy::<L>(0, weights) };
        self.operands.penalise(self.row, self.logits, weights);
        let greatest = argmax::<L>(weights);
        let largest = weights[greatest];
        if spec.temperature() == 0.0 || !largest.is_finite() {
            return greatest;
        }
        weigh::<L>(weights, largest, spec.temperature());
        if (1..weights.len()).contains(&spec.top_k()) {
            truncate(weights, spec.top_k() as f64, |_| 1.0);
        }
        if spec.top_p() < 1.0 {
            let target = f64::from(spec.top_p()) * total::<L>(weights);
            truncate(weights, target, f64::from);
        }
        if spec.min_p() > 0.0 {
            for weight in weights.iter_mut() {
                *weight = if *weight < spec.min_p() { 0.0 } else { *weight };
            }
        }
        draw::<L>(weights, f64::from(self.uniform)).unwrap_or(greatest)
    }
}

/// The index of the largest value: NaN is greatest, ties go to the lowest index.
#[inline(always)]
fn argmax<L: Lanes>(values: &[f32]) -> usize {
    let (mut best, mut not_nan) = (L::splat(f32::NEG_INFINITY), true);
    for chunk in values.chunks(L::LEN) {
        let v = load_or::<L>(chunk, f32::NEG_INFINITY);
        best = v.max(best);
        not_nan &= !L::any(L::unordered(v));
    }
    let largest = best.largest();
    // The first vector that holds it, then the place in it.
    for (index, chunk) in values.chunks(L::LEN).enumerate() {
        let v = load_or::<L>(chunk, f32::NEG_INFINITY);
        if L::any(if not_nan { v.eq(L::splat(largest)) } else { L::unordered(v) }) {
            let is = |v: &f32| if not_nan { *v == largest } else { v.is_nan() };
            return index * L::LEN + chunk.iter().position(is).unwrap_or(0);
        }
    }
    0
}

#[inline(always)]
fn load_or<L: Lanes>(chunk: &[f32], fill: f32) -> L {
    // SAFETY: the whole chunk and no more.
    unsafe { rows::load_or(chunk.as_ptr(), chunk.len().min(L::LEN), fill) }
}

/// `w = e^((l − largest) / temperature)`; the difference is not positive, so nothing overflows.
#[inline(always)]
fn weigh<L: Lanes>(values: &mut [f32], largest: f32, temperature: f32) {
    let (largest, temperature) = (L::splat(largest), L::splat(temperature));
    for chunk in values.chunks_mut(L::LEN) {
        let weight = math::exp(load_or::<L>(chunk, f32::NEG_INFINITY).sub(largest).div(temperature));
        // SAFETY: the chunk has this many values.
        unsafe { weight.store_partial(chunk.as_mut_ptr(), chunk.len()) };
    }
}

/// Weights lie in [0, 1], where the order of f32 is that of their bits: a bucket is what shares the exponent
/// and three bits of the mantissa.
const BUCKET_SHIFT: u32 = 20;
const BUCKETS: usize = (1f32.to_bits() >> BUCKET_SHIFT) as usize + 1;

fn bucket(weight: f32) -> usize {
    ((weight.to_bits() >> BUCKET_SHIFT) as usize).min(BUCKETS - 1)
}

/// Keeps the shortest run of weights, in descending order and equal ones by index, whose measures add up to
/// `target`, and at least one; zeroes the others.
#[inline(never)]
fn truncate(weights: &mut [f32], target: f64, measure: fn(f32) -> f64) {
    let mut sums = [0f64; BUCKETS];
    for &weight in weights.iter() {
        sums[bucket(weight)] += measure(weight);
    }
    let mut reached = 0.0;
    // The bucket where the sum arrives, passing over empty ones while nothing is kept yet.
    let mut crossing = BUCKETS;
    for (index, &sum) in sums.iter().enumerate().rev() {
        crossing = index;
        if sum > 0.0 && reached + sum >= target {
            break;
        }
        reached += sum;
    }
    let mut inside: Vec<(usize, f32)> =
        weights.iter().copied().enumerate().filter(|&(_, weight)| bucket(weight) == crossing).collect();
    inside.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let last = inside.iter().position(|&(_, weight)| {
        reached += measure(weight);
        reached >= target
    });
    for weight in weights.iter_mut() {
        *weight = if bucket(*weight) < crossing { 0.0 } else { *weight };
    }
    for &(index, _) in &inside[last.map_or(inside.len(), |last| last + 1)..] {
        weights[index] = 0.0;
    }
}

/// Weights added in f32 before the sum goes on in f64: the error of a block is at most 2^-18 of itself.
const BLOCK: usize = 64;

#[inline(always)]
fn block_sum<L: Lanes>(block: &[f32]) -> f64 {
    let mut sum = L::zero();
    for chunk in block.chunks(L::LEN) {
        sum = sum.add(load_or::<L>(chunk, 0.0));
    }
    f64::from(sum.sum())
}

#[inline(always)]
fn total<L: Lanes>(weights: &[f32]) -> f64 {
    let mut total = 0.0;
    for block in weights.chunks(BLOCK) {
        total += block_sum::<L>(block);
    }
    total
}

/// The first index whose running sum exceeds `uniform` of the total, or the last with a positive weight.
#[inline(always)]
fn draw<L: Lanes>(weights: &[f32], uniform: f64) -> Option<usize> {
    let wanted = uniform * total::<L>(weights);
    let mut before = 0.0;
    let mut last = None;
    for (index, block) in weights.chunks(BLOCK).enumerate() {
        let (start, sum) = (index * BLOCK, block_sum::<L>(block));
        if sum > 0.0 {
            last = Some(start);
        }
        if before + sum > wanted {
            let mut running = before;
            let exceeds = block.iter().position(|&weight| {
                running += f64::from(weight);
                weight > 0.0 && running > wanted
            });
            match exceeds {
                Some(offset) => return Some(start + offset),
                // The block's own rounding: its last weight stands for the edge.
                None => break,
            }
        }
        before += sum;
    }
    let start = last?;
    let block = &weights[start..weights.len().min(start + BLOCK)];
    block.iter().rposition(|&weight| weight > 0.0).map(|offset| start + offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use portolan_ops::{Contract, DType, HostTensor};
    use proptest::prelude::*;

    fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.require().is_ok())
    }

    #[test]
    fn truncation_takes_the_first_of_equal_weights() {
        let kept = |weights: &[f32], target: f64, counted: bool| {
            let mut weights = weights.to_vec();
            truncate(&mut weights, target, if counted { |_| 1.0 } else { f64::from });
            weights
        };
        assert_eq!(kept(&[0.5, 1.0, 0.5, 0.5, 0.0], 3.0, true), [0.5, 1.0, 0.5, 0.0, 0.0]);
        assert_eq!(kept(&[0.5, 1.0, 0.5, 0.5], 0.0, false), [0.0, 1.0, 0.0, 0.0]);
        assert_eq!(kept(&[0.5, 1.0, 0.5, 0.5], 1.75, false), [0.5, 1.0, 0.5, 0.0]);
        assert_eq!(kept(&[0.5, 1.0, 0.25], 99.0, false), [0.5, 1.0, 0.25]);
        // Neighbours in one bucket.
        assert_eq!(kept(&[0.501, 0.502, 1.0, 0.503], 2.0, true), [0.0, 0.0, 1.0, 0.503]);
    }

    #[test]
    fn uniforms_outside_their_range_still_give_a_possible_token() {
        let weights = [0.0, 0.5, 0.0, 1.0, 0.0];
        struct Draw<'a>(&'a [f32], f64);
        impl Kernel for Draw<'_> {
            type Output = Option<usize>;
            #[inline(always)]
            fn run<L: Lanes>(self) -> Option<usize> {
                draw::<L>(self.0, self.1)
            }
        }
        for isa in available() {
            for (uniform, want) in
                [(-3.0, 1), (0.0, 1), (0.3, 1), (0.4, 3), (1.0, 3), (7.0, 3), (f64::NAN, 3)]
            {
                assert_eq!(dispatch(isa, Draw(&weights, uniform)), Some(want), "{isa:?} {uniform}");
            }
            let far: Vec<f32> = (0..1000).map(|i| if i == 130 { 1.0 } else { 0.0 }).collect();
            assert_eq!(dispatch(isa, Draw(&far, 1.0)), Some(130));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_attributes_on_any_logits_agree_with_the_oracle_but_at_edges(
            logits in prop::collection::vec(-6.0..6.0f32, 1..300), u in 0.0..1.0f32, k in 0usize..40,
            p in 0.0..=1.0f32, m in 0.0..=1.0f32, t in 0.2..2.0f32,
        ) {
            let of = |dtype, dims: &[usize]| TensorSpec::of(dtype, dims).unwrap();
            let (rows, one) = (of(DType::F32, &[1, logits.len()]), of(DType::F32, &[1]));
            let spec = SampleSpec::new(&rows, &one, &of(DType::I32, &[1])).unwrap();
            let spec = spec.with_temperature(t).unwrap().with_top_k(k).unwrap();
            let spec = spec.with_top_p(p).unwrap().with_min_p(m).unwrap();
            let values: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
            // What the oracle says on either side of rounding; where it differs, the draw is at an edge.
            let oracle = |by: f32| {
                let moved = spec.clone().with_top_p((p * (1.0 + by)).min(1.0)).unwrap();
                let moved = moved.with_min_p((m * (1.0 + by)).min(1.0)).unwrap();
                [-1e-5, 1e-5].map(|d| moved.reference(&[&values, &[f64::from(u) + d]])[0][0])
            };
            let wants = [oracle(-1e-5), oracle(1e-5)];
            prop_assume!(wants.iter().flatten().all(|w| *w == wants[0][0]));
            for isa in available() {
                let team = Team::new(1).unwrap();
                let mut logits = HostTensor::from_f64(&rows, &values, 0).unwrap();
                let mut uniform = HostTensor::from_f64(&one, &[f64::from(u)], 0).unwrap();
                let mut out = HostTensor::filled(spec.out(), 0xA5).unwrap();
                let p = [&mut logits, &mut uniform, &mut out].map(|t| t.bytes_mut().as_mut_ptr());
                // SAFETY: allocations made from the specs.
                unsafe { sample(&team, 1, isa, &spec, p[0], p[1], None, p[2]) };
                prop_assert_eq!(out.to_f64()[0], wants[0][0]);
            }
        }
    }
}
