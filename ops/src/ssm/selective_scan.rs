//! The selective scan of Mamba: a diagonal recurrence for every channel, whose step size, input and output
//! factors come from the data.

use super::lens::{RAGGED, expect_packed, of_sequences, sequences};
use super::{FLOATS, Inputs, expect_parameter, expect_state, recurrence_error, silu, softplus};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, LensSpec, Operand, Result, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_rank, expect_writable, streaming_cost,
};

/// Runs a diagonal state-space recurrence whose parameters depend on the data.
///
/// `h[n] = e^(Δ·a[d, n]) · h[n] + Δ · b[t, n] · x[t, d]` and `out[t, d] = (Σ_n c[t, n] · h[n] + d[d] · x[t, d]) · g`,
/// for every sequence and channel d with a state h of its own; Δ is `delta[t, d] + delta_bias[d]`, or softplus of
/// it, and g is `silu(z[t, d])`, or 1 without z.
///
/// h begins as initial, or as 0, and ends as last: a call over a sequence gives what calls over its parts give.
///
/// # Shapes
/// x, delta, z and out `[batch, tokens, channels]`, a `[channels, state]`, b and c `[batch, tokens, state]`, d and
/// delta_bias `[channels]`, initial and last `[batch, channels, state]`. Any extent may be zero; without tokens
/// last is initial.
///
/// With lens (i32, `[batch]`, on the device) x, delta, b, c, z and out are `[1, tokens, ..]` and have the tokens of all sequences one behind the
/// other, first `lens[0]` of sequence 0; states stay one a sequence. What lies behind the last sequence is not read,
/// and out is 0 there.
///
/// # DTypes
/// x f32, f16 or bf16; delta, b, c, z and out of x's type; a, d and delta_bias of x's type or f32; initial and last
/// f32. Computed in f32, rounded once. NaN and infinities take their course through the formula: they reach later
/// tokens of their channel, never earlier ones, and through b and c every channel of their sequence.
///
/// # Layout
/// Any strides. out may be x, and last may be initial (in place).
///
/// # Determinism
/// `BatchInvariant`: a channel depends on its own sequence only. Sums over the state are in a fixed order.
///
/// # Cost
/// `8·state + 2` operations for each element of x (the exponential counts as two), 1 more for delta_bias, 4 more
/// for softplus, 2 more for d, 5 more for z; each operand is moved once.
/// With lens, tokens behind the last sequence cost their 0 only: by the host's lengths if it knows them, else by their
/// bounds.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out or last overlaps itself).
/// `Attribute` when lengths add up to more than tokens; `Data` when the device finds that, or one that is negative or above
/// its bound.
///
/// # Composition
/// In f32, a run of tokens at a time so that scratch `[batch, tokens, channels, state]` stays below 64 MiB: unary
/// exponential of the products `Δ·a`, products with b, `scan` in its linear form from the state before, products
/// with c and a sum over the state; then d, silu of z, cast to out.
///
/// # Source
/// Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023; `selective_scan_fn` of the
/// reference code. Softplus is `ln(1 + e^x)` throughout: that code's switch to x above 20 is the same in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct SelectiveScanSpec {
    x: TensorSpec,
    delta: TensorSpec,
    a: TensorSpec,
    b: TensorSpec,
    c: TensorSpec,
    d: Option<TensorSpec>,
    z: Option<TensorSpec>,
    delta_bias: Option<TensorSpec>,
    lens: Option<LensSpec>,
    initial: Option<TensorSpec>,
    out: TensorSpec,
    last: Option<TensorSpec>,
    softplus: bool,
}

const OP: &str = "selective_scan";

