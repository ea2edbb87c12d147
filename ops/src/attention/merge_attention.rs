//! Merges partial results of attention over disjoint sets of keys.
//!
//! The partial results come from `attention.rs` and its kin, with their lse.

use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, Operand, Result, TensorSpec, Tolerance, expect_dims,
    expect_dtype, expect_rank, expect_writable, streaming_cost,
};

const NAME: &str = "merge_attention";

/// Merges attention over disjoint sets of keys into attention over all of them.
///
/// `out[t, h] = Σ_i e^(lses[i, t, h] − L) · parts[i, t, h]`, `L = ln Σ_i e^lses[i, t, h]`
///
/// A part whose lse is −∞ saw no key: it weighs nothing, whatever its values are. Where no part saw any, the
/// result is 0 and L is −∞. A sink belongs in one part only, whose lse includes it.
///
/// # Shapes
/// parts `[num_parts, tokens, num_heads, v_head_dim]`, lses `[num_parts, tokens, num_heads]`, out
/// `[tokens, num_heads, v_head_dim]`, lse `[tokens, num_heads]`. Any extent may be zero.
///
/// # DTypes
/// parts f32, f16 or bf16; out of their type or f32; lses and lse f32. Sums in f32.
///
/// # Layout
/// Any strides.
///
/// # Determinism
/// `BatchInvariant`: parts are added in their order.
///
/// # Cost
/// Two operations for each element of parts; operands read and written once.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (a result overlaps itself).
///
/// # Source
/// The split-KV reduction of FlashDecoding (Dao et al. 2023), and vLLM's `merge_attn_states`.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeAttentionSpec {
    parts: TensorSpec,
    lses: TensorSpec,
    out: TensorSpec,
    lse: Option<TensorSpec>,
}

impl MergeAttentionSpec {
    /// Merges the parts along their first dimension.
    pub fn new(parts: &TensorSpec, lses: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        expect_rank(NAME, "parts", parts, 4)?;
        expect_dtype(NAME, "parts", parts, &[DType::F32, DType::F16, DType::BF16])?;
        expect_dims(NAME, "lses", lses, &parts.dims()[..3])?;
        expect_dtype(NAME, "lses", lses, &[DType::F32])?;
        expect_dims(NAME, "out", out, &parts.dims()[1..])?;
        expect_dtype(NAME, "out", out, &[parts.dtype(), DType::F32])?;
        expect_writable(NAME, "out", out)?;
        Ok(Self { parts: *parts, lses: *lses, out: *out, lse: None })
    }

    /// The result: contiguous, of the parts' type.
    pub fn out_spec(parts: &TensorSpec) -> Result<TensorSpec> {
        expect_rank(NAME, "parts", parts, 4)?;
        TensorSpec::of(parts.dtype(), &parts.dims()[1..])
    }

    /// Also writes the logarithm of the sum over all parts.
    pub fn with_lse(mut self, lse: &TensorSpec) -> Result<Self> {
        expect_dims(NAME, "lse", lse, &self.lses.dims()[1..])?;
        expect_dtype(NAME, "lse", lse, &[DType::F32])?;
        expect_writable(NAME, "lse", lse)?;
        self.lse = Some(*lse);
        Ok(self)
    }

    /// Partial results.
    pub fn parts(&self) -> &TensorSpec {
        &self.parts
    }
    /// Logarithms of their sums of exponentials.
    pub fn lses(&self) -> &TensorSpec {
        &self.lses
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Logarithm of the sum over all parts.
    pub fn lse(&self) -> Option<&TensorSpec> {
        self.lse.as_ref()
    }
    /// Number of parts.
    pub fn num_parts(&self) -> usize {
        self.parts.dims()[0]
    }
}

impl Contract for MergeAttentionSpec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "parts", spec: &self.parts, access: Access::Read });
        visit(Operand { name: "lses", spec: &self.lses, access: Access::Read });
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
        if let Some(spec) = &self.lse {
            visit(Operand { name: "lse", spec, access: Access::Write });
        }
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, (self.parts.numel() as u64).saturating_mul(2))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let (rows, dv) = (self.lses.dims()[1] * self.lses.dims()[2], self.out.dims()[2]);
        let mut out = vec![0.0; rows * dv];
        let mut lse = vec![f64::NEG_INFINITY; rows];
        for row in 0..rows {
            let places = (0..self.num_parts()).map(|i| i * rows + row);
            let seen: Vec<usize> = places.filter(|&at| inputs[1][at] != f64::NEG_INFINITY).collect();
            let max = seen.iter().map(|&at| inputs[1][at]).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = seen.iter().map(|&at| (inputs[1][at] - max).exp()).sum();
            if seen.is_empty() {
                continue;
            }
            lse[row] = max + sum.ln();
            for at in seen {
                let weight = (inputs[1][at] - lse[row]).exp();
                (0..dv).for_each(|i| out[row * dv + i] += weight * inputs[0][at * dv + i]);
            }
        }
        if self.lse.is_some() { vec![out, lse] } else { vec![out] }
    }

    /// With `u` the f32 roundoff, n parts, lses in [−8, 8] and values in [−1, 1]: a weight `e^−x` errs by
    /// `x·u·e^−x ≤ u/2` for its argument and 4 u for the exponential and the division, relative to the largest; a
    /// mean moves by at most twice that, and its n sums round n times. L moves by the sum's error and is rounded.
    fn tolerance(&self) -> Vec<Tolerance> {
        let u = DType::F32.unit_roundoff();
        let sums = (10.0 + 2.0 * self.num_parts() as f64) * u;
        let lse = Tolerance { abs: sums, rel: 2.0 * u };
        let out = Tolerance::rounded_to(self.out.dtype(), sums);
        if self.lse.is_some() { vec![out, lse] } else { vec![out] }
    }
}

