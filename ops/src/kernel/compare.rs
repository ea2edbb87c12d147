//! Comparisons of two operands with broadcasting; the result is bool.

use super::Rhs;
use super::broadcast::{joint_shape, stretched};
use super::edges::{MOVABLE, edges};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, Operand, Result, TensorSpec, Tolerance, expect_dims,
    expect_dtype, expect_writable, streaming_cost,
};

/// Which relation [`CompareSpec`] tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CompareKind {
    /// `a = b`.
    Eq,
    /// `a ≠ b`; true with NaN.
    Ne,
    /// `a < b`.
    Lt,
    /// `a ≤ b`.
    Le,
    /// `a > b`.
    Gt,
    /// `a ≥ b`.
    Ge,
}

impl CompareKind {
    /// Every relation.
    pub const ALL: [CompareKind; 6] = [
        CompareKind::Eq,
        CompareKind::Ne,
        CompareKind::Lt,
        CompareKind::Le,
        CompareKind::Gt,
        CompareKind::Ge,
    ];

    /// The operator's name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            CompareKind::Eq => "eq",
            CompareKind::Ne => "ne",
            CompareKind::Lt => "lt",
            CompareKind::Le => "le",
            CompareKind::Gt => "gt",
            CompareKind::Ge => "ge",
        }
    }

    /// Whether the relation holds.
    pub fn apply<T: PartialOrd>(self, a: T, b: T) -> bool {
        match self {
            CompareKind::Eq => a == b,
            CompareKind::Ne => a != b,
            CompareKind::Lt => a < b,
            CompareKind::Le => a <= b,
            CompareKind::Gt => a > b,
            CompareKind::Ge => a >= b,
        }
    }
}

/// Compares two operands element by element.
///
/// `out[i] = a[i] ∘ b[i]`, or `a[i] ∘ value`
///
/// # Shapes
/// a and b broadcast to out: trailing dimensions aligned, extents of 1 repeated. Any extent may be zero.
///
/// # DTypes
/// a and b of one type out of f32, f16, bf16, f64, i64, i32, i8, u8, bool; out bool. A number is rounded to f32
/// (f64 for f64) and compared there; for integers it must be a value of the type.
///
/// # Layout
/// Any strides.
///
/// # Determinism
/// Every level. NaN equals nothing, is ordered with nothing, and differs from everything; −0 equals +0.
///
/// # Cost
/// One operation per element of out.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself), `Attribute` (number not of the type).
#[derive(Clone, Debug, PartialEq)]
pub struct CompareSpec {
    kind: CompareKind,
    a: TensorSpec,
    b: Rhs,
    out: TensorSpec,
}

impl CompareSpec {
    /// The relation of two tensors.
    pub fn new(kind: CompareKind, a: &TensorSpec, b: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        let want = Self::out_spec(kind, a, b)?;
        Self { kind, a: *a, b: Rhs::Tensor(*b), out: *out }.checked(want)
    }

    /// The relation of a tensor and a number.
    pub fn scalar(kind: CompareKind, a: &TensorSpec, value: f64, out: &TensorSpec) -> Result<Self> {
        expect_dtype(kind.name(), "a", a, &MOVABLE)?;
        let b = Rhs::scalar(kind.name(), a.dtype(), value)?;
        Self { kind, a: *a, b, out: *out }.checked(TensorSpec::new(DType::Bool, *a.shape()))
    }

    /// The result for two tensors: contiguous bool of their joint shape.
    pub fn out_spec(kind: CompareKind, a: &TensorSpec, b: &TensorSpec) -> Result<TensorSpec> {
        expect_dtype(kind.name(), "a", a, &MOVABLE)?;
        expect_dtype(kind.name(), "b", b, &[a.dtype()])?;
        Ok(TensorSpec::new(DType::Bool, joint_shape(kind.name(), ("a", a), ("b", b))?))
    }

    fn checked(self, want: TensorSpec) -> Result<Self> {
        expect_dims(self.kind.name(), "out", &self.out, want.dims())?;
        expect_dtype(self.kind.name(), "out", &self.out, &[DType::Bool])?;
        expect_writable(self.kind.name(), "out", &self.out)?;
        Ok(self)
    }

