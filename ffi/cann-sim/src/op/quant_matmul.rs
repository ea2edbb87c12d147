//! Products of quantised matrices: codes are multiplied exactly, scales come after.

use super::weight_quant::unpacked;
use super::{Args, Refusal, Run, Soc, run};
use crate::view::{Dtype, Fault, Memory, Tensor, broadcast_shape, volume};

operators! {
    QuantMatmulV3(x1: T, x2: T, scale: T, offset: T, bias: T, transposeX1: B, transposeX2: B, out: O) = earlier;
    QuantMatmulV4(x1: T, x2: T, scale: T, offset: T, pertokenScaleOptional: T, bias: T, transposeX1: B, transposeX2: B, out: O) = earlier;
    QuantMatmulV5(x1: T, x2: T, x1Scale: T, x2Scale: T, yScale: T, x1Offset: T, x2Offset: T, yOffset: T, bias: T, transposeX1: B, transposeX2: B, groupSize: I64, out: O) = latest;
    QuantMatmulWeightNz(x1: T, x2: T, x1Scale: T, x2Scale: T, yScale: T, x1Offset: T, x2Offset: T, yOffset: T, bias: T, transposeX1: B, transposeX2: B, groupSize: I64, out: O) = latest;
    TransQuantParamV2(scale: T, offset: T, out: O) = parameters;
}

/// A scale and an offset as the cube's output unit takes them.
pub(super) fn packed(scale: f32, offset: f64) -> u64 {
    let offset = offset.round_ties_even().clamp(-256.0, 255.0) as i64 as u64 & 0x1ff;
    u64::from(scale.to_bits() & 0xffff_e000) | 1 << 46 | offset << 37
}

/// The scale in a packed parameter: an f32 without its thirteen lowest bits.
fn packed_scale(bits: u64) -> f64 {
    f64::from(f32::from_bits(bits as u32 & 0xffff_e000))
}

/// The offset in a packed parameter: nine bits, signed.
fn packed_offset(bits: u64) -> f64 {
    ((bits >> 37 & 0x1ff) as i64 - if bits >> 45 & 1 == 1 { 512 } else { 0 }) as f64
}

/// Scales and offsets as the cube's output unit takes them.
fn parameters(args: &Args) -> Result<Run, Refusal> {
    let (scale, out) = (args.tensor("scale")?.clone(), args.tensor("out")?.clone());
    args.one_of("scale", &scale, &[Dtype::F32])?;
    args.one_of("out", &out, &[Dtype::U64])?;
    args.shaped("out", &out, &scale.shape)?;
    let offset =
        args.optional("offset")?.map(|offset| args.spread("offset", offset, &scale.shape)).transpose()?;
    run(move |memory| {
        let scales = scale.read_f32(memory)?;
        let offsets = match &offset {
            Some(offset) => offset.read_f64(memory)?,
            None => vec![0.0; scales.len()],
        };
        let pairs = scales.iter().zip(&offsets);
        out.write_bits(memory, &pairs.map(|(&scale, &offset)| packed(scale, offset)).collect::<Vec<_>>())
    })
}

/// Scales of one factor, seen as [rows or columns, groups of k]: one of them, one per row, or one per row and group.
struct Scales {
    view: Tensor,
    /// Elements of k that share one.
    group: usize,
    /// Rows that share one.
    rows: usize,
}

impl Scales {
    fn read(&self, memory: &dyn Memory) -> Result<Vec<f64>, Fault> {
        match self.view.dtype {
            Dtype::U64 | Dtype::I64 => {
                Ok(self.view.read_bits(memory)?.into_iter().map(packed_scale).collect())
            }
            _ => self.view.read_f64(memory),
        }
    }

