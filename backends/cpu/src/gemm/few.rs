//! Products of few rows, which are bound by reading b: it is read once, front to back, and never packed.
//!
//! Plain loops that the compiler vectorises, built once per instruction set; `block` decides when they run.

use super::Mat;
use super::kernel::{Kernel, PackFn};
use super::pack::Strip;
use crate::Isa;
use half::bf16;
use portolan_ops::DType;

/// Rows at which reading b stops being the limit and tiles are faster.
pub(super) const ROWS: usize = 8;

/// Partial sums a dot product is spread over: two 512-bit or four 256-bit registers for each of four rows.
const LANES: usize = 32;

/// An element that widens to f32 in registers.
trait Weight: Copy {
    fn widen(self) -> f32;
}

impl Weight for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Weight for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// Builds `$body` for each instruction set, with its multiply-add, as `$name(isa, …)`.
macro_rules! for_each_isa {
    ($(#[$doc:meta])* $name:ident, $avx512:ident, $avx2:ident, $body:ident, <$count:ident>, ($($arg:ident: $type:ty),*) $(-> $result:ty)?) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
        fn $avx512<T: Weight, const $count: usize>($($arg: $type),*) $(-> $result)? {
            $body::<T, $count>($($arg,)* |a, b, c| a.mul_add(b, c))
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn $avx2<T: Weight, const $count: usize>($($arg: $type),*) $(-> $result)? {
            $body::<T, $count>($($arg,)* |a, b, c| a.mul_add(b, c))
        }

        $(#[$doc])*
        fn $name<T: Weight, const $count: usize>(isa: Isa, $($arg: $type),*) $(-> $result)? {
            match isa {
                // SAFETY: the caller of `gemm` promises that the processor has `isa`.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { $avx512::<T, $count>($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { $avx2::<T, $count>($($arg),*) },
                _ => $body::<T, $count>($($arg,)* |a, b, c| a * b + c),
            }
        }
    };
}

for_each_isa!(
    /// The dot products of `R` rows with one column, `a` holding the rows one behind the other.
    dots, dots_avx512, dots_avx2, dots_body, <R>, (a: &[f32], b: &[T]) -> [f32; R]
);
for_each_isa!(
    /// `sums[j] += Σ_i a[i] · b[i][j]` in the order of i.
    add_rows, add_rows_avx512, add_rows_avx2, add_rows_body, <D>, (a: [f32; D], b: [&[T]; D], sums: &mut [f32])
);

#[inline(always)]
fn dots_body<T: Weight, const R: usize>(
    a: &[f32],
    b: &[T],
    fma: impl Fn(f32, f32, f32) -> f32 + Copy,
) -> [f32; R] {
    let k = b.len();
    let mut sums = [[0.0f32; LANES]; R];
    let mut add = |from: usize, count: usize| {
        let b = &b[from..from + count];
        for (r, sums) in sums.iter_mut().enumerate() {
            let a = &a[r * k + from..r * k + from + count];
            for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
                *sum = fma(a, b.widen(), *sum);
            }
        }
    };
    for from in (0..k / LANES * LANES).step_by(LANES) {
        add(from, LANES);
    }
    add(k / LANES * LANES, k % LANES);
    sums.map(|mut lanes| {
        for half in [16, 8, 4, 2, 1] {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
        }
        lanes[0]
    })
}

#[inline(always)]
fn add_rows_body<T: Weight, const D: usize>(
    a: [f32; D],
    b: [&[T]; D],
    sums: &mut [f32],
    fma: impl Fn(f32, f32, f32) -> f32 + Copy,
) {
    let n = sums.len();
    let b = b.map(|row| &row[..n]);
    for (j, sum) in sums.iter_mut().enumerate() {
        let mut value = *sum;
        for i in 0..D {
            value = fma(a[i], b[i][j].widen(), value);
        }
        *sum = value;
    }
}

/// `into.len()` elements from `src` on, `stride` apart, as f32: a strip of one product and as many lanes.
///
/// # Safety
/// The elements exist, of the type that `pack` takes.
unsafe fn widen(pack: PackFn, src: *const u8, stride: usize, into: &mut [f32]) {
    let lanes = into.len();
    let strip = Strip { src, lanes, width: lanes, lane_stride: stride, k_stride: 0, k: 1, panel: lanes };
    // SAFETY: promised by the caller.
    unsafe { pack(&strip, into.as_mut_ptr().cast()) }
}

/// A part of a product of few rows: which rows and columns, and where the operands of this product start.
pub(super) struct Few<'a> {
    pub(super) isa: Isa,
    pub(super) kernel: &'a Kernel,
    pub(super) a: &'a Mat,
    pub(super) b: &'a Mat,
    pub(super) a_at: usize,
    pub(super) b_at: usize,
    pub(super) rows: usize,
    pub(super) j0: usize,
    pub(super) columns: usize,
    pub(super) k: usize,
}

impl Few<'_> {
    /// f32 elements of working memory, for blocks of `kc` products.
    pub(super) fn scratch(&self, kc: usize) -> usize {
        let spread = if self.b.col_stride == 1 { kc * self.rows } else { self.k * (self.rows + 1) };
        spread + (self.rows + 4) * self.columns
    }

    /// Fills `sums` `[rows, columns]`, for b whose products are side by side: one dot product an element.
    ///
    /// # Safety
    /// The operands exist; `work` has the length of [`Few::scratch`].
    pub(super) unsafe fn dots(&self, sums: &mut [f32], work: &mut [f32]) {
        let (rows, wide) = work.split_at_mut(self.k * self.rows);
        let wide = &mut wide[..self.k];
        for (i, row) in rows.chunks_exact_mut(self.k).enumerate() {
            // SAFETY: row i of a exists.
            unsafe { widen(self.kernel.pack_a, self.a.at(self.a_at, i, 0), self.a.col_stride, row) };
        }
        for j in 0..self.columns {
            // SAFETY: column j of b exists and its k elements are side by side.
            unsafe {
                let column = self.b.at(self.b_at, 0, self.j0 + j).cast_const();
                match self.b.dtype {
                    DType::BF16 => {
                        self.column(rows, std::slice::from_raw_parts(column.cast::<bf16>(), self.k), j, sums);
                    }
                    DType::F32 => {
                        self.column(rows, std::slice::from_raw_parts(column.cast::<f32>(), self.k), j, sums);
                    }
                    _ => {
                        widen(self.kernel.pack_b, column, 1, wide);
                        self.column(rows, &*wide, j, sums);
                    }
                }
            }
        }
    }

    fn column<T: Weight>(&self, rows: &[f32], b: &[T], j: usize, sums: &mut [f32]) {
        let mut row = 0;
        let mut put = |row: usize, values: &[f32]| {
            for (r, &value) in values.iter().enumerate() {
                sums[(row + r) * self.columns + j] = value;
            }
        };
        while row < self.rows {
            let a = &rows[row * self.k..];
            match self.rows - row {
                1 => put(row, &dots::<T, 1>(self.isa, a, b)),
                2 => put(row, &dots::<T, 2>(self.isa, a, b)),
                3 => put(row, &dots::<T, 3>(self.isa, a, b)),
                _ => put(row, &dots::<T, 4>(self.isa, a, b)),
            }
            row += 4;
        }
    }

    /// Fills `sums` `[rows, columns]`, for b whose columns are side by side: rows of b are scaled and added.
    ///
    /// The order of every sum is that of the tiles: from zero through a block of `kc` products, then added
    /// to the blocks before. The bits are theirs too.
    ///
    /// # Safety
    /// The operands exist; `work` has the length of [`Few::scratch`].
    pub(super) unsafe fn added_rows(&self, kc: usize, sums: &mut [f32], work: &mut [f32]) {
        let (a, work) = work.split_at_mut(kc * self.rows);
        let (wide, part) = work.split_at_mut(4 * self.columns);
        for k0 in (0..self.k).step_by(kc) {
            let k = kc.min(self.k - k0);
            for i in 0..self.rows {
                // SAFETY: row i of a exists.
                unsafe {
                    let row = self.a.at(self.a_at, i, k0);
                    widen(self.kernel.pack_a, row, self.a.col_stride, &mut a[i * kc..][..k]);
                }
            }
            let target = if k0 == 0 { &mut *sums } else { &mut part[..sums.len()] };
            target.fill(0.0);
            for p in (0..k).step_by(4) {
                // SAFETY: rows `k0 + p..` of b that are below k exist, and their columns are side by side.
                unsafe {
                    let at = self.b.at(self.b_at, k0 + p, self.j0).cast_const();
                    match self.b.dtype {
                        DType::BF16 => self.add::<bf16>(a, kc, p, k, at.cast(), self.b.row_stride, target),
                        DType::F32 => self.add::<f32>(a, kc, p, k, at.cast(), self.b.row_stride, target),
                        _ => {
                            for i in 0..4.min(k - p) {
                                let row = self.b.at(self.b_at, k0 + p + i, self.j0);
                                let wide = &mut wide[i * self.columns..][..self.columns];
                                widen(self.kernel.pack_b, row, 1, wide);
                            }
                            self.add::<f32>(a, kc, p, k, wide.as_ptr(), self.columns, target);
                        }
                    }
                }
            }
            if k0 > 0 {
                for (sum, &part) in sums.iter_mut().zip(&*part) {
                    *sum += part;
                }
            }
        }
    }

    /// Adds up to four rows of b, `stride` elements apart from `b` on.
    ///
    /// # Safety
    /// Those rows exist.
    #[allow(clippy::too_many_arguments)]
    unsafe fn add<T: Weight>(
        &self,
        a: &[f32],
        kc: usize,
        p: usize,
        k: usize,
        b: *const T,
        stride: usize,
        sums: &mut [f32],
    ) {
        // SAFETY: row i exists for every `i < k − p`, promised by the caller.
        let row = |i: usize| unsafe { std::slice::from_raw_parts(b.add(i * stride), self.columns) };
        for (sums, a) in sums.chunks_exact_mut(self.columns).zip(a.chunks_exact(kc)) {
            if k - p >= 4 {
                let factors = [a[p], a[p + 1], a[p + 2], a[p + 3]];
                add_rows::<T, 4>(self.isa, factors, [row(0), row(1), row(2), row(3)], sums);
            } else {
                for i in 0..k - p {
                    add_rows::<T, 1>(self.isa, [a[p + i]], [row(i)], sums);
                }
            }
        }
    }
}
