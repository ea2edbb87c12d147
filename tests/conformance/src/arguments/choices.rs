//! Bytes as choices: what any operator's arguments are made of.

use portolan_ops::attention::{AttentionMask, LensSpec};
use portolan_ops::kernel::Activation;
use portolan_ops::moe::ExpertsSpec;
use portolan_ops::quant::{
    ActQuant, Offset, PackedContent, PackedSpec, QuantScheme, QuantSpec, ScaleKind, WeightSpec,
};
use portolan_ops::{DType, Layout, Result, Shape, TensorSpec};

/// Schemes that models are stored in.
const SCHEMES: [QuantScheme; 14] = [
    QuantScheme::Q4_0,
    QuantScheme::Q4_1,
    QuantScheme::Q5_0,
    QuantScheme::Q5_1,
    QuantScheme::Q8_0,
    QuantScheme::Q4_K,
    QuantScheme::Q5_K,
    QuantScheme::Q6_K,
    QuantScheme::F8_BLOCK,
    QuantScheme::F8_BLOCK_E8M0,
    QuantScheme::MXFP8,
    QuantScheme::MXFP4,
    QuantScheme::INT8_ROW,
    QuantScheme::F8_GROUP,
];

/// Bytes as choices; zeros once they are used up.
#[derive(Debug)]
pub(crate) struct Choices<'a> {
    bytes: core::slice::Iter<'a, u8>,
    /// Lengths on the host are those of a device that holds zeros.
    of_zeros: bool,
}

