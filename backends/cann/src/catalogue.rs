//! The vendor's codes as data: name, cause, next step. Errors quote it, and `portolan explain` prints it.

use core::fmt;

/// What is known of one code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The vendor's code.
    pub code: i32,
    /// The vendor's name of it, or a short one where the interface has none.
    pub name: &'static str,
    /// What it means.
    pub cause: &'static str,
    /// What to do next.
    pub next: &'static str,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}; {}", self.name, self.code, self.cause, self.next)
    }
}

const REPORT: &str = "report it with the driver's message and version";
const ARGUMENTS: &str = "the message says which argument; if this library made the call, report it";
const NEW_STREAM: &str = "results since the last good event are lost: make a new stream";
const NEW_DEVICE: &str = "the device needs a reset: end the program, look at npu-smi, and open it anew";

macro_rules! catalogue {
    ($( $code:literal $name:ident $cause:literal, $next:expr; )*) => {
        /// Every code that has an entry, in ascending order.
        pub const CATALOGUE: &[Entry] = &[$(
            Entry { code: $code, name: stringify!($name), cause: $cause, next: $next },
        )*];
    };
}

catalogue! {
    100000 INVALID_PARAM "an argument of a runtime call is wrong", ARGUMENTS;
    100001 UNINITIALIZED "the runtime was used before aclInit", REPORT;
    100002 REPEAT_INITIALIZE "aclInit was called before in this process", "nothing: it is initialised";
    100037 REPEAT_FINALIZE "aclFinalize was called twice", "let one owner in the process finalise";
    107000 RT_PARAM_INVALID "an argument of a runtime call is wrong", ARGUMENTS;
    107001 RT_INVALID_DEVICE "there is no device of this number",
        "compare with npu-smi info and ASCEND_RT_VISIBLE_DEVICES";
    107002 RT_CONTEXT_NULL "the calling thread has no current device", "call aclrtSetDevice on that thread first";
    107003 RT_STREAM_CONTEXT "a stream or event was used from another context than its own",
        "make its context current before the call";
    107006 RT_EVENT_TIMESTAMP "an event has no time yet, or keeps none",
        "synchronise the stream first, and make the event with ACL_EVENT_TIME_LINE";
    107008 RT_ADDR_UNALIGNED "a device address is not aligned as the call needs",
        "align tensors to 32 bytes and workspaces to 64";
    107016 RT_MEMORY_TYPE "memory of the wrong kind", "check which side of the copy is on the host";
    107017 RT_INVALID_HANDLE "a handle was destroyed or is not one", REPORT;
    107019 RT_WAIT_TIMEOUT "a stream waited too long for an event",
        "look at the stream that records it, or raise the limit";
    107020 RT_TASK_TIMEOUT "a task did not finish in time", NEW_STREAM;
    107022 RT_DEVICE_ABORTED "the device's tasks were aborted", NEW_STREAM;
    107023 RT_STREAM_ABORTED "the stream's tasks were aborted", NEW_STREAM;
    161001 ACLNN_NULLPTR "a required argument of an operator is absent", ARGUMENTS;
    161002 ACLNN_PARAM_INVALID "an operator does not take these element types, shapes or formats on this product",
        "the message names the argument; another dtype or a composition may work";
    200000 BAD_ALLOC "the host is out of memory", "free host memory";
    200001 API_NOT_SUPPORTED "this product or version has no such function", "install a newer CANN";
    200002 INVALID_DEVICE "there is no such device", "compare with npu-smi info";
    200003 MEMORY_UNALIGNED "an address is not aligned as the call needs", "align it to 64 bytes";
    200005 INVALID_HANDLE "a handle was destroyed or is not one", REPORT;
    200006 FEATURE_UNSUPPORTED "this product cannot do that", "use another device, or a composition";
    207000 RT_FEATURE_NOT_SUPPORT "this product or version cannot do that", "install a newer CANN, or do without";
    207001 RT_MEMORY_ALLOCATION "memory could not be reserved",
        "free memory, use a smaller model or batch, or quantise the weights";
    207004 RT_NO_DEVICE "there is no device", "compare with npu-smi info, and check the container's devices";
    207005 RT_RESOURCE_ALLOC "the driver is out of some resource", "use fewer streams, events or contexts";
    207007 RT_NO_EVENT_RESOURCE "there are no more events (65,536; on 310P 1,023)", "drop events that are done";
    207008 RT_NO_STREAM_RESOURCE "there are no more streams (1,984; on 310P 1,024)", "use fewer streams";
    207018 RT_DEVICE_OUT_OF_MEMORY "the device is out of memory",
        "use a smaller model, batch or context, quantise the weights, or look who else uses the device with npu-smi";
    300000 STORAGE_OVER_LIMIT "a limit of the driver was passed", REPORT;
    361001 ACLNN_RUNTIME "an operator's call of the runtime failed", "the message carries the runtime's code";
    500000 INTERNAL "the driver failed inside", REPORT;
    500001 FAILURE "the driver failed", REPORT;
    500003 RUNTIME_FAILURE "the runtime failed", REPORT;
    500004 DRIVER_FAILURE "the kernel driver failed", "look at dmesg and npu-smi";
    507000 RT_INTERNAL "the runtime failed inside", REPORT;
    507011 RT_MODEL_EXECUTE "a captured graph failed while it ran", NEW_STREAM;
    507014 RT_AICORE_TIMEOUT "a kernel on the AI cores did not finish in time", NEW_STREAM;
    507015 RT_AICORE_EXCEPTION
        "a kernel on the AI cores failed, most often by touching memory that is freed, too short or unaligned",
        "run again with blocking streams to learn which operator, and look for an index out of range";
    507018 RT_AICPU_EXCEPTION "a kernel on the AI CPUs failed", NEW_STREAM;
    507034 RT_VECTOR_CORE_TIMEOUT "a kernel on the vector cores did not finish in time", NEW_STREAM;
    507035 RT_VECTOR_CORE_EXCEPTION
        "a kernel on the vector cores failed, most often by touching memory that is freed, too short or unaligned",
        "run again with blocking streams to learn which operator, and look for an index out of range";
    507046 RT_STREAM_SYNC_TIMEOUT "a stream did not finish in time", "raise the stream's timeout, or look what it waits for";
    507047 RT_EVENT_SYNC_TIMEOUT "an event was not reached in time", "raise the timeout, or look at the stream that records it";
    507053 RT_DEVICE_MEM_ERROR "device memory has failed", NEW_DEVICE;
    507054 RT_HBM_ECC "device memory has an error that cannot be corrected", NEW_DEVICE;
    507056 RT_LINK_ERROR "a link between devices has failed", "look at npu-smi and the cabling; restart the group";
    507899 DRV_INTERNAL "the kernel driver failed or lost the device", NEW_DEVICE;
    507903 RT_CAPTURE_INVALIDATED "a call that cannot be captured ended the capture", "move it out of the captured part";
    561000 ACLNN_INNER "an operator failed inside", REPORT;
    561001 ACLNN_INFER_SHAPE "an operator could not derive its output's shape", ARGUMENTS;
    561002 ACLNN_TILING "an operator found no tiling for these shapes", "try another shape, or a composition";
    561003 ACLNN_FIND_KERNEL "there is no kernel binary for these element types",
        "install the kernels package of this product (ops)";
    561101 ACLNN_CREATE_EXECUTOR "an executor could not be made", REPORT;
    561102 ACLNN_EXECUTOR_NOT_HANDED_OVER "an executor was used twice, or never handed out", REPORT;
    561103 ACLNN_INNER_NULLPTR "an operator failed inside", REPORT;
    561107 ACLNN_OPP_PATH_MISSING "ASCEND_OPP_PATH is not set", "source CANN's set_env.sh";
    561112 ACLNN_KERNEL_PACKAGE_MISSING "the kernels package is not installed",
        "install the kernels package of this product (ops)";
}

/// What is known of a code.
pub fn explain(code: i32) -> Option<&'static Entry> {
    CATALOGUE.binary_search_by_key(&code, |entry| entry.code).ok().map(|index| &CATALOGUE[index])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_once_and_says_what_to_do() {
        assert!(CATALOGUE.is_sorted_by(|a, b| a.code < b.code));
        for entry in CATALOGUE {
            assert_eq!(explain(entry.code), Some(entry));
            assert!(!entry.cause.is_empty() && !entry.next.is_empty());
            assert!(!entry.to_string().contains('\n') && !entry.to_string().ends_with('.'), "{entry}");
        }
        assert_eq!(explain(0), None);
        assert_eq!(explain(507015).map(|entry| entry.name), Some("RT_AICORE_EXCEPTION"));
    }
}
