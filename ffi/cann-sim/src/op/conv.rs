//! Convolution, pooling and resampling of images.

use super::matmul::Cube;
use super::promote::promote;
use super::{Args, FLOATS, Refusal, Run, run};
use crate::view::{Dtype, Tensor, volume};

operators! {
    Convolution(input: T, weight: T, bias: T, stride: IA, padding: IA, dilation: IA, transposed: B, outputPadding: IA, groups: I64, output: O, cubeMathType: I8) = convolution;
    AvgPool2d(self: T, kernelSize: IA, strides: IA, paddings: IA, ceilMode: B, countIncludePad: B, divisorOverride: I64, cubeMathType: I8, out: O) = average;
    MaxPool(self: T, kernelShape: IA, strides: IA, autoPad: I64, pads: IA, dilations: IA, ceilMode: I64, out: O) = maximum;
    Im2col(self: T, kernelSize: IA, dilation: IA, padding: IA, stride: IA, out: O) = columns;
    UpsampleNearest2d(self: T, outputSize: IA, out: O) = nearest;
}

/// The parameters of a window over `n` spatial dimensions; a single entry counts for all.
fn sizes(args: &Args, name: &str, n: usize, least: i64, missing: i64) -> Result<Vec<usize>, Refusal> {
    let given = args.ints(name)?;
    let given: Vec<i64> = match given.len() {
        0 => vec![missing; n],
        1 => vec![given[0]; n],
        _ => given.to_vec(),
    };
    if given.len() != n || given.iter().any(|&size| size < least) {
        return Err(args.invalid(name, format!("{given:?} is not {n} numbers of {least} or more")));
    }
    Ok(given.into_iter().map(|size| size as usize).collect())
}

/// A window sliding over spatial dimensions.
struct Slide {
    kernel: Vec<usize>,
    stride: Vec<usize>,
    padding: Vec<usize>,
    dilation: Vec<usize>,
}

impl Slide {
    /// Positions along a dimension of `size` elements; `ceil` counts one that hangs over, if it starts inside.
    fn positions(&self, axis: usize, size: usize, ceil: bool) -> usize {
        let (reach, pad) = (self.dilation[axis] * (self.kernel[axis] - 1) + 1, self.padding[axis]);
        let Some(free) = (size + 2 * pad).checked_sub(reach) else { return 0 };
        let stride = self.stride[axis];
        if ceil {
            let count = free.div_ceil(stride) + 1;
            if (count - 1) * stride >= size + pad { count - 1 } else { count }
        } else {
            free / stride + 1
        }
    }

    /// The input's place under tap `tap` of position `at`, or `None` in the padding.
    fn place(&self, at: &[usize], tap: &[usize], size: &[usize]) -> Option<usize> {
        (0..at.len()).try_fold(0, |flat, axis| {
            let place = at[axis] * self.stride[axis] + tap[axis] * self.dilation[axis];
            let place = place.checked_sub(self.padding[axis]).filter(|place| *place < size[axis])?;
            Some(flat * size[axis] + place)
        })
    }
}

/// The index of a flat place.
fn index_of(mut flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for axis in (0..shape.len()).rev() {
        index[axis] = flat % shape[axis];
        flat /= shape[axis];
    }
    index
}

