//! Vectors of f32 written once and compiled for each instruction set: what every kernel outside the matrix
//! product is built from. The types are in `portable`, `avx2` and `avx512`, what they have in common in
//! `lanes`, elementary functions in `math`, short elements of rows turned into columns in `short`.

#![allow(dead_code, unused_imports, reason = "the vector type is complete; no kernel needs all of it")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod code;
mod lanes;
pub(crate) mod math;
mod portable;
mod short;

pub(crate) use lanes::{Kernel, Lanes, Stored, apart, dispatch};
pub(crate) use short::Short;

/// Bytes from which on a result is written past the caches, which hold no more than that: then its lines need not be
/// read before. Half of what eight cores of Zen 4 share.
pub(crate) const PAST: usize = 16 << 20;
