//! Arguments of operators over weights and codes.

use super::{Arguments, Choices};
use portolan_ops::quant::{
    DequantizeSpec, DynamicQuantizeSpec, HadamardSpec, LinearSpec, Offset, PackedSpec, PrepackSpec,
    QuantScheme, QuantSpec, QuantizeSpec, ScaleKind, UnpackSpec, WeightSpec,
};
use portolan_ops::{DType, EmbeddingSpec, Result, TensorSpec};

/// A scheme whose codes, or scales, are of this type.
fn scheme_of(dtype: DType) -> Result<QuantScheme> {
    match dtype {
        DType::E8M0 => Ok(QuantScheme::MXFP8),
        code => QuantScheme::new(code, [1, 32], ScaleKind::F32, Offset::None),
    }
}

/// A quantized weight of one row of one block, if the type is one of codes or of scales.
fn codes_of(dtype: DType) -> Result<QuantSpec> {
    QuantSpec::of(scheme_of(dtype)?, 1, 32)
}

/// A weight of a type, and the type of numbers it is multiplied with.
pub(super) fn weight_of(dtype: DType) -> Result<(WeightSpec, DType)> {
    match dtype.is_float() {
        true => Ok((WeightSpec::dense(&TensorSpec::of(dtype, &[1, 32])?)?, dtype)),
        false => Ok((codes_of(dtype)?.into(), DType::F32)),
    }
}

impl Arguments for LinearSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (rows, weight) = (from.size(), from.weight()?);
        let dtype = from.dtype();
        let x = from.of(dtype, &[rows, weight.k()])?;
        let out = from.out(LinearSpec::out_spec(&x, &weight))?;
        let mut op = LinearSpec::new(&x, &weight, &out)?.with_activation(from.activation());
        if from.flag() {
            op = op.with_bias(&from.of(DType::F32, &[weight.n()])?)?;
        }
        if from.flag() {
            op = op.with_act_quant(from.act_quant())?;
        }
        Ok(op)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (weight, x) = weight_of(dtype)?;
        let x = TensorSpec::of(x, &[1, weight.k()])?;
        LinearSpec::new(&x, &weight, &LinearSpec::out_spec(&x, &weight)?)
    }
}

/// A weight and a packed form, mostly of that weight.
fn weight_and_form(from: &mut Choices<'_>) -> Result<(WeightSpec, PackedSpec)> {
    let weight = from.weight()?;
    let form = match from.byte() % 4 {
        0 => from.packed()?,
        _ => PackedSpec::new(weight.content(), weight.n(), weight.k(), "any", from.size())?,
    };
    Ok((weight, form))
}

fn smallest_form(dtype: DType) -> Result<(WeightSpec, PackedSpec)> {
    let (weight, _) = weight_of(dtype)?;
    let form = PackedSpec::new(weight.content(), weight.n(), weight.k(), "any", 64)?;
    Ok((weight, form))
}

impl Arguments for PrepackSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (weight, form) = weight_and_form(from)?;
        PrepackSpec::new(&weight, &form)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (weight, form) = smallest_form(dtype)?;
        PrepackSpec::new(&weight, &form)
    }
}

impl Arguments for UnpackSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (weight, form) = weight_and_form(from)?;
        UnpackSpec::new(&form, &weight)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (weight, form) = smallest_form(dtype)?;
        UnpackSpec::new(&form, &weight)
    }
}

impl Arguments for DequantizeSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let weight = from.quant()?;
        let out = DequantizeSpec::out_spec(&weight, from.dtype());
        DequantizeSpec::new(&weight, &from.out(out)?)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (code, out) = if dtype.is_float() { (DType::I8, dtype) } else { (dtype, DType::F32) };
        let weight = codes_of(code)?;
        DequantizeSpec::new(&weight, &DequantizeSpec::out_spec(&weight, out)?)
    }
}

impl Arguments for QuantizeSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let quant = from.quant()?;
        let dtype = from.dtype();
        QuantizeSpec::new(&from.of(dtype, &[quant.n(), quant.k()])?, &quant)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (code, x) = if dtype.is_float() { (DType::I8, dtype) } else { (dtype, DType::F32) };
        let quant = codes_of(code)?;
        QuantizeSpec::new(&TensorSpec::of(x, &[quant.n(), quant.k()])?, &quant)
    }
}

impl Arguments for DynamicQuantizeSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let quant = from.quant()?;
        let dtype = from.dtype();
        DynamicQuantizeSpec::new(&from.of(dtype, &[quant.n(), quant.k()])?, &quant)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (code, x) = if dtype.is_float() { (DType::I8, dtype) } else { (dtype, DType::F32) };
        let quant = codes_of(code)?;
        DynamicQuantizeSpec::new(&TensorSpec::of(x, &[quant.n(), quant.k()])?, &quant)
    }
}

impl Arguments for HadamardSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let block = match from.byte() % 4 {
            0 => from.size(),
            shift => 1 << shift,
        };
        let (rows, blocks, dtype) = (from.few(), from.few(), from.dtype());
        let x = from.of(dtype, &[rows, block.saturating_mul(blocks)])?;
        HadamardSpec::new(&x, &from.like(&x)?, block)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = TensorSpec::of(dtype, &[2, 2])?;
        HadamardSpec::new(&x, &x, 2)
    }
}

impl Arguments for EmbeddingSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (count, weight) = (from.size(), from.weight()?);
        let ids = from.indices(&[count])?;
        let out = EmbeddingSpec::out_spec(&ids, &weight, from.dtype());
        EmbeddingSpec::new(&ids, &weight, &from.out(out)?)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (weight, out) = weight_of(dtype)?;
        let ids = TensorSpec::of(DType::I32, &[1])?;
        EmbeddingSpec::new(&ids, &weight, &EmbeddingSpec::out_spec(&ids, &weight, out)?)
    }
}