fn convolution(args: &Args) -> Result<Run, Refusal> {
    let (x, w, y) = (args.tensor("input")?, args.tensor("weight")?, args.tensor("output")?.clone());
    for (name, tensor) in [("input", x), ("weight", w), ("output", &y)] {
        args.one_of(name, tensor, FLOATS)?;
    }
    args.ranked("input", x, 3, 5)?;
    args.ranked("weight", w, x.rank(), x.rank())?;
    let n = x.rank() - 2;
    let transposed = args.flag("transposed")?;
    let slide = Slide {
        kernel: w.shape[2..].to_vec(),
        stride: sizes(args, "stride", n, 1, 1)?,
        padding: sizes(args, "padding", n, 0, 0)?,
        dilation: sizes(args, "dilation", n, 1, 1)?,
    };
    let extra = if transposed { sizes(args, "outputPadding", n, 0, 0)? } else { vec![0; n] };
    let groups = usize::try_from(args.int("groups")?).unwrap_or(0);
    let (batch, channels) = (x.shape[0], x.shape[1]);
    let ends = if transposed { (w.shape[0], w.shape[1] * groups) } else { (w.shape[1] * groups, w.shape[0]) };
    if groups == 0 || ends.0 != channels || !ends.1.is_multiple_of(groups) || slide.kernel.contains(&0) {
        return Err(args.invalid(
            "weight",
            format!("{:?} does not fit {channels} channels in {groups} groups", w.shape),
        ));
    }
    let outputs = ends.1;
    let space: Vec<usize> = (0..n)
        .map(|axis| {
            if transposed {
                let reach = slide.dilation[axis] * (slide.kernel[axis] - 1) + 1 + extra[axis];
                ((x.shape[2 + axis].max(1) - 1) * slide.stride[axis] + reach)
                    .saturating_sub(2 * slide.padding[axis])
            } else {
                slide.positions(axis, x.shape[2 + axis], false)
            }
        })
        .collect();
    args.shaped("output", &y, &[&[batch, outputs], &space[..]].concat())?;
    let bias = args.optional("bias")?.cloned();
    if let Some(bias) = &bias {
        args.one_of("bias", bias, FLOATS)?;
        if bias.numel() != outputs {
            return Err(args.invalid("bias", format!("has {} elements for {outputs} channels", bias.numel())));
        }
    }
    let cube = Cube::of(args, promote(x.dtype, w.dtype))?;
    let (x, w) = (x.clone(), w.clone());
    run(move |memory| {
        let (input, weight) = (cube.factors(&x, memory)?, cube.factors(&w, memory)?);
        let bias = bias.as_ref().map(|bias| bias.read_f32(memory)).transpose()?;
        let (source, taps) = (volume(&x.shape[2..]), volume(&slide.kernel));
        let target = volume(&space);
        let mut row = vec![0f32; batch * outputs * target];
        // A transposed convolution scatters where a plain one gathers: the window slides over its result.
        let (wide, steps) = if transposed { (&space[..], source) } else { (&x.shape[2..], target) };
        let small = if transposed { &x.shape[2..] } else { &space[..] };
        let places: Vec<Vec<Option<usize>>> = (0..taps)
            .map(|tap| {
                let tap = index_of(tap, &slide.kernel);
                (0..steps).map(|at| slide.place(&index_of(at, small), &tap, wide)).collect()
            })
            .collect();
        let (per_in, per_out) = (channels / groups, outputs / groups);
        for flat in 0..batch * outputs {
            let (b, o) = (flat / outputs, flat % outputs);
            let group = o / per_out;
            let out = &mut row[flat * target..][..target];
            for i in 0..per_in {
                let plane = &input[(b * channels + group * per_in + i) * source..][..source];
                for (tap, places) in places.iter().enumerate() {
                    if transposed {
                        let factor = weight[((group * per_in + i) * per_out + o % per_out) * taps + tap];
                        for (x, place) in plane.iter().zip(places) {
                            if let Some(place) = place {
                                out[*place] += x * factor;
                            }
                        }
                    } else {
                        let factor = weight[(o * per_in + i) * taps + tap];
                        for (y, place) in out.iter_mut().zip(places) {
                            if let Some(place) = place {
                                *y += plane[*place] * factor;
                            }
                        }
                    }
                }
            }
        }
        cube.results(&mut row);
        if let Some(bias) = &bias {
            row.iter_mut().enumerate().for_each(|(i, y)| *y += bias[i / target % outputs]);
        }
        y.write_f32(memory, &row)
    })
}

