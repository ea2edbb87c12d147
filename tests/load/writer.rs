//! Writes small GGUF and safetensors files, honest or not: every field can be given any value.

/// A GGUF file under construction; nothing is checked.
#[derive(Clone)]
pub(crate) struct GgufWriter {
    magic: [u8; 4],
    version: u32,
    alignment: usize,
    entries: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
    counts: Option<(u64, u64)>,
}

/// A length-prefixed string.
pub(crate) fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

/// The value of a metadata entry: type number and bytes.
pub(crate) fn value(kind: u32, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], bytes].concat()
}

/// An array's value: type number of the elements, count, bytes.
pub(crate) fn array(kind: u32, count: u64, bytes: &[u8]) -> Vec<u8> {
    [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes(), bytes].concat()
}

impl GgufWriter {
    pub(crate) fn new() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            alignment: 32,
            entries: Vec::new(),
            tensors: Vec::new(),
            data: Vec::new(),
            counts: None,
        }
    }

    pub(crate) fn magic(mut self, magic: &[u8; 4]) -> Self {
        self.magic = *magic;
        self
    }

    pub(crate) fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Claims these numbers of tensors and entries, whatever there is.
    pub(crate) fn counts(mut self, tensors: u64, entries: u64) -> Self {
        self.counts = Some((tensors, entries));
        self
    }

    /// Aligns data to `alignment`; the entry that says so is the caller's.
    pub(crate) fn align(mut self, alignment: usize) -> Self {
        self.alignment = alignment;
        self
    }

    pub(crate) fn entry(mut self, key: &str, value: Vec<u8>) -> Self {
        self.entries.push([string(key.as_bytes()), value].concat());
        self
    }

    pub(crate) fn u32(self, key: &str, number: u32) -> Self {
        self.entry(key, value(4, &number.to_le_bytes()))
    }

    pub(crate) fn f32(self, key: &str, number: f32) -> Self {
        self.entry(key, value(6, &number.to_le_bytes()))
    }

    pub(crate) fn text(self, key: &str, text: &str) -> Self {
        self.entry(key, value(8, &string(text.as_bytes())))
    }

    /// A tensor's line as it is; `dims` innermost first.
    pub(crate) fn line(mut self, name: &[u8], dims: &[u64], kind: u32, offset: u64) -> Self {
        let mut line = string(name);
        line.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| line.extend(d.to_le_bytes()));
        line.extend(kind.to_le_bytes());
        line.extend(offset.to_le_bytes());
        self.tensors.push(line);
        self
    }

    /// A tensor and its data, placed where it belongs.
    pub(crate) fn tensor(mut self, name: &str, dims: &[u64], kind: u32, data: &[u8]) -> Self {
        self.data.resize(self.data.len().next_multiple_of(self.alignment), 0);
        let offset = self.data.len() as u64;
        self.data.extend(data);
        self.line(name.as_bytes(), dims, kind, offset)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (tensors, entries) =
            self.counts.unwrap_or((self.tensors.len() as u64, self.entries.len() as u64));
        let mut out = [&self.magic[..], &self.version.to_le_bytes()].concat();
        out.extend(tensors.to_le_bytes());
        out.extend(entries.to_le_bytes());
        self.entries.iter().chain(&self.tensors).for_each(|part| out.extend(part));
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }
}

/// A valid file with metadata of every type and a tensor of every type that is loaded.
pub(crate) fn every_type() -> GgufWriter {
    let types: [(&str, u32, u64, usize); 11] = [
        ("f32", 0, 3, 12),
        ("f16", 1, 3, 6),
        ("q4_0", 2, 32, 18),
        ("q4_1", 3, 32, 20),
        ("q5_0", 6, 32, 22),
        ("q5_1", 7, 32, 24),
        ("q8_0", 8, 32, 34),
        ("q4_k", 12, 256, 144),
        ("q5_k", 13, 256, 176),
        ("q6_k", 14, 256, 210),
        ("bf16", 30, 3, 6),
    ];
    let mut file = GgufWriter::new()
        .text("general.architecture", "blocks")
        .entry("bool", value(7, &[1]))
        .entry("u8", value(0, &[200]))
        .entry("i8", value(1, &[200]))
        .entry("u16", value(2, &[1, 2]))
        .entry("i16", value(3, &[1, 2]))
        .entry("i32", value(5, &[1, 2, 3, 4]))
        .entry("u64", value(10, &[1, 2, 3, 4, 5, 6, 7, 8]))
        .entry("i64", value(11, &[1, 2, 3, 4, 5, 6, 7, 8]))
        .entry("f64", value(12, &1.5f64.to_le_bytes()))
        .f32("f32", 0.5)
        .entry("words", array(8, 2, &[string(b"a"), string("ß".as_bytes())].concat()))
        .entry("nested", array(9, 1, &array(4, 2, &[0; 8])[4..]));
    for (name, kind, row, bytes) in types {
        let data: Vec<u8> = (0..bytes).map(|i| (i * 37 + kind as usize) as u8).collect();
        file = file.tensor(name, &[row, 1], kind, &data);
    }
    file
}

/// A safetensors file: header text, then data.
pub(crate) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}
