//! Attention for inference: the fused operator in its versions, and the two it grew from.
//!
//! Scores are f64 sums of the products of 16-bit elements, the softmax is exact, the result is rounded once.

use super::matmul::multiply;
use super::{Args, Refusal, Run, run};
use crate::view::{Dtype, Fault, Memory, Tensor};

operators! {
    PromptFlashAttentionV3(query: T, key: T, value: T, pseShift: T, attenMask: T, actualSeqLengths: IA, actualSeqLengthsKv: IA, deqScale1: T, quantScale1: T, deqScale2: T, quantScale2: T, quantOffset2: T, numHeads: I64, scaleValue: F64, preTokens: I64, nextTokens: I64, inputLayout: CS, numKeyValueHeads: I64, sparseMode: I64, innerPrecise: I64, attentionOut: O) = prompt;
    IncreFlashAttentionV4(query: T, key: TL, value: TL, pseShift: T, attenMask: T, actualSeqLengths: IA, dequantScale1: T, quantScale1: T, dequantScale2: T, quantScale2: T, quantOffset2: T, antiquantScale: T, antiquantOffset: T, blocktable: T, kvPaddingSize: T, numHeads: I64, scaleValue: F64, inputLayout: CS, numKeyValueHeads: I64, blockSize: I64, innerPrecise: I64, attentionOut: O) = incremental;
    FusedInferAttentionScoreV2(query: T, key: TL, value: TL, pseShiftOptional: T, attenMaskOptional: T, actualSeqLengthsOptional: IA, actualSeqLengthsKvOptional: IA, deqScale1Optional: T, quantScale1Optional: T, deqScale2Optional: T, quantScale2Optional: T, quantOffset2Optional: T, antiquantScaleOptional: T, antiquantOffsetOptional: T, blockTableOptional: T, queryPaddingSizeOptional: T, kvPaddingSizeOptional: T, keyAntiquantScaleOptional: T, keyAntiquantOffsetOptional: T, valueAntiquantScaleOptional: T, valueAntiquantOffsetOptional: T, keySharedPrefixOptional: T, valueSharedPrefixOptional: T, actualSharedPrefixLenOptional: IA, numHeads: I64, scaleValue: F64, preTokens: I64, nextTokens: I64, inputLayout: CS, numKeyValueHeads: I64, sparseMode: I64, innerPrecise: I64, blockSize: I64, antiquantMode: I64, softmaxLseFlag: B, keyAntiquantMode: I64, valueAntiquantMode: I64, attentionOut: O, softmaxLse: O) = fused;
    FusedInferAttentionScoreV3(query: T, key: TL, value: TL, pseShiftOptional: T, attenMaskOptional: T, actualSeqLengthsOptional: IA, actualSeqLengthsKvOptional: IA, deqScale1Optional: T, quantScale1Optional: T, deqScale2Optional: T, quantScale2Optional: T, quantOffset2Optional: T, antiquantScaleOptional: T, antiquantOffsetOptional: T, blockTableOptional: T, queryPaddingSizeOptional: T, kvPaddingSizeOptional: T, keyAntiquantScaleOptional: T, keyAntiquantOffsetOptional: T, valueAntiquantScaleOptional: T, valueAntiquantOffsetOptional: T, keySharedPrefixOptional: T, valueSharedPrefixOptional: T, actualSharedPrefixLenOptional: IA, queryRopeOptional: T, keyRopeOptional: T, keyRopeAntiquantScaleOptional: T, numHeads: I64, scaleValue: F64, preTokens: I64, nextTokens: I64, inputLayout: CS, numKeyValueHeads: I64, sparseMode: I64, innerPrecise: I64, blockSize: I64, antiquantMode: I64, softmaxLseFlag: B, keyAntiquantMode: I64, valueAntiquantMode: I64, attentionOut: O, softmaxLse: O) = fused;
    FusedInferAttentionScoreV4(query: T, key: TL, value: TL, pseShiftOptional: T, attenMaskOptional: T, actualSeqLengthsOptional: IA, actualSeqLengthsKvOptional: IA, deqScale1Optional: T, quantScale1Optional: T, deqScale2Optional: T, quantScale2Optional: T, quantOffset2Optional: T, antiquantScaleOptional: T, antiquantOffsetOptional: T, blockTableOptional: T, queryPaddingSizeOptional: T, kvPaddingSizeOptional: T, keyAntiquantScaleOptional: T, keyAntiquantOffsetOptional: T, valueAntiquantScaleOptional: T, valueAntiquantOffsetOptional: T, keySharedPrefixOptional: T, valueSharedPrefixOptional: T, actualSharedPrefixLenOptional: IA, queryRopeOptional: T, keyRopeOptional: T, keyRopeAntiquantScaleOptional: T, dequantScaleQueryOptional: T, learnableSinkOptional: T, numHeads: I64, scaleValue: F64, preTokens: I64, nextTokens: I64, inputLayout: CS, numKeyValueHeads: I64, sparseMode: I64, innerPrecise: I64, blockSize: I64, antiquantMode: I64, softmaxLseFlag: B, keyAntiquantMode: I64, valueAntiquantMode: I64, queryQuantMode: I64, attentionOut: O, softmaxLse: O) = fused;
    FusedInferAttentionScoreV5(query: T, key: TL, value: TL, pseShiftOptional: T, attenMaskOptional: T, actualSeqLengthsOptional: IA, actualSeqLengthsKvOptional: IA, deqScale1Optional: T, quantScale1Optional: T, deqScale2Optional: T, quantScale2Optional: T, quantOffset2Optional: T, antiquantScaleOptional: T, antiquantOffsetOptional: T, blockTableOptional: T, queryPaddingSizeOptional: T, kvPaddingSizeOptional: T, keyAntiquantScaleOptional: T, keyAntiquantOffsetOptional: T, valueAntiquantScaleOptional: T, valueAntiquantOffsetOptional: T, keySharedPrefixOptional: T, valueSharedPrefixOptional: T, actualSharedPrefixLenOptional: IA, queryRopeOptional: T, keyRopeOptional: T, keyRopeAntiquantScaleOptional: T, dequantScaleQueryOptional: T, learnableSinkOptional: T, qStartIdxOptional: IA, kvStartIdxOptional: IA, numHeads: I64, scaleValue: F64, preTokens: I64, nextTokens: I64, inputLayout: CS, numKeyValueHeads: I64, sparseMode: I64, innerPrecise: I64, blockSize: I64, antiquantMode: I64, softmaxLseFlag: B, keyAntiquantMode: I64, valueAntiquantMode: I64, queryQuantMode: I64, pseType: I64, attentionOut: O, softmaxLse: O) = fused;
}

