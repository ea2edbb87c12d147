//! Order between streams: work that touches the same memory from two streams has to be ordered by an event or by the
//! host, or hardware runs it in either order.
//!
//! What is enqueued is compared with what other streams have yet to do: such work is not behind it, so unless its own
//! stream waits for it, directly or through others, nothing orders the two. That is a violation, and reported with both
//! names; what becomes of the data is up to the adversary.

use crate::stream::{Point, Task, Work};
use crate::tensor::{FRACTAL_NZ, Tensor};
use crate::world::State;
use std::collections::BTreeMap;

/// How many pieces of work are looked at in each of the other streams: the latest ones.
const LOOKBACK: usize = 1024;
/// Pieces of memory that a scattered view is taken apart into; one with more is taken for nothing.
const MOST_PIECES: usize = 512;

/// Bytes of the device that a piece of work reads or writes.
#[derive(Clone, Debug)]
pub(crate) struct Touch {
    first: usize,
    /// Behind the last byte.
    end: usize,
    writes: bool,
    /// Bytes that lie together, and how often that is repeated, how far apart: nothing for all of them.
    piece: usize,
    repeats: Vec<(usize, usize)>,
}

impl Touch {
    /// So many bytes from an address on.
    pub(crate) fn bytes(address: usize, bytes: usize, writes: bool) -> Self {
        Self { first: address, end: address + bytes, writes, piece: bytes, repeats: Vec::new() }
    }

    /// Rows of so many bytes, each so far from the one before.
    pub(crate) fn rows(address: usize, width: usize, (height, pitch): (usize, usize), writes: bool) -> Self {
        let end = address + height.saturating_sub(1) * pitch + width;
        Self { first: address, end, writes, piece: width, repeats: vec![(height, pitch)] }
    }

    /// What a tensor's view touches where its storage begins at `address` and ends `bytes` later; `None` for nothing.
    pub(crate) fn view(tensor: &Tensor, address: usize, bytes: usize, writes: bool) -> Option<Self> {
        let bits = tensor.dtype().bits();
        let at = |elements: i64| usize::try_from(elements).ok().map(|n| n * bits / 8);
        let first = address + at(tensor.offset())?;
        if tensor.numel() == 0 {
            return None;
        }
        // Blocks, and elements that share a byte, count as a whole.
        if tensor.format() == FRACTAL_NZ || !bits.is_multiple_of(8) {
            return Some(Self::bytes(first, (address + bytes).saturating_sub(first), writes));
        }
        let mut dims: Vec<(usize, usize)> = tensor
            .shape()
            .iter()
            .zip(tensor.strides())
            .filter(|&(&n, &stride)| n > 1 && stride > 0)
            .map(|(&n, &stride)| Some((usize::try_from(n).ok()?, at(stride)?)))
            .collect::<Option<_>>()?;
        dims.sort_by_key(|&(_, stride)| stride);
        let (mut piece, mut repeats) = (bits / 8, Vec::new());
        let mut end = first + piece;
        for (n, stride) in dims {
            end += (n - 1) * stride;
            // Still without a gap.
            if repeats.is_empty() && stride <= piece {
                piece += (n - 1) * stride
            } else {
                repeats.push((n, stride))
            }
        }
        Some(Self { first, end, writes, piece, repeats })
    }

    /// First bytes of the pieces; `None` for too many.
    fn pieces(&self) -> Option<Vec<usize>> {
        let count = self.repeats.iter().try_fold(1usize, |count, &(n, _)| count.checked_mul(n));
        count.filter(|&count| count <= MOST_PIECES)?;
        Some(self.repeats.iter().fold(vec![self.first], |starts, &(n, stride)| {
            starts.iter().flat_map(|start| (0..n).map(move |i| start + i * stride)).collect()
        }))
    }

    /// Whether both touch a byte, one of them to write it.
    fn conflicts(&self, other: &Self) -> bool {
        if !(self.writes || other.writes) || self.first >= other.end || other.first >= self.end {
            return false;
        }
        let (Some(mine), Some(others)) = (self.pieces(), other.pieces()) else { return false };
        mine.iter().any(|&a| others.iter().any(|&b| a < b + other.piece && b < a + self.piece))
    }
}

/// What of some memory a piece of work touches too, with either side's touch.
fn clash<'a>(ours: &'a [Touch], task: &'a Task) -> Option<(&'a Touch, &'a Touch)> {
    let mut pairs = ours.iter().flat_map(|ours| task.touches.iter().map(move |theirs| (ours, theirs)));
    pairs.find(|(ours, theirs)| ours.conflicts(theirs))
}

