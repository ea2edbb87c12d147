//! Operators bound to tensors: owned values that can be queued, captured, replayed and printed.

use crate::backend::Backend;
use crate::buffer::Buffer;
use crate::call::SpecRef;
use crate::launch::Launch;
use crate::tensor::Tensor;
use core::fmt;
use portolan_ops::{Access, Contract, Cost, Determinism, OpError, OpName, Operand, Result, TensorSpec};
use smallvec::SmallVec;

pub use crate::call::OpKind;
pub use crate::custom::{CustomKernel, CustomOp, CustomSpec};

pub(crate) mod sealed {
    /// Only operators of this crate may be launched: a foreign one could hide an operand and race.
    pub trait Sealed {}
}

/// One operand of a bound operator.
#[derive(Clone, Copy)]
pub struct Arg<'a> {
    /// Its name in the operator's documentation.
    pub name: &'a str,
    /// Its memory; the spec's offset counts from the buffer's first byte.
    pub buffer: &'a Buffer,
    /// Element type, extents, layout.
    pub spec: &'a TensorSpec,
    /// Read, write or both.
    pub access: Access,
}

/// What a backend is asked about before a launch: the operator and the stream's determinism level.
#[derive(Clone, Copy)]
pub struct OpQuery<'a> {
    /// The operator.
    pub spec: SpecRef<'a>,
    /// The level asked for.
    pub determinism: Determinism,
}

