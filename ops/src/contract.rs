//! What every operator contract offers: operands, shape rule, cost, oracle, tolerance and cases.

use crate::{Cost, OpError, Result, TensorSpec, Tolerance};

/// How an operator touches an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read only.
    Read,
    /// Written whole; its former contents do not matter.
    Write,
    /// Read and written: in-place results, caches.
    ReadWrite,
}

impl Access {
    /// Whether the operand's former contents matter.
    pub fn reads(self) -> bool {
        self != Access::Write
    }

    /// Whether the operand is changed.
    pub fn writes(self) -> bool {
        self != Access::Read
    }
}

/// One operand of an operator: its name in the operator's documentation, its spec and how it is touched.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// The name, as in error messages: `a`, `weight.scale`, `out`.
    pub name: &'static str,
    /// Element type, extents, layout.
    pub spec: &'a TensorSpec,
    /// Read, write or both.
    pub access: Access,
}

/// The pure half of an operator: arguments already checked, no device, no memory.
///
/// Constructing a value of an implementing type *is* the argument check. The bound half, which pairs the
/// value with tensors, is made from [`Contract::operands`] alone, so the order in which operands are
/// visited is part of the contract: the oracle takes the operands that are read, and returns those that
/// are written, in this same order.
pub trait Contract: Clone + core::fmt::Debug + Send + Sync + 'static {
    /// The operator's name in messages: `gemm_nt`, `rms_norm`.
    fn name(&self) -> &'static str;

    /// Visits every operand that is present, in a fixed order.
    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>));

    /// Pairs `(output, input)` of operand names that may be one and the same view.
    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// Exact operations and bytes.
    fn cost(&self) -> Cost;

    /// The result in f64, by plain loops.
    ///
    /// `inputs` are the operands that are read, decoded exactly and in logical row-major order; the
    /// results are the operands that are written, unrounded. Values a sum is contractually rounded to on
    /// the way (an activation quantized to int8, say) are rounded here too.
    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>>;

    /// Allowed distance from [`Contract::reference`], one per written operand, for inputs drawn as the
    /// [`Case`] says; derived where it is implemented.
    fn tolerance(&self) -> Vec<Tolerance>;
}

/// Cost of reading every read operand once and writing every written one once, plus `flops`.
pub fn streaming_cost<C: Contract>(contract: &C, flops: u64) -> Cost {
    let mut cost = Cost { flops, ..Cost::default() };
    contract.operands(&mut |operand| {
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

/// How a case fills an operand.
#[derive(Clone, Debug, PartialEq)]
pub enum Fill {
    /// Uniform in [−1, 1), rounded to the element type. Integers: uniform in [−8, 8); unsigned: [0, 8); bool: fair.
    Unit,
    /// Uniform in `[low, high)`, rounded to the element type.
    Range(f64, f64),
    /// Exactly these values, in logical order, repeated as often as needed.
    Values(Vec<f64>),
}

/// One case of an operator: a validated value and how to fill what it reads.
#[derive(Clone, Debug)]
pub struct Case<C> {
    /// Which edge it covers: `empty`, `one`, `unaligned`, `strided`, `ragged`, `typical`, …
    pub name: String,
    /// The operator.
    pub contract: C,
    /// Fillings by operand name; operands not named here get [`Fill::Unit`].
    pub fills: Vec<(&'static str, Fill)>,
}

impl<C: Contract> Case<C> {
    /// A case whose operands are all filled with [`Fill::Unit`].
    pub fn new(name: impl Into<String>, contract: C) -> Self {
        Self { name: name.into(), contract, fills: Vec::new() }
    }

    /// This case with operand `name` filled with `fill`.
    pub fn fill(mut self, name: &'static str, fill: Fill) -> Self {
        self.fills.push((name, fill));
        self
    }

    /// How operand `name` is filled.
    pub fn fill_of(&self, name: &str) -> &Fill {
        self.fills.iter().rev().find(|(n, _)| *n == name).map_or(&Fill::Unit, |(_, f)| f)
    }
}

/// A contract that brings its own list of cases, edges first; conformance runs exactly these.
pub trait Cases: Contract {
    /// The cases, edges first, over every element type the contract accepts.
    fn cases() -> Result<Vec<Case<Self>>>;
}

/// Fails with `Shape` unless `got` has exactly these extents.
pub fn expect_dims(op: &'static str, arg: &'static str, got: &TensorSpec, want: &[usize]) -> Result<()> {
    if got.dims() == want {
        return Ok(());
    }
    Err(OpError::shape(op, format!("{arg} is {}, expected {want:?}", got.shape())))
}

/// Fails with `Shape` unless `got` has `rank` dimensions.
pub fn expect_rank(op: &'static str, arg: &'static str, got: &TensorSpec, rank: usize) -> Result<()> {
    if got.rank() == rank {
        return Ok(());
    }
    Err(OpError::shape(op, format!("{arg} is {}, expected {rank} dimensions", got.shape())))
}

/// Fails with `DType` unless `got` has one of the element types `want`.
pub fn expect_dtype(
    op: &'static str,
    arg: &'static str,
    got: &TensorSpec,
    want: &[crate::DType],
) -> Result<()> {
    if want.contains(&got.dtype()) {
        return Ok(());
    }
    let names: Vec<&str> = want.iter().map(|d| d.name()).collect();
    Err(OpError::dtype(op, arg, got.dtype(), names.join(" or ")))
}

/// Fails with `Layout` when two positions of an output share memory.
pub fn expect_writable(op: &'static str, arg: &'static str, got: &TensorSpec) -> Result<()> {
    if got.layout().overlaps_itself(got.shape()) {
        return Err(OpError::layout(op, arg, format!("{got} overlaps itself, an output may not")));
    }
    Ok(())
}
