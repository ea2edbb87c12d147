//! Weights and lengths as operands: several tensors that travel as one.

use crate::call::{Prepack, Unpack};
use crate::op::OpKind;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::attention::LensSpec;
use portolan_ops::quant::{
    LinearSpec, PackedContent, PackedSpec, PrepackSpec, QuantScheme, QuantSpec, UnpackSpec, WeightSpec,
};
use portolan_ops::{OpError, Result};
use smallvec::SmallVec;
use std::sync::Arc;

/// The weight operand of linear and embedding.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum Weight {
    /// A matrix of floats `[n, k]`.
    Dense(Tensor),
    /// Integer codes with scales.
    Quant(QuantTensor),
    /// A form that only its own device reads; made by [`Stream::prepack`], never saved.
    Packed(PackedWeight),
}

/// A quantized weight: ordinary tensors and the scheme that says how to read them.
#[derive(Clone, Debug)]
pub struct QuantTensor {
    spec: Arc<QuantSpec>,
    tensors: Arc<[Tensor]>,
}

impl QuantTensor {
    /// Pairs a scheme with its tensors: codes `[n, k]`, scale, and whatever else the scheme has.
    ///
    /// # Errors
    /// As [`QuantSpec::new`].
    pub fn new(
        scheme: QuantScheme,
        codes: Tensor,
        scale: Tensor,
        offset: Option<Tensor>,
        outer: Option<Tensor>,
        outer_offset: Option<Tensor>,
    ) -> Result<Self> {
        let spec = QuantSpec::new(
            scheme,
            codes.spec(),
            scale.spec(),
            offset.as_ref().map(Tensor::spec),
            outer.as_ref().map(Tensor::spec),
            outer_offset.as_ref().map(Tensor::spec),
        )?;
        let tensors = [Some(codes), Some(scale), offset, outer, outer_offset].into_iter().flatten().collect();
        Ok(Self { spec: Arc::new(spec), tensors })
    }

    /// Of tensors that are the spec's, in order.
    pub(crate) fn of_parts(spec: Arc<QuantSpec>, tensors: Arc<[Tensor]>) -> Self {
        Self { spec, tensors }
    }

    /// The scheme and the tensors' specs.
    pub fn spec(&self) -> &QuantSpec {
        &self.spec
    }

    /// Its tensors: codes, scale, and those of offset, outer and outer offset that the scheme has.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Codes `[n, k]`.
    pub fn codes(&self) -> &Tensor {
        &self.tensors[0]
    }

    /// Scales, one a block.
    pub fn scale(&self) -> &Tensor {
        &self.tensors[1]
    }

    /// Minima or zero points, one a block.
    pub fn offset(&self) -> Option<&Tensor> {
        self.spec.offset().and(self.tensors.get(2))
    }
}

/// A weight in the form one backend made for itself.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    spec: Arc<PackedSpec>,
    bytes: Tensor,
}

impl PackedWeight {
    /// Of bytes that are the spec's.
    pub(crate) fn of_parts(spec: Arc<PackedSpec>, bytes: Tensor) -> Self {
        Self { spec, bytes }
    }

    /// Rows, columns, content and the backend's name of the form.
    pub fn spec(&self) -> &PackedSpec {
        &self.spec
    }
}

/// What a backend packs a weight into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// The backend's name of the form.
    pub tag: &'static str,
    /// Its length.
    pub bytes: usize,
}

/// What a weight is packed for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Consumer<'a> {
    /// The operator that will read it.
    pub op: OpKind,
    /// One of the calls to come, over the plain weight and with any number of rows, where the caller knows: a form may
    /// serve some calls and be a burden to others.
    pub call: Option<&'a LinearSpec>,
}

impl From<OpKind> for Consumer<'_> {
    fn from(op: OpKind) -> Self {
        Self { op, call: None }
    }
}

impl<'a> From<&'a LinearSpec> for Consumer<'a> {
    fn from(call: &'a LinearSpec) -> Self {
        Self { op: OpKind::Linear, call: Some(call) }
    }
}

impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Self {
        Weight::Dense(tensor)
    }
}

impl From<QuantTensor> for Weight {
    fn from(quant: QuantTensor) -> Self {
        Weight::Quant(quant)
    }
}

impl Weight {
    /// The weight without its memory.
    ///
    /// # Errors
    /// As [`WeightSpec::dense`] for a dense tensor that is no weight.
    pub fn spec(&self) -> Result<WeightSpec> {
        Ok(match self {
            Weight::Dense(tensor) => WeightSpec::dense(tensor.spec())?,
            Weight::Quant(quant) => WeightSpec::Quant(quant.spec.clone()),
            Weight::Packed(packed) => WeightSpec::Packed(packed.spec.as_ref().clone()),
        })
    }

