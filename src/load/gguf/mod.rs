//! A bounded reader of GGUF files, version 2 and 3, little endian.
//!
//! The head is parsed once (`cursor.rs`, `value.rs`), tensors are read on demand and unpacked into planar
//! parts (`blocks.rs`). Everything in a file is taken for hostile: no count, length or offset is believed
//! before it has been checked against the file, so memory and time are bounded by the file's size.

mod blocks;
mod cursor;
mod types;
mod value;

pub use types::{GgmlType, SUPPORTED_TYPES};
pub use value::{Array, Metadata, Value};

use super::error::{LoadError, Result, printable};
use super::form::WeightForm;
use super::source::{FileSource, Source, expect_range};
use super::weights::HostWeight;
use cursor::Cursor;
use portolan_ops::Shape;
use std::collections::HashMap;
use std::path::Path;

/// The longest key, as the format's specification says.
const MAX_KEY: u64 = 65_535;
/// The longest tensor name; the reference writer stops at 64.
const MAX_NAME: u64 = 256;
/// The most dimensions a tensor has in this format.
const MAX_DIMS: u32 = 4;
/// Where tensors start when the file does not say: multiples of this.
const DEFAULT_ALIGNMENT: u64 = 32;

/// One tensor as the file lists it.
#[derive(Clone, Debug)]
pub struct TensorEntry {
    name: String,
    shape: Shape,
    ggml_type: GgmlType,
    offset: u64,
    bytes: Option<u64>,
}

impl TensorEntry {
    /// The name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Extents, outermost first (the file stores them innermost first).
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// How the elements are stored.
    pub fn ggml_type(&self) -> GgmlType {
        self.ggml_type
    }

    /// Offset of the first byte in the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes in the file; unknown for unknown types.
    pub fn bytes(&self) -> Option<u64> {
        self.bytes
    }
}

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    source: Box<dyn Source>,
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorEntry>,
    places: HashMap<String, usize>,
}

impl Gguf {
    /// Opens a file and checks its head.
    ///
    /// # Errors
    /// `Io`, and those of [`Gguf::parse`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(Box::new(FileSource::open(path)?))
    }

    /// Checks the head of a file: structure, metadata, and the place of every tensor.
    ///
    /// # Errors
    /// `Format` for another format, version or byte order; `Truncated` and `Corrupt` for a damaged file;
    /// `Tensor` for a tensor whose extents or place cannot be; `Memory`.
    pub fn parse(source: Box<dyn Source>) -> Result<Self> {
        let mut cursor = Cursor::new(source.as_ref());
        let version = read_version(source.path(), &mut cursor)?;
        let tensor_count = cursor.u64("the tensor count")?;
        let entry_count = cursor.u64("the metadata count")?;
        // The least an entry takes: key length, type, one byte; a tensor: name length, rank, type, offset.
        cursor.expect("the metadata", entry_count, 8 + 4 + 1)?;
        cursor.expect("the tensor list", tensor_count, 8 + 4 + 4 + 8)?;

        let mut metadata = Metadata::new(source.path());
        for _ in 0..entry_count {
            let key = cursor.string("a metadata key", MAX_KEY)?;
            let value = cursor.value(&key)?;
            metadata.insert(key, value)?;
        }
        let alignment = match metadata.optional("general.alignment", Metadata::u32)? {
            None => DEFAULT_ALIGNMENT,
            Some(value) if value.is_power_of_two() => u64::from(value),
            Some(value) => {
                let (key, seen) = ("general.alignment", format!("u32 {value}"));
                return Err(LoadError::key(source.path(), key, seen, "a power of two"));
            }
        };

        let mut tensors = Vec::new();
        let mut places = HashMap::new();
        for _ in 0..tensor_count {
            let tensor = read_tensor(source.path(), &mut cursor)?;
            if places.insert(tensor.name.clone(), tensors.len()).is_some() {
                return Err(LoadError::tensor(source.path(), &tensor.name, "occurs twice"));
            }
            tensors.push(tensor);
        }
        place_tensors(source.as_ref(), cursor.position(), alignment, &mut tensors)?;
        Ok(Self { source, version, metadata, tensors, places })
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// The version of the format.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Every tensor, in the order of the file, those of unsupported types too.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// `MissingTensor`.
    pub fn tensor(&self, name: &str) -> Result<&TensorEntry> {
        self.places.get(name).map(|&place| &self.tensors[place]).ok_or_else(|| LoadError::MissingTensor {
            path: self.path().into(),
            name: printable(name),
            hint: format!("the file lists {} tensors", self.tensors.len()),
        })
    }

    /// What [`load`](Self::load) would give, without reading an element.
    ///
    /// # Errors
    /// `MissingTensor`, `UnsupportedType`, `Tensor` for extents that cannot be held.
    pub fn form(&self, name: &str) -> Result<WeightForm> {
        blocks::form(self.path(), self.tensor(name)?)
    }

    /// Reads a tensor into memory of its own, quantized ones in planar parts.
    ///
    /// # Errors
    /// `MissingTensor`, `UnsupportedType`, `Memory`, and `Io` or `Truncated` if the file changed meanwhile.
    pub fn load(&self, name: &str) -> Result<HostWeight> {
        blocks::load(self.source.as_ref(), self.tensor(name)?)
    }
}

