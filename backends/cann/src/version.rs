//! Versions of the vendor's operators: each is called through the newest one that the driver has.
//!
//! A new ability comes as a new symbol beside the old ones, with arguments of its own. What an operator's file calls it with
//! is that file's; which of its versions is called is decided here, for `support()` and for launches alike.

use crate::aclnn::Soc;
use portolan_ops::Unsupported;

/// An operator in several versions.
pub(crate) trait Versions: Copy + 'static {
    /// Every version, the newest first, with the symbols of its two phases.
    const NEWEST_FIRST: &'static [(Self, [&'static str; 2])];
}

macro_rules! versions {
    ($( $(#[$doc:meta])* $name:ident { $( $version:ident = $suffix:literal ),* } )*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $( $version ),* }

        impl Versions for $name {
            const NEWEST_FIRST: &'static [(Self, [&'static str; 2])] = &[$((
                Self::$version,
                [
                    concat!("aclnn", stringify!($name), $suffix, "GetWorkspaceSize"),
                    concat!("aclnn", stringify!($name), $suffix),
                ],
            )),*];
        }
    )*};
}

versions! {
    /// Attention. The second version has no rotary parts beside the heads.
    FusedInferAttentionScore { V5 = "V5", V4 = "V4", V3 = "V3", V2 = "V2" }
    /// Attention to listed entries; the second version may have sinks.
    SparseFlashAttention { V2 = "V2", V1 = "" }
    /// Products of groups of rows. The third version has no scales of rows.
    GroupedMatmul { V5 = "V5", V4 = "V4", V3 = "V3" }
    /// Products of codes. The fourth version gives no plain sums, and has no blocks.
    QuantMatmul { V5 = "V5", V4 = "V4" }
    /// Products of activations with codes expanded to their type; the third version may be told how precisely.
    WeightQuantBatchMatmul { V3 = "V3", V2 = "V2" }
    /// Experts by softmax. The first version does not renormalise.
    MoeGatingTopKSoftmax { V2 = "V2", V1 = "" }
    /// Experts in groups; the second version may choose by tables.
    MoeGatingTopK { V2 = "V2", V1 = "" }
    /// Rows to experts. The second version has no ranges of experts: rows of all are moved.
    MoeInitRouting { V4 = "V4", V3 = "V3", V2 = "V2" }
    /// Rows to the ranks of their experts; what the second version writes down for its combine is of other extents.
    MoeDistributeDispatch { V2 = "V2", V1 = "" }
    /// What experts made of rows back to the ranks that sent them.
    MoeDistributeCombine { V2 = "V2", V1 = "" }
    /// Codes and scales of rows; the second version may have offsets, the third says that it has none.
    DynamicQuant { V3 = "V3", V2 = "V2", V1 = "" }
    /// Codes of small floats in blocks; the second version may be told the largest.
    DynamicMxQuant { V2 = "V2", V1 = "" }
}

impl Soc<'_> {
    /// The newest version of an operator that the driver has, of those that can say what is wanted.
    ///
    /// Without one the oldest of them is named, which the oldest driver that would do has.
    pub(crate) fn newest<V: Versions>(
        &self,
        says: impl Fn(V) -> bool,
    ) -> core::result::Result<V, Unsupported> {
        let mut oldest = Unsupported::NotImplemented;
        for (version, symbols) in V::NEWEST_FIRST.iter().filter(|(version, _)| says(*version)) {
            if symbols.iter().all(|symbol| self.operators.has(symbol)) {
                return Ok(*version);
            }
            oldest = Unsupported::Symbol(symbols[0]);
        }
        Err(oldest)
    }
}

