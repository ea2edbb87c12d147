//! Elements chosen by tensors of indices.

use super::{Args, INDICES, Refusal, Run, run};
use crate::view::{Dtype, Fault, Format, Memory, Tensor, broadcast_shape, volume};

operators! {
    GatherV2(self: T, dim: I64, index: T, out: O) = take;
    IndexSelect(self: T, dim: I64, index: T, out: O) = take;
    Embedding(weight: T, indices: T, out: O) = embedding;
    Gather(self: T, dim: I64, index: T, out: O) = gather;
    GatherNd(self: T, indices: T, negativeIndexSupport: B, out: O) = gather_nd;
    Index(self: T, indices: TL, out: O) = index;
}

/// An index resolved against a size, negative ones from the end.
pub(super) fn resolve(operator: &str, index: i64, size: usize) -> Result<usize, Fault> {
    let bound = size as i64;
    if (-bound..bound).contains(&index) {
        return Ok(index.rem_euclid(bound) as usize);
    }
    Err(Fault::exception(format!("aclnn{operator}: index {index} is outside a dimension of {size} elements")))
}

/// All of a tensor's indices, resolved.
pub(super) fn indices(
    operator: &str,
    tensor: &Tensor,
    size: usize,
    memory: &dyn Memory,
) -> Result<Vec<usize>, Fault> {
    tensor.read_i64(memory)?.into_iter().map(|index| resolve(operator, index, size)).collect()
}

/// self[.., index, ..]: the index's shape takes the dimension's place.
fn take(args: &Args) -> Result<Run, Refusal> {
    let (from, index) = (args.tensor("self")?, args.tensor("index")?);
    if args.operator == "IndexSelect" {
        args.ranked("index", index, 0, 1)?;
    }
    let axis = args.axis("dim", args.int("dim")?, from.rank())?;
    args.ranked("self", from, 1, 8)?;
    take_along(args, from, ("index", index), axis)
}

fn embedding(args: &Args) -> Result<Run, Refusal> {
    let weight = args.tensor("weight")?;
    args.ranked("weight", weight, 2, 2)?;
    take_along(args, weight, ("indices", args.tensor("indices")?), 0)
}

fn take_along(args: &Args, from: &Tensor, index: (&str, &Tensor), axis: usize) -> Result<Run, Refusal> {
    let to = args.tensor("out")?.clone();
    args.one_of(index.0, index.1, INDICES)?;
    args.one_of("out", &to, &[from.dtype])?;
    // IndexSelect takes an index without dimensions for one element.
    let index_shape =
        if args.operator == "IndexSelect" { vec![index.1.numel()] } else { index.1.shape.clone() };
    let shape = [&from.shape[..axis], &index_shape, &from.shape[axis + 1..]].concat();
    args.shaped("out", &to, &shape)?;
    let (from, index, operator) = (from.clone(), index.1.clone(), args.operator);
    run(move |memory| {
        let (size, inner) = (from.shape[axis], volume(&from.shape[axis + 1..]));
        let places = indices(operator, &index, size, memory)?;
        let mut row = Vec::with_capacity(to.numel());
        if from.format == Format::Nd && places.len() < size {
            // Of a large table few rows may be asked for, and no others are read.
            let slices = places.iter().map(|&place| from.narrow(axis, place, 1, 1).read_bits(memory));
            let slices = slices.collect::<Result<Vec<_>, _>>()?;
            for outer in 0..volume(&from.shape[..axis]) {
                slices.iter().for_each(|slice| row.extend_from_slice(&slice[outer * inner..][..inner]));
            }
            return to.write_bits(memory, &row);
        }
        let bits = from.read_bits(memory)?;
        for outer in 0..volume(&from.shape[..axis]) {
            for place in &places {
                row.extend_from_slice(&bits[(outer * size + place) * inner..][..inner]);
            }
        }
        to.write_bits(memory, &row)
    })
}

