//! One layer of a Llama in bf16 and a step of decoding: what it calls, and that it never waits.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_cann_sys::sim::{Adversary, Call, SimWorld};
use portolan_core::call::{AddRmsNorm, Attention, KvCacheWrite, Linear, RmsNorm, Rope, Swiglu};
use portolan_core::{Fallback, Lens, OpQuery, Stream, StreamOptions, Support, Tensor, Weight};
use portolan_ops::norm::RmsNormSpec;
use portolan_ops::rope::RopeStyle;
use portolan_ops::{DType, Determinism, TensorSpec, Unsupported};
use rig::{assert_empties, open, options, world};

const HIDDEN: usize = 64;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const WIDTH: usize = 96;
const ROOM: usize = 32;

fn tensor(s: &Stream, dims: &[usize]) -> Tensor {
    let spec = TensorSpec::of(DType::BF16, dims).unwrap();
    let mut x = s.empty(&spec).unwrap();
    s.run(portolan_core::call::Fill::new(&mut x, 0.125).unwrap()).unwrap();
    x
}

fn linear(s: &Stream, x: &Tensor, weight: &Weight, n: usize) -> Tensor {
    let mut out = s.empty(&TensorSpec::of(DType::BF16, &[x.dims()[0], n]).unwrap()).unwrap();
    s.run(Linear::new(x, weight, &mut out).unwrap()).unwrap();
    out
}

struct Layer {
    norms: [Tensor; 2],
    qkv: Weight,
    o: Weight,
    gate_up: Weight,
    down: Weight,
    keys: Tensor,
    values: Tensor,
}

