//! Edges that operators' cases have to touch.
//!
//! They are read off the operands and not off the cases' names, which promise nothing.

use portolan_ops::TensorSpec;

/// An edge that every operator's cases have to touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edge {
    /// Nothing to compute.
    Empty,
    /// An operand of a single element: one row, one token, one number.
    One,
    /// A row that is no multiple of any vector, and longer than none.
    Unaligned,
    /// An operand whose elements do not lie one behind the other.
    Strided,
    /// More than one row.
    Rows,
}

impl Edge {
    pub(crate) const ALL: [Edge; 5] = [Edge::Empty, Edge::One, Edge::Unaligned, Edge::Strided, Edge::Rows];

    pub(crate) fn touched(self, operands: &[(TensorSpec, bool)]) -> bool {
        let mut written = operands.iter().filter(|(_, writes)| *writes).map(|(spec, _)| spec);
        match self {
            Edge::Empty => written.any(|spec| spec.numel() == 0),
            Edge::One => operands.iter().any(|(spec, _)| spec.numel() == 1),
            Edge::Unaligned => {
                operands.iter().any(|(spec, _)| spec.numel() > 8 && !spec.shape().last().is_multiple_of(8))
            }
            Edge::Strided => operands.iter().any(|(spec, _)| spec.numel() > 1 && !spec.is_contiguous()),
            Edge::Rows => written.any(|spec| spec.shape().rows() > 1 || spec.rank() == 1 && spec.numel() > 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portolan_ops::DType;

    #[test]
    fn edges_are_read_off_the_operands() {
        let of = |dims: &[usize]| TensorSpec::of(DType::F32, dims).unwrap();
        let touched = |spec: TensorSpec| {
            Edge::ALL.into_iter().filter(|edge| edge.touched(&[(spec, true)])).collect::<Vec<_>>()
        };
        assert_eq!(touched(of(&[3, 0])), [Edge::Empty, Edge::Rows]);
        assert_eq!(touched(of(&[1])), [Edge::One]);
        assert_eq!(touched(of(&[1, 37])), [Edge::Unaligned]);
        assert_eq!(
            touched(of(&[2, 8]).transpose(0, 1).unwrap()),
            [Edge::Unaligned, Edge::Strided, Edge::Rows]
        );
    }
}
