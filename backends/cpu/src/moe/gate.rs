//! The router: a row of scores in vectors of f32, and the best of it in a short sorted list.
//!
//! A whole vector of candidates is passed over with one comparison; only what beats the worst of the list is looked
//! at one by one, which of random candidates some k·ln(E/k) do.

use super::data;
use crate::Isa;
use crate::norm::softmax_row;
use crate::queue::Exec;
use crate::rows::{Row, Rows, for_each_range};
use crate::simd::{Kernel, Lanes, dispatch, math};
use core::ops::Range;
use portolan_core::sync::{Mutex, lock};
use portolan_ops::moe::{GateScore, GroupScore, MoeGateSpec};
use portolan_ops::{OpError, Result, TensorSpec};

const OP: &str = "moe_gate";

/// The starts of the operands' allocations; null where the call has no such operand.
pub(crate) struct GatePointers {
    pub(crate) logits: *const u8,
    pub(crate) bias: *const u8,
    pub(crate) token_ids: *const u8,
    pub(crate) table: *const u8,
    pub(crate) weights: *mut u8,
    pub(crate) expert_ids: *mut u8,
}

// SAFETY: tasks read operands and write rows of their own.
unsafe impl Sync for GatePointers {}

/// The first fault by token: the same one whatever thread meets one first.
type Fault = Mutex<Option<(usize, OpError)>>;

/// Chooses the experts of every row.
///
/// # Errors
/// `Data` for a token or an entry of the table that is out of range.
///
/// # Safety
/// The pointers are the starts of allocations that hold what the spec describes, nothing else touches them
/// meanwhile, and results overlap nothing.
pub(crate) unsafe fn gate(exec: &Exec, spec: &MoeGateSpec, pointers: &GatePointers) -> Result<()> {
    let fault: Fault = Mutex::new(None);
    let logits = &Rows::new(spec.logits(), pointers.logits);
    for_each_range(&exec.team, exec.threads, spec.tokens(), spec.num_experts(), &|tokens| {
        // SAFETY: the caller's promise.
        unsafe { gate_range(exec.isa, spec, pointers, logits, tokens, &fault) }
    });
    match lock(&fault).take() {
        None => Ok(()),
        Some((_, error)) => Err(error),
    }
}

fn keep_first(fault: &Fault, token: usize, error: OpError) {
    let mut fault = lock(fault);
    if fault.as_ref().is_none_or(|(first, _)| token < *first) {
        *fault = Some((token, error));
    }
}

/// # Safety
/// As [`gate`]; the tokens exist.
unsafe fn gate_range(
    isa: Isa,
    spec: &MoeGateSpec,
    pointers: &GatePointers,
    logits: &Rows,
    tokens: Range<usize>,
    fault: &Fault,
) {
    let (experts, k) = (spec.num_experts(), spec.top_k());
    let mut memory: Vec<f32> = Vec::new();
    let lines = experts.saturating_mul(4);
    if memory.try_reserve_exact(lines).is_err() {
        let what = format!("no host memory for the scores of {experts} experts");
        return keep_first(fault, tokens.start, OpError::internal(OP, what));
    }
    memory.resize(lines, 0.0);
    let (line, rest) = memory.split_at_mut(experts);
    let (scores, rest) = rest.split_at_mut(experts);
    let (by, bias) = rest.split_at_mut(experts);
    if let Some(spec) = spec.bias() {
        // SAFETY: the bias has an element for every expert.
        unsafe { read_all(isa, &Rows::new(spec, pointers.bias), bias) };
    }
    let mut best = Best { entries: Vec::with_capacity(k + 1), k };
    let mut groups = Best { entries: Vec::new(), k: 0 };
    let mut chosen: Vec<i32> = Vec::with_capacity(k);
    for token in tokens {
        // SAFETY: the row exists.
        let score = spec.score();
        dispatch(isa, Scores { row: logits.row(token), score, line, scores });
        chosen.clear();
        if let Some((token_ids, table)) = spec.hash() {
            // SAFETY: as the caller says.
            if let Err(what) = unsafe { look_up(spec, pointers, token_ids, table, token, &mut chosen) } {
                keep_first(fault, token, data(OP, what));
                continue;
            }
        } else {
            let by = match (spec.bias(), spec.chooses_by_logits()) {
                (Some(_), _) => {
                    by.iter_mut().zip(&*scores).zip(&*bias).for_each(|((by, s), b)| *by = s + b);
                    &*by
                }
                (None, true) => &*line,
                (None, false) => &*scores,
            };
            choose(isa, spec, by, &mut best, &mut groups);
            chosen.extend(best.entries.iter().map(|entry| entry.1 as i32));
        }
        // SAFETY: the row of the results exists.
        unsafe { store(spec, pointers, token, &chosen, scores) };
    }
}

