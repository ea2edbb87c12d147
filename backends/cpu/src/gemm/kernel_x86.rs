//! Microkernels of AVX2 and AVX-512: one macro, six element types.
//!
//! The portable twins, and the contract of a tile, are in `kernel`; `pack_x86` packs what they read.

use super::kernel::{Kernel, Panel, TileFn};
use super::pack;
use super::pack_x86::{self as x86, BF16, F16, F32};
use portolan_ops::DType;
use std::arch::x86_64::*;

/// Defines a tile of two vectors of `$lanes` columns and the listed numbers of rows.
///
/// Both vectors of b stay in registers while each element of a is broadcast once and used twice, so the two
/// multiply-add ports need one load each per step and the load ports are half idle.
macro_rules! tile {
    ($(#[$doc:meta])* $name:ident, $body:ident, $features:literal, $elem:ty, $lanes:literal, $header:literal, $b:ty, $load_b:path,
     [$($rows:literal)+], $zero:path, $load:path, $store:path, $set:path, $add:path, $fma:path) => {
        #[target_feature(enable = $features)]
        unsafe fn $body<const R: usize>(
            steps: usize, a: *const $elem, panel: Panel, acc: *mut $elem, accumulate: bool,
        ) {
            const N: usize = 2 * $lanes;
            // SAFETY: a holds `steps·R` elements, b `header + steps·N`, acc `R·N`, as the caller promises.
            unsafe {
                let b = panel.at.cast::<$b>();
                let mut ahead = panel.ahead.cast::<i8>();
                let start = if $header { [$load_b(b), $load_b(b.add($lanes))] } else { [$zero(), $zero()] };
                let (mut a, mut b) = (a, if $header { b.add(N) } else { b });
                let mut sums = [start; R];
                for _ in 0..steps {
                    _mm_prefetch::<_MM_HINT_T1>(ahead);
                    _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(64));
                    ahead = ahead.wrapping_add(panel.stride);
                    let (b0, b1) = ($load_b(b), $load_b(b.add($lanes)));
                    for r in 0..R {
                        let x = $set(*a.add(r));
                        sums[r] = [$fma(x, b0, sums[r][0]), $fma(x, b1, sums[r][1])];
                    }
                    a = a.add(R);
                    b = b.add(N);
                }
                for r in 0..R {
                    for v in 0..2 {
                        let at = acc.add(r * N + v * $lanes);
                        let sum = if accumulate { $add($load(at), sums[r][v]) } else { sums[r][v] };
                        $store(at, sum);
                    }
                }
            }
        }

        $(#[$doc])*
        ///
        /// # Safety
        /// As `TileFn`, on a processor with the instruction set.
        unsafe fn $name(rows: usize, steps: usize, a: *const u8, b: Panel, acc: *mut u8, accumulate: bool) {
            let (a, acc) = (a.cast::<$elem>(), acc.cast::<$elem>());
            // SAFETY: passed on.
            unsafe {
                match rows {
                    $($rows => $body::<$rows>(steps, a, b, acc, accumulate),)+
                    _ => {}
                }
            }
        }
    };
}

tile!(
    /// 14 × 32 in 28 of 32 registers.
    f32_avx512, f32_avx512_body, "avx512f", f32, 16, false, f32, _mm512_loadu_ps, [1 2 3 4 5 6 7 8 9 10 11 12 13 14],
    _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_add_ps, _mm512_fmadd_ps
);
tile!(
    /// 14 × 16.
    f64_avx512, f64_avx512_body, "avx512f", f64, 8, false, f64, _mm512_loadu_pd, [1 2 3 4 5 6 7 8 9 10 11 12 13 14],
    _mm512_setzero_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_set1_pd, _mm512_add_pd, _mm512_fmadd_pd
);
tile!(
    /// 14 × 32 sums of four u8·i8 products a step.
    i8_avx512, i8_avx512_body, "avx512f,avx512vnni", i32, 16, true, i32, _mm512_loadu_epi32, [1 2 3 4 5 6 7 8 9 10 11 12 13 14],
    _mm512_setzero_si512, _mm512_loadu_epi32, _mm512_storeu_epi32, _mm512_set1_epi32, _mm512_add_epi32, dot4
);
tile!(
    /// 6 × 16 in 12 of 16 registers.
    f32_avx2, f32_avx2_body, "avx2,fma", f32, 8, false, f32, _mm256_loadu_ps, [1 2 3 4 5 6],
    _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_add_ps, _mm256_fmadd_ps
);
tile!(
    /// 6 × 8.
    f64_avx2, f64_avx2_body, "avx2,fma", f64, 4, false, f64, _mm256_loadu_pd, [1 2 3 4 5 6],
    _mm256_setzero_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_set1_pd, _mm256_add_pd, _mm256_fmadd_pd
);
tile!(
    /// 6 × 16 sums of two i16·i16 products a step: exact where u8·i8 products would saturate.
    i8_avx2, i8_avx2_body, "avx2", i32, 8, false, i32, load8, [1 2 3 4 5 6],
    _mm256_setzero_si256, load8, store8, _mm256_set1_epi32, _mm256_add_epi32, dot2
);

tile!(
    /// 14 × 32 over b in bf16.
    bf16_avx512, bf16_avx512_body, "avx512f", f32, 16, false, u16, bf16_load16, [1 2 3 4 5 6 7 8 9 10 11 12 13 14],
    _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_add_ps, _mm512_fmadd_ps
);
tile!(
    /// 14 × 32 over b in f16.
    f16_avx512, f16_avx512_body, "avx512f", f32, 16, false, u16, f16_load16, [1 2 3 4 5 6 7 8 9 10 11 12 13 14],
    _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_add_ps, _mm512_fmadd_ps
);
tile!(
    /// 6 × 16 over b in bf16.
    bf16_avx2, bf16_avx2_body, "avx2,fma,f16c", f32, 8, false, u16, bf16_load8, [1 2 3 4 5 6],
    _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_add_ps, _mm256_fmadd_ps
);
tile!(
    /// 6 × 16 over b in f16.
    f16_avx2, f16_avx2_body, "avx2,fma,f16c", f32, 8, false, u16, f16_load8, [1 2 3 4 5 6],
    _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_add_ps, _mm256_fmadd_ps
);

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn bf16_load16(p: *const u16) -> __m512 {
    // SAFETY: p points to 16 elements, as the tile promises.
    unsafe {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))))
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn f16_load16(p: *const u16) -> __m512 {
    // SAFETY: p points to 16 elements, as the tile promises.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn bf16_load8(p: *const u16) -> __m256 {
    // SAFETY: p points to 8 elements, as the tile promises.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn f16_load8(p: *const u16) -> __m256 {
    // SAFETY: p points to 8 elements, as the tile promises.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot4(a: __m512i, b: __m512i, sum: __m512i) -> __m512i {
    _mm512_dpbusd_epi32(sum, a, b)
}

