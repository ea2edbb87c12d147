//! `portolan inspect`: metadata and tensors of a model file, for people or as JSON.

use crate::args::InspectArgs;
use crate::failure::Failure;
use portolan::fetch::{FetchOptions, resolve_model};
use portolan::load::gguf::{Array, Value};
use portolan::load::{self, SourceMetadata, WeightSource};
use serde_json::{Map, Value as Json, json};
use std::io::Write;

/// Values of an array that are shown.
const SHOWN: usize = 6;

pub(crate) fn run(args: &InspectArgs) -> Result<(), Failure> {
    let options = FetchOptions { cache: args.cache.clone(), ..FetchOptions::default() };
    let path = resolve_model(&args.file, &options)?;
    let source = load::open(&path)?;
    let tensors = tensors(source.as_ref())?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    if args.json {
        let rows: Vec<Json> = tensors
            .iter()
            .map(|t| json!({"name": t.name, "shape": t.dims, "type": t.stored, "bytes": t.bytes}))
            .collect();
        let all = json!({
            "path": path.display().to_string(),
            "format": format_name(source.as_ref()),
            "metadata": metadata(source.as_ref()),
            "tensors": rows,
            "totals": {
                "tensors": tensors.len(),
                "elements": tensors.iter().map(|t| t.elements).sum::<u64>(),
                "bytes": tensors.iter().filter_map(|t| t.bytes).sum::<u64>(),
            },
        });
        writeln!(out, "{all}")?;
        return Ok(out.flush()?);
    }
    writeln!(out, "{} ({})", path.display(), format_name(source.as_ref()))?;
    let metadata = metadata(source.as_ref());
    writeln!(out, "\nmetadata ({} entries)", metadata.len())?;
    for (key, value) in &metadata {
        writeln!(out, "  {} = {}", printable(key, 120), short(value))?;
    }
    writeln!(out, "\ntensors ({})", tensors.len())?;
    let width = tensors.iter().map(|t| t.name.chars().count()).max().unwrap_or(0).min(60);
    for tensor in &tensors {
        let bytes = tensor.bytes.map_or("? bytes".into(), |bytes| format!("{bytes} bytes"));
        let dims = tensor.dims.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        writeln!(
            out,
            "  {:<width$}  {:<6}  {:<16}  {bytes}",
            printable(&tensor.name, 120),
            tensor.stored,
            format!("[{dims}]")
        )?;
    }
    writeln!(out, "\ntotals")?;
    let mut kinds: Vec<&str> = tensors.iter().map(|t| t.stored.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for kind in kinds.into_iter().map(Some).chain([None]) {
        let of_kind = || tensors.iter().filter(move |t| kind.is_none_or(|kind| t.stored == kind));
        let elements: u64 = of_kind().map(|t| t.elements).sum();
        let bytes: u64 = of_kind().filter_map(|t| t.bytes).sum();
        writeln!(
            out,
            "  {:<6}  {} tensors, {elements} elements, {bytes} bytes",
            kind.unwrap_or("all"),
            of_kind().count()
        )?;
    }
    Ok(out.flush()?)
}

struct Row {
    name: String,
    dims: Vec<usize>,
    stored: String,
    elements: u64,
    bytes: Option<u64>,
}

fn tensors(source: &dyn WeightSource) -> Result<Vec<Row>, Failure> {
    let row = |name: &str| -> Result<Row, Failure> {
        let shape = source.shape(name)?;
        Ok(Row {
            name: name.into(),
            dims: shape.dims().to_vec(),
            stored: source.stored_as(name)?,
            elements: shape.numel() as u64,
            bytes: source.stored_bytes(name)?,
        })
    };
    source.names().into_iter().map(row).collect()
}

fn format_name(source: &dyn WeightSource) -> &'static str {
    match source.metadata() {
        SourceMetadata::Gguf(_) => "gguf",
        _ => "safetensors",
    }
}

/// The file's metadata, long arrays shortened.
fn metadata(source: &dyn WeightSource) -> Map<String, Json> {
    match source.metadata() {
        SourceMetadata::Gguf(metadata) => {
            metadata.entries().map(|(key, value)| (key.to_owned(), json_of(value))).collect()
        }
        SourceMetadata::Config(_, Json::Object(config)) => config.clone(),
        _ => Map::new(),
    }
}

fn json_of(value: &Value) -> Json {
    match value {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::F32(v) => json!(v),
        Value::F64(v) => json!(v),
        Value::Bool(v) => json!(v),
        Value::String(v) => json!(v),
        Value::Array(array) => shortened(array),
    }
}

/// The whole array where it is short; else its length, its type and its beginning.
fn shortened(array: &Array) -> Json {
    fn first<T: serde::Serialize>(values: &[T]) -> Json {
        json!(values[..values.len().min(SHOWN)])
    }
    let shown = match array {
        Array::U8(v) => first(v),
        Array::I8(v) => first(v),
        Array::U16(v) => first(v),
        Array::I16(v) => first(v),
        Array::U32(v) => first(v),
        Array::I32(v) => first(v),
        Array::U64(v) => first(v),
        Array::I64(v) => first(v),
        Array::F32(v) => first(v),
        Array::F64(v) => first(v),
        Array::Bool(v) => first(v),
        Array::String(v) => first(v),
        Array::Array(v) => Json::Array(v.iter().take(SHOWN).map(shortened).collect()),
    };
    if array.len() <= SHOWN { shown } else { json!({"length": array.len(), "first": shown}) }
}

/// A value on one line of bounded length.
fn short(value: &Json) -> String {
    match value {
        Json::Object(map) if map.contains_key("length") && map.contains_key("first") => {
            printable(&format!("{} values: {}", map["length"], map["first"]), 200)
        }
        value => printable(&value.to_string(), 200),
    }
}

/// Text from a file as it may stand in a terminal: no control characters, at most `most` characters.
fn printable(text: &str, most: usize) -> String {
    let mut out: String = text
        .chars()
        .take(most)
        .flat_map(|c| match c.is_control() {
            true => c.escape_default().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect();
    if text.chars().nth(most).is_some() {
        out.push('…');
    }
    out
}
