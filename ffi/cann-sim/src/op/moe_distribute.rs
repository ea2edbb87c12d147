//! Tokens sent to the devices of their experts, and what the experts made of them brought back.
//!
//! Rows on an expert's device are in the order of its experts, then of the ranks they come from, then of their tokens;
//! `epRecvCounts` has the running sums over (expert, rank). What `expandIdx` and `assistInfoForCombine` hold is a matter
//! between the two operators; here they let the second check that it was given what the first had written.

use super::quantize::quantize_rows;
use super::{Args, Parcel, Party, Refusal, Run};
use crate::view::{Dtype, Fault, Tensor};

operators! {
    MoeDistributeDispatch(x: T, expertIds: T, scales: T, xActiveMask: T, expertScales: T, groupEp: CS, epWorldSize: I64, epRankId: I64, moeExpertNum: I64, groupTp: CS, tpWorldSize: I64, tpRankId: I64, expertShardType: I64, sharedExpertNum: I64, sharedExpertRankNum: I64, quantMode: I64, globalBs: I64, expertTokenNumsType: I64, expandX: O, dynamicScales: O, expandIdx: O, expertTokenNums: O, epRecvCounts: O, tpRecvCounts: O, expandScales: O) = dispatch;
    MoeDistributeDispatchV2(x: T, expertIds: T, scalesOptional: T, xActiveMaskOptional: T, expertScalesOptional: T, groupEp: CS, epWorldSize: I64, epRankId: I64, moeExpertNum: I64, groupTp: CS, tpWorldSize: I64, tpRankId: I64, expertShardType: I64, sharedExpertNum: I64, sharedExpertRankNum: I64, quantMode: I64, globalBs: I64, expertTokenNumsType: I64, commAlg: CS, expandXOut: O, dynamicScalesOut: O, assistInfoForCombineOut: O, expertTokenNumsOut: O, epRecvCountsOut: O, tpRecvCountsOut: O, expandScalesOut: O) = dispatch;
    MoeDistributeCombine(expandX: T, expertIds: T, expandIdx: T, epSendCounts: T, expertScales: T, tpSendCounts: T, xActiveMask: T, activationScale: T, weightScale: T, groupList: T, expandScales: T, groupEp: CS, epWorldSize: I64, epRankId: I64, moeExpertNum: I64, groupTp: CS, tpWorldSize: I64, tpRankId: I64, expertShardType: I64, sharedExpertNum: I64, sharedExpertRankNum: I64, globalBs: I64, outDtype: I64, commQuantMode: I64, groupListType: I64, x: O) = combine;
    MoeDistributeCombineV2(expandX: T, expertIds: T, assistInfoForCombine: T, epSendCounts: T, expertScales: T, tpSendCountsOptional: T, xActiveMaskOptional: T, activationScaleOptional: T, weightScaleOptional: T, groupListOptional: T, expandScalesOptional: T, sharedExpertXOptional: T, groupEp: CS, epWorldSize: I64, epRankId: I64, moeExpertNum: I64, groupTp: CS, tpWorldSize: I64, tpRankId: I64, expertShardType: I64, sharedExpertNum: I64, sharedExpertRankNum: I64, globalBs: I64, outDtype: I64, commQuantMode: I64, groupListType: I64, commAlg: CS, xOut: O) = combine;
}

/// Numbers of a row of `assistInfoForCombine`; the first three are rank, token, and which of the token's experts.
const ASSIST: usize = 128;

/// How experts and tokens are spread over the ranks.
#[derive(Clone, Copy)]
struct Layout {
    rank: usize,
    ranks: usize,
    /// Experts of each rank.
    local: usize,
    tokens: usize,
    k: usize,
    /// Rows that a rank has room for.
    room: usize,
}

