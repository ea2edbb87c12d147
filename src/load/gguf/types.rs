//! The tensor types a GGUF file may name: how many elements a block holds and how many bytes it takes.
//!
//! Types that cannot be loaded are listed too, so that a file that uses them can still be inspected.

use core::fmt;

/// The types whose tensors can be loaded, for messages.
pub const SUPPORTED_TYPES: &str = "f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k";

/// A tensor type by its number in the file, known or not.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GgmlType(pub u32);

/// Name, elements a block, bytes a block of each number.
const TYPES: &[(u32, &str, u32, u32)] = &[
    (0, "f32", 1, 4),
    (1, "f16", 1, 2),
    (2, "q4_0", 32, 18),
    (3, "q4_1", 32, 20),
    (6, "q5_0", 32, 22),
    (7, "q5_1", 32, 24),
    (8, "q8_0", 32, 34),
    (9, "q8_1", 32, 36),
    (10, "q2_k", 256, 84),
    (11, "q3_k", 256, 110),
    (12, "q4_k", 256, 144),
    (13, "q5_k", 256, 176),
    (14, "q6_k", 256, 210),
    (15, "q8_k", 256, 292),
    (16, "iq2_xxs", 256, 66),
    (17, "iq2_xs", 256, 74),
    (18, "iq3_xxs", 256, 98),
    (19, "iq1_s", 256, 50),
    (20, "iq4_nl", 32, 18),
    (21, "iq3_s", 256, 110),
    (22, "iq2_s", 256, 82),
    (23, "iq4_xs", 256, 136),
    (24, "i8", 1, 1),
    (25, "i16", 1, 2),
    (26, "i32", 1, 4),
    (27, "i64", 1, 8),
    (28, "f64", 1, 8),
    (29, "iq1_m", 256, 56),
    (30, "bf16", 1, 2),
    (34, "tq1_0", 256, 54),
    (35, "tq2_0", 256, 66),
    (39, "mxfp4", 32, 17),
];

impl GgmlType {
    /// IEEE binary32.
    pub const F32: GgmlType = GgmlType(0);
    /// IEEE binary16.
    pub const F16: GgmlType = GgmlType(1);
    /// bfloat16.
    pub const BF16: GgmlType = GgmlType(30);
    /// 4-bit codes around 8, one scale per 32.
    pub const Q4_0: GgmlType = GgmlType(2);
    /// 4-bit codes, scale and minimum per 32.
    pub const Q4_1: GgmlType = GgmlType(3);
    /// 5-bit codes around 16, one scale per 32.
    pub const Q5_0: GgmlType = GgmlType(6);
    /// 5-bit codes, scale and minimum per 32.
    pub const Q5_1: GgmlType = GgmlType(7);
    /// 8-bit codes, one scale per 32.
    pub const Q8_0: GgmlType = GgmlType(8);
    /// 4-bit codes, 6-bit scale and minimum per 32, two f16 factors per 256.
    pub const Q4_K: GgmlType = GgmlType(12);
    /// 5-bit codes, 6-bit scale and minimum per 32, two f16 factors per 256.
    pub const Q5_K: GgmlType = GgmlType(13);
    /// 6-bit codes around 32, 8-bit scale per 16, one f16 factor per 256.
    pub const Q6_K: GgmlType = GgmlType(14);

    /// Every type whose tensors can be loaded.
    pub const LOADABLE: [GgmlType; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    fn row(self) -> Option<&'static (u32, &'static str, u32, u32)> {
        TYPES.iter().find(|row| row.0 == self.0)
    }

    /// The lower-case name, where the number is known.
    pub fn name(self) -> Option<&'static str> {
        self.row().map(|row| row.1)
    }

    /// Elements and bytes of a block, where the number is known.
    pub fn block(self) -> Option<(u32, u32)> {
        self.row().map(|row| (row.2, row.3))
    }

    /// Whether tensors of this type can be loaded.
    pub fn is_loadable(self) -> bool {
        Self::LOADABLE.contains(&self)
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "type {} (unknown)", self.0),
        }
    }
}

impl fmt::Debug for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supported_list_names_exactly_the_loadable_types() {
        let names: Vec<&str> = GgmlType::LOADABLE.iter().filter_map(|t| t.name()).collect();
        assert_eq!(names.join(", "), SUPPORTED_TYPES);
        assert_eq!(GgmlType(99).to_string(), "type 99 (unknown)");
    }
}
