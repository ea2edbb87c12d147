//! Quantisation of activations, and back.

use super::gate::swiglu_rows;
use super::{Args, FLOATS, INDICES, Refusal, Run, Soc, run};
use crate::view::{Dtype, Tensor, contiguous_strides, volume};

operators! {
    AscendQuant(x: T, scale: T, offset: T, sqrtMode: B, roundMode: CS, dstType: I32, y: O) = fixed;
    AscendQuantV3(x: T, scale: T, offset: T, sqrtMode: B, roundMode: CS, dstType: I32, axis: I32, y: O) = fixed;
    AscendAntiQuant(x: T, scale: T, offset: T, dstType: I64, sqrtMode: B, y: O) = back;
    DynamicQuant(x: T, smoothScalesOptional: T, yOut: O, scaleOut: O) = dynamic;
    DynamicQuantV2(x: T, smoothScalesOptional: T, groupIndexOptional: T, dstType: I64, yOut: O, scaleOut: O, offsetOut: O) = dynamic;
    DynamicQuantV3(x: T, smoothScalesOptional: T, groupIndexOptional: T, dstType: I64, isSymmetrical: B, quantMode: CS, yOut: O, scaleOut: O, offsetOut: O) = dynamic;
    SwiGluQuant(x: T, smoothScalesOptional: T, offsetsOptional: T, groupIndexOptional: T, activateLeft: B, quantModeOptional: CS, yOut: O, scaleOut: O) = swiglu;
    DynamicMxQuant(x: T, axis: I64, roundModeOptional: CS, dstType: I64, blocksize: I64, scaleAlg: I64, yOut: O, mxscaleOut: O) = blocks;
    DynamicMxQuantV2(x: T, axis: I64, roundModeOptional: CS, dstType: I64, blocksize: I64, scaleAlg: I64, dstTypeMax: F64, yOut: O, mxscaleOut: O) = blocks;
    AntiMxQuant(x: T, mxscale: T, axis: I64, dstType: I64, y: O) = blocks_back;
}

/// The output's type, which a number in the arguments repeats.
fn result_type(args: &Args, name: &str, number: &str, takes: &[Dtype]) -> Result<Dtype, Refusal> {
    let out = args.tensor(name)?;
    args.one_of(name, out, takes)?;
    match args.int_or(number, out.dtype as i64)? {
        given if given == out.dtype as i64 => Ok(out.dtype),
        given => Err(args.invalid(name, format!("has type {}, but {number} is {given}", out.dtype.name()))),
    }
}

/// The largest code of a symmetric quantisation.
pub(super) fn top(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::I8 => 127.0,
        Dtype::I4 => 7.0,
        Dtype::F8E4M3 => 448.0,
        Dtype::F8E5M2 => 57344.0,
        _ => 6.0,
    }
}

/// To the nearest integer where codes are integers; storing does the rest.
fn code(x: f64, dtype: Dtype) -> f64 {
    if dtype.is_narrow_float() { x } else { x.round_ties_even() }
}

/// y = round(x · scale + offset), the scale squared in `sqrtMode`.
fn fixed(args: &Args) -> Result<Run, Refusal> {
    let (x, y) = (args.tensor("x")?.clone(), args.tensor("y")?.clone());
    args.one_of("x", &x, FLOATS)?;
    let dtype = result_type(args, "y", "dstType", &[Dtype::I8, Dtype::I4, Dtype::F8E4M3, Dtype::F8E5M2])?;
    args.shaped("y", &y, &x.shape)?;
    if args.int_or("axis", -1)? != -1 && args.int_or("axis", -1)? != x.rank() as i64 - 1 {
        return Err(args.unknown_mode("axis", args.int("axis")?));
    }
    let scale = args.tensor("scale")?;
    let scale = args.spread("scale", scale, &x.shape)?;
    let offset =
        args.optional("offset")?.map(|offset| args.spread("offset", offset, &x.shape)).transpose()?;
    let round: fn(f64) -> f64 = match args.text("roundMode")? {
        _ if dtype.is_narrow_float() => |x| x,
        "" | "round" => f64::round_ties_even,
        "floor" => f64::floor,
        "ceil" => f64::ceil,
        "trunc" => f64::trunc,
        mode => return Err(args.unknown_mode("roundMode", mode)),
    };
    let squares = args.flag("sqrtMode")?;
    run(move |memory| {
        let (mut row, scale) = (x.read_f64(memory)?, scale.read_f64(memory)?);
        row.iter_mut().zip(&scale).for_each(|(x, s)| *x *= if squares { s * s } else { *s });
        if let Some(offset) = &offset {
            row.iter_mut().zip(offset.read_f64(memory)?).for_each(|(x, o)| *x += o);
        }
        row.iter_mut().for_each(|x| *x = round(*x));
        y.write_f64(memory, &row)
    })
}

