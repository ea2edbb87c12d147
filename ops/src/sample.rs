//! Choosing the next token of a sequence: the most likely one, or one drawn from a truncated distribution.

use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_rank, expect_writable, rounded, streaming_cost,
};

/// Draws one token id per row of logits.
///
/// Each row is worked on by itself, in this order; a step whose attribute is off is skipped:
///
/// 1. **Repetition penalty** `p`: the logit `l` of every distinct token in the row's history becomes `l / p`
///    where `l > 0`, else `l · p`, once, however often the token occurs. Negative ids are padding; ids past
///    the vocabulary are ignored.
/// 2. **Greedy** choice, if the temperature is 0 or the largest logit is not finite: the index of the largest
///    logit, NaN counting as greatest and ties going to the lowest index. Nothing below applies.
/// 3. **Temperature** `t`: weights `w_i = e^((l_i − max l) / t)`, so the largest is 1.
/// 4. **Top k**: the k largest weights survive.
/// 5. **Top p**: of these, the shortest run in descending order whose sum is at least p times theirs, and at
///    least one. In 4 and 5 equal weights are ordered by index, lowest first.
/// 6. **Min p**: of these, the weights of at least `min_p` (times the largest, which is 1).
/// 7. **Draw**: the survivors are walked *in index order*; the token is the first whose running sum of weights
///    exceeds `u` times the sum of all survivors. Should rounding leave none, it is the last survivor of
///    positive weight. `u < 0` acts as 0; `u ≥ 1` and NaN act as the largest number below 1.
///
/// # Shapes
/// logits `[batch, vocab]` with `vocab ≥ 1`, uniforms `[batch]`, out `[batch]`, history
/// `[batch, max_history]`. batch and max_history may be zero.
///
/// # DTypes
/// logits f32, f16 or bf16; uniforms f32, in [0, 1); out and history i32. Weights are f32; their sums are to
/// err by less than 1e-5 of the total.
///
/// # Layout
/// Any strides.
///
/// # Determinism
/// `BatchInvariant`: the uniform is an operand, so a row's token is a function of its own operands. Backends
/// may differ from each other, and from the oracle, where a uniform or a threshold falls within rounding of
/// an edge between two tokens.
///
/// # Cost
/// `batch · vocab` operations for the greedy choice; else `5 · batch · vocab`: comparison, difference,
/// quotient, exponential, sum. The truncations are not counted: they depend on the data.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself), `Attribute` (out of range or not a number).
///
/// # Composition
/// Penalty: gather by history, unary and select, scatter. Greedy: top_k with k = 1. Else top_k of the whole
/// row (a stable sort), unary exp of the scaled difference, scan sum, compare with the thresholds, select 0
/// outside, scatter back to index order, scan sum, compare with `u · total`, and top_k with k = 1 of the
/// result, which gives the first true index.
///
/// # Source
/// Fan et al. 2018 (top k), Holtzman et al. 2020 (top p), Nguyen et al. 2024 (min p), Keskar et al. 2019
/// (repetition penalty).
#[derive(Clone, Debug, PartialEq)]
pub struct SampleSpec {
    logits: TensorSpec,
    uniforms: TensorSpec,
    history: Option<TensorSpec>,
    out: TensorSpec,
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
}

const OP: &str = "sample";

impl SampleSpec {
    /// A draw at temperature 1 from the whole vocabulary.
    pub fn new(logits: &TensorSpec, uniforms: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        let want = Self::out_spec(logits)?;
        expect_dims(OP, "uniforms", uniforms, want.dims())?;
        expect_dtype(OP, "uniforms", uniforms, &[DType::F32])?;
        expect_dims(OP, "out", out, want.dims())?;
        expect_dtype(OP, "out", out, &[DType::I32])?;
        expect_writable(OP, "out", out)?;
        Ok(Self {
            logits: *logits,
            uniforms: *uniforms,
            history: None,
            out: *out,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
        })
    }

