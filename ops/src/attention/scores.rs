//! What attention may do to its scores between the product and the softmax: soft cap, ALiBi, explicit mask,
//! sinks.
//!
//! Part of `query.rs`, shared by every operator that attends; each attribute is absent until it is set.

use super::query::AttentionQuery;
use crate::{Access, DType, Fill, OpError, Operand, Result, TensorSpec, expect_dtype, expect_rank};

/// Attributes of the scores, in the order they apply.
///
/// `s = cap · tanh(scale · ⟨q, k⟩ / cap) − slope[h] · |position − j| + attn_mask[t, h, j]`, each step only where it
/// is set; a bool mask hides where it is false, a float one where it is −∞. A sink is one more term
/// `e^sink[h]` in the sum that weights are divided by, and has no value. lse includes it: of partial results that
/// are to be merged, give it to one only.
///
/// A key that attn_mask alone hides weighs nothing, but its value has to be finite: 0 · ∞ is not 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttentionScores {
    soft_cap: Option<f32>,
    attn_mask: Option<TensorSpec>,
    slopes: Option<TensorSpec>,
    sinks: Option<TensorSpec>,
}

impl AttentionScores {
    /// Bound of the scaled products.
    pub fn soft_cap(&self) -> Option<f32> {
        self.soft_cap
    }
    /// Which keys each row sees, or what is added to their scores: `[tokens, num_heads, keys]`.
    pub fn attn_mask(&self) -> Option<&TensorSpec> {
        self.attn_mask.as_ref()
    }
    /// What a step of distance takes from a score, `[num_heads]`.
    pub fn slopes(&self) -> Option<&TensorSpec> {
        self.slopes.as_ref()
    }
    /// Logits that join each row's sum only, `[num_heads]`.
    pub fn sinks(&self) -> Option<&TensorSpec> {
        self.sinks.as_ref()
    }
    /// Whether scores stay as the products give them.
    pub fn is_plain(&self) -> bool {
        self.soft_cap.is_none() && self.attn_mask.is_none() && self.slopes.is_none()
    }

    pub(super) fn set_soft_cap(&mut self, op: &'static str, cap: f32) -> Result<()> {
        if !(cap.is_finite() && cap > 0.0) {
            return Err(OpError::attribute(
                op,
                "soft_cap",
                format!("is {cap}, expected a finite number above 0"),
            ));
        }
        self.soft_cap = Some(cap);
        Ok(())
    }

    pub(super) fn set_attn_mask(
        &mut self,
        op: &'static str,
        mask: &TensorSpec,
        [tokens, heads, keys]: [usize; 3],
    ) -> Result<()> {
        expect_rank(op, "attn_mask", mask, 3)?;
        expect_dtype(op, "attn_mask", mask, &[DType::Bool, DType::F32, DType::F16, DType::BF16])?;
        if mask.dims()[..2] != [tokens, heads] || mask.dims()[2] < keys {
            return Err(OpError::shape(
                op,
                format!("attn_mask is {}, expected [{tokens}, {heads}, {keys} or more]", mask.shape()),
            ));
        }
        self.attn_mask = Some(*mask);
        Ok(())
    }

    pub(super) fn set_slopes(&mut self, op: &'static str, slopes: &TensorSpec, heads: usize) -> Result<()> {
        expect_heads(op, "slopes", slopes, heads)?;
        self.slopes = Some(*slopes);
        Ok(())
    }

    pub(super) fn set_sinks(&mut self, op: &'static str, sinks: &TensorSpec, heads: usize) -> Result<()> {
        expect_heads(op, "sinks", sinks, heads)?;
        self.sinks = Some(*sinks);
        Ok(())
    }

    fn operands(&self) -> impl Iterator<Item = (&'static str, &TensorSpec)> {
        [("attn_mask", &self.attn_mask), ("slopes", &self.slopes), ("sinks", &self.sinks)]
            .into_iter()
            .filter_map(|(name, spec)| Some((name, spec.as_ref()?)))
    }

