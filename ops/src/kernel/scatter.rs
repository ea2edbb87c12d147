//! Writing or adding slices at indices: the inverse of a gather of slices.

use super::broadcast::around;
use super::edges::{BYTE_CODES, FLOATS, MOVABLE};
use super::gather::sliced_shape;
use super::rounding::{summed, wrapped};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_writable, streaming_cost,
};

/// What [`ScatterSpec`] does with a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScatterMode {
    /// Replaces what was there.
    Set,
    /// Adds to what was there.
    Add,
}

/// Copies a tensor and writes slices into it, or adds them, at indices.
///
/// `out = x; out[p, index[i..], q] = src[p, i.., q]`, or `+=`
///
/// # Shapes
/// x and out alike; src has their extents with dimension `dim` replaced by index's. Any extent may be zero.
///
/// # DTypes
/// index i32; x, src and out of one type: set takes any of whole bytes; add takes f32, f16, bf16, f64, i64, i32,
/// u8. f16 and bf16 are summed in f32 and rounded once per element; integers wrap.
///
/// # Layout
/// Any strides. out may be the very view x; then only the named slices are touched.
///
/// # Determinism
/// Of equal indices, set keeps the last of src. Add sums them in ascending order of src from `RunToRun` on;
/// `Fast` may use any order.
///
/// # Cost
/// One operation per element of src for add.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself). An index below zero is padding and is skipped; an index not
/// below the extent is a data fault.
#[derive(Clone, Debug, PartialEq)]
pub struct ScatterSpec {
    mode: ScatterMode,
    x: TensorSpec,
    dim: usize,
    index: TensorSpec,
    src: TensorSpec,
    out: TensorSpec,
}

impl ScatterSpec {
    /// The slices of src, at `index` along dimension `dim` of x, into out.
    pub fn new(
        mode: ScatterMode,
        x: &TensorSpec,
        dim: usize,
        index: &TensorSpec,
        src: &TensorSpec,
        out: &TensorSpec,
    ) -> Result<Self> {
        let op = op_name(mode);
        expect_dtype(op, "index", index, &[DType::I32])?;
        if mode == ScatterMode::Add {
            let ints = [DType::I64, DType::I32, DType::U8];
            expect_dtype(op, "x", x, &[&FLOATS[..], &ints[..]].concat())?;
        } else if x.dtype().is_sub_byte() {
            return Err(OpError::dtype(op, "x", x.dtype(), "a type of whole bytes"));
        }
        if dim >= x.rank() {
            return Err(OpError::shape(op, format!("x is {}, it has no dimension {dim}", x.shape())));
        }
        expect_dtype(op, "src", src, &[x.dtype()])?;
        expect_dtype(op, "out", out, &[x.dtype()])?;
        expect_dims(op, "src", src, sliced_shape(op, x.shape(), dim, index.shape())?.dims())?;
        expect_dims(op, "out", out, x.dims())?;
        expect_writable(op, "out", out)?;
        Ok(Self { mode, x: *x, dim, index: *index, src: *src, out: *out })
    }

    /// Write or add.
    pub fn mode(&self) -> ScatterMode {
        self.mode
    }
    /// What the slices are put into.
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
    /// The slices.
    pub fn src(&self) -> &TensorSpec {
        &self.src
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
}

fn op_name(mode: ScatterMode) -> &'static str {
    match mode {
        ScatterMode::Set => "scatter",
        ScatterMode::Add => "scatter_add",
    }
}

impl Contract for ScatterSpec {
    fn name(&self) -> &'static str {
        op_name(self.mode)
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        visit(Operand { name: "index", spec: &self.index, access: Access::Read });
        visit(Operand { name: "src", spec: &self.src, access: Access::Read });
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        &[("out", "x")]
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, if self.mode == ScatterMode::Add { self.src.numel() as u64 } else { 0 })
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let (index, src, dtype) = (inputs[1], inputs[2], self.x.dtype());
        let (outer, extent, inner) = around(self.x.shape(), self.dim);
        let mut out = inputs[0].to_vec();
        for p in 0..outer {
            for (i, &at) in index.iter().enumerate() {
                if at < 0.0 || at >= extent as f64 {
                    continue;
                }
                for q in 0..inner {
                    let value = src[(p * index.len() + i) * inner + q];
                    let place = &mut out[(p * extent + at as usize) * inner + q];
                    *place = match self.mode {
                        ScatterMode::Set => value,
                        ScatterMode::Add if dtype.is_int() => wrapped(dtype, *place as i128 + value as i128),
                        ScatterMode::Add => *place + value,
                    };
                }
            }
        }
        vec![out]
    }

    /// At worst every slice is added to one place: a sum of that many terms in [−1, 1].
    fn tolerance(&self) -> Vec<Tolerance> {
        match self.mode {
            ScatterMode::Set => vec![Tolerance::EXACT],
            ScatterMode::Add => vec![summed(self.out.dtype(), self.index.numel() + 1)],
        }
    }
}

