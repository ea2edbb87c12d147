//! Reading entries by index: whole slices along a dimension, or one element per place.

use super::broadcast::around;
use super::edges::{BYTE_CODES, MOVABLE};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, Shape, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_writable, streaming_cost,
};
use smallvec::SmallVec;

const OP: &str = "gather";

/// What an index of [`GatherSpec`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GatherForm {
    /// A whole slice of x: `out[p, i.., q] = x[p, index[i..], q]`.
    Slices,
    /// One element of x: `out[p, i, q] = x[p, index[p, i, q], q]`.
    Elements,
}

/// Reads entries along a dimension by index.
///
/// `out[p, i.., q] = x[p, index[i..], q]`, or `out[p, i, q] = x[p, index[p, i, q], q]`
///
/// # Shapes
/// `slices`: out has x's extents with the indexed one replaced by index's (none, one or several). `elements`:
/// index has x's rank and, but for the indexed dimension, its extents; out has index's. Any extent may be zero.
///
/// # DTypes
/// index i32; x and out of one type of whole bytes. Bits are moved, never converted.
///
/// # Layout
/// Any strides.
///
/// # Determinism
/// Every level.
///
/// # Cost
/// No arithmetic; reads index and as many bytes of x as out takes.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself). An index below zero is padding and gives bits of 0 (in e8m0,
/// which has no 0, its smallest number); an index not
/// below the extent is a data fault.
#[derive(Clone, Debug, PartialEq)]
pub struct GatherSpec {
    form: GatherForm,
    x: TensorSpec,
    dim: usize,
    index: TensorSpec,
    out: TensorSpec,
}

impl GatherSpec {
    /// Whole slices of dimension `dim`.
    pub fn slices(x: &TensorSpec, dim: usize, index: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        Self::checked(GatherForm::Slices, x, dim, index, out)
    }

    /// One element of dimension `dim` for each place of index.
    pub fn elements(x: &TensorSpec, dim: usize, index: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        Self::checked(GatherForm::Elements, x, dim, index, out)
    }

    fn checked(
        form: GatherForm,
        x: &TensorSpec,
        dim: usize,
        index: &TensorSpec,
        out: &TensorSpec,
    ) -> Result<Self> {
        let want = Self::out_spec(form, x, dim, index)?;
        expect_dims(OP, "out", out, want.dims())?;
        expect_dtype(OP, "out", out, &[want.dtype()])?;
        expect_writable(OP, "out", out)?;
        Ok(Self { form, x: *x, dim, index: *index, out: *out })
    }

    /// The result: contiguous, of x's type.
    pub fn out_spec(form: GatherForm, x: &TensorSpec, dim: usize, index: &TensorSpec) -> Result<TensorSpec> {
        expect_dtype(OP, "index", index, &[DType::I32])?;
        if x.dtype().is_sub_byte() {
            return Err(OpError::dtype(OP, "x", x.dtype(), "a type of whole bytes"));
        }
        if dim >= x.rank() {
            return Err(OpError::shape(OP, format!("x is {}, it has no dimension {dim}", x.shape())));
        }
        match form {
            GatherForm::Slices => {
                Ok(TensorSpec::new(x.dtype(), sliced_shape(OP, x.shape(), dim, index.shape())?))
            }
            GatherForm::Elements => {
                if index.rank() != x.rank() || index.shape().with_dim(dim, x.dims()[dim])? != *x.shape() {
                    let what = format!("index is {}, x is {}", index.shape(), x.shape());
                    return Err(OpError::shape(OP, format!("{what}: only dimension {dim} may differ")));
                }
                Ok(TensorSpec::new(x.dtype(), *index.shape()))
            }
        }
    }

    /// What an index names.
    pub fn form(&self) -> GatherForm {
        self.form
    }
    /// What is read.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// The indexed dimension of x.
    pub fn dim(&self) -> usize {
        self.dim
    }
    /// Places along that dimension.
    pub fn index(&self) -> &TensorSpec {
        &self.index
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
}

/// `shape` with dimension `dim` replaced by all of `index`.
pub(crate) fn sliced_shape(op: &'static str, shape: &Shape, dim: usize, index: &Shape) -> Result<Shape> {
    let dims = shape.dims();
    let mut extents: SmallVec<[usize; 16]> = dims[..dim].into();
    extents.extend_from_slice(index.dims());
    extents.extend_from_slice(&dims[dim + 1..]);
    Shape::new(&extents).map_err(|e| OpError::shape(op, format!("x is {shape}, index is {index}: {e}")))
}

impl Contract for GatherSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        visit(Operand { name: "index", spec: &self.index, access: Access::Read });
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        let mut cost = streaming_cost(self, 0);
        cost.bytes_read = (self.out.bytes() as u64).saturating_add(self.index.bytes() as u64);
        cost
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        // e8m0 has no 0: all bits 0 are its smallest number.
        let padding = if self.x.dtype() == DType::E8M0 { 2f64.powi(-127) } else { 0.0 };
        let (x, index) = (inputs[0], inputs[1]);
        let (outer, extent, inner) = around(self.x.shape(), self.dim);
        let entries = match self.form {
            GatherForm::Slices => index.len(),
            GatherForm::Elements => self.index.dims()[self.dim],
        };
        let mut out = Vec::with_capacity(self.out.numel());
        for p in 0..outer {
            for i in 0..entries {
                for q in 0..inner {
                    let at = match self.form {
                        GatherForm::Slices => index[i],
                        GatherForm::Elements => index[(p * entries + i) * inner + q],
                    };
                    let inside = at >= 0.0 && at < extent as f64;
                    out.push(if inside { x[(p * extent + at as usize) * inner + q] } else { padding });
                }
            }
        }
        vec![out]
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }
}

