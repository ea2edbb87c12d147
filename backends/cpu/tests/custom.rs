//! Custom operators: a user's closure over checked operands, ordered and protected as any other operator.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_conformance::{CoreOnly, ReferenceBackend, Subject, check_custom, compare_custom};
use portolan_core::{CustomOp, CustomSpec, Op, Registry, Stream, Support, Tensor};
use portolan_cpu::{CpuBackend, CpuKernel, CpuOptions};
use portolan_ops::{Access, Case, Contract, Cost, DType, Determinism, OpError, Shape, TensorSpec, Tolerance};
use rig::{custom, down, every_executor, f32s, queued, stream, up};
use std::sync::Arc;

fn bare(operands: Vec<(Tensor, Access)>) -> CustomOp {
    CustomOp::new("bare", operands, Cost::default(), Tolerance::EXACT, Arc::new(|_: &[&[f64]]| Vec::new()))
        .unwrap()
}

/// `out[i] = a[i] · b[i]`, through whatever strides.
fn product(a: &Tensor, b: &Tensor, out: &Tensor) -> CustomOp {
    let operands = vec![(a.clone(), Access::Read), (b.clone(), Access::Read), (out.clone(), Access::Write)];
    custom("product", operands, |operands| {
        let [a, b, out] = operands else { unreachable!() };
        let steps = [&*a, &*b, &*out].map(|o| o.spec().strides()[0]);
        let n = out.spec().numel();
        let (a, b, out) = (a.read::<f32>()?, b.read::<f32>()?, out.write::<f32>()?);
        for i in 0..n {
            out[i * steps[2]] = a[i * steps[0]] * b[i * steps[1]];
        }
        Ok(())
    })
}

fn assert_unsupported(s: &Stream, op: CustomOp, hint: &str) {
    let promised = s.device().support(&op.query(Determinism::Fast));
    assert!(matches!(promised, Support::No(_)), "{promised:?}");
    let error = s.run(op).unwrap_err();
    assert!(matches!(error, OpError::Unsupported { .. }) && error.to_string().contains(hint), "{error}");
}

#[test]
fn a_kernel_sees_its_operands_through_their_strides() {
    for device in every_executor() {
        let s = stream(&device);
        let x = up(&s, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).reshape(&[3, 2]).unwrap();
        let column = |i| x.select(1, i).unwrap();
        let out = s.empty(&f32s(3)).unwrap();
        let op = product(&column(0), &column(1), &out);
        assert_eq!(device.support(&op.query(Determinism::Fast)), Support::Native);
        s.run(op).unwrap();
        assert_eq!(down(&s, &out), [2.0, 12.0, 30.0]);
    }
}

#[test]
fn a_missing_or_foreign_kernel_is_unsupported_and_says_what_to_do() {
    let s = stream(&queued());
    let x = up(&s, &[1.0]);
    assert_unsupported(&s, bare(vec![(x.clone(), Access::Write)]), "with_kernel");
    assert_unsupported(
        &s,
        bare(vec![(x.clone(), Access::Write)]).with_kernel("cpu", Arc::new(5u8)),
        "CpuKernel",
    );
    assert_eq!(down(&s, &x), [1.0]);
}

#[test]
fn operands_that_interleave_are_refused_because_slices_of_them_would_overlap() {
    let s = stream(&queued());
    let x = up(&s, &[1.0; 6]).reshape(&[3, 2]).unwrap();
    let column = |i| x.select(1, i).unwrap();
    assert_unsupported(&s, product(&column(0), &column(0), &column(1)), "interleave");
    // Rows of one tensor lie apart.
    let row = |i| x.select(0, i).unwrap();
    s.run(product(&row(0), &row(0), &row(1))).unwrap();
    s.synchronize().unwrap();
}

#[test]
fn wrong_types_and_writes_to_read_operands_are_errors() {
    let s = stream(&queued());
    let (x, out) = (up(&s, &[1.0; 4]), up(&s, &[0.0; 8]));
    let operands = vec![(x.clone(), Access::Read), (out.clone(), Access::Write)];
    s.run(custom("careless", operands, |operands| {
        let [x, out] = operands else { unreachable!() };
        assert!(matches!(x.write::<f32>(), Err(OpError::Attribute { .. })));
        assert!(matches!(x.bytes_mut(), Err(OpError::Attribute { .. })));
        assert!(matches!(x.read::<i32>(), Err(OpError::DType { .. })));
        assert!(matches!(out.write::<f64>(), Err(OpError::DType { .. })));
        assert_eq!((x.read::<f32>()?.len(), x.bytes().len(), out.write::<f32>()?.len()), (4, 16, 8));
        Ok(())
    }))
    .unwrap();
    s.synchronize().unwrap();
}

