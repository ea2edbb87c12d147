//! Order: sorting, the largest elements, places in sorted rows.

use super::reduce::lanes_along;
use super::{Args, INDICES, Refusal, Run, run};
use crate::view::{Dtype, Fault, Memory, Tensor};
use std::cmp::Ordering;

operators! {
    Topk(self: T, k: I64, dim: I64, largest: B, sorted: B, valuesOut: O, indicesOut: O) = top_k;
    Sort(self: T, stable: B, dim: I64, descending: B, valuesOut: O, indicesOut: O) = sort;
    Argsort(self: T, dim: I64, descending: B, out: O) = argsort;
    SearchSorted(sortedSequence: T, self: T, outInt32: B, right: B, sorter: T, out: O) = search;
}

/// Numbers in order, a NaN above all of them.
pub(super) fn ascending(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// The order of a lane's places; equals keep theirs.
fn order(lane: &[f64], exact: &[i64], descending: bool) -> Vec<usize> {
    let mut places: Vec<usize> = (0..lane.len()).collect();
    places.sort_by(|&i, &j| {
        let forwards = if exact.is_empty() { ascending(lane[i], lane[j]) } else { exact[i].cmp(&exact[j]) };
        if descending { forwards.reverse() } else { forwards }
    });
    places
}

/// Orders every lane, and writes the first `keep` places and elements of each.
fn write_order(
    from: &Tensor,
    count: usize,
    keep: usize,
    descending: bool,
    to: (Option<&Tensor>, &Tensor),
    memory: &dyn Memory,
) -> Result<(), Fault> {
    let bits = from.read_bits(memory)?;
    let dtype = from.dtype;
    let (mut values, mut places) = (Vec::new(), Vec::new());
    for lane in bits.chunks(count.max(1)) {
        let numbers: Vec<f64> = lane.iter().map(|&bits| dtype.decode(bits)).collect();
        // 64-bit integers do not fit an f64.
        let exact: Vec<i64> = match dtype {
            Dtype::I64 => lane.iter().map(|&bits| bits as i64).collect(),
            _ => Vec::new(),
        };
        for place in order(&numbers, &exact, descending).into_iter().take(keep) {
            values.push(lane[place]);
            places.push(place as i64);
        }
    }
    if let Some(out) = to.0 {
        out.write_bits(memory, &values)?;
    }
    to.1.write_i64(memory, &places)
}

fn sortable(args: &Args, tensor: &Tensor) -> Result<(), Refusal> {
    if tensor.dtype.is_float() || tensor.dtype.is_int() || tensor.dtype == Dtype::Bool {
        return Ok(());
    }
    Err(args.invalid("self", format!("has type {}, which has no order here", tensor.dtype.name())))
}

/// Checks values and indices against the input's shape with `keep` elements along the dimension.
fn outputs(args: &Args, axis: usize, keep: usize) -> Result<(Tensor, Tensor), Refusal> {
    let (a, values, indices) = (args.tensor("self")?, args.tensor("valuesOut")?, args.tensor("indicesOut")?);
    sortable(args, a)?;
    let mut shape = a.shape.clone();
    if let Some(size) = shape.get_mut(axis) {
        *size = keep;
    }
    args.shaped("valuesOut", values, &shape)?;
    args.shaped("indicesOut", indices, &shape)?;
    args.one_of("valuesOut", values, &[a.dtype])?;
    args.one_of("indicesOut", indices, &[Dtype::I64])?;
    Ok((values.clone(), indices.clone()))
}

fn top_k(args: &Args) -> Result<Run, Refusal> {
    let a = args.tensor("self")?;
    let axis = args.axis("dim", args.int("dim")?, a.rank())?;
    let (from, count) = lanes_along(a, axis);
    let keep = usize::try_from(args.int("k")?).unwrap_or(usize::MAX);
    if keep > count {
        return Err(
            args.invalid("k", format!("is {}; dimension {axis} has {count} elements", args.int("k")?))
        );
    }
    let (values, indices) = outputs(args, axis, keep)?;
    let ((values, _), (indices, _)) = (lanes_along(&values, axis), lanes_along(&indices, axis));
    let largest = args.flag("largest")?;
    // Unsorted results may come in any order; the sorted one is such an order.
    run(move |memory| write_order(&from, count, keep, largest, (Some(&values), &indices), memory))
}

fn sort(args: &Args) -> Result<Run, Refusal> {
    let a = args.tensor("self")?;
    let axis = args.axis("dim", args.int("dim")?, a.rank())?;
    let (from, count) = lanes_along(a, axis);
    let (values, indices) = outputs(args, axis, count)?;
    let ((values, _), (indices, _)) = (lanes_along(&values, axis), lanes_along(&indices, axis));
    let descending = args.flag("descending")?;
    run(move |memory| write_order(&from, count, count, descending, (Some(&values), &indices), memory))
}

fn argsort(args: &Args) -> Result<Run, Refusal> {
    let (a, out) = (args.tensor("self")?, args.tensor("out")?);
    sortable(args, a)?;
    args.shaped("out", out, &a.shape)?;
    args.one_of("out", out, &[Dtype::I64])?;
    let axis = args.axis("dim", args.int("dim")?, a.rank())?;
    let ((from, count), (to, _)) = (lanes_along(a, axis), lanes_along(out, axis));
    let descending = args.flag("descending")?;
    run(move |memory| write_order(&from, count, count, descending, (None, &to), memory))
}

/// For every value of `self`, how many elements of its sorted row come before it (`right`: or equal it).
fn search(args: &Args) -> Result<Run, Refusal> {
    let (rows, values, out) = (args.tensor("sortedSequence")?, args.tensor("self")?, args.tensor("out")?);
    args.ranked("sortedSequence", rows, 1, 8)?;
    args.shaped("out", out, &values.shape)?;
    args.one_of("out", out, if args.flag("outInt32")? { &INDICES[1..] } else { &INDICES[..1] })?;
    let count = rows.shape[rows.rank() - 1];
    let batched = rows.rank() > 1;
    if batched {
        let (lead, last) = (&rows.shape[..rows.rank() - 1], values.rank().saturating_sub(1));
        if values.rank() != rows.rank() || &values.shape[..last] != lead {
            return Err(
                args.invalid("self", format!("{:?} has other rows than {:?}", values.shape, rows.shape))
            );
        }
    }
    let sorter = args.optional("sorter")?.cloned();
    if let Some(sorter) = &sorter {
        args.shaped("sorter", sorter, &rows.shape)?;
    }
    let width = if batched { values.shape[values.rank() - 1] } else { values.numel() };
    let (rows, values, out, right) = (rows.clone(), values.clone(), out.clone(), args.flag("right")?);
    run(move |memory| {
        let (sorted, wanted) = (rows.read_f64(memory)?, values.read_f64(memory)?);
        let order = sorter.as_ref().map(|sorter| sorter.read_i64(memory)).transpose()?;
        let mut places = Vec::with_capacity(wanted.len());
        for (i, &x) in wanted.iter().enumerate() {
            let lane = i / width.max(1) * count;
            let at = |j: usize| match &order {
                Some(order) => {
                    usize::try_from(order[lane + j]).ok().filter(|&k| k < count).map(|k| sorted[lane + k])
                }
                None => Some(sorted[lane + j]),
            };
            let mut place = 0;
            for j in 0..count {
                let y =
                    at(j).ok_or_else(|| Fault::exception("SearchSorted: sorter points outside its row"))?;
                let before = ascending(y, x);
                place += i64::from(before == Ordering::Less || right && before == Ordering::Equal);
            }
            places.push(place);
        }
        out.write_i64(memory, &places)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, LAYOUTS, noise_of};
    use super::*;

    #[test]
    fn a_sorted_row_is_an_ordered_permutation() {
        let x = noise_of(Dtype::F16, 21, 9);
        for layout in LAYOUTS {
            for descending in [false, true] {
                let case = Case::new(Soc::A2, "Sort").laid(layout).input("self", Dtype::F16, &[3, 7], &x);
                let case = case.int("dim", 1).flag("descending", descending);
                let case =
                    case.output("valuesOut", Dtype::F16, &[3, 7]).output("indicesOut", Dtype::I64, &[3, 7]);
                let case = case.done();
                let (values, places) = (case.read("valuesOut"), case.read("indicesOut"));
                for row in 0..3 {
                    let values = &values[row * 7..][..7];
                    assert!(values.windows(2).all(|w| if descending { w[0] >= w[1] } else { w[0] <= w[1] }));
                    let mut seen = [false; 7];
                    for (i, &value) in values.iter().enumerate() {
                        let place = places[row * 7 + i] as usize;
                        assert_eq!(x[row * 7 + place], value);
                        assert!(!std::mem::replace(&mut seen[place], true));
                    }
                }
            }
        }
    }

    #[test]
    fn the_largest_come_first_and_equals_in_their_order() {
        let x = [1.0, 5.0, 3.0, 5.0, f64::NAN, -2.0];
        let case =
            Case::new(Soc::A2, "Topk").input("self", Dtype::F32, &[2, 3], &x).int("k", 2).int("dim", -1);
        let case = case.flag("largest", true).flag("sorted", true);
        let case =
            case.output("valuesOut", Dtype::F32, &[2, 2]).output("indicesOut", Dtype::I64, &[2, 2]).done();
        assert_eq!(case.read("indicesOut"), [1.0, 2.0, 1.0, 0.0]);
        let case = Case::new(Soc::A2, "Argsort").input("self", Dtype::I32, &[4], &[2.0, 1.0, 2.0, 1.0]);
        assert_eq!(case.output("out", Dtype::I64, &[4]).done().read("out"), [1.0, 3.0, 0.0, 2.0]);
        let large = Case::new(Soc::A2, "Topk").input("self", Dtype::F32, &[3], &[0.0; 3]).int("k", 4);
        assert!(large.refused().message.contains("k is 4"));
    }

    #[test]
    fn places_count_the_elements_before() {
        for (right, want) in [(false, [0.0, 1.0, 3.0]), (true, [0.0, 3.0, 4.0])] {
            let case = Case::new(Soc::A2, "SearchSorted")
                .input("sortedSequence", Dtype::F32, &[4], &[1.0, 2.0, 2.0, 5.0])
                .input("self", Dtype::F32, &[3], &[0.0, 2.0, 5.0])
                .flag("right", right)
                .output("out", Dtype::I64, &[3])
                .done();
            assert_eq!(case.read("out"), want);
        }
    }
}
