//! [`Gemm`]: matrix product over tensors.

use super::Gemm;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::kernel::{Activation, GemmForm, GemmSpec};

impl Gemm {
    /// The product in the given form, into `out`.
    ///
    /// # Errors
    /// As [`GemmSpec::new`] and [`crate::Call::bind`].
    pub fn new(form: GemmForm, a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(GemmSpec::new(form, a.spec(), b.spec(), out.spec())?, &[a, b, out])
    }

    /// `out[m, n] = Σ_k a[m, k] · b[k, n]`.
    ///
    /// # Errors
    /// As [`Gemm::new`].
    pub fn nn(a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::new(GemmForm::Nn, a, b, out)
    }

    /// `out[m, n] = Σ_k a[m, k] · b[n, k]`.
    ///
    /// # Errors
    /// As [`Gemm::new`].
    pub fn nt(a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::new(GemmForm::Nt, a, b, out)
    }

    /// `out[m, n] = Σ_k a[k, m] · b[k, n]`.
    ///
    /// # Errors
    /// As [`Gemm::new`].
    pub fn tn(a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::new(GemmForm::Tn, a, b, out)
    }

    /// Scales the product.
    ///
    /// # Errors
    /// As [`GemmSpec::with_alpha`].
    pub fn alpha(self, alpha: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_alpha(alpha)?, &[])
    }

    /// Adds `beta · c`; `c` may be `out` itself.
    ///
    /// # Errors
    /// As [`GemmSpec::with_accumulate`] and [`crate::Call::bind`].
    pub fn accumulate(self, c: &Tensor, beta: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_accumulate(c.spec(), beta)?, &[("c", c)])
    }

    /// Adds `bias[n]` to every row.
    ///
    /// # Errors
    /// As [`GemmSpec::with_bias`] and [`crate::Call::bind`].
    pub fn bias(self, bias: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_bias(bias.spec())?, &[("bias", bias)])
    }

    /// Applies a function last.
    ///
    /// # Errors
    /// As [`GemmSpec::with_activation`].
    pub fn activation(self, activation: Activation) -> Result<Self> {
        self.rebind(self.spec().clone().with_activation(activation)?, &[])
    }
}

fn allocating(form: GemmForm, stream: &Stream, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let mut out = stream.empty(&GemmSpec::out_spec(form, a.spec(), b.spec())?)?;
    stream.run(Gemm::new(form, a, b, &mut out)?)?;
    Ok(out)
}

/// `Σ_k a[m, k] · b[k, n]`; see [`GemmSpec`].
///
/// # Errors
/// As [`Gemm::nn`] and [`Stream::run`].
pub fn gemm_nn(stream: &Stream, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    allocating(GemmForm::Nn, stream, a, b)
}

/// `Σ_k a[m, k] · b[n, k]`; see [`GemmSpec`].
///
/// # Errors
/// As [`Gemm::nt`] and [`Stream::run`].
pub fn gemm_nt(stream: &Stream, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    allocating(GemmForm::Nt, stream, a, b)
}

/// `Σ_k a[k, m] · b[k, n]`; see [`GemmSpec`].
///
/// # Errors
/// As [`Gemm::tn`] and [`Stream::run`].
pub fn gemm_tn(stream: &Stream, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    allocating(GemmForm::Tn, stream, a, b)
}
