//! Calls beside the list of cases: the smallest legal call of an operator for an element type, to ask
//! `support()` about types that no case may have.
//!
//! An operator without a probe is held to its own cases alone.

use portolan_core::{OpKind, SpecRef};
use portolan_ops::activation::SwigluSpec;
use portolan_ops::kernel::{
    BinaryKind, BinarySpec, CastSpec, CompareKind, CompareSpec, CopySpec, FillSpec, GatherSpec, GemmForm,
    GemmSpec, ReduceKind, ReduceSpec, ScanKind, ScanSpec, ScatterMode, ScatterSpec, SelectSpec, TopKSpec,
    UnaryKind, UnarySpec,
};
use portolan_ops::norm::{AddRmsNormSpec, RmsNormSpec, SoftmaxSpec};
use portolan_ops::{DType, Result, TensorSpec};

/// What `ask` says of a small call of `kind` on `dtype`; `None` when there is no such legal call.
pub(crate) fn probe(kind: OpKind, dtype: DType, ask: impl Fn(SpecRef<'_>) -> bool) -> Option<bool> {
    smallest(kind, dtype, ask).ok().flatten()
}

fn smallest(kind: OpKind, dtype: DType, ask: impl Fn(SpecRef<'_>) -> bool) -> Result<Option<bool>> {
    let x = TensorSpec::of(dtype, &[2, 2])?;
    let index = TensorSpec::of(DType::I32, &[2])?;
    Ok(Some(match kind {
        OpKind::Gemm => {
            let out = GemmSpec::out_spec(GemmForm::Nt, &x, &x)?;
            ask(SpecRef::Gemm(&GemmSpec::new(GemmForm::Nt, &x, &x, &out)?))
        }
        OpKind::Unary => ask(SpecRef::Unary(&UnarySpec::new(UnaryKind::Abs, &x, &x)?)),
        OpKind::Binary => ask(SpecRef::Binary(&BinarySpec::new(BinaryKind::Add, &x, &x, &x)?)),
        OpKind::Compare => {
            let out = x.with_dtype(DType::Bool);
            ask(SpecRef::Compare(&CompareSpec::new(CompareKind::Eq, &x, &x, &out)?))
        }
        OpKind::Select => {
            let cond = x.with_dtype(DType::Bool);
            ask(SpecRef::Select(&SelectSpec::new(&cond, &x, &x, &x)?))
        }
        OpKind::Reduce => {
            let out = ReduceSpec::out_spec(ReduceKind::Max, &x, &[1], false)?;
            ask(SpecRef::Reduce(&ReduceSpec::new(ReduceKind::Max, &x, &[1], false, &out)?))
        }
        OpKind::Scan => ask(SpecRef::Scan(&ScanSpec::cumulative(ScanKind::Sum, &x, 1, &x)?)),
        OpKind::TopK => {
            let (values, indices) = TopKSpec::out_specs(&x, 1)?;
            ask(SpecRef::TopK(&TopKSpec::new(&x, &values, &indices)?))
        }
        OpKind::Gather => ask(SpecRef::Gather(&GatherSpec::slices(&x, 0, &index, &x)?)),
        OpKind::Scatter => ask(SpecRef::Scatter(&ScatterSpec::new(ScatterMode::Set, &x, 0, &index, &x, &x)?)),
        OpKind::Copy => ask(SpecRef::Copy(&CopySpec::new(&x, &x)?)),
        OpKind::Cast => ask(SpecRef::Cast(&CastSpec::new(&x, &x.with_dtype(DType::F32))?)),
        OpKind::Fill => ask(SpecRef::Fill(&FillSpec::new(&x, 1.0)?)),
        OpKind::RmsNorm => ask(SpecRef::RmsNorm(&RmsNormSpec::new(&x, &x, 1e-5)?)),
        OpKind::AddRmsNorm => ask(SpecRef::AddRmsNorm(&AddRmsNormSpec::new(&x, &x, &x, 1e-5)?)),
        OpKind::Softmax => ask(SpecRef::Softmax(&SoftmaxSpec::new(&x, &x)?)),
        OpKind::Swiglu => ask(SpecRef::Swiglu(&SwigluSpec::new(&x, &x, &x)?)),
        _ => return Ok(None),
    }))
}