impl<'a> Choices<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes: bytes.iter(), of_zeros: false }
    }

    /// For arguments that are run on operands of zeros: what the host says of their contents is true.
    pub(super) fn of_zeros(self) -> Self {
        Self { of_zeros: true, ..self }
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.bytes.next().copied().unwrap_or(0)
    }

    pub(super) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub(super) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }

    /// Mostly small, now and then at the edge of what fits.
    pub(super) fn size(&mut self) -> usize {
        match self.byte() {
            small @ 0..=239 => usize::from(small) % 18,
            bits @ 240..=254 => 1usize << ((usize::from(bits) - 240) * 4 + 7).min(63),
            255 => usize::MAX,
        }
    }

    /// Mostly at most 4, for tensors of many extents; else as [`Choices::size`].
    pub(super) fn few(&mut self) -> usize {
        match self.byte() {
            small @ 0..=239 => usize::from(small) % 5,
            _ => self.size(),
        }
    }

    pub(super) fn real(&mut self) -> f64 {
        match self.byte() {
            0 => f64::NAN,
            1 => f64::INFINITY,
            2 => f64::NEG_INFINITY,
            3 => 1e-320,
            4 => 1e300,
            other => (f64::from(other) - 100.0) / 16.0,
        }
    }

    pub(super) fn dtype(&mut self) -> DType {
        // Half of the time the type that most operators take.
        if self.flag() { DType::F32 } else { self.one_of(&DType::ALL) }
    }

    pub(super) fn tensor(&mut self) -> Result<TensorSpec> {
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

    /// Mostly what another tensor is; or one of its own, or the same of another type or layout.
    pub(super) fn like(&mut self, other: &TensorSpec) -> Result<TensorSpec> {
        match self.byte() % 16 {
            0 => self.tensor(),
            1 => Ok(TensorSpec::new(self.dtype(), *other.shape())),
            2 | 3 => self.apart(other),
            _ => Ok(*other),
        }
    }

    /// A tensor of these extents, as [`Choices::like`] has it.
    pub(super) fn of(&mut self, dtype: DType, dims: &[usize]) -> Result<TensorSpec> {
        let spec = TensorSpec::of(dtype, dims)?;
        self.like(&spec)
    }

    /// The same extents in a larger allocation, in another order, or each entry of the first one repeated.
    fn apart(&mut self, other: &TensorSpec) -> Result<TensorSpec> {
        let (dims, last) = (other.dims(), other.rank().saturating_sub(1));
        if dims.is_empty() {
            return Ok(*other);
        }
        let mut wider = dims.to_vec();
        match self.byte() % 3 {
            0 => {
                wider[last] = wider[last].saturating_add(2);
                // Elements of half a byte begin at a whole one.
                TensorSpec::of(other.dtype(), &wider)?.narrow(last, 0, dims[last])
            }
            1 => {
                wider.swap(0, last);
                TensorSpec::of(other.dtype(), &wider)?.transpose(0, last)
            }
            _ => {
                wider[0] = 1;
                TensorSpec::of(other.dtype(), &wider)?.broadcast_to(other.shape())
            }
        }
    }

    /// The output that the operator itself would ask for, or another one.
    pub(super) fn out(&mut self, asked: Result<TensorSpec>) -> Result<TensorSpec> {
        match self.byte() % 8 {
            0 => self.tensor(),
            1 => self.like(&asked?),
            _ => asked,
        }
    }

    /// Whole numbers of these extents that name places.
    pub(super) fn indices(&mut self, dims: &[usize]) -> Result<TensorSpec> {
        self.of(DType::I32, dims)
    }

    pub(super) fn scheme(&mut self) -> QuantScheme {
        if self.flag() {
            return self.one_of(&SCHEMES);
        }
        let scale = match self.byte() % 5 {
            0 => ScaleKind::F32,
            1 => ScaleKind::F16,
            2 => ScaleKind::BF16,
            3 => ScaleKind::E8M0,
            _ => ScaleKind::TwoLevel { inner: self.dtype(), outer: self.dtype(), outer_block: self.size() },
        };
        let offset = self.one_of(&[Offset::None, Offset::Min, Offset::ZeroPoint]);
        let block = [self.size(), self.size()];
        match self.byte() % 4 {
            0 => QuantScheme { code: self.one_of(&DType::ALL), code_bits: self.byte(), block, scale, offset },
            1 => QuantScheme { scale, block, ..self.one_of(&SCHEMES) },
            2 => QuantScheme { offset, block, ..self.one_of(&SCHEMES) },
            _ => QuantScheme { block, ..self.one_of(&SCHEMES) },
        }
    }

    pub(super) fn quant(&mut self) -> Result<QuantSpec> {
        let (n, k, scheme) = (self.size(), self.size(), self.scheme());
        let asked = QuantSpec::of(scheme, n, k)?;
        if self.flag() {
            return Ok(asked);
        }
        let (codes, scale) = (self.like(asked.codes())?, self.like(asked.scale())?);
        let mut maybe = |part: Option<&TensorSpec>| part.map(|part| self.like(part)).transpose();
        let (offset, outer) = (maybe(asked.offset())?, maybe(asked.outer())?);
        let outer_offset = maybe(asked.outer_offset())?;
        QuantSpec::new(scheme, &codes, &scale, offset.as_ref(), outer.as_ref(), outer_offset.as_ref())
    }

    pub(super) fn weight(&mut self) -> Result<WeightSpec> {
        match self.byte() % 4 {
            0 => WeightSpec::dense(&self.tensor()?),
            1 => {
                let dims = [self.size(), self.size()];
                let dtype = self.dtype();
                WeightSpec::dense(&self.of(dtype, &dims)?)
            }
            2 => Ok(self.packed()?.into()),
            _ => Ok(self.quant()?.into()),
        }
    }

    pub(super) fn content(&mut self) -> PackedContent {
        match self.flag() {
            true => PackedContent::Dense(self.dtype()),
            false => PackedContent::Quant(self.scheme()),
        }
    }

    pub(super) fn packed(&mut self) -> Result<PackedSpec> {
        PackedSpec::new(self.content(), self.size(), self.size(), "any", self.size())
    }

    /// Weights `[count, n, k]` of experts.
    pub(super) fn experts(&mut self, [count, n, k]: [usize; 3]) -> Result<ExpertsSpec> {
        match self.byte() % 4 {
            0 => ExpertsSpec::of(self.scheme(), count, n, k),
            1 => {
                let content = self.content();
                let bytes = [count, self.size()];
                ExpertsSpec::packed(content, n, k, "any", &self.of(DType::U8, &bytes)?)
            }
            _ => {
                let dtype = self.dtype();
                ExpertsSpec::dense(&self.of(dtype, &[count, n, k])?)
            }
        }
    }

    pub(super) fn act_quant(&mut self) -> ActQuant {
        let group = match self.byte() % 4 {
            0 => self.size(),
            1 => 32,
            2 => 128,
            _ => ActQuant::ROW,
        };
        self.one_of(&[ActQuant::None, ActQuant::Int8 { group }, ActQuant::F8 { group }])
    }

    pub(super) fn lens(&mut self, count: usize) -> Result<LensSpec> {
        let device = self.indices(&[count])?;
        let max = [0, 1, 1, 2, 4, u32::from(self.byte()), u32::MAX][usize::from(self.byte()) % 7];
        let lens = LensSpec::new("any", "lens", &device, max)?;
        match self.byte() % 4 {
            0 if !self.of_zeros => {
                let host: Vec<u32> = (0..self.size().min(20)).map(|_| u32::from(self.byte() % 8)).collect();
                lens.with_host("any", "lens", host.into())
            }
            // What the device holds where every number is 0.
            1 => lens.with_host("any", "lens", vec![0; count.min(64)].into()),
            _ => Ok(lens),
        }
    }

    pub(super) fn mask(&mut self) -> AttentionMask {
        let window = AttentionMask::Window(u32::from(self.byte()));
        self.one_of(&[AttentionMask::Full, AttentionMask::Causal, window, AttentionMask::Window(u32::MAX)])
    }

    pub(super) fn activation(&mut self) -> Activation {
        use Activation::{Gelu, GeluTanh, Identity, Relu, Silu};
        self.one_of(&[Identity, Relu, Silu, Gelu, GeluTanh])
    }
}
