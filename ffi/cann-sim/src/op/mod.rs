//! The operators: checked when they are planned, executed when their stream reaches them.
//!
//! An operator is one function from its arguments to a [`Run`]. It refuses what the vendor documents as wrong, with
//! the vendor's status, and returns a closure over views; the closure reads, computes in plain loops and writes.
//! Nothing of a backend is used: semantics come from the vendor's documentation.

use crate::tolerance::Rule;
use crate::view::{Dtype, Fault, Format, Memory, Tensor};
use std::cell::RefCell;

/// Lists a file's operators: the vendor's name, the parameters of its first phase with their kinds, the function.
///
/// Kinds: `T` tensor read, `O` written, `U` updated in place, `TL` and `OL` lists of them, `S` scalar, `IA` an array of int64, `DT`
/// element type, `I8` `I32` `I64` `U64` integers, `Int` a C int, `F64` a float, `B` bool, `CS` C string.
macro_rules! operators {
    ($($name:ident($($parameter:ident: $kind:ident),* $(,)?) = $operator:path;)*) => {
        pub(crate) const TABLE: &[crate::op::Entry] = &[$(crate::op::Entry {
            name: stringify!($name),
            #[cfg(test)]
            parameters: &[$((stringify!($parameter), crate::op::Kind::$kind)),*],
            operator: $operator,
        }),*];
        // Unit tests call operators by the table: what is exported would be compiled a second time for nothing.
        $(#[cfg(not(test))] crate::op::enrol::export!(TABLE $name [$($parameter: $kind,)*]);)*
    };
}

mod arrange;
mod attention;
mod binary;
mod compare;
mod conv;
mod enrol;
mod fill;
mod flash;
mod fractal;
mod gate;
mod gather;
mod grouped_matmul;
mod kv_norm_rope;
mod matmul;
mod moe_distribute;
mod moe_gate;
mod moe_route;
mod norm;
mod norm_quant;
mod outside;
mod paged;
mod promote;
mod quant_matmul;
mod quantize;
mod reduce;
mod rope;
mod sample;
mod scatter;
mod select;
mod softmax;
mod solve;
mod sort;
mod sparse_attention;
#[cfg(test)]
mod testing;
mod unary;
mod weight_quant;

/// Every file's operators.
#[cfg(test)]
pub(crate) const FAMILIES: &[&[Entry]] = &[
    arrange::TABLE,
    attention::TABLE,
    binary::TABLE,
    compare::TABLE,
    conv::TABLE,
    fill::TABLE,
    flash::TABLE,
    fractal::TABLE,
    gate::TABLE,
    gather::TABLE,
    grouped_matmul::TABLE,
    kv_norm_rope::TABLE,
    matmul::TABLE,
    moe_distribute::TABLE,
    moe_gate::TABLE,
    moe_route::TABLE,
    norm::TABLE,
    norm_quant::TABLE,
    paged::TABLE,
    quant_matmul::TABLE,
    quantize::TABLE,
    reduce::TABLE,
    rope::TABLE,
    sample::TABLE,
    scatter::TABLE,
    select::TABLE,
    softmax::TABLE,
    solve::TABLE,
    sort::TABLE,
    sparse_attention::TABLE,
    unary::TABLE,
    weight_quant::TABLE,
];

/// A null pointer where a value is needed.
pub(crate) const NULL_POINTER: i32 = 161001;
/// An argument the operator does not take.
pub(crate) const INVALID: i32 = 161002;
/// An operator that the product does not have.
pub(crate) const RUNTIME: i32 = 361001;

/// The chips whose rules differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Soc {
    A2,
    A3,
    Ascend950,
    Ascend310P,
}

/// Why an operator was not planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: i32,
    pub(crate) message: String,
}

/// What a planned operator does; a captured or repeatable one is run many times.
pub(crate) enum Run {
    /// On one device.
    Alone(Body),
    /// On every device of a group at once.
    Together(Party),
}

/// What computes on one device.
pub(crate) type Body = Box<dyn Fn(&dyn Memory) -> Result<(), Fault> + Send + Sync>;

/// One rank's side of an operator with communication in it: first everybody gives, then everybody takes.
pub(crate) struct Party {
    /// The group's name, as `HcclGetCommName` tells it.
    pub(crate) group: String,
    pub(crate) rank: i64,
    pub(crate) size: i64,
    /// Bytes that the communicator's buffer has to have.
    pub(crate) buffer: usize,
    /// What has to be the same on every rank.
    pub(crate) agreed: Vec<i64>,
    pub(crate) give: Give,
    pub(crate) take: Take,
}

