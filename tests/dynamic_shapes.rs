//! One model under a thousand shapes: once it is warm nothing is built, packed or reserved again, and each shape's
//! answer is the oracle's.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan::cpu::{CpuBackend, CpuOptions};
use portolan::models::{LanguageModel, Llama, OracleLlama, embedded};
use portolan::nn::{Batch, Precision};
use portolan::{Registry, Stream, StreamOptions, StreamReport};
use portolan_core::{
    Backend, Collectives, Consumer, CustomOp, DeviceInfo, FusedOps, Kernels, Launch, Memory, MemoryInfo,
    MemoryTraits, OpKind, OpQuery, Ordinal, Packing, Queue, RawCopy, RawStream, Segment, Support, call,
};
use portolan_ops::quant::WeightSpec;
use portolan_ops::{Result, philox_block};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};

const PAIRS: u64 = 1000;
const MAX_BATCH: usize = 16;
const MAX_LEN: usize = 64;
const SEED: u64 = 1;
/// The largest difference accepted, as a fraction of the largest logit: a random sum of the 160 products that the
/// longest row has errs by about √160 · 2^−24, and two layers pass it on.
const LIMIT: f64 = 160.0 * f32::EPSILON as f64 / 2.0;

fn stream(backend: Arc<dyn Backend>) -> Stream {
    Registry::new().with(backend).open("cpu:0").unwrap().stream(StreamOptions::default()).unwrap()
}

fn cpu() -> Arc<dyn Backend> {
    CpuBackend::new(CpuOptions::default()).unwrap()
}

fn load(stream: &Stream) -> Llama {
    Llama::load(stream, &embedded().unwrap(), Precision::Exact, &mut |_, _| {}).unwrap()
}

/// The texts of which every shape takes beginnings: what a token is answered depends on those before it only, so the
/// oracle's answers to the whole texts are its answers to all their beginnings.
fn texts() -> Vec<Vec<u32>> {
    let token = |s: usize, t: usize| philox_block(SEED, (s * MAX_LEN + t) as u64)[0] % 128;
    (0..MAX_BATCH).map(|s| (0..MAX_LEN).map(|t| token(s, t)).collect()).collect()
}

/// A batch size, a length and the first text, for pair `i`.
fn pair(i: u64) -> (usize, usize, usize) {
    let [batch, len, first, _] = philox_block(SEED + 1, i);
    (1 + batch as usize % MAX_BATCH, 1 + len as usize % MAX_LEN, first as usize % MAX_BATCH)
}

fn logits(stream: &Stream, model: &Llama, texts: &[&[u32]]) -> Vec<f32> {
    let len = texts[0].len();
    let mut cache = model.cache(stream, texts.len(), len).unwrap();
    let batch = Batch::new(stream, texts, &vec![0; texts.len()], len).unwrap();
    let out = model.forward(stream, &batch, &mut cache).unwrap();
    stream.download::<f32>(&out).unwrap().wait().unwrap()
}

/// What may not grow once a program is warm.
fn growth(report: &StreamReport) -> [u64; 3] {
    [report.kernel_builds, report.prepacks, report.pool_segments]
}

/// Runs the largest shape, then all pairs up to `pairs`, and gives what grew during these.
fn run(stream: &Stream, pairs: u64, mut seen: impl FnMut(u64, &[&[u32]], usize, Vec<f32>)) -> [u64; 3] {
    let model = load(stream);
    let texts = texts();
    let all: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    logits(stream, &model, &all);
    let warm = growth(&stream.report());
    assert!(warm[1] > 0 && warm[2] > 0, "loading packs and reserves: {warm:?}");
    for i in 0..pairs {
        let (batch, len, first) = pair(i);
        let part: Vec<&[u32]> = (0..batch).map(|b| &texts[(first + b) % MAX_BATCH][..len]).collect();
        seen(i, &part, first, logits(stream, &model, &part));
    }
    let now = growth(&stream.report());
    [now[0] - warm[0], now[1] - warm[1], now[2] - warm[2]]
}

