//! Copies between host and device. Host memory belongs to the copy while it is in flight.

use crate::backend::RawCopy;
use crate::buffer::{Buffer, HostBuffer};
use crate::call::Copy;
use crate::event::Event;
use crate::launch::{Held, Hold, Launch, order_operands};
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::kernel::CopySpec;
use portolan_ops::{Access, Element, OpError, Result, Shape, TensorSpec, Unsupported};
use std::sync::Arc;

/// A result on its way to the host; owns the memory it arrives in.
#[must_use = "nothing is read before `wait`"]
pub struct Pending<T> {
    event: Event,
    host: HostBuffer,
    finish: fn(&[u8]) -> Result<T>,
}

impl<T> Pending<T> {
    /// Blocks until the data has arrived, at most the stream's timeout.
    ///
    /// # Errors
    /// `Poisoned` when the work that makes the data failed, `Timeout`.
    pub fn wait(self) -> Result<T> {
        self.event.synchronize()?;
        // SAFETY: the copy's event has completed, and the copy was the only writer.
        (self.finish)(unsafe { self.host.bytes_unchecked() })
    }

    /// Whether `wait` would return at once.
    ///
    /// # Errors
    /// As [`Event::is_complete`].
    pub fn is_ready(&self) -> Result<bool> {
        self.event.is_complete()
    }
}

impl Stream {
    /// Copies `data` into fresh device memory.
    ///
    /// # Errors
    /// `Shape` when the lengths differ, `OutOfMemory`, `Poisoned`, `Capture` during a capture.
    pub fn upload<T: Element>(&self, data: &[T], shape: &Shape) -> Result<Tensor> {
        if data.len() != shape.numel() {
            return Err(OpError::shape("upload", format!("{} elements for a tensor of {shape}", data.len())));
        }
        let host = HostBuffer::from_bytes(bytemuck::must_cast_slice(data))?;
        self.upload_bytes(&TensorSpec::new(T::DTYPE, *shape), host, &"upload".into())
    }

    /// Copies storage bytes into fresh device memory laid out as `spec`.
    ///
    /// # Errors
    /// As [`Stream::upload`].
    pub fn upload_bytes(&self, spec: &TensorSpec, host: HostBuffer, label: &Arc<str>) -> Result<Tensor> {
        self.inner().refuse_in_capture("upload")?;
        if host.len() != spec.span_bytes() {
            let what = format!("{} bytes for {spec}, which takes {}", host.len(), spec.span_bytes());
            return Err(OpError::shape("upload", what));
        }
        let tensor = self.empty_labelled(spec, label)?;
        self.fill_from(&tensor, 0, host)?;
        Ok(tensor)
    }

    /// Overwrites a contiguous tensor with `data`, in stream order.
    ///
    /// # Errors
    /// `Shape`, `DType`, `Layout` (not contiguous), `Poisoned`, `Capture`.
    pub fn write<T: Element>(&self, tensor: &Tensor, data: &[T]) -> Result<()> {
        self.inner().refuse_in_capture("write")?;
        if tensor.dtype() != T::DTYPE {
            return Err(OpError::dtype("write", "tensor", tensor.dtype(), T::DTYPE.name()));
        }
        if data.len() != tensor.numel() {
            return Err(OpError::shape(
                "write",
                format!("{} elements for a tensor of {}", data.len(), tensor.shape()),
            ));
        }
        if !tensor.spec().is_contiguous() {
            return Err(OpError::layout("write", "tensor", "is not contiguous; upload and copy instead"));
        }
        self.fill_from(
            tensor,
            tensor.spec().byte_range().0,
            HostBuffer::from_bytes(bytemuck::must_cast_slice(data))?,
        )
    }

    fn fill_from(&self, tensor: &Tensor, start: usize, host: HostBuffer) -> Result<()> {
        if host.is_empty() {
            return Ok(());
        }
        let address = tensor.buffer().address() + start;
        self.raw_copy(tensor.buffer(), Access::Write, RawCopy::Upload { host, address }, false)?;
        Ok(())
    }

