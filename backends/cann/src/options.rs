//! Where the driver is.

use std::path::PathBuf;

/// Options of an Ascend backend.
#[derive(Clone, Debug, Default)]
pub struct CannOptions {
    /// The folder with the driver's libraries; `None`: `lib64` of `$ASCEND_HOME_PATH` or `$ASCEND_TOOLKIT_HOME`, else
    /// where the system looks.
    pub folder: Option<PathBuf>,
}