/// Images as planes: the input (C,H,W or N,C,H,W), its two spatial sizes, and the output checked against them.
fn planes(args: &Args, slide: &Slide, ceil: bool) -> Result<(Tensor, Tensor), Refusal> {
    let (x, y) = (args.tensor("self")?, args.tensor("out")?);
    args.one_of("self", x, FLOATS)?;
    args.one_of("out", y, &[x.dtype])?;
    args.ranked("self", x, 3, 4)?;
    if slide.kernel.contains(&0) {
        return Err(args.invalid("kernelSize", "has an entry of 0"));
    }
    let lead = x.rank() - 2;
    let mut shape = x.shape.clone();
    for axis in 0..2 {
        shape[lead + axis] = slide.positions(axis, x.shape[lead + axis], ceil);
    }
    args.shaped("out", y, &shape)?;
    Ok((x.clone(), y.clone()))
}

/// Every window's elements, plane after plane, given to `f` with the window's position.
fn windows(
    x: &[f64],
    size: &[usize],
    space: &[usize],
    slide: &Slide,
    mut f: impl FnMut(&[usize], &mut dyn Iterator<Item = f64>) -> f64,
) -> Vec<f64> {
    let (source, target) = (volume(size), volume(space));
    let mut row = Vec::new();
    for plane in x.chunks(source.max(1)) {
        for at in 0..target {
            let at = index_of(at, space);
            let mut taps = (0..volume(&slide.kernel))
                .filter_map(|tap| slide.place(&at, &index_of(tap, &slide.kernel), size))
                .map(|place| plane[place]);
            row.push(f(&at, &mut taps));
        }
    }
    row
}

fn average(args: &Args) -> Result<Run, Refusal> {
    let kernel = sizes(args, "kernelSize", 2, 1, 1)?;
    let stride =
        if args.ints("strides")?.is_empty() { kernel.clone() } else { sizes(args, "strides", 2, 1, 1)? };
    let slide = Slide { kernel, stride, padding: sizes(args, "paddings", 2, 0, 0)?, dilation: vec![1; 2] };
    let (x, y) = planes(args, &slide, args.flag("ceilMode")?)?;
    Cube::of(args, x.dtype)?;
    let (padded, divisor) = (args.flag("countIncludePad")?, args.int("divisorOverride")?);
    let lead = x.rank() - 2;
    run(move |memory| {
        let (size, space) = (&x.shape[lead..], &y.shape[lead..]);
        let row = windows(&x.read_f64(memory)?, size, space, &slide, |at, taps| {
            let (sum, count) = taps.fold((0.0, 0usize), |(sum, count), x| (sum + x, count + 1));
            // The padding counts, but not what hangs over beyond it.
            let whole = |axis: usize| {
                let start = at[axis] * slide.stride[axis];
                slide.kernel[axis].min(size[axis] + 2 * slide.padding[axis] - start)
            };
            let by = match divisor {
                0 if padded => whole(0) * whole(1),
                0 => count,
                divisor => divisor as usize,
            };
            sum / by as f64
        });
        y.write_f64(memory, &row)
    })
}

fn maximum(args: &Args) -> Result<Run, Refusal> {
    let kernel = sizes(args, "kernelShape", 2, 1, 1)?;
    if args.int("autoPad")? != 0 {
        return Err(args.unknown_mode("autoPad", args.int("autoPad")?));
    }
    let padding = match args.ints("pads")? {
        [] => vec![0; 2],
        &[all] if all >= 0 => vec![all as usize; 2],
        &[h, w] if h >= 0 && w >= 0 => vec![h as usize, w as usize],
        &[h, w, h2, w2] if h >= 0 && w >= 0 && (h, w) == (h2, w2) => vec![h as usize, w as usize],
        pads => return Err(args.invalid("pads", format!("{pads:?}: only symmetric padding is simulated"))),
    };
    let slide = Slide {
        kernel,
        stride: sizes(args, "strides", 2, 1, 1)?,
        padding,
        dilation: sizes(args, "dilations", 2, 1, 1)?,
    };
    let ceil = match args.int("ceilMode")? {
        0 => false,
        1 => true,
        mode => return Err(args.unknown_mode("ceilMode", mode)),
    };
    let (x, y) = planes(args, &slide, ceil)?;
    let lead = x.rank() - 2;
    run(move |memory| {
        let row = windows(&x.read_f64(memory)?, &x.shape[lead..], &y.shape[lead..], &slide, |_, taps| {
            taps.fold(f64::NEG_INFINITY, |largest, x| if x > largest || x.is_nan() { x } else { largest })
        });
        y.write_f64(memory, &row)
    })
}

