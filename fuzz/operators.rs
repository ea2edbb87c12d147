//! What fuzzing and the ordinary tests both do with any bytes: they choose an operator, its tensors and its
//! attributes. A refusal is fine; a panic is not, and what is accepted must have a cost and, while it is small, a
//! reference of the right length.
//!
//! Included by path, so that both run the same code: see `fuzz_targets/operators.rs` and `ops/tests/fuzz_corpus.rs`.

use portolan_ops::activation::SwigluSpec;
use portolan_ops::attention::{AttentionMask, AttentionSpec, KvCacheWriteSpec, LensSpec, PagedAttentionSpec};
use portolan_ops::kernel::{
    Activation, BinaryKind, BinarySpec, CastSpec, CompareKind, CompareSpec, CopySpec, FillSpec, GatherForm,
    GatherSpec, GemmForm, GemmSpec, RandomKind, RandomSpec, ReduceKind, ReduceSpec, ScanKind, ScanSpec,
    ScatterMode, ScatterSpec, SelectSpec, TopKSpec, UnaryKind, UnarySpec,
};
use portolan_ops::norm::{AddRmsNormSpec, RmsNormSpec, SoftmaxSpec};
use portolan_ops::quant::{
    ActQuant, DequantizeSpec, LinearSpec, Offset, PackedContent, PackedSpec, PrepackSpec, QuantScheme,
    QuantSpec, ScaleKind, UnpackSpec, WeightSpec,
};
use portolan_ops::rope::{RopeScaling, RopeSpec, RopeStyle};
use portolan_ops::sample::SampleSpec;
use portolan_ops::{Access, Contract, DType, EmbeddingSpec, Layout, OpError, Result, Shape, TensorSpec};

/// Operators that the first byte chooses from.
pub(crate) const OPERATORS: u8 = 28;
/// References are plain loops: operands beyond this many elements, or costs beyond this many operations, are skipped.
const SMALL: u128 = 2048;

/// The name of the operator that `bytes` describe, when it was accepted.
pub(crate) fn build(bytes: &[u8]) -> Option<String> {
    let mut from = Choices(bytes.iter());
    let outcome = operator(&mut from);
    match outcome {
        Ok(name) => Some(name),
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() < 800 && !text.contains('\n'), "{text}");
            None
        }
    }
}

/// Costs, tolerates and, where it is small, computes an accepted operator.
fn accepted<C: Contract>(op: C) -> Result<String> {
    let cost = op.cost();
    let (mut elements, mut inputs, mut outputs) = (0u128, Vec::new(), Vec::new());
    op.operands(&mut |operand| {
        // An empty extent counts as one: loops over the others run all the same.
        let extents = operand.spec.dims().iter().map(|&extent| extent.max(1) as u128);
        elements = elements.saturating_add(extents.fold(1, u128::saturating_mul));
        if operand.access.reads() {
            inputs.push(operand.spec.numel());
        }
        if operand.access != Access::Read {
            outputs.push(operand.spec.numel());
        }
    });
    if elements <= SMALL && u128::from(cost.flops) <= 16 * SMALL {
        assert_eq!(op.tolerance().len(), outputs.len(), "{op:?}");
        // Zeros: indices, lengths and codes that are always legal.
        let data: Vec<Vec<f64>> = inputs.iter().map(|&numel| vec![0.0; numel]).collect();
        let data: Vec<&[f64]> = data.iter().map(Vec::as_slice).collect();
        let results: Vec<usize> = op.reference(&data).iter().map(Vec::len).collect();
        assert_eq!(results, outputs, "{op:?}");
    }
    Ok(op.name().to_owned())
}

