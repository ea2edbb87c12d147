//! Tensors as operators see them: an element type, a strided view and a device address.
//!
//! Operators read a view whole into a contiguous row, compute on rows, and write rows back. Strides, broadcasting,
//! packed 4-bit elements and the fractal layout are dealt with here and nowhere else.

use portolan_ops::DType;
use portolan_ops::codec::{Overflow, SmallFloat, e8m0_code, e8m0_value};

/// Element types, by the vendor's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Dtype {
    F32 = 0,
    F16 = 1,
    I8 = 2,
    I32 = 3,
    U8 = 4,
    I16 = 6,
    U16 = 7,
    U32 = 8,
    I64 = 9,
    U64 = 10,
    F64 = 11,
    Bool = 12,
    Bf16 = 27,
    I4 = 29,
    F8E5M2 = 35,
    F8E4M3 = 36,
    E8M0 = 37,
    F4E2M1 = 40,
}

impl Dtype {
    pub(crate) const ALL: [Dtype; 18] = [
        Dtype::F32,
        Dtype::F16,
        Dtype::I8,
        Dtype::I32,
        Dtype::U8,
        Dtype::I16,
        Dtype::U16,
        Dtype::U32,
        Dtype::I64,
        Dtype::U64,
        Dtype::F64,
        Dtype::Bool,
        Dtype::Bf16,
        Dtype::I4,
        Dtype::F8E5M2,
        Dtype::F8E4M3,
        Dtype::E8M0,
        Dtype::F4E2M1,
    ];

    /// The type with a vendor's number, if the simulator knows it.
    pub(crate) fn from_code(code: i64) -> Option<Dtype> {
        Dtype::ALL.into_iter().find(|dtype| *dtype as i64 == code)
    }

    pub(crate) const fn bits(self) -> usize {
        match self {
            Dtype::I64 | Dtype::U64 | Dtype::F64 => 64,
            Dtype::F32 | Dtype::I32 | Dtype::U32 => 32,
            Dtype::F16 | Dtype::Bf16 | Dtype::I16 | Dtype::U16 => 16,
            Dtype::I4 | Dtype::F4E2M1 => 4,
            _ => 8,
        }
    }

    /// 16 bits or more of floating point.
    pub(crate) const fn is_float(self) -> bool {
        matches!(self, Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F64)
    }

    /// Integers of a byte or more.
    pub(crate) const fn is_int(self) -> bool {
        matches!(
            self,
            Dtype::I8
                | Dtype::U8
                | Dtype::I16
                | Dtype::U16
                | Dtype::I32
                | Dtype::U32
                | Dtype::I64
                | Dtype::U64
        )
    }

    /// Types that only the 950 computes with.
    pub(crate) const fn is_narrow_float(self) -> bool {
        matches!(self, Dtype::F8E5M2 | Dtype::F8E4M3 | Dtype::E8M0 | Dtype::F4E2M1)
    }

    /// `x` rounded to this type and back, as a store followed by a load would do.
    pub(crate) fn round(self, x: f64) -> f64 {
        match self {
            Dtype::F64 => x,
            Dtype::F32 => f64::from(x as f32),
            _ => self.decode(self.encode(x)),
        }
    }

    /// The bits of the nearest element to `x`, ties to even. Integers take the integer part and saturate, as do
    /// floats of 8 bits and fewer.
    pub(crate) fn encode(self, x: f64) -> u64 {
        let small = |format: SmallFloat| u64::from(format.encode(x, Overflow::Saturate));
        match self {
            Dtype::F64 => x.to_bits(),
            Dtype::F32 => u64::from((x as f32).to_bits()),
            Dtype::F16 => nearest(x, 5, 10),
            Dtype::Bf16 => nearest(x, 8, 7),
            Dtype::F8E4M3 => small(SmallFloat::E4M3),
            Dtype::F8E5M2 => small(SmallFloat::E5M2),
            Dtype::F4E2M1 => small(SmallFloat::E2M1),
            Dtype::E8M0 => u64::from(e8m0_code(x)),
            Dtype::I64 => x as i64 as u64,
            Dtype::I32 => u64::from(x as i32 as u32),
            Dtype::I16 => u64::from(x as i16 as u16),
            Dtype::I8 => u64::from(x as i8 as u8),
            Dtype::I4 => (x as i8).clamp(-8, 7) as u64 & 15,
            Dtype::U64 => x as u64,
            Dtype::U32 => u64::from(x as u32),
            Dtype::U16 => u64::from(x as u16),
            Dtype::U8 => u64::from(x as u8),
            Dtype::Bool => u64::from(x != 0.0),
        }
    }

