//! Rates of the CPU backend's kernels through the public contract, each as a fraction of what bounds it.
//!
//! Operators are enqueued back to back and waited for inside the timed region; work comes from the operator's
//! own cost; nothing may be composed. Operands that bandwidth bounds rotate over 256 MiB or more.

mod limits;
mod report;

use criterion::{Criterion, criterion_group, criterion_main};
use limits::{Limit, Limits};
use portolan::call::{
    Attention, CausalConv1d, Copy, Dequantize, DynamicQuantize, ExpertFfn, GatedDeltaRule, Geglu, Gemm,
    Hadamard, IndexLogits, KvCacheWrite, LayerNorm, Linear, LogSoftmax, MlaDecode, Quantize, RmsNorm,
    SelectiveScan, Softmax, Sort, SparseAttention, SsdScan, Swiglu,
};
use portolan::cpu::{CpuBackend, CpuOptions};
use portolan::{
    DType, Experts, Fallback, HostBuffer, Lens, OpError, OpKind, QuantTensor, Registry, Shape, Stream,
    StreamOptions, Tensor, TensorSpec, Weight, ops,
};
use portolan_core::Op;
use portolan_ops::activation::GeluKind;
use portolan_ops::sort::SortOrder;
use portolan_ops::{ActQuant, Cost, HostTensor, QuantScheme, QuantSpec};
use report::{Goal, Job, measure};

type Result<T> = std::result::Result<T, OpError>;

/// What operands that bandwidth bounds take together, at least.
const ROTATION: usize = 256 << 20;

fn stream(threads: usize) -> Result<Stream> {
    let backend = CpuBackend::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() })?;
    let device = Registry::new().with(backend).open("cpu:0")?;
    device.stream(StreamOptions { fallback: Fallback::Deny, ..StreamOptions::default() })
}

fn all_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Values in [−1, 1), the same in every run.
fn noise(len: usize) -> impl Iterator<Item = f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..len).map(move |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    })
}

fn floats(stream: &Stream, dims: &[usize]) -> Result<Tensor> {
    let shape = Shape::new(dims)?;
    stream.upload(&noise(shape.numel()).collect::<Vec<f32>>(), &shape)
}

fn bytes(stream: &Stream, dims: &[usize]) -> Result<Tensor> {
    let shape = Shape::new(dims)?;
    stream.upload(&noise(shape.numel()).map(|x| (127.0 * x) as i8).collect::<Vec<i8>>(), &shape)
}

fn empty(stream: &Stream, dtype: DType, dims: &[usize]) -> Result<Tensor> {
    stream.empty(&TensorSpec::of(dtype, dims)?)
}

/// A random weight of the scheme, in ordinary tensors.
fn codes(stream: &Stream, scheme: QuantScheme, n: usize, k: usize) -> Result<QuantTensor> {
    let spec = QuantSpec::of(scheme, n, k)?;
    let fills = spec.fills();
    let upload = |name: &str, part: &TensorSpec| -> Result<Tensor> {
        let values = match fills.iter().find(|(operand, _)| *operand == name) {
            Some((_, fill)) => fill.draw(part, 1),
            None => noise(part.numel()).map(f64::from).collect(),
        };
        let host = HostTensor::from_f64(part, &values, 0)?;
        stream.upload_bytes(part, HostBuffer::from_bytes(host.bytes())?, &"weight".into())
    };
    let codes = upload("weight.codes", spec.codes())?;
    let scale = upload("weight.scale", spec.scale())?;
    let offset = spec.offset().map(|part| upload("weight.offset", part)).transpose()?;
    QuantTensor::new(scheme, codes, scale, offset, None, None)
}

fn quantized(stream: &Stream, scheme: QuantScheme, n: usize, k: usize) -> Result<Weight> {
    Ok(codes(stream, scheme, n, k)?.into())
}

/// Runs operators in turn.
fn rotate<O: Op + Clone>(stream: Stream, operators: Vec<O>, amount: impl Fn(Cost) -> u64) -> Result<Job> {
    stream.synchronize()?;
    let amount = operators.first().map_or(0, |operator| amount(operator.cost()));
    let mut turn = operators.into_iter().cycle();
    Ok(Job {
        amount,
        run: Box::new(move |runs| {
            for _ in 0..runs {
                turn.next().map_or(Ok(()), |operator| stream.run(operator))?;
            }
            stream.synchronize()
        }),
    })
}