impl State {
    /// Books what is about to be enqueued on a stream where unfinished work of another touches the same memory and
    /// nothing orders the two.
    pub(crate) fn check_order(&mut self, id: u64, touches: &[Touch]) {
        let busy = |stream: &crate::stream::Stream| {
            !stream.is_lane && stream.queue.iter().any(|task| !task.touches.is_empty())
        };
        if touches.is_empty() || !self.streams.iter().any(|(&other, stream)| other != id && busy(stream)) {
            return;
        }
        let Some(behind) = self.ordered_before(id) else { return };
        let mut found = None;
        for (&other, stream) in &self.streams {
            if other == id || stream.is_lane || self.disordered.contains(&(other, id)) {
                continue;
            }
            let from = behind.get(&other).copied().unwrap_or(0);
            let unordered = stream.numbered().rev().take(LOOKBACK).take_while(|&(seq, _)| seq > from);
            let mut clashes = unordered.filter_map(|(_, task)| Some((task, clash(touches, task)?)));
            if let Some((task, (ours, theirs))) = clashes.next() {
                let verb = |touch: &Touch| if touch.writes { "writes" } else { "reads" };
                let address = ours.first.max(theirs.first);
                let (ours, theirs, call) = (verb(ours), verb(theirs), task.call);
                found = Some((
                    other,
                    format!(
                        "{ours} what {} (call {call}) {theirs} on another stream, near {address:#x}, and nothing orders the two",
                        task.name
                    ),
                ));
                break;
            }
        }
        if let Some((other, text)) = found {
            // One of a kind is enough: the next ones are of the same mistake.
            self.disordered.insert((other, id));
            self.violate(text);
        }
    }

    /// For each stream, up to where its work is over before what is enqueued on a stream now; `None` where that depends
    /// on more than waits for events.
    fn ordered_before(&self, id: u64) -> Option<BTreeMap<u64, u64>> {
        let mut behind = BTreeMap::new();
        let mut open = vec![Point { stream: id, seq: u64::MAX }];
        while let Some(point) = open.pop() {
            let known = behind.insert(point.stream, point.seq).unwrap_or(0);
            if known >= point.seq {
                behind.insert(point.stream, known);
                continue;
            }
            let Some(stream) = self.streams.get(&point.stream) else { continue };
            for (_, task) in stream.numbered().filter(|&(seq, _)| seq > known && seq <= point.seq) {
                match &task.work {
                    Work::Wait { point: Some(point), .. } => open.push(*point),
                    Work::Wait { event, point: None, .. } => {
                        open.push(self.events.get(event).and_then(|event| event.latest)?);
                    }
                    Work::Join { point, .. } => open.push(*point),
                    Work::Host(_) | Work::Report { .. } | Work::Await { .. } | Work::Meet { .. } => {
                        return None;
                    }
                    Work::Kernel(_) | Work::Copy(_) | Work::Record { .. } | Work::Reset { .. } => {}
                }
            }
        }
        Some(behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(shape: &[i64], strides: &[i64], offset: i64) -> Touch {
        let tensor = Tensor::new(0, 2, shape, Some(strides), offset, &[1000], 0).unwrap();
        Touch::view(&tensor, 4096, 4000, true).unwrap()
    }

    #[test]
    fn views_conflict_where_they_share_a_byte_and_one_writes() {
        // Two halves of the columns of one matrix, its rows, and its diagonal's neighbour.
        let (left, right) = (view(&[4, 5], &[10, 1], 0), view(&[4, 5], &[10, 1], 5));
        let row = view(&[10], &[1], 20);
        assert!(!left.conflicts(&right) && left.conflicts(&row) && row.conflicts(&right));
        assert!(!view(&[5], &[1], 5).conflicts(&left));
        // A transposed view is dense too, a repeated one is one element.
        let turned = view(&[10, 4], &[1, 10], 0);
        assert_eq!((turned.piece, turned.repeats.len()), (160, 0));
        let repeated = view(&[7], &[0], 3);
        assert!(repeated.conflicts(&left) && !repeated.conflicts(&right));
        let read = Touch { writes: false, ..row.clone() };
        assert!(!read.conflicts(&read) && read.conflicts(&row));
    }

    #[test]
    fn scattered_views_of_too_many_pieces_are_let_be() {
        let scattered = view(&[600], &[1], 0);
        assert!(scattered.pieces().is_some());
        let scattered = Touch { repeats: vec![(600, 8)], piece: 4, ..scattered };
        assert!(!scattered.conflicts(&view(&[1], &[1], 0)));
        let rows = Touch::rows(4096, 8, (3, 100), true);
        assert_eq!((rows.end, rows.pieces()), (4096 + 208, Some(vec![4096, 4196, 4296])));
        assert!(
            !rows.conflicts(&Touch::bytes(4104, 92, true)) && rows.conflicts(&Touch::bytes(4104, 93, true))
        );
    }
}
