//! Which product a chip belongs to, by its name.

/// A product family: what its chips can do and what their memory needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Product {
    /// Inference cards (Ascend310P…): 16-bit floats are fp16 only.
    P310,
    /// Ascend910B1 to B4.
    A2,
    /// Ascend910_93…: two dies, each a device.
    A3,
    /// Ascend950…: 8-bit and 4-bit floats.
    A5,
}

/// Name prefixes, longest first: `Ascend910B` alone is the first 910, which is none of these.
const PREFIXES: [(&str, Product); 7] = [
    ("Ascend910_93", Product::A3),
    ("Ascend910B1", Product::A2),
    ("Ascend910B2", Product::A2),
    ("Ascend910B3", Product::A2),
    ("Ascend910B4", Product::A2),
    ("Ascend310P", Product::P310),
    ("Ascend950", Product::A5),
];

impl Product {
    /// The product of the chip that the driver names so.
    pub fn of_chip(name: &str) -> Option<Self> {
        PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|&(_, product)| product)
    }

    /// Streams of one device, of all programs together.
    pub(crate) fn stream_limit(self) -> usize {
        match self {
            Product::P310 => 1024,
            Product::A2 | Product::A3 | Product::A5 => 1984,
        }
    }

    /// Bytes behind each tensor that vector units may read; the tensor's own bytes rounded up to 32.
    pub(crate) fn tail_padding(self) -> usize {
        match self {
            Product::P310 | Product::A2 | Product::A3 => 32,
            Product::A5 => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chips_are_told_by_their_longest_prefix() {
        for (chip, product) in [
            ("Ascend910B2C", Some(Product::A2)),
            ("Ascend910B4-1", Some(Product::A2)),
            ("Ascend910_9391", Some(Product::A3)),
            ("Ascend310P7", Some(Product::P310)),
            ("Ascend950PR", Some(Product::A5)),
            ("Ascend910B", None),
            ("Ascend310B1", None),
            ("", None),
        ] {
            assert_eq!(Product::of_chip(chip), product, "{chip}");
        }
    }
}
