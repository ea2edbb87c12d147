//! Lanes in plain Rust: eight f32 in an array, which the compiler vectorises for the baseline target. The
//! scalar twin of `avx2` and `avx512`.

use super::lanes::{Kernel, Lanes};
use crate::Isa;

/// Eight f32 values.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub(crate) struct Plain8([f32; 8]);

/// A plain loop: iterators over arrays are a hundred lines of intermediate code each, and kernels inline thousands.
#[inline(always)]
fn make<C: Copy + Default, const N: usize>(f: impl Fn(usize) -> C) -> [C; N] {
    let mut out = [C::default(); N];
    let mut i = 0;
    while i < N {
        out[i] = f(i);
        i += 1;
    }
    out
}

#[inline(always)]
fn each<A: Copy, B: Copy, C: Copy + Default>(a: [A; 8], b: [B; 8], f: impl Fn(A, B) -> C) -> [C; 8] {
    make(|i| f(a[i], b[i]))
}

#[inline(always)]
fn map<A: Copy, C: Copy + Default, const N: usize>(a: [A; N], f: impl Fn(A) -> C) -> [C; N] {
    make(|i| f(a[i]))
}

/// A conversion takes a dozen instructions, which nothing here has: not worth a copy everywhere.
#[inline(never)]
fn f32s_of_f16(bits: [u16; 8]) -> [f32; 8] {
    map(bits, |b| half::f16::from_bits(b).to_f32())
}

#[inline(never)]
fn f16_of_f32s(values: [f32; 8]) -> [u16; 8] {
    map(values, |x| half::f16::from_f32(x).to_bits())
}

/// Adding and subtracting it leaves the nearest integer, ties to even, of values below 2^22.
const ROUNDER: f32 = 12_582_912.0;

