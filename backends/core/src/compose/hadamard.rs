//! Hadamard transform as a product with its matrix of ±1, itself made by doubling.

use super::begin;
use super::parts::Parts;
use crate::call::{Copy, Gemm, Hadamard, Unary};
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::kernel::UnaryKind;
use portolan_ops::{DType, Result, Unsupported};

/// Largest matrix: above it the transform is one of rows and one of columns, since `H(a·b) = H(a) ⊗ H(b)`.
const MATRIX: usize = 256;

/// In f32: gemm_nt with the matrix, once or twice, scaled by the root of the block.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn hadamard(l: &Launch<'_>, op: &Hadamard, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let (x, out, block) = (op.require("x")?, op.require("out")?, op.spec().block());
    let (columns, blocks) = (block.min(MATRIX), x.numel() / block);
    let rows = block / columns;
    let x = p.f32_copy(&x, &[blocks, rows, columns])?;
    let y = p.scratch(DType::F32, &[blocks, rows, columns])?;
    let scale = 1.0 / (block as f64).sqrt();
    p.run(Gemm::nt(&x, &matrix(&p, columns)?, &mut y.clone())?.alpha(scale as f32)?)?;
    if rows == 1 {
        return p.store(&y.reshape(out.dims())?, &out);
    }
    // Columns become rows; the matrix is its own transpose.
    p.run(Gemm::nt(&y.transpose(1, 2)?, &matrix(&p, rows)?, &mut x.transpose(1, 2)?)?)?;
    p.store(&x.reshape(out.dims())?, &out)
}

/// The matrix of ±1: four copies of the one of half its size, the last negated.
fn matrix(p: &Parts<'_, '_>, size: usize) -> Result<Tensor> {
    let whole = p.full(DType::F32, &[size, size], 1.0)?;
    let corner = |row, column, half| whole.narrow(0, row, half)?.narrow(1, column, half);
    let mut half = 1;
    while half < size {
        let first = corner(0, 0, half)?;
        p.run(Copy::new(&first, &mut corner(0, half, half)?)?)?;
        p.run(Copy::new(&first, &mut corner(half, 0, half)?)?)?;
        p.run(Unary::new(UnaryKind::Neg, &first, &mut corner(half, half, half)?)?)?;
        half *= 2;
    }
    Ok(whole)
}
