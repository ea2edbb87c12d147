//! The conformance suite's operators on every simulated product: as far as `support()` says yes, and honest where not.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_cann_sys::sim::Adversary;
use portolan_conformance::{OpKind, Suite};
use portolan_core::Backend;
use rig::{assert_empties, backend_in, world};
use std::sync::{Arc, Mutex};

/// Operators of thousands of launches, and what part of the usual cases the ordinary tests run of them.
const LONG: [(OpKind, usize); 7] = [
    (OpKind::SsdScan, 6),
    (OpKind::Attention, 3),
    (OpKind::PagedAttention, 3),
    (OpKind::MlaDecode, 3),
    (OpKind::SparseAttention, 2),
    (OpKind::GroupedGemm, 2),
    (OpKind::ExpertFfn, 2),
];

/// Every `every`-th case of an operator on a product; with `PORTOLAN_ALL_CASES=1`, all on A3.
fn operator(soc: &'static str, kind: OpKind, every: usize) {
    // One schedule an operator, another for the next: no case has but one stream.
    let seed = kind.name().bytes().map(u64::from).sum::<u64>() % 20;
    let worlds = Arc::new(Mutex::new(Vec::new()));
    let kept = worlds.clone();
    let suite = Suite::new(move || {
        let world = world(soc, Adversary::Seeded, seed);
        let backend: Arc<dyn Backend> = backend_in(&world);
        kept.lock().unwrap().push(world);
        Ok(backend)
    });
    let long = LONG.iter().find(|(long, _)| *long == kind).map_or(1, |(_, part)| *part);
    let all = soc == "A3" && std::env::var_os("PORTOLAN_ALL_CASES").is_some();
    let suite = suite.every(if all { 1 } else { every * long });
    let report = suite.operator(kind);
    Suite::assert(&report);
    assert!(report.skipped().is_none());
    drop(suite);
    for world in worlds.lock().unwrap().drain(..) {
        assert_empties(&world);
    }
}

macro_rules! tests {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        tests! { @product a3, "A3", 4; $( $kind $method, )* $( $fkind $fmethod, )* }
        tests! { @product a2, "A2", 24; $( $kind $method, )* $( $fkind $fmethod, )* }
        tests! { @product a5, "950", 24; $( $kind $method, )* $( $fkind $fmethod, )* }
        tests! { @product p310, "310P", 24; $( $kind $method, )* $( $fkind $fmethod, )* }
    };
    (@product $module:ident, $soc:literal, $every:literal; $( $kind:ident $method:ident, )*) => {
        mod $module {
            $(
                #[test]
                fn $method() {
                    super::operator($soc, portolan_conformance::OpKind::$kind, $every);
                }
            )*
        }
    };
}
portolan_conformance::for_each_op!(tests);

/// The vendor's operators that come in versions: an older driver has the older ones only.
mod versions {
    use super::rig::{assert_empties, backend_in, open, options};
    use portolan_cann_sys::sim::{Adversary, SimOptions, SimWorld};
    use portolan_conformance::Suite;
    use portolan_core::{Backend, Dispatch, OpQuery, Support};
    use portolan_ops::attention::{AttentionSpec, MlaDecodeSpec, SparseAttentionSpec};
    use portolan_ops::moe::{GroupedGemmSpec, MoeGateSpec, MoePermuteSpec};
    use portolan_ops::quant::{DynamicQuantizeSpec, LinearSpec};
    use portolan_ops::{Cases, Determinism, Unsupported};
    use std::collections::BTreeSet;
    use std::sync::Arc;

    fn symbols(name: &str, versions: &[&str]) -> Vec<String> {
        versions.iter().map(|version| format!("aclnn{name}{version}")).collect()
    }

