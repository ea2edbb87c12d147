//! Elements moved to other places: what is joined, cut, repeated, padded, turned.

use super::fill::{convert, scalar_bits};
use super::{Args, Refusal, Run, run};
use crate::view::{Dtype, Tensor, contiguous_strides};

operators! {
    Permute(self: T, dims: IA, out: O) = permute;
    Cat(tensors: TL, dim: I64, out: O) = cat;
    Stack(tensors: TL, dim: I64, out: O) = stack;
    SplitTensor(self: T, splitSections: U64, dim: I64, out: OL) = split;
    SplitWithSize(self: T, splitSize: IA, dim: I64, out: OL) = split;
    Slice(self: T, dim: I64, start: I64, end: I64, step: I64, out: O) = slice;
    SliceV2(self: T, starts: IA, ends: IA, axes: IA, steps: IA, out: O) = slice_many;
    Expand(self: T, size: IA, out: O) = expand;
    Repeat(self: T, repeats: IA, out: O) = repeat;
    RepeatInterleaveIntWithDim(self: T, repeats: I64, dim: I64, outputSize: I64, out: O) = interleave;
    ConstantPadNd(self: T, pad: IA, value: S, out: O) = pad;
    ReflectionPad1d(self: T, padding: IA, out: O) = reflect;
    Roll(x: T, shifts: IA, dims: IA, out: O) = roll;
    Flip(self: T, dims: IA, out: O) = flip;
}

/// Where an element of the result comes from: its index becomes the source's; `false` takes the filler.
type Origin = dyn Fn(&mut [usize]) -> bool + Send + Sync;

/// A result whose every element is one of the source's or `filler`; both have as many dimensions.
fn remap(from: &Tensor, to: &Tensor, filler: u64, origin: Box<Origin>) -> Result<Run, Refusal> {
    let (from, to) = (from.clone(), to.clone());
    run(move |memory| {
        let bits = from.read_bits(memory)?;
        let (steps, target) = (contiguous_strides(&from.shape), contiguous_strides(&to.shape));
        let mut index = vec![0; to.rank()];
        let row: Vec<u64> = (0..to.numel())
            .map(|flat| {
                for (axis, place) in index.iter_mut().enumerate() {
                    *place = flat / target[axis] % to.shape[axis];
                }
                if origin(&mut index) {
                    bits[index.iter().zip(&steps).map(|(i, step)| i * step).sum::<usize>()]
                } else {
                    filler
                }
            })
            .collect();
        to.write_bits(memory, &row)
    })
}

/// Input and output of one type.
fn ends<'a>(args: &'a Args, input: &str) -> Result<(&'a Tensor, &'a Tensor), Refusal> {
    let (from, to) = (args.tensor(input)?, args.tensor("out")?);
    args.one_of("out", to, &[from.dtype])?;
    Ok((from, to))
}

fn permute(args: &Args) -> Result<Run, Refusal> {
    let (from, to) = ends(args, "self")?;
    let order = args.axes("dims", args.ints("dims")?, from.rank())?;
    if order.len() != from.rank() {
        return Err(args.invalid("dims", format!("names {} of {} dimensions", order.len(), from.rank())));
    }
    let (from, to) = (from.permute(&order), to.clone());
    args.shaped("out", &to, &from.shape)?;
    run(move |memory| convert(&from, &to, memory))
}

fn cat(args: &Args) -> Result<Run, Refusal> {
    let (list, to) = (args.tensors("tensors")?, args.tensor("out")?);
    let axis = args.axis("dim", args.int("dim")?, to.rank())?;
    let mut shape = to.shape.clone();
    let mut parts = Vec::new();
    let mut start = 0;
    // A tensor of shape [0] joins anything, as in PyTorch.
    for from in list.iter().filter(|tensor| tensor.shape != [0]) {
        let count = *from
            .shape
            .get(axis)
            .ok_or_else(|| args.invalid("tensors", "has a member without dimension dim"))?;
        shape[axis] = count;
        args.shaped("tensors", from, &shape)?;
        if start + count > to.shape[axis] {
            break;
        }
        parts.push((from.clone(), to.narrow(axis, start, count, 1)));
        start += count;
    }
    let total: usize = list.iter().filter(|t| t.shape != [0]).map(|t| t.shape[axis]).sum();
    shape[axis] = total;
    args.shaped("out", to, &shape)?;
    run(move |memory| parts.iter().try_for_each(|(from, to)| convert(from, to, memory)))
}

