//! Results whose size depends on data: as much as there is goes to the front of an output that has room for all, and
//! `aclGetViewShape` tells how much that was once the stream has passed.

use super::{Args, Refusal, Run, run};
use crate::view::{Dtype, Fault, broadcast_shape, volume};

operators! {
    Nonzero(self: T, out: O) = nonzero;
    MaskedSelect(self: T, mask: T, out: O) = masked_select;
}

/// The places of elements that are not 0, a row each.
fn nonzero(args: &Args) -> Result<Run, Refusal> {
    let (x, out) = (args.tensor("self")?.clone(), args.tensor("out")?.clone());
    args.one_of("out", &out, &[Dtype::I64])?;
    args.shaped("out", &out, &[x.numel(), x.rank()])?;
    run(move |memory| {
        let mut rows = Vec::new();
        let bits = x.read_bits(memory)?;
        let mut count = 0;
        for at in (0..bits.len()).filter(|&at| x.dtype.decode(bits[at]) != 0.0) {
            count += 1;
            rows.extend((0..x.rank()).map(|axis| (at / volume(&x.shape[axis + 1..]) % x.shape[axis]) as i64));
        }
        memory.found_shape(out.address, &[count, x.rank()]);
        out.narrow(0, 0, count, 1).write_i64(memory, &rows)
    })
}

/// Elements where a mask is set, in order.
fn masked_select(args: &Args) -> Result<Run, Refusal> {
    let (x, mask, out) = (args.tensor("self")?, args.tensor("mask")?, args.tensor("out")?.clone());
    args.one_of("mask", mask, &[Dtype::Bool, Dtype::U8])?;
    args.one_of("out", &out, &[x.dtype])?;
    let shape = broadcast_shape(&x.shape, &mask.shape)
        .ok_or_else(|| args.invalid("mask", format!("{:?} does not go with {:?}", mask.shape, x.shape)))?;
    args.ranked("out", &out, 1, 1)?;
    let (x, mask) = (args.spread("self", x, &shape)?, args.spread("mask", mask, &shape)?);
    let operator = args.operator;
    run(move |memory| {
        let (bits, mask) = (x.read_bits(memory)?, mask.read_i64(memory)?);
        let kept: Vec<u64> =
            bits.into_iter().zip(mask).filter(|(_, set)| *set != 0).map(|(bits, _)| bits).collect();
        if kept.len() > out.shape[0] {
            let (have, room) = (kept.len(), out.shape[0]);
            return Err(Fault::exception(format!(
                "aclnn{operator}: {have} elements for an output of {room}"
            )));
        }
        memory.found_shape(out.address, &[kept.len()]);
        out.narrow(0, 0, kept.len(), 1).write_bits(memory, &kept)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, LAYOUTS};
    use super::*;

    #[test]
    fn places_are_rows_of_indices_in_order() {
        for layout in LAYOUTS {
            let case = Case::new(Soc::A2, "Nonzero").laid(layout);
            let case = case.input("self", Dtype::F32, &[2, 3], &[0.0, -1.0, 0.0, f64::NAN, 0.0, 5.0]);
            let case = case.output("out", Dtype::I64, &[6, 2]).done();
            assert_eq!(case.read("out")[..6], [0.0, 1.0, 1.0, 0.0, 1.0, 2.0], "{layout:?}");
        }
        let empty = Case::new(Soc::A2, "Nonzero").input("self", Dtype::I32, &[2], &[0.0, 0.0]);
        empty.output("out", Dtype::I64, &[2, 1]).done();
        let small = Case::new(Soc::A2, "Nonzero").input("self", Dtype::I32, &[2], &[0.0, 0.0]);
        assert!(small.output("out", Dtype::I64, &[1, 1]).refused().message.contains("wanted: [2, 1]"));
    }

    #[test]
    fn a_mask_picks_elements_in_order_and_spreads() {
        let case =
            Case::new(Soc::A2, "MaskedSelect").input("self", Dtype::F16, &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
        let case = case.input("mask", Dtype::Bool, &[2], &[0.0, 1.0]).output("out", Dtype::F16, &[4]).done();
        assert_eq!(case.read("out")[..2], [2.0, 4.0]);
        let case = Case::new(Soc::A2, "MaskedSelect").input("self", Dtype::F16, &[2], &[1.0, 2.0]);
        let case = case.input("mask", Dtype::Bool, &[2], &[1.0, 1.0]).output("out", Dtype::F16, &[1]);
        assert!(matches!(case.run(), Err(super::super::testing::Stop::Failed(_))));
    }
}