/// Reads what a rank gives.
pub(crate) type Give = Box<dyn Fn(&dyn Memory) -> Result<Parcel, Fault> + Send + Sync>;
/// Writes what a rank makes of what all have given, rank by rank.
pub(crate) type Take = Box<dyn Fn(&dyn Memory, &[Parcel]) -> Result<(), Fault> + Send + Sync>;

/// What a rank gives.
#[derive(Default)]
pub(crate) struct Parcel {
    pub(crate) numbers: Vec<f64>,
    pub(crate) integers: Vec<Vec<i64>>,
}

/// An operator.
pub(crate) type Operator = fn(&Args) -> Result<Run, Refusal>;

/// An operator by its vendor's name.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    /// What tests fill in where a call leaves something out.
    #[cfg(test)]
    pub(crate) parameters: &'static [(&'static str, Kind)],
    pub(crate) operator: Operator,
}

/// The C type of a parameter.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    T,
    O,
    U,
    TL,
    OL,
    S,
    IA,
    DT,
    I8,
    I32,
    I64,
    U64,
    Int,
    F64,
    B,
    CS,
}

/// The operator of a name.
#[cfg(test)]
pub(crate) fn find(name: &str) -> Option<&'static Entry> {
    FAMILIES.iter().flat_map(|family| family.iter()).find(|entry| entry.name == name)
}

/// A scalar argument: its type, and its value both as a float and as an integer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scalar {
    pub(crate) dtype: Dtype,
    pub(crate) float: f64,
    pub(crate) int: i64,
}

impl Scalar {
    /// A scalar from its bits.
    pub(crate) fn new(dtype: Dtype, bits: u64) -> Scalar {
        Scalar { dtype, float: dtype.decode(bits), int: dtype.decode_int(bits) }
    }
}

/// One argument of an operator's first phase.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Tensor(Option<Tensor>),
    Tensors(Option<Vec<Tensor>>),
    Scalar(Option<Scalar>),
    Ints(Option<Vec<i64>>),
    Text(Option<String>),
    Int(i64),
    Float(f64),
    Flag(bool),
}

/// The arguments of one call, by the vendor's names.
#[derive(Clone, Debug)]
pub(crate) struct Args {
    pub(crate) operator: &'static str,
    pub(crate) soc: Soc,
    pub(crate) values: Vec<(&'static str, Value)>,
    /// Rules that may be broken, and those that were, with what was wrong.
    pub(crate) tolerated: Vec<Rule>,
    pub(crate) broken: RefCell<Vec<(Rule, String)>>,
}

impl Args {
    /// A refusal, unless its rule may be broken.
    pub(crate) fn unless(&self, rule: Rule, refusal: Refusal) -> Result<(), Refusal> {
        if !self.tolerated.contains(&rule) {
            return Err(refusal);
        }
        self.broken.borrow_mut().push((rule, refusal.message));
        Ok(())
    }

    /// The value named `name`, or `nameOptional`, as versions of one operator spell it.
    fn get(&self, name: &str) -> Option<&Value> {
        let named = |have: &str| have == name || have.strip_suffix("Optional") == Some(name);
        self.values.iter().find(|(have, _)| named(have)).map(|(_, value)| value)
    }

    /// A refusal of an argument.
    pub(crate) fn invalid(&self, argument: &str, what: impl AsRef<str>) -> Refusal {
        let message = format!("aclnn{}: {argument} {}", self.operator, what.as_ref());
        Refusal { status: INVALID, message }
    }

    fn null(&self, argument: &str) -> Refusal {
        let message = format!("aclnn{}: {argument} is a null pointer", self.operator);
        Refusal { status: NULL_POINTER, message }
    }

    fn mistyped(&self, argument: &str) -> Refusal {
        self.invalid(argument, "is no argument of this operator, or of another kind")
    }

    /// A tensor that must be there.
    pub(crate) fn tensor(&self, name: &str) -> Result<&Tensor, Refusal> {
        match self.get(name) {
            Some(Value::Tensor(tensor)) => {
                let tensor = tensor.as_ref().ok_or_else(|| self.null(name))?;
                self.supported(name, tensor)?;
                Ok(tensor)
            }
            _ => Err(self.mistyped(name)),
        }
    }

    /// A tensor that may be missing, in this call or in this version of the operator.
    pub(crate) fn optional(&self, name: &str) -> Result<Option<&Tensor>, Refusal> {
        match self.get(name) {
            None | Some(Value::Tensor(None)) => Ok(None),
            Some(Value::Tensor(Some(tensor))) => {
                self.supported(name, tensor)?;
                Ok(Some(tensor))
            }
            _ => Err(self.mistyped(name)),
        }
    }

