//! Where in a program an operator stands: names that traces and reports show, `layers.3.attention`.
//!
//! A path belongs to the thread that runs the program's code, and a captured operator keeps the one it was recorded
//! under. Nobody asks for it unless a decorator does, so entering a scope costs a push.

use crate::sync::thread_local;
use core::fmt;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::marker::PhantomData;

thread_local! {
    #[allow(clippy::missing_const_for_thread_local, reason = "loom's macro takes no const block")]
    static HERE: RefCell<Path> = RefCell::new(Path::default());
}

/// The scopes open around a call, outermost first; prints as `layers.3.attention`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Path(SmallVec<[(&'static str, Option<usize>); 3]>);

impl Path {
    /// The scopes open on this thread.
    pub fn here() -> Self {
        HERE.with(|path| path.borrow().clone())
    }

    /// Whether no scope is open.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this is `outer` or lies within it: `layers.3.attention` lies within `layers.3`, not within `layers.30`.
    pub fn is_within(&self, outer: &str) -> bool {
        let path = self.to_string();
        path.strip_prefix(outer)
            .is_some_and(|rest| outer.is_empty() || rest.is_empty() || rest.starts_with('.'))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, index)) in self.0.iter().enumerate() {
            let dot = if at == 0 { "" } else { "." };
            match index {
                None => write!(f, "{dot}{name}")?,
                Some(index) => write!(f, "{dot}{name}.{index}")?,
            }
        }
        Ok(())
    }
}

/// An open scope: what this thread runs until it is dropped stands within it.
///
/// ```
/// use portolan_core::{Path, Scope};
///
/// let _layer = Scope::numbered("layers", 3);
/// {
///     let _part = Scope::named("attention");
///     assert_eq!(Path::here().to_string(), "layers.3.attention");
/// }
/// assert_eq!(Path::here().to_string(), "layers.3");
/// ```
#[must_use = "the scope ends when this is dropped"]
#[derive(Debug)]
pub struct Scope {
    /// Scopes open before this one; dropping out of order closes what is within as well.
    outside: usize,
    /// It is its thread's.
    _thread: PhantomData<*const ()>,
}

impl Scope {
    /// A part of a model: `attention`.
    pub fn named(name: &'static str) -> Self {
        Self::open(name, None)
    }

    /// One of several alike: `layers.3`.
    pub fn numbered(name: &'static str, index: usize) -> Self {
        Self::open(name, Some(index))
    }

    fn open(name: &'static str, index: Option<usize>) -> Self {
        let outside = HERE.with(|path| {
            let open = &mut path.borrow_mut().0;
            open.push((name, index));
            open.len() - 1
        });
        Self { outside, _thread: PhantomData }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        HERE.with(|path| path.borrow_mut().0.truncate(self.outside));
    }
}
