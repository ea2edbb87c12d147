//! Arguments of the kernel core.

use super::{Arguments, Choices};
use portolan_ops::kernel::{
    BinaryKind, BinarySpec, CastSpec, CompareKind, CompareSpec, CopySpec, FillSpec, GatherForm, GatherSpec,
    GemmForm, GemmSpec, RandomKind, RandomSpec, ReduceKind, ReduceSpec, ScanKind, ScanSpec, ScatterMode,
    ScatterSpec, SelectSpec, TopKSpec, UnaryKind, UnarySpec,
};
use portolan_ops::{DType, Result, TensorSpec};

/// Two rows of two.
fn square(dtype: DType) -> Result<TensorSpec> {
    TensorSpec::of(dtype, &[2, 2])
}

impl Arguments for GemmSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
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
            op = op.with_bias(&from.of(out.dtype(), &[width])?)?;
        }
        op.with_activation(from.activation())
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        GemmSpec::new(GemmForm::Nt, &x, &x, &GemmSpec::out_spec(GemmForm::Nt, &x, &x)?)
    }
}

impl Arguments for UnarySpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (kind, x) = (from.one_of(&UnaryKind::ALL), from.tensor()?);
        let out = from.out(UnarySpec::out_spec(kind, &x))?;
        UnarySpec::new(kind, &x, &out)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        UnarySpec::new(UnaryKind::Abs, &x, &x)
    }
}

impl Arguments for BinarySpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (kind, a) = (from.one_of(&BinaryKind::ALL), from.tensor()?);
        let b = from.like(&a)?;
        let out = from.out(BinarySpec::out_spec(kind, &a, &b))?;
        match from.flag() {
            true => BinarySpec::scalar(kind, &a, from.real(), &out),
            false => BinarySpec::new(kind, &a, &b, &out),
        }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        BinarySpec::new(BinaryKind::Add, &x, &x, &x)
    }
}

impl Arguments for CompareSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (kind, a) = (from.one_of(&CompareKind::ALL), from.tensor()?);
        let b = from.like(&a)?;
        let out = from.out(CompareSpec::out_spec(kind, &a, &b))?;
        match from.flag() {
            true => CompareSpec::scalar(kind, &a, from.real(), &out),
            false => CompareSpec::new(kind, &a, &b, &out),
        }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        CompareSpec::new(CompareKind::Eq, &x, &x, &x.with_dtype(DType::Bool))
    }
}

impl Arguments for SelectSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let a = from.tensor()?;
        let (b, cond) = (from.like(&a)?, from.like(&TensorSpec::new(DType::Bool, *a.shape()))?);
        let out = from.out(SelectSpec::out_spec(&cond, &a, &b))?;
        SelectSpec::new(&cond, &a, &b, &out)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        SelectSpec::new(&x.with_dtype(DType::Bool), &x, &x, &x)
    }
}

impl Arguments for ReduceSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (kind, x) = (from.one_of(&ReduceKind::ALL), from.tensor()?);
        let dims: Vec<usize> = (0..from.byte() % 4).map(|_| from.few()).collect();
        let keep = from.flag();
        let out = from.out(ReduceSpec::out_spec(kind, &x, &dims, keep))?;
        ReduceSpec::new(kind, &x, &dims, keep, &out)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        let out = ReduceSpec::out_spec(ReduceKind::Max, &x, &[1], false)?;
        ReduceSpec::new(ReduceKind::Max, &x, &[1], false, &out)
    }
}

impl Arguments for ScanSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let x = from.tensor()?;
        let (dim, out) = (from.few(), from.like(&x)?);
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
        Ok(op)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        ScanSpec::cumulative(ScanKind::Sum, &x, 1, &x)
    }
}

impl Arguments for TopKSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let x = from.tensor()?;
        let (values, indices) = TopKSpec::out_specs(&x, from.few())?;
        TopKSpec::new(&x, &from.like(&values)?, &from.like(&indices)?)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        let (values, indices) = TopKSpec::out_specs(&x, 1)?;
        TopKSpec::new(&x, &values, &indices)
    }
}

impl Arguments for GatherSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (x, dim) = (from.tensor()?, from.few());
        let form = from.one_of(&[GatherForm::Slices, GatherForm::Elements]);
        let count = [from.size()];
        let index = from.indices(if form == GatherForm::Slices { &count } else { x.dims() })?;
        let out = from.out(GatherSpec::out_spec(form, &x, dim, &index))?;
        match form {
            GatherForm::Slices => GatherSpec::slices(&x, dim, &index, &out),
            GatherForm::Elements => GatherSpec::elements(&x, dim, &index, &out),
        }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        GatherSpec::slices(&x, 0, &TensorSpec::of(DType::I32, &[2])?, &x)
    }
}

impl Arguments for ScatterSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (x, dim) = (from.tensor()?, from.few());
        let index = match from.flag() {
            true => from.indices(x.dims())?,
            false => from.indices(&[x.dims().get(dim).copied().unwrap_or(1)])?,
        };
        let (src, out) = (from.like(&x)?, from.like(&x)?);
        let mode = from.one_of(&[ScatterMode::Set, ScatterMode::Add]);
        ScatterSpec::new(mode, &x, dim, &index, &src, &out)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        ScatterSpec::new(ScatterMode::Set, &x, 0, &TensorSpec::of(DType::I32, &[2])?, &x, &x)
    }
}

impl Arguments for CopySpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let x = from.tensor()?;
        CopySpec::new(&x, &from.like(&x)?)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        CopySpec::new(&x, &x)
    }
}

impl Arguments for CastSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let x = from.tensor()?;
        let out = TensorSpec::new(from.dtype(), *x.shape());
        CastSpec::new(&x, &from.like(&out)?)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let x = square(dtype)?;
        CastSpec::new(&x, &x.with_dtype(DType::F32))
    }
}

impl Arguments for FillSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        FillSpec::new(&from.tensor()?, from.real())
    }

    fn smallest(dtype: DType) -> Result<Self> {
        FillSpec::new(&square(dtype)?, 1.0)
    }
}

impl Arguments for RandomSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let op = RandomSpec::new(from.one_of(&RandomKind::ALL), u64::MAX, &from.tensor()?)?;
        let op = op.with_offset(from.size() as u64);
        match from.flag() {
            true => op.with_counter(&from.of(DType::I64, &[1])?),
            false => Ok(op),
        }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        RandomSpec::new(RandomKind::ALL[0], 0, &square(dtype)?)
    }
}
