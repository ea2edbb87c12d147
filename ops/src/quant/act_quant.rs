//! Precision of the activations inside a linear layer: as they come, or rounded to codes of 8 bits.
//!
//! The rounding is the contract's, operation by operation in f32, so that every backend multiplies the same codes.

use crate::codec::{Overflow, SmallFloat};

/// Precision of the activations inside a linear layer: an attribute of the call, never a backend's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ActQuant {
    /// As they come; weights are dequantized by the f32 rule of [`crate::QuantScheme::value`].
    #[default]
    None,
    /// Rounded to int8 for each row and group of consecutive columns, symmetrically: see [`ActQuant::round`].
    /// For weights with integer codes.
    Int8 {
        /// Columns that share a scale: 32, 128 or [`ActQuant::ROW`]. The last group of a row may be shorter.
        group: usize,
    },
    /// Rounded to f8e4m3 for each row and group of consecutive columns: see [`ActQuant::round_f8`]. For weights
    /// with float codes.
    F8 {
        /// Columns that share a scale, as for int8.
        group: usize,
    },
}

impl ActQuant {
    /// The group that is a whole row: one scale a token.
    pub const ROW: usize = usize::MAX;
    /// Int8 in groups of 32, as GGUF's integer kernels.
    pub const INT8: ActQuant = ActQuant::Int8 { group: 32 };
    /// Int8 with one scale a row: with per-channel int8 weights this is W8A8.
    pub const INT8_ROW: ActQuant = ActQuant::Int8 { group: Self::ROW };
    /// F8 in groups of 128, which goes with weights in 128 × 128 blocks.
    pub const F8_GROUP: ActQuant = ActQuant::F8 { group: 128 };
    /// F8 with one scale a row.
    pub const F8_ROW: ActQuant = ActQuant::F8 { group: Self::ROW };

    /// Columns that share a scale, where there are scales.
    pub fn group(self) -> Option<usize> {
        match self {
            ActQuant::None => None,
            ActQuant::Int8 { group } | ActQuant::F8 { group } => Some(group),
        }
    }

    /// Rounds one group of activations to int8 and returns its scale.
    ///
    /// `scale = f32(max|x| / 127)`; `code = clamp(round_half_even(f32(x / scale)), −127, 127)`; where the
    /// scale is 0, so are the codes. A group that holds a NaN or an infinity has the scale NaN and codes 0.
    /// Codes beyond the shorter of the two slices are left alone.
    pub fn round(x: &[f32], codes: &mut [i8]) -> f32 {
        let scale = scale(x, 127.0);
        for (code, &v) in codes.iter_mut().zip(x) {
            *code = if scale > 0.0 { (v / scale).round_ties_even().clamp(-127.0, 127.0) as i8 } else { 0 };
        }
        scale
    }

    /// Rounds one group of activations to f8e4m3 and returns its scale.
    ///
    /// `scale = f32(max|x| / 448)`; the code is the nearest to `f32(x / scale)`, saturating; where the scale is
    /// 0, so are the codes. A group that holds a NaN or an infinity has the scale NaN and codes 0. Codes beyond
    /// the shorter of the two slices are left alone.
    pub fn round_f8(x: &[f32], codes: &mut [u8]) -> f32 {
        let scale = scale(x, SmallFloat::E4M3.largest());
        let code = |v: f32| SmallFloat::E4M3.encode(f64::from(v / scale), Overflow::Saturate);
        for (slot, &v) in codes.iter_mut().zip(x) {
            *slot = if scale > 0.0 { code(v) } else { 0 };
        }
        scale
    }

    /// Appends what a row of activations stands for once it is rounded: `scale · code`, exactly.
    pub(crate) fn seen(self, row: &[f64], out: &mut Vec<f64>) {
        let Some(group) = self.group() else {
            return out.extend(row);
        };
        for part in row.chunks(group.max(1)) {
            let x: Vec<f32> = part.iter().map(|&v| v as f32).collect();
            if let ActQuant::Int8 { .. } = self {
                let mut codes = vec![0i8; x.len()];
                let scale = f64::from(Self::round(&x, &mut codes));
                out.extend(codes.iter().map(|&code| scale * f64::from(code)));
            } else {
                let mut codes = vec![0u8; x.len()];
                let scale = f64::from(Self::round_f8(&x, &mut codes));
                out.extend(codes.iter().map(|&code| scale * f64::from(SmallFloat::E4M3.decode(code))));
            }
        }
    }
}

/// The scale under which the largest of a group becomes `top`; NaN where one is no finite number.
fn scale(x: &[f32], top: f32) -> f32 {
    let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    if x.iter().all(|v| v.is_finite()) { largest / top } else { f32::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_round_half_to_even_and_zero_groups_stay_zero() {
        let mut codes = [1i8; 4];
        assert_eq!(ActQuant::round(&[127.0, 0.5, 1.5, -2.5], &mut codes), 1.0);
        assert_eq!(codes, [127, 0, 2, -2]);
        assert_eq!(ActQuant::round(&[0.0, -0.0], &mut codes), 0.0);
        assert_eq!(codes, [0, 0, 2, -2]);
        // The scale of the smallest numbers loses most of its bits; codes stay in range.
        ActQuant::round(&[f32::from_bits(190), -f32::from_bits(190)], &mut codes);
        assert_eq!(codes[..2], [127, -127]);
        assert!(ActQuant::round(&[1.0, f32::INFINITY], &mut codes).is_nan());
        assert!(ActQuant::round(&[f32::NAN, 1.0], &mut codes).is_nan());
        assert_eq!(codes[..2], [0, 0]);
    }

    #[test]
    fn f8_activations_by_hand() {
        let mut codes = [1u8; 4];
        // 17 lies between 16 and 18: the even mantissa is 16's.
        assert_eq!(ActQuant::round_f8(&[-896.0, 34.0, 38.0, 0.0], &mut codes), 2.0);
        assert_eq!(codes.map(|code| SmallFloat::E4M3.decode(code)), [-448.0, 16.0, 20.0, 0.0]);
        assert_eq!(ActQuant::round_f8(&[0.0; 4], &mut codes), 0.0);
        assert_eq!(codes, [0; 4]);
        assert!(ActQuant::round_f8(&[1.0, f32::NAN], &mut codes).is_nan());
        // However little of a scale is left, codes saturate and none is NaN.
        ActQuant::round_f8(&[f32::from_bits(600), -f32::from_bits(600)], &mut codes);
        assert_eq!(codes[..2], [0x7e, 0xfe]);
    }

    #[test]
    fn a_group_of_a_row_has_one_scale() {
        let (row, mut seen) = ([254.0, 1.0, 3.0, -2.0], Vec::new());
        ActQuant::INT8_ROW.seen(&row, &mut seen);
        assert_eq!(seen, [254.0, 0.0, 4.0, -2.0]);
        ActQuant::Int8 { group: 2 }.seen(&row, &mut seen);
        assert_eq!(seen[4..6], [254.0, 0.0]);
        assert!((seen[6] - 3.0).abs() < 1e-6, "{seen:?}");
    }
}
