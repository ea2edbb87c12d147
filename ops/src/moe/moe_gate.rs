//! The router of a mixture of experts: scores, the choice of experts, and their weights.
//!
//! Two ways to choose: the best by score, in limited groups where the model says so, or a table by token.

use crate::kernel::nan_greatest;
use crate::norm::FLOATS;
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, Shape, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_rank, expect_writable, streaming_cost,
};
use core::cmp::Ordering;

const OP: &str = "moe_gate";

/// What turns a token's logits into scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GateScore {
    /// Softmax over all experts.
    Softmax,
    /// `1 / (1 + e^(−a))` of each logit.
    Sigmoid,
    /// `√(ln(1 + e^a))` of each logit.
    SqrtSoftplus,
}

impl GateScore {
    /// Every one.
    pub const ALL: [GateScore; 3] = [GateScore::Softmax, GateScore::Sigmoid, GateScore::SqrtSoftplus];
}

/// What ranks a group of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GroupScore {
    /// The best of its experts.
    Max,
    /// The sum of its best two (of its only one, if it has no more).
    TopTwo,
}

/// Experts in equal groups, of which the best are open to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Groups {
    n_group: usize,
    topk_group: usize,
    score: GroupScore,
}

/// Experts by token.
#[derive(Clone, Debug, PartialEq)]
struct Hash {
    token_ids: TensorSpec,
    table: TensorSpec,
}

/// Chooses experts for every token, and how much each of them counts.
///
/// `s = score(logits[t, ..])`; `expert_ids[t, ..]` the top_k experts of greatest `s + bias`, greatest first, or
/// `table[token_ids[t], ..]`; `weights[t, j] = scale · s[expert_ids[t, j]]`, divided by their sum over j where
/// renormalised
///
/// # Shapes
/// logits `[T, E]`, bias `[E]`, token_ids `[T]`, table `[V, k]`, weights and expert_ids `[T, k]` with `k ≤ E`,
/// E below 2³¹. With groups `E = n_group · size` and `k ≤ topk_group · size`. Any extent may be zero.
///
/// # DTypes
/// logits f32, f16 or bf16; bias and weights f32; token_ids, table and expert_ids i32. Computed in f32.
///
/// # Layout
/// Any strides.
///
/// # Determinism
/// `BatchInvariant`: a token depends on its own row. NaN is greatest; of equals the lowest expert comes first (−0
/// equals +0). Scores rise with their logits, so without a bias, and without groups ranked by two, the order is
/// that of the logits themselves and exact. Else it is that of f32 sums: experts (or groups) whose sums are equal
/// to within the tolerance of a score may change places from backend to backend, those of equal logits and biases
/// never do. An expert outside of the chosen groups is not chosen, whatever its score.
///
/// # Cost
/// Per logit 5 operations (softmax), 4 (sigmoid) or 8 (sqrt-softplus: an exponential and a logarithm count as two),
/// 1 for the bias and 1 for the search; per weight 2, of which the sum and quotient only where renormalised.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (a result overlaps itself), `Attribute` (groups that do not divide the experts or
/// hold too few, a bias or groups with a table, a scale that is not finite). A token id below zero is padding: its
/// experts are −1 and its weights 0; so is an entry of the table below zero, with weight 0. A token id or an entry
/// of the table above its range is a data fault. Where the sum of weights is 0 they stay 0.
///
/// # Composition
/// softmax, or unary functions; binary add of the bias; for groups reduce max (or top_k and reduce sum) over
/// each, top_k of groups, sort, gather of their experts; top_k; gather of the scores; reduce sum, binary divide
/// and multiply. With a table: gather of its rows for top_k.
///
/// # Source
/// DeepSeek-V3 2024, 2.1.2 (sigmoid, bias, groups by two); DeepSeek-V2 2024 (groups by maximum); DeepSeek-V4
/// (sqrt-softplus, tables); Mixtral (softmax, renormalised).
#[derive(Clone, Debug, PartialEq)]
pub struct MoeGateSpec {
    score: GateScore,
    logits: TensorSpec,
    bias: Option<TensorSpec>,
    groups: Option<Groups>,
    hash: Option<Hash>,
    renormalize: bool,
    scale: f32,
    weights: TensorSpec,
    expert_ids: TensorSpec,
}

