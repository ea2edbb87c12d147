//! Sparse attention: an indexer chooses keys for every query, and attention looks at the chosen alone.

use super::{Args, Refusal, Run, run};
use crate::view::{Dtype, Fault, Memory, Tensor};

operators! {
    LightningIndexer(query: T, key: T, weights: T, actualSeqLengthsQueryOptional: T, actualSeqLengthsKeyOptional: T, blockTableOptional: T, layoutQueryOptional: CS, layoutKeyOptional: CS, sparseCount: I64, sparseMode: I64, preTokens: I64, nextTokens: I64, returnValues: B, sparseIndicesOut: O, sparseValuesOut: O) = indexer;
    SparseFlashAttention(query: T, key: T, value: T, sparseIndices: T, blockTableOptional: T, actualSeqLengthsQueryOptional: T, actualSeqLengthsKvOptional: T, queryRopeOptional: T, keyRopeOptional: T, scaleValue: F64, sparseBlockSizeOptional: I64, layoutQueryOptional: CS, layoutKvOptional: CS, sparseMode: I64, preTokens: I64, nextTokens: I64, attentionMode: I64, returnSoftmaxLse: B, attentionOut: O, softmaxMax: O, softmaxSum: O) = attention;
    SparseFlashAttentionV2(query: T, key: T, value: T, sparseIndices: T, blockTableOptional: T, actualSeqLengthsQueryOptional: T, actualSeqLengthsKvOptional: T, queryRopeOptional: T, keyRopeOptional: T, sinksOptional: T, scaleValue: F64, sparseBlockSizeOptional: I64, layoutQueryOptional: CS, layoutKvOptional: CS, sparseMode: I64, preTokens: I64, nextTokens: I64, attentionMode: I64, returnSoftmaxLse: B, attentionOut: O, softmaxMax: O, softmaxSum: O) = attention;
    AttentionUpdate(lse: TL, localOut: TL, updateType: I64, out: O, lseOut: O) = merge;
}

/// Queries as [tokens, heads, width] and where the sequences' begin and end; keys with how to find them.
struct Sequences {
    packed: bool,
    batch: usize,
    queries: Option<Tensor>,
    keys: Option<Tensor>,
    table: Option<Tensor>,
}

/// One sequence: first query token and queries, keys.
struct Span {
    batch: usize,
    first: usize,
    queries: usize,
    keys: usize,
    /// First row of unpaged keys.
    start: usize,
}

impl Sequences {
    fn of(
        args: &Args,
        names: [&str; 2],
        query: &Tensor,
        layouts: (&str, &str),
    ) -> Result<Sequences, Refusal> {
        let packed = match args.text(layouts.0)? {
            "BSND" | "" => false,
            "TND" => true,
            layout => return Err(args.unknown_mode(layouts.0, layout)),
        };
        args.ranked("query", query, if packed { 3 } else { 4 }, if packed { 3 } else { 4 })?;
        let (queries, keys) = (args.optional(names[0])?.cloned(), args.optional(names[1])?.cloned());
        for (name, lengths) in names.iter().zip([&queries, &keys]) {
            if let Some(lengths) = lengths {
                args.one_of(name, lengths, &[Dtype::I32])?;
                args.ranked(name, lengths, 1, 1)?;
            }
        }
        let table = args.optional("blockTable")?.cloned();
        let paged = match (args.text(layouts.1)?, packed) {
            ("PA_BSND", _) => true,
            ("BSND" | "", false) | ("TND", true) => false,
            (layout, _) => return Err(args.unknown_mode(layouts.1, layout)),
        };
        if paged != table.is_some() {
            return Err(args.invalid("blockTable", "goes with keys in layout PA_BSND, and only with them"));
        }
        if let Some(table) = &table {
            args.one_of("blockTable", table, &[Dtype::I32])?;
            args.ranked("blockTable", table, 2, 2)?;
            if keys.is_none() {
                return Err(args.invalid(names[1], "is needed with a blockTable"));
            }
        }
        let batch = if packed {
            let lengths =
                queries.as_ref().ok_or_else(|| args.invalid(names[0], "is needed in layout TND"))?;
            lengths.numel()
        } else {
            query.shape[0]
        };
        Ok(Sequences { packed, batch, queries, keys, table })
    }

