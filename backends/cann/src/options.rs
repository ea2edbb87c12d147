//! Where the driver is, and what it may do.

use std::path::PathBuf;

/// Options of an Ascend backend.
#[derive(Clone, Debug, Default)]
pub struct CannOptions {
    /// The folder with the driver's libraries; `None`: `lib64` of `$ASCEND_HOME_PATH` or `$ASCEND_TOOLKIT_HOME`, else
    /// where the system looks.
    pub folder: Option<PathBuf>,
    /// Inference cards (310P) multiply in f16 alone. By default they refuse products of f32; with this they round factors
    /// and results of such to f16. Other products keep f32 either way.
    pub half_products: bool,
}
