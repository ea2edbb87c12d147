//! [`Reduce`], [`Scan`] and [`TopK`]: what combines the elements of a dimension.

use super::{Reduce, Scan, TopK};
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::kernel::{ReduceKind, ReduceSpec, ScanKind, ScanSpec, TopKSpec};

impl Reduce {
    /// Reduces `dims` of `x`; `out` keeps them with extent 1, or does without them.
    ///
    /// # Errors
    /// As [`ReduceSpec::new`] and [`crate::Call::bind`].
    pub fn new(
        kind: ReduceKind,
        x: &Tensor,
        dims: &[usize],
        keep_dims: bool,
        out: &mut Tensor,
    ) -> Result<Self> {
        Self::bind(ReduceSpec::new(kind, x.spec(), dims, keep_dims, out.spec())?, &[x, out])
    }
}

impl Scan {
    /// The running sum, product or maximum of `x` along `dim`; `out` may be `x` itself.
    ///
    /// # Errors
    /// As [`ScanSpec::cumulative`] and [`crate::Call::bind`].
    pub fn cumulative(kind: ScanKind, x: &Tensor, dim: usize, out: &mut Tensor) -> Result<Self> {
        Self::bind(ScanSpec::cumulative(kind, x.spec(), dim, out.spec())?, &[x, out])
    }

    /// `out[t] = a[t] · out[t−1] + b[t]` along `dim`, from 0; `out` may be `b` itself.
    ///
    /// # Errors
    /// As [`ScanSpec::linear`] and [`crate::Call::bind`].
    pub fn linear(a: &Tensor, b: &Tensor, dim: usize, out: &mut Tensor) -> Result<Self> {
        Self::bind(ScanSpec::linear(a.spec(), b.spec(), dim, out.spec())?, &[a, b, out])
    }

    /// Leaves each element out of its own sum.
    ///
    /// # Errors
    /// As [`ScanSpec::exclusive`].
    pub fn exclusive(self) -> Result<Self> {
        self.rebind(self.spec().clone().exclusive()?, &[])
    }

    /// Starts the linear form from `initial`.
    ///
    /// # Errors
    /// As [`ScanSpec::with_initial`] and [`crate::Call::bind`].
    pub fn initial(self, initial: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_initial(initial.spec())?, &[("initial", initial)])
    }

    /// Also writes the last running value of the linear form.
    ///
    /// # Errors
    /// As [`ScanSpec::with_last`] and [`crate::Call::bind`].
    pub fn last(self, last: &mut Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_last(last.spec())?, &[("last", last)])
    }
}

impl TopK {
    /// The largest elements of every row of `x`, as many as `values` has columns, and their places.
    ///
    /// # Errors
    /// As [`TopKSpec::new`] and [`crate::Call::bind`].
    pub fn new(x: &Tensor, values: &mut Tensor, indices: &mut Tensor) -> Result<Self> {
        Self::bind(TopKSpec::new(x.spec(), values.spec(), indices.spec())?, &[x, values, indices])
    }
}

/// `dims` of `x` reduced; see [`ReduceSpec`].
///
/// # Errors
/// As [`Reduce::new`] and [`Stream::run`].
pub fn reduce(
    stream: &Stream,
    kind: ReduceKind,
    x: &Tensor,
    dims: &[usize],
    keep_dims: bool,
) -> Result<Tensor> {
    let mut out = stream.empty(&ReduceSpec::out_spec(kind, x.spec(), dims, keep_dims)?)?;
    stream.run(Reduce::new(kind, x, dims, keep_dims, &mut out)?)?;
    Ok(out)
}

/// The `k` largest elements of every row and their places; see [`TopKSpec`].
///
/// # Errors
/// As [`TopK::new`] and [`Stream::run`].
pub fn top_k(stream: &Stream, x: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
    let (values, indices) = TopKSpec::out_specs(x.spec(), k)?;
    let (mut values, mut indices) = (stream.empty(&values)?, stream.empty(&indices)?);
    stream.run(TopK::new(x, &mut values, &mut indices)?)?;
    Ok((values, indices))
}

/// The running sum, product or maximum of `x` along `dim`; see [`ScanSpec`].
///
/// # Errors
/// As [`Scan::cumulative`] and [`Stream::run`].
pub fn cumulative(stream: &Stream, kind: ScanKind, x: &Tensor, dim: usize) -> Result<Tensor> {
    let mut out = stream.empty(&x.spec().to_contiguous())?;
    stream.run(Scan::cumulative(kind, x, dim, &mut out)?)?;
    Ok(out)
}

/// The recurrence `h[t] = a[t] · h[t−1] + b[t]` along `dim` of `b`, from 0; see [`ScanSpec`].
///
/// # Errors
/// As [`Scan::linear`] and [`Stream::run`].
pub fn linear_scan(stream: &Stream, a: &Tensor, b: &Tensor, dim: usize) -> Result<Tensor> {
    let mut out = stream.empty(&b.spec().to_contiguous())?;
    stream.run(Scan::linear(a, b, dim, &mut out)?)?;
    Ok(out)
}