/// out[i][j] = self[index[i][j]][j] for dim 0, and so on: the index has the output's shape.
fn gather(args: &Args) -> Result<Run, Refusal> {
    let (from, index, to) = (args.tensor("self")?, args.tensor("index")?, args.tensor("out")?);
    args.one_of("index", index, INDICES)?;
    args.one_of("out", to, &[from.dtype])?;
    args.shaped("out", to, &index.shape)?;
    let axis = args.axis("dim", args.int("dim")?, from.rank())?;
    let fits = |a: usize| a == axis || index.shape[a] <= from.shape[a];
    if index.rank() != from.rank() || !(0..index.rank()).all(fits) {
        return Err(args.invalid("index", format!("{:?} does not fit self {:?}", index.shape, from.shape)));
    }
    let (from, index, to, operator) = (from.clone(), index.clone(), to.clone(), args.operator);
    run(move |memory| {
        let places = indices(operator, &index, from.shape.get(axis).copied().unwrap_or(1), memory)?;
        let bits = from.read_bits(memory)?;
        let row: Vec<u64> = (0..places.len())
            .map(|flat| bits[replaced(flat, &index.shape, &from.shape, axis, places[flat])])
            .collect();
        to.write_bits(memory, &row)
    })
}

/// The flat place in `to` of element `flat` of `shape`, its index along `axis` replaced.
pub(super) fn replaced(flat: usize, shape: &[usize], to: &[usize], axis: usize, by: usize) -> usize {
    let (mut rest, mut step, mut place) = (flat, 1, 0);
    for a in (0..shape.len()).rev() {
        let index = if a == axis { by } else { rest % shape[a] };
        place += index * step;
        step *= to[a];
        rest /= shape[a];
    }
    place
}

/// The last dimension of `indices` names leading coordinates.
fn gather_nd(args: &Args) -> Result<Run, Refusal> {
    let (from, at, to) =
        (args.tensor("self")?.clone(), args.tensor("indices")?.clone(), args.tensor("out")?.clone());
    args.one_of("indices", &at, INDICES)?;
    args.one_of("out", &to, &[from.dtype])?;
    args.ranked("indices", &at, 1, 8)?;
    let (lead, depth) = (&at.shape[..at.rank() - 1], at.shape[at.rank() - 1]);
    if depth > from.rank() {
        return Err(
            args.invalid("indices", format!("has {depth} coordinates for {} dimensions", from.rank()))
        );
    }
    args.shaped("out", &to, &[lead, &from.shape[depth..]].concat())?;
    let (negative, operator) = (args.flag("negativeIndexSupport")?, args.operator);
    run(move |memory| {
        let coordinates = at.read_i64(memory)?;
        if let Some(bad) = coordinates.iter().find(|index| **index < 0 && !negative) {
            return Err(Fault::exception(format!("aclnn{operator}: index {bad} is negative")));
        }
        let (bits, inner) = (from.read_bits(memory)?, volume(&from.shape[depth..]));
        let mut row = Vec::with_capacity(to.numel());
        for i in 0..volume(&at.shape[..at.rank() - 1]) {
            let mut place = 0;
            for (index, &size) in coordinates[i * depth..][..depth].iter().zip(&from.shape) {
                place = place * size + resolve(operator, *index, size)?;
            }
            row.extend_from_slice(&bits[place * inner..][..inner]);
        }
        to.write_bits(memory, &row)
    })
}

/// Places of the leading dimensions that a list of index tensors names, and the shape they broadcast to.
pub(super) struct Leading {
    pub(super) tensors: Vec<Tensor>,
    pub(super) shape: Vec<usize>,
}

impl Leading {
    pub(super) fn of(args: &Args, indexed: &Tensor) -> Result<Leading, Refusal> {
        let list = args.tensors("indices")?;
        if list.is_empty() || list.len() > indexed.rank() {
            return Err(args.invalid(
                "indices",
                format!("has {} members for {} dimensions", list.len(), indexed.rank()),
            ));
        }
        let mut shape = Vec::new();
        for index in list {
            if index.dtype == Dtype::Bool || index.dtype == Dtype::U8 {
                return Err(args.invalid("indices", "are truth values; only int32 and int64 are simulated"));
            }
            args.one_of("indices", index, INDICES)?;
            shape = broadcast_shape(&shape, &index.shape)
                .ok_or_else(|| args.invalid("indices", format!("{:?} does not broadcast", index.shape)))?;
        }
        let tensors =
            list.iter().map(|index| args.spread("indices", index, &shape)).collect::<Result<_, _>>()?;
        Ok(Leading { tensors, shape })
    }

