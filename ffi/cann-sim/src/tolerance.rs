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
    /// An operator's tensors lie in their allocations. Tolerated, they may reach into what is left of its pages.
    AllocationBounds,
    /// An operator's workspace is apart from its tensors. Tolerated, it is not poisoned where it is not.
    WorkspaceApart,
    /// Behind a tensor there is the padding that vector units may read, and no other tensor of the operator's.
    TailPadding,
    /// The statistics of a norm have the rank of its input, with dimensions of 1. Tolerated, those may be missing.
    StatisticsShape,
}

const NAMES: [(Rule, &str); 5] = [
    (Rule::TensorAlignment, "tensor_alignment"),
    (Rule::AllocationBounds, "allocation_bounds"),
    (Rule::WorkspaceApart, "workspace_apart"),
    (Rule::TailPadding, "tail_padding"),
    (Rule::StatisticsShape, "statistics_shape"),
];

impl Rule {
    /// By the name a configuration uses.
    pub(crate) fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, known)| *known == name).map(|(rule, _)| *rule)
    }

    fn name(self) -> &'static str {
        NAMES.iter().find(|(rule, _)| *rule == self).map_or("", |(_, name)| name)
    }
}

impl State {
    /// Whether `who` may break a rule in this world.
    pub(crate) fn tolerates(&mut self, rule: Rule, who: &str, what: &str) -> bool {
        let Some(broken) = self.tolerated.get_mut(&rule) else { return false };
        let count = broken.entry(who.to_owned()).or_insert(0);
        *count += 1;
        if *count == 1 && self.reports {
            eprintln!("simulated CANN: tolerated {} of {who}: {what}", rule.name());
        }
        true
    }

    /// How often each function broke each rule that is tolerated.
    pub(crate) fn tolerated(&self) -> serde_json::Value {
        let by_rule = self.tolerated.iter().map(|(rule, broken)| {
            let counts = broken.iter().map(|(who, &count)| (who.clone(), count.into()));
            (rule.name().to_owned(), counts.collect::<serde_json::Map<_, _>>().into())
        });
        by_rule.collect::<serde_json::Map<_, _>>().into()
    }
}