impl MoeGateSpec {
    /// The best experts by score; how many is the last extent of expert_ids.
    pub fn new(
        score: GateScore,
        logits: &TensorSpec,
        weights: &TensorSpec,
        expert_ids: &TensorSpec,
    ) -> Result<Self> {
        let (want_weights, want_ids) = Self::out_specs(logits, expert_ids.shape().last())?;
        for (arg, spec, want) in [("weights", weights, want_weights), ("expert_ids", expert_ids, want_ids)] {
            expect_dims(OP, arg, spec, want.dims())?;
            expect_dtype(OP, arg, spec, &[want.dtype()])?;
            expect_writable(OP, arg, spec)?;
        }
        Ok(Self {
            score,
            logits: *logits,
            bias: None,
            groups: None,
            hash: None,
            renormalize: false,
            scale: 1.0,
            weights: *weights,
            expert_ids: *expert_ids,
        })
    }

    /// The experts that `table [V, k]` names for each token's id.
    pub fn hashed(
        score: GateScore,
        logits: &TensorSpec,
        token_ids: &TensorSpec,
        table: &TensorSpec,
        weights: &TensorSpec,
        expert_ids: &TensorSpec,
    ) -> Result<Self> {
        let spec = Self::new(score, logits, weights, expert_ids)?;
        expect_dims(OP, "token_ids", token_ids, &[spec.tokens()])?;
        expect_dtype(OP, "token_ids", token_ids, &[DType::I32])?;
        expect_rank(OP, "table", table, 2)?;
        expect_dims(OP, "table", table, &[table.dims()[0], spec.top_k()])?;
        expect_dtype(OP, "table", table, &[DType::I32])?;
        Ok(Self { hash: Some(Hash { token_ids: *token_ids, table: *table }), ..spec })
    }

    /// The results for top_k experts: weights and expert_ids, contiguous.
    pub fn out_specs(logits: &TensorSpec, top_k: usize) -> Result<(TensorSpec, TensorSpec)> {
        expect_rank(OP, "logits", logits, 2)?;
        expect_dtype(OP, "logits", logits, &FLOATS)?;
        let experts = logits.dims()[1];
        if top_k > experts || experts > i32::MAX as usize {
            let what = format!("{top_k} of {experts} experts, expected at most all, and fewer than 2^31");
            return Err(OpError::shape(OP, what));
        }
        let shape = Shape::new(&[logits.dims()[0], top_k])?;
        Ok((TensorSpec::new(DType::F32, shape), TensorSpec::new(DType::I32, shape)))
    }

    /// Adds `bias[E]` to the scores for the choice; weights are of scores without it.
    pub fn with_bias(mut self, bias: &TensorSpec) -> Result<Self> {
        self.expect_choice("bias")?;
        expect_dims(OP, "bias", bias, &[self.num_experts()])?;
        expect_dtype(OP, "bias", bias, &[DType::F32])?;
        self.bias = Some(*bias);
        Ok(self)
    }

    /// Opens to each token the experts of its `topk_group` best out of `n_group` groups only.
    pub fn with_groups(mut self, n_group: usize, topk_group: usize, score: GroupScore) -> Result<Self> {
        self.expect_choice("n_group")?;
        let experts = self.num_experts();
        // 0 is a multiple of everything.
        if !(1..=experts.max(1)).contains(&n_group) || !experts.is_multiple_of(n_group) {
            let what = format!("is {n_group}, expected a divisor of the {experts} experts");
            return Err(OpError::attribute(OP, "n_group", what));
        }
        if topk_group > n_group || topk_group * (experts / n_group) < self.top_k() {
            let what = format!(
                "is {topk_group}, expected at most {n_group} and enough groups of {} for {} experts",
                experts / n_group,
                self.top_k()
            );
            return Err(OpError::attribute(OP, "topk_group", what));
        }
        self.groups = Some(Groups { n_group, topk_group, score });
        Ok(self)
    }

