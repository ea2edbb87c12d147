//! What ranks tell each other before data moves, and whether it fits together.

use super::ReduceOp;
use crate::DType;
use core::fmt;

/// Elements that go to or come from one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// The other rank; for what all ranks hold alike, the rank whose part it is.
    pub peer: u32,
    /// Element type.
    pub dtype: DType,
    /// Number of elements.
    pub numel: usize,
}

/// One rank's call, as the others have to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Which operator.
    pub op: &'static str,
    /// How values are combined, where they are.
    pub reduce: Option<ReduceOp>,
    /// The rank that gives or gets, where one does.
    pub root: Option<u32>,
    /// Sizes that all ranks must state alike.
    pub alike: Vec<Part>,
    /// What is sent to single ranks, which must expect just that.
    pub sends: Vec<Part>,
    /// What is expected from single ranks.
    pub recvs: Vec<Part>,
}

impl Signature {
    /// The call of an operator whose ranks state nothing but its name.
    pub fn of(op: &'static str) -> Self {
        Self { op, reduce: None, root: None, alike: Vec::new(), sends: Vec::new(), recvs: Vec::new() }
    }

    fn shared(&self) -> (&str, Option<ReduceOp>, Option<u32>, &[Part]) {
        (self.op, self.reduce, self.root, &self.alike)
    }

    /// The first rank whose call does not fit those of the others, and how; `calls` are those of all ranks, in order.
    ///
    /// Where calls should be alike, the call that most ranks made is the right one, and the one of the lowest rank
    /// among equals; where one sends what another does not expect, the sender is named. All ranks come to the same
    /// verdict.
    pub fn disagreement(calls: &[&Signature]) -> Option<(u32, String)> {
        let votes = |call: &Signature| calls.iter().filter(|other| other.shared() == call.shared()).count();
        let most = calls.iter().map(|call| votes(call)).max()?;
        let right = calls.iter().position(|call| votes(call) == most)?;
        if let Some(wrong) = calls.iter().position(|call| call.shared() != calls[right].shared()) {
            let what = format!("called {}, while rank {right} called {}", calls[wrong], calls[right]);
            return Some((wrong as u32, what));
        }
        for (from, sender) in calls.iter().enumerate() {
            for (to, receiver) in calls.iter().enumerate() {
                let sent = parts_of(&sender.sends, to);
                let expected = parts_of(&receiver.recvs, from);
                if !sent.clone().eq(expected.clone()) {
                    let (sent, expected) = (Sizes(sent), Sizes(expected));
                    return Some((
                        from as u32,
                        format!("sends {sent} to rank {to}, which expects {expected}"),
                    ));
                }
            }
        }
        None
    }
}

fn parts_of(parts: &[Part], peer: usize) -> impl Iterator<Item = (DType, usize)> + Clone {
    parts.iter().filter(move |part| part.peer as usize == peer).map(|part| (part.dtype, part.numel))
}

/// `3 f32 and 4 f32`.
struct Sizes<I>(I);

impl<I: Iterator<Item = (DType, usize)> + Clone> fmt::Display for Sizes<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut any = false;
        for (dtype, numel) in self.0.clone() {
            write!(f, "{}{numel} {dtype}", if any { " and " } else { "" })?;
            any = true;
        }
        if any { Ok(()) } else { f.write_str("nothing") }
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.op)?;
        if let Some(reduce) = self.reduce {
            write!(f, " {}", reduce.name())?;
        }
        if let Some(root) = self.root {
            write!(f, " with root {root}")?;
        }
        if !self.alike.is_empty() {
            write!(f, " of {}", Sizes(self.alike.iter().map(|part| (part.dtype, part.numel))))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sized(op: &'static str, dtype: DType, numel: usize) -> Signature {
        Signature { alike: vec![Part { peer: 0, dtype, numel }], ..Signature::of(op) }
    }

    #[test]
    fn the_rank_that_is_alone_with_its_call_is_named() {
        let (good, other) = (sized("all_reduce", DType::F32, 4), sized("all_reduce", DType::F16, 4));
        assert_eq!(Signature::disagreement(&[&good, &good, &good]), None);
        for wrong in 0..3 {
            let mut calls = [&good; 3];
            calls[wrong] = &other;
            let (rank, what) = Signature::disagreement(&calls).unwrap();
            assert_eq!(rank as usize, wrong);
            assert!(what.contains("4 f16") && what.contains("4 f32"), "{what}");
        }
        // Of two, the second.
        assert_eq!(Signature::disagreement(&[&other, &good]).unwrap().0, 1);
    }

    #[test]
    fn everything_that_is_stated_counts() {
        let good = Signature { root: Some(1), reduce: Some(ReduceOp::Sum), ..sized("reduce", DType::F32, 4) };
        for wrong in [
            Signature { op: "broadcast", ..good.clone() },
            Signature { root: Some(0), ..good.clone() },
            Signature { reduce: Some(ReduceOp::Max), ..good.clone() },
            Signature { alike: sized("", DType::F32, 5).alike, ..good.clone() },
            Signature { alike: Vec::new(), ..good.clone() },
        ] {
            assert_eq!(Signature::disagreement(&[&good, &good, &wrong]).unwrap().0, 2);
        }
    }

    #[test]
    fn what_one_sends_the_other_expects() {
        let part = |peer, numel| Part { peer, dtype: DType::F32, numel };
        let call = |sends: &[Part], recvs: &[Part]| Signature {
            sends: sends.to_vec(),
            recvs: recvs.to_vec(),
            ..Signature::of("exchange")
        };
        // A ring of three, with two parts on one of its edges.
        let ring = [
            call(&[part(1, 4), part(1, 5)], &[part(2, 7)]),
            call(&[part(2, 6)], &[part(0, 4), part(0, 5)]),
            call(&[part(0, 7)], &[part(1, 6)]),
        ];
        let verdict = |ring: &[Signature; 3]| Signature::disagreement(&[&ring[0], &ring[1], &ring[2]]);
        assert_eq!(verdict(&ring), None);
        let mut short = ring.clone();
        short[1].recvs.pop();
        let (rank, what) = verdict(&short).unwrap();
        assert_eq!((rank, what.as_str()), (0, "sends 4 f32 and 5 f32 to rank 1, which expects 4 f32"));
        let mut silent = ring;
        silent[1].sends.clear();
        assert_eq!(verdict(&silent).unwrap(), (1, "sends nothing to rank 2, which expects 6 f32".into()));
    }
}
