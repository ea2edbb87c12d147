//! What meta counts, against closed forms written from the papers' formulas and the models' published sizes; nothing
//! here asks an operator for its cost.
#![cfg(feature = "meta")]
#![allow(clippy::unwrap_used)]

use portolan::load::{self, ConfigOnly, WeightSource};
use portolan::meta::{Count, MetaBackend, MetaOptions};
use portolan::models::{LanguageModel, Llama, embedded};
use portolan::nn::{Batch, Precision};
use portolan::plan::{Plan, PlanOptions, PlanRow, plan};
use portolan::{Cost, ErrorKind, OpError, OpKind, Registry, StreamOptions};
use std::path::{Path, PathBuf};

/// A model of the Llama family as its paper describes it.
struct Paper {
    layers: u64,
    hidden: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    ffn: u64,
    vocab: u64,
    tied: bool,
}

/// Touvron et al. 2023 (Llama 2), table 1 and the released configuration.
const LLAMA_2_7B: Paper = Paper {
    layers: 32,
    hidden: 4096,
    heads: 32,
    kv_heads: 32,
    head_dim: 128,
    ffn: 11_008,
    vocab: 32_000,
    tied: false,
};

/// Dubey et al. 2024 (Llama 3), table 3: grouped queries, 8 key and value heads.
const LLAMA_3_8B: Paper = Paper {
    layers: 32,
    hidden: 4096,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    ffn: 14_336,
    vocab: 128_256,
    tied: false,
};

/// `tests/golden/llama-gqa`: as its `config.json` says.
const GOLDEN: Paper =
    Paper { layers: 2, hidden: 32, heads: 4, kv_heads: 2, head_dim: 8, ffn: 56, vocab: 120, tied: true };

impl Paper {
    /// Parameters of the layers' matrices: q, k, v, o, gate, up, down.
    fn layer_matrices(&self) -> u64 {
        let attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads);
        self.layers * (attention + 3 * self.hidden * self.ffn)
    }

    fn embedding(&self) -> u64 {
        self.vocab * self.hidden
    }

    /// The embedding and, unless it is the same, the output matrix.
    fn embeddings(&self) -> u64 {
        self.embedding() * if self.tied { 1 } else { 2 }
    }

    /// Two norms a layer and the last one.
    fn norms(&self) -> u64 {
        (2 * self.layers + 1) * self.hidden
    }

    fn parameters(&self) -> u64 {
        self.layer_matrices() + self.embeddings() + self.norms()
    }

    /// Operations of attention for `tokens` queries behind `cached` keys: a query and a visible key make a score
    /// (`2·head_dim`) and weigh a value (`2·head_dim`), in every head and layer. That is the `4·L·T²·d` of Kaplan et
    /// al. 2020 and Chowdhery et al. 2022 (appendix B) for full attention; a causal query at position p sees p + 1
    /// keys, which is half of it and half a diagonal.
    fn attention(&self, tokens: u64, cached: u64) -> u64 {
        let visible: u64 = (cached..cached + tokens).map(|position| position + 1).sum();
        4 * self.layers * self.heads * self.head_dim * visible
    }

    /// Operations of the products: 2 for each weight and token (Kaplan et al. 2020, table 1), the output matrix for
    /// `logits` tokens only.
    fn products(&self, tokens: u64, logits: u64) -> u64 {
        2 * self.layer_matrices() * tokens + 2 * self.embedding() * logits
    }

    /// Keys and values of one sequence (Shazeer 2019: two vectors a key head, layer and position).
    fn cache(&self, positions: u64, bytes: u64) -> u64 {
        2 * self.layers * self.kv_heads * self.head_dim * positions * bytes
    }

    fn config(&self, dtype: &str) -> serde_json::Value {
        serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn,
            "vocab_size": self.vocab,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 8192,
            "torch_dtype": dtype,
        })
    }

    /// The model as a configuration without weights, and the folder it is in.
    fn source(&self, dtype: &str) -> (tempfile::TempDir, Box<dyn WeightSource>) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), self.config(dtype).to_string()).unwrap();
        let source = load::open_specs(folder.path()).unwrap();
        (folder, source)
    }
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama-gqa")
}

fn row(plan: &Plan, kind: OpKind) -> PlanRow {
    *plan.operators.iter().find(|row| row.kind == kind).unwrap()
}