impl Layout {
    /// Checks the attributes that both operators have, and the experts of this rank's tokens.
    fn new(args: &Args, ids: &Tensor) -> Result<Layout, Refusal> {
        let (ranks, rank, experts) =
            (args.int("epWorldSize")?, args.int("epRankId")?, args.int("moeExpertNum")?);
        if ranks < 1 || !(0..ranks).contains(&rank) {
            return Err(args.invalid("epRankId", format!("= {rank} of {ranks} ranks")));
        }
        if experts < ranks || experts % ranks != 0 {
            return Err(args.invalid("moeExpertNum", format!("= {experts} is no multiple of {ranks} ranks")));
        }
        for (name, most) in
            [("tpWorldSize", 1), ("tpRankId", 0), ("expertShardType", 0), ("sharedExpertRankNum", 0)]
        {
            let value = args.int(name)?;
            if !(0..=most).contains(&value) {
                return Err(args.unknown_mode(name, value));
            }
        }
        args.one_of("expertIds", ids, &[Dtype::I32])?;
        args.ranked("expertIds", ids, 2, 2)?;
        let (tokens, k) = (ids.shape[0], ids.shape[1]);
        let (ranks, local) = (ranks as usize, (experts / ranks) as usize);
        let all = match args.int("globalBs")? {
            0 => tokens * ranks,
            all if all > 0 && (all as usize).is_multiple_of(ranks) && all as usize / ranks >= tokens => {
                all as usize
            }
            all => {
                return Err(
                    args.invalid("globalBs", format!("= {all} for {tokens} tokens on each of {ranks} ranks"))
                );
            }
        };
        Ok(Layout { rank: rank as usize, ranks, local, tokens, k, room: all * local.min(k) })
    }

    fn party(
        self,
        args: &Args,
        width: usize,
        extra: &[i64],
        give: super::Give,
        take: super::Take,
    ) -> Result<Run, Refusal> {
        // A window for each direction, whose rows are whole pieces of 512 bytes.
        let buffer = 2 * self.room.max(1) * (2 * width).next_multiple_of(512);
        let sizes = [self.local, self.k, self.room, width].map(|n| n as i64);
        let (rank, size, agreed) = (self.rank as i64, self.ranks as i64, [&sizes[..], extra].concat());
        let group = args.text("groupEp")?.to_owned();
        Ok(Run::Together(Party { group, rank, size, buffer, agreed, give, take }))
    }
}

/// For each expert, the tokens that a rank sends there, and which of the token's experts it is.
type Sent = Vec<Vec<(usize, usize)>>;

/// What each rank sends, in order.
fn sent(operator: &str, layout: Layout, parcels: &[Parcel]) -> Result<Vec<Sent>, Fault> {
    let experts = layout.local * layout.ranks;
    let ranks = parcels.iter().map(|parcel| {
        let (ids, active) = (&parcel.integers[0], &parcel.integers[1]);
        let mut by_expert = vec![Vec::new(); experts];
        for (at, &expert) in ids.iter().enumerate() {
            let (token, slot) = (at / layout.k, at % layout.k);
            if active.get(token).is_some_and(|&active| active == 0) {
                continue;
            }
            let place = usize::try_from(expert).ok().filter(|expert| *expert < experts);
            let place = place.ok_or_else(|| {
                Fault::exception(format!("aclnn{operator}: expert {expert} of {experts} for token {token}"))
            })?;
            by_expert[place].push((token, slot));
        }
        Ok(by_expert)
    });
    ranks.collect()
}

/// Tokens that take part: all, or those that a mask names.
fn mask(args: &Args, tokens: usize) -> Result<Option<Tensor>, Refusal> {
    let mask = args.optional("xActiveMask")?;
    if let Some(mask) = mask {
        args.one_of("xActiveMask", mask, &[Dtype::Bool])?;
        args.shaped("xActiveMask", mask, &[tokens])?;
    }
    Ok(mask.cloned())
}

/// A result, by the name that the version gives it.
fn result<'a>(args: &'a Args, names: [&str; 2]) -> Result<&'a Tensor, Refusal> {
    let name = if args.operator.ends_with("V2") { names[1] } else { names[0] };
    args.tensor(name)
}

