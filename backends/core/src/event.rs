//! A point in a stream that hosts and other streams can wait for.

use crate::backend::RawEvent;
use crate::buffer::Point;
use crate::order::Horizon;
use crate::stream::StreamInner;
use portolan_ops::{OpError, Result};
use std::sync::Arc;
use std::time::Duration;

/// A point in the order of one stream; made by [`crate::Stream::record`].
#[derive(Clone)]
pub struct Event {
    pub(crate) raw: Arc<dyn RawEvent>,
    pub(crate) stream: Arc<StreamInner>,
    pub(crate) seq: u64,
    /// What whoever waits for it learns; fixed when it was recorded, as later waits of its stream are not
    /// covered by it.
    pub(crate) horizon: Horizon,
}

impl Event {
    pub(crate) fn point(&self) -> Point {
        Point { stream: self.stream.id(), seq: self.seq }
    }

    /// Whether everything before the event has finished.
    ///
    /// # Errors
    /// `Poisoned` when some of it failed; `Capture` during a capture.
    pub fn is_complete(&self) -> Result<bool> {
        self.stream.refuse_in_capture("event query")?;
        let done = self.raw.is_complete();
        if done {
            self.stream.finished_until(self.seq)?;
        }
        Ok(done)
    }

    /// Blocks until everything before the event has finished, at most the stream's timeout.
    ///
    /// # Errors
    /// `Poisoned` when some of it failed, `Timeout`, `Capture` during a capture.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.refuse_in_capture("event synchronize")?;
        self.raw.synchronize(self.stream.options().timeout)?;
        self.stream.finished_until(self.seq)
    }

    /// Device time from `start` to this event; both must lie on one stream and have completed.
    ///
    /// # Errors
    /// `Timeout` with a zero bound while either is pending; `Attribute` for events of two streams.
    pub fn elapsed_since(&self, start: &Event) -> Result<Duration> {
        if !Arc::ptr_eq(&self.stream, &start.stream) {
            return Err(OpError::attribute(
                "elapsed_since",
                "start",
                "is an event of another stream; compare events of one stream",
            ));
        }
        self.raw.elapsed_since(start.raw.as_ref()).ok_or_else(|| OpError::Timeout {
            what: "elapsed_since: one of the events".into(),
            after: Duration::ZERO,
        })
    }
}
