//! What a stream did: launches, costs, and every composition with its reason.

use crate::op::OpKind;
use portolan_ops::{Cost, Unsupported};

/// What one kind of operator did on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpUse {
    /// The operator.
    pub kind: OpKind,
    /// Calls by the program; each replay of a graph counts its operators again.
    pub calls: u64,
    /// Cost with every call counted as one kernel.
    pub fused: Cost,
    /// Cost with every composed call counted through its parts.
    pub composed: Cost,
}

impl OpUse {
    fn none(kind: OpKind) -> Self {
        Self { kind, calls: 0, fused: Cost::default(), composed: Cost::default() }
    }
}

/// A stream's account since it was made.
#[derive(Clone, Debug, Default)]
pub struct StreamReport {
    /// Operators run by the program.
    pub launches: u64,
    /// Cost with every operator counted as one kernel.
    pub fused: Cost,
    /// Cost with every composed operator counted through its parts.
    pub composed: Cost,
    /// The same by operator, in the order of [`OpKind`]; of operators that ran.
    pub operators: Vec<OpUse>,
    /// Compositions taken, by operator and reason, with their number.
    pub compositions: Vec<(OpKind, Unsupported, u64)>,
    /// Kernels built at run time for launches of this stream; none where all come compiled.
    pub kernel_builds: u64,
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
    /// The row of an operator. While the stream lives there is one for every kind, so that finding it is cheap.
    fn row(&mut self, kind: OpKind) -> &mut OpUse {
        if self.operators.is_empty() {
            self.operators = OpKind::every().map(OpUse::none).collect();
        }
        &mut self.operators[kind.place()]
    }

    /// Books calls of the program, each counted as one kernel.
    pub(crate) fn book_calls(&mut self, kind: OpKind, calls: u64, cost: Cost) {
        self.fused += cost;
        let row = self.row(kind);
        row.calls += calls;
        row.fused += cost;
    }

    /// Books a kernel that ran for a call of `kind`: that operator itself, or a part of its composition.
    pub(crate) fn book_kernel(&mut self, kind: OpKind, cost: Cost) {
        self.composed += cost;
        self.row(kind).composed += cost;
    }

    pub(crate) fn book_composition(&mut self, kind: OpKind, why: &Unsupported) {
        match self.compositions.iter_mut().find(|(k, w, _)| *k == kind && w == why) {
            Some((_, _, count)) => *count += 1,
            None => self.compositions.push((kind, why.clone(), 1)),
        }
    }

    /// Books what a recording booked of its kernels and compositions.
    pub(crate) fn book_parts(&mut self, recorded: &StreamReport) {
        self.composed += recorded.composed;
        for part in recorded.operators.iter().filter(|part| part.composed != Cost::default()) {
            self.row(part.kind).composed += part.composed;
        }
        for (kind, why, count) in &recorded.compositions {
            match self.compositions.iter_mut().find(|(k, w, _)| k == kind && w == why) {
                Some((_, _, sum)) => *sum += count,
                None => self.compositions.push((*kind, why.clone(), *count)),
            }
        }
        self.prepacks += recorded.prepacks;
    }

    /// Compositions taken in all.
    pub fn compositions_total(&self) -> u64 {
        self.compositions.iter().map(|(_, _, n)| n).sum()
    }
}