/// out[.., channel · taps + tap, position] = the element under that tap, zero in the padding.
fn columns(args: &Args) -> Result<Run, Refusal> {
    let (x, y) = (args.tensor("self")?.clone(), args.tensor("out")?.clone());
    args.one_of("self", &x, FLOATS)?;
    args.one_of("out", &y, &[x.dtype])?;
    args.ranked("self", &x, 3, 4)?;
    let slide = Slide {
        kernel: sizes(args, "kernelSize", 2, 1, 1)?,
        stride: sizes(args, "stride", 2, 1, 1)?,
        padding: sizes(args, "padding", 2, 0, 0)?,
        dilation: sizes(args, "dilation", 2, 1, 1)?,
    };
    let lead = x.rank() - 3;
    let size = x.shape[lead + 1..].to_vec();
    let space = [slide.positions(0, size[0], false), slide.positions(1, size[1], false)];
    let taps = volume(&slide.kernel);
    let columns = [&x.shape[..lead], &[x.shape[lead] * taps, volume(&space)]].concat();
    args.shaped("out", &y, &columns)?;
    run(move |memory| {
        let planes = x.read_f64(memory)?;
        let mut row = Vec::with_capacity(y.numel());
        for plane in planes.chunks(volume(&size).max(1)) {
            for tap in (0..taps).map(|tap| index_of(tap, &slide.kernel)) {
                let place = |at: usize| slide.place(&index_of(at, &space), &tap, &size);
                row.extend((0..volume(&space)).map(|at| place(at).map_or(0.0, |place| plane[place])));
            }
        }
        y.write_f64(memory, &row)
    })
}

