//! Conversion between element types.

use super::edges::{Edge, FLOATS, MOVABLE, edges};
use super::rounding::wrapped;
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, Operand, Result, TensorSpec, Tolerance, expect_dims,
    expect_dtype, expect_writable, rounded, streaming_cost,
};

const OP: &str = "cast";

/// Types that numbers are only stored in.
const STORED: [DType; 6] = [DType::F8E4M3, DType::F8E5M2, DType::F4E2M1, DType::E8M0, DType::I4, DType::U4];

/// Converts a tensor to another element type.
///
/// `out[i] = convert(x[i])`
///
/// # Shapes
/// x and out alike; any extent may be zero.
///
/// # DTypes
/// Between any two of f64, f32, f16, bf16, i64, i32, i8, u8, bool. To a float: the nearest, ties to even, one
/// rounding. Float to integer: truncates, saturates, NaN gives 0. Integer to integer: keeps the low bits. To
/// bool: `x ≠ 0`, so NaN is true. From bool: 0 or 1. (What Rust's `as` does.)
///
/// Also between one of f64, f32, f16, bf16 and one of f8e4m3, f8e5m2, f4e2m1, e8m0, i4, u4, by the codecs of
/// [`crate::codec`]: f8e4m3 and f4e2m1 saturate, f8e5m2 overflows to infinity.
///
/// # Layout
/// Any strides.
///
/// # Determinism
/// Every level.
///
/// # Cost
/// One operation per element.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself).
#[derive(Clone, Debug, PartialEq)]
pub struct CastSpec {
    x: TensorSpec,
    out: TensorSpec,
}

impl CastSpec {
    /// The conversion of x to out's element type.
    pub fn new(x: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        // Storage types are converted by way of a float; x of any type has a conversion.
        let accepted = match (STORED.contains(&x.dtype()), FLOATS.contains(&x.dtype())) {
            (true, _) => FLOATS.to_vec(),
            (_, true) => [&MOVABLE[..], &STORED].concat(),
            _ => MOVABLE.to_vec(),
        };
        expect_dtype(OP, "out", out, &accepted)?;
        expect_dims(OP, "out", out, x.dims())?;
        expect_writable(OP, "out", out)?;
        Ok(Self { x: *x, out: *out })
    }

    /// Source.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
}

impl Contract for CastSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, self.out.numel() as u64)
    }

    /// Rounded to out's type: a conversion is exact.
    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let (from, to) = (self.x.dtype(), self.out.dtype());
        let convert = |&x: &f64| match from.is_int() && to.is_int() {
            true => wrapped(to, x as i128),
            false => rounded(to, x),
        };
        vec![inputs[0].iter().map(convert).collect()]
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }
}

