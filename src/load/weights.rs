//! A weight in host memory, and the one trait every file format offers it through.
//!
//! A later stage uploads; nothing here knows a device. The formats are in `gguf/` and `safetensors.rs`.

use super::config_only::ConfigOnly;
use super::error::{LoadError, Result};
use super::form::WeightForm;
use super::gguf::{self, Gguf};
use super::names::Naming;
use super::safetensors::SafetensorsModel;
use portolan_ops::quant::{QuantScheme, QuantSpec};
use portolan_ops::{DType, HostTensor, OpError, Shape, TensorSpec};
use std::path::Path;

/// A quantized weight in host memory: planar parts, as [`QuantSpec`] describes them.
#[derive(Clone, Debug, PartialEq)]
pub struct HostQuant {
    shape: Shape,
    spec: QuantSpec,
    codes: HostTensor,
    scale: HostTensor,
    offset: Option<HostTensor>,
    outer: Option<HostTensor>,
    outer_offset: Option<HostTensor>,
}

impl HostQuant {
    /// Pairs the bytes of codes, scale, offset, outer and outer offset with the specs of `spec`; bytes of parts
    /// that the scheme lacks are ignored. `shape` is the file's; `spec` has its leading extents as one.
    ///
    /// # Errors
    /// `Shape` when the extents differ or a part has too few bytes.
    pub fn new(shape: Shape, spec: QuantSpec, parts: [Vec<u8>; 5]) -> Result<Self, OpError> {
        if (shape.rows(), shape.last()) != (spec.n(), spec.k()) {
            let what = format!("{shape} does not flatten to [{}, {}]", spec.n(), spec.k());
            return Err(OpError::shape("weight", what));
        }
        let [codes, scale, offset, outer, outer_offset] = parts;
        let part =
            |spec: Option<&TensorSpec>, bytes| spec.map(|s| HostTensor::from_bytes(s, bytes)).transpose();
        Ok(Self {
            shape,
            codes: HostTensor::from_bytes(spec.codes(), codes)?,
            scale: HostTensor::from_bytes(spec.scale(), scale)?,
            offset: part(spec.offset(), offset)?,
            outer: part(spec.outer(), outer)?,
            outer_offset: part(spec.outer_offset(), outer_offset)?,
            spec,
        })
    }

    /// Extents as the file has them: `[n, k]`, or more leading ones.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }
    /// The scheme and the specs of the parts, for `[n, k]` with all leading extents in n.
    pub fn spec(&self) -> &QuantSpec {
        &self.spec
    }
    /// Codes `[n, k]`.
    pub fn codes(&self) -> &HostTensor {
        &self.codes
    }
    /// Scales, one a block.
    pub fn scale(&self) -> &HostTensor {
        &self.scale
    }
    /// Minima, one a block.
    pub fn offset(&self) -> Option<&HostTensor> {
        self.offset.as_ref()
    }
    /// Factors of the scales.
    pub fn outer(&self) -> Option<&HostTensor> {
        self.outer.as_ref()
    }
    /// Factors of the minima.
    pub fn outer_offset(&self) -> Option<&HostTensor> {
        self.outer_offset.as_ref()
    }

    /// The parts that are present, in the order of [`portolan_ops::quant::WeightSpec::visit`].
    pub fn parts(&self) -> impl Iterator<Item = &HostTensor> {
        [
            Some(&self.codes),
            Some(&self.scale),
            self.offset.as_ref(),
            self.outer.as_ref(),
            self.outer_offset.as_ref(),
        ]
        .into_iter()
        .flatten()
    }

    fn to_f32(&self) -> Vec<f32> {
        let values = |t: &HostTensor| t.to_f64().into_iter().map(|x| x as f32).collect::<Vec<f32>>();
        let (n, k) = (self.spec.n(), self.spec.k());
        let scheme = self.spec.scheme();
        let (codes, mut scale) = (values(&self.codes), values(&self.scale));
        let mut offset = self.offset.as_ref().map_or_else(|| vec![0.0; scale.len()], values);
        let [_, columns] = scheme.blocks(n, k);
        if let Some((_, outer_block)) = scheme.scale.outer() {
            let outer_columns = k.div_ceil(outer_block);
            let multiply = |inner: &mut [f32], outer: &HostTensor| {
                let outer = values(outer);
                for (at, value) in inner.iter_mut().enumerate() {
                    let column = at % columns * scheme.block[1] / outer_block;
                    *value = QuantScheme::product(outer[at / columns * outer_columns + column], *value);
                }
            };
            self.outer.iter().for_each(|outer| multiply(&mut scale, outer));
            self.outer_offset.iter().for_each(|outer| multiply(&mut offset, outer));
        }
        let at = |i: usize| i / k / scheme.block[0] * columns + i % k / scheme.block[1];
        codes.iter().enumerate().map(|(i, &code)| scheme.value(code, scale[at(i)], offset[at(i)])).collect()
    }
}

/// A weight in host memory.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
pub enum HostWeight {
    /// Plain elements.
    Dense(HostTensor),
    /// Codes and scales.
    Quant(Box<HostQuant>),
}

impl HostWeight {
    /// Extents as the file has them.
    pub fn shape(&self) -> &Shape {
        match self {
            HostWeight::Dense(tensor) => tensor.spec().shape(),
            HostWeight::Quant(quant) => quant.shape(),
        }
    }

    /// The elements' type, or the codes'.
    pub fn dtype(&self) -> DType {
        match self {
            HostWeight::Dense(tensor) => tensor.spec().dtype(),
            HostWeight::Quant(quant) => quant.codes.spec().dtype(),
        }
    }

