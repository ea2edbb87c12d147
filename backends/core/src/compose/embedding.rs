//! Embedding from a gather of rows; a quantized weight's rows are gathered first and dequantized then.

use super::begin;
use super::dequantize::rows;
use crate::call::{Embedding, Gather};
use crate::launch::Launch;
use portolan_ops::quant::WeightSpec;
use portolan_ops::{Result, Unsupported};

/// Gathers rows, dequantizes those, and rounds to `out`'s type.
///
/// # Errors
/// As the parts; `Unsupported` for power-of-two scales and where the stream denies compositions.
pub fn embedding(l: &Launch<'_>, op: &Embedding, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let (ids, out) = (op.require("ids")?, op.require("out")?);
    if let WeightSpec::Quant(quant) = op.spec().weight() {
        let rows = rows(&p, op, quant, Some(&ids))?;
        // Rows may be a view of padded ones, which `out`'s extents need not divide.
        let mut dims: Vec<usize> = ids.dims().to_vec();
        dims.push(quant.k());
        return p.store(&rows.reshape(&dims)?, &out);
    }
    let weight = op.require("weight")?;
    if weight.dtype() == out.dtype() {
        return p.run(Gather::slices(&weight, 0, &ids, &mut out.clone())?);
    }
    p.store(&p.gather(&weight, 0, &ids)?, &out)
}