    /// Its tensors, in the order of [`WeightSpec::visit`].
    pub fn tensors(&self) -> &[Tensor] {
        match self {
            Weight::Dense(tensor) => std::slice::from_ref(tensor),
            Weight::Quant(quant) => &quant.tensors,
            Weight::Packed(packed) => std::slice::from_ref(&packed.bytes),
        }
    }
}

impl Stream {
    /// The weight in the device's own form for `consumer`, or the weight itself where the device has none: an operator,
    /// or, better, one of the calls to come.
    ///
    /// # Errors
    /// `OutOfMemory`, `Poisoned`; a code out of its scheme's range is a fault of the stream.
    pub fn prepack<'a>(&self, weight: &Weight, consumer: impl Into<Consumer<'a>>) -> Result<Weight> {
        let spec = weight.spec()?;
        let device = self.device();
        let Some(packing) = device.backend().packing(device.ordinal(), &spec, consumer.into()) else {
            return Ok(weight.clone());
        };
        let packed = PackedSpec::new(spec.content(), spec.n(), spec.k(), packing.tag, packing.bytes)?;
        let bytes = self.empty_labelled(packed.bytes(), &"packed weight".into())?;
        let operands: SmallVec<[&Tensor; 6]> = weight.tensors().iter().chain([&bytes]).collect();
        self.run(Prepack::bind(PrepackSpec::new(&spec, &packed)?, &operands)?)?;
        drop(operands);
        Ok(Weight::Packed(PackedWeight { spec: Arc::new(packed), bytes }))
    }

    /// The ordinary tensors a packed weight was made from; other weights are returned as they are.
    ///
    /// # Errors
    /// `OutOfMemory`, `Poisoned`.
    pub fn unpack(&self, weight: &Weight) -> Result<Weight> {
        let Weight::Packed(packed) = weight else { return Ok(weight.clone()) };
        let (n, k) = (packed.spec.n(), packed.spec.k());
        let out = match packed.spec.content() {
            PackedContent::Dense(dtype) => {
                Weight::Dense(self.empty(&portolan_ops::TensorSpec::of(dtype, &[n, k])?)?)
            }
            PackedContent::Quant(scheme) => {
                let spec = QuantSpec::of(scheme, n, k)?;
                let mut tensors = Vec::new();
                let mut failed = None;
                let whole = WeightSpec::from(spec.clone());
                whole.visit(portolan_ops::Access::Write, &mut |part| match self.empty(part.spec) {
                    Ok(tensor) => tensors.push(tensor),
                    Err(error) => failed = Some(error),
                });
                if let Some(error) = failed {
                    return Err(error);
                }
                Weight::Quant(QuantTensor { spec: Arc::new(spec), tensors: tensors.into() })
            }
        };
        let spec = UnpackSpec::new(&packed.spec, &out.spec()?)?;
        let operands: SmallVec<[&Tensor; 6]> = [&packed.bytes].into_iter().chain(out.tensors()).collect();
        self.run(Unpack::bind(spec, &operands)?)?;
        drop(operands);
        Ok(out)
    }
}

/// Lengths that live on the device, with an optional host mirror.
///
/// The device tensor is the truth; `max` bounds every entry and sizes loops and scratch; kernels that need
/// numbers on the host are native only with `host`.
#[derive(Clone, Debug)]
pub struct Lens {
    device: Tensor,
    max: u32,
    host: Option<Arc<[u32]>>,
}

impl Lens {
    /// Lengths in an i32 tensor `[count]`, none above `max`.
    ///
    /// # Errors
    /// As [`LensSpec::new`].
    pub fn new(device: Tensor, max: u32, host: Option<Arc<[u32]>>) -> Result<Self> {
        let lens = Self { device, max, host };
        lens.spec("lens", "lens")?;
        Ok(lens)
    }

    /// Uploads host numbers, which also stay as the mirror.
    ///
    /// # Errors
    /// `Attribute` for a length above i32, `OutOfMemory`, `Poisoned`.
    pub fn upload(stream: &Stream, lens: &[u32], max: u32) -> Result<Self> {
        let narrow: Option<Vec<i32>> = lens.iter().map(|&n| i32::try_from(n).ok()).collect();
        let Some(narrow) = narrow else {
            return Err(OpError::attribute(
                "lens",
                "lengths",
                format!("go up to {:?}, above i32", lens.iter().max()),
            ));
        };
        let device = stream.upload(&narrow, &portolan_ops::Shape::new(&[lens.len()])?)?;
        Self::new(device, max, Some(lens.into()))
    }

    /// The device's copy.
    pub fn tensor(&self) -> &Tensor {
        &self.device
    }

    /// The lengths without their memory, for operand `arg` of `op`.
    ///
    /// # Errors
    /// As [`LensSpec::new`].
    pub fn spec(&self, op: &'static str, arg: &'static str) -> Result<LensSpec> {
        let spec = LensSpec::new(op, arg, self.device.spec(), self.max)?;
        match &self.host {
            Some(host) => spec.with_host(op, arg, host.clone()),
            None => Ok(spec),
        }
    }
}
