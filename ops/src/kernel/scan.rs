//! Running sums, products and maxima along a dimension, and the linear recurrence `h = a·h + b`.

use super::broadcast::{around, stretched};
use super::edges::FLOATS;
use super::rounding::{multiplied, summed, wrapped};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, Shape, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_writable, streaming_cost,
};
use smallvec::SmallVec;

/// Which recurrence [`ScanSpec`] runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScanKind {
    /// `h_t = h_{t−1} + x_t`.
    Sum,
    /// `h_t = h_{t−1} · x_t`.
    Prod,
    /// `h_t = max(h_{t−1}, x_t)`; NaN from the first on.
    Max,
    /// `h_t = a_t · h_{t−1} + b_t`.
    Linear,
}

impl ScanKind {
    /// The operator's name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            ScanKind::Sum => "cumulative_sum",
            ScanKind::Prod => "cumulative_prod",
            ScanKind::Max => "cumulative_max",
            ScanKind::Linear => "linear_scan",
        }
    }
}

/// Runs a recurrence along one dimension.
///
/// `out[t] = out[t−1] ∘ x[t]`, or `out[t] = a[t] · out[t−1] + b[t]`
///
/// # Shapes
/// x (b in the linear form) and out alike; a broadcasts to b. initial and last have b's extents without the
/// scanned one. An exclusive sum gives `out[t] = Σ_{s<t} x[s]`. With nothing to scan, last is initial, or 0.
///
/// # DTypes
/// f32, f16, bf16, f64, all of one type; the running value is f32 (f64 for f64) and rounded only when written.
/// Sum, product and maximum also of i32 and i64, wrapping, the maximum of u8 too. initial and last may be f32.
///
/// # Layout
/// Any strides. out may be the very view x, or the very view b.
///
/// # Determinism
/// `RunToRun` and `BatchInvariant`: the order along the dimension depends on its length only.
///
/// # Cost
/// One operation per element; two in the linear form.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out or last overlaps itself), `Attribute` (exclusive other than a sum).
///
/// # Source
/// The linear form is the recurrence of diagonal state-space layers (Gu and Dao, "Mamba", 2023, equation 2a).
#[derive(Clone, Debug, PartialEq)]
pub struct ScanSpec {
    kind: ScanKind,
    x: TensorSpec,
    decay: Option<TensorSpec>,
    initial: Option<TensorSpec>,
    out: TensorSpec,
    last: Option<TensorSpec>,
    dim: usize,
    exclusive: bool,
}

impl ScanSpec {
    /// The running sum, product or maximum of x along `dim`.
    ///
    /// # Errors
    /// As the type says; `Attribute` for [`ScanKind::Linear`], which [`ScanSpec::linear`] makes.
    pub fn cumulative(kind: ScanKind, x: &TensorSpec, dim: usize, out: &TensorSpec) -> Result<Self> {
        if kind == ScanKind::Linear {
            return Err(OpError::attribute(kind.name(), "kind", "takes two operands, use the linear form"));
        }
        expect_dtype(kind.name(), "x", x, cumulative_dtypes(kind))?;
        Self::checked(kind, x, None, dim, out)
    }

    /// The recurrence `out[t] = a[t] · out[t−1] + b[t]` along `dim` of b, from 0.
    pub fn linear(a: &TensorSpec, b: &TensorSpec, dim: usize, out: &TensorSpec) -> Result<Self> {
        let op = ScanKind::Linear.name();
        expect_dtype(op, "b", b, &FLOATS)?;
        expect_dtype(op, "a", a, &[b.dtype()])?;
        if a.shape().broadcast(b.shape()).ok() != Some(*b.shape()) {
            let what = format!("a is {}, b is {}: a does not broadcast to b", a.shape(), b.shape());
            return Err(OpError::shape(op, what));
        }
        Self::checked(ScanKind::Linear, b, Some(*a), dim, out)
    }

    fn checked(
        kind: ScanKind,
        x: &TensorSpec,
        decay: Option<TensorSpec>,
        dim: usize,
        out: &TensorSpec,
    ) -> Result<Self> {
        if dim >= x.rank() {
            return Err(OpError::shape(kind.name(), format!("{} has no dimension {dim}", x.shape())));
        }
        expect_dims(kind.name(), "out", out, x.dims())?;
        expect_dtype(kind.name(), "out", out, &[x.dtype()])?;
        expect_writable(kind.name(), "out", out)?;
        Ok(Self { kind, x: *x, decay, initial: None, out: *out, last: None, dim, exclusive: false })
    }

