//! Where the tokens of a ragged batch lie, from lengths that only the device knows.
//!
//! A batch is laid out as a rectangle `[batch, max_q]` of places; places past a sequence's end are −1, which
//! gathers and scatters skip.

use super::parts::Parts;
use crate::call::Scan;
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, CompareKind, ScanKind};
use portolan_ops::{DType, Result};

pub(super) struct Ragged {
    /// Row of the token at `[b, t]`, −1 where there is none.
    pub(super) token: Tensor,
    /// Position of that token in its sequence, `[batch, max_q]`; below 0 before the sequence's start.
    pub(super) position: Tensor,
    /// Whether there is a token at `[b, t]`.
    pub(super) exists: Tensor,
    /// Tokens of each sequence, `[batch, 1]`.
    pub(super) q_lens: Tensor,
    /// Keys of each sequence, `[batch, 1]`.
    pub(super) kv_lens: Tensor,
}

impl Ragged {
    /// The places of at most `max_q` tokens of each sequence.
    pub(super) fn new(p: &Parts<'_, '_>, q_lens: &Tensor, kv_lens: &Tensor, max_q: usize) -> Result<Self> {
        let batch = q_lens.dims()[0];
        let mut starts = p.scratch(DType::I32, &[batch])?;
        p.run(Scan::cumulative(ScanKind::Sum, q_lens, 0, &mut starts)?.exclusive()?)?;
        let column = |t: &Tensor| t.reshape(&[batch, 1]);
        let (starts, q_lens, kv_lens) = (column(&starts)?, column(q_lens)?, column(kv_lens)?);
        let step = p.iota(max_q)?;
        let exists = p.compare(CompareKind::Lt, &step, &q_lens)?;
        let token = p.select_or(&exists, &p.binary(BinaryKind::Add, &starts, &step)?, -1.0)?;
        let first = p.binary(BinaryKind::Sub, &kv_lens, &q_lens)?;
        let position = p.binary(BinaryKind::Add, &first, &step)?;
        Ok(Self { token, position, exists, q_lens, kv_lens })
    }
}
