//! What a device supports, operator by operator and type by type: the answers of [`Backend::support`] to every
//! case of every operator. There is no second list to keep.
//!
//! [`Backend::support`]: crate::Backend::support

use crate::backend::Support;
use crate::device::Device;
use crate::op::{Dispatch, OpKind, OpQuery};
use portolan_ops::{Cases, DType, Determinism, Result};

/// How a device runs the cases of one operator that have an operand of one element type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SupportCount {
    /// Cases run by a native kernel.
    pub native: usize,
    /// Cases composed from other operators.
    pub composed: usize,
    /// Cases refused.
    pub refused: usize,
}

impl SupportCount {
    fn add(&mut self, support: &Support) {
        match support {
            Support::Native => self.native += 1,
            Support::Composed(_) => self.composed += 1,
            Support::No(_) => self.refused += 1,
        }
    }

    /// Whether there is no such case.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How a device runs one operator.
#[derive(Clone, Debug)]
pub struct OpSupport {
    /// The operator.
    pub kind: OpKind,
    /// Over all its cases.
    pub total: SupportCount,
    /// By element type, in the order of [`DType::ALL`]. A case counts for the type of each of its operands.
    pub by_dtype: Vec<(DType, SupportCount)>,
}

fn survey<C: Cases + Dispatch>(device: &Device, level: Determinism) -> Result<OpSupport> {
    let mut total = SupportCount::default();
    let mut by_dtype: Vec<_> = DType::ALL.iter().map(|&dtype| (dtype, SupportCount::default())).collect();
    for case in C::cases()? {
        let support = device.support(&OpQuery { spec: case.contract.spec_ref(), determinism: level });
        total.add(&support);
        let mut dtypes = Vec::new();
        case.contract.operands(&mut |operand| dtypes.push(operand.spec.dtype()));
        for (dtype, count) in &mut by_dtype {
            if dtypes.contains(dtype) {
                count.add(&support);
            }
        }
    }
    Ok(OpSupport { kind: C::KIND, total, by_dtype })
}

macro_rules! table {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        impl Device {
            /// How this device runs every operator, kernel core first, at a determinism level. Runs nothing.
            ///
            /// # Errors
            /// When an operator's own list of cases is not legal.
            pub fn support_table(&self, level: Determinism) -> Result<Vec<OpSupport>> {
                Ok(vec![
                    $( survey::<$spec>(self, level)?, )*
                    $( survey::<$fspec>(self, level)?, )*
                ])
            }
        }
    };
}
crate::for_each_op!(table);
