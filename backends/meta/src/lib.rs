//! The shape-only backend: a device that runs nothing and keeps nothing.
//!
//! Operators check their arguments and shapes where they are made, and core books their cost and the life of
//! every tensor, so a device that accepts everything and does nothing turns any program into its account:
//! operations, bytes read, written and sent, and memory, by operator and in all ([`StreamReport`]). There is no
//! second cost formula here, nor anything that knows a model.
//!
//! What an operator's contract cannot know is counted as its `cost()` says: lengths that live on the device
//! without a host mirror at their bound, the routing of tokens to experts as balanced.
//!
//! Any rank of any group counts for itself: nobody else need be there. What it sends is what the algorithm that sends
//! least does, in a ring or straight to each other: of n ranks and S bytes, `2·(n − 1)/n·S` for an all_reduce,
//! `(n − 1)/n·S` for a reduce_scatter or all_to_all of S and for an all_gather into S, `(n − 1)·S` for the root of a
//! broadcast, S for a giver of a reduce.
//!
//! ```
//! use portolan_core::{Registry, StreamOptions, ops};
//! use portolan_meta::{MetaBackend, MetaOptions};
//! use portolan_ops::{DType, TensorSpec};
//!
//! let device = Registry::new().with(MetaBackend::new(MetaOptions::default())).open("meta:0")?;
//! let stream = device.stream(StreamOptions::default())?;
//! // 32 GiB each, of which not a byte is there.
//! let a = stream.empty(&TensorSpec::of(DType::F32, &[1 << 16, 1 << 17])?)?;
//! let b = stream.empty(&TensorSpec::of(DType::F32, &[1 << 16, 1 << 17])?)?;
//! let product = ops::gemm_nt(&stream, &a, &b)?;
//! assert_eq!(product.dims(), [1 << 16, 1 << 16]);
//! assert_eq!(stream.report().fused.flops, 2 << (16 + 16 + 17));
//! assert_eq!(device.memory()?.peak_live_bytes, (2 << 35) + (1 << 34));
//! assert!(stream.download::<f32>(&product).is_err());
//! # Ok::<(), portolan_ops::OpError>(())
//! ```
//!
//! [`StreamReport`]: portolan_core::StreamReport

mod comm;
mod fused;
mod kernels;
mod memory;
mod options;
mod queue;

pub use options::{Count, MetaOptions};

use memory::Space;
use portolan_core::sync::atomic::AtomicU64;
use portolan_core::{Backend, DeviceInfo, OpQuery, Ordinal, Support, compose};
use portolan_ops::{DeviceId, Result, Unsupported};
use std::sync::Arc;

/// The backend with one device, `meta:0`.
pub struct MetaBackend {
    count: Count,
    space: Space,
    /// Groups that have an identity.
    groups: AtomicU64,
}

impl MetaBackend {
    /// A backend that counts as the options say.
    pub fn new(options: MetaOptions) -> Arc<Self> {
        let (space, groups) = (Space::new(options.memory_limit), AtomicU64::new(0));
        Arc::new(Self { count: options.count, space, groups })
    }

    /// How fused operators are counted.
    pub fn count(&self) -> Count {
        self.count
    }
}

impl Backend for MetaBackend {
    fn name(&self) -> &'static str {
        "meta"
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        let how = match self.count {
            Count::Fused => "counts shapes and costs, each operator as one kernel; keeps no data",
            Count::Composed => "counts shapes and costs, fused operators by their parts; keeps no data",
        };
        Ok(vec![DeviceInfo {
            id: DeviceId::new("meta", 0),
            name: how.into(),
            memory_bytes: self.space.limit(),
            flushes_denormals: false,
            keeps_data: false,
        }])
    }

    fn support(&self, _device: Ordinal, query: &OpQuery<'_>) -> Support {
        // A user's own operator is none of the fused ones: nobody knows its parts.
        match self.count {
            Count::Composed if query.spec.kind().is_fused() => compose::support(query, COMPOSED),
            Count::Composed | Count::Fused => Support::Native,
        }
    }
}

/// Why fused operators are composed where their parts are counted: the device is one with the kernel core alone.
const COMPOSED: Unsupported = Unsupported::NotImplemented;