    /// Divides a token's weights by their sum.
    pub fn with_renormalize(mut self) -> Self {
        self.renormalize = true;
        self
    }

    /// Multiplies the weights, after they were renormalised.
    pub fn with_scale(mut self, scale: f32) -> Result<Self> {
        if !scale.is_finite() {
            return Err(OpError::attribute(OP, "scale", format!("is {scale}, expected a finite number")));
        }
        self.scale = scale;
        Ok(self)
    }

    fn expect_choice(&self, arg: &'static str) -> Result<()> {
        match self.hash {
            None => Ok(()),
            Some(_) => {
                Err(OpError::attribute(OP, arg, "is given with a table, which leaves nothing to choose"))
            }
        }
    }

    /// What turns logits into scores.
    pub fn score(&self) -> GateScore {
        self.score
    }
    /// Logits `[T, E]`.
    pub fn logits(&self) -> &TensorSpec {
        &self.logits
    }
    /// What is added to the scores for the choice.
    pub fn bias(&self) -> Option<&TensorSpec> {
        self.bias.as_ref()
    }
    /// Number of groups, how many are open to a token, and what ranks them.
    pub fn groups(&self) -> Option<(usize, usize, GroupScore)> {
        self.groups.map(|groups| (groups.n_group, groups.topk_group, groups.score))
    }
    /// Ids of the tokens and the table of their experts.
    pub fn hash(&self) -> Option<(&TensorSpec, &TensorSpec)> {
        self.hash.as_ref().map(|hash| (&hash.token_ids, &hash.table))
    }
    /// Whether weights are divided by their sum.
    pub fn renormalize(&self) -> bool {
        self.renormalize
    }
    /// Factor of the weights.
    pub fn scale(&self) -> f32 {
        self.scale
    }
    /// How much each chosen expert counts.
    pub fn weights(&self) -> &TensorSpec {
        &self.weights
    }
    /// The chosen experts.
    pub fn expert_ids(&self) -> &TensorSpec {
        &self.expert_ids
    }
    /// Rows of logits.
    pub fn tokens(&self) -> usize {
        self.logits.dims()[0]
    }
    /// Experts to choose from.
    pub fn num_experts(&self) -> usize {
        self.logits.dims()[1]
    }
    /// Experts of each token.
    pub fn top_k(&self) -> usize {
        self.expert_ids.shape().last()
    }

    /// Whether the order of logits decides, and scores are needed for the weights only.
    pub fn chooses_by_logits(&self) -> bool {
        let by_two = self.groups.is_some_and(|groups| groups.score == GroupScore::TopTwo);
        self.bias.is_none() && !by_two
    }

