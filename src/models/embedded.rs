//! A small Llama that needs no download: a whole GGUF file in memory, its weights from a formula.
//!
//! It goes through the real reader, tokenizer, loader and model, and has weights of several stored types; the
//! answer it should give is computed by `oracle.rs`.

use crate::Error;
use crate::load::Bytes;
use crate::load::gguf::{GgmlType, Gguf};
use portolan_ops::{philox_block, unit_from_bits};

/// Chooses the weights.
const SEED: u64 = 0x706f_7274_6f6c_616e;
const HIDDEN: usize = 64;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = HIDDEN / HEADS;
const FFN: usize = 160;
const VOCAB: usize = 128;
const CONTEXT: usize = 1 << 16;
const ALIGNMENT: usize = 32;
/// Tokens that stand for structure: unknown, begin and end. Their output rows are zero, so the model never says them
/// and writes for as long as it is asked to.
const SPECIAL: [&str; 3] = ["<unk>", "<|im_start|>", "<|im_end|>"];
const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>{% endif %}";

/// The embedded model, open.
///
/// # Errors
/// None that a correct reader gives.
pub fn embedded() -> Result<Gguf, Error> {
    Ok(Gguf::parse(Box::new(Bytes::new("the embedded model", embedded_file())))?)
}

/// The embedded model as the bytes of a GGUF file: 2 layers, hidden size 64, 4 query and 2 key heads, 128 tokens.
pub fn embedded_file() -> Vec<u8> {
    let tensors = tensors();
    let mut file = Writer(Vec::new());
    file.0.extend(b"GGUF");
    file.u32(3);
    file.u64(tensors.len() as u64);
    let entries = metadata();
    file.u64(entries.len() as u64);
    for (key, value) in &entries {
        file.text(key);
        file.value(value);
    }
    let mut data = Vec::new();
    for (at, tensor) in tensors.iter().enumerate() {
        file.text(&tensor.name);
        file.u32(tensor.dims.len() as u32);
        for &dim in tensor.dims.iter().rev() {
            file.u64(dim as u64);
        }
        file.u32(tensor.stored.0);
        file.u64(data.len() as u64);
        data.extend(tensor.bytes(SEED.wrapping_add(at as u64)));
        data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
    }
    let mut file = file.0;
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    file.extend(data);
    file
}

/// One tensor of the file.
struct Planned {
    name: String,
    dims: Vec<usize>,
    stored: GgmlType,
    /// Values lie in `centre ± spread`.
    centre: f32,
    spread: f32,
    /// Leading rows that are zero.
    zero_rows: usize,
}

impl Planned {
    /// Elements of row `row` and beyond, drawn as stored: whole numbers under random scales where quantized.
    fn bytes(&self, seed: u64) -> Vec<u8> {
        let numel: usize = self.dims.iter().product();
        let zeros = self.zero_rows * self.dims.last().copied().unwrap_or(0);
        let lane = |i: usize| philox_block(seed, i as u64 / 4)[i % 4];
        let value = |i: usize| match i < zeros {
            true => 0.0,
            false => self.centre + self.spread * (2.0 * unit_from_bits(lane(i)) - 1.0),
        };
        let mut bytes = Vec::new();
        let f16 = |bytes: &mut Vec<u8>, x: f32| bytes.extend(half_bits(x).to_le_bytes());
        match self.stored {
            // The upper half of an f32.
            GgmlType::BF16 => (0..numel).for_each(|i| bytes.extend(&value(i).to_le_bytes()[2..])),
            GgmlType::Q8_0 => {
                for block in 0..numel / 32 {
                    let first = block * 32;
                    // Below the sign and the code of a lane lie bits that are still unused.
                    let scale = self.spread * (0.5 + 0.5 * unit_from_bits(lane(first) << 8)) / 127.0;
                    f16(&mut bytes, if first < zeros { 0.0 } else { scale });
                    bytes.extend((first..first + 32).map(|i| (lane(i) >> 24) as u8));
                }
            }
            GgmlType::Q4_1 => {
                for block in 0..numel / 32 {
                    let first = block * 32;
                    let reach = self.spread * (0.5 + 0.5 * unit_from_bits(lane(first) << 8));
                    f16(&mut bytes, 2.0 * reach / 15.0);
                    f16(&mut bytes, -reach);
                    bytes.extend((first..first + 16).map(|i| (lane(i) >> 24) as u8));
                }
            }
            _ => (0..numel).for_each(|i| bytes.extend(value(i).to_le_bytes())),
        }
        bytes
    }
}

/// The f16 next to a small normal number, towards zero.
fn half_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let exponent = (bits >> 23 & 0xff) as i32 - 112;
    if exponent <= 0 { sign } else { sign | (exponent as u16) << 10 | (bits >> 13 & 0x3ff) as u16 }
}

