//! Matrices between rows and fractal blocks.

use super::fill::convert;
use super::{Args, Refusal, Run, Soc, run};
use crate::view::{Dtype, Format};

operators! {
    TransMatmulWeight(mmWeightRef: U) = in_place;
    NpuFormatCast(srcTensor: T, dstTensor: O) = cast;
}

/// The matrix in its own memory, which must have room for whole blocks.
fn in_place(args: &Args) -> Result<Run, Refusal> {
    let rows = args.tensor("mmWeightRef")?.clone();
    if args.soc == Soc::Ascend950 {
        return Err(args.unknown_product());
    }
    args.one_of("mmWeightRef", &rows, &[Dtype::F16, Dtype::Bf16, Dtype::I8])?;
    args.ranked("mmWeightRef", &rows, 2, 6)?;
    if rows.shape.contains(&0) {
        return Err(args.invalid("mmWeightRef", "is empty"));
    }
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

/// From rows to blocks or back, neither of them a view of anything.
fn cast(args: &Args) -> Result<Run, Refusal> {
    let (from, to) = (args.tensor("srcTensor")?.clone(), args.tensor("dstTensor")?.clone());
    if args.soc == Soc::Ascend310P {
        return Err(args.unknown_product());
    }
    args.ranked("srcTensor", &from, 2, 6)?;
    args.shaped("dstTensor", &to, &from.shape)?;
    args.one_of("dstTensor", &to, &[from.dtype])?;
    for (name, tensor) in [("srcTensor", &from), ("dstTensor", &to)] {
        if !tensor.is_contiguous() {
            return Err(
                args.invalid(name, format!("must be contiguous; it has strides {:?}", tensor.strides))
            );
        }
        if tensor.format == Format::FractalNz {
            args.blocks(name, tensor)?;
        }
    }
    if from.format == to.format {
        return Err(args.invalid("dstTensor", format!("has the format of srcTensor, {:?}", to.format)));
    }
    if from.shape.contains(&0) {
        return Err(args.invalid("srcTensor", "is empty"));
    }
    if args.soc == Soc::Ascend950 && from.shape[from.rank() - 2] == 1 {
        return Err(args.invalid("srcTensor", "has a single row, which Ascend950 has no blocks of"));
    }
    run(move |memory| convert(&from, &to, memory))
}

#[cfg(test)]
mod tests {
    use super::super::Value;
    use super::super::testing::{Case, noise_of};
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

    /// A product of 2 rows with a weight `[20, 7]` of ones: in these blocks, on this product.
    fn over_blocks(soc: Soc, dtype: Dtype, storage: &[usize], out: Dtype) -> Case {
        let mut case = Case::new(soc, "MatmulWeightNz").input("self", dtype, &[2, 20], &[1.0; 40]);
        let ones = case.make(dtype, storage, &vec![1.0; storage.iter().product()]);
        let weight = Tensor { shape: vec![20, 7], strides: vec![7, 1], format: Format::FractalNz, ..ones };
        case.set("mat2", Value::Tensor(Some(weight))).output("out", out, &[2, 7])
    }

    #[test]
    fn products_over_blocks_take_16_bits_in_whole_blocks() {
        const WHOLE: &[usize] = &[1, 2, 16, 16];
        for (soc, dtype) in [(Soc::A2, Dtype::F16), (Soc::A3, Dtype::Bf16), (Soc::Ascend950, Dtype::Bf16)] {
            assert_eq!(over_blocks(soc, dtype, WHOLE, dtype).done().read("out"), [20.0; 14]);
        }
        assert_eq!(over_blocks(Soc::Ascend950, Dtype::F16, WHOLE, Dtype::F32).done().read("out"), [20.0; 14]);
        let refused = |case: Case, by: &str| {
            let message = case.refused().message;
            assert!(message.contains(by), "{message}");
        };
        refused(over_blocks(Soc::A3, Dtype::Bf16, WHOLE, Dtype::F32), "out has type FLOAT; wanted: BF16");
        refused(over_blocks(Soc::A3, Dtype::F32, &[1, 2, 16, 8], Dtype::F32), "self has type FLOAT");
        for storage in [&[512][..], &[2, 1, 16, 16], &[1, 1, 16, 16], &[20, 7]] {
            let case = over_blocks(Soc::A3, Dtype::F16, storage, Dtype::F16);
            refused(case, "wanted of its blocks: [1, 2, 16, 16]");
        }
        let case = over_blocks(Soc::Ascend950, Dtype::F16, WHOLE, Dtype::F16).int("cubeMathType", 1);
        refused(case, "cubeMathType");
        // Rows, and a single column.
        let weight = |storage: &[usize], shape: [usize; 2], format| {
            let mut case = Case::new(Soc::A3, "MatmulWeightNz");
            case = case.input("self", Dtype::F16, &[2, 20], &[1.0; 40]);
            let ones = case.make(Dtype::F16, storage, &vec![1.0; storage.iter().product()]);
            let strides = vec![shape[1], 1];
            let weight = Tensor { shape: shape.to_vec(), strides, format, ..ones };
            case.set("mat2", Value::Tensor(Some(weight))).output("out", Dtype::F16, &[2, shape[1]])
        };
        refused(weight(WHOLE, [20, 7], Format::Nd), "mat2 must be FRACTAL_NZ");
        refused(weight(WHOLE, [20, 1], Format::FractalNz), "may be 1");
    }

    #[test]
    fn casts_take_whole_tensors_and_another_format() {
        let cast = |soc, strides: [usize; 2], storage: &[usize], format| {
            let mut case =
                Case::new(soc, "NpuFormatCast").input("srcTensor", Dtype::F16, &[20, 7], &[1.0; 140]);
            let memory = case.allocate(Dtype::F16, storage);
            let to = Tensor { shape: vec![20, 7], strides: strides.to_vec(), format, ..memory };
            case.set("dstTensor", Value::Tensor(Some(to))).refused()
        };
        const WHOLE: &[usize] = &[1, 2, 16, 16];
        for (refusal, by) in [
            (cast(Soc::A3, [7, 1], WHOLE, Format::Nd), "has the format of srcTensor"),
            (cast(Soc::A3, [1, 20], WHOLE, Format::FractalNz), "must be contiguous"),
            (cast(Soc::A3, [7, 1], &[512], Format::FractalNz), "wanted of its blocks: [1, 2, 16, 16]"),
            (cast(Soc::Ascend310P, [7, 1], WHOLE, Format::FractalNz), "does not support this operator"),
        ] {
            assert!(refusal.message.contains(by), "{}", refusal.message);
        }
        let mut case =
            Case::new(Soc::Ascend950, "NpuFormatCast").input("srcTensor", Dtype::F16, &[1, 7], &[1.0; 7]);
        let memory = case.allocate(Dtype::F16, &[1, 1, 16, 16]);
        let to = Tensor { shape: vec![1, 7], strides: vec![7, 1], format: Format::FractalNz, ..memory };
        assert!(case.set("dstTensor", Value::Tensor(Some(to))).refused().message.contains("a single row"));
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