    /// The number that bits stand for; 64-bit integers to the precision of an f64.
    pub(crate) fn decode(self, bits: u64) -> f64 {
        match self {
            Dtype::F64 => f64::from_bits(bits),
            Dtype::F32 => f64::from(f32::from_bits(bits as u32)),
            Dtype::F16 => f64::from(half_value(bits as u16)),
            Dtype::Bf16 => f64::from(f32::from_bits((bits as u32) << 16)),
            Dtype::F8E4M3 => f64::from(SmallFloat::E4M3.decode(bits as u8)),
            Dtype::F8E5M2 => f64::from(SmallFloat::E5M2.decode(bits as u8)),
            Dtype::F4E2M1 => f64::from(SmallFloat::E2M1.decode(bits as u8)),
            Dtype::E8M0 => f64::from(e8m0_value(bits as u8)),
            Dtype::U64 => bits as f64,
            _ => self.decode_int(bits) as f64,
        }
    }

    /// The integer that bits of an integer type stand for, modulo 2^64; a float's integer part.
    pub(crate) fn decode_int(self, bits: u64) -> i64 {
        match self {
            Dtype::I64 | Dtype::U64 => bits as i64,
            Dtype::I32 => i64::from(bits as i32),
            Dtype::U32 => i64::from(bits as u32),
            Dtype::I16 => i64::from(bits as i16),
            Dtype::U16 => i64::from(bits as u16),
            Dtype::I8 => i64::from(bits as i8),
            Dtype::U8 => i64::from(bits as u8),
            Dtype::Bool => i64::from(bits as u8 != 0),
            Dtype::I4 => i64::from((bits as u8) << 4) << 56 >> 60,
            _ => self.decode(bits) as i64,
        }
    }

    /// The bits of an integer, wrapped into an integer type; rounded into a float type.
    pub(crate) fn encode_int(self, x: i64) -> u64 {
        match self {
            Dtype::Bool => u64::from(x != 0),
            Dtype::I4 => x as u64 & 15,
            _ if self.is_int() => x as u64 & mask(self.bits()),
            _ => self.encode(x as f64),
        }
    }

    /// The name used in messages.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "FLOAT",
            Dtype::F16 => "FLOAT16",
            Dtype::I8 => "INT8",
            Dtype::I32 => "INT32",
            Dtype::U8 => "UINT8",
            Dtype::I16 => "INT16",
            Dtype::U16 => "UINT16",
            Dtype::U32 => "UINT32",
            Dtype::I64 => "INT64",
            Dtype::U64 => "UINT64",
            Dtype::F64 => "DOUBLE",
            Dtype::Bool => "BOOL",
            Dtype::Bf16 => "BF16",
            Dtype::I4 => "INT4",
            Dtype::F8E5M2 => DType::F8E5M2.name(),
            Dtype::F8E4M3 => DType::F8E4M3.name(),
            Dtype::E8M0 => DType::E8M0.name(),
            Dtype::F4E2M1 => DType::F4E2M1.name(),
        }
    }
}

