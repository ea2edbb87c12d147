//! A user's own operator: a contract with a mandatory reference, and one kernel per backend.

use crate::backend::Backend;
use crate::call::SpecRef;
use crate::launch::Launch;
use crate::op::{Arg, Bind, Op, OpKind, OpQuery, check_operands, sealed};
use crate::tensor::Tensor;
use core::fmt;
use portolan_ops::{
    Access, Contract, Cost, Determinism, OpError, OpName, Operand, Result, TensorSpec, Tolerance,
};
use std::any::Any;
use std::sync::Arc;

/// A kernel of a custom operator; each backend names the type it downcasts to.
pub type CustomKernel = Arc<dyn Any + Send + Sync>;

/// The oracle of a custom operator: read operands in f64, logical order, to written operands.
pub type CustomReference = Arc<dyn Fn(&[&[f64]]) -> Vec<Vec<f64>> + Send + Sync>;

/// The pure half of an operator this library does not know: operands without memory, cost, oracle, tolerance, and
/// the kernels it has.
///
/// Being a [`Contract`], it can be run as a case of conformance on any device; [`CustomOp::bind`] pairs it with
/// tensors. Check what only your operator knows (that extents agree, say) where you make it.
#[derive(Clone)]
pub struct CustomSpec {
    name: &'static str,
    operands: Vec<(&'static str, TensorSpec, Access)>,
    cost: Cost,
    reference: CustomReference,
    tolerance: Tolerance,
    kernels: Vec<(&'static str, CustomKernel)>,
}

impl CustomSpec {
    /// An operator over operands of these names and specs, with its oracle. Its cost is that of streaming the
    /// operands, and its kernels are exact, until said otherwise.
    ///
    /// # Errors
    /// `Attribute` without a written operand or with two of one name, `Layout` for a written operand that overlaps
    /// itself.
    pub fn new(
        name: &'static str,
        operands: Vec<(&'static str, TensorSpec, Access)>,
        reference: CustomReference,
    ) -> Result<Self> {
        for (i, (arg, _, _)) in operands.iter().enumerate() {
            if operands[..i].iter().any(|(other, _, _)| other == arg) {
                return Err(OpError::attribute(name, *arg, "names two operands; give each its own name"));
            }
        }
        Self::checked(name, operands, reference)
    }

    fn checked(
        name: &'static str,
        operands: Vec<(&'static str, TensorSpec, Access)>,
        reference: CustomReference,
    ) -> Result<Self> {
        if !operands.iter().any(|(_, _, access)| access.writes()) {
            let what = "have no output; mark one Write or ReadWrite";
            return Err(OpError::attribute(name, "operands", what));
        }
        for (arg, spec, access) in &operands {
            if access.writes() && spec.layout().overlaps_itself(spec.shape()) {
                let what =
                    "repeats elements, so writes to it would collide; write to a tensor without broadcasting";
                return Err(OpError::layout(name, *arg, what));
            }
        }
        let mut spec = Self {
            name,
            operands,
            cost: Cost::default(),
            reference,
            tolerance: Tolerance::EXACT,
            kernels: Vec::new(),
        };
        spec.cost = portolan_ops::streaming_cost(&spec, 0);
        Ok(spec)
    }

    /// With this cost.
    pub fn with_cost(mut self, cost: Cost) -> Self {
        self.cost = cost;
        self
    }

    /// With kernels that may be so far from the oracle.
    pub fn with_tolerance(mut self, tolerance: Tolerance) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// Adds the kernel for a backend, in the type that backend documents.
    pub fn with_kernel(mut self, backend: &'static str, kernel: CustomKernel) -> Self {
        self.kernels.retain(|(name, _)| *name != backend);
        self.kernels.push((backend, kernel));
        self
    }

    /// The kernel for a backend.
    pub fn kernel(&self, backend: &str) -> Option<&CustomKernel> {
        self.kernels.iter().find(|(name, _)| *name == backend).map(|(_, kernel)| kernel)
    }
}

impl Contract for CustomSpec {
    fn name(&self) -> &'static str {
        self.name
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        for (name, spec, access) in &self.operands {
            visit(Operand { name, spec, access: *access });
        }
    }

    fn cost(&self) -> Cost {
        self.cost
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        (self.reference)(inputs)
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        vec![self.tolerance; self.operands.iter().filter(|(_, _, access)| access.writes()).count()]
    }
}

impl Bind for CustomSpec {
    type Bound = CustomOp;

    fn bind(&self, tensors: &[&Tensor]) -> Result<CustomOp> {
        CustomOp::bind(self.clone(), tensors)
    }
}

impl fmt::Debug for CustomSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} over {:?}", self.name, self.operands)
    }
}

