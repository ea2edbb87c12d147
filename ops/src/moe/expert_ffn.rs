//! The feed-forward network of a mixture of experts, from routed tokens to their sums, in one operator.

use super::experts::{ExpertNames, ExpertsSpec};
use crate::activation::SwigluSpec;
use crate::quant::linear::{expect_act_quant, expect_weight_dtype};
use crate::quant::{ActQuant, LinearSpec, PackedContent};
use crate::{
    Access, Contract, Cost, DType, OpError, Operand, Result, Shape, TensorSpec, Tolerance, expect_dims,
    expect_dtype, expect_rank, expect_writable, streaming_cost,
};

const OP: &str = "expert_ffn";

/// The names of the first product's weights.
pub const GATE_UP: ExpertNames = ExpertNames {
    dense: "gate_up",
    quant: ["gate_up.codes", "gate_up.scale", "gate_up.offset", "gate_up.outer", "gate_up.outer_offset"],
    packed: "gate_up.packed",
};

/// The names of the second product's weights.
pub const DOWN: ExpertNames = ExpertNames {
    dense: "down",
    quant: ["down.codes", "down.scale", "down.offset", "down.outer", "down.outer_offset"],
    packed: "down.packed",
};

/// Where gate and up lie among the outputs of the first product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GateUpOrder {
    /// All of the gate, then all of up.
    #[default]
    Halves,
    /// In turns, the gate first.
    Interleaved,
}

/// Sums for every token what its experts make of it.
///
/// `out[t, ..] = Σ_j weights[t, j] · (down[e] · swiglu(gate_up[e] · x[t, ..] + gate_up_bias[e]) + down_bias[e])` with
/// `e = expert_ids[t, j]`, over j with `e ≥ 0`
///
/// # Shapes
/// x `[T, H]`, expert_ids and weights `[T, k]`, gate_up `[E, 2·I, H]`, down `[E, N, I]` (N is H in most models),
/// gate_up_bias `[E, 2·I]`, down_bias `[E, N]`, out `[T, N]`. Any extent may be zero.
///
/// # DTypes
/// x f32, f16 or bf16; out of x's type or f32; weights and biases f32, expert_ids i32. Dense gate_up of x's type, or
/// f16 or bf16 with x f32; dense down f32, f16 or bf16. All between x and out is f32.
///
/// Where x and both weights are dense and of one type of 16 bits, a device may round to it what passes between the parts,
/// as models that compute in that type do: gate and up, the hidden row, and what an expert gives.
///
/// # Layout
/// Any strides; experts of any form may lie apart.
///
/// # Determinism
/// `RunToRun`: same bits for same shapes and routing. `BatchInvariant`: a token depends on its own row and its
/// experts only.
///
/// # Cost
/// For each place that is announced with [`ExpertFfnSpec::with_expected_places`], else for all T·k of them, `6·H·I`
/// operations (with `N = H`), the unit's `5·I` and more as in swiglu, `2·N` for the weighted sum, and one an element for
/// each bias. The weights of as many experts are read as there are places, at
/// most all of them: exact where tokens are spread evenly. Weights of experts without tokens are not read.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself), `Attribute` (the unit's as in swiglu, rounded activations as in
/// linear, of both products). An expert id below zero is padding and adds nothing; one of E or more is a data fault.
///
/// # Composition
/// moe_permute, grouped_gemm, swiglu, grouped_gemm, moe_unpermute.
///
/// # Source
/// Shazeer et al. 2017; the fused forms of vLLM and SGLang. The routing weight multiplies the output, as in
/// Mixtral; multiplying the hidden row, as DeepSeek-V4 does, is the same but for roundings.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertFfnSpec {
    x: TensorSpec,
    expert_ids: TensorSpec,
    weights: TensorSpec,
    gate_up: ExpertsSpec,
    down: ExpertsSpec,
    gate_up_bias: Option<TensorSpec>,
    down_bias: Option<TensorSpec>,
    order: GateUpOrder,
    limit: Option<f32>,
    alpha: f32,
    up_offset: f32,
    act_quant: ActQuant,
    expected_places: Option<usize>,
    out: TensorSpec,
}

