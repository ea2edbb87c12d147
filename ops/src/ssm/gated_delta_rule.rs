//! The gated delta rule: linear attention whose state forgets, and replaces what it holds under a key.

use super::lens::{RAGGED, expect_packed, of_sequences, rows_of, sequences};
use super::{FLOATS, Inputs, expect_parameter, expect_state, recurrence_error};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, LensSpec, OpError, Operand, Result, TensorSpec,
    Tolerance, expect_dims, expect_dtype, expect_rank, expect_writable, streaming_cost,
};

/// Runs linear attention with the gated delta rule.
///
/// `S = e^g · S`, then `S = S + k ⊗ β·(v − Sᵀk)`, and `out = scale · Sᵀq`: for every token of a sequence and every head
/// with a state S `[key_dim, value_dim]` of its own; in matrices `S = (I − β·k·kᵀ) · e^g · S + β·k·vᵀ`.
///
/// S begins as initial, or as 0, and ends as last: a call over a sequence gives what calls over its parts give. With
/// normalised keys q and k are each divided by `√(Σ x² + eps)` first, without which the rule is stable only while
/// `β·|k|²` stays below 2.
///
/// # Shapes
/// q and k `[batch, tokens, key_heads, key_dim]`, v and out `[batch, tokens, heads, value_dim]`, g and beta
/// `[batch, tokens, heads]`, initial and last `[batch, heads, key_dim, value_dim]`. heads is a multiple of key_heads:
/// head i reads q and k of head `i / (heads / key_heads)`. Any extent may be zero; without tokens last is initial.
///
/// With lens (i32, `[batch]`, on the device) q, k, v, g, beta and out are `[1, tokens, ..]` and have the tokens of all sequences one behind the
/// other, first `lens[0]` of sequence 0; states stay one a sequence. What lies behind the last sequence is not read,
/// and out is 0 there.
///
/// # DTypes
/// q f32, f16 or bf16; k, v and out of q's type; g (the logarithm of the decay) and beta of q's type or f32; initial
/// and last f32. Computed in f32, rounded once. NaN and infinities reach later tokens of their head, never
/// earlier ones, and from v its column of the state only; a number that is infinite stays so or becomes NaN.
///
/// # Layout
/// Any strides. last may be initial (in place).
///
/// # Determinism
/// `BatchInvariant`: a head depends on its own sequence only. Sums over keys are in a fixed order.
///
/// # Cost
/// `7·key_dim·value_dim + 3·value_dim + 2` operations for each token and head: the decay, `Sᵀk` and `Sᵀq` (2 each), the
/// outer product (2); difference, factor β, scale; the exponential. `6·key_dim + 6` more with normalised keys.
/// Each operand is moved once.
/// With lens, tokens behind the last sequence cost their 0 only: by the host's lengths if it knows them, else by their
/// bounds.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out or last overlaps itself), `Attribute` (scale not finite, eps negative or not
/// finite).
/// `Attribute` when lengths add up to more than tokens; `Data` when the device finds that, or one that is negative or above
/// its bound.
///
/// # Composition
/// In f32, token by token for all sequences and heads: binary product with the decay, products with the key and a sum
/// over keys, difference and product with β, outer product and sum, products with the query and a sum. A launch for
/// each of these and each token: correct everywhere, and slow for long sequences.
///
/// # Source
/// Yang, Kautz and Hatamizadeh, "Gated Delta Networks", 2024; `torch_recurrent_gated_delta_rule` of Qwen3-Next.
#[derive(Clone, Debug, PartialEq)]
pub struct GatedDeltaRuleSpec {
    q: TensorSpec,
    k: TensorSpec,
    v: TensorSpec,
    g: TensorSpec,
    beta: TensorSpec,
    lens: Option<LensSpec>,
    initial: Option<TensorSpec>,
    out: TensorSpec,
    last: Option<TensorSpec>,
    scale: f32,
    key_norm: Option<f32>,
}

const OP: &str = "gated_delta_rule";