/// A bound operator. Sealed: users' own operators are [`CustomOp`] values.
pub trait Op: sealed::Sealed + Send + Sync + 'static {
    /// Which operator.
    fn kind(&self) -> OpKind;
    /// Its name in messages.
    fn op_name(&self) -> OpName;
    /// The operator as a question to a backend.
    fn query(&self, determinism: Determinism) -> OpQuery<'_>;
    /// Exact operations and bytes.
    fn cost(&self) -> Cost;
    /// Visits every operand.
    fn operands(&self, visit: &mut dyn FnMut(Arg<'_>));
    /// Hands the operator to a backend's method for it.
    fn launch(&self, backend: &dyn Backend, launch: &Launch<'_>) -> Result<()>;
    /// Whether it may be launched at all; asked before it is ordered behind anything.
    fn ready(&self) -> Result<()> {
        Ok(())
    }
    /// Told that the operator was not launched, and why; operators that others wait for pass it on.
    fn refused(&self, error: &OpError) {
        let _ = error;
    }
}

/// A contract that the operator table names: which kind it is and which backend method launches it.
pub trait Dispatch: Contract + sealed::Sealed {
    /// Which operator.
    const KIND: OpKind;
    /// This contract as a query.
    fn spec_ref(&self) -> SpecRef<'_>;
    /// Calls the backend's method.
    fn dispatch(backend: &dyn Backend, launch: &Launch<'_>, op: &Call<Self>) -> Result<()>;
}

/// A contract that can be paired with tensors: those of the operator table, and users' own.
pub trait Bind: Contract {
    /// The pair.
    type Bound: Op;

    /// Pairs it with tensors, in the order of [`Contract::operands`].
    ///
    /// # Errors
    /// As [`Call::bind`].
    fn bind(&self, tensors: &[&Tensor]) -> Result<Self::Bound>;
}

impl<C: Dispatch> Bind for C {
    type Bound = Call<C>;

    fn bind(&self, tensors: &[&Tensor]) -> Result<Call<C>> {
        Call::bind(self.clone(), tensors)
    }
}

/// A contract together with the tensors it speaks of.
#[derive(Clone)]
pub struct Call<C> {
    spec: C,
    buffers: SmallVec<[Buffer; 6]>,
}

impl<C: Dispatch> Call<C> {
    /// Pairs a contract with tensors, in the order of [`Contract::operands`].
    ///
    /// # Errors
    /// `Layout` when a tensor is not the one the contract was made for, `Device` for tensors of two
    /// devices, `Aliasing` when an output overlaps another operand.
    pub fn bind(spec: C, tensors: &[&Tensor]) -> Result<Self> {
        match_tensors(spec.name(), &|visit| spec.operands(visit), tensors)?;
        let call = Self { buffers: tensors.iter().map(|t| t.buffer().clone()).collect(), spec };
        check_operands(&call, call.spec.in_place())?;
        Ok(call)
    }

    /// The same call with a contract that has more operands (or other attributes), the new ones by name.
    pub(crate) fn rebind(&self, spec: C, added: &[(&str, &Tensor)]) -> Result<Self> {
        let mut tensors: SmallVec<[Option<Tensor>; 6]> = SmallVec::new();
        spec.operands(&mut |operand| {
            let new = added.iter().find(|(name, _)| *name == operand.name).map(|(_, t)| (*t).clone());
            tensors.push(new.or_else(|| self.tensor(operand.name)));
        });
        let all: Option<SmallVec<[&Tensor; 6]>> = tensors.iter().map(Option::as_ref).collect();
        match all {
            Some(all) => Self::bind(spec, &all),
            None => Err(OpError::internal(spec.name(), "an operand has no tensor")),
        }
    }

    /// The contract.
    pub fn spec(&self) -> &C {
        &self.spec
    }

    fn find(&self, name: &str) -> Option<(&Buffer, &TensorSpec)> {
        let mut found = None;
        let mut index = 0;
        self.spec.operands(&mut |operand| {
            if operand.name == name {
                found = Some((index, operand.spec));
            }
            index += 1;
        });
        let (index, spec) = found?;
        Some((self.buffers.get(index)?, spec))
    }

    /// The tensor bound to operand `name`, if the operator has it.
    pub fn tensor(&self, name: &str) -> Option<Tensor> {
        let (buffer, spec) = self.find(name)?;
        Tensor::new(buffer.clone(), *spec).ok()
    }

    /// The tensor bound to operand `name`.
    ///
    /// # Errors
    /// `Internal` when the operator has no such operand: a mistake in a backend or a composition.
    pub fn require(&self, name: &'static str) -> Result<Tensor> {
        self.tensor(name).ok_or_else(|| OpError::internal(self.spec.name(), format!("no operand {name}")))
    }

    /// Device address of the first byte of operand `name`'s buffer (the spec's offset is not added).
    pub fn address(&self, name: &str) -> Option<usize> {
        self.find(name).map(|(buffer, _)| buffer.address())
    }
}

impl<C: Dispatch> sealed::Sealed for Call<C> {}

impl<C: Dispatch> Op for Call<C> {
    fn kind(&self) -> OpKind {
        C::KIND
    }
    fn op_name(&self) -> OpName {
        self.spec.name().into()
    }
    fn query(&self, determinism: Determinism) -> OpQuery<'_> {
        OpQuery { spec: self.spec.spec_ref(), determinism }
    }
    fn cost(&self) -> Cost {
        self.spec.cost()
    }
    fn operands(&self, visit: &mut dyn FnMut(Arg<'_>)) {
        let mut buffers = self.buffers.iter();
        self.spec.operands(&mut |operand| {
            if let Some(buffer) = buffers.next() {
                visit(Arg { name: operand.name, buffer, spec: operand.spec, access: operand.access });
            }
        });
    }
    fn launch(&self, backend: &dyn Backend, launch: &Launch<'_>) -> Result<()> {
        C::dispatch(backend, launch, self)
    }
}

impl<C: fmt::Debug> fmt::Debug for Call<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spec.fmt(f)
    }
}

/// Receives the operands of a contract.
pub(crate) type Visit<'v, 's> = &'v mut dyn FnMut(Operand<'s>);

/// Fails with `Layout` unless the tensors are those a contract was made for, in the order of its operands.
pub(crate) fn match_tensors<'s>(
    op: &'static str,
    operands: &dyn Fn(Visit<'_, 's>),
    tensors: &[&Tensor],
) -> Result<()> {
    let mut mismatch = None;
    let mut count = 0;
    operands(&mut |operand| {
        let what = match tensors.get(count) {
            Some(tensor) if tensor.spec() == operand.spec => None,
            Some(tensor) => {
                Some(format!("the tensor is {}, the operator was made for {}", tensor.spec(), operand.spec))
            }
            None => Some("no tensor was given".into()),
        };
        if let (Some(what), None) = (what, &mismatch) {
            mismatch = Some(OpError::layout(op, operand.name, what));
        }
        count += 1;
    });
    if let Some(error) = mismatch {
        return Err(error);
    }
    if count != tensors.len() {
        let what = format!("{} tensors were given for {count} operands", tensors.len());
        return Err(OpError::layout(op, "operands", what));
    }
    Ok(())
}

