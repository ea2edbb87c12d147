//! Changes of element type: one kernel; a copy where there is nothing to change. Elements of at most 8 bits that the device
//! has no numbers of are looked up: a table holds what each byte stands for.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::{View, code};
use crate::product::Product;
use portolan_core::{Call, Tensor};
use portolan_ops::codec::code_value;
use portolan_ops::kernel::CastSpec;
use portolan_ops::{DType, OpError, Result, TensorSpec, Unsupported};

/// What a byte can be.
const BYTES: usize = 256;
/// The most dimensions of a tensor.
const RANK: usize = 8;

impl Native for CastSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        let (x, out) = (self.x(), self.out());
        if x.dtype() == out.dtype() {
            return soc.moves([x, out]);
        }
        // What is too large for it becomes its largest number, and not infinity.
        if out.dtype() == DType::F8E5M2 {
            return Err(Unsupported::Precision);
        }
        let computes = |spec: &TensorSpec| match spec.dtype() {
            DType::F64 => Ok(()),
            // Float types that only the newest product has numbers of.
            DType::F8E4M3 | DType::F8E5M2 if soc.product == Product::A5 => Ok(()),
            dtype => soc.computes(dtype).map_err(|_| Unsupported::DType(dtype)),
        };
        computes(out)?;
        match is_looked_up(soc.product, x.dtype()) {
            false => computes(x),
            true if x.rank() >= RANK => Err(Unsupported::Shape("at most 7 dimensions")),
            true => {
                View::stored(x)?;
                soc.has("aclnnGatherV2GetWorkspaceSize")
            }
        }
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (x, out) = (op.require("x")?, op.require("out")?);
        if x.dtype() == out.dtype() {
            return run.copy(&x, &out);
        }
        match is_looked_up(run.soc().product, x.dtype()) {
            true => look_up(run, &x, &out),
            false => run.cast(&x, &out),
        }
    }
}

/// Whether the product has no numbers of a type of at most 8 bits.
fn is_looked_up(product: Product, dtype: DType) -> bool {
    match dtype {
        DType::U4 | DType::I4 | DType::F4E2M1 | DType::E8M0 => true,
        DType::F8E4M3 | DType::F8E5M2 => product != Product::A5,
        _ => false,
    }
}

/// The number that a code stands for.
fn number(dtype: DType, code: u8) -> f32 {
    match dtype {
        DType::U4 => f32::from(code),
        DType::I4 => f32::from(((code << 4) as i8) >> 4),
        dtype => code_value(dtype, code).unwrap_or(f32::NAN),
    }
}

/// `out = x`, by a table of the elements of each byte.
fn look_up(run: &Run<'_, '_>, x: &Tensor, out: &Tensor) -> Result<()> {
    let dtype = x.dtype();
    let each = 8 / dtype.bits() as usize;
    let table: Vec<u8> = (0..BYTES)
        .flat_map(|byte| (0..each).map(move |i| (byte >> (8 / each * i)) as u8 & (u8::MAX >> (8 - 8 / each))))
        .flat_map(|code| number(dtype, code).to_le_bytes())
        .collect();
    let numbers = run.scratch(DType::F32, &[BYTES, each])?;
    run.upload(&table, &numbers)?;
    // Elements that share a byte are neighbours; the last byte of a row may have one too many.
    let x = if x.dims().is_empty() { x.reshape(&[1])? } else { x.clone() };
    let mut dims = x.dims().to_vec();
    let last = dims.len() - 1;
    let extent = dims[last];
    dims[last] = extent.div_ceil(each);
    let bytes = run.scratch(DType::I32, &dims)?;
    let whole = code(DType::I32).ok_or_else(|| OpError::internal("cast", "a type without a number"))?;
    let (from, to) = (run.stored(&x)?, run.tensor(&bytes)?);
    aclnn!(run, aclnnCastGetWorkspaceSize, aclnnCast, from, whole, to)?;
    let found = run.scratch(DType::F32, &[&dims[..], &[each]].concat())?;
    let (from, to, at) = (run.tensor(&numbers)?, run.tensor(&found)?, run.tensor(&bytes)?);
    aclnn!(run, aclnnGatherV2GetWorkspaceSize, aclnnGatherV2, from, 0i64, at, to)?;
    dims[last] *= each;
    run.store(&found.reshape(&dims)?.narrow(last, 0, extent)?.reshape(out.dims())?, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_stand_for_their_numbers() {
        assert_eq!([0, 7, 8, 15].map(|code| number(DType::I4, code)), [0.0, 7.0, -8.0, -1.0]);
        assert_eq!([0, 9, 15].map(|code| number(DType::U4, code)), [0.0, 9.0, 15.0]);
        assert_eq!([1, 7, 15].map(|code| number(DType::F4E2M1, code)), [0.5, 6.0, -6.0]);
        assert_eq!([0x38, 0x7e].map(|code| number(DType::F8E4M3, code)), [1.0, 448.0]);
        assert_eq!(
            [0, 127, 254].map(|code| number(DType::E8M0, code)),
            [2f32.powi(-127), 1.0, 2f32.powi(127)]
        );
        assert!(number(DType::E8M0, 255).is_nan() && number(DType::F8E4M3, 0x7f).is_nan());
    }
}
