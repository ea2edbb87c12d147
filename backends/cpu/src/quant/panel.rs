//! Scales and offsets of a strip as f32, one vector of 16 rows for every part of a block: what tiles read.
//!
//! They are expanded once a strip, so that tile kernels know neither storage types nor two-level products.

use super::strip::{BLOCK, ROWS, StripLayout, offset_dtype, outer_block};
use crate::Isa;
use half::{bf16, f16};
use portolan_ops::codec::e8m0_value;
use portolan_ops::{DType, Offset, QuantScheme};

/// Number of f32 in each of the two panels of a strip.
pub(crate) fn panel_len(layout: &StripLayout) -> usize {
    layout.blocks * layout.parts_of_block() * ROWS
}

/// Expands the scales, and the offsets where there are any, of the packed strip `src`.
///
/// # Safety
/// `src` is a packed strip; `scales` and `offsets` hold [`panel_len`] f32 each; `isa` is available.
pub(crate) unsafe fn expand(
    isa: Isa,
    layout: &StripLayout,
    src: *const u8,
    scales: *mut f32,
    offsets: *mut f32,
) {
    // SAFETY: sections lie within the strip, as do all their entries.
    unsafe {
        let scheme = &layout.scheme;
        let two_level = scheme.scale.outer().is_some();
        let outer = |at| if two_level { src.add(at).cast::<f16>() } else { core::ptr::null() };
        run(isa, layout, scheme.scale.dtype(), src.add(layout.scale_at), outer(layout.outer_at), scales);
        if scheme.offset != Offset::None {
            let factors =
                if scheme.has_outer_offset() { outer(layout.outer_offset_at) } else { core::ptr::null() };
            run(isa, layout, offset_dtype(scheme), src.add(layout.offset_at), factors, offsets);
        }
    }
}

unsafe fn run(
    isa: Isa,
    layout: &StripLayout,
    dtype: DType,
    src: *const u8,
    outer: *const f16,
    dst: *mut f32,
) {
    // SAFETY: passed on; an `isa` above portable has F16C.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => run_x86(layout, dtype, src, outer, dst),
            _ => run_portable(layout, dtype, src, outer, dst),
        }
    }
}

/// Calls `body(part, group, outer group)` for every part of the row.
#[inline(always)]
fn for_parts(layout: &StripLayout, mut body: impl FnMut(usize, usize, usize)) {
    let parts = layout.parts_of_block();
    let columns = BLOCK / parts;
    let group_columns = layout.scheme.block[1];
    let outer_columns = outer_block(&layout.scheme);
    // Parts go up with their columns, so both groups are counted along: two divisions a part would cost
    // decode a fifth of its time.
    let (mut group, mut group_end) = (0, group_columns);
    let (mut outer, mut outer_end) = (0, outer_columns);
    for part in 0..layout.blocks * parts {
        // Columns past the end of a row belong to its last group.
        let column = (part * columns).min(layout.k - 1);
        while column >= group_end {
            (group, group_end) = (group + 1, group_end.saturating_add(group_columns));
        }
        while column >= outer_end {
            (outer, outer_end) = (outer + 1, outer_end.saturating_add(outer_columns));
        }
        body(part, group, outer);
    }
}

unsafe fn run_portable(layout: &StripLayout, dtype: DType, src: *const u8, outer: *const f16, dst: *mut f32) {
    let stride = layout.group_stride(dtype);
    for_parts(layout, |part, group, outer_group| {
        for r in 0..ROWS {
            // SAFETY: every group and outer group has 16 entries in its section.
            unsafe {
                let mut value = scalar(dtype, src.add(group * stride), r);
                if !outer.is_null() {
                    let factor = outer.add(outer_group * ROWS + r).read_unaligned().to_f32();
                    value = QuantScheme::product(factor, value);
                }
                *dst.add(part * ROWS + r) = value;
            }
        }
    });
}

/// Entry `i` from `src` on as f32.
unsafe fn scalar(dtype: DType, src: *const u8, i: usize) -> f32 {
    // SAFETY: the entry exists.
    unsafe {
        match dtype {
            DType::F32 => src.cast::<f32>().add(i).read_unaligned(),
            DType::F16 => src.cast::<f16>().add(i).read_unaligned().to_f32(),
            DType::BF16 => src.cast::<bf16>().add(i).read_unaligned().to_f32(),
            DType::U8 => f32::from(*src.add(i)),
            DType::I8 => f32::from(*src.cast::<i8>().add(i)),
            _ => e8m0_value(*src.add(i)),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_x86(layout: &StripLayout, dtype: DType, src: *const u8, outer: *const f16, dst: *mut f32) {
    use std::arch::x86_64::*;
    // The type is told apart here and not for each group: decode expands the scales of every weight it reads.
    let stride = layout.group_stride(dtype);
    // SAFETY: entries are read within their section, as `expand_x86` promises to ask for them.
    unsafe {
        match dtype {
            DType::F32 => expand_x86(layout, src, stride, 32, outer, dst, |at| _mm256_loadu_ps(at.cast())),
            DType::F16 => expand_x86(layout, src, stride, 16, outer, dst, |at| {
                _mm256_cvtph_ps(_mm_loadu_si128(at.cast()))
            }),
            DType::BF16 => expand_x86(layout, src, stride, 16, outer, dst, |at| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            }),
            DType::U8 => expand_x86(layout, src, stride, 8, outer, dst, |at| {
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast())))
            }),
            DType::I8 => expand_x86(layout, src, stride, 8, outer, dst, |at| {
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast())))
            }),
            _ => expand_x86(layout, src, stride, 8, outer, dst, |at| {
                // 2^(code − 127); both ends, 2^−127 and NaN, have the topmost bit of the mantissa.
                let code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()));
                let end = |end: i32| _mm256_cmpeq_epi32(code, _mm256_set1_epi32(end));
                let top = _mm256_and_si256(_mm256_or_si256(end(0), end(255)), _mm256_set1_epi32(1 << 22));
                _mm256_castsi256_ps(_mm256_or_si256(_mm256_slli_epi32::<23>(code), top))
            }),
        }
    }
}

/// Writes the entries of every part: `load` reads 8 that take `half` bytes; groups lie `stride` bytes apart.
///
/// # Safety
/// As [`expand`]; `load` reads no more than that.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn expand_x86(
    layout: &StripLayout,
    src: *const u8,
    stride: usize,
    half: usize,
    outer: *const f16,
    dst: *mut f32,
    load: impl Fn(*const u8) -> std::arch::x86_64::__m256,
) {
    use std::arch::x86_64::*;
    // SAFETY: every group and outer group has 16 entries in its section.
    unsafe {
        if outer.is_null() && layout.groups == layout.blocks * layout.parts_of_block() {
            // A group to each part.
            for group in 0..layout.groups {
                let (from, to) = (src.add(group * stride), dst.add(group * ROWS));
                _mm256_storeu_ps(to, load(from));
                _mm256_storeu_ps(to.add(8), load(from.add(half)));
            }
            return;
        }
        for_parts(layout, |part, group, outer_group| {
            for i in 0..2 {
                let mut value = load(src.add(group * stride + i * half));
                if !outer.is_null() {
                    let factor = _mm_loadu_si128(outer.add(outer_group * ROWS + i * 8).cast());
                    value = _mm256_mul_ps(_mm256_cvtph_ps(factor), value);
                }
                _mm256_storeu_ps(dst.add(part * ROWS + i * 8), value);
            }
        });
    }
}
