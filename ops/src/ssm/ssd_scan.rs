//! The scan of Mamba-2: a state matrix for every head that decays by one number a token, run by chunks of tokens.

use super::lens::{RAGGED, expect_packed, of_sequences, rows_of, sequences};
use super::{FLOATS, Inputs, expect_parameter, expect_state, recurrence_error, softplus};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, LensSpec, OpError, Operand, Result, TensorSpec,
    Tolerance, expect_dims, expect_dtype, expect_rank, expect_writable, streaming_cost,
};

/// Tokens of a chunk when not said: products of a chunk are then as large as those of usual head and state sizes.
pub const CHUNK: usize = 128;

/// The longest chunk: what a kernel keeps of one grows with its square.
pub const MAX_CHUNK: usize = 1024;

/// Runs a state-space recurrence whose heads decay by one number a token (state-space duality).
///
/// `h[p, n] = e^(Δ·a[i]) · h[p, n] + Δ · x[t, i, p] · b[t, g, n]` and
/// `out[t, i, p] = Σ_n c[t, g, n] · h[p, n] + d[i] · x[t, i, p]`, for every sequence and head i with a state h of its
/// own, g = i / (heads / groups); Δ is `delta[t, i] + delta_bias[i]`, or softplus of it.
///
/// h begins as initial, or as 0, and ends as last: a call over a sequence gives what calls over its parts give. The
/// chunk says how many tokens a kernel works on at a time and is not seen in the result, but for rounding.
///
/// # Shapes
/// x and out `[batch, tokens, heads, head_dim]`, delta `[batch, tokens, heads]`, a, d and delta_bias `[heads]`, b and c
/// `[batch, tokens, groups, state]`, initial and last `[batch, heads, head_dim, state]`. heads is a multiple of
/// groups. Any extent may be zero; without tokens last is initial.
///
/// With lens (i32, `[batch]`, on the device) x, delta, b, c and out are `[1, tokens, ..]` and have the tokens of all sequences one behind the
/// other, first `lens[0]` of sequence 0; states stay one a sequence. What lies behind the last sequence is not read,
/// and out is 0 there.
///
/// # DTypes
/// x f32, f16 or bf16; b, c and out of x's type; delta, a, d and delta_bias of x's type or f32; initial and last f32.
/// Computed in f32, rounded once. A token never sees a later one, not even where that is NaN. NaN reaches what the
/// formula says; a number that is infinite stays so or becomes NaN, and an infinite step size makes either of all that
/// its head gives from there on.
///
/// # Layout
/// Any strides. last may be initial (in place).
///
/// # Determinism
/// `BatchInvariant`: a head depends on its own sequence only. Sums are in an order that tokens and chunk decide.
///
/// # Cost
/// Of the recurrence, token by token: `5·head_dim·state` operations for each token and head (of which the state takes
/// 3 and the sum 2), head_dim more for `Δ·x`, 3 for the decay, 1 more for delta_bias, 4 more for softplus,
/// `2·head_dim` more for d. Each operand is moved once.
/// With lens, tokens behind the last sequence cost their 0 only: by the host's lengths if it knows them, else by their
/// bounds.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out or last overlaps itself), `Attribute` (a chunk of 0 or of more than 1024).
/// `Attribute` when lengths add up to more than tokens; `Data` when the device finds that, or one that is negative or above
/// its bound.
///
/// # Composition
/// In f32, a run of tokens at a time so that scratch `[batch, tokens, heads, head_dim, state]` stays below 64 MiB:
/// unary exponential of `Δ·a`, outer products of `Δ·x` and b, `scan` in its linear form from the state before,
/// products with c and a sum over the state; then d, cast to out.
///
/// # Source
/// Dao and Gu, "Transformers are SSMs", 2024, section 6; `mamba_chunk_scan_combined` of the reference code without
/// its gate.
#[derive(Clone, Debug, PartialEq)]
pub struct SsdScanSpec {
    x: TensorSpec,
    delta: TensorSpec,
    a: TensorSpec,
    b: TensorSpec,
    c: TensorSpec,
    d: Option<TensorSpec>,
    delta_bias: Option<TensorSpec>,
    lens: Option<LensSpec>,
    initial: Option<TensorSpec>,
    out: TensorSpec,
    last: Option<TensorSpec>,
    softplus: bool,
    chunk: usize,
}

