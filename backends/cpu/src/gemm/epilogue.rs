//! What happens to a finished sum: scaling, accumulation, bias, activation, rounding, and the store.
//!
//! It runs on one tile while the tile is in the first-level cache, so each of out and c is touched once.

use super::block::{Offsets, accumulator};
use super::{Bias, GemmTask, Mat};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use portolan_ops::DType;
use portolan_ops::kernel::Activation;

/// The widest tile.
pub(super) const WIDTH: usize = 32;

/// The epilogue of one task.
pub(super) struct Epilogue<'a> {
    task: &'a GemmTask,
    /// Whether sums are results as they are.
    plain: bool,
}

impl<'a> Epilogue<'a> {
    pub(super) fn new(task: &'a GemmTask) -> Self {
        let plain = task.alpha == 1.0
            && task.c.is_none()
            && task.bias.is_none()
            && task.activation == Activation::Identity;
        Self { task, plain }
    }

    /// Finishes the sums in `tile` (rows `width` apart) and writes them to out at `[row, column]`.
    ///
    /// # Safety
    /// The tile holds `rows` rows; the part of out (and of c) exists, and nobody else uses it.
    pub(super) unsafe fn store(
        &self,
        tile: *const u8,
        width: usize,
        [rows, columns]: [usize; 2],
        [row, column]: [usize; 2],
        at: &Offsets,
    ) {
        for r in 0..rows {
            // SAFETY: row r of the tile has `columns ≤ width` sums; the rest is promised by the caller.
            unsafe {
                match accumulator(self.task.out.dtype) {
                    DType::I32 => {
                        let sums = std::slice::from_raw_parts(tile.cast::<i32>().add(r * width), columns);
                        write(&self.task.out, at.out, [row + r, column], sums);
                    }
                    DType::F64 => {
                        let sums = std::slice::from_raw_parts(tile.cast::<f64>().add(r * width), columns);
                        self.store_f64(sums, [row + r, column], at);
                    }
                    _ => {
                        let sums = std::slice::from_raw_parts(tile.cast::<f32>().add(r * width), columns);
                        self.store_f32(sums, [row + r, column], at);
                    }
                }
            }
        }
    }

    unsafe fn store_f64(&self, sums: &[f64], [row, column]: [usize; 2], at: &Offsets) {
        let task = self.task;
        for (j, &sum) in sums.iter().enumerate() {
            let mut value = f64::from(task.alpha) * sum;
            // SAFETY: the elements exist, promised by the caller; the bias has an element for every column.
            unsafe {
                if let Some(c) = &task.c {
                    value += f64::from(task.beta) * c.at(at.c, row, column + j).cast::<f64>().read();
                }
                if let Some(bias) = &task.bias {
                    let p = bias.ptr.add((column + j) * bias.stride * bias.dtype.bits() as usize / 8);
                    value += match bias.dtype {
                        DType::F64 => p.cast::<f64>().read(),
                        _ => f64::from(p.cast::<f32>().read()),
                    };
                }
                let value = task.activation.apply(value);
                task.out.at(at.out, row, column + j).cast::<f64>().write(value);
            }
        }
    }

    unsafe fn store_f32(&self, sums: &[f32], [row, column]: [usize; 2], at: &Offsets) {
        let task = self.task;
        let mut values = [0.0f32; WIDTH];
        let values = &mut values[..sums.len()];
        let mut finished = sums;
        if !self.plain {
            for (value, &sum) in values.iter_mut().zip(sums) {
                *value = task.alpha * sum;
            }
            let mut added = [0.0f32; WIDTH];
            let added = &mut added[..sums.len()];
            // SAFETY: the elements exist, promised by the caller; the bias has an element for every column.
            unsafe {
                if let Some(c) = &task.c {
                    read(c.at(at.c, row, column), c.dtype, c.col_stride, added);
                    for (value, &c) in values.iter_mut().zip(&*added) {
                        *value += task.beta * c;
                    }
                }
                if let Some(Bias { ptr, dtype, stride }) = task.bias {
                    read(ptr.add(column * stride * dtype.bits() as usize / 8), dtype, stride, added);
                    for (value, &bias) in values.iter_mut().zip(&*added) {
                        *value += bias;
                    }
                }
            }
            activate(task.activation, values);
            finished = values;
        }
        // SAFETY: promised by the caller.
        unsafe {
            match task.out.dtype {
                DType::F16 => {
                    let mut narrow = [f16::ZERO; WIDTH];
                    let narrow = &mut narrow[..sums.len()];
                    narrow.convert_from_f32_slice(finished);
                    write(&task.out, at.out, [row, column], narrow);
                }
                DType::BF16 => {
                    let mut narrow = [bf16::ZERO; WIDTH];
                    for (narrow, &x) in narrow.iter_mut().zip(finished) {
                        *narrow = round_to_bf16(x);
                    }
                    write(&task.out, at.out, [row, column], &narrow[..sums.len()]);
                }
                _ => write(&task.out, at.out, [row, column], finished),
            }
        }
    }
}

