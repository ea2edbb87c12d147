//! Elements stored where tensors of indices say.

use super::fill::scalar_bits;
use super::gather::{Leading, indices, replaced, resolve};
use super::promote::in_floats;
use super::{Args, INDICES, Refusal, Run, run};
use crate::view::{Dtype, Fault, Memory, Tensor, volume};

operators! {
    IndexAdd(self: T, dim: I64, index: T, source: T, alpha: S, out: O) = index_add;
    InplaceIndexCopy(selfRef: U, dim: I64, index: T, source: T) = index_copy;
    IndexFillTensor(self: T, dim: I64, index: IA, value: S, out: O) = index_fill;
    InplaceIndexFillTensor(selfRef: U, dim: I64, index: IA, value: S) = index_fill;
    IndexPutImpl(selfRef: U, indices: TL, values: T, accumulate: B, unsafe: B) = index_put;
    Scatter(self: T, dim: I64, index: T, src: T, reduce: I64, out: O) = scatter;
    InplaceScatter(selfRef: U, dim: I64, index: T, src: T, reduce: I64) = scatter;
    ScatterAdd(self: T, dim: I64, index: T, src: T, out: O) = scatter;
    ScatterNd(data: T, indices: T, updates: T, out: O) = scatter_nd;
    ScatterNdUpdate(varRef: U, indices: T, updates: T) = scatter_nd;
    InplaceScatterUpdate(data: U, indices: T, updates: T, axis: I64) = scatter_update;
}

/// Sum or product of two elements given as bits.
fn combine(dtype: Dtype, a: u64, b: u64, product: bool) -> u64 {
    if in_floats(dtype) {
        let (a, b) = (dtype.decode(a), dtype.decode(b));
        dtype.encode(if product { a * b } else { a + b })
    } else {
        let (a, b) = (dtype.decode_int(a), dtype.decode_int(b));
        dtype.encode_int(if product { a.wrapping_mul(b) } else { a.wrapping_add(b) })
    }
}

/// Where rows of `source` go in `target` along a dimension: checks and returns the views.
fn rows_along<'a>(args: &'a Args, target: &Tensor, axis: usize) -> Result<(&'a Tensor, &'a Tensor), Refusal> {
    let (index, source) = (args.tensor("index")?, args.tensor("source")?);
    args.one_of("index", index, INDICES)?;
    args.ranked("index", index, 0, 1)?;
    args.one_of("source", source, &[target.dtype])?;
    let mut shape = target.shape.clone();
    shape[axis] = index.numel();
    args.shaped("source", source, &shape)?;
    Ok((index, source))
}

/// out = self, then out[.., index[j], ..] += alpha · source[.., j, ..], in order.
fn index_add(args: &Args) -> Result<Run, Refusal> {
    let (from, to, alpha) =
        (args.tensor("self")?.clone(), args.tensor("out")?.clone(), args.scalar("alpha")?);
    args.ranked("self", &from, 1, 8)?;
    args.shaped("out", &to, &from.shape)?;
    args.one_of("out", &to, &[from.dtype])?;
    let axis = args.axis("dim", args.int("dim")?, from.rank())?;
    let (index, source) = rows_along(args, &from, axis)?;
    let (index, source, operator) = (index.clone(), source.clone(), args.operator);
    run(move |memory| {
        let (mut sums, terms) = (from.read_f64(memory)?, source.read_f64(memory)?);
        let places = indices(operator, &index, from.shape[axis], memory)?;
        let inner = volume(&from.shape[axis + 1..]);
        for (flat, term) in terms.into_iter().enumerate() {
            let place = places[flat / inner % places.len()];
            sums[replaced(flat, &source.shape, &from.shape, axis, place)] += alpha.float * term;
        }
        to.write_f64(memory, &sums)
    })
}