fn tensors() -> Vec<Planned> {
    // Uniform in ± √(3 / k) keeps the size of what it multiplies.
    let gain = |k: usize| (3.0 / k as f32).sqrt();
    let weight = |name: String, n: usize, k: usize, stored| Planned {
        name,
        dims: vec![n, k],
        stored,
        centre: 0.0,
        spread: gain(k),
        zero_rows: 0,
    };
    let norm = |name: String| Planned {
        name,
        dims: vec![HIDDEN],
        stored: GgmlType::F32,
        centre: 1.0,
        spread: 0.25,
        zero_rows: 0,
    };
    let kv = KV_HEADS * HEAD_DIM;
    let mut all =
        vec![Planned { spread: 1.0, ..weight("token_embd.weight".into(), VOCAB, HIDDEN, GgmlType::F32) }];
    for layer in 0..LAYERS {
        // One layer of plain weights, one of quantized ones.
        let stored = |plain, quantized| if layer % 2 == 0 { plain } else { quantized };
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        all.extend([
            norm(name("attn_norm")),
            weight(name("attn_q"), HIDDEN, HIDDEN, stored(GgmlType::F32, GgmlType::Q4_1)),
            weight(name("attn_k"), kv, HIDDEN, stored(GgmlType::F32, GgmlType::Q4_1)),
            weight(name("attn_v"), kv, HIDDEN, stored(GgmlType::F32, GgmlType::Q8_0)),
            weight(name("attn_output"), HIDDEN, HIDDEN, stored(GgmlType::BF16, GgmlType::Q4_1)),
            norm(name("ffn_norm")),
            weight(name("ffn_gate"), FFN, HIDDEN, stored(GgmlType::BF16, GgmlType::Q8_0)),
            weight(name("ffn_up"), FFN, HIDDEN, stored(GgmlType::BF16, GgmlType::Q8_0)),
            weight(name("ffn_down"), HIDDEN, FFN, stored(GgmlType::F32, GgmlType::Q4_1)),
        ]);
    }
    all.push(norm("output_norm.weight".into()));
    let output = weight("output.weight".into(), VOCAB, HIDDEN, GgmlType::Q8_0);
    all.push(Planned { spread: 4.0 * output.spread, zero_rows: SPECIAL.len(), ..output });
    all
}

enum Entry {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i32>),
}

fn metadata() -> Vec<(&'static str, Entry)> {
    // The printable characters in the byte-level alphabet, where a space is `Ġ` and a newline `Ċ`; pairs fill the rest.
    let mut tokens: Vec<String> = SPECIAL.iter().map(|&text| text.into()).collect();
    tokens.push("Ċ".into());
    tokens.push("Ġ".into());
    tokens.extend(('!'..='~').map(String::from));
    let singles = "eaotinsrhldcumfpgwybvk".chars();
    let merges: Vec<String> =
        singles.take(VOCAB - tokens.len()).map(|letter| format!("Ġ {letter}")).collect();
    tokens.extend(merges.iter().map(|pair| pair.replace(' ', "")));
    tokens.extend((tokens.len()..VOCAB).map(|i| format!("<|unused {i}|>")));
    let types =
        tokens.iter().map(|token| if token.starts_with('<') && token.len() > 1 { 3 } else { 1 }).collect();
    vec![
        ("general.architecture", Entry::Text("llama".into())),
        ("general.name", Entry::Text("embedded".into())),
        ("llama.block_count", Entry::U32(LAYERS as u32)),
        ("llama.context_length", Entry::U32(CONTEXT as u32)),
        ("llama.embedding_length", Entry::U32(HIDDEN as u32)),
        ("llama.feed_forward_length", Entry::U32(FFN as u32)),
        ("llama.attention.head_count", Entry::U32(HEADS as u32)),
        ("llama.attention.head_count_kv", Entry::U32(KV_HEADS as u32)),
        ("llama.attention.layer_norm_rms_epsilon", Entry::F32(1e-5)),
        ("llama.rope.dimension_count", Entry::U32(HEAD_DIM as u32)),
        ("llama.rope.freq_base", Entry::F32(10_000.0)),
        ("llama.vocab_size", Entry::U32(VOCAB as u32)),
        ("tokenizer.ggml.model", Entry::Text("gpt2".into())),
        ("tokenizer.ggml.pre", Entry::Text("gpt-2".into())),
        ("tokenizer.ggml.tokens", Entry::Texts(tokens)),
        ("tokenizer.ggml.token_type", Entry::Integers(types)),
        ("tokenizer.ggml.merges", Entry::Texts(merges)),
        ("tokenizer.ggml.unknown_token_id", Entry::U32(0)),
        ("tokenizer.ggml.bos_token_id", Entry::U32(1)),
        ("tokenizer.ggml.eos_token_id", Entry::U32(2)),
        ("tokenizer.ggml.add_bos_token", Entry::Bool(true)),
        ("tokenizer.chat_template", Entry::Text(TEMPLATE.into())),
    ]
}

/// Writes the format's little-endian numbers and counted texts.
struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.0.extend(text.as_bytes());
    }

    /// The value behind its type's number.
    fn value(&mut self, value: &Entry) {
        match value {
            Entry::U32(v) => {
                self.u32(4);
                self.u32(*v);
            }
            Entry::F32(v) => {
                self.u32(6);
                self.u32(v.to_bits());
            }
            Entry::Bool(v) => {
                self.u32(7);
                self.0.push(u8::from(*v));
            }
            Entry::Text(v) => {
                self.u32(8);
                self.text(v);
            }
            Entry::Texts(v) => {
                self.u32(9);
                self.u32(8);
                self.u64(v.len() as u64);
                v.iter().for_each(|text| self.text(text));
            }
            Entry::Integers(v) => {
                self.u32(9);
                self.u32(5);
                self.u64(v.len() as u64);
                v.iter().for_each(|i| self.0.extend(i.to_le_bytes()));
            }
        }
    }
}
