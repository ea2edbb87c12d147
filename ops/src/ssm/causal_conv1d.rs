//! Short causal convolution of every channel with its own filter, the rows before the call being its state.

use super::lens::{RAGGED, expect_packed, of_sequences, sequences};
use super::{FLOATS, Inputs, expect_parameter, silu};
use crate::kernel::rounding::summed;
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, LensSpec, OpError, Operand, Result, TensorSpec,
    Tolerance, expect_dims, expect_dtype, expect_rank, expect_writable, streaming_cost,
};

/// The longest filter: beyond it a product by Fourier transform is the better algorithm.
pub const MAX_WIDTH: usize = 256;

/// Convolves every channel with a filter of its own that looks back.
///
/// `out[b, t, d] = act(bias[d] + Σ_j weight[d, j] · x[b, t − (width − 1) + j, d])`
///
/// Rows before the first come from initial, its last row being the one just before; without it they are 0. last
/// receives the last `width − 1` rows of initial followed by x, and so continues the sequence in a later call.
///
/// # Shapes
/// x and out `[batch, tokens, channels]`, weight `[channels, width]` with `1 ≤ width ≤ 256`, bias `[channels]`,
/// initial and last `[batch, width − 1, channels]`. Any extent but the width may be zero; without tokens last is
/// initial.
///
/// With lens (i32, `[batch]`, on the device) x and out are `[1, tokens, ..]` and have the tokens of all sequences one behind the
/// other, first `lens[0]` of sequence 0; states stay one a sequence. What lies behind the last sequence is not read,
/// and out is 0 there.
///
/// # DTypes
/// x f32, f16 or bf16; out, initial and last of x's type; weight and bias of x's type or f32. Sums in f32,
/// rounded once. NaN and infinities reach the rows whose filter covers them, and no others.
///
/// # Layout
/// Any strides. last may be initial (in place).
///
/// # Determinism
/// `BatchInvariant`: an element depends on its own window only.
///
/// # Cost
/// `2·width` operations an element, 1 more with a bias, 4 more with SiLU; each operand is moved once.
/// With lens, tokens behind the last sequence cost their 0 only: by the host's lengths if it knows them, else by their
/// bounds.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out or last overlaps itself).
/// `Attribute` when lengths add up to more than tokens; `Data` when the device finds that, or one that is negative or above
/// its bound.
///
/// # Composition
/// In f32: initial and x copied into one scratch sequence, of which every filter place is a view: binary products
/// with that place's weights and sums; bias, unary silu, cast to out; last is a copy of the sequence's end.
///
/// # Source
/// The convolution of Gu and Dao, "Mamba", 2023, section 3.4.
#[derive(Clone, Debug, PartialEq)]
pub struct CausalConv1dSpec {
    x: TensorSpec,
    weight: TensorSpec,
    bias: Option<TensorSpec>,
    lens: Option<LensSpec>,
    initial: Option<TensorSpec>,
    out: TensorSpec,
    last: Option<TensorSpec>,
    silu: bool,
}

const OP: &str = "causal_conv1d";

impl CausalConv1dSpec {
    /// The convolution alone, from rows of 0.
    pub fn new(x: &TensorSpec, weight: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        let want = Self::out_spec(x)?;
        expect_rank(OP, "weight", weight, 2)?;
        let width = weight.dims()[1];
        expect_parameter(OP, "weight", weight, &[x.dims()[2], width], x)?;
        if width == 0 || width > MAX_WIDTH {
            let what = format!("weight is {}, expected a width of 1 to {MAX_WIDTH}", weight.shape());
            return Err(OpError::shape(OP, what));
        }
        expect_dims(OP, "out", out, want.dims())?;
        expect_dtype(OP, "out", out, &[want.dtype()])?;
        expect_writable(OP, "out", out)?;
        Ok(Self {
            x: *x,
            weight: *weight,
            bias: None,
            lens: None,
            initial: None,
            out: *out,
            last: None,
            silu: false,
        })
    }

    /// The result: contiguous, of x's extents and type.
    pub fn out_spec(x: &TensorSpec) -> Result<TensorSpec> {
        expect_rank(OP, "x", x, 3)?;
        expect_dtype(OP, "x", x, &FLOATS)?;
        Ok(x.to_contiguous())
    }

