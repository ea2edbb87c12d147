//! Unpacks GGUF blocks into planar parts, bit for bit: codes, scales, minima and their outer factors.
//!
//! Nothing is rounded, so the blocks could be rebuilt from the parts. What the parts mean is written in
//! `portolan-ops`, `quant/scheme.rs`; here is only where the file's blocks keep them.

use super::TensorEntry;
use super::types::{GgmlType, SUPPORTED_TYPES};
use crate::load::error::{LoadError, Result, printable, reserve};
use crate::load::form::WeightForm;
use crate::load::source::{Source, read_vec};
use crate::load::weights::{HostQuant, HostWeight};
use portolan_ops::quant::{QuantScheme, QuantSpec};
use portolan_ops::{DType, HostTensor, OpError, TensorSpec};
use std::path::Path;

/// Bytes of blocks read at a time: a tensor is never held in memory twice.
const CHUNK: u64 = 1 << 20;

/// The planar parts as they grow; those a scheme lacks stay empty.
#[derive(Default)]
struct Parts {
    codes: Vec<u8>,
    scale: Vec<u8>,
    offset: Vec<u8>,
    outer: Vec<u8>,
    outer_offset: Vec<u8>,
}

/// Appends one block to the parts.
type Unpack = fn(&[u8], &mut Parts);

/// What reading a tensor would give.
pub(super) fn form(path: &Path, entry: &TensorEntry) -> Result<WeightForm> {
    let dense = match entry.ggml_type {
        GgmlType::F32 => Some(DType::F32),
        GgmlType::F16 => Some(DType::F16),
        GgmlType::BF16 => Some(DType::BF16),
        _ => None,
    };
    if let Some(dtype) = dense {
        return Ok(WeightForm::Dense(TensorSpec::new(dtype, entry.shape)));
    }
    let (scheme, _) = scheme_of(entry.ggml_type).ok_or_else(|| unsupported(path, entry))?;
    let spec = QuantSpec::of(scheme, entry.shape.rows(), entry.shape.last());
    Ok(WeightForm::Quant(entry.shape, Box::new(spec.map_err(|e| unheld(path, entry, &e))?)))
}

/// Reads a tensor.
pub(super) fn load(source: &dyn Source, entry: &TensorEntry) -> Result<HostWeight> {
    let path = source.path();
    let form = form(path, entry)?;
    let bytes = entry.bytes.ok_or_else(|| unsupported(path, entry))?;
    let what = format!("tensor `{}`", printable(&entry.name));
    let refuse = |e: OpError| unheld(path, entry, &e);
    match (form, scheme_of(entry.ggml_type)) {
        (WeightForm::Quant(shape, spec), Some((_, unpack))) => {
            let parts = unpack_all(source, &what, entry, bytes, &spec, unpack)?;
            let parts = [parts.codes, parts.scale, parts.offset, parts.outer, parts.outer_offset];
            Ok(HostWeight::Quant(Box::new(HostQuant::new(shape, *spec, parts).map_err(refuse)?)))
        }
        (WeightForm::Dense(spec), None) => {
            let data = read_vec(source, &what, entry.offset, bytes)?;
            Ok(HostWeight::Dense(HostTensor::from_bytes(&spec, data).map_err(refuse)?))
        }
        _ => Err(unsupported(path, entry)),
    }
}

fn unsupported(path: &Path, entry: &TensorEntry) -> LoadError {
    LoadError::UnsupportedType {
        path: path.into(),
        name: printable(&entry.name),
        seen: entry.ggml_type.to_string(),
        supported: SUPPORTED_TYPES,
    }
}

fn unheld(path: &Path, entry: &TensorEntry, error: &OpError) -> LoadError {
    LoadError::tensor(path, &entry.name, format!("cannot be held: {error}"))
}

