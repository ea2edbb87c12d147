//! The kernel core as functions that give scratch: the vocabulary compositions are written in.
//!
//! Every function launches one operator (or none, where there is nothing to do) on the composition's stream.

use crate::call::{Binary, Cast, Compare, Copy, Fill, Gather, Reduce, Scan, Scatter, Select, Unary};
use crate::launch::Launch;
use crate::op::Op;
use crate::tensor::Tensor;
use portolan_ops::kernel::{
    BinaryKind, BinarySpec, CompareKind, CompareSpec, GatherForm, GatherSpec, ReduceKind, ReduceSpec,
    ScanKind, ScatterMode, SelectSpec, UnaryKind, UnarySpec,
};
use portolan_ops::{DType, Result, TensorSpec};

pub(super) struct Parts<'a, 'l> {
    launch: &'a Launch<'l>,
}

impl<'a, 'l> Parts<'a, 'l> {
    pub(super) fn new(launch: &'a Launch<'l>) -> Self {
        Self { launch }
    }

    pub(super) fn launch(&self) -> &'a Launch<'l> {
        self.launch
    }

    pub(super) fn run(&self, op: impl Op) -> Result<()> {
        self.launch.run(op)
    }

    pub(super) fn scratch(&self, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        self.launch.scratch(&TensorSpec::of(dtype, dims)?)
    }

    /// A tensor of one number.
    pub(super) fn full(&self, dtype: DType, dims: &[usize], value: f64) -> Result<Tensor> {
        let mut out = self.scratch(dtype, dims)?;
        self.run(Fill::new(&mut out, value)?)?;
        Ok(out)
    }

    /// 0, 1, 2, …, as i32: the running sum of ones that leaves out each element itself.
    pub(super) fn iota(&self, n: usize) -> Result<Tensor> {
        let mut out = self.full(DType::I32, &[n], 1.0)?;
        self.run(Scan::cumulative(ScanKind::Sum, &out.clone(), 0, &mut out)?.exclusive()?)?;
        Ok(out)
    }

    /// `x` as `dtype`: `x` itself where it has that type.
    pub(super) fn cast(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        if x.dtype() == dtype {
            return Ok(x.clone());
        }
        let mut out = self.scratch(dtype, x.dims())?;
        self.run(Cast::new(x, &mut out)?)?;
        Ok(out)
    }

    pub(super) fn f32(&self, x: &Tensor) -> Result<Tensor> {
        self.cast(x, DType::F32)
    }

    /// `x` into `out`, converted where the types differ.
    pub(super) fn store(&self, x: &Tensor, out: &Tensor) -> Result<()> {
        match x.dtype() == out.dtype() {
            true => self.run(Copy::new(x, &mut out.clone())?),
            false => self.run(Cast::new(x, &mut out.clone())?),
        }
    }

    /// Contiguous f32 scratch with `x`'s elements, to be changed in place.
    pub(super) fn f32_copy(&self, x: &Tensor, dims: &[usize]) -> Result<Tensor> {
        let out = self.scratch(DType::F32, x.dims())?;
        self.store(x, &out)?;
        out.reshape(dims)
    }

    /// Lets `compute` write f32 results: into `out` itself, or into scratch that is rounded to `out`'s type.
    pub(super) fn result(&self, out: &Tensor, compute: impl FnOnce(&mut Tensor) -> Result<()>) -> Result<()> {
        if out.dtype() == DType::F32 {
            return compute(&mut out.clone());
        }
        let mut wide = self.scratch(DType::F32, out.dims())?;
        compute(&mut wide)?;
        self.store(&wide, out)
    }

    pub(super) fn unary(&self, kind: UnaryKind, x: &Tensor) -> Result<Tensor> {
        let mut out = self.launch.scratch(&UnarySpec::out_spec(kind, x.spec())?)?;
        self.run(Unary::new(kind, x, &mut out)?)?;
        Ok(out)
    }

    /// Replaces `x` by the function of it.
    pub(super) fn unary_in_place(&self, kind: UnaryKind, x: &Tensor) -> Result<()> {
        self.run(Unary::new(kind, x, &mut x.clone())?)
    }

    pub(super) fn binary(&self, kind: BinaryKind, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let mut out = self.launch.scratch(&BinarySpec::out_spec(kind, a.spec(), b.spec())?)?;
        self.run(Binary::new(kind, a, b, &mut out)?)?;
        Ok(out)
    }

