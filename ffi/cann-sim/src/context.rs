//! Contexts, and which of them is current: a matter of each thread.

use crate::error::{Fail, Result, code};
use crate::stream::Stream;
use crate::world::State;
use std::cell::Cell;

thread_local! {
    static CURRENT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Streams and events belong to a context, and a context to a device.
pub(crate) struct Context {
    pub(crate) device: usize,
    /// What NULL means where a stream is asked for.
    pub(crate) default_stream: u64,
    /// `Some(n)`: the device's own, made current by n calls of `aclrtSetDevice`.
    pub(crate) shared: Option<u64>,
}

/// Makes a context current on this thread.
pub(crate) fn set_current(context: Option<u64>) {
    CURRENT.set(context);
}

impl State {
    /// A new context with its default stream.
    pub(crate) fn make_context(&mut self, device: usize, shared: Option<u64>) -> u64 {
        let context = self.number();
        let default_stream = self.number();
        self.streams.insert(default_stream, Stream::new(context, device));
        self.contexts.insert(context, Context { device, default_stream, shared });
        context
    }

    /// Ends a context, with whatever belongs to it.
    pub(crate) fn end_context(&mut self, context: u64) {
        self.contexts.remove(&context);
        self.streams.retain(|_, stream| stream.context != context);
        self.events.retain(|_, event| event.context != context);
        self.find_orphans();
        if CURRENT.get() == Some(context) {
            CURRENT.set(None);
        }
    }

    /// The device's own context, made when it is first asked for.
    pub(crate) fn shared_context(&mut self, device: usize) -> u64 {
        let known = self.contexts.iter().find(|(_, c)| c.device == device && c.shared.is_some());
        match known.map(|(&id, _)| id) {
            Some(id) => id,
            None => self.make_context(device, Some(0)),
        }
    }

    /// This thread's context and its device.
    pub(crate) fn current(&self) -> Result<(u64, usize)> {
        let known = CURRENT.get().and_then(|id| self.contexts.get(&id).map(|context| (id, context.device)));
        let current = known.ok_or_else(|| {
            let text = match CURRENT.get() {
                None => {
                    "this thread has no device: call aclrtSetDevice or aclrtSetCurrentContext on it first"
                }
                Some(_) => "the context of this thread was destroyed",
            };
            Fail::new(code::RT_CONTEXT_NULL, text)
        })?;
        match self.faults.lost() {
            Some(fail) => Err(fail),
            None => Ok(current),
        }
    }

    /// The device with a number.
    pub(crate) fn device(&self, id: i64) -> Result<usize> {
        usize::try_from(id).ok().filter(|&device| device < self.devices).ok_or_else(|| {
            let text = format!("device {id} does not exist; there are {}", self.devices);
            Fail::new(code::RT_INVALID_DEVICE, text)
        })
    }
}
