//! Sends a part of every rank's rows to every rank.

use super::collective::{at_odd_offset, collective_cost, expect_movable, movable};
use super::rows::{Rows, expect_like_rows, row_len};
use super::{Collective, CollectiveCases, GroupCase, Part, Ranks, Signature};
use crate::{Access, Cost, Operand, Result, TensorSpec, Tolerance, expect_dims, expect_dtype};
use core::ops::Range;

const OP: &str = "all_to_all";

/// Sends the p-th part of this rank's rows to rank p; parts arrive in rank order.
///
/// `out = concatenation over ranks p of (part r of x_p)`, on rank r
///
/// # Shapes
/// x `[Σ send_p, ..]`, out `[Σ recv_p, ..]`; all parts alike, or a number of rows for each (elsewhere called
/// `all_to_all_v`): what rank r sends to p is what p receives from r. Any extent may be zero.
///
/// # DTypes
/// Any of at least a byte, the same on all ranks. Bits are moved, never converted.
///
/// # Layout
/// Contiguous, from any offset.
///
/// # Determinism
/// Every level: bits are moved.
///
/// # Cost
/// Each rank sends x but for its own part.
///
/// # Errors
/// `Shape`, `DType`, `Layout`. Ranks that do not agree, or do not come: `Collective`.
#[derive(Clone, Debug, PartialEq)]
pub struct AllToAllSpec {
    ranks: Ranks,
    send: Rows,
    recv: Rows,
    x: TensorSpec,
    out: TensorSpec,
}

impl AllToAllSpec {
    /// This rank's part, where all parts have as many rows.
    pub fn new(ranks: Ranks, x: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        expect_dims(OP, "out", out, x.dims())?;
        let rows = Rows::equal(OP, "x", x, ranks)?;
        Self::checked(ranks, rows.clone(), rows, x, out)
    }

    /// This rank's part, where `send[p]` rows go to rank p and `recv[p]` come from it.
    pub fn ragged(
        ranks: Ranks,
        send: &[usize],
        recv: &[usize],
        x: &TensorSpec,
        out: &TensorSpec,
    ) -> Result<Self> {
        let send = Rows::ragged(OP, "x", x, ranks, send)?;
        let recv = Rows::ragged(OP, "out", out, ranks, recv)?;
        Self::checked(ranks, send, recv, x, out)
    }

    fn checked(ranks: Ranks, send: Rows, recv: Rows, x: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        expect_like_rows(OP, ("x", x), ("out", out))?;
        expect_movable(OP, "x", x)?;
        expect_dtype(OP, "out", out, &[x.dtype()])?;
        expect_movable(OP, "out", out)?;
        Ok(Self { ranks, send, recv, x: *x, out: *out })
    }

    /// The result for x, where all parts have as many rows.
    pub fn out_spec(x: &TensorSpec) -> TensorSpec {
        x.to_contiguous()
    }

    /// What this rank gives.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// What it gets.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// The elements of x that go to rank `rank`.
    pub fn sent_to(&self, rank: usize) -> Range<usize> {
        let (row, start) = (row_len(&self.x), self.send.before(rank));
        start * row..(start + self.send.of(rank)) * row
    }
    /// The elements of out that come from rank `rank`.
    pub fn received_from(&self, rank: usize) -> Range<usize> {
        let (row, start) = (row_len(&self.out), self.recv.before(rank));
        start * row..(start + self.recv.of(rank)) * row
    }
}

impl Collective for AllToAllSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn ranks(&self) -> Ranks {
        self.ranks
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn signature(&self) -> Signature {
        let dtype = self.x.dtype();
        let all = 0..self.ranks.world_size();
        let part = |peer, range: Range<usize>| Part { peer, dtype, numel: range.len() };
        Signature {
            sends: all.clone().map(|peer| part(peer, self.sent_to(peer as usize))).collect(),
            recvs: all.map(|peer| part(peer, self.received_from(peer as usize))).collect(),
            ..Signature::of(OP)
        }
    }

    fn cost(&self) -> Cost {
        let own = self.x.dtype().bytes_for(self.sent_to(self.ranks.index()).len());
        collective_cost(self, 0, (self.x.bytes() - own) as u64)
    }

    fn reference(parts: &[Self], inputs: &[Vec<&[f64]>]) -> Vec<Vec<Vec<f64>>> {
        let result = |to: usize| {
            let from_all = parts.iter().zip(inputs).flat_map(|(part, x)| &x[0][part.sent_to(to)]);
            vec![from_all.copied().collect()]
        };
        (0..parts.len()).map(result).collect()
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }
}

impl CollectiveCases for AllToAllSpec {
    fn cases(world_size: u32) -> Result<Vec<GroupCase<Self>>> {
        let mut cases = Vec::new();
        let world = world_size as usize;
        for dtype in movable() {
            let shapes: [(&str, [usize; 2]); 4] =
                [("empty", [0, 3]), ("one", [1, 1]), ("unaligned", [3, 37]), ("typical", [4, 64])];
            for (edge, [rows, columns]) in shapes {
                let x = TensorSpec::of(dtype, &[rows * world, columns])?;
                cases.push(GroupCase::new(format!("{dtype}/{edge}"), world_size, |ranks| {
                    Self::new(ranks, &x, &x)
                })?);
            }
            // Rank r sends r·p rows to p: the first rank sends and receives nothing.
            let ragged = GroupCase::new(format!("{dtype}/ragged"), world_size, |ranks| {
                let rows: Vec<usize> = (0..world).map(|peer| peer * ranks.index()).collect();
                let x = at_odd_offset(dtype, &[rows.iter().sum(), 5])?;
                Self::ragged(ranks, &rows, &rows, &x, &x)
            })?;
            cases.push(ragged);
            // All of it goes to the last rank, which sends nothing.
            let one_way = GroupCase::new(format!("{dtype}/all_to_one"), world_size, |ranks| {
                let (mut send, mut recv) = (vec![0; world], vec![0; world]);
                match ranks.index() + 1 == world {
                    true => recv[..world - 1].fill(4),
                    false => send[world - 1] = 4,
                }
                let of = |rows: &[usize]| TensorSpec::of(dtype, &[rows.iter().sum(), 3]);
                Self::ragged(ranks, &send, &recv, &of(&send)?, &of(&recv)?)
            })?;
            cases.push(one_way);
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn parts_arrive_in_rank_order() {
        let x = TensorSpec::of(DType::F32, &[2]).unwrap();
        let parts: Vec<_> =
            (0..2).map(|r| AllToAllSpec::new(Ranks::new(r, 2).unwrap(), &x, &x).unwrap()).collect();
        let results = AllToAllSpec::reference(&parts, &[vec![&[1.0, 2.0]], vec![&[10.0, 20.0]]]);
        assert_eq!(results, [vec![vec![1.0, 10.0]], vec![vec![2.0, 20.0]]]);
        assert_eq!(parts[0].cost().bytes_comm, 4);
    }

    #[test]
    fn every_case_of_every_group_agrees() {
        for world in 1..5 {
            for case in AllToAllSpec::cases(world).unwrap() {
                let calls: Vec<Signature> = case.parts.iter().map(Collective::signature).collect();
                let calls: Vec<&Signature> = calls.iter().collect();
                assert_eq!(Signature::disagreement(&calls), None, "{}", case.name);
            }
        }
    }
}
