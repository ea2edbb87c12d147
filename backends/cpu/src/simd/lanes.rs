//! The vector of f32 that kernels are generic over, the element types it loads and stores, and the entry
//! into code compiled for an instruction set. Implementations are in `portable`, `avx2` and `avx512`.

use crate::Isa;

/// A vector of [`Lanes::LEN`] f32 values of one instruction set.
///
/// Values exist only inside [`Kernel::run`], which [`dispatch`] enters once the processor is known to have
/// the instructions; that is what makes the safe methods sound. Everything is `#[inline(always)]`, because
/// an intrinsic turns into its instruction only inside a function compiled for it. A kernel's own functions
/// that take lanes must be so too.
pub(crate) trait Lanes: Copy + Send + Sync + 'static {
    /// The instruction set.
    const ISA: Isa;
    /// Values in a vector; a power of two, at most 16.
    const LEN: usize;
    /// One truth value a lane.
    type Mask: Copy;
    /// One i32 a lane.
    type Int: Copy;

    /// `x` in every lane.
    fn splat(x: f32) -> Self;
    /// 0 in every lane.
    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    /// Reads `LEN` values.
    ///
    /// # Safety
    /// They are readable; any alignment.
    unsafe fn load(from: *const f32) -> Self;
    /// Reads `n` values, 0 to `LEN`; the other lanes are 0.
    ///
    /// # Safety
    /// `n` values are readable; any alignment.
    unsafe fn load_partial(from: *const f32, n: usize) -> Self;
    /// Writes `LEN` values.
    ///
    /// # Safety
    /// They are writable; any alignment.
    unsafe fn store(self, to: *mut f32);
    /// Writes the first `n` lanes, 0 to `LEN`.
    ///
    /// # Safety
    /// `n` values are writable; any alignment.
    unsafe fn store_partial(self, to: *mut f32, n: usize);
    /// As [`Lanes::store`], past the caches: for more than they hold, which is not read again soon. Other threads
    /// see it after [`Lanes::finish_past`].
    ///
    /// # Safety
    /// `LEN` values are writable, at a multiple of their size.
    unsafe fn store_past(self, to: *mut f32);
    /// Orders everything stored past the caches before what this thread does next.
    fn finish_past();
    /// Reads `LEN` halves, exactly.
    ///
    /// # Safety
    /// They are readable; any alignment.
    unsafe fn load_f16(from: *const u16) -> Self;
    /// Writes `LEN` halves, rounded to nearest even.
    ///
    /// # Safety
    /// They are writable; any alignment.
    unsafe fn store_f16(self, to: *mut u16);
    /// The halves in the low bits of each lane, exactly.
    fn of_halves(a: Self::Int) -> Self;
    /// Reads `LEN` bfloat16 values, exactly.
    ///
    /// # Safety
    /// They are readable; any alignment.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// Writes `LEN` bfloat16 values, rounded to nearest even; NaN stays NaN.
    ///
    /// # Safety
    /// They are writable; any alignment.
    unsafe fn store_bf16(self, to: *mut u16);

    /// Reads `LEN` bytes, without sign.
    ///
    /// # Safety
    /// They are readable; any alignment.
    unsafe fn load_bytes(from: *const u8) -> Self::Int;
    /// Writes the low byte of each lane.
    ///
    /// # Safety
    /// `LEN` bytes are writable; any alignment.
    unsafe fn store_bytes(a: Self::Int, to: *mut u8);
    /// Reads `LEN` half bytes, low before high, without sign.
    ///
    /// # Safety
    /// `LEN / 2` bytes are readable; any alignment.
    unsafe fn load_nibbles(from: *const u8) -> Self::Int;
    /// Writes the low half byte of each lane, two to a byte, low before high; the other bits of the lanes are 0.
    ///
    /// # Safety
    /// `LEN / 2` bytes are writable; any alignment.
    unsafe fn store_nibbles(a: Self::Int, to: *mut u8);

    /// As [`Lanes::store_nibbles`], of two vectors that follow each other.
    ///
    /// # Safety
    /// `LEN` bytes are writable; any alignment.
    #[inline(always)]
    unsafe fn store_nibbles_of_two(a: Self::Int, b: Self::Int, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            Self::store_nibbles(a, to);
            Self::store_nibbles(b, to.add(Self::LEN / 2));
        }
    }
    /// The values at the places that the lowest four bits of each lane say.
    fn look_up(table: &[f32; 16], places: Self::Int) -> Self;

    /// Runs a kernel in code of its own, compiled for the instruction set.
    fn apart<K: Kernel>(kernel: K) -> K::Output;

    /// Reads four words of 32 bits of every fourth row, `at` bytes into it: words 4m and on are those of row 4m.
    ///
    /// # Safety
    /// There are `LEN - 3` addresses, and these words of those rows are readable; any alignment.
    unsafe fn load_fours(rows: *const *mut u8, at: usize) -> Self;
    /// Turns squares of four: with `LEN / 4` squares side by side, vector i has row j's place `4m + i` at `4m + j`.
    fn turn_fours(rows: [Self; 4]) -> [Self; 4];
    /// Parts groups of four places: vector m has group m of each of the first `LEN / 4` vectors.
    fn gather_fours(rows: [Self; 4]) -> [Self; 4];

    /// The even and the odd places of `self` followed by `b`.
    fn deinterleave(self, b: Self) -> (Self, Self);

    /// `self + b`.
    fn add(self, b: Self) -> Self;
    /// `self − b`.
    fn sub(self, b: Self) -> Self;
    /// `self · b`.
    fn mul(self, b: Self) -> Self;
    /// `self / b`.
    fn div(self, b: Self) -> Self;
    /// `self · b + c`; rounded once where the processor has the instruction, twice on the portable path.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// `c − self · b`; rounded as [`Lanes::mul_add`].
    fn neg_mul_add(self, b: Self, c: Self) -> Self;
    /// `self > b ? self : b`: the second where either is NaN.
    fn max(self, b: Self) -> Self;
    /// `self < b ? self : b`: the second where either is NaN.
    fn min(self, b: Self) -> Self;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// `|self|`.
    fn abs(self) -> Self;
    /// `|self|` with the sign of `sign`.
    fn copysign(self, sign: Self) -> Self;
    /// The nearest integer, ties to even, for `|self| < 2^22`.
    fn round(self) -> Self;

    /// `self < b`, false where either is NaN.
    fn lt(self, b: Self) -> Self::Mask;
    /// `self <= b`, false where either is NaN.
    fn le(self, b: Self) -> Self::Mask;
    /// `self == b`, false where either is NaN.
    fn eq(self, b: Self) -> Self::Mask;
    /// Whether the lane is NaN.
    #[inline(always)]
    fn unordered(self) -> Self::Mask {
        // The difference of the bits of |x| and infinity is positive for NaN alone.
        let magnitude = self.abs().bits();
        let beyond = Self::sub_int(magnitude, Self::splat_int(f32::INFINITY.to_bits() as i32));
        Self::zero().lt(Self::from_int(beyond))
    }
    /// `yes` where the mask is set, else `no`.
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
    /// Whether any lane is set.
    fn any(mask: Self::Mask) -> bool;

    /// The bits of each lane.
    fn bits(self) -> Self::Int;
    /// The values with these bits.
    fn from_bits(bits: Self::Int) -> Self;
    /// `x` in every lane.
    fn splat_int(x: i32) -> Self::Int;
    /// The nearest integer, ties to even, for `|self| < 2^22`.
    fn to_int(self) -> Self::Int;
    /// The value of each integer, for `|a| ≤ 2^24`.
    fn from_int(a: Self::Int) -> Self;
    /// `a + b`, wrapping.
    fn add_int(a: Self::Int, b: Self::Int) -> Self::Int;
    /// `a − b`, wrapping.
    fn sub_int(a: Self::Int, b: Self::Int) -> Self::Int;
    /// The larger, by sign.
    fn max_int(a: Self::Int, b: Self::Int) -> Self::Int;
    /// The largest lane, by sign.
    fn largest_int(a: Self::Int) -> i32;
    /// The largest lane of each of `LEN` vectors, by sign: that of the first in the first lane.
    ///
    /// # Safety
    /// They are readable.
    #[inline(always)]
    unsafe fn largest_of_each(a: *const Self::Int) -> Self::Int {
        let mut each = [0; 16];
        for (i, each) in each.iter_mut().enumerate().take(Self::LEN) {
            // SAFETY: the caller's promise.
            *each = unsafe { Self::largest_int(*a.add(i)) };
        }
        // SAFETY: at most sixteen lanes.
        unsafe { Self::load(each.as_ptr().cast()) }.bits()
    }
    /// `a & b`.
    fn and_int(a: Self::Int, b: Self::Int) -> Self::Int;
    /// `a | b`.
    fn or_int(a: Self::Int, b: Self::Int) -> Self::Int;
    /// `a << N`.
    fn shl_int<const N: u32>(a: Self::Int) -> Self::Int;
    /// `a >> N`, keeping the sign.
    fn shr_int<const N: u32>(a: Self::Int) -> Self::Int;

    /// `self · 2^n` for integral `−252 ≤ n ≤ 254`, rounded once if `1/2 < |self| < 2`.
    ///
    /// Two factors, because 2^n alone may not be a number; the first product is exact.
    #[inline(always)]
    fn scale_by_power_of_two(self, n: Self) -> Self {
        let n = n.to_int();
        let half = Self::shr_int::<1>(n);
        let bias = Self::splat_int(127);
        let power = |n: Self::Int| Self::from_bits(Self::shl_int::<23>(Self::add_int(n, bias)));
        self.mul(power(half)).mul(power(Self::sub_int(n, half)))
    }

    /// Every lane, the first `LEN` of 16.
    #[inline(always)]
    fn to_array(self) -> [f32; 16] {
        let mut out = [0.0; 16];
        // SAFETY: LEN is at most 16.
        unsafe { self.store(out.as_mut_ptr()) };
        out
    }

    /// The first `LEN` values.
    #[inline(always)]
    fn from_array(values: &[f32; 16]) -> Self {
        // SAFETY: LEN is at most 16.
        unsafe { Self::load(values.as_ptr()) }
    }

    /// The sum of all lanes by halving: lane i and lane i + LEN/2 first, always in this order.
    #[inline(always)]
    fn sum(self) -> f32 {
        fold(self, |a, b| a + b)
    }

    /// The largest lane; not meaningful with NaN.
    #[inline(always)]
    fn largest(self) -> f32 {
        fold(self, f32::max)
    }
}

