//! Reductions over one or several dimensions: sums, extremes, their places, and any/all.

use super::edges::FLOATS;
use super::rounding::{multiplied, summed, wrapped};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, MAX_RANK, OpError, Operand, Result, Shape, TensorSpec,
    Tolerance, expect_dims, expect_dtype, expect_writable, streaming_cost,
};
use core::cmp::Ordering;
use smallvec::SmallVec;

/// Which reduction [`ReduceSpec`] computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReduceKind {
    /// Sum; 0 over nothing.
    Sum,
    /// Arithmetic mean.
    Mean,
    /// Product; 1 over nothing.
    Prod,
    /// The largest; NaN if any is.
    Max,
    /// The smallest; NaN if any is.
    Min,
    /// The place of the largest, the lowest of equals; NaN is greatest.
    ArgMax,
    /// The place of the smallest, the lowest of equals; NaN is greatest, so it is found only among NaNs.
    ArgMin,
    /// Whether any holds; false over nothing.
    Any,
    /// Whether all hold; true over nothing.
    All,
}

impl ReduceKind {
    /// Every reduction.
    pub const ALL: [ReduceKind; 9] = [
        ReduceKind::Sum,
        ReduceKind::Mean,
        ReduceKind::Prod,
        ReduceKind::Max,
        ReduceKind::Min,
        ReduceKind::ArgMax,
        ReduceKind::ArgMin,
        ReduceKind::Any,
        ReduceKind::All,
    ];

    /// The operator's name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            ReduceKind::Sum => "sum",
            ReduceKind::Mean => "mean",
            ReduceKind::Prod => "prod",
            ReduceKind::Max => "max_over",
            ReduceKind::Min => "min_over",
            ReduceKind::ArgMax => "argmax",
            ReduceKind::ArgMin => "argmin",
            ReduceKind::Any => "any",
            ReduceKind::All => "all",
        }
    }

    /// The element types the reduction accepts.
    pub const fn dtypes(self) -> &'static [DType] {
        match self {
            ReduceKind::Mean => &FLOATS,
            ReduceKind::Any | ReduceKind::All => &[DType::Bool],
            ReduceKind::Sum | ReduceKind::Prod => {
                &[DType::F32, DType::F16, DType::BF16, DType::F64, DType::I64, DType::I32]
            }
            _ => &[DType::F32, DType::F16, DType::BF16, DType::F64, DType::I64, DType::I32, DType::U8],
        }
    }

    /// Whether the result is the place of an element.
    pub const fn is_place(self) -> bool {
        matches!(self, ReduceKind::ArgMax | ReduceKind::ArgMin)
    }
}