/// Bytes as choices; zeros once they are used up.
struct Choices<'a>(core::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }

    /// Mostly small, now and then at the edge of what fits.
    fn size(&mut self) -> usize {
        match self.byte() {
            small @ 0..=239 => usize::from(small) % 18,
            bits @ 240..=254 => 1usize << ((usize::from(bits) - 240) * 4 + 7).min(63),
            255 => usize::MAX,
        }
    }

    fn real(&mut self) -> f64 {
        match self.byte() {
            0 => f64::NAN,
            1 => f64::INFINITY,
            2 => f64::NEG_INFINITY,
            3 => 1e-320,
            4 => 1e300,
            other => (f64::from(other) - 100.0) / 16.0,
        }
    }

    fn dtype(&mut self) -> DType {
        // Half of the time the type that most operators take.
        if self.flag() { DType::F32 } else { self.one_of(&DType::ALL) }
    }

    fn tensor(&mut self) -> Result<TensorSpec> {
        let dtype = self.dtype();
        let rank = usize::from(self.byte()) % 10 % 9;
        let rank = if rank > 4 { rank - 3 } else { rank };
        let dims: Vec<usize> = (0..rank).map(|_| self.size()).collect();
        let shape = Shape::new(&dims)?;
        match self.byte() % 4 {
            0 => {
                let strides: Vec<usize> = (0..rank).map(|_| self.size()).collect();
                TensorSpec::with_layout(dtype, shape, Layout::new(&strides, self.size())?)
            }
            1 if rank > 1 => TensorSpec::new(dtype, shape).transpose(0, rank - 1),
            _ => Ok(TensorSpec::new(dtype, shape)),
        }
    }

    /// A tensor of its own, or one with another's extents.
    fn like(&mut self, other: &TensorSpec) -> Result<TensorSpec> {
        match self.byte() % 4 {
            0 => self.tensor(),
            1 => Ok(TensorSpec::new(self.dtype(), *other.shape())),
            _ => Ok(*other),
        }
    }

    /// The output that the operator itself would ask for, or another one.
    fn out(&mut self, asked: Result<TensorSpec>) -> Result<TensorSpec> {
        if self.byte().is_multiple_of(4) { self.tensor() } else { asked }
    }

    /// Whole numbers that name places, for `count` of them.
    fn indices(&mut self, dims: &[usize]) -> Result<TensorSpec> {
        if self.byte().is_multiple_of(4) { self.tensor() } else { TensorSpec::of(DType::I32, dims) }
    }

    fn scheme(&mut self) -> QuantScheme {
        let scale = match self.byte() % 5 {
            0 => ScaleKind::F32,
            1 => ScaleKind::F16,
            2 => ScaleKind::BF16,
            3 => ScaleKind::E8M0,
            _ => ScaleKind::TwoLevel { inner: self.dtype(), outer: self.dtype(), outer_block: self.size() },
        };
        let offset = self.one_of(&[Offset::None, Offset::Min, Offset::ZeroPoint]);
        match self.byte() % 4 {
            0 => QuantScheme {
                code: self.one_of(&DType::ALL),
                code_bits: self.byte(),
                block: [self.size(), self.size()],
                scale,
                offset,
            },
            1 => QuantScheme { scale, ..QuantScheme::Q4_0 },
            2 => QuantScheme { offset, block: [1, self.size()], ..QuantScheme::Q4_1 },
            _ => QuantScheme::Q4_0,
        }
    }

    fn weight(&mut self) -> Result<WeightSpec> {
        let (n, k) = (self.size(), self.size());
        match self.byte() % 4 {
            0 => WeightSpec::dense(&self.tensor()?),
            1 => WeightSpec::dense(&TensorSpec::of(self.dtype(), &[n, k])?),
            2 => Ok(QuantSpec::of(self.scheme(), n, k)?.into()),
            _ => {
                let scheme = self.scheme();
                let like = QuantSpec::of(scheme, n, k)?;
                let (codes, scale) = (self.like(like.codes())?, self.like(like.scale())?);
                let mut maybe = |part: Option<&TensorSpec>| part.map(|part| self.like(part)).transpose();
                let (offset, outer) = (maybe(like.offset())?, maybe(like.outer())?);
                let outer_offset = maybe(like.outer_offset())?;
                let (offset, outer) = (offset.as_ref(), outer.as_ref());
                Ok(QuantSpec::new(scheme, &codes, &scale, offset, outer, outer_offset.as_ref())?.into())
            }
        }
    }

    fn packed(&mut self) -> Result<PackedSpec> {
        let content = match self.flag() {
            true => PackedContent::Dense(self.dtype()),
            false => PackedContent::Quant(self.scheme()),
        };
        PackedSpec::new(content, self.size(), self.size(), "fuzz", self.size())
    }

    fn lens(&mut self, count: usize) -> Result<LensSpec> {
        let device = self.indices(&[count])?;
        let max = [0, 1, 4, u32::from(self.byte()), u32::MAX][usize::from(self.byte()) % 5];
        let lens = LensSpec::new("fuzz", "lens", &device, max)?;
        if self.flag() {
            let host: Vec<u32> = (0..self.size().min(20)).map(|_| u32::from(self.byte() % 8)).collect();
            return lens.with_host("fuzz", "lens", host.into());
        }
        Ok(lens)
    }

    fn mask(&mut self) -> AttentionMask {
        let window = AttentionMask::Window(u32::from(self.byte()));
        self.one_of(&[AttentionMask::Full, AttentionMask::Causal, window, AttentionMask::Window(u32::MAX)])
    }

    fn activation(&mut self) -> Activation {
        use Activation::{Gelu, GeluTanh, Identity, Relu, Silu};
        self.one_of(&[Identity, Relu, Silu, Gelu, GeluTanh])
    }
}

