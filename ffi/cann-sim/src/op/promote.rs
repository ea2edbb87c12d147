//! Which type an element-wise operator computes in, and rows of numbers of that type.
//!
//! The rules are PyTorch's: the higher category wins (bool, integer, float), within one the wider type.

use super::{Args, Refusal, Scalar};
use crate::view::{Dtype, Fault, Memory, Tensor};

fn category(dtype: Dtype) -> u8 {
    match dtype {
        Dtype::Bool => 0,
        _ if dtype.is_float() || dtype.is_narrow_float() => 2,
        _ => 1,
    }
}

/// The common type of two tensors.
pub(crate) fn promote(a: Dtype, b: Dtype) -> Dtype {
    if a == b {
        return a;
    }
    match category(a).cmp(&category(b)) {
        std::cmp::Ordering::Less => b,
        std::cmp::Ordering::Greater => a,
        std::cmp::Ordering::Equal if a.bits() != b.bits() => {
            let (wide, narrow) = if a.bits() > b.bits() { (a, b) } else { (b, a) };
            // Nothing signed holds uint64; the vendor follows PyTorch, whose only common type is a float.
            if wide == Dtype::U64 && !unsigned(narrow) { Dtype::F32 } else { wide }
        }
        // FLOAT16 with BF16, or a signed with an unsigned integer of its size.
        std::cmp::Ordering::Equal => match a.bits() {
            _ if category(a) == 2 => Dtype::F32,
            8 => Dtype::I16,
            16 => Dtype::I32,
            32 => Dtype::I64,
            _ => Dtype::F32,
        },
    }
}

fn unsigned(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64)
}

/// The common type of a tensor and a scalar: the tensor's, unless the scalar is of a higher category.
pub(crate) fn promote_scalar(tensor: Dtype, scalar: Scalar) -> Dtype {
    match (category(tensor), category(scalar.dtype)) {
        (have, want) if have >= want => tensor,
        (_, 2) => Dtype::F32,
        _ => Dtype::I64,
    }
}

/// Whether results of one type may be stored as another: not floats as integers, nor numbers as truth values.
pub(crate) fn castable(from: Dtype, to: Dtype) -> bool {
    category(from) <= category(to)
}

/// Refuses an output that cannot hold results of type `from`.
pub(crate) fn check_result(args: &Args, name: &str, out: &Tensor, from: Dtype) -> Result<(), Refusal> {
    if castable(from, out.dtype) {
        return Ok(());
    }
    let (have, from) = (out.dtype.name(), from.name());
    Err(args.invalid(name, format!("has type {have}, which cannot hold results of type {from}")))
}

/// A row of numbers: floats in f64, integers and truth values exactly.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Row {
    Float(Vec<f64>),
    Int(Vec<i64>),
}

impl Row {
    /// The elements of a view, as numbers of the category of `domain`.
    pub(crate) fn read(view: &Tensor, domain: Dtype, memory: &dyn Memory) -> Result<Row, Fault> {
        if category(domain) == 2 {
            let mut row = view.read_f64(memory)?;
            if view.dtype != domain {
                row.iter_mut().for_each(|x| *x = domain.round(*x));
            }
            Ok(Row::Float(row))
        } else {
            Ok(Row::Int(view.read_i64(memory)?))
        }
    }

    /// Rounds or wraps into `domain`, in which they were computed, and stores.
    pub(crate) fn write(self, view: &Tensor, domain: Dtype, memory: &dyn Memory) -> Result<(), Fault> {
        match self {
            Row::Float(mut row) => {
                if view.dtype != domain {
                    row.iter_mut().for_each(|x| *x = domain.round(*x));
                }
                view.write_f64(memory, &row)
            }
            Row::Int(mut row) => {
                if view.dtype != domain {
                    row.iter_mut().for_each(|x| *x = domain.decode_int(domain.encode_int(*x)));
                }
                view.write_i64(memory, &row)
            }
        }
    }
}

/// Whether a type is computed with in floating point.
pub(crate) fn in_floats(dtype: Dtype) -> bool {
    category(dtype) == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_type_is_pytorchs() {
        for (a, b, want) in [
            (Dtype::F16, Dtype::Bf16, Dtype::F32),
            (Dtype::I64, Dtype::F16, Dtype::F16),
            (Dtype::U8, Dtype::I8, Dtype::I16),
            (Dtype::U8, Dtype::I32, Dtype::I32),
            (Dtype::Bool, Dtype::U8, Dtype::U8),
            (Dtype::F64, Dtype::F32, Dtype::F64),
        ] {
            assert_eq!((promote(a, b), promote(b, a)), (want, want), "{a:?} {b:?}");
        }
        let one = |dtype| Scalar::new(dtype, 0);
        assert_eq!(promote_scalar(Dtype::F16, one(Dtype::F64)), Dtype::F16);
        assert_eq!(promote_scalar(Dtype::I8, one(Dtype::I64)), Dtype::I8);
        assert_eq!(promote_scalar(Dtype::I8, one(Dtype::F64)), Dtype::F32);
        assert_eq!(promote_scalar(Dtype::Bool, one(Dtype::I32)), Dtype::I64);
        assert!(castable(Dtype::I64, Dtype::F16) && !castable(Dtype::F16, Dtype::I64));
    }
}
