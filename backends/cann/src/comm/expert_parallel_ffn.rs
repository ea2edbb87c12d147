//! Experts over ranks as the vendor's two operators that communicate, and between them the network of this rank's experts.
//!
//! They speak in the group's communicator, by its name, and enqueue like any operator: rows arrive by expert, and by rank
//! within, behind each other. What the first writes down for the second is the vendor's own.

use super::movement::{Movement, Turn};
use crate::aclnn::{NEWER, Plan, Run, Soc, aclnn};
use crate::descriptor::NONE;
use crate::op::expert_ffn::{Parts, network};
use crate::op::scatter::contiguous;
use crate::product::Product;
use crate::version::{MoeDistributeCombine, MoeDistributeDispatch};
use portolan_core::{CollectiveCall, Tensor};
use portolan_ops::comm::{Collective, ExpertParallelFfnSpec};
use portolan_ops::{DType, OpError, Result, Unsupported};
use std::ffi::CStr;

/// Bytes of the buffer that a communicator has unless `HCCL_BUFFSIZE` says otherwise; rows on their way lie there.
const BUFFER: usize = 200 << 20;
/// What rows take a multiple of in it.
const PIECE: usize = 512;
/// Numbers that the newer versions write down of a row.
const ASSIST: usize = 128;

/// Rows that come to a rank at most, where the experts of a token differ.
fn room(spec: &ExpertParallelFfnSpec) -> usize {
    let each = spec.network().top_k().min(spec.experts_each());
    spec.most_tokens() * spec.ranks().count() * each
}

/// Whether the vendor's operators serve; a question about what all ranks have in common, so that all answer it alike.
pub(super) fn plan(soc: &Soc<'_>, spec: &ExpertParallelFfnSpec) -> Plan {
    soc.promises_rows()?;
    let (network, rows) = (spec.network(), room(spec));
    let x = network.x().dtype();
    if !matches!(x, DType::F16 | DType::BF16) || soc.product == Product::P310 {
        return Err(Unsupported::DType(x));
    }
    if network.out().dtype() != x || network.between() != x {
        return Err(Unsupported::Precision);
    }
    if rows == 0 || network.gate_up().k() == 0 || network.down().n() == 0 || network.inner() == 0 {
        return Err(Unsupported::Shape("tokens, experts and columns"));
    }
    let widest = network.gate_up().k().max(network.down().n()) * x.bytes_for(1);
    if rows.saturating_mul(2 * widest.next_multiple_of(PIECE)) > BUFFER {
        return Err(Unsupported::Shape("rows that fit a communicator's buffer of 200 MB"));
    }
    let here = spec.over_rows(rows).map_err(|_| Unsupported::NotImplemented)?;
    Parts::of(&here).map_err(|_| Unsupported::NotImplemented)?.plan(soc)?;
    pair(soc).map(drop)
}

/// Both operators in one version, the newest that the driver has of both: what one writes down, only its own fellow reads.
fn pair(soc: &Soc<'_>) -> core::result::Result<(MoeDistributeDispatch, MoeDistributeCombine), Unsupported> {
    let both = |dispatch, combine| {
        Ok((soc.newest(|version| version == dispatch)?, soc.newest(|version| version == combine)?))
    };
    both(MoeDistributeDispatch::V2, MoeDistributeCombine::V2)
        .or_else(|_: Unsupported| both(MoeDistributeDispatch::V1, MoeDistributeCombine::V1))
}

/// Tokens of a rank with their experts and shares; a rank without any sends one that takes no part.
struct Tokens {
    x: Tensor,
    ids: Tensor,
    shares: Tensor,
    takes_part: Option<Tensor>,
}

impl Tokens {
    fn new(run: &Run<'_, '_>, [x, ids, shares]: [&Tensor; 3]) -> Result<Self> {
        if x.dims()[0] > 0 {
            let [x, ids, shares] = [contiguous(run, x)?, contiguous(run, ids)?, contiguous(run, shares)?];
            return Ok(Self { x, ids, shares, takes_part: None });
        }
        let blank = |like: &Tensor| -> Result<Tensor> {
            let one = run.scratch(like.dtype(), &[1, like.dims()[1]])?;
            run.zero(&one)?;
            Ok(one)
        };
        let takes_part = run.scratch(DType::Bool, &[1])?;
        run.zero(&takes_part)?;
        Ok(Self { x: blank(x)?, ids: blank(ids)?, shares: blank(shares)?, takes_part: Some(takes_part) })
    }
}

impl Movement for ExpertParallelFfnSpec {
    fn run(&self, turn: &Turn<'_, '_>, op: &CollectiveCall<Self>) -> Result<()> {
        let (run, operands) = (turn.run()?, op.tensors()?);
        let get = |name: &str| -> Result<&Tensor> {
            let found = operands.iter().find(|(of, _)| *of == name).map(|(_, tensor)| tensor);
            found.ok_or_else(|| OpError::internal(self.name(), format!("no operand {name}")))
        };
        let name = turn.group_name()?;
        let (dispatch, combine) =
            pair(&run.soc()).map_err(|why| run.launch().unsupported(self.name().into(), why, NEWER))?;
        let group = Group { spec: self, name: &name, rows: room(self), dispatch, combine };
        let tokens = Tokens::new(&run, [get("x")?, get("expert_ids")?, get("weights")?])?;
        let here = self.over_rows(group.rows)?;
        let parts = Parts::of(&here)?;
        let routed = run.launch().scratch(here.x())?;
        let sent = group.dispatch(&run, &tokens, &routed)?;
        turn.engage();
        let y = network(&run, parts, [&routed, &sent.offsets], [get("gate_up")?, get("down")?])?;
        let out = get("out")?;
        let direct = tokens.takes_part.is_none() && out.spec().is_contiguous();
        let result = match direct {
            true => out.clone(),
            false => run.scratch(out.dtype(), &[tokens.x.dims()[0], out.dims()[1]])?,
        };
        group.combine(&run, &tokens, &sent, [&y, &result])?;
        match direct || tokens.takes_part.is_some() {
            true => Ok(()),
            false => run.copy(&result, out),
        }
    }
}

