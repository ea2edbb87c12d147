//! Holds a backend against the operator contracts: every case of every operator, run on a device and
//! compared with the f64 oracle. A library, so that any backend can run it from its own repository.

mod case;
mod core_only;
mod custom;
mod failure;
mod packing;
mod reference;
mod suite;

pub use case::{Subject, check_case, written_bytes};
pub use core_only::CoreOnly;
pub use custom::{check_custom, compare_custom};
pub use failure::Failure;
pub use packing::check_round_trips;
pub use reference::ReferenceBackend;
pub use suite::{Outcome, check_operator, compare_streams};
