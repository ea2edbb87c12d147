//! Mixture of experts: the router, and the way of rows to their experts and back.

mod gate;
mod permute;
mod unpermute;

pub(crate) use gate::{GatePointers, gate};
pub(crate) use permute::{PermutePointers, permute};
pub(crate) use unpermute::{UnpermutePointers, unpermute};

use portolan_ops::{OpError, TensorSpec};

/// Places of the elements of a matrix.
#[derive(Clone, Copy)]
struct Grid {
    first: usize,
    strides: [usize; 2],
}

impl Grid {
    /// Of a tensor of one or two dimensions.
    fn of(spec: &TensorSpec) -> Self {
        let stride = |dim: usize| spec.strides().get(dim).copied().unwrap_or(0);
        Self { first: spec.layout().offset(), strides: [stride(0), stride(1)] }
    }

    fn at(&self, row: usize, column: usize) -> usize {
        self.first + row * self.strides[0] + column * self.strides[1]
    }
}

/// A fault of what the call read.
fn data(op: &'static str, what: String) -> OpError {
    OpError::Data { op: op.into(), what }
}