    pub(super) fn visit<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        self.operands().for_each(|(name, spec)| visit(Operand { name, spec, access: Access::Read }));
    }

    /// Bytes of the operands; positions of a broadcast view count once.
    pub(super) fn bytes(&self) -> u64 {
        self.operands().map(|(_, spec)| spec.bytes().min(spec.span_bytes()) as u64).sum()
    }

    /// The operands' values, out of those that follow the lengths among an operator's inputs.
    pub(super) fn values<'a>(&self, inputs: &[&'a [f64]]) -> ScoreValues<'a> {
        let mut inputs = inputs.iter().copied();
        let mut take = |spec: &Option<TensorSpec>| spec.as_ref().and_then(|_| inputs.next());
        ScoreValues { attn_mask: take(&self.attn_mask), slopes: take(&self.slopes), sinks: take(&self.sinks) }
    }

    /// The score of a key by its scaled product; `None` where the explicit mask hides it.
    ///
    /// `row` is `token · num_heads + head`, `distance` the key's from the row's position.
    pub(super) fn score(
        &self,
        values: &ScoreValues<'_>,
        [row, head, key]: [usize; 3],
        distance: f64,
        product: f64,
    ) -> Option<f64> {
        let mut score = product;
        if let Some(cap) = self.soft_cap.map(f64::from) {
            score = cap * (score / cap).tanh();
        }
        if let Some(slopes) = values.slopes {
            score -= slopes[head] * distance.abs();
        }
        if let (Some(spec), Some(mask)) = (&self.attn_mask, values.attn_mask) {
            let entry = mask[row * spec.dims()[2] + key];
            match spec.dtype() {
                DType::Bool if entry == 0.0 => return None,
                DType::Bool => {}
                _ if entry == f64::NEG_INFINITY => return None,
                _ => score += entry,
            }
        }
        Some(score)
    }

    /// What the steps add to the error of a score of magnitude up to `product`, with slopes, masks and sinks in
    /// [−1, 1], keys at most `keys` away, and f32 roundoff `u`: a hyperbolic tangent of 3 ulp between a quotient
    /// and a product of what is at most the smaller of cap and product; a distance times a slope, converted and
    /// added; an entry added; a sink converted.
    pub(super) fn error(&self, product: f64, keys: f64) -> f64 {
        let u = DType::F32.unit_roundoff();
        let cap = self.soft_cap.map_or(0.0, |cap| 10.0 * u * product.min(f64::from(cap)));
        let slopes = if self.slopes.is_some() { u * (4.0 * keys + product) } else { 0.0 };
        let mask = if self.attn_mask.is_some() { 2.0 * u * (1.0 + product) } else { 0.0 };
        let sinks = if self.sinks.is_some() { 4.0 * u } else { 0.0 };
        cap + slopes + mask + sinks
    }
}

fn expect_heads(op: &'static str, arg: &'static str, got: &TensorSpec, heads: usize) -> Result<()> {
    crate::expect_dims(op, arg, got, &[heads])?;
    expect_dtype(op, arg, got, &[DType::F32])
}

/// Values of the operands of [`AttentionScores`].
#[derive(Clone, Copy)]
pub(super) struct ScoreValues<'a> {
    attn_mask: Option<&'a [f64]>,
    slopes: Option<&'a [f64]>,
    pub(super) sinks: Option<&'a [f64]>,
}

