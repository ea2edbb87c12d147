//! Simulated Ascend devices as a program sees them: several products in one process, found beside the program; and a model
//! of 16-bit activations over quantized weights on one of them.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan::cann::{CannBackend, CannOptions};
use portolan::sim::{self, SimOptions, SimWorld};
use portolan::{
    DType, ErrorKind, Fallback, HostBuffer, Lens, OpKind, QuantTensor, Registry, Shape, Stream,
    StreamOptions, Tensor, TensorSpec, Weight, call, ops,
};
use portolan_ops::attention::AttentionMask;
use portolan_ops::quant::{Offset, QuantScheme, ScaleKind};
use portolan_ops::rope::RopeStyle;

#[test]
fn products_live_side_by_side_and_leave_nothing() {
    let names = ["310P", "A2", "A3", "950"].map(|soc| {
        let world = sim::cann(SimOptions { soc: soc.into(), ..SimOptions::default() }).unwrap();
        let backend = CannBackend::new(CannOptions {
            folder: Some(world.folder().to_owned()),
            ..CannOptions::default()
        });
        let device = Registry::new().with(backend).open("cann:1").unwrap();
        let stream = device.stream(StreamOptions::default()).unwrap();
        let x = stream.upload(&[1f32, 2.0, 3.0], &Shape::new(&[3]).unwrap()).unwrap();
        assert_eq!(stream.download::<f32>(&x).unwrap().wait().unwrap(), [1.0, 2.0, 3.0]);
        stream.synchronize().unwrap();
        let name = device.info().name.clone();
        drop((x, stream, device));
        (name, world)
    });
    for (name, world) in &names {
        assert!(name.ends_with(" SIMULATED"), "{name}");
        let report = world.report().unwrap();
        assert!(report.is_clean(), "{name}: {report}");
    }
    assert_eq!(names.iter().map(|(name, _)| name).collect::<std::collections::HashSet<_>>().len(), 4);
}

#[test]
fn a_simulator_that_is_not_there_is_unavailable_with_the_command_that_builds_it() {
    let options = SimOptions { library: Some("/nowhere/lib.so".into()), ..SimOptions::default() };
    let error = sim::cann(options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("cargo build -p portolan-cann-sim"), "{error}");
    let error = sim::cann(SimOptions { soc: "A7".into(), ..SimOptions::default() }).err().unwrap();
    assert!(error.to_string().contains("310P, A2, A3 or 950"), "{error}");
}

const HIDDEN: usize = 128;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 32;
const WIDTH: usize = 192;
const VOCAB: usize = 96;
const ROOM: usize = 32;

/// What the logits of two devices may differ by, as a part of the largest logit, in a model whose activations are bf16 and
/// whose quantized weights one of them expands to bf16.
///
/// A token's way to its logits is 26 results in bf16 and 9 products with expanded weights. A rounding errs by u/√3 at most
/// (root mean square, u = 2⁻⁸, relative), on either device, and by as much where weights are rounded: together
/// `√(2·26 + 9)·u/√3 = 1.8 %` of a logit's own root mean square if all went through to the logits. The largest of a hundred
/// logits is about 2.5 times that, and the largest error of a thousand 3.3 times its own: 2.4 %.
const LOGITS: f64 = 2.4e-2;

