//! Products with quantized weights: strips of 16 rows are packed so that one vector holds 16 rows by 4 columns.
//! Beside them the ways to codes and back: `quantize`, `dequantize`, and the `hadamard` transform before.
//!
//! `strip` is the packed form, `panel` its scales as f32, `activation` the other factor, `int8` and `float` the
//! tile kernels, `small_float_x86` what takes f8 and f4 codes apart, `small_float_row` their product with one row,
//! `linear` the loops around them. A weight that was not packed is packed strip by strip on the fly.

mod activation;
mod dequantize;
mod encode;
mod float;
#[cfg(target_arch = "x86_64")]
mod float_x86;
mod hadamard;
mod int8;
#[cfg(target_arch = "x86_64")]
mod int8_avx2;
#[cfg(target_arch = "x86_64")]
mod int8_avx512;
mod linear;
mod panel;
mod quantize;
#[cfg(target_arch = "x86_64")]
mod small_float_row;
#[cfg(target_arch = "x86_64")]
mod small_float_x86;
mod strip;
#[cfg(test)]
mod tests;

pub(crate) use dequantize::dequantize_row;
pub(crate) use hadamard::hadamard;
pub(crate) use linear::{WeightData, linear, packed_form, prepack, unpack};
pub(crate) use quantize::{dynamic_quantize, quantize};
pub(crate) use strip::QuantParts;
