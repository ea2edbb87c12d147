//! Kinds of errors: programs match on them, so they are part of the contract.

use crate::rig::{Check, Rig, Stop, ensure, ensure_eq, ensure_holds, launch_fault, refused, up};
use portolan_core::call::{Binary, Copy, Gemm, RmsNorm};
use portolan_core::{Call, Dispatch, Fallback, Op, OpKind, OpUse, Stream, StreamOptions, Support, Tensor};
use portolan_ops::moe::{ExpertFfnSpec, ExpertsSpec, GroupedGemmSpec};
use portolan_ops::quant::{LinearSpec, PackedSpec, PrepackSpec, UnpackSpec, WeightSpec};
use portolan_ops::{Cost, DType, Determinism, ErrorKind, OpError, Result, TensorSpec, Unsupported};

pub(crate) fn requests_beyond_all_memory_are_shape_errors_or_exhaustion(rig: &Rig) -> Check {
    let s = rig.stream()?;
    for dims in
        [&[usize::MAX][..], &[usize::MAX, 2], &[usize::MAX / 2, 0, 3], &[1 << 59], &[1 << 30, 1 << 29]]
    {
        for dtype in [DType::F64, DType::F32, DType::U8, DType::U4] {
            let result = TensorSpec::of(dtype, dims).and_then(|spec| s.empty(&spec));
            let error = refused(result, &format!("{dtype} of {dims:?}"))?;
            let shape = matches!(error, OpError::Shape { .. });
            ensure!(shape || error.kind() == ErrorKind::ResourceExhausted, "{dtype} of {dims:?}: {error}");
        }
    }
    let x = up(&s, &[1.0])?;
    ensure_holds(&s, &x, &[1.0], "work afterwards")
}

pub(crate) fn operands_of_two_devices_are_refused_and_so_is_a_foreign_stream(rig: &Rig) -> Check {
    // Two openings are two devices, though the hardware is one.
    let other = Rig::new(rig.backend.clone())?;
    let (a, b) = (rig.stream()?, other.stream()?);
    let (x, y) = (up(&a, &[1.0; 3])?, up(&b, &[1.0; 3])?);
    let foreign = |error: OpError, what: &str| -> Check {
        ensure!(matches!(error, OpError::Device { .. }), "{what}: {error}");
        Ok(())
    };
    foreign(refused(Binary::add(&x, &y, &mut x.clone()), "operands of two devices")?, "operands")?;
    foreign(refused(b.run(Binary::add(&x, &x, &mut x.clone())?), "a foreign stream")?, "run")?;
    foreign(refused(b.write(&x, &[1f32; 3]), "a foreign write")?, "write")?;
    foreign(refused(b.download::<f32>(&x), "a foreign download")?, "download")?;
    foreign(refused(b.wait(&a.record()?), "a foreign event")?, "wait")?;
    ensure_holds(&b, &y, &[1.0; 3], "work afterwards")
}

pub(crate) fn an_output_over_another_operand_is_refused(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let x = up(&s, &[1.0; 16])?.reshape(&[4, 4])?;
    let other = up(&s, &[1.0; 16])?.reshape(&[4, 4])?;
    let error = refused(Copy::new(&x, &mut x.clone()), "a copy onto itself")?;
    ensure!(matches!(error, OpError::Aliasing { .. }), "a copy onto itself: {error}");
    let error = refused(Gemm::nn(&x, &other, &mut x.clone()), "a product over its factor")?;
    ensure!(matches!(error, OpError::Aliasing { .. }), "a product over its factor: {error}");
    // Where the operator documents it, in place is legal.
    s.run(Binary::add(&x, &other, &mut x.clone())?)?;
    ensure_holds(&s, &x.reshape(&[16])?, &[2.0; 16], "a sum in place")
}

pub(crate) fn a_fault_is_of_a_kind_that_programs_can_tell(rig: &Rig) -> Check {
    let s = rig.stream()?;
    launch_fault(&s)?;
    let error = refused(s.synchronize(), "synchronize after a fault")?;
    ensure_eq!(error.kind(), ErrorKind::DeviceLost, "the kind of `{error}`");
    Ok(())
}