fn dispatch(args: &Args) -> Result<Run, Refusal> {
    let (x, ids) = (args.tensor("x")?.clone(), args.tensor("expertIds")?.clone());
    args.one_of("x", &x, &[Dtype::F16, Dtype::Bf16])?;
    let layout = Layout::new(args, &ids)?;
    args.ranked("x", &x, 2, 2)?;
    if x.shape[0] != layout.tokens {
        return Err(args.invalid("x", format!("has {} rows for {} tokens", x.shape[0], layout.tokens)));
    }
    args.absent(&["scales"])?;
    let active = mask(args, layout.tokens)?;
    let quantizes = match args.int("quantMode")? {
        0 => false,
        2 => true,
        mode => return Err(args.unknown_mode("quantMode", mode)),
    };
    let kind = args.int("expertTokenNumsType")?;
    if !matches!(kind, 0 | 1) {
        return Err(args.unknown_mode("expertTokenNumsType", kind));
    }
    let (h, room, newer) = (x.shape[1], layout.room, args.operator.ends_with("V2"));
    let out = result(args, ["expandX", "expandXOut"])?.clone();
    args.one_of("expandX", &out, &[if quantizes { Dtype::I8 } else { x.dtype }])?;
    args.shaped("expandX", &out, &[room, h])?;
    let scales = match quantizes {
        true => {
            let scales = result(args, ["dynamicScales", "dynamicScalesOut"])?;
            args.one_of("dynamicScales", scales, &[Dtype::F32])?;
            args.shaped("dynamicScales", scales, &[room])?;
            Some(scales.clone())
        }
        false => None,
    };
    let assist = result(args, ["expandIdx", "assistInfoForCombineOut"])?.clone();
    args.one_of("expandIdx", &assist, &[Dtype::I32])?;
    let length = if newer { room * ASSIST } else { layout.tokens * layout.k };
    args.shaped("expandIdx", &assist, &[length])?;
    let counts = result(args, ["expertTokenNums", "expertTokenNumsOut"])?.clone();
    args.one_of("expertTokenNums", &counts, &[Dtype::I64])?;
    args.shaped("expertTokenNums", &counts, &[layout.local])?;
    let received = result(args, ["epRecvCounts", "epRecvCountsOut"])?.clone();
    args.one_of("epRecvCounts", &received, &[Dtype::I32])?;
    args.shaped("epRecvCounts", &received, &[layout.local * layout.ranks])?;
    let operator = args.operator;
    let give = move |memory: &dyn crate::view::Memory| {
        let active = active.as_ref().map(|active| active.read_i64(memory)).transpose()?.unwrap_or_default();
        Ok(Parcel { numbers: x.read_f64(memory)?, integers: vec![ids.read_i64(memory)?, active] })
    };
    let take = move |memory: &dyn crate::view::Memory, parcels: &[Parcel]| {
        let sent = sent(operator, layout, parcels)?;
        let (mut rows, mut info, mut sums, mut tokens) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for expert in layout.rank * layout.local..(layout.rank + 1) * layout.local {
            let before = info.len() / 3;
            for (rank, sent) in sent.iter().enumerate() {
                for &(token, slot) in &sent[expert] {
                    rows.extend_from_slice(&parcels[rank].numbers[token * h..][..h]);
                    info.extend([rank as i64, token as i64, slot as i64]);
                }
                sums.push(info.len() as i64 / 3);
            }
            let after = info.len() / 3;
            tokens.push((if kind == 0 { after } else { after - before }) as i64);
        }
        let count = info.len() / 3;
        if count > room {
            return Err(Fault::exception(format!(
                "aclnn{operator}: {count} rows for a device with room for {room}"
            )));
        }
        let part = |tensor: &Tensor| tensor.narrow(0, 0, count, 1);
        match &scales {
            Some(scales) => {
                let (codes, factors) = quantize_rows(&rows, h);
                part(&out).write_f64(memory, &codes)?;
                part(scales).write_f64(memory, &factors)?;
            }
            None => part(&out).write_f64(memory, &rows)?,
        }
        received.write_i64(memory, &sums)?;
        counts.write_i64(memory, &tokens)?;
        if newer {
            for (row, info) in info.chunks(3).enumerate() {
                assist.narrow(0, row * ASSIST, 3, 1).write_i64(memory, info)?;
            }
            return Ok(());
        }
        // How many of this rank's tokens went to the same expert before.
        let mut order = vec![0; layout.tokens * layout.k];
        for tokens in &sent[layout.rank] {
            for (number, &(token, slot)) in tokens.iter().enumerate() {
                order[token * layout.k + slot] = number as i64;
            }
        }
        assist.write_i64(memory, &order)
    };
    layout.party(args, h, &[i64::from(quantizes)], Box::new(give), Box::new(take))
}

