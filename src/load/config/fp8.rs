//! Weights in 8-bit floats with a scale for every block, as DeepSeek's checkpoints have them: what `config.json` says of it.

use super::from_json::{Object, quantization_of};
use crate::load::error::{LoadError, Result};
use portolan_ops::DType;
use portolan_ops::quant::{Offset, QuantScheme, ScaleKind};

/// What the name of a weight's scales adds to the weight's own.
pub(in crate::load) const SCALE_SUFFIX: &str = "_scale_inv";

/// The scheme that weights of products are stored by; `None` where they are plain numbers.
///
/// # Errors
/// `Key` and `MissingKey` for every other scheme than f8e4m3 in blocks whose activations are rounded, if at all, as they
/// come: here they are not.
pub(in crate::load) fn block_scheme(root: Object<'_>) -> Result<Option<QuantScheme>> {
    let Some(config) = quantization_of(root)? else { return Ok(None) };
    for (key, default, known, why) in [
        (
            "quant_method",
            "none",
            "fp8",
            ": other quantized safetensors are not read; use the f32, f16 or bf16 weights",
        ),
        ("fmt", "e4m3", "e4m3", ""),
        ("activation_scheme", "dynamic", "dynamic", ": stored scales of activations are not read"),
    ] {
        let seen = config.text_if(key)?.unwrap_or(default);
        if seen != known {
            return Err(config.wrong(key, &seen.into(), &format!("{known}{why}")));
        }
    }
    let wanted = "[rows, columns] of the weights that share a scale, both at least 1";
    let block = config.optional("weight_block_size", wanted, |value| match value.as_array()?.as_slice() {
        [rows, columns] => {
            let extent = |value: &serde_json::Value| usize::try_from(value.as_u64()?).ok().filter(|&n| n > 0);
            Some([extent(rows)?, extent(columns)?])
        }
        _ => None,
    })?;
    match block {
        Some(block) => {
            let scheme = QuantScheme::new(DType::F8E4M3, block, ScaleKind::F32, Offset::None);
            Ok(Some(scheme.map_err(|error| LoadError::corrupt(root.path(), error.to_string()))?))
        }
        None => Err(LoadError::missing_key(config.path(), config.key("weight_block_size"), wanted)),
    }
}
