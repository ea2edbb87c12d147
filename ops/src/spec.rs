//! Element type, extents and layout of a tensor: everything about it but its memory.

use crate::{DType, Layout, OpError, Result, Shape};
use core::fmt;

/// What an operator needs to know of a tensor: element type, extents, strides and offset.
///
/// Fields are private because they must agree: every value of this type has been checked.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    dtype: DType,
    shape: Shape,
    layout: Layout,
}

impl TensorSpec {
    /// A contiguous tensor.
    ///
    /// Rows of a sub-byte type start on a whole byte: the row stride is rounded up to an even number.
    pub fn new(dtype: DType, shape: Shape) -> Self {
        let mut layout = Layout::contiguous(&shape);
        if dtype.is_sub_byte() && !shape.last().is_multiple_of(2) && shape.rank() > 1 {
            let padded = shape.with_dim(shape.rank() - 1, shape.last() + 1).unwrap_or(shape);
            layout = Layout::contiguous(&padded);
        }
        Self { dtype, shape, layout }
    }

    /// A contiguous tensor of the given extents.
    ///
    /// # Errors
    /// As [`Shape::new`].
    pub fn of(dtype: DType, dims: &[usize]) -> Result<Self> {
        Ok(Self::new(dtype, Shape::new(dims)?))
    }

    /// A tensor with explicit strides and offset.
    ///
    /// # Errors
    /// `Layout` when ranks differ, when an element is not addressable, or when rows of a sub-byte type
    /// do not start on a whole byte.
    pub fn with_layout(dtype: DType, shape: Shape, layout: Layout) -> Result<Self> {
        layout.check(dtype, &shape)?;
        Ok(Self { dtype, shape, layout })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Extents as a slice, outermost first.
    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Strides and offset.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Strides as a slice, outermost first, in elements.
    pub fn strides(&self) -> &[usize] {
        self.layout.strides()
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.rank()
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.numel()
    }

    /// Bytes the elements take without gaps: what reading all of them costs.
    pub fn bytes(&self) -> usize {
        match self.dtype.is_sub_byte() {
            true => self.shape.rows() * self.dtype.bytes_for(self.shape.last()),
            false => self.dtype.bytes_for(self.numel()),
        }
    }

    /// Whether elements follow each other without gaps (from any offset).
    pub fn is_contiguous(&self) -> bool {
        self.layout.is_contiguous(&self.shape)
    }

    /// The byte range `[start, end)` that the elements lie in.
    pub fn byte_range(&self) -> (usize, usize) {
        let start = self.dtype.bytes_for(self.layout.offset());
        let end = self.layout.end(&self.shape).map_or(start, |end| self.dtype.bytes_for(end));
        (start, end.max(start))
    }

    /// Bytes of a fresh allocation that can hold this tensor (from offset 0).
    pub fn span_bytes(&self) -> usize {
        self.byte_range().1
    }

    /// The same element type and extents, contiguous from 0.
    pub fn to_contiguous(&self) -> Self {
        Self::new(self.dtype, self.shape)
    }

    /// The same extents and layout read as another element type of the same width.
    pub fn with_dtype(&self, dtype: DType) -> Self {
        Self::new(dtype, self.shape)
    }

    /// The view with dimensions in the order `axes`.
    ///
    /// # Errors
    /// `Shape` when `axes` is not a permutation.
    pub fn permute(&self, axes: &[usize]) -> Result<Self> {
        let mut seen = [false; crate::MAX_RANK];
        let legal = axes.len() == self.rank()
            && axes.iter().all(|&a| a < self.rank() && !core::mem::replace(&mut seen[a], true));
        if !legal {
            return Err(OpError::shape(
                "permute",
                format!("{axes:?} is not a permutation of the dimensions of {}", self.shape),
            ));
        }
        let dims: smallvec::SmallVec<[usize; 8]> = axes.iter().map(|&a| self.dims()[a]).collect();
        let strides: smallvec::SmallVec<[usize; 8]> = axes.iter().map(|&a| self.strides()[a]).collect();
        Self::with_layout(self.dtype, Shape::new(&dims)?, Layout::new(&strides, self.layout.offset())?)
    }

    /// The view with dimensions `a` and `b` exchanged.
    ///
    /// # Errors
    /// `Shape` when either does not exist.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Self> {
        let mut axes: smallvec::SmallVec<[usize; 8]> = (0..self.rank()).collect();
        if a >= axes.len() || b >= axes.len() {
            return Err(OpError::shape("transpose", format!("{} has no dimensions {a} and {b}", self.shape)));
        }
        axes.swap(a, b);
        self.permute(&axes)
    }

    /// The view of `len` entries of dimension `dim`, from `start`.
    ///
    /// # Errors
    /// `Shape` when the range does not lie within the dimension.
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Self> {
        let extent = self.dims().get(dim).copied().unwrap_or(0);
        if dim >= self.rank() || start > extent || len > extent - start {
            return Err(OpError::shape(
                "narrow",
                format!("{start}..{start}+{len} of dimension {dim} of {}", self.shape),
            ));
        }
        let shape = self.shape.with_dim(dim, len)?;
        let offset = if shape.is_empty() { 0 } else { start * self.strides()[dim] };
        Self::with_layout(self.dtype, shape, self.layout.with_offset(self.layout.offset() + offset))
    }

