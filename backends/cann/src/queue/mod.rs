//! Streams and events over the driver's own.

mod angles;
mod event;
mod progress;
mod stream;

pub(crate) use angles::Turn;
pub(crate) use stream::CannStream;

use crate::CannBackend;
use portolan_core::{Ordinal, Queue, RawStream, StreamOptions};
use portolan_ops::Result;
use std::sync::Arc;

impl Queue for CannBackend {
    fn stream_create(&self, device: Ordinal, options: &StreamOptions) -> Result<Arc<dyn RawStream>> {
        Ok(Arc::new(CannStream::new(self.driver()?, device, options)?))
    }
}