impl SelectiveScanSpec {
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
        let (batch, tokens, channels) = (x.dims()[0], x.dims()[1], x.dims()[2]);
        expect_dims(OP, "delta", delta, x.dims())?;
        expect_dtype(OP, "delta", delta, &[x.dtype()])?;
        expect_rank(OP, "a", a, 2)?;
        let state = a.dims()[1];
        expect_parameter(OP, "a", a, &[channels, state], x)?;
        for (arg, factor) in [("b", b), ("c", c)] {
            expect_dims(OP, arg, factor, &[batch, tokens, state])?;
            expect_dtype(OP, arg, factor, &[x.dtype()])?;
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
            z: None,
            delta_bias: None,
            lens: None,
            initial: None,
            out: *out,
            last: None,
            softplus: false,
        })
    }

    /// The result: contiguous, of x's extents and type.
    pub fn out_spec(x: &TensorSpec) -> Result<TensorSpec> {
        expect_rank(OP, "x", x, 3)?;
        expect_dtype(OP, "x", x, &FLOATS)?;
        Ok(x.to_contiguous())
    }

    /// The state of a call over x with such an a, contiguous.
    pub fn state_spec(x: &TensorSpec, a: &TensorSpec) -> Result<TensorSpec> {
        expect_rank(OP, "x", x, 3)?;
        expect_rank(OP, "a", a, 2)?;
        TensorSpec::of(DType::F32, &[x.dims()[0], x.dims()[2], a.dims()[1]])
    }

    /// Adds `d · x` to the result.
    pub fn with_d(mut self, d: &TensorSpec) -> Result<Self> {
        expect_parameter(OP, "d", d, &[self.channels()], &self.x)?;
        self.d = Some(*d);
        Ok(self)
    }

    /// Multiplies the result by `silu(z)`.
    pub fn with_z(mut self, z: &TensorSpec) -> Result<Self> {
        expect_dims(OP, "z", z, self.x.dims())?;
        expect_dtype(OP, "z", z, &[self.x.dtype()])?;
        self.z = Some(*z);
        Ok(self)
    }

    /// Adds `delta_bias` to every step size.
    pub fn with_delta_bias(mut self, delta_bias: &TensorSpec) -> Result<Self> {
        expect_parameter(OP, "delta_bias", delta_bias, &[self.channels()], &self.x)?;
        self.delta_bias = Some(*delta_bias);
        Ok(self)
    }

    /// Takes `ln(1 + e^x)` of every step size, behind its bias.
    pub fn with_softplus(mut self) -> Self {
        self.softplus = true;
        self
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

    fn state_dims(&self) -> [usize; 3] {
        [self.batch(), self.channels(), self.state()]
    }

    /// Inputs.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// Step sizes.
    pub fn delta(&self) -> &TensorSpec {
        &self.delta
    }
    /// Rates of each channel's state.
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
    /// The gate.
    pub fn z(&self) -> Option<&TensorSpec> {
        self.z.as_ref()
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
    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.lens.as_ref().map_or(self.x.dims()[0], LensSpec::count)
    }
    /// Tokens of each sequence, of all together with [`Self::lens`].
    pub fn tokens(&self) -> usize {
        self.x.dims()[1]
    }
    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.x.dims()[2]
    }
    /// Numbers in a channel's state.
    pub fn state(&self) -> usize {
        self.a.dims()[1]
    }
}