fn unpack_all(
    source: &dyn Source,
    what: &str,
    entry: &TensorEntry,
    bytes: u64,
    spec: &QuantSpec,
    unpack: Unpack,
) -> Result<Parts> {
    let room =
        |spec: Option<&TensorSpec>| reserve(source.path(), what, spec.map_or(0, TensorSpec::span_bytes));
    let mut parts = Parts {
        codes: room(Some(spec.codes()))?,
        scale: room(Some(spec.scale()))?,
        offset: room(spec.offset())?,
        outer: room(spec.outer())?,
        outer_offset: room(spec.outer_offset())?,
    };
    let block = entry.ggml_type.block().map_or(1, |(_, bytes)| bytes.max(1));
    let step = CHUNK / u64::from(block) * u64::from(block);
    let mut chunk = Vec::new();
    let mut done = 0;
    while done < bytes {
        let len = step.min(bytes - done);
        chunk.resize(len as usize, 0);
        source.read_at(entry.offset + done, &mut chunk)?;
        chunk.chunks_exact(block as usize).for_each(|block| unpack(block, &mut parts));
        done += len;
    }
    Ok(parts)
}

/// The scheme of a quantized type, and what unpacks one of its blocks.
fn scheme_of(ggml_type: GgmlType) -> Option<(QuantScheme, Unpack)> {
    Some(match ggml_type {
        GgmlType::Q4_0 => (QuantScheme::Q4_0, unpack_q4_0),
        GgmlType::Q4_1 => (QuantScheme::Q4_1, unpack_q4_1),
        GgmlType::Q5_0 => (QuantScheme::Q5_0, unpack_q5_0),
        GgmlType::Q5_1 => (QuantScheme::Q5_1, unpack_q5_1),
        GgmlType::Q8_0 => (QuantScheme::Q8_0, unpack_q8_0),
        GgmlType::Q4_K => (QuantScheme::Q4_K, unpack_q4_k),
        GgmlType::Q5_K => (QuantScheme::Q5_K, unpack_q5_k),
        GgmlType::Q6_K => (QuantScheme::Q6_K, unpack_q6_k),
        _ => return None,
    })
}

/// Nibbles of half a block each (all low ones first) to two adjacent elements a byte; `flip` is xored in.
fn push_nibbles(half_split: &[u8], flip: u8, codes: &mut Vec<u8>) {
    let pairs = half_split.as_chunks::<2>().0;
    codes.extend(pairs.iter().map(|[a, b]| ((a & 15) | (b << 4)) ^ flip));
    codes.extend(pairs.iter().map(|[a, b]| ((a >> 4) | (b & 0xF0)) ^ flip));
}

/// f16 scale; 16 bytes, byte i holds elements i and i + 16, each plus 8.
fn unpack_q4_0(block: &[u8], parts: &mut Parts) {
    parts.scale.extend_from_slice(&block[..2]);
    // Taking 8 off a nibble, in two's complement of four bits, flips its top bit.
    push_nibbles(&block[2..18], 0x88, &mut parts.codes);
}

/// f16 scale, f16 minimum; 16 bytes of nibbles.
fn unpack_q4_1(block: &[u8], parts: &mut Parts) {
    parts.scale.extend_from_slice(&block[..2]);
    parts.offset.extend_from_slice(&block[2..4]);
    push_nibbles(&block[4..20], 0, &mut parts.codes);
}

/// Elements of 5 bits: nibbles as in 4-bit blocks, the fifth bit of element i is bit i of a u32.
fn push_fives(high: &[u8], nibbles: &[u8], less: u8, codes: &mut Vec<u8>) {
    let fifth = |i: usize| (high[i / 8] >> (i % 8) & 1) << 4;
    codes.extend(nibbles.iter().enumerate().map(|(i, b)| ((b & 15) | fifth(i)).wrapping_sub(less)));
    codes.extend(nibbles.iter().enumerate().map(|(i, b)| ((b >> 4) | fifth(i + 16)).wrapping_sub(less)));
}

