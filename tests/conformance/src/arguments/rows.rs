//! Arguments of operators that work row by row: norms, gates, positions, order, sampling.

use super::{Arguments, Choices};
use portolan_ops::activation::{GegluSpec, GeluKind, SwigluSpec};
use portolan_ops::norm::{AddRmsNormSpec, LayerNormSpec, LogSoftmaxSpec, RmsNormSpec, SoftmaxSpec};
use portolan_ops::rope::{RopeScaling, RopeSpec, RopeStyle};
use portolan_ops::sample::SampleSpec;
use portolan_ops::sort::{SortOrder, SortSpec};
use portolan_ops::{DType, Result, TensorSpec};

/// Two rows of two.
fn square(dtype: DType) -> Result<TensorSpec> {
    TensorSpec::of(dtype, &[2, 2])
}

/// One number for each column of `x`.
fn columns(from: &mut Choices<'_>, x: &TensorSpec) -> Result<TensorSpec> {
    from.of(x.dtype(), &[x.dims().last().copied().unwrap_or(0)])
}

impl Arguments for RopeSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let dims = [from.few(), from.few(), from.size()];
        let dtype = from.dtype();
        let x = from.of(dtype, &dims)?;
        let positions = from.indices(&dims[..1])?;
        let style = from.one_of(&[RopeStyle::Interleaved, RopeStyle::SplitHalf]);
        let mut op = RopeSpec::new(style, &x, &positions, from.real(), &from.like(&x)?)?;
        if from.flag() {
            op = op.with_rotary_dim(from.size())?;
        }
        let (factor, original_len) = (from.real() as f32, from.size() as u32);
        let [low, high] = [from.real() as f32, from.real() as f32];
        let attn_factor = if from.flag() { Some(from.real() as f32) } else { None };
        let scaling = from.one_of(&[
            RopeScaling::None,
            RopeScaling::Linear { factor },
            RopeScaling::Yarn { factor, original_len, beta_fast: high, beta_slow: low, attn_factor },
            RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_len },
        ]);
        op.with_scaling(scaling)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (x, positions) = (TensorSpec::of(dtype, &[2, 1, 2])?, TensorSpec::of(DType::I32, &[2])?);
        RopeSpec::new(RopeStyle::SplitHalf, &x, &positions, 1e4, &x)
    }
}

impl Arguments for RmsNormSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (x, eps) = (from.tensor()?, from.real() as f32);
        let op = RmsNormSpec::new(&x, &from.out(RmsNormSpec::out_spec(&x))?, eps)?;
        match from.byte() % 3 {
            0 => op.with_weight(&columns(from, &x)?),
            // One row of weights for each group.
            1 => op.with_weight(&from.of(x.dtype(), &x.dims()[x.rank().saturating_sub(2)..])?),
            _ => Ok(op),
        }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        RmsNormSpec::new(&x, &x, 1e-5)
    }
}

impl Arguments for LayerNormSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (x, eps) = (from.tensor()?, from.real() as f32);
        let mut op = LayerNormSpec::new(&x, &from.out(LayerNormSpec::out_spec(&x))?, eps)?;
        if from.flag() {
            op = op.with_weight(&columns(from, &x)?)?;
        }
        if from.flag() {
            op = op.with_bias(&columns(from, &x)?)?;
        }
        Ok(op)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        LayerNormSpec::new(&x, &x, 1e-5)
    }
}

impl Arguments for AddRmsNormSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (x, eps) = (from.tensor()?, from.real() as f32);
        let (residual, out) = (from.like(&x)?, from.out(AddRmsNormSpec::out_spec(&x))?);
        let op = AddRmsNormSpec::new(&x, &residual, &out, eps)?;
        match from.flag() {
            true => op.with_weight(&columns(from, &x)?),
            false => Ok(op),
        }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        AddRmsNormSpec::new(&x, &x, &x, 1e-5)
    }
}

impl Arguments for SoftmaxSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let x = from.tensor()?;
        let op = SoftmaxSpec::new(&x, &from.out(SoftmaxSpec::out_spec(&x))?)?;
        if from.flag() { op.with_scale(from.real() as f32) } else { Ok(op) }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        SoftmaxSpec::new(&x, &x)
    }
}

impl Arguments for LogSoftmaxSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let x = from.tensor()?;
        let op = LogSoftmaxSpec::new(&x, &from.out(LogSoftmaxSpec::out_spec(&x))?)?;
        if from.flag() { op.with_scale(from.real() as f32) } else { Ok(op) }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        LogSoftmaxSpec::new(&x, &x)
    }
}

impl Arguments for SwigluSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let gate = from.tensor()?;
        let mut op = match from.byte() % 3 {
            0 => SwigluSpec::fused(&gate, &from.out(SwigluSpec::out_spec(&gate))?)?,
            1 => SwigluSpec::interleaved(&gate, &from.out(SwigluSpec::out_spec(&gate))?)?,
            _ => SwigluSpec::new(&gate, &from.like(&gate)?, &from.like(&gate)?)?,
        };
        if from.flag() {
            op = op.with_limit(from.real() as f32)?;
        }
        if from.flag() {
            op = op.with_alpha(from.real() as f32)?.with_up_offset(from.real() as f32)?;
        }
        Ok(op)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        SwigluSpec::new(&x, &x, &x)
    }
}

impl Arguments for GegluSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (kind, gate) = (from.one_of(&[GeluKind::Erf, GeluKind::Tanh]), from.tensor()?);
        match from.byte() % 3 {
            0 => GegluSpec::fused(kind, &gate, &from.out(GegluSpec::out_spec(kind, &gate))?),
            1 => GegluSpec::interleaved(kind, &gate, &from.out(GegluSpec::out_spec(kind, &gate))?),
            _ => GegluSpec::new(kind, &gate, &from.like(&gate)?, &from.like(&gate)?),
        }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        GegluSpec::new(GeluKind::Erf, &x, &x, &x)
    }
}

impl Arguments for SortSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (order, x) = (from.one_of(&[SortOrder::Ascending, SortOrder::Descending]), from.tensor()?);
        let (values, indices) = SortSpec::out_specs(&x)?;
        match from.byte() % 3 {
            0 => SortSpec::values_only(order, &x, &from.like(&values)?),
            1 => SortSpec::indices_only(order, &x, &from.like(&indices)?),
            _ => SortSpec::new(order, &x, &from.like(&values)?, &from.like(&indices)?),
        }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        let (values, indices) = SortSpec::out_specs(&x)?;
        SortSpec::new(SortOrder::Ascending, &x, &values, &indices)
    }
}

impl Arguments for SampleSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let dims = [from.few(), from.size()];
        let dtype = from.dtype();
        let logits = from.of(dtype, &dims)?;
        let uniforms = from.of(DType::F32, &dims[..1])?;
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
            let history = [dims[0], from.size()];
            op = op.with_repetition_penalty(from.real() as f32, &from.indices(&history)?)?;
        }
        Ok(op)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let logits = square(dtype)?;
        let uniforms = TensorSpec::of(DType::F32, &[2])?;
        SampleSpec::new(&logits, &uniforms, &SampleSpec::out_spec(&logits)?)
    }
}