/// The best experts of a row into `best`.
fn choose(isa: Isa, spec: &MoeGateSpec, by: &[f32], best: &mut Best, groups: &mut Best) {
    best.clear(spec.top_k());
    let Some((n_group, topk_group, score)) = spec.groups() else {
        return dispatch(isa, Offer { by, first: 0, best });
    };
    let size = by.len() / n_group;
    groups.clear(topk_group);
    for (group, members) in by.chunks(size.max(1)).enumerate().take(n_group) {
        best.clear(if score == GroupScore::Max { 1 } else { 2 });
        dispatch(isa, Offer { by: members, first: 0, best });
        groups.offer(best.entries.iter().map(|entry| entry.0).sum(), group as u32);
    }
    best.clear(spec.top_k());
    // In ascending order, so that of equal experts the lowest comes first.
    groups.entries.sort_unstable_by_key(|entry| entry.1);
    for &(_, group) in &groups.entries {
        let first = group as usize * size;
        dispatch(isa, Offer { by: &by[first..first + size], first, best });
    }
}

/// The experts of a token by the table.
///
/// # Safety
/// As [`gate`]; the token exists.
unsafe fn look_up(
    spec: &MoeGateSpec,
    pointers: &GatePointers,
    token_ids: &TensorSpec,
    table: &TensorSpec,
    token: usize,
    chosen: &mut Vec<i32>,
) -> core::result::Result<(), String> {
    let at = |spec: &TensorSpec, row: usize, column: usize| {
        spec.layout().offset()
            + row * spec.strides()[0]
            + column * spec.strides().get(1).copied().unwrap_or(0)
    };
    // SAFETY: the element exists.
    let id = unsafe { *pointers.token_ids.cast::<i32>().add(at(token_ids, token, 0)) };
    let vocabulary = table.dims()[0];
    if id >= 0 && id as usize >= vocabulary {
        return Err(format!("token_ids[{token}] is {id}, the table has {vocabulary} rows"));
    }
    for j in 0..spec.top_k() {
        if id < 0 {
            chosen.push(-1);
            continue;
        }
        // SAFETY: the row exists.
        let expert = unsafe { *pointers.table.cast::<i32>().add(at(table, id as usize, j)) };
        if expert >= 0 && expert as usize >= spec.num_experts() {
            let experts = spec.num_experts();
            return Err(format!("table[{id}, {j}] is {expert}, there are {experts} experts"));
        }
        chosen.push(expert.max(-1));
    }
    Ok(())
}

/// Weights and experts of a token into the results.
///
/// # Safety
/// As [`gate`]; the token exists and experts are −1 or exist.
unsafe fn store(spec: &MoeGateSpec, pointers: &GatePointers, token: usize, chosen: &[i32], scores: &[f32]) {
    let of = |expert: i32| usize::try_from(expert).map_or(0.0, |expert| scores[expert]);
    let sum: f32 = chosen.iter().map(|&expert| of(expert)).sum();
    let divisor = if spec.renormalize() && sum != 0.0 { sum } else { 1.0 };
    let place = |spec: &TensorSpec, j: usize| {
        spec.layout().offset() + token * spec.strides()[0] + j * spec.strides()[1]
    };
    for (j, &expert) in chosen.iter().enumerate() {
        let weight = of(expert) / divisor * spec.scale();
        // SAFETY: the elements exist, and are this token's own.
        unsafe {
            *pointers.weights.cast::<f32>().add(place(spec.weights(), j)) = weight;
            *pointers.expert_ids.cast::<i32>().add(place(spec.expert_ids(), j)) = expert;
        }
    }
}

