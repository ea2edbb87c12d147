//! What packed weights were packed from: no other device reads the form itself, so calls over them are compared with calls
//! over the weights as they were stored.

use super::{Copied, Pair, Repacked, Shadow, Twin};
use crate::experts::Experts;
use crate::launch::Launch;
use crate::op::{Call, Dispatch, Op, OpKind};
use crate::sync::lock;
use crate::tensor::Tensor;
use crate::weight::{QuantTensor, Weight};
use portolan_ops::moe::{ExpertFfnSpec, ExpertNames, GroupedGemmSpec, expert_ffn};
use portolan_ops::quant::{LinearSpec, PrepackSpec, WeightSpec};
use portolan_ops::{Access, Layout, OpError, Result, Shape, TensorSpec};
use std::any::Any;

/// What stands for one packed operand on the second device.
pub(super) enum Stored {
    One(Weight),
    Stack(Experts),
}

impl Stored {
    fn tensors(&self) -> &[Tensor] {
        match self {
            Stored::One(weight) => weight.tensors(),
            Stored::Stack(experts) => experts.tensors(),
        }
    }
}

/// Whether an operand is a packed weight.
pub(super) fn is_packed(pair: &Pair) -> bool {
    pair.name.ends_with(".packed")
}

/// Weights that follow one another evenly in the same tensors, as one operand.
fn stack(weights: &[Weight]) -> Result<Option<Experts>> {
    let Some(first) = weights.first() else { return Ok(None) };
    let mut tensors = Vec::new();
    for (slot, one) in first.tensors().iter().enumerate() {
        let parts: Vec<&Tensor> = weights.iter().filter_map(|weight| weight.tensors().get(slot)).collect();
        let (spec, start) = (one.spec(), one.spec().layout().offset());
        let second = parts.get(1).map_or(start + spec.numel(), |part| part.spec().layout().offset());
        let Some(step) = second.checked_sub(start) else { return Ok(None) };
        let at = |index: usize| spec.layout().with_offset(start + index * step);
        let even = parts.len() == weights.len()
            && parts.iter().enumerate().all(|(index, part)| {
                part.buffer().same(one.buffer())
                    && (part.dtype(), part.dims()) == (spec.dtype(), spec.dims())
                    && *part.spec().layout() == at(index)
            });
        if !even {
            return Ok(None);
        }
        let shape = Shape::new(&[&[weights.len()], spec.dims()].concat())?;
        let layout = Layout::new(&[&[step], spec.strides()].concat(), start)?;
        let whole = TensorSpec::with_layout(spec.dtype(), shape, layout)?;
        tensors.push(Tensor::new(one.buffer().clone(), whole)?);
    }
    let mut tensors = tensors.into_iter();
    let none = || OpError::internal("shadow", "a weight without a tensor");
    let mut next = |present: bool| if present { tensors.next() } else { None };
    Ok(match first {
        Weight::Dense(_) => Some(Experts::dense(next(true).ok_or_else(none)?)?),
        Weight::Quant(quant) => {
            let spec = quant.spec();
            let (codes, scale) = (next(true).ok_or_else(none)?, next(true).ok_or_else(none)?);
            let offset = next(spec.offset().is_some());
            let (outer, outer_offset) = (next(spec.outer().is_some()), next(spec.outer_offset().is_some()));
            Some(Experts::quant(*spec.scheme(), codes, scale, offset, outer, outer_offset)?)
        }
        Weight::Packed(_) => None,
    })
}

impl Shadow {
    /// Remembers what a weight was packed from.
    pub(super) fn note_packing(&self, launch: &Launch<'_>, op: &dyn Op, spec: &PrepackSpec) -> Result<()> {
        let Some(pairs) = self.pairs(launch, op)? else { return Ok(()) };
        let Some((packed, parts)) = pairs.split_last() else { return Ok(()) };
        let tensors = parts.iter().map(Pair::twin).collect::<Result<Vec<_>>>()?;
        let weight = match (spec.weight(), tensors.as_slice()) {
            (WeightSpec::Dense(_), [tensor]) => Weight::Dense(tensor.clone()),
            (WeightSpec::Quant(quant), _) => {
                Weight::Quant(QuantTensor::of_parts(quant.clone(), tensors.into()))
            }
            _ => return Ok(()),
        };
        self.keep_packed(packed, Repacked { weight, consumer: None });
        Ok(())
    }

    /// Experts are packed one after the other into one buffer, whose other weights stay what they are.
    fn keep_packed(&self, packed: &Pair, repacked: Repacked) {
        let (at, key) = (packed.spec.layout().offset(), packed.first.key());
        let all = &mut lock(&self.log.state).packed;
        let known = all.remove(&key).filter(|copied| copied.source.strong_count() > 0);
        let mut weights = known.map_or_else(Default::default, |copied| copied.value);
        weights.insert(at, repacked);
        all.insert(key, Copied::of(&packed.first, weights));
    }

    /// Forgets packed weights that the call writes over.
    pub(super) fn forget_packed(&self, op: &dyn Op) {
        op.operands(&mut |arg| {
            if arg.access.writes() {
                lock(&self.log.state).packed.remove(&arg.buffer.key());
            }
        });
    }

    /// What was packed to the given places of a buffer; `None` unless all is known.
    fn packed_at(&self, packed: &Pair, places: impl Iterator<Item = usize>) -> Option<Vec<Repacked>> {
        let state = lock(&self.log.state);
        let weights =
            &state.packed.get(&packed.first.key()).filter(|copied| copied.is_good(&packed.first))?.value;
        places.map(|at| weights.get(&at).cloned()).collect()
    }

