//! The network of a mixture of experts that are spread over the ranks.

use super::{Collective, CollectiveCases, GroupCase, Part, Ranks, Signature};
use crate::moe::{ExpertFfnSpec, ExpertsSpec};
use crate::quant::QuantScheme;
use crate::{Contract, Cost, DType, Fill, OpError, Operand, Result, TensorSpec, Tolerance};

const OP: &str = "expert_parallel_ffn";

/// Sends each token's row to the ranks of its experts, and sums what those make of it.
///
/// `out[t, ..] = Σ_j weights[t, j] · expert_e(x[t, ..])` with `e = expert_ids[t, j]`, on every rank for its own tokens;
/// expert e is expert `e mod E` of rank `⌊e/E⌋`
///
/// # Shapes
/// As [`ExpertFfnSpec`], gate_up and down holding the E experts of this rank, as many as on every other. T may differ from
/// rank to rank, up to the number of tokens that all ranks announce; it may be zero.
///
/// # DTypes
/// As [`ExpertFfnSpec`], the same on all ranks; so are the forms of the weights.
///
/// # Determinism
/// As [`ExpertFfnSpec`].
///
/// # Cost
/// As [`ExpertFfnSpec`], this rank's experts taken to have as many rows as its tokens have places. It sends the share
/// `(world_size − 1)/world_size` of those rows of x, and as many results back.
///
/// # Errors
/// As [`ExpertFfnSpec`]; an expert beyond those of all ranks is a data fault. A token's experts differ, as those that
/// `moe_gate` chooses do: one that stands twice is counted twice or a data fault, and an id below zero padding or a data
/// fault, by device. Ranks that do not agree, or do not come: `Collective`.
///
/// # Composition
/// moe_permute with a room for each rank, all_to_all, expert_ffn, all_to_all, moe_unpermute.
///
/// # Source
/// GShard (Lepikhin et al. 2020); the fused dispatch and combine of DeepEP and of CANN.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertParallelFfnSpec {
    ranks: Ranks,
    most_tokens: usize,
    network: ExpertFfnSpec,
}

impl ExpertParallelFfnSpec {
    /// This rank's part: the network over its tokens and experts, ids counting the experts of all ranks. No rank has more
    /// than `most_tokens`.
    pub fn new(ranks: Ranks, most_tokens: usize, network: ExpertFfnSpec) -> Result<Self> {
        if network.tokens() > most_tokens {
            let what = format!("x has {} tokens, at most {most_tokens} were announced", network.tokens());
            return Err(OpError::shape(OP, what));
        }
        let spec = Self { ranks, most_tokens, network };
        let places = most_tokens.checked_mul(spec.network.top_k());
        let rows = places.and_then(|places| places.checked_mul(ranks.count()));
        let experts = spec.network.gate_up().count().checked_mul(ranks.count());
        for (name, count) in [("most_tokens", rows), ("experts", experts)] {
            if count.is_none_or(|count| count >= i32::MAX as usize) {
                let what = "makes rows or experts that an i32 does not number, expected fewer than 2^31 - 1 of all ranks";
                return Err(OpError::attribute(OP, name, what));
            }
        }
        Ok(spec)
    }

    /// The network over this rank's tokens and experts.
    pub fn network(&self) -> &ExpertFfnSpec {
        &self.network
    }
    /// Tokens of a rank, at most.
    pub fn most_tokens(&self) -> usize {
        self.most_tokens
    }
    /// Experts of each rank.
    pub fn experts_each(&self) -> usize {
        self.network.gate_up().count()
    }
    /// Experts of all ranks.
    pub fn experts(&self) -> usize {
        self.experts_each() * self.ranks.count()
    }
    /// Places of a rank's tokens, at most: rows that it sends to another one.
    pub fn most_places(&self) -> usize {
        self.most_tokens * self.network.top_k()
    }

    /// The network over so many rows that came to this rank's experts, one expert each; between types where the contract
    /// lets a device round to them, else to f32.
    ///
    /// # Errors
    /// As [`ExpertFfnSpec::over`].
    pub fn over_rows(&self, rows: usize) -> Result<ExpertFfnSpec> {
        let of = |dtype, columns| TensorSpec::of(dtype, &[rows, columns]);
        let (width, columns) = (self.network.gate_up().k(), self.network.down().n());
        let x = of(self.network.x().dtype(), width)?;
        self.network.over(&x, &of(DType::I32, 1)?, &of(DType::F32, 1)?, &of(self.network.between(), columns)?)
    }
}

