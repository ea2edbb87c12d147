//! Safetensors: one file, or a folder with `config.json` and one file or several under an index.
//!
//! The crate of that name checks types and offsets; reading is ours, bounded: no length is believed before it
//! has been held against the file, and an index may name files of its own folder only.

use super::config::{SCALE_SUFFIX, block_scheme, root};
use super::error::{LoadError, Result, printable};
use super::form::WeightForm;
use super::json::read_json;
use super::names::Naming;
use super::source::{FileSource, Source, expect_range, read_vec};
use super::weights::{HostQuant, HostWeight, SourceMetadata, WeightSource};
use ::safetensors::tensor::{Dtype, Metadata, TensorInfo};
use portolan_ops::quant::{QuantScheme, QuantSpec};
use portolan_ops::{DType, HostTensor, Shape, TensorSpec};
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

/// The longest header: 200 000 tensors fit, and a sparse file of any claimed length cannot ask for more.
const MAX_HEADER: u64 = 1 << 25;
/// The types whose tensors can be loaded, for messages.
const SUPPORTED: &str = "F64, F32, F16, BF16, I64, I32, I8, U8, BOOL";

/// The index of a model in several files.
const INDEX: &str = "model.safetensors.index.json";
/// The only file of a model in one.
const SINGLE: &str = "model.safetensors";

/// One safetensors file.
#[derive(Debug)]
struct SafetensorsFile {
    source: Box<dyn Source>,
    metadata: Metadata,
    names: Vec<String>,
    data_start: u64,
}

/// What stands in a header, read without building a tree of it: entries are typed as they come, so a long
/// header costs little more memory than its text, and a name that occurs twice is noticed.
struct Header(Vec<(String, TensorInfo)>, Option<HashMap<String, String>>);

impl<'de> serde::Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("an object of tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut tensors, mut metadata, mut seen) = (Vec::new(), None, HashSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("`{}` occurs twice", printable(&name))));
                    }
                    if name == "__metadata__" {
                        metadata = Some(map.next_value()?);
                    } else {
                        tensors.push((name, map.next_value()?));
                    }
                }
                Ok(Header(tensors, metadata))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl SafetensorsFile {
    fn parse(source: Box<dyn Source>) -> Result<Self> {
        let path = source.path().to_path_buf();
        let mut len = [0; 8];
        expect_range(source.as_ref(), "the header's length", 0, 8)?;
        source.read_at(0, &mut len)?;
        let len = u64::from_le_bytes(len);
        expect_range(source.as_ref(), "the header", 8, len)?;
        if len > MAX_HEADER {
            let what = format!("the header claims {len} bytes, at most {MAX_HEADER} are read");
            return Err(LoadError::corrupt(&path, what));
        }
        let text = read_vec(source.as_ref(), "the header", 8, len)?;
        let bad = |what: String| {
            LoadError::corrupt(&path, format!("the header is not safetensors: {}", printable(&what)))
        };
        let Header(mut tensors, extra) = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        let names = tensors.iter().map(|(name, _)| name.clone()).collect();
        let metadata = Metadata::new(extra, tensors).map_err(|e| bad(e.to_string()))?;
        let data = metadata.data_len() as u64;
        expect_range(source.as_ref(), "the tensors", 8 + len, data)?;
        if source.len() != 8 + len + data {
            let what = format!("{} bytes follow the last tensor", source.len() - 8 - len - data);
            return Err(LoadError::corrupt(&path, what));
        }
        Ok(Self { source, metadata, names, data_start: 8 + len })
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.metadata.info(name).ok_or_else(|| LoadError::MissingTensor {
            path: self.source.path().into(),
            name: printable(name),
            hint: format!("the file lists {} tensors", self.names.len()),
        })
    }

    fn shape(&self, name: &str) -> Result<Shape> {
        Shape::new(&self.info(name)?.shape).map_err(|e| {
            LoadError::tensor(self.source.path(), name, format!("has extents that cannot be: {e}"))
        })
    }

    fn refuse(&self, name: &str, dtype: Dtype) -> LoadError {
        LoadError::UnsupportedType {
            path: self.source.path().into(),
            name: printable(name),
            seen: format!("{dtype:?}"),
            supported: SUPPORTED,
        }
    }

    fn spec(&self, name: &str) -> Result<TensorSpec> {
        let dtype = self.info(name)?.dtype;
        let known = dtype_of(dtype).ok_or_else(|| self.refuse(name, dtype))?;
        Ok(TensorSpec::new(known, self.shape(name)?))
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.info(name)?;
        let (start, end) = info.data_offsets;
        let what = format!("tensor `{}`", printable(name));
        let at = self.data_start.saturating_add(start as u64);
        read_vec(self.source.as_ref(), &what, at, (end - start) as u64)
    }

    fn load(&self, name: &str) -> Result<HostWeight> {
        let (info, spec, bytes) = (self.info(name)?, self.spec(name)?, self.bytes(name)?);
        if spec.dtype() == DType::Bool && bytes.iter().any(|&b| b > 1) {
            return Err(LoadError::tensor(self.source.path(), name, "holds bools other than 0 and 1"));
        }
        Ok(HostWeight::Dense(
            HostTensor::from_bytes(&spec, bytes).map_err(|_| self.refuse(name, info.dtype))?,
        ))
    }
}

