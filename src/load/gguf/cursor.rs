//! Reads the head of a GGUF file in order, every length checked against the file before memory is taken.
//!
//! The values it builds are in `value.rs`, the file's structure in `mod.rs`.

use super::value::{Array, Value};
use crate::load::error::{LoadError, Result, printable, reserve};
use crate::load::source::{Source, expect_range};

/// Bytes fetched at a time.
const CHUNK: usize = 1 << 16;
/// The head (metadata and tensor list) may not be longer: real ones stay under 32 MiB, and a sparse file
/// of any claimed length must not make the reader take memory in proportion.
const MAX_HEAD: u64 = 1 << 28;
/// Arrays within arrays, at most.
const MAX_DEPTH: u32 = 4;

/// A position in the head of a file.
pub(super) struct Cursor<'a> {
    source: &'a dyn Source,
    position: u64,
    chunk: Vec<u8>,
    chunk_at: u64,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(source: &'a dyn Source) -> Self {
        Self { source, position: 0, chunk: Vec::new(), chunk_at: 0 }
    }

    /// The next byte's offset in the file.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Fails unless `count` items of at least `each` bytes can follow: a claimed count is believed only then.
    pub(super) fn expect(&self, what: &str, count: u64, each: u64) -> Result<()> {
        let need = count.saturating_mul(each);
        expect_range(self.source, what, self.position, need)?;
        match self.position.saturating_add(need) > MAX_HEAD {
            true => Err(LoadError::corrupt(
                self.source.path(),
                format!("{what} takes the head of the file beyond {MAX_HEAD} bytes"),
            )),
            false => Ok(()),
        }
    }

    fn fill(&mut self, what: &str, out: &mut [u8]) -> Result<()> {
        self.expect(what, out.len() as u64, 1)?;
        let mut done = 0;
        while done < out.len() {
            let from = self.position.wrapping_sub(self.chunk_at);
            if self.position < self.chunk_at || from >= self.chunk.len() as u64 {
                let len = (self.source.len() - self.position).min(CHUNK as u64) as usize;
                self.chunk.resize(len, 0);
                self.chunk_at = self.position;
                self.source.read_at(self.position, &mut self.chunk)?;
                continue;
            }
            let ready = &self.chunk[from as usize..];
            let len = ready.len().min(out.len() - done);
            out[done..done + len].copy_from_slice(&ready[..len]);
            done += len;
            self.position += len as u64;
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        self.fill(what, &mut out)?;
        Ok(out)
    }

    pub(super) fn bytes4(&mut self, what: &str) -> Result<[u8; 4]> {
        self.take(what)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(what)?))
    }

    /// A length-prefixed UTF-8 string of at most `max` bytes.
    pub(super) fn string(&mut self, what: &str, max: u64) -> Result<String> {
        let len = self.u64(what)?;
        self.expect(what, len, 1)?;
        if len > max {
            let text = format!("{what} is a string of {len} bytes, at most {max} are allowed");
            return Err(LoadError::corrupt(self.source.path(), text));
        }
        let mut bytes = reserve(self.source.path(), what, len as usize)?;
        bytes.resize(len as usize, 0);
        self.fill(what, &mut bytes)?;
        String::from_utf8(bytes)
            .map_err(|_| LoadError::corrupt(self.source.path(), format!("{what} is not valid utf-8")))
    }

    /// The value of entry `key`: a type number and what it says.
    pub(super) fn value(&mut self, key: &str) -> Result<Value> {
        let what = format!("the value of key `{}`", printable(key));
        let kind = self.u32(&what)?;
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.take(&what)?)),
            1 => Value::I8(i8::from_le_bytes(self.take(&what)?)),
            2 => Value::U16(u16::from_le_bytes(self.take(&what)?)),
            3 => Value::I16(i16::from_le_bytes(self.take(&what)?)),
            4 => Value::U32(u32::from_le_bytes(self.take(&what)?)),
            5 => Value::I32(i32::from_le_bytes(self.take(&what)?)),
            6 => Value::F32(f32::from_le_bytes(self.take(&what)?)),
            7 => {
                let byte = self.take(&what)?;
                Value::Bool(self.bool(&what, byte)?)
            }
            8 => Value::String(self.string(&what, MAX_HEAD)?),
            9 => Value::Array(self.array(&what, 1)?),
            10 => Value::U64(u64::from_le_bytes(self.take(&what)?)),
            11 => Value::I64(i64::from_le_bytes(self.take(&what)?)),
            12 => Value::F64(f64::from_le_bytes(self.take(&what)?)),
            _ => return Err(self.unknown_kind(&what, kind)),
        })
    }

    fn unknown_kind(&self, what: &str, kind: u32) -> LoadError {
        LoadError::corrupt(self.source.path(), format!("{what} has type {kind}, types are 0 to 12"))
    }

    fn bool(&self, what: &str, byte: [u8; 1]) -> Result<bool> {
        match byte {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => {
                let text = format!("{what} is a bool of value {other}, wanted 0 or 1");
                Err(LoadError::corrupt(self.source.path(), text))
            }
        }
    }

    fn array(&mut self, what: &str, depth: u32) -> Result<Array> {
        let kind = self.u32(what)?;
        let count = self.u64(what)?;
        Ok(match kind {
            0 => Array::U8(self.numbers(what, count, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(what, count, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(what, count, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(what, count, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(what, count, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(what, count, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(what, count, f32::from_le_bytes)?),
            7 => {
                let bytes = self.numbers(what, count, |b: [u8; 1]| b)?;
                Array::Bool(bytes.into_iter().map(|b| self.bool(what, b)).collect::<Result<_>>()?)
            }
            8 => {
                // A string takes its length at least; so does the vector's growth, three words an entry.
                self.expect(what, count, 8)?;
                let mut strings = reserve(self.source.path(), what, count.min(CHUNK as u64) as usize)?;
                for _ in 0..count {
                    strings.push(self.string(what, MAX_HEAD)?);
                }
                Array::String(strings)
            }
            9 if depth < MAX_DEPTH => {
                // An array takes its type and count at least.
                self.expect(what, count, 12)?;
                let mut arrays = Vec::new();
                for _ in 0..count {
                    arrays.push(self.array(what, depth + 1)?);
                }
                Array::Array(arrays)
            }
            9 => {
                let text = format!("{what} nests arrays deeper than {MAX_DEPTH}");
                return Err(LoadError::corrupt(self.source.path(), text));
            }
            10 => Array::U64(self.numbers(what, count, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(what, count, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(what, count, f64::from_le_bytes)?),
            _ => return Err(self.unknown_kind(what, kind)),
        })
    }

    fn numbers<T, const N: usize>(
        &mut self,
        what: &str,
        count: u64,
        decode: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>> {
        self.expect(what, count, N as u64)?;
        let mut out = reserve(self.source.path(), what, count as usize)?;
        for _ in 0..count {
            out.push(decode(self.take(what)?));
        }
        Ok(out)
    }
}