/// The constructors of the attributes, for a spec with a field `query`.
macro_rules! score_attributes {
    () => {
        /// Bounds the scaled products smoothly: `cap · tanh(s / cap)`.
        pub fn with_soft_cap(mut self, cap: f32) -> Result<Self> {
            self.query.set_soft_cap(NAME, cap)?;
            Ok(self)
        }

        /// Hides keys (bool, where false; float, where −∞) or adds to their scores: `[tokens, num_heads, keys]`.
        /// A view with stride 0 serves a mask that is the same for all heads or rows.
        pub fn with_attn_mask(mut self, attn_mask: &TensorSpec) -> Result<Self> {
            self.query.set_attn_mask(NAME, attn_mask)?;
            Ok(self)
        }

        /// Takes `slopes[h]` from a score for each step between row and key (ALiBi): f32 `[num_heads]`.
        pub fn with_slopes(mut self, slopes: &TensorSpec) -> Result<Self> {
            self.query.set_slopes(NAME, slopes)?;
            Ok(self)
        }

        /// Adds a logit without a value to each row's sum: f32 `[num_heads]`, not scaled.
        pub fn with_sinks(mut self, sinks: &TensorSpec) -> Result<Self> {
            self.query.set_sinks(NAME, sinks)?;
            Ok(self)
        }
    };
}
pub(super) use score_attributes;

/// A set of attributes that cases try.
pub(super) struct ScoreVariant {
    pub(super) name: &'static str,
    soft_cap: Option<f32>,
    slopes: bool,
    /// Element type, and whether every head has its own.
    attn_mask: Option<(DType, bool)>,
    sinks: bool,
}

/// Each attribute alone, and all together.
pub(super) const VARIANTS: [ScoreVariant; 7] = {
    const NONE: ScoreVariant =
        ScoreVariant { name: "", soft_cap: None, slopes: false, attn_mask: None, sinks: false };
    [
        ScoreVariant { name: "soft_cap", soft_cap: Some(0.75), ..NONE },
        ScoreVariant { name: "alibi", slopes: true, ..NONE },
        ScoreVariant { name: "mask_bool", attn_mask: Some((DType::Bool, false)), ..NONE },
        ScoreVariant { name: "mask_f32", attn_mask: Some((DType::F32, true)), ..NONE },
        ScoreVariant { name: "mask_bf16", attn_mask: Some((DType::BF16, false)), ..NONE },
        ScoreVariant { name: "sinks", sinks: true, ..NONE },
        ScoreVariant {
            name: "everything",
            soft_cap: Some(20.0),
            slopes: true,
            attn_mask: Some((DType::F16, true)),
            sinks: true,
        },
    ]
};

impl ScoreVariant {
    pub(super) fn apply(&self, op: &'static str, query: &mut AttentionQuery) -> Result<()> {
        let (tokens, heads, keys) = (query.tokens(), query.num_heads(), query.kv_lens.max() as usize);
        let per_head = TensorSpec::of(DType::F32, &[heads])?;
        if let Some(cap) = self.soft_cap {
            query.set_soft_cap(op, cap)?;
        }
        if let Some((dtype, own)) = self.attn_mask {
            // One key more than there can be; one row of heads repeated where heads share.
            let shape = [tokens, heads, keys + 1];
            let mask = match own {
                true => TensorSpec::of(dtype, &shape)?,
                false => TensorSpec::of(dtype, &[tokens, 1, keys + 1])?
                    .broadcast_to(&crate::Shape::new(&shape)?)?,
            };
            query.set_attn_mask(op, &mask)?;
        }
        if self.slopes {
            query.set_slopes(op, &per_head)?;
        }
        if self.sinks {
            query.set_sinks(op, &per_head)?;
        }
        Ok(())
    }

    /// How the operands are filled where not at random.
    pub(super) fn fills(&self) -> Vec<(&'static str, Fill)> {
        let mut fills = vec![("slopes", Fill::Values(vec![0.5, 0.25, 1.0, 0.0, 0.125, -0.03125]))];
        if self.attn_mask.is_some_and(|(dtype, _)| dtype != DType::Bool) {
            let hidden = f64::NEG_INFINITY;
            let entries = vec![0.0, -0.5, hidden, 0.25, 1.0, hidden, hidden, -0.875, 0.0, 0.125, -1.0];
            fills.push(("attn_mask", Fill::Values(entries)));
        }
        fills
    }
}
