//! The operands of one case and what the oracle makes of them, worked out once for every run the case has part in.

use portolan_core::{Bind, Buffer, HostBuffer, Stream, Tensor};
use portolan_ops::{Access, Case, Contract, DType, HostTensor, OpError, Shape, TensorSpec};
use std::cell::OnceCell;

/// Fills gaps between elements and the band behind each buffer; no element type reads it as a plain value.
pub(crate) const GUARD: u8 = 0xA5;
/// Length of the band behind each buffer.
pub(crate) const BAND: usize = 64;

/// An operand before it is on a device.
pub(crate) struct Operand {
    pub(crate) name: &'static str,
    pub(crate) access: Access,
    /// What it holds: drawn where it is read, guards where it is not.
    pub(crate) host: HostTensor,
    /// Those bytes and the band behind them.
    banded: HostBuffer,
}

/// An operand on a device: all of its bytes, the band included, and the tensor in them.
#[derive(Clone)]
pub(crate) struct Bound {
    memory: Tensor,
    pub(crate) tensor: Tensor,
}

impl Bound {
    /// The bytes it holds now, and the band behind them.
    pub(crate) fn download(&self, stream: &Stream) -> Result<Vec<u8>, OpError> {
        stream.download::<u8>(&self.memory)?.wait()
    }
}

/// A case whose operands are drawn when a run first needs them, and whose oracle is asked when a comparison does.
///
/// Drawing, encoding and the plain loops of oracles take longer than kernels, so devices, executors and checks that
/// run the same case share one of these.
pub(crate) struct Drawn<'c, C> {
    pub(crate) case: &'c Case<C>,
    operands: OnceCell<Result<Vec<Operand>, OpError>>,
    expected: OnceCell<Vec<Vec<f64>>>,
}

impl<'c, C: Contract> Drawn<'c, C> {
    pub(crate) fn new(case: &'c Case<C>) -> Self {
        Self { case, operands: OnceCell::new(), expected: OnceCell::new() }
    }

    /// Every operand, in the contract's order.
    pub(crate) fn operands(&self) -> Result<&[Operand], OpError> {
        self.operands.get_or_init(|| draw_all(self.case)).as_deref().map_err(OpError::clone)
    }

    /// What the oracle says, one for each operand that is written.
    pub(crate) fn expected(&self) -> Result<&[Vec<f64>], OpError> {
        let operands = self.operands()?;
        Ok(self.expected.get_or_init(|| {
            // Read back: positions of a broadcast view share an element, and the last one drawn stays.
            let inputs: Vec<Vec<f64>> =
                operands.iter().filter(|o| o.access.reads()).map(|o| o.host.to_f64()).collect();
            let inputs: Vec<&[f64]> = inputs.iter().map(Vec::as_slice).collect();
            self.case.contract.reference(&inputs)
        }))
    }

    /// Whether no operand that is written has an element, so that there is nothing to launch.
    pub(crate) fn writes_nothing(&self) -> bool {
        let mut elements = 0;
        self.case.contract.operands(&mut |o| {
            elements += if o.access.writes() { o.spec.numel() } else { 0 };
        });
        elements == 0
    }
}

impl<C: Bind> Drawn<'_, C> {
    /// Every operand on the device of a stream.
    pub(crate) fn bind(&self, stream: &Stream) -> Result<Vec<Bound>, OpError> {
        let bind = |operand: &Operand| {
            let whole = TensorSpec::new(DType::U8, Shape::new(&[operand.banded.len()])?);
            let memory = stream.upload_bytes(&whole, operand.banded.clone(), &operand.name.into())?;
            let tensor = Tensor::new(memory.buffer().clone(), *operand.host.spec())?;
            Ok(Bound { memory, tensor })
        };
        self.operands()?.iter().map(bind).collect()
    }

    /// Runs the case; `None` when the device says it cannot.
    fn run(&self, stream: &Stream) -> Result<Option<Vec<Bound>>, OpError> {
        let bound = self.bind(stream)?;
        let tensors: Vec<&Tensor> = bound.iter().map(|o| &o.tensor).collect();
        match stream.run(self.case.contract.bind(&tensors)?) {
            Err(OpError::Unsupported { .. }) => return Ok(None),
            ran => ran?,
        }
        // Not asked of the queue here: whether a download waits for its work is a test of its own.
        stream.synchronize()?;
        Ok(Some(bound))
    }

    /// Everything the case writes, gaps and bands included; `None` when the device says it cannot run it.
    pub(crate) fn written_bytes(&self, stream: &Stream) -> Result<Option<Vec<u8>>, OpError> {
        let Some(bound) = self.run(stream)? else { return Ok(None) };
        let mut bytes = Vec::new();
        for (_, bound) in self.operands()?.iter().zip(&bound).filter(|(operand, _)| operand.access.writes()) {
            bytes.append(&mut bound.download(stream)?);
        }
        Ok(Some(bytes))
    }

    /// The elements the case writes, operand by operand; `None` when the device says it cannot run it.
    pub(crate) fn written_values(&self, stream: &Stream) -> Result<Option<Vec<Vec<f64>>>, OpError> {
        let Some(bound) = self.run(stream)? else { return Ok(None) };
        let written = self.operands()?.iter().zip(&bound).filter(|(operand, _)| operand.access.writes());
        let values = written.map(|(operand, bound)| {
            Ok(HostTensor::from_bytes(operand.host.spec(), bound.download(stream)?)?.to_f64())
        });
        values.collect::<Result<Vec<_>, OpError>>().map(Some)
    }
}

fn draw_all<C: Contract>(case: &Case<C>) -> Result<Vec<Operand>, OpError> {
    let mut specs: Vec<(&'static str, TensorSpec, Access)> = Vec::new();
    case.contract.operands(&mut |o| specs.push((o.name, *o.spec, o.access)));
    let mut operands = Vec::with_capacity(specs.len());
    for (index, (name, spec, access)) in specs.into_iter().enumerate() {
        let host = match access.reads() {
            true => {
                HostTensor::from_f64(&spec, &case.fill_of(name).draw(&spec, seed(&case.name, index)), GUARD)?
            }
            false => HostTensor::filled(&spec, GUARD)?,
        };
        let banded = HostBuffer::from_bytes(&[host.bytes(), &[GUARD; BAND]].concat())?;
        operands.push(Operand { name, access, host, banded });
    }
    Ok(operands)
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