impl Collective for ExpertParallelFfnSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn ranks(&self) -> Ranks {
        self.ranks
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        self.network.operands(visit);
    }

    fn signature(&self) -> Signature {
        let alike =
            |dtype, columns: usize| Part { peer: 0, dtype, numel: self.most_tokens.saturating_mul(columns) };
        let mut parts = vec![
            alike(self.network.x().dtype(), self.network.gate_up().k()),
            alike(self.network.out().dtype(), self.network.down().n()),
            alike(DType::I32, self.network.top_k()),
        ];
        self.network.operands(&mut |operand| {
            if operand.name.starts_with("gate_up") || operand.name.starts_with("down") {
                parts.push(Part { peer: 0, dtype: operand.spec.dtype(), numel: operand.spec.numel() });
            }
        });
        Signature { alike: parts, ..Signature::of(OP) }
    }

    fn cost(&self) -> Cost {
        let places = self.network.expected_places() as u64;
        let sent = places - places / self.ranks.count() as u64;
        let row = |dtype: DType, columns: usize| dtype.bytes_for(columns) as u64;
        let there = row(self.network.x().dtype(), self.network.gate_up().k());
        let back = row(self.network.between(), self.network.down().n());
        let bytes_comm =
            if self.ranks.others() == 0 { 0 } else { sent.saturating_mul(there.saturating_add(back)) };
        Cost { bytes_comm, ..self.network.cost() }
    }

    fn reference(parts: &[Self], inputs: &[Vec<&[f64]>]) -> Vec<Vec<Vec<f64>>> {
        let results = parts.iter().zip(inputs).map(|(part, own)| {
            let mut out = vec![0.0; part.network.out().numel()];
            for (rank, held) in inputs.iter().enumerate() {
                let first = (rank * part.experts_each()) as f64;
                let here = |id: f64| id >= first && id < first + part.experts_each() as f64;
                let ids: Vec<f64> =
                    own[1].iter().map(|&id| if here(id) { id - first } else { -1.0 }).collect();
                let operands: Vec<&[f64]> =
                    [own[0], &ids, own[2]].into_iter().chain(held[3..].iter().copied()).collect();
                for sums in part.network.reference(&operands) {
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                }
            }
            vec![out]
        });
        results.collect()
    }

    /// That of the network: the parts that a sum is of are those of its ranks.
    fn tolerance(&self) -> Vec<Tolerance> {
        self.network.tolerance()
    }
}

/// `k` experts of a token, which differ; neighbours, so that some lie on one rank and some apart.
fn choice(rank: usize, token: usize, experts: usize) -> usize {
    (7 * rank + 3 * token + 1) % experts.max(1)
}

impl CollectiveCases for ExpertParallelFfnSpec {
    fn cases(world_size: u32) -> Result<Vec<GroupCase<Self>>> {
        let mut cases = Vec::new();
        let world = world_size as usize;
        // Tokens at most, places, experts of each rank, width, inner width.
        let edges: [(&str, [usize; 5]); 8] = [
            ("no_tokens", [0, 2, 2, 8, 6]),
            ("no_places", [3, 0, 2, 8, 6]),
            ("no_width", [3, 2, 2, 0, 6]),
            ("no_inner", [3, 2, 2, 8, 0]),
            ("one", [1, 1, 1, 1, 1]),
            ("one_expert_each", [5, 1, 1, 33, 17]),
            ("all_experts_of_a_rank", [4, 3, 3, 40, 24]),
            ("typical", [7, 2, 4, 64, 32]),
        ];
        let mut add =
            |name: String, [most, k, experts, width, _]: [usize; 5], x: DType, weights: &[ExpertsSpec; 2]| {
                // The last rank has as many tokens as may be, the first none where there are several.
                let tokens = move |rank: usize| if rank + 1 == world { most } else { most * rank / world };
                let case = GroupCase::new(name, world_size, |ranks| {
                    let rows = tokens(ranks.index());
                    let of = |dtype, columns| TensorSpec::of(dtype, &[rows, columns]);
                    let (ids, shares, rows) = (of(DType::I32, k)?, of(DType::F32, k)?, of(x, width)?);
                    let [gate_up, down] = weights;
                    let out = ExpertFfnSpec::out_spec(&rows, gate_up, down)?;
                    Self::new(ranks, most, ExpertFfnSpec::new(&rows, &ids, &shares, gate_up, down, &out)?)
                })?;
                let all = experts * world;
                cases.push(case.filled_by_rank(|rank| {
                    let ids = (0..tokens(rank))
                        .flat_map(|t| (0..k).map(move |j| (choice(rank, t, all) + j) % all.max(1)));
                    let fills =
                        weights.iter().zip([&crate::moe::expert_ffn::GATE_UP, &crate::moe::expert_ffn::DOWN]);
                    let fills = fills.flat_map(|(experts, names)| experts.fills(names));
                    fills.chain([("expert_ids", Fill::Values(ids.map(|id| id as f64).collect()))]).collect()
                }));
                Ok::<(), OpError>(())
            };
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (edge, extents) in edges {
                let [_, _, experts, width, inner] = extents;
                let dense = |n, k| ExpertsSpec::dense(&TensorSpec::of(dtype, &[experts, n, k])?);
                add(
                    format!("{dtype}/{edge}"),
                    extents,
                    dtype,
                    &[dense(2 * inner, width)?, dense(width, inner)?],
                )?;
            }
        }
        let codes = |n, k| ExpertsSpec::of(QuantScheme::Q8_0, 2, n, k);
        add("q8_0".into(), [5, 2, 2, 64, 32], DType::BF16, &[codes(64, 64)?, codes(64, 32)?])?;
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(rank: u32, world: u32, tokens: usize, most: usize) -> Result<ExpertParallelFfnSpec> {
        let of = |dtype, dims: &[usize]| TensorSpec::of(dtype, dims);
        let (x, ids) = (of(DType::F32, &[tokens, 1])?, of(DType::I32, &[tokens, 2])?);
        let gate_up = ExpertsSpec::dense(&of(DType::F32, &[2, 2, 1])?)?;
        let down = ExpertsSpec::dense(&of(DType::F32, &[2, 1, 1])?)?;
        let network = ExpertFfnSpec::new(&x, &ids, &ids.with_dtype(DType::F32), &gate_up, &down, &x)?;
        ExpertParallelFfnSpec::new(Ranks::new(rank, world)?, most, network)
    }

