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