fn read_version(path: &Path, cursor: &mut Cursor<'_>) -> Result<u32> {
    let format =
        |seen: String, wanted: &str| LoadError::Format { path: path.into(), seen, wanted: wanted.into() };
    let magic = cursor.bytes4("the magic number")?;
    if &magic != b"GGUF" {
        return Err(format(format!("starts with {magic:02x?}"), "a gguf file, which starts with `GGUF`"));
    }
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => Ok(version),
        _ if (1..=0xFFFF).contains(&version.swap_bytes()) => Err(format(
            "is a big-endian gguf file".into(),
            "a little-endian one; convert it with the byte order `little`",
        )),
        _ => Err(format(
            format!("is gguf version {version}"),
            "version 2 or 3; convert it with a current converter",
        )),
    }
}

/// One line of the tensor list; `offset` is still relative to the data section.
fn read_tensor(path: &Path, cursor: &mut Cursor<'_>) -> Result<TensorEntry> {
    let name = cursor.string("a tensor name", MAX_NAME)?;
    let rank = cursor.u32("a tensor's rank")?;
    if rank > MAX_DIMS {
        return Err(LoadError::tensor(
            path,
            &name,
            format!("has {rank} dimensions, at most {MAX_DIMS} exist"),
        ));
    }
    let mut dims = [0usize; MAX_DIMS as usize];
    let dims = &mut dims[..rank as usize];
    for dim in dims.iter_mut().rev() {
        let extent = cursor.u64("a tensor's extents")?;
        *dim = usize::try_from(extent).unwrap_or(usize::MAX);
    }
    let shape = Shape::new(dims).map_err(|_| {
        LoadError::tensor(path, &name, format!("has extents {dims:?}, too many elements to address"))
    })?;
    let ggml_type = GgmlType(cursor.u32("a tensor's type")?);
    let offset = cursor.u64("a tensor's offset")?;
    let bytes = match ggml_type.block() {
        None => None,
        Some((elements, bytes)) => {
            if !shape.last().is_multiple_of(elements as usize) {
                let text =
                    format!("has rows of {}, {ggml_type} needs a multiple of {elements}", shape.last());
                return Err(LoadError::tensor(path, &name, text));
            }
            // At most 2^60 elements of at most 8 bytes each: cannot overflow.
            Some((shape.numel() as u64 / u64::from(elements)).saturating_mul(u64::from(bytes)))
        }
    };
    Ok(TensorEntry { name, shape, ggml_type, offset, bytes })
}

/// Turns offsets into places in the file: aligned, within the file, and no two tensors over the same bytes
/// (shared bytes would let a small file claim any amount of work).
fn place_tensors(source: &dyn Source, head: u64, alignment: u64, tensors: &mut [TensorEntry]) -> Result<()> {
    let start = head.next_multiple_of(alignment);
    for tensor in tensors.iter_mut() {
        if !tensor.offset.is_multiple_of(alignment) {
            let text = format!("starts at {} of the data, not a multiple of {alignment}", tensor.offset);
            return Err(LoadError::tensor(source.path(), &tensor.name, text));
        }
        let what = format!("tensor `{}`", printable(&tensor.name));
        let offset = start.saturating_add(tensor.offset);
        expect_range(source, &what, offset, tensor.bytes.unwrap_or(0))?;
        tensor.offset = offset;
    }
    let mut order: Vec<&TensorEntry> = tensors.iter().filter(|t| t.bytes.is_some_and(|b| b > 0)).collect();
    order.sort_unstable_by_key(|t| t.offset);
    for pair in order.windows(2) {
        if pair[0].offset + pair[0].bytes.unwrap_or(0) > pair[1].offset {
            let text = format!("overlaps tensor `{}`", printable(&pair[1].name));
            return Err(LoadError::tensor(source.path(), &pair[0].name, text));
        }
    }
    Ok(())
}
