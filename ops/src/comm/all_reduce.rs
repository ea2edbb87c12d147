//! Combines the tensors of all ranks; every rank gets the result.

use super::collective::{at_odd_offset, collective_cost, expect_movable};
use super::{Collective, CollectiveCases, GroupCase, Part, Ranks, ReduceOp, Signature};
use crate::{Access, Cost, DType, Fill, Operand, Result, TensorSpec, Tolerance, expect_dims, expect_dtype};

const OP: &str = "all_reduce";

/// Combines the tensors of all ranks, element by element; every rank gets the result.
///
/// `out[i] = reduce over ranks r of x_r[i]`
///
/// # Shapes
/// x and out of the same extents, the same number of elements on every rank. Any extent may be zero.
///
/// # DTypes
/// One of f32, f16, bf16, f64, i64, i32, u8 on all ranks; a mean of floats only. f16 and bf16 are combined in f32
/// and rounded once, integers wrap.
///
/// # Layout
/// Contiguous, from any offset. out may be x itself.
///
/// # Determinism
/// All ranks get the same bits. `Fast`: combined in any order; from `RunToRun` on in rank order, so that timing
/// changes nothing.
///
/// # Cost
/// Each rank combines its share of the elements, `numel / world_size`, and sends the rest of x and its share of the
/// result to the others: `bytes + (world_size − 2) · share`.
///
/// # Errors
/// `Shape`, `DType`, `Layout`. Ranks that do not agree, or do not come: `Collective`.
#[derive(Clone, Debug, PartialEq)]
pub struct AllReduceSpec {
    ranks: Ranks,
    reduce: ReduceOp,
    x: TensorSpec,
    out: TensorSpec,
}

impl AllReduceSpec {
    /// This rank's part.
    pub fn new(ranks: Ranks, reduce: ReduceOp, x: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        expect_dtype(OP, "x", x, reduce.dtypes())?;
        expect_dtype(OP, "out", out, &[x.dtype()])?;
        expect_dims(OP, "out", out, x.dims())?;
        expect_movable(OP, "x", x)?;
        expect_movable(OP, "out", out)?;
        Ok(Self { ranks, reduce, x: *x, out: *out })
    }

    /// The result for x.
    pub fn out_spec(x: &TensorSpec) -> TensorSpec {
        x.to_contiguous()
    }

    /// How values are combined.
    pub fn reduce(&self) -> ReduceOp {
        self.reduce
    }
    /// What this rank gives.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// The result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
}

impl Collective for AllReduceSpec {
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

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        &[("out", "x")]
    }

    fn signature(&self) -> Signature {
        let part = Part { peer: 0, dtype: self.x.dtype(), numel: self.x.numel() };
        Signature { reduce: Some(self.reduce), alike: vec![part], ..Signature::of(OP) }
    }

    fn cost(&self) -> Cost {
        let share = self.ranks.share(self.x.numel(), self.ranks.index()).len() as u64;
        let others = self.ranks.others();
        let width = self.x.dtype().bytes_for(1) as u64;
        let sent = (self.x.numel() as u64 - share).saturating_add(share.saturating_mul(others));
        let sent = if others == 0 { 0 } else { sent.saturating_mul(width) };
        collective_cost(self, share.saturating_mul(self.reduce.flops(others + 1)), sent)
    }

    fn reference(parts: &[Self], inputs: &[Vec<&[f64]>]) -> Vec<Vec<Vec<f64>>> {
        let xs: Vec<&[f64]> = inputs.iter().map(|of_rank| of_rank[0]).collect();
        parts.iter().map(|part| vec![part.reduce.of(part.x.dtype(), &xs)]).collect()
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        vec![self.reduce.tolerance(self.x.dtype(), self.ranks.count())]
    }
}

impl CollectiveCases for AllReduceSpec {
    fn cases(world_size: u32) -> Result<Vec<GroupCase<Self>>> {
        let mut cases = Vec::new();
        for reduce in ReduceOp::ALL {
            for &dtype in reduce.dtypes() {
                // Fewer elements than ranks, too; long enough for several pieces of a kernel in f32 only.
                let shapes: [(&str, &[usize]); 6] = [
                    ("empty", &[3, 0]),
                    ("one", &[1]),
                    ("scalar", &[]),
                    ("unaligned", &[3, 37]),
                    ("typical", &[4, 256]),
                    ("long", &[1, if dtype == DType::F32 { 70_001 } else { 1_025 }]),
                ];
                for (edge, dims) in shapes {
                    let x = TensorSpec::of(dtype, dims)?;
                    let name = format!("{}/{dtype}/{edge}", reduce.name());
                    let case = GroupCase::new(name, world_size, |ranks| Self::new(ranks, reduce, &x, &x))?;
                    cases.push(case.filled(reduce.fill(dtype)));
                }
                let (x, out) =
                    (at_odd_offset(dtype, &[131])?, at_odd_offset(dtype, &[131, 1])?.reshape(&[131])?);
                let name = format!("{}/{dtype}/offset", reduce.name());
                let case = GroupCase::new(name, world_size, |ranks| Self::new(ranks, reduce, &x, &out))?;
                cases.push(case.filled(reduce.fill(dtype)));
                if dtype.is_float() && reduce != ReduceOp::Prod {
                    let x = TensorSpec::of(dtype, &[40])?;
                    let special = [vec![0.5; 11], vec![f64::NAN], vec![-0.5; 9], vec![f64::INFINITY, 1.0]];
                    let name = format!("{}/{dtype}/special", reduce.name());
                    let case = GroupCase::new(name, world_size, |ranks| Self::new(ranks, reduce, &x, &x))?;
                    cases.push(case.filled(Fill::Values(special.concat())));
                }
            }
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_ranks_send_is_what_the_best_algorithm_sends() {
        for world in 1..9u32 {
            for numel in [0usize, 1, 5, 64, 1001] {
                let x = TensorSpec::of(DType::F32, &[numel]).unwrap();
                let parts = (0..world).map(|r| {
                    AllReduceSpec::new(Ranks::new(r, world).unwrap(), ReduceOp::Sum, &x, &x).unwrap().cost()
                });
                let (sent, flops) = parts.fold((0, 0), |(s, f), cost| (s + cost.bytes_comm, f + cost.flops));
                assert_eq!(sent, 2 * u64::from(world - 1) * 4 * numel as u64);
                assert_eq!(flops, u64::from(world - 1) * numel as u64);
            }
        }
    }

    #[test]
    fn arguments_are_checked() {
        let ranks = Ranks::new(0, 2).unwrap();
        let x = TensorSpec::of(DType::F32, &[4, 6]).unwrap();
        let new = |reduce, x: &TensorSpec, out: &TensorSpec| AllReduceSpec::new(ranks, reduce, x, out);
        assert!(new(ReduceOp::Sum, &x, &x).is_ok());
        assert!(new(ReduceOp::Sum, &x, &x.reshape(&[24]).unwrap()).is_err());
        assert!(new(ReduceOp::Sum, &x, &x.with_dtype(DType::I32)).is_err());
        assert!(new(ReduceOp::Mean, &x.with_dtype(DType::I32), &x.with_dtype(DType::I32)).is_err());
        let gaps = x.narrow(1, 0, 3).unwrap();
        let error = new(ReduceOp::Sum, &gaps, &gaps).unwrap_err();
        assert!(error.to_string().contains("copy it first"), "{error}");
    }
}