    /// Flat places of the leading dimensions, in order of the broadcast indices.
    pub(super) fn places(
        &self,
        operator: &str,
        sizes: &[usize],
        memory: &dyn Memory,
    ) -> Result<Vec<usize>, Fault> {
        let mut places = vec![0; volume(&self.shape)];
        for (tensor, &size) in self.tensors.iter().zip(sizes) {
            let along = indices(operator, tensor, size, memory)?;
            places.iter_mut().zip(along).for_each(|(place, index)| *place = *place * size + index);
        }
        Ok(places)
    }
}

fn index(args: &Args) -> Result<Run, Refusal> {
    let (from, to) = (args.tensor("self")?.clone(), args.tensor("out")?.clone());
    args.one_of("out", &to, &[from.dtype])?;
    let leading = Leading::of(args, &from)?;
    let depth = leading.tensors.len();
    args.shaped("out", &to, &[&leading.shape, &from.shape[depth..]].concat())?;
    let operator = args.operator;
    run(move |memory| {
        let (bits, inner) = (from.read_bits(memory)?, volume(&from.shape[depth..]));
        let mut row = Vec::with_capacity(to.numel());
        for place in leading.places(operator, &from.shape, memory)? {
            row.extend_from_slice(&bits[place * inner..][..inner]);
        }
        to.write_bits(memory, &row)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, LAYOUTS, Stop};
    use super::*;

    fn base(name: &str, layout: super::super::testing::Layout) -> Case {
        let x: Vec<f64> = (0..12).map(f64::from).collect();
        Case::new(Soc::A2, name).laid(layout).input("self", Dtype::F16, &[3, 4], &x)
    }

    #[test]
    fn rows_and_columns_are_taken_by_index() {
        for layout in LAYOUTS {
            let case = base("GatherV2", layout).input("index", Dtype::I32, &[2, 1], &[2.0, -3.0]);
            let case = case.output("out", Dtype::F16, &[2, 1, 4]).done();
            assert_eq!(case.read("out"), [8.0, 9.0, 10.0, 11.0, 0.0, 1.0, 2.0, 3.0]);
            let case =
                base("IndexSelect", layout).input("index", Dtype::I64, &[2], &[3.0, 1.0]).int("dim", 1);
            assert_eq!(
                case.output("out", Dtype::F16, &[3, 2]).done().read("out"),
                [3.0, 1.0, 7.0, 5.0, 11.0, 9.0]
            );
            let case = base("Gather", layout).input("index", Dtype::I64, &[2, 2], &[0.0, 2.0, 1.0, 0.0]);
            assert_eq!(case.output("out", Dtype::F16, &[2, 2]).done().read("out"), [0.0, 9.0, 4.0, 1.0]);
            let case = base("GatherNd", layout).input("indices", Dtype::I64, &[2, 2], &[0.0, 2.0, 1.0, 3.0]);
            assert_eq!(case.output("out", Dtype::F16, &[2]).done().read("out"), [2.0, 7.0]);
            let list = [(Dtype::I64, &[2, 1][..], &[0.0, 2.0][..]), (Dtype::I64, &[2][..], &[1.0, 3.0][..])];
            let case = base("Index", layout).list("indices", &list).output("out", Dtype::F16, &[2, 2]).done();
            assert_eq!(case.read("out"), [1.0, 3.0, 9.0, 11.0]);
        }
    }

    #[test]
    fn an_index_outside_stops_the_kernel_and_is_named() {
        let case = Case::new(Soc::A2, "Embedding")
            .input("weight", Dtype::F32, &[3, 1], &[0.0; 3])
            .input("indices", Dtype::I64, &[1], &[3.0])
            .output("out", Dtype::F32, &[1, 1]);
        match case.run() {
            Err(Stop::Failed(fault)) => assert!(fault.message.contains("index 3 is outside"), "{fault:?}"),
            other => panic!("{other:?}"),
        }
    }
}
