//! Matrix products: packed and cache-blocked over one microkernel shape per element type.
//!
//! This file says what a product is; `block` runs it, `pack` and `kernel` (with their x86 forms) do the
//! work, `pack_codes` widens floats of 8 and 4 bits on the way, `few` streams b past few rows, `epilogue` writes results, `prepack` holds weights that are packed once.

mod block;
mod epilogue;
mod few;
mod kernel;
#[cfg(target_arch = "x86_64")]
mod kernel_x86;
mod pack;
mod pack_codes;
#[cfg(target_arch = "x86_64")]
mod pack_x86;
mod prepack;
#[cfg(test)]
mod tests;

#[allow(unused_imports, reason = "called by the operators that bind it")]
pub(crate) use block::gemm;
#[allow(unused_imports, reason = "called by the operators that bind it")]
pub(crate) use prepack::{pack_b, packed_bytes, unpack_b};

use portolan_ops::kernel::{Activation, GemmForm, GemmSpec};
use portolan_ops::{DType, TensorSpec};
use smallvec::SmallVec;

/// A matrix in memory: where its first element is and how far apart rows and columns are, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mat {
    /// The first element; written through only where the matrix is the result.
    pub(crate) ptr: *mut u8,
    pub(crate) dtype: DType,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl Mat {
    /// Bytes of one element of a byte or more.
    fn size(&self) -> usize {
        self.dtype.bits() as usize / 8
    }

    /// Bytes of so many elements: an even number where two share a byte.
    fn bytes(&self, elements: usize) -> usize {
        if self.dtype.is_sub_byte() { elements / 2 } else { elements * self.size() }
    }

    /// Element `[row, col]` of the matrix that starts `offset` elements further on. Where two elements share a byte it
    /// is the first of them: rows start on whole bytes, and blocks are even.
    ///
    /// # Safety
    /// The element lies in the memory the matrix was made for.
    unsafe fn at(&self, offset: usize, row: usize, col: usize) -> *mut u8 {
        // SAFETY: promised by the caller.
        unsafe { self.ptr.add(self.bytes(offset + row * self.row_stride + col * self.col_stride)) }
    }
}

/// The second factor.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Factor {
    /// `[k, n]` with any strides: a stored `[n, k]` is its row and column strides exchanged.
    Plain(Mat),
    /// The bytes that [`pack_b`] wrote for the same instruction set, k and n; shared by the batch.
    Packed { ptr: *const u8, dtype: DType },
}

/// One leading dimension: its extent, and how far apart (in elements) its entries are in each operand.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BatchDim {
    pub(crate) len: usize,
    pub(crate) a: usize,
    pub(crate) b: usize,
    pub(crate) c: usize,
    pub(crate) out: usize,
}

/// The row that is added to every row of the result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bias {
    pub(crate) ptr: *const u8,
    pub(crate) dtype: DType,
    pub(crate) stride: usize,
}

/// `out = act(alpha · a·b + beta · c + bias)` over raw memory.
///
/// Extents, element types and strides are those of a checked `GemmSpec`. `c` may be `out` itself.
#[derive(Clone, Debug)]
pub(crate) struct GemmTask {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// `[m, k]`.
    pub(crate) a: Mat,
    /// `[k, n]`.
    pub(crate) b: Factor,
    /// `[m, n]`.
    pub(crate) out: Mat,
    /// `[m, n]`, of out's type.
    pub(crate) c: Option<Mat>,
    pub(crate) bias: Option<Bias>,
    pub(crate) alpha: f32,
    pub(crate) beta: f32,
    pub(crate) activation: Activation,
    /// Leading dimensions, outermost first; empty for one product.
    pub(crate) batch: SmallVec<[BatchDim; 2]>,
    /// Every row of the result has the same bits for any m.
    pub(crate) invariant: bool,
}

/// Where the operands of a [`GemmSpec`] lie: the first byte of each allocation (offsets are the specs').
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands {
    pub(crate) a: *const u8,
    pub(crate) b: *const u8,
    /// Null where the product has none.
    pub(crate) c: *const u8,
    /// Null where the product has none.
    pub(crate) bias: *const u8,
    pub(crate) out: *mut u8,
}

impl GemmTask {
    /// The product a checked spec describes, over these operands.
    pub(crate) fn of(spec: &GemmSpec, operands: &Operands, invariant: bool) -> Self {
        let mat = |spec: &TensorSpec, ptr: *const u8, transposed: bool| {
            let rank = spec.rank();
            let (mut row_stride, mut col_stride) = (spec.strides()[rank - 2], spec.strides()[rank - 1]);
            if transposed {
                (row_stride, col_stride) = (col_stride, row_stride);
            }
            let offset = spec.layout().offset() * spec.dtype().bits() as usize / 8;
            Mat { ptr: ptr.wrapping_add(offset).cast_mut(), dtype: spec.dtype(), row_stride, col_stride }
        };
        let (a, b, out) = (spec.a(), spec.b(), spec.out());
        let batch = (0..out.rank() - 2)
            .map(|dim| BatchDim {
                len: out.dims()[dim],
                a: a.strides()[dim],
                b: if b.rank() == 2 { 0 } else { b.strides()[dim] },
                c: spec.c().map_or(0, |c| c.strides()[dim]),
                out: out.strides()[dim],
            })
            .collect();
        Self {
            m: spec.m(),
            n: spec.n(),
            k: spec.k(),
            a: mat(a, operands.a, spec.form() == GemmForm::Tn),
            b: Factor::Plain(mat(b, operands.b, spec.form() == GemmForm::Nt)),
            out: mat(out, operands.out, false),
            c: spec.c().map(|c| mat(c, operands.c, false)),
            bias: spec.bias().map(|bias| Bias {
                ptr: operands.bias.wrapping_add(bias.layout().offset() * bias.dtype().bits() as usize / 8),
                dtype: bias.dtype(),
                stride: bias.strides()[0],
            }),
            alpha: spec.alpha(),
            beta: spec.beta(),
            activation: spec.activation(),
            batch,
            invariant,
        }
    }
}

impl GemmTask {
    /// The product that gives columns `j..j + n` of the result; its second factor is still the whole one.
    fn columns(&self, j: usize, n: usize) -> Self {
        let from = |mat: Mat| Mat { ptr: mat.ptr.wrapping_add(j * mat.col_stride * mat.size()), ..mat };
        let bias = self.bias.map(|bias| Bias {
            ptr: bias.ptr.wrapping_add(j * bias.stride * bias.dtype.bits() as usize / 8),
            ..bias
        });
        Self { n, out: from(self.out), c: self.c.map(from), bias, ..self.clone() }
    }
}

// SAFETY: the pointers are handed to tasks of one region, which read a, b, c and bias and write disjoint
// parts of out; the caller of `gemm` keeps the memory alive for the call.
unsafe impl Sync for GemmTask {}
