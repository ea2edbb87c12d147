//! How a row of [`super::operators!`] becomes an operator's two exported symbols.
//!
//! Arguments become [`Args`] by name, tensors among them operands of the launch: a view's `address` is its operand's
//! number in the upper bits, so what an executor is re-pointed at is found when it runs.

use super::{Args, Entry, Parcel, Party, Run, Scalar, Soc, Value};
use crate::aclnn::{self, Access, Context, Kind, Opt, Plan};
use crate::error::{Fail, Result};
use crate::profile::Family;
use crate::view::{Fault, Format, Memory, Tensor};
use crate::world::world;
use std::cell::RefCell;

/// Bits of an operand's own bytes in an address.
const OPERAND: u32 = 40;

/// The tensors of one call, in order, and how each is touched; the parameters that they came as.
#[derive(Default)]
pub(crate) struct Operands(Vec<(crate::tensor::Tensor, Access)>, Vec<(Access, Vec<usize>)>);

impl Operands {
    /// The next parameter, which brings operands or none.
    fn parameter(&mut self, access: Access) {
        self.1.push((access, Vec::new()));
    }

    /// A view of the next operand, which the latest parameter brings.
    fn add(&mut self, tensor: &crate::tensor::Tensor, access: Access, name: &str) -> Result<Tensor> {
        let (dtype, format) = (tensor.dtype(), tensor.format());
        if !dtype.is_simulated() {
            let text = format!("{name} has type {}, which no simulated operator takes", dtype.name());
            return Err(Fail::invalid(text));
        }
        let format = Format::from_code(i64::from(format)).ok_or_else(|| {
            Fail::invalid(format!("{name} has aclFormat {format}, which no simulated operator takes"))
        })?;
        let size = |sizes: &[i64]| -> Result<Vec<usize>> {
            let sizes = sizes.iter().map(|&size| usize::try_from(size));
            sizes
                .collect::<core::result::Result<_, _>>()
                .map_err(|_| Fail::invalid(format!("{name}: {tensor}")))
        };
        let view = Tensor {
            dtype,
            format,
            shape: size(tensor.shape())?,
            strides: size(tensor.strides())?,
            offset: size(&[tensor.offset()])?[0],
            storage: size(tensor.storage_shape())?,
            address: (self.0.len() as u64) << OPERAND,
        };
        if let Some((_, members)) = self.1.last_mut() {
            members.push(self.0.len());
        }
        self.0.push((tensor.clone(), access));
        Ok(view)
    }
}

/// A launch's operands as device memory.
struct Launch<'a>(&'a aclnn::Run);

// SAFETY: an operand's bytes are mapped and its own while the launch runs; ranges are checked against them.
unsafe impl Memory for Launch<'_> {
    fn found_shape(&self, address: u64, shape: &[usize]) {
        if let Ok(operand) = self.0.operand((address >> OPERAND) as usize) {
            operand.tensor.set_found_shape(shape.iter().map(|&size| size as i64).collect());
        }
    }

    fn resolve(&self, address: u64, bytes: usize) -> core::result::Result<*mut u8, Fault> {
        let (number, start) = ((address >> OPERAND) as usize, (address & ((1 << OPERAND) - 1)) as usize);
        let operand =
            self.0.operand(number).map_err(|fail| Fault { status: fail.code, message: fail.text })?;
        match start.checked_add(bytes) {
            Some(end) if end <= operand.bytes => Ok(operand.base.wrapping_add(start)),
            _ => Err(Fault::exception(format!(
                "bytes {start} to {} of {}, whose memory has {}",
                start.saturating_add(bytes),
                operand.tensor,
                operand.bytes
            ))),
        }
    }
}

/// A parameter's kind, as rows name it.
pub(crate) trait Parameter {
    type Via: Kind;
    fn value(held: &<Self::Via as Kind>::Held, name: &'static str, operands: &mut Operands) -> Result<Value>;
}

/// The kinds of parameters: their C types and what operators get.
pub(crate) mod kind {
    use super::*;