    /// Leaves out each element itself: `out[0] = 0`, `out[t] = Σ_{s<t} x[s]`.
    pub fn exclusive(mut self) -> Result<Self> {
        if self.kind != ScanKind::Sum {
            return Err(OpError::attribute(self.name(), "exclusive", "is for sums only"));
        }
        self.exclusive = true;
        Ok(self)
    }

    /// Starts the linear form from `initial`.
    pub fn with_initial(mut self, initial: &TensorSpec) -> Result<Self> {
        self.check_state("initial", initial)?;
        self.initial = Some(*initial);
        Ok(self)
    }

    /// Also writes the last running value of the linear form.
    pub fn with_last(mut self, last: &TensorSpec) -> Result<Self> {
        self.check_state("last", last)?;
        expect_writable(self.name(), "last", last)?;
        self.last = Some(*last);
        Ok(self)
    }

    fn check_state(&self, arg: &'static str, state: &TensorSpec) -> Result<()> {
        if self.kind != ScanKind::Linear {
            return Err(OpError::attribute(self.name(), arg, "is for the linear form only"));
        }
        expect_dims(self.name(), arg, state, self.state_shape()?.dims())?;
        let f32_unless_f64 = super::rounding::compute_type(self.x.dtype());
        expect_dtype(self.name(), arg, state, &[self.x.dtype(), f32_unless_f64])
    }

    /// The extents of initial and last: b's without the scanned one.
    pub fn state_shape(&self) -> Result<Shape> {
        let dims = self.x.dims().iter().enumerate().filter(|(i, _)| *i != self.dim).map(|(_, &d)| d);
        Shape::new(&dims.collect::<SmallVec<[usize; 8]>>())
    }

    /// Which recurrence.
    pub fn kind(&self) -> ScanKind {
        self.kind
    }
    /// What is accumulated: x, or b of the linear form.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// Factors a of the linear form.
    pub fn decay(&self) -> Option<&TensorSpec> {
        self.decay.as_ref()
    }
    /// Starting values of the linear form.
    pub fn initial(&self) -> Option<&TensorSpec> {
        self.initial.as_ref()
    }
    /// Running values.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Last running values of the linear form.
    pub fn last(&self) -> Option<&TensorSpec> {
        self.last.as_ref()
    }
    /// The scanned dimension.
    pub fn dim(&self) -> usize {
        self.dim
    }
    /// Whether each sum leaves out its own element.
    pub fn is_exclusive(&self) -> bool {
        self.exclusive
    }
}

/// The element types of the forms over one operand.
const fn cumulative_dtypes(kind: ScanKind) -> &'static [DType] {
    match kind {
        ScanKind::Max => {
            &[DType::F32, DType::F16, DType::BF16, DType::F64, DType::I32, DType::I64, DType::U8]
        }
        _ => &[DType::F32, DType::F16, DType::BF16, DType::F64, DType::I32, DType::I64],
    }
}