/// The order of `argmax` and `top_k`: NaN is greater than every number and equal to itself; −0 equals +0.
pub fn nan_greatest(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Reduces over one or several dimensions.
///
/// `out[kept] = Σ x[kept, reduced]`, likewise product, extremes, `argmax`, `argmin`, any and all.
///
/// # Shapes
/// out has x's extents without the reduced ones, or with 1 in their place. `argmax` and `argmin` take one
/// dimension. Reducing nothing (a reduced extent of 0) gives 0, 1, false or true; mean, extremes and places of
/// nothing are refused.
///
/// # DTypes
/// sum, prod: f32, f16, bf16, f64, i64, i32; extremes and places: also u8; mean: floats; any, all: bool. f16 and
/// bf16 accumulate in f32, and out may be f32. Integers wrap. Places are i32.
///
/// # Layout
/// Any strides.
///
/// # Determinism
/// `RunToRun` and `BatchInvariant`: a fixed tree over the reduced elements.
///
/// # Cost
/// One operation per element of x.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself).
#[derive(Clone, Debug, PartialEq)]
pub struct ReduceSpec {
    kind: ReduceKind,
    x: TensorSpec,
    reduced: [bool; MAX_RANK],
    keep_dims: bool,
    out: TensorSpec,
}

impl ReduceSpec {
    /// The reduction of x over `dims` into out; `keep_dims` leaves extents of 1 behind.
    pub fn new(
        kind: ReduceKind,
        x: &TensorSpec,
        dims: &[usize],
        keep_dims: bool,
        out: &TensorSpec,
    ) -> Result<Self> {
        let want = Self::out_spec(kind, x, dims, keep_dims)?;
        expect_dims(kind.name(), "out", out, want.dims())?;
        if want.dtype().is_float() {
            expect_dtype(
                kind.name(),
                "out",
                out,
                &[want.dtype(), super::rounding::compute_type(want.dtype())],
            )?;
        } else {
            expect_dtype(kind.name(), "out", out, &[want.dtype()])?;
        }
        expect_writable(kind.name(), "out", out)?;
        let reduced = flags(kind.name(), x, dims)?;
        Ok(Self { kind, x: *x, reduced, keep_dims, out: *out })
    }

    /// The result: contiguous, of x's type (i32 for places).
    pub fn out_spec(kind: ReduceKind, x: &TensorSpec, dims: &[usize], keep_dims: bool) -> Result<TensorSpec> {
        let op = kind.name();
        expect_dtype(op, "x", x, kind.dtypes())?;
        let reduced = flags(op, x, dims)?;
        if kind.is_place() {
            let extent = x.dims()[dims[0]];
            if dims.len() != 1 || extent > i32::MAX as usize {
                let what = format!("dimensions {dims:?} of {}, expected one of at most 2^31 − 1", x.shape());
                return Err(OpError::shape(op, what));
            }
        }
        let nothing = dims.iter().any(|&d| x.dims()[d] == 0);
        if nothing && (kind == ReduceKind::Mean || kind.is_place() || is_extreme(kind)) {
            return Err(OpError::shape(op, format!("dimensions {dims:?} of {} hold nothing", x.shape())));
        }
        let extents: SmallVec<[usize; 8]> = (0..x.rank())
            .filter(|&d| keep_dims || !reduced[d])
            .map(|d| if reduced[d] { 1 } else { x.dims()[d] })
            .collect();
        let dtype = if kind.is_place() { DType::I32 } else { x.dtype() };
        Ok(TensorSpec::new(dtype, Shape::new(&extents)?))
    }

    /// Which reduction.
    pub fn kind(&self) -> ReduceKind {
        self.kind
    }
    /// What is reduced.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Whether reduced dimensions stay, with extent 1.
    pub fn keep_dims(&self) -> bool {
        self.keep_dims
    }
    /// Whether dimension `dim` of x is reduced.
    pub fn is_reduced(&self, dim: usize) -> bool {
        self.reduced.get(dim).copied().unwrap_or(false)
    }
    /// How many elements make one result.
    pub fn count(&self) -> usize {
        self.x.dims().iter().zip(&self.reduced).filter(|(_, r)| **r).map(|(d, _)| d).product()
    }
}

fn is_extreme(kind: ReduceKind) -> bool {
    matches!(kind, ReduceKind::Max | ReduceKind::Min)
}

fn flags(op: &'static str, x: &TensorSpec, dims: &[usize]) -> Result<[bool; MAX_RANK]> {
    let mut reduced = [false; MAX_RANK];
    for &dim in dims {
        if dim >= x.rank() || core::mem::replace(&mut reduced[dim], true) {
            let what = format!("dimensions {dims:?} of {}: {dim} is missing or named twice", x.shape());
            return Err(OpError::shape(op, what));
        }
    }
    if dims.is_empty() {
        return Err(OpError::shape(op, format!("no dimension of {} is named, name one at least", x.shape())));
    }
    Ok(reduced)
}

impl Contract for ReduceSpec {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, self.x.numel() as u64)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        // The elements of each result, in logical order.
        let mut groups: Vec<Vec<f64>> = vec![Vec::new(); self.out.numel()];
        for (index, &value) in inputs[0].iter().enumerate() {
            let (mut rest, mut place, mut step) = (index, 0, 1);
            for dim in (0..self.x.rank()).rev() {
                let extent = self.x.dims()[dim];
                if !self.reduced[dim] {
                    place += rest % extent * step;
                    step *= extent;
                }
                rest /= extent;
            }
            groups[place].push(value);
        }
        let dtype = self.x.dtype();
        let whole = |values: &[f64], start: i128, f: fn(i128, i128) -> i128| {
            wrapped(dtype, values.iter().fold(start, |acc, &v| wrapped(dtype, f(acc, v as i128)) as i128))
        };
        let extreme = |values: &[f64], f: fn(f64, f64) -> f64| {
            values.iter().copied().reduce(|a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { f(a, b) })
        };
        let place = |values: &[f64], wanted: Ordering| {
            let better = |best: usize, i: usize| nan_greatest(values[i], values[best]) == wanted;
            (1..values.len()).fold(0, |best, i| if better(best, i) { i } else { best }) as f64
        };
        let result = |values: &Vec<f64>| match self.kind {
            ReduceKind::Sum if dtype.is_int() => whole(values, 0, |a, b| a + b),
            ReduceKind::Prod if dtype.is_int() => whole(values, 1, |a, b| a * b),
            ReduceKind::Sum => values.iter().sum(),
            ReduceKind::Prod => values.iter().product(),
            ReduceKind::Mean => values.iter().sum::<f64>() / values.len() as f64,
            ReduceKind::Max => extreme(values, f64::max).unwrap_or(f64::NAN),
            ReduceKind::Min => extreme(values, f64::min).unwrap_or(f64::NAN),
            ReduceKind::ArgMax => place(values, Ordering::Greater),
            ReduceKind::ArgMin => place(values, Ordering::Less),
            ReduceKind::Any => f64::from(u8::from(values.iter().any(|&v| v != 0.0))),
            ReduceKind::All => f64::from(u8::from(values.iter().all(|&v| v != 0.0))),
        };
        vec![groups.iter().map(result).collect()]
    }

    /// Sums of elements in [−1, 1] and products of elements near 1, accumulated in the compute type in any
    /// order; a mean divides the sum's error by the count and adds one rounding.
    fn tolerance(&self) -> Vec<Tolerance> {
        let (dtype, count) = (self.out.dtype(), self.count());
        vec![match self.kind {
            ReduceKind::Sum => summed(dtype, count),
            ReduceKind::Prod => multiplied(dtype, count + 1),
            ReduceKind::Mean => {
                let sum = summed(dtype, count);
                Tolerance { abs: sum.abs / count.max(1) as f64, rel: 0.0 }.plus(multiplied(dtype, 1))
            }
            _ => Tolerance::EXACT,
        }]
    }
}

