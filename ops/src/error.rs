//! The one error type of the library, and the identity of a device (plain data, so that errors can carry it).

use core::fmt;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// The name of an operator; borrowed for built-in operators, owned for a user's own.
pub type OpName = Cow<'static, str>;

/// A backend's name and an ordinal; prints and parses as `cpu:0`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    backend: Cow<'static, str>,
    ordinal: u32,
}

impl DeviceId {
    /// The device `ordinal` of `backend`.
    pub fn new(backend: impl Into<Cow<'static, str>>, ordinal: u32) -> Self {
        Self { backend: backend.into(), ordinal }
    }

    /// The backend's name, the part before the colon.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// The number of the device within its backend.
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.backend, self.ordinal)
    }
}

impl core::str::FromStr for DeviceId {
    type Err = OpError;

    /// Parses `name:ordinal`; a bare `name` means ordinal 0.
    fn from_str(text: &str) -> Result<Self, OpError> {
        let (backend, ordinal) = text.split_once(':').unwrap_or((text, "0"));
        let legal = !backend.is_empty()
            && backend
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        match ordinal.parse() {
            Ok(ordinal) if legal => Ok(Self::new(backend.to_owned(), ordinal)),
            _ => Err(OpError::Unavailable {
                backend: "registry".into(),
                what: format!("`{text}` is not a device name; write backend:ordinal, as in cpu:0"),
            }),
        }
    }
}

/// What a program can do about an error; several [`OpError`] variants share one kind.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The call was wrong: shapes, element types, layouts, overlapping operands, devices.
    InvalidArgument,
    /// The call was legal, this device cannot do it.
    Unsupported,
    /// The backend is not usable here: no driver, no hardware, wrong version.
    Unavailable,
    /// Memory, file space or another resource ran out.
    ResourceExhausted,
    /// The device, a stream or a peer failed; make a new stream or device.
    DeviceLost,
    /// A bug in a driver or in this library.
    Internal,
}

/// Memory that one label holds, for an out-of-memory report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// What the memory was asked for: a weight's name, `scratch`, …
    pub label: Arc<str>,
    /// Bytes held under that label.
    pub bytes: usize,
}

/// Why a backend composes an operator or refuses it: data, not prose.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Unsupported {
    /// No native kernel for this operator.
    NotImplemented,
    /// No kernel for this element type.
    DType(crate::DType),
    /// No kernel for this memory layout.
    Layout,
    /// No kernel for these extents; the text says which rule.
    Shape(&'static str),
    /// The native kernel does not promise this determinism level.
    Determinism(crate::Determinism),
    /// The native kernel would round differently from the contract.
    Precision,
    /// A packed weight has a form, or a length of it, that another device makes.
    Form {
        /// The form it has.
        got: &'static str,
        /// The form that this device makes of such a weight.
        want: &'static str,
    },
    /// The kernel needs lengths on the host and has none.
    HostLengths,
    /// The driver lacks the function that the kernel is.
    Symbol(&'static str),
    /// Computed on the host and uploaded.
    HostGenerated,
    /// The device keeps no data (shape-only backend).
    NoData,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsupported::NotImplemented => f.write_str("no native kernel"),
            Unsupported::DType(dtype) => write!(f, "no kernel for {dtype}"),
            Unsupported::Layout => f.write_str("no kernel for this memory layout"),
            Unsupported::Shape(rule) => write!(f, "no kernel for these extents: {rule}"),
            Unsupported::Determinism(level) => write!(f, "no kernel deterministic to {level:?}"),
            Unsupported::Precision => f.write_str("the native kernel rounds differently from the contract"),
            Unsupported::Form { got, want } => {
                write!(f, "a weight packed as {got}, and not by this device, which takes {want}")
            }
            Unsupported::HostLengths => f.write_str("the kernel needs its lengths on the host"),
            Unsupported::Symbol(symbol) => write!(f, "the driver has no {symbol}"),
            Unsupported::HostGenerated => f.write_str("generated on the host"),
            Unsupported::NoData => f.write_str("this device keeps no data"),
        }
    }
}