/// y = (x + offset) · scale, the scale squared in `sqrtMode`.
fn back(args: &Args) -> Result<Run, Refusal> {
    let (x, y) = (args.tensor("x")?.clone(), args.tensor("y")?.clone());
    args.one_of("x", &x, &[Dtype::I8, Dtype::I4])?;
    result_type(args, "y", "dstType", &[Dtype::F16, Dtype::Bf16])?;
    args.shaped("y", &y, &x.shape)?;
    let scale = args.tensor("scale")?;
    let scale = args.spread("scale", scale, &x.shape)?;
    let offset =
        args.optional("offset")?.map(|offset| args.spread("offset", offset, &x.shape)).transpose()?;
    let squares = args.flag("sqrtMode")?;
    run(move |memory| {
        let (mut row, scale) = (x.read_f64(memory)?, scale.read_f64(memory)?);
        if let Some(offset) = &offset {
            row.iter_mut().zip(offset.read_f64(memory)?).for_each(|(x, o)| *x += o);
        }
        row.iter_mut().zip(&scale).for_each(|(x, s)| *x *= if squares { s * s } else { *s });
        y.write_f64(memory, &row)
    })
}

/// The codes of a row, their scale and their offset. Quotients are f32, as vector units have them.
fn quantize(row: &[f64], dtype: Dtype, symmetric: bool) -> (Vec<f64>, f64, f64) {
    let single = |x: f64| f64::from(x as f32);
    let top = top(dtype);
    if symmetric {
        let scale = single(row.iter().fold(0.0, |most: f64, x| most.max(x.abs())) / top);
        let codes = row.iter().map(|x| if scale == 0.0 { 0.0 } else { code(single(x / scale), dtype) });
        return (codes.collect(), scale, 0.0);
    }
    let (least, most) =
        row.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &x| (a.min(x), b.max(x)));
    let scale = single((most - least) / (2.0 * top + 1.0));
    let offset = single(if scale == 0.0 { 0.0 } else { top - most / scale });
    let codes = row.iter().map(|x| if scale == 0.0 { 0.0 } else { code(x / scale + offset, dtype) });
    (codes.collect(), scale, offset)
}

/// Rows of `width` as codes of 8 bits, and their scales.
pub(super) fn quantize_rows(rows: &[f64], width: usize) -> (Vec<f64>, Vec<f64>) {
    let quantized = rows.chunks(width.max(1)).map(|row| quantize(row, Dtype::I8, true));
    let (codes, scales): (Vec<_>, Vec<_>) = quantized.map(|(codes, scale, _)| (codes, scale)).unzip();
    (codes.concat(), scales)
}

