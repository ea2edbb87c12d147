//! Rules that hardware was seen to let pass: a program that nobody here can change may be allowed to break them.
//!
//! By default nothing is. What a configuration lists under `tolerated` is counted by the function that broke it, and
//! told on standard error once for each where a program reports there.

use crate::world::State;

/// A rule that may be tolerated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// Tensors begin at multiples of 32 bytes.
    TensorAlignment,
}

impl Rule {
    /// By the name a configuration uses.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "tensor_alignment" => Some(Self::TensorAlignment),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::TensorAlignment => "tensor_alignment",
        }
    }
}

impl State {
    /// Whether `who` may break a rule in this world.
    pub(crate) fn tolerates(&mut self, rule: Rule, who: &'static str, what: &str) -> bool {
        let Some(broken) = self.tolerated.get_mut(&rule) else { return false };
        let count = broken.entry(who).or_insert(0);
        *count += 1;
        if *count == 1 && self.reports {
            eprintln!("simulated CANN: tolerated {} of {who}: {what}", rule.name());
        }
        true
    }

    /// How often each function broke each rule that is tolerated.
    pub(crate) fn tolerated(&self) -> serde_json::Value {
        let by_rule = self.tolerated.iter().map(|(rule, broken)| {
            let counts = broken.iter().map(|(&who, &count)| (who.to_owned(), count.into()));
            (rule.name().to_owned(), counts.collect::<serde_json::Map<_, _>>().into())
        });
        by_rule.collect::<serde_json::Map<_, _>>().into()
    }
}