fn flops(cost: Cost) -> u64 {
    cost.flops
}

fn moved(cost: Cost) -> u64 {
    cost.bytes_read + cost.bytes_written
}

fn products(c: &mut Criterion) {
    const N: usize = 1024;
    let limits = &mut Limits::new();
    let mut counts = vec![1, all_threads()];
    counts.dedup();
    for threads in counts {
        let goal = Goal { limit: Limit::Fma, threads, floor: Some(0.6) };
        measure(c, limits, "gemm_f32_1024", goal, || {
            let s = stream(threads)?;
            let (a, b) = (floats(&s, &[N, N])?, floats(&s, &[N, N])?);
            let op = Gemm::nn(&a, &b, &mut empty(&s, DType::F32, &[N, N])?)?;
            rotate(s, vec![op], flops)
        });
    }
    let threads = all_threads();
    let goal = Goal { limit: Limit::Fma, threads, floor: Some(0.5) };
    measure(c, limits, "linear_bf16_weight_1024", goal, || {
        let s = stream(threads)?;
        let weight = ops::cast(&s, &floats(&s, &[N, N])?, DType::BF16)?;
        let weight = s.prepack(&weight.into(), OpKind::Linear)?;
        let x = floats(&s, &[N, N])?;
        let op = Linear::new(&x, &weight, &mut empty(&s, DType::F32, &[N, N])?)?;
        rotate(s, vec![op], flops)
    });
    let goal = Goal { limit: Limit::Int8, threads, floor: Some(0.4) };
    measure(c, limits, "gemm_int8_1024", goal, || {
        let s = stream(threads)?;
        let (a, b) = (bytes(&s, &[N, N])?, bytes(&s, &[N, N])?);
        let op = Gemm::nt(&a, &b, &mut empty(&s, DType::I32, &[N, N])?)?;
        rotate(s, vec![op], flops)
    });
    for (id, scheme, act_quant, limit, floor) in [
        ("linear_f8_block_512x2048x2048", QuantScheme::F8_BLOCK, ActQuant::None, Limit::Fma, Some(0.45)),
        (
            "linear_f8_block_f8_512x2048x2048",
            QuantScheme::F8_BLOCK,
            ActQuant::F8_GROUP,
            Limit::Fma,
            Some(0.45),
        ),
        ("linear_mxfp4_512x2048x2048", QuantScheme::MXFP4, ActQuant::None, Limit::Fma, Some(0.45)),
        ("linear_w8a8_512x2048x2048", QuantScheme::INT8_ROW, ActQuant::INT8_ROW, Limit::Int8, None),
    ] {
        let goal = Goal { limit, threads, floor };
        measure(c, limits, id, goal, || {
            const ROWS: usize = 512;
            const SIDE: usize = 2048;
            let s = stream(threads)?;
            let weight = s.prepack(&quantized(&s, scheme, SIDE, SIDE)?, OpKind::Linear)?;
            let x = floats(&s, &[ROWS, SIDE])?;
            let op = Linear::new(&x, &weight, &mut empty(&s, DType::F32, &[ROWS, SIDE])?)?;
            rotate(s, vec![op.act_quant(act_quant)?], flops)
        });
    }
}

fn single_token(c: &mut Criterion) {
    const N: usize = 4096;
    let limits = &mut Limits::new();
    let threads = all_threads();
    for (id, scheme, act_quant) in [
        ("linear_q4_1_one_row", QuantScheme::Q4_1, ActQuant::INT8),
        ("linear_q8_0_one_row", QuantScheme::Q8_0, ActQuant::INT8),
        ("linear_f8_block_one_row", QuantScheme::F8_BLOCK, ActQuant::None),
        ("linear_mxfp4_one_row", QuantScheme::MXFP4, ActQuant::None),
        ("linear_w8a8_one_row", QuantScheme::INT8_ROW, ActQuant::INT8_ROW),
    ] {
        let goal = Goal { limit: Limit::Read, threads, floor: Some(0.5) };
        measure(c, limits, id, goal, || {
            let s = stream(threads)?;
            let x = floats(&s, &[1, N])?;
            let plain = quantized(&s, scheme, N, N)?;
            let mut out = empty(&s, DType::F32, &[1, N])?;
            let mut operators = Vec::new();
            let mut total = 0;
            while total < ROTATION {
                let op = Linear::new(&x, &s.prepack(&plain, OpKind::Linear)?, &mut out)?;
                operators.push(op.act_quant(act_quant)?);
                total += plain.tensors().iter().map(|part| part.spec().span_bytes()).sum::<usize>();
            }
            rotate(s, operators, moved)
        });
    }
}

