//! The weights of all experts as one operand: stacked tensors that travel as one.

use crate::call::Prepack;
use crate::op::OpKind;
use crate::stream::Stream;
use crate::tensor::Tensor;
use crate::weight::{PackedWeight, QuantTensor, Weight};
use portolan_ops::moe::ExpertsSpec;
use portolan_ops::quant::{PackedSpec, PrepackSpec, QuantScheme, WeightSpec};
use portolan_ops::{DType, OpError, Result, TensorSpec};
use smallvec::SmallVec;
use std::sync::Arc;

/// What packed experts begin at, so that no two share a cache line.
const LINE: usize = 64;

/// The weight operand of grouped products: those of a [`Weight`], each with the experts as its first dimension.
#[derive(Clone, Debug)]
pub struct Experts {
    spec: Arc<ExpertsSpec>,
    tensors: Arc<[Tensor]>,
}

impl Experts {
    /// Matrices of floats `[E, n, k]`.
    ///
    /// # Errors
    /// As [`ExpertsSpec::dense`].
    pub fn dense(weights: Tensor) -> Result<Self> {
        Ok(Self { spec: Arc::new(ExpertsSpec::dense(weights.spec())?), tensors: [weights].into() })
    }

    /// Codes `[E, n, k]` with scales, and whatever else the scheme has.
    ///
    /// # Errors
    /// As [`ExpertsSpec::quant`].
    pub fn quant(
        scheme: QuantScheme,
        codes: Tensor,
        scale: Tensor,
        offset: Option<Tensor>,
        outer: Option<Tensor>,
        outer_offset: Option<Tensor>,
    ) -> Result<Self> {
        let spec = ExpertsSpec::quant(
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
    pub(crate) fn of_parts(spec: ExpertsSpec, tensors: Vec<Tensor>) -> Self {
        Self { spec: Arc::new(spec), tensors: tensors.into() }
    }

    /// The weights without their memory.
    pub fn spec(&self) -> &ExpertsSpec {
        &self.spec
    }

    /// Their tensors, in the order of [`ExpertsSpec::visit`].
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// One expert's weight, as views.
    ///
    /// # Errors
    /// `Shape` when there is no such expert.
    pub fn expert(&self, index: usize) -> Result<Weight> {
        let parts = self.tensors.iter().map(|part| part.select(0, index)).collect::<Result<Vec<_>>>()?;
        let one = || {
            let part = parts.first().cloned();
            part.ok_or_else(|| OpError::internal("experts", "a weight without a tensor"))
        };
        Ok(match self.spec.expert(index)? {
            WeightSpec::Quant(spec) => Weight::Quant(QuantTensor::of_parts(spec, parts.into())),
            WeightSpec::Packed(spec) => Weight::Packed(PackedWeight::of_parts(Arc::new(spec), one()?)),
            _ => Weight::Dense(one()?),
        })
    }
}

impl Stream {
    /// The weights in the device's own form for `consumer`, each expert's packed for itself, or the weights
    /// themselves where the device has none.
    ///
    /// # Errors
    /// As [`Stream::prepack`].
    pub fn prepack_experts(&self, experts: &Experts, consumer: OpKind) -> Result<Experts> {
        let one = experts.spec.one();
        let device = self.device();
        let Some(packing) = device.backend().packing(device.ordinal(), one, consumer.into()) else {
            return Ok(experts.clone());
        };
        let count = experts.spec.count();
        let room = packing.bytes.checked_next_multiple_of(LINE).unwrap_or(usize::MAX);
        let whole =
            self.empty_labelled(&TensorSpec::of(DType::U8, &[count, room])?, &"packed experts".into())?;
        let bytes = whole.narrow(1, 0, packing.bytes)?;
        for index in 0..count {
            let (weight, to) = (experts.expert(index)?, bytes.select(0, index)?);
            let packed = PackedSpec::within(one.content(), one.n(), one.k(), packing.tag, to.spec())?;
            let operands: SmallVec<[&Tensor; 6]> = weight.tensors().iter().chain([&to]).collect();
            self.run(Prepack::bind(PrepackSpec::new(&weight.spec()?, &packed)?, &operands)?)?;
        }
        let spec = ExpertsSpec::packed(one.content(), one.n(), one.k(), packing.tag, bytes.spec())?;
        Ok(Experts { spec: Arc::new(spec), tensors: [bytes].into() })
    }
}