impl ExpertFfnSpec {
    /// The network without biases, its unit plain SwiGLU of halves.
    pub fn new(
        x: &TensorSpec,
        expert_ids: &TensorSpec,
        weights: &TensorSpec,
        gate_up: &ExpertsSpec,
        down: &ExpertsSpec,
        out: &TensorSpec,
    ) -> Result<Self> {
        let want = Self::out_spec(x, gate_up, down)?;
        expect_rank(OP, "expert_ids", expert_ids, 2)?;
        expect_dims(OP, "expert_ids", expert_ids, &[x.dims()[0], expert_ids.dims()[1]])?;
        expect_dtype(OP, "expert_ids", expert_ids, &[DType::I32])?;
        if expert_ids.numel() > i32::MAX as usize {
            let what = format!("expert_ids is {}, expected fewer than 2^31 places", expert_ids.shape());
            return Err(OpError::shape(OP, what));
        }
        expect_dims(OP, "weights", weights, expert_ids.dims())?;
        expect_dtype(OP, "weights", weights, &[DType::F32])?;
        expect_dims(OP, "out", out, want.dims())?;
        expect_dtype(OP, "out", out, &[x.dtype(), DType::F32])?;
        expect_writable(OP, "out", out)?;
        Ok(Self {
            x: *x,
            expert_ids: *expert_ids,
            weights: *weights,
            gate_up: gate_up.clone(),
            down: down.clone(),
            gate_up_bias: None,
            down_bias: None,
            order: GateUpOrder::Halves,
            limit: None,
            alpha: 1.0,
            up_offset: 0.0,
            act_quant: ActQuant::None,
            expected_places: None,
            out: *out,
        })
    }

    /// The result: contiguous, of x's type.
    pub fn out_spec(x: &TensorSpec, gate_up: &ExpertsSpec, down: &ExpertsSpec) -> Result<TensorSpec> {
        expect_rank(OP, "x", x, 2)?;
        expect_weight_dtype(OP, x, gate_up.one())?;
        let fits = gate_up.k() == x.dims()[1]
            && gate_up.count() == down.count()
            && Some(gate_up.n()) == down.k().checked_mul(2);
        if !fits {
            let what = format!(
                "x is {}, gate_up [{}, {}, {}], down [{}, {}, {}]; expected [T, H], [E, 2·I, H], [E, N, I]",
                x.shape(),
                gate_up.count(),
                gate_up.n(),
                gate_up.k(),
                down.count(),
                down.n(),
                down.k()
            );
            return Err(OpError::shape(OP, what));
        }
        Ok(TensorSpec::new(x.dtype(), Shape::new(&[x.dims()[0], down.n()])?))
    }

    /// Adds `bias[E, 2·I]` to the first product.
    pub fn with_gate_up_bias(mut self, bias: &TensorSpec) -> Result<Self> {
        expect_dims(OP, "gate_up_bias", bias, &[self.gate_up.count(), self.gate_up.n()])?;
        expect_dtype(OP, "gate_up_bias", bias, &[DType::F32])?;
        self.gate_up_bias = Some(*bias);
        Ok(self)
    }

    /// Adds `bias[E, N]` to the second product, before the routing weight.
    pub fn with_down_bias(mut self, bias: &TensorSpec) -> Result<Self> {
        expect_dims(OP, "down_bias", bias, &[self.down.count(), self.down.n()])?;
        expect_dtype(OP, "down_bias", bias, &[DType::F32])?;
        self.down_bias = Some(*bias);
        Ok(self)
    }

    /// Says where gate and up lie.
    pub fn with_order(mut self, order: GateUpOrder) -> Self {
        self.order = order;
        self
    }

    /// Bounds the unit, as [`SwigluSpec::with_limit`].
    pub fn with_limit(mut self, limit: f32) -> Result<Self> {
        self.limit = Some(limit);
        self.unit(0).map(|_| self)
    }

    /// Multiplies the gate inside the sigmoid, as [`SwigluSpec::with_alpha`].
    pub fn with_alpha(mut self, alpha: f32) -> Result<Self> {
        self.alpha = alpha;
        self.unit(0).map(|_| self)
    }

