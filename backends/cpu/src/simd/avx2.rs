//! Lanes of AVX2 with FMA and F16C.
//! Each method is one or two intrinsics; the scalar twin is `portable`.

use super::lanes::{Kernel, Lanes};
use crate::Isa;
use core::arch::x86_64::*;

/// Eight f32 values.
#[derive(Clone, Copy)]
pub(crate) struct F32x8(__m256);

/// Runs intrinsics that touch no memory.
macro_rules! lanes {
    ($($body:tt)*) => {{
        // SAFETY: lanes exist only inside `dispatch`, in code compiled for instructions the processor has.
        unsafe { $($body)* }
    }};
}

impl Lanes for F32x8 {
    const ISA: Isa = Isa::Avx2;
    const LEN: usize = 8;
    type Mask = __m256;
    type Int = __m256i;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        lanes!(F32x8(_mm256_set1_ps(x)))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { F32x8(_mm256_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn load_partial(from: *const f32, n: usize) -> Self {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { F32x8(_mm256_maskload_ps(from, first(n))) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, n: usize) {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { _mm256_maskstore_ps(to, first(n), self.0) }
    }
    #[inline(always)]
    unsafe fn store_past(self, to: *mut f32) {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { _mm256_stream_ps(to, self.0) }
    }
    #[inline(always)]
    fn finish_past() {
        lanes!(_mm_sfence())
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { F32x8(_mm256_cvtph_ps(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    fn of_halves(a: Self::Int) -> Self {
        lanes! {
            // The low half of each lane: together in 128 bits, then in all.
            let low = _mm256_set1_epi64x(0x0d0c_0908_0504_0100);
            let packed = _mm256_permute4x64_epi64::<0b10_00>(_mm256_shuffle_epi8(a, low));
            F32x8(_mm256_cvtph_ps(_mm256_castsi256_si128(packed)))
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            F32x8(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { _mm_storeu_si128(to.cast(), upper_half(self.0)) }
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Self::Int {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_bytes(a: Self::Int, to: *mut u8) {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe {
            let low = _mm256_set1_epi32(0x0c08_0400);
            let packed = _mm256_shuffle_epi8(a, low);
            let (first, last) = (_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed));
            _mm_storel_epi64(to.cast(), _mm_unpacklo_epi32(first, last));
        }
    }
    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> Self::Int {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe {
            // A byte in each pair of lanes; its upper half moves to the second lane.
            let both = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(from.cast::<i32>().read_unaligned()));
            let spread = _mm256_or_si256(both, _mm256_slli_epi64::<28>(both));
            _mm256_and_si256(spread, _mm256_set1_epi32(15))
        }
    }
    #[inline(always)]
    unsafe fn store_nibbles(a: Self::Int, to: *mut u8) {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe {
            let both = _mm256_or_si256(a, _mm256_srli_epi64::<28>(a));
            let packed = _mm256_shuffle_epi8(both, _mm256_set1_epi32(0x0800_0800));
            let (first, last) = (_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed));
            to.cast::<i32>().write_unaligned(_mm_cvtsi128_si32(_mm_unpacklo_epi16(first, last)));
        }
    }
    #[inline(always)]
    unsafe fn store_nibbles_of_two(a: Self::Int, b: Self::Int, to: *mut u8) {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe {
            // Words, in turn four of each vector; two of them to a byte.
            let words = _mm256_packus_epi32(a, b);
            let bytes = _mm256_or_si256(words, _mm256_srli_epi32::<12>(words));
            let low = _mm256_set1_epi32(0x0c08_0400);
            let (first, last) = {
                let packed = _mm256_shuffle_epi8(bytes, low);
                (_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed))
            };
            // Of each half two bytes of the one vector, then two of the other.
            to.cast::<i64>().write_unaligned(_mm_cvtsi128_si64(_mm_shuffle_epi8(
                _mm_unpacklo_epi32(first, last),
                _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, -1, -1, -1, -1, -1, -1, -1, -1),
            )));
        }
    }
    #[inline(always)]
    fn look_up(table: &[f32; 16], places: Self::Int) -> Self {
        lanes! {
            // A permutation takes three bits; the fourth, at the top of a lane, says which of two.
            let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), places);
            let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr().add(8)), places);
            F32x8(_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(places))))
        }
    }

