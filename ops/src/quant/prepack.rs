//! Prepack and unpack: a weight into the form a backend computes on fastest, and exactly back.
//!
//! What the bytes mean is the backend's affair; the contract is that `unpack ∘ prepack` changes no bit.

use super::linear::{LinearSpec, case_schemes};
use super::scheme::{Offset, QuantScheme, ScaleKind};
use super::weight::{PackedSpec, QuantSpec, WeightSpec};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, OpError, Operand, Result, Tolerance, expect_writable,
    streaming_cost,
};

/// Fails unless `packed` is a form of `weight`.
fn expect_match(op: &'static str, weight: &WeightSpec, packed: &PackedSpec) -> Result<()> {
    if let WeightSpec::Packed(_) = weight {
        return Err(OpError::attribute(op, "weight", "is packed already; give a dense or quantized one"));
    }
    if (weight.n(), weight.k()) != (packed.n(), packed.k()) {
        let what = format!(
            "weight is [{}, {}], packed holds [{}, {}]",
            weight.n(),
            weight.k(),
            packed.n(),
            packed.k()
        );
        return Err(OpError::shape(op, what));
    }
    if weight.content() != packed.content() {
        let what = format!("is {:?}, the packed form holds {:?}", weight.content(), packed.content());
        return Err(OpError::attribute(op, "weight", what));
    }
    Ok(())
}

/// Packs a weight into a backend's own form.
///
/// `unpack(prepack(weight)) = weight`, bit for bit
///
/// # Shapes
/// weight `[n, k]` dense or quantized; packed `u8 [bytes]`, with the bytes and the tag the backend names.
///
/// # Layout
/// As in the weight's own contract; packed is contiguous.
///
/// # Determinism
/// Movement of bits only: the same bytes at every level.
///
/// # Cost
/// No operations; reads the weight, writes the packed bytes.
///
/// # Errors
/// `Shape` and `Attribute` when packed is not a form of this weight, `Layout`; `Data` at run time for a code
/// out of the range its scheme promises.
#[derive(Clone, Debug, PartialEq)]
pub struct PrepackSpec {
    weight: WeightSpec,
    packed: PackedSpec,
}

impl PrepackSpec {
    /// Packs `weight` into `packed`.
    pub fn new(weight: &WeightSpec, packed: &PackedSpec) -> Result<Self> {
        expect_match("prepack", weight, packed)?;
        Ok(Self { weight: weight.clone(), packed: packed.clone() })
    }

    /// What is packed.
    pub fn weight(&self) -> &WeightSpec {
        &self.weight
    }
    /// The packed form.
    pub fn packed(&self) -> &PackedSpec {
        &self.packed
    }
}

impl Contract for PrepackSpec {
    fn name(&self) -> &'static str {
        "prepack"
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        self.weight.visit(Access::Read, visit);
        visit(Operand { name: "packed", spec: self.packed.bytes(), access: Access::Write });
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, 0)
    }

    /// Empty: only the backend knows its bytes. Conformance checks the round trip instead.
    fn reference(&self, _inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        Vec::new()
    }

    /// Empty, as the reference is.
    fn tolerance(&self) -> Vec<Tolerance> {
        Vec::new()
    }
}

/// Turns a packed weight back into the tensors it was made from.
///
/// # Shapes
/// packed `u8 [bytes]`; weight `[n, k]` of the content that was packed.
///
/// # Layout
/// As in the weight's own contract; tensors may not overlap themselves.
///
/// # Determinism
/// Movement of bits only: the same bits at every level.
///
/// # Cost
/// No operations; reads the packed bytes, writes the weight.
///
/// # Errors
/// `Shape` and `Attribute` when packed is not a form of this weight, `Layout`.
#[derive(Clone, Debug, PartialEq)]
pub struct UnpackSpec {
    packed: PackedSpec,
    weight: WeightSpec,
}

impl UnpackSpec {
    /// Unpacks `packed` into `weight`.
    pub fn new(packed: &PackedSpec, weight: &WeightSpec) -> Result<Self> {
        expect_match("unpack", weight, packed)?;
        let mut writable = Ok(());
        weight.visit(Access::Write, &mut |part| {
            if writable.is_ok() {
                writable = expect_writable("unpack", part.name, part.spec);
            }
        });
        writable?;
        Ok(Self { packed: packed.clone(), weight: weight.clone() })
    }

    /// The packed form.
    pub fn packed(&self) -> &PackedSpec {
        &self.packed
    }
    /// What comes out.
    pub fn weight(&self) -> &WeightSpec {
        &self.weight
    }
}