    /// The rows before a call over x with such a weight, contiguous.
    pub fn state_spec(x: &TensorSpec, weight: &TensorSpec) -> Result<TensorSpec> {
        let spec = Self::new(x, weight, &Self::out_spec(x)?)?;
        TensorSpec::of(x.dtype(), &spec.state_dims())
    }

    /// Adds `bias[d]` to channel d.
    pub fn with_bias(mut self, bias: &TensorSpec) -> Result<Self> {
        expect_parameter(OP, "bias", bias, &[self.channels()], &self.x)?;
        self.bias = Some(*bias);
        Ok(self)
    }

    /// Applies `x / (1 + e^−x)` last.
    pub fn with_silu(mut self) -> Self {
        self.silu = true;
        self
    }

    /// Says that the tokens of `lens.count()` sequences lie one behind the other in the one row of x; states have an
    /// entry for each of them, and are set after this.
    pub fn with_lens(mut self, lens: &LensSpec) -> Result<Self> {
        expect_packed(OP, "x", &self.x, lens)?;
        self.lens = Some(lens.clone());
        for (arg, state) in [("initial", self.initial), ("last", self.last)] {
            if let Some(state) = state {
                self.expect_rows(arg, &state)?;
            }
        }
        Ok(self)
    }

    /// Continues behind these rows.
    pub fn with_initial(mut self, initial: &TensorSpec) -> Result<Self> {
        self.expect_rows("initial", initial)?;
        self.initial = Some(*initial);
        Ok(self)
    }

    /// Also writes the rows a later call continues behind.
    pub fn with_last(mut self, last: &TensorSpec) -> Result<Self> {
        self.expect_rows("last", last)?;
        expect_writable(OP, "last", last)?;
        self.last = Some(*last);
        Ok(self)
    }

    fn expect_rows(&self, arg: &'static str, got: &TensorSpec) -> Result<()> {
        expect_dims(OP, arg, got, &self.state_dims())?;
        expect_dtype(OP, arg, got, &[self.x.dtype()])
    }

    fn state_dims(&self) -> [usize; 3] {
        [self.batch(), self.width() - 1, self.channels()]
    }

    /// What is convolved.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// A filter for each channel, the newest row's factor last.
    pub fn weight(&self) -> &TensorSpec {
        &self.weight
    }
    /// Added to each channel.
    pub fn bias(&self) -> Option<&TensorSpec> {
        self.bias.as_ref()
    }
    /// Tokens of each sequence, if they differ.
    pub fn lens(&self) -> Option<&LensSpec> {
        self.lens.as_ref()
    }
    /// Rows before x.
    pub fn initial(&self) -> Option<&TensorSpec> {
        self.initial.as_ref()
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Rows before what follows x.
    pub fn last(&self) -> Option<&TensorSpec> {
        self.last.as_ref()
    }
    /// Whether SiLU comes last.
    pub fn has_silu(&self) -> bool {
        self.silu
    }
    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.lens.as_ref().map_or(self.x.dims()[0], LensSpec::count)
    }
    /// Rows of each sequence, of all together with [`Self::lens`].
    pub fn tokens(&self) -> usize {
        self.x.dims()[1]
    }
    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.x.dims()[2]
    }
    /// Rows that a filter covers.
    pub fn width(&self) -> usize {
        self.weight.dims()[1]
    }
}

