//! Gated activations: one half of a row steers the other.

use super::unary::{gelu_erf, gelu_tanh, sigmoid, silu};
use super::{Args, FLOATS, INDICES, Refusal, Run, run};
use crate::view::Tensor;

operators! {
    SwiGlu(x: T, dim: I64, out: O) = swiglu;
    GeGluV3(self: T, dim: I64, approximate: I64, activateLeft: B, out: O, outGelu: O) = geglu;
    SwigluGroup(x: T, weightOptional: T, groupIndexOptional: T, clampLimit: F64, out: O) = swiglu_group;
    ClippedSwiglu(x: T, groupIndexOptional: T, dim: I64, alpha: F64, limit: F64, bias: F64, interleaved: B, out: O) = clipped;
}

/// The halves of a dimension, and the output of half its size.
fn halves(args: &Args, name: &str, axis: i64) -> Result<(Tensor, Tensor, Tensor), Refusal> {
    let (x, out) = (args.tensor(name)?, args.tensor("out")?.clone());
    args.one_of(name, x, FLOATS)?;
    args.one_of("out", &out, &[x.dtype])?;
    args.ranked(name, x, 1, 8)?;
    let axis = args.axis("dim", axis, x.rank())?;
    let size = x.shape[axis];
    if !size.is_multiple_of(2) {
        return Err(args.invalid(name, format!("has {size} elements along dimension {axis}, an odd number")));
    }
    let (first, second) = (x.narrow(axis, 0, size / 2, 1), x.narrow(axis, size / 2, size / 2, 1));
    args.shaped("out", &out, &first.shape)?;
    Ok((first, second, out))
}

/// Rows of `width` to rows of half of it.
pub(super) fn swiglu_rows(x: &[f64], width: usize, activate_left: bool) -> Vec<f64> {
    let half = width / 2;
    let gated = |row: &[f64], j: usize| {
        let (gate, up) = if activate_left { (row[j], row[half + j]) } else { (row[half + j], row[j]) };
        silu(gate) * up
    };
    x.chunks(width.max(1))
        .flat_map(|row| (0..half).map(move |j| (row, j)))
        .map(|(row, j)| gated(row, j))
        .collect()
}

fn swiglu(args: &Args) -> Result<Run, Refusal> {
    let (gate, up, out) = halves(args, "x", args.int("dim")?)?;
    run(move |memory| {
        let mut row = gate.read_f64(memory)?;
        row.iter_mut().zip(up.read_f64(memory)?).for_each(|(gate, up)| *gate = silu(*gate) * up);
        out.write_f64(memory, &row)
    })
}

fn geglu(args: &Args) -> Result<Run, Refusal> {
    let (first, second, out) = halves(args, "self", args.int("dim")?)?;
    let activated = args.tensor("outGelu")?.clone();
    args.shaped("outGelu", &activated, &first.shape)?;
    args.one_of("outGelu", &activated, &[first.dtype])?;
    let f = match args.int("approximate")? {
        0 => gelu_erf,
        1 => gelu_tanh,
        mode => return Err(args.unknown_mode("approximate", mode)),
    };
    let (gate, up) = if args.flag("activateLeft")? { (first, second) } else { (second, first) };
    run(move |memory| {
        let gelu: Vec<f64> = gate.read_f64(memory)?.into_iter().map(f).collect();
        activated.write_f64(memory, &gelu)?;
        let row: Vec<f64> = gelu.iter().zip(up.read_f64(memory)?).map(|(gate, up)| gate * up).collect();
        out.write_f64(memory, &row)
    })
}

/// silu(min(a, limit)) · clamp(b, ±limit), times a weight per row; only rows of the groups are written.
fn swiglu_group(args: &Args) -> Result<Run, Refusal> {
    let (gate, up, out) = halves(args, "x", -1)?;
    let rows: usize = gate.shape[..gate.rank() - 1].iter().product();
    let weight = args.optional("weight")?.cloned();
    if let Some(weight) = &weight
        && weight.numel() != rows
    {
        return Err(args.invalid("weight", format!("has {} elements for {rows} rows", weight.numel())));
    }
    args.absent(&["groupIndex"])?;
    let limit = args.float("clampLimit")?;
    let limit = if limit > 0.0 { limit } else { f64::INFINITY };
    let width = gate.shape[gate.rank() - 1];
    run(move |memory| {
        let mut row = gate.read_f64(memory)?;
        let weights = weight.as_ref().map(|weight| weight.read_f64(memory)).transpose()?;
        for (i, (gate, up)) in row.iter_mut().zip(up.read_f64(memory)?).enumerate() {
            let scale = weights.as_ref().map_or(1.0, |weights| weights[i / width]);
            *gate = silu(gate.min(limit)) * up.clamp(-limit, limit) * scale;
        }
        out.write_f64(memory, &row)
    })
}

