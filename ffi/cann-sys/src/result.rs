//! Codes that become results.

use crate::load::Libraries;
use std::ffi::CStr;

/// A call of the driver that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed with {code}: {message}")]
pub struct CallFailed {
    /// The vendor's function.
    pub call: &'static str,
    /// The vendor's code.
    pub code: i32,
    /// The vendor's text for this failure; empty where it has none.
    pub message: String,
}

impl Libraries {
    /// `Ok` for code 0; otherwise the failure, with the text that the driver keeps for this thread.
    ///
    /// # Errors
    /// Every other code.
    pub fn check(&self, call: &'static str, code: i32) -> Result<(), CallFailed> {
        if code == 0 {
            return Ok(());
        }
        Err(CallFailed { call, code, message: self.recent_message().unwrap_or_default() })
    }

    /// What the driver says of this thread's latest failure, once.
    pub fn recent_message(&self) -> Option<String> {
        let recent = self.runtime.aclGetRecentErrMsg().ok()?;
        // SAFETY: takes nothing, and gives NULL or a text that lives until this thread's next call.
        let text = unsafe {
            let text = recent();
            if text.is_null() {
                return None;
            }
            CStr::from_ptr(text)
        };
        Some(text.to_string_lossy().trim().replace('\n', " "))
    }
}
