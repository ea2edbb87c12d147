//! The packed form of a quantized weight: strips of 16 rows, blocks of 32 columns, codes in vector order.
//!
//! A block's codes come as vectors of 64 bytes, 16 rows by 4 columns each, as `vpdpbusd` wants them; integer codes
//! are stored without sign (`code + bias`), float codes as their bits. Below 7 bits two vectors share their bytes as
//! low and high nibbles, and a fifth and sixth bit follow in vectors of their own. Scales and offsets, 16 rows to a
//! group, keep their own types: nothing is rounded, and the bytes are those of the file format. Where every block is
//! a group they follow its codes, so that a strip is one run of memory, front to back; else they come after all
//! blocks.

use portolan_ops::codec::SmallFloat;
use portolan_ops::{DType, OpError, QuantScheme, QuantSpec, Result, ScaleKind, TensorSpec};

/// Rows of a strip: lanes of a 512-bit vector of 32-bit sums.
pub(crate) const ROWS: usize = 16;
/// Columns of a block: the group of int8 activations.
pub(crate) const BLOCK: usize = 32;

/// Base addresses of the tensors of a quantized weight; those that its scheme lacks are null.
#[derive(Clone, Copy)]
pub(crate) struct QuantParts {
    /// Of the codes.
    pub(crate) codes: *const u8,
    /// Of the scales.
    pub(crate) scale: *const u8,
    /// Of minima or zero points.
    pub(crate) offset: *const u8,
    /// Of the scales' factors.
    pub(crate) outer: *const u8,
    /// Of the minima's factors.
    pub(crate) outer_offset: *const u8,
}

/// How many bits of a code a block stores, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// 4 bits: nibbles.
    Four,
    /// 5 bits: nibbles and one vector of fifth bits.
    Five,
    /// 6 bits: nibbles and two vectors of upper bit pairs.
    Six,
    /// 8 bits: bytes.
    Eight,
}

impl Family {
    pub(crate) const fn block_bytes(self) -> usize {
        match self {
            Family::Four => 256,
            Family::Five => 320,
            Family::Six => 384,
            Family::Eight => 512,
        }
    }

    const fn bits(self) -> u32 {
        match self {
            Family::Four => 4,
            Family::Five => 5,
            Family::Six => 6,
            Family::Eight => 8,
        }
    }
}

/// Where everything of a packed weight is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StripLayout {
    pub(crate) scheme: QuantScheme,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) family: Family,
    /// Added to an integer code so that it has no sign.
    pub(crate) bias: i32,
    /// Blocks of a row.
    pub(crate) blocks: usize,
    /// Entries of scale and offset of a row, and of their factors.
    pub(crate) groups: usize,
    pub(crate) outer_groups: usize,
    /// Bytes from a block to the next.
    pub(crate) stride: usize,
    /// Whether a block's scales and offsets follow its codes; else they lie group after group behind all blocks.
    pub(crate) joined: bool,
    /// Byte offsets inside a strip, and the bytes of a strip.
    pub(crate) scale_at: usize,
    pub(crate) offset_at: usize,
    pub(crate) outer_at: usize,
    pub(crate) outer_offset_at: usize,
    pub(crate) strip_bytes: usize,
}

/// The form's name.
pub(crate) const TAG: &str = "strip16x32";

