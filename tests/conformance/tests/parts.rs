//! The tests inside those parts of the suite that stand alone. The whole library, built a second time for them, would
//! cost half a minute.
#![allow(
    dead_code,
    clippy::unwrap_used,
    missing_docs,
    reason = "parts are tested here, and used in the library"
)]

use portolan_conformance::{Failure, Promise, ReferenceBackend, Subject, check_case};

#[path = "../src/edge.rs"]
mod edge;
#[path = "../src/pattern.rs"]
mod pattern;
#[path = "../src/views.rs"]
mod views;
