//! The driver's failures as errors of the library: code, name and text kept, cause and next step added.

use crate::catalogue::explain;
use portolan_cann_sys::{CallFailed, LoadError};
use portolan_core::Ordinal;
use portolan_ops::{DeviceId, OpError};
use std::time::Duration;

/// Synchronising took too long: a stream, an event.
const SYNC_TIMEOUTS: [i32; 2] = [507046, 507047];
/// There is no memory: on the device, for the runtime, on the host.
const OUT_OF_MEMORY: [i32; 3] = [207018, 207001, 200000];

/// The driver has none of something that a graph takes: streams, tasks.
const OUT_OF_RESOURCES: [i64; 2] = [207005, 207008];

/// Whether an error is the driver's lack of what graphs take.
pub(crate) fn is_out_of_resources(error: &OpError) -> bool {
    matches!(error, OpError::Driver { code, .. } if OUT_OF_RESOURCES.contains(code))
}

/// Whether a failure is a wait that ran out.
pub(crate) fn is_timeout(failed: &CallFailed) -> bool {
    SYNC_TIMEOUTS.contains(&failed.code)
}

/// Whether a failure is a lack of memory.
pub(crate) fn is_out_of_memory(failed: &CallFailed) -> bool {
    OUT_OF_MEMORY.contains(&failed.code)
}

/// The error for a call that failed.
pub(crate) fn driver(device: Ordinal, failed: CallFailed) -> OpError {
    let CallFailed { call, code, message } = failed;
    let entry = explain(code);
    let name = entry.map_or("an undocumented code", |entry| entry.name);
    let message = match entry {
        None => message,
        Some(entry) if message.is_empty() => format!("{}; {}", entry.cause, entry.next),
        Some(entry) => format!("{message} ({}; {})", entry.cause, entry.next),
    };
    let device = DeviceId::new("cann", device);
    OpError::Driver { device, call: call.into(), code: code.into(), name: name.into(), message }
}

/// The error for a call of HCCL that failed: its codes are not the runtime's.
pub(crate) fn collective(device: Ordinal, failed: CallFailed) -> OpError {
    let CallFailed { call, code, message } = failed;
    let (device, name) = (DeviceId::new("cann", device), "HcclResult".into());
    OpError::Driver { device, call: call.into(), code: code.into(), name, message }
}

/// The error for a driver, or a part of it, that is not there.
pub(crate) fn unavailable(error: LoadError) -> OpError {
    OpError::Unavailable { backend: "cann".into(), what: error.to_string() }
}

/// The error for a wait that ran out.
pub(crate) fn timeout(what: String, after: Duration) -> OpError {
    OpError::Timeout { what, after }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_the_vendors_words_and_adds_what_to_do() {
        let failed = CallFailed { call: "aclrtFree", code: 107002, message: "no ctx".into() };
        let text = driver(3, failed).to_string();
        assert_eq!(
            text,
            "cann:3: aclrtFree failed with RT_CONTEXT_NULL (107002): no ctx (the calling thread has no current device; \
             call aclrtSetDevice on that thread first)"
        );
        let unknown = CallFailed { call: "aclrtFree", code: 42, message: String::new() };
        assert!(driver(0, unknown).to_string().contains("an undocumented code (42)"));
    }
}
