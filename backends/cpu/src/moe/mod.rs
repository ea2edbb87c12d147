//! Mixture of experts: the router, and the way of rows to their experts and back.

mod gate;
mod permute;
mod rows;
mod unpermute;

pub(crate) use gate::{GatePointers, gate};
pub(crate) use permute::{PermutePointers, permute};
pub(crate) use rows::{Added, add_rows, gather_rows, store_rows};
pub(crate) use unpermute::{UnpermutePointers, unpermute};

use crate::elementwise::walk::Base;
use portolan_ops::{OpError, TensorSpec};

/// Places of the elements of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    first: usize,
    strides: [usize; 2],
}

impl Grid {
    /// Of a tensor of one or two dimensions.
    pub(crate) fn of(spec: &TensorSpec) -> Self {
        let stride = |dim: usize| spec.strides().get(dim).copied().unwrap_or(0);
        Self { first: spec.layout().offset(), strides: [stride(0), stride(1)] }
    }

    /// The element in this row and column.
    pub(crate) fn at(&self, row: usize, column: usize) -> usize {
        self.first + row * self.strides[0] + column * self.strides[1]
    }
}

/// A fault of what the call read.
pub(crate) fn data(op: &'static str, what: String) -> OpError {
    OpError::Data { op: op.into(), what }
}

/// Places of the rows of a tensor of two or three dimensions.
pub(crate) struct Lines {
    first: usize,
    room: usize,
    strides: [usize; 2],
    /// From one element of a row to the next.
    pub(crate) step: usize,
}

impl Lines {
    pub(crate) fn of(spec: &TensorSpec) -> Self {
        let first = spec.layout().offset();
        match *spec.strides() {
            [outer, inner, step] => Self { first, room: spec.dims()[1], strides: [outer, inner], step },
            [inner, step] => Self { first, room: usize::MAX, strides: [0, inner], step },
            _ => Self { first, room: usize::MAX, strides: [0, 0], step: 1 },
        }
    }

    /// The first element of a row, counted over all rooms.
    pub(crate) fn at(&self, row: usize) -> usize {
        self.first + row / self.room * self.strides[0] + row % self.room * self.strides[1]
    }
}

/// Writes zeros to a row.
///
/// # Safety
/// Its elements, of `bytes` bytes, exist.
pub(crate) unsafe fn clear(bytes: usize, to: Base, len: usize, place: usize, step: usize) {
    // SAFETY: by contract.
    unsafe {
        if step == 1 {
            to.start().add(place * bytes).write_bytes(0, len * bytes);
            return;
        }
        for i in 0..len {
            to.start().add((place + i * step) * bytes).write_bytes(0, bytes);
        }
    }
}