#[inline(always)]
fn fold<L: Lanes>(lanes: L, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut values = lanes.to_array();
    let mut len = L::LEN;
    while len > 1 {
        len /= 2;
        for i in 0..len {
            values[i] = f(values[i], values[i + len]);
        }
    }
    values[0]
}

/// An element type of memory that kernels compute on as f32: f32, f16, bf16.
pub(crate) trait Stored: Copy + Send + Sync + 'static {
    /// Reads `LEN` elements, exactly.
    ///
    /// # Safety
    /// They are readable; any alignment.
    unsafe fn load<L: Lanes>(from: *const Self) -> L;
    /// Reads `n` elements, 0 to `LEN`; the other lanes are 0.
    ///
    /// # Safety
    /// `n` elements are readable; any alignment.
    unsafe fn load_partial<L: Lanes>(from: *const Self, n: usize) -> L;
    /// Writes `LEN` elements, rounded to nearest even.
    ///
    /// # Safety
    /// They are writable; any alignment.
    unsafe fn store<L: Lanes>(lanes: L, to: *mut Self);
    /// Writes the first `n` lanes, 0 to `LEN`, rounded to nearest even.
    ///
    /// # Safety
    /// `n` elements are writable; any alignment.
    unsafe fn store_partial<L: Lanes>(lanes: L, to: *mut Self, n: usize);
    /// The value as f32, exactly.
    fn to_f32(self) -> f32;
    /// The nearest value, ties to even.
    fn of_f32(x: f32) -> Self;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load(from) }
    }
    #[inline(always)]
    unsafe fn load_partial<L: Lanes>(from: *const Self, n: usize) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_partial(from, n) }
    }
    #[inline(always)]
    unsafe fn store<L: Lanes>(lanes: L, to: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { lanes.store(to) }
    }
    #[inline(always)]
    unsafe fn store_partial<L: Lanes>(lanes: L, to: *mut Self, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { lanes.store_partial(to, n) }
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn of_f32(x: f32) -> Self {
        x
    }
}