fn stack(args: &Args) -> Result<Run, Refusal> {
    let (list, to) = (args.tensors("tensors")?, args.tensor("out")?);
    let axis = args.axis("dim", args.int("dim")?, to.rank())?;
    let first = list.first().ok_or_else(|| args.invalid("tensors", "is empty"))?;
    let mut shape = first.shape.clone();
    shape.insert(axis.min(shape.len()), list.len());
    args.shaped("out", to, &shape)?;
    let mut parts = Vec::new();
    for (i, from) in list.iter().enumerate() {
        args.shaped("tensors", from, &first.shape)?;
        parts.push((from.unsqueeze(axis), to.narrow(axis, i, 1, 1)));
    }
    run(move |memory| parts.iter().try_for_each(|(from, to)| convert(from, to, memory)))
}

fn split(args: &Args) -> Result<Run, Refusal> {
    let (from, list) = (args.tensor("self")?, args.tensors("out")?);
    let axis = args.axis("dim", args.int("dim")?, from.rank())?;
    args.ranked("self", from, 1, 8)?;
    let total = from.shape[axis];
    let sizes: Vec<usize> = if args.operator == "SplitTensor" {
        let size = usize::try_from(args.int("splitSections")?).unwrap_or(0);
        if size == 0 {
            return Err(args.invalid("splitSections", "is 0"));
        }
        (0..total.div_ceil(size).max(1)).map(|i| size.min(total - i * size)).collect()
    } else {
        args.ints("splitSize")?.iter().map(|&size| usize::try_from(size).unwrap_or(usize::MAX)).collect()
    };
    if sizes.iter().fold(0usize, |sum, &size| sum.saturating_add(size)) != total || sizes.len() != list.len()
    {
        return Err(args.invalid("out", format!("has {} parts; {sizes:?} of {total} are wanted", list.len())));
    }
    let mut parts = Vec::new();
    let mut start = 0;
    for (to, &size) in list.iter().zip(&sizes) {
        let part = from.narrow(axis, start, size, 1);
        args.shaped("out", to, &part.shape)?;
        parts.push((part, to.clone()));
        start += size;
    }
    run(move |memory| parts.iter().try_for_each(|(from, to)| convert(from, to, memory)))
}

/// First element and number of elements of a Python slice with a positive step.
fn bounds(args: &Args, size: usize, start: i64, end: i64, step: i64) -> Result<(usize, usize), Refusal> {
    if step <= 0 {
        return Err(args.invalid("step", format!("is {step}; it must be positive")));
    }
    let size = size as i64;
    let clamp = |i: i64| if i < 0 { (i + size).max(0) } else { i.min(size) };
    let (start, end) = (clamp(start), clamp(end));
    Ok((start as usize, ((end - start).max(0) + step - 1) as usize / step as usize))
}

fn slice(args: &Args) -> Result<Run, Refusal> {
    let (from, to) = (args.tensor("self")?, args.tensor("out")?.clone());
    args.ranked("self", from, 1, 8)?;
    let axis = args.axis("dim", args.int("dim")?, from.rank())?;
    let step = args.int("step")?;
    let (start, count) = bounds(args, from.shape[axis], args.int("start")?, args.int("end")?, step)?;
    let part = from.narrow(axis, start, count, step as usize);
    args.shaped("out", &to, &part.shape)?;
    run(move |memory| convert(&part, &to, memory))
}

fn slice_many(args: &Args) -> Result<Run, Refusal> {
    let (from, to) = (args.tensor("self")?, args.tensor("out")?.clone());
    let axes = args.axes("axes", args.ints("axes")?, from.rank())?;
    let (starts, ends, steps) = (args.ints("starts")?, args.ints("ends")?, args.ints("steps")?);
    if [starts.len(), ends.len(), steps.len()] != [axes.len(); 3] {
        return Err(args.invalid("axes", "has another length than starts, ends or steps"));
    }
    let mut part = from.clone();
    for (i, &axis) in axes.iter().enumerate() {
        let (start, count) = bounds(args, from.shape[axis], starts[i], ends[i], steps[i])?;
        part = part.narrow(axis, start, count, steps[i] as usize);
    }
    args.shaped("out", &to, &part.shape)?;
    run(move |memory| convert(&part, &to, memory))
}

