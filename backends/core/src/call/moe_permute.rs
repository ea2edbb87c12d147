//! [`MoePermute`]: the rows of every expert side by side.

use super::MoePermute;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::moe::MoePermuteSpec;

impl MoePermute {
    /// One expert's rows behind the other's: `out [T·k, H]`, `offsets [E + 1]`.
    ///
    /// # Errors
    /// As [`MoePermuteSpec::contiguous`] and [`crate::Call::bind`].
    pub fn contiguous(
        x: &Tensor,
        expert_ids: &Tensor,
        out: &mut Tensor,
        row_map: &mut Tensor,
        offsets: &mut Tensor,
    ) -> Result<Self> {
        let spec = MoePermuteSpec::contiguous(
            x.spec(),
            expert_ids.spec(),
            out.spec(),
            row_map.spec(),
            offsets.spec(),
        )?;
        Self::bind(spec, &[x, expert_ids, out, row_map, offsets])
    }

    /// A room for each expert: `out [E, C, H]`, `counts [E]`, and in `dropped [E]` what found no room.
    ///
    /// # Errors
    /// As [`MoePermuteSpec::masked`] and [`crate::Call::bind`].
    pub fn masked(
        x: &Tensor,
        expert_ids: &Tensor,
        out: &mut Tensor,
        row_map: &mut Tensor,
        counts: &mut Tensor,
        dropped: &mut Tensor,
    ) -> Result<Self> {
        let spec = MoePermuteSpec::masked(
            x.spec(),
            expert_ids.spec(),
            out.spec(),
            row_map.spec(),
            counts.spec(),
            dropped.spec(),
        )?;
        Self::bind(spec, &[x, expert_ids, out, row_map, counts, dropped])
    }

    /// Gives each expert of the contiguous layout at most `capacity` rows, and counts the others in `dropped [E]`.
    ///
    /// # Errors
    /// As [`MoePermuteSpec::with_capacity`] and [`crate::Call::bind`].
    pub fn capacity(self, capacity: usize, dropped: &mut Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_capacity(capacity, dropped.spec())?, &[("dropped", dropped)])
    }
}