const fn mask(bits: usize) -> u64 {
    if bits == 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// A binary float of at most 16 bits with IEEE specials, rounded from f64 once, ties to even.
fn nearest(x: f64, exponent_bits: i32, mantissa_bits: i32) -> u64 {
    let sign = u64::from(x.is_sign_negative()) << (exponent_bits + mantissa_bits);
    let infinity = ((1u64 << exponent_bits) - 1) << mantissa_bits;
    if x.is_nan() {
        return sign | infinity | 1 << (mantissa_bits - 1);
    }
    let magnitude = x.abs();
    if magnitude.is_infinite() {
        return sign | infinity;
    }
    let lowest = 2 - (1 << (exponent_bits - 1));
    let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(lowest);
    // Units of the last place; the scaling is exact, so this rounds once. A carry walks into the exponent.
    let units = (magnitude * 2f64.powi(mantissa_bits - exponent)).round_ties_even() as u64;
    let code = (((exponent - lowest) as u64) << mantissa_bits) + units;
    sign | code.min(infinity)
}

fn half_value(bits: u16) -> f32 {
    let (sign, magnitude) = (u32::from(bits >> 15) << 31, u32::from(bits & 0x7fff));
    let value = if magnitude >= 0x7c00 {
        0x7f80_0000 | (magnitude & 0x3ff) << 13
    } else {
        // The exponent's bias is 112 less; the product is exact, below the normal numbers too.
        (f32::from_bits(magnitude << 13) * 2f32.powi(112)).to_bits()
    };
    f32::from_bits(sign | value)
}

/// Memory layouts that operators know; every other one is refused by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Strided, whatever the dimensions mean (ND, NCHW, NCL, NCDHW, NHWC).
    Nd,
    /// Blocks of 16 rows by 32 bytes, column of blocks after column of blocks.
    FractalNz,
}

impl Format {
    /// The layout with a vendor's number.
    pub(crate) const fn from_code(code: i64) -> Option<Format> {
        match code {
            // NCHW, NHWC, ND, HWCN, NDHWC, NCDHW, NC, NCL: plain strided storage.
            0 | 1 | 2 | 16 | 27 | 30 | 35 | 47 => Some(Format::Nd),
            29 => Some(Format::FractalNz),
            _ => None,
        }
    }
}

/// What became of an operator that had begun: a vendor status and what went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) status: i32,
    pub(crate) message: String,
}

impl Fault {
    /// An access or a value that stops a vector core.
    pub(crate) fn exception(message: impl Into<String>) -> Fault {
        Fault { status: 507035, message: message.into() }
    }
}

/// Where device addresses lie in this process.
///
/// # Safety
/// The pointer returned is good for reads and writes of `bytes` bytes until the operator it was asked for has ended,
/// and nothing else touches these bytes meanwhile.
pub(crate) unsafe trait Memory {
    /// The host's address of a range of device memory, or the reason why it is none.
    fn resolve(&self, address: u64, bytes: usize) -> Result<*mut u8, Fault>;
}

/// A strided view of device memory.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) dtype: Dtype,
    pub(crate) format: Format,
    pub(crate) shape: Vec<usize>,
    /// In elements.
    pub(crate) strides: Vec<usize>,
    /// In elements, from `address`.
    pub(crate) offset: usize,
    /// Shape of the storage; of its fractal blocks where it has them.
    pub(crate) storage: Vec<usize>,
    pub(crate) address: u64,
}

/// Strides of a row-major array.
pub(crate) fn contiguous_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1);
    }
    strides
}

