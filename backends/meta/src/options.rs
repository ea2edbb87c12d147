//! How a meta backend counts, and how much memory it pretends to have.

/// How fused operators are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Count {
    /// As one kernel each, native: what a backend with every kernel would do.
    #[default]
    Fused,
    /// Through their compositions, scratch included: what a backend with the kernel core alone would do. The
    /// difference is what native kernels save.
    Composed,
}

/// Options of a meta backend.
#[derive(Clone, Debug, Default)]
pub struct MetaOptions {
    /// How fused operators are counted.
    pub count: Count,
    /// Bytes the device pretends to have, so that a program that would not fit on a real one fails with its
    /// largest holders named; `None`: more than any device has, 2⁵⁰ where addresses have 64 bits.
    pub memory_limit: Option<usize>,
}
