//! A tensor: a buffer and what lies in it. Views are cheap and share the buffer.

use crate::buffer::Buffer;
use crate::device::Device;
use core::fmt;
use portolan_ops::{DType, OpError, Result, Shape, TensorSpec};

/// Device memory with an element type, extents and strides.
///
/// Clones and views are handles to the same elements. There is no way to see device memory directly;
/// reading means [`crate::Stream::download`].
#[derive(Clone)]
pub struct Tensor {
    buffer: Buffer,
    spec: TensorSpec,
}

impl Tensor {
    /// The elements of `buffer` that `spec` describes.
    ///
    /// # Errors
    /// `Layout` when they do not lie within the buffer.
    pub fn new(buffer: Buffer, spec: TensorSpec) -> Result<Self> {
        let end = spec.byte_range().1;
        if end > buffer.bytes() {
            let what = format!("{spec} ends at byte {end} of a buffer of {}", buffer.bytes());
            return Err(OpError::layout("tensor", "spec", what));
        }
        Ok(Self { buffer, spec })
    }

    /// Element type, extents, layout.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }
    /// The memory.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }
    /// The device that holds it.
    pub fn device(&self) -> Device {
        Device::from_inner(self.buffer.device().clone())
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.spec.dtype()
    }
    /// Extents.
    pub fn shape(&self) -> &Shape {
        self.spec.shape()
    }
    /// Extents as a slice, outermost first.
    pub fn dims(&self) -> &[usize] {
        self.spec.dims()
    }
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.spec.numel()
    }

    fn view(&self, spec: TensorSpec) -> Self {
        Self { buffer: self.buffer.clone(), spec }
    }

    /// As [`TensorSpec::reshape`].
    pub fn reshape(&self, dims: &[usize]) -> Result<Self> {
        Ok(self.view(self.spec.reshape(dims)?))
    }
    /// As [`TensorSpec::permute`].
    pub fn permute(&self, axes: &[usize]) -> Result<Self> {
        Ok(self.view(self.spec.permute(axes)?))
    }
    /// As [`TensorSpec::transpose`].
    pub fn transpose(&self, a: usize, b: usize) -> Result<Self> {
        Ok(self.view(self.spec.transpose(a, b)?))
    }
    /// As [`TensorSpec::narrow`].
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Self> {
        Ok(self.view(self.spec.narrow(dim, start, len)?))
    }
    /// As [`TensorSpec::select`].
    pub fn select(&self, dim: usize, index: usize) -> Result<Self> {
        Ok(self.view(self.spec.select(dim, index)?))
    }
    /// As [`TensorSpec::broadcast_to`].
    pub fn broadcast_to(&self, dims: &[usize]) -> Result<Self> {
        Ok(self.view(self.spec.broadcast_to(&Shape::new(dims)?)?))
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.spec, self.buffer.device().info.id)
    }
}