fn operator(from: &mut Choices<'_>) -> Result<String, OpError> {
    match from.byte() % OPERATORS {
        0 => {
            let form = from.one_of(&[GemmForm::Nn, GemmForm::Nt, GemmForm::Tn]);
            let a = from.tensor()?;
            let b = from.like(&a)?;
            let out = from.out(GemmSpec::out_spec(form, &a, &b))?;
            let mut op = GemmSpec::new(form, &a, &b, &out)?;
            if from.flag() {
                op = op.with_alpha(from.real() as f32)?;
            }
            if from.flag() {
                op = op.with_accumulate(&from.like(&out)?, from.real() as f32)?;
            }
            if from.flag() {
                let width = out.dims().last().copied().unwrap_or(0);
                op = op.with_bias(&from.like(&TensorSpec::of(out.dtype(), &[width])?)?)?;
            }
            accepted(op.with_activation(from.activation())?)
        }
        1 => {
            let (kind, x) = (from.one_of(&UnaryKind::ALL), from.tensor()?);
            let out = from.out(UnarySpec::out_spec(kind, &x))?;
            accepted(UnarySpec::new(kind, &x, &out)?)
        }
        2 => {
            let (kind, a) = (from.one_of(&BinaryKind::ALL), from.tensor()?);
            let b = from.like(&a)?;
            let out = from.out(BinarySpec::out_spec(kind, &a, &b))?;
            match from.flag() {
                true => accepted(BinarySpec::scalar(kind, &a, from.real(), &out)?),
                false => accepted(BinarySpec::new(kind, &a, &b, &out)?),
            }
        }
        3 => {
            let (kind, a) = (from.one_of(&CompareKind::ALL), from.tensor()?);
            let b = from.like(&a)?;
            let out = from.out(CompareSpec::out_spec(kind, &a, &b))?;
            match from.flag() {
                true => accepted(CompareSpec::scalar(kind, &a, from.real(), &out)?),
                false => accepted(CompareSpec::new(kind, &a, &b, &out)?),
            }
        }
        4 => {
            let a = from.tensor()?;
            let (b, cond) = (from.like(&a)?, TensorSpec::new(DType::Bool, *a.shape()));
            let cond = from.like(&cond)?;
            let out = from.out(SelectSpec::out_spec(&cond, &a, &b))?;
            accepted(SelectSpec::new(&cond, &a, &b, &out)?)
        }
        5 => {
            let (kind, x) = (from.one_of(&ReduceKind::ALL), from.tensor()?);
            let dims: Vec<usize> = (0..from.byte() % 4).map(|_| from.size()).collect();
            let keep = from.flag();
            let out = from.out(ReduceSpec::out_spec(kind, &x, &dims, keep))?;
            accepted(ReduceSpec::new(kind, &x, &dims, keep, &out)?)
        }
        6 => {
            let x = from.tensor()?;
            let (dim, out) = (from.size(), from.like(&x)?);
            let mut op = match from.flag() {
                true => ScanSpec::linear(&x, &from.like(&x)?, dim, &out)?,
                false => {
                    let kind = from.one_of(&[ScanKind::Sum, ScanKind::Prod, ScanKind::Max, ScanKind::Linear]);
                    ScanSpec::cumulative(kind, &x, dim, &out)?
                }
            };
            if from.flag() {
                op = op.exclusive()?;
            }
            let slice = x.select(dim, 0).unwrap_or(x).to_contiguous();
            if from.flag() {
                op = op.with_initial(&from.like(&slice)?)?;
            }
            if from.flag() {
                op = op.with_last(&from.like(&slice)?)?;
            }
            accepted(op)
        }
        7 => {
            let x = from.tensor()?;
            let (values, indices) = TopKSpec::out_specs(&x, from.size())?;
            accepted(TopKSpec::new(&x, &from.like(&values)?, &from.like(&indices)?)?)
        }
        8 => {
            let (x, dim) = (from.tensor()?, from.size());
            let count = from.size();
            let form = from.one_of(&[GatherForm::Slices, GatherForm::Elements]);
            let dims = [count];
            let index = from.indices(if form == GatherForm::Slices { &dims } else { x.dims() })?;
            let out = from.out(GatherSpec::out_spec(form, &x, dim, &index))?;
            match form {
                GatherForm::Slices => accepted(GatherSpec::slices(&x, dim, &index, &out)?),
                GatherForm::Elements => accepted(GatherSpec::elements(&x, dim, &index, &out)?),
            }
        }
        9 => {
            let (x, dim) = (from.tensor()?, from.size());
            let index = from.indices(x.dims())?;
            let (src, out) = (from.like(&x)?, from.like(&x)?);
            let mode = from.one_of(&[ScatterMode::Set, ScatterMode::Add]);
            accepted(ScatterSpec::new(mode, &x, dim, &index, &src, &out)?)
        }
        10 => {
            let x = from.tensor()?;
            accepted(CopySpec::new(&x, &from.like(&x)?)?)
        }
        11 => {
            let x = from.tensor()?;
            accepted(CastSpec::new(&x, &from.like(&x)?)?)
        }
        12 => accepted(FillSpec::new(&from.tensor()?, from.real())?),
        13 => {
            let op = RandomSpec::new(from.one_of(&RandomKind::ALL), u64::MAX, &from.tensor()?)?;
            let op = op.with_offset(from.size() as u64);
            match from.flag() {
                true => accepted(op.with_counter(&from.tensor()?)?),
                false => accepted(op),
            }
        }
        14 => {
            let gate = from.tensor()?;
            if from.flag() {
                let out = from.out(SwigluSpec::out_spec(&gate))?;
                return accepted(SwigluSpec::fused(&gate, &out)?);
            }
            accepted(SwigluSpec::new(&gate, &from.like(&gate)?, &from.like(&gate)?)?)
        }
        15 => {
            let x = from.tensor()?;
            let out = from.out(SoftmaxSpec::out_spec(&x))?;
            accepted(SoftmaxSpec::new(&x, &out)?.with_scale(from.real() as f32)?)
        }
        16 | 17 => {
            let (x, eps) = (from.tensor()?, from.real() as f32);
            let width = x.dims().last().copied().unwrap_or(0);
            let weight = from.like(&TensorSpec::of(x.dtype(), &[width])?)?;
            let weighted = from.flag();
            if from.flag() {
                let op = RmsNormSpec::new(&x, &from.out(RmsNormSpec::out_spec(&x))?, eps)?;
                return accepted(if weighted { op.with_weight(&weight)? } else { op });
            }
            let (residual, out) = (from.like(&x)?, from.out(AddRmsNormSpec::out_spec(&x))?);
            let op = AddRmsNormSpec::new(&x, &residual, &out, eps)?;
            accepted(if weighted { op.with_weight(&weight)? } else { op })
        }
        18 => {
            let x = from.tensor()?;
            let positions = from.indices(&x.dims()[..x.rank().min(1)])?;
            let style = from.one_of(&[RopeStyle::Interleaved, RopeStyle::SplitHalf]);
            let mut op = RopeSpec::new(style, &x, &positions, from.real(), &from.like(&x)?)?;
            if from.flag() {
                op = op.with_rotary_dim(from.size())?;
            }
            let (factor, original_len) = (from.real() as f32, from.size() as u32);
            let [low, high] = [from.real() as f32, from.real() as f32];
            let scaling = from.one_of(&[
                RopeScaling::None,
                RopeScaling::Linear { factor },
                RopeScaling::Yarn {
                    factor,
                    original_len,
                    beta_fast: high,
                    beta_slow: low,
                    attn_factor: None,
                },
                RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_len },
            ]);
            accepted(op.with_scaling(scaling)?)
        }
        19 => {
            let logits = from.tensor()?;
            let rows = logits.dims().first().copied().unwrap_or(0);
            let uniforms = from.like(&TensorSpec::of(DType::F32, &[rows])?)?;
            let out = from.out(SampleSpec::out_spec(&logits))?;
            let mut op = SampleSpec::new(&logits, &uniforms, &out)?;
            if from.flag() {
                op = op.with_temperature(from.real() as f32)?;
            }
            if from.flag() {
                op = op.with_top_k(from.size())?.with_top_p(from.real() as f32)?;
            }
            if from.flag() {
                op = op.with_min_p(from.real() as f32)?;
            }
            if from.flag() {
                let history = [rows, from.size()];
                op = op.with_repetition_penalty(from.real() as f32, &from.indices(&history)?)?;
            }
            accepted(op)
        }
        20 => {
            let (count, weight) = (from.size(), from.weight()?);
            let ids = from.indices(&[count])?;
            let out = EmbeddingSpec::out_spec(&ids, &weight, from.dtype());
            let out = from.out(out)?;
            accepted(EmbeddingSpec::new(&ids, &weight, &out)?)
        }
        21 => {
            let (rows, weight) = (from.size(), from.weight()?);
            let x = TensorSpec::of(from.dtype(), &[rows, weight.k()])?;
            let x = from.like(&x)?;
            let out = from.out(LinearSpec::out_spec(&x, &weight))?;
            let mut op = LinearSpec::new(&x, &weight, &out)?.with_activation(from.activation());
            if from.flag() {
                op = op.with_bias(&from.like(&TensorSpec::of(DType::F32, &[weight.n()])?)?)?;
            }
            if from.flag() {
                op = op.with_act_quant(ActQuant::Int8 { group: from.size() })?;
            }
            accepted(op)
        }
        22 => {
            let weight = QuantSpec::of(from.scheme(), from.size(), from.size())?;
            let out = DequantizeSpec::out_spec(&weight, from.dtype());
            let out = from.out(out)?;
            accepted(DequantizeSpec::new(&weight, &out)?)
        }
        23 | 24 => {
            let weight = from.weight()?;
            let packed = match from.flag() {
                true => from.packed()?,
                false => PackedSpec::new(weight.content(), weight.n(), weight.k(), "fuzz", from.size())?,
            };
            // Their reference is the backend's own form: only the check and the cost are ours.
            match from.flag() {
                true => PrepackSpec::new(&weight, &packed).map(|op| (op.cost(), op.name().to_owned()).1),
                false => UnpackSpec::new(&packed, &weight).map(|op| (op.cost(), op.name().to_owned()).1),
            }
        }
        25 => {
            let (batch, heads, width) = (from.size(), from.size(), from.size());
            let q = TensorSpec::of(from.dtype(), &[from.size(), heads, width])?;
            let q = from.like(&q)?;
            let cache = TensorSpec::of(q.dtype(), &[batch, from.size(), from.size(), width])?;
            let (k, v) = (from.like(&cache)?, from.like(&cache)?);
            let (q_lens, kv_lens) = (from.lens(batch)?, from.lens(batch)?);
            let out = from.out(AttentionSpec::out_spec(&q, &v))?;
            let mut op = AttentionSpec::new(&q, &k, &v, &q_lens, &kv_lens, &out)?.with_mask(from.mask())?;
            if from.flag() {
                op = op.with_scale(from.real() as f32)?;
            }
            if from.flag() {
                op = op.with_lse(&from.tensor()?)?;
            }
            accepted(op)
        }
        26 => {
            let (batch, heads, width) = (from.size(), from.size(), from.size());
            let q = TensorSpec::of(from.dtype(), &[from.size(), heads, width])?;
            let q = from.like(&q)?;
            let pages = TensorSpec::of(q.dtype(), &[from.size(), 16, from.size(), width])?;
            let (k, v) = (from.like(&pages)?, from.like(&pages)?);
            let table = [batch, from.size()];
            let table = from.indices(&table)?;
            let (q_lens, kv_lens) = (from.lens(batch)?, from.lens(batch)?);
            let out = from.out(PagedAttentionSpec::out_spec(&q, &v))?;
            let op = PagedAttentionSpec::new(&q, &k, &v, &table, &q_lens, &kv_lens, &out)?;
            accepted(op.with_mask(from.mask())?.with_scale(from.real() as f32)?)
        }
        _ => {
            let (batch, rows, heads, width) = (from.size(), from.size(), from.size(), from.size());
            let dtype = from.dtype();
            let x = from.like(&TensorSpec::of(dtype, &[rows, heads, width])?)?;
            let cache = from.like(&TensorSpec::of(dtype, &[batch, 16, heads, width])?)?;
            let (q_lens, kv_lens) = (from.lens(batch)?, from.lens(batch)?);
            if from.flag() {
                let table = [batch, from.size()];
                let table = from.indices(&table)?;
                return accepted(KvCacheWriteSpec::paged(&x, &cache, &table, &q_lens, &kv_lens)?);
            }
            accepted(KvCacheWriteSpec::new(&x, &cache, &q_lens, &kv_lens)?)
        }
    }
}