fn index_copy(args: &Args) -> Result<Run, Refusal> {
    let target = args.tensor("selfRef")?.clone();
    args.ranked("selfRef", &target, 1, 8)?;
    let axis = args.axis("dim", args.int("dim")?, target.rank())?;
    let (index, source) = rows_along(args, &target, axis)?;
    let (index, source, operator) = (index.clone(), source.clone(), args.operator);
    run(move |memory| {
        let places = indices(operator, &index, target.shape[axis], memory)?;
        for (j, &place) in places.iter().enumerate() {
            let row = source.narrow(axis, j, 1, 1).read_bits(memory)?;
            target.narrow(axis, place, 1, 1).write_bits(memory, &row)?;
        }
        Ok(())
    })
}

fn index_fill(args: &Args) -> Result<Run, Refusal> {
    let (from, to) = if args.operator.starts_with("Inplace") {
        let both = args.tensor("selfRef")?;
        (both.clone(), both.clone())
    } else {
        (args.tensor("self")?.clone(), args.tensor("out")?.clone())
    };
    args.ranked("self", &from, 1, 8)?;
    args.shaped("out", &to, &from.shape)?;
    args.one_of("out", &to, &[from.dtype])?;
    let axis = args.axis("dim", args.int("dim")?, from.rank())?;
    let places: Vec<usize> = args
        .ints("index")?
        .iter()
        .map(|&place| args.axis("index", place, from.shape[axis]))
        .collect::<Result<_, _>>()?;
    let bits = scalar_bits(from.dtype, args.scalar("value")?);
    run(move |memory| {
        to.write_bits(memory, &from.read_bits(memory)?)?;
        places.iter().try_for_each(|&place| {
            let row = to.narrow(axis, place, 1, 1);
            row.write_bits(memory, &vec![bits; row.numel()])
        })
    })
}

fn index_put(args: &Args) -> Result<Run, Refusal> {
    let (target, values) = (args.tensor("selfRef")?.clone(), args.tensor("values")?);
    args.one_of("values", values, &[target.dtype])?;
    let leading = Leading::of(args, &target)?;
    let depth = leading.tensors.len();
    let values = args.spread("values", values, &[&leading.shape, &target.shape[depth..]].concat())?;
    let (accumulate, operator) = (args.flag("accumulate")?, args.operator);
    run(move |memory| {
        let (mut row, values) = (target.read_bits(memory)?, values.read_bits(memory)?);
        let inner = volume(&target.shape[depth..]);
        for (i, place) in leading.places(operator, &target.shape, memory)?.into_iter().enumerate() {
            for j in 0..inner {
                let (old, new) = (row[place * inner + j], values[i * inner + j]);
                row[place * inner + j] =
                    if accumulate { combine(target.dtype, old, new, false) } else { new };
            }
        }
        target.write_bits(memory, &row)
    })
}

/// out = self, then out[index[i][j]][j] = src[i][j] for dim 0, and so on.
fn scatter(args: &Args) -> Result<Run, Refusal> {
    let (from, to) = if args.operator.starts_with("Inplace") {
        let both = args.tensor("selfRef")?;
        (both.clone(), both.clone())
    } else {
        (args.tensor("self")?.clone(), args.tensor("out")?.clone())
    };
    let (index, source) = (args.tensor("index")?.clone(), args.tensor("src")?.clone());
    args.one_of("index", &index, INDICES)?;
    args.one_of("src", &source, &[from.dtype])?;
    args.one_of("out", &to, &[from.dtype])?;
    args.shaped("out", &to, &from.shape)?;
    let axis = args.axis("dim", args.int("dim")?, from.rank())?;
    let fits = |a: usize| index.shape[a] <= source.shape[a] && (a == axis || index.shape[a] <= from.shape[a]);
    if index.rank() != from.rank() || source.rank() != from.rank() || !(0..index.rank()).all(fits) {
        let shapes = (&from.shape, &source.shape);
        return Err(args.invalid("index", format!("{:?} does not fit self and src {shapes:?}", index.shape)));
    }
    let reduce = if args.operator == "ScatterAdd" { 1 } else { args.int("reduce")? };
    if !(0..=2).contains(&reduce) {
        return Err(args.unknown_mode("reduce", reduce));
    }
    let operator = args.operator;
    run(move |memory| {
        let places = indices(operator, &index, from.shape.get(axis).copied().unwrap_or(1), memory)?;
        let (mut row, values) = (from.read_bits(memory)?, source.read_bits(memory)?);
        for (flat, &place) in places.iter().enumerate() {
            let at = index.shape.get(axis).map_or(0, |&size| flat / volume(&index.shape[axis + 1..]) % size);
            let value = values[replaced(flat, &index.shape, &source.shape, axis, at)];
            let slot = &mut row[replaced(flat, &index.shape, &from.shape, axis, place)];
            *slot = if reduce == 0 { value } else { combine(from.dtype, *slot, value, reduce == 2) };
        }
        to.write_bits(memory, &row)
    })
}