    /// Adds to up, as [`SwigluSpec::with_up_offset`].
    pub fn with_up_offset(mut self, up_offset: f32) -> Result<Self> {
        self.up_offset = up_offset;
        self.unit(0).map(|_| self)
    }

    /// Announces how many places are no padding, for costs.
    pub fn with_expected_places(mut self, places: usize) -> Self {
        self.expected_places = Some(places.min(self.expert_ids.numel()));
        self
    }

    /// Sets the precision of the activations of both products, as in linear.
    pub fn with_act_quant(mut self, act_quant: ActQuant) -> Result<Self> {
        expect_act_quant(OP, self.gate_up.one(), act_quant)?;
        expect_act_quant(OP, self.down.one(), act_quant)?;
        self.act_quant = act_quant;
        Ok(self)
    }

    /// The same network over other tokens.
    ///
    /// # Errors
    /// As [`ExpertFfnSpec::new`].
    pub fn over(
        &self,
        x: &TensorSpec,
        expert_ids: &TensorSpec,
        weights: &TensorSpec,
        out: &TensorSpec,
    ) -> Result<Self> {
        let plain = Self::new(x, expert_ids, weights, &self.gate_up, &self.down, out)?;
        let [x, expert_ids, weights, out] = [plain.x, plain.expert_ids, plain.weights, plain.out];
        Ok(Self { x, expert_ids, weights, expected_places: None, out, ..self.clone() })
    }

    /// The same network over other forms of the same weights.
    ///
    /// # Errors
    /// As [`ExpertFfnSpec::new`] and [`ExpertFfnSpec::with_act_quant`], of the other forms.
    pub fn with_experts(&self, gate_up: &ExpertsSpec, down: &ExpertsSpec) -> Result<Self> {
        Self::new(&self.x, &self.expert_ids, &self.weights, gate_up, down, &self.out)?;
        let other = Self { gate_up: gate_up.clone(), down: down.clone(), ..self.clone() };
        other.with_act_quant(self.act_quant)
    }

    /// Rows of tokens.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// The experts of each token.
    pub fn expert_ids(&self) -> &TensorSpec {
        &self.expert_ids
    }
    /// How much each of them counts.
    pub fn weights(&self) -> &TensorSpec {
        &self.weights
    }
    /// Weights of the first product.
    pub fn gate_up(&self) -> &ExpertsSpec {
        &self.gate_up
    }
    /// Weights of the second product.
    pub fn down(&self) -> &ExpertsSpec {
        &self.down
    }
    /// What is added to the first product.
    pub fn gate_up_bias(&self) -> Option<&TensorSpec> {
        self.gate_up_bias.as_ref()
    }
    /// What is added to the second product.
    pub fn down_bias(&self) -> Option<&TensorSpec> {
        self.down_bias.as_ref()
    }
    /// Precision of the activations of both products.
    pub fn act_quant(&self) -> ActQuant {
        self.act_quant
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.x.dims()[0]
    }
    /// Experts of each token.
    pub fn top_k(&self) -> usize {
        self.expert_ids.dims()[1]
    }
    /// Places that count as no padding.
    pub fn expected_places(&self) -> usize {
        self.expected_places.unwrap_or(self.expert_ids.numel())
    }
    /// Width of the unit.
    pub fn inner(&self) -> usize {
        self.down.k()
    }

    /// The type that a device may round to what passes between the parts: f32 where it may not round it.
    pub fn between(&self) -> DType {
        let x = self.x.dtype();
        let of_one_type = [&self.gate_up, &self.down]
            .iter()
            .all(|experts| experts.one().content() == PackedContent::Dense(x));
        if of_one_type { x } else { DType::F32 }
    }

    /// The unit of so many rows: contiguous f32 `[rows, 2·I]` to `[rows, I]`.
    ///
    /// # Errors
    /// As [`SwigluSpec::fused`] and its attributes.
    pub fn unit(&self, rows: usize) -> Result<SwigluSpec> {
        self.unit_in(DType::F32, rows)
    }

