//! The `tojson` filter as `transformers` has it: Python's `json.dumps` without escaping beyond ASCII.
//! Python puts a space after `,` and `:` where nothing is indented; models were trained on those spaces.

use std::io;

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Python's default separators: `, ` and `: `.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// `value` as JSON; `indent` (at most 8) puts every entry on its own line.
pub(super) fn to_json(value: &Value, options: &Kwargs) -> Result<String, Error> {
    let bad = |why: String| Error::new(ErrorKind::BadSerialization, why);
    let mut out = Vec::new();
    let written = match options.get::<Option<usize>>("indent")? {
        Some(indent @ 0..=8) => {
            let space = [b' '; 8];
            let pretty = PrettyFormatter::with_indent(&space[..indent]);
            value.serialize(&mut Serializer::with_formatter(&mut out, pretty))
        }
        Some(indent) => return Err(bad(format!("an indent of {indent}"))),
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)),
    };
    written.map_err(|error| bad(error.to_string()))?;
    String::from_utf8(out).map_err(|error| bad(error.to_string()))
}
