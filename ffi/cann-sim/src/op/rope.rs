//! Rotary position embedding.

use super::{Args, FLOATS, Refusal, Run, Soc, run};
use crate::view::{Dtype, Fault, Memory, Tensor};

operators! {
    RotaryPositionEmbedding(x: T, cos: T, sin: T, mode: I64, out: O) = rotate;
    ApplyRotaryPosEmb(queryRef: U, keyRef: U, cos: T, sin: T, layout: I64) = rotate_both;
    ApplyRotaryPosEmbV2(queryRef: U, keyRef: U, cos: T, sin: T, layout: I64, rotaryMode: CS) = rotate_both;
    InterleaveRope(x: T, cos: T, sin: T, out: O) = interleave;
    InplacePartialRotaryMul(xRef: U, cos: T, sin: T, rotary_mode: I64, partialSlice: IA) = partial;
}

/// Which elements of a row turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pairs {
    /// i with i + D/2 (NeoX).
    Half,
    /// 2i with 2i + 1 (GPT-J).
    Interleave,
    /// The halves of each half.
    Quarter,
    /// Pairs 2i, 2i + 1 are brought to i and i + D/2 first.
    InterleaveHalf,
}

/// One row: x · cos + turned x · sin, where `turned` exchanges partners and negates the first of them.
pub(super) fn turn(x: &[f64], cos: &[f64], sin: &[f64], pairs: Pairs) -> Vec<f64> {
    let d = x.len();
    let half = d / 2;
    let gathered: Vec<f64> = match pairs {
        Pairs::InterleaveHalf => {
            (0..d).map(|i| if i < half { x[2 * i] } else { x[2 * (i - half) + 1] }).collect()
        }
        _ => x.to_vec(),
    };
    let turned = |i: usize| match pairs {
        Pairs::Half | Pairs::InterleaveHalf if i < half => -gathered[i + half],
        Pairs::Half | Pairs::InterleaveHalf => gathered[i - half],
        Pairs::Interleave if i.is_multiple_of(2) => -gathered[i + 1],
        Pairs::Interleave => gathered[i - 1],
        Pairs::Quarter => match i / (d / 4) {
            0 | 2 => -gathered[i + d / 4],
            _ => gathered[i - d / 4],
        },
    };
    (0..d).map(|i| gathered[i] * cos[i] + turned(i) * sin[i]).collect()
}

/// Rows of a view turned and stored.
fn turn_rows(
    x: &Tensor,
    angles: (&Tensor, &Tensor),
    pairs: Pairs,
    out: &Tensor,
    memory: &dyn Memory,
) -> Result<(), Fault> {
    let d = x.shape[x.rank() - 1].max(1);
    let (x, cos, sin) = (x.read_f64(memory)?, angles.0.read_f64(memory)?, angles.1.read_f64(memory)?);
    let rows = x.chunks(d).zip(cos.chunks(d)).zip(sin.chunks(d));
    out.write_f64(memory, &rows.flat_map(|((x, cos), sin)| turn(x, cos, sin, pairs)).collect::<Vec<_>>())
}

/// cos and sin spread over x, of x's type.
fn angles(args: &Args, x: &Tensor) -> Result<(Tensor, Tensor), Refusal> {
    let mut spread = Vec::new();
    for name in ["cos", "sin"] {
        let tensor = args.tensor(name)?;
        args.one_of(name, tensor, &[x.dtype])?;
        if tensor.shape.last() != x.shape.last() {
            return Err(args.invalid(name, format!("has shape {:?}; x has {:?}", tensor.shape, x.shape)));
        }
        spread.push(args.spread(name, tensor, &x.shape)?);
    }
    Ok((spread.swap_remove(0), spread.swap_remove(0)))
}

fn width(args: &Args, name: &str, d: usize, divisor: usize, most: usize) -> Result<(), Refusal> {
    if d.is_multiple_of(divisor) && (1..=most).contains(&d) {
        return Ok(());
    }
    Err(args.invalid(name, format!("has rows of {d}; wanted: a multiple of {divisor}, {most} at most")))
}