/// What no version is simulated with.
const QUANTIZED: &[&str] = &[
    "deqScale1",
    "quantScale1",
    "deqScale2",
    "dequantScale1",
    "dequantScale2",
    "quantScale2",
    "quantOffset2",
    "antiquantScale",
    "antiquantOffset",
    "queryPaddingSize",
    "kvPaddingSize",
    "keyAntiquantScale",
    "keyAntiquantOffset",
    "valueAntiquantScale",
    "valueAntiquantOffset",
    "keySharedPrefix",
    "valueSharedPrefix",
    "actualSharedPrefixLen",
    "keyRopeAntiquantScale",
    "dequantScaleQuery",
    "qStartIdx",
    "kvStartIdx",
];

/// Heads of one kind, seen as [batch, heads, positions, width] whatever their layout; in TND and NTD the batch is 1.
pub(super) fn heads(
    args: &Args,
    name: &str,
    tensor: &Tensor,
    layout: &str,
    heads: usize,
) -> Result<Tensor, Refusal> {
    let rank = if layout.len() == 4 { 4 } else { 3 };
    args.ranked(name, tensor, rank, rank)?;
    let view = match layout {
        "BNSD" => tensor.clone(),
        "BSND" => tensor.permute(&[0, 2, 1, 3]),
        "BSH" => {
            let width = tensor.shape[2];
            if heads == 0 || !width.is_multiple_of(heads) {
                return Err(args.invalid(name, format!("has rows of {width} for {heads} heads")));
            }
            let mut view = tensor.unsqueeze(2);
            view.shape[2] = heads;
            view.shape[3] = width / heads;
            view.strides[2] = view.shape[3] * view.strides[3];
            view.permute(&[0, 2, 1, 3])
        }
        "TND" => tensor.permute(&[1, 0, 2]).unsqueeze(0),
        "NTD" => tensor.unsqueeze(0),
        other => return Err(args.unknown_mode("inputLayout", other)),
    };
    if view.shape[1] != heads {
        return Err(args.invalid(name, format!("has {} heads; wanted: {heads}", view.shape[1])));
    }
    Ok(view)
}