fn sum(plan: &Plan) -> Cost {
    plan.operators.iter().fold(Cost::default(), |sum, row| sum + row.cost)
}

#[test]
fn published_models_have_the_published_number_of_parameters() {
    // As the transformers library counts them in the released checkpoints.
    assert_eq!(LLAMA_2_7B.parameters(), 6_738_415_616);
    assert_eq!(LLAMA_3_8B.parameters(), 8_030_261_248);
    for paper in [&LLAMA_2_7B, &LLAMA_3_8B] {
        let (_folder, source) = paper.source("bfloat16");
        let plan = plan(source.as_ref(), &PlanOptions::default()).unwrap();
        // Matrices as the file has them; norms are widened to f32 when they are loaded.
        let want = 2 * (paper.layer_matrices() + paper.embeddings()) + 4 * paper.norms();
        assert_eq!(plan.weight_bytes as u64, want);
    }
}

#[test]
fn the_formulas_agree_with_an_independent_counter() {
    // The README of calflops: 1700.06 GFLOP for 128 tokens of Llama 2 7B. It counts logits of every token, all of the
    // square of attention, and norms.
    let paper = &LLAMA_2_7B;
    let square = 4 * paper.layers * paper.heads * paper.head_dim * 128 * 128;
    let counted = (paper.products(128, 128) + square) as f64;
    assert!((counted / 1700.06e9 - 1.0).abs() < 1e-4, "{counted:e}");
    // The causal half is what a token sees: half of the square, and half of its diagonal.
    assert_eq!(2 * paper.attention(128, 0), square + square / 128);
}

#[test]
fn a_prefill_costs_what_the_papers_formulas_say() {
    for (paper, tokens, batch) in [(&LLAMA_2_7B, 2048, 1), (&LLAMA_3_8B, 512, 3), (&GOLDEN, 13, 2)] {
        let (_folder, source) = paper.source("bfloat16");
        let options = PlanOptions { tokens, batch, ..PlanOptions::default() };
        let plan = plan(source.as_ref(), &options).unwrap();
        let (tokens, batch) = (tokens as u64, batch as u64);

        let linear = row(&plan, OpKind::Linear);
        assert_eq!(linear.cost.flops, batch * paper.products(tokens, 1));
        // q, k and v are one product, as are gate and up; one output matrix.
        assert_eq!(linear.calls, 4 * paper.layers + 1);
        let attention = row(&plan, OpKind::Attention);
        assert_eq!(attention.cost.flops, batch * paper.attention(tokens, 0));
        assert_eq!(attention.calls, paper.layers);

        assert_eq!(plan.kv_bytes as u64, batch * paper.cache(tokens, 4));
        assert_eq!(sum(&plan), plan.total);
        assert_eq!(plan.total.bytes_comm, 0);
        assert!(plan.peak_bytes > plan.weight_bytes + plan.kv_bytes);
    }
}

#[test]
fn what_the_papers_leave_out_is_little_in_a_large_model() {
    let (_folder, source) = LLAMA_2_7B.source("bfloat16");
    let plan = plan(source.as_ref(), &PlanOptions { tokens: 2048, ..PlanOptions::default() }).unwrap();
    let formula = LLAMA_2_7B.products(2048, 1) + LLAMA_2_7B.attention(2048, 0);
    let rest = plan.total.flops as f64 / formula as f64 - 1.0;
    // Norms, rotation and gates: some ten operations an element of width d or ffn, against 2·d or more.
    assert!((0.0..5e-3).contains(&rest), "{rest}");
}