    /// Lengths are data of the device: running sums where sequences are packed, except those of paged keys.
    fn spans(&self, query: &Tensor, key: &Tensor, memory: &dyn Memory) -> Result<Vec<Span>, Fault> {
        let read =
            |lengths: &Option<Tensor>| lengths.as_ref().map(|lengths| lengths.read_i64(memory)).transpose();
        let (queries, keys) = (read(&self.queries)?, read(&self.keys)?);
        let (mut before_q, mut before_k) = (0, 0);
        (0..self.batch)
            .map(|b| {
                let full_q = if self.packed { query.shape[0] } else { query.shape[1] } as i64;
                let end = queries.as_ref().map_or(full_q, |queries| queries[b]);
                let count = if self.packed { end - before_q } else { end };
                let first = if self.packed { before_q } else { b as i64 * query.shape[1] as i64 };
                let full_k = match &self.table {
                    Some(table) => table.shape[1] * key.shape[1],
                    None if self.packed => key.shape[0],
                    None => key.shape[1],
                } as i64;
                let end_k = keys.as_ref().map_or(full_k, |keys| keys[b]);
                let sums = self.packed && self.table.is_none();
                let keys = if sums { end_k - before_k } else { end_k };
                let start = if sums { before_k } else { 0 };
                if count < 0 || keys < 0 || count > full_q || keys > full_k {
                    return Err(Fault::exception(format!(
                        "sequence {b} of {count} queries and {keys} keys does not fit"
                    )));
                }
                (before_q, before_k) = (end, end_k);
                let [first, queries, keys, start] = [first, count, keys, start].map(|n| n as usize);
                Ok(Span { batch: b, first, queries, keys, start })
            })
            .collect()
    }

    /// A key's row of one head.
    fn key(&self, key: &Tensor, span: &Span, at: usize, memory: &dyn Memory) -> Result<Vec<f64>, Fault> {
        let row = match &self.table {
            Some(table) => {
                let size = key.shape[1];
                let block = table.narrow(0, span.batch, 1, 1).narrow(1, at / size, 1, 1).read_i64(memory)?[0];
                let block =
                    usize::try_from(block).ok().filter(|block| *block < key.shape[0]).ok_or_else(|| {
                        Fault::exception(format!("blockTable names block {block} of {}", key.shape[0]))
                    })?;
                key.narrow(0, block, 1, 1).narrow(1, at % size, 1, 1)
            }
            None if self.packed => key.narrow(0, span.start + at, 1, 1),
            None => key.narrow(0, span.batch, 1, 1).narrow(1, at, 1, 1),
        };
        row.read_f64(memory)
    }

    /// The row of a query token, and of whatever is laid out like it.
    fn token(&self, tensor: &Tensor, token: usize) -> Tensor {
        if self.packed {
            tensor.narrow(0, token, 1, 1)
        } else {
            tensor.narrow(0, token / tensor.shape[1], 1, 1).narrow(1, token % tensor.shape[1], 1, 1)
        }
    }
}

/// How many keys query `i` of a span sees.
fn visible(span: &Span, i: usize, causal: bool) -> usize {
    if causal { (span.keys + i + 1).saturating_sub(span.queries).min(span.keys) } else { span.keys }
}

fn causal(args: &Args) -> Result<bool, Refusal> {
    match args.int("sparseMode")? {
        0 => Ok(false),
        3 => Ok(true),
        mode => Err(args.unknown_mode("sparseMode", mode)),
    }
}