    fn apart<K: Kernel>(kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline(never)]
        fn run<K: Kernel>(kernel: K) -> K::Output {
            kernel.run::<F32x8>()
        }
        lanes!(run(kernel))
    }
    #[inline(always)]
    unsafe fn load_fours(rows: *const *mut u8, at: usize) -> Self {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe {
            let low = _mm_loadu_ps((*rows).wrapping_add(at).cast());
            let high = _mm_loadu_ps((*rows.add(4)).wrapping_add(at).cast());
            F32x8(_mm256_insertf128_ps::<1>(_mm256_castps128_ps256(low), high))
        }
    }
    #[inline(always)]
    fn turn_fours([a, b, c, d]: [Self; 4]) -> [Self; 4] {
        lanes! {
            let low = [_mm256_unpacklo_ps(a.0, b.0), _mm256_unpacklo_ps(c.0, d.0)];
            let high = [_mm256_unpackhi_ps(a.0, b.0), _mm256_unpackhi_ps(c.0, d.0)];
            [
                F32x8(_mm256_shuffle_ps::<0b01_00_01_00>(low[0], low[1])),
                F32x8(_mm256_shuffle_ps::<0b11_10_11_10>(low[0], low[1])),
                F32x8(_mm256_shuffle_ps::<0b01_00_01_00>(high[0], high[1])),
                F32x8(_mm256_shuffle_ps::<0b11_10_11_10>(high[0], high[1])),
            ]
        }
    }
    #[inline(always)]
    fn gather_fours([a, b, _, _]: [Self; 4]) -> [Self; 4] {
        lanes! {
            let low = F32x8(_mm256_permute2f128_ps::<0x20>(a.0, b.0));
            let high = F32x8(_mm256_permute2f128_ps::<0x31>(a.0, b.0));
            [low, high, low, high]
        }
    }

    #[inline(always)]
    fn deinterleave(self, b: Self) -> (Self, Self) {
        lanes! {
            let low = _mm256_permute2f128_ps::<0x20>(self.0, b.0);
            let high = _mm256_permute2f128_ps::<0x31>(self.0, b.0);
            (
                F32x8(_mm256_shuffle_ps::<0b10_00_10_00>(low, high)),
                F32x8(_mm256_shuffle_ps::<0b11_01_11_01>(low, high)),
            )
        }
    }

    #[inline(always)]
    fn add(self, b: Self) -> Self {
        lanes!(F32x8(_mm256_add_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        lanes!(F32x8(_mm256_sub_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        lanes!(F32x8(_mm256_mul_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        lanes!(F32x8(_mm256_div_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        lanes!(F32x8(_mm256_max_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        lanes!(F32x8(_mm256_min_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        lanes!(F32x8(_mm256_fmadd_ps(self.0, b.0, c.0)))
    }
    #[inline(always)]
    fn neg_mul_add(self, b: Self, c: Self) -> Self {
        lanes!(F32x8(_mm256_fnmadd_ps(self.0, b.0, c.0)))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        lanes!(F32x8(_mm256_sqrt_ps(self.0)))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        lanes!(F32x8(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0)))
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        lanes!(let mask = _mm256_set1_ps(-0.0);
F32x8(_mm256_or_ps(_mm256_andnot_ps(mask, self.0), _mm256_and_ps(mask, sign.0))))
    }
    #[inline(always)]
    fn round(self) -> Self {
        lanes!(F32x8(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)))
    }

    #[inline(always)]
    fn lt(self, b: Self) -> Self::Mask {
        lanes!(_mm256_cmp_ps::<_CMP_LT_OQ>(self.0, b.0))
    }
    #[inline(always)]
    fn le(self, b: Self) -> Self::Mask {
        lanes!(_mm256_cmp_ps::<_CMP_LE_OQ>(self.0, b.0))
    }
    #[inline(always)]
    fn eq(self, b: Self) -> Self::Mask {
        lanes!(_mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, b.0))
    }
    #[inline(always)]
    fn unordered(self) -> Self::Mask {
        lanes!(_mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0))
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        lanes!(F32x8(_mm256_blendv_ps(no.0, yes.0, mask)))
    }
    #[inline(always)]
    fn any(mask: Self::Mask) -> bool {
        lanes!(_mm256_movemask_ps(mask) != 0)
    }

    #[inline(always)]
    fn bits(self) -> Self::Int {
        lanes!(_mm256_castps_si256(self.0))
    }
    #[inline(always)]
    fn from_bits(bits: Self::Int) -> Self {
        lanes!(F32x8(_mm256_castsi256_ps(bits)))
    }
    #[inline(always)]
    fn splat_int(x: i32) -> Self::Int {
        lanes!(_mm256_set1_epi32(x))
    }
    #[inline(always)]
    fn to_int(self) -> Self::Int {
        lanes!(_mm256_cvtps_epi32(self.0))
    }
    #[inline(always)]
    fn from_int(a: Self::Int) -> Self {
        lanes!(F32x8(_mm256_cvtepi32_ps(a)))
    }
    #[inline(always)]
    fn add_int(a: Self::Int, b: Self::Int) -> Self::Int {
        lanes!(_mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn sub_int(a: Self::Int, b: Self::Int) -> Self::Int {
        lanes!(_mm256_sub_epi32(a, b))
    }
    #[inline(always)]
    fn max_int(a: Self::Int, b: Self::Int) -> Self::Int {
        lanes!(_mm256_max_epi32(a, b))
    }
    #[inline(always)]
    fn largest_int(a: Self::Int) -> i32 {
        lanes! {
            let four = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
            let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
        }
    }
    #[inline(always)]
    fn and_int(a: Self::Int, b: Self::Int) -> Self::Int {
        lanes!(_mm256_and_si256(a, b))
    }
    #[inline(always)]
    fn or_int(a: Self::Int, b: Self::Int) -> Self::Int {
        lanes!(_mm256_or_si256(a, b))
    }
    #[inline(always)]
    fn shl_int<const N: u32>(a: Self::Int) -> Self::Int {
        lanes!(_mm256_sll_epi32(a, _mm_cvtsi32_si128(N as i32)))
    }
    #[inline(always)]
    fn shr_int<const N: u32>(a: Self::Int) -> Self::Int {
        lanes!(_mm256_sra_epi32(a, _mm_cvtsi32_si128(N as i32)))
    }
}

/// The first `n` lanes.
#[inline(always)]
fn first(n: usize) -> __m256i {
    lanes!(_mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)))
}

/// Each value rounded to bfloat16, packed.
#[inline(always)]
fn upper_half(x: __m256) -> __m128i {
    lanes! {
        let bits = _mm256_castps_si256(x);
        let high = _mm256_srli_epi32::<16>(bits);
        let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        let narrow = _mm256_blendv_epi8(_mm256_srli_epi32::<16>(rounded), quiet, nan);
        // Packing works within halves of 128 bits: quarters 0 and 2 hold the result.
        let packed = _mm256_packus_epi32(narrow, narrow);
        _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b1000>(packed))
    }
}