/// What a dispatch leaves beside the rows.
struct Sent {
    /// Where each expert's rows begin, and where the last one's end.
    offsets: Tensor,
    /// For the combine: the vendor's own, and the running sums of rows by expert and rank.
    assist: Tensor,
    received: Tensor,
}

/// An operator over the group of this name.
struct Group<'a> {
    spec: &'a ExpertParallelFfnSpec,
    name: &'a CStr,
    rows: usize,
    dispatch: MoeDistributeDispatch,
    combine: MoeDistributeCombine,
}

impl Group<'_> {
    /// Ranks, this rank, experts, tokens of all ranks at most.
    fn numbers(&self) -> [i64; 4] {
        let ranks = self.spec.ranks();
        let tokens = self.spec.most_tokens() * ranks.count();
        [ranks.count() as i64, ranks.index() as i64, self.spec.experts() as i64, tokens as i64]
    }

    fn dispatch(&self, run: &Run<'_, '_>, tokens: &Tokens, routed: &Tensor) -> Result<Sent> {
        let (ranks, experts) = (self.spec.ranks().count(), self.spec.experts_each());
        let assisted = match self.dispatch {
            MoeDistributeDispatch::V2 => self.rows * ASSIST,
            MoeDistributeDispatch::V1 => tokens.ids.numel(),
        };
        let sent = Sent {
            offsets: run.scratch(DType::I32, &[experts + 1])?,
            assist: run.scratch(DType::I32, &[assisted])?,
            received: run.scratch(DType::I32, &[experts * ranks])?,
        };
        let ends = run.scratch(DType::I64, &[experts])?;
        let [world, rank, all, most] = self.numbers();
        let [x, ids] = [run.tensor(&tokens.x)?, run.tensor(&tokens.ids)?];
        let mask = tokens.takes_part.as_ref().map(|mask| run.tensor(mask)).transpose()?;
        let [rows, assist] = [run.tensor(routed)?, run.tensor(&sent.assist)?];
        let [counts, received] = [run.tensor(&ends)?, run.tensor(&sent.received)?];
        // One tensor-parallel rank, no shared experts, no quantization; counts as running sums.
        let (nothing, one, none) = (0i64, 1i64, c"");
        macro_rules! dispatch {
            ($plan:ident, $enqueue:ident, [$($algorithm:expr)?]) => {
                aclnn!(
                    run, $plan, $enqueue, x, ids, NONE, mask, NONE, self.name, world, rank, all, none, one, nothing,
                    nothing, nothing, nothing, nothing, most, nothing, $($algorithm,)? rows, NONE, assist, counts,
                    received, NONE, NONE
                )
            };
        }
        match self.dispatch {
            MoeDistributeDispatch::V2 => {
                dispatch!(aclnnMoeDistributeDispatchV2GetWorkspaceSize, aclnnMoeDistributeDispatchV2, [none])
            }
            MoeDistributeDispatch::V1 => {
                dispatch!(aclnnMoeDistributeDispatchGetWorkspaceSize, aclnnMoeDistributeDispatch, [])
            }
        }?;
        run.zero(&sent.offsets.narrow(0, 0, 1)?)?;
        run.cast(&ends, &sent.offsets.narrow(0, 1, experts)?)?;
        Ok(sent)
    }

    fn combine(&self, run: &Run<'_, '_>, tokens: &Tokens, sent: &Sent, [y, out]: [&Tensor; 2]) -> Result<()> {
        let [world, rank, all, most] = self.numbers();
        let [y, ids, shares] = [run.tensor(y)?, run.tensor(&tokens.ids)?, run.tensor(&tokens.shares)?];
        let mask = tokens.takes_part.as_ref().map(|mask| run.tensor(mask)).transpose()?;
        let [assist, received, out] =
            [run.tensor(&sent.assist)?, run.tensor(&sent.received)?, run.tensor(out)?];
        let (nothing, one, none) = (0i64, 1i64, c"");
        match self.combine {
            MoeDistributeCombine::V2 => aclnn!(
                run,
                aclnnMoeDistributeCombineV2GetWorkspaceSize,
                aclnnMoeDistributeCombineV2,
                y,
                ids,
                assist,
                received,
                shares,
                NONE,
                mask,
                NONE,
                NONE,
                NONE,
                NONE,
                NONE,
                self.name,
                world,
                rank,
                all,
                none,
                one,
                nothing,
                nothing,
                nothing,
                nothing,
                most,
                nothing,
                nothing,
                nothing,
                none,
                out
            ),
            MoeDistributeCombine::V1 => aclnn!(
                run,
                aclnnMoeDistributeCombineGetWorkspaceSize,
                aclnnMoeDistributeCombine,
                y,
                ids,
                assist,
                received,
                shares,
                NONE,
                mask,
                NONE,
                NONE,
                NONE,
                NONE,
                self.name,
                world,
                rank,
                all,
                none,
                one,
                nothing,
                nothing,
                nothing,
                nothing,
                most,
                nothing,
                nothing,
                nothing,
                out
            ),
        }
    }
}