/// Our element type, where there is one.
fn dtype_of(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F8_E4M3 => DType::F8E4M3,
        Dtype::F8_E5M2 => DType::F8E5M2,
        Dtype::F8_E8M0 => DType::E8M0,
        Dtype::F4 => DType::F4E2M1,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I8 => DType::I8,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        _ => return None,
    })
}

/// A model in safetensors: one file or several, with or without `config.json`.
#[derive(Debug)]
pub struct SafetensorsModel {
    path: PathBuf,
    files: Vec<SafetensorsFile>,
    /// Every tensor and the place of its file, in the order of the files.
    tensors: Vec<(String, usize)>,
    places: HashMap<String, usize>,
    config: Option<(PathBuf, serde_json::Value)>,
    /// How weights are stored that have scales beside them.
    scheme: Option<QuantScheme>,
}

impl SafetensorsModel {
    /// Opens a single file, and takes `config.json` beside it if there is one.
    ///
    /// # Errors
    /// `Io`, `Truncated`, `Corrupt`, `Memory`.
    pub fn open_file(path: &Path) -> Result<Self> {
        let config = path.with_file_name("config.json");
        let config = if config.is_file() { Some((config.clone(), read_json(&config)?)) } else { None };
        let file = SafetensorsFile::parse(Box::new(FileSource::open(path)?))?;
        Self::of(path, vec![file], config)
    }

    /// Opens bytes in memory.
    ///
    /// # Errors
    /// `Truncated`, `Corrupt`, `Memory`.
    pub fn parse(source: Box<dyn Source>) -> Result<Self> {
        let path = source.path().to_path_buf();
        Self::of(&path, vec![SafetensorsFile::parse(source)?], None)
    }

    /// Whether a folder has weights in this format.
    pub(super) fn is_in(folder: &Path) -> bool {
        folder.join(INDEX).is_file() || folder.join(SINGLE).is_file()
    }

    /// Opens a folder: `config.json`, and `model.safetensors` or `model.safetensors.index.json` with its files.
    ///
    /// # Errors
    /// `Io`, `Format` when neither is there, `Corrupt` for an index that names files elsewhere or tensors that
    /// its files lack, and those of the files.
    pub fn open_folder(path: &Path) -> Result<Self> {
        let config = path.join("config.json");
        if !config.is_file() {
            return Err(LoadError::Format {
                path: path.into(),
                seen: "a folder without config.json".into(),
                wanted: "config.json with model.safetensors or its index; or give a .gguf file".into(),
            });
        }
        let config = Some((config.clone(), read_json(&config)?));
        let index = path.join(INDEX);
        let single = path.join(SINGLE);
        if !index.is_file() {
            if !single.is_file() {
                return Err(LoadError::Format {
                    path: path.into(),
                    seen: format!("a folder with neither {SINGLE} nor {INDEX}"),
                    wanted: "one of them; convert .bin checkpoints to safetensors".into(),
                });
            }
            let file = SafetensorsFile::parse(Box::new(FileSource::open(&single)?))?;
            return Self::of(path, vec![file], config);
        }
        let weight_map = read_index(&index)?;
        let mut shards: Vec<&String> = weight_map.values().collect();
        shards.sort_unstable();
        shards.dedup();
        let mut files = Vec::new();
        for shard in &shards {
            files.push(SafetensorsFile::parse(Box::new(FileSource::open(&path.join(shard))?))?);
        }
        for (name, shard) in &weight_map {
            let file = shards.binary_search(&shard).ok().and_then(|at| files.get(at));
            if file.is_none_or(|f| f.metadata.info(name).is_none()) {
                let what = format!("tensor `{}` is not in `{}`", printable(name), printable(shard));
                return Err(LoadError::corrupt(&index, what));
            }
        }
        Self::of(path, files, config)
    }

    fn of(
        path: &Path,
        files: Vec<SafetensorsFile>,
        config: Option<(PathBuf, serde_json::Value)>,
    ) -> Result<Self> {
        let (mut tensors, mut places) = (Vec::new(), HashMap::new());
        for (at, file) in files.iter().enumerate() {
            for name in &file.names {
                if places.insert(name.clone(), at).is_some() {
                    return Err(LoadError::tensor(file.source.path(), name, "is in two files of one model"));
                }
                tensors.push((name.clone(), at));
            }
        }
        // What cannot be read of it is for whoever reads the model's configuration to say.
        let scheme = config.as_ref().and_then(|(path, json)| block_scheme(root(path, json).ok()?).ok()?);
        Ok(Self { path: path.into(), files, tensors, places, config, scheme })
    }