    /// The result: one i32 per row.
    pub fn out_spec(logits: &TensorSpec) -> Result<TensorSpec> {
        expect_rank(OP, "logits", logits, 2)?;
        expect_dtype(OP, "logits", logits, &[DType::F32, DType::F16, DType::BF16])?;
        let vocab = logits.shape().last();
        if vocab == 0 || vocab > i32::MAX as usize {
            let what = format!("logits is {}, expected 1 to {} columns", logits.shape(), i32::MAX);
            return Err(OpError::shape(OP, what));
        }
        TensorSpec::of(DType::I32, &[logits.shape().rows()])
    }

    /// Divides the logits: below 1 sharpens, above 1 flattens, 0 takes the largest.
    pub fn with_temperature(mut self, temperature: f32) -> Result<Self> {
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(attribute("temperature", temperature, "a finite number of at least 0"));
        }
        self.temperature = temperature;
        Ok(self)
    }

    /// Keeps the k most likely tokens; 0 keeps all, as does any k beyond the vocabulary.
    pub fn with_top_k(mut self, top_k: usize) -> Result<Self> {
        self.top_k = top_k;
        Ok(self)
    }

    /// Keeps the most likely tokens that together have probability p; 1 keeps all, 0 one.
    pub fn with_top_p(mut self, top_p: f32) -> Result<Self> {
        self.top_p = probability("top_p", top_p)?;
        Ok(self)
    }

    /// Keeps the tokens at least `min_p` times as likely as the most likely one; 0 keeps all.
    pub fn with_min_p(mut self, min_p: f32) -> Result<Self> {
        self.min_p = probability("min_p", min_p)?;
        Ok(self)
    }

    /// Makes the tokens in `history` less likely (penalty above 1) or more (below 1).
    pub fn with_repetition_penalty(mut self, penalty: f32, history: &TensorSpec) -> Result<Self> {
        if !(penalty.is_finite() && penalty > 0.0) {
            return Err(attribute("repetition_penalty", penalty, "a finite number above 0"));
        }
        expect_rank(OP, "history", history, 2)?;
        expect_dims(OP, "history", history, &[self.batch(), history.shape().last()])?;
        expect_dtype(OP, "history", history, &[DType::I32])?;
        self.repetition_penalty = penalty;
        self.history = Some(*history);
        Ok(self)
    }

    /// Logarithms of unnormalised probabilities.
    pub fn logits(&self) -> &TensorSpec {
        &self.logits
    }
    /// One number in [0, 1) per row.
    pub fn uniforms(&self) -> &TensorSpec {
        &self.uniforms
    }
    /// Tokens the penalty applies to.
    pub fn history(&self) -> Option<&TensorSpec> {
        self.history.as_ref()
    }
    /// Token ids.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Divisor of the logits; 0 is greedy.
    pub fn temperature(&self) -> f32 {
        self.temperature
    }
    /// How many tokens survive at most; 0 is off.
    pub fn top_k(&self) -> usize {
        self.top_k
    }
    /// Probability the survivors must reach; 1 is off.
    pub fn top_p(&self) -> f32 {
        self.top_p
    }
    /// Least weight relative to the largest; 0 is off.
    pub fn min_p(&self) -> f32 {
        self.min_p
    }
    /// Divisor of the positive logits in the history; 1 is off.
    pub fn repetition_penalty(&self) -> f32 {
        self.repetition_penalty
    }
    /// Number of rows.
    pub fn batch(&self) -> usize {
        self.logits.shape().rows()
    }
    /// Number of tokens to choose from.
    pub fn vocab(&self) -> usize {
        self.logits.shape().last()
    }

    /// The logits of one row after the penalty.
    fn penalised(&self, logits: &[f64], history: &[f64]) -> Vec<f64> {
        let penalty = f64::from(self.repetition_penalty);
        let mut out = logits.to_vec();
        for &token in history.iter().filter(|&&t| t >= 0.0 && t < logits.len() as f64) {
            let l = logits[token as usize];
            // From the untouched logit: a token seen twice is penalised once.
            out[token as usize] = if l > 0.0 { l / penalty } else { l * penalty };
        }
        out
    }

    /// The survivors of one row of finite maximum, `(token, weight)` in index order: steps 3 to 6.
    fn survivors(&self, logits: &[f64], largest: f64) -> Vec<(usize, f64)> {
        let weight = |l: &f64| ((l - largest) / f64::from(self.temperature)).exp();
        let mut kept: Vec<(usize, f64)> = logits.iter().map(weight).enumerate().collect();
        kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.top_k > 0 {
            kept.truncate(self.top_k);
        }
        if self.top_p < 1.0 {
            let wanted = f64::from(self.top_p) * kept.iter().map(|k| k.1).sum::<f64>();
            let mut sum = 0.0;
            let reached = kept.iter().position(|k| {
                sum += k.1;
                sum >= wanted
            });
            kept.truncate(reached.map_or(kept.len(), |last| last + 1));
        }
        kept.retain(|k| k.1 >= f64::from(self.min_p));
        kept.sort_by_key(|k| k.0);
        kept
    }

    fn choose(&self, logits: &[f64], history: &[f64], uniform: f64) -> usize {
        let logits = self.penalised(logits, history);
        let greatest = argmax(&logits);
        if self.temperature == 0.0 || !logits[greatest].is_finite() {
            return greatest;
        }
        let survivors = self.survivors(&logits, logits[greatest]);
        let total: f64 = survivors.iter().map(|s| s.1).sum();
        let (mut sum, mut token) = (0.0, greatest);
        for (index, weight) in survivors.into_iter().filter(|s| s.1 > 0.0) {
            (sum, token) = (sum + weight, index);
            if sum > uniform * total {
                break;
            }
        }
        token
    }
}

