//! Copies between layouts and types, and tensors made from a rule.

use super::promote::in_floats;
use super::{Args, INDICES, Refusal, Run, Scalar, run};
use crate::view::{Dtype, Fault, Memory, Tensor};

operators! {
    InplaceCopy(selfRef: U, src: T) = copy;
    InplaceZero(selfRef: U) = constant;
    InplaceOne(selfRef: U) = constant;
    InplaceFillScalar(selfRef: U, value: S) = constant;
    Arange(start: S, end: S, step: S, out: O) = arange;
    Tril(self: T, diagonal: I64, out: O) = triangle;
    Triu(self: T, diagonal: I64, out: O) = triangle;
    InplaceTril(selfRef: U, diagonal: I64) = triangle;
    InplaceTriu(selfRef: U, diagonal: I64) = triangle;
    OneHot(self: T, numClasses: Int, onValue: T, offValue: T, axis: I64, out: O) = one_hot;
}

/// Converts elements of one type to another and stores them; equal types move as bits.
pub(super) fn convert(from: &Tensor, to: &Tensor, memory: &dyn Memory) -> Result<(), Fault> {
    if from.dtype == to.dtype {
        to.write_bits(memory, &from.read_bits(memory)?)
    } else if in_floats(from.dtype) {
        to.write_f64(memory, &from.read_f64(memory)?)
    } else {
        to.write_i64(memory, &from.read_i64(memory)?)
    }
}

fn copy(args: &Args) -> Result<Run, Refusal> {
    let (to, from) = (args.tensor("selfRef")?.clone(), args.tensor("src")?);
    let from = args.spread("src", from, &to.shape)?;
    run(move |memory| convert(&from, &to, memory))
}

/// The bits of a scalar in a tensor's type.
pub(super) fn scalar_bits(dtype: Dtype, value: Scalar) -> u64 {
    match (in_floats(dtype), in_floats(value.dtype)) {
        (false, false) => dtype.encode_int(value.int),
        _ => dtype.encode(value.float),
    }
}

fn constant(args: &Args) -> Result<Run, Refusal> {
    let out = args.tensor("selfRef")?.clone();
    let bits = match args.operator {
        "InplaceZero" => 0,
        "InplaceOne" => out.dtype.encode(1.0),
        _ => scalar_bits(out.dtype, args.scalar("value")?),
    };
    run(move |memory| out.write_bits(memory, &vec![bits; out.numel()]))
}

/// start, start + step, …, as many as lie before `end`.
fn arange(args: &Args) -> Result<Run, Refusal> {
    let [start, end, step] = ["start", "end", "step"].map(|name| args.scalar(name));
    let (start, end, step, out) = (start?, end?, step?, args.tensor("out")?.clone());
    if step.float == 0.0 || (end.float - start.float) * step.float < 0.0 {
        return Err(args
            .invalid("step", format!("{} does not lead from {} to {}", step.float, start.float, end.float)));
    }
    let count = ((end.float - start.float) / step.float).ceil() as usize;
    // How many dimensions the elements are spread over is nowhere prescribed.
    if out.numel() != count {
        return Err(args.invalid("out", format!("has shape {:?}; wanted: {count} elements", out.shape)));
    }
    let integer = [start, end, step].iter().all(|scalar| !in_floats(scalar.dtype));
    run(move |memory| {
        if integer && !in_floats(out.dtype) {
            let row: Vec<i64> = (0..count as i64).map(|i| start.int + i * step.int).collect();
            return out.write_i64(memory, &row);
        }
        let row: Vec<f64> = (0..count).map(|i| start.float + i as f64 * step.float).collect();
        out.write_f64(memory, &row)
    })
}

/// Keeps what lies on or below (`Tril`), on or above (`Triu`) a diagonal of the last two dimensions.
fn triangle(args: &Args) -> Result<Run, Refusal> {
    let (from, to) = if args.operator.starts_with("Inplace") {
        let both = args.tensor("selfRef")?;
        (both.clone(), both.clone())
    } else {
        (args.tensor("self")?.clone(), args.tensor("out")?.clone())
    };
    args.ranked("self", &from, 2, 8)?;
    args.shaped("out", &to, &from.shape)?;
    args.one_of("out", &to, &[from.dtype])?;
    let (diagonal, lower) = (args.int("diagonal")?, args.operator.ends_with("Tril"));
    let (rows, cols) = (from.shape[from.rank() - 2], from.shape[from.rank() - 1]);
    run(move |memory| {
        let mut row = from.read_bits(memory)?;
        for (index, bits) in row.iter_mut().enumerate() {
            let (i, j) = ((index / cols % rows) as i64, (index % cols) as i64);
            let above = j.saturating_sub(i);
            if if lower { above > diagonal } else { above < diagonal } {
                *bits = 0;
            }
        }
        to.write_bits(memory, &row)
    })
}

