//! Device memory that is owned, and host memory that a copy may use while it is in flight.

use crate::device::DeviceInner;
use crate::pool::{Block, Returned};
use crate::returns::{Node, ReturnList};
use crate::stream::StreamInner;
use crate::sync::{Mutex, lock};
use portolan_ops::{OpError, Result};
use smallvec::SmallVec;
use std::cell::UnsafeCell;
use std::sync::{Arc, Weak};

/// A place in the order of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) stream: u64,
    pub(crate) seq: u64,
}

/// Who touched a buffer last: the latest write, and the latest use on every stream since.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    pub(crate) write: Option<Point>,
    /// The latest access of any kind, one entry a stream.
    pub(crate) uses: SmallVec<[Point; 2]>,
}

impl Usage {
    pub(crate) fn touch(&mut self, point: Point, writes: bool) {
        if writes {
            // Every earlier use is ordered before this write by the hazard step, so it stands for them all;
            // other streams' entries stay because the pool needs them when the buffer is freed.
            self.write = Some(point);
        }
        match self.uses.iter_mut().find(|p| p.stream == point.stream) {
            Some(entry) => entry.seq = point.seq,
            None => self.uses.push(point),
        }
    }
}

/// A piece of device memory. Clones are the same memory; the last one to go gives it back to the pool in
/// stream order: the memory is reused only behind the work that uses it.
#[derive(Clone)]
pub struct Buffer(Arc<BufferInner>);

pub(crate) struct BufferInner {
    block: Block,
    home: Arc<StreamInner>,
    returns: Arc<ReturnList<Returned>>,
    node: Option<Box<Node<Returned>>>,
    pub(crate) usage: Mutex<Usage>,
}

impl Buffer {
    pub(crate) fn new(
        block: Block,
        home: Arc<StreamInner>,
        returns: Arc<ReturnList<Returned>>,
        label: Arc<str>,
    ) -> Self {
        // The node is made now so that dropping allocates nothing and cannot fail.
        let node = (block.bytes != 0).then(|| Box::new(Node::new(Returned::new(block, home.id(), label))));
        Buffer(Arc::new(BufferInner { block, home, returns, node, usage: Mutex::new(Usage::default()) }))
    }

    /// Device address of the first byte.
    pub fn address(&self) -> usize {
        self.0.block.address
    }

    /// Usable length in bytes.
    pub fn bytes(&self) -> usize {
        self.0.block.bytes
    }

    pub(crate) fn device(&self) -> &Arc<DeviceInner> {
        self.0.home.device()
    }

    pub(crate) fn usage(&self) -> crate::sync::MutexGuard<'_, Usage> {
        lock(&self.0.usage)
    }

    /// Which operator wrote the memory last, as its stream and its place there: two equal answers for one buffer mean equal
    /// contents. `None` before the first.
    pub fn written(&self) -> Option<(u64, u64)> {
        self.usage().write.map(|point| (point.stream, point.seq))
    }

    /// Whether both handles are the same memory.
    pub fn same(&self, other: &Buffer) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn key(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// Tells whether any handle is left, without being one.
    pub(crate) fn watch(&self) -> Weak<BufferInner> {
        Arc::downgrade(&self.0)
    }
}

impl Drop for BufferInner {
    fn drop(&mut self) {
        if let Some(mut node) = self.node.take() {
            let usage = self.usage.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
            node.value.uses = core::mem::take(&mut usage.uses);
            self.returns.push(node);
        }
    }
}

/// Host memory that a copy in flight may read or write; owned by the copy and by whoever waits for it.
#[derive(Clone)]
pub struct HostBuffer(Arc<HostBytes>);

struct HostBytes {
    // 16-byte words: every element type is aligned.
    words: UnsafeCell<Box<[u128]>>,
    bytes: usize,
}

// SAFETY: access follows the protocol of `HostBuffer::write`: one writer, and readers only behind the event
// that orders the writer before them.
unsafe impl Send for HostBytes {}
// SAFETY: as above.
unsafe impl Sync for HostBytes {}

impl HostBuffer {
    /// Zeroed host memory of `bytes` bytes.
    ///
    /// # Errors
    /// `OutOfMemory` naming `host` when the host has not got it.
    pub fn zeroed(bytes: usize) -> Result<Self> {
        let count = bytes.div_ceil(16);
        let mut words: Vec<u128> = Vec::new();
        if words.try_reserve_exact(count).is_err() {
            return Err(OpError::OutOfMemory {
                device: portolan_ops::DeviceId::new("host", 0),
                requested: bytes,
                free: 0,
                total: 0,
                holders: Vec::new(),
            });
        }
        words.resize(count, 0);
        Ok(Self(Arc::new(HostBytes { words: UnsafeCell::new(words.into_boxed_slice()), bytes })))
    }

    /// A copy of `data`.
    ///
    /// # Errors
    /// As [`HostBuffer::zeroed`].
    pub fn from_bytes(data: &[u8]) -> Result<Self> {
        let mut host = Self::zeroed(data.len())?;
        if let Some(bytes) = host.bytes_mut() {
            bytes.copy_from_slice(data);
        }
        Ok(host)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.bytes
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.0.bytes == 0
    }

    /// The bytes, to fill them, while this is the only handle.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        let inner = Arc::get_mut(&mut self.0)?;
        let bytes = inner.bytes;
        Some(&mut bytemuck::cast_slice_mut(&mut inner.words.get_mut()[..])[..bytes])
    }

    /// Address of the first byte, for a backend's copy.
    pub fn address(&self) -> *mut u8 {
        // SAFETY: the pointer is only formed here; whoever dereferences it holds the protocol of `HostBytes`.
        unsafe { (*self.0.words.get()).as_mut_ptr().cast() }
    }

    /// The bytes, to read them.
    ///
    /// # Safety
    /// No copy that writes this buffer may be pending: its event was waited for.
    pub unsafe fn bytes_unchecked(&self) -> &[u8] {
        // SAFETY: the caller says that no writer is left.
        let words: &[u128] = unsafe { &*self.0.words.get() };
        &bytemuck::cast_slice(words)[..self.0.bytes]
    }
}