    /// What a scale of one factor can be: `outer` rows (or columns) of k elements; `turned` where k comes first.
    fn of(
        args: &Args,
        name: &str,
        scale: &Tensor,
        (outer, k): (usize, usize),
        turned: bool,
    ) -> Result<Scales, Refusal> {
        let wrong = || {
            args.invalid(
                name,
                format!("has shape {:?}, which scales no factor of {outer} by {k}", scale.shape),
            )
        };
        if scale.dtype == Dtype::E8M0 {
            let pairs = k.div_ceil(64);
            let view = match scale.shape.as_slice() {
                [a, b, 2] if !turned && (*a, *b) == (outer, pairs) => scale.clone(),
                [a, b, 2] if turned && (*a, *b) == (pairs, outer) => scale.permute(&[1, 0, 2]),
                _ => return Err(wrong()),
            };
            return Ok(Scales { view, group: 32, rows: 1 });
        }
        let blocks = k.div_ceil(128);
        Ok(match scale.shape.as_slice() {
            [] | [1] | [1, 1] => Scales { view: flat(scale), group: k.max(1), rows: outer.max(1) },
            [count] if *count == outer => Scales { view: scale.clone(), group: k.max(1), rows: 1 },
            [1, count] | [count, 1] if *count == outer => {
                Scales { view: flat(scale), group: k.max(1), rows: 1 }
            }
            &[a, b] => {
                let view = if turned { scale.transposed() } else { scale.clone() };
                let (a, b) = if turned { (b, a) } else { (a, b) };
                if b != blocks || a != outer && a != outer.div_ceil(128) {
                    return Err(wrong());
                }
                Scales { view, group: 128, rows: if a == outer { 1 } else { 128 } }
            }
            _ => return Err(wrong()),
        })
    }
}

/// A row of all elements of a tensor with at most one dimension larger than 1.
fn flat(tensor: &Tensor) -> Tensor {
    let axis = (0..tensor.rank()).find(|&axis| tensor.shape[axis] != 1);
    let (shape, strides) =
        axis.map_or((vec![1], vec![0]), |axis| (vec![tensor.shape[axis]], vec![tensor.strides[axis]]));
    Tensor { shape, strides, ..tensor.clone() }
}

/// One product: out = (Σ a · sa · b · sb [+ integer bias]) [· pertoken] [+ bias].
struct Product {
    a: Tensor,
    /// As [.., n, k].
    b: Tensor,
    sizes: [usize; 3],
    batch: Vec<usize>,
    a_scales: Option<Scales>,
    b_scales: Option<Scales>,
    offset: Option<Tensor>,
    bias: Option<Tensor>,
    out: Tensor,
}

fn matrix(args: &Args, name: &str, turned: bool) -> Result<Tensor, Refusal> {
    let tensor = unpacked(args.tensor(name)?);
    args.ranked(name, &tensor, 2, 6)?;
    Ok(if turned { tensor.transposed() } else { tensor })
}

