//! Packing of factors whose elements have 8 bits or fewer: codes become f32 on the way, exactly.
//!
//! Lanes side by side are converted into the panel as they come. Products side by side are converted a few at a time
//! into a block that the f32 packing of the same instruction set transposes.

use super::kernel::{self, PackFn};
use super::pack::Strip;
use crate::Isa;
use crate::simd::code::{self, Code, E2m1, E4m3, E5m2};
use crate::simd::{Kernel, Lanes, dispatch};
use core::marker::PhantomData;
use portolan_ops::DType;

/// The widest panel.
const LANES: usize = 32;

/// Products converted before they are transposed: a block of `32 · 64 · 4` = 8 KiB stays in a first-level cache.
const PRODUCTS: usize = 64;

/// The packing of codes of this type; `None` for any type that is none.
pub(super) fn of(isa: Isa, dtype: DType) -> Option<PackFn> {
    match dtype {
        DType::F8E4M3 => Some(on::<E4m3>(isa)),
        DType::F8E5M2 => Some(on::<E5m2>(isa)),
        DType::F4E2M1 => Some(on::<E2m1>(isa)),
        _ => None,
    }
}

fn on<C: Code>(isa: Isa) -> PackFn {
    match isa {
        Isa::Avx512 => |strip, dst| {
            // SAFETY: promised by the caller.
            unsafe { pack::<C>(Isa::Avx512, strip, dst) }
        },
        Isa::Avx2 => |strip, dst| {
            // SAFETY: promised by the caller.
            unsafe { pack::<C>(Isa::Avx2, strip, dst) }
        },
        Isa::Portable => |strip, dst| {
            // SAFETY: promised by the caller.
            unsafe { pack::<C>(Isa::Portable, strip, dst) }
        },
    }
}

/// # Safety
/// The source elements exist and are codes of `C`; `dst` holds the panels; the processor has `isa`.
unsafe fn pack<C: Code>(isa: Isa, strip: &Strip, dst: *mut u8) {
    let floats = kernel::Kernel::of(isa, DType::F32, DType::F32).pack_b;
    dispatch(isa, Pack::<C> { strip, dst: dst.cast(), floats, code: PhantomData });
}

/// One strip and where it goes; made only by [`pack`], whose promises it relies on.
struct Pack<'a, C> {
    strip: &'a Strip,
    dst: *mut f32,
    floats: PackFn,
    code: PhantomData<C>,
}

impl<C: Code> Kernel for Pack<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let strip = self.strip;
        let transposed = strip.k_stride == 1 && strip.lane_stride != 1 && strip.width <= LANES;
        for index in 0..strip.panels() {
            if transposed {
                self.transposed::<L>(index);
            }
        }
        if transposed {
            return;
        }
        // Row by row over all panels, so that memory is read in long runs.
        for p in 0..strip.k {
            for index in 0..strip.panels() {
                let (first, lanes) = self.panel(index);
                let place = first * strip.lane_stride + p * strip.k_stride;
                // SAFETY: the lanes exist; the panel has `width` of them for every product.
                unsafe {
                    let to = self.dst.add(index * strip.panel + p * strip.width);
                    widen::<L, C>(strip.src, place, strip.lane_stride, lanes, to);
                    to.add(lanes).write_bytes(0, strip.width - lanes);
                }
            }
        }
    }
}

impl<C: Code> Pack<'_, C> {
    /// The first lane of a panel, and how many it has.
    #[inline(always)]
    fn panel(&self, index: usize) -> (usize, usize) {
        let first = index * self.strip.width;
        (first, (self.strip.lanes - first).min(self.strip.width))
    }

    /// Packs a panel of at most [`LANES`] lanes whose products are side by side.
    #[inline(always)]
    fn transposed<L: Lanes>(&self, index: usize) {
        let strip = self.strip;
        let (first, lanes) = self.panel(index);
        let mut block = [0.0f32; LANES * PRODUCTS];
        for p0 in (0..strip.k).step_by(PRODUCTS) {
            let k = PRODUCTS.min(strip.k - p0);
            // SAFETY: products `p0..p0 + k` of the lanes exist, the block holds them, and the panel has room for them.
            unsafe {
                for lane in 0..lanes {
                    let place = (first + lane) * strip.lane_stride + p0;
                    widen::<L, C>(strip.src, place, 1, k, block.as_mut_ptr().add(lane * PRODUCTS));
                }
                let (src, width) = (block.as_ptr().cast(), strip.width);
                let part = Strip { src, lanes, width, lane_stride: PRODUCTS, k_stride: 1, k, panel: 0 };
                (self.floats)(&part, self.dst.add(index * strip.panel + p0 * width).cast());
            }
        }
    }
}

/// Writes `count` codes from element `place` on, `stride` elements apart, as f32.
///
/// # Safety
/// They are readable from `src`, and `to` holds as many.
#[inline(always)]
unsafe fn widen<L: Lanes, C: Code>(src: *const u8, place: usize, stride: usize, count: usize, to: *mut f32) {
    for i in (0..count).step_by(L::LEN) {
        let live = L::LEN.min(count - i);
        // SAFETY: promised by the caller; the copy holds a vector's codes.
        unsafe {
            let numbers: L = match stride {
                1 => code::load::<L, C>(src, place + i, live),
                _ => {
                    let mut codes = [0u8; 16];
                    for (j, code) in codes.iter_mut().enumerate().take(live) {
                        *code = code::get::<C>(src, place + (i + j) * stride);
                    }
                    C::decode(L::load_bytes(codes.as_ptr()))
                }
            };
            numbers.store_partial(to.add(i), live);
        }
    }
}