fn one_hot(args: &Args) -> Result<Run, Refusal> {
    let (classes, out) = (args.tensor("self")?.clone(), args.tensor("out")?.clone());
    let (on, off) = (args.tensor("onValue")?.clone(), args.tensor("offValue")?.clone());
    args.one_of("self", &classes, INDICES)?;
    let count =
        usize::try_from(args.int("numClasses")?).map_err(|_| args.invalid("numClasses", "is negative"))?;
    for (name, value) in [("onValue", &on), ("offValue", &off)] {
        args.one_of(name, value, &[out.dtype])?;
        if value.numel() != 1 {
            return Err(args.invalid(name, "is not one element"));
        }
    }
    let axis = args.axis("axis", args.int("axis")?, classes.rank() + 1)?;
    let mut shape = classes.shape.clone();
    shape.insert(axis, count);
    args.shaped("out", &out, &shape)?;
    let inner: usize = shape[axis + 1..].iter().product();
    run(move |memory| {
        let classes = classes.read_i64(memory)?;
        let (on, off) = (on.read_bits(memory)?[0], off.read_bits(memory)?[0]);
        let mut row = vec![off; out.numel()];
        for (i, class) in classes.into_iter().enumerate() {
            if let Some(class) = usize::try_from(class).ok().filter(|class| *class < count) {
                row[(i / inner * count + class) * inner + i % inner] = on;
            }
        }
        out.write_bits(memory, &row)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, LAYOUTS, Layout};
    use super::*;

    #[test]
    fn copies_convert_spread_and_rearrange() {
        for layout in LAYOUTS {
            let mut case = Case::new(Soc::A2, "InplaceCopy").laid(layout);
            case = case.output("selfRef", Dtype::F16, &[2, 3]);
            case.layout = Layout::Contiguous;
            let case = case.input("src", Dtype::F32, &[2, 1], &[1.5, -2.0]).done();
            assert_eq!(case.read("selfRef"), [1.5, 1.5, 1.5, -2.0, -2.0, -2.0]);
        }
        let case = Case::new(Soc::A2, "InplaceCopy").output("selfRef", Dtype::F32, &[3]);
        let bad = case.input("src", Dtype::F32, &[2], &[0.0; 2]).refused();
        assert!(bad.message.contains("src has shape [2]"), "{bad:?}");
        // A2 does not compute with 8-bit floats, but it moves their bytes.
        let case = Case::new(Soc::A2, "InplaceCopy").output("selfRef", Dtype::F8E4M3, &[2]);
        assert_eq!(case.input("src", Dtype::F8E4M3, &[2], &[1.0, -0.5]).done().read("selfRef"), [1.0, -0.5]);
    }

    #[test]
    fn tensors_follow_their_rule() {
        let case = Case::new(Soc::A2, "Arange").scalar("start", 1.0).scalar("end", 2.1).scalar("step", 0.5);
        assert_eq!(case.output("out", Dtype::F32, &[3]).done().read("out"), [1.0, 1.5, 2.0]);
        let case = Case::new(Soc::A2, "Arange").scalar("start", 3.0).scalar("end", 1.0).scalar("step", -1.0);
        assert_eq!(case.output("out", Dtype::F32, &[1, 2]).done().read("out"), [3.0, 2.0]);
        let case = Case::new(Soc::A2, "Arange").scalar("start", 0.0).scalar("end", 3.0).scalar("step", 1.0);
        assert!(case.output("out", Dtype::F32, &[1, 2]).refused().message.contains("wanted: 3 elements"));
        let case = Case::new(Soc::A2, "InplaceFillScalar").output("selfRef", Dtype::I32, &[2]);
        assert_eq!(case.int_scalar("value", -7).done().read("selfRef"), [-7.0; 2]);
        let x: Vec<f64> = (1..10).map(f64::from).collect();
        let tri = |name: &str, diagonal| {
            let case =
                Case::new(Soc::A2, name).input("self", Dtype::F32, &[3, 3], &x).int("diagonal", diagonal);
            case.output("out", Dtype::F32, &[3, 3]).done().read("out")
        };
        assert_eq!(tri("Tril", 0), [1.0, 0.0, 0.0, 4.0, 5.0, 0.0, 7.0, 8.0, 9.0]);
        assert_eq!(tri("Triu", 1), [0.0, 2.0, 3.0, 0.0, 0.0, 6.0, 0.0, 0.0, 0.0]);
        let parts: Vec<f64> = tri("Tril", -1).iter().zip(tri("Triu", 0)).map(|(a, b)| a + b).collect();
        assert_eq!(parts, x);
        let case = Case::new(Soc::A2, "OneHot")
            .input("self", Dtype::I64, &[2], &[2.0, 0.0])
            .int("numClasses", 3)
            .input("onValue", Dtype::F32, &[1], &[1.0])
            .input("offValue", Dtype::F32, &[1], &[0.0])
            .int("axis", -1)
            .output("out", Dtype::F32, &[2, 3])
            .done();
        assert_eq!(case.read("out"), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
    }
}
