//! A user's own operator: operands, a mandatory reference, and one kernel per backend.

use crate::backend::Backend;
use crate::call::SpecRef;
use crate::launch::Launch;
use crate::op::{Arg, Op, OpKind, OpQuery, check_operands, sealed};
use crate::tensor::Tensor;
use core::fmt;
use portolan_ops::{Access, Cost, Determinism, OpError, OpName, Result, Tolerance};
use std::any::Any;
use std::sync::Arc;

/// A kernel of a custom operator; each backend names the type it downcasts to.
pub type CustomKernel = Arc<dyn Any + Send + Sync>;

/// The oracle of a custom operator: read operands in f64, logical order, to written operands.
pub type CustomReference = Arc<dyn Fn(&[&[f64]]) -> Vec<Vec<f64>> + Send + Sync>;

/// An operator this library does not know.
///
/// Every operand is visible to the library, so order, overlap and lifetime are handled as for any other.
#[derive(Clone)]
pub struct CustomOp {
    name: Arc<str>,
    operands: Vec<(Tensor, Access)>,
    cost: Cost,
    reference: CustomReference,
    tolerance: Tolerance,
    kernels: Vec<(&'static str, CustomKernel)>,
}

impl CustomOp {
    /// An operator over these operands, with its oracle and the tolerance to hold kernels to.
    ///
    /// # Errors
    /// `Attribute` without a written operand, `Device`, `Aliasing`.
    pub fn new(
        name: &str,
        operands: Vec<(Tensor, Access)>,
        cost: Cost,
        tolerance: Tolerance,
        reference: CustomReference,
    ) -> Result<Self> {
        if !operands.iter().any(|(_, access)| access.writes()) {
            return Err(OpError::attribute(
                name.to_owned(),
                "operands",
                "have no output; mark one Write or ReadWrite",
            ));
        }
        let folded = |(tensor, access): &(Tensor, Access)| {
            access.writes() && tensor.spec().layout().overlaps_itself(tensor.shape())
        };
        if let Some(at) = operands.iter().position(folded) {
            let what =
                "repeats elements, so writes to it would collide; write to a tensor without broadcasting";
            return Err(OpError::layout(name.to_owned(), format!("operand {at}"), what));
        }
        let op = Self { name: name.into(), operands, cost, reference, tolerance, kernels: Vec::new() };
        check_operands(&op, &[])?;
        Ok(op)
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

    /// The operands, in the order given.
    pub fn tensors(&self) -> &[(Tensor, Access)] {
        &self.operands
    }

    /// The oracle.
    pub fn reference(&self) -> &CustomReference {
        &self.reference
    }

    /// How far a kernel may be from the oracle.
    pub fn tolerance(&self) -> Tolerance {
        self.tolerance
    }
}

impl sealed::Sealed for CustomOp {}

impl Op for CustomOp {
    fn kind(&self) -> OpKind {
        OpKind::Custom
    }
    fn op_name(&self) -> OpName {
        self.name.to_string().into()
    }
    fn query(&self, determinism: Determinism) -> OpQuery<'_> {
        OpQuery { spec: SpecRef::Custom(self), determinism }
    }
    fn cost(&self) -> Cost {
        self.cost
    }
    fn operands(&self, visit: &mut dyn FnMut(Arg<'_>)) {
        const NAMES: [&str; 8] = [
            "operand 0",
            "operand 1",
            "operand 2",
            "operand 3",
            "operand 4",
            "operand 5",
            "operand 6",
            "operand 7",
        ];
        for (i, (tensor, access)) in self.operands.iter().enumerate() {
            let name = NAMES.get(i).copied().unwrap_or("a later operand");
            visit(Arg { name, buffer: tensor.buffer(), spec: tensor.spec(), access: *access });
        }
    }
    fn launch(&self, backend: &dyn Backend, launch: &Launch<'_>) -> Result<()> {
        backend.custom(launch, self)
    }
}

impl fmt::Debug for CustomOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} over {} operands", self.name, self.operands.len())
    }
}