    /// The scores of a row, in f64.
    fn scores(&self, row: &[f64]) -> Vec<f64> {
        match self.score {
            GateScore::Sigmoid => row.iter().map(|a| 1.0 / (1.0 + (-a).exp())).collect(),
            GateScore::SqrtSoftplus => {
                // max(a, 0) + ln(1 + e^(−|a|)) does not overflow.
                let softplus = |a: f64| if a > 0.0 { a + (-a).exp().ln_1p() } else { a.exp().ln_1p() };
                row.iter().map(|&a| softplus(a).sqrt()).collect()
            }
            GateScore::Softmax => {
                if row.iter().all(|&a| a == f64::NEG_INFINITY) {
                    return vec![0.0; row.len()];
                }
                let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = row.iter().map(|a| (a - largest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                weights.iter().map(|w| w / sum).collect()
            }
        }
    }

    /// The experts of a row in order of choice, by what they are chosen by.
    fn choose(&self, by: &[f64]) -> Vec<usize> {
        let mut open: Vec<usize> = (0..by.len()).collect();
        if let Some(Groups { n_group, topk_group, score }) = self.groups {
            let size = by.len() / n_group;
            let ranks: Vec<f64> = (0..n_group)
                .map(|group| {
                    let members: Vec<usize> = (group * size..(group + 1) * size).collect();
                    let best = best(by, members);
                    let count = if score == GroupScore::Max { 1 } else { 2 };
                    best.iter().take(count).map(|&expert| by[expert]).sum()
                })
                .collect();
            let mut chosen = best(&ranks, (0..n_group).collect());
            chosen.truncate(topk_group);
            open.retain(|expert| chosen.contains(&(expert / size)));
        }
        let mut chosen = best(by, open);
        chosen.truncate(self.top_k());
        chosen
    }
}

/// These places, the greatest entry first; of equals the lowest.
fn best(by: &[f64], mut places: Vec<usize>) -> Vec<usize> {
    places.sort_by(|&i, &j| match nan_greatest(by[j], by[i]) {
        Ordering::Equal => i.cmp(&j),
        order => order,
    });
    places
}

impl Contract for MoeGateSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "logits", spec: &self.logits, access: Access::Read });
        if let Some(spec) = &self.bias {
            visit(Operand { name: "bias", spec, access: Access::Read });
        }
        if let Some(hash) = &self.hash {
            visit(Operand { name: "token_ids", spec: &hash.token_ids, access: Access::Read });
            visit(Operand { name: "table", spec: &hash.table, access: Access::Read });
        }
        visit(Operand { name: "weights", spec: &self.weights, access: Access::Write });
        visit(Operand { name: "expert_ids", spec: &self.expert_ids, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        let score = match self.score {
            GateScore::Softmax => 5,
            GateScore::Sigmoid => 4,
            GateScore::SqrtSoftplus => 8,
        };
        let each = score + u64::from(self.bias.is_some()) + u64::from(self.hash.is_none());
        let weight = 2 * u64::from(self.renormalize) + u64::from(self.scale != 1.0);
        let flops = (self.logits.numel() as u64).saturating_mul(each);
        let flops = flops.saturating_add((self.weights.numel() as u64).saturating_mul(weight));
        let mut cost = streaming_cost(self, flops);
        if let Some(hash) = &self.hash {
            // Of the table no more than a row a token.
            let rows = self.tokens().min(hash.table.dims()[0]).saturating_mul(self.top_k()).saturating_mul(4);
            let rest = hash.table.bytes().saturating_sub(rows) as u64;
            cost.bytes_read = cost.bytes_read.saturating_sub(rest);
        }
        cost
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let (experts, k) = (self.num_experts(), self.top_k());
        let (mut weights, mut ids) = (Vec::new(), Vec::new());
        for token in 0..self.tokens() {
            let row = &inputs[0][token * experts..(token + 1) * experts];
            let scores = self.scores(row);
            let chosen: Vec<Option<usize>> = match &self.hash {
                Some(_) => (0..k)
                    .map(|j| {
                        let id = inputs[1][token];
                        let expert = if id < 0.0 { -1.0 } else { inputs[2][id as usize * k + j] };
                        (expert >= 0.0).then_some(expert as usize)
                    })
                    .collect(),
                None if self.chooses_by_logits() => self.choose(row).into_iter().map(Some).collect(),
                None => {
                    let bias = |expert: usize| if self.bias.is_some() { inputs[1][expert] } else { 0.0 };
                    let by: Vec<f64> = scores.iter().enumerate().map(|(e, s)| s + bias(e)).collect();
                    self.choose(&by).into_iter().map(Some).collect()
                }
            };
            let of = |expert: &Option<usize>| expert.map_or(0.0, |expert| scores[expert]);
            let sum: f64 = chosen.iter().map(of).sum();
            let divisor = if self.renormalize && sum != 0.0 { sum } else { 1.0 };
            weights.extend(chosen.iter().map(|expert| of(expert) / divisor * f64::from(self.scale)));
            ids.extend(chosen.iter().map(|expert| expert.map_or(-1.0, |expert| expert as f64)));
        }
        vec![weights, ids]
    }

    /// Scores, relative to themselves, for logits within ±32: softmax `(200 + √E)·u` as in its own contract; a
    /// sigmoid 8·u; the exponential of a softplus is rounded at a magnitude of 32, its logarithm and root add
    /// 16·u, which the root halves: 32·u. The sum of k of them and the quotient add as much again and `(k + 2)·u`,
    /// the factor `u`. Denormal scores as in softmax. Experts are exact.
    fn tolerance(&self) -> Vec<Tolerance> {
        let u = DType::F32.unit_roundoff();
        let score = match self.score {
            GateScore::Softmax => 200.0 + (self.num_experts() as f64).sqrt(),
            GateScore::Sigmoid => 8.0,
            GateScore::SqrtSoftplus => 32.0,
        };
        let sum = if self.renormalize { score + self.top_k() as f64 + 2.0 } else { 0.0 };
        let weights = Tolerance { abs: 2f64.powi(-126), rel: (score + sum + 2.0) * u };
        vec![weights, Tolerance::EXACT]
    }
}

