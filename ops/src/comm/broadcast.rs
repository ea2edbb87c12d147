//! Copies the tensor of one rank to all.

use super::collective::{at_odd_offset, collective_cost, expect_movable, movable};
use super::{Collective, CollectiveCases, GroupCase, Part, Ranks, Signature};
use crate::{Access, Cost, Operand, Result, TensorSpec, Tolerance};

const OP: &str = "broadcast";

/// Copies the tensor of the root to every rank.
///
/// `x = x of the root`
///
/// # Shapes
/// x of the same number of elements on every rank; read on the root, written elsewhere. Any extent may be zero.
///
/// # DTypes
/// Any of at least a byte, the same on all ranks. Bits are moved, never converted.
///
/// # Layout
/// Contiguous, from any offset.
///
/// # Determinism
/// Every level: bits are moved.
///
/// # Cost
/// The root's: `(world_size − 1) · bytes`.
///
/// # Errors
/// `DType`, `Layout`, `Attribute` (no such root). Ranks that do not agree, or do not come: `Collective`.
#[derive(Clone, Debug, PartialEq)]
pub struct BroadcastSpec {
    ranks: Ranks,
    root: u32,
    x: TensorSpec,
}

impl BroadcastSpec {
    /// This rank's part.
    pub fn new(ranks: Ranks, root: u32, x: &TensorSpec) -> Result<Self> {
        ranks.expect_peer(OP, "root", root)?;
        expect_movable(OP, "x", x)?;
        Ok(Self { ranks, root, x: *x })
    }

    /// The rank that gives.
    pub fn root(&self) -> u32 {
        self.root
    }
    /// Whether this rank gives.
    pub fn is_root(&self) -> bool {
        self.ranks.rank() == self.root
    }
    /// What is given or filled.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
}

impl Collective for BroadcastSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn ranks(&self) -> Ranks {
        self.ranks
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        let access = if self.is_root() { Access::Read } else { Access::Write };
        visit(Operand { name: "x", spec: &self.x, access });
    }

    fn signature(&self) -> Signature {
        let part = Part { peer: 0, dtype: self.x.dtype(), numel: self.x.numel() };
        Signature { root: Some(self.root), alike: vec![part], ..Signature::of(OP) }
    }

    fn cost(&self) -> Cost {
        let sent = (self.x.bytes() as u64).saturating_mul(self.ranks.others());
        collective_cost(self, 0, if self.is_root() { sent } else { 0 })
    }

    fn reference(parts: &[Self], inputs: &[Vec<&[f64]>]) -> Vec<Vec<Vec<f64>>> {
        let result = |part: &Self| match part.is_root() {
            true => Vec::new(),
            false => vec![inputs[part.root as usize][0].to_vec()],
        };
        parts.iter().map(result).collect()
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        if self.is_root() { Vec::new() } else { vec![Tolerance::EXACT] }
    }
}

impl CollectiveCases for BroadcastSpec {
    fn cases(world_size: u32) -> Result<Vec<GroupCase<Self>>> {
        let mut cases = Vec::new();
        for dtype in movable() {
            for (edge, x) in [
                ("empty", TensorSpec::of(dtype, &[0, 4])?),
                ("one", TensorSpec::of(dtype, &[])?),
                ("unaligned", TensorSpec::of(dtype, &[3, 37])?),
                ("offset", at_odd_offset(dtype, &[45])?),
                ("typical", TensorSpec::of(dtype, &[16, 64])?),
            ] {
                for root in [0, world_size - 1] {
                    let name = format!("{dtype}/{edge}/root_{root}");
                    cases.push(GroupCase::new(name, world_size, |ranks| Self::new(ranks, root, &x))?);
                }
            }
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn the_root_reads_and_the_others_write() {
        let x = TensorSpec::of(DType::I32, &[5]).unwrap();
        let parts: Vec<_> =
            (0..3).map(|r| BroadcastSpec::new(Ranks::new(r, 3).unwrap(), 1, &x).unwrap()).collect();
        let costs: Vec<u64> = parts.iter().map(|part| part.cost().bytes_comm).collect();
        assert_eq!(costs, [0, 40, 0]);
        let given = [1.0, 2.0, 3.0, 4.0, 5.0];
        let results = BroadcastSpec::reference(&parts, &[vec![], vec![&given], vec![]]);
        assert_eq!(results, [vec![given.to_vec()], vec![], vec![given.to_vec()]]);
    }

    #[test]
    fn codes_of_half_a_byte_and_gaps_are_refused() {
        let ranks = Ranks::new(0, 2).unwrap();
        let x = TensorSpec::of(DType::I4, &[4]).unwrap();
        assert!(BroadcastSpec::new(ranks, 0, &x).unwrap_err().to_string().contains("view it as u8"));
        let gaps = TensorSpec::of(DType::F32, &[4, 4]).unwrap().transpose(0, 1).unwrap();
        assert!(BroadcastSpec::new(ranks, 0, &gaps).is_err());
    }
}