    fn file(&self, name: &str) -> Result<&SafetensorsFile> {
        self.places.get(name).and_then(|&at| self.files.get(at)).ok_or_else(|| LoadError::MissingTensor {
            path: self.path.clone(),
            name: printable(name),
            hint: format!("the model lists {} tensors", self.tensors.len()),
        })
    }

    /// The form of a weight that has scales beside it, and their name.
    fn scaled(&self, name: &str) -> Result<Option<(Shape, QuantSpec, String)>> {
        let spec = self.file(name)?.spec(name)?;
        let Some(scheme) = self.scheme.filter(|scheme| scheme.code == spec.dtype() && spec.rank() == 2)
        else {
            return Ok(None);
        };
        let scale_name = format!("{name}{SCALE_SUFFIX}");
        let wrong = |what: String| LoadError::tensor(self.file_path(name), name, what);
        let scale = match self.places.get(&scale_name) {
            Some(_) => self.file(&scale_name)?.spec(&scale_name)?,
            None => {
                return Err(wrong(format!("is {} and has no `{}`", spec.dtype(), printable(&scale_name))));
            }
        };
        let of_blocks = QuantSpec::new(scheme, &spec, &scale, None, None, None);
        let quant =
            of_blocks.map_err(|error| wrong(format!("and its scales do not fit together: {error}")))?;
        Ok(Some((*spec.shape(), quant, scale_name)))
    }

    /// The file a tensor is in, for messages.
    fn file_path(&self, name: &str) -> &Path {
        self.file(name).map_or(&self.path, |file| file.source.path())
    }
}

/// The index's map from tensor to file, every file name a plain one.
fn read_index(path: &Path) -> Result<HashMap<String, String>> {
    let index = read_json(path)?;
    let map = match index.get("weight_map") {
        Some(serde_json::Value::Object(map)) => map,
        Some(_) => {
            return Err(LoadError::key(path, "weight_map", "not an object", "an object of tensors to files"));
        }
        None => return Err(LoadError::missing_key(path, "weight_map", "an object of tensors to files")),
    };
    let mut out = HashMap::new();
    for (name, file) in map {
        let file = file.as_str().unwrap_or_default();
        let mut components = Path::new(file).components();
        let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
            && !file.contains(['/', '\\', '\0']);
        if !plain {
            let key = format!("weight_map.{}", printable(name));
            return Err(LoadError::key(
                path,
                key,
                format!("`{}`", printable(file)),
                "a file name in the same folder",
            ));
        }
        out.insert(name.clone(), file.to_owned());
    }
    Ok(out)
}

impl WeightSource for SafetensorsModel {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<&str> {
        self.tensors.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn shape(&self, name: &str) -> Result<Shape> {
        self.file(name)?.shape(name)
    }

    fn stored_as(&self, name: &str) -> Result<String> {
        let dtype = self.file(name)?.info(name)?.dtype;
        Ok(dtype_of(dtype).map_or_else(|| format!("{dtype:?}").to_lowercase(), |d| d.name().into()))
    }

    fn stored_bytes(&self, name: &str) -> Result<Option<u64>> {
        let (start, end) = self.file(name)?.info(name)?.data_offsets;
        Ok(Some((end - start) as u64))
    }

    fn form(&self, name: &str, _wanted: &Shape) -> Result<WeightForm> {
        Ok(match self.scaled(name)? {
            Some((shape, spec, _)) => WeightForm::Quant(shape, Box::new(spec)),
            None => WeightForm::Dense(self.file(name)?.spec(name)?),
        })
    }

    fn load(&self, name: &str) -> Result<HostWeight> {
        let file = self.file(name)?;
        let Some((shape, spec, scale)) = self.scaled(name)? else { return file.load(name) };
        let parts =
            [file.bytes(name)?, self.file(&scale)?.bytes(&scale)?, Vec::new(), Vec::new(), Vec::new()];
        let quant = HostQuant::new(shape, spec, parts);
        let quant =
            quant.map_err(|error| LoadError::tensor(self.file_path(name), name, error.to_string()))?;
        Ok(HostWeight::Quant(Box::new(quant)))
    }

    fn metadata(&self) -> SourceMetadata<'_> {
        match &self.config {
            Some((path, value)) => SourceMetadata::Config(path, value),
            None => SourceMetadata::None,
        }
    }

    fn naming(&self) -> Naming {
        Naming::HuggingFace
    }
}
