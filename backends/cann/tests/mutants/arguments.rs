//! Mistakes in arguments: a call with another stream, executor, workspace, number or address than the backend gave.

use super::{Program, evidence, expect_caught_in};
use crate::rig::{backend_in, f32s, shape};
use portolan_cann_sys::sim::{Instead, PlannedFault, SimWorld};
use portolan_core::call::{Gemm, Unary};
use portolan_core::{Registry, StreamOptions};
use portolan_ops::kernel::UnaryKind;
use portolan_ops::{OpError, Shape};
use std::time::Duration;

/// A factor that ten bits of mantissa do not hold.
const FACTOR: f32 = 1.0 + 1.0 / 8192.0;

/// Elements whose 40 bytes end within the 64 that a workspace is aligned to.
const LEN: usize = 10;

/// Two kernels in a row on another stream than their input's upload, and a product.
fn launches(world: &SimWorld) -> Result<Vec<f32>, OpError> {
    let device = Registry::new().with(backend_in(world)).open("cann:0")?;
    let options = StreamOptions { timeout: Duration::from_secs(20), ..StreamOptions::default() };
    let (a, b) = (device.stream(options.clone())?, device.stream(options)?);
    let x = a.upload(&[1f32, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], &shape(LEN))?;
    let (mut y, mut z) = (b.empty(&f32s(LEN))?, b.empty(&f32s(LEN))?);
    b.run(Unary::new(UnaryKind::Neg, &x, &mut y)?)?;
    b.run(Unary::new(UnaryKind::Neg, &y, &mut z)?)?;
    let mut column = [0.0; LEN];
    column[0] = FACTOR;
    let column = b.upload(&column, &Shape::new(&[LEN, 1])?)?;
    let mut product = b.empty(&f32s(1).reshape(&[1, 1])?)?;
    b.run(Gemm::nn(&z.reshape(&[1, LEN])?, &column, &mut product)?)?;
    let mut all = b.download::<f32>(&y)?.wait()?;
    all.extend(b.download::<f32>(&product)?.wait()?);
    Ok(all)
}

const PROGRAM: Program = (launches, &[-1.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, FACTOR]);

/// The `at`-th call of a function has a number for an argument.
fn number(call: &str, at: u64, argument: &str, number: i64) -> PlannedFault {
    let instead = Instead::Number(number);
    PlannedFault::Argument { call: call.into(), at, argument: argument.into(), instead }
}

/// The `at`-th call of a function has what an earlier call had, moved by so much.
fn earlier(
    (call, at): (&str, u64),
    argument: &str,
    (of, of_at, of_argument): (&str, u64, &str),
    plus: i64,
) -> PlannedFault {
    let instead = Instead::Earlier { call: of.into(), at: of_at, argument: of_argument.into(), plus };
    PlannedFault::Argument { call: call.into(), at, argument: argument.into(), instead }
}

fn expect_caught(name: &str, mutant: PlannedFault, by: &str) {
    expect_caught_in(PROGRAM, name, &[mutant], by);
}

#[test]
fn nothing_speaks_against_the_arguments_as_they_are() {
    assert_eq!(evidence(PROGRAM, &[]), [""; 0]);
}

#[test]
fn a_wrong_stream_is_caught() {
    // The second kernel goes where its input was uploaded, and not behind the first.
    let mutant = earlier(("aclnnNeg", 2), "stream", ("aclrtMemcpyAsync", 1, "stream"), 0);
    expect_caught("wrong stream", mutant, "reads what aclnnNeg");
    // The context's own stream, which is another one too.
    let mutant = number("aclnnMatmul", 1, "stream", 0);
    expect_caught("no stream", mutant, "reads what aclrtMemcpyAsync");
}

#[test]
fn an_executor_used_twice_is_caught() {
    // On a driver that makes none for more than one launch.
    let refused = PlannedFault::Call { call: "aclSetAclOpExecutorRepeatable".into(), at: 1, code: 561102 };
    let mutant = earlier(("aclnnNeg", 2), "executor", ("aclnnNeg", 1, "executor"), 0);
    let by = "of aclnnNeg has been launched, and is good for once";
    expect_caught_in(PROGRAM, "executor reused", &[refused, mutant], by);
}

#[test]
fn another_operators_executor_is_caught() {
    let mutant = earlier(("aclnnMatmul", 1), "executor", ("aclnnNeg", 2, "executor"), 0);
    expect_caught("executor of another operator", mutant, "was planned for aclnnNeg, not aclnnMatmul");
}

#[test]
fn a_workspace_that_is_too_small_is_caught() {
    let mutant = number("aclnnMatmul", 1, "workspaceSize", 16);
    expect_caught("workspace too small", mutant, "a workspace of 16 bytes, aclnnMatmul needs");
    let mutant = number("aclnnMatmul", 1, "workspace", 0);
    expect_caught("no workspace", mutant, "workspace: 0x0 is no device address");
    // The memory that an operand is in.
    let of = ("aclCreateTensor", 1, "deviceData");
    let mutant = earlier(("aclnnMatmul", 1), "workspace", of, 0);
    expect_caught("workspace in use", mutant, "in the workspace");
}

#[test]
fn a_wrong_enumeration_value_is_caught() {
    let mutant = number("aclrtMemcpyAsync", 1, "kind", 2);
    expect_caught("wrong aclrtMemcpyKind", mutant, "kind 2 for a copy from host to device");
    let mutant = number("aclCreateTensor", 1, "dataType", 99);
    expect_caught("wrong aclDataType", mutant, "aclDataType 99 is not one of a tensor's");
    let mutant = number("aclCreateTensor", 2, "dataType", 1);
    expect_caught("wrong aclDataType of a result", mutant, "a wrong answer");
    let mutant = number("aclCreateTensor", 1, "format", 29);
    expect_caught("wrong aclFormat", mutant, "is FRACTAL_NZ and has fewer than 2 dimensions");
    let mutant = number("aclnnMatmulGetWorkspaceSize", 1, "cubeMathType", 9);
    expect_caught("wrong cubeMathType", mutant, "cubeMathType = 9 is no mode");
    // Legal, and not what the contract wants: factors lose bits.
    let mutant = number("aclnnMatmulGetWorkspaceSize", 1, "cubeMathType", 1);
    expect_caught("cubeMathType of less precision", mutant, "a wrong answer");
}

#[test]
fn missing_padding_is_caught() {
    // The workspace right behind an operand, as in a pool that keeps no padding between its pieces.
    let mutant = earlier(("aclnnMatmul", 1), "workspace", ("aclCreateTensor", 3, "deviceData"), 64);
    expect_caught("missing padding", mutant, "is within the padding of");
    let of = ("aclCreateTensor", 1, "deviceData");
    // An address that no tensor may have.
    let mutant = earlier(("aclCreateTensor", 2), "deviceData", of, 8);
    expect_caught("missing alignment", mutant, "is not aligned to 32 bytes");
}
