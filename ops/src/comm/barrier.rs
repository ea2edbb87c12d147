//! Waits for every rank.

use super::{Collective, CollectiveCases, GroupCase, Ranks, Signature};
use crate::{Cost, Operand, Result, Tolerance};

const OP: &str = "barrier";

/// Waits until every rank has come: later work of the stream runs when all ranks' earlier work has finished.
///
/// # Cost
/// None.
///
/// # Errors
/// Ranks that do not agree, or do not come: `Collective`.
#[derive(Clone, Debug, PartialEq)]
pub struct BarrierSpec {
    ranks: Ranks,
}

impl BarrierSpec {
    /// This rank's part.
    pub fn new(ranks: Ranks) -> Self {
        Self { ranks }
    }
}

impl Collective for BarrierSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn ranks(&self) -> Ranks {
        self.ranks
    }

    fn operands<'a>(&'a self, _: &mut dyn FnMut(Operand<'a>)) {}

    fn signature(&self) -> Signature {
        Signature::of(OP)
    }

    fn cost(&self) -> Cost {
        Cost::default()
    }

    fn reference(parts: &[Self], _: &[Vec<&[f64]>]) -> Vec<Vec<Vec<f64>>> {
        vec![Vec::new(); parts.len()]
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        Vec::new()
    }
}

impl CollectiveCases for BarrierSpec {
    fn cases(world_size: u32) -> Result<Vec<GroupCase<Self>>> {
        Ok(vec![GroupCase::new("barrier", world_size, |ranks| Ok(Self::new(ranks)))?])
    }
}
