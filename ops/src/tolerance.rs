//! How two results are compared: every metric of the project is in this file.

use core::fmt;

/// How far a result may be from its oracle, element by element.
///
/// An element passes when `|got − want| ≤ abs + rel · |want|`. Positions of NaN and ±inf must agree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Absolute part, in units of the element.
    pub abs: f64,
    /// Part relative to the expected value.
    pub rel: f64,
}

impl Tolerance {
    /// Equal values (−0 equals +0, NaN equals NaN): movement, integers, indices.
    pub const EXACT: Tolerance = Tolerance { abs: 0.0, rel: 0.0 };

    /// One rounding to `dtype`, plus `accumulated` absolute error from before it.
    pub fn rounded_to(dtype: crate::DType, accumulated: f64) -> Self {
        Tolerance { abs: accumulated, rel: dtype.unit_roundoff() }
    }

    /// This tolerance and another, for an operator in two steps.
    pub fn plus(self, other: Tolerance) -> Self {
        Tolerance { abs: self.abs + other.abs, rel: self.rel + other.rel }
    }

    /// Compares element by element and reports the worst one.
    ///
    /// # Errors
    /// The [`Mismatch`] that exceeds the tolerance by the largest factor.
    pub fn check(&self, got: &[f64], want: &[f64]) -> Result<(), Mismatch> {
        if got.len() != want.len() {
            let (got, want) = (got.len() as f64, want.len() as f64);
            return Err(Mismatch {
                index: 0,
                got,
                want,
                excess: f64::INFINITY,
                failures: 1,
                what: "number of elements",
            });
        }
        let mut worst: Option<Mismatch> = None;
        let mut failures = 0;
        for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
            let excess = self.excess(got, want);
            if excess > 1.0 {
                failures += 1;
                if worst.as_ref().is_none_or(|w| excess > w.excess) {
                    worst = Some(Mismatch { index, got, want, excess, failures, what: "element" });
                }
            }
        }
        match worst {
            Some(mut mismatch) => {
                mismatch.failures = failures;
                Err(mismatch)
            }
            None => Ok(()),
        }
    }

    /// The error of one element as a multiple of what is allowed; more than 1 fails.
    pub fn excess(&self, got: f64, want: f64) -> f64 {
        if got == want || (got.is_nan() && want.is_nan()) {
            return 0.0;
        }
        if !got.is_finite() || !want.is_finite() {
            return f64::INFINITY;
        }
        let allowed = self.abs + self.rel * want.abs();
        let error = (got - want).abs();
        if allowed > 0.0 { error / allowed } else { f64::INFINITY }
    }
}

/// The worst element of a failed comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mismatch {
    /// Position in logical, row-major order.
    pub index: usize,
    /// What the device gave.
    pub got: f64,
    /// What the oracle gave.
    pub want: f64,
    /// Error divided by the tolerance.
    pub excess: f64,
    /// How many elements failed.
    pub failures: usize,
    what: &'static str,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { index, got, want, excess, failures, what } = self;
        write!(
            f,
            "{what} {index}: got {got:e}, want {want:e}, {excess:.2} times the tolerance ({failures} failed)"
        )
    }
}

/// `1 − 2⟨x,y⟩ / (⟨x,x⟩ + ⟨y,y⟩)`: 0 when equal, 1 when orthogonal; 0 for two zero vectors.
pub fn normalized_difference(x: &[f64], y: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norms = dot(x, x) + dot(y, y);
    if norms == 0.0 { 0.0 } else { 1.0 - 2.0 * dot(x, y) / norms }
}

/// The largest `|x − y|`, and the largest `|y|`, over two equally long slices.
pub fn max_abs_difference(x: &[f64], y: &[f64]) -> (f64, f64) {
    x.iter().zip(y).fold((0.0, 0.0), |(d, m), (&x, &y)| (f64::max(d, (x - y).abs()), f64::max(m, y.abs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_element_is_reported() {
        let t = Tolerance { abs: 0.1, rel: 0.0 };
        let m = t.check(&[1.0, 2.0, 3.5], &[1.0, 2.2, 3.0]).unwrap_err();
        assert_eq!((m.index, m.failures), (2, 2));
        assert!(t.check(&[1.0, f64::NAN], &[1.05, f64::NAN]).is_ok());
        assert!(t.check(&[f64::INFINITY], &[1e300]).is_err());
        assert!(t.check(&[], &[1.0]).is_err());
    }

    #[test]
    fn the_normalized_difference_is_zero_only_for_equal_vectors() {
        assert_eq!(normalized_difference(&[0.0], &[0.0]), 0.0);
        assert!(normalized_difference(&[1.0, 2.0], &[1.0, 2.0]).abs() < 1e-15);
        assert_eq!(normalized_difference(&[1.0, 0.0], &[0.0, 1.0]), 1.0);
    }
}
