//! Random tensors: a pure function of a seed and a counter, the same on every device and in any order.
//!
//! The generator itself is in `philox.rs`; here are the distributions and where the counter comes from.

use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, Operand, Result, TensorSpec, Tolerance, expect_dims,
    expect_dtype, expect_writable, philox_block, streaming_cost, unit_from_bits,
};

const OP: &str = "random";

/// What [`RandomSpec`] draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RandomKind {
    /// f32 in [0, 1): the 24 upper bits times 2^−24.
    Uniform,
    /// f32 of mean 0 and variance 1, by the transform of Box and Muller.
    Normal,
    /// The 32 bits as i32.
    Bits,
}

impl RandomKind {
    /// Every distribution.
    pub const ALL: [RandomKind; 3] = [RandomKind::Uniform, RandomKind::Normal, RandomKind::Bits];

    /// The element type drawn.
    pub const fn dtype(self) -> DType {
        match self {
            RandomKind::Uniform | RandomKind::Normal => DType::F32,
            RandomKind::Bits => DType::I32,
        }
    }
}

/// Draws random numbers.
///
/// `out[i] = f(Philox4x32-10(key = seed, counter = base + offset + i / 4)[i % 4])`, i in logical order
///
/// Normal numbers are made of pairs of lanes (0, 1) and (2, 3): with `u = (bits₀ >> 8 + 1) · 2^−24` in (0, 1] and
/// `v = (bits₁ >> 8) · 2^−24`, the pair is `√(−2 ln u) · (cos 2πv, sin 2πv)`.
///
/// # Shapes
/// out any; counter `[1]`. Any extent may be zero.
///
/// # DTypes
/// uniform and normal f32, bits i32; counter i64, so that a captured graph draws anew on each replay.
///
/// # Layout
/// Any strides; an element's number is its logical position.
///
/// # Determinism
/// Every level: a pure function of seed, counter and position. Uniform numbers and bits are exact.
///
/// # Cost
/// Ten rounds of two multiplications each for four elements: five operations per element.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself).
///
/// # Source
/// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011); Box and Muller (1958).
#[derive(Clone, Debug, PartialEq)]
pub struct RandomSpec {
    kind: RandomKind,
    seed: u64,
    offset: u64,
    counter: Option<TensorSpec>,
    out: TensorSpec,
}

impl RandomSpec {
    /// Numbers of the stream `seed`, from block 0.
    pub fn new(kind: RandomKind, seed: u64, out: &TensorSpec) -> Result<Self> {
        expect_dtype(OP, "out", out, &[kind.dtype()])?;
        expect_writable(OP, "out", out)?;
        Ok(Self { kind, seed, offset: 0, counter: None, out: *out })
    }

    /// Starts `offset` blocks of four numbers further on.
    pub fn with_offset(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// Starts as many blocks further on as `counter` holds when the operator runs.
    pub fn with_counter(mut self, counter: &TensorSpec) -> Result<Self> {
        expect_dims(OP, "counter", counter, &[1])?;
        expect_dtype(OP, "counter", counter, &[DType::I64])?;
        self.counter = Some(*counter);
        Ok(self)
    }

    /// What is drawn.
    pub fn kind(&self) -> RandomKind {
        self.kind
    }
    /// The key.
    pub fn seed(&self) -> u64 {
        self.seed
    }
    /// Blocks skipped, beside what the counter holds.
    pub fn offset(&self) -> u64 {
        self.offset
    }
    /// Where the first block's number is read from.
    pub fn counter(&self) -> Option<&TensorSpec> {
        self.counter.as_ref()
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
}

impl Contract for RandomSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        if let Some(spec) = &self.counter {
            visit(Operand { name: "counter", spec, access: Access::Read });
        }
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, (self.out.numel() as u64).saturating_mul(5))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let base = match self.counter {
            Some(_) => inputs[0][0] as i64 as u64,
            None => 0,
        };
        let first = base.wrapping_add(self.offset);
        let value = |i: usize| {
            let bits = philox_block(self.seed, first.wrapping_add((i / 4) as u64));
            let lane = i % 4;
            match self.kind {
                RandomKind::Bits => f64::from(bits[lane] as i32),
                RandomKind::Uniform => f64::from(unit_from_bits(bits[lane])),
                RandomKind::Normal => {
                    let u = f64::from((bits[lane & 2] >> 8) + 1) * 2f64.powi(-24);
                    let angle = core::f64::consts::TAU * f64::from(unit_from_bits(bits[lane | 1]));
                    (-2.0 * u.ln()).sqrt() * if lane.is_multiple_of(2) { angle.cos() } else { angle.sin() }
                }
            }
        };
        vec![(0..self.out.numel()).map(value).collect()]
    }

    /// Bits and uniform numbers are exact. A normal number is at most √(48 ln 2) < 5.8; its radius errs by a few
    /// units in the last place, its angle, below 2π, by 2π·u before the sine adds 4u: 16u of the radius in all.
    fn tolerance(&self) -> Vec<Tolerance> {
        vec![match self.kind {
            RandomKind::Normal => Tolerance {
                abs: 16.0 * 5.8 * DType::F32.unit_roundoff(),
                rel: 8.0 * DType::F32.unit_roundoff(),
            },
            RandomKind::Uniform | RandomKind::Bits => Tolerance::EXACT,
        }]
    }
}

