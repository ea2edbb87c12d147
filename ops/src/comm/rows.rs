//! How the rows of a tensor are shared out among ranks: alike, or a number for each.

use super::Ranks;
use crate::{OpError, Result, TensorSpec};
use std::sync::Arc;

/// Rows of every rank, in rank order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Each rank has so many.
    Equal(usize),
    /// Each rank has its own number.
    Ragged(Arc<[usize]>),
}

impl Rows {
    /// The rows of `spec` in equal parts.
    pub(crate) fn equal(
        op: &'static str,
        arg: &'static str,
        spec: &TensorSpec,
        ranks: Ranks,
    ) -> Result<Self> {
        let rows = leading(op, arg, spec)?;
        if !rows.is_multiple_of(ranks.count()) {
            let what = format!(
                "{arg} is {}: {rows} rows do not part equally among {} ranks",
                spec.shape(),
                ranks.count()
            );
            return Err(OpError::shape(op, what));
        }
        Ok(Rows::Equal(rows / ranks.count()))
    }

    /// These rows, which are all of `spec`.
    pub(crate) fn ragged(
        op: &'static str,
        arg: &'static str,
        spec: &TensorSpec,
        ranks: Ranks,
        rows: &[usize],
    ) -> Result<Self> {
        let total = leading(op, arg, spec)?;
        if rows.len() != ranks.count() {
            let what = format!(
                "{} row counts for {arg}, expected one for each of {} ranks",
                rows.len(),
                ranks.count()
            );
            return Err(OpError::shape(op, what));
        }
        let sum = rows.iter().try_fold(0usize, |sum, &rows| sum.checked_add(rows));
        if sum != Some(total) {
            let what = format!("{arg} is {}, its {total} rows are not the sum of {rows:?}", spec.shape());
            return Err(OpError::shape(op, what));
        }
        Ok(Rows::Ragged(rows.into()))
    }

    /// Rows of rank `rank`.
    pub(crate) fn of(&self, rank: usize) -> usize {
        match self {
            Rows::Equal(rows) => *rows,
            Rows::Ragged(rows) => rows[rank],
        }
    }

    /// Rows of the ranks before `rank`.
    pub(crate) fn before(&self, rank: usize) -> usize {
        match self {
            Rows::Equal(rows) => rows * rank,
            Rows::Ragged(rows) => rows[..rank].iter().sum(),
        }
    }
}

/// The leading extent.
fn leading(op: &'static str, arg: &'static str, spec: &TensorSpec) -> Result<usize> {
    match spec.dims().first() {
        Some(&rows) => Ok(rows),
        None => Err(OpError::shape(op, format!("{arg} is a scalar, expected at least one dimension"))),
    }
}

/// Elements of a row of `spec`.
pub(crate) fn row_len(spec: &TensorSpec) -> usize {
    spec.dims().iter().skip(1).product()
}

/// Fails with `Shape` unless both have rows of the same extents.
pub(crate) fn expect_like_rows(
    op: &'static str,
    a: (&'static str, &TensorSpec),
    b: (&'static str, &TensorSpec),
) -> Result<()> {
    let (a_dims, b_dims) = (a.1.dims(), b.1.dims());
    if !a_dims.is_empty() && !b_dims.is_empty() && a_dims[1..] == b_dims[1..] {
        return Ok(());
    }
    let what = format!("{} is {}, {} is {}: rows differ", a.0, a.1.shape(), b.0, b.1.shape());
    Err(OpError::shape(op, what))
}

/// Fails with `Shape` unless `spec` has `rows` rows.
pub(crate) fn expect_rows(op: &'static str, arg: &'static str, spec: &TensorSpec, rows: usize) -> Result<()> {
    let got = leading(op, arg, spec)?;
    match got == rows {
        true => Ok(()),
        false => Err(OpError::shape(op, format!("{arg} is {}, expected {rows} rows", spec.shape()))),
    }
}
