//! Collects the tensors of all ranks; every rank gets all of them.

use super::collective::{at_odd_offset, collective_cost, expect_movable, movable};
use super::rows::{Rows, expect_like_rows, expect_rows, row_len};
use super::{Collective, CollectiveCases, GroupCase, Part, Ranks, Signature};
use crate::{Access, Cost, Operand, Result, Shape, TensorSpec, Tolerance, expect_dtype};

const OP: &str = "all_gather";

/// Collects the tensors of all ranks, one behind the other in rank order; every rank gets all of them.
///
/// `out = concatenation over ranks r of x_r`, along the first dimension
///
/// # Shapes
/// x `[m_r, ..]`, out `[Σ m_r, ..]`; m_r is the same on all ranks, or given for each (elsewhere called
/// `all_gather_v`). Any extent may be zero.
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
/// Each rank sends x to all others: `(world_size − 1) · bytes`.
///
/// # Errors
/// `Shape`, `DType`, `Layout`. Ranks that do not agree, or do not come: `Collective`.
#[derive(Clone, Debug, PartialEq)]
pub struct AllGatherSpec {
    ranks: Ranks,
    rows: Rows,
    x: TensorSpec,
    out: TensorSpec,
}

impl AllGatherSpec {
    /// This rank's part, where all ranks give as many rows.
    pub fn new(ranks: Ranks, x: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        Self::checked(ranks, Rows::equal(OP, "out", out, ranks)?, x, out)
    }

    /// This rank's part, where rank r gives `rows[r]` rows.
    pub fn ragged(ranks: Ranks, rows: &[usize], x: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        Self::checked(ranks, Rows::ragged(OP, "out", out, ranks, rows)?, x, out)
    }

    fn checked(ranks: Ranks, rows: Rows, x: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        expect_like_rows(OP, ("x", x), ("out", out))?;
        expect_rows(OP, "x", x, rows.of(ranks.index()))?;
        expect_movable(OP, "x", x)?;
        expect_dtype(OP, "out", out, &[x.dtype()])?;
        expect_movable(OP, "out", out)?;
        Ok(Self { ranks, rows, x: *x, out: *out })
    }

    /// The result where all ranks give an x like this one.
    pub fn out_spec(ranks: Ranks, x: &TensorSpec) -> Result<TensorSpec> {
        expect_like_rows(OP, ("x", x), ("x", x))?;
        let rows = x.dims()[0].saturating_mul(ranks.count());
        Ok(TensorSpec::new(x.dtype(), Shape::with_dim(x.shape(), 0, rows)?))
    }

    /// What this rank gives.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// The result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// The elements of out that rank `rank` gives.
    pub fn part(&self, rank: usize) -> core::ops::Range<usize> {
        let (row, start) = (row_len(&self.out), self.rows.before(rank));
        start * row..(start + self.rows.of(rank)) * row
    }
}

impl Collective for AllGatherSpec {
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
        Signature { alike: (0..self.ranks.world_size()).map(part).collect(), ..Signature::of(OP) }
    }

    fn cost(&self) -> Cost {
        collective_cost(self, 0, (self.x.bytes() as u64).saturating_mul(self.ranks.others()))
    }

    fn reference(parts: &[Self], inputs: &[Vec<&[f64]>]) -> Vec<Vec<Vec<f64>>> {
        let all: Vec<f64> = inputs.iter().flat_map(|of_rank| of_rank[0]).copied().collect();
        vec![vec![all]; parts.len()]
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }
}

impl CollectiveCases for AllGatherSpec {
    fn cases(world_size: u32) -> Result<Vec<GroupCase<Self>>> {
        let mut cases = Vec::new();
        for dtype in movable() {
            let shapes: [(&str, &[usize]); 5] = [
                ("empty", &[0]),
                ("empty_rows", &[2, 0]),
                ("one", &[1]),
                ("unaligned", &[3, 37]),
                ("typical", &[8, 64]),
            ];
            for (edge, dims) in shapes {
                let x = TensorSpec::of(dtype, dims)?;
                let case = GroupCase::new(format!("{dtype}/{edge}"), world_size, |ranks| {
                    Self::new(ranks, &x, &Self::out_spec(ranks, &x)?)
                })?;
                cases.push(case);
            }
            // Rank r gives r rows: the first one nothing.
            let rows: Vec<usize> = (0..world_size as usize).collect();
            let ragged = GroupCase::new(format!("{dtype}/ragged"), world_size, |ranks| {
                let x = at_odd_offset(dtype, &[ranks.index(), 5])?;
                let out = at_odd_offset(dtype, &[rows.iter().sum(), 5])?;
                Self::ragged(ranks, &rows, &x, &out)
            })?;
            cases.push(ragged);
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn parts_lie_in_rank_order() {
        let ranks = Ranks::new(1, 3).unwrap();
        let (x, out) =
            (TensorSpec::of(DType::F32, &[4, 2]).unwrap(), TensorSpec::of(DType::F32, &[7, 2]).unwrap());
        let spec = AllGatherSpec::ragged(ranks, &[3, 4, 0], &x, &out).unwrap();
        assert_eq!((spec.part(0), spec.part(1), spec.part(2)), (0..6, 6..14, 14..14));
        assert_eq!(spec.cost().bytes_comm, 64);
    }

    #[test]
    fn rows_add_up() {
        let ranks = Ranks::new(0, 2).unwrap();
        let of = |dims: &[usize]| TensorSpec::of(DType::F32, dims).unwrap();
        assert!(AllGatherSpec::new(ranks, &of(&[2, 3]), &of(&[4, 3])).is_ok());
        assert!(AllGatherSpec::new(ranks, &of(&[2, 3]), &of(&[5, 3])).is_err());
        assert!(AllGatherSpec::new(ranks, &of(&[2, 3]), &of(&[4, 2])).is_err());
        assert!(AllGatherSpec::new(ranks, &of(&[1, 3]), &of(&[4, 3])).is_err());
        assert!(AllGatherSpec::new(ranks, &of(&[]), &of(&[2])).is_err());
        for rows in [&[2, 3][..], &[2], &[2, 2, 0], &[usize::MAX, 5]] {
            assert!(AllGatherSpec::ragged(ranks, rows, &of(&[2, 3]), &of(&[4, 3])).is_err(), "{rows:?}");
        }
    }
}