impl Cases for RandomSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        let counter = TensorSpec::of(DType::I64, &[1])?;
        for kind in RandomKind::ALL {
            let name = |edge: &str| format!("random/{kind:?}/{edge}").to_lowercase();
            for (edge, dims) in [
                ("empty", &[0][..]),
                ("scalar", &[]),
                ("one", &[1]),
                ("unaligned", &[3, 7]),
                ("typical", &[16, 64]),
                ("chunks", &[5, 4099]),
            ] {
                let spec = Self::new(kind, 0x0123_4567_89AB_CDEF, &TensorSpec::of(kind.dtype(), dims)?)?;
                cases.push(Case::new(name(edge), spec));
            }
            let strided = TensorSpec::of(kind.dtype(), &[13, 6])?.transpose(0, 1)?.narrow(1, 1, 11)?;
            let spec = Self::new(kind, 7, &strided)?.with_offset(3);
            cases.push(Case::new(name("strided"), spec.clone()));
            // A base beyond 2^32 reaches the counter's second word; one below zero wraps.
            let spec = spec.with_counter(&counter)?;
            for (edge, base) in
                [("counter", 5.0), ("large_counter", 4_294_967_295.0), ("wrapping_counter", -1.0)]
            {
                cases.push(Case::new(name(edge), spec.clone()).fill("counter", Fill::Values(vec![base])));
            }
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(kind: RandomKind, seed: u64, offset: u64, numel: usize) -> Vec<f64> {
        let out = TensorSpec::of(kind.dtype(), &[numel]).unwrap();
        RandomSpec::new(kind, seed, &out).unwrap().with_offset(offset).reference(&[]).remove(0)
    }

    #[test]
    fn the_first_block_is_the_published_vector() {
        let want = [0x6627e8d5u32, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8].map(|b| f64::from(b as i32));
        assert_eq!(draw(RandomKind::Bits, 0, 0, 4), want);
    }

    #[test]
    fn an_offset_skips_blocks_of_four() {
        let all = draw(RandomKind::Uniform, 9, 0, 20);
        assert_eq!(draw(RandomKind::Uniform, 9, 2, 12), all[8..]);
    }

    #[test]
    fn a_counter_adds_to_the_offset() {
        let counter = TensorSpec::of(DType::I64, &[1]).unwrap();
        let out = TensorSpec::of(DType::I32, &[4]).unwrap();
        let spec = RandomSpec::new(RandomKind::Bits, 3, &out).unwrap().with_offset(2);
        let spec = spec.with_counter(&counter).unwrap();
        assert_eq!(spec.reference(&[&[5.0]])[0], draw(RandomKind::Bits, 3, 7, 4));
    }

    #[test]
    fn moments_are_those_of_the_distribution() {
        let n = 40_000.0;
        let moments = |x: &[f64]| {
            let mean = x.iter().sum::<f64>() / n;
            (mean, x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n)
        };
        // Five standard errors of the mean and the variance.
        let (mean, variance) = moments(&draw(RandomKind::Uniform, 1, 0, 40_000));
        assert!((mean - 0.5).abs() < 0.0073 && (variance - 1.0 / 12.0).abs() < 0.0019, "{mean} {variance}");
        let (mean, variance) = moments(&draw(RandomKind::Normal, 1, 0, 40_000));
        assert!(mean.abs() < 0.025 && (variance - 1.0).abs() < 0.036, "{mean} {variance}");
    }

    #[test]
    fn every_case_is_legal() {
        assert!(RandomSpec::cases().unwrap().len() > 25);
    }
}