/// Everything that can go wrong, with what is needed to mend it.
///
/// Messages are one line, lower case: operator, what was seen, what was wanted, what to do.
/// Programs match on variants or on [`OpError::kind`], never on the text.
#[non_exhaustive]
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpError {
    /// Extents do not fit together.
    #[error("{op}: {what}")]
    Shape {
        /// Operator.
        op: OpName,
        /// The extents seen and wanted.
        what: String,
    },
    /// An operand has an element type the operator does not take.
    #[error("{op}: {arg} is {got}, expected {expected}")]
    DType {
        /// Operator.
        op: OpName,
        /// Operand.
        arg: OpName,
        /// What it is.
        got: crate::DType,
        /// What it may be.
        expected: Cow<'static, str>,
    },
    /// An operand's strides or offset are not accepted.
    #[error("{op}: layout of {arg}: {what}")]
    Layout {
        /// Operator.
        op: OpName,
        /// Operand.
        arg: OpName,
        /// What was seen and wanted.
        what: String,
    },
    /// An attribute (a scale, a count, a probability) is out of range.
    #[error("{op}: {arg} {what}")]
    Attribute {
        /// Operator.
        op: OpName,
        /// Attribute.
        arg: OpName,
        /// What was seen and wanted.
        what: String,
    },
    /// An output shares memory with another operand.
    #[error("{op}: {a} overlaps {b}; copy one of them first")]
    Aliasing {
        /// Operator.
        op: OpName,
        /// The output.
        a: OpName,
        /// The operand it overlaps.
        b: OpName,
    },
    /// Operands live on different devices.
    #[error("{op}: operands on {lhs} and {rhs}; copy them to one device first")]
    Device {
        /// Operator.
        op: OpName,
        /// One device.
        lhs: DeviceId,
        /// The other device.
        rhs: DeviceId,
    },
    /// Legal, but not on this device.
    #[error("{op}: not supported on {device}: {reason}; {hint}")]
    Unsupported {
        /// Operator.
        op: OpName,
        /// Device.
        device: DeviceId,
        /// Why.
        reason: Unsupported,
        /// What to do, e.g. "cast to bf16".
        hint: Cow<'static, str>,
    },
    /// A backend that cannot be used here.
    #[error("{backend} is unavailable: {what}")]
    Unavailable {
        /// Backend.
        backend: OpName,
        /// What is missing and how to get it.
        what: String,
    },
    /// Device memory ran out.
    #[error(
        "{device}: out of memory: asked for {requested} bytes, {free} of {total} free{}",
        holders_text(holders)
    )]
    OutOfMemory {
        /// Device.
        device: DeviceId,
        /// Bytes asked for.
        requested: usize,
        /// Bytes free.
        free: usize,
        /// Bytes the device may use.
        total: usize,
        /// The largest holders, largest first.
        holders: Vec<Holder>,
    },
    /// A driver call failed.
    #[error("{device}: {call} failed with {name} ({code}): {message}")]
    Driver {
        /// Device.
        device: DeviceId,
        /// The vendor's call.
        call: Cow<'static, str>,
        /// The vendor's code.
        code: i64,
        /// The vendor's name of the code.
        name: Cow<'static, str>,
        /// The vendor's text.
        message: String,
    },
    /// The stream failed earlier; the first cause is attached.
    #[error("stream {stream} is poisoned by {op} (submission {seq}): {source}; make a new stream")]
    Poisoned {
        /// Stream number.
        stream: u64,
        /// The operator that failed first.
        op: OpName,
        /// Its submission number.
        seq: u64,
        /// Why it failed.
        #[source]
        source: Arc<OpError>,
    },
    /// A kernel met data its contract forbids (an index out of range).
    #[error("{op}: {what}")]
    Data {
        /// Operator.
        op: OpName,
        /// The value seen, where, and the range wanted.
        what: String,
    },
    /// A collective failed, and with it its group: make a new communicator.
    #[error("{op} #{seq}: rank {rank} of {world_size} {what}")]
    Collective {
        /// Operation.
        op: OpName,
        /// Its number among the group's operations, from 0.
        seq: u64,
        /// The rank that failed.
        rank: u32,
        /// Ranks in the group.
        world_size: u32,
        /// What happened.
        what: String,
    },
    /// A wait ran out.
    #[error("{what} did not finish within {after:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// The bound.
        after: Duration,
    },
    /// Not allowed during capture, or a capture was misused.
    #[error("capture: {what}")]
    Capture {
        /// What and why.
        what: String,
    },
    /// An invariant of this library or of a backend was broken.
    #[error("internal error in {op}: {what}; please report it")]
    Internal {
        /// Where.
        op: OpName,
        /// What.
        what: String,
    },
}