impl StripLayout {
    /// The layout of an `[n, k]` weight.
    pub(crate) fn new(scheme: &QuantScheme, n: usize, k: usize) -> Result<Self> {
        scheme.validate()?;
        let family = match scheme.code_bits {
            0..=4 => Family::Four,
            5 => Family::Five,
            6 => Family::Six,
            _ => Family::Eight,
        };
        let signed = matches!(scheme.code, DType::I4 | DType::I8);
        let bias = if signed { 1 << (family.bits() - 1) } else { 0 };
        let blocks = k.div_ceil(BLOCK);
        let groups = k.div_ceil(scheme.block[1]);
        let outer_groups = scheme.scale.outer().map_or(0, |(_, block)| k.div_ceil(block));
        let too_large = || OpError::shape("prepack", format!("a weight [{n}, {k}] is too large to pack"));
        let entry = |dtype: Option<DType>| dtype.map_or(0, |dtype| ROWS * width(dtype));
        let outer = scheme.scale.outer().map(|(dtype, _)| dtype);
        let joined = scheme.block[1] == BLOCK && outer.is_none();
        let sizes = [
            (groups, entry(Some(scheme.scale.dtype()))),
            (groups, entry(scheme.offset_dtype())),
            (outer_groups, entry(outer)),
            (outer_groups, entry(outer.filter(|_| scheme.has_outer_offset()))),
        ];
        let codes = family.block_bytes();
        let stride = if joined { codes + sizes[0].1 + sizes[1].1 } else { codes };
        let mut end = blocks.checked_mul(stride).ok_or_else(too_large)?;
        let mut starts = [codes, codes + sizes[0].1, 0, 0];
        if !joined {
            for (start, (entries, bytes)) in starts.iter_mut().zip(sizes) {
                *start = end;
                let size = entries.checked_mul(bytes).and_then(|b| b.checked_next_multiple_of(64));
                end = size.and_then(|size| end.checked_add(size)).ok_or_else(too_large)?;
            }
        }
        let strip_bytes = end.checked_next_multiple_of(64).ok_or_else(too_large)?;
        n.div_ceil(ROWS)
            .checked_mul(strip_bytes)
            .filter(|&b| b <= isize::MAX as usize)
            .ok_or_else(too_large)?;
        Ok(Self {
            scheme: *scheme,
            n,
            k,
            family,
            bias,
            blocks,
            groups,
            outer_groups,
            stride,
            joined,
            scale_at: starts[0],
            offset_at: starts[1],
            outer_at: starts[2],
            outer_offset_at: starts[3],
            strip_bytes,
        })
    }

    /// The number a stored code stands for.
    pub(crate) fn number(&self, stored: u8) -> f32 {
        match SmallFloat::of(self.scheme.code) {
            Some(format) => format.decode(stored),
            None => (i32::from(stored) - self.bias) as f32,
        }
    }

    pub(crate) fn strips(&self) -> usize {
        self.n.div_ceil(ROWS)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.strips() * self.strip_bytes
    }

    /// Bytes from a group's entries in the section of scales or offsets of type `dtype` to the next group's.
    pub(crate) fn group_stride(&self, dtype: DType) -> usize {
        if self.joined { self.stride } else { ROWS * width(dtype) }
    }

    /// Scale entries that a block of 32 columns needs: 1 or 2, or 32 where groups follow no such boundary.
    pub(crate) fn parts_of_block(&self) -> usize {
        let columns = self.scheme.block[1];
        if self.groups <= 1 || columns.is_multiple_of(BLOCK) {
            1
        } else if columns.is_multiple_of(BLOCK / 2) {
            2
        } else {
            BLOCK
        }
    }
}

/// The tensors with one entry a group: where in a strip and how far apart, how many columns, from which tensor.
struct Section<'a> {
    at: usize,
    stride: usize,
    columns: usize,
    spec: &'a TensorSpec,
    base: *const u8,
}

fn sections<'a>(
    layout: &StripLayout,
    spec: &'a QuantSpec,
    parts: &QuantParts,
) -> impl Iterator<Item = Section<'a>> {
    let section = |at, columns, spec: Option<&'a TensorSpec>, base| {
        spec.map(|spec| Section { at, stride: layout.group_stride(spec.dtype()), columns, spec, base })
    };
    [
        section(layout.scale_at, layout.groups, Some(spec.scale()), parts.scale),
        section(layout.offset_at, layout.groups, spec.offset(), parts.offset),
        section(layout.outer_at, layout.outer_groups, spec.outer(), parts.outer),
        section(layout.outer_offset_at, layout.outer_groups, spec.outer_offset(), parts.outer_offset),
    ]
    .into_iter()
    .flatten()
}

