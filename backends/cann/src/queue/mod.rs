//! Streams and events over the driver's own.

mod angles;
mod event;
mod graph;
mod progress;
mod stream;

pub(crate) use angles::Turn;
pub(crate) use stream::CannStream;

use crate::CannBackend;
use portolan_core::{Ordinal, Queue, RawGraph, RawStream, StreamOptions};
use portolan_ops::{OpError, Result};
use std::sync::Arc;

impl Queue for CannBackend {
    fn stream_create(&self, device: Ordinal, options: &StreamOptions) -> Result<Arc<dyn RawStream>> {
        Ok(Arc::new(CannStream::new(self.driver()?, device, options)?))
    }

    fn record_graph(
        &self,
        stream: &dyn RawStream,
        operators: usize,
        record: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Option<Arc<dyn RawGraph>>> {
        let Some(stream) = stream.as_any().downcast_ref::<CannStream>() else {
            return Err(OpError::internal("capture", "the stream is not one of the cann backend"));
        };
        let graph = stream.record_graph(operators, record)?;
        Ok(graph.map(|graph| -> Arc<dyn RawGraph> { graph }))
    }
}