pub(crate) fn volume(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// The shape two shapes broadcast to, aligned at the last dimension.
pub(crate) fn broadcast_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    (0..rank)
        .map(|axis| match (at(a, axis), at(b, axis)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

impl Tensor {
    /// A row-major tensor at an address.
    pub(crate) fn contiguous(dtype: Dtype, shape: &[usize], address: u64) -> Tensor {
        Tensor {
            dtype,
            format: Format::Nd,
            shape: shape.to_vec(),
            strides: contiguous_strides(shape),
            offset: 0,
            storage: shape.to_vec(),
            address,
        }
    }

    pub(crate) fn rank(&self) -> usize {
        self.shape.len()
    }

    pub(crate) fn numel(&self) -> usize {
        volume(&self.shape)
    }

    /// Whether the elements lie in row-major order without gaps.
    pub(crate) fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.numel() == 0
            || self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
                let fits = size == 1 || stride == expected;
                expected *= size;
                fits
            })
    }

    /// The same memory seen in a larger shape: dimensions of 1 repeat.
    pub(crate) fn broadcast(&self, shape: &[usize]) -> Option<Tensor> {
        let lead = shape.len().checked_sub(self.rank())?;
        let mut strides = vec![0; lead];
        for (axis, (&size, &stride)) in self.shape.iter().zip(&self.strides).enumerate() {
            match (size, shape[lead + axis]) {
                (1, want) if want != 1 => strides.push(0),
                (have, want) if have == want => strides.push(stride),
                _ => return None,
            }
        }
        Some(Tensor { shape: shape.to_vec(), strides, ..self.clone() })
    }

    /// Dimensions in another order; `order[i]` is the old place of the new dimension `i`.
    pub(crate) fn permute(&self, order: &[usize]) -> Tensor {
        let pick = |from: &[usize]| order.iter().map(|&axis| from[axis]).collect();
        Tensor { shape: pick(&self.shape), strides: pick(&self.strides), ..self.clone() }
    }

    /// The last two dimensions exchanged.
    pub(crate) fn transposed(&self) -> Tensor {
        let mut order: Vec<usize> = (0..self.rank()).collect();
        if let [.., a, b] = order.as_mut_slice() {
            std::mem::swap(a, b);
        }
        self.permute(&order)
    }

    /// Elements `start, start + step, …` of a dimension.
    pub(crate) fn narrow(&self, axis: usize, start: usize, count: usize, step: usize) -> Tensor {
        let mut view = self.clone();
        view.offset += start * view.strides[axis];
        view.strides[axis] *= step;
        view.shape[axis] = count;
        view
    }

    /// One more dimension, of size 1.
    pub(crate) fn unsqueeze(&self, axis: usize) -> Tensor {
        let mut view = self.clone();
        view.shape.insert(axis, 1);
        view.strides.insert(axis, 0);
        view
    }

    /// Gives every element's index, in units of elements from `address`, in row-major order of the view.
    fn each(&self, mut visit: impl FnMut(usize)) {
        if self.format == Format::FractalNz {
            return self.each_of_blocks(visit);
        }
        if self.numel() == 0 {
            return;
        }
        let (inner, step) = match (self.shape.last(), self.strides.last()) {
            (Some(&size), Some(&stride)) => (size, stride),
            _ => (1, 0),
        };
        let outer = self.rank().saturating_sub(1);
        let mut index = vec![0; outer];
        let mut base = self.offset;
        loop {
            (0..inner).for_each(|i| visit(base + i * step));
            let mut axis = outer;
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                index[axis] += 1;
                base += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                base -= index[axis] * self.strides[axis];
                index[axis] = 0;
            }
        }
    }

    /// Blocks are of the matrix in memory: a view whose last stride is not 1 is its transpose.
    fn each_of_blocks(&self, mut visit: impl FnMut(usize)) {
        let rank = self.rank();
        let (rows, cols) = (self.shape[rank - 2], self.shape[rank - 1]);
        let turned = self.is_turned();
        let (r, c) = if turned { (cols, rows) } else { (rows, cols) };
        let c0 = self.fractal_width();
        let (row_blocks, matrix) = (r.div_ceil(16), r.div_ceil(16) * 16 * c.div_ceil(c0) * c0);
        for batch in 0..volume(&self.shape[..rank - 2]) {
            for i in 0..rows {
                for j in 0..cols {
                    let (y, x) = if turned { (j, i) } else { (i, j) };
                    let block = (x / c0) * row_blocks + y / 16;
                    visit(self.offset + batch * matrix + (block * 16 + y % 16) * c0 + x % c0);
                }
            }
        }
    }

    /// Whether a fractal tensor is seen transposed.
    pub(crate) fn is_turned(&self) -> bool {
        matches!(self.strides.as_slice(), [.., 1, lower] if *lower != 1)
    }

    /// Elements in a fractal block's row: 32 bytes of them.
    pub(crate) fn fractal_width(&self) -> usize {
        256 / self.dtype.bits()
    }

    /// Storage shape of the view's matrices in blocks: `[.., column blocks, row blocks, 16, 32 bytes]`.
    pub(crate) fn fractal_storage(&self) -> Vec<usize> {
        let lead = self.rank() - 2;
        let (mut rows, mut cols) = (self.shape[lead], self.shape[lead + 1]);
        if self.is_turned() {
            std::mem::swap(&mut rows, &mut cols);
        }
        let width = self.fractal_width();
        [&self.shape[..lead], &[cols.div_ceil(width), rows.div_ceil(16), 16, width]].concat()
    }

    /// The memory that the view touches, as (first element, elements).
    fn span(&self) -> (usize, usize) {
        if self.numel() == 0 {
            return (self.offset, 0);
        }
        if self.format == Format::FractalNz {
            return (self.offset, volume(&self.fractal_storage()));
        }
        let last: usize =
            self.shape.iter().zip(&self.strides).map(|(size, stride)| (size - 1) * stride).sum();
        (self.offset, last + 1)
    }

    /// The host's address of element 0 of the tensor's memory, for `span` to be accessed; `None` for nothing.
    fn base(&self, memory: &dyn Memory) -> Result<Option<*mut u8>, Fault> {
        let (first, count) = self.span();
        if count == 0 {
            return Ok(None);
        }
        let (start, end) = (first * self.dtype.bits() / 8, ((first + count) * self.dtype.bits()).div_ceil(8));
        let host = memory.resolve(self.address + start as u64, end - start)?;
        Ok(Some(host.wrapping_sub(start)))
    }

    /// Every element's bits, in row-major order of the view.
    pub(crate) fn read_bits(&self, memory: &dyn Memory) -> Result<Vec<u64>, Fault> {
        self.read_with(memory, |bits| bits)
    }

    /// Every element as an f64.
    pub(crate) fn read_f64(&self, memory: &dyn Memory) -> Result<Vec<f64>, Fault> {
        match self.dtype {
            Dtype::F32 => self.read_with(memory, |bits| f64::from(f32::from_bits(bits as u32))),
            dtype => self.read_with(memory, |bits| dtype.decode(bits)),
        }
    }

    /// Every element as an f32, for products that accumulate in f32.
    pub(crate) fn read_f32(&self, memory: &dyn Memory) -> Result<Vec<f32>, Fault> {
        match self.dtype {
            Dtype::F32 => self.read_with(memory, |bits| f32::from_bits(bits as u32)),
            Dtype::Bf16 => self.read_with(memory, |bits| f32::from_bits((bits as u32) << 16)),
            Dtype::F16 => self.read_with(memory, |bits| half_value(bits as u16)),
            dtype => self.read_with(memory, |bits| dtype.decode(bits) as f32),
        }
    }

    /// Every element as an integer.
    pub(crate) fn read_i64(&self, memory: &dyn Memory) -> Result<Vec<i64>, Fault> {
        let dtype = self.dtype;
        self.read_with(memory, |bits| dtype.decode_int(bits))
    }

    fn read_with<T>(&self, memory: &dyn Memory, decode: impl Fn(u64) -> T) -> Result<Vec<T>, Fault> {
        let Some(base) = self.base(memory)? else { return Ok(Vec::new()) };
        let mut row = Vec::with_capacity(self.numel());
        // SAFETY: `base` made sure of every element that `each` can name; `memory` promises that nothing
        // writes there meanwhile. Loads are unaligned ones.
        let load = |index: usize| unsafe {
            match self.dtype.bits() {
                64 => base.add(index * 8).cast::<u64>().read_unaligned(),
                32 => u64::from(base.add(index * 4).cast::<u32>().read_unaligned()),
                16 => u64::from(base.add(index * 2).cast::<u16>().read_unaligned()),
                8 => u64::from(base.add(index).read()),
                _ => u64::from(base.add(index / 2).read() >> (index % 2 * 4) & 15),
            }
        };
        self.each(|index| row.push(decode(load(index))));
        Ok(row)
    }

    /// Stores bits, one element each, in row-major order of the view.
    pub(crate) fn write_bits(&self, memory: &dyn Memory, values: &[u64]) -> Result<(), Fault> {
        self.write_with(memory, values, |bits| bits)
    }

    /// Rounds and stores.
    pub(crate) fn write_f64(&self, memory: &dyn Memory, values: &[f64]) -> Result<(), Fault> {
        let dtype = self.dtype;
        self.write_with(memory, values, |x| dtype.encode(x))
    }

    /// Rounds and stores.
    pub(crate) fn write_f32(&self, memory: &dyn Memory, values: &[f32]) -> Result<(), Fault> {
        let dtype = self.dtype;
        self.write_with(memory, values, |x| dtype.encode(f64::from(x)))
    }

    /// Wraps and stores.
    pub(crate) fn write_i64(&self, memory: &dyn Memory, values: &[i64]) -> Result<(), Fault> {
        let dtype = self.dtype;
        self.write_with(memory, values, |x| dtype.encode_int(x))
    }

    fn write_with<T: Copy>(
        &self,
        memory: &dyn Memory,
        values: &[T],
        encode: impl Fn(T) -> u64,
    ) -> Result<(), Fault> {
        if values.len() != self.numel() {
            let (have, want) = (values.len(), self.numel());
            return Err(Fault::exception(format!("{have} results for a view of {want} elements")));
        }
        let Some(base) = self.base(memory)? else { return Ok(()) };
        let mut values = values.iter();
        self.each(|index| {
            let Some(&value) = values.next() else { return };
            let bits = encode(value);
            // SAFETY: as in `read_with`; operators hold no reference into device memory.
            unsafe {
                match self.dtype.bits() {
                    64 => base.add(index * 8).cast::<u64>().write_unaligned(bits),
                    32 => base.add(index * 4).cast::<u32>().write_unaligned(bits as u32),
                    16 => base.add(index * 2).cast::<u16>().write_unaligned(bits as u16),
                    8 => base.add(index).write(bits as u8),
                    _ => {
                        let (byte, shift) = (base.add(index / 2), index % 2 * 4);
                        byte.write(byte.read() & !(15 << shift) | (bits as u8 & 15) << shift);
                    }
                }
            }
        });
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::cell::UnsafeCell;

    /// Device memory for tests: one block from address 4096 on.
    pub(crate) struct Arena {
        bytes: UnsafeCell<Vec<u8>>,
    }

    pub(crate) const BASE: u64 = 4096;

    impl Arena {
        pub(crate) fn new(bytes: usize) -> Arena {
            Arena { bytes: UnsafeCell::new(vec![0xa5; bytes]) }
        }
    }

    // SAFETY: the block is never moved or freed while the arena lives, ranges are checked, tests have one thread each.
    unsafe impl Memory for Arena {
        fn resolve(&self, address: u64, bytes: usize) -> Result<*mut u8, Fault> {
            // SAFETY: no reference into the block outlives this call.
            let block = unsafe { &mut *self.bytes.get() };
            let start = address.wrapping_sub(BASE) as usize;
            match start.checked_add(bytes) {
                Some(end) if end <= block.len() => Ok(block[start..].as_mut_ptr()),
                _ => Err(Fault::exception(format!("{bytes} bytes at {address:#x} are no device memory"))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Arena, BASE};
    use super::*;

    #[test]
    fn sixteen_bit_floats_round_once_to_nearest_even() {
        // 1 + 2⁻¹¹ is a tie and goes to 1; a last bit of an f64 more goes up, which rounding by way of f32 misses.
        let tie = 1.0 + 2f64.powi(-11);
        assert_eq!(Dtype::F16.encode(tie), 0x3c00);
        assert_eq!(Dtype::F16.encode(tie + 2f64.powi(-40)), 0x3c01);
        assert_eq!(Dtype::F16.encode(65519.0), 0x7bff);
        assert_eq!(Dtype::F16.encode(65520.0), 0x7c00);
        assert_eq!(Dtype::F16.encode(2f64.powi(-25)), 0);
        assert_eq!(Dtype::F16.encode(-1.5 * 2f64.powi(-25)), 0x8001);
        assert_eq!(Dtype::Bf16.encode(1.0 + 2f64.powi(-8)), 0x3f80);
        assert_eq!(Dtype::Bf16.encode(1.0 + 3.0 * 2f64.powi(-8)), 0x3f82);
        assert_eq!(Dtype::Bf16.encode(f64::from(f32::MAX)), 0x7f80);
        for bits in 0..=u16::MAX {
            for dtype in [Dtype::F16, Dtype::Bf16] {
                let value = dtype.decode(u64::from(bits));
                assert!(value.is_nan() || dtype.encode(value) == u64::from(bits), "{dtype:?} {bits:#x}");
            }
        }
    }

    #[test]
    fn integers_saturate_from_floats_and_wrap_from_integers() {
        assert_eq!([300.0, -300.0, -1.9].map(|x| Dtype::I8.encode(x)), [127, 0x80, 0xff]);
        assert_eq!([9.0, -9.0].map(|x| Dtype::I4.decode_int(Dtype::I4.encode(x))), [7, -8]);
        assert_eq!(Dtype::U8.encode_int(257), 1);
        assert_eq!(Dtype::I32.decode_int(Dtype::I32.encode_int(1 << 31)), -(1 << 31));
        assert_eq!((0..16).map(|x| Dtype::I4.decode_int(x)).sum::<i64>(), -8);
        assert!(Dtype::ALL.into_iter().all(|dtype| Dtype::from_code(dtype as i64) == Some(dtype)));
        assert_eq!(Dtype::from_code(34), None);
    }

    #[test]
    fn views_read_what_they_describe() {
        let arena = Arena::new(256);
        let whole = Tensor::contiguous(Dtype::I32, &[3, 4], BASE);
        whole.write_i64(&arena, &(0..12).collect::<Vec<_>>()).unwrap();
        let rows = |view: &Tensor| view.read_i64(&arena).unwrap();
        assert_eq!(rows(&whole.transposed()), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        assert_eq!(rows(&whole.narrow(1, 1, 2, 2)), [1, 3, 5, 7, 9, 11]);
        assert_eq!(rows(&whole.narrow(0, 1, 1, 1).broadcast(&[2, 4]).unwrap()), [4, 5, 6, 7, 4, 5, 6, 7]);
        assert!(rows(&whole.narrow(0, 0, 0, 1)).is_empty());
        assert!(whole.broadcast(&[4, 4]).is_none());
        assert!(whole.is_contiguous() && !whole.transposed().is_contiguous());
        let scalar = Tensor::contiguous(Dtype::I32, &[], BASE + 20);
        assert_eq!(rows(&scalar), [5]);
        assert_eq!(rows(&scalar.broadcast(&[2, 1]).unwrap()), [5, 5]);
    }

    #[test]
    fn four_bit_elements_lie_low_nibble_first() {
        let arena = Arena::new(64);
        let view = Tensor::contiguous(Dtype::I4, &[5], BASE);
        view.write_i64(&arena, &[1, -2, 3, -4, 5]).unwrap();
        let bytes = Tensor::contiguous(Dtype::U8, &[3], BASE).read_i64(&arena).unwrap();
        // The sixth nibble keeps what was there.
        assert_eq!(bytes, [0xe1, 0xc3, 0xa5]);
        assert_eq!(view.narrow(0, 1, 2, 2).read_i64(&arena).unwrap(), [-2, -4]);
    }

    #[test]
    fn fractal_blocks_hold_sixteen_rows_of_32_bytes() {
        let arena = Arena::new(4096);
        let (rows, cols) = (17, 20);
        let mut matrix = Tensor::contiguous(Dtype::F16, &[rows, cols], BASE);
        matrix.format = Format::FractalNz;
        let values: Vec<f64> = (0..rows * cols).map(|i| i as f64).collect();
        matrix.write_f64(&arena, &values).unwrap();
        // Storage [2 column blocks, 2 row blocks, 16, 16].
        let raw = Tensor::contiguous(Dtype::F16, &[2, 2, 16, 16], BASE);
        let at = |index: [usize; 4]| {
            let view = (0..4).fold(raw.clone(), |view, axis| view.narrow(axis, index[axis], 1, 1));
            view.read_f64(&arena).unwrap()[0]
        };
        assert_eq!(at([0, 0, 3, 5]), (3 * cols + 5) as f64);
        assert_eq!(at([1, 0, 3, 2]), (3 * cols + 18) as f64);
        assert_eq!(at([1, 1, 0, 3]), (16 * cols + 19) as f64);
        assert_eq!(matrix.read_f64(&arena).unwrap(), values);
        let turned = matrix.transposed().read_f64(&arena).unwrap();
        assert_eq!(turned[5 * rows + 3], (3 * cols + 5) as f64);
    }

    #[test]
    fn memory_outside_is_refused() {
        let arena = Arena::new(16);
        let fault = Tensor::contiguous(Dtype::F32, &[5], BASE).read_f64(&arena).unwrap_err();
        assert_eq!(fault.status, 507035);
        assert!(fault.message.contains("20 bytes"), "{}", fault.message);
    }
}