/// Numbers in [−1, 1] that nothing connects.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mixed = |i: u64| {
        let x = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ seed << 20);
        (x ^ x >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 40
    };
    (0..count as u64).map(|i| mixed(i) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// A tensor in bf16.
fn tensor(s: &Stream, dims: &[usize], values: &[f32]) -> Tensor {
    let x = s.upload(values, &Shape::new(dims).unwrap()).unwrap();
    ops::cast(s, &x, DType::BF16).unwrap()
}

/// How weights are made of codes: their type, columns that share a scale, zero points; and whether a reader takes the scale
/// of the group beside, which is a mistake.
#[derive(Clone, Copy)]
struct Codes {
    code: DType,
    group: usize,
    offset: Offset,
    displaced: bool,
}

impl Codes {
    fn weight(self, s: &Stream, n: usize, k: usize, seed: u64) -> Weight {
        let spec = TensorSpec::of(self.code, &[n, k]).unwrap();
        let bytes: Vec<u8> = noise(spec.span_bytes(), seed).iter().map(|x| (x * 128.0) as i8 as u8).collect();
        let host = HostBuffer::from_bytes(&bytes).unwrap();
        let codes = s.upload_bytes(&spec, host, &"codes".into()).unwrap();
        let groups = k / self.group;
        // Codes of all sizes are 1/√3 of the largest in the root mean square; rows are to keep the size of what they read.
        let largest = if self.code == DType::I4 { 8.0 } else { 128.0 };
        let step = 3f32.sqrt() / largest / (k as f32).sqrt();
        let mut scale: Vec<f32> =
            noise(n * groups, seed + 1).iter().map(|x| step * (1.0 + 0.7 * x)).collect();
        if self.displaced {
            scale.rotate_left(1);
        }
        let zero = (self.offset == Offset::ZeroPoint).then(|| {
            let zero: Vec<i8> =
                noise(n * groups, seed + 2).iter().map(|x| (x * 0.2 * largest) as i8).collect();
            s.upload(&zero, &Shape::new(&[n, groups]).unwrap()).unwrap()
        });
        let scheme = QuantScheme::new(self.code, [1, self.group], ScaleKind::BF16, self.offset).unwrap();
        let scale = tensor(s, &[n, groups], &scale);
        Weight::Quant(QuantTensor::new(scheme, codes, scale, zero, None, None).unwrap())
    }
}

/// One layer of a Llama, and its cache.
struct Layer {
    norms: [Tensor; 2],
    qkv: Weight,
    o: Weight,
    gate_up: Weight,
    down: Weight,
    keys: Tensor,
    values: Tensor,
}

/// A Llama of two layers whose activations are bf16.
struct Small {
    embedding: Weight,
    layers: Vec<Layer>,
    norm: Tensor,
    output: Weight,
    seen: usize,
}

impl Small {
    fn new(s: &Stream, codes: Codes) -> Self {
        let norm = |seed| {
            let values: Vec<f32> = noise(HIDDEN, seed).iter().map(|x| 1.0 + 0.2 * x).collect();
            tensor(s, &[HIDDEN], &values)
        };
        let cache = || tensor(s, &[1, ROOM, KV_HEADS, HEAD_DIM], &[0.0; ROOM * KV_HEADS * HEAD_DIM]);
        // The mistake is one of the first layer's last product.
        let right = Codes { displaced: false, ..codes };
        let layer = |i: u64| Layer {
            norms: [norm(100 * i), norm(100 * i + 10)],
            qkv: right.weight(s, (HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN, 100 * i + 20),
            o: right.weight(s, HIDDEN, HEADS * HEAD_DIM, 100 * i + 30),
            gate_up: right.weight(s, 2 * WIDTH, HIDDEN, 100 * i + 40),
            down: if i == 1 { codes } else { right }.weight(s, HIDDEN, WIDTH, 100 * i + 50),
            keys: cache(),
            values: cache(),
        };
        Self {
            embedding: Weight::Dense(tensor(s, &[VOCAB, HIDDEN], &noise(VOCAB * HIDDEN, 1))),
            layers: vec![layer(1), layer(2)],
            norm: norm(2),
            output: right.weight(s, VOCAB, HIDDEN, 3),
            seen: 0,
        }
    }

    /// Logits `[tokens, vocab]` of more tokens.
    fn run(&mut self, s: &Stream, tokens: &[i32]) -> Vec<f64> {
        let count = tokens.len();
        let ints = |values: &[i32]| s.upload(values, &Shape::new(&[count]).unwrap()).unwrap();
        let at = ints(&(0..count).map(|i| (self.seen + i) as i32).collect::<Vec<_>>());
        self.seen += count;
        let lens = [(count, count), (self.seen, ROOM)]
            .map(|(len, max)| Lens::upload(s, &[len as u32], max as u32).unwrap());
        let mut residual = ops::embedding(s, &ints(tokens), &self.embedding, DType::BF16).unwrap();
        let mut update: Option<Tensor> = None;
        let mut normed = |update: Option<&Tensor>, norm: &Tensor| match update {
            None => ops::rms_norm(s, &residual, Some(norm), 1e-5).unwrap(),
            Some(update) => ops::add_rms_norm(s, update, &mut residual, Some(norm), 1e-5).unwrap(),
        };
        let all = HEADS + 2 * KV_HEADS;
        for layer in &mut self.layers {
            let x = normed(update.as_ref(), &layer.norms[0]);
            let qkv = ops::linear(s, &x, &layer.qkv).unwrap().reshape(&[count, all, HEAD_DIM]).unwrap();
            let part = |from, heads| qkv.narrow(1, from, heads).unwrap();
            let turned = part(0, HEADS + KV_HEADS);
            let rope = call::Rope::new(RopeStyle::SplitHalf, &turned, &at, 1e4, &mut turned.clone()).unwrap();
            s.run(rope).unwrap();
            for (from, cache) in [(HEADS, &mut layer.keys), (HEADS + KV_HEADS, &mut layer.values)] {
                let write = call::KvCacheWrite::new(&part(from, KV_HEADS), cache, &lens[0], &lens[1]);
                s.run(write.unwrap()).unwrap();
            }
            let q = ops::contiguous(s, &part(0, HEADS)).unwrap();
            let mut mixed = s.empty(q.spec()).unwrap();
            let attention =
                call::Attention::new(&q, &layer.keys, &layer.values, &lens[0], &lens[1], &mut mixed).unwrap();
            s.run(attention.mask(AttentionMask::Causal).unwrap()).unwrap();
            let mixed = mixed.reshape(&[count, HEADS * HEAD_DIM]).unwrap();
            let x = normed(Some(&ops::linear(s, &mixed, &layer.o).unwrap()), &layer.norms[1]);
            let gated = ops::swiglu(s, &ops::linear(s, &x, &layer.gate_up).unwrap()).unwrap();
            update = Some(ops::linear(s, &gated, &layer.down).unwrap());
        }
        let logits = ops::linear(s, &normed(update.as_ref(), &self.norm), &self.output).unwrap();
        let logits = ops::cast(s, &logits, DType::F32).unwrap();
        s.download::<f32>(&logits).unwrap().wait().unwrap().into_iter().map(f64::from).collect()
    }
}

/// Logits of a prompt and of three steps behind it, and how many products with a weight there were.
fn conversation(s: &Stream, codes: Codes) -> (Vec<f64>, usize) {
    let mut model = Small::new(s, codes);
    let turns: [&[i32]; 4] = [&[3, 77, 20, 5, 41, 8], &[90], &[2], &[33]];
    let logits = turns.iter().flat_map(|tokens| model.run(s, tokens)).collect();
    (logits, turns.len() * (4 * model.layers.len() + 1))
}

fn expanding_products(world: &SimWorld) -> usize {
    let calls = world.calls(0).unwrap();
    calls.iter().filter(|call| call.name == "aclnnWeightQuantBatchMatmulV3").count()
}

#[test]
fn a_model_of_expanded_weights_has_the_logits_of_the_cpu_and_a_displaced_scale_has_not() {
    let int4 = Codes { code: DType::I4, group: 32, offset: Offset::None, displaced: false };
    let int8 = Codes { code: DType::I8, group: 64, offset: Offset::ZeroPoint, displaced: false };
    for codes in [int4, int8] {
        let (want, products) = conversation(&rig::stream(), codes);
        for displaced in [false, true] {
            let (s, world) = rig::ascend("A3", Fallback::Allow);
            let (got, _) = conversation(&s, Codes { displaced, ..codes });
            let composed = s.report().compositions;
            assert!(composed.iter().all(|(op, ..)| *op != OpKind::Linear), "{composed:?}");
            assert_eq!(expanding_products(&world), products);
            let (difference, largest) = portolan_ops::max_abs_difference(&got, &want);
            let distance = difference / largest;
            println!("{}, displaced {displaced}: {distance:.2e} of {largest:.2}", codes.code);
            assert!(largest.is_finite() && largest > 1.0);
            assert_eq!(distance <= LOGITS, !displaced, "{}: {distance:e}", codes.code);
            drop(s);
            let report = world.report().unwrap();
            assert!(report.is_clean(), "{report}");
        }
    }
}
