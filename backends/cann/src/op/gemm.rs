//! Matrix products: one kernel, two with a result that is not contiguous; the epilogue is in f32 behind it. Where a row's
//! bits may depend on no other, the same kernel over blocks of one size.

use super::Native;
use super::scatter::contiguous;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::product::Product;
use portolan_core::{Call, Tensor};
use portolan_ops::kernel::{Activation, GemmForm, GemmSpec};
use portolan_ops::{DType, Result, TensorSpec, Unsupported};

/// `cubeMathType`: factors are multiplied in the type they have.
pub(super) const KEEP_DTYPE: i8 = 0;
/// `cubeMathType`: on inference cards, f32 becomes fp16.
const ALLOW_FP32_DOWN_PRECISION: i8 = 1;

/// Rows of a product whose kernel splits its sums alike whatever the number of rows: the vendor chooses by the extents.
const BLOCK: usize = 128;

/// Whether the cube unit multiplies such factors as the contract wants, all rows in one call.
pub(super) fn plan_product<'s>(soc: &Soc<'_>, specs: impl IntoIterator<Item = &'s TensorSpec>) -> Plan {
    soc.promises_rows()?;
    plan_factors(soc, specs)
}

/// Whether the cube unit multiplies such factors.
fn plan_factors<'s>(soc: &Soc<'_>, specs: impl IntoIterator<Item = &'s TensorSpec>) -> Plan {
    specs.into_iter().try_for_each(|spec| match spec.dtype() {
        // It would round f32 to fp16.
        DType::F32 if soc.product == Product::P310 && !soc.half_products => Err(Unsupported::Precision),
        DType::F32 | DType::F16 | DType::BF16 => soc.computes(spec.dtype()),
        dtype => Err(Unsupported::DType(dtype)),
    })
}

impl Native for GemmSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        plan_factors(soc, [self.a(), self.b()])?;
        soc.computes(self.out().dtype())?;
        match self.a().rank() > 6 {
            true => Err(Unsupported::Shape("at most 6 dimensions")),
            false => soc.promises_rows(),
        }
    }

    /// In blocks of one size.
    fn stands_in(&self, why: &Unsupported) -> bool {
        matches!(why, Unsupported::Determinism(_))
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let spec = op.spec();
        let turned = |x: Tensor| x.transpose(x.dims().len() - 2, x.dims().len() - 1);
        let (a, b) = (op.require("a")?, op.require("b")?);
        let (a, b) = match spec.form() {
            GemmForm::Nn => (a, b),
            GemmForm::Nt => (a, turned(b)?),
            GemmForm::Tn => (turned(a)?, b),
        };
        let epilogue = Epilogue {
            alpha: f64::from(spec.alpha()),
            added: op.tensor("c").map(|c| (c, f64::from(spec.beta()))),
            bias: op.tensor("bias"),
            activation: spec.activation(),
        };
        multiply(run, &a, &b, &epilogue, &op.require("out")?)
    }
}

/// What is done to a product before it is rounded.
pub(super) struct Epilogue {
    pub(super) alpha: f64,
    /// A tensor of the result's extents, and its factor.
    pub(super) added: Option<(Tensor, f64)>,
    pub(super) bias: Option<Tensor>,
    pub(super) activation: Activation,
}

impl Epilogue {
    /// Whether the product is the result.
    pub(super) fn is_nothing(&self) -> bool {
        self.is_bias() && self.bias.is_none()
    }

    /// Nothing but a bias, perhaps.
    fn is_bias(&self) -> bool {
        self.alpha == 1.0 && self.added.is_none() && self.activation == Activation::Identity
    }
}

