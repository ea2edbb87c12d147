//! Linear layers over dense weights: one product, with its epilogue behind it.

use super::Native;
use super::gemm::{Epilogue, multiply, plan_product};
use crate::aclnn::{Plan, Run, Soc};
use portolan_core::Call;
use portolan_ops::quant::{LinearSpec, WeightSpec};
use portolan_ops::{Result, Unsupported};

impl Native for LinearSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        let WeightSpec::Dense(weight) = self.weight() else { return Err(Unsupported::NotImplemented) };
        plan_product(soc, [self.x(), weight])?;
        soc.computes(self.out().dtype())?;
        soc.has("aclnnMatmulGetWorkspaceSize")
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (spec, x, out) = (op.spec(), op.require("x")?, op.require("out")?);
        let weight = op.require("weight")?.transpose(0, 1)?;
        let epilogue =
            Epilogue { alpha: 1.0, added: None, bias: op.tensor("bias"), activation: spec.activation() };
        // Rows of any number of dimensions are rows of one matrix.
        let (rows, n, k) = (spec.rows(), spec.n(), spec.k());
        match (x.reshape(&[rows, k]), out.reshape(&[rows, n])) {
            (Ok(x), Ok(out)) => multiply(run, &x, &weight, &epilogue, &out),
            (x_rows, _) => {
                let x = match x_rows {
                    Ok(rows) => rows,
                    Err(_) => super::scatter::contiguous(run, &x)?.reshape(&[rows, k])?,
                };
                let dense = run.scratch(out.dtype(), &[rows, n])?;
                multiply(run, &x, &weight, &epilogue, &dense)?;
                run.copy(&dense.reshape(out.dims())?, &out)
            }
        }
    }
}