fn attention(c: &mut Criterion) {
    const HEADS: usize = 32;
    const HEAD_DIM: usize = 128;
    let limits = &mut Limits::new();
    let threads = all_threads();
    let goal = Goal { limit: Limit::Fma, threads, floor: Some(0.35) };
    measure(c, limits, "attention_prefill_2048", goal, || {
        const TOKENS: usize = 2048;
        let s = stream(threads)?;
        let q = floats(&s, &[TOKENS, HEADS, HEAD_DIM])?;
        let (k, v) = (floats(&s, &[1, TOKENS, HEADS, HEAD_DIM])?, floats(&s, &[1, TOKENS, HEADS, HEAD_DIM])?);
        let lens = Lens::upload(&s, &[TOKENS as u32], TOKENS as u32)?;
        let mut out = empty(&s, DType::F32, &[TOKENS, HEADS, HEAD_DIM])?;
        let op = Attention::new(&q, &k, &v, &lens, &lens, &mut out)?;
        assert_eq!(op.cost().flops as usize, 4 * HEADS * HEAD_DIM * TOKENS * (TOKENS + 1) / 2);
        rotate(s, vec![op], flops)
    });
    for (id, dtype) in
        [("attention_decode_8192_f32_cache", DType::F32), ("attention_decode_8192_bf16_cache", DType::BF16)]
    {
        let goal = Goal { limit: Limit::Read, threads, floor: Some(0.5) };
        measure(c, limits, id, goal, || {
            const CACHED: usize = 8192;
            const KV_HEADS: usize = 8;
            let s = stream(threads)?;
            let q = floats(&s, &[1, HEADS, HEAD_DIM])?;
            let cache = ops::cast(&s, &floats(&s, &[1, CACHED, KV_HEADS, HEAD_DIM])?, dtype)?;
            let one = Lens::upload(&s, &[1], 1)?;
            let cached = Lens::upload(&s, &[CACHED as u32], CACHED as u32)?;
            let mut out = empty(&s, DType::F32, &[1, HEADS, HEAD_DIM])?;
            let mut operators = Vec::new();
            let pair = 2 * cache.spec().span_bytes();
            for _ in 0..ROTATION.div_ceil(pair) {
                let (k, v) = (ops::contiguous(&s, &cache)?, ops::contiguous(&s, &cache)?);
                operators.push(Attention::new(&q, &k, &v, &one, &cached, &mut out)?);
            }
            rotate(s, operators, moved)
        });
    }
}

