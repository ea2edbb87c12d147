//! Products of 16-bit activations with quantised weights, which are expanded first.

use super::matmul::multiply;
use super::{Args, Refusal, Run, run};
use crate::view::{Dtype, Fault, Format, Memory, Tensor};

operators! {
    WeightQuantBatchMatmulV2(x: T, weight: T, antiquantScale: T, antiquantOffsetOptional: T, quantScaleOptional: T, quantOffsetOptional: T, biasOptional: T, antiquantGroupSize: Int, y: O) = product;
    WeightQuantBatchMatmulV3(x: T, weight: T, antiquantScale: T, antiquantOffsetOptional: T, quantScaleOptional: T, quantOffsetOptional: T, biasOptional: T, antiquantGroupSize: Int, innerPrecise: Int, y: O) = product;
    WeightQuantBatchMatmulNz(x: T, weight: T, antiquantScale: T, antiquantOffsetOptional: T, quantScaleOptional: T, quantOffsetOptional: T, biasOptional: T, antiquantGroupSize: Int, y: O) = product;
}

/// A tensor of int32 as the eight int4 of each word: the dimension whose elements are neighbours is eight times as long.
pub(super) fn unpacked(tensor: &Tensor) -> Tensor {
    if tensor.dtype != Dtype::I32 || tensor.rank() == 0 {
        return tensor.clone();
    }
    let mut view = Tensor { dtype: Dtype::I4, ..tensor.clone() };
    let inner = (0..view.rank()).rev().find(|&axis| view.strides[axis] == 1).unwrap_or(view.rank() - 1);
    for axis in 0..view.rank() {
        if axis == inner {
            view.shape[axis] *= 8;
            view.strides[axis] = 1;
        } else {
            view.strides[axis] *= 8;
        }
    }
    view.offset *= 8;
    view
}

/// A weight of k rows and n columns with scales per tensor, per column or per group of rows.
pub(super) struct Weight {
    pub(super) codes: Tensor,
    scale: Tensor,
    offset: Option<Tensor>,
    /// Rows that share a scale.
    group: usize,
}

impl Weight {
    /// Checks the scales' shapes: 1 element, n, (1, n), or (k / group, n).
    pub(super) fn new(
        args: &Args,
        names: [&str; 3],
        codes: Tensor,
        scale: &Tensor,
        offset: Option<&Tensor>,
        group: usize,
    ) -> Result<Weight, Refusal> {
        let (k, n) = (codes.shape[0], codes.shape[1]);
        let rows = if group == 0 { 1 } else { k.div_ceil(group) };
        let spread = |name: &str, tensor: &Tensor| -> Result<Tensor, Refusal> {
            let fits = match tensor.shape.as_slice() {
                [] => group == 0,
                [count] => group == 0 && (*count == n || *count == 1),
                [r, c] => *r == rows && (*c == n || group == 0 && *c == 1),
                _ => false,
            };
            if !fits {
                let shape = &tensor.shape;
                return Err(args.invalid(
                    name,
                    format!("has shape {shape:?}; wanted: ({rows}, {n}) for {k} rows in groups of {group}"),
                ));
            }
            args.spread(name, tensor, &[rows, n])
        };
        let scale = spread(names[1], scale)?;
        let offset = offset.map(|offset| spread(names[2], offset)).transpose()?;
        Ok(Weight { codes, scale, offset, group: if group == 0 { k.max(1) } else { group } })
    }

    /// (code + offset) · scale, row after row, in `dtype` as the vector unit hands it to the cube.
    pub(super) fn expand(&self, dtype: Dtype, memory: &dyn Memory) -> Result<Vec<f32>, Fault> {
        let n = self.codes.shape[1].max(1);
        let (codes, scales) = (self.codes.read_f64(memory)?, self.scale.read_f64(memory)?);
        let offsets = self.offset.as_ref().map(|offset| offset.read_f64(memory)).transpose()?;
        let value = |(flat, code): (usize, f64)| {
            let at = flat / n / self.group * n + flat % n;
            dtype.round((code + offsets.as_ref().map_or(0.0, |offsets| offsets[at])) * scales[at]) as f32
        };
        Ok(codes.into_iter().enumerate().map(value).collect())
    }
}