impl Cases for ReduceSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        let shapes: [(&str, &[usize], &[usize]); 11] = [
            ("empty_kept", &[0, 5], &[1]),
            ("empty_reduced", &[4, 0], &[1]),
            ("one", &[1], &[0]),
            ("row", &[1, 37], &[1]),
            ("unaligned", &[3, 131], &[1]),
            ("typical", &[16, 256], &[1]),
            ("long", &[2, 9001], &[1]),
            ("columns", &[67, 45], &[0]),
            ("middle", &[3, 29, 18], &[1]),
            ("outer_and_inner", &[5, 6, 7], &[0, 2]),
            ("everything", &[4, 3, 11], &[0, 1, 2]),
        ];
        for kind in ReduceKind::ALL {
            for &dtype in kind.dtypes() {
                let name = |edge: &str| format!("{}/{dtype}/{edge}", kind.name());
                let fill = |case: Case<Self>| match kind {
                    ReduceKind::Prod if dtype.is_float() => case.fill("x", Fill::Range(0.95, 1.05)),
                    // Signed powers of two: exact in f64 at every step, also where they wrap.
                    ReduceKind::Prod => case.fill("x", Fill::Values(vec![1.0, -1.0, 2.0, 1.0, -2.0])),
                    // Half of them are never all true or all false.
                    ReduceKind::All => {
                        case.fill("x", Fill::Values([vec![1.0; 40], vec![0.0], vec![1.0; 36]].concat()))
                    }
                    ReduceKind::Any => {
                        case.fill("x", Fill::Values([vec![0.0; 40], vec![1.0], vec![0.0; 36]].concat()))
                    }
                    _ => case,
                };
                for (edge, extents, dims) in shapes {
                    let x = TensorSpec::of(dtype, extents)?;
                    for keep_dims in [false, true] {
                        // Places of several dimensions and extremes of nothing have no meaning.
                        let Ok(out) = Self::out_spec(kind, &x, dims, keep_dims) else { continue };
                        let case = Case::new(name(edge), Self::new(kind, &x, dims, keep_dims, &out)?);
                        cases.push(fill(case));
                    }
                }
                let window = TensorSpec::of(dtype, &[9, 80])?.narrow(1, 5, 61)?.narrow(0, 2, 6)?;
                let wide = TensorSpec::of(window.dtype(), &[19, 4, 23])?.transpose(0, 2)?;
                for (edge, x, dim) in [
                    ("strided_rows", window, 1),
                    ("strided_columns", window, 0),
                    ("strided_transposed", wide, 2),
                    (
                        "broadcast",
                        TensorSpec::of(dtype, &[1, 9])?.broadcast_to(window.narrow(1, 0, 9)?.shape())?,
                        0,
                    ),
                ] {
                    let out = Self::out_spec(kind, &x, &[dim], false)?;
                    cases.push(fill(Case::new(name(edge), Self::new(kind, &x, &[dim], false, &out)?)));
                }
                if dtype.is_float() {
                    let x = TensorSpec::of(dtype, &[6, 50])?;
                    let out = Self::out_spec(kind, &x, &[1], false)?;
                    let special = [vec![0.5; 70], vec![f64::NAN], vec![-0.5; 60], vec![f64::INFINITY, 1.0]];
                    let case = Case::new(name("special"), Self::new(kind, &x, &[1], false, &out)?);
                    if kind != ReduceKind::Prod {
                        cases.push(case.fill("x", Fill::Values(special.concat())));
                    }
                    if !kind.is_place() && matches!(dtype, DType::F16 | DType::BF16) {
                        let wide = TensorSpec::of(DType::F32, &[6])?;
                        cases.push(fill(Case::new(
                            name("wide_out"),
                            Self::new(kind, &x, &[1], false, &wide)?,
                        )));
                    }
                }
            }
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduce(kind: ReduceKind, dims: &[usize], over: &[usize], x: &[f64]) -> Vec<f64> {
        let dtype = if matches!(kind, ReduceKind::Any | ReduceKind::All) { DType::Bool } else { DType::F32 };
        let x_spec = TensorSpec::of(dtype, dims).unwrap();
        let out = ReduceSpec::out_spec(kind, &x_spec, over, false).unwrap();
        ReduceSpec::new(kind, &x_spec, over, false, &out).unwrap().reference(&[x]).remove(0)
    }

    #[test]
    fn reductions_meet_values_known_by_hand() {
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(reduce(ReduceKind::Sum, &[2, 3], &[1], &x), [6.0, 15.0]);
        assert_eq!(reduce(ReduceKind::Sum, &[2, 3], &[0], &x), [5.0, 7.0, 9.0]);
        assert_eq!(reduce(ReduceKind::Mean, &[2, 3], &[0, 1], &x), [3.5]);
        assert_eq!(reduce(ReduceKind::Prod, &[6], &[0], &x), [720.0]);
        assert_eq!(reduce(ReduceKind::Max, &[3, 2], &[1], &x), [2.0, 4.0, 6.0]);
        assert_eq!(reduce(ReduceKind::All, &[2, 2], &[1], &[1.0, 1.0, 0.0, 1.0]), [1.0, 0.0]);
    }

    #[test]
    fn places_prefer_nan_then_the_lowest_of_equals() {
        assert_eq!(reduce(ReduceKind::ArgMax, &[4], &[0], &[1.0, 3.0, 3.0, 2.0]), [1.0]);
        assert_eq!(reduce(ReduceKind::ArgMax, &[4], &[0], &[9.0, f64::NAN, f64::NAN, 2.0]), [1.0]);
        assert_eq!(reduce(ReduceKind::ArgMin, &[4], &[0], &[f64::NAN, 3.0, 1.0, 1.0]), [2.0]);
        assert!(reduce(ReduceKind::Max, &[2], &[0], &[1.0, f64::NAN])[0].is_nan());
    }

    #[test]
    fn reductions_of_nothing_are_neutral_or_refused() {
        assert_eq!(reduce(ReduceKind::Sum, &[2, 0], &[1], &[]), [0.0, 0.0]);
        assert_eq!(reduce(ReduceKind::Prod, &[0], &[0], &[]), [1.0]);
        assert_eq!(reduce(ReduceKind::All, &[0], &[0], &[]), [1.0]);
        let x = TensorSpec::of(DType::F32, &[2, 0]).unwrap();
        for kind in [ReduceKind::Max, ReduceKind::Min, ReduceKind::Mean, ReduceKind::ArgMax] {
            assert!(ReduceSpec::out_spec(kind, &x, &[1], false).is_err(), "{}", kind.name());
        }
    }

    #[test]
    fn dimensions_are_checked() {
        let x = TensorSpec::of(DType::F32, &[2, 3]).unwrap();
        for dims in [&[2][..], &[0, 0], &[]] {
            assert!(ReduceSpec::out_spec(ReduceKind::Sum, &x, dims, false).is_err(), "{dims:?}");
        }
        assert!(ReduceSpec::out_spec(ReduceKind::ArgMax, &x, &[0, 1], false).is_err());
        let kept = ReduceSpec::out_spec(ReduceKind::Sum, &x, &[0], true).unwrap();
        assert_eq!(kept.dims(), [1, 3]);
    }

    #[test]
    fn every_case_is_legal() {
        assert!(ReduceSpec::cases().unwrap().len() > 600);
    }
}