/// An operator this library does not know, bound to tensors.
///
/// Every operand is visible to the library, so order, overlap and lifetime are handled as for any other.
#[derive(Clone)]
pub struct CustomOp {
    spec: CustomSpec,
    tensors: Vec<(Tensor, Access)>,
}

/// Names of operands that were given none.
const NAMES: [&str; 8] =
    ["operand 0", "operand 1", "operand 2", "operand 3", "operand 4", "operand 5", "operand 6", "operand 7"];

impl CustomOp {
    /// An operator over these operands, with its oracle and the tolerance to hold kernels to. [`CustomOp::bind`] is
    /// the form for operators that conformance runs, and for operands with names.
    ///
    /// # Errors
    /// `Attribute` without a written operand, `Layout` for a written operand that overlaps itself, `Device`,
    /// `Aliasing`.
    pub fn new(
        name: &'static str,
        operands: Vec<(Tensor, Access)>,
        cost: Cost,
        tolerance: Tolerance,
        reference: CustomReference,
    ) -> Result<Self> {
        let names = NAMES.into_iter().chain(std::iter::repeat("a later operand"));
        let named = names.zip(&operands).map(|(name, (tensor, access))| (name, *tensor.spec(), *access));
        let spec = CustomSpec::checked(name, named.collect(), reference)?;
        let tensors: Vec<&Tensor> = operands.iter().map(|(tensor, _)| tensor).collect();
        Self::bind(spec.with_cost(cost).with_tolerance(tolerance), &tensors)
    }

    /// Pairs a contract with tensors, in the order of its operands.
    ///
    /// # Errors
    /// `Layout` when a tensor is not the one the contract was made for, `Device` for tensors of two devices,
    /// `Aliasing` when an output overlaps another operand.
    pub fn bind(spec: CustomSpec, tensors: &[&Tensor]) -> Result<Self> {
        if tensors.len() != spec.operands.len() {
            let what = format!("{} tensors were given for {} operands", tensors.len(), spec.operands.len());
            return Err(OpError::layout(spec.name, "operands", what));
        }
        let mut bound = Vec::with_capacity(tensors.len());
        for (tensor, (arg, wanted, access)) in tensors.iter().zip(&spec.operands) {
            if tensor.spec() != wanted {
                let what = format!("the tensor is {}, the operator was made for {wanted}", tensor.spec());
                return Err(OpError::layout(spec.name, *arg, what));
            }
            bound.push(((*tensor).clone(), *access));
        }
        let op = Self { spec, tensors: bound };
        check_operands(&op, &[])?;
        Ok(op)
    }

    /// Adds the kernel for a backend, in the type that backend documents.
    pub fn with_kernel(mut self, backend: &'static str, kernel: CustomKernel) -> Self {
        self.spec = self.spec.with_kernel(backend, kernel);
        self
    }

    /// The kernel for a backend.
    pub fn kernel(&self, backend: &str) -> Option<&CustomKernel> {
        self.spec.kernel(backend)
    }

    /// The contract.
    pub fn spec(&self) -> &CustomSpec {
        &self.spec
    }

    /// The operands, in the order given.
    pub fn tensors(&self) -> &[(Tensor, Access)] {
        &self.tensors
    }
}

impl sealed::Sealed for CustomOp {}

impl Op for CustomOp {
    fn kind(&self) -> OpKind {
        OpKind::Custom
    }
    fn op_name(&self) -> OpName {
        self.spec.name.into()
    }
    fn query(&self, determinism: Determinism) -> OpQuery<'_> {
        OpQuery { spec: SpecRef::Custom(self), determinism }
    }
    fn cost(&self) -> Cost {
        self.spec.cost
    }
    fn operands(&self, visit: &mut dyn FnMut(Arg<'_>)) {
        for ((tensor, access), (name, _, _)) in self.tensors.iter().zip(&self.spec.operands) {
            visit(Arg { name, buffer: tensor.buffer(), spec: tensor.spec(), access: *access });
        }
    }
    fn launch(&self, backend: &dyn Backend, launch: &Launch<'_>) -> Result<()> {
        backend.custom(launch, self)
    }
}

impl fmt::Debug for CustomOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spec.fmt(f)
    }
}
