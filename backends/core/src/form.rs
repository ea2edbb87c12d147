//! Packed weights are bytes of one device's own form: a call over another device's is refused on the host, for every
//! backend alike, before anything of it is ordered or enqueued.

use crate::backend::{Backend, Ordinal, Support};
use crate::call::SpecRef;
use crate::op::{OpKind, OpQuery};
use portolan_ops::quant::{PackedSpec, WeightSpec};
use portolan_ops::{OpError, OpName, Result, Unsupported};

/// The operators that a weight is packed for.
const CONSUMERS: [OpKind; 3] = [OpKind::Linear, OpKind::GroupedGemm, OpKind::ExpertFfn];

/// What running an operator would do, packed weights being looked at first.
pub(crate) fn support(backend: &dyn Backend, device: Ordinal, query: &OpQuery<'_>) -> Support {
    match foreign(backend, device, &query.spec) {
        Some(reason) => Support::No(reason),
        None => backend.support(device, query),
    }
}

/// Fails with `Unsupported` where a weight of the call is in a form that the device does not make.
pub(crate) fn expect_own(
    backend: &dyn Backend,
    device: (Ordinal, &portolan_ops::DeviceId),
    op: impl FnOnce() -> OpName,
    query: &OpQuery<'_>,
) -> Result<()> {
    match foreign(backend, device.0, &query.spec) {
        Some(reason) => Err(OpError::Unsupported {
            op: op(),
            device: device.1.clone(),
            reason,
            hint: "prepack the weight on this device, from what it was packed from".into(),
        }),
        None => Ok(()),
    }
}

/// Why the device cannot read a weight of the call, if so.
fn foreign(backend: &dyn Backend, device: Ordinal, spec: &SpecRef<'_>) -> Option<Unsupported> {
    let weight = |weight: &WeightSpec, consumer: OpKind| match weight {
        WeightSpec::Packed(packed) => foreign_form(backend, device, packed, &[consumer]),
        _ => None,
    };
    match spec {
        SpecRef::Linear(op) => weight(op.weight(), OpKind::Linear),
        SpecRef::GroupedGemm(op) => weight(op.weight().one(), OpKind::GroupedGemm),
        SpecRef::ExpertFfn(op) => weight(op.gate_up().one(), OpKind::ExpertFfn)
            .or_else(|| weight(op.down().one(), OpKind::ExpertFfn)),
        SpecRef::Prepack(op) => foreign_form(backend, device, op.packed(), &CONSUMERS),
        SpecRef::Unpack(op) => foreign_form(backend, device, op.packed(), &CONSUMERS),
        _ => None,
    }
}

/// Why `packed` is the form that the device makes for none of the consumers, if so.
fn foreign_form(
    backend: &dyn Backend,
    device: Ordinal,
    packed: &PackedSpec,
    consumers: &[OpKind],
) -> Option<Unsupported> {
    let asked = WeightSpec::from(packed.clone());
    let mut want = "no packed form";
    for &consumer in consumers {
        let Some(form) = backend.packing(device, &asked, consumer.into()) else { continue };
        if form.tag == packed.tag() && form.bytes == packed.bytes().numel() {
            return None;
        }
        want = form.tag;
    }
    Some(Unsupported::Form { got: packed.tag(), want })
}