const OP: &str = "ssd_scan";

impl SsdScanSpec {
    /// The recurrence alone, from a state of 0.
    pub fn new(
        x: &TensorSpec,
        delta: &TensorSpec,
        a: &TensorSpec,
        b: &TensorSpec,
        c: &TensorSpec,
        out: &TensorSpec,
    ) -> Result<Self> {
        let want = Self::out_spec(x)?;
        let (batch, tokens, heads) = (x.dims()[0], x.dims()[1], x.dims()[2]);
        expect_parameter(OP, "delta", delta, &[batch, tokens, heads], x)?;
        expect_parameter(OP, "a", a, &[heads], x)?;
        expect_rank(OP, "b", b, 4)?;
        let (groups, state) = (b.dims()[2], b.dims()[3]);
        for (arg, factor) in [("b", b), ("c", c)] {
            expect_dims(OP, arg, factor, &[batch, tokens, groups, state])?;
            expect_dtype(OP, arg, factor, &[x.dtype()])?;
        }
        if heads != 0 && (groups == 0 || !heads.is_multiple_of(groups)) {
            let what = format!(
                "x is {}, b is {}: {heads} heads are no multiple of {groups} groups",
                x.shape(),
                b.shape()
            );
            return Err(OpError::shape(OP, what));
        }
        expect_dims(OP, "out", out, want.dims())?;
        expect_dtype(OP, "out", out, &[want.dtype()])?;
        expect_writable(OP, "out", out)?;
        Ok(Self {
            x: *x,
            delta: *delta,
            a: *a,
            b: *b,
            c: *c,
            d: None,
            delta_bias: None,
            lens: None,
            initial: None,
            out: *out,
            last: None,
            softplus: false,
            chunk: CHUNK,
        })
    }

    /// The result: contiguous, of x's extents and type.
    pub fn out_spec(x: &TensorSpec) -> Result<TensorSpec> {
        expect_rank(OP, "x", x, 4)?;
        expect_dtype(OP, "x", x, &FLOATS)?;
        Ok(x.to_contiguous())
    }

    /// The state of a call over x with such a b, contiguous.
    pub fn state_spec(x: &TensorSpec, b: &TensorSpec) -> Result<TensorSpec> {
        expect_rank(OP, "x", x, 4)?;
        expect_rank(OP, "b", b, 4)?;
        TensorSpec::of(DType::F32, &[x.dims()[0], x.dims()[2], x.dims()[3], b.dims()[3]])
    }

    /// Adds `d · x` to the result.
    pub fn with_d(mut self, d: &TensorSpec) -> Result<Self> {
        expect_parameter(OP, "d", d, &[self.heads()], &self.x)?;
        self.d = Some(*d);
        Ok(self)
    }

    /// Adds `delta_bias` to every step size.
    pub fn with_delta_bias(mut self, delta_bias: &TensorSpec) -> Result<Self> {
        expect_parameter(OP, "delta_bias", delta_bias, &[self.heads()], &self.x)?;
        self.delta_bias = Some(*delta_bias);
        Ok(self)
    }

    /// Takes `ln(1 + e^x)` of every step size, behind its bias.
    pub fn with_softplus(mut self) -> Self {
        self.softplus = true;
        self
    }

    /// Works on so many tokens at a time.
    pub fn with_chunk(mut self, chunk: usize) -> Result<Self> {
        if chunk == 0 || chunk > MAX_CHUNK {
            let what = format!("is {chunk}, expected 1 to {MAX_CHUNK}");
            return Err(OpError::attribute(OP, "chunk", what));
        }
        self.chunk = chunk;
        Ok(self)
    }

    /// Says that the tokens of `lens.count()` sequences lie one behind the other in the one row of x; states have an
    /// entry for each of them, and are set after this.
    pub fn with_lens(mut self, lens: &LensSpec) -> Result<Self> {
        expect_packed(OP, "x", &self.x, lens)?;
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
        [self.batch(), self.heads(), self.head_dim(), self.state()]
    }

