//! [`Embedding`]: rows of a weight by index.

use super::Embedding;
use crate::stream::Stream;
use crate::tensor::Tensor;
use crate::weight::Weight;
use portolan_ops::embedding::EmbeddingSpec;
use portolan_ops::{DType, Result};
use smallvec::SmallVec;

impl Embedding {
    /// `out[.., :] = weight[ids[..], :]`.
    ///
    /// # Errors
    /// As [`EmbeddingSpec::new`] and [`crate::Call::bind`].
    pub fn new(ids: &Tensor, weight: &Weight, out: &mut Tensor) -> Result<Self> {
        let spec = EmbeddingSpec::new(ids.spec(), &weight.spec()?, out.spec())?;
        let operands: SmallVec<[&Tensor; 7]> =
            [ids].into_iter().chain(weight.tensors()).chain([&*out]).collect();
        Self::bind(spec, &operands)
    }
}

/// `weight[ids[..], :]` as `dtype`; see [`EmbeddingSpec`].
///
/// # Errors
/// As [`Embedding::new`] and [`Stream::run`].
pub fn embedding(stream: &Stream, ids: &Tensor, weight: &Weight, dtype: DType) -> Result<Tensor> {
    let mut out = stream.empty(&EmbeddingSpec::out_spec(ids.spec(), &weight.spec()?, dtype)?)?;
    stream.run(Embedding::new(ids, weight, &mut out)?)?;
    Ok(out)
}
