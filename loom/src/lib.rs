//! Models of the users of `portolan_core::sync`: every order in which their threads can run, up to a number of
//! preemptions, and every value that a weakly ordered read may return.
//!
//! The code under a model is the code that ships. What is private to its crate is included by path; devices,
//! streams and buffers are driven through their public interface, over a backend that only keeps books.
#![cfg(all(loom, test))]
#![allow(dead_code, reason = "a model uses a part of what it includes")]

use portolan_core::sync;

#[path = "../../backends/core/src/returns.rs"]
mod returns;
#[path = "../../backends/cpu/src/pool/team.rs"]
mod team;

mod comm;
mod comm_model;
mod device_model;
mod handoff_model;
mod latch_model;
mod queue;
mod returns_model;
mod team_model;
mod toy;

/// Longer than any model: time stands still in it.
const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);
