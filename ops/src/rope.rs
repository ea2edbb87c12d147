//! Rotary position embedding: the angles, their scaling for long contexts, and the rotation.
//!
//! Kernels take the frequencies from here, so that every backend rotates by the same angles.

use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_rank, expect_writable, streaming_cost,
};
use core::f64::consts::PI;

const NAME: &str = "rope";

/// Which elements of a head form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// Elements 2i and 2i + 1 (GPT-J).
    Interleaved,
    /// Elements i and i + rotary_dim / 2 (GPT-NeoX, Llama as transformers stores it).
    SplitHalf,
}

/// How frequencies are stretched for contexts longer than the model was trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// Ratio of the context lengths.
        factor: f32,
    },
    /// YaRN (Peng et al. 2023): low frequencies divided, high ones kept, a ramp in between.
    Yarn {
        /// Ratio of the context lengths.
        factor: f32,
        /// Context length of the training.
        original_len: u32,
        /// Rotations over `original_len` above which a frequency is kept; usually 32.
        beta_fast: f32,
        /// Rotations over `original_len` below which a frequency is divided; usually 1.
        beta_slow: f32,
        /// Factor of cosine and sine; `None`: `0.1·ln(factor) + 1`, and 1 for factors up to 1.
        attn_factor: Option<f32>,
    },
    /// Llama 3.1: wavelengths above `original_len / low_freq_factor` divided, below
    /// `original_len / high_freq_factor` kept, a ramp in between.
    Llama3 {
        /// Ratio of the context lengths.
        factor: f32,
        /// Where division begins to fade.
        low_freq_factor: f32,
        /// Where frequencies are kept.
        high_freq_factor: f32,
        /// Context length of the training.
        original_len: u32,
    },
}

/// Rotates pairs of elements by angles that grow with the token's position.
///
/// `(out[a], out[b]) = mscale · (x[a]·cos φ − x[b]·sin φ, x[b]·cos φ + x[a]·sin φ)`, `φ = position · inv_freq[i]`
///
/// `inv_freq[i] = theta^(−2i / rotary_dim)`, scaled, is computed in f64 and rounded to f32. The angle is the
/// f32 product of the position (rounded to f32) and that; cosine and sine are those of this f32 angle. The
/// rounding of the angle is part of the contract, as models are trained with it. Elements from rotary_dim on
/// are copied. The inverse rotates by `−φ`; it undoes a rotation whose mscale is 1.
///
/// # Shapes
/// x and out `[tokens, heads, head_dim]`, positions `[tokens]`; rotary_dim even and at most head_dim. Any
/// extent may be zero.
///
/// # DTypes
/// x and out of one type out of f32, f16, bf16; positions i32 (any value). Arithmetic in f32.
///
/// # Layout
/// Any strides. out may be the very view x.
///
/// # Determinism
/// Every level: a row depends on itself and its position only.
///
/// # Cost
/// 6 operations per pair (those of the table of angles are not counted).
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself), `Attribute` (rotary_dim, theta, scaling).
///
/// # Source
/// Su et al. 2021; Peng et al. 2023 (YaRN); frequencies as in the transformers library.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    x: TensorSpec,
    positions: TensorSpec,
    out: TensorSpec,
    style: RopeStyle,
    rotary_dim: usize,
    theta: f64,
    scaling: RopeScaling,
    inverse: bool,
}

impl RopeSpec {
    /// Rotates whole heads with base `theta`, unscaled.
    pub fn new(
        style: RopeStyle,
        x: &TensorSpec,
        positions: &TensorSpec,
        theta: f64,
        out: &TensorSpec,
    ) -> Result<Self> {
        expect_rank(NAME, "x", x, 3)?;
        expect_dtype(NAME, "x", x, &[DType::F32, DType::F16, DType::BF16])?;
        expect_dims(NAME, "positions", positions, &x.dims()[..1])?;
        expect_dtype(NAME, "positions", positions, &[DType::I32])?;
        expect_dims(NAME, "out", out, x.dims())?;
        expect_dtype(NAME, "out", out, &[x.dtype()])?;
        expect_writable(NAME, "out", out)?;
        if !(theta > 1.0 && theta.is_finite()) {
            return Err(OpError::attribute(NAME, "theta", format!("is {theta}, expected a number above 1")));
        }
        let spec = Self {
            x: *x,
            positions: *positions,
            out: *out,
            style,
            rotary_dim: x.dims()[2],
            theta,
            scaling: RopeScaling::None,
            inverse: false,
        };
        spec.with_rotary_dim(x.dims()[2] / 2 * 2)
    }

