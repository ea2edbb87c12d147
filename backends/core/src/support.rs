//! What a device supports, operator by operator and type by type: the answers of [`Backend::support`] to every
//! case of every operator. There is no second list to keep.
//!
//! [`Backend::support`]: crate::Backend::support

use crate::backend::Support;
use crate::call::{CollectiveDispatch, SpecRef};
use crate::device::Device;
use crate::op::{Dispatch, OpKind, OpQuery};
use portolan_ops::comm::CollectiveCases;
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

impl OpSupport {
    fn none(kind: OpKind) -> Self {
        let by_dtype = DType::ALL.iter().map(|&dtype| (dtype, SupportCount::default())).collect();
        Self { kind, total: SupportCount::default(), by_dtype }
    }

    /// Adds a case with operands of these types.
    fn add(&mut self, support: &Support, dtypes: &[DType]) {
        self.total.add(support);
        for (dtype, count) in &mut self.by_dtype {
            if dtypes.contains(dtype) {
                count.add(support);
            }
        }
    }
}

/// Of the fused operators in a table, how many have a native kernel for some case with an operand of `dtype`, and how many
/// fused operators there are.
pub fn native_fused(table: &[OpSupport], dtype: DType) -> (usize, usize) {
    let fused = || table.iter().filter(|op| op.kind.is_fused());
    let native = |op: &&OpSupport| op.by_dtype.iter().any(|(of, count)| *of == dtype && count.native > 0);
    (fused().filter(native).count(), fused().count())
}

fn survey<C: Cases + Dispatch>(device: &Device, level: Determinism) -> Result<OpSupport> {
    let mut row = OpSupport::none(C::KIND);
    for case in C::cases()? {
        let support = device.support(&OpQuery { spec: case.contract.spec_ref(), determinism: level });
        let mut dtypes = Vec::new();
        case.contract.operands(&mut |operand| dtypes.push(operand.spec.dtype()));
        row.add(&support, &dtypes);
    }
    Ok(row)
}

/// Ranks of the groups whose cases are asked about: no backend's kernels depend on their number.
const WORLD: u32 = 2;

fn survey_collective<C: CollectiveCases + CollectiveDispatch>(
    device: &Device,
    level: Determinism,
) -> Result<OpSupport> {
    let mut row = OpSupport::none(OpKind::Collective(C::KIND));
    for case in C::cases(WORLD)? {
        let Some(part) = case.parts.first() else { continue };
        let query = OpQuery { spec: SpecRef::Collective(part.spec_ref()), determinism: level };
        // A rank may only give or only get.
        let mut dtypes = Vec::new();
        case.parts.iter().for_each(|part| part.operands(&mut |operand| dtypes.push(operand.spec.dtype())));
        row.add(&device.support(&query), &dtypes);
    }
    Ok(row)
}

macro_rules! table {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        fn operators(device: &Device, level: Determinism) -> Result<Vec<OpSupport>> {
            Ok(vec![
                $( survey::<$spec>(device, level)?, )*
                $( survey::<$fspec>(device, level)?, )*
            ])
        }
    };
}
crate::for_each_op!(table);

macro_rules! collective_table {
    ($( $(#[$doc:meta])* $kind:ident, $spec:ty, $method:ident; )*) => {
        fn collectives(device: &Device, level: Determinism) -> Result<Vec<OpSupport>> {
            Ok(vec![$( survey_collective::<$spec>(device, level)?, )*])
        }
    };
}
crate::for_each_collective!(collective_table);

impl Device {
    /// How this device runs every operator, at a determinism level: the kernel core, fused operators, and those over
    /// ranks. Runs nothing.
    ///
    /// # Errors
    /// When an operator's own list of cases is not legal.
    pub fn support_table(&self, level: Determinism) -> Result<Vec<OpSupport>> {
        let mut table = operators(self, level)?;
        table.extend(collectives(self, level)?);
        Ok(table)
    }
}