fn scatter_nd(args: &Args) -> Result<Run, Refusal> {
    let (from, to) = if args.operator == "ScatterNdUpdate" {
        let both = args.tensor("varRef")?;
        (both.clone(), both.clone())
    } else {
        (args.tensor("data")?.clone(), args.tensor("out")?.clone())
    };
    let (at, updates) = (args.tensor("indices")?.clone(), args.tensor("updates")?.clone());
    args.one_of("indices", &at, INDICES)?;
    args.one_of("updates", &updates, &[from.dtype])?;
    args.one_of("out", &to, &[from.dtype])?;
    args.shaped("out", &to, &from.shape)?;
    args.ranked("indices", &at, 1, 8)?;
    let (lead, depth) = (at.shape[..at.rank() - 1].to_vec(), at.shape[at.rank() - 1]);
    if depth > from.rank() {
        return Err(
            args.invalid("indices", format!("has {depth} coordinates for {} dimensions", from.rank()))
        );
    }
    args.shaped("updates", &updates, &[&lead, &from.shape[depth..]].concat())?;
    let operator = args.operator;
    run(move |memory| {
        let (mut row, values) = (from.read_bits(memory)?, updates.read_bits(memory)?);
        let (coordinates, inner) = (at.read_i64(memory)?, volume(&from.shape[depth..]));
        for i in 0..volume(&lead) {
            let mut place = 0;
            for (index, &size) in coordinates[i * depth..][..depth].iter().zip(&from.shape) {
                place = place * size + resolve(operator, *index, size)?;
            }
            row[place * inner..][..inner].copy_from_slice(&values[i * inner..][..inner]);
        }
        to.write_bits(memory, &row)
    })
}