/// Keys or values of one sequence.
#[derive(Clone)]
enum Store {
    /// One view [batch, heads, positions, width] for all, or one per sequence.
    Rows(Vec<Tensor>),
    /// Blocks [blocks, heads, block, width], and the table [batch, blocks of a sequence].
    Paged(Tensor, Tensor),
}

impl Store {
    /// Positions `start..start + count` of a sequence and a head, row after row.
    fn read(
        &self,
        (batch, head): (usize, usize),
        start: usize,
        count: usize,
        memory: &dyn Memory,
    ) -> Result<Vec<f64>, Fault> {
        match self {
            Store::Rows(views) => {
                let (view, batch) = if views.len() == 1 { (&views[0], batch) } else { (&views[batch], 0) };
                view.narrow(0, batch, 1, 1).narrow(1, head, 1, 1).narrow(2, start, count, 1).read_f64(memory)
            }
            Store::Paged(blocks, table) => {
                let size = blocks.shape[2];
                let row = table.narrow(0, batch, 1, 1).read_i64(memory)?;
                let mut rows = Vec::new();
                for first in (0..count).step_by(size) {
                    let block = row.get(first / size).copied().unwrap_or(-1);
                    let block = usize::try_from(block)
                        .ok()
                        .filter(|block| *block < blocks.shape[0])
                        .ok_or_else(|| {
                            Fault::exception(format!(
                                "blockTable names block {block} of {} for sequence {batch}",
                                blocks.shape[0]
                            ))
                        })?;
                    let part = blocks.narrow(0, block, 1, 1).narrow(1, head, 1, 1);
                    rows.extend(part.narrow(2, 0, size.min(count - first), 1).read_f64(memory)?);
                }
                Ok(rows)
            }
        }
    }

    fn width(&self) -> usize {
        match self {
            Store::Rows(views) => views[0].shape[3],
            Store::Paged(blocks, _) => blocks.shape[3],
        }
    }
}

/// Blocks of a paged cache as [blocks, heads, block, width], from [blocks, block, heads · width] or as they are.
fn blocks(args: &Args, name: &str, cache: &Tensor, kv_heads: usize, block: usize) -> Result<Tensor, Refusal> {
    let view = match cache.rank() {
        3 => heads(args, name, cache, "BSH", kv_heads)?,
        4 => heads(args, name, cache, "BNSD", kv_heads)?,
        rank => return Err(args.invalid(name, format!("has {rank} dimensions; a paged cache has 3 or 4"))),
    };
    if view.shape[2] != block {
        return Err(args.invalid(name, format!("has blocks of {}; blockSize is {block}", view.shape[2])));
    }
    Ok(view)
}

/// Everything one call computes with.
struct Plan {
    query: Tensor,
    query_rope: Option<Tensor>,
    key: Store,
    key_rope: Option<Store>,
    value: Store,
    out: Tensor,
    lse: Option<Tensor>,
    pse: Option<Tensor>,
    mask: Option<Tensor>,
    sink: Option<Tensor>,
    /// Per sequence: first query, queries, first key, keys.
    spans: Vec<[usize; 4]>,
    group: usize,
    scale: f64,
    window: Window,
    /// Rows whose every key is masked give zeros instead of what the finite mask value leaves.
    corrects: bool,
}

/// Which keys a query sees beside the mask's.
#[derive(Clone, Copy)]
enum Window {
    /// The mask as given.
    Given,
    /// Keys from `query + shift − pre` to `query + shift + next`; shift is keys − queries where the right end counts.
    Band { pre: i64, next: i64, from_right: bool },
}

