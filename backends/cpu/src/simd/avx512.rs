//! Lanes of AVX-512.
//! Each method is one or two intrinsics; the scalar twin is `portable`.

use super::lanes::{Kernel, Lanes};
use crate::Isa;
use core::arch::x86_64::*;

/// Sixteen f32 values.
#[derive(Clone, Copy)]
pub(crate) struct F32x16(__m512);

/// Runs intrinsics that touch no memory.
macro_rules! lanes {
    ($($body:tt)*) => {{
        // SAFETY: lanes exist only inside `dispatch`, in code compiled for instructions the processor has.
        unsafe { $($body)* }
    }};
}

impl Lanes for F32x16 {
    const ISA: Isa = Isa::Avx512;
    const LEN: usize = 16;
    type Mask = __mmask16;
    type Int = __m512i;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        lanes!(F32x16(_mm512_set1_ps(x)))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { F32x16(_mm512_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn load_partial(from: *const f32, n: usize) -> Self {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { F32x16(_mm512_maskz_loadu_ps(first(n), from)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, n: usize) {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { _mm512_mask_storeu_ps(to, first(n), self.0) }
    }
    #[inline(always)]
    unsafe fn store_past(self, to: *mut f32) {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { _mm512_stream_ps(to, self.0) }
    }
    #[inline(always)]
    fn finish_past() {
        lanes!(_mm_sfence())
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { F32x16(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }
    #[inline(always)]
    fn of_halves(a: Self::Int) -> Self {
        lanes!(F32x16(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(a))))
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            F32x16(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(upper_half(self.0))) }
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Self::Int {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_bytes(a: Self::Int, to: *mut u8) {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(a)) }
    }
    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> Self::Int {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe {
            // A byte in each pair of lanes; its upper half moves to the second lane.
            let both = _mm512_cvtepu8_epi64(_mm_loadl_epi64(from.cast()));
            let spread = _mm512_or_si512(both, _mm512_slli_epi64::<28>(both));
            _mm512_and_si512(spread, _mm512_set1_epi32(15))
        }
    }
    #[inline(always)]
    unsafe fn store_nibbles(a: Self::Int, to: *mut u8) {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe {
            let both = _mm512_or_si512(a, _mm512_srli_epi64::<28>(a));
            _mm_storel_epi64(to.cast(), _mm512_cvtepi64_epi8(both));
        }
    }
    #[inline(always)]
    unsafe fn store_nibbles_of_two(a: Self::Int, b: Self::Int, to: *mut u8) {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe {
            // Words, in turn four of each vector; two of them to a byte, the lowest of its lane.
            let words = _mm512_packus_epi32(a, b);
            let bytes = _mm512_cvtepi32_epi8(_mm512_or_si512(words, _mm512_srli_epi32::<12>(words)));
            let order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
            _mm_storeu_si128(to.cast(), _mm_shuffle_epi8(bytes, order));
        }
    }
    #[inline(always)]
    fn look_up(table: &[f32; 16], places: Self::Int) -> Self {
        lanes!(F32x16(_mm512_permutexvar_ps(places, _mm512_loadu_ps(table.as_ptr()))))
    }

    fn apart<K: Kernel>(kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        #[inline(never)]
        fn run<K: Kernel>(kernel: K) -> K::Output {
            kernel.run::<F32x16>()
        }
        lanes!(run(kernel))
    }
    #[inline(always)]
    unsafe fn load_fours(rows: *const *mut u8, at: usize) -> Self {
        // A closure would not be compiled for the instruction set.
        macro_rules! four {
            ($group:expr) => {
                _mm_loadu_ps((*rows.add(4 * $group)).wrapping_add(at).cast())
            };
        }
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe {
            let low = _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(four!(0)), four!(1));
            let high = _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(four!(2)), four!(3));
            F32x16(_mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high))
        }
    }
    #[inline(always)]
    fn turn_fours([a, b, c, d]: [Self; 4]) -> [Self; 4] {
        lanes! {
            let low = [_mm512_unpacklo_ps(a.0, b.0), _mm512_unpacklo_ps(c.0, d.0)];
            let high = [_mm512_unpackhi_ps(a.0, b.0), _mm512_unpackhi_ps(c.0, d.0)];
            [
                F32x16(_mm512_shuffle_ps::<0b01_00_01_00>(low[0], low[1])),
                F32x16(_mm512_shuffle_ps::<0b11_10_11_10>(low[0], low[1])),
                F32x16(_mm512_shuffle_ps::<0b01_00_01_00>(high[0], high[1])),
                F32x16(_mm512_shuffle_ps::<0b11_10_11_10>(high[0], high[1])),
            ]
        }
    }
    #[inline(always)]
    fn gather_fours([a, b, c, d]: [Self; 4]) -> [Self; 4] {
        lanes! {
            // Groups 0 and 2, then 1 and 3, of two vectors each.
            let even = [_mm512_shuffle_f32x4::<0x88>(a.0, b.0), _mm512_shuffle_f32x4::<0x88>(c.0, d.0)];
            let odd = [_mm512_shuffle_f32x4::<0xdd>(a.0, b.0), _mm512_shuffle_f32x4::<0xdd>(c.0, d.0)];
            [
                F32x16(_mm512_shuffle_f32x4::<0x88>(even[0], even[1])),
                F32x16(_mm512_shuffle_f32x4::<0x88>(odd[0], odd[1])),
                F32x16(_mm512_shuffle_f32x4::<0xdd>(even[0], even[1])),
                F32x16(_mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1])),
            ]
        }
    }

    #[inline(always)]
    fn deinterleave(self, b: Self) -> (Self, Self) {
        lanes! {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            (
                F32x16(_mm512_permutex2var_ps(self.0, even, b.0)),
                F32x16(_mm512_permutex2var_ps(self.0, odd, b.0)),
            )
        }
    }

    #[inline(always)]
    fn add(self, b: Self) -> Self {
        lanes!(F32x16(_mm512_add_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        lanes!(F32x16(_mm512_sub_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        lanes!(F32x16(_mm512_mul_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        lanes!(F32x16(_mm512_div_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        lanes!(F32x16(_mm512_max_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        lanes!(F32x16(_mm512_min_ps(self.0, b.0)))
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        lanes!(F32x16(_mm512_fmadd_ps(self.0, b.0, c.0)))
    }
    #[inline(always)]
    fn neg_mul_add(self, b: Self, c: Self) -> Self {
        lanes!(F32x16(_mm512_fnmadd_ps(self.0, b.0, c.0)))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        lanes!(F32x16(_mm512_sqrt_ps(self.0)))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        lanes!(F32x16(_mm512_andnot_ps(_mm512_set1_ps(-0.0), self.0)))
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        lanes!(let mask = _mm512_set1_ps(-0.0);
F32x16(_mm512_or_ps(_mm512_andnot_ps(mask, self.0), _mm512_and_ps(mask, sign.0))))
    }
    #[inline(always)]
    fn round(self) -> Self {
        lanes!(F32x16(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)))
    }

    #[inline(always)]
    fn lt(self, b: Self) -> Self::Mask {
        lanes!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, b.0))
    }
    #[inline(always)]
    fn le(self, b: Self) -> Self::Mask {
        lanes!(_mm512_cmp_ps_mask::<_CMP_LE_OQ>(self.0, b.0))
    }
    #[inline(always)]
    fn eq(self, b: Self) -> Self::Mask {
        lanes!(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, b.0))
    }
    #[inline(always)]
    fn unordered(self) -> Self::Mask {
        lanes!(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0))
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        lanes!(F32x16(_mm512_mask_blend_ps(mask, no.0, yes.0)))
    }
    #[inline(always)]
    fn any(mask: Self::Mask) -> bool {
        mask != 0
    }

    #[inline(always)]
    fn bits(self) -> Self::Int {
        lanes!(_mm512_castps_si512(self.0))
    }
    #[inline(always)]
    fn from_bits(bits: Self::Int) -> Self {
        lanes!(F32x16(_mm512_castsi512_ps(bits)))
    }
    #[inline(always)]
    fn splat_int(x: i32) -> Self::Int {
        lanes!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn to_int(self) -> Self::Int {
        lanes!(_mm512_cvtps_epi32(self.0))
    }
    #[inline(always)]
    fn from_int(a: Self::Int) -> Self {
        lanes!(F32x16(_mm512_cvtepi32_ps(a)))
    }
    #[inline(always)]
    fn add_int(a: Self::Int, b: Self::Int) -> Self::Int {
        lanes!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn sub_int(a: Self::Int, b: Self::Int) -> Self::Int {
        lanes!(_mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn max_int(a: Self::Int, b: Self::Int) -> Self::Int {
        lanes!(_mm512_max_epi32(a, b))
    }
    #[inline(always)]
    fn largest_int(a: Self::Int) -> i32 {
        lanes!(_mm512_reduce_max_epi32(a))
    }
    #[inline(always)]
    unsafe fn largest_of_each(a: *const Self::Int) -> Self::Int {
        // SAFETY: the caller's promise; the instructions exist, as `Lanes` says.
        unsafe {
            // Elements 4q .. 4q + 4 of each quarter: the largest of that quarter in vectors 4q and on.
            macro_rules! four {
                ($at:expr) => {{
                    let (b, c, d, e) = (*a.add($at), *a.add($at + 1), *a.add($at + 2), *a.add($at + 3));
                    let two = _mm512_max_epi32(_mm512_unpacklo_epi32(b, c), _mm512_unpackhi_epi32(b, c));
                    let other = _mm512_max_epi32(_mm512_unpacklo_epi32(d, e), _mm512_unpackhi_epi32(d, e));
                    _mm512_max_epi32(_mm512_unpacklo_epi64(two, other), _mm512_unpackhi_epi64(two, other))
                }};
            }
            // Of two such, the halves of the quarters.
            macro_rules! eight {
                ($at:expr) => {{
                    let (a, b) = (four!($at), four!($at + 4));
                    let (low, high) =
                        (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
                    _mm512_max_epi32(low, high)
                }};
            }
            let (b, c) = (eight!(0), eight!(8));
            _mm512_max_epi32(_mm512_shuffle_i32x4::<0x88>(b, c), _mm512_shuffle_i32x4::<0xdd>(b, c))
        }
    }
    #[inline(always)]
    fn and_int(a: Self::Int, b: Self::Int) -> Self::Int {
        lanes!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn or_int(a: Self::Int, b: Self::Int) -> Self::Int {
        lanes!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn shl_int<const N: u32>(a: Self::Int) -> Self::Int {
        lanes!(_mm512_slli_epi32::<N>(a))
    }
    #[inline(always)]
    fn shr_int<const N: u32>(a: Self::Int) -> Self::Int {
        lanes!(_mm512_srai_epi32::<N>(a))
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, n: Self) -> Self {
        lanes!(F32x16(_mm512_scalef_ps(self.0, n.0)))
    }
}

/// The first `n` lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}

/// Each value rounded to bfloat16, in the lower half of its lane.
#[inline(always)]
fn upper_half(x: __m512) -> __m512i {
    lanes! {
        let bits = _mm512_castps_si512(x);
        let high = _mm512_srli_epi32::<16>(bits);
        let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        _mm512_mask_blend_epi32(nan, _mm512_srli_epi32::<16>(rounded), quiet)
    }
}