impl Contract for UnpackSpec {
    fn name(&self) -> &'static str {
        "unpack"
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "packed", spec: self.packed.bytes(), access: Access::Read });
        self.weight.visit(Access::Write, visit);
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, 0)
    }

    /// Empty: only the backend knows its bytes. Conformance checks the round trip instead.
    fn reference(&self, _inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        Vec::new()
    }

    /// Empty, as the reference is.
    fn tolerance(&self) -> Vec<Tolerance> {
        Vec::new()
    }
}

/// A weight that a backend packs and unpacks again.
#[derive(Clone, Debug)]
pub struct RoundTrip {
    /// Content and extents.
    pub name: String,
    /// What is packed.
    pub weight: WeightSpec,
}

impl RoundTrip {
    /// The weights of every case of a linear layer, strided ones included; every scheme at extents that fill no
    /// tile; and blocks of rows shorter than, as long as, longer than and across any usual tile.
    ///
    /// # Errors
    /// None, unless the list itself is not legal.
    pub fn cases() -> Result<Vec<Self>> {
        let mut cases: Vec<Self> = Vec::new();
        for case in LinearSpec::cases()? {
            let weight = case.contract.weight().clone();
            if !cases.iter().any(|seen| seen.weight == weight) {
                cases.push(Self { name: case.name.replacen("linear", "round_trip", 1), weight });
            }
        }
        let mut add = |name: &str, scheme: QuantScheme, [n, k]: [usize; 2]| -> Result<()> {
            let weight = QuantSpec::of(scheme, n, k)?.into();
            cases.push(Self { name: format!("round_trip/{name}/{n}x{k}"), weight });
            Ok(())
        };
        for dims in [[15, 31], [16, 33], [31, 257], [100, 65]] {
            for (name, scheme) in case_schemes(dims[1])? {
                add(name, scheme, dims)?;
            }
        }
        for rows in [3, 16, 17, 20, 24, 32, 40, 128] {
            for (code, offset) in
                [(DType::U4, Offset::Min), (DType::I8, Offset::ZeroPoint), (DType::I4, Offset::None)]
            {
                let name = format!("{code}_{offset:?}_rows_{rows}");
                for dims in [[15, 32], [47, 83], [129, 64]] {
                    let scheme = |columns, scale| QuantScheme::new(code, [rows, columns], scale, offset);
                    add(&name, scheme(32, ScaleKind::F32)?, dims)?;
                    add(&format!("{name}_of_5"), scheme(5, ScaleKind::F16)?, dims)?;
                }
            }
            let scale = ScaleKind::TwoLevel { inner: DType::U8, outer: DType::F16, outer_block: 64 };
            let two_level = QuantScheme::new(DType::U4, [rows, 16], scale, Offset::Min)?;
            add(&format!("two_level_rows_{rows}"), two_level, [47, 83])?;
        }
        Ok(cases)
    }
}

impl Cases for PrepackSpec {
    /// None: what a backend packs into is its own. Conformance runs [`RoundTrip::cases`] instead.
    fn cases() -> Result<Vec<Case<Self>>> {
        Ok(Vec::new())
    }
}

impl Cases for UnpackSpec {
    /// None, as for [`PrepackSpec`].
    fn cases() -> Result<Vec<Case<Self>>> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_of_another_weight_is_refused() {
        let weight = WeightSpec::from(QuantSpec::of(QuantScheme::Q4_1, 3, 64).unwrap());
        let form = |scheme, n| {
            let content = WeightSpec::from(QuantSpec::of(scheme, n, 64).unwrap()).content();
            PackedSpec::new(content, n, 64, "test", 10).unwrap()
        };
        let packed = form(QuantScheme::Q4_1, 3);
        let spec = PrepackSpec::new(&weight, &packed).unwrap();
        assert_eq!(spec.cost().bytes_written, 10);
        assert!(UnpackSpec::new(&packed, &weight).is_ok());
        assert!(PrepackSpec::new(&weight, &form(QuantScheme::Q4_1, 4)).is_err());
        assert!(PrepackSpec::new(&weight, &form(QuantScheme::Q4_0, 3)).is_err());
        assert!(PrepackSpec::new(&WeightSpec::Packed(packed.clone()), &packed).is_err());
    }

    #[test]
    fn round_trips_have_names_of_their_own_and_can_be_unpacked() {
        let cases = RoundTrip::cases().unwrap();
        let mut names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), cases.len());
        for RoundTrip { name, weight } in &cases {
            let packed = PackedSpec::new(weight.content(), weight.n(), weight.k(), "test", 1).unwrap();
            assert!(UnpackSpec::new(&packed, weight).is_ok(), "{name}");
        }
    }
}