/// Extents and layouts for types of which two share a byte: rows are contiguous, the other side's need not be.
fn half_byte_edges(from: DType, to: DType) -> Result<Vec<Edge>> {
    let mut edges = Vec::new();
    let contiguous: [(&'static str, &[usize]); 7] = [
        ("empty", &[0]),
        ("empty_inner", &[3, 0]),
        ("scalar", &[]),
        ("one", &[1]),
        ("unaligned", &[3, 37]),
        ("typical", &[4, 64]),
        ("chunks", &[3, 8211]),
    ];
    for (name, dims) in contiguous {
        edges.push(Edge { name, x: TensorSpec::of(from, dims)?, out: TensorSpec::of(to, dims)? });
    }
    let window = |d, start| TensorSpec::of(d, &[6, 54])?.narrow(1, start, 35)?.narrow(0, 1, 4);
    edges.push(Edge { name: "strided_rows", x: window(from, 2)?, out: window(to, 10)? });
    let apart = |d: DType| match d.is_sub_byte() {
        true => TensorSpec::of(d, &[19, 7]),
        false => TensorSpec::of(d, &[7, 20])?.transpose(0, 1)?.narrow(0, 1, 19),
    };
    edges.push(Edge { name: "strided_transposed", x: apart(from)?, out: apart(to)? });
    Ok(edges)
}

/// What a float may hold that matters to a storage type: ties, the ends of every range, what is no number.
fn near_the_ends() -> Vec<f64> {
    let ties =
        [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 1.0625, 1.1875, 17.0, 19.0, 0.0009765625, 0.0029296875];
    let ends = [5.99, 6.0, 7.0, 447.0, 448.0, 464.0, 480.0, 57344.0, 61439.0, 61440.0, 1e30, 2e38, 1e-30];
    let ties_and_ends = ties.into_iter().chain(ends).chain([1e-39, 9e-39, 1.5, 3.0, 7.9, 8.0, 15.5, 16.0]);
    let mut values: Vec<f64> = ties_and_ends.flat_map(|x| [x, -x]).collect();
    values.extend([0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, -1e-300]);
    values
}

/// The conversions between floats and storage types.
fn stored_cases() -> Result<Vec<Case<CastSpec>>> {
    let mut cases = Vec::new();
    for stored in STORED {
        let codes = (0..=255).filter_map(|code| crate::codec::code_value(stored, code)).map(f64::from);
        let codes: Vec<f64> = codes.collect();
        for float in FLOATS {
            for (from, to) in [(float, stored), (stored, float)] {
                let name = |edge: &str| format!("cast/{from}_{to}/{edge}");
                let fill = if from == stored { codes.clone() } else { near_the_ends() };
                let edges = if stored.is_sub_byte() { half_byte_edges(from, to)? } else { edges(from, to)? };
                for edge in edges {
                    let case = Case::new(name(edge.name), CastSpec::new(&edge.x, &edge.out)?);
                    cases.push(case.fill("x", Fill::Values(fill.clone())));
                }
                let [x, out] = [from, to].map(|d| TensorSpec::of(d, &[3, 1001]));
                let (low, high) = if stored == DType::E8M0 { (0.0, 3.0) } else { (-9.0, 9.0) };
                let case = Case::new(name("numbers"), CastSpec::new(&x?, &out?)?);
                cases.push(case.fill("x", Fill::Range(low, high)));
            }
        }
    }
    Ok(cases)
}

impl Cases for CastSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = stored_cases()?;
        for from in MOVABLE {
            for to in MOVABLE {
                let name = |edge: &str| format!("cast/{from}_{to}/{edge}");
                let wide = if from == DType::Bool { Fill::Unit } else { Fill::Range(-300.0, 300.0) };
                for edge in edges(from, to)? {
                    let case = Case::new(name(edge.name), Self::new(&edge.x, &edge.out)?);
                    cases.push(case.fill("x", wide.clone()));
                }
                let special = match from {
                    DType::F64 | DType::F32 | DType::F16 | DType::BF16 => vec![
                        0.0,
                        -0.0,
                        0.4,
                        -0.6,
                        f64::NAN,
                        f64::INFINITY,
                        f64::NEG_INFINITY,
                        1.0 + 2f64.powi(-11) + 2f64.powi(-40),
                        65519.9,
                        65520.0,
                        -1e300,
                        3e9,
                        -3e9,
                        1e19,
                        6e-8,
                        2.98e-8,
                        1e-40,
                        255.7,
                        -129.0,
                    ],
                    DType::I64 => {
                        vec![0.0, 255.0, 256.0, -129.0, 2147483648.0, -2147483649.0, 9007199254740992.0]
                    }
                    DType::I32 => {
                        vec![0.0, 16777217.0, -16777219.0, 2147483647.0, -2147483648.0, 65536.0, 257.0]
                    }
                    _ => vec![0.0, 1.0, 127.0, 128.0, 255.0, -1.0, -128.0],
                };
                let (x, out) = (TensorSpec::of(from, &[41])?, TensorSpec::of(to, &[41])?);
                cases.push(Case::new(name("special"), Self::new(&x, &out)?).fill("x", Fill::Values(special)));
            }
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cast(from: DType, to: DType, x: f64) -> f64 {
        let spec = |d| TensorSpec::of(d, &[1]).unwrap();
        CastSpec::new(&spec(from), &spec(to)).unwrap().reference(&[&[x]])[0][0]
    }

    #[test]
    fn conversions_meet_values_known_by_hand() {
        use DType::*;
        for (from, to, x, y) in [
            (F32, I32, -1.9, -1.0),
            (F32, I8, 300.0, 127.0),
            (F32, U8, -5.0, 0.0),
            (F32, I32, f64::NAN, 0.0),
            (F32, Bool, f64::NAN, 1.0),
            (F32, Bool, -0.0, 0.0),
            (I32, I8, 200.0, -56.0),
            (I32, U8, -1.0, 255.0),
            (I32, F32, 16777217.0, 16777216.0),
            (F64, F16, 65520.0, f64::INFINITY),
            (F32, BF16, 1.00390625, 1.0),
            (Bool, I64, 1.0, 1.0),
            (F32, F8E4M3, 1e9, 448.0),
            (F32, F8E5M2, 61440.0, f64::INFINITY),
            (F64, F4E2M1, 2.5, 2.0),
            (BF16, E8M0, 3.0, 2.0),
            (BF16, E8M0, 6.0, 8.0),
            (F32, I4, -9.5, -8.0),
            (U4, F16, 15.0, 15.0),
        ] {
            assert_eq!(cast(from, to, x), y, "{from} {to} {x}");
        }
    }

    #[test]
    fn types_without_a_conversion_are_refused() {
        let of = |dtype| TensorSpec::of(dtype, &[2]).unwrap();
        for (from, to) in [
            (DType::I4, DType::I8),
            (DType::I32, DType::U4),
            (DType::F8E4M3, DType::F8E5M2),
            (DType::Bool, DType::F4E2M1),
        ] {
            assert!(CastSpec::new(&of(from), &of(to)).is_err(), "{from} {to}");
        }
    }

    #[test]
    fn every_case_is_legal() {
        assert!(CastSpec::cases().unwrap().len() > 1400);
    }
}
