//! Arguments with memory: overlap, devices, compositions and what the report says of them.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_core::call::{Binary, Copy, Gather, Gemm, RmsNorm, Scatter, Softmax, TopK, Unary};
use portolan_core::{CustomOp, Fallback, Op, Stream, StreamOptions, Support, Tensor};
use portolan_ops::kernel::{ScatterMode, UnaryKind};
use portolan_ops::{Access, Cost, DType, Determinism, OpError, Result, Shape, TensorSpec, Tolerance};
use proptest::prelude::*;
use rig::{down, queued, stream, up};
use std::sync::Arc;

fn matrix(s: &Stream, rows: usize, columns: usize) -> Tensor {
    up(s, &vec![1.0; rows * columns]).reshape(&[rows, columns]).unwrap()
}

fn assert_aliasing<T>(result: Result<T>) {
    match result.map(|_| ()).unwrap_err() {
        OpError::Aliasing { .. } => {}
        other => panic!("{other}"),
    }
}

#[test]
fn an_output_may_be_its_input_only_where_that_is_documented() {
    let s = stream(&queued());
    let x = matrix(&s, 4, 4);
    let mut same = x.clone();
    s.run(Binary::add(&x, &x, &mut same).unwrap()).unwrap();
    s.run(Unary::new(UnaryKind::Neg, &x, &mut same).unwrap()).unwrap();
    assert_eq!(down(&s, &x.reshape(&[16]).unwrap()), [-2.0; 16]);
    assert_aliasing(Copy::new(&x, &mut same));
    assert_aliasing(Gemm::nn(&x, &matrix(&s, 4, 4), &mut same));
    // In place means the same view, not one beside it or across it.
    assert_aliasing(Binary::add(&x.transpose(0, 1).unwrap(), &matrix(&s, 4, 4), &mut same));
    let long = matrix(&s, 5, 4);
    let (head, mut tail) = (long.narrow(0, 0, 4).unwrap(), long.narrow(0, 1, 4).unwrap());
    assert_aliasing(Binary::add(&head, &head, &mut tail));
    // An operand that is not the documented one may not be the output.
    let index = s.upload(&[0i32, 1], &Shape::new(&[2]).unwrap()).unwrap();
    let rows = x.narrow(0, 0, 2).unwrap();
    assert_aliasing(Scatter::new(ScatterMode::Set, &x, 0, &index, &rows, &mut same));
}

#[test]
fn slices_of_one_fused_projection_do_not_overlap() {
    let s = stream(&queued());
    let qkv = matrix(&s, 6, 30);
    let part = |i: usize| qkv.narrow(1, i * 10, 10).unwrap();
    let mut k = part(1);
    s.run(Binary::add(&part(0), &part(2), &mut k).unwrap()).unwrap();
    let got = down(&s, &qkv);
    assert!(
        got.chunks(10).enumerate().all(|(i, c)| c.iter().all(|&v| v == if i % 3 == 1 { 2.0 } else { 1.0 }))
    );
    for (column, other) in [(5, 0), (5, 1), (0, 0)] {
        assert_aliasing(Copy::new(&qkv.narrow(1, column, 10).unwrap(), &mut part(other)));
    }
}

#[test]
fn views_of_unequal_strides_are_judged_by_their_bytes() {
    let s = stream(&queued());
    let all = up(&s, &[1.0; 60]);
    let turned = all.narrow(0, 0, 18).unwrap().reshape(&[3, 6]).unwrap().transpose(0, 1).unwrap();
    let rows_from = |first: usize| all.narrow(0, first, 18).unwrap().reshape(&[6, 3]).unwrap();
    s.run(Copy::new(&turned, &mut rows_from(18)).unwrap()).unwrap();
    for first in [0, 1, 17] {
        assert_aliasing(Copy::new(&turned, &mut rows_from(first)));
    }
}

#[test]
fn two_outputs_may_not_be_one() {
    let s = stream(&queued());
    let x = matrix(&s, 4, 8);
    let values = matrix(&s, 4, 2);
    let bits = Tensor::new(values.buffer().clone(), TensorSpec::of(DType::I32, &[4, 2]).unwrap()).unwrap();
    assert_aliasing(TopK::new(&x, &mut values.clone(), &mut bits.clone()));
}

/// Attention over heads wider than the native kernel takes.
fn composed_call(s: &Stream) -> impl Op {
    use portolan_core::{Lens, call::Attention};
    const WIDE: usize = 4104;
    let q = up(s, &[0.5; 2 * WIDE]).reshape(&[2, 1, WIDE]).unwrap();
    let cache = || up(s, &[0.25; 2 * WIDE]).reshape(&[1, 2, 1, WIDE]).unwrap();
    let mut out = s.empty(q.spec()).unwrap();
    let (q_lens, kv_lens) = (Lens::upload(s, &[2], 2).unwrap(), Lens::upload(s, &[2], 2).unwrap());
    Attention::new(&q, &cache(), &cache(), &q_lens, &kv_lens, &mut out).unwrap()
}