/// Writes part of a row of out.
///
/// # Safety
/// The elements exist and have type `T`.
unsafe fn write<T: Copy>(out: &Mat, offset: usize, [row, column]: [usize; 2], values: &[T]) {
    // SAFETY: promised by the caller.
    unsafe {
        let to = out.at(offset, row, column).cast::<T>();
        if out.col_stride == 1 {
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len());
            return;
        }
        for (j, &value) in values.iter().enumerate() {
            to.add(j * out.col_stride).write(value);
        }
    }
}

/// Reads elements `stride` apart as f32.
///
/// # Safety
/// The elements exist.
unsafe fn read(from: *const u8, dtype: DType, stride: usize, into: &mut [f32]) {
    for (j, value) in into.iter_mut().enumerate() {
        // SAFETY: promised by the caller.
        *value = unsafe {
            match dtype {
                DType::F16 => from.cast::<f16>().add(j * stride).read().to_f32(),
                DType::BF16 => from.cast::<bf16>().add(j * stride).read().to_f32(),
                _ => from.cast::<f32>().add(j * stride).read(),
            }
        };
    }
}

/// Rounds to nearest, ties to even; written without branches so that a loop over it is vectorised.
fn round_to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16)
}

/// Applies the activation to every value.
fn activate(activation: Activation, values: &mut [f32]) {
    let each = |values: &mut [f32], f: fn(f32) -> f32| values.iter_mut().for_each(|x| *x = f(*x));
    match activation {
        Activation::Identity => {}
        // Not f32::max, which would turn a NaN into 0.
        Activation::Relu => each(values, |x| if x < 0.0 { 0.0 } else { x }),
        Activation::Silu => each(values, |x| x / (1.0 + (-x).exp())),
        Activation::Gelu => each(values, gelu),
        Activation::GeluTanh => each(values, gelu_tanh),
    }
}

/// `x / 2 · (1 + tanh y) = x / (1 + e^(−2y))`: without the cancellation of the first form where x is negative.
fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let y = SQRT_2_OVER_PI * (x + 0.044715 * x * x * x);
    x / (1.0 + (-2.0 * y).exp())
}

/// `x · Φ(x)`, with the lower tail `Φ(−z) = erfc(z / √2) / 2` and `Φ(z) = 1 − Φ(−z)`.
fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    let z = x.abs() * core::f64::consts::FRAC_1_SQRT_2;
    let tail = 0.5 * erfc_positive(z);
    (x * if x < 0.0 { tail } else { 1.0 - tail }) as f32
}

/// `erfc(z)` for `z ≥ 0` to a relative 1e-9: `(1 + 2z) · e^(z²) · erfc(z)` is smooth on the whole half line and
/// expanded in Chebyshev polynomials of `t = (z − 3.75) / (z + 3.75)` (Shepherd and Laframboise 1981).
/// Coefficients: interpolation at 64 Chebyshev points with the C library's erfc.
fn erfc_positive(z: f64) -> f64 {
    const COEFFICIENTS: [f64; 14] = [
        1.177578934567402e+00,
        -4.590054580645861e-03,
        -8.424913336651804e-02,
        5.92099399981918e-02,
        -2.665866843530611e-02,
        9.074997670704982e-03,
        -2.413163540418008e-03,
        4.907758365252611e-04,
        -6.916973302514492e-05,
        4.13902798663407e-06,
        7.740383080288848e-07,
        -2.188640093221672e-07,
        1.076499883331805e-08,
        4.521957395337006e-09,
    ];
    if z > 27.0 {
        return 0.0;
    }
    let t = (z - 3.75) / (z + 3.75);
    let (mut b1, mut b2) = (0.0, 0.0);
    for &c in COEFFICIENTS[1..].iter().rev() {
        (b1, b2) = (2.0 * t * b1 - b2 + c, b1);
    }
    (t * b1 - b2 + COEFFICIENTS[0]) / (1.0 + 2.0 * z) * (-z * z).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_agree_with_their_f64_form_to_a_few_ulp() {
        for activation in [Activation::Relu, Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
            for i in -1200..1200 {
                let x = i as f32 * 0.01;
                let mut got = [x];
                activate(activation, &mut got);
                let want = match activation {
                    // The f64 form 1 + erf(x) cancels in the lower tail.
                    Activation::Gelu if x < -5.0 => continue,
                    _ => activation.apply(f64::from(x)),
                };
                let error = (f64::from(got[0]) - want).abs();
                // e^(−2y) amplifies the rounding of its argument by its size.
                let allowed = (want.abs() * 16.0 * (1.0 + x.abs() as f64)) / (1u64 << 24) as f64 + 1e-14;
                assert!(error <= allowed, "{activation:?}({x}): got {}, want {want}", got[0]);
            }
        }
    }

    #[test]
    fn activations_keep_nan() {
        for activation in [Activation::Relu, Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
            let mut got = [f32::NAN];
            activate(activation, &mut got);
            assert!(got[0].is_nan(), "{activation:?}");
        }
    }

    #[test]
    fn rounding_to_bf16_is_that_of_the_half_crate() {
        for high in 0..=u16::MAX {
            for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits((u32::from(high) << 16) | low);
                let (got, want) = (round_to_bf16(x), bf16::from_f32(x));
                assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{x:e}");
            }
        }
    }
}