    macro_rules! tensors {
        ($($name:ident, $access:ident;)*) => {$(
            pub(crate) enum $name {}
            impl Parameter for $name {
                type Via = Opt<aclnn::T>;
                fn value(
                    held: &Option<crate::tensor::Tensor>,
                    name: &'static str,
                    operands: &mut Operands,
                ) -> Result<Value> {
                    operands.parameter(Access::$access);
                    let view = held.as_ref().map(|tensor| operands.add(tensor, Access::$access, name));
                    Ok(Value::Tensor(view.transpose()?))
                }
            }
        )*};
    }
    tensors! {
        T, Read;
        O, Write;
        U, Update;
    }

    macro_rules! lists {
        ($($name:ident, $access:ident;)*) => {$(
            pub(crate) enum $name {}
            impl Parameter for $name {
                type Via = Opt<aclnn::TL>;
                fn value(
                    held: &Option<aclnn::Members>,
                    name: &'static str,
                    operands: &mut Operands,
                ) -> Result<Value> {
                    operands.parameter(Access::$access);
                    let views = held.as_ref().map(|list| {
                        list.iter().map(|tensor| operands.add(tensor, Access::$access, name)).collect::<Result<Vec<_>>>()
                    });
                    Ok(Value::Tensors(views.transpose()?))
                }
            }
        )*};
    }
    lists! {
        TL, Read;
        OL, Write;
    }

    macro_rules! values {
        ($($name:ident, $via:ty, |$held:ident| $value:expr;)*) => {$(
            pub(crate) enum $name {}
            impl Parameter for $name {
                type Via = $via;
                fn value(
                    $held: &<$via as Kind>::Held,
                    name: &'static str,
                    _operands: &mut Operands,
                ) -> Result<Value> {
                    let _ = name;
                    Ok($value)
                }
            }
        )*};
    }
    values! {
        IA, Opt<aclnn::IA>, |held| Value::Ints(held.as_ref().map(|list| list.to_vec()));
        CS, Opt<aclnn::Str>, |held| Value::Text(held.clone());
        DT, i32, |held| Value::Int(i64::from(*held));
        I8, i8, |held| Value::Int(i64::from(*held));
        I32, i32, |held| Value::Int(i64::from(*held));
        Int, i32, |held| Value::Int(i64::from(*held));
        I64, i64, |held| Value::Int(*held);
        U64, u64, |held| Value::Int(i64::try_from(*held).unwrap_or(i64::MAX));
        F64, f64, |held| Value::Float(*held);
        B, bool, |held| Value::Flag(*held);
    }