impl Cases for MergeAttentionSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        let shapes: [(&str, [usize; 4]); 9] = [
            ("no_parts", [0, 2, 3, 8]),
            ("empty_tokens", [2, 0, 3, 8]),
            ("empty_values", [2, 2, 3, 0]),
            ("one", [1, 1, 1, 1]),
            ("one_part", [1, 5, 3, 16]),
            ("two", [2, 3, 4, 64]),
            ("unaligned", [3, 5, 3, 37]),
            ("many", [9, 2, 8, 128]),
            ("rows", [2, 130, 4, 80]),
        ];
        let f32s = |dims: &[usize]| TensorSpec::of(DType::F32, dims);
        let range = Fill::Range(-8.0, 8.0);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (edge, dims) in shapes {
                let parts = TensorSpec::of(dtype, &dims)?;
                let (lses, lse) = (f32s(&dims[..3])?, f32s(&dims[1..3])?);
                let name = format!("{NAME}/{dtype}/{edge}");
                let spec = Self::new(&parts, &lses, &Self::out_spec(&parts)?)?.with_lse(&lse)?;
                cases.push(Case::new(name.clone(), spec.clone()).fill("lses", range.clone()));
                let unseen = f64::NEG_INFINITY;
                let fill = Fill::Values(vec![unseen, 0.5, unseen, -3.0, unseen, unseen, 7.25]);
                cases.push(Case::new(format!("{name}_unseen"), spec).fill("lses", fill));
                let spec = Self::new(&parts, &lses, &f32s(&dims[1..])?)?;
                cases.push(Case::new(format!("{name}_f32_out"), spec).fill("lses", range.clone()));
            }
            // Parts innermost, and results with heads outermost.
            let parts = TensorSpec::of(dtype, &[7, 6, 10, 3])?.permute(&[3, 1, 0, 2])?;
            let lses = f32s(&[7, 6, 3])?.permute(&[2, 1, 0])?;
            let out = TensorSpec::of(dtype, &[7, 6, 10])?.transpose(0, 1)?;
            let spec = Self::new(&parts, &lses, &out)?.with_lse(&f32s(&[7, 6])?.transpose(0, 1)?)?;
            cases.push(Case::new(format!("{NAME}/{dtype}/strided"), spec).fill("lses", range.clone()));
            // What saw no key may hold anything.
            let parts = TensorSpec::of(dtype, &[2, 1, 1, 3])?;
            let spec = Self::new(&parts, &f32s(&[2, 1, 1])?, &Self::out_spec(&parts)?)?;
            let values = vec![f64::NAN, f64::INFINITY, f64::NAN, 1.0, -0.5, 0.25];
            cases.push(
                Case::new(format!("{NAME}/{dtype}/unseen_nan"), spec)
                    .fill("parts", Fill::Values(values))
                    .fill("lses", Fill::Values(vec![f64::NEG_INFINITY, 3.0])),
            );
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{AttentionMask, AttentionSpec, LensSpec};

    #[test]
    fn parts_over_halves_of_the_keys_merge_to_the_whole() {
        let spec = |dims: &[usize]| TensorSpec::of(DType::F32, dims).unwrap();
        let (q, lse) = (spec(&[1, 2, 4]), spec(&[1, 2]));
        let one = TensorSpec::of(DType::I32, &[1]).unwrap();
        let (q_values, cache) = (Fill::Unit.draw(&q, 1), spec(&[1, 6, 1, 4]));
        let (k, v) = (Fill::Unit.draw(&cache, 2), Fill::Unit.draw(&cache, 3));
        let attend = |from: usize, to: usize| {
            let cache = spec(&[1, to - from, 1, 4]);
            let lens = |max| LensSpec::new("attention", "lens", &one, max).unwrap();
            let s = AttentionSpec::new(&q, &cache, &cache, &lens(1), &lens((to - from) as u32), &q).unwrap();
            let s = s.with_mask(AttentionMask::Full).unwrap().with_lse(&lse).unwrap();
            let keys = 4 * from..4 * to;
            s.reference(&[&q_values, &k[keys.clone()], &v[keys], &[1.0], &[(to - from) as f64]])
        };
        let (a, b, whole) = (attend(0, 2), attend(2, 6), attend(0, 6));
        let merge = MergeAttentionSpec::new(&spec(&[2, 1, 2, 4]), &spec(&[2, 1, 2]), &q).unwrap();
        let got = merge
            .with_lse(&lse)
            .unwrap()
            .reference(&[&[&a[0][..], &b[0]].concat(), &[&a[1][..], &b[1]].concat()]);
        for (got, want) in got.iter().flatten().zip(whole.iter().flatten()) {
            assert!((got - want).abs() < 1e-12, "{got} {want}");
        }
    }

    #[test]
    fn every_case_is_legal() {
        assert!(MergeAttentionSpec::cases().unwrap().len() > 80);
    }
}