fn combine(args: &Args) -> Result<Run, Refusal> {
    let (expanded, ids) = (args.tensor("expandX")?.clone(), args.tensor("expertIds")?.clone());
    args.one_of("expandX", &expanded, &[Dtype::F16, Dtype::Bf16])?;
    let layout = Layout::new(args, &ids)?;
    args.absent(&["activationScale", "weightScale", "groupList"])?;
    for name in ["outDtype", "commQuantMode", "groupListType"] {
        match args.int(name)? {
            0 => {}
            mode => return Err(args.unknown_mode(name, mode)),
        }
    }
    args.ranked("expandX", &expanded, 2, 2)?;
    let (h, newer) = (expanded.shape[1], args.operator.ends_with("V2"));
    args.shaped("expandX", &expanded, &[layout.room, h])?;
    let assist = result(args, ["expandIdx", "assistInfoForCombine"])?.clone();
    args.one_of("expandIdx", &assist, &[Dtype::I32])?;
    let length = if newer { layout.room * ASSIST } else { layout.tokens * layout.k };
    args.shaped("expandIdx", &assist, &[length])?;
    let counts = args.tensor("epSendCounts")?.clone();
    args.one_of("epSendCounts", &counts, &[Dtype::I32])?;
    args.shaped("epSendCounts", &counts, &[layout.local * layout.ranks])?;
    let weights = args.tensor("expertScales")?.clone();
    args.one_of("expertScales", &weights, &[Dtype::F32])?;
    args.shaped("expertScales", &weights, &[layout.tokens, layout.k])?;
    let out = result(args, ["x", "xOut"])?.clone();
    args.one_of("xOut", &out, &[expanded.dtype])?;
    args.shaped("xOut", &out, &[layout.tokens, h])?;
    let shared = args.optional("sharedExpertX")?.cloned();
    if let Some(shared) = &shared {
        args.one_of("sharedExpertX", shared, &[expanded.dtype])?;
        args.shaped("sharedExpertX", shared, &out.shape)?;
    }
    let (active, operator) = (mask(args, layout.tokens)?, args.operator);
    let give = move |memory: &dyn crate::view::Memory| {
        let active = active.as_ref().map(|active| active.read_i64(memory)).transpose()?.unwrap_or_default();
        let (ids, counts) = (ids.read_i64(memory)?, counts.read_i64(memory)?);
        let rows = usize::try_from(counts.last().copied().unwrap_or(0)).unwrap_or(usize::MAX);
        if rows > layout.room || counts.windows(2).any(|pair| pair[0] > pair[1]) {
            return Err(Fault::exception(format!(
                "aclnn{operator}: epSendCounts {counts:?} are no running sums"
            )));
        }
        let numbers = expanded.narrow(0, 0, rows, 1).read_f64(memory)?;
        Ok(Parcel { numbers, integers: vec![ids, active, counts, assist.read_i64(memory)?] })
    };
    let take = move |memory: &dyn crate::view::Memory, parcels: &[Parcel]| {
        let all = sent(operator, layout, parcels)?;
        let weights = weights.read_f64(memory)?;
        let mut sums = match &shared {
            Some(shared) => shared.read_f64(memory)?,
            None => vec![0.0; layout.tokens * h],
        };
        for (expert, tokens) in all[layout.rank].iter().enumerate() {
            let (owner, place) =
                (expert / layout.local, (expert % layout.local) * layout.ranks + layout.rank);
            let parcel = &parcels[owner];
            let counts = &parcel.integers[2];
            let start = if place == 0 { 0 } else { counts[place - 1] };
            if counts[place] - start != tokens.len() as i64 {
                let text = format!(
                    "aclnn{operator}: rank {owner} has {} rows of rank {} for expert {expert}, and {} were sent",
                    counts[place] - start,
                    layout.rank,
                    tokens.len()
                );
                return Err(Fault::exception(text));
            }
            for (number, &(token, slot)) in tokens.iter().enumerate() {
                let row = start as usize + number;
                let told = match newer {
                    true => {
                        parcel.integers[3][row * ASSIST..][..3]
                            == [layout.rank as i64, token as i64, slot as i64]
                    }
                    false => parcels[layout.rank].integers[3][token * layout.k + slot] == number as i64,
                };
                if !told {
                    let text = format!(
                        "aclnn{operator}: what the dispatch wrote down for token {token} of rank {} was changed",
                        layout.rank
                    );
                    return Err(Fault::exception(text));
                }
                let weight = weights[token * layout.k + slot];
                let from = &parcel.numbers[row * h..][..h];
                sums[token * h..][..h].iter_mut().zip(from).for_each(|(sum, x)| *sum += weight * x);
            }
        }
        out.write_f64(memory, &sums)
    };
    layout.party(args, h, &[], Box::new(give), Box::new(take))
}
