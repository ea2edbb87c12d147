//! The network of a mixture of experts over ranks: rows to the ranks of their experts, the network there, back, sums.

use super::begin;
use crate::call::{ExpertFfn, ExpertParallelFfn, MoeUnpermute};
use crate::expert_parallel::{Routes, exchanged, send, tables};
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::comm::Collective;
use portolan_ops::{Contract, DType, OpError, Result, TensorSpec, Unsupported};

/// moe_permute with a room for each rank, all_to_all, expert_ffn, all_to_all, moe_unpermute.
///
/// # Errors
/// As the parts; `Unsupported` for packed weights and where the stream denies compositions.
pub fn expert_parallel_ffn(l: &Launch<'_>, op: &ExpertParallelFfn, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let (spec, comm, operands) = (op.spec(), op.communicator(), op.tensors()?);
    let get = |name: &str| -> Result<&Tensor> {
        let found = operands.iter().find(|(of, _)| *of == name).map(|(_, tensor)| tensor);
        found.ok_or_else(|| OpError::internal(spec.name(), format!("no operand {name}")))
    };
    let table = |numbers: &[i32]| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        l.constant(&TensorSpec::of(DType::I32, &[numbers.len()])?, &bytes)
    };
    let [rank, place] = tables(spec.ranks(), spec.experts());
    let routes = Routes::new(l, &table(&rank)?, &table(&place)?, get("expert_ids")?)?;
    let sent = send(l, comm, &routes, get("x")?, spec.most_places())?;

    let network = spec.over_rows(sent.x().dims()[0])?;
    // Weights of routing are the tokens' ranks' to apply.
    let ones = p.full(DType::F32, sent.expert_ids().dims(), 1.0)?;
    let y = l.scratch(network.out())?;
    let mut tensors: Vec<&Tensor> = Vec::new();
    network.operands(&mut |operand| {
        let own = [("x", sent.x()), ("expert_ids", sent.expert_ids()), ("weights", &ones), ("out", &y)];
        let own = own.into_iter().find(|(name, _)| *name == operand.name).map(|(_, tensor)| tensor);
        tensors.extend(own.or_else(|| get(operand.name).ok()));
    });
    p.run(ExpertFfn::bind(network.clone(), &tensors)?)?;

    let (back, out, weights) = (exchanged(l, comm, &y)?, get("out")?, get("weights")?);
    let sum = |out: &mut Tensor| p.run(MoeUnpermute::new(&back, sent.row_map(), out)?.weights(weights)?);
    match out.dtype() == back.dtype() {
        true => sum(&mut out.clone()),
        false => p.result(out, sum),
    }
}
