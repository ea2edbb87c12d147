//! Typed metadata of a GGUF file and the accessors that say what was wrong with an entry.
//!
//! Integers of any width are accepted where they fit: writers disagree about widths, not about values.

use crate::load::error::{LoadError, Result, printable};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

macro_rules! kinds {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident($rust:ty) = $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub enum $name { $($(#[$variant_doc])* $variant($rust),)* }

        impl $name {
            fn label(&self) -> &'static str {
                match self { $($name::$variant(_) => $label,)* }
            }
        }
    };
}

kinds! {
    /// The value of one metadata entry.
    Value {
        /// Unsigned, 8 bits.
        U8(u8) = "u8",
        /// Signed, 8 bits.
        I8(i8) = "i8",
        /// Unsigned, 16 bits.
        U16(u16) = "u16",
        /// Signed, 16 bits.
        I16(i16) = "i16",
        /// Unsigned, 32 bits.
        U32(u32) = "u32",
        /// Signed, 32 bits.
        I32(i32) = "i32",
        /// IEEE binary32.
        F32(f32) = "f32",
        /// True or false.
        Bool(bool) = "bool",
        /// Text.
        String(String) = "string",
        /// Several values of one type.
        Array(Array) = "array",
        /// Unsigned, 64 bits.
        U64(u64) = "u64",
        /// Signed, 64 bits.
        I64(i64) = "i64",
        /// IEEE binary64.
        F64(f64) = "f64",
    }
}

kinds! {
    /// Several values of one type, held without a tag each.
    Array {
        /// Unsigned, 8 bits.
        U8(Vec<u8>) = "u8",
        /// Signed, 8 bits.
        I8(Vec<i8>) = "i8",
        /// Unsigned, 16 bits.
        U16(Vec<u16>) = "u16",
        /// Signed, 16 bits.
        I16(Vec<i16>) = "i16",
        /// Unsigned, 32 bits.
        U32(Vec<u32>) = "u32",
        /// Signed, 32 bits.
        I32(Vec<i32>) = "i32",
        /// IEEE binary32.
        F32(Vec<f32>) = "f32",
        /// True or false.
        Bool(Vec<bool>) = "bool",
        /// Texts.
        String(Vec<String>) = "string",
        /// Arrays, of any types.
        Array(Vec<Array>) = "array",
        /// Unsigned, 64 bits.
        U64(Vec<u64>) = "u64",
        /// Signed, 64 bits.
        I64(Vec<i64>) = "i64",
        /// IEEE binary64.
        F64(Vec<f64>) = "f64",
    }
}

impl Array {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::Array(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F64(v) => v.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Value {
    /// The type, and the value where it is short: `u32 7`, `array of 12 string`.
    pub fn describe(&self) -> String {
        match self {
            Value::U8(v) => format!("u8 {v}"),
            Value::I8(v) => format!("i8 {v}"),
            Value::U16(v) => format!("u16 {v}"),
            Value::I16(v) => format!("i16 {v}"),
            Value::U32(v) => format!("u32 {v}"),
            Value::I32(v) => format!("i32 {v}"),
            Value::U64(v) => format!("u64 {v}"),
            Value::I64(v) => format!("i64 {v}"),
            Value::F32(v) => format!("f32 {v}"),
            Value::F64(v) => format!("f64 {v}"),
            Value::Bool(v) => format!("bool {v}"),
            Value::String(v) => format!("string \"{}\"", printable(v)),
            Value::Array(v) => format!("array of {} {}", v.len(), v.label()),
        }
    }

    /// The type's name: `u32`, `string`, `array`.
    pub fn type_name(&self) -> &'static str {
        self.label()
    }

    fn integer(&self) -> Option<i128> {
        Some(match self {
            Value::U8(v) => i128::from(*v),
            Value::I8(v) => i128::from(*v),
            Value::U16(v) => i128::from(*v),
            Value::I16(v) => i128::from(*v),
            Value::U32(v) => i128::from(*v),
            Value::I32(v) => i128::from(*v),
            Value::U64(v) => i128::from(*v),
            Value::I64(v) => i128::from(*v),
            _ => return None,
        })
    }
}

/// The metadata of a file: named, typed values, in the order of the file.
#[derive(Clone, Debug)]
pub struct Metadata {
    path: PathBuf,
    entries: Vec<(String, Value)>,
    places: HashMap<String, usize>,
}

impl Metadata {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.into(), entries: Vec::new(), places: HashMap::new() }
    }

    /// Adds an entry; a key may occur once.
    pub(super) fn insert(&mut self, key: String, value: Value) -> Result<()> {
        if self.places.insert(key.clone(), self.entries.len()).is_some() {
            return Err(LoadError::corrupt(&self.path, format!("key `{}` occurs twice", printable(&key))));
        }
        self.entries.push((key, value));
        Ok(())
    }

    /// The file the entries come from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every entry, in the order of the file.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`, of whatever type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.places.get(key).map(|&place| &self.entries[place].1)
    }

    /// What `read` makes of `key`, or nothing where there is no such key: `metadata.optional("k", Metadata::u32)`.
    ///
    /// # Errors
    /// Those of `read` for a key that is there.
    pub fn optional<'a, T>(
        &'a self,
        key: &str,
        read: impl FnOnce(&'a Self, &str) -> Result<T>,
    ) -> Result<Option<T>> {
        match self.get(key) {
            Some(_) => read(self, key).map(Some),
            None => Ok(None),
        }
    }

    fn require<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        pick: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<T> {
        let value = self.get(key).ok_or_else(|| LoadError::missing_key(&self.path, key, wanted))?;
        pick(value).ok_or_else(|| LoadError::key(&self.path, key, value.describe(), wanted))
    }

    /// An integer from 0 to 2³² − 1.
    ///
    /// # Errors
    /// `MissingKey`; `Key` for another type or value. So with every accessor below.
    pub fn u32(&self, key: &str) -> Result<u32> {
        self.require(key, "u32", |v| u32::try_from(v.integer()?).ok())
    }

    /// An integer from 0 to 2⁶⁴ − 1.
    pub fn u64(&self, key: &str) -> Result<u64> {
        self.require(key, "u64", |v| u64::try_from(v.integer()?).ok())
    }

    /// A floating-point number; f64 is rounded.
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.require(key, "f32", |v| match v {
            Value::F32(x) => Some(*x),
            Value::F64(x) => Some(*x as f32),
            _ => None,
        })
    }

    /// True or false.
    pub fn bool(&self, key: &str) -> Result<bool> {
        self.require(key, "bool", |v| match v {
            Value::Bool(x) => Some(*x),
            _ => None,
        })
    }

    /// Text.
    pub fn string(&self, key: &str) -> Result<&str> {
        self.require(key, "string", |v| match v {
            Value::String(x) => Some(x.as_str()),
            _ => None,
        })
    }

    /// An array of texts.
    pub fn strings(&self, key: &str) -> Result<&[String]> {
        self.require(key, "array of string", |v| match v {
            Value::Array(Array::String(x)) => Some(x.as_slice()),
            _ => None,
        })
    }

    /// An array of f32.
    pub fn f32s(&self, key: &str) -> Result<&[f32]> {
        self.require(key, "array of f32", |v| match v {
            Value::Array(Array::F32(x)) => Some(x.as_slice()),
            _ => None,
        })
    }

    /// An array of i32; u32 is accepted where every value fits.
    pub fn i32s(&self, key: &str) -> Result<Vec<i32>> {
        self.require(key, "array of i32", |v| match v {
            Value::Array(Array::I32(x)) => Some(x.clone()),
            Value::Array(Array::U32(x)) => x.iter().map(|&x| i32::try_from(x).ok()).collect(),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Metadata {
        let mut m = Metadata::new(Path::new("f.gguf"));
        m.insert("wide".into(), Value::U64(7)).unwrap();
        m.insert("negative".into(), Value::I32(-1)).unwrap();
        m.insert("words".into(), Value::Array(Array::String(vec!["a".into(), "b".into()]))).unwrap();
        m
    }

    #[test]
    fn integers_of_any_width_are_accepted_where_they_fit() {
        assert_eq!(metadata().u32("wide").unwrap(), 7);
        assert_eq!(metadata().optional("absent", Metadata::u32).unwrap(), None);
    }

    #[test]
    fn an_accessor_names_the_key_the_type_seen_and_the_type_wanted() {
        let text = |e: LoadError| e.to_string();
        let m = metadata();
        assert_eq!(text(m.u32("negative").unwrap_err()), "f.gguf: key `negative` is i32 -1, wanted u32");
        assert_eq!(
            text(m.string("words").unwrap_err()),
            "f.gguf: key `words` is array of 2 string, wanted string"
        );
        assert_eq!(text(m.f32("absent").unwrap_err()), "f.gguf: key `absent` is missing, wanted f32");
    }

    #[test]
    fn a_key_may_occur_once() {
        assert!(metadata().insert("wide".into(), Value::U8(1)).is_err());
    }
}
