//! Custom operators on the CPU: a user's closure over checked slices of the operands.
//!
//! What makes the slices sound is decided before the launch: no written operand's bytes lie within another
//! operand's, and element types that not every byte pattern is a value of are checked when a slice is taken.

use crate::queue::CpuStream;
use core::fmt;
use portolan_core::{CustomKernel, CustomOp, Launch};
use portolan_ops::{Access, Contract, DType, Element, OpError, Result, TensorSpec, Unsupported};
use std::marker::PhantomData;
use std::sync::Arc;

type Function = dyn Fn(&mut [CpuOperand<'_>]) -> Result<()> + Send + Sync;

/// A kernel of a [`CustomOp`] for this backend, registered under the name `cpu`.
///
/// The closure gets the operands in the order they were given, and runs on the stream's thread. An error it
/// returns, or a panic, poisons the stream as any other fault does.
///
/// ```
/// use portolan_core::{CustomOp, Registry, StreamOptions};
/// use portolan_cpu::{CpuBackend, CpuKernel, CpuOptions};
/// use portolan_ops::{Access, Cost, OpError, Shape, Tolerance};
/// use std::sync::Arc;
///
/// let registry = Registry::new().with(CpuBackend::new(CpuOptions::default())?);
/// let stream = registry.open("cpu")?.stream(StreamOptions::default())?;
/// let x = stream.upload(&[1f32, 2.0, 3.0], &Shape::new(&[3])?)?;
/// let out = stream.empty(x.spec())?;
///
/// let squares = CpuKernel::new(|operands| {
///     let [x, out] = operands else { return Err(OpError::internal("square", "two operands")) };
///     for (out, x) in out.write::<f32>()?.iter_mut().zip(x.read::<f32>()?) {
///         *out = x * x;
///     }
///     Ok(())
/// });
/// let reference = Arc::new(|x: &[&[f64]]| vec![x[0].iter().map(|x| x * x).collect()]);
/// let operands = vec![(x, Access::Read), (out.clone(), Access::Write)];
/// let square = CustomOp::new("square", operands, Cost::default(), Tolerance::EXACT, reference)?;
/// stream.run(square.with_kernel("cpu", squares.into()))?;
/// assert_eq!(stream.download::<f32>(&out)?.wait()?, [1.0, 4.0, 9.0]);
/// # Ok::<(), OpError>(())
/// ```
#[derive(Clone)]
pub struct CpuKernel(Arc<Function>);

impl CpuKernel {
    /// A kernel that runs `function`.
    pub fn new(function: impl Fn(&mut [CpuOperand<'_>]) -> Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(function))
    }
}

impl From<CpuKernel> for CustomKernel {
    fn from(kernel: CpuKernel) -> Self {
        Arc::new(kernel)
    }
}

impl fmt::Debug for CpuKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CpuKernel")
    }
}

/// One operand of a custom kernel: a stretch of memory and what lies in it.
///
/// Slices start at the operand's first element and end behind its last one. They are in the order of memory:
/// for a strided operand, element `[i, j]` is at `i · strides[0] + j · strides[1]` of [`CpuOperand::spec`].
#[derive(Debug)]
pub struct CpuOperand<'a> {
    name: &'static str,
    spec: TensorSpec,
    access: Access,
    /// The first byte of the first element.
    start: *mut u8,
    bytes: usize,
    memory: PhantomData<&'a mut [u8]>,
}

impl CpuOperand<'_> {
    /// Element type, extents and strides.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// How it was declared.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The elements, to read.
    ///
    /// # Errors
    /// `DType` when `T` is another element type, `Data` when the memory holds no value of it (a `bool` of 2).
    pub fn read<T: Element>(&self) -> Result<&[T]> {
        self.check::<T>()?;
        bytemuck::checked::try_cast_slice(self.bytes()).map_err(|e| self.invalid(T::DTYPE, &e))
    }

    /// The elements, to write. What was never written holds anything.
    ///
    /// # Errors
    /// `DType` when `T` is another element type, `Attribute` for an operand that was declared to be only
    /// read, `Data` when the memory holds no value of it and was declared to be read as well.
    pub fn write<T: Element>(&mut self) -> Result<&mut [T]> {
        self.check::<T>()?;
        let (dtype, fresh) = (T::DTYPE, self.access == Access::Write && self.spec.is_contiguous());
        if dtype == DType::Bool && fresh {
            // Fresh memory need not hold booleans; all of it is the operand's own to overwrite.
            self.bytes_mut()?.fill(0);
        }
        let name = self.name;
        let bytes = self.bytes_mut()?;
        bytemuck::checked::try_cast_slice_mut(bytes).map_err(|e| invalid(name, dtype, &e))
    }

    /// The bytes, to read: for element types of less than a byte.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `launch` made this value over `bytes` initialised bytes of a live block, which stream order
        // protects until the kernel has run; written operands share no byte with others, so nobody writes
        // these while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    /// The bytes, to write.
    ///
    /// # Errors
    /// `Attribute` for an operand that was declared to be only read.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        if !self.access.writes() {
            let what = "was declared to be only read; declare it Write or ReadWrite";
            return Err(OpError::attribute("custom", self.name, what));
        }
        // SAFETY: as in `bytes`; this operand is written, so no other operand shares a byte with it, and
        // `self` is borrowed exclusively.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) })
    }

    fn check<T: Element>(&self) -> Result<()> {
        match self.spec.dtype() == T::DTYPE {
            true => Ok(()),
            false => Err(OpError::dtype("custom", self.name, self.spec.dtype(), T::DTYPE.name())),
        }
    }

    fn invalid(&self, dtype: DType, error: &bytemuck::checked::CheckedCastError) -> OpError {
        invalid(self.name, dtype, error)
    }
}