impl Contract for CausalConv1dSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        visit(Operand { name: "weight", spec: &self.weight, access: Access::Read });
        if let Some(spec) = &self.bias {
            visit(Operand { name: "bias", spec, access: Access::Read });
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
        let each = 2 * self.width() as u64 + u64::from(self.bias.is_some()) + 4 * u64::from(self.silu);
        let whole = streaming_cost(self, each.saturating_mul(self.x.numel() as u64));
        of_sequences(whole, self.lens.as_ref(), self.tokens(), &[Some(&self.x)])
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let mut inputs = Inputs::of(inputs);
        let (x, weight) = (inputs.next(), inputs.next());
        let bias = inputs.optional(&self.bias);
        let lens = inputs.lens(&self.lens);
        let initial = inputs.optional(&self.initial);
        let (channels, before) = (self.channels(), self.width() - 1);
        let sequences = sequences(self.batch(), self.tokens(), lens);
        // Row `row` of initial followed by x.
        let at = |b: usize, row: usize, d: usize| match row.checked_sub(before) {
            Some(t) => x[(sequences[b].0 + t) * channels + d],
            None => initial.map_or(0.0, |rows| rows[(b * before + row) * channels + d]),
        };
        let (mut out, mut last) = (vec![0.0; x.len()], Vec::new());
        for (b, &(first, tokens)) in sequences.iter().enumerate() {
            for t in 0..tokens {
                for d in 0..channels {
                    let filter = &weight[d * self.width()..][..self.width()];
                    let sum: f64 = filter.iter().enumerate().map(|(j, w)| w * at(b, t + j, d)).sum();
                    let sum = sum + bias.map_or(0.0, |bias| bias[d]);
                    out[(first + t) * channels + d] = if self.silu { silu(sum) } else { sum };
                }
            }
            for row in tokens..tokens + before {
                last.extend((0..channels).map(|d| at(b, row, d)));
            }
        }
        match self.last {
            Some(_) => vec![out, last],
            None => vec![out],
        }
    }

    /// A sum of `width` products of numbers up to 1 and a bias. SiLU, whose slope is at most 1.1, within 4 ulp of a
    /// value up to that sum: four terms more cover both. The state is moved.
    fn tolerance(&self) -> Vec<Tolerance> {
        let out = summed(self.out.dtype(), self.width() + 1 + if self.silu { 4 } else { 0 });
        let silu = if self.silu { 8.0 * DType::F32.unit_roundoff() } else { 0.0 };
        let out = out.plus(Tolerance { abs: 0.0, rel: silu });
        match self.last {
            Some(_) => vec![out, Tolerance::EXACT],
            None => vec![out],
        }
    }
}

