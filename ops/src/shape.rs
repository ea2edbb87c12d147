//! Extents of a tensor, held inline.

use crate::{OpError, Result};
use core::fmt;

/// The largest number of dimensions a tensor may have.
pub const MAX_RANK: usize = 8;

/// Extents, outermost first. Their product always fits in a `usize`, also when an extent is zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; MAX_RANK],
    rank: u8,
}

impl Shape {
    /// A shape of the given extents; none at all is a scalar.
    ///
    /// # Errors
    /// `Shape` for more than [`MAX_RANK`] dimensions, or when the product of the non-zero extents
    /// overflows (so no view of the shape can overflow either).
    pub fn new(dims: &[usize]) -> Result<Self> {
        if dims.len() > MAX_RANK {
            return Err(OpError::shape(
                "shape",
                format!("{} dimensions, at most {MAX_RANK} are allowed", dims.len()),
            ));
        }
        let product = dims.iter().filter(|&&d| d != 0).try_fold(1usize, |acc, &d| acc.checked_mul(d));
        // Half the address space: byte offsets of the widest element stay representable as well.
        match product {
            Some(numel) if numel <= isize::MAX as usize / 8 => {}
            _ => return Err(OpError::shape("shape", format!("{dims:?} has too many elements to address"))),
        }
        let mut inline = [1; MAX_RANK];
        inline[..dims.len()].copy_from_slice(dims);
        Ok(Self { dims: inline, rank: dims.len() as u8 })
    }

    /// The shape of a scalar: no dimensions, one element.
    pub const SCALAR: Shape = Shape { dims: [1; MAX_RANK], rank: 0 };

    /// Extents, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// Number of elements: the product of the extents, 1 for a scalar.
    pub fn numel(&self) -> usize {
        self.dims().iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.dims().contains(&0)
    }

    /// The last extent, 1 for a scalar: the length of a row.
    pub fn last(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// The product of all extents but the last: the number of rows.
    pub fn rows(&self) -> usize {
        self.dims().split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// This shape with dimension `dim` set to `extent`.
    pub fn with_dim(&self, dim: usize, extent: usize) -> Result<Self> {
        if dim >= self.rank() {
            return Err(OpError::shape("shape", format!("{self} has no dimension {dim}")));
        }
        let mut dims = *self;
        dims.dims[dim] = extent;
        Shape::new(dims.dims())
    }

    /// The shape both broadcast to: trailing dimensions are aligned, an extent of 1 stretches.
    pub fn broadcast(&self, other: &Shape) -> Result<Self> {
        let rank = self.rank().max(other.rank());
        let mut dims = [1; MAX_RANK];
        for (i, out) in dims.iter_mut().enumerate().take(rank) {
            let a = (i + self.rank()).checked_sub(rank).map_or(1, |j| self.dims[j]);
            let b = (i + other.rank()).checked_sub(rank).map_or(1, |j| other.dims[j]);
            *out = match (a, b) {
                (a, b) if a == b => a,
                (1, b) => b,
                (a, 1) => a,
                _ => {
                    return Err(OpError::shape(
                        "broadcast",
                        format!("{self} and {other} do not broadcast: {a} and {b} differ"),
                    ));
                }
            };
        }
        Shape::new(&dims[..rank])
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl TryFrom<&[usize]> for Shape {
    type Error = OpError;
    fn try_from(dims: &[usize]) -> Result<Self> {
        Shape::new(dims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_that_overflow_are_refused_even_beside_a_zero() {
        assert!(Shape::new(&[usize::MAX, 2]).is_err());
        assert!(Shape::new(&[0, usize::MAX, 2]).is_err());
        assert!(Shape::new(&[1; 9]).is_err());
        assert_eq!(Shape::new(&[3, 0, 5]).unwrap().numel(), 0);
        assert_eq!(Shape::new(&[]).unwrap().numel(), 1);
    }

    #[test]
    fn broadcasting_aligns_trailing_dimensions() {
        let s = |d: &[usize]| Shape::new(d).unwrap();
        assert_eq!(s(&[4, 1, 3]).broadcast(&s(&[2, 3])).unwrap(), s(&[4, 2, 3]));
        assert_eq!(s(&[]).broadcast(&s(&[0, 3])).unwrap(), s(&[0, 3]));
        assert!(s(&[4, 3]).broadcast(&s(&[2, 3])).is_err());
    }
}
