//! Tensors as operators see them: an element type, a strided view and a device address.
//!
//! Operators read a view whole into a contiguous row, compute on rows, and write rows back. Strides, broadcasting,
//! packed 4-bit elements and the fractal layout are dealt with here and nowhere else.

mod dtype;

use crate::error::code;
pub(crate) use dtype::Dtype;
use dtype::half_value;

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
        Fault { status: code::RT_VECTOR_CORE_EXCEPTION, message: message.into() }
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

    /// A result turned out to have this shape, of those that its tensor has room for.
    fn found_shape(&self, _address: u64, _shape: &[usize]) {}
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
    #[cfg(test)]
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

    /// Gives every element's index, in units of elements from `address`, in row-major order of the view: as runs of the
    /// first one's, the distance to the next one's, and how many there are.
    fn each(&self, mut visit: impl FnMut(usize, usize, usize)) {
        if self.format == Format::FractalNz {
            return self.each_of_blocks(|index| visit(index, 0, 1));
        }
        if self.numel() == 0 {
            return;
        }
        let mut dims = self.merged();
        let (inner, step) = dims.pop().unwrap_or((1, 0));
        let mut index = vec![0; dims.len()];
        let mut base = self.offset;
        loop {
            visit(base, step, inner);
            let mut axis = dims.len();
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                let (size, stride) = dims[axis];
                index[axis] += 1;
                base += stride;
                if index[axis] < size {
                    break;
                }
                base -= size * stride;
                index[axis] = 0;
            }
        }
    }

    /// Sizes and strides, where neighbouring dimensions that are one in memory are one.
    fn merged(&self) -> Vec<(usize, usize)> {
        let mut dims: Vec<(usize, usize)> = Vec::with_capacity(self.rank());
        for (&size, &stride) in self.shape.iter().zip(&self.strides).filter(|&(&size, _)| size != 1) {
            match dims.last_mut() {
                Some(outer) if outer.1 == size * stride => *outer = (outer.0 * size, stride),
                _ => dims.push((size, stride)),
            }
        }
        dims
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
        match self.dtype {
            Dtype::I32 => self.read_with(memory, |bits| i64::from(bits as i32)),
            Dtype::I64 => self.read_with(memory, |bits| bits as i64),
            Dtype::U8 => self.read_with(memory, |bits| i64::from(bits as u8)),
            dtype => self.read_with(memory, |bits| dtype.decode_int(bits)),
        }
    }

    fn read_with<T>(&self, memory: &dyn Memory, decode: impl Fn(u64) -> T) -> Result<Vec<T>, Fault> {
        let Some(base) = self.base(memory)? else { return Ok(Vec::new()) };
        // SAFETY: `base` made sure of every element that `each` can name; `memory` promises that nothing writes there
        // meanwhile.
        unsafe {
            match self.dtype.bits() {
                64 => Ok(self.read_words::<u64, T>(base, decode)),
                32 => Ok(self.read_words::<u32, T>(base, decode)),
                16 => Ok(self.read_words::<u16, T>(base, decode)),
                8 => Ok(self.read_words::<u8, T>(base, decode)),
                _ => {
                    let mut row = Vec::with_capacity(self.numel());
                    self.each(|first, step, count| {
                        row.extend((0..count).map(|i| first + i * step).map(|index| {
                            decode(u64::from(base.add(index / 2).read() >> (index % 2 * 4) & 15))
                        }));
                    });
                    Ok(row)
                }
            }
        }
    }

    /// Every element, of a word each.
    ///
    /// # Safety
    /// Elements that `each` names lie behind `base`, and nothing writes there meanwhile.
    unsafe fn read_words<W: Copy + Into<u64>, T>(
        &self,
        base: *const u8,
        decode: impl Fn(u64) -> T,
    ) -> Vec<T> {
        // SAFETY: as the caller says. Loads are unaligned ones.
        let load = |index: usize| unsafe { decode(base.cast::<W>().add(index).read_unaligned().into()) };
        let mut row = Vec::with_capacity(self.numel());
        if let &[(rows, 1), (columns, stride)] = self.merged().as_slice()
            && self.format == Format::Nd
            && stride > 1
        {
            // The transpose of rows in memory: a few of them at a time, so that what the cache got is used.
            let place = row.spare_capacity_mut();
            for first in (0..columns).step_by(TURNED_AT_ONCE) {
                for i in 0..rows {
                    for j in first..columns.min(first + TURNED_AT_ONCE) {
                        place[i * columns + j].write(load(self.offset + i + j * stride));
                    }
                }
            }
            // SAFETY: all of the view's elements were written.
            unsafe { row.set_len(rows * columns) };
            return row;
        }
        self.each(|first, step, count| match step {
            // Apart, so that the compiler knows where the next one is.
            1 => row.extend((first..first + count).map(load)),
            _ => row.extend((0..count).map(|i| load(first + i * step))),
        });
        row
    }

    /// Stores bits, one element each, in row-major order of the view.
    pub(crate) fn write_bits(&self, memory: &dyn Memory, values: &[u64]) -> Result<(), Fault> {
        self.write_with(memory, values, |bits| bits)
    }

    /// Rounds and stores.
    pub(crate) fn write_f64(&self, memory: &dyn Memory, values: &[f64]) -> Result<(), Fault> {
        match self.dtype {
            Dtype::F32 => self.write_with(memory, values, |x| u64::from((x as f32).to_bits())),
            dtype => self.write_with(memory, values, |x| dtype.encode(x)),
        }
    }

    /// Rounds and stores.
    pub(crate) fn write_f32(&self, memory: &dyn Memory, values: &[f32]) -> Result<(), Fault> {
        match self.dtype {
            Dtype::F32 => self.write_with(memory, values, |x| u64::from(x.to_bits())),
            dtype => self.write_with(memory, values, |x| dtype.encode(f64::from(x))),
        }
    }

    /// Wraps and stores.
    pub(crate) fn write_i64(&self, memory: &dyn Memory, values: &[i64]) -> Result<(), Fault> {
        match self.dtype {
            Dtype::I32 | Dtype::I64 => self.write_with(memory, values, |x| x as u64),
            dtype => self.write_with(memory, values, |x| dtype.encode_int(x)),
        }
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
        // SAFETY: as in `read_with`; operators hold no reference into device memory.
        unsafe {
            match self.dtype.bits() {
                64 => self.write_words(base, values, encode),
                32 => self.write_words(base, values, |x| encode(x) as u32),
                16 => self.write_words(base, values, |x| encode(x) as u16),
                8 => self.write_words(base, values, |x| encode(x) as u8),
                _ => {
                    let mut values = values.iter();
                    self.each(|first, step, count| {
                        for (i, &value) in values.by_ref().take(count).enumerate() {
                            let index = first + i * step;
                            let (byte, shift) = (base.add(index / 2), index % 2 * 4);
                            byte.write(byte.read() & !(15 << shift) | (encode(value) as u8 & 15) << shift);
                        }
                    });
                }
            }
        }
        Ok(())
    }

    /// Stores every element, of a word each.
    ///
    /// # Safety
    /// Elements that `each` names lie behind `base`, and nothing else touches them meanwhile.
    unsafe fn write_words<W, T: Copy>(&self, base: *mut u8, values: &[T], word: impl Fn(T) -> W) {
        let mut rest = values;
        self.each(|first, step, count| {
            let (run, others) = rest.split_at(count);
            rest = others;
            for (i, &value) in run.iter().enumerate() {
                // SAFETY: as the caller says. Stores are unaligned ones.
                unsafe { base.cast::<W>().add(first + i * step).write_unaligned(word(value)) };
            }
        });
    }
}

/// Rows that are read at once where their transpose is asked for.
const TURNED_AT_ONCE: usize = 16;

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
mod tests;