impl Contract for SelectiveScanSpec {
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
        read("z", self.z.as_ref());
        read("delta_bias", self.delta_bias.as_ref());
        read("lens", self.lens.as_ref().map(LensSpec::device));
        read("initial", self.initial.as_ref());
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
        if let Some(spec) = &self.last {
            visit(Operand { name: "last", spec, access: Access::Write });
        }
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        &[("out", "x"), ("last", "initial")]
    }

    fn cost(&self) -> Cost {
        let mut each = 8 * self.state() as u64 + 2;
        for (present, operations) in
            [(self.delta_bias.is_some(), 1), (self.softplus, 4), (self.d.is_some(), 2), (self.z.is_some(), 5)]
        {
            each += if present { operations } else { 0 };
        }
        let whole = streaming_cost(self, each.saturating_mul(self.x.numel() as u64));
        let rows = [Some(&self.x), Some(&self.delta), Some(&self.b), Some(&self.c), self.z.as_ref()];
        of_sequences(whole, self.lens.as_ref(), self.tokens(), &rows)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let mut inputs = Inputs::of(inputs);
        let [x, delta, a, b, c] = core::array::from_fn(|_| inputs.next());
        let (d, z) = (inputs.optional(&self.d), inputs.optional(&self.z));
        let bias = inputs.optional(&self.delta_bias);
        let (lens, initial) = (inputs.lens(&self.lens), inputs.optional(&self.initial));
        let [batch, channels, state] = self.state_dims();
        let mut h = initial.map_or_else(|| vec![0.0; batch * channels * state], <[f64]>::to_vec);
        let mut out = vec![0.0; x.len()];
        for (sequence, (first, tokens)) in sequences(batch, self.tokens(), lens).into_iter().enumerate() {
            // Elements lie by token, so every channel's tokens come in order.
            for i in first * channels..(first + tokens) * channels {
                let (row, channel) = (i / channels, i % channels);
                let h = &mut h[(sequence * channels + channel) * state..][..state];
                let mut step = delta[i] + bias.map_or(0.0, |bias| bias[channel]);
                if self.softplus {
                    step = softplus(step);
                }
                let mut sum = 0.0;
                for (n, h) in h.iter_mut().enumerate() {
                    *h = (step * a[channel * state + n]).exp() * *h + step * b[row * state + n] * x[i];
                    sum += c[row * state + n] * *h;
                }
                sum += d.map_or(0.0, |d| d[channel] * x[i]);
                out[i] = z.map_or(sum, |z| sum * silu(z[i]));
            }
        }
        match self.last {
            Some(_) => vec![out, h],
            None => vec![out],
        }
    }

    /// The state errs as `recurrence_error` says; the result is a sum over the state, whose errors are
    /// independent, and of products of numbers up to a few units: `√state` times the one, and `2·(state + 8)`
    /// roundings for the other. Then d, the gate (whose slope is at most 1.1), and one rounding to out's type.
    fn tolerance(&self) -> Vec<Tolerance> {
        let h = recurrence_error(self.tokens());
        let terms = self.state() as f64;
        let sum = 2.0 * (terms + 8.0) * DType::F32.unit_roundoff();
        let out = Tolerance::rounded_to(self.out.dtype(), 1.1 * (terms.sqrt() * h + sum));
        let out = out.plus(Tolerance { abs: 0.0, rel: 16.0 * DType::F32.unit_roundoff() });
        match self.last {
            Some(_) => vec![out, Tolerance { abs: h, rel: 4.0 * DType::F32.unit_roundoff() }],
            None => vec![out],
        }
    }
}