fn invalid(name: &str, dtype: DType, error: &bytemuck::checked::CheckedCastError) -> OpError {
    OpError::Data {
        op: "custom".into(),
        what: format!("{name} holds a byte pattern that is no {dtype}: {error}"),
    }
}

/// The operator's kernel, or why it cannot run here and what to do.
pub(crate) fn plan(op: &CustomOp) -> Result<&CpuKernel, (Unsupported, &'static str)> {
    let Some(kernel) = op.kernel("cpu") else {
        return Err((Unsupported::NotImplemented, "register one with CustomOp::with_kernel(\"cpu\", ..)"));
    };
    let Some(kernel) = kernel.downcast_ref::<CpuKernel>() else {
        return Err((Unsupported::NotImplemented, "register a portolan_cpu::CpuKernel under the name cpu"));
    };
    let tensors = op.tensors();
    for (i, (a, access)) in tensors.iter().enumerate().filter(|(_, (_, access))| access.writes()) {
        // A boolean that is written must be one throughout, gaps included.
        if a.dtype() == DType::Bool && *access == Access::Write && !a.spec().is_contiguous() {
            return Err((Unsupported::Layout, "write booleans to a contiguous tensor and copy"));
        }
        let (start, end) = a.spec().byte_range();
        for (_, (b, _)) in tensors.iter().enumerate().filter(|(j, _)| *j != i) {
            let (from, to) = b.spec().byte_range();
            if a.buffer().same(b.buffer()) && start < to && from < end {
                return Err((Unsupported::Layout, "copy operands that interleave in one buffer"));
            }
        }
    }
    Ok(kernel)
}

pub(crate) fn launch(launch: &Launch<'_>, op: &CustomOp) -> Result<()> {
    use portolan_core::Op;
    let kernel = match plan(op) {
        Ok(kernel) => kernel.clone(),
        Err((why, hint)) => return Err(launch.unsupported(op.op_name(), why, hint)),
    };
    let mut operands: Vec<(&'static str, TensorSpec, Access, usize, usize)> = Vec::new();
    let mut tensors = op.tensors().iter();
    op.spec().operands(&mut |operand| {
        if let Some((tensor, access)) = tensors.next() {
            let (start, end) = tensor.spec().byte_range();
            let address = tensor.buffer().address() + start;
            operands.push((operand.name, *tensor.spec(), *access, address, end - start));
        }
    });
    CpuStream::enqueue(launch, move |_| {
        let mut operands: Vec<CpuOperand<'_>> = operands
            .iter()
            .map(|&(name, spec, access, address, bytes)| CpuOperand {
                name,
                spec,
                access,
                start: address as *mut u8,
                bytes,
                memory: PhantomData,
            })
            .collect();
        (kernel.0)(&mut operands)
    })
}