impl GatedDeltaRuleSpec {
    /// The rule from a state of 0, with a scale of `1/√key_dim`.
    pub fn new(
        q: &TensorSpec,
        k: &TensorSpec,
        v: &TensorSpec,
        g: &TensorSpec,
        beta: &TensorSpec,
        out: &TensorSpec,
    ) -> Result<Self> {
        expect_rank(OP, "q", q, 4)?;
        expect_dtype(OP, "q", q, &FLOATS)?;
        expect_dims(OP, "k", k, q.dims())?;
        expect_dtype(OP, "k", k, &[q.dtype()])?;
        let want = Self::out_spec(v)?;
        let (batch, tokens, heads) = (v.dims()[0], v.dims()[1], v.dims()[2]);
        expect_dims(OP, "v", v, &[q.dims()[0], q.dims()[1], heads, v.dims()[3]])?;
        expect_dtype(OP, "v", v, &[q.dtype()])?;
        let key_heads = q.dims()[2];
        if heads != 0 && (key_heads == 0 || !heads.is_multiple_of(key_heads)) {
            let what = format!(
                "q is {}, v is {}: {heads} heads are no multiple of {key_heads}",
                q.shape(),
                v.shape()
            );
            return Err(OpError::shape(OP, what));
        }
        expect_parameter(OP, "g", g, &[batch, tokens, heads], q)?;
        expect_parameter(OP, "beta", beta, &[batch, tokens, heads], q)?;
        expect_dims(OP, "out", out, want.dims())?;
        expect_dtype(OP, "out", out, &[want.dtype()])?;
        expect_writable(OP, "out", out)?;
        Ok(Self {
            q: *q,
            k: *k,
            v: *v,
            g: *g,
            beta: *beta,
            lens: None,
            initial: None,
            out: *out,
            last: None,
            scale: (1.0 / (q.dims()[3].max(1) as f64).sqrt()) as f32,
            key_norm: None,
        })
    }

    /// The result: contiguous, of v's extents and type.
    pub fn out_spec(v: &TensorSpec) -> Result<TensorSpec> {
        expect_rank(OP, "v", v, 4)?;
        expect_dtype(OP, "v", v, &FLOATS)?;
        Ok(v.to_contiguous())
    }

    /// The state of a call over such keys and values, contiguous.
    pub fn state_spec(k: &TensorSpec, v: &TensorSpec) -> Result<TensorSpec> {
        expect_rank(OP, "k", k, 4)?;
        expect_rank(OP, "v", v, 4)?;
        TensorSpec::of(DType::F32, &[v.dims()[0], v.dims()[2], k.dims()[3], v.dims()[3]])
    }

    /// Sets the factor of the result.
    pub fn with_scale(mut self, scale: f32) -> Result<Self> {
        if !scale.is_finite() {
            return Err(OpError::attribute(OP, "scale", format!("is {scale}, expected a finite number")));
        }
        self.scale = scale;
        Ok(self)
    }

    /// Divides every query and key by the root of the sum of its squares and `eps`.
    pub fn with_key_norm(mut self, eps: f32) -> Result<Self> {
        if !eps.is_finite() || eps < 0.0 {
            let what = format!("is {eps}, expected a finite number of at least 0");
            return Err(OpError::attribute(OP, "eps", what));
        }
        self.key_norm = Some(eps);
        Ok(self)
    }

    /// Says that the tokens of `lens.count()` sequences lie one behind the other in the one row of v; states have an
    /// entry for each of them, and are set after this.
    pub fn with_lens(mut self, lens: &LensSpec) -> Result<Self> {
        expect_packed(OP, "v", &self.v, lens)?;
        self.lens = Some(lens.clone());
        for (arg, state) in [("initial", self.initial), ("last", self.last)] {
            if let Some(state) = state {
                expect_state(OP, arg, &state, &self.state_dims(), false)?;
            }
        }
        Ok(self)
    }

