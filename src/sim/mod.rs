//! Simulated drivers: devices that this machine does not have, for porting, tests and demonstrations.
//!
//! The vendor backends run against them unchanged and through their real interface. They are stricter than the hardware,
//! and slow: what they show is that a program is right, never how fast it is. Device names say `SIMULATED`.

mod cann;

pub use cann::cann;
pub use portolan_cann_sys::sim::{Adversary, Call, Instead, PlannedFault, SimOptions, SimReport, SimWorld};