/// Lengths of sequences: given ones, or all of a dimension. Running sums where `packed`.
fn lengths(
    args: &Args,
    name: &str,
    batch: usize,
    full: usize,
    packed: bool,
) -> Result<Vec<(usize, usize)>, Refusal> {
    let Some(given) = args.optional_ints(name)?.filter(|given| !given.is_empty()) else {
        return if packed {
            Err(args.invalid(name, "is needed in layouts TND and NTD"))
        } else {
            Ok(vec![(0, full); batch])
        };
    };
    if !packed && given.len() != 1 && given.len() < batch {
        return Err(args.invalid(name, format!("has {} entries for {batch} sequences", given.len())));
    }
    let mut before = 0;
    let count = if packed { given.len() } else { batch };
    (0..count)
        .map(|i| {
            let length = if given.len() == 1 { given[0] } else { given[i] };
            let (start, length) = if packed { (before, length - before) } else { (0, length) };
            before = start + length;
            if length < 0 || start + length > full as i64 {
                return Err(args.invalid(name, format!("{given:?} does not fit {full} positions")));
            }
            Ok((start as usize, length as usize))
        })
        .collect()
}

fn fused(args: &Args) -> Result<Run, Refusal> {
    let layout = args.text("inputLayout")?;
    let (inputs, output) = layout.split_once('_').unwrap_or((layout, layout));
    let (keys, values) = (args.tensors("key")?.to_vec(), args.tensors("value")?.to_vec());
    for (name, mode) in [("antiquantMode", 0), ("keyAntiquantMode", 0), ("valueAntiquantMode", 0)] {
        if args.int_or(name, mode)? != 0 {
            return Err(args.unknown_mode(name, args.int(name)?));
        }
    }
    attention(args, (inputs, output), &keys, &values, "actualSeqLengthsKv")
}

fn prompt(args: &Args) -> Result<Run, Refusal> {
    let layout = args.text("inputLayout")?;
    let (keys, values) = (vec![args.tensor("key")?.clone()], vec![args.tensor("value")?.clone()]);
    attention(args, (layout, layout), &keys, &values, "actualSeqLengthsKv")
}

fn incremental(args: &Args) -> Result<Run, Refusal> {
    let layout = args.text("inputLayout")?;
    let (keys, values) = (args.tensors("key")?.to_vec(), args.tensors("value")?.to_vec());
    attention(args, (layout, layout), &keys, &values, "actualSeqLengths")
}

