//! Fault plans as text, and what their seed decides.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan_core::decorate::{FaultKind, FaultPlan, Moment};

#[test]
fn a_plan_is_the_text_it_prints() {
    let text = "seed=7; oom@3; refused@5:linear; failed@?100; lost@9::layers.3; wrong(0.001)@1:linear:layers.3; \
                dead(2)@4; slow(1,50)@2; killed(0)@?9:all_reduce";
    let plan: FaultPlan = text.parse().unwrap();
    assert_eq!(plan.to_string(), text);
    assert_eq!(plan.to_string().parse::<FaultPlan>().unwrap(), plan);
    assert_eq!((plan.seed, plan.faults.len()), (7, 8));
    assert_eq!(plan.faults[3].path.as_deref(), Some("layers.3"));
    assert_eq!("".parse::<FaultPlan>().unwrap(), FaultPlan::default());
    for bad in ["oom", "oom@0", "oom@x", "oom(1)@2", "wrong@1", "burn@1", "slow(1)@2", "seed=x", "oom@?0"] {
        let error = bad.parse::<FaultPlan>().unwrap_err();
        assert!(error.to_string().contains(bad), "{error}");
    }
}

#[test]
fn what_is_left_open_is_chosen_by_the_seed_alone() {
    let at = |seed| FaultPlan::new(seed).with(FaultKind::Lost, Moment::Within(1000)).occurrence(0);
    assert_eq!(at(3), at(3));
    assert!((0..20).all(|seed| (1..=1000).contains(&at(seed))));
    assert!((1..20).any(|seed| at(seed) != at(0)));
}