/// `out = epilogue(a · b)`, matrices in the last two dimensions.
pub(super) fn multiply(
    run: &Run<'_, '_>,
    a: &Tensor,
    b: &Tensor,
    epilogue: &Epilogue,
    out: &Tensor,
) -> Result<()> {
    let k = a.dims()[a.dims().len() - 1];
    if epilogue.is_nothing() && out.spec().is_contiguous() {
        return product(run, a, b, k, out);
    }
    if epilogue.is_nothing() {
        let dense = run.scratch(out.dtype(), out.dims())?;
        product(run, a, b, k, &dense)?;
        return run.copy(&dense, out);
    }
    let one_type = [a, b].iter().all(|x| x.dtype() == out.dtype());
    if let Some(bias) = epilogue.bias.as_ref().filter(|bias| one_type && bias.dtype() == out.dtype())
        && epilogue.is_bias()
        && out.dims().len() == 2
        && out.spec().is_contiguous()
        && k > 0
        && run.soc().promises_rows().is_ok()
    {
        let (one, other) = (run.scalar(out.dtype(), 1.0)?, run.scalar(out.dtype(), 1.0)?);
        let mode = mode(run, [a, b]);
        let [bias, a, b, out] = [run.tensor(bias)?, run.tensor(a)?, run.tensor(b)?, run.tensor(out)?];
        return aclnn!(run, aclnnAddmmGetWorkspaceSize, aclnnAddmm, bias, a, b, one, other, out, mode);
    }
    let sums = run.scratch(DType::F32, out.dims())?;
    product(run, a, b, k, &sums)?;
    finish(run, &sums, epilogue, out)
}

/// `out = epilogue(sums)`, sums in f32, which it changes.
pub(super) fn finish(run: &Run<'_, '_>, sums: &Tensor, epilogue: &Epilogue, out: &Tensor) -> Result<()> {
    if epilogue.alpha != 1.0 {
        run.muls(sums, epilogue.alpha, sums)?;
    }
    if let Some((added, factor)) = &epilogue.added {
        run.add(sums, added, *factor, sums)?;
    }
    if let Some(bias) = &epilogue.bias {
        run.add(sums, bias, 1.0, sums)?;
    }
    match out.dtype() {
        DType::F32 => run.activate(epilogue.activation, sums, out),
        _ if epilogue.activation == Activation::Identity => run.cast(sums, out),
        _ => {
            let activated = run.scratch(DType::F32, out.dims())?;
            run.activate(epilogue.activation, sums, &activated)?;
            run.cast(&activated, out)
        }
    }
}

/// What the cube unit multiplies in.
fn mode(run: &Run<'_, '_>, factors: [&Tensor; 2]) -> i8 {
    let single = factors.iter().any(|x| x.dtype() == DType::F32);
    if single && run.soc().product == Product::P310 { ALLOW_FP32_DOWN_PRECISION } else { KEEP_DTYPE }
}

/// `out = a · b`, out contiguous.
fn product(run: &Run<'_, '_>, a: &Tensor, b: &Tensor, k: usize, out: &Tensor) -> Result<()> {
    if k == 0 {
        return run.zero(out);
    }
    match run.soc().promises_rows() {
        Ok(()) => whole(run, a, b, out),
        Err(_) => in_blocks(run, a, b, out),
    }
}

/// The same a matrix at a time, its rows [`BLOCK`] at a time, with zeros below the last ones.
fn in_blocks(run: &Run<'_, '_>, a: &Tensor, b: &Tensor, out: &Tensor) -> Result<()> {
    if let [batch, _, _, ..] = *out.dims() {
        for index in 0..batch {
            in_blocks(run, &a.select(0, index)?, &b.select(0, index)?, &out.select(0, index)?)?;
        }
        return Ok(());
    }
    let (rows, n, k) = (out.dims()[0], out.dims()[1], a.dims()[1]);
    let (full, rest) = (rows / BLOCK * BLOCK, rows % BLOCK);
    // A view of another layout may have another kernel.
    let a = if a.spec().is_contiguous() || full == 0 { a.clone() } else { contiguous(run, a)? };
    for first in (0..full).step_by(BLOCK) {
        whole(run, &a.narrow(0, first, BLOCK)?, b, &out.narrow(0, first, BLOCK)?)?;
    }
    if rest == 0 {
        return Ok(());
    }
    let (block, sums) = (run.scratch(a.dtype(), &[BLOCK, k])?, run.scratch(out.dtype(), &[BLOCK, n])?);
    run.zero(&block)?;
    run.copy(&a.narrow(0, full, rest)?, &block.narrow(0, 0, rest)?)?;
    whole(run, &block, b, &sums)?;
    run.copy(&sums.narrow(0, 0, rest)?, &out.narrow(0, full, rest)?)
}

/// `out = a · b` in one call.
fn whole(run: &Run<'_, '_>, a: &Tensor, b: &Tensor, out: &Tensor) -> Result<()> {
    let mode = mode(run, [a, b]);
    let [a, b, out] = [run.tensor(a)?, run.tensor(b)?, run.tensor(out)?];
    aclnn!(run, aclnnMatmulGetWorkspaceSize, aclnnMatmul, a, b, out, mode)
}
