//! Mistakes that the backend could make, planted between it and the driver: calls that are answered *well* and not
//! carried out, as if the backend had not made them, and calls with another argument. Each is caught by what it is, and
//! the sound backend by nothing.

mod arguments;

use crate::rig::{backend_in, f32s, shape, world};
use portolan_cann_sys::sim::{Adversary, Call, PlannedFault, SimWorld};
use portolan_core::call::Unary;
use portolan_core::{Registry, StreamOptions};
use portolan_ops::OpError;
use portolan_ops::kernel::UnaryKind;
use std::time::Duration;

/// The `at`-th call of a function is left out.
fn omitted(call: &str, at: u64) -> PlannedFault {
    PlannedFault::Call { call: call.into(), at, code: 0 }
}

/// More than a device's copies may have in flight: pinned memory is used again.
const LARGE: usize = 20 << 20;

/// Two streams, a kernel, copies both ways, and a thread on which everything goes that never called the driver.
fn run(world: &SimWorld) -> Result<Vec<f32>, OpError> {
    let device = Registry::new().with(backend_in(world)).open("cann:0")?;
    let options = StreamOptions { timeout: Duration::from_secs(20), ..StreamOptions::default() };
    let (a, b) = (device.stream(options.clone())?, device.stream(options)?);
    let x = a.upload(&[1f32, 2.0], &shape(2))?;
    let mut y = b.empty(&f32s(2))?;
    b.run(Unary::new(UnaryKind::Neg, &x, &mut y)?)?;
    let mut all = b.download::<f32>(&y)?.wait()?;
    let mut values = vec![5f32; LARGE];
    values[0] = 3.0;
    let large = a.upload(&values, &shape(LARGE))?;
    a.synchronize()?;
    all.push(a.download::<f32>(&large.narrow(0, 0, 1)?)?.wait()?[0]);
    let ended = std::thread::spawn(move || drop((x, y, large, a, b, device))).join();
    assert!(ended.is_ok());
    Ok(all)
}

fn calls(world: &SimWorld) -> Vec<Call> {
    world.calls(0).unwrap()
}

/// What the program gives.
const WANT: [f32; 3] = [-1.0, -2.0, 3.0];

/// A program, and what it gives.
type Program = (fn(&SimWorld) -> Result<Vec<f32>, OpError>, &'static [f32]);

/// What speaks against the backend after a program.
fn evidence((program, want): Program, mutant: &[PlannedFault]) -> Vec<String> {
    let world = world("A3", Adversary::Late, 0);
    world.plan(mutant).unwrap();
    let mut evidence = match program(&world) {
        Ok(all) if all == want => Vec::new(),
        Ok(all) => vec![format!("a wrong answer: {all:?}")],
        Err(error) => vec![error.to_string()],
    };
    let refused = calls(&world).into_iter().filter(|call| call.code != Some(0));
    evidence.extend(refused.map(|call| format!("{} gave {:?}: {}", call.name, call.code, call.message)));
    evidence.extend(world.report().unwrap().lines().iter().cloned());
    evidence
}

fn expect_caught(name: &str, mutant: &[PlannedFault], by: &str) {
    expect_caught_in((run, &WANT), name, mutant, by);
}

fn expect_caught_in(program: Program, name: &str, mutant: &[PlannedFault], by: &str) {
    let evidence = evidence(program, mutant);
    println!("{name}: {evidence:#?}");
    assert!(evidence.iter().any(|line| line.contains(by)), "{name} is not caught by `{by}`: {evidence:?}");
}

#[test]
fn nothing_speaks_against_the_backend_as_it_is() {
    assert_eq!(evidence((run, &WANT), &[]), [""; 0]);
}

#[test]
fn a_missing_event_wait_is_caught() {
    // The kernel on one stream does not wait for the upload on the other, and reads what nobody wrote.
    let mutant = [omitted("aclrtStreamWaitEvent", 1)];
    let evidence = evidence((run, &WANT), &mutant);
    let by_name = "reads what aclrtMemcpyAsync";
    assert!(evidence.iter().any(|line| line.starts_with("a wrong answer")), "{evidence:?}");
    assert!(evidence.iter().any(|line| line.contains(by_name)), "{evidence:?}");
}

#[test]
fn memory_used_again_before_its_copy_is_caught() {
    let synchronize = omitted("aclrtSynchronizeStreamWithTimeout", 1);
    expect_caught("early reuse", &[synchronize], "a wrong answer");
}

#[test]
fn an_upload_that_is_forgotten_is_caught() {
    expect_caught("missing copy", &[omitted("aclrtMemcpyAsync", 1)], "a wrong answer");
}

#[test]
fn a_launch_that_is_forgotten_is_caught() {
    expect_caught("planned and not launched", &[omitted("aclnnNeg", 1)], "a wrong answer");
}

#[test]
fn an_executor_that_is_kept_for_ever_is_caught() {
    let destroy = omitted("aclDestroyAclOpExecutor", 1);
    expect_caught("executor not destroyed", &[destroy], "1 aclOpExecutor");
}

#[test]
fn a_context_that_a_destructor_does_not_set_is_caught() {
    let world = world("A3", Adversary::Late, 0);
    run(&world).unwrap();
    let sets: Vec<_> =
        calls(&world).into_iter().filter(|call| call.name == "aclrtSetCurrentContext").collect();
    let last = sets.iter().map(|call| call.thread).max().unwrap();
    let on_last = (1..).zip(&sets).filter(|(_, call)| call.thread == last);
    let mutant: Vec<_> = on_last.map(|(at, _)| omitted("aclrtSetCurrentContext", at)).collect();
    assert!(last > 1 && !mutant.is_empty());
    expect_caught("context not set in a destructor", &mutant, "gave Some(107002)");
}

#[test]
fn a_leaked_descriptor_is_caught() {
    expect_caught("leaked descriptor", &[omitted("aclDestroyTensor", 1)], "1 aclTensor");
}
