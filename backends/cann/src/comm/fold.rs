//! Reductions in rank order. HCCL documents no order of its own, so it only moves what the ranks hold, and each rank
//! that gets a result forms it, with the device's own kernels.

use super::expert_parallel_ffn;
use super::movement::Turn;
use crate::driver::Driver;
use crate::op::Native;
use portolan_core::call::{Binary, Cast, Copy};
use portolan_core::{CollectiveRef, OpQuery, SpecRef, Tensor};
use portolan_ops::comm::ReduceOp;
use portolan_ops::kernel::{BinaryKind, BinarySpec};
use portolan_ops::{DType, Determinism, Result, TensorSpec, Unsupported};

/// The function of two elements that makes one of them.
fn kind(reduce: ReduceOp) -> BinaryKind {
    match reduce {
        ReduceOp::Sum | ReduceOp::Mean => BinaryKind::Add,
        ReduceOp::Prod => BinaryKind::Mul,
        ReduceOp::Max => BinaryKind::Max,
        ReduceOp::Min => BinaryKind::Min,
    }
}

/// The type that is computed in: that of the sums, rounded once at the end.
fn compute(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    }
}

/// Why the device cannot take part in an operator over ranks: it can move everything, and combine what it computes with.
pub(crate) fn plan(
    driver: &Driver,
    determinism: Determinism,
    query: &OpQuery<'_>,
) -> core::result::Result<(), Unsupported> {
    let SpecRef::Collective(collective) = query.spec else { return Err(Unsupported::NotImplemented) };
    let soc = driver.soc(determinism);
    let (reduce, dtype) = match collective {
        CollectiveRef::AllReduce(spec) => (spec.reduce(), spec.x().dtype()),
        CollectiveRef::ReduceTo(spec) => (spec.reduce(), spec.x().dtype()),
        CollectiveRef::ReduceScatter(spec) => (spec.reduce(), spec.x().dtype()),
        CollectiveRef::ExpertParallelFfn(spec) => return expert_parallel_ffn::plan(&soc, spec),
        _ => return Ok(()),
    };
    soc.computes(dtype)?;
    let one = TensorSpec::of(compute(dtype), &[1]).map_err(|_| Unsupported::DType(dtype))?;
    let combined = BinarySpec::new(kind(reduce), &one, &one, &one).map_err(|_| Unsupported::DType(dtype))?;
    combined.plan(&soc)
}

/// Combines the rows of `rows`, one of each rank, into `out`.
pub(super) fn fold(turn: &Turn<'_, '_>, reduce: ReduceOp, rows: &Tensor, out: &Tensor) -> Result<()> {
    let (ranks, len) = (rows.dims()[0], rows.dims()[1]);
    let launch = turn.launch();
    let (dtype, wide) = (rows.dtype(), compute(rows.dtype()));
    let rows = match wide == dtype {
        true => rows.clone(),
        false => {
            let mut widened = launch.scratch(&TensorSpec::of(wide, &[ranks, len])?)?;
            launch.run(Cast::new(rows, &mut widened)?)?;
            widened
        }
    };
    let row = |rank: usize| rows.narrow(0, rank, 1)?.reshape(&[len]);
    let mut sum = row(0)?;
    for rank in 1..ranks {
        let same = sum.clone();
        launch.run(Binary::new(kind(reduce), &same, &row(rank)?, &mut sum)?)?;
    }
    if reduce == ReduceOp::Mean {
        let same = sum.clone();
        launch.run(Binary::scalar(BinaryKind::Div, &same, ranks as f64, &mut sum)?)?;
    }
    let mut out = out.reshape(&[len])?;
    match wide == dtype {
        true => launch.run(Copy::new(&sum, &mut out)?),
        false => launch.run(Cast::new(&sum, &mut out)?),
    }
}