    /// Copies a tensor to the host; a tensor that is not contiguous is gathered on the device first.
    ///
    /// # Errors
    /// `DType` when `T` is another element type, `Poisoned`, `Unsupported` (`NoData` on a device that keeps
    /// none), `Capture`.
    pub fn download<T: Element>(&self, tensor: &Tensor) -> Result<Pending<Vec<T>>> {
        self.inner().refuse_in_capture("download")?;
        if tensor.dtype() != T::DTYPE {
            return Err(OpError::dtype("download", "tensor", tensor.dtype(), T::DTYPE.name()));
        }
        self.expect_data(tensor.buffer(), tensor.numel())?;
        let gathered;
        let source = if tensor.spec().is_contiguous() {
            tensor
        } else {
            let out = self.empty(&tensor.spec().to_contiguous())?;
            self.run(Copy::bind(CopySpec::new(tensor.spec(), out.spec())?, &[tensor, &out])?)?;
            gathered = out;
            &gathered
        };
        let (start, end) = source.spec().byte_range();
        self.download_range(source.buffer(), start, end, elements::<T>)
    }

    /// Copies a buffer's bytes to the host as they are.
    ///
    /// # Errors
    /// As [`Stream::download`].
    pub fn download_bytes(&self, buffer: &Buffer) -> Result<Pending<Vec<u8>>> {
        self.inner().refuse_in_capture("download")?;
        self.expect_data(buffer, buffer.bytes())?;
        self.download_range(buffer, 0, buffer.bytes(), |bytes| Ok(bytes.to_vec()))
    }

    /// Refuses to read back from a device that keeps no data, before host memory is reserved for it. Nothing at
    /// all can be read from any device.
    fn expect_data(&self, buffer: &Buffer, len: usize) -> Result<()> {
        let inner = self.inner();
        self.expect_own(buffer)?;
        if len == 0 || inner.device().info.keeps_data {
            return Ok(());
        }
        Err(OpError::Unsupported {
            op: "download".into(),
            device: inner.device().info.id.clone(),
            reason: Unsupported::NoData,
            hint: "run on a device that computes".into(),
        })
    }

    fn expect_own(&self, buffer: &Buffer) -> Result<()> {
        let inner = self.inner();
        if Arc::ptr_eq(buffer.device(), inner.device()) {
            return Ok(());
        }
        let (lhs, rhs) = (inner.device().info.id.clone(), buffer.device().info.id.clone());
        Err(OpError::Device { op: "copy".into(), lhs, rhs })
    }

    fn download_range<T>(
        &self,
        buffer: &Buffer,
        start: usize,
        end: usize,
        finish: fn(&[u8]) -> Result<T>,
    ) -> Result<Pending<T>> {
        let host = HostBuffer::zeroed(end - start)?;
        let event = if end > start {
            let copy = RawCopy::Download { address: buffer.address() + start, host: host.clone() };
            self.raw_copy(buffer, Access::Read, copy, true)?
        } else {
            None
        };
        let event = event.map_or_else(|| self.record(), Ok)?;
        Ok(Pending { event, host, finish })
    }

    /// Enqueues a copy, and records an event behind it where one is wanted: under the same lock, so that
    /// nobody else's work comes between.
    fn raw_copy(
        &self,
        buffer: &Buffer,
        access: Access,
        copy: RawCopy,
        record: bool,
    ) -> Result<Option<Event>> {
        self.expect_own(buffer)?;
        let inner = self.inner();
        let event = {
            let held = Held::lock(inner, None);
            let mut seq = 0;
            {
                let submission = &mut *held.submission();
                submission.slots.health(inner.id(), u64::MAX)?;
                if let Some(slot) = submission.slots.get_mut(inner.id()) {
                    slot.seq += 1;
                    seq = slot.seq;
                }
                order_operands(inner.id(), submission, seq, &mut |visit| visit(buffer, access))?;
            }
            inner.device().backend.copy(&Launch::raw_copy(inner, &held, seq), copy)?;
            record.then(|| inner.record_in(&held.submission())).transpose()?
        };
        self.after_submit()?;
        Ok(event)
    }
}

/// The bytes as elements; a byte pattern that is no `T` (a `bool` of 2) is an internal error.
fn elements<T: Element>(bytes: &[u8]) -> Result<Vec<T>> {
    let elements: &[T] = bytemuck::checked::try_cast_slice(bytes).map_err(|e| {
        OpError::internal("download", format!("the device holds a byte pattern that is no {}: {e}", T::DTYPE))
    })?;
    Ok(elements.to_vec())
}