/// Per query the keys with the largest Σ over heads of weight · relu(query · key); −1 where there are fewer.
fn indexer(args: &Args) -> Result<Run, Refusal> {
    let (query, key, weights) =
        (args.tensor("query")?.clone(), args.tensor("key")?.clone(), args.tensor("weights")?.clone());
    for (name, tensor) in [("query", &query), ("key", &key), ("weights", &weights)] {
        args.one_of(name, tensor, &[Dtype::F16, Dtype::Bf16])?;
    }
    let names = ["actualSeqLengthsQuery", "actualSeqLengthsKey"];
    let sequences = Sequences::of(args, names, &query, ("layoutQueryOptional", "layoutKeyOptional"))?;
    let rank = query.rank();
    let key_rank = if sequences.table.is_some() { 4 } else { rank };
    args.ranked("key", &key, key_rank, key_rank)?;
    if key.shape[key_rank - 2] != 1 || key.shape[key_rank - 1] != query.shape[rank - 1] {
        return Err(args.invalid(
            "key",
            format!("has shape {:?}; wanted: one head of {}", key.shape, query.shape[rank - 1]),
        ));
    }
    args.shaped("weights", &weights, &query.shape[..rank - 1])?;
    let count = args.int("sparseCount")?;
    let known = (1..=2048).contains(&count) || (3072..=8192).contains(&count) && count % 1024 == 0;
    if !known {
        return Err(
            args.invalid("sparseCount", format!("= {count}; wanted: 1 to 2048, or 3072, 4096 … 8192"))
        );
    }
    let count = count as usize;
    let causal = causal(args)?;
    let out = args.tensor("sparseIndicesOut")?.clone();
    let shape = [&query.shape[..rank - 2], &[1, count]].concat();
    args.one_of("sparseIndicesOut", &out, &[Dtype::I32])?;
    args.shaped("sparseIndicesOut", &out, &shape)?;
    let values = match args.flag("returnValues")? {
        true => {
            let values = args.tensor("sparseValuesOut")?;
            args.shaped("sparseValuesOut", values, &shape)?;
            args.one_of("sparseValuesOut", values, &[query.dtype])?;
            Some(values.clone())
        }
        false => None,
    };
    run(move |memory| {
        let d = query.shape[rank - 1];
        for span in sequences.spans(&query, &key, memory)? {
            let keys: Vec<Vec<f64>> =
                (0..span.keys).map(|at| sequences.key(&key, &span, at, memory)).collect::<Result<_, _>>()?;
            for i in 0..span.queries {
                let token = span.first + i;
                let q = sequences.token(&query, token).read_f64(memory)?;
                let w = sequences.token(&weights, token).read_f64(memory)?;
                let score = |k: &[f64]| -> f64 {
                    let heads = q.chunks(d).zip(&w);
                    heads.map(|(q, w)| w * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>().max(0.0)).sum()
                };
                let scores: Vec<f64> = keys[..visible(&span, i, causal)].iter().map(|k| score(k)).collect();
                let mut order: Vec<usize> = (0..scores.len()).collect();
                order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
                order.truncate(count);
                let mut places: Vec<i64> = order.iter().map(|&at| at as i64).collect();
                places.resize(count, -1);
                sequences.token(&out, token).write_i64(memory, &places)?;
                if let Some(values) = &values {
                    let mut row: Vec<f64> = order.iter().map(|&at| scores[at]).collect();
                    row.resize(count, f64::NEG_INFINITY);
                    sequences.token(values, token).write_f64(memory, &row)?;
                }
            }
        }
        Ok(())
    })
}