/// data[b][.., indices[b] + j, ..] = updates[b][.., j, ..] along `axis`, the cache update of the first inference kernels.
fn scatter_update(args: &Args) -> Result<Run, Refusal> {
    let (target, at, updates) =
        (args.tensor("data")?.clone(), args.tensor("indices")?.clone(), args.tensor("updates")?.clone());
    args.one_of("indices", &at, INDICES)?;
    args.one_of("updates", &updates, &[target.dtype])?;
    args.ranked("data", &target, 2, 8)?;
    args.ranked("updates", &updates, target.rank(), target.rank())?;
    args.ranked("indices", &at, 1, 1)?;
    let axis = args.axis("axis", args.int("axis")?, target.rank())?;
    if axis == 0 {
        return Err(args.invalid("axis", "is 0, the batch's dimension"));
    }
    let mut shape = target.shape.clone();
    shape[0] = at.numel();
    shape[axis] = updates.shape[axis];
    args.shaped("updates", &updates, &shape)?;
    if shape[0] > target.shape[0] {
        return Err(
            args.invalid("indices", format!("has {} entries for {} batches", shape[0], target.shape[0]))
        );
    }
    run(move |memory: &dyn Memory| {
        let count = updates.shape[axis];
        for (b, start) in at.read_i64(memory)?.into_iter().enumerate() {
            let start =
                usize::try_from(start).ok().filter(|start| start + count <= target.shape[axis]).ok_or_else(
                    || Fault::exception(format!("aclnnInplaceScatterUpdate: rows {start}… are outside")),
                )?;
            let row = updates.narrow(0, b, 1, 1).read_bits(memory)?;
            target.narrow(0, b, 1, 1).narrow(axis, start, count, 1).write_bits(memory, &row)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, LAYOUTS};
    use super::*;

    #[test]
    fn rows_land_where_the_index_says() {
        for layout in LAYOUTS {
            let case = Case::new(Soc::A2, "InplaceIndexCopy")
                .laid(layout)
                .input("selfRef", Dtype::F16, &[3, 2], &[0.0; 6])
                .input("index", Dtype::I64, &[2], &[2.0, 0.0])
                .input("source", Dtype::F16, &[2, 2], &[1.0, 2.0, 3.0, 4.0])
                .done();
            assert_eq!(case.read("selfRef"), [3.0, 4.0, 0.0, 0.0, 1.0, 2.0]);
            let case = Case::new(Soc::A2, "InplaceIndexFillTensor")
                .laid(layout)
                .input("selfRef", Dtype::F32, &[2, 3], &[0.0; 6])
                .int("dim", 1)
                .ints("index", &[0, -1])
                .scalar("value", 5.0)
                .done();
            assert_eq!(case.read("selfRef"), [5.0, 0.0, 5.0, 5.0, 0.0, 5.0]);
        }
        let case = Case::new(Soc::A2, "ScatterNdUpdate")
            .input("varRef", Dtype::F32, &[2, 2], &[0.0; 4])
            .input("indices", Dtype::I32, &[1, 1], &[1.0])
            .input("updates", Dtype::F32, &[1, 2], &[7.0, 8.0])
            .done();
        assert_eq!(case.read("varRef"), [0.0, 0.0, 7.0, 8.0]);
        let case = Case::new(Soc::A2, "InplaceScatterUpdate")
            .input("data", Dtype::F32, &[2, 3, 1], &[0.0; 6])
            .input("indices", Dtype::I64, &[2], &[0.0, 2.0])
            .input("updates", Dtype::F32, &[2, 1, 1], &[1.0, 2.0])
            .int("axis", 1)
            .done();
        assert_eq!(case.read("data"), [1.0, 0.0, 0.0, 0.0, 0.0, 2.0]);
    }

    #[test]
    fn repeated_places_add_up() {
        let case = Case::new(Soc::A2, "IndexAdd")
            .input("self", Dtype::F32, &[2, 2], &[1.0; 4])
            .input("index", Dtype::I32, &[3], &[1.0, 1.0, 0.0])
            .input("source", Dtype::F32, &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
            .scalar("alpha", 2.0)
            .output("out", Dtype::F32, &[2, 2])
            .done();
        assert_eq!(case.read("out"), [11.0, 13.0, 9.0, 13.0]);
        let put = |accumulate| {
            let case =
                Case::new(Soc::A2, "IndexPutImpl").input("selfRef", Dtype::I32, &[3], &[1.0, 1.0, 1.0]);
            let case = case.list("indices", &[(Dtype::I64, &[3], &[2.0, 0.0, 2.0])]);
            let case =
                case.input("values", Dtype::I32, &[3], &[10.0, 20.0, 30.0]).flag("accumulate", accumulate);
            case.done().read("selfRef")
        };
        assert_eq!((put(true), put(false)), (vec![21.0, 1.0, 41.0], vec![20.0, 1.0, 30.0]));
        let scatter = |reduce: i64| {
            let case =
                Case::new(Soc::A2, "Scatter").input("self", Dtype::F32, &[1, 3], &[2.0; 3]).int("dim", 1);
            let case = case.input("index", Dtype::I64, &[1, 2], &[2.0, 0.0]);
            let case = case.input("src", Dtype::F32, &[1, 2], &[3.0, 4.0]).int("reduce", reduce);
            case.output("out", Dtype::F32, &[1, 3])
        };
        let done = |reduce| scatter(reduce).done().read("out");
        assert_eq!(done(0), [4.0, 2.0, 3.0]);
        assert_eq!(done(1), [6.0, 2.0, 5.0]);
        assert_eq!(done(2), [8.0, 2.0, 6.0]);
        assert!(scatter(3).refused().message.contains("reduce = 3"));
    }
}