    /// Refuses optional tensors that the simulator gives no meaning to.
    pub(crate) fn absent(&self, names: &[&str]) -> Result<(), Refusal> {
        for name in names {
            match self.get(name) {
                None | Some(Value::Tensor(None) | Value::Tensors(None) | Value::Ints(None)) => {}
                Some(Value::Tensors(Some(list))) if list.is_empty() => {}
                Some(Value::Ints(Some(list))) if list.is_empty() => {}
                _ => return Err(self.invalid(name, "is not simulated and must be null")),
            }
        }
        Ok(())
    }

    /// A list of tensors that must be there.
    pub(crate) fn tensors(&self, name: &str) -> Result<&[Tensor], Refusal> {
        self.optional_tensors(name)?.ok_or_else(|| self.null(name))
    }

    pub(crate) fn optional_tensors(&self, name: &str) -> Result<Option<&[Tensor]>, Refusal> {
        match self.get(name) {
            None | Some(Value::Tensors(None)) => Ok(None),
            Some(Value::Tensors(Some(list))) => {
                list.iter().try_for_each(|tensor| self.supported(name, tensor))?;
                Ok(Some(list))
            }
            _ => Err(self.mistyped(name)),
        }
    }

    pub(crate) fn scalar(&self, name: &str) -> Result<Scalar, Refusal> {
        self.optional_scalar(name)?.ok_or_else(|| self.null(name))
    }

    pub(crate) fn optional_scalar(&self, name: &str) -> Result<Option<Scalar>, Refusal> {
        match self.get(name) {
            Some(Value::Scalar(scalar)) => Ok(*scalar),
            None => Ok(None),
            _ => Err(self.mistyped(name)),
        }
    }

    pub(crate) fn ints(&self, name: &str) -> Result<&[i64], Refusal> {
        self.optional_ints(name)?.ok_or_else(|| self.null(name))
    }

    pub(crate) fn optional_ints(&self, name: &str) -> Result<Option<&[i64]>, Refusal> {
        match self.get(name) {
            None | Some(Value::Ints(None)) => Ok(None),
            Some(Value::Ints(Some(list))) => Ok(Some(list)),
            _ => Err(self.mistyped(name)),
        }
    }

    pub(crate) fn int(&self, name: &str) -> Result<i64, Refusal> {
        match self.get(name) {
            Some(Value::Int(value)) => Ok(*value),
            _ => Err(self.mistyped(name)),
        }
    }

    /// An integer that only some versions of the operator have.
    pub(crate) fn int_or(&self, name: &str, missing: i64) -> Result<i64, Refusal> {
        if self.get(name).is_none() { Ok(missing) } else { self.int(name) }
    }