    /// The same in another type.
    ///
    /// # Errors
    /// As [`ExpertFfnSpec::unit`].
    pub fn unit_in(&self, dtype: DType, rows: usize) -> Result<SwigluSpec> {
        let gate_up = TensorSpec::of(dtype, &[rows, self.gate_up.n()])?;
        let out = TensorSpec::of(dtype, &[rows, self.inner()])?;
        let unit = match self.order {
            GateUpOrder::Halves => SwigluSpec::fused(&gate_up, &out)?,
            GateUpOrder::Interleaved => SwigluSpec::interleaved(&gate_up, &out)?,
        };
        let unit = unit.with_alpha(self.alpha)?.with_up_offset(self.up_offset)?;
        match self.limit {
            Some(limit) => unit.with_limit(limit),
            None => Ok(unit),
        }
    }

    /// The first product of so many rows of `expert`, with the weight of the first expert: contiguous `[rows, H]` of
    /// x's type to f32 `[rows, 2·I]`.
    ///
    /// # Errors
    /// `Shape` when there is no such expert.
    pub fn gate_up_layer(&self, expert: usize, rows: usize) -> Result<LinearSpec> {
        self.layer(&self.gate_up, self.gate_up_bias.as_ref(), self.x.dtype(), expert, rows)
    }

    /// The second product of so many rows of `expert`, likewise: f32 `[rows, I]` to f32 `[rows, N]`.
    ///
    /// # Errors
    /// As [`ExpertFfnSpec::gate_up_layer`].
    pub fn down_layer(&self, expert: usize, rows: usize) -> Result<LinearSpec> {
        self.layer(&self.down, self.down_bias.as_ref(), DType::F32, expert, rows)
    }

    fn layer(
        &self,
        experts: &ExpertsSpec,
        bias: Option<&TensorSpec>,
        x: DType,
        expert: usize,
        rows: usize,
    ) -> Result<LinearSpec> {
        let of = |dtype, columns| TensorSpec::of(dtype, &[rows, columns]);
        let layer = LinearSpec::new(&of(x, experts.k())?, experts.one(), &of(DType::F32, experts.n())?)?;
        let layer = layer.with_act_quant(self.act_quant)?;
        match bias {
            Some(bias) => layer.with_bias(&bias.select(0, expert)?),
            None => Ok(layer),
        }
    }
}