    pub(crate) enum S {}
    impl Parameter for S {
        type Via = Opt<aclnn::S>;
        fn value(
            held: &Option<std::sync::Arc<crate::tensor::Scalar>>,
            name: &'static str,
            _operands: &mut Operands,
        ) -> Result<Value> {
            let scalar = held.as_ref().map(|scalar| {
                let (dtype, bits) = scalar.bits().ok_or_else(|| {
                    Fail::invalid(format!("{name} has type {}, not a real number's", scalar.dtype().name()))
                })?;
                Ok(Scalar::new(dtype, bits))
            });
            Ok(Value::Scalar(scalar.transpose()?))
        }
    }
}

impl Soc {
    fn of(family: Family) -> Soc {
        match family {
            Family::P310 => Soc::Ascend310P,
            Family::A2 => Soc::A2,
            Family::A3 => Soc::A3,
            Family::A5 => Soc::Ascend950,
        }
    }
}

/// Plans an operator: its own checks, then the operands in the order of the parameters.
pub(crate) fn plan(
    context: &Context,
    entry: &'static Entry,
    values: Vec<(&'static str, Value)>,
    operands: Operands,
) -> Result<Plan> {
    let soc = Soc::of(context.profile.family);
    let args = Args {
        operator: entry.name,
        soc,
        values,
        tolerated: context.tolerated.clone(),
        broken: RefCell::default(),
    };
    let run = (entry.operator)(&args).map_err(|refusal| Fail::new(refusal.status, refusal.message))?;
    for (rule, what) in args.broken.take() {
        world().state().tolerates(rule, &format!("aclnn{}", entry.name), &what);
    }
    let workspace = workspace(entry.name, &operands.0);
    let failed = |fault: Fault| Fail::new(fault.status, fault.message);
    let mut plan = match run {
        Run::Alone(body) => Plan::new(move |launch| body(&Launch(launch)).map_err(failed)),
        Run::Together(party) => {
            let Party { group, rank, size, buffer, agreed, give, take } = party;
            let give = Box::new(move |launch: &aclnn::Run| give(&Launch(launch)).map_err(failed));
            let take = Box::new(move |launch: &aclnn::Run, parcels: &[Parcel]| {
                take(&Launch(launch), parcels).map_err(failed)
            });
            let together = aclnn::Together { group, rank, size, buffer, agreed, give, take };
            Plan::together(entry.name, together)
        }
    };
    for (tensor, access) in &operands.0 {
        // Blocks take more room than the rows that the descriptor speaks of.
        let blocks = (entry.name == "TransMatmulWeight").then(|| tensor.in_blocks());
        let tensor = blocks.as_ref().unwrap_or(tensor);
        plan = match access {
            Access::Read => plan.reads(tensor),
            Access::Write => plan.writes(tensor),
            Access::Update => plan.updates(tensor),
        };
    }
    plan.parameters = operands.1;
    Ok(plan.workspace(workspace))
}

/// Workspace as the vendor's kernels ask for it: a row-major copy of every strided operand, and a constant part of the
/// operators that keep partial results.
fn workspace(name: &str, operands: &[(crate::tensor::Tensor, Access)]) -> usize {
    let copies = operands.iter().filter(|(tensor, _)| !tensor.is_contiguous()).map(|(tensor, _)| {
        let elements = usize::try_from(tensor.numel()).unwrap_or(0);
        (elements * tensor.dtype().bits()).div_ceil(8).next_multiple_of(512)
    });
    let partial = ["Attention", "Matmul", "Moe", "Norm", "Sort", "Topk", "Convolution", "ReduceSum"];
    copies.sum::<usize>() + if partial.iter().any(|part| name.contains(part)) { 16 << 10 } else { 0 }
}

/// The entry of a table, for the symbols beside it.
pub(crate) const fn entry(table: &'static [Entry], name: &str) -> &'static Entry {
    let mut at = 0;
    // Comparison of strings is not yet possible in a constant.
    while !same(table[at].name.as_bytes(), name.as_bytes()) {
        at += 1;
    }
    &table[at]
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// Exports one operator. Parameters get names of their own in C, since the vendor calls some of them `self`.
macro_rules! export {
    ($table:ident $name:ident [$($parameter:ident: $kind:ident,)*]) => {
        crate::op::enrol::export!(@ $table $name [] [$($parameter: $kind,)*] [
            a0 a1 a2 a3 a4 a5 a6 a7 a8 a9 a10 a11 a12 a13 a14 a15 a16 a17 a18 a19 a20 a21 a22 a23 a24 a25 a26 a27 a28
            a29 a30 a31 a32 a33 a34 a35 a36 a37 a38 a39 a40 a41 a42 a43 a44 a45 a46 a47 a48 a49 a50 a51 a52 a53 a54 a55
        ]);
    };
    (@ $table:ident $name:ident [$($done:tt)*] [$parameter:ident: $kind:ident, $($rest:tt)*] [$arg:ident $($more:ident)*]) => {
        crate::op::enrol::export!(@ $table $name [$($done)* ($arg $parameter $kind)] [$($rest)*] [$($more)*]);
    };
    (@ $table:ident $name:ident [$(($arg:ident $parameter:ident $kind:ident))*] [] [$($more:ident)*]) => {
        crate::aclnn::symbols! {
            $name($($arg $parameter: <crate::op::enrol::kind::$kind as crate::op::enrol::Parameter>::Via,)*)
            || {
                use crate::op::enrol::{Parameter, kind};
                vec![$((
                    stringify!($parameter),
                    <<kind::$kind as Parameter>::Via as crate::aclnn::Kind>::show($arg),
                )),*]
            },
            |context: &crate::aclnn::Context| {
                use crate::op::enrol::{Operands, Parameter, kind};
                const ENTRY: &crate::op::Entry = crate::op::enrol::entry($table, stringify!($name));
                let mut operands = Operands::default();
                let values = vec![$({
                    // SAFETY: the caller passed it as what the row says it is.
                    let held = unsafe {
                        <<kind::$kind as Parameter>::Via as crate::aclnn::Kind>::hold($arg, stringify!($parameter))
                    }?;
                    let name = stringify!($parameter);
                    (name, <kind::$kind as Parameter>::value(&held, name, &mut operands)?)
                }),*];
                crate::op::enrol::plan(context, ENTRY, values, operands)
            }
        }
    };
}
pub(crate) use export;
