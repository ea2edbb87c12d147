//! What a product is: its name, its limits, the element types its kernels take.

/// A product family whose rules the simulator follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Inference cards: 16-bit floats are fp16 only.
    P310,
    /// 910B.
    A2,
    /// 910_93: two dies, each a device; the instruction set of A2.
    A3,
    /// 950: 8-bit and 4-bit floats, no padding behind allocations.
    A5,
}

/// A product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Profile {
    /// What a configuration calls it.
    pub(crate) key: &'static str,
    /// What `aclrtGetSocName` answers.
    pub(crate) soc: &'static str,
    pub(crate) family: Family,
    /// Streams that may exist at a time, on one device.
    pub(crate) streams: usize,
    /// Events that may exist at a time, on one device.
    pub(crate) events: usize,
    /// Cores for matrices, cores for vectors, bytes of the second cache: of one member of the family.
    pub(crate) cores: (i64, i64),
    pub(crate) l2_bytes: i64,
    /// The instruction set's number.
    pub(crate) architecture: i64,
}

const PROFILES: [Profile; 4] = [
    Profile {
        key: "310P",
        soc: "Ascend310P3",
        family: Family::P310,
        streams: 1024,
        events: 1023,
        cores: (8, 7),
        l2_bytes: 16 << 20,
        architecture: 2002,
    },
    Profile {
        key: "A2",
        soc: "Ascend910B3",
        family: Family::A2,
        streams: 1984,
        events: 65536,
        cores: (20, 40),
        l2_bytes: 192 << 20,
        architecture: 2201,
    },
    Profile {
        key: "A3",
        soc: "Ascend910_9391",
        family: Family::A3,
        streams: 1984,
        events: 65536,
        cores: (24, 48),
        l2_bytes: 192 << 20,
        architecture: 2201,
    },
    Profile {
        key: "950",
        soc: "Ascend950",
        family: Family::A5,
        streams: 1984,
        events: 65536,
        cores: (32, 64),
        l2_bytes: 128 << 20,
        architecture: 3510,
    },
];

impl Profile {
    /// The profile a configuration names, by its key or by the name of its chip.
    pub(crate) fn named(name: &str) -> Option<Self> {
        PROFILES.into_iter().find(|profile| profile.key == name || profile.soc == name)
    }

    /// Bytes behind `ALIGN_UP(size, 32)` that vector units may read.
    pub(crate) fn padding(self) -> usize {
        match self.family {
            Family::P310 | Family::A2 | Family::A3 => 32,
            Family::A5 => 0,
        }
    }
}

impl Default for Profile {
    fn default() -> Self {
        PROFILES[2]
    }
}