impl Contract for ExpertFfnSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        let read = Access::Read;
        visit(Operand { name: "x", spec: &self.x, access: read });
        visit(Operand { name: "expert_ids", spec: &self.expert_ids, access: read });
        visit(Operand { name: "weights", spec: &self.weights, access: read });
        self.gate_up.visit(&GATE_UP, read, visit);
        self.down.visit(&DOWN, read, visit);
        if let Some(spec) = &self.gate_up_bias {
            visit(Operand { name: "gate_up_bias", spec, access: read });
        }
        if let Some(spec) = &self.down_bias {
            visit(Operand { name: "down_bias", spec, access: read });
        }
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        let places = self.expected_places() as u64;
        let [width, inner, out] = [self.gate_up.k(), self.inner(), self.down.n()].map(|n| n as u64);
        let unit = 5
            + if self.limit.is_some() { 3 } else { 0 }
            + u64::from(self.alpha != 1.0)
            + u64::from(self.up_offset != 0.0);
        let gate_up = width.saturating_mul(4).saturating_add(2 * u64::from(self.gate_up_bias.is_some()));
        let down = inner.saturating_mul(2).saturating_add(2 + u64::from(self.down_bias.is_some()));
        let each =
            inner.saturating_mul(gate_up.saturating_add(unit)).saturating_add(out.saturating_mul(down));
        let mut cost = streaming_cost(self, places.saturating_mul(each));
        let idle = (self.gate_up.count() as u64).saturating_sub(places);
        let bytes = (self.gate_up.bytes_each() as u64).saturating_add(self.down.bytes_each() as u64);
        cost.bytes_read = cost.bytes_read.saturating_sub(idle.saturating_mul(bytes));
        cost
    }

    /// As the contract says, for dense and quantized weights; empty for packed ones, as in linear.
    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let (width, inner, columns, k) = (self.gate_up.k(), self.inner(), self.down.n(), self.top_k());
        let (first, second) = (self.gate_up.parts(), self.down.parts());
        let (gate_up, rest) = inputs[3..].split_at(first);
        let (down, biases) = rest.split_at(second);
        let gate_up_bias = self.gate_up_bias.map(|_| biases[0]);
        let down_bias = self.down_bias.map(|_| biases[usize::from(self.gate_up_bias.is_some())]);
        let product = |x: &[f64], weight: &[f64], bias: Option<&[f64]>, n: usize| -> Vec<f64> {
            let mut seen = Vec::with_capacity(x.len());
            self.act_quant.seen(x, &mut seen);
            let sum = |row: usize| (0..x.len()).map(|i| seen[i] * weight[row * x.len() + i]).sum::<f64>();
            (0..n).map(|row| sum(row) + bias.map_or(0.0, |bias| bias[row])).collect()
        };
        let mut out = vec![0.0; self.out.numel()];
        let Ok(unit) = self.unit(1) else { return Vec::new() };
        for (place, &id) in inputs[1].iter().enumerate().filter(|(_, id)| **id >= 0.0) {
            let (token, expert) = (place / k, id as usize);
            let weights =
                self.gate_up.dequantize_f64(expert, gate_up).zip(self.down.dequantize_f64(expert, down));
            let Some((gate_up, down)) = weights else { return Vec::new() };
            let bias =
                |all: Option<&'_ [f64]>, n: usize| all.map(|all| all[expert * n..(expert + 1) * n].to_vec());
            let (b1, b2) = (bias(gate_up_bias, 2 * inner), bias(down_bias, columns));
            let x = &inputs[0][token * width..(token + 1) * width];
            let hidden = unit.reference(&[&product(x, &gate_up, b1.as_deref(), 2 * inner)]).swap_remove(0);
            for (i, y) in product(&hidden, &down, b2.as_deref(), columns).into_iter().enumerate() {
                out[token * columns + i] += inputs[2][place] * y;
            }
        }
        vec![out]
    }

    /// Activations lie in [−1, 1], weights in [−3, 3] of either sign, biases in [−1, 1], routing weights in [−1, 1].
    ///
    /// A product's sum over H is about normal, of deviation at most `√(H/3)·2`; none of a case's is beyond
    /// `G = 6·√H + 2` (five deviations, a bias and an offset). It errs by `e = 6·(H + 8)·u·1.13`, as in linear. The
    /// unit's slopes are at most 1.1·G, the hidden row at most G², its error `d = 2.2·G·e + 52·u·G²`. Through the
    /// second product errors add up as `3·√I·2·d` at most (they are as good as independent), its own sums err by
    /// `6·(I + 8)·u·1.13·G²`. Where activations are rounded, another code may come out at a tie: two of them a sum,
    /// of a step `G²/127` (int8) or `G²/16` (half the spacing of f8e4m3's numbers at their largest), times 3. All of it
    /// k times, and one rounding.
    ///
    /// Where what passes between may be rounded to a type of unit roundoff v, such bounds would let anything pass, so here is
    /// what the roundings come to. Weights are dense then, in [−1, 1] as the cases fill them, of root mean square 1/√3 as x.
    /// Gate and up have √H/3, the hidden row at most `h = H/12 + 1`. Three roundings move each of it by about v·h, of either
    /// sign; weighted and summed with those of the results, over k·I independent terms, they make about `0.4·v·h·√(k·I)`. We
    /// allow `2·v·√(k·I)·(H/9 + 1)`: seven deviations, of which the worst of all cases' results takes half. The results
    /// themselves have about `0.35·h·√(k·I)`, in bf16 two hundred times what one errs by.
    fn tolerance(&self) -> Vec<Tolerance> {
        let u = DType::F32.unit_roundoff();
        let (width, inner) = (self.gate_up.k() as f64, self.inner() as f64);
        let largest = 6.0 * width.sqrt() + 2.0;
        let product = |k: f64| 6.0 * (k + 8.0) * u * 1.13;
        let hidden = largest * largest;
        let through = 2.2 * largest * product(width) + 52.0 * u * hidden;
        let codes = match self.act_quant {
            ActQuant::None => 0.0,
            ActQuant::Int8 { .. } => 6.0 * hidden / 127.0,
            ActQuant::F8 { .. } => 6.0 * hidden / 16.0,
        };
        let each = 6.0 * inner.sqrt() * through + product(inner) * hidden + codes;
        let places = self.top_k() as f64;
        let narrowed = match self.between() {
            DType::F32 => 0.0,
            dtype => 2.0 * dtype.unit_roundoff() * (places * inner).sqrt() * (width / 9.0 + 1.0),
        };
        vec![Tolerance::rounded_to(self.out.dtype(), each * places + narrowed)]
    }
}

