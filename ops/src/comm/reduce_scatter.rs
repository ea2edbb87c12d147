//! Combines the tensors of all ranks; every rank gets its part of the result.

use super::collective::{collective_cost, expect_movable};
use super::rows::{Rows, expect_like_rows, expect_rows, row_len};
use super::{Collective, CollectiveCases, GroupCase, Part, Ranks, ReduceOp, Signature};
use crate::{Access, Cost, Operand, Result, Shape, TensorSpec, Tolerance, expect_dtype};

const OP: &str = "reduce_scatter";

/// Combines the tensors of all ranks, element by element; rank r gets the r-th part of the rows.
///
/// `out = rows of rank r of (reduce over ranks q of x_q)`
///
/// # Shapes
/// x `[Σ m_r, ..]`, out `[m_r, ..]`; m_r is the same for all ranks, or given for each (elsewhere called
/// `reduce_scatter_v`). Any extent may be zero.
///
/// # DTypes
/// As all_reduce.
///
/// # Layout
/// Contiguous, from any offset.
///
/// # Determinism
/// `Fast`: combined in any order; from `RunToRun` on in rank order.
///
/// # Cost
/// Each rank combines its part and sends the rest of x.
///
/// # Errors
/// `Shape`, `DType`, `Layout`. Ranks that do not agree, or do not come: `Collective`.
#[derive(Clone, Debug, PartialEq)]
pub struct ReduceScatterSpec {
    ranks: Ranks,
    reduce: ReduceOp,
    rows: Rows,
    x: TensorSpec,
    out: TensorSpec,
}

impl ReduceScatterSpec {
    /// This rank's part, where all ranks get as many rows.
    pub fn new(ranks: Ranks, reduce: ReduceOp, x: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        Self::checked(ranks, reduce, Rows::equal(OP, "x", x, ranks)?, x, out)
    }

    /// This rank's part, where rank r gets `rows[r]` rows.
    pub fn ragged(
        ranks: Ranks,
        reduce: ReduceOp,
        rows: &[usize],
        x: &TensorSpec,
        out: &TensorSpec,
    ) -> Result<Self> {
        Self::checked(ranks, reduce, Rows::ragged(OP, "x", x, ranks, rows)?, x, out)
    }

    fn checked(ranks: Ranks, reduce: ReduceOp, rows: Rows, x: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        expect_dtype(OP, "x", x, reduce.dtypes())?;
        expect_dtype(OP, "out", out, &[x.dtype()])?;
        expect_like_rows(OP, ("x", x), ("out", out))?;
        expect_rows(OP, "out", out, rows.of(ranks.index()))?;
        expect_movable(OP, "x", x)?;
        expect_movable(OP, "out", out)?;
        Ok(Self { ranks, reduce, rows, x: *x, out: *out })
    }

    /// The result for x, where all ranks get as many rows.
    pub fn out_spec(ranks: Ranks, x: &TensorSpec) -> Result<TensorSpec> {
        let rows = Rows::equal(OP, "x", x, ranks)?.of(ranks.index());
        Ok(TensorSpec::new(x.dtype(), Shape::with_dim(x.shape(), 0, rows)?))
    }

    /// How values are combined.
    pub fn reduce(&self) -> ReduceOp {
        self.reduce
    }
    /// What this rank gives.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// This rank's part of the result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// The elements of x whose combination rank `rank` gets.
    pub fn part(&self, rank: usize) -> core::ops::Range<usize> {
        let (row, start) = (row_len(&self.x), self.rows.before(rank));
        start * row..(start + self.rows.of(rank)) * row
    }
}

impl Collective for ReduceScatterSpec {
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
        let part = |rank: u32| Part { peer: rank, dtype, numel: self.part(rank as usize).len() };
        Signature {
            reduce: Some(self.reduce),
            alike: (0..self.ranks.world_size()).map(part).collect(),
            ..Signature::of(OP)
        }
    }

    fn cost(&self) -> Cost {
        let each = self.reduce.flops(u64::from(self.ranks.world_size()));
        let sent = self.x.bytes() as u64 - self.out.bytes() as u64;
        collective_cost(self, (self.out.numel() as u64).saturating_mul(each), sent)
    }

    fn reference(parts: &[Self], inputs: &[Vec<&[f64]>]) -> Vec<Vec<Vec<f64>>> {
        let xs: Vec<&[f64]> = inputs.iter().map(|of_rank| of_rank[0]).collect();
        let result = |part: &Self| {
            let all = part.reduce.of(part.x.dtype(), &xs);
            vec![all[part.part(part.ranks.index())].to_vec()]
        };
        parts.iter().map(result).collect()
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        vec![self.reduce.tolerance(self.x.dtype(), self.ranks.count())]
    }
}

impl CollectiveCases for ReduceScatterSpec {
    fn cases(world_size: u32) -> Result<Vec<GroupCase<Self>>> {
        let mut cases = Vec::new();
        let world = world_size as usize;
        for reduce in ReduceOp::ALL {
            for &dtype in reduce.dtypes() {
                let name = |edge: &str| format!("{}/{dtype}/{edge}", reduce.name());
                let shapes: [(&str, [usize; 2]); 4] =
                    [("empty", [0, 3]), ("one", [1, 1]), ("unaligned", [3, 37]), ("typical", [2, 256])];
                for (edge, [rows, columns]) in shapes {
                    let x = TensorSpec::of(dtype, &[rows * world, columns])?;
                    let case = GroupCase::new(name(edge), world_size, |ranks| {
                        Self::new(ranks, reduce, &x, &Self::out_spec(ranks, &x)?)
                    })?;
                    cases.push(case.filled(reduce.fill(dtype)));
                }
                // Rank r gets r rows: the first one nothing.
                let rows: Vec<usize> = (0..world).collect();
                let x = TensorSpec::of(dtype, &[rows.iter().sum(), 7])?;
                let case = GroupCase::new(name("ragged"), world_size, |ranks| {
                    Self::ragged(ranks, reduce, &rows, &x, &TensorSpec::of(dtype, &[ranks.index(), 7])?)
                })?;
                cases.push(case.filled(reduce.fill(dtype)));
            }
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn each_rank_gets_its_part_of_the_sum() {
        let parts: Vec<_> = (0..2)
            .map(|rank| {
                let x = TensorSpec::of(DType::F32, &[3]).unwrap();
                let out = TensorSpec::of(DType::F32, &[1 + rank]).unwrap();
                let ranks = Ranks::new(rank as u32, 2).unwrap();
                ReduceScatterSpec::ragged(ranks, ReduceOp::Sum, &[1, 2], &x, &out).unwrap()
            })
            .collect();
        let results =
            ReduceScatterSpec::reference(&parts, &[vec![&[1.0, 2.0, 3.0]], vec![&[10.0, 20.0, 30.0]]]);
        assert_eq!(results, [vec![vec![11.0]], vec![vec![22.0, 33.0]]]);
        assert_eq!((parts[0].cost().bytes_comm, parts[1].cost().bytes_comm), (8, 4));
    }

    #[test]
    fn rows_part_equally_or_as_said() {
        let ranks = Ranks::new(0, 2).unwrap();
        let of = |dims: &[usize]| TensorSpec::of(DType::F32, dims).unwrap();
        assert!(ReduceScatterSpec::out_spec(ranks, &of(&[3, 2])).is_err());
        assert_eq!(ReduceScatterSpec::out_spec(ranks, &of(&[6, 2])).unwrap().dims(), [3, 2]);
        assert!(ReduceScatterSpec::new(ranks, ReduceOp::Sum, &of(&[6, 2]), &of(&[2, 2])).is_err());
    }
}