/// Every output pixel is the input's at ⌊place · input / output⌋.
fn nearest(args: &Args) -> Result<Run, Refusal> {
    let (x, y) = (args.tensor("self")?.clone(), args.tensor("out")?.clone());
    args.ranked("self", &x, 4, 4)?;
    args.one_of("self", &x, &[FLOATS, &[Dtype::F64, Dtype::U8]].concat())?;
    args.one_of("out", &y, &[x.dtype])?;
    let size = sizes(args, "outputSize", 2, 1, 1)?;
    args.shaped("out", &y, &[x.shape[0], x.shape[1], size[0], size[1]])?;
    run(move |memory| {
        let bits = x.read_bits(memory)?;
        let (h, w) = (x.shape[2], x.shape[3]);
        let mut row = Vec::with_capacity(y.numel());
        for plane in bits.chunks((h * w).max(1)) {
            for i in 0..size[0] {
                row.extend((0..size[1]).map(|j| plane[i * h / size[0] * w + j * w / size[1]]));
            }
        }
        y.write_bits(memory, &row)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, LAYOUTS, close, noise_of};
    use super::*;

    #[test]
    fn a_convolution_agrees_with_its_sum() {
        let (x, w) = (noise_of(Dtype::F32, 2 * 4 * 5 * 6, 1), noise_of(Dtype::F32, 6 * 2 * 3 * 2, 2));
        for layout in LAYOUTS {
            let case =
                Case::new(Soc::A2, "Convolution").laid(layout).input("input", Dtype::F32, &[2, 4, 5, 6], &x);
            let case = case.input("weight", Dtype::F32, &[6, 2, 3, 2], &w).int("groups", 2);
            let case = case
                .ints("stride", &[2, 1])
                .ints("padding", &[1, 0])
                .ints("dilation", &[1, 2])
                .ints("outputPadding", &[0, 0]);
            let y = case.output("output", Dtype::F32, &[2, 6, 3, 4]).done().read("output");
            for (b, o, r, c) in [(0, 0, 0, 0), (1, 5, 2, 3), (1, 2, 1, 2)] {
                let mut want = 0.0;
                for i in 0..2 {
                    for kr in 0..3i64 {
                        for kc in 0..2usize {
                            let (row, col) = (r as i64 * 2 + kr - 1, c + 2 * kc);
                            if (0..5).contains(&row) {
                                want += x[((b * 4 + o / 3 * 2 + i) * 5 + row as usize) * 6 + col]
                                    * w[((o * 2 + i) * 3 + kr as usize) * 2 + kc];
                            }
                        }
                    }
                }
                close(&[y[((b * 6 + o) * 3 + r) * 4 + c]], &[want], 1e-5);
            }
        }
    }

    #[test]
    fn a_transposed_convolution_is_the_adjoint() {
        // ⟨conv(x), y⟩ = ⟨x, convᵀ(y)⟩ for any x and y.
        let (x, y, w) = (
            noise_of(Dtype::F32, 2 * 7, 3),
            noise_of(Dtype::F32, 3 * 3, 4),
            noise_of(Dtype::F32, 3 * 2 * 3, 5),
        );
        let run = |transposed, input: &[f64], from: &[usize], to: &[usize]| {
            let case = Case::new(Soc::A2, "Convolution").input("input", Dtype::F32, from, input);
            let case = case
                .input("weight", Dtype::F32, &[3, 2, 3], &w)
                .int("groups", 1)
                .flag("transposed", transposed);
            let case = case
                .ints("stride", &[2])
                .ints("padding", &[0])
                .ints("dilation", &[1])
                .ints("outputPadding", &[0]);
            case.output("output", Dtype::F32, to).done().read("output")
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let forwards = run(false, &x, &[1, 2, 7], &[1, 3, 3]);
        let back = run(true, &y, &[1, 3, 3], &[1, 2, 7]);
        close(&[dot(&forwards, &y)], &[dot(&x, &back)], 1e-5);
    }

    #[test]
    fn pools_columns_and_pixels() {
        let x: Vec<f64> = (0..16).map(f64::from).collect();
        let case = |name: &str| Case::new(Soc::A2, name).input("self", Dtype::F32, &[1, 1, 4, 4], &x);
        let pool =
            case("MaxPool").ints("kernelShape", &[2, 2]).ints("strides", &[2, 2]).ints("pads", &[0, 0, 0, 0]);
        let pool = pool.ints("dilations", &[1, 1]).output("out", Dtype::F32, &[1, 1, 2, 2]).done();
        assert_eq!(pool.read("out"), [5.0, 7.0, 13.0, 15.0]);
        for (padded, first) in [(true, 10.0 / 9.0), (false, 2.5)] {
            let pool = case("AvgPool2d")
                .ints("kernelSize", &[3, 3])
                .ints("strides", &[3, 3])
                .ints("paddings", &[1, 1]);
            let pool = pool.flag("countIncludePad", padded).output("out", Dtype::F32, &[1, 1, 2, 2]).done();
            close(&pool.read("out")[..1], &[first], 1e-6);
        }
        let columns =
            case("Im2col").ints("kernelSize", &[2, 2]).ints("dilation", &[1, 1]).ints("padding", &[0, 0]);
        let columns =
            columns.ints("stride", &[2, 2]).output("out", Dtype::F32, &[1, 4, 4]).done().read("out");
        assert_eq!(columns[..8], [0.0, 2.0, 8.0, 10.0, 1.0, 3.0, 9.0, 11.0]);
        let pixels =
            Case::new(Soc::A2, "UpsampleNearest2d").input("self", Dtype::F32, &[1, 1, 1, 2], &[1.0, 2.0]);
        let pixels = pixels.ints("outputSize", &[2, 3]).output("out", Dtype::F32, &[1, 1, 2, 3]).done();
        assert_eq!(pixels.read("out"), [1.0, 1.0, 2.0, 1.0, 1.0, 2.0]);
    }
}