fn expand(args: &Args) -> Result<Run, Refusal> {
    let (from, to) = ends(args, "self")?;
    let lead = args.ints("size")?.len().saturating_sub(from.rank());
    let size: Vec<usize> = args
        .ints("size")?
        .iter()
        .enumerate()
        // −1 keeps a dimension.
        .map(|(i, &size)| if size == -1 && i >= lead { from.shape[i - lead] } else { size.max(0) as usize })
        .collect();
    let (from, to) = (args.spread("self", from, &size)?, to.clone());
    args.shaped("out", &to, &size)?;
    run(move |memory| convert(&from, &to, memory))
}

/// The tensor with leading dimensions of 1, up to a rank.
fn raised(tensor: &Tensor, rank: usize) -> Tensor {
    (tensor.rank()..rank).fold(tensor.clone(), |view, _| view.unsqueeze(0))
}

fn repeat(args: &Args) -> Result<Run, Refusal> {
    let (from, to) = ends(args, "self")?;
    let repeats = args.ints("repeats")?;
    if repeats.len() < from.rank() || repeats.iter().any(|&n| n < 0) {
        return Err(args.invalid("repeats", format!("{repeats:?} does not fit shape {:?}", from.shape)));
    }
    let from = raised(from, repeats.len());
    let shape: Vec<usize> = from.shape.iter().zip(repeats).map(|(size, &n)| size * n as usize).collect();
    args.shaped("out", to, &shape)?;
    let sizes = from.shape.clone();
    remap(
        &from,
        to,
        0,
        Box::new(move |index| {
            index.iter_mut().zip(&sizes).for_each(|(i, size)| *i %= size);
            true
        }),
    )
}

fn interleave(args: &Args) -> Result<Run, Refusal> {
    let (from, to) = ends(args, "self")?;
    args.ranked("self", from, 1, 8)?;
    let axis = args.axis("dim", args.int("dim")?, from.rank())?;
    let repeats =
        usize::try_from(args.int("repeats")?).map_err(|_| args.invalid("repeats", "is negative"))?;
    let mut shape = from.shape.clone();
    shape[axis] *= repeats;
    if args.int("outputSize")? != shape[axis] as i64 {
        return Err(
            args.invalid("outputSize", format!("is {}; wanted: {}", args.int("outputSize")?, shape[axis]))
        );
    }
    args.shaped("out", to, &shape)?;
    remap(
        from,
        to,
        0,
        Box::new(move |index| {
            index[axis] /= repeats;
            true
        }),
    )
}

/// `pad`: before and after, from the last dimension on; negative ones cut.
fn pad(args: &Args) -> Result<Run, Refusal> {
    let (from, to) = ends(args, "self")?;
    let (pad, value) = (args.ints("pad")?, args.scalar("value")?);
    if !pad.len().is_multiple_of(2) || pad.len() / 2 > from.rank() {
        return Err(args.invalid("pad", format!("has {} entries for {} dimensions", pad.len(), from.rank())));
    }
    let mut before = vec![0; from.rank()];
    let mut shape = from.shape.clone();
    for (i, pair) in pad.chunks(2).enumerate() {
        let axis = from.rank() - 1 - i;
        before[axis] = pair[0];
        let size = shape[axis] as i64 + pair[0] + pair[1];
        shape[axis] =
            usize::try_from(size).map_err(|_| args.invalid("pad", format!("leaves {size} elements")))?;
    }
    args.shaped("out", to, &shape)?;
    let sizes = from.shape.clone();
    let filler = scalar_bits(from.dtype, value);
    remap(
        from,
        to,
        filler,
        Box::new(move |index| {
            index.iter_mut().enumerate().all(|(axis, i)| {
                let source = *i as i64 - before[axis];
                *i = source.max(0) as usize;
                source >= 0 && *i < sizes[axis]
            })
        }),
    )
}

/// Mirrors at the ends of the last dimension, the ends themselves not repeated.
fn reflect(args: &Args) -> Result<Run, Refusal> {
    let (from, to) = ends(args, "self")?;
    args.ranked("self", from, 2, 3)?;
    args.one_of("self", from, &[Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F64, Dtype::I32, Dtype::I64])?;
    let &[before, after] = args.ints("padding")? else {
        return Err(args.invalid("padding", "must have two entries"));
    };
    let axis = from.rank() - 1;
    let size = from.shape[axis] as i64;
    if before < 0 || after < 0 || before >= size || after >= size {
        return Err(args.invalid("padding", format!("[{before}, {after}] does not fit {size} elements")));
    }
    let mut shape = from.shape.clone();
    shape[axis] = (size + before + after) as usize;
    args.shaped("out", to, &shape)?;
    remap(
        from,
        to,
        0,
        Box::new(move |index| {
            let place = (index[axis] as i64 - before).abs();
            index[axis] = if place < size { place } else { 2 * (size - 1) - place } as usize;
            true
        }),
    )
}

