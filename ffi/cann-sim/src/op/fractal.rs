//! Matrices between rows and fractal blocks.

use super::fill::convert;
use super::{Args, Refusal, Run, run};
use crate::view::{Dtype, Format};

operators! {
    TransMatmulWeight(mmWeightRef: U) = in_place;
    NpuFormatCast(srcTensor: T, dstTensor: O) = cast;
}

/// The matrix in its own memory, which must have room for whole blocks.
fn in_place(args: &Args) -> Result<Run, Refusal> {
    let rows = args.tensor("mmWeightRef")?.clone();
    args.one_of("mmWeightRef", &rows, &[Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8])?;
    args.ranked("mmWeightRef", &rows, 2, 6)?;
    if rows.format != Format::Nd {
        return Err(args.invalid("mmWeightRef", "is FRACTAL_NZ already"));
    }
    if !rows.is_contiguous() && !rows.transposed().is_contiguous() {
        return Err(
            args.invalid("mmWeightRef", "is neither contiguous nor a transposed view of such a matrix")
        );
    }
    let mut blocks = rows.clone();
    blocks.format = Format::FractalNz;
    run(move |memory| blocks.write_bits(memory, &rows.read_bits(memory)?))
}

fn cast(args: &Args) -> Result<Run, Refusal> {
    let (from, to) = (args.tensor("srcTensor")?.clone(), args.tensor("dstTensor")?.clone());
    args.ranked("srcTensor", &from, 2, 6)?;
    args.shaped("dstTensor", &to, &from.shape)?;
    args.one_of("dstTensor", &to, &[from.dtype])?;
    if to.format == Format::FractalNz {
        let storage = to.fractal_storage();
        if to.storage != storage {
            return Err(
                args.invalid("dstTensor", format!("has storage {:?}; wanted: {storage:?}", to.storage))
            );
        }
    }
    run(move |memory| convert(&from, &to, memory))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, noise_of};
    use super::super::{Soc, Value};
    use super::*;
    use crate::view::Tensor;

    #[test]
    fn a_weight_in_blocks_multiplies_like_one_in_rows() {
        let (n, k) = (18, 33);
        let (x, w) = (noise_of(Dtype::F16, 2 * k, 5), noise_of(Dtype::F16, n * k, 6));
        let product = |case: Case, weight: Tensor| {
            let case = case.input("self", Dtype::F16, &[2, k], &x).set("mat2", Value::Tensor(Some(weight)));
            case.output("out", Dtype::F16, &[2, n]).done().read("out")
        };
        let mut case = Case::new(Soc::A2, "Mm");
        let rows = case.make(Dtype::F16, &[n, k], &w);
        let want = product(case, rows.transposed());

        let mut case = Case::new(Soc::A2, "Mm");
        let room = case.allocate(Dtype::F16, &[32 * 48]);
        let mut weight = Tensor { shape: vec![n, k], strides: vec![k, 1], ..room };
        weight.write_f64(&case.arena, &w).unwrap();
        let trans = Case::new(Soc::A2, "TransMatmulWeight").after(case);
        let trans = trans.set("mmWeightRef", Value::Tensor(Some(weight.clone()))).done();
        weight.format = Format::FractalNz;
        let case = Case::new(Soc::A2, "Mm").after(trans);
        assert_eq!(product(case, weight.transposed()), want);
    }

    #[test]
    fn casting_there_and_back_changes_nothing() {
        let values = noise_of(Dtype::Bf16, 20 * 7, 8);
        let mut case = Case::new(Soc::A2, "NpuFormatCast").input("srcTensor", Dtype::Bf16, &[20, 7], &values);
        let storage = case.allocate(Dtype::Bf16, &[1, 2, 16, 16]);
        let blocks = Tensor { shape: vec![20, 7], strides: vec![7, 1], format: Format::FractalNz, ..storage };
        let case = case.set("dstTensor", Value::Tensor(Some(blocks.clone()))).done();
        let back = Case::new(Soc::A2, "NpuFormatCast").after(case);
        let back = back.set("srcTensor", Value::Tensor(Some(blocks)));
        assert_eq!(back.output("dstTensor", Dtype::Bf16, &[20, 7]).done().read("dstTensor"), values);
    }
}