#[test]
fn a_boolean_that_is_none_is_found_before_anybody_sees_it() {
    let s = stream(&queued());
    let bytes = s.upload(&[0u8, 1, 2], &Shape::new(&[3]).unwrap()).unwrap();
    let bools = Tensor::new(bytes.buffer().clone(), TensorSpec::of(DType::Bool, &[3]).unwrap()).unwrap();
    let out = s.empty(&TensorSpec::of(DType::Bool, &[3]).unwrap()).unwrap();
    let operands = vec![(bools, Access::Read), (out.clone(), Access::Write)];
    s.run(custom("bools", operands, |operands| {
        let [x, out] = operands else { unreachable!() };
        assert!(matches!(x.read::<bool>(), Err(OpError::Data { .. })));
        out.write::<bool>()?.copy_from_slice(&[true, false, true]);
        Ok(())
    }))
    .unwrap();
    assert_eq!(s.download::<bool>(&out).unwrap().wait().unwrap(), [true, false, true]);
}

#[test]
fn a_kernel_that_uses_its_own_stream_is_not_a_deadlock() {
    for device in every_executor() {
        let s = device
            .stream(portolan_core::StreamOptions {
                timeout: std::time::Duration::from_millis(50),
                ..portolan_core::StreamOptions::default()
            })
            .unwrap();
        let (x, y) = (up(&s, &[1.0]), up(&s, &[0.0]));
        let (inner, target) = (s.clone(), y.clone());
        s.run(custom("reentrant", vec![(x, Access::ReadWrite)], move |_| {
            inner.write(&target, &[5f32])?;
            assert!(matches!(inner.synchronize(), Err(OpError::Timeout { .. })));
            Ok(())
        }))
        .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(120));
        assert_eq!(down(&s, &y), [5.0]);
    }
}

#[test]
fn empty_operands_are_not_launched_and_many_operands_are_fine() {
    let s = stream(&queued());
    let empty = s.empty(&f32s(0)).unwrap();
    s.run(custom("nothing", vec![(empty, Access::Write)], |_| Err(OpError::internal("nothing", "ran"))))
        .unwrap();
    let all: Vec<_> = (0..20).map(|i| (up(&s, &[i as f32]), Access::Read)).collect();
    let out = up(&s, &[0.0]);
    let operands = all.into_iter().chain([(out.clone(), Access::Write)]).collect();
    s.run(custom("sum", operands, |operands| {
        let Some((out, x)) = operands.split_last_mut() else { unreachable!() };
        out.write::<f32>()?[0] = x.iter().map(|x| x.read::<f32>().map_or(0.0, |x| x[0])).sum();
        Ok(())
    }))
    .unwrap();
    assert_eq!(down(&s, &out), [190.0]);
}

/// `out = 2·x`, with a kernel that may be wrong in one way.
fn doubled(x: &TensorSpec, out: &TensorSpec, fault: Option<&'static str>) -> CustomSpec {
    let operands = vec![("x", *x, Access::Read), ("out", *out, Access::Write)];
    let reference = Arc::new(move |inputs: &[&[f64]]| match fault {
        Some("mute") => Vec::new(),
        _ => vec![inputs[0].iter().map(|x| 2.0 * x).collect()],
    });
    let kernel = CpuKernel::new(move |operands| {
        let [x, out] = operands else { unreachable!() };
        let strides = [&*x, &*out].map(|o| o.spec().strides().first().copied().unwrap_or(1));
        let n = x.spec().numel();
        let (x, out) = (x.read::<f32>()?, out.write::<f32>()?);
        for i in 0..n {
            out[i * strides[1]] = 2.0 * x[i * strides[0]];
        }
        match fault {
            Some("wrong") => out[(n - 1) * strides[1]] += 0.5,
            // Between the elements, where nothing is this operator's.
            Some("gap") if strides[1] > 1 => out[1] = 0.0,
            _ => {}
        }
        Ok(())
    });
    CustomSpec::new("doubled", operands, reference).unwrap().with_kernel("cpu", kernel.into())
}

