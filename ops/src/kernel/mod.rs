//! The kernel core: operators a backend must have, because they cannot be composed from the others.

mod broadcast;
pub(crate) mod edges;
pub(crate) mod rounding;

pub mod binary;
pub mod cast;
pub mod compare;
pub mod copy;
pub mod fill;
pub mod gather;
pub mod gemm;
pub mod random;
pub mod reduce;
pub mod scan;
pub mod scatter;
pub mod select;
pub mod top_k;
pub mod unary;

pub use binary::{BinaryKind, BinarySpec, Rhs};
pub use cast::CastSpec;
pub use compare::{CompareKind, CompareSpec};
pub use copy::CopySpec;
pub use fill::FillSpec;
pub use gather::{GatherForm, GatherSpec};
pub use gemm::{Activation, GemmForm, GemmSpec};
pub use random::{RandomKind, RandomSpec};
pub use reduce::{ReduceKind, ReduceSpec, nan_greatest};
pub use scan::{ScanKind, ScanSpec};
pub use scatter::{ScatterMode, ScatterSpec};
pub use select::SelectSpec;
pub use top_k::TopKSpec;
pub use unary::{UnaryKind, UnarySpec};
