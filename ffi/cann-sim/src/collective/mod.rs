//! Collectives: communicators, meetings of the ranks' work, and what is exchanged in them.
//!
//! Ranks are threads of this process, each on a device of its own. A rank's call enqueues its part on a stream; the
//! parts of one collective are carried out together, once every rank's stream has got there. Ranks that disagree on
//! what they do are refused by name; a rank that never comes lets the others' work time out, as on hardware.

mod comm;
mod exchange;
mod meeting;

pub(crate) use comm::{Clique, Comm, Rendezvous, Root, Settings, Timeouts, timeouts};
pub(crate) use exchange::{Element, Exchange, Reduce, Span};
pub(crate) use meeting::{Key, Meeting, Place, Share, carry_out};

use crate::error::Fail;

/// `HcclResult`.
macro_rules! results {
    ($( $name:ident = $code:literal, $text:literal; )*) => {
        /// The codes of collectives.
        #[allow(dead_code, reason = "a fault plan returns any of them by number")]
        pub(crate) mod hccl {
            $( pub(crate) const $name: i32 = $code; )*
        }

        /// What `HcclGetErrorString` says of a code, with its final zero byte.
        pub(crate) fn describe(code: i32) -> &'static core::ffi::CStr {
            match code {
                $( $code => $text, )*
                _ => c"an unknown code",
            }
        }

        /// The name of a code.
        pub(crate) fn name(code: i32) -> Option<&'static str> {
            match code {
                $( $code => Some(concat!("HCCL_", stringify!($name))), )*
                _ => None,
            }
        }
    };
}

results! {
    SUCCESS = 0, c"no error";
    E_PARA = 1, c"parameter error";
    E_PTR = 2, c"empty pointer";
    E_MEMORY = 3, c"memory error";
    E_INTERNAL = 4, c"internal error";
    E_NOT_SUPPORT = 5, c"not supported";
    E_NOT_FOUND = 6, c"not found";
    E_UNAVAIL = 7, c"resource unavailable";
    E_SYSCALL = 8, c"system call error";
    E_TIMEOUT = 9, c"timeout";
    E_TCP_CONNECT = 11, c"connection error";
    E_ROCE_CONNECT = 12, c"RoCE connection error";
    E_RUNTIME = 15, c"runtime error";
    E_DRV = 16, c"driver error";
    E_NETWORK = 19, c"network error";
    E_AGAIN = 20, c"try again";
    E_REMOTE = 21, c"error of a remote rank";
    E_SUSPENDING = 22, c"the communicator is suspended";
    E_OPRETRY_FAIL = 23, c"retrying an operation failed";
    E_OOM = 24, c"out of memory";
}

/// A parameter is wrong.
pub(crate) fn wrong(text: impl Into<String>) -> Fail {
    Fail::new(hccl::E_PARA, text)
}

/// A failure of the runtime, as collectives return it.
pub(crate) fn of_runtime(fail: Fail) -> Fail {
    match fail.code {
        0..=99 => fail,
        code => Fail::new(hccl::E_RUNTIME, format!("{} [{code}]", fail.text)),
    }
}
