//! One case on one device: draw inputs, run, compare with the oracle, look for writes outside of the output.

use crate::{Failure, Promise};
use portolan_core::{Bind, Buffer, HostBuffer, Stream, Support, Tensor};
use portolan_ops::{Access, Case, Contract, DType, HostTensor, OpError, Shape, TensorSpec};

/// Fills gaps between elements and the band behind each buffer; no element type reads it as a plain value.
pub(crate) const GUARD: u8 = 0xA5;
/// Length of the band behind each buffer.
pub(crate) const BAND: usize = 64;

/// What a case is run on, and how far from the contract's tolerance it may be.
pub struct Subject<'a> {
    /// Where it runs.
    pub stream: &'a Stream,
    /// Multiplies every tolerance; 1 for native kernels, more for compositions that round in between.
    pub slack: f64,
}

struct Bound {
    name: &'static str,
    host: HostTensor,
    values: Vec<f64>,
    access: Access,
    tensor: Tensor,
}

/// Runs one case, and once more in place for every pair of operands that may share memory; `Ok(false)` when
/// the device says it cannot.
///
/// # Errors
/// The [`Failure`], when the device is wrong, dishonest about its support, or writes where it must not.
pub fn check_case<C: Bind>(subject: &Subject<'_>, case: &Case<C>) -> Result<bool, Failure> {
    if !check_way(subject, case, None)? {
        return Ok(false);
    }
    let mut specs: Vec<(&'static str, TensorSpec)> = Vec::new();
    case.contract.operands(&mut |o| specs.push((o.name, *o.spec)));
    let place = |wanted: &str| specs.iter().position(|(name, _)| *name == wanted);
    for (out, input) in case.contract.in_place() {
        let (Some(out), Some(input)) = (place(out), place(input)) else { continue };
        if specs[out].1 == specs[input].1 && !check_way(subject, case, Some(Shared { out, input }))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// An output in the memory of an input; both by their place in the contract.
#[derive(Clone, Copy)]
struct Shared {
    out: usize,
    input: usize,
}

/// Whether a call ran that the device had promised to run; an error when what happened is not what it said.
pub(crate) fn honest(
    promised: &Support,
    ran: Result<(), OpError>,
    composed: bool,
    empty: bool,
) -> Result<bool, (Promise, String)> {
    let dishonest = |what: String| Err((Promise::Support, what));
    match (promised, ran) {
        (Support::No(_), Err(OpError::Unsupported { .. })) => Ok(false),
        // Nothing to compute, so nothing was launched that could have been refused.
        (Support::No(_), Ok(())) if empty => Ok(false),
        (Support::No(why), Ok(())) => dishonest(format!("support() said no ({why}), yet it ran")),
        (Support::No(why), Err(error)) => {
            Err((Promise::Errors, format!("refused ({why}), but not as Unsupported: {error}")))
        }
        (_, Err(error @ OpError::Unsupported { .. })) => {
            dishonest(format!("support() said {promised:?}, running gave: {error}"))
        }
        (_, Err(error)) => Err((Promise::Oracle, format!("running gave: {error}"))),
        (Support::Native, Ok(())) if composed => {
            dishonest("support() said native, yet it was composed".into())
        }
        (Support::Composed(_), Ok(())) if !composed && !empty => {
            dishonest("support() said composed, yet it was not".into())
        }
        _ => Ok(true),
    }
}

fn check_way<C: Bind>(
    subject: &Subject<'_>,
    case: &Case<C>,
    shared: Option<Shared>,
) -> Result<bool, Failure> {
    let way = if shared.is_some() { " (in place)" } else { "" };
    let broken = |promise: Promise, what: String| Failure {
        promise,
        case: format!("{}{way}", case.name),
        what,
        contract: format!("{:?}", case.contract),
    };
    let fail = |what: String| broken(Promise::Oracle, what);
    let overstepped = |what: String| broken(Promise::Guards, what);
    let stream = subject.stream;
    let mut operands = bind_operands(stream, case).map_err(|e| fail(e.to_string()))?;
    if let Some(Shared { out, input }) = shared {
        operands[out].tensor = operands[input].tensor.clone();
    }
    let tensors: Vec<&Tensor> = operands.iter().map(|o| &o.tensor).collect();
    let call = case.contract.bind(&tensors).map_err(|e| fail(format!("bind: {e}")))?;

    let query = portolan_core::Op::query(&call, stream.options().determinism);
    let promised = stream.device().support(&query);
    let empty =
        operands.iter().all(|o| !o.access.writes() || o.values.is_empty() && o.host.spec().numel() == 0);
    let before = stream.report().compositions_total();
    let ran = stream.run(call).and_then(|()| stream.synchronize());
    let composed = stream.report().compositions_total() > before;
    if !honest(&promised, ran, composed, empty).map_err(|(promise, what)| broken(promise, what))? {
        return Ok(false);
    }

    let inputs: Vec<&[f64]> =
        operands.iter().filter(|o| o.access.reads()).map(|o| o.values.as_slice()).collect();
    let want = case.contract.reference(&inputs);
    let written = operands.iter().filter(|o| o.access.writes()).count();
    if want.len() != written {
        return Err(fail(format!("the oracle gave {} results for {written} written operands", want.len())));
    }
    let tolerance = case.contract.tolerance();
    let mut outputs = want.iter().zip(&tolerance);
    for (place, operand) in operands.iter().enumerate() {
        let got = download(stream, operand.tensor.buffer()).map_err(|e| fail(e.to_string()))?;
        let span = operand.host.spec().span_bytes();
        if let Some(at) = got[span..].iter().take(BAND).position(|&b| b != GUARD) {
            return Err(overstepped(format!(
                "{}: byte {at} behind the buffer was overwritten",
                operand.name
            )));
        }
        let bytes = got[..span].to_vec();
        let got = HostTensor::from_bytes(operand.host.spec(), bytes).map_err(|e| fail(e.to_string()))?;
        if operand.access.writes() {
            if let Some(at) = got.overstepped(GUARD) {
                return Err(overstepped(format!(
                    "{}: byte {at}, between the elements, was overwritten",
                    operand.name
                )));
            }
            if let Some((want, tolerance)) = outputs.next() {
                let mut tolerance = *tolerance;
                tolerance.abs *= subject.slack;
                tolerance.rel *= subject.slack;
                let checked = tolerance.check(&got.to_f64(), want);
                checked.map_err(|m| {
                    fail(format!("{} {}: {m}", operand.name, coordinates(operand.host.spec(), m.index)))
                })?;
            }
        } else if shared.is_none_or(|s| s.input != place) && got.bytes() != operand.host.bytes() {
            return Err(overstepped(format!("{} is only read, yet it changed", operand.name)));
        }
    }
    Ok(true)
}

/// Everything one case writes, gaps and bands included; `None` when the device says it cannot run it.
///
/// # Errors
/// Those of the run.
pub fn written_bytes<C: Bind>(stream: &Stream, case: &Case<C>) -> Result<Option<Vec<u8>>, OpError> {
    let operands = bind_operands(stream, case)?;
    let tensors: Vec<&Tensor> = operands.iter().map(|o| &o.tensor).collect();
    match stream.run(case.contract.bind(&tensors)?) {
        Err(OpError::Unsupported { .. }) => return Ok(None),
        ran => ran?,
    }
    // Not asked of the queue here: whether a download waits for its work is a test of its own.
    stream.synchronize()?;
    let mut bytes = Vec::new();
    for operand in operands.iter().filter(|operand| operand.access.writes()) {
        // The rest of the block was never written.
        let len = operand.host.spec().span_bytes() + BAND;
        bytes.extend(download(stream, operand.tensor.buffer())?.into_iter().take(len));
    }
    Ok(Some(bytes))
}

/// The elements one case writes, operand by operand; `None` when the device says it cannot run it.
pub(crate) fn written_values<C: Bind>(
    stream: &Stream,
    case: &Case<C>,
) -> Result<Option<Vec<Vec<f64>>>, OpError> {
    let operands = bind_operands(stream, case)?;
    let tensors: Vec<&Tensor> = operands.iter().map(|o| &o.tensor).collect();
    match stream.run(case.contract.bind(&tensors)?) {
        Err(OpError::Unsupported { .. }) => return Ok(None),
        ran => ran?,
    }
    stream.synchronize()?;
    let written = operands.iter().filter(|operand| operand.access.writes());
    let values = written.map(|operand| {
        let bytes = download(stream, operand.tensor.buffer())?;
        Ok(HostTensor::from_bytes(operand.host.spec(), bytes)?.to_f64())
    });
    values.collect::<Result<Vec<_>, OpError>>().map(Some)
}

/// What the oracle says of a case, without a device.
pub(crate) fn expected<C: Contract>(case: &Case<C>) -> Result<Vec<Vec<f64>>, OpError> {
    let mut specs: Vec<(&'static str, TensorSpec, Access)> = Vec::new();
    case.contract.operands(&mut |o| specs.push((o.name, *o.spec, o.access)));
    let mut inputs = Vec::new();
    for (index, (name, spec, access)) in specs.iter().enumerate() {
        if access.reads() {
            inputs.push(draw(case, name, spec, index)?.to_f64());
        }
    }
    let inputs: Vec<&[f64]> = inputs.iter().map(Vec::as_slice).collect();
    Ok(case.contract.reference(&inputs))
}

fn draw<C: Contract>(
    case: &Case<C>,
    name: &str,
    spec: &TensorSpec,
    index: usize,
) -> Result<HostTensor, OpError> {
    HostTensor::from_f64(spec, &case.fill_of(name).draw(spec, seed(&case.name, index)), GUARD)
}

fn bind_operands<C: Contract>(stream: &Stream, case: &Case<C>) -> Result<Vec<Bound>, OpError> {
    let mut specs: Vec<(&'static str, TensorSpec, Access)> = Vec::new();
    case.contract.operands(&mut |o| specs.push((o.name, *o.spec, o.access)));
    let mut bound = Vec::new();
    for (index, (name, spec, access)) in specs.into_iter().enumerate() {
        let (host, values) = if access.reads() {
            let host = draw(case, name, &spec, index)?;
            // Read back: positions of a broadcast view share an element, and the last one drawn stays.
            let values = host.to_f64();
            (host, values)
        } else {
            (HostTensor::filled(&spec, GUARD)?, Vec::new())
        };
        let mut bytes = host.bytes().to_vec();
        bytes.resize(bytes.len() + BAND, GUARD);
        let whole = TensorSpec::new(DType::U8, Shape::new(&[bytes.len()])?);
        let memory = stream.upload_bytes(&whole, HostBuffer::from_bytes(&bytes)?, &name.into())?;
        let tensor = Tensor::new(memory.buffer().clone(), spec)?;
        bound.push(Bound { name, host, values, access, tensor });
    }
    Ok(bound)
}

pub(crate) fn download(stream: &Stream, buffer: &Buffer) -> Result<Vec<u8>, OpError> {
    stream.download_bytes(buffer)?.wait()
}

/// A hash of the case's name, so that a case draws the same values wherever it stands in the list.
pub(crate) fn seed(case: &str, operand: usize) -> u64 {
    hash(case.bytes().chain([operand as u8]))
}

/// FNV-1a.
pub(crate) fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn coordinates(spec: &TensorSpec, mut index: usize) -> String {
    let mut at: Vec<usize> = Vec::new();
    for &dim in spec.dims().iter().rev() {
        at.push(index % dim.max(1));
        index /= dim.max(1);
    }
    at.reverse();
    format!("{at:?}")
}
