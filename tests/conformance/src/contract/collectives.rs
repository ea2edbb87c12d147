//! Operators over ranks against their oracles: groups of 1, 2, 3, 4 and 8 ranks, with guard bands around every operand.

use super::ranks::{PATIENCE, Peer, on_ranks};
use crate::drawn::{BAND, GUARD, download, seed};
use crate::rig::{Check, Rig, Stop, ensure, ensure_eq};
use portolan_core::{CollectiveCall, CollectiveDispatch, HostBuffer, Op, OpKind, Support, Tensor};
use portolan_ops::comm::{
    AllGatherSpec, AllReduceSpec, AllToAllSpec, BarrierSpec, BroadcastSpec, Collective, CollectiveCases,
    ExchangeSpec, ExpertParallelFfnSpec, GroupCase, ReduceScatterSpec, ReduceToSpec,
};
use portolan_ops::{Access, DType, Determinism, HostTensor, OpError, Shape, TensorSpec};

/// Group sizes, and every how many cases are run: small groups have them all.
const WORLDS: [(u32, usize); 5] = [(1, 1), (2, 1), (3, 1), (4, 5), (8, 7)];

pub(crate) fn support_says_whether_groups_can_be_joined(rig: &Rig) -> Check {
    let joins = rig.backend.new_id().is_ok();
    for row in rig.device.support_table(Determinism::RunToRun)? {
        if let OpKind::Collective(kind) = row.kind {
            let some = row.total.native + row.total.composed > 0;
            ensure!(some || row.total.refused > 0, "{kind} has no case");
            ensure_eq!(some, joins, "whether some {kind} is supported, and whether there are groups");
        }
    }
    Ok(())
}

pub(crate) fn all_reduce(rig: &Rig) -> Check {
    agrees::<AllReduceSpec>(rig)
}
pub(crate) fn reduce_to(rig: &Rig) -> Check {
    agrees::<ReduceToSpec>(rig)
}
pub(crate) fn reduce_scatter(rig: &Rig) -> Check {
    agrees::<ReduceScatterSpec>(rig)
}
pub(crate) fn all_gather(rig: &Rig) -> Check {
    agrees::<AllGatherSpec>(rig)
}
pub(crate) fn all_to_all(rig: &Rig) -> Check {
    agrees::<AllToAllSpec>(rig)
}
pub(crate) fn broadcast(rig: &Rig) -> Check {
    agrees::<BroadcastSpec>(rig)
}
pub(crate) fn exchange(rig: &Rig) -> Check {
    agrees::<ExchangeSpec>(rig)
}
pub(crate) fn barrier(rig: &Rig) -> Check {
    agrees::<BarrierSpec>(rig)
}
pub(crate) fn expert_parallel_ffn(rig: &Rig) -> Check {
    agrees::<ExpertParallelFfnSpec>(rig)
}

/// A case with what each rank holds before, and what it should hold after.
struct Prepared<C> {
    case: GroupCase<C>,
    /// Of each rank: its operands, those that are only written full of guard bytes.
    before: Vec<Vec<(&'static str, HostTensor, Access)>>,
    /// Of each rank: its operands that are written.
    after: Vec<Vec<Vec<f64>>>,
}

fn prepare<C: Collective>(case: GroupCase<C>) -> Result<Prepared<C>, OpError> {
    let mut before = Vec::new();
    for (rank, part) in case.parts.iter().enumerate() {
        let mut operands: Vec<(&'static str, TensorSpec, Access)> = Vec::new();
        part.operands(&mut |o| operands.push((o.name, *o.spec, o.access)));
        let host = operands.into_iter().enumerate().map(|(index, (name, spec, access))| {
            let drawn = || case.fill_of(rank, name).draw(&spec, seed(&case.name, 16 * rank + index));
            let host = match access.reads() {
                true => HostTensor::from_f64(&spec, &drawn(), GUARD)?,
                false => HostTensor::filled(&spec, GUARD)?,
            };
            Ok((name, host, access))
        });
        before.push(host.collect::<Result<Vec<_>, OpError>>()?);
    }
    let values: Vec<Vec<Vec<f64>>> = before
        .iter()
        .map(|operands| operands.iter().filter(|o| o.2.reads()).map(|o| o.1.to_f64()).collect())
        .collect();
    let inputs: Vec<Vec<&[f64]>> =
        values.iter().map(|of_rank| of_rank.iter().map(Vec::as_slice).collect()).collect();
    let after = C::reference(&case.parts, &inputs);
    Ok(Prepared { case, before, after })
}

fn agrees<C: CollectiveCases + CollectiveDispatch>(rig: &Rig) -> Check {
    for (world, every) in WORLDS {
        let cases = C::cases(world)?.into_iter().step_by(every).map(prepare);
        let cases = cases.collect::<Result<Vec<_>, OpError>>()?;
        on_ranks(rig, world, PATIENCE, |peer| {
            cases.iter().try_for_each(|case| {
                check(&peer, case).map_err(|stop| match stop {
                    Stop::Broken(what) => Stop::Broken(format!("{} of {world}: {what}", case.case.name)),
                    unsupported => unsupported,
                })
            })
        })?;
    }
    Ok(())
}

fn check<C: CollectiveDispatch>(peer: &Peer, prepared: &Prepared<C>) -> Check {
    let (rank, stream) = (peer.rank(), &peer.stream);
    let part = &prepared.case.parts[rank];
    let mut tensors = Vec::new();
    for (name, host, _) in &prepared.before[rank] {
        let mut bytes = host.bytes().to_vec();
        bytes.resize(bytes.len() + BAND, GUARD);
        let whole = TensorSpec::new(DType::U8, Shape::new(&[bytes.len()])?);
        let memory = stream.upload_bytes(&whole, HostBuffer::from_bytes(&bytes)?, &(*name).into())?;
        tensors.push(Tensor::new(memory.buffer().clone(), *host.spec())?);
    }
    let operands: Vec<&Tensor> = tensors.iter().collect();
    let call = CollectiveCall::bind(&peer.comm, part.clone(), &operands)?;
    let promised = stream.device().support(&call.query(stream.options().determinism));
    let no = matches!(promised, Support::No(_));
    match stream.run(call) {
        Err(OpError::Unsupported { .. }) if no => return Ok(()),
        Ok(()) if !no => {}
        Ok(()) => return Err(Stop::Broken(format!("support() said {promised:?}, yet it ran"))),
        Err(error) => {
            return Err(Stop::Broken(format!("support() said {promised:?}, running gave: {error}")));
        }
    }
    let mut wanted = prepared.after[rank].iter().zip(part.tolerance());
    for ((name, host, access), tensor) in prepared.before[rank].iter().zip(&tensors) {
        let got = download(stream, tensor.buffer())?;
        let span = host.spec().span_bytes();
        ensure!(
            got[span..].iter().take(BAND).all(|&byte| byte == GUARD),
            "{name}: a byte behind the buffer was overwritten"
        );
        let got = HostTensor::from_bytes(host.spec(), got[..span].to_vec())?;
        if !access.writes() {
            ensure!(got.bytes() == host.bytes(), "{name} is only read, yet it changed");
            continue;
        }
        ensure_eq!(got.overstepped(GUARD), None, "{name}: a byte before the first element was overwritten");
        let Some((want, tolerance)) = wanted.next() else {
            return Err(Stop::Broken(format!("the oracle has no result for {name}")));
        };
        tolerance
            .check(&got.to_f64(), want)
            .map_err(|mismatch| Stop::Broken(format!("{name}: {mismatch}")))?;
    }
    ensure!(wanted.next().is_none(), "the oracle has more results than there are written operands");
    Ok(())
}