impl Lanes for Plain8 {
    const ISA: Isa = Isa::Portable;
    const LEN: usize = 8;
    type Mask = [bool; 8];
    type Int = [i32; 8];

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Plain8([x; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Plain8(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_partial(from: *const f32, n: usize) -> Self {
        // SAFETY: only the first n are read, readable by the caller's promise.
        Plain8(make(|i| if i < n { unsafe { from.add(i).read_unaligned() } } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, n: usize) {
        for (i, &x) in self.0.iter().enumerate().take(n) {
            // SAFETY: only the first n are written, writable by the caller's promise.
            unsafe { to.add(i).write_unaligned(x) };
        }
    }
    #[inline(always)]
    unsafe fn store_past(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { self.store(to) }
    }
    #[inline(always)]
    fn finish_past() {}
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        let bits = unsafe { from.cast::<[u16; 8]>().read_unaligned() };
        Plain8(f32s_of_f16(bits))
    }
    #[inline(always)]
    fn of_halves(a: Self::Int) -> Self {
        Plain8(f32s_of_f16(map(a, |a| a as u16)))
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        let bits = f16_of_f32s(self.0);
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u16; 8]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        let bits = unsafe { from.cast::<[u16; 8]>().read_unaligned() };
        Plain8(map(bits, |b| f32::from_bits(u32::from(b) << 16)))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        let bits = map(self.0, |x| half::bf16::from_f32(x).to_bits());
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u16; 8]>().write_unaligned(bits) }
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Self::Int {
        // SAFETY: the caller's promise.
        map(unsafe { from.cast::<[u8; 8]>().read_unaligned() }, i32::from)
    }
    #[inline(always)]
    unsafe fn store_bytes(a: Self::Int, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u8; 8]>().write_unaligned(map(a, |a| a as u8)) }
    }
    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> Self::Int {
        // SAFETY: the caller's promise.
        let bytes = unsafe { from.cast::<[u8; 4]>().read_unaligned() };
        make(|i| i32::from(bytes[i / 2] >> (i % 2 * 4) & 15))
    }
    #[inline(always)]
    unsafe fn store_nibbles(a: Self::Int, to: *mut u8) {
        let bytes: [u8; 4] = make(|i| (a[2 * i] | a[2 * i + 1] << 4) as u8);
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u8; 4]>().write_unaligned(bytes) }
    }
    #[inline(always)]
    fn look_up(table: &[f32; 16], places: Self::Int) -> Self {
        Plain8(map(places, |place| table[(place & 15) as usize]))
    }

    #[inline(never)]
    fn apart<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Self>()
    }
    #[inline(always)]
    unsafe fn load_fours(rows: *const *mut u8, at: usize) -> Self {
        let [a, b] = [0, 4].map(|row| {
            // SAFETY: the caller's promise.
            unsafe { (*rows.add(row)).wrapping_add(at).cast::<[f32; 4]>().read_unaligned() }
        });
        Plain8(make(|i| if i < 4 { a[i] } else { b[i - 4] }))
    }
    #[inline(always)]
    fn turn_fours(rows: [Self; 4]) -> [Self; 4] {
        [0, 1, 2, 3].map(|i| Plain8(make(|at| rows[at % 4].0[at / 4 * 4 + i])))
    }
    #[inline(always)]
    fn gather_fours(rows: [Self; 4]) -> [Self; 4] {
        [0, 1, 0, 1].map(|m| Plain8(make(|at| rows[at / 4].0[m * 4 + at % 4])))
    }

    #[inline(always)]
    fn deinterleave(self, b: Self) -> (Self, Self) {
        let every_other = |first: usize| {
            make(|i| {
                let at = 2 * i + first;
                if at < 8 { self.0[at] } else { b.0[at - 8] }
            })
        };
        (Plain8(every_other(0)), Plain8(every_other(1)))
    }

    #[inline(always)]
    fn add(self, b: Self) -> Self {
        Plain8(each(self.0, b.0, |a, b| a + b))
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        Plain8(each(self.0, b.0, |a, b| a - b))
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        Plain8(each(self.0, b.0, |a, b| a * b))
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        Plain8(each(self.0, b.0, |a, b| a / b))
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        self.mul(b).add(c)
    }
    #[inline(always)]
    fn neg_mul_add(self, b: Self, c: Self) -> Self {
        c.sub(self.mul(b))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        Plain8(each(self.0, b.0, |a, b| if a > b { a } else { b }))
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        Plain8(each(self.0, b.0, |a, b| if a < b { a } else { b }))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Plain8(map(self.0, f32::sqrt))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Plain8(map(self.0, f32::abs))
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        Plain8(each(self.0, sign.0, f32::copysign))
    }
    #[inline(always)]
    fn round(self) -> Self {
        Plain8(map(self.0, |x| (x + ROUNDER) - ROUNDER))
    }

    #[inline(always)]
    fn lt(self, b: Self) -> Self::Mask {
        each(self.0, b.0, |a, b| a < b)
    }
    #[inline(always)]
    fn le(self, b: Self) -> Self::Mask {
        each(self.0, b.0, |a, b| a <= b)
    }
    #[inline(always)]
    fn eq(self, b: Self) -> Self::Mask {
        each(self.0, b.0, |a, b| a == b)
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        Plain8(make(|i| if mask[i] { yes.0[i] } else { no.0[i] }))
    }
    #[inline(always)]
    fn any(mask: Self::Mask) -> bool {
        mask.iter().any(|&m| m)
    }

    #[inline(always)]
    fn bits(self) -> Self::Int {
        map(self.0, |x| x.to_bits() as i32)
    }
    #[inline(always)]
    fn from_bits(bits: Self::Int) -> Self {
        Plain8(map(bits, |b| f32::from_bits(b as u32)))
    }
    #[inline(always)]
    fn splat_int(x: i32) -> Self::Int {
        [x; 8]
    }
    #[inline(always)]
    fn to_int(self) -> Self::Int {
        // The integer stands in the low bits of the mantissa of the sum.
        map(self.0, |x| (x + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()) as i32)
    }
    #[inline(always)]
    fn from_int(a: Self::Int) -> Self {
        Plain8(map(a, |a| a as f32))
    }
    #[inline(always)]
    fn add_int(a: Self::Int, b: Self::Int) -> Self::Int {
        each(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub_int(a: Self::Int, b: Self::Int) -> Self::Int {
        each(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn max_int(a: Self::Int, b: Self::Int) -> Self::Int {
        each(a, b, i32::max)
    }
    #[inline(always)]
    fn largest_int(a: Self::Int) -> i32 {
        a.into_iter().fold(i32::MIN, i32::max)
    }
    #[inline(always)]
    fn and_int(a: Self::Int, b: Self::Int) -> Self::Int {
        each(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or_int(a: Self::Int, b: Self::Int) -> Self::Int {
        each(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn shl_int<const N: u32>(a: Self::Int) -> Self::Int {
        map(a, |a| a << N)
    }
    #[inline(always)]
    fn shr_int<const N: u32>(a: Self::Int) -> Self::Int {
        map(a, |a| a >> N)
    }
}
