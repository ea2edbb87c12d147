//! Scales of quantized caches: one for each position and head, of keys and of values.
//!
//! Shared by the operators that read a cache; what writes one is `kv_cache_write.rs`.

use crate::{
    Access, DType, Fill, Operand, QuantScheme, Result, TensorSpec, expect_dims, expect_dtype, expect_writable,
};

/// Types of codes.
pub(super) const CODES: [DType; 3] = [DType::I8, DType::F8E4M3, DType::F8E5M2];

/// Scales of a cache of codes, i8, f8e4m3 or f8e5m2: an element is `scale · code`.
///
/// f32, with the extents of the cache less its last. A view with stride 0 serves a scale that several entries
/// share: one for the whole cache, say, which is 1 where an f8 cache holds the numbers themselves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvScales {
    k: TensorSpec,
    v: TensorSpec,
}

impl KvScales {
    pub(super) fn new(
        op: &'static str,
        [k, v]: [&TensorSpec; 2],
        [k_scale, v_scale]: [&TensorSpec; 2],
    ) -> Result<Self> {
        expect_scaled(op, ["k", "k_scale"], k, k_scale)?;
        expect_scaled(op, ["v", "v_scale"], v, v_scale)?;
        Ok(Self { k: *k_scale, v: *v_scale })
    }

    /// Of keys.
    pub fn k(&self) -> &TensorSpec {
        &self.k
    }
    /// Of values.
    pub fn v(&self) -> &TensorSpec {
        &self.v
    }
}

/// Visits keys and values, and their scales where there are any.
pub(super) fn visit_cache<'a>(
    [k, v]: [&'a TensorSpec; 2],
    scales: Option<&'a KvScales>,
    visit: &mut dyn FnMut(Operand<'a>),
) {
    visit(Operand { name: "k", spec: k, access: Access::Read });
    visit(Operand { name: "v", spec: v, access: Access::Read });
    if let Some(scales) = scales {
        visit(Operand { name: "k_scale", spec: &scales.k, access: Access::Read });
        visit(Operand { name: "v_scale", spec: &scales.v, access: Access::Read });
    }
}

/// Keys and values as numbers, out of an operator's inputs from k on, and the inputs behind them.
pub(super) fn take_cache<'a, 'b>(
    [k, v]: [&TensorSpec; 2],
    scales: Option<&KvScales>,
    inputs: &'b [&'a [f64]],
) -> ([Vec<f64>; 2], &'b [&'a [f64]]) {
    if scales.is_none() {
        return ([inputs[0].to_vec(), inputs[1].to_vec()], &inputs[2..]);
    }
    ([scaled(k, inputs[0], inputs[2]), scaled(v, inputs[1], inputs[3])], &inputs[4..])
}

/// The same of a single cache, whose scales, where there are any, come next among the inputs.
pub(super) fn take_entries<'a, 'b>(
    cache: &TensorSpec,
    scale: Option<&TensorSpec>,
    inputs: &'b [&'a [f64]],
) -> (Vec<f64>, &'b [&'a [f64]]) {
    match scale {
        None => (inputs[0].to_vec(), &inputs[1..]),
        Some(_) => (scaled(cache, inputs[0], inputs[1]), &inputs[2..]),
    }
}

/// Every code times the scale of its row.
fn scaled(cache: &TensorSpec, codes: &[f64], scale: &[f64]) -> Vec<f64> {
    let width = cache.shape().last().max(1);
    codes.iter().enumerate().map(|(i, code)| code * scale[i / width]).collect()
}

/// Checks a cache of codes and the scale of each of its rows.
pub(super) fn expect_scaled(
    op: &'static str,
    [name, scale_name]: [&'static str; 2],
    cache: &TensorSpec,
    scale: &TensorSpec,
) -> Result<()> {
    expect_dtype(op, name, cache, &CODES)?;
    expect_dims(op, scale_name, scale, &cache.dims()[..cache.rank() - 1])?;
    expect_dtype(op, scale_name, scale, &[DType::F32])
}

/// How rows become codes: one scale a row, whose largest magnitude gets the largest code.
pub(super) fn row_scheme(codes: DType) -> QuantScheme {
    QuantScheme { code: codes, ..QuantScheme::INT8_ROW }
}

/// Checks a cache of codes that rows are written to, and the scale of each row.
pub(super) fn expect_codes(op: &'static str, cache: &TensorSpec, scale: &TensorSpec) -> Result<()> {
    expect_scaled(op, ["cache", "scale"], cache, scale)?;
    expect_writable(op, "scale", scale)
}

/// Fillings of a cache of codes whose elements lie in [−1, 1].
pub(super) fn fills(codes: DType) -> [(&'static str, Fill); 4] {
    let [codes, scales] = code_fills(codes);
    [("k", codes.clone()), ("v", codes), ("k_scale", scales.clone()), ("v_scale", scales)]
}

/// Those of codes and of scales.
pub(super) fn code_fills(codes: DType) -> [Fill; 2] {
    let top = f64::from(row_scheme(codes).symmetric_top());
    // A range does not hold its end, which is an integer's largest.
    let end = if codes == DType::I8 { top + 1.0 } else { top };
    [Fill::Range(-top, end), Fill::Range(1.0 / (8.0 * top), 1.0 / top)]
}