fn doubled_cases(fault: Option<&'static str>) -> Vec<Case<CustomSpec>> {
    let plain = |n| f32s(n);
    let apart = TensorSpec::of(DType::F32, &[7, 3]).unwrap().select(1, 1).unwrap();
    let specs = [("empty", plain(0), plain(0)), ("one", plain(1), plain(1)), ("strided", plain(7), apart)];
    specs.into_iter().map(|(name, x, out)| Case::new(name, doubled(&x, &out, fault))).collect()
}

#[test]
fn a_custom_operator_passes_the_suite_and_each_planted_fault_is_found() {
    for device in every_executor() {
        let s = stream(&device);
        let examine =
            |fault| check_custom(&Subject { stream: &s, slack: 1.0 }, &doubled_cases(fault)).unwrap();
        let sound = examine(None);
        assert_eq!(
            (sound.passed, sound.unsupported, sound.failures.len()),
            (3, 0, 0),
            "{:?}",
            sound.failures
        );
        for (fault, cases, says) in [
            ("wrong", 2, "times the tolerance"),
            ("gap", 1, "between the elements"),
            ("mute", 3, "the oracle gave 0 results for 1 written"),
        ] {
            let found = examine(Some(fault)).failures;
            assert_eq!(found.len(), cases, "{fault}: {found:?}");
            assert!(found.iter().all(|f| f.what.contains(says)), "{fault}: {found:?}");
        }
    }
}

#[test]
fn the_reference_device_runs_a_custom_operator_by_its_oracle() {
    let reference = Registry::new().with(ReferenceBackend::new()).open("reference:0").unwrap();
    let s = stream(&reference);
    let x = up(&s, &[1.0, -2.0]);
    let out = s.empty(x.spec()).unwrap();
    // The kernel is not asked, so its fault does not matter.
    let op = CustomOp::bind(doubled(x.spec(), out.spec(), Some("wrong")), &[&x, &out]).unwrap();
    assert_eq!(reference.support(&op.query(Determinism::Fast)), Support::Native);
    s.run(op).unwrap();
    assert_eq!(down(&s, &out), [2.0, -4.0]);
}

#[test]
fn a_device_without_the_kernel_counts_every_case_as_unsupported_and_no_cases_prove_nothing() {
    let core = Registry::new().with(CoreOnly::new(CpuBackend::new(CpuOptions::default()).unwrap()));
    let s = stream(&core.open("cpu:0").unwrap());
    let subject = Subject { stream: &s, slack: 1.0 };
    let outcome = check_custom(&subject, &doubled_cases(None)[1..]).unwrap();
    assert_eq!((outcome.passed, outcome.unsupported, outcome.failures.len()), (0, 2, 0));
    assert!(matches!(check_custom(&subject, &[]), Err(OpError::Attribute { .. })));
    assert!(compare_custom(&[s.clone(), s.clone()], &[]).is_err());
}

#[test]
fn a_custom_contract_is_checked_when_it_is_made_and_when_it_is_bound() {
    let reference = || -> portolan_core::CustomReference { Arc::new(|_: &[&[f64]]| Vec::new()) };
    let make = |operands| CustomSpec::new("made", operands, reference());
    assert!(matches!(make(vec![("x", f32s(2), Access::Read)]), Err(OpError::Attribute { .. })));
    let twice = make(vec![("x", f32s(2), Access::Read), ("x", f32s(2), Access::Write)]).unwrap_err();
    assert_eq!(twice.to_string(), "made: x names two operands; give each its own name");
    let wide = f32s(1).broadcast_to(&Shape::new(&[4]).unwrap()).unwrap();
    assert!(matches!(make(vec![("out", wide, Access::Write)]), Err(OpError::Layout { .. })));

    let s = stream(&queued());
    let (x, out) = (up(&s, &[1.0, 2.0]), up(&s, &[0.0, 0.0]));
    let spec = doubled(x.spec(), out.spec(), None);
    assert_eq!(spec.cost().bytes_read, 8);
    let bind = |tensors: &[&Tensor]| CustomOp::bind(spec.clone(), tensors);
    assert!(bind(&[&x, &out]).is_ok());
    assert!(matches!(bind(&[&x]), Err(OpError::Layout { .. })));
    assert!(matches!(bind(&[&x, &up(&s, &[0.0])]), Err(OpError::Layout { .. })));
    assert!(matches!(bind(&[&x, &x]), Err(OpError::Aliasing { .. })));
    assert!(matches!(bind(&[&x, &up(&stream(&queued()), &[0.0, 0.0])]), Err(OpError::Device { .. })));
}