/// Decode of latent attention (128 heads of rank 512 and 64 rotary elements over 8192 entries), of attention to the
/// 2048 entries that an index selects, and of that index (64 heads of 128); and decode over an int8 cache.
fn latent(c: &mut Criterion) {
    const HEADS: usize = 128;
    const RANK: usize = 512;
    const WIDTH: usize = RANK + 64;
    const CACHED: usize = 8192;
    const TOP_K: usize = 2048;
    const INDEX: [usize; 2] = [64, 128];
    let limits = &mut Limits::new();
    let threads = all_threads();
    let lens = |s: &Stream| {
        Ok::<_, OpError>([Lens::upload(s, &[1], 1)?, Lens::upload(s, &[CACHED as u32], CACHED as u32)?])
    };
    let goal = Goal { limit: Limit::Fma, threads, floor: Some(0.4) };
    measure(c, limits, "mla_decode_8192_bf16_cache", goal, || {
        let s = stream(threads)?;
        let q = floats(&s, &[1, HEADS, WIDTH])?;
        let cache = ops::cast(&s, &floats(&s, &[1, CACHED, WIDTH])?, DType::BF16)?;
        let [one, cached] = lens(&s)?;
        let mut out = empty(&s, DType::F32, &[1, HEADS, RANK])?;
        let op = MlaDecode::new(&q, &cache, &one, &cached, 0.07, &mut out)?;
        assert_eq!(op.cost().flops as usize, 2 * (WIDTH + RANK) * HEADS * CACHED);
        rotate(s, vec![op], flops)
    });
    let goal = Goal { limit: Limit::Fma, threads, floor: None };
    measure(c, limits, "sparse_attention_2048_of_8192", goal, || {
        let s = stream(threads)?;
        let q = floats(&s, &[1, HEADS, WIDTH])?;
        let cache = ops::cast(&s, &floats(&s, &[1, CACHED, WIDTH])?, DType::BF16)?;
        let listed: Vec<i32> = (0..TOP_K).map(|i| (i * 5 % CACHED) as i32).collect();
        let indices = s.upload(&listed, &Shape::new(&[1, TOP_K])?)?;
        let [one, _] = lens(&s)?;
        let mut out = empty(&s, DType::F32, &[1, HEADS, RANK])?;
        let op = SparseAttention::new(&q, &cache, &indices, &one, 0.07, &mut out)?;
        rotate(s, vec![op], flops)
    });
    measure(c, limits, "index_logits_8192", goal, || {
        let s = stream(threads)?;
        let q = floats(&s, &[1, INDEX[0], INDEX[1]])?;
        let k = ops::cast(&s, &floats(&s, &[1, CACHED, INDEX[1]])?, DType::BF16)?;
        let weights = floats(&s, &[1, INDEX[0]])?;
        let [one, cached] = lens(&s)?;
        let mut logits = empty(&s, DType::F32, &[1, CACHED])?;
        let op = IndexLogits::new(&q, &k, &weights, [&one, &cached], 1, &mut logits)?;
        rotate(s, vec![op], flops)
    });
    let goal = Goal { limit: Limit::Read, threads, floor: None };
    measure(c, limits, "attention_decode_8192_int8_cache", goal, || {
        const KV_HEADS: usize = 8;
        const HEAD_DIM: usize = 128;
        let s = stream(threads)?;
        let x = floats(&s, &[CACHED, KV_HEADS, HEAD_DIM])?;
        let all = Lens::upload(&s, &[CACHED as u32], CACHED as u32)?;
        let [one, cached] = lens(&s)?;
        let q = floats(&s, &[1, 32, HEAD_DIM])?;
        let mut out = empty(&s, DType::F32, &[1, 32, HEAD_DIM])?;
        let mut operators = Vec::new();
        let pair = 2 * CACHED * KV_HEADS * HEAD_DIM;
        for _ in 0..ROTATION.div_ceil(pair) {
            let quantized = || {
                let mut codes = empty(&s, DType::I8, &[1, CACHED, KV_HEADS, HEAD_DIM])?;
                let mut scale = empty(&s, DType::F32, &[1, CACHED, KV_HEADS])?;
                s.run(KvCacheWrite::quantized(&x, &mut codes, &mut scale, &all, &all)?)?;
                Ok::<_, OpError>([codes, scale])
            };
            let ([k, k_scale], [v, v_scale]) = (quantized()?, quantized()?);
            operators.push(Attention::quantized(
                &q,
                [&k, &k_scale],
                [&v, &v_scale],
                &one,
                &cached,
                &mut out,
            )?);
        }
        rotate(s, operators, moved)
    });
}

