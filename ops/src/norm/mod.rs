//! Normalisations along the last dimension: layer norm, root-mean-square norm, alone and with the residual sum,
//! softmax and its logarithm. Each row is computed on its own, accumulated in f32.

pub mod add_rms_norm;
pub mod layer_norm;
pub mod log_softmax;
pub mod rms_norm;
pub mod softmax;

pub use add_rms_norm::AddRmsNormSpec;
pub use layer_norm::LayerNormSpec;
pub use log_softmax::LogSoftmaxSpec;
pub use rms_norm::RmsNormSpec;
pub use softmax::SoftmaxSpec;

use crate::{DType, OpError, Result, TensorSpec, expect_dims, expect_dtype, expect_rank, expect_writable};

/// The element types normalisations and activations take.
pub(crate) const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Fails unless `spec` has a last dimension to work along.
pub(crate) fn expect_rows(op: &'static str, arg: &'static str, spec: &TensorSpec) -> Result<()> {
    match spec.rank() {
        0 => expect_rank(op, arg, spec, 1),
        _ => Ok(()),
    }
}

/// The result of an operator that gives a row for each row: contiguous, of x's extents and type.
pub(crate) fn rows_out(op: &'static str, x: &TensorSpec) -> Result<TensorSpec> {
    expect_rows(op, "x", x)?;
    expect_dtype(op, "x", x, &FLOATS)?;
    Ok(x.to_contiguous())
}

/// Fails unless a result has x's extents and one of these types.
pub(crate) fn expect_rows_out(
    op: &'static str,
    x: &TensorSpec,
    (arg, out): (&'static str, &TensorSpec),
    dtypes: &[DType],
) -> Result<()> {
    expect_dims(op, arg, out, rows_out(op, x)?.dims())?;
    expect_dtype(op, arg, out, dtypes)?;
    expect_writable(op, arg, out)
}

/// Fails unless eps is a finite number, not negative.
pub(crate) fn expect_eps(op: &'static str, eps: f32) -> Result<()> {
    if eps.is_finite() && eps >= 0.0 {
        return Ok(());
    }
    Err(OpError::attribute(op, "eps", format!("is {eps}, expected a finite number of at least 0")))
}

/// Layouts every row operator is tried on, as pairs of equal extents: `(name, input, output)`.
///
/// Rows with gaps, rows in exchanged order, and rows whose elements are apart.
pub(crate) fn strided_pairs(dtype: DType) -> Result<Vec<(&'static str, TensorSpec, TensorSpec)>> {
    let gaps = TensorSpec::of(dtype, &[3, 5, 40])?.narrow(2, 3, 33)?;
    let exchanged = TensorSpec::of(dtype, &[5, 3, 33])?.transpose(0, 1)?;
    let apart = TensorSpec::of(dtype, &[3, 33, 5])?.transpose(1, 2)?;
    let plain = TensorSpec::of(dtype, &[3, 5, 33])?;
    let repeated = TensorSpec::of(dtype, &[1, 1, 33])?.broadcast_to(plain.shape())?;
    Ok(vec![
        ("rows_with_gaps", gaps, exchanged),
        ("rows_exchanged", exchanged, gaps),
        ("elements_apart", apart, plain),
        ("output_apart", plain, apart),
        ("repeated_row", repeated, plain),
    ])
}

/// Extents every row operator is tried on, edges first.
pub(crate) const EDGES: [(&str, &[usize]); 10] = [
    ("no_rows", &[0, 7]),
    ("empty_rows", &[3, 0]),
    ("one", &[1]),
    ("one_column", &[5, 1]),
    ("short_rows", &[4, 3]),
    ("unaligned", &[7, 13]),
    ("one_vector", &[2, 16]),
    ("batch", &[2, 3, 2, 31]),
    ("typical", &[5, 576]),
    ("long_rows", &[3, 4099]),
];