    /// Begins with this state.
    pub fn with_initial(mut self, initial: &TensorSpec) -> Result<Self> {
        expect_state(OP, "initial", initial, &self.state_dims(), false)?;
        self.initial = Some(*initial);
        Ok(self)
    }

    /// Also writes the state behind the last token.
    pub fn with_last(mut self, last: &TensorSpec) -> Result<Self> {
        expect_state(OP, "last", last, &self.state_dims(), true)?;
        self.last = Some(*last);
        Ok(self)
    }

    fn state_dims(&self) -> [usize; 4] {
        [self.batch(), self.heads(), self.key_dim(), self.value_dim()]
    }

    /// Queries.
    pub fn q(&self) -> &TensorSpec {
        &self.q
    }
    /// Keys.
    pub fn k(&self) -> &TensorSpec {
        &self.k
    }
    /// Values.
    pub fn v(&self) -> &TensorSpec {
        &self.v
    }
    /// Logarithms of the decays.
    pub fn g(&self) -> &TensorSpec {
        &self.g
    }
    /// How much of a value is written.
    pub fn beta(&self) -> &TensorSpec {
        &self.beta
    }
    /// Tokens of each sequence, if they differ.
    pub fn lens(&self) -> Option<&LensSpec> {
        self.lens.as_ref()
    }
    /// The state before.
    pub fn initial(&self) -> Option<&TensorSpec> {
        self.initial.as_ref()
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// The state behind.
    pub fn last(&self) -> Option<&TensorSpec> {
        self.last.as_ref()
    }
    /// Factor of the result.
    pub fn scale(&self) -> f32 {
        self.scale
    }
    /// What is added to the sum of squares that queries and keys are normalised by, if they are.
    pub fn key_norm(&self) -> Option<f32> {
        self.key_norm
    }
    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.lens.as_ref().map_or(self.v.dims()[0], LensSpec::count)
    }
    /// Tokens of each sequence, of all together with [`Self::lens`].
    pub fn tokens(&self) -> usize {
        self.v.dims()[1]
    }
    /// Number of heads, each with a state.
    pub fn heads(&self) -> usize {
        self.v.dims()[2]
    }
    /// Number of heads of q and k.
    pub fn key_heads(&self) -> usize {
        self.q.dims()[2]
    }
    /// Rows of a state.
    pub fn key_dim(&self) -> usize {
        self.q.dims()[3]
    }
    /// Columns of a state.
    pub fn value_dim(&self) -> usize {
        self.v.dims()[3]
    }
}

