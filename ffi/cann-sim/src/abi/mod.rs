//! The exported functions, by the part of the interface they belong to. Each checks its arguments, does a few lines'
//! work on the world, and returns a code; `call.rs` holds what they have in common.

mod capture;
mod collective;
mod communicator;
mod copy;
mod descriptor;
mod device;
mod event;
mod init;
mod mapping;
mod memory;
mod stream;

pub(crate) use copy::as_fault;

use crate::error::{Fail, Result, code};
use crate::world::{Kind, State, number_of};
use std::ffi::c_void;
use std::time::Duration;

/// What a timeout in milliseconds means: −1 is for ever.
fn milliseconds(ms: i32) -> Result<Option<Duration>> {
    match ms {
        -1 => Ok(None),
        1.. => Ok(Some(Duration::from_millis(ms.unsigned_abs().into()))),
        _ => Err(Fail::parameter(format!("a timeout of {ms}; give -1 or a positive number of milliseconds"))),
    }
}

impl State {
    /// The stream behind a handle, which belongs to this thread's context; NULL is that context's own.
    pub(crate) fn stream_of(&self, handle: *mut c_void) -> Result<u64> {
        let (context, _) = self.current()?;
        if handle.is_null() {
            return match self.contexts.get(&context) {
                Some(context) => Ok(context.default_stream),
                None => Err(Fail::new(code::RT_CONTEXT_NULL, "the context is gone")),
            };
        }
        let id = number_of(Kind::Stream, handle)?;
        match self.streams.get(&id) {
            Some(stream) if stream.context == context => Ok(id),
            Some(stream) => {
                let text = format!("{handle:p} is a stream of another context (device {})", stream.device);
                Err(Fail::new(code::RT_STREAM_CONTEXT, text))
            }
            None => Err(Fail::new(code::RT_INVALID_HANDLE, format!("stream {handle:p} was destroyed"))),
        }
    }

    /// The event behind a handle, which belongs to this thread's context.
    fn event_of(&self, handle: *mut c_void) -> Result<u64> {
        let (context, _) = self.current()?;
        if handle.is_null() {
            return Err(Fail::parameter("event is NULL"));
        }
        let id = number_of(Kind::Event, handle)?;
        match self.events.get(&id) {
            Some(event) if event.context == context => Ok(id),
            Some(event) => {
                let text = format!("{handle:p} is an event of another context (device {})", event.device);
                Err(Fail::new(code::RT_STREAM_CONTEXT, text))
            }
            None => Err(Fail::new(code::RT_INVALID_HANDLE, format!("event {handle:p} was destroyed"))),
        }
    }
}