/// The checks that need memory: one device, and no output that overlaps another operand.
pub(crate) fn check_operands(op: &dyn Op, in_place: &[(&str, &str)]) -> Result<()> {
    struct Seen {
        name: String,
        buffer: Buffer,
        spec: TensorSpec,
        access: Access,
    }
    // Two passes: the common case (distinct buffers) needs no copies and no names.
    let mut keys: SmallVec<[(usize, bool); 12]> = SmallVec::new();
    let mut foreign = None;
    let mut first: Option<Buffer> = None;
    op.operands(&mut |arg| {
        match &first {
            None => first = Some(arg.buffer.clone()),
            Some(first) if std::sync::Arc::ptr_eq(first.device(), arg.buffer.device()) => {}
            Some(first) => {
                foreign = Some((first.device().info.id.clone(), arg.buffer.device().info.id.clone()))
            }
        }
        keys.push((arg.buffer.key(), arg.access.writes()));
    });
    if let Some((lhs, rhs)) = foreign {
        return Err(OpError::Device { op: op.op_name(), lhs, rhs });
    }
    let shared = keys.iter().enumerate().any(|(i, a)| keys[..i].iter().any(|b| a.0 == b.0 && (a.1 || b.1)));
    if !shared {
        return Ok(());
    }
    let mut seen: SmallVec<[Seen; 12]> = SmallVec::new();
    op.operands(&mut |arg| {
        seen.push(Seen {
            name: arg.name.into(),
            buffer: arg.buffer.clone(),
            spec: *arg.spec,
            access: arg.access,
        });
    });
    for (i, a) in seen.iter().enumerate() {
        for b in &seen[..i] {
            if !(a.access.writes() || b.access.writes()) || !a.buffer.same(&b.buffer) {
                continue;
            }
            let (output, other) = if a.access.writes() { (a, b) } else { (b, a) };
            let allowed = in_place.iter().any(|&(o, x)| {
                (o == output.name && x == other.name) || (o == other.name && x == output.name)
            });
            if allowed && output.spec == other.spec {
                continue;
            }
            if overlaps(&output.spec, &other.spec) {
                return Err(OpError::Aliasing {
                    op: op.op_name(),
                    a: output.name.clone().into(),
                    b: other.name.clone().into(),
                });
            }
        }
    }
    Ok(())
}

/// Whether two views of one buffer share a byte: exact for views with equal strides, by byte interval
/// otherwise (which may say yes where elements interleave).
fn overlaps(a: &TensorSpec, b: &TensorSpec) -> bool {
    if a.numel() == 0 || b.numel() == 0 {
        return false;
    }
    let ((a0, a1), (b0, b1)) = (a.byte_range(), b.byte_range());
    if a1 <= b0 || b1 <= a0 {
        return false;
    }
    if a.dtype().bits() != b.dtype().bits() || a.strides() != b.strides() {
        return true;
    }
    boxes_intersect(a, b).unwrap_or(true)
}

/// Views with equal strides are boxes in one grid when the strides nest; `None` when they do not.
fn boxes_intersect(a: &TensorSpec, b: &TensorSpec) -> Option<bool> {
    let mut axes: SmallVec<[(usize, usize, usize); 8]> = (0..a.rank())
        .map(|i| (a.strides()[i], a.dims()[i], b.dims()[i]))
        .filter(|x| x.1 > 1 || x.2 > 1)
        .collect();
    axes.sort_unstable_by_key(|axis| std::cmp::Reverse(axis.0));
    let (mut a_left, mut b_left) = (a.layout().offset(), b.layout().offset());
    let mut extent = usize::MAX;
    let mut disjoint = false;
    for &(stride, a_len, b_len) in &axes {
        if stride == 0 {
            return None;
        }
        let (a_at, b_at) = (a_left / stride, b_left / stride);
        (a_left, b_left) = (a_left % stride, b_left % stride);
        // A box that crosses the next outer stride is no box in this grid.
        let limit = extent / stride;
        if a_at.checked_add(a_len)? > limit || b_at.checked_add(b_len)? > limit {
            return None;
        }
        disjoint |= a_at + a_len <= b_at || b_at + b_len <= a_at;
        extent = stride;
    }
    Some(!(disjoint || a_left != b_left))
}