fn rotate(args: &Args) -> Result<Run, Refusal> {
    let (x, out) = (args.tensor("x")?.clone(), args.tensor("out")?.clone());
    args.one_of("x", &x, FLOATS)?;
    args.ranked("x", &x, 3, 4)?;
    args.one_of("out", &out, &[x.dtype])?;
    args.shaped("out", &out, &x.shape)?;
    let mode = args.int("mode")?;
    let pairs = match (mode, args.soc) {
        (0, _) => Pairs::Half,
        (1, soc) if soc != Soc::Ascend310P => Pairs::Interleave,
        (2, Soc::Ascend950) => Pairs::Quarter,
        (3, Soc::Ascend950) => Pairs::InterleaveHalf,
        (1..=3, soc) => return Err(args.invalid("mode", format!("= {mode} does not exist on {soc:?}"))),
        _ => return Err(args.unknown_mode("mode", mode)),
    };
    let divisor = if pairs == Pairs::Quarter { 4 } else { 2 };
    width(args, "x", x.shape[x.rank() - 1], divisor, 1024)?;
    let (cos, sin) = angles(args, &x)?;
    run(move |memory| turn_rows(&x, (&cos, &sin), pairs, &out, memory))
}

/// Query and key in place; layouts BSND and TND (1 and 4) everywhere, SBND and BNSD (2 and 3) on the 950.
fn rotate_both(args: &Args) -> Result<Run, Refusal> {
    let (layout, soc) = (args.int("layout")?, args.soc);
    let rank = match (layout, soc) {
        (1, _) => 4,
        (4, _) => 3,
        (2 | 3, Soc::Ascend950) => 4,
        (2 | 3, _) => return Err(args.invalid("layout", format!("= {layout} does not exist on {soc:?}"))),
        _ => return Err(args.unknown_mode("layout", layout)),
    };
    let pairs = match (args.text("rotaryMode")?, soc) {
        ("" | "half", _) => Pairs::Half,
        ("interleave", Soc::Ascend950) => Pairs::Interleave,
        ("quarter", Soc::Ascend950) => Pairs::Quarter,
        (mode, _) => return Err(args.unknown_mode("rotaryMode", mode)),
    };
    let mut parts = Vec::new();
    for name in ["queryRef", "keyRef"] {
        let x = args.tensor(name)?;
        args.one_of(name, x, FLOATS)?;
        args.ranked(name, x, rank, rank)?;
        let d = x.shape[rank - 1];
        if soc != Soc::Ascend950 && d != 64 && d != 128 {
            return Err(args.invalid(name, format!("has rows of {d}; {soc:?} takes 64 and 128")));
        }
        width(args, name, d, 2, 1024)?;
        let (cos, sin) = angles(args, x)?;
        parts.push((x.clone(), cos, sin));
    }
    run(move |memory| parts.iter().try_for_each(|(x, cos, sin)| turn_rows(x, (cos, sin), pairs, x, memory)))
}

fn interleave(args: &Args) -> Result<Run, Refusal> {
    let (x, out) = (args.tensor("x")?.clone(), args.tensor("out")?.clone());
    args.one_of("x", &x, &[Dtype::F16, Dtype::Bf16])?;
    args.one_of("out", &out, &[x.dtype])?;
    args.ranked("x", &x, 4, 4)?;
    args.shaped("out", &out, &x.shape)?;
    if x.shape[3] != 64 {
        return Err(args.invalid("x", format!("has rows of {}; wanted: 64", x.shape[3])));
    }
    for name in ["cos", "sin"] {
        if args.tensor(name)?.shape.get(1) != Some(&1) {
            return Err(args.invalid(name, "must have one head"));
        }
    }
    let (cos, sin) = angles(args, &x)?;
    run(move |memory| turn_rows(&x, (&cos, &sin), Pairs::InterleaveHalf, &out, memory))
}