impl Layer {
    fn new(s: &Stream) -> Self {
        let weight = |n, k| Weight::Dense(tensor(s, &[n, k]));
        let cache = || tensor(s, &[1, ROOM, KV_HEADS, HEAD_DIM]);
        Self {
            norms: [tensor(s, &[HIDDEN]), tensor(s, &[HIDDEN])],
            qkv: weight((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN),
            o: weight(HIDDEN, HEADS * HEAD_DIM),
            gate_up: weight(2 * WIDTH, HIDDEN),
            down: weight(HIDDEN, WIDTH),
            keys: cache(),
            values: cache(),
        }
    }

    /// The layer's update of the residual, for the one new token of a sequence.
    fn decode(
        &mut self,
        s: &Stream,
        x: &Tensor,
        residual: &mut Tensor,
        at: &[Tensor; 1],
        lens: &[Lens; 2],
    ) -> Tensor {
        let normed = |weight: &Tensor, x: &Tensor, residual: &mut Tensor| {
            let mut out = s.empty(x.spec()).unwrap();
            let norm = AddRmsNorm::new(x, residual, &mut out, 1e-5).unwrap().weight(weight).unwrap();
            s.run(norm).unwrap();
            out
        };
        let x = normed(&self.norms[0], x, residual);
        let all = HEADS + 2 * KV_HEADS;
        let qkv = linear(s, &x, &self.qkv, all * HEAD_DIM).reshape(&[1, all, HEAD_DIM]).unwrap();
        let turned = qkv.narrow(1, 0, HEADS + KV_HEADS).unwrap();
        s.run(Rope::new(RopeStyle::SplitHalf, &turned, &at[0], 10_000.0, &mut turned.clone()).unwrap())
            .unwrap();
        for (start, cache) in [(HEADS, &mut self.keys), (HEADS + KV_HEADS, &mut self.values)] {
            let new = qkv.narrow(1, start, KV_HEADS).unwrap();
            s.run(KvCacheWrite::new(&new, cache, &lens[0], &lens[1]).unwrap()).unwrap();
        }
        let q = qkv.narrow(1, 0, HEADS).unwrap();
        let mut out = s.empty(&TensorSpec::of(DType::BF16, &[1, HEADS, HEAD_DIM]).unwrap()).unwrap();
        let attention = Attention::new(&q, &self.keys, &self.values, &lens[0], &lens[1], &mut out).unwrap();
        s.run(attention).unwrap();
        let x = linear(s, &out.reshape(&[1, HEADS * HEAD_DIM]).unwrap(), &self.o, HIDDEN);
        let x = normed(&self.norms[1], &x, residual);
        let both = linear(s, &x, &self.gate_up, 2 * WIDTH);
        let mut gated = s.empty(&TensorSpec::of(DType::BF16, &[1, WIDTH]).unwrap()).unwrap();
        s.run(Swiglu::fused(&both, &mut gated).unwrap()).unwrap();
        linear(s, &gated, &self.down, HIDDEN)
    }
}

/// Operators that were launched, without their first phases.
fn launches(calls: &[Call]) -> Vec<&str> {
    let launched = |name: &&str| name.starts_with("aclnn") && !name.ends_with("GetWorkspaceSize");
    calls.iter().map(|call| call.name.as_str()).filter(launched).collect()
}

fn last(world: &SimWorld) -> u64 {
    world.calls(0).unwrap().last().map_or(0, |call| call.number)
}

#[test]
fn a_step_of_decoding_runs_native_without_waiting() {
    let world = world("A3", Adversary::Late, 0);
    let device = open(&world);
    let s = device.stream(StreamOptions { fallback: Fallback::Deny, ..StreamOptions::default() }).unwrap();
    let mut layer = Layer::new(&s);
    let (x, mut residual) = (tensor(&s, &[1, HIDDEN]), tensor(&s, &[1, HIDDEN]));
    let at = [s.upload(&[7i32], &rig::shape(1)).unwrap()];
    let lens = [Lens::upload(&s, &[1], 1).unwrap(), Lens::upload(&s, &[8], ROOM as u32).unwrap()];
    // Once to fill what is made on first use.
    layer.decode(&s, &x, &mut residual, &at, &lens);
    let before = last(&world);
    layer.decode(&s, &x, &mut residual, &at, &lens);
    let calls = world.calls(before).unwrap();
    let waits: Vec<&str> =
        calls.iter().map(|call| call.name.as_str()).filter(|name| name.contains("Synchronize")).collect();
    assert!(waits.is_empty(), "{waits:?}");
    let launched = launches(&calls);
    println!("{}: {launched:?}", launched.len());
    // Ten operators, of which turning the heads takes six: three for the angles, and in f32 there and back.
    assert!(launched.len() <= 16, "{} launches: {launched:?}", launched.len());
    drop((layer, x, residual, at, lens, s, device));
    assert_empties(&world);
}

#[test]
fn a_captured_step_of_decoding_is_one_call_and_gives_the_same() {
    let world = world("A3", Adversary::Late, 1);
    let device = open(&world);
    let s = rig::stream(&device);
    let mut layer = Layer::new(&s);
    let (x, mut residual) = (tensor(&s, &[1, HIDDEN]), tensor(&s, &[1, HIDDEN]));
    let at = [s.upload(&[7i32], &rig::shape(1)).unwrap()];
    let lens = [Lens::upload(&s, &[1], 1).unwrap(), Lens::upload(&s, &[8], ROOM as u32).unwrap()];
    let before = s.report();
    let eager = layer.decode(&s, &x, &mut residual, &at, &lens);
    let want = s.download_bytes(eager.buffer()).unwrap().wait().unwrap();
    let one = s.report();
    s.run(portolan_core::call::Fill::new(&mut residual, 0.125).unwrap()).unwrap();
    let filled = s.report();
    let mut out = None;
    let graph = s
        .capture(|s| {
            out = Some(layer.decode(s, &x, &mut residual, &at, &lens));
            Ok(())
        })
        .unwrap();
    assert!(graph.is_recorded());
    assert_eq!(s.report().launches, filled.launches, "capturing ran something");
    let start = last(&world);
    graph.replay(&s).unwrap();
    let calls = world.calls(start).unwrap();
    let kernels = launches(&calls);
    assert!(kernels.is_empty(), "{kernels:?}");
    assert_eq!(calls.iter().filter(|call| call.name == "aclmdlRIExecuteAsync").count(), 1);
    let got = s.download_bytes(out.unwrap().buffer()).unwrap().wait().unwrap();
    assert_eq!(got, want);
    // The account knows no difference, but that a replay is one launch.
    let replayed = s.report();
    let cost = |a: &portolan_core::StreamReport, b: &portolan_core::StreamReport| {
        (
            b.fused.flops - a.fused.flops,
            b.composed.flops - a.composed.flops,
            b.compositions_total() - a.compositions_total(),
        )
    };
    assert_eq!(cost(&filled, &replayed), cost(&before, &one));
    assert_eq!(replayed.launches - filled.launches, 1);
    drop((graph, layer, x, residual, at, lens, eager, s, device));
    assert_empties(&world);
}

#[test]
fn without_the_fused_symbol_the_operator_is_composed_and_says_why() {
    let hidden = vec!["aclnnRmsNormGetWorkspaceSize".to_owned()];
    let world =
        SimWorld::new(&portolan_cann_sys::sim::SimOptions { hidden, ..options("A3", Adversary::Late, 0) });
    let world = world.unwrap();
    let device = open(&world);
    let s = rig::stream(&device);
    let spec = TensorSpec::of(DType::F32, &[2, 2]).unwrap();
    let norm = RmsNormSpec::new(&spec, &spec, 0.0).unwrap();
    let query = portolan_core::SpecRef::RmsNorm(&norm);
    let why = device.support(&OpQuery { spec: query, determinism: Determinism::RunToRun });
    assert_eq!(why, Support::Composed(Unsupported::Symbol("aclnnRmsNormGetWorkspaceSize")));
    let x = s.upload(&[3f32, 3.0, -2.0, 2.0], spec.shape()).unwrap();
    let mut out = s.empty(&spec).unwrap();
    s.run(RmsNorm::new(&x, &mut out, 0.0).unwrap()).unwrap();
    let got = s.download::<f32>(&out).unwrap().wait().unwrap();
    assert!(got.iter().zip([1.0, 1.0, -1.0, 1.0]).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?}");
    assert_eq!(s.report().compositions.len(), 1);
    drop((x, out, s, device));
    assert_empties(&world);
}