/// f16 scale; 32 high bits; 16 bytes of nibbles; codes plus 16.
fn unpack_q5_0(block: &[u8], parts: &mut Parts) {
    parts.scale.extend_from_slice(&block[..2]);
    push_fives(&block[2..6], &block[6..22], 16, &mut parts.codes);
}

/// f16 scale, f16 minimum; 32 high bits; 16 bytes of nibbles.
fn unpack_q5_1(block: &[u8], parts: &mut Parts) {
    parts.scale.extend_from_slice(&block[..2]);
    parts.offset.extend_from_slice(&block[2..4]);
    push_fives(&block[4..8], &block[8..24], 0, &mut parts.codes);
}

/// f16 scale; 32 signed bytes.
fn unpack_q8_0(block: &[u8], parts: &mut Parts) {
    parts.scale.extend_from_slice(&block[..2]);
    parts.codes.extend_from_slice(&block[2..34]);
}

/// The head of a K-block with minima: f16 factors of scales and of minima, 8 of each in 12 bytes.
///
/// Sub-blocks 0 to 3 have their scales in the low six bits of bytes 0 to 3, their minima in those of 4 to 7;
/// 4 to 7 have the low four bits of both in bytes 8 to 11 and the upper two in the top of the first eight.
/// The file subtracts minima, the scheme adds them: the factor's sign bit is flipped, which loses nothing.
fn push_k_head(block: &[u8], parts: &mut Parts) {
    parts.outer.extend_from_slice(&block[..2]);
    parts.outer_offset.extend_from_slice(&[block[2], block[3] ^ 0x80]);
    let packed = &block[4..16];
    parts.scale.extend((0..4).map(|j| packed[j] & 63));
    parts.scale.extend((0..4).map(|j| (packed[8 + j] & 15) | (packed[j] >> 6) << 4));
    parts.offset.extend((0..4).map(|j| packed[4 + j] & 63));
    parts.offset.extend((0..4).map(|j| (packed[8 + j] >> 4) | (packed[4 + j] >> 6) << 4));
}

/// Head; 4 times 32 bytes, each the nibbles of two sub-blocks.
fn unpack_q4_k(block: &[u8], parts: &mut Parts) {
    push_k_head(block, parts);
    block[16..144].chunks_exact(32).for_each(|group| push_nibbles(group, 0, &mut parts.codes));
}

/// Head; 32 bytes whose bit j is the fifth bit of sub-block j; nibbles as in 4-bit K-blocks.
fn unpack_q5_k(block: &[u8], parts: &mut Parts) {
    push_k_head(block, parts);
    let high = &block[16..48];
    for (pair, group) in block[48..176].chunks_exact(32).enumerate() {
        let fifth = |l: usize, sub: usize| (high[l] >> sub & 1) << 4;
        parts.codes.extend(group.iter().enumerate().map(|(l, b)| (b & 15) | fifth(l, 2 * pair)));
        parts.codes.extend(group.iter().enumerate().map(|(l, b)| (b >> 4) | fifth(l, 2 * pair + 1)));
    }
}

/// 128 bytes of low nibbles, 64 of upper bit pairs, 16 signed scales, f16 factor; codes plus 32.
///
/// Each half of 128 elements has 64 and 32 of those bytes: quarter q takes the low (q < 2) or high nibbles of
/// bytes `32·(q mod 2)..`, and bits 2q and 2q + 1 of the 32.
fn unpack_q6_k(block: &[u8], parts: &mut Parts) {
    for half in 0..2 {
        let (low, high) = (&block[64 * half..][..64], &block[128 + 32 * half..][..32]);
        for quarter in 0..4 {
            let nibbles = &low[32 * (quarter % 2)..][..32];
            parts.codes.extend(nibbles.iter().zip(high).map(|(l, h)| {
                let code = (l >> (4 * (quarter / 2)) & 15) | (h >> (2 * quarter) & 3) << 4;
                code.wrapping_sub(32)
            }));
        }
    }
    parts.scale.extend_from_slice(&block[192..208]);
    parts.outer.extend_from_slice(&block[208..210]);
}