impl Contract for GatedDeltaRuleSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        let reads = [("q", &self.q), ("k", &self.k), ("v", &self.v), ("g", &self.g), ("beta", &self.beta)];
        for (name, spec) in reads {
            visit(Operand { name, spec, access: Access::Read });
        }
        if let Some(lens) = &self.lens {
            visit(Operand { name: "lens", spec: lens.device(), access: Access::Read });
        }
        if let Some(spec) = &self.initial {
            visit(Operand { name: "initial", spec, access: Access::Read });
        }
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
        if let Some(spec) = &self.last {
            visit(Operand { name: "last", spec, access: Access::Write });
        }
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        &[("last", "initial")]
    }

    fn cost(&self) -> Cost {
        let (rows, columns) = (self.key_dim() as u64, self.value_dim() as u64);
        let mut each = columns.saturating_mul(7 * rows + 3) + 2;
        if self.key_norm.is_some() {
            each = each.saturating_add(6 * rows + 6);
        }
        let whole = streaming_cost(self, each.saturating_mul(self.g.numel() as u64));
        let rows = [&self.q, &self.k, &self.v, &self.g, &self.beta].map(Some);
        of_sequences(whole, self.lens.as_ref(), self.tokens(), &rows)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let mut inputs = Inputs::of(inputs);
        let [q, k, v, g, beta] = core::array::from_fn(|_| inputs.next());
        let (lens, initial) = (inputs.lens(&self.lens), inputs.optional(&self.initial));
        let [batch, heads, rows, columns] = self.state_dims();
        let mut states = initial.map_or_else(|| vec![0.0; batch * heads * rows * columns], <[f64]>::to_vec);
        let mut out = vec![0.0; v.len()];
        let normal = |x: &[f64]| -> Vec<f64> {
            let root =
                self.key_norm.map(|eps| (x.iter().map(|x| x * x).sum::<f64>() + f64::from(eps)).sqrt());
            x.iter().map(|x| x / root.unwrap_or(1.0)).collect()
        };
        let sequences = sequences(batch, self.tokens(), lens);
        for (sequence, row) in rows_of(&sequences) {
            for head in 0..heads {
                let key_head = row * self.key_heads() + head / (heads / self.key_heads());
                let [q, k] = [q, k].map(|x| normal(&x[key_head * rows..][..rows]));
                let v = &v[(row * heads + head) * columns..][..columns];
                let (decay, beta) = (g[row * heads + head].exp(), beta[row * heads + head]);
                let state = (sequence * heads + head) * rows * columns;
                let state = &mut states[state..][..rows * columns];
                state.iter_mut().for_each(|s| *s *= decay);
                for (j, v) in v.iter().enumerate() {
                    let held: f64 = (0..rows).map(|i| state[i * columns + j] * k[i]).sum();
                    let change = beta * (v - held);
                    let mut sum = 0.0;
                    for i in 0..rows {
                        state[i * columns + j] += k[i] * change;
                        sum += state[i * columns + j] * q[i];
                    }
                    out[(row * heads + head) * columns + j] = f64::from(self.scale) * sum;
                }
            }
        }
        match self.last {
            Some(_) => vec![out, states],
            None => vec![out],
        }
    }

    /// The state errs as `recurrence_error` says, and each step adds the error of a sum over keys, a tenth of whose
    /// terms are as large as 1 as the cases draw them: `2·(key_dim + 8)` roundings. `I − β·k·kᵀ` does not enlarge
    /// errors while `β·|k|² ≤ 2`. The result is a sum over keys of such numbers, times a scale of at most 1.
    fn tolerance(&self) -> Vec<Tolerance> {
        let unit = DType::F32.unit_roundoff();
        let sum = 2.0 * (self.key_dim() as f64 + 8.0) * unit;
        let state = recurrence_error(self.tokens()) + sum;
        let scale = f64::from(self.scale).abs().max((self.key_dim().max(1) as f64).sqrt().recip());
        let out = scale * (self.key_dim() as f64).sqrt() * state + sum;
        let out = Tolerance::rounded_to(self.out.dtype(), out).plus(Tolerance { abs: 0.0, rel: 8.0 * unit });
        match self.last {
            Some(_) => vec![out, Tolerance { abs: state, rel: 8.0 * unit }],
            None => vec![out],
        }
    }
}

