//! JSON files beside weights, as Python writes them.

use super::error::{LoadError, Result, printable};
use super::source::{FileSource, Source, read_vec};
use std::path::Path;

/// The longest JSON file read whole (`config.json`, the index).
const MAX_JSON: u64 = 1 << 25;

/// Reads a JSON file of bounded length.
pub(crate) fn read_json(path: &Path) -> Result<serde_json::Value> {
    let source = FileSource::open(path)?;
    if source.len() > MAX_JSON {
        return Err(LoadError::corrupt(
            path,
            format!("{} bytes of json, at most {MAX_JSON} are read", source.len()),
        ));
    }
    let text = read_vec(&source, "the file", 0, source.len())?;
    serde_json::from_slice(&text)
        // Worth a look only where the text is no JSON.
        .or_else(|error| serde_json::from_slice(&python_floats(&text)).map_err(|_| error))
        .map_err(|e| LoadError::corrupt(path, format!("not valid json: {}", printable(&e.to_string()))))
}

/// The text with Python's bare `Infinity` and `NaN`, which JSON has not, in the form that the transformers library writes
/// them in today: `{"__float__": "Infinity"}`.
fn python_floats(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let (mut rest, mut quoted) = (text, false);
    while let Some((&byte, behind)) = rest.split_first() {
        let bare = ["-Infinity", "Infinity", "NaN"].iter().find(|name| rest.starts_with(name.as_bytes()));
        if let Some(name) = bare.filter(|_| !quoted) {
            out.extend(format!("{{\"__float__\": \"{name}\"}}").into_bytes());
            rest = &rest[name.len()..];
            continue;
        }
        out.push(byte);
        rest = behind;
        if byte == b'\\' && quoted {
            // Whatever is escaped ends no text.
            out.extend(rest.first());
            rest = rest.get(1..).unwrap_or_default();
        }
        quoted ^= byte == b'"';
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_lacks_are_read_where_they_stand_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_json(&path)
        };
        let infinite = serde_json::json!({"__float__": "Infinity"});
        assert_eq!(read("[0.0, Infinity]").unwrap()[1], infinite);
        assert_eq!(read("{\"a\": -Infinity}").unwrap()["a"]["__float__"], "-Infinity");
        assert_eq!(read(r#"["\"Infinity", Infinity]"#).unwrap()[0], "\"Infinity");
        for text in ["[Infinity", "Inf", "[0.0, Infinit]", "\"NaN"] {
            assert!(read(text).unwrap_err().to_string().contains("not valid json"), "{text}");
        }
    }
}