impl Cases for ScatterSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        let shapes: [(&str, &[usize], usize, &[usize]); 10] = [
            ("empty_index", &[4, 5], 0, &[0]),
            ("empty_inner", &[4, 0], 0, &[3]),
            ("one", &[1], 0, &[1]),
            ("scalar_index", &[7, 9], 0, &[]),
            ("rows", &[31, 64], 0, &[5]),
            ("duplicates", &[4, 37], 0, &[23]),
            ("matrix_index", &[9, 5], 0, &[2, 6]),
            ("columns", &[6, 19], 1, &[11]),
            ("middle", &[3, 8, 7], 1, &[5]),
            ("wide", &[3, 5000], 0, &[7]),
        ];
        for mode in [ScatterMode::Set, ScatterMode::Add] {
            for dtype in MOVABLE.into_iter().chain(BYTE_CODES) {
                let added = MOVABLE.contains(&dtype) && !matches!(dtype, DType::I8 | DType::Bool);
                if mode == ScatterMode::Add && !added {
                    continue;
                }
                let name = |edge: &str| format!("{}/{dtype}/{edge}", op_name(mode));
                // Indices from −1 (padding) to the last.
                let indexed = |name: String, spec: Self| {
                    let extent = spec.x.dims()[spec.dim] as f64;
                    Case::new(name, spec).fill("index", Fill::Range(-1.0, extent))
                };
                for (edge, dims, dim, index) in shapes {
                    let (x, index) = (TensorSpec::of(dtype, dims)?, TensorSpec::of(DType::I32, index)?);
                    let src = sliced_shape(op_name(mode), x.shape(), dim, index.shape())?;
                    let spec = Self::new(mode, &x, dim, &index, &TensorSpec::new(dtype, src), &x)?;
                    cases.push(indexed(name(edge), spec));
                }
                let x = TensorSpec::of(dtype, &[12, 53])?.narrow(1, 3, 35)?;
                let index = TensorSpec::of(DType::I32, &[9, 3])?.select(1, 1)?;
                let src = TensorSpec::of(dtype, &[35, 10])?.transpose(0, 1)?.narrow(0, 1, 9)?;
                let out = TensorSpec::of(dtype, &[35, 12])?.transpose(0, 1)?;
                cases.push(indexed(name("strided"), Self::new(mode, &x, 0, &index, &src, &out)?));
            }
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

    fn run(mode: ScatterMode, index: &[f64]) -> Vec<f64> {
        let (x, src) = (spec(DType::F32, &[3, 2]), spec(DType::F32, &[3, 2]));
        let s = ScatterSpec::new(mode, &x, 0, &spec(DType::I32, &[3]), &src, &x).unwrap();
        s.reference(&[&[1.0; 6], index, &[10.0, 20.0, 30.0, 40.0, 50.0, 60.0]]).remove(0)
    }

    #[test]
    fn set_keeps_the_last_and_skips_padding() {
        assert_eq!(run(ScatterMode::Set, &[2.0, -1.0, 2.0]), [1.0, 1.0, 1.0, 1.0, 50.0, 60.0]);
    }

    #[test]
    fn add_sums_equal_indices() {
        assert_eq!(run(ScatterMode::Add, &[0.0, 0.0, 1.0]), [41.0, 61.0, 51.0, 61.0, 1.0, 1.0]);
    }

    #[test]
    fn shapes_and_types_are_checked() {
        let (x, index) = (spec(DType::F32, &[3, 2]), spec(DType::I32, &[4]));
        let e = ScatterSpec::new(ScatterMode::Set, &x, 0, &index, &x, &x).unwrap_err();
        assert_eq!(e.to_string(), "scatter: src is [3, 2], expected [4, 2]");
        let b = spec(DType::Bool, &[3, 2]);
        let index = spec(DType::I32, &[3]);
        assert!(ScatterSpec::new(ScatterMode::Add, &b, 0, &index, &b, &b).is_err());
        assert!(ScatterSpec::new(ScatterMode::Set, &b, 0, &index, &b, &b).is_ok());
    }

    #[test]
    fn every_case_is_legal() {
        assert!(ScatterSpec::cases().unwrap().len() > 150);
    }
}
