//! Arguments beside the list of cases: any at all, made of bytes, and the smallest legal ones of an element type.
//!
//! Every operator of the table has both, or the suite does not compile: fuzzing reaches what cases do not think of,
//! and `support()` is asked about types and layouts that no case has.

mod attention;
mod choices;
mod honesty;
mod kernel;
mod moe;
mod quant;
mod rows;
mod ssm;

use crate::operators::Finding;
use crate::rig::Rig;
use choices::Choices;
use portolan_core::{Dispatch, OpKind, SpecRef};
use portolan_ops::{Access, Contract, DType, Result};

/// References are plain loops: operands of more elements than this, or costs of more than 16 times as many operations,
/// are accepted but not computed.
const SMALL: u128 = 2048;

/// Where an operator's arguments come from when they do not come from its cases.
pub(crate) trait Arguments: Contract {
    /// Any arguments, legal or not: the error is the operator's own refusal.
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self>;

    /// The smallest legal call with an operand of this type; an error where there is none.
    fn smallest(dtype: DType) -> Result<Self>;
}

/// Takes bytes as an operator and its arguments: the first chooses the operator, by its place in [`OpKind::ALL`].
///
/// What is accepted has a cost, tolerances, and, where it is small, a reference of the right lengths. The operator
/// is given when its arguments were accepted.
///
/// # Panics
/// When the operator's own promises do not hold: what a fuzzer looks for.
pub fn check_arguments(bytes: &[u8]) -> Option<OpKind> {
    let (first, rest) = bytes.split_first()?;
    let kind = OpKind::ALL[usize::from(*first) % OpKind::ALL.len()];
    match accept_kind(kind, &mut Choices::new(rest)) {
        Ok(()) => Some(kind),
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() < 800 && !text.contains('\n'), "{text}");
            None
        }
    }
}

/// Elements of all operands; an empty extent counts as one, since loops over the others run all the same.
fn elements<C: Contract>(op: &C) -> u128 {
    let mut elements = 0u128;
    op.operands(&mut |operand| {
        let extents = operand.spec.dims().iter().map(|&extent| extent.max(1) as u128);
        elements = elements.saturating_add(extents.fold(1, u128::saturating_mul));
    });
    elements
}

/// Whether plain loops compute it in no time.
fn is_small<C: Contract>(op: &C) -> bool {
    elements(op) <= SMALL && u128::from(op.cost().flops) <= 16 * SMALL
}

/// Costs, tolerates and, where it is small, computes an accepted operator.
fn accept<C: Arguments>(from: &mut Choices<'_>) -> Result<()> {
    let op = C::arbitrary(from)?;
    // Any numbers where there are floats; zeros are legal indices, lengths and codes.
    let reals: Vec<f64> = (0..5).map(|_| from.real()).collect();
    let (mut inputs, mut outputs, mut packed) = (Vec::new(), Vec::new(), false);
    op.operands(&mut |operand| {
        packed |= operand.name.ends_with("packed");
        if operand.access.reads() {
            inputs.push((operand.spec.numel(), operand.spec.dtype().is_float()));
        }
        if operand.access != Access::Read {
            outputs.push(operand.spec.numel());
        }
    });
    // A backend's own form of a weight is known to that backend alone: there is no reference then.
    // And an index of nothing, of no experts say, is a fault in the data, of which references know nothing.
    let empty = inputs.iter().map(|(numel, _)| numel).chain(&outputs).any(|&numel| numel == 0);
    let indices = inputs.iter().any(|(numel, float)| *numel > 0 && !float);
    if packed || empty && indices || !is_small(&op) {
        return Ok(());
    }
    assert_eq!(op.tolerance().len(), outputs.len(), "{op:?}");
    let drawn = |&(numel, float): &(usize, bool)| match float {
        true => reals.iter().copied().cycle().take(numel).collect(),
        false => vec![0.0; numel],
    };
    let data: Vec<Vec<f64>> = inputs.iter().map(drawn).collect();
    let data: Vec<&[f64]> = data.iter().map(Vec::as_slice).collect();
    let results: Vec<usize> = op.reference(&data).iter().map(Vec::len).collect();
    assert_eq!(results, outputs, "{op:?}");
    Ok(())
}

fn ask<C: Arguments + Dispatch>(dtype: DType, ask: impl Fn(SpecRef<'_>) -> bool) -> Option<bool> {
    Some(ask(C::smallest(dtype).ok()?.spec_ref()))
}

macro_rules! by_kind {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        fn accept_kind(kind: OpKind, from: &mut Choices<'_>) -> Result<()> {
            match kind {
                $( OpKind::$kind => accept::<$spec>(from), )*
                $( OpKind::$fkind => accept::<$fspec>(from), )*
                _ => Ok(()),
            }
        }

        /// Whether what the device says of any arguments of an operator is what happens.
        pub(crate) fn honest_kind(kind: OpKind, rig: &Rig, every: usize, seed: u64) -> Result<Finding> {
            match kind {
                $( OpKind::$kind => honesty::honest::<$spec>(rig, every, seed), )*
                $( OpKind::$fkind => honesty::honest::<$fspec>(rig, every, seed), )*
                _ => Ok(Ok(false)),
            }
        }

        /// What `about` says of the smallest call of an operator with a type; `None` where there is no such call.
        pub(crate) fn probe(kind: OpKind, dtype: DType, about: impl Fn(SpecRef<'_>) -> bool) -> Option<bool> {
            match kind {
                $( OpKind::$kind => ask::<$spec>(dtype, about), )*
                $( OpKind::$fkind => ask::<$fspec>(dtype, about), )*
                _ => None,
            }
        }
    };
}
portolan_core::for_each_op!(by_kind);
