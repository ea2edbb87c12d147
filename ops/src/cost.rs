//! What an operator costs: exact integers, the only FLOP formula in the project.

use core::ops::{Add, AddAssign};

/// Floating-point operations and bytes of one operator call.
///
/// A multiply-add counts as two operations. Bytes are those an ideal kernel moves: every input element
/// read once, every output element written once. Sums saturate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Arithmetic operations on elements (integer products count too).
    pub flops: u64,
    /// Bytes read from device memory.
    pub bytes_read: u64,
    /// Bytes written to device memory.
    pub bytes_written: u64,
    /// Bytes sent to other ranks.
    pub bytes_comm: u64,
}

impl Add for Cost {
    type Output = Cost;
    fn add(self, other: Cost) -> Cost {
        Cost {
            flops: self.flops.saturating_add(other.flops),
            bytes_read: self.bytes_read.saturating_add(other.bytes_read),
            bytes_written: self.bytes_written.saturating_add(other.bytes_written),
            bytes_comm: self.bytes_comm.saturating_add(other.bytes_comm),
        }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        *self = *self + other;
    }
}
