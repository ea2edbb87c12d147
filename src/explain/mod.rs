//! What a program did, and where two devices part ways: traces for a viewer, and files that a differing call can be
//! run again from.
//!
//! The decorators that collect are in `portolan-core`; put one around a backend with [`Registry::wrap`] before opening
//! its device. This module writes what they found.
//!
//! ```
//! use portolan::{StreamOptions, explain::{TraceLog, write_trace}, ops, Shape};
//!
//! let log = TraceLog::new();
//! let device = portolan::registry()?.wrap("cpu", |backend| log.around(backend)).open("cpu:0")?;
//! let stream = device.stream(StreamOptions::default())?;
//! let a = stream.upload(&[1.0f32, 2.0, 3.0, 4.0], &Shape::new(&[2, 2])?)?;
//! ops::gemm_nt(&stream, &a, &a)?;
//! stream.synchronize()?;
//! let mut json = Vec::new();
//! write_trace(&log, &mut json).expect("memory takes everything");
//! assert!(String::from_utf8_lossy(&json).contains(r#""name":"gemm_nt""#));
//! # Ok::<(), portolan::OpError>(())
//! ```
//!
//! [`Registry::wrap`]: portolan_core::Registry::wrap

mod call;
mod chrome;
mod file;

pub use call::{SavedCall, load_call, save_call};
pub use chrome::{save_trace, write_trace};
pub use file::{expect_writable, save};
pub use portolan_core::Path as ScopePath;
pub use portolan_core::decorate::{
    Agreement, Divergence, FaultKind, FaultPlan, Faulty, GroupStep, Lane, Moment, PlannedFault, Recorded,
    ShadowLog, Span, TraceLog,
};