/// Logits that are distinct within a row of up to 509 experts and exact in every float type: 32nds in ±8.
fn distinct_logits(numel: usize) -> Vec<f64> {
    (0..numel).map(|i| ((i * 97 % 509) as f64 - 254.0) / 32.0).collect()
}

/// Biases of either sign that reorder neighbours, distinct for up to 509 experts: 512ths in ±0.5.
fn biases(experts: usize) -> Vec<f64> {
    (0..experts).map(|e| ((e * 53 % 509) as f64 - 254.0) / 512.0).collect()
}

impl Cases for MoeGateSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        // Tokens, experts, experts a token; groups and how many of them are open, where they divide.
        let edges: [(&str, [usize; 3], [usize; 2]); 11] = [
            ("no_tokens", [0, 8, 2], [4, 2]),
            ("no_experts", [3, 0, 0], [0, 0]),
            ("none_chosen", [3, 8, 0], [2, 0]),
            ("one", [1, 1, 1], [1, 1]),
            ("first", [5, 6, 1], [3, 1]),
            ("all", [4, 7, 7], [7, 7]),
            ("unaligned", [9, 37, 5], [0, 0]),
            ("one_token", [1, 64, 6], [8, 3]),
            ("mixtral", [33, 8, 2], [0, 0]),
            ("deepseek_v3", [19, 256, 8], [8, 4]),
            ("many", [3, 384, 40], [0, 0]),
        ];
        for dtype in FLOATS {
            for score in GateScore::ALL {
                for (edge, [tokens, experts, k], groups) in edges {
                    let logits = TensorSpec::of(dtype, &[tokens, experts])?;
                    let (weights, ids) = Self::out_specs(&logits, k)?;
                    let plain = Self::new(score, &logits, &weights, &ids)?;
                    let bias = TensorSpec::of(DType::F32, &[experts])?;
                    let mut specs = vec![
                        ("plain", plain.clone()),
                        ("renormalized", plain.clone().with_renormalize().with_scale(2.5)?),
                        ("bias", plain.clone().with_bias(&bias)?.with_renormalize()),
                    ];
                    let [n_group, topk_group] = groups;
                    if n_group > 0 {
                        let by = |spec: Self, score| spec.with_groups(n_group, topk_group, score);
                        specs.push(("groups_max", by(plain.clone(), GroupScore::Max)?));
                        specs.push(("groups_two", by(plain.clone(), GroupScore::TopTwo)?.with_renormalize()));
                        let biased = by(plain.clone().with_bias(&bias)?, GroupScore::TopTwo)?;
                        specs.push(("groups_two_bias", biased.with_renormalize().with_scale(2.5)?));
                    }
                    for (form, spec) in specs {
                        let name = format!("moe_gate/{dtype}/{score:?}/{form}/{edge}");
                        let fill = Fill::Values(distinct_logits(tokens * experts));
                        let case = Case::new(name, spec).fill("logits", fill);
                        cases.push(case.fill("bias", Fill::Values(biases(experts))));
                    }
                    cases.push(hashed(dtype, score, edge, [tokens, experts, k])?);
                }
                cases.extend(special(dtype, score)?);
            }
        }
        Ok(cases)
    }
}