impl Cases for GatherSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        let slices: [(&str, &[usize], usize, &[usize]); 9] = [
            ("empty_index", &[4, 5], 0, &[0]),
            ("empty_inner", &[4, 0], 0, &[3]),
            ("one", &[1], 0, &[1]),
            ("scalar_index", &[7, 9], 0, &[]),
            ("rows", &[11, 64], 0, &[23]),
            ("unaligned_rows", &[13, 37], 0, &[8]),
            ("matrix_index", &[9, 5], 0, &[2, 6]),
            ("columns", &[6, 19], 1, &[31]),
            ("middle", &[3, 8, 7], 1, &[5]),
        ];
        let elements: [(&str, &[usize], usize, usize); 5] = [
            ("empty_elements", &[4, 5], 1, 0),
            ("one_element", &[1], 0, 1),
            ("last_elements", &[6, 19], 1, 8),
            ("first_elements", &[6, 19], 0, 9),
            ("middle_elements", &[3, 8, 7], 1, 11),
        ];
        for dtype in MOVABLE.into_iter().chain(BYTE_CODES) {
            let name = |edge: &str| format!("gather/{dtype}/{edge}");
            // Indices from −1 (padding) to the last.
            let indexed = |name: String, spec: Self| {
                let extent = spec.x.dims()[spec.dim] as f64;
                Case::new(name, spec).fill("index", Fill::Range(-1.0, extent))
            };
            for (edge, dims, dim, index) in slices {
                let (x, index) = (TensorSpec::of(dtype, dims)?, TensorSpec::of(DType::I32, index)?);
                let out = Self::out_spec(GatherForm::Slices, &x, dim, &index)?;
                cases.push(indexed(name(edge), Self::slices(&x, dim, &index, &out)?));
            }
            for (edge, dims, dim, entries) in elements {
                let x = TensorSpec::of(dtype, dims)?;
                let index = TensorSpec::new(DType::I32, x.shape().with_dim(dim, entries)?);
                let out = Self::out_spec(GatherForm::Elements, &x, dim, &index)?;
                cases.push(indexed(name(edge), Self::elements(&x, dim, &index, &out)?));
            }
            let x = TensorSpec::of(dtype, &[12, 53])?.narrow(1, 3, 35)?;
            let index = TensorSpec::of(DType::I32, &[9, 3])?.narrow(1, 1, 1)?.select(1, 0)?;
            let out = TensorSpec::of(dtype, &[35, 10])?.transpose(0, 1)?.narrow(0, 1, 9)?;
            cases.push(indexed(name("strided"), Self::slices(&x, 0, &index, &out)?));
            let index = TensorSpec::of(DType::I32, &[35, 9])?.transpose(0, 1)?;
            cases.push(indexed(name("strided_elements"), Self::elements(&x, 0, &index, &out)?));
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(dtype: DType, dims: &[usize]) -> TensorSpec {
        TensorSpec::of(dtype, dims).unwrap()
    }

    #[test]
    fn slices_and_padding_by_hand() {
        let (x, index) = (spec(DType::F32, &[3, 2]), spec(DType::I32, &[2]));
        let x_values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let rows = GatherSpec::slices(&x, 0, &index, &spec(DType::F32, &[2, 2])).unwrap();
        assert_eq!(rows.reference(&[&x_values, &[2.0, -1.0]]), [vec![5.0, 6.0, 0.0, 0.0]]);
        let columns = GatherSpec::slices(&x, 1, &index, &spec(DType::F32, &[3, 2])).unwrap();
        assert_eq!(columns.reference(&[&x_values, &[1.0, 1.0]]), [vec![2.0, 2.0, 4.0, 4.0, 6.0, 6.0]]);
    }

    #[test]
    fn elements_by_hand() {
        let (x, index) = (spec(DType::F32, &[2, 3]), spec(DType::I32, &[2, 1]));
        let g = GatherSpec::elements(&x, 1, &index, &spec(DType::F32, &[2, 1])).unwrap();
        assert_eq!(g.reference(&[&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2.0, 0.0]]), [vec![3.0, 4.0]]);
    }

    #[test]
    fn shapes_are_checked() {
        let (x, index) = (spec(DType::F32, &[2, 3]), spec(DType::I32, &[5]));
        assert!(GatherSpec::out_spec(GatherForm::Slices, &x, 2, &index).is_err());
        let e = GatherSpec::out_spec(GatherForm::Elements, &x, 1, &index).unwrap_err();
        assert_eq!(e.to_string(), "gather: index is [5], x is [2, 3]: only dimension 1 may differ");
        assert!(GatherSpec::out_spec(GatherForm::Slices, &x, 0, &x).is_err());
        let deep = spec(DType::I32, &[1; 8]);
        assert!(GatherSpec::out_spec(GatherForm::Slices, &x, 0, &deep).is_err());
    }

    #[test]
    fn every_case_is_legal() {
        assert!(GatherSpec::cases().unwrap().len() > 120);
    }
}