impl Contract for ScanSpec {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        if let Some(spec) = &self.decay {
            visit(Operand { name: "a", spec, access: Access::Read });
        }
        let name = if self.decay.is_some() { "b" } else { "x" };
        visit(Operand { name, spec: &self.x, access: Access::Read });
        if let Some(spec) = &self.initial {
            visit(Operand { name: "initial", spec, access: Access::Read });
        }
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
        if let Some(spec) = &self.last {
            visit(Operand { name: "last", spec, access: Access::Write });
        }
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        match self.kind {
            ScanKind::Linear => &[("out", "b"), ("last", "initial")],
            _ => &[("out", "x")],
        }
    }

    fn cost(&self) -> Cost {
        let per_element = if self.kind == ScanKind::Linear { 2 } else { 1 };
        streaming_cost(self, self.x.numel() as u64 * per_element)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let dtype = self.x.dtype();
        let x = inputs[usize::from(self.decay.is_some())];
        let a = self.decay.map(|a| stretched(inputs[0], a.shape(), self.x.shape()));
        let initial = self.initial.map(|_| inputs[2]);
        let (outer, extent, inner) = around(self.x.shape(), self.dim);
        let mut out = vec![0.0; x.len()];
        let mut last = vec![0.0; outer * inner];
        for (state, final_value) in last.iter_mut().enumerate() {
            let mut running = match self.kind {
                ScanKind::Prod => 1.0,
                ScanKind::Max => f64::NEG_INFINITY,
                _ => initial.map_or(0.0, |initial| initial[state]),
            };
            for t in 0..extent {
                let i = (state / inner * extent + t) * inner + state % inner;
                let before = running;
                running = match (self.kind, &a) {
                    (ScanKind::Max, _) if running.is_nan() || x[i].is_nan() => f64::NAN,
                    (ScanKind::Max, _) => running.max(x[i]),
                    (ScanKind::Linear, Some(a)) => a[i] * running + x[i],
                    (ScanKind::Prod, _) if dtype.is_int() => wrapped(dtype, running as i128 * x[i] as i128),
                    (ScanKind::Prod, _) => running * x[i],
                    _ if dtype.is_int() => wrapped(dtype, running as i128 + x[i] as i128),
                    _ => running + x[i],
                };
                out[i] = if self.exclusive { before } else { running };
            }
            *final_value = running;
        }
        match self.last {
            Some(_) => vec![out, last],
            None => vec![out],
        }
    }

    /// As sums and products of that many terms in the compute type. The recurrence with |a| ≤ 1 errs by at most
    /// one more rounding per step than a sum, of values of the same size: twice the allowance.
    fn tolerance(&self) -> Vec<Tolerance> {
        let extent = self.x.dims()[self.dim];
        let of = |dtype| match self.kind {
            ScanKind::Sum => summed(dtype, extent),
            ScanKind::Prod => multiplied(dtype, extent + 1),
            ScanKind::Max => Tolerance::EXACT,
            ScanKind::Linear => summed(dtype, 2 * extent),
        };
        [Some(&self.out), self.last.as_ref()].into_iter().flatten().map(|spec| of(spec.dtype())).collect()
    }
}