/// A table of 11 tokens; some of the ids and some of the entries are padding.
fn hashed(
    dtype: DType,
    score: GateScore,
    edge: &str,
    [tokens, experts, k]: [usize; 3],
) -> Result<Case<MoeGateSpec>> {
    const VOCABULARY: usize = 11;
    let logits = TensorSpec::of(dtype, &[tokens, experts])?;
    let (weights, ids) = MoeGateSpec::out_specs(&logits, k)?;
    let token_ids = TensorSpec::of(DType::I32, &[tokens])?;
    let table = TensorSpec::of(DType::I32, &[VOCABULARY, k])?;
    let spec = MoeGateSpec::hashed(score, &logits, &token_ids, &table, &weights, &ids)?;
    let entry = |i: usize| match i % 17 {
        16 => -1.0,
        _ => (i * 5 % experts.max(1)) as f64,
    };
    let case = Case::new(
        format!("moe_gate/{dtype}/{score:?}/hash/{edge}"),
        spec.with_renormalize().with_scale(1.5)?,
    );
    let tokens = (0..tokens).map(|t| (t * 7 % (VOCABULARY + 1)) as f64 - 1.0).collect();
    Ok(case
        .fill("logits", Fill::Values(distinct_logits(logits.numel())))
        .fill("token_ids", Fill::Values(tokens))
        .fill("table", Fill::Values((0..VOCABULARY * k).map(entry).collect())))
}