    /// Rotates the first `rotary_dim` elements of each head only.
    pub fn with_rotary_dim(mut self, rotary_dim: usize) -> Result<Self> {
        if !rotary_dim.is_multiple_of(2) || rotary_dim > self.head_dim() {
            return Err(OpError::attribute(
                NAME,
                "rotary_dim",
                format!("is {rotary_dim}, expected an even number of at most head_dim {}", self.head_dim()),
            ));
        }
        self.rotary_dim = rotary_dim;
        Ok(self)
    }

    /// Stretches the frequencies.
    pub fn with_scaling(mut self, scaling: RopeScaling) -> Result<Self> {
        let positive = |value: f32| value > 0.0 && value.is_finite();
        let legal = match scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => positive(factor),
            RopeScaling::Yarn { factor, original_len, beta_fast, beta_slow, attn_factor } => {
                positive(factor)
                    && original_len > 0
                    && positive(beta_slow)
                    && positive(beta_fast)
                    && beta_fast >= beta_slow
                    && attn_factor.is_none_or(positive)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_len } => {
                positive(factor)
                    && original_len > 0
                    && positive(low_freq_factor)
                    && positive(high_freq_factor)
                    && high_freq_factor > low_freq_factor
            }
        };
        if !legal {
            return Err(OpError::attribute(
                NAME,
                "scaling",
                format!("is {scaling:?}, expected positive numbers, the fast end above the slow one"),
            ));
        }
        self.scaling = scaling;
        Ok(self)
    }

    /// Rotates backwards, by the negated angles.
    pub fn inverse(mut self) -> Self {
        self.inverse = true;
        self
    }

    /// Input.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// Position of each token.
    pub fn positions(&self) -> &TensorSpec {
        &self.positions
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Which elements form a pair.
    pub fn style(&self) -> RopeStyle {
        self.style
    }
    /// Elements of a head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        self.rotary_dim
    }
    /// Base of the frequencies.
    pub fn theta(&self) -> f64 {
        self.theta
    }
    /// How frequencies are stretched.
    pub fn scaling(&self) -> RopeScaling {
        self.scaling
    }
    /// Whether it rotates backwards.
    pub fn is_inverse(&self) -> bool {
        self.inverse
    }
    /// Length of a head.
    pub fn head_dim(&self) -> usize {
        self.x.dims()[2]
    }

    /// The frequency of each pair, in radians per position: computed in f64, rounded to f32.
    pub fn inv_freq(&self) -> Vec<f32> {
        inv_freq(self.rotary_dim, self.theta, self.scaling).iter().map(|&f| f as f32).collect()
    }

    /// The factor of cosine and sine.
    pub fn mscale(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attn_factor: Some(given), .. } => given,
            RopeScaling::Yarn { factor, .. } if factor > 1.0 => (0.1 * f64::from(factor).ln() + 1.0) as f32,
            _ => 1.0,
        }
    }

    /// Elements a and b of pair i.
    pub fn pair(&self, i: usize) -> (usize, usize) {
        match self.style {
            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
            RopeStyle::SplitHalf => (i, i + self.rotary_dim / 2),
        }
    }
}

fn inv_freq(rotary_dim: usize, theta: f64, scaling: RopeScaling) -> Vec<f64> {
    let dim = rotary_dim as f64;
    let base = (0..rotary_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim));
    match scaling {
        RopeScaling::None => base.collect(),
        RopeScaling::Linear { factor } => base.map(|f| f / f64::from(factor)).collect(),
        RopeScaling::Yarn { factor, original_len, beta_fast, beta_slow, .. } => {
            // The pair index at which a frequency makes `rotations` turns over the original context.
            let pair_of = |rotations: f32| {
                let turns = f64::from(original_len) / (f64::from(rotations) * 2.0 * PI);
                dim * turns.ln() / (2.0 * theta.ln())
            };
            let low = pair_of(beta_fast).floor().max(0.0);
            let high = pair_of(beta_slow).ceil().min(dim - 1.0);
            let width = if low == high { 0.001 } else { high - low };
            base.enumerate()
                .map(|(i, f)| {
                    let divided = ((i as f64 - low) / width).clamp(0.0, 1.0);
                    f / f64::from(factor) * divided + f * (1.0 - divided)
                })
                .collect()
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_len } => {
            let [factor, low, high] = [factor, low_freq_factor, high_freq_factor].map(f64::from);
            base.map(|f| {
                let turns = f64::from(original_len) * f / (2.0 * PI);
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                f / factor * (1.0 - kept) + f * kept
            })
            .collect()
        }
    }
}