fn product(args: &Args) -> Result<Run, Refusal> {
    args.absent(&["quantOffset", "quantScale"])?;
    let (x, y) = (args.tensor("x")?.clone(), args.tensor("y")?.clone());
    args.one_of("x", &x, &[Dtype::F16, Dtype::Bf16])?;
    args.one_of("y", &y, &[x.dtype])?;
    args.ranked("x", &x, 2, 6)?;
    let given = args.tensor("weight")?;
    let narrow = [Dtype::F8E4M3, Dtype::F8E5M2, Dtype::F4E2M1];
    args.one_of("weight", given, &[&[Dtype::I8, Dtype::I4, Dtype::I32], &narrow[..]].concat())?;
    args.ranked("weight", given, 2, 2)?;
    if args.operator.ends_with("Nz") && given.format != Format::FractalNz {
        return Err(args.invalid("weight", "must be FRACTAL_NZ"));
    }
    if given.dtype == Dtype::I4 && !given.shape[if given.strides[1] == 1 { 1 } else { 0 }].is_multiple_of(2) {
        return Err(args.invalid("weight", "is INT4 with an odd inner dimension"));
    }
    let codes = unpacked(given);
    let (k, n) = (codes.shape[0], codes.shape[1]);
    let scale = args.tensor("antiquantScale")?;
    let group = args.int("antiquantGroupSize")?;
    if scale.dtype == Dtype::E8M0 {
        args.one_of("weight", &codes, &narrow)?;
        if group != 32 {
            return Err(args.invalid("antiquantGroupSize", format!("= {group}; scales of 8 bits go with 32")));
        }
    } else {
        args.one_of("antiquantScale", scale, &[x.dtype])?;
    }
    let last = k.saturating_sub(1) as i64;
    if group != 0 && !(group % 32 == 0 && (32..=last).contains(&group)) {
        return Err(args.invalid(
            "antiquantGroupSize",
            format!("= {group}; wanted: 0, or a multiple of 32 up to {last}"),
        ));
    }
    let offset = args.optional("antiquantOffset")?;
    if let Some(offset) = offset {
        args.one_of("antiquantOffset", offset, &[scale.dtype, Dtype::I32])?;
    }
    if args.int_or("innerPrecise", 0)? & !1 != 0 {
        return Err(args.unknown_mode("innerPrecise", args.int("innerPrecise")?));
    }
    let names = ["weight", "antiquantScale", "antiquantOffset"];
    let weight = Weight::new(args, names, codes, scale, offset, group as usize)?;
    let rows: usize = x.shape[..x.rank() - 1].iter().product();
    if x.shape[x.rank() - 1] != k {
        return Err(args.invalid("weight", format!("has {k} rows; x has shape {:?}", x.shape)));
    }
    let mut shape = x.shape.clone();
    shape[x.rank() - 1] = n;
    args.shaped("y", &y, &shape)?;
    let bias = args.optional("bias")?.cloned();
    if let Some(bias) = &bias {
        args.one_of("bias", bias, &[x.dtype, Dtype::F32])?;
        if bias.shape != [n] && bias.shape != [1, n] {
            return Err(args.invalid("bias", format!("has shape {:?}; wanted: [{n}]", bias.shape)));
        }
    }
    run(move |memory| {
        let (a, b) = (x.read_f32(memory)?, weight.expand(x.dtype, memory)?);
        let mut out = vec![0f32; rows * n];
        multiply(&a, &b, (rows, k, n), &mut out);
        if let Some(bias) = &bias {
            let bias = bias.read_f32(memory)?;
            out.iter_mut().enumerate().for_each(|(i, y)| *y += bias[i % n]);
        }
        y.write_f32(memory, &out)
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, close, noise_of};
    use super::super::{Soc, Value};
    use super::*;

    fn codes(count: usize, seed: u64, size: f64) -> Vec<f64> {
        noise_of(Dtype::F32, count, seed).iter().map(|x| (x * size).floor()).collect()
    }

    #[test]
    fn groups_of_rows_have_their_own_scale_and_offset() {
        let (m, k, n) = (2, 64, 6);
        let (x, scale) = (noise_of(Dtype::F16, m * k, 1), noise_of(Dtype::F16, 2 * n, 2));
        for (dtype, size) in [(Dtype::I8, 127.0), (Dtype::I4, 7.0)] {
            let w = codes(k * n, 3, size);
            let offset: Vec<f64> = codes(2 * n, 4, 4.0);
            let case = Case::new(Soc::A2, "WeightQuantBatchMatmulV2").input("x", Dtype::F16, &[m, k], &x);
            let case =
                case.input("weight", dtype, &[k, n], &w).input("antiquantScale", Dtype::F16, &[2, n], &scale);
            let case = case
                .input("antiquantOffsetOptional", Dtype::F16, &[2, n], &offset)
                .int("antiquantGroupSize", 32);
            let y = case.output("y", Dtype::F16, &[m, n]).done().read("y");
            let at = |i: usize, j: usize| -> f64 {
                (0..k)
                    .map(|p| x[i * k + p] * (w[p * n + j] + offset[p / 32 * n + j]) * scale[p / 32 * n + j])
                    .sum()
            };
            let want: Vec<f64> = (0..m * n).map(|i| at(i / n, i % n)).collect();
            // Weights are rounded to FLOAT16 before they are multiplied: k half units of up to 131.
            close(&y, &want, 2e-2);
        }
    }

    #[test]
    fn eight_codes_in_a_word_and_a_transposed_weight_are_the_same_matrix() {
        let (k, n) = (16, 8);
        let (x, w) = (noise_of(Dtype::F16, k, 5), codes(k * n, 6, 7.0));
        let turned: Vec<f64> = (0..k * n).map(|i| w[i % k * n + i / k]).collect();
        let scale = noise_of(Dtype::F16, n, 7);
        let base = || {
            let case = Case::new(Soc::A3, "WeightQuantBatchMatmulV2").input("x", Dtype::F16, &[1, k], &x);
            case.input("antiquantScale", Dtype::F16, &[n], &scale).output("y", Dtype::F16, &[1, n])
        };
        let plain = base().input("weight", Dtype::I4, &[k, n], &w).done().read("y");
        let mut words = base();
        let mut packed = words.make(Dtype::I4, &[k, n], &w);
        packed = Tensor { dtype: Dtype::I32, shape: vec![k, n / 8], strides: vec![n / 8, 1], ..packed };
        assert_eq!(words.set("weight", Value::Tensor(Some(packed))).done().read("y"), plain);
        let mut case = base();
        let rows = case.make(Dtype::I4, &[n, k], &turned);
        assert_eq!(case.set("weight", Value::Tensor(Some(rows.transposed()))).done().read("y"), plain);
    }

    #[test]
    fn powers_of_two_scale_groups_of_32_on_the_950_only() {
        let case = |soc| {
            let case =
                Case::new(soc, "WeightQuantBatchMatmulV2").input("x", Dtype::Bf16, &[1, 64], &[1.0; 64]);
            let case =
                case.input("weight", Dtype::F4E2M1, &[64, 2], &[1.5; 128]).int("antiquantGroupSize", 32);
            let case = case.input("antiquantScale", Dtype::E8M0, &[2, 2], &[1.0, 2.0, 0.5, 4.0]);
            case.output("y", Dtype::Bf16, &[1, 2])
        };
        assert_eq!(case(Soc::Ascend950).done().read("y"), [72.0, 288.0]);
        assert!(case(Soc::A2).refused().message.contains("A2"));
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let case = |group| {
            let case =
                Case::new(Soc::A2, "WeightQuantBatchMatmulV2").input("x", Dtype::F16, &[1, 64], &[0.0; 64]);
            let case =
                case.input("weight", Dtype::I8, &[64, 2], &[0.0; 128]).int("antiquantGroupSize", group);
            case.input("antiquantScale", Dtype::F16, &[2, 2], &[0.0; 4])
                .output("y", Dtype::F16, &[1, 2])
                .refused()
                .message
        };
        assert!(case(64).contains("antiquantGroupSize = 64"));
        assert!(case(40).contains("antiquantGroupSize = 40"));
        assert!(case(0).contains("antiquantScale"));
    }

    #[test]
    fn scales_of_other_types_than_the_activations_are_refused() {
        let case = |weight, scale: Dtype| {
            let case = Case::new(Soc::Ascend950, "WeightQuantBatchMatmulV3").input(
                "x",
                Dtype::Bf16,
                &[1, 64],
                &[0.0; 64],
            );
            let case = case.input("weight", weight, &[64, 2], &[0.0; 128]).int("antiquantGroupSize", 32);
            let case = case.input("antiquantScale", scale, &[2, 2], &[1.0; 4]).int("innerPrecise", 0);
            case.output("y", Dtype::Bf16, &[1, 2]).refused().message
        };
        assert!(case(Dtype::I8, Dtype::F16).contains("antiquantScale"));
        assert!(case(Dtype::I4, Dtype::F32).contains("antiquantScale"));
        assert!(case(Dtype::I8, Dtype::E8M0).contains("weight"));
    }
}