fn holders_text(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return String::new();
    }
    let list: Vec<String> = holders.iter().map(|h| format!("{} {}", h.label, h.bytes)).collect();
    format!("; largest holders in bytes: {}", list.join(", "))
}

impl OpError {
    /// The kind of this error. `Poisoned` reports `DeviceLost` whatever its cause was.
    pub fn kind(&self) -> ErrorKind {
        match self {
            OpError::Shape { .. }
            | OpError::DType { .. }
            | OpError::Layout { .. }
            | OpError::Attribute { .. }
            | OpError::Aliasing { .. }
            | OpError::Device { .. }
            | OpError::Data { .. }
            | OpError::Capture { .. } => ErrorKind::InvalidArgument,
            OpError::Unsupported { .. } => ErrorKind::Unsupported,
            OpError::Unavailable { .. } => ErrorKind::Unavailable,
            OpError::OutOfMemory { .. } => ErrorKind::ResourceExhausted,
            OpError::Driver { .. }
            | OpError::Poisoned { .. }
            | OpError::Collective { .. }
            | OpError::Timeout { .. } => ErrorKind::DeviceLost,
            OpError::Internal { .. } => ErrorKind::Internal,
        }
    }

    /// A [`OpError::Shape`].
    pub fn shape(op: impl Into<OpName>, what: impl Into<String>) -> Self {
        OpError::Shape { op: op.into(), what: what.into() }
    }

    /// A [`OpError::DType`].
    pub fn dtype(
        op: impl Into<OpName>,
        arg: impl Into<OpName>,
        got: crate::DType,
        expected: impl Into<Cow<'static, str>>,
    ) -> Self {
        OpError::DType { op: op.into(), arg: arg.into(), got, expected: expected.into() }
    }

    /// A [`OpError::Layout`].
    pub fn layout(op: impl Into<OpName>, arg: impl Into<OpName>, what: impl Into<String>) -> Self {
        OpError::Layout { op: op.into(), arg: arg.into(), what: what.into() }
    }

    /// A [`OpError::Attribute`].
    pub fn attribute(op: impl Into<OpName>, arg: impl Into<OpName>, what: impl Into<String>) -> Self {
        OpError::Attribute { op: op.into(), arg: arg.into(), what: what.into() }
    }

    /// A [`OpError::Internal`].
    pub fn internal(op: impl Into<OpName>, what: impl Into<String>) -> Self {
        OpError::Internal { op: op.into(), what: what.into() }
    }
}

/// `Result` with [`OpError`].
pub type Result<T, E = OpError> = core::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_ids_print_and_parse() {
        let id: DeviceId = "cann:3".parse().unwrap();
        assert_eq!((id.backend(), id.ordinal(), id.to_string().as_str()), ("cann", 3, "cann:3"));
        assert_eq!("cpu".parse::<DeviceId>().unwrap(), DeviceId::new("cpu", 0));
        for bad in ["", ":0", "cpu:", "cpu:x", "CPU:0", "cpu:0:1", "c pu:0"] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn messages_are_one_line_and_name_the_operator() {
        let e = OpError::shape("gemm_nt", "a is [4, 8], b is [16, 9]: k differs (8 vs 9)");
        assert_eq!(e.to_string(), "gemm_nt: a is [4, 8], b is [16, 9]: k differs (8 vs 9)");
        assert_eq!(e.kind(), ErrorKind::InvalidArgument);
    }
}
