//! Shape rules of what is made of copies into views: joining, cutting and padding tensors.
//!
//! These have no kernel of their own: copies and fills of the pieces move each element once already.

use crate::{OpError, Result, Shape, TensorSpec, expect_dims, expect_dtype};

/// The result of joining `parts` along `dim`: contiguous.
///
/// # Errors
/// `Shape` without a part, without that dimension, where extents of another dimension differ, or for more elements
/// than can be addressed; `DType` where element types differ.
pub fn concat_spec(parts: &[&TensorSpec], dim: usize) -> Result<TensorSpec> {
    const OP: &str = "concat";
    let Some((first, rest)) = parts.split_first() else {
        return Err(OpError::shape(OP, "no tensors were given, expected at least one"));
    };
    let mut joined = extent_of(OP, first, dim)?;
    for part in rest {
        expect_dtype(OP, "a later part", part, &[first.dtype()])?;
        let extent = extent_of(OP, part, dim)?;
        // Alike but for the joined dimension; the message shows what would have fitted.
        if part.rank() != first.rank() || part.shape().with_dim(dim, first.dims()[dim])? != *first.shape() {
            expect_dims(OP, "a later part", part, first.shape().with_dim(dim, extent)?.dims())?;
        }
        joined = joined.checked_add(extent).ok_or_else(|| {
            OpError::shape(OP, format!("{joined} and {extent} entries are more than can be addressed"))
        })?;
    }
    Ok(TensorSpec::new(first.dtype(), first.shape().with_dim(dim, joined)?))
}

/// The views of `x` cut along `dim` into pieces of `lens` entries.
///
/// # Errors
/// `Shape` without that dimension, or when the pieces do not add up to it.
pub fn split_specs(x: &TensorSpec, dim: usize, lens: &[usize]) -> Result<Vec<TensorSpec>> {
    const OP: &str = "split";
    let extent = extent_of(OP, x, dim)?;
    let total = lens.iter().try_fold(0usize, |sum, &len| sum.checked_add(len));
    if total != Some(extent) {
        let what = format!("x is {}, pieces of {lens:?} do not add up to its dimension {dim}", x.shape());
        return Err(OpError::shape(OP, what));
    }
    let mut start = 0;
    let mut pieces = Vec::with_capacity(lens.len());
    for &len in lens {
        pieces.push(x.narrow(dim, start, len)?);
        start += len;
    }
    Ok(pieces)
}

/// The result of padding each dimension of `x` by `(before, after)` entries: contiguous.
///
/// # Errors
/// `Shape` unless there is one pair a dimension, or for more elements than can be addressed.
pub fn pad_spec(x: &TensorSpec, padding: &[(usize, usize)]) -> Result<TensorSpec> {
    const OP: &str = "pad";
    if padding.len() != x.rank() {
        let what = format!("x is {}, expected one pair a dimension, got {padding:?}", x.shape());
        return Err(OpError::shape(OP, what));
    }
    let mut dims = [0; crate::MAX_RANK];
    for ((dim, &extent), &(before, after)) in dims.iter_mut().zip(x.dims()).zip(padding) {
        *dim = before.checked_add(extent).and_then(|sum| sum.checked_add(after)).ok_or_else(|| {
            OpError::shape(OP, format!("{padding:?} around {} is more than can be addressed", x.shape()))
        })?;
    }
    Ok(TensorSpec::new(x.dtype(), Shape::new(&dims[..x.rank()])?))
}

/// Where entry 0 of a dimension of `extent` entries goes when they are rolled by `shift` places: below the extent,
/// or 0.
pub fn rolled(extent: usize, shift: isize) -> usize {
    let steps = shift.unsigned_abs() % extent.max(1);
    if shift < 0 && steps > 0 { extent - steps } else { steps }
}

/// The extent of dimension `dim`.
///
/// # Errors
/// `Shape` when there is none.
pub fn extent_of(op: &'static str, x: &TensorSpec, dim: usize) -> Result<usize> {
    let missing = || OpError::shape(op, format!("{} has no dimension {dim}", x.shape()));
    x.dims().get(dim).copied().ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use proptest::prelude::*;

    fn spec(dims: &[usize]) -> TensorSpec {
        TensorSpec::of(DType::F32, dims).unwrap()
    }

    #[test]
    fn parts_that_do_not_fit_are_refused_with_both_shapes() {
        let (a, b) = (spec(&[2, 3]), spec(&[2, 4]));
        assert_eq!(concat_spec(&[&a, &b, &a], 1).unwrap().dims(), [2, 10]);
        let e = concat_spec(&[&a, &b], 0).unwrap_err();
        assert_eq!(e.to_string(), "concat: a later part is [2, 4], expected [2, 3]");
        assert!(concat_spec(&[], 0).is_err());
        assert!(concat_spec(&[&a], 2).is_err());
        assert!(concat_spec(&[&a, &spec(&[2])], 0).is_err());
        assert!(concat_spec(&[&a, &TensorSpec::of(DType::F16, &[2, 3]).unwrap()], 0).is_err());
        let none = spec(&[0, usize::MAX >> 4]);
        assert!(concat_spec(&[&none; 40], 1).is_err(), "too many entries, though there are no elements");
    }

    #[test]
    fn pieces_must_add_up() {
        let x = spec(&[2, 5]);
        let pieces = split_specs(&x, 1, &[1, 0, 4]).unwrap();
        assert_eq!(pieces.iter().map(|p| p.dims()[1]).collect::<Vec<_>>(), [1, 0, 4]);
        for lens in [&[1, 3][..], &[5, usize::MAX], &[]] {
            assert!(split_specs(&x, 1, lens).is_err(), "{lens:?}");
        }
        assert!(split_specs(&x, 2, &[5]).is_err());
    }

    #[test]
    fn padding_needs_a_pair_a_dimension() {
        let x = spec(&[2, 5]);
        assert_eq!(pad_spec(&x, &[(0, 1), (2, 3)]).unwrap().dims(), [3, 10]);
        assert!(pad_spec(&x, &[(0, 1)]).is_err());
        assert!(pad_spec(&x, &[(0, usize::MAX), (0, 0)]).is_err());
        assert!(pad_spec(&x, &[(usize::MAX / 32, 0), (usize::MAX / 32, 0)]).is_err());
    }

    proptest! {
        #[test]
        fn what_is_split_joins_to_the_same_extents(
            dims in prop::collection::vec(0usize..5, 1..4), at in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>(),
        ) {
            let (x, dim) = (spec(&dims), at.index(dims.len()));
            let first = cut.index(dims[dim] + 1);
            let pieces = split_specs(&x, dim, &[first, dims[dim] - first]).unwrap();
            let parts: Vec<&TensorSpec> = pieces.iter().collect();
            prop_assert_eq!(concat_spec(&parts, dim).unwrap(), x);
        }

        #[test]
        fn rolling_is_modular(extent in 0usize..50, shift in any::<isize>()) {
            let start = rolled(extent, shift);
            prop_assert!(start < extent.max(1));
            if extent > 0 {
                prop_assert_eq!(start as i128, (shift as i128).rem_euclid(extent as i128));
            }
        }
    }
}