    /// Which relation.
    pub fn kind(&self) -> CompareKind {
        self.kind
    }
    /// First operand.
    pub fn a(&self) -> &TensorSpec {
        &self.a
    }
    /// Second operand.
    pub fn b(&self) -> &Rhs {
        &self.b
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
}

impl Contract for CompareSpec {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "a", spec: &self.a, access: Access::Read });
        if let Rhs::Tensor(spec) = &self.b {
            visit(Operand { name: "b", spec, access: Access::Read });
        }
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, self.out.numel() as u64)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let shape = self.out.shape();
        let a = stretched(inputs[0], self.a.shape(), shape);
        let b = self.b.values(inputs, shape);
        vec![a.into_iter().zip(b).map(|(a, b)| f64::from(u8::from(self.kind.apply(a, b)))).collect()]
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }
}

impl Cases for CompareSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for kind in CompareKind::ALL {
            for dtype in MOVABLE {
                let name = |edge: &str| format!("{}/{dtype}/{edge}", kind.name());
                // Few distinct values, so that equality happens.
                let values = match dtype {
                    DType::Bool => vec![0.0, 1.0, 1.0],
                    DType::U8 => vec![0.0, 1.0, 200.0, 7.0],
                    _ => vec![0.0, -1.0, 2.0, -0.0, 1.0, -3.0, 2.0],
                };
                let few = |case: Case<Self>| case.fill("a", Fill::Values(values.clone()));
                for edge in edges(dtype, DType::Bool)? {
                    let b = TensorSpec::new(dtype, *edge.x.shape());
                    cases.push(few(Case::new(name(edge.name), Self::new(kind, &edge.x, &b, &edge.out)?)));
                }
                let (a, b) = (TensorSpec::of(dtype, &[5, 1, 33])?, TensorSpec::of(dtype, &[4, 1])?);
                let both = Self::new(kind, &a, &b, &Self::out_spec(kind, &a, &b)?)?;
                cases.push(few(Case::new(name("broadcast_both"), both)));
                let out = TensorSpec::of(DType::Bool, a.dims())?;
                cases.push(few(Case::new(name("number"), Self::scalar(kind, &a, 1.0, &out)?)));
                if dtype.is_float() {
                    let x = TensorSpec::of(dtype, &[35])?;
                    let spec = Self::new(kind, &x, &x, &TensorSpec::of(DType::Bool, &[35])?)?;
                    let case = Case::new(name("special"), spec)
                        .fill("a", Fill::Values(vec![f64::NAN, 0.0, f64::INFINITY, 1.0, f64::NEG_INFINITY]))
                        .fill("b", Fill::Values(vec![f64::NAN, -0.0, f64::INFINITY, 1.0, 2.0, -1.0, 0.0]));
                    cases.push(case);
                }
            }
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_meet_values_known_by_hand() {
        let x = TensorSpec::of(DType::F32, &[4]).unwrap();
        let out = TensorSpec::of(DType::Bool, &[4]).unwrap();
        let (a, b) = ([1.0, 2.0, f64::NAN, 0.0], [2.0, 2.0, f64::NAN, -0.0]);
        for (kind, want) in [
            (CompareKind::Eq, [0.0, 1.0, 0.0, 1.0]),
            (CompareKind::Ne, [1.0, 0.0, 1.0, 0.0]),
            (CompareKind::Lt, [1.0, 0.0, 0.0, 0.0]),
            (CompareKind::Le, [1.0, 1.0, 0.0, 1.0]),
            (CompareKind::Gt, [0.0; 4]),
            (CompareKind::Ge, [0.0, 1.0, 0.0, 1.0]),
        ] {
            let spec = CompareSpec::new(kind, &x, &x, &out).unwrap();
            assert_eq!(spec.reference(&[&a, &b]), [want.to_vec()], "{}", kind.name());
        }
    }

    #[test]
    fn the_result_is_bool() {
        let x = TensorSpec::of(DType::F32, &[4]).unwrap();
        let e = CompareSpec::new(CompareKind::Lt, &x, &x, &x).unwrap_err();
        assert_eq!(e.to_string(), "lt: out is f32, expected bool");
    }

    #[test]
    fn every_case_is_legal() {
        assert!(CompareSpec::cases().unwrap().len() > 600);
    }
}