/// Position of an element of a two-dimensional tensor.
fn place(spec: &TensorSpec, row: usize, column: usize) -> usize {
    spec.layout().offset() + row * spec.strides()[0] + column * spec.strides()[1]
}

/// Bytes of an element of a type of whole bytes.
fn width(dtype: DType) -> usize {
    dtype.bits() as usize / 8
}

/// Packs strip `strip` into `dst`, which holds `strip_bytes` bytes.
///
/// # Errors
/// `Data` for a code out of the range its scheme promises.
///
/// # Safety
/// `parts` are the tensors of `spec`, whose layout is `layout`; `dst` is writable and overlaps none of them.
pub(crate) unsafe fn pack_strip(
    layout: &StripLayout,
    spec: &QuantSpec,
    parts: &QuantParts,
    strip: usize,
    dst: *mut u8,
) -> Result<()> {
    let rows = ROWS.min(layout.n - strip * ROWS);
    let top = (1i32 << layout.family.bits()) - 1;
    for block in 0..layout.blocks {
        let columns = BLOCK.min(layout.k - block * BLOCK);
        let mut codes = [[0u8; BLOCK]; ROWS];
        for (r, line) in codes.iter_mut().enumerate().take(rows) {
            let row = strip * ROWS + r;
            // SAFETY: row and columns lie within the tensor of codes.
            unsafe {
                read_codes(spec.codes(), parts.codes, row, block * BLOCK, columns, layout.bias, top, line)
            }?;
        }
        // SAFETY: the block lies within the strip.
        unsafe { store_block(layout.family, &codes, dst.add(block * layout.stride)) };
    }
    for section in sections(layout, spec, parts) {
        let bytes = width(section.spec.dtype());
        for column in 0..section.columns {
            for r in 0..ROWS {
                let row = (strip * ROWS + r) / layout.scheme.block[0];
                // SAFETY: the entry lies within the section; the source within its tensor where the row exists.
                unsafe {
                    let to = dst.add(section.at + column * section.stride + r * bytes);
                    if r < rows {
                        let from = section.base.add(place(section.spec, row, column) * bytes);
                        to.copy_from_nonoverlapping(from, bytes);
                    } else {
                        to.write_bytes(0, bytes);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Reads `columns` codes of a row, without sign.
///
/// # Safety
/// They lie within the tensor of `spec` at `base`.
#[allow(clippy::too_many_arguments, reason = "one call, every argument a number of its own")]
#[inline]
unsafe fn read_codes(
    spec: &TensorSpec,
    base: *const u8,
    row: usize,
    column: usize,
    columns: usize,
    bias: i32,
    top: i32,
    line: &mut [u8; BLOCK],
) -> Result<()> {
    let at = place(spec, row, column);
    for (i, slot) in line.iter_mut().enumerate().take(columns) {
        // SAFETY: by contract; rows of half-byte codes start on whole bytes.
        let code = unsafe {
            match spec.dtype() {
                DType::U4 | DType::F4E2M1 => i32::from(*base.add((at + i) / 2) >> ((at + i) % 2 * 4) & 15),
                DType::I4 => i32::from((*base.add((at + i) / 2) << (4 - (at + i) % 2 * 4)) as i8 >> 4),
                DType::U8 | DType::F8E4M3 | DType::F8E5M2 => i32::from(*base.add(at + i)),
                _ => i32::from(*base.add(at + i) as i8),
            }
        };
        if code + bias < 0 || code + bias > top {
            let what = format!(
                "code {code} at [{row}, {}], the scheme promises {} to {}",
                column + i,
                -bias,
                top - bias
            );
            return Err(OpError::Data { op: "prepack".into(), what });
        }
        *slot = (code + bias) as u8;
    }
    Ok(())
}

/// Stores a block of unsigned codes.
///
/// # Safety
/// `dst` holds the family's `block_bytes`.
unsafe fn store_block(family: Family, codes: &[[u8; BLOCK]; ROWS], dst: *mut u8) {
    // SAFETY: `block_bytes` bytes are writable.
    let out = unsafe { core::slice::from_raw_parts_mut(dst, family.block_bytes()) };
    out.fill(0);
    for (r, line) in codes.iter().enumerate() {
        for (c, &code) in line.iter().enumerate() {
            let (quad, lane) = (c / 4, r * 4 + c % 4);
            if family == Family::Eight {
                out[quad * 64 + lane] = code;
                continue;
            }
            out[quad / 2 * 64 + lane] |= (code & 15) << (quad % 2 * 4);
            match family {
                Family::Five => out[256 + lane] |= (code >> 4) << quad,
                Family::Six => out[256 + quad / 4 * 64 + lane] |= (code >> 4) << (quad % 4 * 2),
                _ => {}
            }
        }
    }
}

/// Loads the unsigned code of a row and column of a block: the scalar twin of the kernels' unpacking.
#[inline]
pub(crate) fn load_code(family: Family, block: &[u8], r: usize, c: usize) -> u8 {
    let (quad, lane) = (c / 4, r * 4 + c % 4);
    if family == Family::Eight {
        return block[quad * 64 + lane];
    }
    let low = block[quad / 2 * 64 + lane] >> (quad % 2 * 4) & 15;
    match family {
        Family::Five => low | (block[256 + lane] >> quad & 1) << 4,
        Family::Six => low | (block[256 + quad / 4 * 64 + lane] >> (quad % 4 * 2) & 3) << 4,
        _ => low,
    }
}

/// Writes strip `strip` back to the tensors it was packed from.
///
/// # Safety
/// `src` is that packed strip; `parts` are the writable tensors of `spec`; no other strip that shares a block
/// of scales with this one is unpacked at the same time.
pub(crate) unsafe fn unpack_strip(
    layout: &StripLayout,
    spec: &QuantSpec,
    parts: &QuantParts,
    strip: usize,
    src: *const u8,
) {
    let rows = ROWS.min(layout.n - strip * ROWS);
    let bytes = layout.family.block_bytes();
    for block in 0..layout.blocks {
        // SAFETY: the block lies within the strip.
        let packed = unsafe { core::slice::from_raw_parts(src.add(block * layout.stride), bytes) };
        let columns = BLOCK.min(layout.k - block * BLOCK);
        for r in 0..rows {
            let at = place(spec.codes(), strip * ROWS + r, block * BLOCK);
            for c in 0..columns {
                let code = i32::from(load_code(layout.family, packed, r, c)) - layout.bias;
                // SAFETY: the element lies within the tensor; a half-byte shares its byte with its own row only.
                unsafe {
                    if spec.codes().dtype().is_sub_byte() {
                        let byte = parts.codes.cast_mut().add((at + c) / 2);
                        let shift = (at + c) % 2 * 4;
                        *byte = (*byte & !(15 << shift)) | ((code as u8 & 15) << shift);
                    } else {
                        *parts.codes.cast_mut().add(at + c) = code as u8;
                    }
                }
            }
        }
    }
    for section in sections(layout, spec, parts) {
        let bytes = width(section.spec.dtype());
        for column in 0..section.columns {
            for r in 0..rows {
                let row = (strip * ROWS + r) / layout.scheme.block[0];
                // SAFETY: the entry lies within the section, its target within its tensor.
                unsafe {
                    let from = src.add(section.at + column * section.stride + r * bytes);
                    let to = section.base.cast_mut().add(place(section.spec, row, column) * bytes);
                    to.copy_from_nonoverlapping(from, bytes);
                }
            }
        }
    }
}

/// The element types a scale or an offset is stored in.
pub(crate) fn offset_dtype(scheme: &QuantScheme) -> DType {
    scheme.offset_dtype().unwrap_or(DType::F32)
}

/// The factor's columns under two levels.
pub(crate) fn outer_block(scheme: &QuantScheme) -> usize {
    match scheme.scale {
        ScaleKind::TwoLevel { outer_block, .. } => outer_block,
        _ => usize::MAX,
    }
}
