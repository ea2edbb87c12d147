//! The counter-based generator behind `random`, sampling and test inputs: Philox4x32 with ten rounds.
//!
//! A pure function of (counter, key), so every backend and the oracle draw the same bits in any order.

/// Ten rounds of Philox4x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
pub const fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    // Multipliers and Weyl increments (golden ratio, √3 − 1) of the paper's Table 2 and section 4.3.
    const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const INCREMENTS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let mut round = 0;
    while round < 10 {
        let first = MULTIPLIERS[0] * counter[0] as u64;
        let second = MULTIPLIERS[1] * counter[2] as u64;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(INCREMENTS[0]), key[1].wrapping_add(INCREMENTS[1])];
        round += 1;
    }
    counter
}

/// Block `block` of the stream of `seed`: the low 64 bits of the counter, the upper 64 are zero.
pub const fn philox_block(seed: u64, block: u64) -> [u32; 4] {
    philox4x32_10([block as u32, (block >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32])
}

/// The 24 upper bits as a number in [0, 1): every value is exact in f32.
pub const fn unit_from_bits(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / 16_777_216.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_vectors_are_met() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
        );
    }

    #[test]
    fn units_stay_below_one() {
        assert_eq!(unit_from_bits(0), 0.0);
        assert_eq!(unit_from_bits(u32::MAX), 1.0 - 1.0 / 16_777_216.0);
    }
}
