//! Recurrences along a dimension: sums are one kernel of the vendor's; products, maxima and the linear form take steps
//! that double in length, as many as the extent has bits.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::code;
use portolan_core::{Call, Tensor};
use portolan_ops::kernel::{ScanKind, ScanSpec};
use portolan_ops::{DType, OpError, Result};

impl Native for ScanSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        soc.compute_all([self.x()])
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (spec, out) = (op.spec(), op.require("out")?);
        match spec.kind() {
            ScanKind::Sum => sum(run, op, &op.require("x")?, &out),
            ScanKind::Linear => linear(run, op, &op.require("b")?, &out),
            kind => {
                let x = op.require("x")?;
                let running = run.scratch(wide(x.dtype()), x.dims())?;
                run.store(&x, &running)?;
                run.store(&doubled(run, kind, spec.dim(), running)?, &out)
            }
        }
    }
}

/// The type of running values.
fn wide(dtype: DType) -> DType {
    if dtype.is_float() { DType::F32 } else { dtype }
}

fn sum(run: &Run<'_, '_>, op: &Call<ScanSpec>, x: &Tensor, out: &Tensor) -> Result<()> {
    let (dim, dtype) = (op.spec().dim() as i64, wide(x.dtype()));
    let direct = out.dtype() == dtype && !out.buffer().same(x.buffer());
    let sums = if direct { out.clone() } else { run.scratch(dtype, x.dims())? };
    if op.spec().is_exclusive() {
        let x = run.typed(x, dtype)?;
        let ends = (run.tensor(&x)?, run.tensor(&sums)?);
        let (exclusive, reverse) = (true, false);
        aclnn!(run, aclnnCumsumV2GetWorkspaceSize, aclnnCumsumV2, ends.0, dim, exclusive, reverse, ends.1)?;
    } else {
        let number =
            code(dtype).ok_or_else(|| OpError::internal("cumulative_sum", "a type without a number"))?;
        let ends = (run.tensor(x)?, run.tensor(&sums)?);
        aclnn!(run, aclnnCumsumGetWorkspaceSize, aclnnCumsum, ends.0, dim, number, ends.1)?;
    }
    if direct { Ok(()) } else { run.store(&sums, out) }
}

/// Joins to each place what stands `step` places before it, in steps of 1, 2, 4, …
fn doubled(run: &Run<'_, '_>, kind: ScanKind, dim: usize, mut running: Tensor) -> Result<Tensor> {
    let (extent, mut step) = (running.dims()[dim], 1);
    while step < extent {
        let next = run.scratch(running.dtype(), running.dims())?;
        let rest = extent - step;
        run.copy(&running.narrow(dim, 0, step)?, &next.narrow(dim, 0, step)?)?;
        let [early, late, joined] =
            [running.narrow(dim, 0, rest)?, running.narrow(dim, step, rest)?, next.narrow(dim, step, rest)?];
        if kind == ScanKind::Max {
            let [a, b, out] = [run.tensor(&early)?, run.tensor(&late)?, run.tensor(&joined)?];
            aclnn!(run, aclnnMaximumGetWorkspaceSize, aclnnMaximum, a, b, out)?;
        } else {
            run.mul(&early, &late, &joined)?;
        }
        (running, step) = (next, 2 * step);
    }
    Ok(running)
}

/// `h = a · h + b`: a place's pair (a, h) joined with the pair `step` before it is (a · a', a · h' + h).
fn linear(run: &Run<'_, '_>, op: &Call<ScanSpec>, b: &Tensor, out: &Tensor) -> Result<()> {
    let (dim, dims) = (op.spec().dim(), b.dims());
    let extent = dims[dim];
    let mut state_dims = dims.to_vec();
    state_dims[dim] = 1;
    let initial = op.tensor("initial");
    if extent > 0 {
        let a = op.require("a")?.broadcast_to(dims)?;
        let (mut decay, mut state) = (run.scratch(DType::F32, dims)?, run.scratch(DType::F32, dims)?);
        run.store(&a, &decay)?;
        run.store(b, &state)?;
        if let Some(initial) = &initial {
            let brought = run.scratch(DType::F32, &state_dims)?;
            run.mul(&decay.narrow(dim, 0, 1)?, &initial.reshape(&state_dims)?, &brought)?;
            let first = state.narrow(dim, 0, 1)?;
            run.add(&first, &brought, 1.0, &first)?;
        }
        let mut step = 1;
        while step < extent {
            let rest = extent - step;
            let (decays, states) = (run.scratch(DType::F32, dims)?, run.scratch(DType::F32, dims)?);
            for (from, to) in [(&decay, &decays), (&state, &states)] {
                run.copy(&from.narrow(dim, 0, step)?, &to.narrow(dim, 0, step)?)?;
            }
            let late = decay.narrow(dim, step, rest)?;
            let joined = states.narrow(dim, step, rest)?;
            run.mul(&late, &state.narrow(dim, 0, rest)?, &joined)?;
            run.add(&joined, &state.narrow(dim, step, rest)?, 1.0, &joined)?;
            run.mul(&late, &decay.narrow(dim, 0, rest)?, &decays.narrow(dim, step, rest)?)?;
            (decay, state, step) = (decays, states, 2 * step);
        }
        run.store(&state, out)?;
        if let Some(last) = op.tensor("last") {
            run.store(&state.narrow(dim, extent - 1, 1)?, &last.reshape(&state_dims)?)?;
        }
        return Ok(());
    }
    match (op.tensor("last"), initial) {
        (Some(last), Some(initial)) => run.store(&initial, &last),
        (Some(last), None) => run.zero(&last),
        (None, _) => Ok(()),
    }
}
