//! The extents and layouts every element-wise operator is tried on, edges first.
//!
//! One list, so that a layout that once broke a kernel is tried on all of them.

use crate::{DType, Result, TensorSpec};

/// Floating types operators compute in, the required one first.
pub(crate) const FLOATS: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F64];

/// Types of whole bytes that have a host codec: what movement is tried on.
pub(crate) const MOVABLE: [DType; 9] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::F64,
    DType::I64,
    DType::I32,
    DType::I8,
    DType::U8,
    DType::Bool,
];

/// Codes of one byte that are numbers of their own kind: they are moved as they are, and not computed on.
pub(crate) const BYTE_CODES: [DType; 3] = [DType::F8E4M3, DType::F8E5M2, DType::E8M0];

/// One pair of layouts of the same extents: what is read, and what is written.
pub(crate) struct Edge {
    pub(crate) name: &'static str,
    pub(crate) x: TensorSpec,
    pub(crate) out: TensorSpec,
}

/// Pairs of layouts for an operator from `x` to `out` element types.
pub(crate) fn edges(x: DType, out: DType) -> Result<Vec<Edge>> {
    let mut edges = Vec::new();
    let contiguous: [(&'static str, &[usize]); 7] = [
        ("empty", &[0]),
        ("empty_inner", &[3, 0]),
        ("scalar", &[]),
        ("one", &[1]),
        ("unaligned", &[3, 37]),
        ("typical", &[4, 64]),
        ("chunks", &[5, 4099]),
    ];
    for (name, dims) in contiguous {
        edges.push(Edge { name, x: TensorSpec::of(x, dims)?, out: TensorSpec::of(out, dims)? });
    }
    // A column range of wider rows, from an odd offset, on both sides.
    let window = |d, start| TensorSpec::of(d, &[6, 53])?.narrow(1, start, 35)?.narrow(0, 1, 4);
    edges.push(Edge { name: "strided_rows", x: window(x, 3)?, out: window(out, 11)? });
    edges.push(Edge {
        name: "strided_transposed",
        x: TensorSpec::of(x, &[19, 3, 7])?.transpose(0, 2)?,
        out: TensorSpec::of(out, &[7, 3, 19])?,
    });
    edges.push(Edge {
        name: "strided_out",
        x: TensorSpec::of(x, &[2, 5, 17])?,
        out: TensorSpec::of(out, &[17, 5, 4])?.transpose(0, 2)?.narrow(0, 1, 2)?,
    });
    edges.push(Edge {
        name: "broadcast",
        x: TensorSpec::of(x, &[1, 21])?.broadcast_to(TensorSpec::of(x, &[9, 21])?.shape())?,
        out: TensorSpec::of(out, &[9, 21])?,
    });
    Ok(edges)
}
