//! An operator of your own: a contract with its oracle, a kernel for the CPU, and the same examination that the
//! library's operators pass.
//!
//! `cargo run --release --example custom_op`

use portolan::cpu::{CpuBackend, CpuKernel, CpuOperand, CpuOptions, Executor};
use portolan::{CustomOp, CustomSpec, DType, OpError, Registry, Shape, StreamOptions, TensorSpec};
use portolan_conformance::{Outcome, ReferenceBackend, Subject, check_custom, compare_custom};
use portolan_ops::{Access, Case, Cost, Fill, Tolerance, expect_dims, expect_dtype};
use std::sync::Arc;

type Result<T> = std::result::Result<T, OpError>;

const OP: &str = "sqrt_softplus";

/// `out = √(ln(1 + e^x))`, the score some routers give an expert.
///
/// The pure half: it looks at specs only, so making one is the check of the arguments, on any device or none.
fn sqrt_softplus(x: &TensorSpec, out: &TensorSpec) -> Result<CustomSpec> {
    expect_dtype(OP, "x", x, &[DType::F32])?;
    expect_dims(OP, "out", out, x.dims())?;
    expect_dtype(OP, "out", out, &[DType::F32])?;
    // The oracle, in f64 and without cleverness but one: e^x of a large x is no number.
    let score = |x: &f64| if *x > 700.0 { x.sqrt() } else { x.exp().ln_1p().sqrt() };
    let reference = Arc::new(move |inputs: &[&[f64]]| vec![inputs[0].iter().map(score).collect()]);
    // The exponential, the logarithm and the root err by at most 2 units in the last place each, which is 4 roundoffs,
    // and none magnifies the error of the one before.
    let tolerance = Tolerance { abs: 0.0, rel: 12.0 * DType::F32.unit_roundoff() };
    let spec = CustomSpec::new(OP, vec![("x", *x, Access::Read), ("out", *out, Access::Write)], reference)?;
    let bytes = x.bytes() as u64;
    let cost = Cost { flops: 4 * x.numel() as u64, bytes_read: bytes, bytes_written: bytes, bytes_comm: 0 };
    Ok(spec.with_cost(cost).with_tolerance(tolerance).with_kernel("cpu", CpuKernel::new(kernel).into()))
}

/// The kernel for the CPU. It runs on the stream's thread, over slices that the backend checked: they are in the order
/// of memory, so the operands' strides say where an element is.
fn kernel(operands: &mut [CpuOperand<'_>]) -> Result<()> {
    let [x, out] = operands else { return Err(OpError::internal(OP, "expected two operands")) };
    let (from_spec, to_spec) = (*x.spec(), *out.spec());
    let (from, to) = (x.read::<f32>()?, out.write::<f32>()?);
    for index in 0..from_spec.numel() {
        let (mut rest, mut at) = (index, [0, 0]);
        for (dim, &extent) in from_spec.dims().iter().enumerate().rev() {
            let i = rest % extent;
            rest /= extent;
            at = [at[0] + i * from_spec.strides()[dim], at[1] + i * to_spec.strides()[dim]];
        }
        to[at[1]] = score(from[at[0]]);
    }
    Ok(())
}

fn score(x: f32) -> f32 {
    // Above 20, e^x is so much more than 1 that the sum rounds to it.
    if x > 20.0 { x.sqrt() } else { x.exp().ln_1p().sqrt() }
}

/// What conformance runs, edges first.
fn cases() -> Result<Vec<Case<CustomSpec>>> {
    let mut cases = Vec::new();
    let edges: [(&str, &[usize]); 5] =
        [("empty", &[0, 3]), ("scalar", &[]), ("one", &[1]), ("unaligned", &[3, 37]), ("typical", &[8, 256])];
    for (name, dims) in edges {
        let x = TensorSpec::of(DType::F32, dims)?;
        let case = Case::new(format!("{OP}/{name}"), sqrt_softplus(&x, &x)?);
        cases.push(case.fill("x", Fill::Range(-12.0, 40.0)));
    }
    let x = TensorSpec::of(DType::F32, &[9, 5])?.transpose(0, 1)?;
    let out = TensorSpec::of(DType::F32, &[5, 20])?.narrow(1, 3, 9)?;
    cases.push(Case::new(format!("{OP}/strided"), sqrt_softplus(&x, &out)?));
    let special = Fill::Values(vec![f64::NEG_INFINITY, f64::INFINITY, f64::NAN, -0.0, -80.0, 1e4]);
    let x = TensorSpec::of(DType::F32, &[6])?;
    cases.push(Case::new(format!("{OP}/special"), sqrt_softplus(&x, &x)?).fill("x", special));
    Ok(cases)
}

fn main() -> Result<()> {
    // On every device: the CPU with its kernel, and the reference device, which needs none.
    let registry =
        Registry::new().with(CpuBackend::new(CpuOptions::default())?).with(ReferenceBackend::new());
    for name in ["cpu:0", "reference:0"] {
        let stream = registry.open(name)?.stream(StreamOptions::default())?;
        let Outcome { passed, unsupported, failures } =
            check_custom(&Subject { stream: &stream, slack: 1.0 }, &cases()?)?;
        println!("{name}: {passed} cases passed, {unsupported} unsupported, {} failed", failures.len());
        if let Some(failure) = failures.first() {
            return Err(OpError::internal(OP, failure.to_string()));
        }
    }

    // The same bits on 1 and on 4 threads, inline and queued.
    let stream = |threads, executor| {
        let options = CpuOptions { threads: Some(threads), executor, ..CpuOptions::default() };
        Registry::new().with(CpuBackend::new(options)?).open("cpu:0")?.stream(StreamOptions::default())
    };
    let same = compare_custom(&[stream(1, Executor::Inline)?, stream(4, Executor::Queued)?], &cases()?)?;
    println!("{} cases wrote the same bytes, {} did not", same.passed, same.failures.len());

    // And in use: bound to tensors, ordered with everything else on the stream.
    let stream = registry.open("cpu:0")?.stream(StreamOptions::default())?;
    let x = stream.upload(&[-2.0f32, 0.0, 2.0, 30.0], &Shape::new(&[4])?)?;
    let out = stream.empty(x.spec())?;
    stream.run(CustomOp::bind(sqrt_softplus(x.spec(), out.spec())?, &[&x, &out])?)?;
    println!("{:?}", stream.download::<f32>(&out)?.wait()?);
    Ok(())
}