#[cfg(test)]
mod tests {
    use super::super::expert_ffn_cases::{dense, over};
    use super::*;
    use crate::{Cases, rounded};

    fn small() -> ExpertFfnSpec {
        let extents = [2, 2, 3, 1, 1];
        let [gate_up, down] = dense(DType::F32, extents).unwrap();
        over([DType::F32; 2], extents, &gate_up, &down).unwrap()
    }

    #[test]
    fn a_network_by_hand() {
        // Gate weights large, so that silu(g) is g; expert e multiplies by up e and down 10.
        let gate_up = [100.0, 0.0, 100.0, 1.0, 100.0, 2.0];
        let inputs: [&[f64]; 5] =
            [&[1.0, 2.0], &[1.0, 2.0, 2.0, -1.0], &[0.5, 0.25, 1.0, f64::NAN], &gate_up, &[10.0; 3]];
        let got = small().reference(&inputs);
        // Token 0: ½·(100·1·10) + ¼·(100·2·10); token 1: (200·4·10).
        assert_eq!(got[0], [1000.0, 8000.0]);
        let biased = small().with_down_bias(&TensorSpec::of(DType::F32, &[3, 1]).unwrap()).unwrap();
        let bias: &[f64] = &[7.0, 2.0, 4.0];
        let with: Vec<&[f64]> = inputs.iter().copied().chain([bias]).collect();
        assert_eq!(biased.reference(&with)[0], [1002.0, 8004.0]);
    }

    #[test]
    fn the_cost_is_that_of_its_parts() {
        let extents = [5, 2, 64, 32, 16];
        let [gate_up, down] = dense(DType::F32, extents).unwrap();
        let cost = over([DType::F32; 2], extents, &gate_up, &down).unwrap().cost();
        assert_eq!(cost.flops, 10 * (2 * 32 * 32 + 5 * 16 + 2 * 16 * 32 + 2 * 32));
        assert_eq!(cost.bytes_read, 5 * 32 * 4 + 10 * 8 + 10 * (32 * 32 + 32 * 16) * 4);
        assert_eq!(cost.bytes_written, 5 * 32 * 4);
        // Most places are other ranks', and experts without places are not read.
        let here = over([DType::F32; 2], extents, &gate_up, &down).unwrap().with_expected_places(3).cost();
        assert_eq!(here.flops * 10, cost.flops * 3);
        assert_eq!(here.bytes_read, 5 * 32 * 4 + 10 * 8 + 3 * (32 * 32 + 32 * 16) * 4);
    }

    #[test]
    fn arguments_that_do_not_fit_are_refused() {
        let of = |dtype, dims: &[usize]| TensorSpec::of(dtype, dims).unwrap();
        let extents = [5, 2, 3, 8, 4];
        let [gate_up, down] = dense(DType::F32, extents).unwrap();
        let [_, narrow] = dense(DType::F32, [5, 2, 3, 8, 5]).unwrap();
        let [_, fewer] = dense(DType::F32, [5, 2, 2, 8, 4]).unwrap();
        assert!(over([DType::F32; 2], extents, &gate_up, &down).is_ok());
        let e = over([DType::F32; 2], extents, &gate_up, &narrow).unwrap_err();
        assert!(e.to_string().contains("expected [T, H], [E, 2·I, H], [E, N, I]"), "{e}");
        assert!(over([DType::F32; 2], extents, &gate_up, &fewer).is_err());
        assert!(over([DType::F16; 2], extents, &gate_up, &down).is_err());
        let spec = || over([DType::F32; 2], extents, &gate_up, &down).unwrap();
        assert!(spec().with_limit(0.0).is_err());
        assert!(spec().with_alpha(-1.0).is_err());
        assert!(spec().with_up_offset(f32::NAN).is_err());
        assert!(spec().with_act_quant(ActQuant::INT8).is_err());
        assert!(spec().with_down_bias(&of(DType::F32, &[3, 7])).is_err());
        assert!(spec().with_gate_up_bias(&of(DType::F16, &[3, 8])).is_err());
    }

