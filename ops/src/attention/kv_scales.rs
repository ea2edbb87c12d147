//! Scales of quantized caches: one for each position and head, of keys and of values.
//!
//! Shared by the operators that read a cache; what writes one is `kv_cache_write.rs`.

use crate::{Access, DType, Fill, Operand, Result, TensorSpec, expect_dims, expect_dtype};

/// Scales of an int8 cache: an element is `scale · code`.
///
/// f32, with the extents of the cache less its last. A view with stride 0 serves a scale that several entries
/// share: one for the whole cache, say.
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
        for (name, cache) in [("k", k), ("v", v)] {
            expect_dtype(op, name, cache, &[DType::I8])?;
        }
        for (name, scale, cache) in [("k_scale", k_scale, k), ("v_scale", v_scale, v)] {
            expect_dims(op, name, scale, &cache.dims()[..3])?;
            expect_dtype(op, name, scale, &[DType::F32])?;
        }
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
    let scaled = |spec: &TensorSpec, codes: &[f64], scale: &[f64]| {
        let width = spec.dims()[3].max(1);
        codes.iter().enumerate().map(|(i, code)| code * scale[i / width]).collect()
    };
    ([scaled(k, inputs[0], inputs[2]), scaled(v, inputs[1], inputs[3])], &inputs[4..])
}

/// Fillings of an int8 cache whose elements lie in [−1, 1].
pub(super) fn fills() -> [(&'static str, Fill); 4] {
    let (codes, scales) = (Fill::Range(-127.0, 128.0), Fill::Range(1.0 / 1024.0, 1.0 / 127.0));
    [("k", codes.clone()), ("v", codes), ("k_scale", scales.clone()), ("v_scale", scales)]
}