fn attribute(name: &'static str, value: f32, want: &str) -> OpError {
    OpError::attribute(OP, name, format!("is {value}, expected {want}"))
}

fn probability(name: &'static str, value: f32) -> Result<f32> {
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err(attribute(name, value, "a number from 0 to 1")) }
}

/// The index of the largest value: NaN is greatest, ties go to the lowest index.
fn argmax(values: &[f64]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if values[best].is_nan() {
            break;
        }
        if value.is_nan() || *value > values[best] {
            best = i;
        }
    }
    best
}

impl Contract for SampleSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "logits", spec: &self.logits, access: Access::Read });
        visit(Operand { name: "uniforms", spec: &self.uniforms, access: Access::Read });
        if let Some(spec) = &self.history {
            visit(Operand { name: "history", spec, access: Access::Read });
        }
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        let per_logit = if self.temperature == 0.0 { 1 } else { 5 };
        streaming_cost(self, (self.logits.numel() as u64).saturating_mul(per_logit))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let past = self.history.as_ref().map_or(0, |h| h.shape().last());
        let token = |row: usize| {
            let logits = &inputs[0][row * self.vocab()..][..self.vocab()];
            let history = inputs.get(2).map_or(&[][..], |h| &h[row * past..][..past]);
            self.choose(logits, history, inputs[1][row]) as f64
        };
        vec![(0..self.batch()).map(token).collect()]
    }

    /// Token ids are exact: the cases keep uniforms and thresholds away from the edges between tokens.
    fn tolerance(&self) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }
}