#[test]
fn a_decode_step_reads_every_weight_and_the_whole_cache_once() {
    let (_folder, source) = LLAMA_3_8B.source("bfloat16");
    let (cached, batch) = (4095, 4);
    let options = PlanOptions { cached, batch, precision: Precision::Fast, ..PlanOptions::default() };
    let plan = plan(source.as_ref(), &options).unwrap();
    let paper = &LLAMA_3_8B;
    let (batch, width) = (batch as u64, paper.heads * paper.head_dim);

    assert_eq!(row(&plan, OpKind::Linear).cost.flops, batch * paper.products(1, 1));
    assert_eq!(row(&plan, OpKind::Attention).cost.flops, batch * paper.attention(1, 4095));
    // A half-width cache, queries in f32, and two lengths a sequence.
    let cache = batch * paper.cache(4096, 2);
    assert_eq!(plan.kv_bytes as u64, cache);
    let queries = paper.layers * batch * (4 * width + 2 * 4);
    assert_eq!(row(&plan, OpKind::Attention).cost.bytes_read, cache + queries);
    // The matrices that take part in products, once, and their inputs in f32: d for q, k, v and for gate and up,
    // the heads' width, ffn, and d for the output.
    let inputs = paper.layers * (2 * paper.hidden + width + paper.ffn) + paper.hidden;
    let read = 2 * (paper.layer_matrices() + paper.embedding()) + 4 * batch * inputs;
    assert_eq!(row(&plan, OpKind::Linear).cost.bytes_read, read);
    // One row of the embedding a token, and its id.
    assert_eq!(row(&plan, OpKind::Embedding).cost.bytes_read, batch * (2 * paper.hidden + 4));
    // New keys and values, each in f32 to f16, with two lengths a sequence.
    let rows = batch * paper.layers * 2 * paper.kv_heads * paper.head_dim;
    let written = row(&plan, OpKind::KvCacheWrite).cost;
    assert_eq!(
        (written.bytes_written, written.bytes_read),
        (2 * rows, 4 * rows + 2 * paper.layers * batch * 8)
    );
}

#[test]
fn a_configuration_counts_as_the_weights_it_describes() {
    let files = load::open(&golden()).unwrap();
    let described = ConfigOnly::open(&golden().join("config.json")).unwrap();
    let options = PlanOptions { tokens: 9, cached: 4, batch: 2, ..PlanOptions::default() };
    let (a, b) = (plan(files.as_ref(), &options).unwrap(), plan(&described, &options).unwrap());
    assert_eq!((a.operators, a.total, a.peak_bytes), (b.operators, b.total, b.peak_bytes));
    assert_eq!(a.weight_bytes as u64, 4 * GOLDEN.parameters());
    assert_eq!(b.weight_bytes, a.weight_bytes);
}

#[test]
fn quantized_weights_count_as_they_are_stored() {
    let source = embedded().unwrap();
    // Norms are in f32 in the file too.
    let stored: u64 = source.tensors().iter().map(|tensor| tensor.bytes().unwrap()).sum();
    let plan = plan(&source, &PlanOptions { precision: Precision::Fast, ..PlanOptions::default() }).unwrap();
    assert_eq!(plan.weight_bytes as u64, stored);
}

#[test]
fn counting_through_compositions_costs_more_and_counts_the_same_calls() {
    let (_folder, source) = GOLDEN.source("float32");
    let options = PlanOptions { tokens: 16, ..PlanOptions::default() };
    let fused = plan(source.as_ref(), &options).unwrap();
    let composed = plan(source.as_ref(), &PlanOptions { count: Count::Composed, ..options }).unwrap();
    let calls = |plan: &Plan| plan.operators.iter().map(|row| (row.kind, row.calls)).collect::<Vec<_>>();
    assert_eq!(calls(&fused), calls(&composed));
    assert_eq!(sum(&composed), composed.total);
    for kind in [OpKind::Attention, OpKind::AddRmsNorm, OpKind::Rope, OpKind::Swiglu] {
        let (one, parts) = (row(&fused, kind).cost, row(&composed, kind).cost);
        assert!(parts.bytes_read + parts.bytes_written > one.bytes_read + one.bytes_written, "{kind}");
    }
    // A product with a dense weight is one kernel of the core.
    assert_eq!(row(&fused, OpKind::Linear).cost, row(&composed, OpKind::Linear).cost);
    assert_eq!(fused.weight_bytes, composed.weight_bytes);
    assert!(composed.peak_bytes > fused.peak_bytes, "scratch is alive too");
}

/// Shoeybi et al. 2019, section 3, and Korthikanti et al. 2022, section 4.2.1: each part of a layer ends with a sum over
/// the ranks of the activations `[tokens, hidden]`, of which a rank sends `2·(n − 1)/n`.
fn sent(layers: u64, tokens: u64, hidden: u64, ranks: u64) -> u64 {
    2 * layers * (2 * (ranks - 1) * (4 * tokens * hidden) / ranks)
}

