//! Working memory of a kernel: cache-line-aligned blocks of each thread, one a level of nesting, kept from call to
//! call.
//!
//! It lives beside the team because a region that allocates would cost more than many a kernel.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::Cell;

/// A cache line, and the widest vector.
const ALIGN: usize = 64;

/// Blocks above this are freed after use: larger than what any blocked kernel asks for, so only odd shapes pay.
const KEEP_BYTES: usize = 8 << 20;

struct Block {
    start: *mut u8,
    layout: Layout,
}

impl Block {
    fn new(bytes: usize) -> Self {
        // A size that no layout can describe cannot be allocated either: both end like any failed allocation.
        let Ok(layout) = Layout::from_size_align(bytes.max(1), ALIGN) else {
            handle_alloc_error(Layout::new::<[u8; ALIGN]>())
        };
        // SAFETY: the size is at least 1.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        Self { start, layout }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, freed only here.
        unsafe { dealloc(self.start, self.layout) }
    }
}

thread_local! {
    static KEPT: Cell<Vec<Block>> = const { Cell::new(Vec::new()) };
}

/// Calls `body` with a block of at least `bytes` uninitialised bytes, aligned to 64, valid during the call.
///
/// Calls may nest: an inner one gets a block of its own. Allocation failure aborts, as everywhere in std:
/// callers ask for block sizes that they bound, never for sizes of tensors.
pub(crate) fn with<R>(bytes: usize, body: impl FnOnce(*mut u8) -> R) -> R {
    let mut kept = KEPT.try_with(Cell::take).unwrap_or_default();
    let block = match kept.pop() {
        Some(block) if block.layout.size() >= bytes => block,
        _ => Block::new(bytes.next_multiple_of(4096)),
    };
    // What is left is for nested calls: the deepest lies at the bottom.
    let _ = KEPT.try_with(|slot| slot.set(kept));
    let result = body(block.start);
    if block.layout.size() <= KEEP_BYTES {
        let _ = KEPT.try_with(|slot| {
            let mut kept = slot.take();
            kept.push(block);
            slot.set(kept);
        });
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_and_kept_between_calls() {
        let first = with(1000, |p| p as usize);
        let second = with(900, |p| p as usize);
        assert_eq!(first % ALIGN, 0);
        assert_eq!(first, second);
    }

    #[test]
    fn nested_blocks_are_kept_too() {
        let nested = || with(9000, |outer| (outer as usize, with(5000, |inner| inner as usize)));
        assert_eq!(nested(), nested());
    }

    #[test]
    fn nested_blocks_do_not_overlap() {
        with(4096, |outer| {
            // SAFETY: the block has 4096 bytes.
            unsafe { outer.write_bytes(1, 4096) };
            with(4096, |inner| {
                assert_ne!(outer, inner);
                // SAFETY: the block has 4096 bytes.
                unsafe { inner.write_bytes(2, 4096) };
            });
            // SAFETY: written above.
            assert!((0..4096).all(|i| unsafe { *outer.add(i) } == 1));
        });
    }

    #[test]
    fn a_huge_block_is_not_kept() {
        with(KEEP_BYTES + 1, |_| ());
        assert!(KEPT.take().is_empty());
    }
}