fn attention(
    args: &Args,
    (inputs, output): (&str, &str),
    keys: &[Tensor],
    values: &[Tensor],
    kv_lengths: &str,
) -> Result<Run, Refusal> {
    args.absent(QUANTIZED)?;
    let halves = [Dtype::F16, Dtype::Bf16];
    let positive = |name: &str| {
        args.int(name).and_then(|n| usize::try_from(n).map_err(|_| args.invalid(name, format!("is {n}"))))
    };
    let num_heads = positive("numHeads")?;
    let kv_heads = match positive("numKeyValueHeads")? {
        0 => num_heads,
        n => n,
    };
    if num_heads == 0 || !num_heads.is_multiple_of(kv_heads) {
        return Err(
            args.invalid("numKeyValueHeads", format!("= {kv_heads} does not divide {num_heads} heads"))
        );
    }
    let query = args.tensor("query")?;
    args.one_of("query", query, &halves)?;
    let (first_key, first_value) = match (keys, values) {
        ([k, ..], [v, ..]) if keys.len() == values.len() => (k, v),
        _ => return Err(args.invalid("key", format!("has {} members, value {}", keys.len(), values.len()))),
    };
    for (name, tensor) in
        [("key", first_key), ("value", first_value), ("attentionOut", args.tensor("attentionOut")?)]
    {
        args.one_of(name, tensor, &[query.dtype])?;
    }
    let q = heads(args, "query", query, inputs, num_heads)?;
    let packed = inputs == "TND" || inputs == "NTD";
    let d = q.shape[3];
    if !d.is_multiple_of(16) || !(16..=512).contains(&d) {
        return Err(args.invalid("query", format!("has heads of {d}; wanted: a multiple of 16, 512 at most")));
    }
    let table = match args.optional("blockTable")? {
        None => args.optional("blocktable")?,
        some => some,
    };
    let stores = |name: &str, list: &[Tensor]| match table {
        Some(table) => {
            args.one_of("blockTable", table, &[Dtype::I32])?;
            args.ranked("blockTable", table, 2, 2)?;
            let block = positive("blockSize")?;
            if !block.is_multiple_of(16) || !(16..=1024).contains(&block) {
                return Err(
                    args.invalid("blockSize", format!("= {block}; wanted: a multiple of 16, 1024 at most"))
                );
            }
            Ok(Store::Paged(blocks(args, name, &list[0], kv_heads, block)?, table.clone()))
        }
        None => {
            let views = list.iter().map(|tensor| heads(args, name, tensor, inputs, kv_heads));
            Ok(Store::Rows(views.collect::<Result<_, _>>()?))
        }
    };
    let (key, value) = (stores("key", keys)?, stores("value", values)?);
    if key.width() != d {
        return Err(args.invalid("key", format!("has heads of {}; query has {d}", key.width())));
    }
    let batch = q.shape[0];
    // Where the keys' positions end: of the cache where it is paged.
    let full = match &key {
        Store::Rows(views) if views.len() == 1 => views[0].shape[2],
        Store::Rows(views) => views.iter().map(|view| view.shape[2]).max().unwrap_or(0),
        Store::Paged(blocks, table) => blocks.shape[2] * table.shape[1],
    };
    if table.is_some() && args.optional_ints(kv_lengths)?.is_none() {
        return Err(args.invalid(kv_lengths, "is needed with a blockTable"));
    }
    let decode = args.operator == "IncreFlashAttentionV4";
    let queries = if decode {
        vec![(0, q.shape[2]); batch]
    } else {
        lengths(args, "actualSeqLengths", batch, q.shape[2], packed)?
    };
    // A paged cache has its own length per sequence even where queries are packed.
    let keys_of = if table.is_some() {
        lengths(args, kv_lengths, queries.len(), full, false)?
    } else {
        lengths(args, kv_lengths, queries.len(), full, packed)?
    };
    let mut spans: Vec<[usize; 4]> =
        queries.iter().zip(&keys_of).map(|(q, k)| [q.0, q.1, k.0, k.1]).collect();
    // A sequence with a tensor of its own ends where that does.
    if let Store::Rows(views) = &key
        && views.len() > 1
    {
        if views.len() != spans.len() {
            return Err(
                args.invalid("key", format!("has {} members for {} sequences", views.len(), spans.len()))
            );
        }
        spans.iter_mut().zip(views).for_each(|(span, view)| span[3] = span[3].min(view.shape[2]));
    }

    let out = args.tensor("attentionOut")?;
    let out = heads(args, "attentionOut", out, output, num_heads)?;
    let wanted = [q.shape[0], num_heads, q.shape[2], value.width()];
    args.shaped("attentionOut", &out, &wanted)?;

    let (sparse, pre, next) = (
        args.int_or("sparseMode", 0)?,
        args.int_or("preTokens", i64::MAX)?,
        args.int_or("nextTokens", i64::MAX)?,
    );
    let mask = args.optional("attenMask")?;
    if let Some(mask) = mask {
        args.one_of("attenMask", mask, &[Dtype::Bool, Dtype::I8, Dtype::U8, Dtype::F16])?;
    }
    let compressed = || match mask {
        Some(mask) if mask.shape.ends_with(&[2048, 2048]) => Ok(()),
        _ => Err(args
            .invalid("attenMask", format!("must be the compressed 2048 x 2048 one for sparseMode {sparse}"))),
    };
    let window = match sparse {
        // Bounds that reach beyond the sequences bound nothing; without a mask they do not bind either.
        0 => match mask {
            Some(_) => Window::Band { pre, next, from_right: false },
            None => Window::Given,
        },
        1 => Window::Given,
        2 => compressed().map(|()| Window::Band { pre: i64::MAX, next: 0, from_right: false })?,
        3 => compressed().map(|()| Window::Band { pre: i64::MAX, next: 0, from_right: true })?,
        4 => compressed().map(|()| Window::Band { pre, next, from_right: true })?,
        mode => return Err(args.unknown_mode("sparseMode", mode)),
    };
    let (largest_q, largest_k) =
        (spans.iter().map(|s| s[1]).max().unwrap_or(0), spans.iter().map(|s| s[3]).max().unwrap_or(0));
    let mask = match mask.filter(|_| sparse < 2) {
        Some(mask) => Some(score_view(args, "attenMask", mask, spans.len(), 1, (largest_q, largest_k))?),
        None => None,
    };
    let pse = match args.optional("pseShift")? {
        Some(pse) => {
            args.one_of("pseShift", pse, &[query.dtype])?;
            Some(score_view(args, "pseShift", pse, spans.len(), num_heads, (largest_q, largest_k))?)
        }
        None => None,
    };
    if args.int_or("pseType", 0)? != 0 {
        return Err(args.unknown_mode("pseType", args.int("pseType")?));
    }
    let corrects = match args.int("innerPrecise")? {
        0 | 1 => false,
        2 | 3 => true,
        mode => return Err(args.unknown_mode("innerPrecise", mode)),
    };
    let (query_rope, key_rope) = match (args.optional("queryRope")?, args.optional("keyRope")?) {
        (None, None) => (None, None),
        (Some(q), Some(k)) => {
            let view = heads(args, "queryRope", q, inputs, num_heads)?;
            (Some(view), Some(stores("keyRope", std::slice::from_ref(k))?))
        }
        _ => return Err(args.invalid("queryRope", "and keyRope come together")),
    };
    let sink = args.optional("learnableSink")?.cloned();
    if let Some(sink) = &sink {
        args.one_of("learnableSink", sink, &halves)?;
        args.shaped("learnableSink", sink, &[num_heads])?;
    }
    let lse = match decode || args.operator.starts_with("Prompt") || !args.flag("softmaxLseFlag")? {
        true => None,
        false => {
            let lse = args.tensor("softmaxLse")?;
            args.one_of("softmaxLse", lse, &[Dtype::F32])?;
            let tokens = q.shape[2];
            let want = if packed { vec![tokens, num_heads, 1] } else { vec![batch, num_heads, tokens, 1] };
            args.shaped("softmaxLse", lse, &want)?;
            Some(if packed { lse.permute(&[1, 0, 2]).unsqueeze(0) } else { lse.clone() })
        }
    };
    let (group, scale) = (num_heads / kv_heads, args.float("scaleValue")?);
    let plan = Plan {
        query: q,
        query_rope,
        key,
        key_rope,
        value,
        out,
        lse,
        pse,
        mask,
        sink,
        spans,
        group,
        scale,
        window,
        corrects,
    };
    run(move |memory| plan.run(memory))
}