impl Cases for ScanSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        let shapes: [(&str, &[usize], usize); 9] = [
            ("empty", &[0, 5], 1),
            ("empty_scan", &[4, 0], 1),
            ("one", &[1], 0),
            ("unaligned", &[3, 37], 1),
            ("long", &[2, 1031], 1),
            ("columns", &[41, 50], 0),
            ("middle", &[3, 17, 9], 1),
            ("wide_middle", &[2, 5, 700], 1),
            ("many_rows", &[300, 6], 1),
        ];
        let layouts = |dtype: DType| -> Result<Vec<(&'static str, TensorSpec, TensorSpec, usize)>> {
            let mut list = Vec::new();
            for (name, dims, dim) in shapes {
                list.push((name, TensorSpec::of(dtype, dims)?, TensorSpec::of(dtype, dims)?, dim));
            }
            let window = TensorSpec::of(dtype, &[6, 53])?.narrow(1, 3, 35)?;
            let apart = TensorSpec::of(dtype, &[35, 7])?.transpose(0, 1)?.narrow(0, 1, 6)?;
            list.push(("strided_rows", window, apart, 1));
            list.push(("strided_columns", apart, window, 0));
            Ok(list)
        };
        for kind in [ScanKind::Sum, ScanKind::Prod, ScanKind::Max] {
            for &dtype in cumulative_dtypes(kind) {
                let fill = |case: Case<Self>| match kind {
                    ScanKind::Prod if dtype.is_float() => case.fill("x", Fill::Range(0.98, 1.02)),
                    // Signed powers of two: exact in f64 at every step, also where they wrap.
                    ScanKind::Prod => case.fill("x", Fill::Values(vec![1.0, -1.0, 2.0, 1.0, -2.0])),
                    _ => case,
                };
                for (edge, x, out, dim) in layouts(dtype)? {
                    let spec = Self::cumulative(kind, &x, dim, &out)?;
                    let name = format!("{}/{dtype}/{edge}", kind.name());
                    cases.push(fill(Case::new(name.clone(), spec.clone())));
                    if kind == ScanKind::Sum {
                        cases.push(fill(Case::new(format!("{name}_exclusive"), spec.exclusive()?)));
                    }
                }
            }
            let x = TensorSpec::of(DType::F32, &[4, 19])?;
            let special = Fill::Values([vec![0.5; 25], vec![f64::NAN], vec![-0.5; 9]].concat());
            let spec = Self::cumulative(kind, &x, 1, &x)?;
            cases.push(Case::new(format!("{}/f32/special", kind.name()), spec).fill("x", special));
        }
        for dtype in FLOATS {
            for (edge, b, out, dim) in layouts(dtype)? {
                let a = b.to_contiguous();
                let plain = Self::linear(&a, &b, dim, &out)?;
                let state = TensorSpec::new(dtype, plain.state_shape()?);
                let full = plain.clone().with_initial(&state)?.with_last(&state)?;
                cases.push(Case::new(format!("linear_scan/{dtype}/{edge}"), plain));
                cases.push(Case::new(format!("linear_scan/{dtype}/{edge}_state"), full));
            }
            // One decay per row, the state kept wide.
            let b = TensorSpec::of(dtype, &[3, 20, 9])?;
            let spec = Self::linear(&TensorSpec::of(dtype, &[3, 20, 1])?, &b, 1, &b)?;
            let wide =
                TensorSpec::new(if dtype == DType::F64 { dtype } else { DType::F32 }, spec.state_shape()?);
            let spec = spec.with_initial(&wide)?.with_last(&wide)?;
            cases.push(
                Case::new(format!("linear_scan/{dtype}/broadcast"), spec).fill("a", Fill::Range(0.5, 0.99)),
            );
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(dims: &[usize]) -> TensorSpec {
        TensorSpec::of(DType::F32, dims).unwrap()
    }

    #[test]
    fn running_values_meet_values_known_by_hand() {
        let x = f32s(&[2, 3]);
        let run = |kind, dim| {
            let spec = ScanSpec::cumulative(kind, &x, dim, &x).unwrap();
            spec.reference(&[&[1.0, 3.0, 2.0, 4.0, 0.0, 5.0]]).remove(0)
        };
        assert_eq!(run(ScanKind::Sum, 1), [1.0, 4.0, 6.0, 4.0, 4.0, 9.0]);
        assert_eq!(run(ScanKind::Sum, 0), [1.0, 3.0, 2.0, 5.0, 3.0, 7.0]);
        assert_eq!(run(ScanKind::Prod, 1), [1.0, 3.0, 6.0, 4.0, 0.0, 0.0]);
        assert_eq!(run(ScanKind::Max, 1), [1.0, 3.0, 3.0, 4.0, 4.0, 5.0]);
        let exclusive = ScanSpec::cumulative(ScanKind::Sum, &f32s(&[3]), 0, &f32s(&[3])).unwrap().exclusive();
        assert_eq!(exclusive.unwrap().reference(&[&[1.0, 3.0, 2.0]]), [vec![0.0, 1.0, 4.0]]);
    }

    #[test]
    fn the_recurrence_starts_from_the_initial_state_and_returns_the_last() {
        let b = f32s(&[3]);
        let spec = ScanSpec::linear(&f32s(&[1]), &b, 0, &b).unwrap();
        let spec = spec.with_initial(&f32s(&[])).unwrap().with_last(&f32s(&[])).unwrap();
        let got = spec.reference(&[&[0.5], &[1.0, 2.0, 3.0], &[8.0]]);
        assert_eq!(got, [vec![5.0, 4.5, 5.25], vec![5.25]]);
    }

    #[test]
    fn forms_do_not_mix() {
        let x = f32s(&[3]);
        assert!(ScanSpec::cumulative(ScanKind::Linear, &x, 0, &x).is_err());
        assert!(ScanSpec::cumulative(ScanKind::Max, &x, 0, &x).unwrap().exclusive().is_err());
        assert!(ScanSpec::cumulative(ScanKind::Sum, &x, 1, &x).is_err());
        assert!(ScanSpec::cumulative(ScanKind::Sum, &x, 0, &x).unwrap().with_last(&f32s(&[])).is_err());
        let e = ScanSpec::linear(&f32s(&[2]), &x, 0, &x).unwrap_err();
        assert_eq!(e.to_string(), "linear_scan: a is [2], b is [3]: a does not broadcast to b");
    }

    #[test]
    fn every_case_is_legal() {
        assert!(ScanSpec::cases().unwrap().len() > 250);
    }
}