    /// Runs one case of so many on drivers without the newest, without the two newest, … and without any version of an
    /// operator: each calls the newest that is left, and the last says which symbol it would need.
    fn through<C: Cases + Dispatch>(soc: &str, one_of: usize, name: &str, newest_first: &[&str]) {
        let versions = symbols(name, newest_first);
        let worlds: Vec<SimWorld> = (0..=versions.len())
            .map(|gone| {
                let hidden = versions[..gone].iter().map(|name| format!("{name}GetWorkspaceSize")).collect();
                SimWorld::new(&SimOptions { hidden, ..options(soc, Adversary::Late, 0) }).unwrap()
            })
            .collect();
        // The first case that the oldest version would do for, and every so many-th from there.
        let first = missed::<C>(&worlds[versions.len()], versions.last().unwrap());
        let first = first.unwrap_or_else(|| panic!("nobody misses {name}"));
        let all = std::env::var_os("PORTOLAN_ALL_CASES").is_some();
        let (part, parts) = if all { (0, 1) } else { (first % one_of, one_of) };
        let suites = worlds.iter().map(|world| {
            let backend: Arc<dyn Backend> = backend_in(world);
            Suite::new(move || Ok(backend.clone())).shard(part, parts)
        });
        let suites: Vec<Suite> = suites.collect();
        let names: Vec<String> = (0..suites.len()).map(|gone| format!("without {gone}")).collect();
        let named: Vec<(&str, &Suite)> = names.iter().map(String::as_str).zip(&suites).collect();
        Suite::assert(&Suite::cases_of(&named, C::KIND));
        drop(named);
        drop(suites);
        for (gone, world) in worlds.iter().enumerate() {
            let calls = world.calls(0).unwrap();
            let names = calls.iter().map(|call| call.name.as_str());
            let called: BTreeSet<&str> = names.filter(|name| versions.iter().any(|v| v == name)).collect();
            let left: BTreeSet<&str> = versions.get(gone).map(String::as_str).into_iter().collect();
            assert_eq!(called, left, "without {:?}", &versions[..gone]);
            assert_empties(world);
        }
    }

    /// The place of the first case of which `support()` says that this symbol is missing.
    fn missed<C: Cases + Dispatch>(world: &SimWorld, symbol: &str) -> Option<usize> {
        let device = open(world);
        C::cases().unwrap().iter().position(|case| {
            let query = OpQuery { spec: case.contract.spec_ref(), determinism: Determinism::RunToRun };
            match device.support(&query) {
                Support::Composed(Unsupported::Symbol(missing))
                | Support::No(Unsupported::Symbol(missing)) => {
                    missing.strip_suffix("GetWorkspaceSize") == Some(symbol)
                }
                _ => false,
            }
        })
    }

    macro_rules! through {
        ($($test:ident: $spec:ty, $soc:literal, $every:literal, $name:literal $versions:expr;)*) => {$(
            #[test]
            fn $test() {
                through::<$spec>($soc, $every, $name, &$versions);
            }
        )*};
    }

    through! {
        attention: AttentionSpec, "A3", 200, "FusedInferAttentionScore" ["V5", "V4", "V3", "V2"];
        attention_with_rotary_parts: MlaDecodeSpec, "A2", 150, "FusedInferAttentionScore" ["V5", "V4", "V3"];
        sparse_attention: SparseAttentionSpec, "A3", 150, "SparseFlashAttention" ["V2", ""];
        grouped_products: GroupedGemmSpec, "A3", 200, "GroupedMatmul" ["V5", "V4", "V3"];
        products_of_codes: LinearSpec, "A3", 300, "QuantMatmul" ["V5", "V4"];
        gates_of_softmax: MoeGateSpec, "A3", 61, "MoeGatingTopKSoftmax" ["V2", ""];
        gates_of_groups: MoeGateSpec, "A2", 61, "MoeGatingTopK" ["V2", ""];
        routes: MoePermuteSpec, "A3", 80, "MoeInitRouting" ["V4", "V3", "V2"];
        codes_of_rows: DynamicQuantizeSpec, "A3", 50, "DynamicQuant" ["V3", "V2", ""];
        codes_of_blocks: DynamicQuantizeSpec, "950", 50, "DynamicMxQuant" ["V2", ""];
    }
}