pub(crate) fn a_stream_that_denies_compositions_refuses_them_and_no_other(rig: &Rig) -> Check {
    let s = rig.stream_with(StreamOptions { fallback: Fallback::Deny, ..StreamOptions::default() })?;
    let (x, mut out) = (up(&s, &[3.0, 4.0])?, up(&s, &[0.0; 2])?);
    let op = RmsNorm::new(&x, &mut out, 0.0)?;
    let promised = rig.device.support(&op.query(Determinism::RunToRun));
    let ran = s.run(op);
    match promised {
        Support::Native => ran?,
        Support::Composed(why) => match refused(ran, "a composition")? {
            OpError::Unsupported { reason, .. } => {
                ensure_eq!(reason, why, "the reason, and what support() said")
            }
            other => return Err(Stop::Broken(format!("a denied composition: {other}"))),
        },
        Support::No(_) => ran?,
    }
    ensure_eq!(s.report().compositions_total(), 0, "compositions on a stream that denies them");
    s.run(Binary::add(&x, &x, &mut out)?)?;
    ensure_holds(&s, &out, &[6.0, 8.0], "a kernel of the core")
}

pub(crate) fn the_report_adds_up_the_cost_of_every_run(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let (a, b) = (up(&s, &[1.0; 128])?.reshape(&[8, 16])?, up(&s, &[1.0; 64])?.reshape(&[4, 16])?);
    let mut want = Cost::default();
    for _ in 0..3 {
        let mut out = s.empty(&TensorSpec::of(DType::F32, &[8, 4])?)?;
        let gemm = Gemm::nt(&a, &b, &mut out)?;
        want += gemm.cost();
        s.run(gemm)?;
    }
    let report = s.report();
    ensure_eq!((report.launches, report.fused, report.composed), (3, want, want), "launches and costs");
    let row = OpUse { kind: OpKind::Gemm, calls: 3, fused: want, composed: want };
    ensure_eq!(report.operators, [row], "the same by operator");
    ensure!(want.flops == 3 * 2 * 8 * 4 * 16, "{} operations", want.flops);
    Ok(())
}

/// No device calls a form so.
const FOREIGN: &str = "nobody's";

/// The call over tensors of the device's, none of which holds anything that matters.
fn over_nothing<C: Dispatch>(s: &Stream, spec: C) -> Result<Call<C>> {
    let mut specs = Vec::new();
    spec.operands(&mut |operand| specs.push(*operand.spec));
    let tensors = specs.iter().map(|spec| s.empty(spec)).collect::<Result<Vec<Tensor>>>()?;
    Call::bind(spec, &tensors.iter().collect::<Vec<_>>())
}

fn refused_for_its_form(s: &Stream, op: impl Op, name: &str) -> Check {
    let promised = s.device().support(&op.query(Determinism::RunToRun));
    let of_form = |why: &Unsupported| matches!(why, Unsupported::Form { got: FOREIGN, .. });
    ensure!(matches!(&promised, Support::No(why) if of_form(why)), "{name}: support says {promised:?}");
    let error = refused(s.run(op), name)?;
    let typed = matches!(&error, OpError::Unsupported { op, reason, .. } if *op == name && of_form(reason));
    ensure!(typed && error.to_string().contains("prepack"), "{name}: {error}");
    Ok(())
}

pub(crate) fn a_weight_in_another_devices_form_is_refused_before_it_is_enqueued(rig: &Rig) -> Check {
    let s = rig.stream()?;
    let x = up(&s, &[1.0; 4])?;
    let f32s = |dims: &[usize]| TensorSpec::of(DType::F32, dims);
    let dense = WeightSpec::dense(&f32s(&[4, 4])?)?;
    let packed = PackedSpec::new(dense.content(), 4, 4, FOREIGN, 64)?;
    let stack = |n| {
        let bytes = TensorSpec::of(DType::U8, &[2, 256])?;
        ExpertsSpec::packed(WeightSpec::dense(&f32s(&[n, 4])?)?.content(), n, 4, FOREIGN, &bytes)
    };
    let (rows, ids) = (f32s(&[3, 4])?, TensorSpec::of(DType::I32, &[3, 1])?);
    let linear = LinearSpec::new(&rows, &packed.clone().into(), &rows)?;
    refused_for_its_form(&s, over_nothing(&s, linear)?, "linear")?;
    let offsets = TensorSpec::of(DType::I32, &[3])?;
    let grouped = GroupedGemmSpec::contiguous(&rows, &stack(4)?, &offsets, &rows)?;
    refused_for_its_form(&s, over_nothing(&s, grouped)?, "grouped_gemm")?;
    let experts = ExpertFfnSpec::new(&rows, &ids, &f32s(&[3, 1])?, &stack(8)?, &stack(4)?, &rows)?;
    refused_for_its_form(&s, over_nothing(&s, experts)?, "expert_ffn")?;
    refused_for_its_form(&s, over_nothing(&s, PrepackSpec::new(&dense, &packed)?)?, "prepack")?;
    refused_for_its_form(&s, over_nothing(&s, UnpackSpec::new(&packed, &dense)?)?, "unpack")?;
    ensure_holds(&s, &x, &[1.0; 4], "work afterwards")
}
