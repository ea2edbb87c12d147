//! Streams on which everything is over as soon as it is enqueued.

use crate::MetaBackend;
use portolan_core::{Fault, Ordinal, Queue, RawEvent, RawStream, StreamOptions};
use portolan_ops::Result;
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Queue for MetaBackend {
    fn stream_create(&self, _device: Ordinal, _options: &StreamOptions) -> Result<Arc<dyn RawStream>> {
        Ok(Arc::new(MetaStream))
    }
}

struct MetaStream;

impl RawStream for MetaStream {
    fn record(&self) -> Result<Arc<dyn RawEvent>> {
        Ok(Arc::new(MetaEvent { at: Instant::now() }))
    }
    fn wait(&self, _event: &Arc<dyn RawEvent>, _seq: u64) -> Result<()> {
        Ok(())
    }
    fn is_idle(&self) -> bool {
        true
    }
    fn synchronize(&self, _timeout: Duration) -> Result<()> {
        Ok(())
    }
    /// Without data there is nothing that could be wrong with it.
    fn fault(&self) -> Option<Fault> {
        None
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Reached when it was recorded: the time between two is the host's.
struct MetaEvent {
    at: Instant,
}

impl RawEvent for MetaEvent {
    fn is_complete(&self) -> bool {
        true
    }
    fn synchronize(&self, _timeout: Duration) -> Result<()> {
        Ok(())
    }
    fn elapsed_since(&self, start: &dyn RawEvent) -> Option<Duration> {
        let start = start.as_any().downcast_ref::<MetaEvent>()?;
        Some(self.at.saturating_duration_since(start.at))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
