//! The AscendCL runtime, its descriptors, operators and collectives, as raw symbols that are looked up while the
//! program runs.
//!
//! Three levels, of which two are here. [`bindings`] and the tables [`Runtime`], [`Descriptors`], [`Operators`] and
//! [`Collectives`] are the vendor's C interface, made by `bindings.py` from our own restatement of it in `include/`.
//! [`Libraries::check`] turns a code into a [`CallFailed`] that keeps the vendor's code and text. Safe types are the
//! business of `portolan-cann`.
//!
//! Nothing is linked: a program that never opens a driver needs none, and a driver that lacks a symbol lacks the
//! operators that need it and nothing else.

#[allow(missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals)]
pub mod bindings;
mod load;
mod result;
pub mod sim;
mod symbols;

pub use load::{Libraries, LoadError};
pub use result::CallFailed;
pub use symbols::{Collectives, Descriptors, Operators, Runtime};