#[test]
fn ranks_share_what_a_pass_costs_and_send_what_megatrons_formula_says() {
    for (paper, tokens, batch) in [(&LLAMA_2_7B, 512, 1), (&LLAMA_3_8B, 256, 3)] {
        let (_folder, source) = paper.source("bfloat16");
        for ranks in [1, 2, 4, 8u32] {
            let options = PlanOptions { tokens, batch, ranks, ..PlanOptions::default() };
            let plan = plan(source.as_ref(), &options).unwrap();
            let (n, tokens, batch) = (u64::from(ranks), tokens as u64, batch as u64);

            let sums = if n == 1 { 0 } else { sent(paper.layers, batch * tokens, paper.hidden, n) };
            assert_eq!(plan.total.bytes_comm, sums, "{ranks}");
            let calls: u64 = plan
                .operators
                .iter()
                .filter(|row| matches!(row.kind, OpKind::Collective(_)))
                .map(|row| row.calls)
                .sum();
            assert_eq!(calls, if n == 1 { 0 } else { 2 * paper.layers });
            // The output matrix is every rank's.
            let products = 2 * paper.layer_matrices() * tokens / n + 2 * paper.embedding();
            assert_eq!(row(&plan, OpKind::Linear).cost.flops, batch * products);
            assert_eq!(row(&plan, OpKind::Attention).cost.flops, batch * paper.attention(tokens, 0) / n);
            let weights = 2 * (paper.layer_matrices() / n + paper.embeddings()) + 4 * paper.norms();
            assert_eq!(plan.weight_bytes as u64, weights);
            assert_eq!(plan.kv_bytes as u64, batch * paper.cache(tokens, 4) / n);
        }
    }
    let (_folder, source) = LLAMA_3_8B.source("bfloat16");
    let error = plan(source.as_ref(), &PlanOptions { ranks: 3, ..PlanOptions::default() }).unwrap_err();
    assert!(error.to_string().contains("cannot share 32 heads equally"), "{error}");
    // More ranks than key heads have copies of them.
    let many = plan(source.as_ref(), &PlanOptions { ranks: 16, ..PlanOptions::default() }).unwrap();
    assert_eq!(many.kv_bytes as u64, LLAMA_3_8B.cache(1, 4) / 8);
}

/// Mixtral 8x7B (Jiang et al. 2024, table 1): 46.7 billion parameters, of which a token uses 12.9.
#[test]
fn ranks_share_experts_and_send_no_more_for_them_than_for_a_plain_layer() {
    let (layers, hidden, inner, experts, k, tokens) = (32u64, 4096u64, 14_336u64, 8u64, 2u64, 96u64);
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "architectures": ["MixtralForCausalLM"], "torch_dtype": "bfloat16", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": inner,
        "vocab_size": 32000, "num_local_experts": experts, "num_experts_per_tok": k, "sliding_window": null,
        "max_position_embeddings": 32768, "tie_word_embeddings": false
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let source = load::open_specs(folder.path()).unwrap();
    let planned = |ranks| {
        let options = PlanOptions { tokens: tokens as usize, ranks, ..PlanOptions::default() };
        plan(source.as_ref(), &options).unwrap()
    };
    let one = planned(1);
    assert!((one.weight_bytes as f64 / 2.0 / 46.7e9 - 1.0).abs() < 0.01, "{}", one.weight_bytes);
    for ranks in [1, 2, 4, 8u32] {
        let (plan, n) = (planned(ranks), u64::from(ranks));
        assert_eq!(plan.total.bytes_comm, if n == 1 { 0 } else { sent(layers, tokens, hidden, n) });
        // Gate, up and down of every place; the unit and the weighted sum beside them.
        let place = 2 * 3 * hidden * inner + 5 * inner + 2 * hidden;
        assert_eq!(row(&plan, OpKind::ExpertFfn).cost.flops, layers * tokens * k * place / n);
        let read = 2 * 3 * hidden * inner * layers * experts / n;
        let operands = layers * tokens * (4 * hidden + 8 * k);
        assert_eq!(row(&plan, OpKind::ExpertFfn).cost.bytes_read, read + operands);
        // Three numbers an expert and layer say whose it is.
        let tables = if n == 1 { 0 } else { 3 * 4 * experts * layers };
        let attention = 2 * layers * hidden * (2 * hidden + 2 * 1024);
        let whole = 2 * (2 * 32_000 * hidden + layers * experts * hidden) + 4 * (2 * layers + 1) * hidden;
        assert_eq!(plan.weight_bytes as u64, whole + attention / n + read + tables);
    }
}