#[test]
fn a_warm_model_takes_any_shape_without_building_packing_or_reserving() {
    let oracle = OracleLlama::load(&embedded().unwrap()).unwrap();
    let want: Vec<Vec<f64>> = texts().iter().map(|text| oracle.logits(text).unwrap()).collect();
    let largest = want.iter().flatten().fold(0.0, |max: f64, x| max.max(x.abs()));
    let mut shapes = HashSet::new();
    let mut worst = 0.0;
    let grown = run(&stream(cpu()), PAIRS, |i, part, first, got| {
        let (batch, len) = (part.len(), part[0].len());
        shapes.insert((batch, len));
        let width = got.len() / batch;
        let mut distance = 0.0;
        for (b, got) in got.chunks(width).enumerate() {
            let want = &want[(first + b) % MAX_BATCH][..width];
            for (got, want) in got.iter().zip(want) {
                // A number that is none must not pass as no difference.
                let difference = (f64::from(*got) - want).abs();
                distance = if difference <= distance { distance } else { difference };
            }
        }
        let distance = distance / largest;
        assert!(
            distance <= LIMIT,
            "pair {i}, batch {batch}, length {len}: {distance:e} of the largest logit"
        );
        worst = f64::max(worst, distance);
        // The same shape on a device that has seen no other.
        if i % 100 == 0 {
            let cold = stream(cpu());
            assert_eq!(logits(&cold, &load(&cold), part), got, "pair {i}, batch {batch}, length {len}");
        }
    });
    println!("{PAIRS} pairs, {} shapes: largest difference {worst:.2e}", shapes.len());
    assert!(shapes.len() > 500);
    assert_eq!(grown, [0; 3], "kernel builds, prepacks and pool segments after the warm-up");
}

/// The plain backend as one that specialises its products for each shape it meets.
struct Specialising {
    cpu: Arc<dyn Backend>,
    built: Mutex<HashSet<Vec<usize>>>,
}

macro_rules! kernels {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        impl Kernels for Specialising {
            $( fn $method(&self, launch: &Launch<'_>, op: &call::$kind) -> Result<()> {
                self.cpu.$method(launch, op)
            } )*
        }
        impl FusedOps for Specialising {
            $( fn $fmethod(&self, launch: &Launch<'_>, op: &call::$fkind) -> Result<()> {
                self.specialise(launch, op);
                self.cpu.$fmethod(launch, op)
            } )*
            fn packing(&self, device: Ordinal, weight: &WeightSpec, consumer: Consumer<'_>) -> Option<Packing> {
                self.cpu.packing(device, weight, consumer)
            }
            fn custom(&self, launch: &Launch<'_>, op: &CustomOp) -> Result<()> {
                self.cpu.custom(launch, op)
            }
        }
    };
}
portolan_core::for_each_op!(kernels);

impl Specialising {
    fn specialise(&self, launch: &Launch<'_>, op: &dyn portolan_core::Op) {
        let mut dims = Vec::new();
        op.operands(&mut |arg| dims.extend(arg.spec.dims()));
        if op.kind() == OpKind::Linear && self.built.lock().unwrap().insert(dims) {
            launch.kernel_built();
        }
    }
}

impl Memory for Specialising {
    fn traits(&self, device: Ordinal) -> MemoryTraits {
        self.cpu.traits(device)
    }
    fn reserve(&self, device: Ordinal, bytes: usize) -> Result<Segment> {
        self.cpu.reserve(device, bytes)
    }
    fn release(&self, device: Ordinal, segment: Segment) -> Result<()> {
        self.cpu.release(device, segment)
    }
    fn copy(&self, launch: &Launch<'_>, copy: RawCopy) -> Result<()> {
        self.cpu.copy(launch, copy)
    }
    fn memory_info(&self, device: Ordinal) -> Result<MemoryInfo> {
        self.cpu.memory_info(device)
    }
}

impl Queue for Specialising {
    fn stream_create(&self, device: Ordinal, options: &StreamOptions) -> Result<Arc<dyn RawStream>> {
        self.cpu.stream_create(device, options)
    }
}

impl Collectives for Specialising {}

impl Backend for Specialising {
    fn name(&self) -> &'static str {
        self.cpu.name()
    }
    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        self.cpu.devices()
    }
    fn support(&self, device: Ordinal, query: &OpQuery<'_>) -> Support {
        self.cpu.support(device, query)
    }
}

#[test]
fn a_backend_that_builds_for_each_shape_is_noticed() {
    const FEW: u64 = 20;
    let backend = Specialising { cpu: cpu(), built: Mutex::default() };
    let mut rows = HashSet::new();
    let grown = run(&stream(Arc::new(backend)), FEW, |_, part, _, _| {
        rows.insert(part.len() * part[0].len());
    });
    // Four products a layer, of which the second layer's weights have other formats, and the output's.
    assert!(grown[0] >= rows.len() as u64 && grown[1..] == [0; 2], "{grown:?} for {} row counts", rows.len());
}