/// Scales per row: the largest of the row over the largest code; a smoothing factor per column first.
fn dynamic(args: &Args) -> Result<Run, Refusal> {
    let (x, y) = (args.tensor("x")?.clone(), args.tensor("yOut")?.clone());
    args.one_of("x", &x, &[Dtype::F16, Dtype::Bf16])?;
    args.ranked("x", &x, 2, 8)?;
    let dtype = result_type(args, "yOut", "dstType", &[Dtype::I8, Dtype::I4, Dtype::F8E4M3, Dtype::F8E5M2])?;
    args.shaped("yOut", &y, &x.shape)?;
    args.absent(&["groupIndex"])?;
    let count = x.shape[x.rank() - 1];
    let whole = match args.text("quantMode")? {
        "" | "pertoken" => false,
        "pertensor" => true,
        mode => return Err(args.unknown_mode("quantMode", mode)),
    };
    let lead = &x.shape[..x.rank() - 1];
    let shape = if whole { vec![1] } else { lead.to_vec() };
    let smooth = args.optional("smoothScales")?.cloned();
    if let Some(smooth) = &smooth {
        args.shaped("smoothScales", smooth, &[count])?;
        args.one_of("smoothScales", smooth, &[x.dtype])?;
    }
    let (scale, offset) = (args.tensor("scaleOut")?.clone(), args.optional("offsetOut")?.cloned());
    args.shaped("scaleOut", &scale, &shape)?;
    args.one_of("scaleOut", &scale, &[Dtype::F32])?;
    let symmetric = match args.operator {
        "DynamicQuantV3" => args.flag("isSymmetrical")?,
        _ => offset.is_none(),
    };
    if !symmetric {
        let offset = args.tensor("offsetOut")?;
        args.shaped("offsetOut", offset, &shape)?;
        args.one_of("offsetOut", offset, &[Dtype::F32])?;
        if dtype.is_narrow_float() {
            return Err(args.invalid("offsetOut", "goes with integers only"));
        }
    }
    run(move |memory| {
        let mut values = x.read_f64(memory)?;
        if let Some(smooth) = &smooth {
            let smooth = smooth.read_f64(memory)?;
            values.iter_mut().enumerate().for_each(|(i, x)| *x *= smooth[i % count]);
        }
        let (mut codes, mut scales, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
        let row = if whole { values.len() } else { count };
        for row in values.chunks(row.max(1)) {
            let (row, scale, offset) = quantize(row, dtype, symmetric);
            codes.extend(row);
            scales.push(scale);
            offsets.push(offset);
        }
        scales.resize(volume(&scale.shape), 0.0);
        offsets.resize(volume(&scale.shape), 0.0);
        y.write_f64(memory, &codes)?;
        scale.write_f64(memory, &scales)?;
        offset.iter().filter(|_| !symmetric).try_for_each(|out| out.write_f64(memory, &offsets))
    })
}

/// SwiGLU, then a quantisation per row ("dynamic"), smoothed per column or per group's column.
fn swiglu(args: &Args) -> Result<Run, Refusal> {
    let (x, y) = (args.tensor("x")?.clone(), args.tensor("yOut")?.clone());
    args.one_of("x", &x, FLOATS)?;
    args.ranked("x", &x, 2, 8)?;
    args.one_of("yOut", &y, &[Dtype::I8])?;
    let width = x.shape[x.rank() - 1];
    if !width.is_multiple_of(2) {
        return Err(args.invalid("x", format!("has rows of {width}, an odd number")));
    }
    let mut shape = x.shape.clone();
    shape[x.rank() - 1] = width / 2;
    args.shaped("yOut", &y, &shape)?;
    match args.text("quantModeOptional")? {
        "dynamic" => {}
        mode => return Err(args.unknown_mode("quantMode", mode)),
    }
    args.absent(&["offsets"])?;
    let scale = args.tensor("scaleOut")?.clone();
    args.shaped("scaleOut", &scale, &shape[..x.rank() - 1])?;
    args.one_of("scaleOut", &scale, &[Dtype::F32])?;
    let (smooth, groups) = (args.optional("smoothScales")?.cloned(), args.optional("groupIndex")?.cloned());
    let group_count = groups.as_ref().map_or(1, Tensor::numel);
    if let Some(groups) = &groups {
        args.one_of("groupIndex", groups, INDICES)?;
        args.ranked("groupIndex", groups, 1, 1)?;
    }
    if let Some(smooth) = &smooth
        && smooth.shape != [group_count, width / 2]
        && (groups.is_some() || smooth.shape != [width / 2])
    {
        return Err(args.invalid(
            "smoothScales",
            format!("has shape {:?}; wanted: [{group_count}, {}]", smooth.shape, width / 2),
        ));
    }
    let left = args.flag("activateLeft")?;
    run(move |memory| {
        let rows = swiglu_rows(&x.read_f64(memory)?, width, left);
        let half = width / 2;
        let smooth = smooth.as_ref().map(|smooth| smooth.read_f64(memory)).transpose()?;
        // Running sums: rows after the last belong to no group.
        let ends = match &groups {
            Some(groups) => groups.read_i64(memory)?,
            None => vec![i64::MAX],
        };
        let (mut codes, mut scales) = (y.read_f64(memory)?, scale.read_f64(memory)?);
        for (i, row) in rows.chunks(half.max(1)).enumerate() {
            let Some(group) = ends.iter().position(|&end| (i as i64) < end) else { break };
            let factor = |j: usize| smooth.as_ref().map_or(1.0, |smooth| smooth[group * half + j]);
            let row: Vec<f64> = row.iter().enumerate().map(|(j, x)| x * factor(j)).collect();
            let (row, scale, _) = quantize(&row, Dtype::I8, true);
            codes[i * half..][..half].copy_from_slice(&row);
            scales[i] = scale;
        }
        y.write_f64(memory, &codes)?;
        scale.write_f64(memory, &scales)
    })
}

/// Shape of the scales of blocks along a dimension: pairs of them, the pair last.
fn block_scales(shape: &[usize], axis: usize, block: usize) -> Vec<usize> {
    let mut scales = shape.to_vec();
    scales[axis] = scales[axis].div_ceil(block).div_ceil(2);
    scales.push(2);
    scales
}

/// For every element its block's place among the scales.
fn scale_places(shape: &[usize], axis: usize, block: usize) -> impl Fn(usize) -> usize {
    let (steps, scales) = (contiguous_strides(shape), block_scales(shape, axis, block));
    let (to, shape) = (contiguous_strides(&scales), shape.to_vec());
    move |flat| {
        let mut place = 0;
        for a in 0..shape.len() {
            let index = flat / steps[a] % shape[a];
            place += if a == axis { index / block / 2 * to[a] + index / block % 2 } else { index * to[a] };
        }
        place
    }
}

const MX: [Dtype; 3] = [Dtype::F8E4M3, Dtype::F8E5M2, Dtype::F4E2M1];

fn mx_axis(args: &Args, x: &Tensor) -> Result<usize, Refusal> {
    if args.soc != Soc::Ascend950 {
        return Err(args.invalid("x", format!("cannot be scaled by blocks on {:?}", args.soc)));
    }
    args.ranked("x", x, 1, 7)?;
    args.axis("axis", args.int("axis")?, x.rank())
}

/// Blocks share a power of two: the exponent of their largest less that of the type's largest (`scaleAlg` 0), or the
/// least that lets nothing overflow (1).
fn blocks(args: &Args) -> Result<Run, Refusal> {
    let (x, y, scale) =
        (args.tensor("x")?.clone(), args.tensor("yOut")?.clone(), args.tensor("mxscaleOut")?.clone());
    args.one_of("x", &x, FLOATS)?;
    let dtype = result_type(args, "yOut", "dstType", &MX)?;
    args.shaped("yOut", &y, &x.shape)?;
    let axis = mx_axis(args, &x)?;
    let block = args.int("blocksize")?;
    if block % 32 != 0 || !(32..=1024).contains(&block) {
        return Err(args.invalid("blocksize", format!("= {block}; wanted: a multiple of 32, 1024 at most")));
    }
    let block = block as usize;
    args.one_of("mxscaleOut", &scale, &[Dtype::E8M0])?;
    args.shaped("mxscaleOut", &scale, &block_scales(&x.shape, axis, block))?;
    match args.text("roundModeOptional")? {
        "" | "rint" => {}
        mode => return Err(args.unknown_mode("roundMode", mode)),
    }
    if dtype == Dtype::F4E2M1 && !x.shape[x.rank() - 1].is_multiple_of(2) {
        return Err(args.invalid("x", "has an odd last dimension, which pairs of 4 bits do not fill"));
    }
    let rounds_up = match args.int("scaleAlg")? {
        0 => false,
        1 if dtype != Dtype::F4E2M1 => true,
        mode => return Err(args.unknown_mode("scaleAlg", mode)),
    };
    run(move |memory| {
        let mut row = x.read_f64(memory)?;
        let place = scale_places(&x.shape, axis, block);
        let mut largest = vec![0f64; scale.numel()];
        for (flat, x) in row.iter().enumerate() {
            let most = &mut largest[place(flat)];
            *most = if x.is_nan() || most.is_nan() { f64::NAN } else { most.max(x.abs()) };
        }
        let scales: Vec<f64> = largest
            .iter()
            .map(|&most| match most {
                most if most.is_nan() || most.is_infinite() => f64::NAN,
                0.0 => 2f64.powi(-127),
                most if rounds_up => {
                    2f64.powi((exponent(most / top(dtype) * (1.0 - f64::EPSILON)) + 1).clamp(-127, 127))
                }
                most => 2f64.powi((exponent(most) - exponent(top(dtype))).clamp(-127, 127)),
            })
            .collect();
        row.iter_mut().enumerate().for_each(|(flat, x)| *x /= scales[place(flat)]);
        y.write_f64(memory, &row)?;
        scale.write_f64(memory, &scales)
    })
}

/// ⌊log₂ x⌋ of a positive number that is normal as an f64.
fn exponent(x: f64) -> i32 {
    (x.to_bits() >> 52) as i32 - 1023
}

fn blocks_back(args: &Args) -> Result<Run, Refusal> {
    let (x, y, scale) =
        (args.tensor("x")?.clone(), args.tensor("y")?.clone(), args.tensor("mxscale")?.clone());
    args.one_of("x", &x, &MX)?;
    result_type(args, "y", "dstType", FLOATS)?;
    args.shaped("y", &y, &x.shape)?;
    let axis = mx_axis(args, &x)?;
    args.one_of("mxscale", &scale, &[Dtype::E8M0])?;
    args.shaped("mxscale", &scale, &block_scales(&x.shape, axis, 32))?;
    run(move |memory| {
        let (mut row, scales) = (x.read_f64(memory)?, scale.read_f64(memory)?);
        let place = scale_places(&x.shape, axis, 32);
        row.iter_mut().enumerate().for_each(|(flat, x)| *x *= scales[place(flat)]);
        y.write_f64(memory, &row)
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, LAYOUTS, close, noise_of};
    use super::*;

    #[test]
    fn codes_times_scale_are_the_row_again() {
        let x = noise_of(Dtype::F16, 3 * 8, 1);
        for layout in LAYOUTS {
            for (dtype, step) in [(Dtype::I8, 127.0), (Dtype::I4, 7.0)] {
                let case =
                    Case::new(Soc::A2, "DynamicQuantV2").laid(layout).input("x", Dtype::F16, &[3, 8], &x);
                let case = case.int("dstType", dtype as i64).output("yOut", dtype, &[3, 8]);
                let case = case.output("scaleOut", Dtype::F32, &[3]).done();
                let (y, scale) = (case.read("yOut"), case.read("scaleOut"));
                for (i, (y, x)) in y.iter().zip(&x).enumerate() {
                    let row = &x_row(&noise_of(Dtype::F16, 24, 1), i / 8);
                    let most = row.iter().fold(0f64, |m, x| m.max(x.abs()));
                    close(&[scale[i / 8]], &[most / step], 1e-6);
                    assert!((y * scale[i / 8] - x).abs() <= 0.5001 * scale[i / 8], "{i}");
                }
            }
        }
        let zero = Case::new(Soc::A2, "DynamicQuant").input("x", Dtype::F16, &[1, 2], &[0.0; 2]);
        let zero = zero.output("yOut", Dtype::I8, &[1, 2]).output("scaleOut", Dtype::F32, &[1]).done();
        assert_eq!((zero.read("yOut"), zero.read("scaleOut")), (vec![0.0; 2], vec![0.0]));
    }

    fn x_row(x: &[f64], row: usize) -> Vec<f64> {
        x[row * 8..][..8].to_vec()
    }

    #[test]
    fn an_offset_uses_all_codes() {
        let case = Case::new(Soc::A2, "DynamicQuantV2").input("x", Dtype::F16, &[1, 3], &[0.0, 1.0, 255.0]);
        let case =
            case.int("dstType", 2).output("yOut", Dtype::I8, &[1, 3]).output("scaleOut", Dtype::F32, &[1]);
        let case = case.output("offsetOut", Dtype::F32, &[1]).done();
        assert_eq!(case.read("yOut"), [-128.0, -127.0, 127.0]);
        assert_eq!((case.read("scaleOut"), case.read("offsetOut")), (vec![1.0], vec![-128.0]));
    }

    #[test]
    fn fixed_scales_round_as_told() {
        let quant = |mode| {
            let case =
                Case::new(Soc::A2, "AscendQuant").input("x", Dtype::F16, &[4], &[1.25, -1.25, 2.5, 100.0]);
            let case =
                case.input("scale", Dtype::F16, &[1], &[2.0]).text("roundMode", mode).int("dstType", 2);
            case.output("y", Dtype::I8, &[4])
        };
        for (mode, want) in
            [("round", [2.0, -2.0, 5.0]), ("floor", [2.0, -3.0, 5.0]), ("ceil", [3.0, -2.0, 5.0])]
        {
            let y = quant(mode).done().read("y");
            assert_eq!((&y[..3], y[3]), (&want[..], 127.0), "{mode}");
        }
        assert!(quant("nearest").refused().message.contains("nearest"));
        let back =
            Case::new(Soc::A2, "AscendAntiQuant").input("x", Dtype::I8, &[2], &[3.0, -4.0]).int("dstType", 1);
        let back = back.input("scale", Dtype::F16, &[1], &[0.5]).input("offset", Dtype::F16, &[1], &[1.0]);
        assert_eq!(back.output("y", Dtype::F16, &[2]).done().read("y"), [2.0, -1.5]);
    }

    #[test]
    fn blocks_share_a_power_of_two() {
        let mut x = vec![1.0; 96];
        (x[0], x[40], x[70]) = (448.0, 3.5, 500.0);
        for (alg, want) in [(0, [1.0, 2f64.powi(-7), 1.0]), (1, [1.0, 2f64.powi(-7), 2.0])] {
            let case = Case::new(Soc::Ascend950, "DynamicMxQuant")
                .input("x", Dtype::Bf16, &[1, 96], &x)
                .int("axis", -1);
            let case = case.int("dstType", 36).int("blocksize", 32).int("scaleAlg", alg);
            let case = case
                .output("yOut", Dtype::F8E4M3, &[1, 96])
                .output("mxscaleOut", Dtype::E8M0, &[1, 2, 2])
                .done();
            assert_eq!(case.read("mxscaleOut")[..3], want, "{alg}");
            let y = case.read("yOut");
            let back = Case::new(Soc::Ascend950, "AntiMxQuant").after(case);
            let back = back.input("x", Dtype::F8E4M3, &[1, 96], &y).input(
                "mxscale",
                Dtype::E8M0,
                &[1, 2, 2],
                &[want[0], want[1], want[2], 1.0],
            );
            let back =
                back.int("axis", 1).int("dstType", 27).output("y", Dtype::Bf16, &[1, 96]).done().read("y");
            // 500 saturates at 448 where the exponent is floored, and rounds to 512 = 2 · 256 otherwise.
            assert_eq!((back[0], back[40], back[70]), (448.0, 3.5, if alg == 0 { 448.0 } else { 512.0 }));
        }
        let other = Case::new(Soc::Ascend950, "DynamicMxQuant")
            .input("x", Dtype::Bf16, &[64, 2], &[1.0; 128])
            .int("axis", 0);
        let other = other.int("dstType", 36).int("blocksize", 32).output("yOut", Dtype::F8E4M3, &[64, 2]);
        other.output("mxscaleOut", Dtype::E8M0, &[1, 2, 2]).done();
        let old = Case::new(Soc::A3, "DynamicMxQuant").input("x", Dtype::Bf16, &[32], &[1.0; 32]);
        assert!(
            old.output("yOut", Dtype::F8E4M3, &[32])
                .output("mxscaleOut", Dtype::E8M0, &[1, 2])
                .refused()
                .message
                .contains("A3")
        );
    }

    #[test]
    fn a_gated_row_is_quantised_as_a_row() {
        let case = Case::new(Soc::A2, "SwiGluQuant").input(
            "x",
            Dtype::F16,
            &[2, 4],
            &[0.0, 20.0, 1.0, 2.0, 20.0, 20.0, 0.5, 1.0],
        );
        let case = case.flag("activateLeft", true).text("quantModeOptional", "dynamic").output(
            "yOut",
            Dtype::I8,
            &[2, 2],
        );
        let case = case.output("scaleOut", Dtype::F32, &[2]).done();
        assert_eq!(case.read("yOut"), [0.0, 127.0, 64.0, 127.0]);
        close(&case.read("scaleOut"), &[40.0 / 127.0, 20.0 / 127.0], 1e-6);
    }
}