impl Product {
    fn new(args: &Args, scales: [(&str, Option<&Tensor>); 2]) -> Result<Product, Refusal> {
        let a = matrix(args, "x1", args.flag("transposeX1")?)?;
        let turned = args.flag("transposeX2")?;
        let b = matrix(args, "x2", !turned)?;
        let out = args.tensor("out")?.clone();
        let narrow = [Dtype::F8E4M3, Dtype::F8E5M2, Dtype::F4E2M1];
        let codes = [&[Dtype::I8, Dtype::I4], &narrow[..]].concat();
        args.one_of("x1", &a, &codes)?;
        args.one_of("x2", &b, &codes)?;
        if (a.dtype.is_narrow_float() != b.dtype.is_narrow_float())
            || (!a.dtype.is_narrow_float() && a.dtype != b.dtype)
        {
            return Err(args.invalid("x2", format!("has type {}, x1 {}", b.dtype.name(), a.dtype.name())));
        }
        if args.soc == Soc::Ascend310P && a.dtype != Dtype::I8 {
            return Err(args.invalid("x1", "must be INT8 on Ascend310P"));
        }
        let (la, lb) = (a.rank() - 2, b.rank() - 2);
        let sizes = [a.shape[la], a.shape[la + 1], b.shape[lb]];
        let [m, k, n] = sizes;
        if b.shape[lb + 1] != k {
            return Err(args
                .invalid("x2", format!("{:?} does not follow x1 {:?}", args.tensor("x2")?.shape, a.shape)));
        }
        if a.dtype == Dtype::F4E2M1 && (k <= 2 || k % 2 != 0) {
            return Err(args.invalid(
                "x1",
                format!("has {k} elements of 4 bits in a row; wanted: an even number above 2"),
            ));
        }
        let batch = broadcast_shape(&a.shape[..la], &b.shape[..lb]).ok_or_else(|| {
            args.invalid("x2", format!("{:?} does not broadcast with x1 {:?}", b.shape, a.shape))
        })?;
        args.shaped("out", &out, &[&batch[..], &[m, n]].concat())?;
        let outputs = if args.soc == Soc::Ascend950 {
            &[Dtype::F16, Dtype::Bf16, Dtype::F32, Dtype::I8, Dtype::I32][..]
        } else {
            &[Dtype::F16, Dtype::Bf16, Dtype::I8, Dtype::I32][..]
        };
        args.one_of("out", &out, outputs)?;
        let [a_scales, b_scales] = scales;
        let a_scales = match a_scales {
            (name, Some(scale)) => {
                args.one_of(name, scale, &[Dtype::F32, Dtype::E8M0])?;
                // The scales of an x1 that is transposed have k first, as x1 has.
                Some(Scales::of(
                    args,
                    name,
                    scale,
                    (m, k),
                    args.flag("transposeX1")? && scale.dtype == Dtype::E8M0,
                )?)
            }
            _ => None,
        };
        let b_scales = match b_scales {
            (name, Some(scale)) => {
                args.one_of(name, scale, &[Dtype::U64, Dtype::I64, Dtype::F32, Dtype::Bf16, Dtype::E8M0])?;
                Some(Scales::of(args, name, scale, (n, k), !turned)?)
            }
            _ => None,
        };
        if let (Some(a), Some(b)) = (&a_scales, &b_scales)
            && (a.view.dtype == Dtype::E8M0) != (b.view.dtype == Dtype::E8M0)
        {
            return Err(args.invalid(scales[0].0, "and the other factor's scales are not of one kind"));
        }
        if out.dtype != Dtype::I32 && b_scales.is_none() {
            return Err(args.invalid(scales[1].0, "is needed unless out is INT32"));
        }
        let offset = args.optional("offset")?.cloned();
        if let Some(offset) = &offset {
            args.one_of("offset", offset, &[Dtype::F32])?;
            if out.dtype != Dtype::I8 || offset.numel() != n && offset.numel() != 1 {
                return Err(args.invalid(
                    "offset",
                    format!("of shape {:?} goes with {n} columns of INT8", offset.shape),
                ));
            }
        }
        let bias = args.optional("bias")?.cloned();
        if let Some(bias) = &bias {
            args.one_of("bias", bias, &[Dtype::I32, Dtype::Bf16, Dtype::F16, Dtype::F32])?;
            if bias.shape.last() != Some(&n) {
                return Err(args.invalid("bias", format!("has shape {:?} for {n} columns", bias.shape)));
            }
        }
        let bias = bias.map(|bias| args.spread("bias", &bias, &out.shape)).transpose()?;
        let spread = |view: &Tensor, rows, cols| view.broadcast(&[&batch[..], &[rows, cols]].concat());
        let (Some(a), Some(b)) = (spread(&a, m, k), spread(&b, n, k)) else {
            return Err(args.invalid("x2", "does not broadcast with x1"));
        };
        Ok(Product { a, b, sizes, batch, a_scales, b_scales, offset, bias, out })
    }

    fn run(&self, memory: &dyn Memory) -> Result<(), Fault> {
        let [m, k, n] = self.sizes;
        let (a, b) = (self.a.read_f64(memory)?, self.b.read_f64(memory)?);
        let scales = |scales: &Option<Scales>| scales.as_ref().map(|scales| scales.read(memory)).transpose();
        let (sa, sb) = (scales(&self.a_scales)?, scales(&self.b_scales)?);
        let group =
            [&self.a_scales, &self.b_scales].into_iter().flatten().map(|s| s.group).min().unwrap_or(k.max(1));
        let at =
            |values: &Option<Vec<f64>>, scales: &Option<Scales>, row: usize, p: usize| match (values, scales)
            {
                (Some(values), Some(scales)) => {
                    let per_row = k
                        .div_ceil(scales.group)
                        .next_multiple_of(if scales.group == 32 { 2 } else { 1 })
                        .max(1);
                    values[row / scales.rows * per_row + p / scales.group]
                }
                _ => 1.0,
            };
        let bias = self.bias.as_ref().map(|bias| bias.read_f64(memory)).transpose()?;
        let integer_bias = self.bias.as_ref().is_some_and(|bias| bias.dtype == Dtype::I32);
        // With whole rows scaled, an integer bias joins the codes' sum; with groups there is no such sum.
        let grouped = group < k;
        let offset = self.offset.as_ref().map(|offset| offset.read_f64(memory)).transpose()?;
        let mut row = Vec::with_capacity(self.out.numel());
        for flat in 0..volume(&self.batch) * m * n {
            let (t, i, j) = (flat / (m * n), flat / n % m, flat % n);
            let (x, y) = (&a[(t * m + i) * k..][..k], &b[(t * n + j) * k..][..k]);
            let mut sum = 0.0;
            for start in (0..k).step_by(group) {
                let end = (start + group).min(k);
                let dot: f64 = x[start..end].iter().zip(&y[start..end]).map(|(x, y)| x * y).sum();
                let integer =
                    if integer_bias && !grouped { bias.as_ref().map_or(0.0, |bias| bias[flat]) } else { 0.0 };
                sum +=
                    (dot + integer) * at(&sb, &self.b_scales, j, start) * at(&sa, &self.a_scales, i, start);
            }
            if let Some(bias) = bias.as_ref().filter(|_| !integer_bias || grouped || k == 0) {
                sum += bias[flat];
            }
            if let Some(offset) = &offset {
                sum += offset[j % offset.len()];
            }
            if self.out.dtype == Dtype::I8 {
                sum = (sum + self.packed_offset(memory, j)?).round_ties_even();
            }
            row.push(sum);
        }
        self.out.write_f64(memory, &row)
    }

