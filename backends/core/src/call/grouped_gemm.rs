//! [`GroupedGemm`]: products of every expert's rows with its weight.

use super::GroupedGemm;
use crate::experts::Experts;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::moe::GroupedGemmSpec;
use portolan_ops::quant::ActQuant;
use smallvec::SmallVec;

impl GroupedGemm {
    /// `x [M, k]` and `out [M, n]`, expert e having rows `offsets[e]` to `offsets[e + 1]`.
    ///
    /// # Errors
    /// As [`GroupedGemmSpec::contiguous`] and [`crate::Call::bind`].
    pub fn contiguous(x: &Tensor, weight: &Experts, offsets: &Tensor, out: &mut Tensor) -> Result<Self> {
        let spec = GroupedGemmSpec::contiguous(x.spec(), weight.spec(), offsets.spec(), out.spec())?;
        Self::over(spec, x, weight, offsets, out)
    }

    /// `x [E, C, k]` and `out [E, C, n]`, expert e having its first `counts[e]` rows.
    ///
    /// # Errors
    /// As [`GroupedGemmSpec::masked`] and [`crate::Call::bind`].
    pub fn masked(x: &Tensor, weight: &Experts, counts: &Tensor, out: &mut Tensor) -> Result<Self> {
        let spec = GroupedGemmSpec::masked(x.spec(), weight.spec(), counts.spec(), out.spec())?;
        Self::over(spec, x, weight, counts, out)
    }

    fn over(
        spec: GroupedGemmSpec,
        x: &Tensor,
        weight: &Experts,
        numbers: &Tensor,
        out: &Tensor,
    ) -> Result<Self> {
        let operands: SmallVec<[&Tensor; 8]> =
            [x].into_iter().chain(weight.tensors()).chain([numbers, out]).collect();
        Self::bind(spec, &operands)
    }

    /// Adds `bias [E, n]`, each expert's to its rows.
    ///
    /// # Errors
    /// As [`GroupedGemmSpec::with_bias`] and [`crate::Call::bind`].
    pub fn bias(self, bias: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_bias(bias.spec())?, &[("bias", bias)])
    }

    /// Rounds activations before the products.
    ///
    /// # Errors
    /// As [`GroupedGemmSpec::with_act_quant`].
    pub fn act_quant(self, act_quant: ActQuant) -> Result<Self> {
        self.rebind(self.spec().clone().with_act_quant(act_quant)?, &[])
    }

    /// Announces how many rows all experts have together, for costs.
    ///
    /// # Errors
    /// As [`crate::Call::bind`].
    pub fn expected_rows(self, rows: usize) -> Result<Self> {
        self.rebind(self.spec().clone().with_expected_rows(rows), &[])
    }
}