/// All elements of a row as f32.
///
/// # Safety
/// The first row of `rows` has as many elements.
unsafe fn read_all(isa: Isa, rows: &Rows, into: &mut [f32]) {
    dispatch(isa, Widen { row: rows.row(0), into });
}

struct Widen<'a> {
    row: Row<'a>,
    into: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        // SAFETY: the row is as long as the slice, by the promise of whoever makes one.
        unsafe { self.row.copy::<L>(0, self.into) };
    }
}

/// A row of logits as f32, and its scores.
struct Scores<'a> {
    row: Row<'a>,
    score: GateScore,
    line: &'a mut [f32],
    scores: &'a mut [f32],
}

/// Applies a function of lanes to all: a macro, since a function that is passed on may stay a call. Its accesses are within
/// slices of one length.
macro_rules! each {
    ($lanes:ty, $from:expr, $to:expr, $x:ident => $y:expr) => {
        for (from, to) in $from.chunks(<$lanes>::LEN).zip($to.chunks_mut(<$lanes>::LEN)) {
            let $x = <$lanes>::load_partial(from.as_ptr(), from.len());
            ($y).store_partial(to.as_mut_ptr(), to.len());
        }
    };
}

impl Kernel for Scores<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        // SAFETY: row, line and scores are as long as there are experts.
        unsafe {
            self.row.copy::<L>(0, self.line);
            match self.score {
                GateScore::Softmax if !self.line.is_empty() => {
                    softmax_row::<L>(Row::of(self.line), Row::of_mut(self.scores), self.line.len(), 1.0);
                }
                GateScore::Softmax => {}
                GateScore::Sigmoid => each!(L, self.line, self.scores, a => math::sigmoid(a)),
                GateScore::SqrtSoftplus => each!(L, self.line, self.scores, a => softplus(a).sqrt()),
            }
        }
    }
}

/// `ln(1 + e^x) = max(x, 0) + ln(1 + e^(−|x|))`, within 8 ulp; NaN stays NaN.
#[inline(always)]
fn softplus<L: Lanes>(x: L) -> L {
    let e = math::exp(L::zero().sub(x.abs()));
    let u = L::splat(1.0).add(e);
    // u is 1 + e rounded; the error of its logarithm is made up for by that of its distance from 1.
    let left = u.sub(L::splat(1.0));
    let log = math::log(u).mul(e).div(left);
    // As the first operand, 0 leaves NaN alone.
    L::zero().max(x).add(L::select(left.eq(L::zero()), e, log))
}

/// The best candidates so far, the greatest first; NaN is greatest, and of equals the first to come stays first.
struct Best {
    entries: Vec<(f32, u32)>,
    k: usize,
}

impl Best {
    fn clear(&mut self, k: usize) {
        self.entries.clear();
        self.k = k;
    }

    fn offer(&mut self, value: f32, at: u32) {
        let beats = |a: f32, b: f32| a > b || a.is_nan() && !b.is_nan();
        if self.entries.len() == self.k && !self.entries.last().is_some_and(|&(least, _)| beats(value, least))
        {
            return;
        }
        let to = self.entries.partition_point(|&(other, _)| !beats(value, other));
        self.entries.insert(to, (value, at));
        self.entries.truncate(self.k);
    }
}

/// Offers candidates, which are numbered from `first` on.
struct Offer<'a> {
    by: &'a [f32],
    first: usize,
    best: &'a mut Best,
}

impl Kernel for Offer<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (i, part) in self.by.chunks(L::LEN).enumerate() {
            let full = self.best.entries.len() == self.best.k;
            if full && part.len() == L::LEN {
                let Some(&(least, _)) = self.best.entries.last() else { return };
                // SAFETY: the part is a whole vector.
                let lanes = unsafe { L::load(part.as_ptr()) };
                // NaN is not below the least, nor is anything below NaN.
                let passed =
                    !least.is_nan() && (L::any(L::splat(least).lt(lanes)) || L::any(lanes.unordered()));
                if !passed {
                    continue;
                }
            }
            for (j, &value) in part.iter().enumerate() {
                self.best.offer(value, (self.first + i * L::LEN + j) as u32);
            }
        }
    }
}
