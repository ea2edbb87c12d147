//! The round trip of packed weights: what is packed and unpacked again is what it was, bit for bit.
//!
//! Only a backend knows its packed bytes, so they have no oracle; the weights to pack are the operator's.

use crate::drawn::{BAND, GUARD, download, seed};
use crate::{Failure, Outcome, Promise};
use portolan_core::call::{Prepack, Unpack};
use portolan_core::{Call, HostBuffer, OpKind, Stream, Tensor};
use portolan_ops::quant::{PackedSpec, PrepackSpec, RoundTrip, UnpackSpec};
use portolan_ops::{Access, DType, Fill, HostTensor, OpError, Result, Shape, TensorSpec};

/// Packs the weights of every `every`-th [`RoundTrip`] for linear layers, unpacks them into memory of their own,
/// and compares every byte: elements, gaps between them, and the band behind.
///
/// # Errors
/// When the list of weights is not legal; failures of the device are in the outcome.
pub fn check_round_trips(stream: &Stream, every: usize) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for case in RoundTrip::cases()?.iter().step_by(every.max(1)) {
        let fail = |what: String| Failure {
            promise: Promise::Oracle,
            case: case.name.clone(),
            what,
            contract: format!("{:?}", case.weight),
        };
        match round_trip(stream, case) {
            Ok(None) => outcome.unsupported += 1,
            Ok(Some(None)) => outcome.passed += 1,
            Ok(Some(Some(what))) => outcome.failures.push(fail(what)),
            Err(error) => outcome.failures.push(fail(error.to_string())),
        }
    }
    Ok(outcome)
}

/// What differs, if anything; nothing at all where the device has no form for this weight.
fn round_trip(stream: &Stream, case: &RoundTrip) -> Result<Option<Option<String>>> {
    let weight = &case.weight;
    let device = stream.device();
    let Some(form) = device.backend().packing(device.ordinal(), weight, OpKind::Linear.into()) else {
        return Ok(None);
    };
    let form = PackedSpec::new(weight.content(), weight.n(), weight.k(), form.tag, form.bytes)?;
    let mut parts: Vec<(&'static str, TensorSpec)> = Vec::new();
    weight.visit(Access::Read, &mut |part| parts.push((part.name, *part.spec)));
    let fills = weight.fills();
    let (mut before, mut from, mut to) = (Vec::new(), Vec::new(), Vec::new());
    for (index, (name, spec)) in parts.iter().enumerate() {
        let fill = fills.iter().find(|(part, _)| part == name).map_or(&Fill::Unit, |(_, fill)| fill);
        let drawn = draw(spec, fill, seed(&case.name, index))?;
        from.push(upload(stream, spec, &drawn)?);
        to.push(upload(stream, spec, &HostTensor::filled(spec, GUARD)?)?);
        before.push(drawn);
    }
    let packed = upload(stream, form.bytes(), &HostTensor::filled(form.bytes(), GUARD)?)?;
    let operands: Vec<&Tensor> = from.iter().chain([&packed]).collect();
    let prepack: Prepack = Call::bind(PrepackSpec::new(weight, &form)?, &operands)?;
    stream.run(prepack)?;
    let operands: Vec<&Tensor> = [&packed].into_iter().chain(&to).collect();
    let unpack: Unpack = Call::bind(UnpackSpec::new(&form, weight)?, &operands)?;
    stream.run(unpack)?;

    let banded = |bytes: &[u8]| [bytes, &[GUARD; BAND]].concat();
    for ((before, after), (name, spec)) in before.iter().zip(&to).zip(&parts) {
        let (want, got) = (banded(before.bytes()), download(stream, after.buffer())?);
        if let Some(at) = (0..want.len()).find(|&at| got.get(at) != Some(&want[at])) {
            let (got, want) = (got.get(at).copied().unwrap_or_default(), want[at]);
            let span = spec.span_bytes();
            return Ok(Some(Some(format!(
                "{name}: byte {at} of {span} came back as {got:#04x}, was {want:#04x}"
            ))));
        }
    }
    let bytes = download(stream, packed.buffer())?;
    let over = bytes[form.bytes().numel()..].iter().take(BAND).position(|&b| b != GUARD);
    Ok(Some(over.map(|at| format!("packed: byte {at} behind the buffer was overwritten"))))
}

/// Values of the part's own fill; bits at random where a dense float part may hold any, NaN payloads included.
fn draw(spec: &TensorSpec, fill: &Fill, seed: u64) -> Result<HostTensor> {
    let whole = spec.is_contiguous() && spec.layout().offset() == 0;
    if !spec.dtype().is_float() || !whole {
        return HostTensor::from_f64(spec, &fill.draw(spec, seed), GUARD);
    }
    let numbers = Fill::Range(0.0, 256.0).draw(&TensorSpec::of(DType::F64, &[spec.span_bytes()])?, seed);
    HostTensor::from_bytes(spec, numbers.iter().map(|&byte| byte as u8).collect())
}

/// A tensor in a buffer with a guarded band behind it.
fn upload(stream: &Stream, spec: &TensorSpec, host: &HostTensor) -> Result<Tensor, OpError> {
    let mut bytes = host.bytes().to_vec();
    bytes.resize(bytes.len() + BAND, GUARD);
    let whole = TensorSpec::new(DType::U8, Shape::new(&[bytes.len()])?);
    let memory = stream.upload_bytes(&whole, HostBuffer::from_bytes(&bytes)?, &"round trip".into())?;
    Tensor::new(memory.buffer().clone(), *spec)
}
