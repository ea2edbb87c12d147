//! Broadcasting in oracles and shape rules: trailing dimensions aligned, extents of 1 repeated.
//!
//! Kernels do the same with strides of 0; here the values are copied out, so that formulas stay plain loops.

use crate::layout::places;
use crate::{MAX_RANK, OpError, Result, Shape, TensorSpec};

/// `values` of shape `from`, repeated to shape `to`, both in logical order.
pub(crate) fn stretched(values: &[f64], from: &Shape, to: &Shape) -> Vec<f64> {
    if from == to {
        return values.to_vec();
    }
    let lead = to.rank() - from.rank();
    let mut strides = [0; MAX_RANK];
    let mut step = 1;
    for (stride, &extent) in strides[lead..to.rank()].iter_mut().zip(from.dims()).rev() {
        *stride = if extent == 1 { 0 } else { step };
        step *= extent;
    }
    let mut out = Vec::with_capacity(to.numel());
    places(to.dims(), &strides[..to.rank()], 0, |place| out.push(values[place]));
    out
}

/// The shape two operands broadcast to; the message names the operator and both shapes.
pub(crate) fn joint_shape(
    op: &'static str,
    (a_name, a): (&'static str, &TensorSpec),
    (b_name, b): (&'static str, &TensorSpec),
) -> Result<Shape> {
    a.shape().broadcast(b.shape()).map_err(|_| {
        OpError::shape(
            op,
            format!("{a_name} is {}, {b_name} is {}: they do not broadcast", a.shape(), b.shape()),
        )
    })
}

/// Extents before `dim`, of `dim`, and after it, multiplied.
pub(crate) fn around(shape: &Shape, dim: usize) -> (usize, usize, usize) {
    let dims = shape.dims();
    (dims[..dim].iter().product(), dims[dim], dims[dim + 1..].iter().product())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_repeat() {
        let s = |d: &[usize]| Shape::new(d).unwrap();
        assert_eq!(stretched(&[1.0, 2.0], &s(&[2, 1]), &s(&[2, 3])), [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
        assert_eq!(stretched(&[1.0, 2.0], &s(&[2]), &s(&[2, 2])), [1.0, 2.0, 1.0, 2.0]);
        assert_eq!(stretched(&[7.0], &s(&[]), &s(&[3])), [7.0; 3]);
        assert!(stretched(&[7.0], &s(&[1]), &s(&[0])).is_empty());
    }
}
