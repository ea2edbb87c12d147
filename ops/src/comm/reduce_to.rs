//! Combines the tensors of all ranks; one rank gets the result.

use super::collective::{collective_cost, expect_movable};
use super::{Collective, CollectiveCases, GroupCase, Part, Ranks, ReduceOp, Signature};
use crate::{Access, Cost, OpError, Operand, Result, TensorSpec, Tolerance, expect_dims, expect_dtype};

const OP: &str = "reduce_to";

/// Combines the tensors of all ranks, element by element; the root gets the result.
///
/// `out[i] = reduce over ranks r of x_r[i]`, on the root
///
/// # Shapes
/// x of the same number of elements on every rank; out, on the root and nowhere else, of the extents of x.
///
/// # DTypes
/// As all_reduce.
///
/// # Layout
/// Contiguous, from any offset. out may be x itself.
///
/// # Determinism
/// `Fast`: combined in any order; from `RunToRun` on in rank order.
///
/// # Cost
/// The root combines `(world_size − 1) · numel`; every other rank sends x.
///
/// # Errors
/// `Shape`, `DType`, `Layout`, `Attribute` (no such root; out missing on it, or given elsewhere). Ranks that do not
/// agree, or do not come: `Collective`.
#[derive(Clone, Debug, PartialEq)]
pub struct ReduceToSpec {
    ranks: Ranks,
    reduce: ReduceOp,
    root: u32,
    x: TensorSpec,
    out: Option<TensorSpec>,
}

impl ReduceToSpec {
    /// This rank's part; `out` on the root only.
    pub fn new(
        ranks: Ranks,
        reduce: ReduceOp,
        root: u32,
        x: &TensorSpec,
        out: Option<&TensorSpec>,
    ) -> Result<Self> {
        ranks.expect_peer(OP, "root", root)?;
        expect_dtype(OP, "x", x, reduce.dtypes())?;
        expect_movable(OP, "x", x)?;
        match (ranks.rank() == root, out) {
            (true, Some(out)) => {
                expect_dtype(OP, "out", out, &[x.dtype()])?;
                expect_dims(OP, "out", out, x.dims())?;
                expect_movable(OP, "out", out)?;
            }
            (false, None) => {}
            (true, None) => return Err(OpError::attribute(OP, "out", "is missing on the root")),
            (false, Some(_)) => {
                let what = format!("is given on rank {}, only the root {root} has a result", ranks.rank());
                return Err(OpError::attribute(OP, "out", what));
            }
        }
        Ok(Self { ranks, reduce, root, x: *x, out: out.copied() })
    }

    /// How values are combined.
    pub fn reduce(&self) -> ReduceOp {
        self.reduce
    }
    /// The rank that gets the result.
    pub fn root(&self) -> u32 {
        self.root
    }
    /// What this rank gives.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// The result, on the root.
    pub fn out(&self) -> Option<&TensorSpec> {
        self.out.as_ref()
    }
}

impl Collective for ReduceToSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn ranks(&self) -> Ranks {
        self.ranks
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        if let Some(spec) = &self.out {
            visit(Operand { name: "out", spec, access: Access::Write });
        }
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        &[("out", "x")]
    }

    fn signature(&self) -> Signature {
        let part = Part { peer: 0, dtype: self.x.dtype(), numel: self.x.numel() };
        Signature { reduce: Some(self.reduce), root: Some(self.root), alike: vec![part], ..Signature::of(OP) }
    }

    fn cost(&self) -> Cost {
        let (flops, sent) = match self.out {
            Some(_) => {
                let each = self.reduce.flops(u64::from(self.ranks.world_size()));
                ((self.x.numel() as u64).saturating_mul(each), 0)
            }
            None => (0, self.x.bytes() as u64),
        };
        collective_cost(self, flops, sent)
    }

    fn reference(parts: &[Self], inputs: &[Vec<&[f64]>]) -> Vec<Vec<Vec<f64>>> {
        let xs: Vec<&[f64]> = inputs.iter().map(|of_rank| of_rank[0]).collect();
        let result = |part: &Self| part.out.iter().map(|_| part.reduce.of(part.x.dtype(), &xs)).collect();
        parts.iter().map(result).collect()
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        self.out.iter().map(|_| self.reduce.tolerance(self.x.dtype(), self.ranks.count())).collect()
    }
}

impl CollectiveCases for ReduceToSpec {
    fn cases(world_size: u32) -> Result<Vec<GroupCase<Self>>> {
        let mut cases = Vec::new();
        for reduce in ReduceOp::ALL {
            for &dtype in reduce.dtypes() {
                let shapes: [(&str, &[usize]); 4] =
                    [("empty", &[0]), ("one", &[1]), ("unaligned", &[3, 37]), ("typical", &[4, 256])];
                for (edge, dims) in shapes {
                    for root in [0, world_size - 1] {
                        let x = TensorSpec::of(dtype, dims)?;
                        let name = format!("{}/{dtype}/{edge}/root_{root}", reduce.name());
                        let case = GroupCase::new(name, world_size, |ranks| {
                            Self::new(ranks, reduce, root, &x, (ranks.rank() == root).then_some(&x))
                        })?;
                        cases.push(case.filled(reduce.fill(dtype)));
                    }
                }
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
    fn only_the_root_has_a_result() {
        let x = TensorSpec::of(DType::F32, &[3]).unwrap();
        let new =
            |rank, root, out| ReduceToSpec::new(Ranks::new(rank, 2).unwrap(), ReduceOp::Sum, root, &x, out);
        assert!(new(0, 0, Some(&x)).is_ok() && new(1, 0, None).is_ok());
        assert!(new(0, 0, None).is_err() && new(1, 0, Some(&x)).is_err() && new(0, 2, None).is_err());
        assert_eq!(new(0, 0, Some(&x)).unwrap().cost().bytes_comm, 0);
        assert_eq!(new(1, 0, None).unwrap().cost().bytes_comm, 12);
    }
}