/// Ties, what is no number, and strides.
fn special(dtype: DType, score: GateScore) -> Result<Vec<Case<MoeGateSpec>>> {
    let mut cases = Vec::new();
    let named = |what: &str| format!("moe_gate/{dtype}/{score:?}/{what}");
    let logits = TensorSpec::of(dtype, &[6, 20])?;
    let (weights, ids) = MoeGateSpec::out_specs(&logits, 5)?;
    let plain = MoeGateSpec::new(score, &logits, &weights, &ids)?;
    let bias = TensorSpec::of(DType::F32, &[20])?;
    let ties = Fill::Values(vec![1.0, 0.5, 1.0, -0.5, 0.5, 1.0, 0.25]);
    let level = Fill::Values(vec![0.125]);
    for (form, spec) in [
        ("plain", plain.clone()),
        ("bias", plain.clone().with_bias(&bias)?),
        ("groups_max", plain.clone().with_groups(5, 2, GroupScore::Max)?),
        ("groups_two", plain.clone().with_bias(&bias)?.with_groups(5, 2, GroupScore::TopTwo)?),
    ] {
        for (kind, fill) in [("ties", &ties), ("level", &level)] {
            let case = Case::new(named(&format!("{form}_{kind}")), spec.clone()).fill("logits", fill.clone());
            cases.push(case.fill("bias", Fill::Values(vec![0.25])));
        }
        let mut odd: Vec<f64> = distinct_logits(120);
        (odd[7], odd[13], odd[31]) = (f64::NAN, f64::NAN, f64::NEG_INFINITY);
        odd[40..60].fill(f64::NEG_INFINITY);
        (odd[65], odd[70]) = (0.0, -0.0);
        let case = Case::new(named(&format!("{form}_special")), spec).fill("logits", Fill::Values(odd));
        cases.push(case.fill("bias", Fill::Values(vec![0.0])));
    }
    let logits = TensorSpec::of(dtype, &[31, 9])?.transpose(0, 1)?.narrow(1, 3, 24)?;
    let bias = TensorSpec::of(DType::F32, &[24, 2])?.select(1, 1)?;
    let weights = TensorSpec::of(DType::F32, &[5, 9])?.transpose(0, 1)?;
    let ids = TensorSpec::of(DType::I32, &[9, 8])?.narrow(1, 2, 5)?;
    let spec = MoeGateSpec::new(score, &logits, &weights, &ids)?.with_bias(&bias)?;
    let fill = Fill::Values(distinct_logits(9 * 24));
    let case = Case::new(named("strided"), spec.with_groups(4, 2, GroupScore::TopTwo)?.with_renormalize());
    cases.push(case.fill("logits", fill.clone()).fill("bias", Fill::Values(biases(24))));
    let token_ids = TensorSpec::of(DType::I32, &[9, 3])?.select(1, 1)?;
    let table = TensorSpec::of(DType::I32, &[5, 4])?.transpose(0, 1)?;
    let spec = MoeGateSpec::hashed(score, &logits, &token_ids, &table, &weights, &ids)?;
    let case = Case::new(named("strided_hash"), spec).fill("logits", fill);
    let table = (0..20).map(|i| f64::from(i * 7 % 24)).collect();
    cases.push(
        case.fill("token_ids", Fill::Values(vec![3.0, 0.0, 2.0, 1.0])).fill("table", Fill::Values(table)),
    );
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(experts: usize, k: usize, score: GateScore) -> MoeGateSpec {
        let logits = TensorSpec::of(DType::F32, &[1, experts]).unwrap();
        let (weights, ids) = MoeGateSpec::out_specs(&logits, k).unwrap();
        MoeGateSpec::new(score, &logits, &weights, &ids).unwrap()
    }

    fn bias(experts: usize) -> TensorSpec {
        TensorSpec::of(DType::F32, &[experts]).unwrap()
    }

    #[test]
    fn a_bias_chooses_and_does_not_weigh() {
        let gate = spec(3, 2, GateScore::Sigmoid).with_bias(&bias(3)).unwrap().with_renormalize();
        let ln3 = 3f64.ln();
        // Scores ¾, ½, ¼; the bias lifts the last above all.
        let got = gate.reference(&[&[ln3, 0.0, -ln3], &[0.0, 0.0, 1.0]]);
        assert_eq!(got[1], [2.0, 0.0]);
        assert!((got[0][0] - 0.25).abs() < 1e-15 && (got[0][1] - 0.75).abs() < 1e-15, "{got:?}");
    }

    #[test]
    fn groups_are_ranked_by_their_best_two_or_best_one() {
        // Groups {3, −9}, {2, 2}, {1, 1}.
        let logits = [3.0, -9.0, 2.0, 2.0, 1.0, 1.0];
        let ids = |score| {
            let gate = spec(6, 2, GateScore::Sigmoid).with_groups(3, 1, score).unwrap();
            gate.reference(&[&logits])[1].clone()
        };
        assert_eq!(ids(GroupScore::Max), [0.0, 1.0]);
        assert_eq!(ids(GroupScore::TopTwo), [2.0, 3.0]);
    }

    #[test]
    fn a_group_that_is_not_chosen_lends_no_expert_even_for_minus_infinity() {
        let gate = spec(4, 2, GateScore::Softmax).with_groups(2, 1, GroupScore::Max).unwrap();
        let got = gate.reference(&[&[0.5, f64::NEG_INFINITY, 0.0, 0.0]]);
        assert_eq!(got[1], [0.0, 1.0]);
    }

    #[test]
    fn scores_by_hand() {
        let at = |score, a: f64| spec(1, 1, score).reference(&[&[a]])[0][0];
        assert_eq!(at(GateScore::Softmax, 5.0), 1.0);
        assert_eq!(at(GateScore::Sigmoid, 0.0), 0.5);
        assert!((at(GateScore::SqrtSoftplus, 0.0) - 2f64.ln().sqrt()).abs() < 1e-15);
        // ln(1 + e^a) is e^a where that is small, and a where it is large.
        assert!((at(GateScore::SqrtSoftplus, -40.0) / (-20f64).exp() - 1.0).abs() < 1e-15);
        assert_eq!(at(GateScore::SqrtSoftplus, 900.0), 30.0);
    }

    #[test]
    fn a_table_routes_and_padding_stays_padding() {
        let of = |dtype, dims: &[usize]| TensorSpec::of(dtype, dims).unwrap();
        let logits = of(DType::F32, &[3, 4]);
        let (weights, ids) = MoeGateSpec::out_specs(&logits, 2).unwrap();
        let (tokens, table) = (of(DType::I32, &[3]), of(DType::I32, &[2, 2]));
        let gate = MoeGateSpec::hashed(GateScore::Sigmoid, &logits, &tokens, &table, &weights, &ids).unwrap();
        let gate = gate.with_renormalize().with_scale(4.0).unwrap();
        let got = gate.reference(&[&[0.0; 12], &[1.0, -1.0, 0.0], &[3.0, -1.0, 2.0, 0.0]]);
        assert_eq!(got[1], [2.0, 0.0, -1.0, -1.0, 3.0, -1.0]);
        assert_eq!(got[0], [2.0, 2.0, 0.0, 0.0, 4.0, 0.0]);
        assert!(gate.clone().with_bias(&bias(4)).is_err());
        assert!(gate.with_groups(2, 1, GroupScore::Max).is_err());
    }

    #[test]
    fn arguments_that_do_not_fit_are_refused() {
        let gate = || spec(12, 4, GateScore::Softmax);
        assert!(gate().with_groups(5, 2, GroupScore::Max).is_err());
        let e = gate().with_groups(4, 1, GroupScore::Max).unwrap_err();
        assert!(e.to_string().contains("enough groups of 3 for 4 experts"), "{e}");
        assert!(gate().with_groups(4, 5, GroupScore::Max).is_err());
        let none = spec(0, 0, GateScore::Softmax);
        assert!(none.clone().with_groups(1, 0, GroupScore::Max).is_ok());
        assert!(none.with_groups(usize::MAX, 0, GroupScore::Max).is_err());
        assert!(gate().with_scale(f32::NAN).is_err());
        assert!(gate().with_bias(&bias(11)).is_err());
        assert!(MoeGateSpec::out_specs(&TensorSpec::of(DType::F32, &[2, 3]).unwrap(), 4).is_err());
        assert!(MoeGateSpec::out_specs(&TensorSpec::of(DType::I32, &[2, 3]).unwrap(), 2).is_err());
    }

    /// Scores, choice and padding may round: the cases keep what decides apart by far more, or exactly level.
    #[test]
    fn no_case_depends_on_the_rounding_of_a_score() {
        const APART: f64 = 4e-6;
        for case in MoeGateSpec::cases().unwrap() {
            let gate = &case.contract;
            if gate.hash.is_some() || gate.chooses_by_logits() {
                continue;
            }
            let drawn = |name: &str, spec: &TensorSpec| case.fill_of(name).draw(spec, 0);
            let logits = drawn("logits", &gate.logits);
            let bias = gate.bias.map_or(vec![0.0; gate.num_experts()], |bias| drawn("bias", &bias));
            let clear = |values: &[f64], count: usize| {
                let order = best(values, (0..values.len()).collect());
                order.windows(2).take(count).all(|pair| {
                    let (a, b) = (values[pair[0]], values[pair[1]]);
                    let size = a.abs().max(b.abs()).max(if gate.bias.is_some() { 0.05 } else { 0.0 });
                    !(a - b > 0.0 && a - b < APART * size)
                })
            };
            for row in logits.chunks(gate.num_experts().max(1)) {
                let by: Vec<f64> = gate.scores(row).iter().zip(&bias).map(|(s, b)| s + b).collect();
                let Some(Groups { n_group, topk_group, .. }) = gate.groups else {
                    assert!(clear(&by, gate.top_k()), "{}", case.name);
                    continue;
                };
                let size = by.len() / n_group;
                let sums: Vec<f64> = by
                    .chunks(size)
                    .map(|group| {
                        let order = best(group, (0..size).collect());
                        order.iter().take(2).map(|&i| group[i]).sum()
                    })
                    .collect();
                assert!(clear(&sums, topk_group), "groups of {}", case.name);
                let open = best(&sums, (0..n_group).collect());
                let members: Vec<f64> = (0..by.len())
                    .filter(|expert| open[..topk_group].contains(&(expert / size)))
                    .map(|expert| by[expert])
                    .collect();
                assert!(clear(&members, gate.top_k()), "{}", case.name);
            }
        }
    }

    #[test]
    fn every_case_is_legal() {
        assert!(MoeGateSpec::cases().unwrap().len() > 400);
    }
}
