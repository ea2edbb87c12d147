//! [`Quantize`], [`DynamicQuantize`] and [`Dequantize`]: between numbers and codes.

use super::{Dequantize, DynamicQuantize, Quantize};
use crate::stream::Stream;
use crate::tensor::Tensor;
use crate::weight::QuantTensor;
use portolan_ops::quant::{DequantizeSpec, DynamicQuantizeSpec, QuantScheme, QuantSpec, QuantizeSpec};
use portolan_ops::{DType, OpError, Result};
use smallvec::SmallVec;

impl Quantize {
    /// Rounds `x [n, k]` to the codes of `quant`, by its scale and offset.
    ///
    /// # Errors
    /// As [`QuantizeSpec::new`] and [`crate::Call::bind`].
    pub fn new(x: &Tensor, quant: &mut QuantTensor) -> Result<Self> {
        let spec = QuantizeSpec::new(x.spec(), quant.spec())?;
        let operands: SmallVec<[&Tensor; 4]> =
            [x, quant.scale()].into_iter().chain(quant.offset()).chain([quant.codes()]).collect();
        Self::bind(spec, &operands)
    }
}

impl DynamicQuantize {
    /// Finds the scales of `quant`'s blocks in `x [n, k]`, and rounds `x` to its codes.
    ///
    /// # Errors
    /// As [`DynamicQuantizeSpec::new`] and [`crate::Call::bind`].
    pub fn new(x: &Tensor, quant: &mut QuantTensor) -> Result<Self> {
        let spec = DynamicQuantizeSpec::new(x.spec(), quant.spec())?;
        Self::bind(spec, &[x, quant.codes(), quant.scale()])
    }
}

impl Dequantize {
    /// `out[n, k]` as the codes of `quant` stand for it.
    ///
    /// # Errors
    /// As [`DequantizeSpec::new`] and [`crate::Call::bind`].
    pub fn new(quant: &QuantTensor, out: &mut Tensor) -> Result<Self> {
        let spec = DequantizeSpec::new(quant.spec(), out.spec())?;
        let operands: SmallVec<[&Tensor; 6]> = quant.tensors().iter().chain([&*out]).collect();
        Self::bind(spec, &operands)
    }
}

/// The numbers `[n, k]` that codes stand for; see [`DequantizeSpec`].
///
/// # Errors
/// As [`Dequantize::new`] and [`Stream::run`].
pub fn dequantize(stream: &Stream, quant: &QuantTensor, dtype: DType) -> Result<Tensor> {
    let mut out = stream.empty(&DequantizeSpec::out_spec(quant.spec(), dtype)?)?;
    stream.run(Dequantize::new(quant, &mut out)?)?;
    Ok(out)
}

/// `x [n, k]` as codes, the scale of every block found from its largest magnitude; see [`DynamicQuantizeSpec`].
///
/// # Errors
/// As [`DynamicQuantize::new`] and [`Stream::run`].
pub fn dynamic_quantize(stream: &Stream, x: &Tensor, scheme: QuantScheme) -> Result<QuantTensor> {
    let [n, k] = *x.dims() else {
        let what = format!("x is {}, expected 2 dimensions", x.shape());
        return Err(OpError::shape("dynamic_quantize", what));
    };
    let spec = QuantSpec::of(scheme, n, k)?;
    // Refused before anything is allocated.
    DynamicQuantizeSpec::new(x.spec(), &spec)?;
    let (codes, scale) = (stream.empty(spec.codes())?, stream.empty(spec.scale())?);
    let mut quant = QuantTensor::new(scheme, codes, scale, None, None, None)?;
    stream.run(DynamicQuantize::new(x, &mut quant)?)?;
    Ok(quant)
}