    /// Inputs.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// Step sizes.
    pub fn delta(&self) -> &TensorSpec {
        &self.delta
    }
    /// The rate of each head.
    pub fn a(&self) -> &TensorSpec {
        &self.a
    }
    /// Factors of the inputs.
    pub fn b(&self) -> &TensorSpec {
        &self.b
    }
    /// Factors of the state.
    pub fn c(&self) -> &TensorSpec {
        &self.c
    }
    /// Factor of x in the result.
    pub fn d(&self) -> Option<&TensorSpec> {
        self.d.as_ref()
    }
    /// Added to the step sizes.
    pub fn delta_bias(&self) -> Option<&TensorSpec> {
        self.delta_bias.as_ref()
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
    /// Whether step sizes are softplus of what is given.
    pub fn has_softplus(&self) -> bool {
        self.softplus
    }
    /// Tokens that are worked on at a time.
    pub fn chunk(&self) -> usize {
        self.chunk
    }
    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.lens.as_ref().map_or(self.x.dims()[0], LensSpec::count)
    }
    /// Tokens of each sequence, of all together with [`Self::lens`].
    pub fn tokens(&self) -> usize {
        self.x.dims()[1]
    }
    /// Number of heads.
    pub fn heads(&self) -> usize {
        self.x.dims()[2]
    }
    /// Rows of a head's state.
    pub fn head_dim(&self) -> usize {
        self.x.dims()[3]
    }
    /// Number of groups of heads that share b and c.
    pub fn groups(&self) -> usize {
        self.b.dims()[2]
    }
    /// Columns of a head's state.
    pub fn state(&self) -> usize {
        self.b.dims()[3]
    }
}

impl Contract for SsdScanSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        let mut read = |name: &'static str, spec: Option<&'a TensorSpec>| {
            if let Some(spec) = spec {
                visit(Operand { name, spec, access: Access::Read });
            }
        };
        read("x", Some(&self.x));
        read("delta", Some(&self.delta));
        read("a", Some(&self.a));
        read("b", Some(&self.b));
        read("c", Some(&self.c));
        read("d", self.d.as_ref());
        read("delta_bias", self.delta_bias.as_ref());
        read("lens", self.lens.as_ref().map(LensSpec::device));
        read("initial", self.initial.as_ref());
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
        if let Some(spec) = &self.last {
            visit(Operand { name: "last", spec, access: Access::Write });
        }
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        &[("last", "initial")]
    }

    fn cost(&self) -> Cost {
        let (rows, columns) = (self.head_dim() as u64, self.state() as u64);
        let mut each = rows.saturating_mul(5 * columns + 1) + 3;
        for (present, operations) in
            [(self.delta_bias.is_some(), 1), (self.softplus, 4), (self.d.is_some(), 2 * rows)]
        {
            each = each.saturating_add(if present { operations } else { 0 });
        }
        let whole = streaming_cost(self, each.saturating_mul(self.delta.numel() as u64));
        let rows = [&self.x, &self.delta, &self.b, &self.c].map(Some);
        of_sequences(whole, self.lens.as_ref(), self.tokens(), &rows)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let mut inputs = Inputs::of(inputs);
        let [x, delta, a, b, c] = core::array::from_fn(|_| inputs.next());
        let d = inputs.optional(&self.d);
        let bias = inputs.optional(&self.delta_bias);
        let (lens, initial) = (inputs.lens(&self.lens), inputs.optional(&self.initial));
        let [batch, heads, rows, columns] = self.state_dims();
        let mut h = initial.map_or_else(|| vec![0.0; batch * heads * rows * columns], <[f64]>::to_vec);
        let mut out = vec![0.0; x.len()];
        let sequences = sequences(batch, self.tokens(), lens);
        for (sequence, row) in rows_of(&sequences) {
            for head in 0..heads {
                let group = row * self.groups() + head / (heads / self.groups());
                let [b, c] = [b, c].map(|factor| &factor[group * columns..][..columns]);
                let mut step = delta[row * heads + head] + bias.map_or(0.0, |bias| bias[head]);
                if self.softplus {
                    step = softplus(step);
                }
                let decay = (step * a[head]).exp();
                for p in 0..rows {
                    let x = x[(row * heads + head) * rows + p];
                    let state = ((sequence * heads + head) * rows + p) * columns;
                    let mut sum = d.map_or(0.0, |d| d[head] * x);
                    for n in 0..columns {
                        let h = &mut h[state + n];
                        *h = decay * *h + step * x * b[n];
                        sum += c[n] * *h;
                    }
                    out[(row * heads + head) * rows + p] = sum;
                }
            }
        }
        match self.last {
            Some(_) => vec![out, h],
            None => vec![out],
        }
    }

    /// As for the selective scan: the state errs as `recurrence_error` says, the result is a sum over the state of
    /// numbers with independent errors, `√state` times the one, and `2·(state + 8)` roundings. By chunks the order is
    /// another one: scores are sums over the state, then there is a sum over at most 32 tokens that still matter; its
    /// roundings are those of the recurrence, of terms √state as large.
    fn tolerance(&self) -> Vec<Tolerance> {
        let h = recurrence_error(self.tokens());
        let terms = self.state() as f64;
        let sum = 2.0 * (terms + 8.0) * DType::F32.unit_roundoff();
        let out = Tolerance::rounded_to(self.out.dtype(), terms.sqrt() * h + sum);
        let out = out.plus(Tolerance { abs: 0.0, rel: 8.0 * DType::F32.unit_roundoff() });
        match self.last {
            Some(_) => vec![out, Tolerance { abs: h, rel: 4.0 * DType::F32.unit_roundoff() }],
            None => vec![out],
        }
    }
}

