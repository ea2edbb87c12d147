//! A call that diverged as a file: every operand's bytes, so that it can be run again without the model.
//!
//! The file is safetensors. `x` is operand x before the call, `out.got` and `out.want` what the two devices wrote; an
//! operand with strides, or of a type the format lacks, is its bytes as u8. The file's metadata holds the operator, its
//! scope, attributes and devices, and under `layout.x` each operand's element type, extents, strides and offset.

use crate::Error;
use crate::load::LoadError;
use portolan_core::decorate::{Divergence, Recorded};
use portolan_ops::{Access, DType, HostTensor, Layout, Shape, TensorSpec};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;
use std::path::Path;

/// What a file of [`save_call`] holds.
#[derive(Clone, Debug)]
pub struct SavedCall {
    /// The operator's name.
    pub op: String,
    /// The scopes it stood in.
    pub path: String,
    /// Its attributes and operands, in the form a Rust program writes them.
    pub contract: String,
    /// The two devices.
    pub devices: [String; 2],
    /// Every operand.
    pub operands: Vec<Recorded>,
}

impl SavedCall {
    /// An operand's contents: before the call, or what the first (`.got`) or second (`.want`) device wrote.
    pub fn tensor(&self, name: &str) -> Option<HostTensor> {
        self.operands.iter().find_map(|operand| {
            let bytes = match name.strip_prefix(operand.name.as_str())? {
                "" => &operand.before,
                ".got" => &operand.got,
                ".want" => &operand.want,
                _ => return None,
            };
            HostTensor::from_bytes(&operand.spec, bytes.clone()?).ok()
        })
    }
}

/// Writes a call that diverged, whole or not at all.
///
/// # Errors
/// Those of the system, among them a full disk.
pub fn save_call(found: &Divergence, path: &Path) -> io::Result<()> {
    let mut metadata: HashMap<String, String> = HashMap::from([
        ("op".into(), found.op.to_string()),
        ("path".into(), found.path.clone()),
        ("contract".into(), found.contract.clone()),
        ("device.got".into(), found.devices[0].clone()),
        ("device.want".into(), found.devices[1].clone()),
        ("report".into(), found.to_string()),
    ]);
    let mut views = Vec::new();
    for (place, operand) in found.operands.iter().enumerate() {
        metadata.insert(format!("layout.{}", operand.name), layout_text(place, operand));
        for (suffix, bytes) in [("", &operand.before), (".got", &operand.got), (".want", &operand.want)] {
            if let Some(bytes) = bytes {
                views.push((format!("{}{suffix}", operand.name), view(&operand.spec, bytes)?));
            }
        }
    }
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(io::Error::other)?;
    super::save(path, |out| out.write_all(&bytes))
}

/// Typed where the format has the type and the elements lie as it wants them.
fn view<'a>(spec: &TensorSpec, bytes: &'a [u8]) -> io::Result<TensorView<'a>> {
    let plain = spec.is_contiguous() && spec.layout().offset() == 0;
    let (dtype, dims) = match dtype_of(spec.dtype()).filter(|_| plain) {
        Some(dtype) => (dtype, spec.dims().to_vec()),
        None => (Dtype::U8, vec![bytes.len()]),
    };
    TensorView::new(dtype, dims, bytes).map_err(io::Error::other)
}

fn dtype_of(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I8 => Dtype::I8,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
        _ => return None,
    })
}

fn layout_text(place: usize, operand: &Recorded) -> String {
    let access = match operand.access {
        Access::Read => "read",
        Access::Write => "write",
        Access::ReadWrite => "read and write",
    };
    let spec = &operand.spec;
    json!({
        "place": place,
        "dtype": spec.dtype().name(),
        "dims": spec.dims(),
        "strides": spec.strides(),
        "offset": spec.layout().offset(),
        "access": access,
    })
    .to_string()
}

/// Reads a file of [`save_call`].
///
/// # Errors
/// `Load` when it cannot be read or is no such file.
pub fn load_call(path: &Path) -> Result<SavedCall, Error> {
    let bytes = std::fs::read(path).map_err(|error| LoadError::io(path, "read the file", error))?;
    parse(&bytes).ok_or_else(|| {
        let (seen, wanted) = ("something else".into(), "a call saved by `portolan diff --save`".into());
        LoadError::Format { path: path.into(), seen, wanted }.into()
    })
}

fn parse(bytes: &[u8]) -> Option<SavedCall> {
    let (_, header) = SafeTensors::read_metadata(bytes).ok()?;
    let file = SafeTensors::deserialize(bytes).ok()?;
    let metadata = header.metadata().as_ref()?;
    let text = |key: &str| metadata.get(key).cloned();
    let mut operands: Vec<(u64, Recorded)> = Vec::new();
    for (key, layout) in metadata {
        let Some(name) = key.strip_prefix("layout.") else { continue };
        let layout: Value = serde_json::from_str(layout).ok()?;
        let part =
            |suffix: &str| file.tensor(&format!("{name}{suffix}")).ok().map(|view| view.data().to_vec());
        let (before, got, want) = (part(""), part(".got"), part(".want"));
        let access = match layout["access"].as_str()? {
            "read" => Access::Read,
            "write" => Access::Write,
            _ => Access::ReadWrite,
        };
        let spec = spec_of(&layout)?;
        operands.push((
            layout["place"].as_u64()?,
            Recorded { name: name.into(), spec, access, before, got, want },
        ));
    }
    operands.sort_by_key(|(place, _)| *place);
    Some(SavedCall {
        op: text("op")?,
        path: text("path")?,
        contract: text("contract")?,
        devices: [text("device.got")?, text("device.want")?],
        operands: operands.into_iter().map(|(_, operand)| operand).collect(),
    })
}

fn spec_of(layout: &Value) -> Option<TensorSpec> {
    let numbers = |key: &str| -> Option<Vec<usize>> {
        layout[key].as_array()?.iter().map(|n| usize::try_from(n.as_u64()?).ok()).collect()
    };
    let dtype = DType::ALL.into_iter().find(|dtype| layout["dtype"] == dtype.name())?;
    let shape = Shape::new(&numbers("dims")?).ok()?;
    let offset = usize::try_from(layout["offset"].as_u64()?).ok()?;
    TensorSpec::with_layout(dtype, shape, Layout::new(&numbers("strides")?, offset).ok()?).ok()
}