    pub(crate) fn float(&self, name: &str) -> Result<f64, Refusal> {
        match self.get(name) {
            Some(Value::Float(value)) => Ok(*value),
            _ => Err(self.mistyped(name)),
        }
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, Refusal> {
        match self.get(name) {
            Some(Value::Flag(value)) => Ok(*value),
            _ => Err(self.mistyped(name)),
        }
    }

    /// A string; null and missing read as empty.
    pub(crate) fn text(&self, name: &str) -> Result<&str, Refusal> {
        match self.get(name) {
            None | Some(Value::Text(None)) => Ok(""),
            Some(Value::Text(Some(text))) => Ok(text),
            _ => Err(self.mistyped(name)),
        }
    }

    /// Element types the chip knows at all.
    fn supported(&self, name: &str, tensor: &Tensor) -> Result<(), Refusal> {
        let (dtype, soc) = (tensor.dtype, self.soc);
        let refused = match soc {
            Soc::Ascend950 => false,
            Soc::A2 | Soc::A3 => dtype.is_narrow_float(),
            Soc::Ascend310P => dtype.is_narrow_float() || matches!(dtype, Dtype::Bf16 | Dtype::I4),
        };
        if refused && !MOVES.contains(&self.operator) {
            return Err(
                self.invalid(name, format!("has type {}, which {soc:?} does not support", dtype.name()))
            );
        }
        if tensor.rank() > 8 {
            return Err(self.invalid(name, format!("has {} dimensions, more than 8", tensor.rank())));
        }
        if tensor.format == Format::FractalNz && tensor.rank() < 2 {
            return Err(self.invalid(name, "is FRACTAL_NZ and has fewer than 2 dimensions"));
        }
        Ok(())
    }

    /// Checks an element type against those an argument takes.
    pub(crate) fn one_of(&self, name: &str, tensor: &Tensor, dtypes: &[Dtype]) -> Result<(), Refusal> {
        if dtypes.contains(&tensor.dtype) {
            return Ok(());
        }
        let names: Vec<&str> = dtypes.iter().map(|dtype| dtype.name()).collect();
        Err(self.invalid(name, format!("has type {}; wanted: {}", tensor.dtype.name(), names.join(", "))))
    }

    /// Checks a shape.
    pub(crate) fn shaped(&self, name: &str, tensor: &Tensor, shape: &[usize]) -> Result<(), Refusal> {
        if tensor.shape == shape {
            return Ok(());
        }
        Err(self.invalid(name, format!("has shape {:?}; wanted: {shape:?}", tensor.shape)))
    }

    /// Checks the number of dimensions.
    pub(crate) fn ranked(
        &self,
        name: &str,
        tensor: &Tensor,
        least: usize,
        most: usize,
    ) -> Result<(), Refusal> {
        if (least..=most).contains(&tensor.rank()) {
            return Ok(());
        }
        Err(self.invalid(name, format!("has {} dimensions; wanted: {least} to {most}", tensor.rank())))
    }

    /// Checks that a tensor is FRACTAL_NZ, and that its memory has the extents of its blocks.
    pub(crate) fn blocks(&self, name: &str, tensor: &Tensor) -> Result<(), Refusal> {
        if tensor.format != Format::FractalNz {
            return Err(self.invalid(name, "must be FRACTAL_NZ"));
        }
        let storage = tensor.fractal_storage();
        if tensor.storage == storage {
            return Ok(());
        }
        Err(self
            .invalid(name, format!("has storage {:?}; wanted of its blocks: {storage:?}", tensor.storage)))
    }

    /// Resolves a dimension, negative ones from the end. A tensor without dimensions has dimension 0.
    pub(crate) fn axis(&self, name: &str, axis: i64, rank: usize) -> Result<usize, Refusal> {
        let bound = rank.max(1) as i64;
        if !(-bound..bound).contains(&axis) {
            return Err(self.invalid(name, format!("is {axis} for a tensor of {rank} dimensions")));
        }
        Ok(axis.rem_euclid(bound) as usize)
    }

    /// Resolves a list of distinct dimensions, in the order given.
    pub(crate) fn axes(&self, name: &str, axes: &[i64], rank: usize) -> Result<Vec<usize>, Refusal> {
        let mut out = Vec::with_capacity(axes.len());
        for &axis in axes {
            let axis = self.axis(name, axis, rank)?;
            if out.contains(&axis) {
                return Err(self.invalid(name, format!("names dimension {axis} twice")));
            }
            out.push(axis);
        }
        Ok(out)
    }

    /// A view of `tensor` in `shape`, dimensions of 1 repeated.
    pub(crate) fn spread(&self, name: &str, tensor: &Tensor, shape: &[usize]) -> Result<Tensor, Refusal> {
        tensor.broadcast(shape).ok_or_else(|| {
            self.invalid(name, format!("has shape {:?}, which does not broadcast to {shape:?}", tensor.shape))
        })
    }

    /// A product whose drivers have the symbol and refuse it.
    pub(crate) fn unknown_product(&self) -> Refusal {
        let message = format!("aclnn{}: {:?} does not support this operator", self.operator, self.soc);
        Refusal { status: RUNTIME, message }
    }

    /// A mode the vendor does not document, or that is not simulated.
    pub(crate) fn unknown_mode(&self, name: &str, value: impl std::fmt::Display) -> Refusal {
        self.invalid(name, format!("= {value} is no mode the simulator knows"))
    }
}

/// Operators that carry bytes whatever they mean.
const MOVES: &[&str] = &[
    "InplaceCopy",
    "Permute",
    "Cat",
    "Slice",
    "SliceV2",
    "InplaceZero",
    "IndexSelect",
    "GatherV2",
    "Expand",
    "Repeat",
];

/// Floating-point types of 16 and 32 bits, the usual domain.
pub(crate) const FLOATS: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::Bf16];
/// Types of indices.
pub(crate) const INDICES: &[Dtype] = &[Dtype::I64, Dtype::I32];

/// A planned operator.
pub(crate) fn run(
    body: impl Fn(&dyn Memory) -> Result<(), Fault> + Send + Sync + 'static,
) -> Result<Run, Refusal> {
    Ok(Run::Alone(Box::new(body)))
}