impl Cases for SelectiveScanSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        // Batch, tokens, channels, state.
        let shapes: [(&str, [usize; 4]); 14] = [
            ("no_batch", [0, 5, 7, 16]),
            ("no_tokens", [2, 0, 5, 16]),
            ("no_channels", [2, 3, 0, 4]),
            ("no_state", [2, 3, 5, 0]),
            ("one", [1, 1, 1, 1]),
            ("one_token", [3, 1, 70, 16]),
            ("short_state", [2, 5, 17, 3]),
            ("unaligned", [2, 7, 33, 13]),
            ("eight", [1, 6, 24, 8]),
            ("typical", [2, 37, 80, 16]),
            ("state_64", [1, 9, 19, 64]),
            ("state_130", [1, 4, 35, 130]),
            ("long", [1, 515, 16, 16]),
            ("state_beyond_scratch", [1, 2, 2, 4100]),
        ];
        for dtype in FLOATS {
            let of = |dims: &[usize]| TensorSpec::of(dtype, dims);
            let over = |[batch, tokens, channels, state]: [usize; 4]| -> Result<Self> {
                let (x, factor) = (of(&[batch, tokens, channels])?, of(&[batch, tokens, state])?);
                Self::new(&x, &x, &of(&[channels, state])?, &factor, &factor, &x)
            };
            let full = |spec: Self, parameter: DType| -> Result<Self> {
                let (z, state) = (spec.x.to_contiguous(), TensorSpec::of(DType::F32, &spec.state_dims())?);
                let each = TensorSpec::of(parameter, &[spec.channels()])?;
                let spec = spec.with_d(&each)?.with_z(&z)?.with_delta_bias(&each)?.with_softplus();
                spec.with_initial(&state)?.with_last(&state)
            };
            // Rates below 0 and steps above: states forget.
            let case = |name: String, spec: Self| {
                let steps = if spec.softplus { Fill::Unit } else { Fill::Range(0.0, 1.0) };
                let case = Case::new(format!("{OP}/{dtype}/{name}"), spec);
                case.fill("a", Fill::Range(-2.0, -0.5)).fill("delta", steps)
            };
            let push = |cases: &mut Vec<Case<Self>>, name: String, spec: Self| cases.push(case(name, spec));
            for (name, dims) in shapes {
                push(&mut cases, name.into(), over(dims)?);
                push(&mut cases, format!("{name}_full"), full(over(dims)?, dtype)?);
            }
            for batch in &RAGGED {
                let spec = over([1, batch.tokens(), 35, 13])?.with_lens(&batch.spec(OP)?)?;
                cases.push(batch.fill(case(format!("lens/{}", batch.name), full(spec, dtype)?)));
            }
            push(&mut cases, "f32_parameters".into(), full(over([2, 9, 21, 16])?, DType::F32)?);
            // x and z halves of one projection, step, b and c parts of another; states by place.
            let (inner, factors) = (of(&[2, 11, 66])?, of(&[2, 11, 65])?);
            let part = |start, len| factors.narrow(2, start, len);
            let strided = Self::new(
                &inner.narrow(2, 0, 33)?,
                &part(0, 33)?,
                &of(&[16, 33])?.transpose(0, 1)?,
                &part(33, 16)?,
                &part(49, 16)?,
                &of(&[33, 11, 2])?.transpose(0, 2)?,
            )?;
            let state = TensorSpec::of(DType::F32, &[2, 16, 33])?.transpose(1, 2)?;
            let window = TensorSpec::of(DType::F32, &[2, 33, 20])?.narrow(2, 3, 16)?;
            let strided = strided.with_z(&inner.narrow(2, 33, 33)?)?.with_initial(&window)?;
            push(&mut cases, "strided".into(), strided.with_last(&state)?);
            // A NaN and an infinity in x: later tokens of their two channels, and nothing else.
            let spec = full(over([1, 6, 24, 13])?, dtype)?;
            let numbers = (0..6 * 24).map(|i| match i {
                53 => f64::NAN,
                79 => f64::INFINITY,
                i => f64::from(i % 9) / 4.0 - 1.0,
            });
            let special = Case::new(format!("{OP}/{dtype}/special"), spec);
            let special =
                special.fill("x", Fill::Values(numbers.collect())).fill("a", Fill::Range(-2.0, -0.5));
            let positive = || Fill::Range(0.25, 1.0);
            cases.push(special.fill("b", positive()).fill("c", positive()).fill("d", positive()));
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

    fn spec([batch, tokens, channels, state]: [usize; 4]) -> SelectiveScanSpec {
        let (x, factor) = (f32s(&[batch, tokens, channels]), f32s(&[batch, tokens, state]));
        SelectiveScanSpec::new(&x, &x, &f32s(&[channels, state]), &factor, &factor, &x).unwrap()
    }

    #[test]
    fn two_steps_by_hand() {
        // Rates that halve and quarter the state in one unit of time.
        let half = 0.5f64.ln();
        let state = f32s(&[1, 1, 2]);
        let spec = spec([1, 2, 1, 2]).with_initial(&state).unwrap().with_last(&state).unwrap();
        let got = spec.reference(&[
            &[3.0, 1.0],
            &[1.0, 2.0],
            &[half, 2.0 * half],
            &[1.0, 0.0, 1.0, 2.0],
            &[1.0, 1.0, 1.0, -1.0],
            &[8.0, 16.0],
        ]);
        // h = [8/2 + 3, 16/4], then [7/4 + 2, 4/16 + 4].
        let want = [[11.0, 3.75 - 4.25], [3.75, 4.25]];
        for (got, want) in got.iter().zip(want) {
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-14), "{got:?}");
        }
    }

    #[test]
    fn gate_bias_and_skip_by_hand() {
        let each = f32s(&[1]);
        let spec = spec([1, 1, 1, 1]).with_d(&each).unwrap().with_z(&f32s(&[1, 1, 1])).unwrap();
        let spec = spec.with_delta_bias(&each).unwrap().with_softplus();
        let got = spec.reference(&[&[2.0], &[0.25], &[-1.0], &[3.0], &[5.0], &[7.0], &[1.0], &[-0.25]]);
        // Δ = ln 2; h = Δ·3·2; (5h + 14)·silu(1).
        let want = (30.0 * 2f64.ln() + 14.0) / (1.0 + (-1f64).exp());
        assert!((got[0][0] - want).abs() < 1e-13, "{got:?} {want}");
    }

    #[test]
    fn a_sequence_may_be_cut_anywhere() {
        let dims = |tokens| [2, tokens, 3, 4];
        let fill = |n: usize, low: f64, high: f64, seed| Fill::Range(low, high).draw(&f32s(&[n]), seed);
        let (tokens, a) = (5, fill(12, -1.0, -0.1, 3));
        let streams = [(3, 0.0, 1.0), (3, 0.1, 1.0), (4, -1.0, 1.0), (4, -1.0, 1.0)]
            .map(|(width, low, high)| (width, fill(2 * tokens * width, low, high, width as u64)));
        let run = |from: usize, to: usize, h: &[f64]| {
            let state = f32s(&[2, 3, 4]);
            let spec = spec(dims(to - from)).with_initial(&state).unwrap().with_last(&state).unwrap();
            let cut = |(width, values): &(usize, Vec<f64>)| -> Vec<f64> {
                values.chunks(tokens * width).flat_map(|b| b[from * width..to * width].to_vec()).collect()
            };
            let [x, delta, b, c] = core::array::from_fn(|i| cut(&streams[i]));
            spec.reference(&[&x, &delta, &a, &b, &c, h])
        };
        let h = fill(24, -1.0, 1.0, 9);
        let whole = run(0, tokens, &h);
        for cut in 0..=tokens {
            let first = run(0, cut, &h);
            let second = run(cut, tokens, &first[1]);
            assert_eq!(second[1], whole[1], "{cut}");
            let tail: Vec<f64> = whole[0].chunks(tokens * 3).flat_map(|b| b[cut * 3..].to_vec()).collect();
            assert_eq!(second[0], tail, "{cut}");
        }
    }

    #[test]
    fn bad_arguments_are_refused() {
        let (x, a, factor) = (f32s(&[2, 3, 4]), f32s(&[4, 5]), f32s(&[2, 3, 5]));
        let new =
            |x: &TensorSpec, a: &TensorSpec, b: &TensorSpec| SelectiveScanSpec::new(x, x, a, b, &factor, x);
        assert!(new(&x, &a, &factor).is_ok());
        assert!(new(&x, &f32s(&[5, 4]), &factor).is_err());
        assert!(new(&x, &a, &f32s(&[2, 3, 4])).is_err());
        assert!(new(&TensorSpec::of(DType::F16, &[2, 3, 4]).unwrap(), &a, &factor).is_err());
        let half = TensorSpec::of(DType::F16, &[2, 4, 5]).unwrap();
        assert!(new(&x, &a, &factor).unwrap().with_initial(&half).is_err());
        assert!(new(&x, &a, &factor).unwrap().with_last(&f32s(&[2, 5, 4])).is_err());
        assert!(new(&x, &a, &factor).unwrap().with_z(&f32s(&[2, 3])).is_err());
    }

    #[test]
    fn the_cost_of_a_decode_step_is_mostly_its_state() {
        let state = f32s(&[1, 10, 16]);
        let spec = spec([1, 1, 10, 16]).with_initial(&state).unwrap().with_last(&state).unwrap();
        let cost = spec.cost();
        assert_eq!(cost.flops, 10 * (8 * 16 + 2));
        assert_eq!(cost.bytes_read, 4 * (10 + 10 + 160 + 16 + 16 + 160));
        assert_eq!(cost.bytes_written, 4 * (10 + 160));
    }

    #[test]
    fn every_case_is_legal() {
        assert!(SelectiveScanSpec::cases().unwrap().len() > 80);
    }
}