/// Only elements [start, end) of every row turn.
fn partial(args: &Args) -> Result<Run, Refusal> {
    let x = args.tensor("xRef")?.clone();
    args.one_of("xRef", &x, FLOATS)?;
    args.ranked("xRef", &x, 3, 4)?;
    match args.int("rotary_mode")? {
        1 => {}
        mode => return Err(args.unknown_mode("rotary_mode", mode)),
    }
    let &[start, end] = args.ints("partialSlice")? else {
        return Err(args.invalid("partialSlice", "must have two entries"));
    };
    let (axis, d) = (x.rank() - 1, x.shape[x.rank() - 1] as i64);
    if !(0 <= start && start < end && end <= d) {
        return Err(args.invalid("partialSlice", format!("[{start}, {end}) is no part of rows of {d}")));
    }
    let part = x.narrow(axis, start as usize, (end - start) as usize, 1);
    width(args, "partialSlice", part.shape[axis], 2, 1024)?;
    let (cos, sin) = angles(args, &part)?;
    run(move |memory| turn_rows(&part, (&cos, &sin), Pairs::Interleave, &part, memory))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, LAYOUTS, close, noise_of};
    use super::*;

    /// cos and sin of angles that partners share: angle `a[i]` belongs to pair i.
    fn shared(angle: &[f64], of: impl Fn(usize) -> usize) -> (Vec<f64>, Vec<f64>) {
        (0..2 * angle.len()).map(|i| (angle[of(i)].cos(), angle[of(i)].sin())).unzip()
    }

    #[test]
    fn partners_turn_by_their_angle() {
        let (d, angle) = (8, [0.3, -1.2, 2.0, 0.7]);
        let x = noise_of(Dtype::F32, 2 * 3 * d, 1);
        for layout in LAYOUTS {
            for mode in 0..4 {
                // The partners of pair p in the source, where their result lands, and the pair of place i.
                type Places = fn(usize) -> (usize, usize);
                let (from, to, pair): (Places, Places, fn(usize) -> usize) = match mode {
                    0 => (|p| (p, p + 4), |p| (p, p + 4), |i| i % 4),
                    1 => (|p| (2 * p, 2 * p + 1), |p| (2 * p, 2 * p + 1), |i| i / 2),
                    2 => (
                        |p| (p / 2 * 4 + p % 2, p / 2 * 4 + p % 2 + 2),
                        |p| (p / 2 * 4 + p % 2, p / 2 * 4 + p % 2 + 2),
                        |i| i / 4 * 2 + i % 2,
                    ),
                    _ => (|p| (2 * p, 2 * p + 1), |p| (p, p + 4), |i| i % 4),
                };
                let (cos, sin) = shared(&angle, pair);
                let case = Case::new(Soc::Ascend950, "RotaryPositionEmbedding").laid(layout);
                let case = case.input("x", Dtype::F32, &[2, 3, 1, d], &x).int("mode", mode);
                let case = case.input("cos", Dtype::F32, &[1, 1, 1, d], &cos).input(
                    "sin",
                    Dtype::F32,
                    &[1, 1, 1, d],
                    &sin,
                );
                let y = case.output("out", Dtype::F32, &[2, 3, 1, d]).done().read("out");
                for (row, p) in [(0, 0), (3, 1), (5, 3)] {
                    let (a, b) = (x[row * d + from(p).0], x[row * d + from(p).1]);
                    let (c, s) = (angle[p].cos(), angle[p].sin());
                    let got = [y[row * d + to(p).0], y[row * d + to(p).1]];
                    close(&got, &[a * c - b * s, a * s + b * c], 1e-6);
                }
            }
        }
    }

    #[test]
    fn modes_are_those_of_the_chip() {
        let refused = |soc, mode| {
            let case = Case::new(soc, "RotaryPositionEmbedding").int("mode", mode);
            let case =
                case.input("x", Dtype::F16, &[1, 1, 2], &[0.0; 2]).output("out", Dtype::F16, &[1, 1, 2]);
            case.refused().message
        };
        assert!(refused(Soc::A2, 2).contains("mode = 2"));
        assert!(refused(Soc::Ascend310P, 1).contains("Ascend310P"));
        assert!(refused(Soc::Ascend950, 7).contains("mode = 7"));
    }

    #[test]
    fn a_quarter_turn_exchanges_query_and_key_halves() {
        let x: Vec<f64> = (0..64).map(f64::from).collect();
        let mut case = Case::new(Soc::A3, "ApplyRotaryPosEmb").int("layout", 1);
        for name in ["queryRef", "keyRef"] {
            case = case.input(name, Dtype::F16, &[1, 1, 1, 64], &x);
        }
        let case = case.input("cos", Dtype::F16, &[1, 1, 1, 64], &[0.0; 64]);
        let case = case.input("sin", Dtype::F16, &[1, 1, 1, 64], &[1.0; 64]).done();
        let want: Vec<f64> = (32..64).map(|i| -f64::from(i)).chain((0..32).map(f64::from)).collect();
        assert_eq!((case.read("queryRef"), case.read("keyRef")), (want.clone(), want));
        let case = Case::new(Soc::A3, "InplacePartialRotaryMul").input(
            "xRef",
            Dtype::F32,
            &[1, 1, 4],
            &[1.0, 2.0, 3.0, 4.0],
        );
        let case = case.int("rotary_mode", 1).ints("partialSlice", &[2, 4]);
        let case = case.input("cos", Dtype::F32, &[1, 1, 2], &[0.0; 2]).input(
            "sin",
            Dtype::F32,
            &[1, 1, 2],
            &[1.0; 2],
        );
        assert_eq!(case.done().read("xRef"), [1.0, 2.0, -4.0, 3.0]);
    }
}