    /// The parts: the elements, or codes, scales and what else the scheme has.
    pub fn parts(&self) -> Vec<&HostTensor> {
        match self {
            HostWeight::Dense(tensor) => vec![tensor],
            HostWeight::Quant(quant) => quant.parts().collect(),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.parts().iter().map(|part| part.bytes().len()).sum()
    }

    /// The elements in f32, in row-major order: exact for narrower floats, by the f32 rule of
    /// [`QuantScheme::value`] for codes. For looking at weights and for tests; models compute on the parts.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            HostWeight::Dense(tensor) => tensor.to_f64().into_iter().map(|x| x as f32).collect(),
            HostWeight::Quant(quant) => quant.to_f32(),
        }
    }
}

/// What a file says about the model besides its weights.
#[derive(Clone, Copy, Debug)]
pub enum SourceMetadata<'a> {
    /// Typed entries of a GGUF file.
    Gguf(&'a gguf::Metadata),
    /// `config.json` beside safetensors, with the path it was read from.
    Config(&'a Path, &'a serde_json::Value),
    /// Bare tensors.
    None,
}

/// Weights by name, from any format.
pub trait WeightSource: Send + Sync + core::fmt::Debug {
    /// The file or folder.
    fn path(&self) -> &Path;

    /// Names of all tensors, in the order of the file.
    fn names(&self) -> Vec<&str>;

    /// Extents of a tensor.
    ///
    /// # Errors
    /// `MissingTensor`.
    fn shape(&self, name: &str) -> Result<Shape>;

    /// How a tensor is stored, for people: `f16`, `q4_1`, `type 99 (unknown)`.
    ///
    /// # Errors
    /// `MissingTensor`.
    fn stored_as(&self, name: &str) -> Result<String>;

    /// Bytes a tensor takes in the file; `None` for a type of unknown size.
    ///
    /// # Errors
    /// `MissingTensor`.
    fn stored_bytes(&self, name: &str) -> Result<Option<u64>>;

    /// What [`load`](Self::load) would give, without reading an element. `wanted` are the extents that the model
    /// expects: the answer of a source that has no tensors to ask.
    ///
    /// # Errors
    /// `MissingTensor`, `UnsupportedType`.
    fn form(&self, name: &str, wanted: &Shape) -> Result<WeightForm>;

    /// Reads a tensor into memory of its own.
    ///
    /// # Errors
    /// `MissingTensor`, `UnsupportedType`, `Memory`, `Io`, `Truncated`.
    fn load(&self, name: &str) -> Result<HostWeight>;

    /// What the file says about the model.
    fn metadata(&self) -> SourceMetadata<'_>;

    /// Whose tensor names these are.
    fn naming(&self) -> Naming;

    /// Whether there is such a tensor.
    fn contains(&self, name: &str) -> bool {
        self.shape(name).is_ok()
    }
}

impl WeightSource for Gguf {
    fn path(&self) -> &Path {
        Gguf::path(self)
    }

    fn names(&self) -> Vec<&str> {
        self.tensors().iter().map(gguf::TensorEntry::name).collect()
    }

    fn shape(&self, name: &str) -> Result<Shape> {
        Ok(*self.tensor(name)?.shape())
    }

    fn stored_as(&self, name: &str) -> Result<String> {
        Ok(self.tensor(name)?.ggml_type().to_string())
    }

    fn stored_bytes(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.tensor(name)?.bytes())
    }

    fn form(&self, name: &str, _wanted: &Shape) -> Result<WeightForm> {
        Gguf::form(self, name)
    }

    fn load(&self, name: &str) -> Result<HostWeight> {
        Gguf::load(self, name)
    }

    fn metadata(&self) -> SourceMetadata<'_> {
        SourceMetadata::Gguf(Gguf::metadata(self))
    }

    fn naming(&self) -> Naming {
        Naming::Gguf
    }
}

/// Opens weights: a GGUF file, a safetensors file, or a folder with `config.json` and safetensors.
///
/// Files are told apart by what they start with, not by their names.
///
/// # Errors
/// `Io`, `Format`, and those of the format's reader.
pub fn open(path: &Path) -> Result<Box<dyn WeightSource>> {
    let metadata = std::fs::metadata(path).map_err(|e| LoadError::io(path, "open it", e))?;
    if metadata.is_dir() {
        return Ok(Box::new(SafetensorsModel::open_folder(path)?));
    }
    let source = super::FileSource::open(path)?;
    let mut start = [0; 4];
    super::Source::read_at(&source, 0, &mut start)?;
    if &start == b"GGUF" {
        return Ok(Box::new(Gguf::parse(Box::new(source))?));
    }
    Ok(Box::new(SafetensorsModel::open_file(path)?))
}

/// Opens what says how a model is made: as [`open`], and also a `config.json`, or a folder that has one and no
/// weights. Such a model can be loaded onto devices that keep no data, and onto no other.
///
/// # Errors
/// As [`open`], and [`ConfigOnly::open`].
pub fn open_specs(path: &Path) -> Result<Box<dyn WeightSource>> {
    if path.extension().is_some_and(|extension| extension == "json") {
        return Ok(Box::new(ConfigOnly::open(path)?));
    }
    if path.is_dir() && !SafetensorsModel::is_in(path) {
        let config = path.join("config.json");
        if config.is_file() {
            return Ok(Box::new(ConfigOnly::open(&config)?));
        }
    }
    open(path)
}
