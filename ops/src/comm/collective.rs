//! What every collective contract offers, as `Contract` does for operators of one device.

use super::{Ranks, Signature};
use crate::kernel::edges::{BYTE_CODES, MOVABLE};
use crate::{Cost, DType, Fill, OpError, Operand, Result, TensorSpec, Tolerance};

/// One rank's part of a collective operator: arguments already checked, no device, no memory.
///
/// The order in which operands are visited is part of the contract: the oracle takes the operands that are read,
/// and returns those that are written, in this same order.
pub trait Collective: Clone + core::fmt::Debug + Send + Sync + 'static {
    /// The operator's name in messages: `all_reduce`.
    fn name(&self) -> &'static str;

    /// Whose part it is.
    fn ranks(&self) -> Ranks;

    /// Visits every operand that is present, in a fixed order.
    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>));

    /// Pairs `(output, input)` of operand names that may be one and the same view.
    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// What this rank tells the others before data moves.
    fn signature(&self) -> Signature;

    /// Exact operations and bytes of this rank. `bytes_comm` is what it sends to others, by the algorithm that sends
    /// least; a broadcast's bytes are the root's.
    fn cost(&self) -> Cost;

    /// The results of all ranks in f64, by plain loops.
    ///
    /// `parts` are the parts of all ranks, in order; `inputs`, for each rank, its operands that are read. The
    /// results are, for each rank, its operands that are written, unrounded. The parts must agree.
    fn reference(parts: &[Self], inputs: &[Vec<&[f64]>]) -> Vec<Vec<Vec<f64>>>;

    /// Allowed distance from [`Collective::reference`], one per written operand, for inputs drawn as the
    /// [`GroupCase`] says.
    fn tolerance(&self) -> Vec<Tolerance>;
}

/// One case of a collective: the parts of all ranks, and how to fill what they read.
#[derive(Clone, Debug)]
pub struct GroupCase<C> {
    /// Which edge it covers.
    pub name: String,
    /// The part of every rank, in order.
    pub parts: Vec<C>,
    /// How every operand that is read is filled.
    pub fill: Fill,
    /// Of each rank, operands that are filled in another way.
    pub own_fills: Vec<Vec<(&'static str, Fill)>>,
}

impl<C> GroupCase<C> {
    /// A case for a group of `world_size`, each part made by its rank.
    pub(crate) fn new(
        name: impl Into<String>,
        world_size: u32,
        part: impl Fn(Ranks) -> Result<C>,
    ) -> Result<Self> {
        let parts = (0..world_size).map(|rank| part(Ranks::new(rank, world_size)?));
        let parts = parts.collect::<Result<Vec<C>>>()?;
        let own_fills = vec![Vec::new(); parts.len()];
        Ok(Self { name: name.into(), parts, fill: Fill::Unit, own_fills })
    }

    /// How an operand of a rank is filled.
    pub fn fill_of(&self, rank: usize, operand: &str) -> &Fill {
        let own = self.own_fills.get(rank).into_iter().flatten();
        own.filter(|(name, _)| *name == operand).map(|(_, fill)| fill).next_back().unwrap_or(&self.fill)
    }

    pub(crate) fn filled(mut self, fill: Fill) -> Self {
        self.fill = fill;
        self
    }

    /// Fills operands of each rank in another way.
    pub(crate) fn filled_by_rank(mut self, fills: impl Fn(usize) -> Vec<(&'static str, Fill)>) -> Self {
        self.own_fills = (0..self.parts.len()).map(fills).collect();
        self
    }
}

/// A collective that brings its own list of cases; conformance runs exactly these.
pub trait CollectiveCases: Collective {
    /// The cases for a group of `world_size` ranks, edges first, over every element type.
    fn cases(world_size: u32) -> Result<Vec<GroupCase<Self>>>;
}

/// Cost of reading and writing this rank's operands once, plus `flops` and `bytes_comm`.
pub(crate) fn collective_cost<C: Collective>(part: &C, flops: u64, bytes_comm: u64) -> Cost {
    let mut cost = Cost { flops, bytes_comm, ..Cost::default() };
    part.operands(&mut |operand| {
        let bytes = operand.spec.bytes() as u64;
        if operand.access.reads() {
            cost.bytes_read = cost.bytes_read.saturating_add(bytes);
        }
        if operand.access.writes() {
            cost.bytes_written = cost.bytes_written.saturating_add(bytes);
        }
    });
    cost
}

/// Fails with `DType` for elements that share a byte, and with `Layout` unless elements follow each other.
pub(crate) fn expect_movable(op: &'static str, arg: &'static str, spec: &TensorSpec) -> Result<()> {
    if spec.dtype().is_sub_byte() {
        return Err(OpError::dtype(
            op,
            arg,
            spec.dtype(),
            "an element type of at least a byte; view it as u8",
        ));
    }
    if !spec.is_contiguous() {
        let what = format!("{spec} has gaps, ranks exchange contiguous tensors; copy it first");
        return Err(OpError::layout(op, arg, what));
    }
    Ok(())
}

/// The types that movement is tried on.
pub(crate) fn movable() -> impl Iterator<Item = DType> {
    MOVABLE.into_iter().chain(BYTE_CODES)
}

/// A contiguous tensor that does not begin at a multiple of anything.
pub(crate) fn at_odd_offset(dtype: DType, dims: &[usize]) -> Result<TensorSpec> {
    let Some((&first, rest)) = dims.split_first() else { return TensorSpec::of(dtype, dims) };
    // One more row in front: of a single element where rows have one.
    let taller = [&[first + 1], rest].concat();
    TensorSpec::of(dtype, &taller)?.narrow(0, 1, first)
}