/// A mask or shift of scores as [sequences, heads, queries, keys], dimensions of 1 repeated.
fn score_view(
    args: &Args,
    name: &str,
    tensor: &Tensor,
    batch: usize,
    heads: usize,
    (queries, keys): (usize, usize),
) -> Result<Tensor, Refusal> {
    args.ranked(name, tensor, 2, 4)?;
    let view = match tensor.rank() {
        2 => tensor.unsqueeze(0).unsqueeze(0),
        3 => tensor.unsqueeze(1),
        _ => tensor.clone(),
    };
    if view.shape[2] < queries || view.shape[3] < keys {
        return Err(
            args.invalid(name, format!("has shape {:?} for {queries} queries and {keys} keys", tensor.shape))
        );
    }
    let (rows, columns) = (view.shape[2], view.shape[3]);
    args.spread(name, &view, &[batch, heads, rows, columns])
}

impl Plan {
    fn run(&self, memory: &dyn Memory) -> Result<(), Fault> {
        let packed =
            self.spans.len() != self.query.shape[0] || self.query.shape[0] == 1 && self.spans.len() == 1;
        for (sequence, &[q_start, queries, k_start, keys]) in self.spans.iter().enumerate() {
            let row = if packed { 0 } else { sequence };
            for head in 0..self.query.shape[1] {
                let part = |view: &Tensor| {
                    view.narrow(0, row, 1, 1).narrow(1, head, 1, 1).narrow(2, q_start, queries, 1)
                };
                let kv = (
                    if packed && matches!(self.key, Store::Rows(_)) { 0 } else { sequence },
                    head / self.group,
                );
                let mut scores = self.scores(part, kv, [sequence, head, queries, k_start, keys], memory)?;
                let v = self.value.read(kv, k_start, keys, memory)?;
                let sink = match &self.sink {
                    Some(sink) => Some(sink.narrow(0, head, 1, 1).read_f64(memory)?[0]),
                    None => None,
                };
                let width = self.value.width();
                // Queries without a key keep what stands here.
                let (mut divisors, mut sums) = (vec![None; queries], vec![f64::INFINITY; queries]);
                for (i, scores) in scores.chunks_mut(keys.max(1)).enumerate() {
                    if let Some((sum, logarithm)) = exponentials(scores, sink, self.corrects) {
                        (divisors[i], sums[i]) = (Some(sum), logarithm);
                    }
                }
                let mut rows = vec![0.0; queries * width];
                multiply(&scores, &v, (queries, keys, width), &mut rows);
                for (row, divisor) in rows.chunks_mut(width.max(1)).zip(divisors) {
                    match divisor {
                        Some(sum) => row.iter_mut().for_each(|x| *x /= sum),
                        None => row.fill(0.0),
                    }
                }
                part(&self.out).write_f64(memory, &rows)?;
                if let Some(lse) = &self.lse {
                    part(lse).write_f64(memory, &sums)?;
                }
            }
        }
        Ok(())
    }

