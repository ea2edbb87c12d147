//! One layer of a Llama in bf16 and a step of decoding: what it calls, and that it never waits.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_cann_sys::sim::{Adversary, Call, PlannedFault, SimOptions, SimWorld};
use portolan_core::call::{
    AddRmsNorm, Attention, Binary, Cast, Fill, KvCacheWrite, Linear, RmsNorm, Rope, Swiglu,
};
use portolan_core::{
    Fallback, Lens, Op, OpQuery, QuantTensor, SpecRef, Stream, StreamOptions, Support, Tensor, Weight,
};
use portolan_ops::attention::{AttentionSpec, LensSpec};
use portolan_ops::kernel::BinaryKind;
use portolan_ops::norm::RmsNormSpec;
use portolan_ops::quant::{LinearSpec, Offset, QuantScheme, QuantSpec, ScaleKind};
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
    s.run(Fill::new(&mut x, 0.125).unwrap()).unwrap();
    x
}

fn linear(s: &Stream, x: &Tensor, weight: &Weight, n: usize, dtype: DType) -> Tensor {
    let mut out = s.empty(&TensorSpec::of(dtype, &[x.dims()[0], n]).unwrap()).unwrap();
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
        // Packed for what the layer does with it, results in f32 or not.
        let weight = |n: usize, k: usize, out: DType| {
            let row = |dtype, n| TensorSpec::of(dtype, &[1, n]).unwrap();
            let weight = Weight::Dense(tensor(s, &[n, k]));
            let call = LinearSpec::new(&row(DType::BF16, k), &weight.spec().unwrap(), &row(out, n)).unwrap();
            s.prepack(&weight, &call).unwrap()
        };
        let cache = || tensor(s, &[1, ROOM, KV_HEADS, HEAD_DIM]);
        Self {
            norms: [tensor(s, &[HIDDEN]), tensor(s, &[HIDDEN])],
            qkv: weight((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN, DType::F32),
            o: weight(HIDDEN, HEADS * HEAD_DIM, DType::BF16),
            gate_up: weight(2 * WIDTH, HIDDEN, DType::BF16),
            down: weight(HIDDEN, WIDTH, DType::BF16),
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
        at: &Tensor,
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
        // What is turned is turned in f32 and rounded once, on its way into the cache and to the attention.
        let qkv = linear(s, &x, &self.qkv, all * HEAD_DIM, DType::F32).reshape(&[1, all, HEAD_DIM]).unwrap();
        let heads = qkv.narrow(1, 0, HEADS + KV_HEADS).unwrap();
        let mut turned = s.empty(&TensorSpec::of(DType::F32, heads.dims()).unwrap()).unwrap();
        s.run(Rope::new(RopeStyle::SplitHalf, &heads, at, 10_000.0, &mut turned).unwrap()).unwrap();
        let new = [turned.narrow(1, HEADS, KV_HEADS), qkv.narrow(1, HEADS + KV_HEADS, KV_HEADS)];
        for (new, cache) in new.into_iter().zip([&mut self.keys, &mut self.values]) {
            s.run(KvCacheWrite::new(&new.unwrap(), cache, &lens[0], &lens[1]).unwrap()).unwrap();
        }
        let mut q = s.empty(&TensorSpec::of(DType::BF16, &[1, HEADS, HEAD_DIM]).unwrap()).unwrap();
        s.run(Cast::new(&turned.narrow(1, 0, HEADS).unwrap(), &mut q).unwrap()).unwrap();
        let mut out = s.empty(&TensorSpec::of(DType::BF16, &[1, HEADS, HEAD_DIM]).unwrap()).unwrap();
        let attention = Attention::new(&q, &self.keys, &self.values, &lens[0], &lens[1], &mut out).unwrap();
        s.run(attention).unwrap();
        let x = linear(s, &out.reshape(&[1, HEADS * HEAD_DIM]).unwrap(), &self.o, HIDDEN, DType::BF16);
        let x = normed(&self.norms[1], &x, residual);
        let both = linear(s, &x, &self.gate_up, 2 * WIDTH, DType::BF16);
        let mut gated = s.empty(&TensorSpec::of(DType::BF16, &[1, WIDTH]).unwrap()).unwrap();
        s.run(Swiglu::fused(&both, &mut gated).unwrap()).unwrap();
        linear(s, &gated, &self.down, HIDDEN, DType::BF16)
    }
}

/// Operators that were launched, without their first phases.
fn launches(calls: &[Call]) -> Vec<&str> {
    let launched = |name: &&str| name.starts_with("aclnn") && !name.ends_with("GetWorkspaceSize");
    calls.iter().map(|call| call.name.as_str()).filter(launched).collect()
}

/// First phases.
fn planned(calls: &[Call]) -> Vec<&str> {
    let first = |name: &&str| name.ends_with("GetWorkspaceSize");
    calls.iter().map(|call| call.name.as_str()).filter(first).collect()
}

/// Weights that were made into blocks.
fn packed(calls: &[Call]) -> usize {
    launches(calls).iter().filter(|name| **name == "aclnnNpuFormatCast").count()
}

fn last(world: &SimWorld) -> u64 {
    world.calls(0).unwrap().last().map_or(0, |call| call.number)
}

#[test]
fn a_step_of_decoding_runs_native_without_waiting() {
    let world = world("A3", Adversary::Late, 0);
    let device = open(&world);
    let s = device.stream(StreamOptions { fallback: Fallback::Deny, ..StreamOptions::default() }).unwrap();
    let mut layers = [Layer::new(&s), Layer::new(&s), Layer::new(&s)];
    let (x, mut residual) = (tensor(&s, &[1, HIDDEN]), tensor(&s, &[1, HIDDEN]));
    let mut at = s.upload(&[6i32], &rig::shape(1)).unwrap();
    let [q_lens, first, second] =
        [(1, 1), (7, ROOM), (8, ROOM)].map(|(len, max)| Lens::upload(&s, &[len], max as u32).unwrap());
    // A step to fill what is made on first use, and one that is looked at.
    let mut step = |kv_lens: &Lens, at: &Tensor| {
        let lens = [q_lens.clone(), kv_lens.clone()];
        let calls = layers.each_mut().map(|layer| {
            let before = last(&world);
            layer.decode(&s, &x, &mut residual, at, &lens);
            world.calls(before).unwrap()
        });
        calls.map(|calls| {
            let waits = calls.iter().filter(|call| call.name.contains("Synchronize")).count();
            assert_eq!(waits, 0);
            let launched = launches(&calls);
            println!("{}: {launched:?}", launched.len());
            launched.len()
        })
    };
    step(&first, &at);
    s.run(Fill::new(&mut at, 7.0).unwrap()).unwrap();
    // Twelve operators; the first layer also makes the angles' cosines and sines, which the others find.
    let before = last(&world);
    assert_eq!(step(&second, &at), [15, 12, 12]);
    // All were planned in the first step, but those whose lengths are new.
    let calls = world.calls(before).unwrap();
    let products = |name: &str| launches(&calls).iter().filter(|launched| **launched == name).count();
    // Of a layer's products three are over weights in blocks, which were made once; one gives f32, and is not.
    assert_eq!([products("aclnnMatmulWeightNz"), products("aclnnMatmul")], [9, 3]);
    assert_eq!((s.report().prepacks, world.calls(0).map(|calls| packed(&calls)).unwrap()), (9, 9));
    assert_eq!(planned(&calls), ["aclnnFusedInferAttentionScoreV5GetWorkspaceSize"; 3]);
    assert!(calls.iter().any(|call| call.name == "aclSetTensorAddr"));
    drop((layers, x, residual, at, [q_lens, first, second], s, device));
    assert_empties(&world);
}

/// Rotations of rows of ones by these positions, three times: a table is made and found.
fn turned(s: &Stream, at: &Tensor, theta: f64, heads: usize) -> Vec<f32> {
    let spec = TensorSpec::of(DType::F32, &[at.numel(), heads, 8]).unwrap();
    let (mut ones, mut out) = (s.empty(&spec).unwrap(), s.empty(&spec).unwrap());
    s.run(Fill::new(&mut ones, 1.0).unwrap()).unwrap();
    for _ in 0..3 {
        s.run(Rope::new(RopeStyle::SplitHalf, &ones, at, theta, &mut out).unwrap()).unwrap();
    }
    s.download::<f32>(&out).unwrap().wait().unwrap()
}

#[test]
fn kept_angles_are_those_of_the_positions_that_are_there_now() {
    for (adversary, seed) in [(Adversary::Late, 0), (Adversary::Early, 0), (Adversary::Seeded, 3)] {
        let world = world("A3", adversary, seed);
        let device = open(&world);
        let (s, other) = (rig::stream(&device), rig::stream(&device));
        let fresh = |values: &[i32], theta| {
            let s = rig::stream(&device);
            turned(&s, &s.upload(values, &rig::shape(values.len())).unwrap(), theta, 2)
        };
        let mut at = s.upload(&[3i32], &rig::shape(1)).unwrap();
        assert_eq!(turned(&s, &at, 1e4, 2), fresh(&[3], 1e4));
        // The same memory, written by this stream and by another one.
        s.run(Fill::new(&mut at, 9.0).unwrap()).unwrap();
        assert_eq!(turned(&s, &at, 1e4, 2), fresh(&[9], 1e4));
        other.run(Fill::new(&mut at, 70.0).unwrap()).unwrap();
        assert_eq!(turned(&s, &at, 1e4, 2), fresh(&[70], 1e4));
        // More kinds of rotations than are kept, tables of more and more tokens, and the first ones again.
        for round in 0..2 {
            for theta in [1e4, 2e4, 3e4, 4e4, 5e4, 6e4] {
                assert_eq!(turned(&s, &at, theta, 2), fresh(&[70], theta), "round {round}");
            }
            let many: Vec<i32> = (0..200 * (round + 1)).map(|i| i * 7 % 101).collect();
            let long = s.upload(&many, &rig::shape(many.len())).unwrap();
            assert_eq!(turned(&s, &long, 1e4, 2), fresh(&many, 1e4), "round {round}");
        }
        drop((at, s, other, device));
        assert_empties(&world);
    }
}

#[test]
fn a_replayed_graph_turns_by_the_positions_of_its_replay() {
    let world = world("A3", Adversary::Late, 0);
    let device = open(&world);
    let s = rig::stream(&device);
    let mut at = s.upload(&[3i32], &rig::shape(1)).unwrap();
    let spec = TensorSpec::of(DType::F32, &[1, 1, 8]).unwrap();
    let (mut ones, mut out) = (s.empty(&spec).unwrap(), s.empty(&spec).unwrap());
    s.run(Fill::new(&mut ones, 1.0).unwrap()).unwrap();
    let rope = |out: &mut Tensor, at: &Tensor| {
        s.run(Rope::new(RopeStyle::SplitHalf, &ones, at, 1e4, out).unwrap()).unwrap();
    };
    // A table of these positions is there before the graph is recorded.
    rope(&mut out, &at);
    let graph = s
        .capture(|s| {
            s.run(Rope::new(RopeStyle::SplitHalf, &ones, &at, 1e4, &mut out).unwrap())?;
            Ok(())
        })
        .unwrap();
    for position in [3i32, 5, 8] {
        s.run(Fill::new(&mut at, f64::from(position)).unwrap()).unwrap();
        graph.replay(&s).unwrap();
        let got = s.download::<f32>(&out).unwrap().wait().unwrap();
        let fresh = rig::stream(&device);
        let want = turned(&fresh, &fresh.upload(&[position], &rig::shape(1)).unwrap(), 1e4, 1);
        assert_eq!(got, want, "{position}");
    }
    drop((graph, at, ones, out, s, device));
    assert_empties(&world);
}

#[test]
fn a_captured_step_of_decoding_is_one_call_and_gives_the_same() {
    let world = world("A3", Adversary::Late, 1);
    let device = open(&world);
    let s = rig::stream(&device);
    let mut layer = Layer::new(&s);
    let (x, mut residual) = (tensor(&s, &[1, HIDDEN]), tensor(&s, &[1, HIDDEN]));
    let at = s.upload(&[7i32], &rig::shape(1)).unwrap();
    let lens = [Lens::upload(&s, &[1], 1).unwrap(), Lens::upload(&s, &[8], ROOM as u32).unwrap()];
    let before = s.report();
    let eager = layer.decode(&s, &x, &mut residual, &at, &lens);
    let bytes = |x: &Tensor| {
        let memory = s.download_bytes(x.buffer()).unwrap().wait().unwrap();
        memory[..x.spec().bytes()].to_vec()
    };
    let want = bytes(&eager);
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
    assert_eq!(bytes(&out.unwrap()), want);
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
    let world = SimWorld::new(&SimOptions { hidden, ..options("A3", Adversary::Late, 0) });
    let world = world.unwrap();
    let device = open(&world);
    let s = rig::stream(&device);
    let spec = TensorSpec::of(DType::F32, &[2, 2]).unwrap();
    let norm = RmsNormSpec::new(&spec, &spec, 0.0).unwrap();
    let query = SpecRef::RmsNorm(&norm);
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

/// What a device of a world says of a layer `[1, 64]` to `[1, 8]` over codes, and by which product it runs.
fn expanding(world: &SimWorld, scheme: QuantScheme, [x, out]: [DType; 2]) -> (Support, Vec<String>) {
    let device = open(world);
    let s = rig::stream(&device);
    let of = |spec: &TensorSpec| s.empty(spec).unwrap();
    let parts = QuantSpec::of(scheme, 8, 64).unwrap();
    let weight = Weight::Quant(
        QuantTensor::new(
            scheme,
            of(parts.codes()),
            of(parts.scale()),
            parts.offset().map(of),
            parts.outer().map(of),
            parts.outer_offset().map(of),
        )
        .unwrap(),
    );
    let row = |dtype, n| s.empty(&TensorSpec::of(dtype, &[1, n]).unwrap()).unwrap();
    let layer = Linear::new(&row(x, 64), &weight, &mut row(out, 8)).unwrap();
    let said = device.support(&layer.query(Determinism::RunToRun));
    let before = last(world);
    s.run(layer).unwrap();
    s.synchronize().unwrap();
    let calls = world.calls(before).unwrap();
    let products = launches(&calls).into_iter().filter(|name| name.contains("WeightQuant"));
    (said, products.map(str::to_owned).collect())
}

#[test]
fn codes_are_expanded_where_nothing_is_rounded_but_the_weight() {
    const V2: &str = "aclnnWeightQuantBatchMatmulV2";
    let symbol = |version: &str| format!("aclnnWeightQuantBatchMatmul{version}GetWorkspaceSize");
    let without = |hidden: &[&str]| {
        let hidden = hidden.iter().map(|version| symbol(version)).collect();
        let options = SimOptions { hidden, ..options("A3", Adversary::Late, 0) };
        SimWorld::new(&options).unwrap()
    };
    let (half, brain, wide) = (DType::F16, DType::BF16, DType::F32);
    let group =
        |columns| QuantScheme::new(DType::I8, [1, columns], ScaleKind::F16, Offset::ZeroPoint).unwrap();
    let whole = without(&[]);
    for (scheme, types, why) in [
        (QuantScheme::Q4_0, [half, half], None),
        (group(32), [half, half], None),
        // A scale, a minimum, a result or a sum of other types would be rounded on the way.
        (QuantScheme::Q4_0, [brain, brain], Some(Unsupported::Precision)),
        (QuantScheme::Q4_0, [half, wide], Some(Unsupported::Precision)),
        (QuantScheme::Q4_1, [half, half], Some(Unsupported::Precision)),
        (QuantScheme::Q4_K, [half, half], Some(Unsupported::Precision)),
        (QuantScheme::MXFP4, [brain, brain], Some(Unsupported::DType(DType::F4E2M1))),
        (group(24), [half, half], Some(Unsupported::Shape("whole groups of a multiple of 32 columns"))),
    ] {
        let (said, products) = expanding(&whole, scheme, types);
        assert_eq!(said, why.clone().map_or(Support::Native, Support::Composed), "{scheme:?}");
        let want = if why.is_some() { vec![] } else { vec!["aclnnWeightQuantBatchMatmulV3"] };
        assert_eq!(products, want, "{scheme:?}");
    }
    let older = without(&["V3"]);
    assert_eq!(expanding(&older, QuantScheme::Q4_0, [half; 2]), (Support::Native, vec![V2.to_owned()]));
    let none = without(&["V2", "V3"]);
    let missing = Unsupported::Symbol("aclnnWeightQuantBatchMatmulV2GetWorkspaceSize");
    assert_eq!(
        expanding(&none, QuantScheme::Q4_0, [half; 2]),
        (Support::Composed(missing), Vec::<String>::new())
    );
    for world in [whole, older, none] {
        assert_empties(&world);
    }
}

#[test]
fn a_ragged_batch_is_a_call_for_each_run_of_lengths() {
    let world = world("A3", Adversary::Late, 0);
    let device = open(&world);
    let s = rig::stream(&device);
    let (new, all) = ([2u32, 1, 1, 0, 5], [9u32, 4, 20, 7, 5]);
    let (tokens, padding) = (9, 2);
    let noise = |dims: &[usize], seed: usize| {
        let spec = TensorSpec::of(DType::F32, dims).unwrap();
        let values: Vec<f32> =
            (0..spec.numel()).map(|i| ((i * 37 + seed) % 101) as f32 / 50.0 - 1.0).collect();
        let (x, mut out) =
            (s.upload(&values, spec.shape()).unwrap(), s.empty(&spec.with_dtype(DType::BF16)).unwrap());
        s.run(Cast::new(&x, &mut out).unwrap()).unwrap();
        out
    };
    let q = noise(&[tokens + padding, 4, 16], 1);
    let (k, v) = (noise(&[5, 24, 2, 16], 2), noise(&[5, 24, 2, 16], 3));
    let lens = [&new, &all].map(|lens| Lens::upload(&s, lens, 24).unwrap());
    // What only the device knows is composed.
    let unknown = [0, 1].map(|i| Lens::new(lens[i].tensor().clone(), 24, None).unwrap());
    let attend = |lens: &[Lens; 2]| {
        let mut out = s.empty(q.spec()).unwrap();
        let mut lse = s.empty(&TensorSpec::of(DType::F32, &[tokens + padding, 4]).unwrap()).unwrap();
        let before = last(&world);
        let call = Attention::new(&q, &k, &v, &lens[0], &lens[1], &mut out).unwrap();
        s.run(call.lse(&mut lse).unwrap()).unwrap();
        let calls = world.calls(before).unwrap();
        let fused = launches(&calls).iter().filter(|name| name.contains("FusedInferAttention")).count();
        let mut wide = s.empty(&q.spec().with_dtype(DType::F32)).unwrap();
        s.run(Cast::new(&out, &mut wide).unwrap()).unwrap();
        let [out, lse] = [&wide, &lse].map(|x| s.download::<f32>(x).unwrap().wait().unwrap());
        (fused, out, lse)
    };
    let ((calls, out, lse), (composed, want, want_lse)) = (attend(&lens), attend(&unknown));
    assert_eq!((calls, composed), (3, 0));
    // Two roundings to bf16 of means of numbers of at most 1.
    assert!(out.iter().zip(&want).all(|(got, want)| (got - want).abs() <= 8e-3), "{out:?} {want:?}");
    let close = |(got, want): (&f32, &f32)| got == want || (got - want).abs() < 1e-4;
    assert!(lse.iter().zip(&want_lse).all(close), "{lse:?} {want_lse:?}");
    assert!(out[tokens * 64..].iter().all(|x| *x == 0.0));
    assert!(lse[tokens * 4..].iter().all(|x| *x == f32::NEG_INFINITY));
    drop((q, k, v, lens, unknown, s, device));
    assert_empties(&world);
}

#[test]
fn rows_find_their_pages_on_the_device_and_padding_finds_none() {
    let world = world("A3", Adversary::Late, 0);
    let device = open(&world);
    let s = rig::stream(&device);
    let spec = |dims: &[usize]| TensorSpec::of(DType::F32, dims).unwrap();
    let (rows, pages) = (spec(&[5, 1, 2]), spec(&[4, 16, 1, 2]));
    let x = s.upload(&(1..=10).map(|x| x as f32).collect::<Vec<_>>(), rows.shape()).unwrap();
    // The second page of the first sequence is absent.
    let table = s.upload(&[2i32, -1, 0, 3], &portolan_ops::Shape::new(&[2, 2]).unwrap()).unwrap();
    let lens = [&[2u32, 2], &[3u32, 17]].map(|lens| Lens::upload(&s, lens, 32).unwrap());
    let unknown = [0, 1].map(|i| Lens::new(lens[i].tensor().clone(), 32, None).unwrap());
    let written = |lens: &[Lens; 2]| {
        let mut cache = s.empty(&pages).unwrap();
        s.run(Fill::new(&mut cache, 0.0).unwrap()).unwrap();
        let before = s.report().compositions.len();
        s.run(KvCacheWrite::paged(&x, &mut cache, &table, &lens[0], &lens[1]).unwrap()).unwrap();
        let composed = s.report().compositions.len() > before;
        (composed, s.download::<f32>(&cache).unwrap().wait().unwrap())
    };
    let mut want = vec![0f32; 4 * 16 * 2];
    // Positions 1 and 2 in page 2; 15 in page 0 and 16 in page 3; the fifth row is nobody's.
    for (row, slot) in [2 * 16 + 1, 2 * 16 + 2, 15, 3 * 16].into_iter().enumerate() {
        want[2 * slot..2 * slot + 2].copy_from_slice(&[2.0 * row as f32 + 1.0, 2.0 * row as f32 + 2.0]);
    }
    assert_eq!(written(&lens), (false, want.clone()));
    assert_eq!(written(&unknown), (true, want));
    drop((x, table, lens, unknown, s, device));
    assert_empties(&world);
}

#[test]
fn sinks_and_other_changes_of_scores_are_not_dropped_by_the_fused_kernel() {
    let world = world("A3", Adversary::Late, 0);
    let device = open(&world);
    let bf16 = |dims: &[usize]| TensorSpec::of(DType::BF16, dims).unwrap();
    let lens = |len| {
        let lens =
            LensSpec::new("attention", "lens", &TensorSpec::of(DType::I32, &[1]).unwrap(), len).unwrap();
        lens.with_host("attention", "lens", [len].into()).unwrap()
    };
    let (q, cache) = (bf16(&[1, 4, 16]), bf16(&[1, 8, 2, 16]));
    let plain = AttentionSpec::new(&q, &cache, &cache, &lens(1), &lens(8), &q).unwrap();
    let sinks = plain.clone().with_sinks(&TensorSpec::of(DType::F32, &[4]).unwrap()).unwrap();
    let capped = plain.clone().with_soft_cap(30.0).unwrap();
    let support = |spec: &AttentionSpec| {
        device.support(&OpQuery { spec: SpecRef::Attention(spec), determinism: Determinism::RunToRun })
    };
    assert_eq!(support(&plain), Support::Native);
    for spec in [sinks, capped] {
        assert_eq!(support(&spec), Support::Composed(Unsupported::NotImplemented));
    }
}

/// The driver's executors that are alive.
fn executors(world: &SimWorld) -> usize {
    let report = world.report().unwrap();
    let count = report.lines().iter().find_map(|line| line.strip_suffix(" aclOpExecutor"));
    count.map_or(0, |count| count.parse().unwrap())
}

#[test]
fn kept_executors_compute_what_new_ones_do_wherever_their_tensors_are() {
    for (adversary, seed) in [(Adversary::Late, 0), (Adversary::Early, 0), (Adversary::Seeded, 5)] {
        let world = world("A3", adversary, seed);
        let device = open(&world);
        let (s, other) = (rig::stream(&device), rig::stream(&device));
        let spec = TensorSpec::of(DType::F32, &[3]).unwrap();
        let upload = |s: &Stream, at: f32| s.upload(&[at, -at, 2.0 * at], spec.shape()).unwrap();
        // The same question with other tensors, in place, of other numbers, and on another stream; all stay where they are.
        let mut alive = Vec::new();
        for (s, at) in [(&s, 1.0), (&s, 2.0), (&other, 3.0), (&s, 4.0), (&other, 5.0)] {
            let (a, b, mut apart) = (upload(s, at), upload(s, 10.0 * at), s.empty(&spec).unwrap());
            let mut c = upload(s, at);
            for scale in [1.0, 0.5] {
                s.run(Binary::scalar(BinaryKind::Mul, &a, scale, &mut apart).unwrap()).unwrap();
                s.run(Binary::new(BinaryKind::Add, &apart, &b, &mut c).unwrap()).unwrap();
                s.run(Binary::new(BinaryKind::Add, &c.clone(), &a, &mut c).unwrap()).unwrap();
                let first = at * scale as f32 + 11.0 * at;
                assert_eq!(s.download::<f32>(&c).unwrap().wait().unwrap(), [first, -first, 2.0 * first]);
            }
            alive.push([a, b, c, apart]);
        }
        let planned = planned(&world.calls(0).unwrap()).len();
        // Two products, a sum and a sum in place, on each stream.
        assert_eq!((planned, executors(&world)), (8, 8));
        drop((alive, s, other, device));
        assert_empties(&world);
    }
}

#[test]
fn a_stream_keeps_so_many_executors_and_destroys_the_others() {
    let world = world("A3", Adversary::Late, 0);
    let device = open(&world);
    let s = rig::stream(&device);
    let x = s.upload(&[1f32, 2.0], &rig::shape(2)).unwrap();
    let mut out = s.empty(x.spec()).unwrap();
    for scale in 0..300 {
        s.run(Binary::scalar(BinaryKind::Mul, &x, f64::from(scale), &mut out).unwrap()).unwrap();
    }
    // What still has work is not destroyed before that is done.
    assert_eq!(executors(&world), 300);
    s.synchronize().unwrap();
    assert_eq!(executors(&world), 256);
    // The latest are there, the first is not.
    for (scale, plans) in [(299, 0), (44, 0), (43, 1), (44, 0)] {
        let before = last(&world);
        s.run(Binary::scalar(BinaryKind::Mul, &x, f64::from(scale), &mut out).unwrap()).unwrap();
        assert_eq!(planned(&world.calls(before).unwrap()).len(), plans, "{scale}");
    }
    assert_eq!(s.download::<f32>(&out).unwrap().wait().unwrap(), [44.0, 88.0]);
    drop((x, out, s, device));
    assert_empties(&world);
}

#[test]
fn an_executor_that_cannot_be_pointed_elsewhere_is_an_error_and_goes() {
    let world = world("A3", Adversary::Late, 0);
    let device = open(&world);
    let s = rig::stream(&device);
    let [a, b] = [[1f32, 2.0], [3.0, 4.0]].map(|x| s.upload(&x, &rig::shape(2)).unwrap());
    let mut out = s.empty(a.spec()).unwrap();
    let mut double = |x: &Tensor| s.run(Binary::scalar(BinaryKind::Mul, x, 2.0, &mut out).unwrap());
    double(&a).unwrap();
    for call in ["aclSetTensorAddr", "aclnnMuls"] {
        world.plan(&[PlannedFault::Call { call: call.into(), at: 1, code: 161002 }]).unwrap();
        let error = double(&b).unwrap_err();
        assert!(error.to_string().contains(call) && error.to_string().contains("161002"), "{error}");
        world.plan(&[]).unwrap();
        s.synchronize().unwrap();
        assert_eq!(executors(&world), 0, "{call}");
        double(&b).unwrap();
        assert_eq!(executors(&world), 1);
        double(&a).unwrap();
    }
    double(&b).unwrap();
    assert_eq!(s.download::<f32>(&out).unwrap().wait().unwrap(), [6.0, 8.0]);
    drop((a, b, out, s, device));
    assert_empties(&world);
}

#[test]
fn executors_that_do_not_repeat_are_used_once() {
    // A driver that refuses for one operator, and one that is too old to know of it.
    let hidden = ["aclSetTensorAddr", "AclSetTensorAddr"].map(str::to_owned).to_vec();
    let old = SimOptions { hidden, ..options("A3", Adversary::Late, 0) };
    let spelled = vec!["aclSetTensorAddr".to_owned(), "aclSetDynamicTensorAddr".to_owned()];
    let capital = SimOptions { hidden: spelled, ..options("A3", Adversary::Late, 0) };
    for (options, refuses, plans) in
        [(options("A3", Adversary::Late, 0), true, 4), (old, false, 4), (capital, false, 1)]
    {
        let world = SimWorld::new(&options).unwrap();
        let device = open(&world);
        let s = rig::stream(&device);
        let xs = [[1f32, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]];
        let xs = xs.map(|x| s.upload(&x, &rig::shape(2)).unwrap());
        let mut out = s.empty(xs[0].spec()).unwrap();
        let call = "aclSetAclOpExecutorRepeatable".to_owned();
        world
            .plan(&if refuses { vec![PlannedFault::Call { call, at: 1, code: 561102 }] } else { vec![] })
            .unwrap();
        for x in &xs {
            s.run(Binary::scalar(BinaryKind::Mul, x, 2.0, &mut out).unwrap()).unwrap();
        }
        assert_eq!(planned(&world.calls(0).unwrap()).len(), plans);
        assert_eq!(s.download::<f32>(&out).unwrap().wait().unwrap(), [14.0, 16.0]);
        drop((xs, out, s, device));
        assert_empties(&world);
    }
}

#[test]
fn whichever_call_of_planning_or_pointing_fails_nothing_is_left() {
    let world = world("A3", Adversary::Late, 0);
    let device = open(&world);
    let spec = TensorSpec::of(DType::BF16, &[2, HIDDEN]).unwrap();
    // One operator of the vendor's with a number, one with a workspace; the second time elsewhere.
    let run = |s: &Stream, x: &Tensor, y: &mut Tensor| {
        s.run(Binary::scalar(BinaryKind::Mul, x, 2.0, y)?)?;
        s.run(RmsNorm::new(x, y, 1e-5)?)?;
        s.synchronize()
    };
    let descriptors = || -> Vec<String> {
        let lines = world.report().unwrap().lines().to_vec();
        lines.into_iter().filter(|line| line.contains(" acl")).collect()
    };
    // Calls that take back what they are given, and were made to fail: that stays.
    let mut kept = std::collections::BTreeMap::new();
    let (mut failed, mut harmless) = (0, 0);
    for again in [false, true] {
        for at in 1.. {
            let s = rig::stream(&device);
            let [x, z] = [(); 2].map(|()| tensor(&s, spec.dims()));
            let [mut y, mut w] = [(); 2].map(|()| tensor(&s, spec.dims()));
            if again {
                run(&s, &z, &mut w).unwrap();
            }
            s.synchronize().unwrap();
            let before = last(&world);
            world.plan(&[PlannedFault::Call { call: "*".into(), at, code: 500000 }]).unwrap();
            let outcome = run(&s, &x, &mut y);
            world.plan(&[]).unwrap();
            let calls = world.calls(before).unwrap();
            let refused = calls.iter().find(|call| call.message.starts_with("planned"));
            // What is in flight keeps its stream, until the device is asked for something.
            let _ = s.synchronize();
            drop((x, y, z, w, s));
            let Some(call) = refused else { break };
            match (outcome, call.name.as_str()) {
                // What is made comes without a code.
                (Err(error), name) if name.starts_with("aclCreate") => {
                    assert!(error.to_string().contains(name), "{error}");
                    failed += 1;
                }
                (Err(error), name) => {
                    assert!(error.to_string().contains("500000"), "call {at}, {name}: {error}");
                    failed += 1;
                }
                (Ok(()), name) => {
                    let taken_back = name.strip_prefix("aclDestroy").map(|what| format!("acl{what}"));
                    taken_back.into_iter().for_each(|what| *kept.entry(what).or_insert(0) += 1);
                    harmless += 1;
                }
            }
            let lines: Vec<String> = kept.iter().map(|(what, count)| format!("{count} {what}")).collect();
            drop(rig::stream(&device));
            assert_eq!(descriptors(), lines, "call {at}, {}, again: {again}", call.name);
        }
    }
    println!("{failed} calls failed, {harmless} did no harm; kept {kept:?}");
    assert!(failed >= 20 && failed > harmless, "{failed} {harmless}");
}