    /// The view of one entry of dimension `dim`, which disappears.
    ///
    /// # Errors
    /// `Shape` when there is no such entry.
    pub fn select(&self, dim: usize, index: usize) -> Result<Self> {
        let one = self.narrow(dim, index, 1)?;
        let keep = |values: &[usize]| -> smallvec::SmallVec<[usize; 8]> {
            values.iter().enumerate().filter(|(i, _)| *i != dim).map(|(_, v)| *v).collect()
        };
        let layout = Layout::new(&keep(one.strides()), one.layout.offset())?;
        Self::with_layout(self.dtype, Shape::new(&keep(one.dims()))?, layout)
    }

    /// The view stretched to `shape`: trailing dimensions are aligned, extents of 1 repeat.
    ///
    /// # Errors
    /// `Shape` when the extents do not broadcast to `shape`.
    pub fn broadcast_to(&self, shape: &Shape) -> Result<Self> {
        if self.shape.broadcast(shape)? != *shape {
            return Err(OpError::shape(
                "broadcast_to",
                format!("{} does not stretch to {shape}", self.shape),
            ));
        }
        let lead = shape.rank() - self.rank();
        let mut strides = [0usize; crate::MAX_RANK];
        for (i, (&dim, &stride)) in self.dims().iter().zip(self.strides()).enumerate() {
            strides[lead + i] = if dim == 1 && shape.dims()[lead + i] != 1 { 0 } else { stride };
        }
        Self::with_layout(self.dtype, *shape, Layout::new(&strides[..shape.rank()], self.layout.offset())?)
    }

    /// The view with other extents over the same elements.
    ///
    /// # Errors
    /// `Shape` when the number of elements differs, `Layout` when no strides express it (copy first).
    pub fn reshape(&self, dims: &[usize]) -> Result<Self> {
        let shape = Shape::new(dims)?;
        if shape.numel() != self.numel() {
            return Err(OpError::shape(
                "reshape",
                format!("{} has {} elements, {shape} has {}", self.shape, self.numel(), shape.numel()),
            ));
        }
        if shape.is_empty() || shape.numel() == 1 {
            return Self::with_layout(
                self.dtype,
                shape,
                Layout::contiguous(&shape).with_offset(self.layout.offset()),
            );
        }
        // Walk both shapes from the inside; each group of old dimensions that new ones split must be evenly strided.
        let olds: smallvec::SmallVec<[(usize, usize); 8]> =
            self.dims().iter().zip(self.strides()).filter(|(d, _)| **d != 1).map(|(&d, &s)| (d, s)).collect();
        let mut strides = [0usize; crate::MAX_RANK];
        let mut old = olds.len();
        let (mut left, mut step) = (1usize, 0usize);
        for i in (0..shape.rank()).rev() {
            let dim = shape.dims()[i];
            if dim == 1 {
                strides[i] = if i + 1 < shape.rank() { strides[i + 1] } else { 1 };
                continue;
            }
            if left == 1 {
                old -= 1;
                (left, step) = olds[old];
            }
            while left % dim != 0 {
                if old == 0 || olds[old - 1].1 != step * left {
                    return Err(OpError::layout(
                        "reshape",
                        "input",
                        format!("{self} is not a view of {shape}; copy it first"),
                    ));
                }
                old -= 1;
                left *= olds[old].0;
            }
            strides[i] = step;
            step *= dim;
            left /= dim;
        }
        Self::with_layout(self.dtype, shape, Layout::new(&strides[..shape.rank()], self.layout.offset())?)
    }
}

impl fmt::Debug for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)?;
        if !self.is_contiguous() || self.layout.offset() != 0 {
            write!(f, " ({:?})", self.layout)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every element's place, in logical order.
    fn places(spec: &TensorSpec) -> Vec<usize> {
        let mut out = vec![spec.layout().offset()];
        for (&d, &s) in spec.dims().iter().zip(spec.strides()) {
            out = out.iter().flat_map(|&p| (0..d).map(move |i| p + i * s)).collect();
        }
        out
    }

    #[test]
    fn sub_byte_rows_start_on_whole_bytes() {
        let spec = TensorSpec::of(DType::U4, &[2, 3]).unwrap();
        assert_eq!((spec.strides(), spec.bytes(), spec.span_bytes()), (&[4usize, 1][..], 4, 4));
        assert!(spec.transpose(0, 1).is_err());
        assert!(spec.narrow(1, 1, 2).is_err());
    }

    #[test]
    fn views_out_of_range_are_refused() {
        let spec = TensorSpec::of(DType::F32, &[2, 3]).unwrap();
        assert!(spec.narrow(1, 2, 2).is_err());
        assert!(spec.narrow(1, usize::MAX, 2).is_err());
        assert!(spec.narrow(2, 0, 0).is_err());
        assert!(spec.select(0, 2).is_err());
        assert!(spec.permute(&[0, 0]).is_err());
        assert!(spec.broadcast_to(&Shape::new(&[2, 4]).unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn a_reshape_keeps_every_element_in_place(
            dims in prop::collection::vec(1usize..5, 1..4), start in 0usize..2, flip in any::<bool>(), cut in 1usize..4,
        ) {
            let mut spec = TensorSpec::of(DType::F32, &dims).unwrap();
            if spec.dims()[0] > start { spec = spec.narrow(0, start, spec.dims()[0] - start).unwrap(); }
            if flip && spec.rank() > 1 { spec = spec.transpose(0, 1).unwrap(); }
            let numel = spec.numel();
            let target = if numel.is_multiple_of(cut) { vec![numel / cut, 1, cut] } else { vec![numel] };
            match spec.reshape(&target) {
                Ok(view) => prop_assert_eq!(places(&view), places(&spec)),
                Err(_) => prop_assert!(!spec.is_contiguous()),
            }
        }
    }
}