fn rows(c: &mut Criterion) {
    const ROWS: usize = 8192;
    const N: usize = 4096;
    let limits = &mut Limits::new();
    let threads = all_threads();
    let goal = Goal { limit: Limit::Copy, threads, floor: Some(0.5) };
    measure(c, limits, "rms_norm_8192x4096", goal, || {
        let s = stream(threads)?;
        let (x, weight) = (floats(&s, &[ROWS, N])?, floats(&s, &[N])?);
        let op = RmsNorm::new(&x, &mut empty(&s, DType::F32, &[ROWS, N])?, 1e-5)?.weight(&weight)?;
        rotate(s, vec![op], moved)
    });
    measure(c, limits, "rms_norm_groups_8192x32x128", goal, || {
        let s = stream(threads)?;
        let (dims, weight) = ([ROWS, N / 128, 128], floats(&s, &[N / 128, 128])?);
        let x = floats(&s, &dims)?;
        let op = RmsNorm::new(&x, &mut empty(&s, DType::F32, &dims)?, 1e-5)?.weight(&weight)?;
        rotate(s, vec![op], moved)
    });
    measure(c, limits, "layer_norm_8192x4096", goal, || {
        let s = stream(threads)?;
        let (x, weight, bias) = (floats(&s, &[ROWS, N])?, floats(&s, &[N])?, floats(&s, &[N])?);
        let op = LayerNorm::new(&x, &mut empty(&s, DType::F32, &[ROWS, N])?, 1e-5)?;
        rotate(s, vec![op.weight(&weight)?.bias(&bias)?], moved)
    });
    let goal = Goal { floor: None, ..goal };
    measure(c, limits, "softmax_8192x4096", goal, || {
        let s = stream(threads)?;
        let x = floats(&s, &[ROWS, N])?;
        let op = Softmax::new(&x, &mut empty(&s, DType::F32, &[ROWS, N])?)?;
        rotate(s, vec![op], moved)
    });
    measure(c, limits, "swiglu_8192x4096", goal, || {
        let s = stream(threads)?;
        let (gate, up) = (floats(&s, &[ROWS, N])?, floats(&s, &[ROWS, N])?);
        let op = Swiglu::new(&gate, &up, &mut empty(&s, DType::F32, &[ROWS, N])?)?;
        rotate(s, vec![op], moved)
    });
    measure(c, limits, "swiglu_limit_interleaved_8192x4096", goal, || {
        let s = stream(threads)?;
        let both = floats(&s, &[ROWS, 2 * N])?;
        let op = Swiglu::interleaved(&both, &mut empty(&s, DType::F32, &[ROWS, N])?)?;
        rotate(s, vec![op.limit(7.0)?.alpha(1.702)?.up_offset(1.0)?], moved)
    });
    for (id, kind) in [("geglu_8192x4096", GeluKind::Erf), ("geglu_tanh_8192x4096", GeluKind::Tanh)] {
        measure(c, limits, id, goal, || {
            let s = stream(threads)?;
            let (gate, up) = (floats(&s, &[ROWS, N])?, floats(&s, &[ROWS, N])?);
            let op = Geglu::new(kind, &gate, &up, &mut empty(&s, DType::F32, &[ROWS, N])?)?;
            rotate(s, vec![op], moved)
        });
    }
    measure(c, limits, "log_softmax_8192x4096", goal, || {
        let s = stream(threads)?;
        let x = floats(&s, &[ROWS, N])?;
        let op = LogSoftmax::new(&x, &mut empty(&s, DType::F32, &[ROWS, N])?)?;
        rotate(s, vec![op], moved)
    });
    for (id, rows, n) in [("sort_8192x4096", ROWS, N), ("sort_1x1048576", 1, 1 << 20)] {
        measure(c, limits, id, goal, || {
            let s = stream(threads)?;
            let x = floats(&s, &[rows, n])?;
            let (mut values, mut indices) =
                (empty(&s, DType::F32, &[rows, n])?, empty(&s, DType::I32, &[rows, n])?);
            let op = Sort::new(SortOrder::Descending, &x, &mut values, &mut indices)?;
            rotate(s, vec![op], moved)
        });
    }
}

fn conversions(c: &mut Criterion) {
    const ROWS: usize = 8192;
    const N: usize = 4096;
    let limits = &mut Limits::new();
    let threads = all_threads();
    let goal = Goal { limit: Limit::Copy, threads, floor: Some(0.5) };
    for (id, scheme) in [
        ("dynamic_quantize_int8_row_8192x4096", QuantScheme::INT8_ROW),
        ("dynamic_quantize_f8_group_8192x4096", QuantScheme::F8_GROUP),
        ("dynamic_quantize_f8_block_8192x4096", QuantScheme::F8_BLOCK),
        ("dynamic_quantize_mxfp4_8192x4096", QuantScheme::MXFP4),
    ] {
        measure(c, limits, id, goal, || {
            let s = stream(threads)?;
            let x = floats(&s, &[ROWS, N])?;
            let op = DynamicQuantize::new(&x, &mut codes(&s, scheme, ROWS, N)?)?;
            rotate(s, vec![op], moved)
        });
    }
    measure(c, limits, "quantize_f8_block_8192x4096", goal, || {
        let s = stream(threads)?;
        let x = floats(&s, &[ROWS, N])?;
        let op = Quantize::new(&x, &mut codes(&s, QuantScheme::F8_BLOCK, ROWS, N)?)?;
        rotate(s, vec![op], moved)
    });
    for (id, scheme) in [
        ("dequantize_f8_block_8192x4096", QuantScheme::F8_BLOCK),
        ("dequantize_mxfp4_8192x4096", QuantScheme::MXFP4),
        ("dequantize_q4_1_8192x4096", QuantScheme::Q4_1),
    ] {
        measure(c, limits, id, goal, || {
            let s = stream(threads)?;
            let out = &mut empty(&s, DType::F32, &[ROWS, N])?;
            let op = Dequantize::new(&codes(&s, scheme, ROWS, N)?, out)?;
            rotate(s, vec![op], moved)
        });
    }
    let goal = Goal { floor: None, ..goal };
    measure(c, limits, "hadamard_128_8192x4096", goal, || {
        let s = stream(threads)?;
        let x = floats(&s, &[ROWS, N])?;
        let op = Hadamard::new(&x, &mut empty(&s, DType::F32, &[ROWS, N])?, 128)?;
        rotate(s, vec![op], moved)
    });
}