/// The form of GPT-OSS: gate · σ(alpha · gate) · (up + bias), gate ≤ limit, |up| ≤ limit.
fn clipped(args: &Args) -> Result<Run, Refusal> {
    let axis = args.int("dim")?;
    let (mut gate, mut up, out) = halves(args, "x", axis)?;
    if args.flag("interleaved")? {
        let x = args.tensor("x")?;
        let axis = args.axis("dim", axis, x.rank())?;
        (gate, up) = (x.narrow(axis, 0, x.shape[axis] / 2, 2), x.narrow(axis, 1, x.shape[axis] / 2, 2));
    }
    let (alpha, limit, bias) = (args.float("alpha")?, args.float("limit")?, args.float("bias")?);
    if limit <= 0.0 {
        return Err(args.invalid("limit", format!("is {limit}; it must be positive")));
    }
    let groups = args.optional("groupIndex")?.cloned();
    if let Some(groups) = &groups {
        args.one_of("groupIndex", groups, INDICES)?;
        let axis = args.axis("dim", axis, gate.rank())?;
        if axis == 0 {
            return Err(args.invalid("groupIndex", "counts rows; dim must be another dimension"));
        }
    }
    run(move |memory| {
        // Counts per group; rows after the last group stay as they are.
        let rows = match &groups {
            Some(groups) => {
                groups.read_i64(memory)?.iter().sum::<i64>().clamp(0, gate.shape[0] as i64) as usize
            }
            None => gate.shape[0],
        };
        let part = |view: &Tensor| if groups.is_some() { view.narrow(0, 0, rows, 1) } else { view.clone() };
        let mut row = part(&gate).read_f64(memory)?;
        for (gate, up) in row.iter_mut().zip(part(&up).read_f64(memory)?) {
            let g = gate.min(limit);
            *gate = g * sigmoid(alpha * g) * (up.clamp(-limit, limit) + bias);
        }
        part(&out).write_f64(memory, &row)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, LAYOUTS, close, noise_of};
    use super::*;
    use crate::view::Dtype;

    #[test]
    fn the_first_half_gates_the_second() {
        let x = noise_of(Dtype::F32, 16, 1);
        for layout in LAYOUTS {
            let case = Case::new(Soc::A2, "SwiGlu")
                .laid(layout)
                .input("x", Dtype::F32, &[2, 2, 4], &x)
                .int("dim", -1);
            let y = case.output("out", Dtype::F32, &[2, 2, 2]).done().read("out");
            let want = |row: usize, j: usize| {
                let (gate, up) = (x[row * 4 + j], x[row * 4 + 2 + j]);
                gate / (1.0 + (-gate).exp()) * up
            };
            close(&[y[0], y[7]], &[want(0, 0), want(3, 1)], 1e-6);
            for (left, gate, up) in [(true, 0, 1), (false, 1, 0)] {
                let case = Case::new(Soc::A2, "GeGluV3").laid(layout).input("self", Dtype::F32, &[8, 2], &x);
                let case = case.int("dim", -1).int("approximate", 0).flag("activateLeft", left);
                let case =
                    case.output("out", Dtype::F32, &[8, 1]).output("outGelu", Dtype::F32, &[8, 1]).done();
                close(&case.read("out")[3..4], &[gelu_erf(x[6 + gate]) * x[6 + up]], 1e-6);
            }
        }
        let odd = Case::new(Soc::A2, "SwiGlu").input("x", Dtype::F32, &[3], &[0.0; 3]);
        assert!(odd.output("out", Dtype::F32, &[1]).refused().message.contains("odd"));
    }

    #[test]
    fn clipped_gates_stop_at_their_limit() {
        let case =
            Case::new(Soc::A2, "ClippedSwiglu").input("x", Dtype::F32, &[1, 4], &[100.0, -100.0, 0.0, 0.5]);
        let case = case.int("dim", -1).float("alpha", 1.702).float("limit", 7.0).float("bias", 1.0);
        let case = case.flag("interleaved", true).output("out", Dtype::F32, &[1, 2]).done();
        close(&case.read("out"), &[7.0 * sigmoid(1.702 * 7.0) * -6.0, 0.0], 1e-6);
    }
}