    /// Scores of one head, query after query; masked ones are −∞.
    fn scores(
        &self,
        part: impl Fn(&Tensor) -> Tensor,
        kv: (usize, usize),
        [sequence, head, queries, k_start, keys]: [usize; 5],
        memory: &dyn Memory,
    ) -> Result<Vec<f64>, Fault> {
        let mut scores = vec![0.0; queries * keys];
        let ropes = self.query_rope.as_ref().zip(self.key_rope.as_ref());
        for (query, key) in [(&self.query, &self.key)].into_iter().chain(ropes) {
            let d = key.width();
            let (q, k) = (part(query).read_f64(memory)?, key.read(kv, k_start, keys, memory)?);
            // With a position's elements in a column, a query's scores are sums of rows.
            let columns: Vec<f64> = (0..d).flat_map(|p| k.iter().skip(p).step_by(d).copied()).collect();
            multiply(&q, &columns, (queries, d, keys), &mut scores);
        }
        let window = |view: &Tensor, head: usize| {
            let view = view.narrow(0, sequence, 1, 1).narrow(1, head, 1, 1);
            view.narrow(2, 0, queries, 1).narrow(3, 0, keys, 1).read_f64(memory)
        };
        let pse = self.pse.as_ref().map(|pse| window(pse, head)).transpose()?;
        let mask = self.mask.as_ref().map(|mask| window(mask, 0)).transpose()?;
        let shift = match self.window {
            Window::Band { from_right: true, .. } => keys as i64 - queries as i64,
            _ => 0,
        };
        for at in 0..queries {
            for (key, score) in scores[at * keys..][..keys].iter_mut().enumerate() {
                let i = at * keys + key;
                *score = *score * self.scale + pse.as_ref().map_or(0.0, |pse| pse[i]);
                let hidden = match self.window {
                    Window::Given => false,
                    Window::Band { pre, next, .. } => {
                        let (at, key) = (at as i64 + shift, key as i64);
                        key < at.saturating_sub(pre) || key > at.saturating_add(next)
                    }
                };
                if hidden || mask.as_ref().is_some_and(|mask| mask[i] != 0.0) {
                    *score = f64::NEG_INFINITY;
                }
            }
        }
        Ok(scores)
    }
}

/// Makes a query's scores exponentials over the largest; their sum, and the logarithm of the sum before that. `None`
/// where no key counts.
///
/// The kernels mask with a large finite number: a row without a visible key is the mean of all values, unless the mode
/// corrects it to zeros.
fn exponentials(scores: &mut [f64], sink: Option<f64>, corrects: bool) -> Option<(f64, f64)> {
    let visible = scores.iter().any(|score| *score != f64::NEG_INFINITY);
    if scores.is_empty() || !visible && corrects {
        return None;
    }
    if !visible {
        scores.fill(0.0);
    }
    let largest = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
    let mut sum = sink.map_or(0.0, |sink| (sink - largest).exp());
    for score in scores {
        *score = (*score - largest).exp();
        sum += *score;
    }
    Some((sum, largest + sum.ln()))
}

#[cfg(test)]
mod tests;