#[test]
fn logits_of_every_token_cost_a_product_each() {
    let device = Registry::new().with(MetaBackend::new(MetaOptions::default())).open("meta:0").unwrap();
    let stream = device.stream(StreamOptions::default()).unwrap();
    let source = load::open(&golden()).unwrap();
    let model = Llama::load(&stream, source.as_ref(), Precision::Exact, &mut |_, _| {}).unwrap();
    let mut cache = model.cache(&stream, 1, 10).unwrap();
    let batch = Batch::new(&stream, &[&[1, 2, 3, 4, 5, 6, 7]], &[0], 10).unwrap();
    let logits = model.forward(&stream, &batch, &mut cache).unwrap();
    assert_eq!(logits.dims(), [7, 120]);
    let linear = stream.report().operators.into_iter().find(|row| row.kind == OpKind::Linear).unwrap();
    assert_eq!(linear.fused.flops, GOLDEN.products(7, 7));
    let error = stream.download::<f32>(&logits).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("keeps no data"), "{error}");
}

#[test]
fn a_model_that_does_not_fit_names_what_fills_the_memory() {
    let options = MetaOptions { memory_limit: Some(14 << 30), ..MetaOptions::default() };
    let device = Registry::new().with(MetaBackend::new(options)).open("meta:0").unwrap();
    let stream = device.stream(StreamOptions::default()).unwrap();
    let (_folder, source) = LLAMA_2_7B.source("bfloat16");
    let model = Llama::load(&stream, source.as_ref(), Precision::Exact, &mut |_, _| {}).unwrap();
    // 13.5 GB are weights; the cache of 8192 tokens would take 8.6.
    match model.cache(&stream, 1, 8192).map(|_| ()) {
        Err(portolan::Error::Op(OpError::OutOfMemory { holders, .. })) => {
            assert!(holders.iter().any(|holder| holder.label.contains("gate")), "{holders:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn passes_that_no_model_was_made_for_are_errors() {
    let (_folder, source) = GOLDEN.source("float32");
    let error = |options: PlanOptions| plan(source.as_ref(), &options).map(|_| ()).unwrap_err().to_string();
    assert!(error(PlanOptions { tokens: 8193, ..PlanOptions::default() }).contains("expected 1 to 8192"));
    assert!(error(PlanOptions { tokens: 8000, cached: 200, ..PlanOptions::default() }).contains("8200"));
    assert!(error(PlanOptions { tokens: 0, ..PlanOptions::default() }).contains("0 tokens"));
    assert!(
        error(PlanOptions { tokens: usize::MAX, ..PlanOptions::default() }).contains("expected 1 to 8192")
    );
    // Beyond any device's memory, and refused by its limit: nothing is computed or reserved on the host.
    let (_folder, source) = LLAMA_3_8B.source("bfloat16");
    let options = PlanOptions { tokens: 8192, batch: 1 << 20, ..PlanOptions::default() };
    let error = plan(source.as_ref(), &options).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("meta:0: out of memory") && error.contains("kv cache"), "{error}");
}

#[test]
fn a_configuration_without_weights_is_no_model_for_a_device_that_computes() {
    let described = ConfigOnly::open(&golden().join("config.json")).unwrap();
    let stream = portolan::open("cpu:0").unwrap().stream(StreamOptions::default()).unwrap();
    let error = Llama::load(&stream, &described, Precision::Exact, &mut |_, _| {}).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("a configuration has no weights"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.json");
    for (text, said) in
        [("{\"torch_dtype\": \"int3\"}", "bfloat16"), ("{", "not valid json"), ("[]", "object")]
    {
        std::fs::write(&config, text).unwrap();
        let message = match load::open_specs(folder.path()) {
            Err(error) => error.to_string(),
            Ok(source) => plan(source.as_ref(), &PlanOptions::default()).map(|_| ()).unwrap_err().to_string(),
        };
        assert!(message.contains(said) && message.contains("config.json"), "{message}");
    }
}