fn roll(args: &Args) -> Result<Run, Refusal> {
    let (from, to) = ends(args, "x")?;
    args.shaped("out", to, &from.shape)?;
    let (shifts, dims) = (args.ints("shifts")?.to_vec(), args.ints("dims")?);
    if dims.is_empty() {
        let &[shift] = shifts.as_slice() else {
            return Err(args.invalid("shifts", "must be one number where dims is empty"));
        };
        let (from, to) = (from.clone(), to.clone());
        return run(move |memory| {
            let mut row = from.read_bits(memory)?;
            if !row.is_empty() {
                let count = row.len() as i64;
                row.rotate_right(shift.rem_euclid(count) as usize);
            }
            to.write_bits(memory, &row)
        });
    }
    if shifts.len() != dims.len() {
        return Err(
            args.invalid("shifts", format!("has {} entries for {} dimensions", shifts.len(), dims.len()))
        );
    }
    let axes: Vec<usize> =
        dims.iter().map(|&axis| args.axis("dims", axis, from.rank())).collect::<Result<_, _>>()?;
    let sizes = from.shape.clone();
    remap(
        from,
        to,
        0,
        Box::new(move |index| {
            for (&axis, &shift) in axes.iter().zip(&shifts) {
                index[axis] = (index[axis] as i64 - shift).rem_euclid(sizes[axis] as i64) as usize;
            }
            true
        }),
    )
}

