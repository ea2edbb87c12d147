//! Single calls of the vendor's that several operators are made of.

use crate::aclnn::{Run, aclnn};
use crate::descriptor::code;
use portolan_core::Tensor;
use portolan_ops::kernel::Activation;
use portolan_ops::{DType, OpError, Result};

impl Run<'_, '_> {
    /// `out = x`, in whatever layouts; types alike.
    pub(crate) fn copy(&self, x: &Tensor, out: &Tensor) -> Result<()> {
        aclnn!(self, aclnnInplaceCopyGetWorkspaceSize, aclnnInplaceCopy, self.bits(out)?, self.bits(x)?)
    }

    /// `out = x`, converted where the types differ.
    pub(super) fn store(&self, x: &Tensor, out: &Tensor) -> Result<()> {
        if x.dtype() == out.dtype() { self.copy(x, out) } else { self.cast(x, out) }
    }

    /// `out = x` in out's type.
    pub(crate) fn cast(&self, x: &Tensor, out: &Tensor) -> Result<()> {
        let dtype = out.dtype();
        let number = code(dtype)
            .ok_or_else(|| OpError::internal(self.launch().op_name(), format!("{dtype} has no number")))?;
        aclnn!(self, aclnnCastGetWorkspaceSize, aclnnCast, self.tensor(x)?, number, self.tensor(out)?)
    }

    /// `x` as `dtype`: `x` itself where it has that type.
    pub(super) fn typed(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        if x.dtype() == dtype {
            return Ok(x.clone());
        }
        let out = self.scratch(dtype, x.dims())?;
        self.cast(x, &out)?;
        Ok(out)
    }

    /// Bits of 0.
    pub(crate) fn zero(&self, out: &Tensor) -> Result<()> {
        aclnn!(self, aclnnInplaceZeroGetWorkspaceSize, aclnnInplaceZero, self.bits(out)?)
    }

    /// `out = value`.
    pub(super) fn fill(&self, out: &Tensor, value: f64) -> Result<()> {
        let value = self.scalar(out.dtype(), value)?;
        aclnn!(self, aclnnInplaceFillScalarGetWorkspaceSize, aclnnInplaceFillScalar, self.tensor(out)?, value)
    }

    /// A tensor of one number.
    pub(super) fn full(&self, dtype: DType, dims: &[usize], value: f64) -> Result<Tensor> {
        let out = self.scratch(dtype, dims)?;
        self.fill(&out, value)?;
        Ok(out)
    }

    /// `out = a + alpha · b`, broadcast.
    pub(super) fn add(&self, a: &Tensor, b: &Tensor, alpha: f64, out: &Tensor) -> Result<()> {
        let alpha = self.scalar(out.dtype(), alpha)?;
        let [a, b, out] = [self.tensor(a)?, self.tensor(b)?, self.tensor(out)?];
        aclnn!(self, aclnnAddGetWorkspaceSize, aclnnAdd, a, b, alpha, out)
    }

    /// `out = a · b`, broadcast.
    pub(super) fn mul(&self, a: &Tensor, b: &Tensor, out: &Tensor) -> Result<()> {
        let [a, b, out] = [self.tensor(a)?, self.tensor(b)?, self.tensor(out)?];
        aclnn!(self, aclnnMulGetWorkspaceSize, aclnnMul, a, b, out)
    }

    /// `out = x · value`.
    pub(super) fn muls(&self, x: &Tensor, value: f64, out: &Tensor) -> Result<()> {
        let value = self.scalar(x.dtype(), value)?;
        aclnn!(self, aclnnMulsGetWorkspaceSize, aclnnMuls, self.tensor(x)?, value, self.tensor(out)?)
    }

    /// `out = x + value`.
    pub(super) fn adds(&self, x: &Tensor, value: f64, out: &Tensor) -> Result<()> {
        let (value, one) = (self.scalar(x.dtype(), value)?, self.scalar(x.dtype(), 1.0)?);
        aclnn!(self, aclnnAddsGetWorkspaceSize, aclnnAdds, self.tensor(x)?, value, one, self.tensor(out)?)
    }

    /// `out = max(x, value)`.
    pub(super) fn at_least(&self, x: &Tensor, value: f64, out: &Tensor) -> Result<()> {
        let value = self.scalar(x.dtype(), value)?;
        aclnn!(self, aclnnClampMinGetWorkspaceSize, aclnnClampMin, self.tensor(x)?, value, self.tensor(out)?)
    }

    /// `out = x < value`.
    pub(super) fn below(&self, x: &Tensor, value: f64, out: &Tensor) -> Result<()> {
        let value = self.scalar(x.dtype(), value)?;
        aclnn!(self, aclnnLtScalarGetWorkspaceSize, aclnnLtScalar, self.tensor(x)?, value, self.tensor(out)?)
    }

    /// `out = x is −∞`.
    pub(super) fn is_nothing(&self, x: &Tensor, out: &Tensor) -> Result<()> {
        let (from, nothing) = (self.tensor(x)?, self.scalar(DType::F32, f64::NEG_INFINITY)?);
        aclnn!(self, aclnnEqScalarGetWorkspaceSize, aclnnEqScalar, from, nothing, self.tensor(out)?)
    }

    /// Bits of 0 wherever the mask holds, which broadcasts.
    pub(super) fn zero_where(&self, mask: &Tensor, out: &Tensor) -> Result<()> {
        let (out, mask, zero) = (self.bits(out)?, self.tensor(mask)?, self.scalar(DType::I32, 0.0)?);
        aclnn!(
            self,
            aclnnInplaceMaskedFillScalarGetWorkspaceSize,
            aclnnInplaceMaskedFillScalar,
            out,
            mask,
            zero
        )
    }

    /// `out = f(x)`.
    pub(super) fn activate(&self, activation: Activation, x: &Tensor, out: &Tensor) -> Result<()> {
        let [a, b] = [self.tensor(x)?, self.tensor(out)?];
        match activation {
            Activation::Identity => self.store(x, out),
            Activation::Relu => aclnn!(self, aclnnReluGetWorkspaceSize, aclnnRelu, a, b),
            Activation::Silu => aclnn!(self, aclnnSiluGetWorkspaceSize, aclnnSilu, a, b),
            Activation::Gelu => aclnn!(self, aclnnGeluV2GetWorkspaceSize, aclnnGeluV2, a, 0i64, b),
            Activation::GeluTanh => aclnn!(self, aclnnGeluV2GetWorkspaceSize, aclnnGeluV2, a, 1i64, b),
        }
    }
}
