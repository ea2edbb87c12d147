//! A kernel call as it travels through the queue: the contract and the addresses of its operands.

use crate::activation::GatePointers;
use crate::quant::QuantParts;
use crate::queue::{CpuStream, Exec};
use crate::ssm::View;
use portolan_core::{Call, Dispatch, Launch, Op};
use portolan_ops::{DType, Determinism, Result, TensorSpec};
use smallvec::{SmallVec, smallvec};

/// Addresses of an operator's operands, by name: the first byte of each buffer. The specs' offsets are not
/// added.
///
/// Plain addresses and no handles: memory stays valid because the pool reuses it only behind this call.
pub(crate) struct Args {
    addresses: SmallVec<[(&'static str, usize); 8]>,
    determinism: Determinism,
}

impl Args {
    /// The operand's address, to read; null where the operator has no such operand.
    pub(crate) fn read(&self, name: &str) -> *const u8 {
        self.write(name).cast_const()
    }

    /// The operand's address, to write; null where the operator has no such operand.
    pub(crate) fn write(&self, name: &str) -> *mut u8 {
        let found = self.addresses.iter().find(|(known, _)| *known == name);
        found.map_or(std::ptr::null_mut(), |(_, address)| *address as *mut u8)
    }

    /// The operand's address, to read, if the operator has it.
    pub(crate) fn optional(&self, name: &str) -> Option<*const u8> {
        Some(self.read(name)).filter(|p| !p.is_null())
    }

    /// A float operand, to read or write as its access allows.
    pub(crate) fn view(&self, name: &str, spec: &TensorSpec) -> View {
        View::new(spec, self.write(name))
    }

    /// The tensors of a gated unit; one that holds both is gate and up, which are views of it.
    pub(crate) fn gate_pointers(&self) -> GatePointers {
        let both = self.optional("gate_up");
        let part = |name| both.unwrap_or(self.read(name));
        GatePointers { gate: part("gate"), up: part("up"), out: self.write("out") }
    }

    /// The tensors of a quantized weight.
    pub(crate) fn quant_parts(&self) -> QuantParts {
        QuantParts {
            codes: self.read("weight.codes"),
            scale: self.read("weight.scale"),
            offset: self.read("weight.offset"),
            outer: self.read("weight.outer"),
            outer_offset: self.read("weight.outer_offset"),
        }
    }

    /// Whether a row's bits may not depend on the other rows.
    pub(crate) fn batch_invariant(&self) -> bool {
        self.determinism >= Determinism::BatchInvariant
    }
}

/// Enqueues `kernel` over the operator's contract and operands.
pub(crate) fn enqueue<C: Dispatch>(
    launch: &Launch<'_>,
    op: &Call<C>,
    kernel: fn(&Exec, &C, &Args) -> Result<()>,
) -> Result<()> {
    enqueue_beside(launch, op, SmallVec::new(), kernel)
}

/// The same with `bytes` bytes of scratch, which the kernel finds as operand `scratch`: for what grows with the
/// operands, and so has to come from the device's pool.
pub(crate) fn enqueue_with_scratch<C: Dispatch>(
    launch: &Launch<'_>,
    op: &Call<C>,
    bytes: usize,
    kernel: fn(&Exec, &C, &Args) -> Result<()>,
) -> Result<()> {
    // Stream order protects the block until this call has run, also when the tensor is dropped here.
    let scratch = launch.scratch(&TensorSpec::of(DType::U8, &[bytes])?)?;
    enqueue_beside(launch, op, smallvec![("scratch", scratch.buffer().address())], kernel)
}

fn enqueue_beside<C: Dispatch>(
    launch: &Launch<'_>,
    op: &Call<C>,
    mut addresses: SmallVec<[(&'static str, usize); 8]>,
    kernel: fn(&Exec, &C, &Args) -> Result<()>,
) -> Result<()> {
    let mut operands = SmallVec::<[usize; 8]>::new();
    op.operands(&mut |arg| operands.push(arg.buffer.address()));
    let mut index = 0;
    op.spec().operands(&mut |operand| {
        addresses.push((operand.name, operands.get(index).copied().unwrap_or(0)));
        index += 1;
    });
    let args = Args { addresses, determinism: launch.determinism() };
    let spec = op.spec().clone();
    CpuStream::enqueue(launch, move |exec| kernel(exec, &spec, &args))
}