    /// The second device's own form of a weight that the first one packed.
    fn repacked(&self, packed: &Pair, consumer: OpKind) -> Result<Option<Weight>> {
        let at = packed.spec.layout().offset();
        let known = self.packed_at(packed, core::iter::once(at)).and_then(|mut known| known.pop());
        let Some(Repacked { weight, consumer: packed_for }) = known else { return Ok(None) };
        if packed_for.is_some() {
            return Ok(Some(weight));
        }
        let weight = self.log.second.prepack(&weight, consumer)?;
        self.keep_packed(packed, Repacked { weight: weight.clone(), consumer: Some(consumer) });
        Ok(Some(weight))
    }

    /// The weights of all experts as they were stored.
    fn stored_stack(&self, packed: &Pair) -> Result<Option<Experts>> {
        let (first, step) = (packed.spec.layout().offset(), packed.spec.strides()[0]);
        let places = (0..packed.spec.dims()[0]).map(|expert| first + expert * step);
        let Some(known) = self.packed_at(packed, places) else { return Ok(None) };
        stack(&known.into_iter().map(|repacked| repacked.weight).collect::<Vec<_>>())
    }

    /// Runs a call over packed weights on the second device, over its own forms or the stored ones; gives why it cannot be
    /// compared, if so.
    pub(super) fn run_stored(&self, spec: &dyn Any, twin: &mut Twin) -> Result<Option<String>> {
        const UNKNOWN: &str = "its weight was packed before the wrapping";
        for packed in twin.pairs.iter().filter(|pair| is_packed(pair)) {
            let stored = match spec.is::<LinearSpec>() {
                true => self.repacked(packed, OpKind::Linear)?.map(Stored::One),
                false => self.stored_stack(packed)?.map(Stored::Stack),
            };
            let Some(stored) = stored else { return Ok(Some(UNKNOWN.into())) };
            twin.stored.push((packed.name.clone(), stored));
        }
        if let (Some(linear), Some(weight)) = (spec.downcast_ref::<LinearSpec>(), twin.one()) {
            return self.run_over(linear.with_weight(&weight.spec()?)?, twin);
        }
        if let (Some(grouped), Some(experts)) =
            (spec.downcast_ref::<GroupedGemmSpec>(), twin.stack(&ExpertNames::WEIGHT))
        {
            return self.run_over(grouped.with_weight(experts.spec())?, twin);
        }
        if let Some(experts) = spec.downcast_ref::<ExpertFfnSpec>() {
            let own = |names| twin.stack(names).map(Experts::spec);
            let gate_up = own(&expert_ffn::GATE_UP).unwrap_or(experts.gate_up());
            let down = own(&expert_ffn::DOWN).unwrap_or(experts.down());
            return self.run_over(experts.with_experts(gate_up, down)?, twin);
        }
        Ok(Some("its packed weight is its device's own".into()))
    }

    fn run_over<C: Dispatch>(&self, spec: C, twin: &Twin) -> Result<Option<String>> {
        let mut tensors: Vec<Tensor> = Vec::new();
        for pair in &twin.pairs {
            match twin.stored(&pair.name) {
                Some(stored) => tensors.extend_from_slice(stored.tensors()),
                None => tensors.push(pair.twin()?),
            }
        }
        let tensors: Vec<&Tensor> = tensors.iter().collect();
        match self.log.second.run(Call::bind(spec, &tensors)?) {
            Err(error @ OpError::Unsupported { .. }) => Ok(Some(error.to_string())),
            ran => ran.map(|()| None),
        }
    }

    /// The tensors that stand for a packed operand, by name.
    pub(super) fn stored_parts(&self, name: &str, stored: &Stored) -> Result<Vec<(String, Tensor)>> {
        let mut names: Vec<String> = Vec::new();
        let tensors = match stored {
            Stored::One(weight) => {
                let plain = self.log.second.unpack(weight)?;
                plain.spec()?.visit(Access::Read, &mut |part| names.push(part.name.into()));
                plain.tensors().to_vec()
            }
            Stored::Stack(experts) => {
                let all = [ExpertNames::WEIGHT, expert_ffn::GATE_UP, expert_ffn::DOWN];
                let known = all.iter().find(|names| names.packed == name);
                let mut visit = |part: portolan_ops::Operand<'_>| names.push(part.name.into());
                known.into_iter().for_each(|known| experts.spec().visit(known, Access::Read, &mut visit));
                experts.tensors().to_vec()
            }
        };
        Ok(names.into_iter().zip(tensors).collect())
    }
}

impl Twin {
    fn stored(&self, name: &str) -> Option<&Stored> {
        self.stored.iter().find(|(known, _)| known == name).map(|(_, stored)| stored)
    }

    /// The one weight that stands for a packed one.
    pub(super) fn one(&self) -> Option<&Weight> {
        self.stored.iter().find_map(|(_, stored)| match stored {
            Stored::One(weight) => Some(weight),
            Stored::Stack(_) => None,
        })
    }

    /// The experts that stand for packed ones of these names.
    pub(super) fn stack(&self, names: &ExpertNames) -> Option<&Experts> {
        match self.stored(names.packed) {
            Some(Stored::Stack(experts)) => Some(experts),
            _ => None,
        }
    }
}