impl Contract for RopeSpec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        visit(Operand { name: "positions", spec: &self.positions, access: Access::Read });
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        &[("out", "x")]
    }

    fn cost(&self) -> Cost {
        let rows = self.x.dims()[0] * self.x.dims()[1];
        streaming_cost(self, (rows as u64).saturating_mul(3 * self.rotary_dim as u64))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let (x, positions) = (inputs[0], inputs[1]);
        let (heads, d) = (self.x.dims()[1], self.head_dim());
        let (freq, mscale) = (self.inv_freq(), f64::from(self.mscale()));
        let mut out = x.to_vec();
        for (row, head) in out.chunks_exact_mut(d.max(1)).enumerate() {
            let position = positions[row / heads] as f32;
            for (i, &freq) in freq.iter().enumerate() {
                let (a, b) = self.pair(i);
                let angle = f64::from(position * freq);
                let (sin, cos) = if self.inverse { -angle } else { angle }.sin_cos();
                let (x_a, x_b) = (head[a], head[b]);
                head[a] = mscale * (x_a * cos - x_b * sin);
                head[b] = mscale * (x_b * cos + x_a * sin);
            }
        }
        vec![out]
    }

    /// The angle is exact by contract, however large. Cosine and sine to 2 u (u the f32 roundoff), their
    /// product with mscale and with x one rounding each, two terms of at most mscale and one addition:
    /// `2·(2 + 1 + 1)·u + 2·u`, times mscale; then one rounding to the result's type.
    fn tolerance(&self) -> Vec<Tolerance> {
        let u = DType::F32.unit_roundoff();
        let subnormal = if self.out.dtype() == DType::F16 { (0.5f64).powi(25) } else { 0.0 };
        vec![Tolerance::rounded_to(
            self.out.dtype(),
            10.0 * u * f64::from(self.mscale()).max(1.0) + subnormal,
        )]
    }
}

