//! Holds a backend against its contract: every case of every operator against the f64 oracle, and what a device
//! promises beyond operators. A library, so that any backend can run it from its own repository.
//!
//! A backend's tests call [`suite!`], which makes one test for each operator and each area of the contract.
//! [`Suite`] gives the same as values: a name and a [`Verdict`] for every case.
//!
//! A device that keeps no data, as its `DeviceInfo` says, is held to what is left of the contract without values:
//! shapes, support, costs, memory and errors. Tests that are about values report as unsupported there.

mod account;
mod arguments;
mod batch;
mod case;
mod contract;
mod core_only;
mod coverage;
mod custom;
mod drawn;
mod edge;
mod exceptions;
mod failure;
mod group;
mod operators;
mod packing;
mod pattern;
#[cfg(feature = "proptest")]
mod property;
mod reference;
mod report;
mod rig;
mod suite;
mod views;

pub use arguments::check_arguments;
pub use case::{Subject, check_case};
pub use core_only::CoreOnly;
pub use custom::{check_custom, compare_custom};
pub use failure::{Failure, Promise};
pub use operators::{Outcome, check_operator, compare_streams};
pub use packing::check_round_trips;
pub use portolan_core::{OpKind, for_each_op};
pub use reference::ReferenceBackend;
pub use report::{Report, TestOutcome, Verdict};
pub use suite::Suite;