#[test]
fn compositions_are_counted_with_their_reason_and_refused_where_denied() {
    let device = queued();
    let s = stream(&device);
    let op = composed_call(&s);
    let Support::Composed(reason) = device.support(&op.query(Determinism::Fast)) else {
        panic!("heads of this width were composed when the test was written; choose other arguments");
    };
    let (kind, cost) = (op.kind(), op.cost());
    s.run(op).unwrap();
    s.synchronize().unwrap();
    let report = s.report();
    assert_eq!(report.compositions, [(kind, reason.clone(), 1)]);
    assert_eq!(report.fused, cost);
    assert!(report.composed.bytes_read > cost.bytes_read, "{:?}", report.composed);
    let strict =
        device.stream(StreamOptions { fallback: Fallback::Deny, ..StreamOptions::default() }).unwrap();
    let error = strict.run(composed_call(&strict)).unwrap_err();
    assert!(matches!(&error, OpError::Unsupported { reason: why, .. } if *why == reason), "{error}");
    let op = composed_call(&strict);
    let captured = strict.capture(|s| s.run(op)).map(|_| ());
    assert!(matches!(captured, Err(OpError::Unsupported { .. })), "{captured:?}");
    assert_eq!(down(&strict, &up(&strict, &[1.0])), [1.0]);
}

#[test]
fn the_report_adds_up_the_cost_of_every_run() {
    let s = stream(&queued());
    let (a, b) = (matrix(&s, 8, 16), matrix(&s, 4, 16));
    let mut want = Cost::default();
    for _ in 0..3 {
        let mut out = matrix(&s, 8, 4);
        let gemm = Gemm::nt(&a, &b, &mut out).unwrap();
        want += gemm.cost();
        s.run(gemm).unwrap();
        let soft = Softmax::new(&out, &mut matrix(&s, 8, 4)).unwrap();
        want += soft.cost();
        s.run(soft).unwrap();
    }
    let report = s.report();
    assert_eq!((report.launches, report.fused, report.composed), (6, want, want));
    assert_eq!((report.compositions_total(), report.prepacks), (0, 0));
    assert!(want.flops >= 3 * 2 * 8 * 4 * 16);
}

#[test]
fn an_operator_without_output_elements_is_booked_and_not_launched() {
    let s = stream(&queued());
    let x = s.empty(&TensorSpec::of(DType::F32, &[0, 4]).unwrap()).unwrap();
    s.run(Softmax::new(&x, &mut x.clone().narrow(0, 0, 0).unwrap()).unwrap()).unwrap();
    assert_eq!(s.report().launches, 1);
    s.synchronize().unwrap();
}

#[test]
fn a_custom_output_that_repeats_elements_is_refused() {
    let s = stream(&queued());
    let wide = up(&s, &[1.0]).broadcast_to(&[4]).unwrap();
    let reference = Arc::new(|_: &[&[f64]]| Vec::new());
    let op = CustomOp::new("wide", vec![(wide, Access::Write)], Cost::default(), Tolerance::EXACT, reference);
    assert!(matches!(op, Err(OpError::Layout { .. })));
}

/// A view of a small buffer: narrowed, exchanged, stretched, reshaped at random. Steps that are not legal are
/// left out.
fn view(x: &Tensor, steps: &[(u8, usize, usize, usize)]) -> Tensor {
    let mut x = x.clone();
    for &(what, a, b, c) in steps {
        let next = match what % 5 {
            0 => x.narrow(a % 4, b, c),
            1 => x.transpose(a % 4, b % 4),
            2 => x.select(a % 4, b),
            3 => x.broadcast_to(&[a, b, c]),
            _ => x.reshape(&[a, b, c]),
        };
        x = next.unwrap_or(x);
    }
    x
}

fn steps() -> impl Strategy<Value = Vec<(u8, usize, usize, usize)>> {
    let small = || prop_oneof![0usize..7, Just(usize::MAX), Just(1 << 40)];
    prop::collection::vec((any::<u8>(), small(), small(), small()), 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn any_views_are_taken_or_refused_and_never_a_panic(
        (a, b, out) in (steps(), steps(), steps()), shared in any::<bool>(), at in 0usize..3,
    ) {
        let s = stream(&queued());
        let base = |v: f32| up(&s, &[v; 24]).reshape(&[2, 3, 4]).unwrap();
        let memory = base(1.0);
        let (x, y) = (view(&memory, &a), view(&base(2.0), &b));
        let mut out = view(&if shared { memory } else { base(3.0) }, &out);
        let index = s.upload(&[0i32, 1], &Shape::new(&[2]).unwrap()).unwrap();
        // Whether an operator is legal does not matter here; one that is must run.
        macro_rules! run { ($($op:expr),* $(,)?) => { $( if let Ok(op) = $op { s.run(op)?; } )* } }
        run! {
            Binary::add(&x, &y, &mut out),
            Copy::new(&x, &mut out),
            Gemm::nt(&x, &y, &mut out),
            Gemm::nn(&x, &y, &mut out),
            Softmax::new(&x, &mut out),
            RmsNorm::new(&x, &mut out, 1e-5),
            Gather::slices(&x, at, &index, &mut out),
            Scatter::new(ScatterMode::Add, &x, at, &index, &y, &mut out),
        }
        // Legal arguments may still hold an index beyond a short dimension: a fault, not a panic.
        match s.synchronize() {
            Ok(()) | Err(OpError::Poisoned { .. }) => {}
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        }
    }
}