/// Any version.
pub(crate) fn any<V>(_: V) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use portolan_cann_sys::Operators;
    use std::collections::BTreeSet;

    /// Versions of operators called here that are not, and why.
    const NOT_CALLED: &[(&str, &str)] = &[
        ("aclnnCumsumV2", "another function: it excludes or reverses, and gives no other type"),
        ("aclnnDynamicMxQuantV3", "no value of maxLowBound is known to mean none"),
        ("aclnnDynamicQuantV4", "no value of dstTypeMax is known to mean the type's own"),
        ("aclnnGatherV3", "its mode is not documented"),
        ("aclnnGelu", "another function: it does not say which of both formulas it is"),
        ("aclnnIndexAddV2", "its mode is not documented"),
        ("aclnnMoeDistributeCombineV3", "its experts without weights and its elastic groups are not wanted"),
        ("aclnnMoeDistributeCombineV4", "as the third version's; nothing here measures ranks"),
        ("aclnnMoeDistributeDispatchV3", "its experts without weights and its elastic groups are not wanted"),
        ("aclnnMoeDistributeDispatchV4", "as the third version's; nothing here measures ranks"),
        ("aclnnMoeFinalizeRouting", "its rows are in the order of columns, and its addends are no options"),
        ("aclnnMoeFinalizeRoutingV3", "its ranges of experts without weights are no options"),
        ("aclnnMoeFinalizeRoutingV4", "its ranges of experts without weights are no options"),
        ("aclnnMoeInitRouting", "it has neither a number of experts nor counts"),
        ("aclnnQuantMatmulV3", "it has no scales of rows"),
        ("aclnnRotaryPositionEmbeddingV2", "its matrix is no option"),
    ];

    /// An operator's name without its version, and whether it has one.
    fn base(name: &str) -> (&str, bool) {
        let digits = name.trim_end_matches(|c: char| c.is_ascii_digit());
        match digits.strip_suffix('V') {
            Some(base) if digits.len() < name.len() => (base, true),
            _ => (name, false),
        }
    }

    /// Operators whose second phases the sources of this crate name.
    fn called() -> BTreeSet<String> {
        let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
        let mut called = BTreeSet::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                // What tests name is not called.
                let text = text.split("#[cfg(test)]").next().unwrap_or_default();
                let words = text.split(|c: char| !c.is_ascii_alphanumeric());
                called.extend(words.filter(|word| word.ends_with("GetWorkspaceSize")).map(str::to_owned));
            }
        }
        called.iter().filter_map(|name| name.strip_suffix("GetWorkspaceSize")).map(str::to_owned).collect()
    }

    fn chosen_among<V: Versions>() -> impl Iterator<Item = &'static str> {
        V::NEWEST_FIRST.iter().map(|(_, [_, launch])| *launch)
    }

    #[test]
    fn every_version_of_an_operator_is_a_choice_or_left_out_for_a_reason() {
        let called = called();
        assert!(called.len() > 80, "{called:?}");
        let bases: BTreeSet<&str> = called.iter().map(|name| base(name).0).collect();
        let choices: BTreeSet<&str> = chosen_among::<FusedInferAttentionScore>()
            .chain(chosen_among::<SparseFlashAttention>())
            .chain(chosen_among::<GroupedMatmul>())
            .chain(chosen_among::<QuantMatmul>())
            .chain(chosen_among::<WeightQuantBatchMatmul>())
            .chain(chosen_among::<MoeGatingTopKSoftmax>())
            .chain(chosen_among::<MoeGatingTopK>())
            .chain(chosen_among::<MoeInitRouting>())
            .chain(chosen_among::<MoeDistributeDispatch>())
            .chain(chosen_among::<MoeDistributeCombine>())
            .chain(chosen_among::<DynamicQuant>())
            .chain(chosen_among::<DynamicMxQuant>())
            .collect();
        for choice in &choices {
            assert!(called.contains(*choice), "{choice} is a choice, and nothing calls it");
            assert!(Operators::NAMES.contains(choice), "{choice} is no symbol");
        }
        let versions = |name: &str| {
            let of_base =
                |other: &&&str| base(other).0 == base(name).0 && !other.ends_with("GetWorkspaceSize");
            Operators::NAMES.iter().filter(of_base).count()
        };
        let several = Operators::NAMES.iter().filter(|name| {
            !name.ends_with("GetWorkspaceSize") && bases.contains(base(name).0) && versions(name) > 1
        });
        let mut left = BTreeSet::new();
        for name in several {
            let known = NOT_CALLED.iter().any(|(left, _)| left == name);
            // The one version that is called where no other is.
            let only = called.contains(*name) && !choices.contains(name);
            assert!(choices.contains(name) || known || only, "{name} is neither called nor left out");
            if known {
                left.insert(*name);
            }
        }
        let reasons: BTreeSet<&str> = NOT_CALLED.iter().map(|(name, _)| *name).collect();
        assert_eq!(left, reasons, "reasons for what is no version of what is called");
    }

    #[test]
    fn versions_are_told_from_names() {
        assert_eq!(base("aclnnQuantMatmulV5"), ("aclnnQuantMatmul", true));
        assert_eq!(base("aclnnRmsNorm"), ("aclnnRmsNorm", false));
        assert_eq!(base("aclnnV"), ("aclnnV", false));
    }
}