    #[test]
    fn two_ranks_by_hand() {
        let parts = [part(0, 2, 1, 2).unwrap(), part(1, 2, 2, 2).unwrap()];
        // Gate weights large, so that silu(g) is g; expert e multiplies by e + 1, and down by 10.
        let up = |first: f64| vec![100.0, first, 100.0, first + 1.0];
        let (held, down) = ([up(1.0), up(3.0)], [10.0; 2]);
        let inputs: [Vec<&[f64]>; 2] = [
            vec![&[1.0], &[0.0, 3.0], &[1.0, 0.5], &held[0], &down],
            vec![&[1.0, 2.0], &[1.0, 2.0, 3.0, 0.0], &[1.0, 1.0, 0.25, 0.0], &held[1], &down],
        ];
        let got = ExpertParallelFfnSpec::reference(&parts, &inputs);
        // A token x gives expert e: 100·x · (e + 1)·x · 10.
        assert_eq!(got, [vec![vec![1000.0 + 2000.0]], vec![vec![2000.0 + 3000.0, 0.25 * 16000.0]]]);
    }

    #[test]
    fn what_is_announced_is_checked() {
        let error = part(0, 2, 3, 2).unwrap_err();
        assert!(error.to_string().contains("x has 3 tokens, at most 2 were announced"), "{error}");
        assert!(part(0, 4, 0, usize::MAX / 2).is_err());
        let spec = part(1, 4, 3, 8).unwrap();
        assert_eq!((spec.experts(), spec.most_places()), (8, 16));
        // Of 6 rows, 5 go elsewhere and come back, 4 bytes each.
        assert_eq!(spec.cost().bytes_comm, 5 * 8);
        assert_eq!(part(0, 1, 3, 8).unwrap().cost().bytes_comm, 0);
    }

    #[test]
    fn every_case_of_every_group_agrees_and_its_tokens_have_different_experts() {
        for world in [1, 2, 3, 8] {
            for case in ExpertParallelFfnSpec::cases(world).unwrap() {
                let calls: Vec<Signature> = case.parts.iter().map(Collective::signature).collect();
                let calls: Vec<&Signature> = calls.iter().collect();
                assert_eq!(Signature::disagreement(&calls), None, "{}", case.name);
                for (rank, part) in case.parts.iter().enumerate() {
                    let ids = case.fill_of(rank, "expert_ids").draw(part.network.expert_ids(), 0);
                    for token in ids.chunks(part.network.top_k().max(1)) {
                        let all: std::collections::BTreeSet<u64> =
                            token.iter().map(|id| *id as u64).collect();
                        assert_eq!(all.len(), token.len(), "{}: {token:?}", case.name);
                        assert!(all.iter().all(|id| *id < part.experts() as u64), "{}", case.name);
                    }
                }
            }
        }
        let mut other = part(1, 2, 2, 3).unwrap();
        let one = part(0, 2, 2, 2).unwrap();
        assert!(Signature::disagreement(&[&one.signature(), &other.signature()]).is_some());
        other.most_tokens = 2;
        assert!(Signature::disagreement(&[&one.signature(), &other.signature()]).is_none());
    }
}