macro_rules! stored_16 {
    ($type:ty, $load:ident, $store:ident) => {
        impl Stored for $type {
            #[inline(always)]
            unsafe fn load<L: Lanes>(from: *const Self) -> L {
                // SAFETY: the caller's promise; the type is a transparent u16.
                unsafe { L::$load(from.cast()) }
            }
            #[inline(always)]
            unsafe fn load_partial<L: Lanes>(from: *const Self, n: usize) -> L {
                let mut whole = [0u16; 16];
                // SAFETY: n ≤ LEN ≤ 16 elements are readable by the caller's promise, and the copy is whole.
                unsafe {
                    core::ptr::copy_nonoverlapping(from.cast::<u8>(), whole.as_mut_ptr().cast(), 2 * n);
                    L::$load(whole.as_ptr())
                }
            }
            #[inline(always)]
            unsafe fn store<L: Lanes>(lanes: L, to: *mut Self) {
                // SAFETY: the caller's promise; the type is a transparent u16.
                unsafe { lanes.$store(to.cast()) }
            }
            #[inline(always)]
            unsafe fn store_partial<L: Lanes>(lanes: L, to: *mut Self, n: usize) {
                let mut whole = [0u16; 16];
                // SAFETY: the copy holds LEN ≤ 16; n elements are writable by the caller's promise.
                unsafe {
                    lanes.$store(whole.as_mut_ptr());
                    core::ptr::copy_nonoverlapping(whole.as_ptr().cast::<u8>(), to.cast(), 2 * n);
                }
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                <$type>::to_f32(self)
            }
            #[inline(always)]
            fn of_f32(x: f32) -> Self {
                <$type>::from_f32(x)
            }
        }
    };
}
stored_16!(half::f16, load_f16, store_f16);
stored_16!(half::bf16, load_bf16, store_bf16);

