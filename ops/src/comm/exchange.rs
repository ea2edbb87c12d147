//! Tensors sent from single ranks to single ranks, all at once.

use super::collective::{collective_cost, expect_movable};
use super::{Collective, CollectiveCases, GroupCase, Part, Ranks, Signature};
use crate::{Access, Cost, DType, Operand, Result, TensorSpec, Tolerance};

const OP: &str = "exchange";

/// One tensor on its way from rank to rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Leg {
    /// Goes to a rank.
    Send {
        /// To whom.
        peer: u32,
        /// What.
        spec: TensorSpec,
    },
    /// Comes from a rank.
    Recv {
        /// From whom.
        peer: u32,
        /// Into what.
        spec: TensorSpec,
    },
}

impl Leg {
    /// The other rank.
    pub fn peer(&self) -> u32 {
        match self {
            Leg::Send { peer, .. } | Leg::Recv { peer, .. } => *peer,
        }
    }

    /// The tensor.
    pub fn spec(&self) -> &TensorSpec {
        match self {
            Leg::Send { spec, .. } | Leg::Recv { spec, .. } => spec,
        }
    }

    /// Whether this rank sends it.
    pub fn is_send(&self) -> bool {
        matches!(self, Leg::Send { .. })
    }
}

/// Sends tensors to single ranks and receives others from single ranks, all at once (a ring of separate sends and
/// receives would wait for itself).
///
/// `k-th tensor received from p = k-th tensor p sends here`
///
/// Every rank of the group takes part, without tensors where it has none to send or receive; ranks that want to be
/// among themselves split the group.
///
/// # Shapes
/// Any; sent and received tensors have as many elements.
///
/// # DTypes
/// Any of at least a byte; each tensor's is its own. Bits are moved, never converted.
///
/// # Layout
/// Contiguous, from any offset.
///
/// # Determinism
/// Every level: bits are moved.
///
/// # Cost
/// The bytes that are sent to other ranks.
///
/// # Errors
/// `DType`, `Layout`, `Attribute` (no such rank). Ranks that do not agree, or do not come: `Collective`.
#[derive(Clone, Debug, PartialEq)]
pub struct ExchangeSpec {
    ranks: Ranks,
    legs: Vec<Leg>,
}

impl ExchangeSpec {
    /// This rank's part.
    pub fn new(ranks: Ranks, legs: &[Leg]) -> Result<Self> {
        for leg in legs {
            let name = if leg.is_send() { "send" } else { "recv" };
            ranks.expect_peer(OP, name, leg.peer())?;
            expect_movable(OP, name, leg.spec())?;
        }
        Ok(Self { ranks, legs: legs.to_vec() })
    }

    /// What is sent and received, in the order given.
    pub fn legs(&self) -> &[Leg] {
        &self.legs
    }

    fn parts(&self, sends: bool) -> Vec<Part> {
        let legs = self.legs.iter().filter(|leg| leg.is_send() == sends);
        legs.map(|leg| Part { peer: leg.peer(), dtype: leg.spec().dtype(), numel: leg.spec().numel() })
            .collect()
    }
}

impl Collective for ExchangeSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn ranks(&self) -> Ranks {
        self.ranks
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        for leg in &self.legs {
            visit(match leg {
                Leg::Send { spec, .. } => Operand { name: "send", spec, access: Access::Read },
                Leg::Recv { spec, .. } => Operand { name: "recv", spec, access: Access::Write },
            });
        }
    }

    fn signature(&self) -> Signature {
        Signature { sends: self.parts(true), recvs: self.parts(false), ..Signature::of(OP) }
    }

    fn cost(&self) -> Cost {
        let sent = self.legs.iter().filter(|leg| leg.is_send() && leg.peer() != self.ranks.rank());
        collective_cost(self, 0, sent.map(|leg| leg.spec().bytes() as u64).fold(0, u64::saturating_add))
    }

    fn reference(parts: &[Self], inputs: &[Vec<&[f64]>]) -> Vec<Vec<Vec<f64>>> {
        let sent = |from: usize, to: usize, nth: usize| {
            let sends = parts[from].legs.iter().filter(|leg| leg.is_send()).enumerate();
            let place = sends.filter(|(_, leg)| leg.peer() as usize == to).nth(nth).map(|(place, _)| place);
            place.map_or(Vec::new(), |place| inputs[from][place].to_vec())
        };
        let result = |to: usize| {
            let mut seen = vec![0; parts.len()];
            let recvs = parts[to].legs.iter().filter(|leg| !leg.is_send());
            recvs
                .map(|leg| {
                    let from = leg.peer() as usize;
                    seen[from] += 1;
                    sent(from, to, seen[from] - 1)
                })
                .collect()
        };
        (0..parts.len()).map(result).collect()
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        self.legs.iter().filter(|leg| !leg.is_send()).map(|_| Tolerance::EXACT).collect()
    }
}

impl CollectiveCases for ExchangeSpec {
    fn cases(world_size: u32) -> Result<Vec<GroupCase<Self>>> {
        let of = |dtype, numel: usize| TensorSpec::of(dtype, &[numel]);
        let mut cases = vec![GroupCase::new("nothing", world_size, |ranks| Self::new(ranks, &[]))?];
        for (edge, dtype, numel) in [
            ("empty", DType::F32, 0),
            ("one", DType::F16, 1),
            ("unaligned", DType::U8, 1001),
            ("typical", DType::BF16, 4096),
        ] {
            let spec = of(dtype, numel)?;
            // To the next rank and from the one before: with one rank, to itself.
            let ring = GroupCase::new(format!("ring/{edge}"), world_size, |ranks| {
                let (next, before) =
                    ((ranks.rank() + 1) % world_size, (ranks.rank() + world_size - 1) % world_size);
                Self::new(ranks, &[Leg::Send { peer: next, spec }, Leg::Recv { peer: before, spec }])
            })?;
            cases.push(ring);
        }
        // Two tensors of two types from the first rank to the last, nobody else has any.
        let (wide, narrow) = (of(DType::I64, 13)?, of(DType::I32, 5)?);
        let last = world_size - 1;
        cases.push(GroupCase::new("one_way", world_size, |ranks| {
            let mut legs = Vec::new();
            if ranks.rank() == 0 {
                legs.extend([wide, narrow].map(|spec| Leg::Send { peer: last, spec }));
            }
            if ranks.rank() == last {
                legs.extend([wide, narrow].map(|spec| Leg::Recv { peer: 0, spec }));
            }
            Self::new(ranks, &legs)
        })?);
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_sent_is_the_nth_received() {
        let case = ExchangeSpec::cases(2).unwrap().pop().unwrap();
        let calls: Vec<Signature> = case.parts.iter().map(Collective::signature).collect();
        assert_eq!(Signature::disagreement(&[&calls[0], &calls[1]]), None);
        let (wide, narrow) = ([1.0; 13], [2.0; 5]);
        let results = ExchangeSpec::reference(&case.parts, &[vec![&wide, &narrow], vec![]]);
        assert_eq!(results, [vec![], vec![wide.to_vec(), narrow.to_vec()]]);
        assert_eq!((case.parts[0].cost().bytes_comm, case.parts[1].cost().bytes_comm), (13 * 8 + 20, 0));
    }

    #[test]
    fn a_peer_is_a_rank_of_the_group() {
        let spec = TensorSpec::of(DType::F32, &[1]).unwrap();
        let ranks = Ranks::new(0, 2).unwrap();
        let error = ExchangeSpec::new(ranks, &[Leg::Send { peer: 2, spec }]).unwrap_err();
        assert!(error.to_string().contains("rank 2"), "{error}");
    }
}