impl Cases for RopeSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        use RopeStyle::{Interleaved, SplitHalf};
        let mut cases = Vec::new();
        let edges: [(&str, usize, usize, usize, usize); 8] = [
            ("empty_tokens", 0, 2, 8, 8),
            ("empty_heads", 3, 0, 8, 8),
            ("empty_dim", 3, 2, 0, 0),
            ("no_rotation", 3, 2, 7, 0),
            ("one", 1, 1, 2, 2),
            ("unaligned", 5, 3, 23, 22),
            ("partial", 7, 2, 80, 32),
            ("typical", 9, 4, 128, 128),
        ];
        let scalings = [
            ("linear", RopeScaling::Linear { factor: 4.0 }),
            (
                "yarn",
                RopeScaling::Yarn {
                    factor: 8.0,
                    original_len: 4096,
                    beta_fast: 32.0,
                    beta_slow: 1.0,
                    attn_factor: None,
                },
            ),
            (
                "llama3",
                RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_len: 8192,
                },
            ),
        ];
        let positions = Fill::Values(vec![0.0, 1.0, 4095.0, 131_071.0, 1e6, -3.0, 16_777_215.0]);
        let plain = |style, dtype, dims: [usize; 3], theta| -> Result<RopeSpec> {
            let x = TensorSpec::of(dtype, &dims)?;
            RopeSpec::new(style, &x, &TensorSpec::of(DType::I32, &dims[..1])?, theta, &x)
        };
        for style in [Interleaved, SplitHalf] {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                for (name, tokens, heads, head_dim, rotary_dim) in edges {
                    let spec = plain(style, dtype, [tokens, heads, head_dim], 1e4)?;
                    cases.push(
                        Case::new(
                            format!("{NAME}/{style:?}/{dtype}/{name}"),
                            spec.with_rotary_dim(rotary_dim)?,
                        )
                        .fill("positions", positions.clone()),
                    );
                }
                for (name, scaling) in scalings {
                    let spec = plain(style, dtype, [6, 2, 64], 5e5)?.with_scaling(scaling)?;
                    cases.push(
                        Case::new(format!("{NAME}/{style:?}/{dtype}/{name}"), spec)
                            .fill("positions", positions.clone()),
                    );
                }
            }
            for (name, tokens, heads, head_dim, rotary_dim) in edges {
                let spec = plain(style, DType::BF16, [tokens, heads, head_dim], 1e4)?;
                let case = Case::new(
                    format!("{NAME}/{style:?}/inverse/{name}"),
                    spec.with_rotary_dim(rotary_dim)?.inverse(),
                );
                cases.push(case.fill("positions", positions.clone()));
            }
            for (name, scaling) in scalings {
                let spec = plain(style, DType::F32, [6, 2, 64], 5e5)?.with_scaling(scaling)?.inverse();
                let case = Case::new(format!("{NAME}/{style:?}/inverse/{name}"), spec);
                cases.push(case.fill("positions", positions.clone()));
            }
            // Heads of a fused projection, and head_dim not innermost in the result.
            let x = TensorSpec::of(DType::F32, &[5, 6, 16])?.narrow(1, 2, 3)?;
            let out = TensorSpec::of(DType::F32, &[5, 16, 3])?.transpose(1, 2)?;
            let at = TensorSpec::of(DType::I32, &[5])?;
            cases.push(Case::new(format!("{NAME}/{style:?}/strided"), Self::new(style, &x, &at, 1e4, &out)?));
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(style: RopeStyle, head_dim: usize) -> RopeSpec {
        let x = TensorSpec::of(DType::F32, &[1, 1, head_dim]).unwrap();
        RopeSpec::new(style, &x, &TensorSpec::of(DType::I32, &[1]).unwrap(), 1e4, &x).unwrap()
    }

    #[test]
    fn the_two_styles_pair_different_elements() {
        let x = [1.0, 0.0, 0.0, 0.0];
        let (sin, cos) = 1f64.sin_cos();
        let interleaved = spec(RopeStyle::Interleaved, 4).reference(&[&x, &[1.0]]);
        assert_eq!(interleaved, [vec![cos, sin, 0.0, 0.0]]);
        let split = spec(RopeStyle::SplitHalf, 4).reference(&[&x, &[1.0]]);
        assert_eq!(split, [vec![cos, 0.0, sin, 0.0]]);
    }

    #[test]
    fn a_rotation_keeps_lengths_and_relative_angles() {
        let s = spec(RopeStyle::SplitHalf, 8);
        let (q, k) = ([0.3, -1.0, 0.5, 0.2, 0.9, -0.4, 0.1, 0.7], [0.8, 0.1, -0.6, 0.4, 0.2, 0.5, -0.9, 0.3]);
        let dot = |p: f64, r: f64| -> f64 {
            let (q, k) = (s.reference(&[&q, &[p]]), s.reference(&[&k, &[r]]));
            q[0].iter().zip(&k[0]).map(|(a, b)| a * b).sum()
        };
        assert!((dot(5.0, 2.0) - dot(13.0, 10.0)).abs() < 1e-5);
        assert!((dot(5.0, 2.0) - dot(5.0, 3.0)).abs() > 1e-2);
    }

    #[test]
    fn the_inverse_undoes_a_rotation() {
        let forward = spec(RopeStyle::Interleaved, 6).with_rotary_dim(4).unwrap();
        let x = [0.3, -1.0, 0.5, 0.2, 0.9, -0.4];
        let turned = forward.reference(&[&x, &[77.0]]).remove(0);
        let back = forward.clone().inverse().reference(&[&turned, &[77.0]]).remove(0);
        assert!(x.iter().zip(&back).all(|(x, b)| (x - b).abs() < 1e-15), "{back:?}");
        assert!((turned[0] - x[0]).abs() > 0.1);
        let ahead = forward.inverse().reference(&[&x, &[77.0]]).remove(0);
        assert!((turned[0] - ahead[0]).abs() > 0.1);
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_divides_slow_ones() {
        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            original_len: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attn_factor: None,
        };
        let plain = spec(RopeStyle::SplitHalf, 128);
        let scaled = plain.clone().with_scaling(yarn).unwrap();
        let (a, b) = (plain.inv_freq(), scaled.inv_freq());
        assert_eq!(a[0], b[0]);
        assert_eq!(a[63] / 4.0, b[63]);
        assert!(a.iter().zip(&b).all(|(a, b)| *b <= *a && *b >= *a / 4.0));
        assert!((scaled.mscale() - 1.138_629_4).abs() < 1e-6);
    }

    #[test]
    fn llama3_keeps_short_wavelengths_and_divides_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_len: 8192,
        };
        let plain = spec(RopeStyle::SplitHalf, 128);
        let (a, b) = (plain.inv_freq(), plain.clone().with_scaling(scaling).unwrap().inv_freq());
        for (a, b) in a.iter().zip(&b) {
            let wavelength = 2.0 * PI / f64::from(*a);
            if wavelength < 2048.0 {
                assert_eq!(a, b);
            } else if wavelength > 8192.0 {
                assert_eq!(a / 8.0, *b);
            } else {
                assert!(b < a && *b > a / 8.0);
            }
        }
    }

    #[test]
    fn senseless_attributes_are_refused() {
        let s = spec(RopeStyle::SplitHalf, 8);
        assert!(s.clone().with_rotary_dim(3).is_err());
        assert!(s.clone().with_rotary_dim(10).is_err());
        assert!(s.clone().with_scaling(RopeScaling::Linear { factor: 0.0 }).is_err());
        assert!(RopeSpec::new(RopeStyle::SplitHalf, s.x(), s.positions(), 1.0, s.out()).is_err());
        assert!(RopeSpec::new(RopeStyle::SplitHalf, s.x(), s.positions(), f64::NAN, s.out()).is_err());
    }

    #[test]
    fn every_case_is_legal() {
        assert!(RopeSpec::cases().unwrap().len() > 60);
    }
}