/// A computation over lanes, with its arguments as fields; `run` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Computes with vectors of type `L`.
    fn run<L: Lanes>(self) -> Self::Output;
}

/// Runs a kernel compiled for `isa`.
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => super::avx512::F32x16::apart(kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => super::avx2::F32x8::apart(kernel),
        _ => super::portable::Plain8::apart(kernel),
    }
}

/// Makes of functions over lanes kernels that are compiled by themselves, for parts of a computation beside whose work
/// a call costs nothing: a body that takes everything in is compiled once for each of its forms, and takes a compiler
/// longer the longer it is.
macro_rules! apart {
    ($(
        $(#[$attr:meta])*
        $vis:vis unsafe fn $name:ident<$($life:lifetime,)? L $(, $form:ident: $bound:path)?>(
            $($arg:ident: $type:ty),* $(,)?
        ) $(-> $output:ty)? $body:block
    )*) => {$(
        $(#[$attr])*
        $vis unsafe fn $name<$($life,)? L: $crate::simd::Lanes $(, $form: $bound)?>($($arg: $type),*) $(-> $output)? {
            struct Apart<$($life,)? $($form)?> {
                $($arg: $type,)*
                $(of: core::marker::PhantomData<$form>,)?
            }
            impl<$($life,)? $($form: $bound)?> $crate::simd::Kernel for Apart<$($life,)? $($form)?> {
                type Output = $crate::simd::apart!(@output $($output)?);
                #[inline(always)]
                fn run<L: $crate::simd::Lanes>(self) -> Self::Output {
                    let Self { $($arg,)* .. } = self;
                    $body
                }
            }
            L::apart(Apart { $($arg,)* $(of: core::marker::PhantomData::<$form>)? })
        }
    )*};
    (@output) => { () };
    (@output $output:ty) => { $output };
}
pub(crate) use apart;