impl Cases for SsdScanSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        // Batch, tokens, heads, head_dim, groups, state; chunk.
        let shapes: [(&str, [usize; 6], usize); 18] = [
            ("no_batch", [0, 5, 2, 4, 1, 8], CHUNK),
            ("no_tokens", [2, 0, 2, 5, 1, 8], CHUNK),
            ("no_heads", [2, 3, 0, 4, 1, 8], CHUNK),
            ("no_rows", [2, 3, 2, 0, 1, 8], CHUNK),
            ("no_state", [2, 3, 2, 5, 1, 0], CHUNK),
            ("one", [1, 1, 1, 1, 1, 1], CHUNK),
            ("one_token", [3, 1, 4, 24, 2, 16], CHUNK),
            ("few_tokens", [1, 5, 2, 9, 1, 13], CHUNK),
            ("chunk_1", [1, 11, 2, 9, 1, 13], 1),
            ("chunk_5", [2, 23, 2, 9, 1, 13], 5),
            ("before_a_boundary", [1, 31, 3, 17, 1, 16], 16),
            ("on_a_boundary", [1, 32, 3, 17, 1, 16], 16),
            ("behind_a_boundary", [1, 33, 3, 17, 1, 16], 16),
            ("one_chunk", [1, 40, 6, 33, 2, 21], 64),
            ("unaligned", [2, 37, 4, 19, 4, 30], 12),
            ("default_chunk", [1, 150, 2, 16, 1, 16], CHUNK),
            ("typical", [1, 70, 8, 64, 1, 128], 32),
            ("long_chunk", [1, 300, 1, 8, 1, 8], MAX_CHUNK),
        ];
        for dtype in FLOATS {
            let of = |dims: &[usize]| TensorSpec::of(dtype, dims);
            let over =
                |[batch, tokens, heads, rows, groups, columns]: [usize; 6], parameter| -> Result<Self> {
                    let (x, factor) =
                        (of(&[batch, tokens, heads, rows])?, of(&[batch, tokens, groups, columns])?);
                    let step = TensorSpec::of(parameter, &[batch, tokens, heads])?;
                    Self::new(&x, &step, &TensorSpec::of(parameter, &[heads])?, &factor, &factor, &x)
                };
            let full = |spec: Self| -> Result<Self> {
                let state = TensorSpec::of(DType::F32, &spec.state_dims())?;
                let each = spec.a.to_contiguous();
                let spec = spec.with_d(&each)?.with_delta_bias(&each)?.with_softplus();
                spec.with_initial(&state)?.with_last(&state)
            };
            // Rates below 0 and steps above: states forget.
            let case = |name: String, spec: Self| {
                let steps = if spec.softplus { Fill::Unit } else { Fill::Range(0.0, 1.0) };
                let case = Case::new(format!("{OP}/{dtype}/{name}"), spec);
                case.fill("a", Fill::Range(-2.0, -0.5)).fill("delta", steps)
            };
            let push = |cases: &mut Vec<Case<Self>>, name: String, spec: Self| cases.push(case(name, spec));
            for (name, dims, chunk) in shapes {
                let spec = over(dims, dtype)?.with_chunk(chunk)?;
                push(&mut cases, name.into(), spec);
                push(&mut cases, format!("{name}_full"), full(over(dims, DType::F32)?.with_chunk(chunk)?)?);
            }
            for batch in &RAGGED {
                let dims = [1, batch.tokens(), 4, 9, 2, 13];
                let spec = over(dims, DType::F32)?.with_chunk(16)?.with_lens(&batch.spec(OP)?)?;
                cases.push(batch.fill(case(format!("lens/{}", batch.name), full(spec)?)));
            }
            // x, b and c parts of one projection; results by head, states by column.
            for (name, tokens) in [("strided", 27), ("strided_step", 1)] {
                let inner = of(&[2, tokens, 80])?;
                let part = |start, len, dims: &[usize]| inner.narrow(2, start, len)?.reshape(dims);
                let spec = Self::new(
                    &part(3, 36, &[2, tokens, 4, 9])?,
                    &of(&[2, 4, tokens])?.transpose(1, 2)?,
                    &of(&[4, 2])?.select(1, 1)?,
                    &part(39, 20, &[2, tokens, 2, 10])?,
                    &part(60, 20, &[2, tokens, 2, 10])?,
                    &of(&[2, 4, tokens, 9])?.transpose(1, 2)?,
                )?;
                let state = TensorSpec::of(DType::F32, &[2, 4, 10, 9])?.transpose(2, 3)?;
                let window = TensorSpec::of(DType::F32, &[2, 4, 9, 16])?.narrow(3, 3, 10)?;
                push(&mut cases, name.into(), spec.with_initial(&window)?.with_last(&state)?.with_chunk(8)?);
            }
            // A NaN and an infinity in x: later tokens of their two columns, and nothing else.
            let spec = full(over([1, 13, 2, 12, 1, 13], dtype)?)?.with_chunk(8)?;
            let numbers = (0..13 * 24).map(|i| match i {
                // Token 2, head 0, row 5; token 10, head 1, row 7.
                53 => f64::NAN,
                259 => f64::INFINITY,
                i => f64::from(i % 9) / 4.0 - 1.0,
            });
            let positive = || Fill::Range(0.25, 1.0);
            let special = Case::new(format!("{OP}/{dtype}/special"), spec).fill("a", Fill::Range(-2.0, -0.5));
            let special = special.fill("x", Fill::Values(numbers.collect()));
            cases.push(special.fill("b", positive()).fill("c", positive()).fill("d", positive()));
            // Steps of very unequal size: what a difference of long sums loses would show.
            let steps = (0..64).map(|t| if t < 32 { 8.0 } else { 0.01 }).collect();
            let uneven = over([1, 64, 1, 16, 1, 16], DType::F32)?.with_chunk(64)?;
            let uneven = Case::new(format!("{OP}/{dtype}/uneven_steps"), uneven);
            cases.push(
                uneven
                    .fill("a", Fill::Range(-16.0, -15.0))
                    .fill("delta", Fill::Values(steps))
                    .fill("x", Fill::Range(-0.1, 0.1)),
            );
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssm::SelectiveScanSpec;

    fn f32s(dims: &[usize]) -> TensorSpec {
        TensorSpec::of(DType::F32, dims).unwrap()
    }

    fn spec([batch, tokens, heads, rows, groups, columns]: [usize; 6]) -> SsdScanSpec {
        let (x, factor) = (f32s(&[batch, tokens, heads, rows]), f32s(&[batch, tokens, groups, columns]));
        SsdScanSpec::new(&x, &f32s(&[batch, tokens, heads]), &f32s(&[heads]), &factor, &factor, &x).unwrap()
    }

    #[test]
    fn two_steps_by_hand() {
        let half = 0.5f64.ln();
        let state = f32s(&[1, 1, 1, 2]);
        let spec = spec([1, 2, 1, 1, 1, 2]).with_initial(&state).unwrap().with_last(&state).unwrap();
        let spec = spec.with_d(&f32s(&[1])).unwrap();
        let got = spec.reference(&[
            &[3.0, 1.0],
            &[1.0, 2.0],
            &[half],
            &[1.0, 0.0, 1.0, 2.0],
            &[1.0, 1.0, 1.0, -1.0],
            &[10.0],
            &[8.0, 16.0],
        ]);
        // h = [8/2 + 3, 16/2], then [7/4 + 2, 8/4 + 4].
        let want = [[15.0 + 30.0, 3.75 - 6.0 + 10.0], [3.75, 6.0]];
        for (got, want) in got.iter().zip(want) {
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-13), "{got:?}");
        }
    }

    #[test]
    fn a_head_is_channels_of_a_selective_scan_with_one_rate() {
        let (tokens, heads, rows, columns) = (6, 2, 3, 4);
        let draw = |n: usize, low, high, seed| Fill::Range(low, high).draw(&f32s(&[n]), seed);
        let x = draw(tokens * heads * rows, -1.0, 1.0, 1);
        let (delta, a) = (draw(tokens * heads, 0.0, 1.0, 2), draw(heads, -2.0, -0.1, 3));
        let (b, c) = (draw(tokens * columns, -1.0, 1.0, 4), draw(tokens * columns, -1.0, 1.0, 5));
        let h = draw(heads * rows * columns, -1.0, 1.0, 6);
        let state = f32s(&[1, heads, rows, columns]);
        let ssd = spec([1, tokens, heads, rows, 1, columns]).with_initial(&state).unwrap();
        let got = ssd.with_last(&state).unwrap().reference(&[&x, &delta, &a, &b, &c, &h]);
        let (channels, state) = (heads * rows, f32s(&[1, heads * rows, columns]));
        let (x_spec, factor) = (f32s(&[1, tokens, channels]), f32s(&[1, tokens, columns]));
        let rates = f32s(&[channels, columns]);
        let scan = SelectiveScanSpec::new(&x_spec, &x_spec, &rates, &factor, &factor, &x_spec).unwrap();
        let scan = scan.with_initial(&state).unwrap().with_last(&state).unwrap();
        let wide: Vec<f64> = delta.iter().flat_map(|&step| vec![step; rows]).collect();
        let rates: Vec<f64> = a.iter().flat_map(|&rate| vec![rate; rows * columns]).collect();
        let want = scan.reference(&[&x, &wide, &rates, &b, &c, &h]);
        for (got, want) in got.iter().zip(&want) {
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-14), "{got:?} {want:?}");
        }
    }

    #[test]
    fn heads_of_a_group_share_its_factors() {
        let x = [1.0; 4];
        let got = spec([1, 1, 4, 1, 2, 1]).reference(&[&x, &x, &[0.0; 4], &[2.0, 3.0], &[1.0, 10.0]]);
        assert_eq!(got, [vec![2.0, 2.0, 30.0, 30.0]]);
    }

    #[test]
    fn bad_arguments_are_refused() {
        let (x, delta, a) = (f32s(&[1, 3, 4, 2]), f32s(&[1, 3, 4]), f32s(&[4]));
        let new = |groups| {
            let factor = f32s(&[1, 3, groups, 5]);
            SsdScanSpec::new(&x, &delta, &a, &factor, &factor, &x)
        };
        let e = new(3).unwrap_err();
        let want = "ssd_scan: x is [1, 3, 4, 2], b is [1, 3, 3, 5]: 4 heads are no multiple of 3 groups";
        assert_eq!(e.to_string(), want);
        assert!(new(0).is_err());
        assert!(new(2).unwrap().with_chunk(0).is_err() && new(2).unwrap().with_chunk(1025).is_err());
        assert!(new(2).unwrap().with_initial(&f32s(&[1, 4, 5, 2])).is_err());
    }

    #[test]
    fn the_cost_is_that_of_the_recurrence() {
        let cost = spec([1, 10, 2, 4, 1, 8]).cost();
        assert_eq!(cost.flops, 20 * (4 * 8 * 5 + 4 + 3));
        assert_eq!(cost.bytes_read, 4 * (80 + 20 + 2 + 80 + 80));
    }

    #[test]
    fn every_case_is_legal() {
        assert!(SsdScanSpec::cases().unwrap().len() > 100);
    }
}
