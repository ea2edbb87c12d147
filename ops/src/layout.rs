//! Where the elements of a tensor lie: strides and an offset, in elements.

use crate::{DType, MAX_RANK, OpError, Result, Shape};
use core::fmt;

/// Strides (never negative) and an offset, in elements of the buffer's element type.
///
/// A layout says nothing of extents; [`crate::TensorSpec`] pairs it with a [`Shape`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    strides: [usize; MAX_RANK],
    rank: u8,
    offset: usize,
}

impl Layout {
    /// Row-major without gaps, from element 0.
    pub fn contiguous(shape: &Shape) -> Self {
        let mut strides = [0; MAX_RANK];
        let mut step = 1usize;
        for (stride, &dim) in strides[..shape.rank()].iter_mut().zip(shape.dims()).rev() {
            *stride = step;
            step = step.saturating_mul(dim.max(1));
        }
        Self { strides, rank: shape.rank() as u8, offset: 0 }
    }

    /// The given strides and offset.
    ///
    /// # Errors
    /// `Layout` for more than [`MAX_RANK`] strides.
    pub fn new(strides: &[usize], offset: usize) -> Result<Self> {
        if strides.len() > MAX_RANK {
            return Err(OpError::layout(
                "layout",
                "strides",
                format!("{} strides, at most {MAX_RANK}", strides.len()),
            ));
        }
        let mut inline = [0; MAX_RANK];
        inline[..strides.len()].copy_from_slice(strides);
        Ok(Self { strides: inline, rank: strides.len() as u8, offset })
    }

    /// Strides, outermost first, in elements.
    pub fn strides(&self) -> &[usize] {
        &self.strides[..self.rank as usize]
    }

    /// The first element's place, in elements.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// This layout with another offset.
    pub fn with_offset(mut self, offset: usize) -> Self {
        self.offset = offset;
        self
    }

    /// Whether elements follow each other in row-major order without gaps (from any offset).
    pub fn is_contiguous(&self, shape: &Shape) -> bool {
        if shape.is_empty() {
            return true;
        }
        let mut step = 1;
        for (&stride, &dim) in self.strides().iter().zip(shape.dims()).rev() {
            if dim != 1 && stride != step {
                return false;
            }
            step *= dim;
        }
        true
    }

    /// Whether two positions of the shape share an element (a broadcast stride of 0, say).
    ///
    /// Exact for layouts made by slicing, permuting and broadcasting a contiguous one; other layouts
    /// whose sorted strides interleave are answered `true`.
    pub fn overlaps_itself(&self, shape: &Shape) -> bool {
        if shape.is_empty() {
            return false;
        }
        let mut axes: [(usize, usize); MAX_RANK] = [(0, 1); MAX_RANK];
        let mut count = 0;
        for (&stride, &dim) in self.strides().iter().zip(shape.dims()) {
            if dim > 1 {
                axes[count] = (stride, dim);
                count += 1;
            }
        }
        axes[..count].sort_unstable();
        let mut reach = 0usize;
        for &(stride, dim) in &axes[..count] {
            if stride <= reach {
                return true;
            }
            reach = reach.saturating_add(stride.saturating_mul(dim - 1));
        }
        false
    }

    /// One past the last element touched; `offset` when there is none.
    ///
    /// # Errors
    /// `Layout` when that does not fit in a `usize`.
    pub fn end(&self, shape: &Shape) -> Result<usize> {
        if shape.is_empty() {
            return Ok(self.offset);
        }
        self.strides()
            .iter()
            .zip(shape.dims())
            .try_fold(self.offset, |end, (&stride, &dim)| end.checked_add(stride.checked_mul(dim - 1)?))
            .and_then(|last| last.checked_add(1))
            .filter(|&end| end <= isize::MAX as usize / 8)
            .ok_or_else(|| {
                OpError::layout("layout", "strides", format!("{self:?} over {shape} is not addressable"))
            })
    }

    pub(crate) fn check(&self, dtype: DType, shape: &Shape) -> Result<()> {
        if self.rank() != shape.rank() {
            return Err(OpError::layout(
                "layout",
                "strides",
                format!("{} strides for {} dimensions", self.rank(), shape.rank()),
            ));
        }
        self.end(shape)?;
        if dtype.is_sub_byte() && !shape.is_empty() {
            let inner = self.strides().last().copied().unwrap_or(1);
            let rows_even = self.strides().iter().rev().skip(1).all(|s| s % 2 == 0) || shape.rows() == 1;
            if (shape.last() > 1 && inner != 1) || !self.offset.is_multiple_of(2) || !rows_even {
                return Err(OpError::layout(
                    "layout",
                    "strides",
                    format!(
                        "{dtype} rows must be contiguous and start on a whole byte, got {self:?} over {shape}"
                    ),
                ));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "strides {:?} offset {}", self.strides(), self.offset)
    }
}

/// Calls `f` with the place of every element of a strided array, in elements from its start, in logical order.
pub(crate) fn places(dims: &[usize], strides: &[usize], offset: usize, mut f: impl FnMut(usize)) {
    if dims.contains(&0) {
        return;
    }
    let Some(last) = dims.len().checked_sub(1) else { return f(offset) };
    let mut index = [0usize; MAX_RANK];
    let mut start = offset;
    loop {
        (0..dims[last]).for_each(|i| f(start + i * strides[last]));
        let mut dim = last;
        loop {
            if dim == 0 {
                return;
            }
            dim -= 1;
            index[dim] += 1;
            start += strides[dim];
            if index[dim] < dims[dim] {
                break;
            }
            start -= strides[dim] * dims[dim];
            index[dim] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(dims: &[usize]) -> Shape {
        Shape::new(dims).unwrap()
    }

    #[test]
    fn contiguous_layouts_know_themselves() {
        for dims in [&[2usize, 3, 4][..], &[1], &[], &[0, 7], &[5, 1, 2]] {
            let s = shape(dims);
            let l = Layout::contiguous(&s);
            assert!(l.is_contiguous(&s), "{dims:?}");
            assert!(!l.overlaps_itself(&s), "{dims:?}");
            assert_eq!(l.end(&s).unwrap(), s.numel(), "{dims:?}");
        }
    }

    #[test]
    fn broadcast_strides_overlap_themselves() {
        let l = Layout::new(&[0, 1], 0).unwrap();
        assert!(l.overlaps_itself(&shape(&[2, 3])));
        assert!(!l.overlaps_itself(&shape(&[1, 3])));
        // An overlapping window: rows of 3 that start 2 apart.
        assert!(Layout::new(&[2, 1], 0).unwrap().overlaps_itself(&shape(&[2, 3])));
    }

    #[test]
    fn unaddressable_strides_are_refused() {
        let l = Layout::new(&[usize::MAX, 1], 1).unwrap();
        assert!(l.end(&shape(&[3, 3])).is_err());
    }
}
