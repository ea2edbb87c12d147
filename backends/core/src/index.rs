//! Tensors made of places: counting up, and one place a row.

use crate::call::compare::compare;
use crate::call::copy::{cast, full};
use crate::call::{Binary, Scan, Unary};
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, CompareKind, ScanKind, UnaryKind};
use portolan_ops::{DType, OpError, Result, Shape};

/// Counts: 0, 1, 2, … below `n`.
///
/// # DTypes
/// i32 and i64; f32, f16, bf16 and f64 hold the nearest numbers to those of i32.
///
/// # Cost
/// A fill and a running sum, which reads and writes each element once more; a cast for floats.
///
/// # Errors
/// `DType` for another type; `Shape` for more than 2³¹ numbers, but for i64; as [`Stream::run`].
pub fn iota(stream: &Stream, dtype: DType, n: usize) -> Result<Tensor> {
    let counted = match dtype {
        DType::I64 => DType::I64,
        DType::I32 | DType::F32 | DType::F16 | DType::BF16 | DType::F64 => DType::I32,
        _ => return Err(OpError::dtype("iota", "out", dtype, "i32, i64, f32, f16, bf16 or f64")),
    };
    if counted == DType::I32 && n > 1 << 31 {
        return Err(OpError::shape("iota", format!("{n} numbers, expected at most 2^31; count in i64")));
    }
    let mut out = full(stream, counted, &Shape::new(&[n])?, 1.0)?;
    // The sum of the ones before each place, in place.
    stream.run(Scan::cumulative(ScanKind::Sum, &out.clone(), 0, &mut out)?.exclusive()?)?;
    if counted == dtype { Ok(out) } else { cast(stream, &out, dtype) }
}

/// Counts down to 0, as i32: the places of a mirrored dimension.
pub(crate) fn countdown(stream: &Stream, n: usize) -> Result<Tensor> {
    let mut places = iota(stream, DType::I32, n)?;
    stream.run(Unary::new(UnaryKind::Neg, &places.clone(), &mut places)?)?;
    stream.run(Binary::scalar(BinaryKind::Add, &places.clone(), n as f64 - 1.0, &mut places)?)?;
    Ok(places)
}

/// A row for each index, 1 at the index and 0 elsewhere.
///
/// `out[.., c] = (index[..] = c) ? 1 : 0`
///
/// # Shapes
/// index of at most 7 dimensions, the result has `classes` more behind them. An index outside of the classes, such
/// as the −1 of padding, gives a row of 0.
///
/// # DTypes
/// index i32 or i64; the result of any type that casts from bool.
///
/// # Cost
/// A comparison into bool and a cast: beside the result, a byte an element is written and read.
///
/// # Errors
/// `DType`, `Shape`; as [`Stream::run`].
pub fn one_hot(stream: &Stream, index: &Tensor, classes: usize, dtype: DType) -> Result<Tensor> {
    if !matches!(index.dtype(), DType::I32 | DType::I64) {
        return Err(OpError::dtype("one_hot", "index", index.dtype(), "i32 or i64"));
    }
    let column = index.reshape(&[index.dims(), &[1]].concat())?;
    let hot = compare(stream, CompareKind::Eq, &column, &iota(stream, index.dtype(), classes)?)?;
    if dtype == DType::Bool { Ok(hot) } else { cast(stream, &hot, dtype) }
}
