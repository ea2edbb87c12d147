//! A simulated Ascend driver: one shared library that exports the C ABI of the AscendCL runtime, its descriptors and
//! its two-phase operators, executes on the host, and is stricter than the hardware.
//!
//! A program loads it as it loads the vendor's libraries and knows nothing of it. `abi/` holds the exported functions,
//! each a few lines over the world they act on; `aclnn.rs` says how an operator is added.
//!
//! It depends on nothing of portolan but element codecs, so that agreement with a backend means something.
#![cfg_attr(
    test,
    allow(dead_code, unused_imports, unused_macros, reason = "operators are not exported under unit tests")
)]

mod abi;
mod aclnn;
mod arena;
mod call;
mod capture;
mod collective;
mod context;
mod control;
mod error;
mod executor;
mod fault;
mod graph;
mod log;
mod memory;
mod mistake;
mod op;
mod order;
mod profile;
mod readiness;
mod report;
mod schedule;
mod stream;
mod task_group;
mod tensor;
mod tolerance;
mod view;
mod world;