/// Attention of all heads to the keys that a query's indices name; keys and values are one latent row and a rotary part.
fn attention(args: &Args) -> Result<Run, Refusal> {
    args.absent(&["sinks"])?;
    let (query, key, value) =
        (args.tensor("query")?.clone(), args.tensor("key")?.clone(), args.tensor("value")?.clone());
    let (q_rope, k_rope) =
        (args.tensor("queryRopeOptional")?.clone(), args.tensor("keyRopeOptional")?.clone());
    for (name, tensor) in
        [("query", &query), ("key", &key), ("value", &value), ("queryRope", &q_rope), ("keyRope", &k_rope)]
    {
        args.one_of(name, tensor, &[Dtype::F16, Dtype::Bf16])?;
    }
    let names = ["actualSeqLengthsQuery", "actualSeqLengthsKv"];
    let sequences = Sequences::of(args, names, &query, ("layoutQueryOptional", "layoutKvOptional"))?;
    let rank = query.rank();
    let (heads, d) = (query.shape[rank - 2], query.shape[rank - 1]);
    if d != 512 || q_rope.shape.last() != Some(&64) || k_rope.shape.last() != Some(&64) {
        return Err(
            args.invalid("query", format!("has heads of {d}; wanted: 512, and 64 of the rotary part"))
        );
    }
    let key_rank = if sequences.table.is_some() { 4 } else { rank };
    args.ranked("key", &key, key_rank, key_rank)?;
    args.shaped("value", &value, &key.shape)?;
    if key.shape[key_rank - 2] != 1 || key.shape[key_rank - 1] != d {
        return Err(args.invalid("key", format!("has shape {:?}; wanted: one head of {d}", key.shape)));
    }
    let lead = |tensor: &Tensor| tensor.shape[..tensor.rank() - 1].to_vec();
    if lead(&q_rope) != lead(&query) || lead(&k_rope) != lead(&key) {
        return Err(args.invalid("queryRope", "and keyRope must be laid out like query and key"));
    }
    if args.int("sparseBlockSizeOptional")? != 1 {
        return Err(args.unknown_mode("sparseBlockSize", args.int("sparseBlockSizeOptional")?));
    }
    if args.int("attentionMode")? != 2 {
        return Err(args.unknown_mode("attentionMode", args.int("attentionMode")?));
    }
    if args.flag("returnSoftmaxLse")? {
        return Err(args.unknown_mode("returnSoftmaxLse", true));
    }
    let causal = causal(args)?;
    let indices = args.tensor("sparseIndices")?.clone();
    args.one_of("sparseIndices", &indices, &[Dtype::I32])?;
    args.ranked("sparseIndices", &indices, rank, rank)?;
    let count = indices.shape[rank - 1];
    args.shaped("sparseIndices", &indices, &[&query.shape[..rank - 2], &[1, count]].concat())?;
    let out = args.tensor("attentionOut")?.clone();
    args.one_of("attentionOut", &out, &[query.dtype])?;
    args.shaped("attentionOut", &out, &query.shape)?;
    let scale = args.float("scaleValue")?;
    run(move |memory| {
        for span in sequences.spans(&query, &key, memory)? {
            for i in 0..span.queries {
                let token = span.first + i;
                let row = |tensor: &Tensor| sequences.token(tensor, token).read_f64(memory);
                let (q, q_rope, chosen) = (row(&query)?, row(&q_rope)?, row(&indices)?);
                let limit = visible(&span, i, causal);
                // The list ends at the first −1; keys the query may not see are left out.
                let chosen: Vec<usize> =
                    chosen.iter().take_while(|at| **at >= 0.0).map(|at| *at as usize).collect();
                if let Some(bad) = chosen.iter().find(|at| **at >= span.keys) {
                    return Err(Fault::exception(format!("sparseIndices names key {bad} of {}", span.keys)));
                }
                let chosen: Vec<usize> = chosen.into_iter().filter(|at| *at < limit).collect();
                let rows = |tensor: &Tensor| -> Result<Vec<Vec<f64>>, Fault> {
                    chosen.iter().map(|&at| sequences.key(tensor, &span, at, memory)).collect()
                };
                let (k, k_rope, v) = (rows(&key)?, rows(&k_rope)?, rows(&value)?);
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let mut result = vec![0.0; heads * d];
                for head in 0..heads {
                    let part = |j: usize| {
                        dot(&q[head * d..][..d], &k[j]) + dot(&q_rope[head * 64..][..64], &k_rope[j])
                    };
                    let scores: Vec<f64> = (0..chosen.len()).map(|j| scale * part(j)).collect();
                    let weights = super::softmax::softmax_of(&scores);
                    for (weight, v) in weights.iter().zip(&v) {
                        result[head * d..][..d].iter_mut().zip(v).for_each(|(sum, v)| *sum += weight * v);
                    }
                }
                sequences.token(&out, token).write_f64(memory, &result)?;
            }
        }
        Ok(())
    })
}