    /// Replaces `a` by the function of it and `b`.
    pub(super) fn binary_in_place(&self, kind: BinaryKind, a: &Tensor, b: &Tensor) -> Result<()> {
        self.run(Binary::new(kind, a, b, &mut a.clone())?)
    }

    pub(super) fn scalar(&self, kind: BinaryKind, a: &Tensor, value: f64) -> Result<Tensor> {
        let mut out = self.launch.scratch(&a.spec().to_contiguous())?;
        self.run(Binary::scalar(kind, a, value, &mut out)?)?;
        Ok(out)
    }

    /// Replaces `a` by the function of it and `value`.
    pub(super) fn scalar_in_place(&self, kind: BinaryKind, a: &Tensor, value: f64) -> Result<()> {
        self.run(Binary::scalar(kind, a, value, &mut a.clone())?)
    }

    pub(super) fn compare(&self, kind: CompareKind, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let mut out = self.launch.scratch(&CompareSpec::out_spec(kind, a.spec(), b.spec())?)?;
        self.run(Compare::new(kind, a, b, &mut out)?)?;
        Ok(out)
    }

    pub(super) fn compare_scalar(&self, kind: CompareKind, a: &Tensor, value: f64) -> Result<Tensor> {
        let mut out = self.scratch(DType::Bool, a.dims())?;
        self.run(Compare::scalar(kind, a, value, &mut out)?)?;
        Ok(out)
    }

    pub(super) fn select(&self, cond: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let mut out = self.launch.scratch(&SelectSpec::out_spec(cond.spec(), a.spec(), b.spec())?)?;
        self.run(Select::new(cond, a, b, &mut out)?)?;
        Ok(out)
    }

    /// `a` where the condition holds, one number elsewhere.
    pub(super) fn select_or(&self, cond: &Tensor, a: &Tensor, otherwise: f64) -> Result<Tensor> {
        self.select(cond, a, &self.full(a.dtype(), &[], otherwise)?)
    }

    /// One number where the condition holds, `b` elsewhere.
    pub(super) fn replace(&self, cond: &Tensor, value: f64, b: &Tensor) -> Result<Tensor> {
        self.select(cond, &self.full(b.dtype(), &[], value)?, b)
    }

    /// Reduces one dimension, which stays with extent 1.
    pub(super) fn reduce(&self, kind: ReduceKind, x: &Tensor, dim: usize) -> Result<Tensor> {
        let mut out = self.launch.scratch(&ReduceSpec::out_spec(kind, x.spec(), &[dim], true)?)?;
        self.run(Reduce::new(kind, x, &[dim], true, &mut out)?)?;
        Ok(out)
    }

    /// The running sum of `x` along `dim`.
    pub(super) fn running_sum(&self, x: &Tensor, dim: usize) -> Result<Tensor> {
        let mut out = self.launch.scratch(&x.spec().to_contiguous())?;
        self.run(Scan::cumulative(ScanKind::Sum, x, dim, &mut out)?)?;
        Ok(out)
    }

    /// Slices of `x` along `dim` by index.
    pub(super) fn gather(&self, x: &Tensor, dim: usize, index: &Tensor) -> Result<Tensor> {
        let spec = GatherSpec::out_spec(GatherForm::Slices, x.spec(), dim, index.spec())?;
        let mut out = self.launch.scratch(&spec)?;
        self.run(Gather::slices(x, dim, index, &mut out)?)?;
        Ok(out)
    }

    /// Elements of `x` along `dim`, one index an element.
    pub(super) fn gather_elements(&self, x: &Tensor, dim: usize, index: &Tensor) -> Result<Tensor> {
        let spec = GatherSpec::out_spec(GatherForm::Elements, x.spec(), dim, index.spec())?;
        let mut out = self.launch.scratch(&spec)?;
        self.run(Gather::elements(x, dim, index, &mut out)?)?;
        Ok(out)
    }

    /// Writes slices of `src` into `x` at indices of its first dimension.
    pub(super) fn scatter_in_place(&self, x: &Tensor, index: &Tensor, src: &Tensor) -> Result<()> {
        self.run(Scatter::new(ScatterMode::Set, x, 0, index, src, &mut x.clone())?)
    }
}

/// Cuts `len` columns into runs of whole blocks and a rest: `(first column, first block, blocks, columns a
/// block)`, at most two.
pub(super) fn runs(len: usize, block: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let block = block.max(1);
    let whole = len / block;
    let rest = len - whole * block;
    [(0, 0, whole, block), (whole * block, whole, 1, rest)].into_iter().filter(|r| r.2 * r.3 > 0)
}
