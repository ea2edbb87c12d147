//! Packing: strips of a factor rewritten in the order a microkernel reads them, narrow floats widened.
//!
//! Here are the portable forms, which also serve any strides; `pack_x86` has the two common layouts.

use super::kernel::PackFn;
use half::{bf16, f16};
use portolan_ops::DType;

/// A part of a factor: `lanes` rows of a (or columns of b) by `k` products, with strides in elements.
///
/// Packed, it is panels of `width` lanes, `[steps, width]` each, `panel` packed elements apart; a step is
/// `group` consecutive products. Lanes and products that are missing are zeros.
pub(super) struct Strip {
    pub(super) src: *const u8,
    pub(super) lanes: usize,
    pub(super) width: usize,
    pub(super) lane_stride: usize,
    pub(super) k_stride: usize,
    pub(super) k: usize,
    pub(super) panel: usize,
}

impl Strip {
    /// The strip of panel `index` alone, for elements of `size` bytes.
    ///
    /// # Safety
    /// The panel exists.
    pub(super) unsafe fn panel(&self, index: usize, size: usize) -> Strip {
        let first = index * self.width;
        Strip {
            // SAFETY: the lane exists, so its first element does.
            src: unsafe { self.src.add(first * self.lane_stride * size) },
            lanes: (self.lanes - first).min(self.width),
            ..*self
        }
    }

    /// Number of panels.
    pub(super) fn panels(&self) -> usize {
        self.lanes.div_ceil(self.width)
    }

    /// Element `[lane, k]` of the source.
    ///
    /// # Safety
    /// The element exists and is an `S`.
    #[inline(always)]
    unsafe fn read<S: Copy>(&self, lane: usize, k: usize) -> S {
        // SAFETY: promised by the caller.
        unsafe { self.src.cast::<S>().add(lane * self.lane_stride + k * self.k_stride).read() }
    }
}

/// Packs float elements of the given type: f64 as f64, all others as f32.
pub(super) fn floats(dtype: DType) -> PackFn {
    match dtype {
        DType::F64 => |strip, dst| {
            // SAFETY: promised by the caller.
            unsafe { pack(strip, dst, |x: f64| x) }
        },
        DType::F16 => |strip, dst| {
            // SAFETY: promised by the caller.
            unsafe { pack(strip, dst, f16::to_f32) }
        },
        DType::BF16 => |strip, dst| {
            // SAFETY: promised by the caller.
            unsafe { pack(strip, dst, bf16::to_f32) }
        },
        _ => |strip, dst| {
            // SAFETY: promised by the caller.
            unsafe { pack(strip, dst, |x: f32| x) }
        },
    }
}

/// Packs one product a step.
///
/// # Safety
/// The source elements exist and are `S`; `dst` holds the panels.
#[inline(always)]
unsafe fn pack<S: Copy, E: Copy + Default>(strip: &Strip, dst: *mut u8, widen: impl Fn(S) -> E) {
    for index in 0..strip.panels() {
        // SAFETY: panel `index` exists, and so does every element that is read; dst holds the panel.
        unsafe {
            let one = strip.panel(index, size_of::<S>());
            let dst = dst.cast::<E>().add(index * strip.panel);
            for p in 0..one.k {
                let row = dst.add(p * one.width);
                for lane in 0..one.lanes {
                    row.add(lane).write(widen(one.read::<S>(lane, p)));
                }
                for lane in one.lanes..one.width {
                    row.add(lane).write(E::default());
                }
            }
        }
    }
}

/// Packs i8 as pairs of i16.
///
/// # Safety
/// The source elements exist and are i8; `dst` holds the panels.
pub(super) unsafe fn i8_pairs(strip: &Strip, dst: *mut u8) {
    // SAFETY: passed on.
    unsafe { groups::<2>(strip, dst, |[low, high]| i32::from(low as i16 as u16) | (i32::from(high) << 16)) }
}

/// Packs i8 as fours of i8, with `flip` applied to all bits.
///
/// # Safety
/// As [`i8_pairs`].
pub(super) unsafe fn i8_fours(strip: &Strip, dst: *mut u8, flip: i32) {
    // SAFETY: passed on.
    unsafe { groups::<4>(strip, dst, |bytes| i32::from_le_bytes(bytes.map(|x| x as u8)) ^ flip) }
}

/// Packs `G` products a step.
///
/// # Safety
/// The source elements exist and are i8; `dst` holds the panels.
#[inline(always)]
unsafe fn groups<const G: usize>(strip: &Strip, dst: *mut u8, join: impl Fn([i8; G]) -> i32) {
    for index in 0..strip.panels() {
        // SAFETY: panel `index` exists, and so does every element that is read; dst holds the panel.
        unsafe {
            let one = strip.panel(index, 1);
            let dst = dst.cast::<i32>().add(index * strip.panel);
            for step in 0..one.k.div_ceil(G) {
                for lane in 0..one.width {
                    let product = |g: usize| {
                        let p = step * G + g;
                        if lane < one.lanes && p < one.k { one.read::<i8>(lane, p) } else { 0 }
                    };
                    dst.add(step * one.width + lane).write(join(std::array::from_fn(product)));
                }
            }
        }
    }
}