/// Attentions to parts of the keys as the attention to all: weighted by their shares of the sum of exponentials.
fn merge(args: &Args) -> Result<Run, Refusal> {
    let (lse, local, out) =
        (args.tensors("lse")?.to_vec(), args.tensors("localOut")?.to_vec(), args.tensor("out")?.clone());
    if lse.is_empty() || lse.len() != local.len() {
        return Err(args.invalid("lse", format!("has {} members, localOut {}", lse.len(), local.len())));
    }
    args.ranked("out", &out, 2, 2)?;
    for (lse, local) in lse.iter().zip(&local) {
        args.one_of("lse", lse, &[Dtype::F32])?;
        args.shaped("lse", lse, &out.shape[..1])?;
        args.one_of("localOut", local, &[out.dtype])?;
        args.shaped("localOut", local, &out.shape)?;
    }
    let total = match args.int("updateType")? {
        0 => None,
        1 => {
            let total = args.tensor("lseOut")?;
            args.one_of("lseOut", total, &[Dtype::F32])?;
            args.shaped("lseOut", total, &out.shape[..1])?;
            Some(total.clone())
        }
        mode => return Err(args.unknown_mode("updateType", mode)),
    };
    run(move |memory| {
        let lse: Vec<Vec<f64>> = lse.iter().map(|part| part.read_f64(memory)).collect::<Result<_, _>>()?;
        let local: Vec<Vec<f64>> =
            local.iter().map(|part| part.read_f64(memory)).collect::<Result<_, _>>()?;
        let (rows, width) = (out.shape[0], out.shape[1]);
        let mut merged = vec![0.0; rows * width];
        let mut sums = Vec::with_capacity(rows);
        for i in 0..rows {
            let parts: Vec<f64> = lse.iter().map(|lse| lse[i]).collect();
            let largest = parts.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            sums.push(largest + parts.iter().map(|x| (x - largest).exp()).sum::<f64>().ln());
            for (share, local) in super::softmax::softmax_of(&parts).iter().zip(&local) {
                let row = &local[i * width..][..width];
                merged[i * width..][..width].iter_mut().zip(row).for_each(|(sum, x)| *sum += share * x);
            }
        }
        out.write_f64(memory, &merged)?;
        total.iter().try_for_each(|total| total.write_f64(memory, &sums))
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, close, noise_of};
    use super::*;

    #[test]
    fn the_indexer_ranks_visible_keys_by_rectified_products() {
        // One head of two elements; products 1, −5, 3 and 2 for the keys in order.
        let k = [1.0, 0.0, -5.0, 0.0, 3.0, 0.0, 2.0, 0.0];
        let case = |mode| {
            let case = Case::new(Soc::A3, "LightningIndexer").input(
                "query",
                Dtype::Bf16,
                &[1, 2, 1, 2],
                &[1.0, 0.0, 1.0, 0.0],
            );
            let case = case.input("key", Dtype::Bf16, &[1, 4, 1, 2], &k).input(
                "weights",
                Dtype::Bf16,
                &[1, 2, 1],
                &[1.0, 1.0],
            );
            let case = case.int("sparseCount", 4).int("sparseMode", mode).text("layoutQueryOptional", "BSND");
            case.text("layoutKeyOptional", "BSND")
                .output("sparseIndicesOut", Dtype::I32, &[1, 2, 1, 4])
                .done()
        };
        assert_eq!(case(0).read("sparseIndicesOut"), [2.0, 3.0, 0.0, 1.0, 2.0, 3.0, 0.0, 1.0]);
        assert_eq!(case(3).read("sparseIndicesOut"), [2.0, 0.0, 1.0, -1.0, 2.0, 3.0, 0.0, 1.0]);
    }

    #[test]
    fn attention_sees_the_named_keys_alone() {
        let make = |count, seed| noise_of(Dtype::Bf16, count, seed);
        let (q, k, qr, kr) = (make(2 * 512, 1), make(3 * 512, 2), make(2 * 64, 3), make(3 * 64, 4));
        let case = Case::new(Soc::A3, "SparseFlashAttention").input("query", Dtype::Bf16, &[1, 2, 512], &q);
        // Paged: keys 0 and 1 in block 1, key 2 in block 0.
        let page = |rows: &[f64], d: usize| -> Vec<f64> {
            [&rows[2 * d..], &vec![f64::NAN; d][..], &rows[..2 * d]].concat()
        };
        let case = case.input("key", Dtype::Bf16, &[2, 2, 1, 512], &page(&k, 512)).input(
            "value",
            Dtype::Bf16,
            &[2, 2, 1, 512],
            &page(&k, 512),
        );
        let case = case.input("queryRopeOptional", Dtype::Bf16, &[1, 2, 64], &qr).input(
            "keyRopeOptional",
            Dtype::Bf16,
            &[2, 2, 1, 64],
            &page(&kr, 64),
        );
        let case = case.input("blockTableOptional", Dtype::I32, &[1, 2], &[1.0, 0.0]).input(
            "sparseIndices",
            Dtype::I32,
            &[1, 1, 4],
            &[2.0, 0.0, -1.0, 1.0],
        );
        let case = case.input("actualSeqLengthsQueryOptional", Dtype::I32, &[1], &[1.0]).input(
            "actualSeqLengthsKvOptional",
            Dtype::I32,
            &[1],
            &[3.0],
        );
        let case = case
            .text("layoutQueryOptional", "TND")
            .text("layoutKvOptional", "PA_BSND")
            .float("scaleValue", 0.05);
        let case = case
            .int("sparseBlockSizeOptional", 1)
            .int("attentionMode", 2)
            .output("attentionOut", Dtype::Bf16, &[1, 2, 512])
            .done();
        let got = case.read("attentionOut");
        for head in 0..2 {
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let score = |j: usize| {
                0.05 * (dot(&q[head * 512..][..512], &k[j * 512..][..512])
                    + dot(&qr[head * 64..][..64], &kr[j * 64..][..64]))
            };
            let (a, b) = (score(0).exp(), score(2).exp());
            let want: Vec<f64> = (0..512).map(|e| (a * k[e] + b * k[1024 + e]) / (a + b)).collect();
            close(&got[head * 512..][..512], &want, 8e-3);
        }
    }

    #[test]
    fn parts_weigh_by_their_sums_of_exponentials() {
        let case = Case::new(Soc::A3, "AttentionUpdate")
            .list("lse", &[(Dtype::F32, &[1], &[1f64.ln()]), (Dtype::F32, &[1], &[3f64.ln()])]);
        let case = case
            .list("localOut", &[(Dtype::F32, &[1, 2], &[0.0, 4.0]), (Dtype::F32, &[1, 2], &[8.0, 0.0])])
            .int("updateType", 1);
        let case = case.output("out", Dtype::F32, &[1, 2]).output("lseOut", Dtype::F32, &[1]).done();
        close(&case.read("out"), &[6.0, 1.0], 1e-6);
        close(&case.read("lseOut"), &[4f64.ln()], 1e-6);
    }
}