    /// The offset inside a packed scale, for codes of 8 bits.
    fn packed_offset(&self, memory: &dyn Memory, column: usize) -> Result<f64, Fault> {
        match &self.b_scales {
            Some(scales) if matches!(scales.view.dtype, Dtype::U64 | Dtype::I64) && self.offset.is_none() => {
                let bits = scales.view.read_bits(memory)?;
                Ok(packed_offset(bits[column / scales.rows % bits.len()]))
            }
            _ => Ok(0.0),
        }
    }
}

fn earlier(args: &Args) -> Result<Run, Refusal> {
    let token = args.optional("pertokenScale")?;
    let product = Product::new(args, [("pertokenScale", token), ("scale", Some(args.tensor("scale")?))])?;
    run(move |memory| product.run(memory))
}

fn latest(args: &Args) -> Result<Run, Refusal> {
    args.absent(&["yScale", "x1Offset", "x2Offset", "yOffset"])?;
    if args.operator.ends_with("Nz") && args.tensor("x2")?.format != crate::view::Format::FractalNz {
        return Err(args.invalid("x2", "must be FRACTAL_NZ"));
    }
    let product =
        Product::new(args, [("x1Scale", args.optional("x1Scale")?), ("x2Scale", args.optional("x2Scale")?)])?;
    // 16 bits each for k, n, m; 0 leaves the size to the scales' shapes.
    let size = args.int("groupSize")?;
    let along_k = (size & 0xffff) as usize;
    let own = product.a_scales.iter().chain(&product.b_scales).map(|scales| scales.group).min().unwrap_or(0);
    if along_k != 0 && own < product.sizes[1] && along_k != own {
        return Err(args.invalid("groupSize", format!("= {along_k} along k; the scales' shapes say {own}")));
    }
    run(move |memory| product.run(memory))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, close, noise, noise_of};
    use super::*;

    fn codes(count: usize, seed: u64) -> Vec<f64> {
        noise(count, seed).iter().map(|x| (x * 127.0).round()).collect()
    }

    const M: usize = 3;
    const K: usize = 40;
    const N: usize = 5;

    fn dot(a: &[f64], b: &[f64], i: usize, j: usize) -> f64 {
        (0..K).map(|p| a[i * K + p] * b[p * N + j]).sum()
    }

    #[test]
    fn codes_are_multiplied_exactly_and_scaled_by_row_and_column() {
        let (a, b) = (codes(M * K, 1), codes(K * N, 2));
        let (token, channel) = (noise_of(Dtype::F32, M, 3), noise_of(Dtype::F32, N, 4));
        let bias: Vec<f64> = codes(N, 5);
        let case = Case::new(Soc::A2, "QuantMatmulV4").input("x1", Dtype::I8, &[M, K], &a).input(
            "x2",
            Dtype::I8,
            &[K, N],
            &b,
        );
        let case = case.input("scale", Dtype::F32, &[N], &channel).input(
            "pertokenScaleOptional",
            Dtype::F32,
            &[M],
            &token,
        );
        let y =
            case.input("bias", Dtype::I32, &[N], &bias).output("out", Dtype::F16, &[M, N]).done().read("out");
        let want = |i: usize| (dot(&a, &b, i / N, i % N) + bias[i % N]) * channel[i % N] * token[i / N];
        close(&y, &(0..M * N).map(want).collect::<Vec<_>>(), 1e-3);
        let case =
            Case::new(Soc::A2, "QuantMatmulV5").input("x1", Dtype::I8, &[M, K], &a).flag("transposeX2", true);
        let turned: Vec<f64> = (0..K * N).map(|i| b[i % K * N + i / K]).collect();
        let y = case
            .input("x2", Dtype::I8, &[N, K], &turned)
            .output("out", Dtype::I32, &[M, N])
            .done()
            .read("out");
        assert_eq!(y, (0..M * N).map(|i| dot(&a, &b, i / N, i % N)).collect::<Vec<_>>());
    }

    #[test]
    fn packed_parameters_carry_a_short_scale_and_an_offset() {
        let case = Case::new(Soc::A2, "TransQuantParamV2").input(
            "scale",
            Dtype::F32,
            &[2],
            &[0.5, 1.0 + 2f64.powi(-20)],
        );
        let case =
            case.input("offset", Dtype::F32, &[2], &[-3.0, 7.0]).output("out", Dtype::U64, &[2]).done();
        let bits = case.tensor("out").read_bits(&case.arena).unwrap();
        assert_eq!(
            bits.iter().map(|&b| (packed_scale(b), packed_offset(b))).collect::<Vec<_>>(),
            [(0.5, -3.0), (1.0, 7.0)]
        );
        let packed = case.tensor("out").clone();
        let case = Case::new(Soc::A2, "QuantMatmulV3")
            .after(case)
            .set("scale", super::super::Value::Tensor(Some(packed)));
        let case = case.input("x1", Dtype::I8, &[1, 2], &[4.0, 4.0]).input(
            "x2",
            Dtype::I8,
            &[2, 2],
            &[1.0, 2.0, 3.0, 4.0],
        );
        assert_eq!(case.output("out", Dtype::I8, &[1, 2]).done().read("out"), [5.0, 31.0]);
    }

    #[test]
    fn blocks_of_32_scale_by_powers_of_two() {
        let (k, n) = (64, 2);
        let case = |soc| {
            let case = Case::new(soc, "QuantMatmulV5").input("x1", Dtype::F4E2M1, &[1, k], &vec![1.5; k]);
            let case = case.input("x2", Dtype::F4E2M1, &[n, k], &vec![2.0; n * k]).flag("transposeX2", true);
            let case = case.input("x1Scale", Dtype::E8M0, &[1, 1, 2], &[1.0, 4.0]).int("groupSize", 32);
            case.input("x2Scale", Dtype::E8M0, &[n, 1, 2], &[1.0, 0.5, 2.0, 0.25]).output(
                "out",
                Dtype::Bf16,
                &[1, n],
            )
        };
        // 32 · 3 · (1 + 4 · 0.5) and 32 · 3 · (2 + 4 · 0.25).
        assert_eq!(case(Soc::Ascend950).done().read("out"), [288.0, 288.0]);
        assert!(case(Soc::A3).refused().message.contains("A3"));
    }

    #[test]
    fn blocks_of_128_scale_by_floats() {
        let (k, n) = (256, 3);
        let case = Case::new(Soc::A3, "QuantMatmulV5")
            .input("x1", Dtype::I8, &[1, k], &vec![1.0; k])
            .flag("transposeX2", true);
        let case = case.input("x2", Dtype::I8, &[n, k], &vec![1.0; n * k]).input(
            "x1Scale",
            Dtype::F32,
            &[1, 2],
            &[1.0, 10.0],
        );
        let case = case
            .input("x2Scale", Dtype::F32, &[1, 2], &[0.5, 0.25])
            .output("out", Dtype::Bf16, &[1, n])
            .done();
        assert_eq!(case.read("out"), [384.0; 3]);
        let wrong = Case::new(Soc::A3, "QuantMatmulV5").input("x1", Dtype::I8, &[1, 4], &[0.0; 4]);
        let wrong =
            wrong.input("x2", Dtype::I8, &[4, 2], &[0.0; 8]).input("x2Scale", Dtype::F32, &[3], &[1.0; 3]);
        assert!(wrong.output("out", Dtype::F16, &[1, 2]).refused().message.contains("x2Scale has shape [3]"));
    }
}