    /// What a device gives that rounds to `between` what passes between the parts.
    fn rounding_between(spec: &ExpertFfnSpec, inputs: &[Vec<f64>]) -> Vec<f64> {
        let [x, ids, weights, gate_up, down] = [0, 1, 2, 3, 4].map(|i| &inputs[i]);
        let (width, inner, columns, k) = (spec.gate_up.k(), spec.inner(), spec.down.n(), spec.top_k());
        let narrow = |x: f64| rounded(spec.between(), x);
        let product = |x: &[f64], weight: &[f64]| -> Vec<f64> {
            let rows = weight.chunks(x.len());
            rows.map(|row| narrow(row.iter().zip(x).map(|(w, x)| w * x).sum())).collect()
        };
        let mut out = vec![0.0; spec.out.numel()];
        for (place, &id) in ids.iter().enumerate().filter(|(_, id)| **id >= 0.0) {
            let (token, expert) = (place / k, id as usize);
            let part = |all: &Vec<f64>, size: usize| all[expert * size..][..size].to_vec();
            let both = product(&x[token * width..][..width], &part(gate_up, 2 * inner * width));
            let hidden: Vec<f64> =
                (0..inner).map(|i| narrow(both[i] / (1.0 + (-both[i]).exp()) * both[inner + i])).collect();
            for (i, y) in product(&hidden, &part(down, columns * inner)).into_iter().enumerate() {
                out[token * columns + i] += weights[place] * y;
            }
        }
        out
    }

    #[test]
    fn roundings_between_the_parts_pass_and_faults_do_not() {
        let mut seen = 0;
        for case in ExpertFfnSpec::cases().unwrap() {
            let spec = &case.contract;
            if spec.between() == DType::F32 || spec.out.numel() == 0 || spec.gate_up.k() * spec.inner() == 0 {
                continue;
            }
            let mut inputs = Vec::new();
            spec.operands(&mut |part| {
                let drawn = || case.fill_of(part.name).draw(part.spec, inputs.len() as u64 + 7);
                if part.access == Access::Read {
                    inputs.push(drawn());
                }
            });
            let reference = |inputs: &[Vec<f64>]| {
                let slices: Vec<&[f64]> = inputs.iter().map(Vec::as_slice).collect();
                spec.reference(&slices).swap_remove(0)
            };
            let (want, tolerance) = (reference(&inputs), spec.tolerance()[0]);
            let excess = |got: &[f64]| {
                got.iter().zip(&want).map(|(got, want)| tolerance.excess(*got, *want)).fold(0.0, f64::max)
            };
            let got = excess(&rounding_between(spec, &inputs));
            assert!(got <= 1.0, "{}: {got}", case.name);
            seen += 1;
            if spec.gate_up.k() < 32 || want.iter().all(|x| *x == 0.0) {
                continue;
            }
            let faulty = |name: &str, change: &dyn Fn(&mut [Vec<f64>])| {
                let mut other = inputs.clone();
                change(&mut other);
                let got = excess(&reference(&other));
                assert!(got > 1.0, "{}: {name}: {got}", case.name);
            };
            let half = spec.inner() * spec.gate_up.k();
            faulty("gate and up exchanged", &|inputs| {
                inputs[3].chunks_mut(2 * half).for_each(|both| both.rotate_left(half));
            });
            faulty("a scale of 3/2", &|inputs| inputs[4].iter_mut().for_each(|w| *w *= 1.5));
            faulty("no routing weights", &|inputs| inputs[2].fill(1.0));
        }
        assert!(seen >= 20, "{seen}");
    }

    #[test]
    fn every_case_is_legal() {
        assert!(ExpertFfnSpec::cases().unwrap().len() > 200);
    }
}