/// The same matrix for every expert: `[count, n, k]`.
fn stacked(stream: &Stream, one: &Tensor, count: usize) -> Result<Tensor> {
    let dims = [&[count], one.dims()].concat();
    let mut all = empty(stream, one.dtype(), &dims)?;
    let repeated = one.reshape(&[&[1], one.dims()].concat())?.broadcast_to(&dims)?;
    stream.run(Copy::new(&repeated, &mut all)?)?;
    Ok(all)
}

/// Packed weights of `count` experts, in f32 or codes.
fn expert_weights(
    stream: &Stream,
    scheme: Option<QuantScheme>,
    count: usize,
    n: usize,
    k: usize,
) -> Result<Experts> {
    let plain = match scheme {
        None => Experts::dense(stacked(stream, &floats(stream, &[n, k])?, count)?)?,
        Some(scheme) => {
            let one = codes(stream, scheme, n, k)?;
            let [codes, scale] = [one.codes(), one.scale()].map(|part| stacked(stream, part, count));
            Experts::quant(scheme, codes?, scale?, None, None, None)?
        }
    };
    stream.prepack_experts(&plain, OpKind::ExpertFfn)
}

fn experts(c: &mut Criterion) {
    const HIDDEN: usize = 2048;
    const INNER: usize = 1408;
    const EXPERTS: usize = 64;
    const TOP_K: usize = 6;
    let limits = &mut Limits::new();
    let threads = all_threads();
    // The operator for tokens whose experts follow each other, from `first` on: every expert has as many.
    let network = |s: &Stream, weights: &[Experts; 2], tokens: usize, first: usize| -> Result<ExpertFfn> {
        let ids: Vec<i32> = (0..tokens * TOP_K).map(|place| ((first + place) % EXPERTS) as i32).collect();
        let ids = s.upload(&ids, &Shape::new(&[tokens, TOP_K])?)?;
        let (x, factors) = (floats(s, &[tokens, HIDDEN])?, floats(s, &[tokens, TOP_K])?);
        let mut out = empty(s, DType::F32, &[tokens, HIDDEN])?;
        ExpertFfn::new(&x, &ids, &factors, &weights[0], &weights[1], &mut out)
    };
    let weights = |s: &Stream, scheme| -> Result<[Experts; 2]> {
        let gate_up = expert_weights(s, scheme, EXPERTS, 2 * INNER, HIDDEN)?;
        Ok([gate_up, expert_weights(s, scheme, EXPERTS, HIDDEN, INNER)?])
    };
    for (name, scheme, floor) in [("f32", None, 0.55), ("mxfp4", Some(QuantScheme::MXFP4), 0.4)] {
        let goal = Goal { limit: Limit::Fma, threads, floor: Some(floor) };
        measure(c, limits, &format!("expert_ffn_{name}_512x2048x1408_6_of_64"), goal, || {
            let s = stream(threads)?;
            let op = network(&s, &weights(&s, scheme)?, 512, 0)?;
            rotate(s, vec![op], flops)
        });
    }
    let goal = Goal { limit: Limit::Read, threads, floor: Some(0.5) };
    measure(c, limits, "expert_ffn_f32_one_token_6_of_64", goal, || {
        let s = stream(threads)?;
        let weights = weights(&s, None)?;
        // Ten tokens, no two of which share an expert.
        let operators = (0..EXPERTS / TOP_K).map(|token| network(&s, &weights, 1, token * TOP_K));
        let operators = operators.collect::<Result<Vec<_>>>()?;
        rotate(s, operators, moved)
    });
}

