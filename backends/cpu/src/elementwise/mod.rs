//! Element-wise kernels: functions of one element, of two, comparisons and choice.
//!
//! `walk` cuts strided operands into runs, `crate::value` turns runs into blocks of values; each operator is a loop
//! over those. Base pointers are the start of a buffer: the spec's offset is applied here.

pub(crate) mod binary;
pub(crate) mod compare;
pub(crate) mod select;
pub(crate) mod unary;
pub(crate) mod walk;

pub(crate) use walk::Exec;
