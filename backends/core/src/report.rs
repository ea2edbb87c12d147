//! What a stream did: launches, costs, and every composition with its reason.

use crate::op::OpKind;
use portolan_ops::{Cost, Unsupported};

/// A stream's account since it was made.
#[derive(Clone, Debug, Default)]
pub struct StreamReport {
    /// Operators run by the program.
    pub launches: u64,
    /// Cost with every operator counted as one kernel.
    pub fused: Cost,
    /// Cost with every composed operator counted through its parts.
    pub composed: Cost,
    /// Compositions taken, by operator and reason, with their number.
    pub compositions: Vec<(OpKind, Unsupported, u64)>,
    /// Weights packed.
    pub prepacks: u64,
    /// Segments the device's pool has reserved so far.
    pub pool_segments: u64,
    /// Most bytes in use at one time on the device.
    pub peak_bytes: usize,
    /// Bytes in use on the device now.
    pub bytes_in_use: usize,
}

impl StreamReport {
    pub(crate) fn book_composition(&mut self, kind: OpKind, why: &Unsupported) {
        match self.compositions.iter_mut().find(|(k, w, _)| *k == kind && w == why) {
            Some((_, _, count)) => *count += 1,
            None => self.compositions.push((kind, why.clone(), 1)),
        }
    }

    /// Compositions taken in all.
    pub fn compositions_total(&self) -> u64 {
        self.compositions.iter().map(|(_, _, n)| n).sum()
    }
}