fn flip(args: &Args) -> Result<Run, Refusal> {
    let (from, to) = ends(args, "self")?;
    args.shaped("out", to, &from.shape)?;
    let axes = args.axes("dims", args.ints("dims")?, from.rank())?;
    let sizes = from.shape.clone();
    remap(
        from,
        to,
        0,
        Box::new(move |index| {
            axes.iter().for_each(|&axis| index[axis] = sizes[axis] - 1 - index[axis]);
            true
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, LAYOUTS};
    use super::*;

    fn counted(count: usize) -> Vec<f64> {
        (0..count).map(|i| i as f64).collect()
    }

    #[test]
    fn parts_cut_and_joined_again_are_the_whole() {
        let x = counted(24);
        for layout in LAYOUTS {
            let case =
                Case::new(Soc::A2, "SplitWithSize").laid(layout).input("self", Dtype::F32, &[2, 4, 3], &x);
            let case = case.ints("splitSize", &[1, 3]).int("dim", 1);
            let case = case.outputs("out", &[(Dtype::F32, &[2, 1, 3]), (Dtype::F32, &[2, 3, 3])]).done();
            let parts: Vec<Vec<f64>> =
                case.tensors("out").iter().map(|part| part.read_f64(&case.arena).unwrap()).collect();
            assert_eq!(parts[0], [0.0, 1.0, 2.0, 12.0, 13.0, 14.0]);
            let list =
                [(Dtype::F32, &[2, 1, 3][..], &parts[0][..]), (Dtype::F32, &[2, 3, 3][..], &parts[1][..])];
            let whole = Case::new(Soc::A2, "Cat").laid(layout).list("tensors", &list).int("dim", 1);
            assert_eq!(whole.output("out", Dtype::F32, &[2, 4, 3]).done().read("out"), x);
        }
        let case = Case::new(Soc::A2, "SplitTensor").input("self", Dtype::F32, &[5], &counted(5));
        let case = case
            .int("splitSections", 2)
            .outputs("out", &[(Dtype::F32, &[2]), (Dtype::F32, &[2]), (Dtype::F32, &[1])]);
        let case = case.done();
        assert_eq!(case.tensors("out")[2].read_f64(&case.arena).unwrap(), [4.0]);
        let list = [(Dtype::F32, &[2][..], &[1.0, 2.0][..]), (Dtype::F32, &[2][..], &[3.0, 4.0][..])];
        let stacked = Case::new(Soc::A2, "Stack").list("tensors", &list).int("dim", 1);
        assert_eq!(stacked.output("out", Dtype::F32, &[2, 2]).done().read("out"), [1.0, 3.0, 2.0, 4.0]);
    }

    #[test]
    fn a_permutation_followed_by_its_inverse_is_the_identity() {
        let x = counted(24);
        for layout in LAYOUTS {
            let case = Case::new(Soc::A2, "Permute").laid(layout).input("self", Dtype::I8, &[2, 3, 4], &x);
            let there = case.ints("dims", &[2, 0, 1]).output("out", Dtype::I8, &[4, 2, 3]).done().read("out");
            assert_eq!(there[..3], [0.0, 4.0, 8.0]);
            let case = Case::new(Soc::A2, "Permute").input("self", Dtype::I8, &[4, 2, 3], &there);
            assert_eq!(
                case.ints("dims", &[1, 2, 0]).output("out", Dtype::I8, &[2, 3, 4]).done().read("out"),
                x
            );
        }
        let twice =
            Case::new(Soc::A2, "Permute").input("self", Dtype::I8, &[2, 1], &[0.0; 2]).ints("dims", &[0, 0]);
        assert!(twice.output("out", Dtype::I8, &[2, 1]).refused().message.contains("twice"));
    }

    #[test]
    fn slices_follow_python() {
        let slice = |start, end, step, want: &[f64]| {
            let case =
                Case::new(Soc::A2, "Slice").input("self", Dtype::F32, &[6], &counted(6)).int("start", start);
            let case = case.int("end", end).int("step", step).output("out", Dtype::F32, &[want.len()]);
            assert_eq!(case.done().read("out"), want, "{start}:{end}:{step}");
        };
        slice(1, 5, 2, &[1.0, 3.0]);
        slice(-2, 100, 1, &[4.0, 5.0]);
        slice(4, 2, 1, &[]);
        let case = Case::new(Soc::A2, "SliceV2").input("self", Dtype::F32, &[2, 3], &counted(6));
        let case =
            case.ints("starts", &[1, 0]).ints("ends", &[2, 3]).ints("axes", &[0, 1]).ints("steps", &[1, 2]);
        assert_eq!(case.output("out", Dtype::F32, &[1, 2]).done().read("out"), [3.0, 5.0]);
    }

    #[test]
    fn repeats_pads_and_turns() {
        let case =
            |name: &str, input: &str| Case::new(Soc::A2, name).input(input, Dtype::F32, &[2, 2], &counted(4));
        let repeat = case("Repeat", "self").ints("repeats", &[1, 2]).output("out", Dtype::F32, &[2, 4]);
        assert_eq!(repeat.done().read("out"), [0.0, 1.0, 0.0, 1.0, 2.0, 3.0, 2.0, 3.0]);
        let each =
            case("RepeatInterleaveIntWithDim", "self").int("repeats", 2).int("dim", 1).int("outputSize", 4);
        assert_eq!(
            each.output("out", Dtype::F32, &[2, 4]).done().read("out"),
            [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
        );
        let pad = case("ConstantPadNd", "self").ints("pad", &[1, 0, -1, 1]).scalar("value", 9.0);
        assert_eq!(pad.output("out", Dtype::F32, &[2, 3]).done().read("out"), [9.0, 2.0, 3.0, 9.0, 9.0, 9.0]);
        let mirrored = Case::new(Soc::A2, "ReflectionPad1d").input("self", Dtype::F32, &[1, 4], &counted(4));
        let mirrored = mirrored.ints("padding", &[2, 3]).output("out", Dtype::F32, &[1, 9]).done();
        assert_eq!(mirrored.read("out"), [2.0, 1.0, 0.0, 1.0, 2.0, 3.0, 2.0, 1.0, 0.0]);
        let roll =
            case("Roll", "x").ints("shifts", &[1]).ints("dims", &[1]).output("out", Dtype::F32, &[2, 2]);
        assert_eq!(roll.done().read("out"), [1.0, 0.0, 3.0, 2.0]);
        let flat =
            case("Roll", "x").ints("shifts", &[-1]).ints("dims", &[]).output("out", Dtype::F32, &[2, 2]);
        assert_eq!(flat.done().read("out"), [1.0, 2.0, 3.0, 0.0]);
        let flip = case("Flip", "self").ints("dims", &[0, 1]).output("out", Dtype::F32, &[2, 2]);
        assert_eq!(flip.done().read("out"), [3.0, 2.0, 1.0, 0.0]);
        let expand = Case::new(Soc::A2, "Expand").input("self", Dtype::F32, &[2, 1], &[1.0, 2.0]);
        let expand = expand.ints("size", &[-1, 2]).output("out", Dtype::F32, &[2, 2]).done();
        assert_eq!(expand.read("out"), [1.0, 1.0, 2.0, 2.0]);
    }
}
