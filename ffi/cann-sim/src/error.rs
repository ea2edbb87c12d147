//! The codes a driver call returns, and a failure on its way to becoming one.

macro_rules! codes {
    ($( $(#[$doc:meta])* $name:ident = $code:literal; )*) => {
        /// The documented codes, by the names that messages use.
        #[allow(dead_code, reason = "a fault plan returns any of them by number")]
        pub(crate) mod code {
            $( $(#[$doc])* pub(crate) const $name: i32 = $code; )*
        }

        /// The name of a code.
        pub(crate) fn name(code: i32) -> &'static str {
            match code {
                0 => "SUCCESS",
                $( $code => stringify!($name), )*
                _ => crate::collective::name(code).unwrap_or("UNKNOWN"),
            }
        }
    };
}

codes! {
    INVALID_PARAM = 100000;
    UNINITIALIZED = 100001;
    REPEAT_INITIALIZE = 100002;
    REPEAT_FINALIZE = 100037;
    API_NOT_SUPPORTED = 200001;
    STORAGE_OVER_LIMIT = 300000;
    INTERNAL = 500000;
    RT_PARAM_INVALID = 107000;
    RT_INVALID_DEVICE = 107001;
    RT_CONTEXT_NULL = 107002;
    RT_STREAM_CONTEXT = 107003;
    RT_EVENT_TIMESTAMP = 107006;
    RT_ADDR_UNALIGNED = 107008;
    RT_STREAM_SUBSCRIBED = 107011;
    RT_THREAD_SUBSCRIBE = 107012;
    RT_STREAM_NO_CALLBACK = 107015;
    RT_MEMORY_TYPE = 107016;
    RT_INVALID_HANDLE = 107017;
    RT_WAIT_TIMEOUT = 107019;
    RT_TASK_TIMEOUT = 107020;
    RT_STREAM_ABORTED = 107023;
    RT_CAPTURE_DEPENDENCY = 107024;
    RT_STREAM_UNJOINED = 107025;
    RT_MODEL_CAPTURED = 107026;
    RT_STREAM_CAPTURED = 107027;
    RT_EVENT_CAPTURED = 107028;
    RT_STREAM_NOT_CAPTURED = 107029;
    RT_CAPTURE_MODE = 107030;
    RT_CAPTURE_IMPLICIT = 107031;
    RT_CAPTURE_CONFLICT = 107032;
    RT_TASK_GROUP_STATUS = 107033;
    RT_TASK_GROUP_INTERRUPTED = 107034;
    RT_CAPTURE_UNMATCHED = 107036;
    RT_MODEL_RUNNING = 107037;
    RT_CAPTURE_WRONG_THREAD = 107038;
    RT_FEATURE_NOT_SUPPORT = 207000;
    RT_MEMORY_ALLOCATION = 207001;
    RT_RESOURCE_ALLOCATION = 207005;
    RT_NO_EVENT_RESOURCE = 207007;
    RT_NO_STREAM_RESOURCE = 207008;
    RT_DEVICE_OUT_OF_MEMORY = 207018;
    RT_REPORT_TIMEOUT = 507012;
    RT_AICORE_EXCEPTION = 507015;
    RT_VECTOR_CORE_EXCEPTION = 507035;
    RT_STREAM_SYNC_TIMEOUT = 507046;
    RT_EVENT_SYNC_TIMEOUT = 507047;
    RT_LINK_ERROR = 507056;
    DRV_INTERNAL = 507899;
    RT_CAPTURE_INVALIDATED = 507903;
    ACLNN_NULLPTR = 161001;
    ACLNN_PARAM_INVALID = 161002;
    ACLNN_RUNTIME = 361001;
    ACLNN_EXECUTOR_NOT_HANDED_OVER = 561102;
}

/// A failure: the code the caller gets, and the text it can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fail {
    pub(crate) code: i32,
    pub(crate) text: String,
}

/// What everything inside the simulator returns.
pub(crate) type Result<T = ()> = core::result::Result<T, Fail>;

impl Fail {
    pub(crate) fn new(code: i32, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// A required pointer of an operator is NULL.
    pub(crate) fn null(argument: &str) -> Self {
        Self::new(code::ACLNN_NULLPTR, format!("{argument} is NULL"))
    }

    /// An operator does not take its arguments: what was seen, what is wanted.
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::new(code::ACLNN_PARAM_INVALID, text)
    }

    /// A kernel met data that it cannot work with, such as an index out of range.
    pub(crate) fn kernel(text: impl Into<String>) -> Self {
        Self::new(code::RT_AICORE_EXCEPTION, text)
    }

    /// A parameter of a runtime call is wrong.
    pub(crate) fn parameter(text: impl Into<String>) -> Self {
        Self::new(code::RT_PARAM_INVALID, text)
    }
}
