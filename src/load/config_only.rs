//! A model of which only the configuration is here: it says what the weights would be, and has none.

use super::config::{block_scheme, root};
use super::error::{LoadError, Result, printable};
use super::form::WeightForm;
use super::json::read_json;
use super::names::Naming;
use super::weights::{HostWeight, SourceMetadata, WeightSource};
use portolan_ops::quant::{QuantScheme, QuantSpec};
use portolan_ops::{DType, Shape, TensorSpec};
use std::path::{Path, PathBuf};

/// A `config.json` in the place of a model: enough for devices that keep no data.
#[derive(Debug)]
pub struct ConfigOnly {
    path: PathBuf,
    json: serde_json::Value,
    dtype: DType,
    scheme: Option<QuantScheme>,
}

/// In the names of the weights that DeepSeek's and Qwen's checkpoints store with scales.
const PROJECTION: &str = "_proj";

impl ConfigOnly {
    /// Reads a configuration. Weights are of its `torch_dtype` (or `dtype`), f32 where there is none.
    ///
    /// # Errors
    /// `Io`, `Corrupt`, `Key` and `MissingKey` for a type that weights cannot have.
    pub fn open(path: &Path) -> Result<Self> {
        let json = read_json(path)?;
        let written = ["torch_dtype", "dtype"].into_iter().find_map(|key| {
            let value = json.get(key).filter(|value| !value.is_null())?;
            Some((key, value))
        });
        let dtype = match written {
            None => DType::F32,
            Some((key, value)) => match value.as_str().map(|text| text.trim_start_matches("torch.")) {
                Some("float32") => DType::F32,
                Some("float16") => DType::F16,
                Some("bfloat16") => DType::BF16,
                _ => {
                    let seen = printable(&value.to_string());
                    return Err(LoadError::key(path, key, seen, "float32, float16 or bfloat16"));
                }
            },
        };
        let scheme = block_scheme(root(path, &json)?)?;
        Ok(Self { path: path.into(), json, dtype, scheme })
    }

    fn missing(&self, name: &str) -> LoadError {
        LoadError::MissingTensor {
            path: self.path.clone(),
            name: printable(name),
            hint: "a configuration has no weights; bring the model's safetensors beside it".into(),
        }
    }
}

impl WeightSource for ConfigOnly {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<&str> {
        Vec::new()
    }

    fn shape(&self, name: &str) -> Result<Shape> {
        Err(self.missing(name))
    }

    fn stored_as(&self, name: &str) -> Result<String> {
        Err(self.missing(name))
    }

    fn stored_bytes(&self, name: &str) -> Result<Option<u64>> {
        Err(self.missing(name))
    }

    /// What the model expects, in the configuration's element type. Where weights are stored with scales for blocks, those
    /// of projections are: neither embeddings nor routers, which decide too much for so few bits.
    fn form(&self, name: &str, wanted: &Shape) -> Result<WeightForm> {
        if let (Some(scheme), [n, k], true) = (self.scheme, wanted.dims(), name.contains(PROJECTION)) {
            let spec = QuantSpec::of(scheme, *n, *k);
            let spec = spec.map_err(|error| LoadError::tensor(&self.path, name, error.to_string()))?;
            return Ok(WeightForm::Quant(*wanted, Box::new(spec)));
        }
        Ok(WeightForm::Dense(TensorSpec::new(self.dtype, *wanted)))
    }

    fn load(&self, name: &str) -> Result<HostWeight> {
        Err(self.missing(name))
    }

    fn metadata(&self) -> SourceMetadata<'_> {
        SourceMetadata::Config(&self.path, &self.json)
    }

    fn naming(&self) -> Naming {
        Naming::HuggingFace
    }
}