#[inline]
#[target_feature(enable = "avx2")]
fn dot2(a: __m256i, b: __m256i, sum: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load8(p: *const i32) -> __m256i {
    // SAFETY: p points to 8 elements, as the tile promises.
    unsafe { _mm256_loadu_si256(p.cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store8(p: *mut i32, v: __m256i) {
    // SAFETY: p points to 8 elements, as the tile promises.
    unsafe { _mm256_storeu_si256(p.cast(), v) }
}

/// The tile for b of a 16-bit type.
fn narrow(b: DType, bf16: TileFn, f16: TileFn) -> Option<TileFn> {
    match b {
        DType::BF16 => Some(bf16),
        DType::F16 => Some(f16),
        _ => None,
    }
}

/// The AVX-512 kernel for factors of these types.
pub(super) fn avx512(a: DType, b: DType) -> Kernel {
    let pack_float = |dtype| -> super::kernel::PackFn {
        match dtype {
            DType::F16 => x86::avx512_floats::<F16>,
            DType::BF16 => x86::avx512_floats::<BF16>,
            _ => x86::avx512_floats::<F32>,
        }
    };
    let float = Kernel {
        mr: 14,
        nr: 32,
        group: 1,
        elem: 4,
        header: 0,
        tile: f32_avx512,
        narrow_tile: narrow(b, bf16_avx512, f16_avx512),
        pack_a: pack_float(a),
        pack_b: pack_float(b),
    };
    match a {
        DType::F64 => Kernel {
            nr: 16,
            elem: 8,
            tile: f64_avx512,
            pack_a: pack::floats(a),
            pack_b: pack::floats(b),
            ..float
        },
        DType::I8 => Kernel {
            group: 4,
            header: 32,
            tile: i8_avx512,
            pack_a: x86::avx512_i8_a,
            pack_b: x86::avx512_i8_b,
            ..float
        },
        _ => float,
    }
}

/// The AVX2 kernel for factors of these types.
pub(super) fn avx2(a: DType, b: DType) -> Kernel {
    let pack_float = |dtype| -> super::kernel::PackFn {
        match dtype {
            DType::F16 => x86::avx2_floats::<F16>,
            DType::BF16 => x86::avx2_floats::<BF16>,
            _ => x86::avx2_floats::<F32>,
        }
    };
    let float = Kernel {
        mr: 6,
        nr: 16,
        group: 1,
        elem: 4,
        header: 0,
        tile: f32_avx2,
        narrow_tile: narrow(b, bf16_avx2, f16_avx2),
        pack_a: pack_float(a),
        pack_b: pack_float(b),
    };
    match a {
        DType::F64 => Kernel {
            nr: 8,
            elem: 8,
            tile: f64_avx2,
            pack_a: pack::floats(a),
            pack_b: pack::floats(b),
            ..float
        },
        DType::I8 => Kernel { group: 2, tile: i8_avx2, pack_a: x86::avx2_i8, pack_b: x86::avx2_i8, ..float },
        _ => float,
    }
}