impl Cases for GatedDeltaRuleSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        // Batch, tokens, key heads, heads, key_dim, value_dim.
        let shapes: [(&str, [usize; 6]); 14] = [
            ("no_batch", [0, 5, 1, 2, 4, 8]),
            ("no_tokens", [2, 0, 1, 2, 4, 9]),
            ("no_heads", [2, 3, 1, 0, 4, 8]),
            ("no_keys", [2, 3, 1, 2, 0, 5]),
            ("no_values", [2, 3, 1, 2, 5, 0]),
            ("one", [1, 1, 1, 1, 1, 1]),
            ("one_token", [3, 1, 2, 4, 16, 24]),
            ("few_tokens", [1, 5, 1, 2, 9, 13]),
            ("before_a_chunk", [1, 15, 1, 1, 12, 17]),
            ("behind_a_chunk", [1, 33, 1, 3, 16, 17]),
            ("unaligned", [2, 37, 2, 4, 19, 30]),
            ("wide", [1, 7, 1, 1, 8, 150]),
            ("typical", [1, 20, 1, 2, 128, 128]),
            ("long", [1, 200, 1, 1, 8, 8]),
        ];
        for dtype in FLOATS {
            let of = |dims: &[usize]| TensorSpec::of(dtype, dims);
            let over = |[batch, tokens, key_heads, heads, rows, columns]: [usize; 6],
                        gates|
             -> Result<Self> {
                let (q, v) = (of(&[batch, tokens, key_heads, rows])?, of(&[batch, tokens, heads, columns])?);
                let gate = TensorSpec::of(gates, &[batch, tokens, heads])?;
                Self::new(&q, &q, &v, &gate, &gate, &v)
            };
            let case = |name: String, spec: Self| {
                // Keys no longer than 1 where they are not made so.
                let size =
                    if spec.key_norm.is_some() { 1.0 } else { 1.0 / (spec.key_dim().max(1) as f64).sqrt() };
                let case = Case::new(format!("{OP}/{dtype}/{name}"), spec);
                let case = case.fill("g", Fill::Range(-1.0, -0.25)).fill("beta", Fill::Range(0.0, 1.0));
                case.fill("k", Fill::Range(-size, size))
            };
            let push = |cases: &mut Vec<Case<Self>>, name: String, spec: Self| cases.push(case(name, spec));
            for (name, dims) in shapes {
                push(&mut cases, name.into(), over(dims, dtype)?);
                let spec = over(dims, DType::F32)?;
                let state = TensorSpec::of(DType::F32, &spec.state_dims())?;
                let spec =
                    spec.with_initial(&state)?.with_last(&state)?.with_scale(0.5)?.with_key_norm(1e-6)?;
                push(&mut cases, format!("{name}_continued"), spec);
            }
            for batch in &RAGGED {
                let spec =
                    over([1, batch.tokens(), 2, 4, 12, 17], DType::F32)?.with_lens(&batch.spec(OP)?)?;
                let state = TensorSpec::of(DType::F32, &spec.state_dims())?;
                let spec = spec.with_initial(&state)?.with_last(&state)?.with_key_norm(1e-6)?;
                cases.push(batch.fill(case(format!("lens/{}", batch.name), spec)));
            }
            // q, k and v parts of one projection; results by head, states the other way round.
            for (name, tokens) in [("strided", 19), ("strided_step", 1)] {
                let inner = of(&[2, tokens, 90])?;
                let part = |start, len, dims: &[usize]| inner.narrow(2, start, len)?.reshape(dims);
                let gate = of(&[2, 4, tokens])?.transpose(1, 2)?;
                let spec = Self::new(
                    &part(3, 20, &[2, tokens, 2, 10])?,
                    &part(23, 20, &[2, tokens, 2, 10])?,
                    &part(43, 36, &[2, tokens, 4, 9])?,
                    &gate,
                    &gate,
                    &of(&[2, 4, tokens, 9])?.transpose(1, 2)?,
                )?;
                let state = TensorSpec::of(DType::F32, &[2, 4, 9, 10])?.transpose(2, 3)?;
                let window = TensorSpec::of(DType::F32, &[2, 4, 10, 16])?.narrow(3, 3, 9)?;
                push(&mut cases, name.into(), spec.with_initial(&window)?.with_last(&state)?);
            }
            // A NaN in v: later tokens of its column, and nothing else.
            let spec = over([1, 6, 1, 2, 7, 12], dtype)?;
            let state = TensorSpec::of(DType::F32, &spec.state_dims())?;
            let numbers = (0..6 * 24).map(|i| if i == 53 { f64::NAN } else { f64::from(i % 9) / 4.0 - 1.0 });
            let special =
                Case::new(format!("{OP}/{dtype}/nan"), spec.with_last(&state)?.with_key_norm(1e-6)?);
            let special = special.fill("g", Fill::Range(-1.0, -0.25)).fill("beta", Fill::Range(0.25, 1.0));
            cases.push(special.fill("v", Fill::Values(numbers.collect())));
            // Keys of 0 write nothing, normalised or not.
            let zeros = Case::new(
                format!("{OP}/{dtype}/no_key"),
                over([1, 3, 1, 1, 8, 8], dtype)?.with_key_norm(1e-6)?,
            );
            cases.push(zeros.fill("k", Fill::Range(0.0, 0.0)).fill("g", Fill::Range(-1.0, -0.25)));
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(dims: &[usize]) -> TensorSpec {
        TensorSpec::of(DType::F32, dims).unwrap()
    }

    fn spec([batch, tokens, key_heads, heads, rows, columns]: [usize; 6]) -> GatedDeltaRuleSpec {
        let (q, v) = (f32s(&[batch, tokens, key_heads, rows]), f32s(&[batch, tokens, heads, columns]));
        let gate = f32s(&[batch, tokens, heads]);
        GatedDeltaRuleSpec::new(&q, &q, &v, &gate, &gate, &v).unwrap()
    }

    #[test]
    fn a_value_written_whole_under_a_unit_key_is_read_back_and_replaced() {
        let spec = spec([1, 3, 1, 1, 2, 1]).with_scale(1.0).unwrap();
        // The first key twice, then a query for the second.
        let keys = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0];
        let got = spec.reference(&[&keys, &keys, &[5.0, 7.0, 9.0], &[0.0; 3], &[1.0, 1.0, 0.5]]);
        assert_eq!(got, [vec![5.0, 7.0, 4.5]]);
    }

    #[test]
    fn the_state_decays_before_it_is_written() {
        let state = f32s(&[1, 1, 1, 1]);
        let spec = spec([1, 1, 1, 1, 1, 1]).with_initial(&state).unwrap().with_last(&state).unwrap();
        let got = spec.with_scale(10.0).unwrap().reference(&[
            &[3.0],
            &[2.0],
            &[5.0],
            &[0.5f64.ln()],
            &[0.25],
            &[8.0],
        ]);
        // S = 4, then 4 + 2 · (5 − 8) / 4 = 2.5; 10 · 2.5 · 3.
        assert!((got[0][0] - 75.0).abs() < 1e-12 && (got[1][0] - 2.5).abs() < 1e-13, "{got:?}");
    }

    #[test]
    fn normalised_keys_have_length_one() {
        let spec = spec([1, 1, 1, 2, 2, 1]).with_key_norm(0.0).unwrap().with_scale(1.0).unwrap();
        // Both heads read the one key [3, 4].
        let got = spec.reference(&[&[6.0, 8.0], &[3.0, 4.0], &[5.0, -1.0], &[0.0; 2], &[1.0; 2]]).remove(0);
        assert!((got[0] - 5.0).abs() < 1e-14 && (got[1] + 1.0).abs() < 1e-14, "{got:?}");
    }

    #[test]
    fn bad_arguments_are_refused() {
        let (q, gate) = (f32s(&[1, 3, 2, 4]), f32s(&[1, 3, 3]));
        let v = f32s(&[1, 3, 3, 5]);
        let e = GatedDeltaRuleSpec::new(&q, &q, &v, &gate, &gate, &v).unwrap_err();
        let want = "gated_delta_rule: q is [1, 3, 2, 4], v is [1, 3, 3, 5]: 3 heads are no multiple of 2";
        assert_eq!(e.to_string(), want);
        let good = spec([1, 3, 1, 2, 4, 5]);
        assert!(good.clone().with_scale(f32::NAN).is_err());
        assert!(good.clone().with_key_norm(-1.0).is_err());
        assert!(good.with_last(&f32s(&[1, 2, 5, 4])).is_err());
    }

    #[test]
    fn the_cost_counts_four_passes_over_the_state() {
        let cost = spec([1, 10, 1, 2, 4, 8]).cost();
        assert_eq!(cost.flops, 20 * (7 * 32 + 24 + 2));
        assert_eq!(cost.bytes_read, 4 * (40 + 40 + 160 + 20 + 20));
    }

    #[test]
    fn every_case_is_legal() {
        assert!(GatedDeltaRuleSpec::cases().unwrap().len() > 80);
    }
}