/// Logits of `batch` rows whose weights fall by a tenth from rank to rank, at shuffled places; ranks from 60 on
/// are far below, so that sums over any vocabulary have gaps wider than the rounding of f32.
fn spread(dtype: DType, batch: usize, vocab: usize) -> Vec<f64> {
    let stride = [7919, 6007, 101, 1].into_iter().find(|s| gcd(*s, vocab) == 1).unwrap_or(1);
    let place = |i: usize| rounded(dtype, if i < 60 { 3.0 - i as f64 / 8.0 } else { -24.0 });
    (0..batch)
        .flat_map(|row| (0..vocab).map(move |i| place((i * (stride % vocab) + 31 * row) % vocab)))
        .collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The case of `spec` on these logits and history, each row's uniform in the middle of a survivor's share.
fn centred(name: String, spec: SampleSpec, logits: Vec<f64>, history: Vec<f64>) -> Case<SampleSpec> {
    let (vocab, past) = (spec.vocab(), history.len() / spec.batch().max(1));
    let uniform = |row: usize| {
        let logits = spec.penalised(&logits[row * vocab..][..vocab], &history[row * past..][..past]);
        let largest = logits[argmax(&logits)];
        if spec.temperature == 0.0 || !largest.is_finite() {
            return 0.5;
        }
        let survivors = spec.survivors(&logits, largest);
        let total: f64 = survivors.iter().map(|s| s.1).sum();
        // Shares below a thousandth are too close to their edges.
        let wide: Vec<usize> = (0..survivors.len()).filter(|&i| survivors[i].1 > total * 1e-3).collect();
        let chosen = wide[(row * 5 + 2) % wide.len()];
        let before: f64 = survivors[..chosen].iter().map(|s| s.1).sum();
        (before + survivors[chosen].1 / 2.0) / total
    };
    let uniforms = Fill::Values((0..spec.batch()).map(uniform).collect());
    let case = Case::new(name, spec).fill("uniforms", uniforms).fill("logits", Fill::Values(logits));
    case.fill("history", Fill::Values(history))
}

impl Cases for SampleSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        let rows = |batch: usize| TensorSpec::of(DType::I32, &[batch]);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let plain = |batch: usize, vocab: usize| -> Result<Self> {
                let uniforms = TensorSpec::of(DType::F32, &[batch])?;
                Self::new(&TensorSpec::of(dtype, &[batch, vocab])?, &uniforms, &rows(batch)?)
            };
            let mut push = |name: &str, spec: Self, logits: Vec<f64>, history: Vec<f64>| {
                cases.push(centred(format!("{OP}/{dtype}/{name}"), spec, logits, history));
            };
            let tokens = |batch: usize, vocab: usize| spread(dtype, batch, vocab);
            for (batch, vocab) in [(0, 5), (1, 1), (1, 2), (7, 3), (5, 16), (3, 127), (2, 1025), (2, 49_152)]
            {
                let spec = plain(batch, vocab)?;
                let logits = tokens(batch, vocab);
                let mut push = |name: &str, spec| {
                    push(&format!("{name}_{batch}_{vocab}"), spec, logits.clone(), Vec::new());
                };
                push("plain", spec.clone());
                push("greedy", spec.clone().with_temperature(0.0)?);
                push("top_k_1", spec.clone().with_top_k(1)?);
                push("top_k", spec.clone().with_top_k(5)?);
                push("top_k_beyond", spec.clone().with_top_k(usize::MAX)?);
                push("top_p_0", spec.clone().with_top_p(0.0)?);
                push("top_p", spec.clone().with_top_p(0.7)?);
                push("min_p", spec.clone().with_min_p(0.35)?);
                push("min_p_1", spec.clone().with_min_p(1.0)?);
                push("cold", spec.clone().with_temperature(0.05)?);
                push("hot", spec.clone().with_temperature(1.7)?);
                let all = spec.with_temperature(0.8)?.with_top_k(20)?.with_top_p(0.9)?.with_min_p(0.03)?;
                push("all", all);
            }
            let (batch, vocab, past) = (4, 50, 6);
            // Tokens twice, padding in the middle, ids past the vocabulary, an empty history.
            let mut seen: Vec<f64> =
                [3, 17, 3, -1, 40, 49, 0, 1, 2, 3, 4, 5, 50, 1_000_000, -7, 9, 9, 9].map(f64::from).into();
            seen.extend([-1.0; 6]);
            let history = TensorSpec::of(DType::I32, &[batch, past])?;
            for (name, penalty) in [("penalty", 1.3), ("encouraged", 0.7), ("penalty_off", 1.0)] {
                let spec = plain(batch, vocab)?.with_repetition_penalty(penalty, &history)?;
                push(name, spec.clone().with_top_k(30)?, tokens(batch, vocab), seen.clone());
                push(
                    &format!("{name}_greedy"),
                    spec.with_temperature(0.0)?,
                    tokens(batch, vocab),
                    seen.clone(),
                );
            }
            let none = TensorSpec::of(DType::I32, &[batch, 0])?;
            let spec = plain(batch, vocab)?.with_repetition_penalty(2.0, &none)?;
            push("penalty_without_history", spec, tokens(batch, vocab), Vec::new());

            // Ties: equal logits everywhere, then two levels; truncation keeps the lowest indices.
            let levels: Vec<f64> = (0..batch * vocab).map(|i| f64::from(i % 3 == 1)).collect();
            push("equal", plain(batch, vocab)?, vec![0.5; batch * vocab], Vec::new());
            push("equal_top_k", plain(batch, vocab)?.with_top_k(9)?, vec![0.5; batch * vocab], Vec::new());
            push("levels_top_k", plain(batch, vocab)?.with_top_k(20)?, levels.clone(), Vec::new());
            push("levels_top_p", plain(batch, vocab)?.with_top_p(0.333)?, levels.clone(), Vec::new());
            push("levels_greedy", plain(batch, vocab)?.with_temperature(0.0)?, levels, Vec::new());

            // Rows: all masked, NaN twice, an infinity twice, one visible; then a masked half.
            let mut odd = vec![f64::NEG_INFINITY; batch * vocab];
            (odd[vocab + 30], odd[vocab + 31], odd[vocab + 2]) = (f64::NAN, f64::NAN, f64::INFINITY);
            odd[2 * vocab..3 * vocab].fill(1.0);
            (odd[2 * vocab + 7], odd[2 * vocab + 8]) = (f64::INFINITY, f64::INFINITY);
            odd[3 * vocab + 49] = -5.0;
            push("not_finite", plain(batch, vocab)?, odd.clone(), Vec::new());
            push("not_finite_greedy", plain(batch, vocab)?.with_temperature(0.0)?, odd.clone(), Vec::new());
            push("not_finite_top_p", plain(batch, vocab)?.with_top_k(3)?.with_top_p(0.5)?, odd, Vec::new());
            let mut masked = tokens(batch, vocab);
            masked.iter_mut().step_by(2).for_each(|l| *l = f64::NEG_INFINITY);
            push("masked", plain(batch, vocab)?.with_top_k(40)?, masked, Vec::new());

            let logits = TensorSpec::of(dtype, &[vocab, batch + 1])?.narrow(1, 1, batch)?.transpose(0, 1)?;
            let uniforms = TensorSpec::of(DType::F32, &[batch, 3])?.select(1, 2)?;
            let out = TensorSpec::of(DType::I32, &[batch, 2])?.select(1, 1)?;
            let history = TensorSpec::of(DType::I32, &[past, batch])?.transpose(0, 1)?;
            let spec = Self::new(&logits, &uniforms, &out)?.with_repetition_penalty(1.3, &history)?;
            push("strided", spec.with_top_p(0.8)?, tokens(batch, vocab), seen);
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(batch: usize, vocab: usize) -> SampleSpec {
        let of = |dtype, dims: &[usize]| TensorSpec::of(dtype, dims).unwrap();
        let (uniforms, out) = (of(DType::F32, &[batch]), of(DType::I32, &[batch]));
        SampleSpec::new(&of(DType::F32, &[batch, vocab]), &uniforms, &out).unwrap()
    }

    /// How often each token is drawn over an even grid of uniforms.
    fn shares(spec: &SampleSpec, probabilities: &[f64]) -> Vec<f64> {
        let logits: Vec<f64> = probabilities.iter().map(|p| p.ln()).collect();
        let grid = 4096;
        let mut counts = vec![0.0; probabilities.len()];
        for i in 0..grid {
            let uniform = (f64::from(i) + 0.5) / f64::from(grid);
            counts[spec.reference(&[&logits, &[uniform]])[0][0] as usize] += 1.0 / f64::from(grid);
        }
        counts
    }

    const P: [f64; 4] = [0.125, 0.5, 0.125, 0.25];

    fn assert_shares(spec: SampleSpec, want: [f64; 4]) {
        let got = shares(&spec, &P);
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-3), "{spec:?}: {got:?}, want {want:?}");
    }

    #[test]
    fn an_even_grid_of_uniforms_gives_back_the_probabilities() {
        assert_shares(spec(1, 4), P);
        assert_shares(spec(1, 4).with_temperature(0.5).unwrap(), [1.0, 16.0, 1.0, 4.0].map(|w| w / 22.0));
        assert_shares(spec(1, 4).with_temperature(0.0).unwrap(), [0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn top_k_keeps_the_largest_and_of_equals_the_first() {
        assert_shares(spec(1, 4).with_top_k(1).unwrap(), [0.0, 1.0, 0.0, 0.0]);
        assert_shares(spec(1, 4).with_top_k(2).unwrap(), [0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
        assert_shares(spec(1, 4).with_top_k(3).unwrap(), [1.0, 4.0, 0.0, 2.0].map(|w| w / 7.0));
        assert_shares(spec(1, 4).with_top_k(9).unwrap(), P);
    }

    #[test]
    fn top_p_keeps_the_shortest_run_that_reaches_it() {
        for (p, want) in [
            (0.0, [0.0, 1.0, 0.0, 0.0]),
            (0.49, [0.0, 1.0, 0.0, 0.0]),
            (0.51, [0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]),
            (0.76, [1.0, 4.0, 0.0, 2.0].map(|w| w / 7.0)),
            (0.88, P),
            (1.0, P),
        ] {
            assert_shares(spec(1, 4).with_top_p(p).unwrap(), want);
        }
        // Of the two that top k leaves, 2/3 and 1/3: 0.6 needs one where it needed two of the whole.
        assert_shares(spec(1, 4).with_top_p(0.6).unwrap(), [0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
        assert_shares(spec(1, 4).with_top_k(2).unwrap().with_top_p(0.6).unwrap(), [0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn min_p_is_relative_to_the_largest() {
        assert_shares(spec(1, 4).with_min_p(0.2).unwrap(), P);
        assert_shares(spec(1, 4).with_min_p(0.3).unwrap(), [0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
        assert_shares(spec(1, 4).with_min_p(0.6).unwrap(), [0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn the_penalty_is_applied_once_and_by_sign() {
        let history = TensorSpec::of(DType::I32, &[1, 5]).unwrap();
        let greedy = spec(1, 3).with_temperature(0.0).unwrap();
        let s = greedy.with_repetition_penalty(2.0, &history).unwrap();
        let seen = [0.0, 0.0, -1.0, 2.0, 7.0];
        assert_eq!(s.penalised(&[6.0, 1.0, -1.0], &seen), [3.0, 1.0, -2.0]);
        // Twice the penalty would leave 1.5, below 2.
        assert_eq!(s.reference(&[&[6.0, 2.0, -1.0], &[0.0], &seen]), [vec![0.0]]);
        assert_eq!(s.reference(&[&[6.0, 4.0, -1.0], &[0.0], &seen]), [vec![1.0]]);
    }

    #[test]
    fn logits_that_are_not_finite_are_chosen_greedily() {
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        let token = |logits: [f64; 3]| spec(1, 3).reference(&[&logits, &[0.9]])[0][0];
        assert_eq!(token([0.0, nan, nan]), 1.0);
        assert_eq!(token([0.0, inf, inf]), 1.0);
        assert_eq!(token([inf, 0.0, nan]), 2.0);
        assert_eq!(token([-inf; 3]), 0.0);
        assert_eq!(token([-inf, -3.0, -inf]), 1.0);
    }

    #[test]
    fn uniforms_outside_their_range_still_give_a_possible_token() {
        let logits = [0.0, 0.0, f64::NEG_INFINITY];
        for (uniform, want) in [(-1.0, 0.0), (1.0, 1.0), (5.0, 1.0), (f64::NAN, 1.0), (0.0, 0.0)] {
            assert_eq!(spec(1, 3).reference(&[&logits, &[uniform]]), [vec![want]], "{uniform}");
        }
    }

    #[test]
    fn bad_arguments_are_refused() {
        let s = || spec(2, 3);
        for bad in [f32::NAN, -0.5, f32::INFINITY] {
            assert!(s().with_temperature(bad).is_err(), "{bad}");
            assert!(s().with_top_p(bad).is_err() && s().with_min_p(bad).is_err(), "{bad}");
            let history = TensorSpec::of(DType::I32, &[2, 1]).unwrap();
            assert!(s().with_repetition_penalty(bad, &history).is_err(), "{bad}");
        }
        assert!(s().with_top_p(1.1).is_err() && s().with_min_p(1.1).is_err());
        let e = s().with_top_p(1.5).unwrap_err();
        assert_eq!(e.to_string(), "sample: top_p is 1.5, expected a number from 0 to 1");
        for history in [&[3, 1][..], &[2], &[]] {
            let history = TensorSpec::of(DType::I32, history).unwrap();
            assert!(s().with_repetition_penalty(1.1, &history).is_err());
        }
        for logits in [&[2, 0][..], &[2], &[1, 2, 3], &[2, 1 << 40]] {
            assert!(
                SampleSpec::out_spec(&TensorSpec::of(DType::F32, logits).unwrap()).is_err(),
                "{logits:?}"
            );
        }
    }

    #[test]
    fn the_cases_stay_away_from_the_edges() {
        // What is within rounding of f32 must not change the answer: logits and uniforms moved by 1e-5.
        let cases = SampleSpec::cases().unwrap();
        assert!(cases.len() > 300);
        for case in cases {
            let s = &case.contract;
            let drawn = |name: &str, like: &TensorSpec| case.fill_of(name).draw(like, 0);
            let (logits, uniforms) = (drawn("logits", &s.logits), drawn("uniforms", &s.uniforms));
            let history = s.history.map_or(Vec::new(), |h| drawn("history", &h));
            let want = s.reference(&[&logits, &uniforms, &history]);
            for by in [-1e-5, 1e-5] {
                let uniforms: Vec<f64> = uniforms.iter().map(|u| u + by).collect();
                assert_eq!(want, s.reference(&[&logits, &uniforms, &history]), "{}", case.name);
                let mut moved = s.clone();
                moved.temperature *= 1.0 + by as f32;
                moved.min_p *= 1.0 + if s.min_p == 1.0 { 0.0 } else { by as f32 };
                moved.top_p *= 1.0 + if s.top_p == 1.0 { 0.0 } else { by as f32 };
                assert_eq!(want, moved.reference(&[&logits, &uniforms, &history]), "{}", case.name);
            }
        }
    }

    proptest! {
        #[test]
        fn a_drawn_token_is_a_survivor_and_grows_with_the_uniform(
            logits in prop::collection::vec(-5.0..5.0f64, 1..40), u in 0.0..1.0f64, v in 0.0..1.0f64,
            k in 0usize..10, p in 0.0..=1.0f32, m in 0.0..=1.0f32, t in 0.1..3.0f32,
        ) {
            let s = spec(1, logits.len()).with_temperature(t).unwrap().with_top_k(k).unwrap();
            let s = s.with_top_p(p).unwrap().with_min_p(m).unwrap();
            let token = |u: f64| s.reference(&[&logits, &[u]])[0][0];
            let (low, high) = (token(u.min(v)), token(u.max(v)));
            prop_assert!(low <= high);
            let better = logits.iter().filter(|&&l| l > logits[low as usize]).count();
            prop_assert!(k == 0 || better < k);
            prop_assert!(logits.iter().all(|l| (logits[low as usize] - l) / f64::from(t) >= f64::from(m).ln() - 1e-9));
        }
    }
}
