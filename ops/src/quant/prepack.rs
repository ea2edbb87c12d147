//! Prepack and unpack: a weight into the form a backend computes on fastest, and exactly back.
//!
//! What the bytes mean is the backend's affair; the contract is that `unpack ∘ prepack` changes no bit.

use super::weight::{PackedSpec, WeightSpec};
use crate::{
    Access, Case, Cases, Contract, Cost, OpError, Operand, Result, Tolerance, expect_writable, streaming_cost,
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

impl Cases for PrepackSpec {
    /// None: what a backend packs into is its own. Conformance packs the weights of every scheme and unpacks
    /// them again.
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
    use super::super::{QuantScheme, QuantSpec};
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
}