/// Values in [low, high).
fn between(stream: &Stream, dims: &[usize], low: f32, high: f32) -> Result<Tensor> {
    let shape = Shape::new(dims)?;
    let values = noise(shape.numel()).map(|x| low + (high - low) * (x + 1.0) / 2.0);
    stream.upload(&values.collect::<Vec<f32>>(), &shape)
}

fn recurrences(c: &mut Criterion) {
    let limits = &mut Limits::new();
    let threads = all_threads();
    // A step of many sequences is its states, read and written once.
    let goal = Goal { limit: Limit::Read, threads, floor: Some(0.5) };
    for (id, state) in [("selective_scan_step_512x1536x16", 16), ("selective_scan_step_64x1536x128", 128)] {
        measure(c, limits, id, goal, || {
            const CHANNELS: usize = 1536;
            let s = stream(threads)?;
            let batch = 8192 / state;
            let x = floats(&s, &[batch, 1, CHANNELS])?;
            let delta = between(&s, &[batch, 1, CHANNELS], 0.0, 0.1)?;
            let a = between(&s, &[CHANNELS, state], -16.0, -1.0)?;
            let factor = floats(&s, &[batch, 1, state])?;
            let mut out = empty(&s, DType::F32, &[batch, 1, CHANNELS])?;
            let mut operators = Vec::new();
            let mut total = 0;
            while total < ROTATION {
                let mut h = floats(&s, &[batch, CHANNELS, state])?;
                total += h.spec().span_bytes();
                let op = SelectiveScan::new(&x, &delta, &a, &factor, &factor, &mut out)?;
                operators.push(op.initial(&h.clone())?.last(&mut h)?);
            }
            rotate(s, operators, moved)
        });
    }
    let goal = Goal { limit: Limit::Fma, threads, floor: None };
    measure(c, limits, "selective_scan_2048x1536x16", goal, || {
        let s = stream(threads)?;
        let x = floats(&s, &[1, 2048, 1536])?;
        let delta = between(&s, &[1, 2048, 1536], 0.0, 0.1)?;
        let (a, factor) = (between(&s, &[1536, 16], -16.0, -1.0)?, floats(&s, &[1, 2048, 16])?);
        let mut out = empty(&s, DType::F32, &[1, 2048, 1536])?;
        let op = SelectiveScan::new(&x, &delta, &a, &factor, &factor, &mut out)?;
        rotate(s, vec![op.z(&x)?], flops)
    });
    measure(c, limits, "ssd_scan_2048x24x64x128", goal, || {
        let s = stream(threads)?;
        let x = floats(&s, &[1, 2048, 24, 64])?;
        let delta = between(&s, &[1, 2048, 24], 0.0, 0.1)?;
        let (a, factor) = (between(&s, &[24], -16.0, -1.0)?, floats(&s, &[1, 2048, 1, 128])?);
        let mut out = empty(&s, DType::F32, &[1, 2048, 24, 64])?;
        rotate(s, vec![SsdScan::new(&x, &delta, &a, &factor, &factor, &mut out)?], flops)
    });
    measure(c, limits, "gated_delta_rule_1024x16x128x128", goal, || {
        let s = stream(threads)?;
        let x = floats(&s, &[1, 1024, 16, 128])?;
        let (g, beta) = (between(&s, &[1, 1024, 16], -1.0, 0.0)?, between(&s, &[1, 1024, 16], 0.0, 1.0)?);
        let mut out = empty(&s, DType::F32, &[1, 1024, 16, 128])?;
        rotate(s, vec![GatedDeltaRule::new(&x, &x, &x, &g, &beta, &mut out)?.key_norm(1e-6)?], flops)
    });
    let goal = Goal { limit: Limit::Copy, threads, floor: None };
    measure(c, limits, "causal_conv1d_8192x4096_width_4", goal, || {
        let s = stream(threads)?;
        let (x, weight) = (floats(&s, &[1, 8192, 4096])?, floats(&s, &[4096, 4])?);
        let op = CausalConv1d::new(&x, &weight, &mut empty(&s, DType::F32, &[1, 8192, 4096])?)?;
        rotate(s, vec![op.silu()?], moved)
    });
}

criterion_group!(kernels, products, single_token, attention, latent, rows, conversions, experts, recurrences);
criterion_main!(kernels);
