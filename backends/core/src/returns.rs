//! Where dropped buffers leave their blocks: a lock-free stack, so that `Drop` never waits and cannot fail.

use crate::sync::UnsafeCell;
use crate::sync::atomic::{AtomicPtr, Ordering};
use core::ptr;

/// A value with the link that the list needs. Made ahead of time, so that leaving it allocates nothing.
pub(crate) struct Node<T> {
    pub(crate) value: T,
    next: UnsafeCell<*mut Node<T>>,
}

impl<T> Node<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value, next: UnsafeCell::new(ptr::null_mut()) }
    }
}

// SAFETY: the link is no access to another node; it is followed only by the list that owns the whole chain.
unsafe impl<T: Send> Send for Node<T> {}
// SAFETY: a shared node gives out its value only; the link is touched by the node's one owner.
unsafe impl<T: Sync> Sync for Node<T> {}

/// Many threads push, one at a time takes everything.
pub(crate) struct ReturnList<T> {
    head: AtomicPtr<Node<T>>,
}

impl<T> ReturnList<T> {
    pub(crate) fn new() -> Self {
        Self { head: AtomicPtr::new(ptr::null_mut()) }
    }

    pub(crate) fn push(&self, node: Box<Node<T>>) {
        let node = Box::into_raw(node);
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // SAFETY: the node came from a box above and is not yet shared.
            unsafe { (*node).next.with_mut(|next| *next = head) };
            match self.head.compare_exchange_weak(head, node, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes everything, oldest first.
    pub(crate) fn take(&self) -> Vec<T> {
        let mut node = self.head.swap(ptr::null_mut(), Ordering::Acquire);
        let mut out = Vec::new();
        while !node.is_null() {
            // SAFETY: the swap made this thread the only owner of the whole chain; each node was a box.
            let owned = unsafe { Box::from_raw(node) };
            // SAFETY: as above, and the push that wrote the link came before the swap.
            node = owned.next.with(|next| unsafe { *next });
            out.push(owned.value);
        }
        out.reverse();
        out
    }
}

impl<T> Drop for ReturnList<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}