impl Cases for CausalConv1dSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        let shapes: [(&str, [usize; 3], usize); 13] = [
            ("no_batch", [0, 5, 7], 4),
            ("no_tokens", [2, 0, 5], 4),
            ("no_channels", [2, 3, 0], 4),
            ("one", [1, 1, 1], 1),
            ("one_token", [3, 1, 33], 4),
            ("within_the_filter", [2, 2, 19], 4),
            ("width_1", [2, 5, 17], 1),
            ("width_2", [2, 9, 17], 2),
            ("width_3", [1, 9, 65], 3),
            ("width_4", [2, 37, 80], 4),
            ("width_9", [1, 40, 21], 9),
            ("longest", [1, 300, 3], MAX_WIDTH),
            ("long", [1, 515, 16], 4),
        ];
        for dtype in FLOATS {
            let of = |dims: &[usize]| TensorSpec::of(dtype, dims);
            let full = |spec: Self, parameter: DType| -> Result<Self> {
                let state = TensorSpec::of(spec.x.dtype(), &spec.state_dims())?;
                let bias = TensorSpec::of(parameter, &[spec.channels()])?;
                spec.with_bias(&bias)?.with_silu().with_initial(&state)?.with_last(&state)
            };
            for (name, dims, width) in shapes {
                let x = of(&dims)?;
                let plain = Self::new(&x, &of(&[dims[2], width])?, &x)?;
                cases.push(Case::new(format!("{OP}/{dtype}/{name}"), plain.clone()));
                let continued = full(plain, dtype)?;
                cases.push(Case::new(format!("{OP}/{dtype}/{name}_continued"), continued));
            }
            for batch in &RAGGED {
                let x = of(&[1, batch.tokens(), 19])?;
                let plain = Self::new(&x, &of(&[19, 4])?, &x)?.with_lens(&batch.spec(OP)?)?;
                let case = Case::new(format!("{OP}/{dtype}/lens/{}", batch.name), full(plain, dtype)?);
                cases.push(batch.fill(case));
            }
            // A slice of a wider projection into rows that lie apart; filters and states by channel.
            let x = of(&[2, 11, 50])?.narrow(2, 3, 33)?;
            let out = of(&[33, 11, 2])?.transpose(0, 2)?;
            let plain = Self::new(&x, &of(&[4, 33])?.transpose(0, 1)?, &out)?;
            let state = of(&[2, 33, 3])?.transpose(1, 2)?;
            let strided = plain.clone().with_initial(&state)?.with_last(&state)?;
            cases.push(Case::new(format!("{OP}/{dtype}/strided"), full(plain, dtype)?));
            cases.push(Case::new(format!("{OP}/{dtype}/strided_state"), strided));
            let x = of(&[2, 13, 24])?;
            let wide = Self::new(&x, &TensorSpec::of(DType::F32, &[24, 4])?, &x)?;
            cases.push(Case::new(format!("{OP}/{dtype}/f32_weight"), full(wide, DType::F32)?));
            // One NaN and one infinity: three rows more of one channel each.
            let x = of(&[1, 13, 24])?;
            let numbers = (0..13 * 24).map(|i| match i {
                77 => f64::NAN,
                130 => f64::INFINITY,
                i => f64::from(i % 9) / 4.0 - 1.0,
            });
            let spec = Self::new(&x, &of(&[24, 4])?, &x)?;
            let fill = Fill::Values(numbers.collect());
            let positive = Fill::Range(0.25, 1.0);
            let case = Case::new(format!("{OP}/{dtype}/special"), full(spec, dtype)?);
            cases.push(case.fill("x", fill).fill("weight", positive));
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

    fn spec(tokens: usize) -> CausalConv1dSpec {
        let x = f32s(&[1, tokens, 1]);
        CausalConv1dSpec::new(&x, &f32s(&[1, 3]), &x).unwrap()
    }

    #[test]
    fn a_filter_by_hand_looks_back_and_its_last_factor_meets_the_newest_row() {
        let got = spec(4).reference(&[&[1.0, 2.0, 3.0, 4.0], &[100.0, 10.0, 1.0]]);
        assert_eq!(got, [vec![1.0, 12.0, 123.0, 234.0]]);
        let biased = spec(1).with_bias(&f32s(&[1])).unwrap().with_silu();
        let got = biased.reference(&[&[1.0], &[0.0, 0.0, 2.0], &[-1.0]]);
        assert!((got[0][0] - 1.0 / (1.0 + (-1f64).exp())).abs() < 1e-15);
    }

    #[test]
    fn a_sequence_may_be_cut_anywhere() {
        let (x, weight) = ([1.0, -2.0, 3.0, 5.0, -1.0], [0.5, 2.0, 1.0]);
        let state = f32s(&[1, 2, 1]);
        let part = |n: usize| spec(n).with_initial(&state).unwrap().with_last(&state).unwrap();
        let whole = part(5).reference(&[&x, &weight, &[7.0, 9.0]]);
        for cut in 0..=5 {
            let first = part(cut).reference(&[&x[..cut], &weight, &[7.0, 9.0]]);
            let second = part(5 - cut).reference(&[&x[cut..], &weight, &first[1]]);
            assert_eq!([first[0].clone(), second[0].clone()].concat(), whole[0], "{cut}");
            assert_eq!(second[1], whole[1], "{cut}");
        }
    }

    #[test]
    fn bad_arguments_are_refused() {
        let x = f32s(&[1, 4, 2]);
        let new = |weight: &TensorSpec| CausalConv1dSpec::new(&x, weight, &x);
        assert!(new(&f32s(&[3, 4])).is_err() && new(&f32s(&[2])).is_err());
        let e = new(&f32s(&[2, 0])).unwrap_err();
        assert_eq!(e.to_string(), "causal_conv1d: weight is [2, 0], expected a width of 1 to 256");
        assert!(new(&f32s(&[2, MAX_WIDTH + 1])).is_err());
        assert!(new(&f32s(&[2, 4])).unwrap().with_initial(&f32s(&[1, 4, 2])).is_err());
        let half = TensorSpec::of(DType::F16, &[1, 3, 2]).unwrap();
        assert!(new(&f32s(&[2, 4])).unwrap().with_last(&half).is_err());
        assert!(CausalConv1dSpec::new(&f32s(&[4, 2]), &f32s(&[2, 4]), &f32s(&[4, 2])).is_err());
    }

    #[test]
    fn the_cost_counts_the_filter_and_every_operand_once() {
        let cost = spec(10).with_bias(&f32s(&[1])).unwrap().with_silu().cost();
        assert_eq!((cost.flops, cost.bytes_read, cost.bytes_written), (10 * 11, 4 * (10 + 3 + 1), 40));
    }

    #[test]
    fn every_case_is_legal() {
        assert!(CausalConv1dSpec::cases().unwrap().len() > 80);
    }
}
