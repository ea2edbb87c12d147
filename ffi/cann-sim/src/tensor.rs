//! Descriptors: what a program tells operators about its data.
//!
//! A handle is a number that no process maps and that is never given out twice, so using a destroyed descriptor is
//! always seen and named.

use crate::error::{Fail, Result, code};
use crate::view::Dtype;
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// `aclFormat`: ND.
pub(crate) const ND: i32 = 2;
/// `aclFormat`: FRACTAL_NZ.
pub(crate) const FRACTAL_NZ: i32 = 29;

/// A tensor's descriptor. Clones are the same tensor.
#[derive(Clone, Debug)]
pub(crate) struct Tensor(Arc<TensorInner>);

#[derive(Debug)]
struct TensorInner {
    dtype: Dtype,
    format: i32,
    shape: Vec<i64>,
    strides: Vec<i64>,
    offset: i64,
    storage: Vec<i64>,
    address: AtomicUsize,
    destroyed: AtomicBool,
    /// The extents that a result turned out to have, where they depend on data.
    found: Mutex<Option<Vec<i64>>>,
}

/// The row-major strides of a shape, in elements.
fn row_major(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1i64; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i].max(1));
    }
    strides
}

impl Tensor {
    /// A descriptor, checked as far as that needs no operator.
    pub(crate) fn new(
        dtype: i32,
        format: i32,
        shape: &[i64],
        strides: Option<&[i64]>,
        offset: i64,
        storage: &[i64],
        address: usize,
    ) -> Result<Self> {
        let dtype = Dtype::from_code(i64::from(dtype))
            .ok_or_else(|| Fail::invalid(format!("aclDataType {dtype} is not one of a tensor's")))?;
        let strides = strides.map_or_else(|| row_major(shape), <[i64]>::to_vec);
        if let Some(bad) = shape.iter().chain(storage).chain(&strides).chain([&offset]).find(|&&n| n < 0) {
            return Err(Fail::invalid(format!(
                "a tensor of shape {shape:?}, strides {strides:?}, offset {offset}, storage {storage:?}: {bad} is negative"
            )));
        }
        if strides.len() != shape.len() {
            return Err(Fail::invalid(format!("strides {strides:?} do not fit a shape {shape:?}")));
        }
        let (shape, storage) = (shape.to_vec(), storage.to_vec());
        let (address, destroyed) = (AtomicUsize::new(address), AtomicBool::new(false));
        Ok(Self(Arc::new(TensorInner {
            dtype,
            format,
            shape,
            strides,
            offset,
            storage,
            address,
            destroyed,
            found: Mutex::new(None),
        })))
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.0.dtype
    }
    /// `aclFormat`.
    pub(crate) fn format(&self) -> i32 {
        self.0.format
    }
    /// Extents of the view, outermost first.
    pub(crate) fn shape(&self) -> &[i64] {
        &self.0.shape
    }
    /// Extents as a program that asks is told: those that a result turned out to have, once it was computed.
    pub(crate) fn found_shape(&self) -> Vec<i64> {
        let found = self.0.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.clone().unwrap_or_else(|| self.0.shape.clone())
    }
    pub(crate) fn set_found_shape(&self, shape: Vec<i64>) {
        *self.0.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(shape);
    }
    /// Elements from one index to the next, for each extent.
    pub(crate) fn strides(&self) -> &[i64] {
        &self.0.strides
    }
    /// Elements from the storage's first to the view's first.
    pub(crate) fn offset(&self) -> i64 {
        self.0.offset
    }
    /// Extents of the allocation behind the view.
    pub(crate) fn storage_shape(&self) -> &[i64] {
        &self.0.storage
    }
    /// Elements of the view.
    pub(crate) fn numel(&self) -> i64 {
        self.shape().iter().product()
    }
    /// Whether the view's elements lie one behind the other, in order.
    pub(crate) fn is_contiguous(&self) -> bool {
        let dense = row_major(self.shape());
        self.numel() == 0
            || (0..self.shape().len()).all(|i| self.shape()[i] == 1 || self.strides()[i] == dense[i])
    }
    /// Where the storage begins on the device; 0 while nobody has said.
    pub(crate) fn address(&self) -> usize {
        self.0.address.load(Ordering::Relaxed)
    }
    pub(crate) fn set_address(&self, address: usize) {
        self.0.address.store(address, Ordering::Relaxed);
    }
    /// Whether its handle is gone; an executor may have kept the tensor.
    pub(crate) fn is_destroyed(&self) -> bool {
        self.0.destroyed.load(Ordering::Relaxed)
    }
    /// Whether both are one descriptor.
    pub(crate) fn same(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Elements of the view's matrices in whole blocks of 16 rows by 32 bytes; the blocks are those of the transpose
    /// where the view is one.
    fn fractal_elements(&self) -> i128 {
        let [batches @ .., rows, cols] = self.shape() else { return 0 };
        let turned = matches!(self.strides(), [.., 1, lower] if *lower != 1);
        let (rows, cols) = if turned { (*cols, *rows) } else { (*rows, *cols) };
        let whole = |n: i64, of: i64| i128::from(n + of - 1) / i128::from(of) * i128::from(of);
        let width = 256 / self.dtype().bits() as i64;
        batches.iter().map(|&n| i128::from(n)).product::<i128>() * whole(rows, 16) * whole(cols, width)
    }

    /// The same memory as fractal blocks, for operators that rewrite it so.
    pub(crate) fn in_blocks(&self) -> Self {
        let inner = TensorInner {
            dtype: self.0.dtype,
            format: FRACTAL_NZ,
            shape: self.0.shape.clone(),
            strides: self.0.strides.clone(),
            offset: self.0.offset,
            storage: self.0.storage.clone(),
            address: AtomicUsize::new(self.address()),
            destroyed: AtomicBool::new(false),
            found: Mutex::new(None),
        };
        Self(Arc::new(inner))
    }

    /// Bytes from the storage's first element to behind the last one that the view or the storage has.
    pub(crate) fn span_bytes(&self) -> Result<usize> {
        let storage: i128 = self.storage_shape().iter().map(|&n| i128::from(n)).product();
        let reach = self.shape().iter().zip(self.strides()).map(|(&n, &s)| i128::from(n - 1) * i128::from(s));
        let view = match self.numel() {
            0 => 0,
            _ if self.format() == FRACTAL_NZ => i128::from(self.offset()) + self.fractal_elements(),
            _ => i128::from(self.offset()) + reach.sum::<i128>() + 1,
        };
        let bits = storage.max(view) * self.dtype().bits() as i128;
        usize::try_from((bits + 7) / 8)
            .map_err(|_| Fail::invalid(format!("{self} has more bytes than memory has addresses")))
    }
}

impl core::fmt::Display for Tensor {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} {:?}", self.dtype().name(), self.shape())?;
        if !self.is_contiguous() || self.offset() != 0 {
            write!(f, " strides {:?} offset {}", self.strides(), self.offset())?;
        }
        if self.format() != ND {
            write!(f, " format {}", self.format())?;
        }
        Ok(())
    }
}

/// A host value with a type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar {
    dtype: Dtype,
    bytes: [u8; 16],
}

impl Scalar {
    pub(crate) fn new(dtype: i32, bytes: [u8; 16]) -> Result<Self> {
        match Dtype::from_code(i64::from(dtype)) {
            Some(dtype) if dtype.bits() >= 8 => Ok(Self { dtype, bytes }),
            _ => Err(Fail::invalid(format!("aclDataType {dtype} is not one of a scalar's"))),
        }
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The value's own bytes, as many as its type has.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.dtype.bits() / 8]
    }

    /// Type and bits of a real number; `None` for types that are none.
    pub(crate) fn bits(&self) -> Option<(Dtype, u64)> {
        let mut bits = [0; 8];
        let dtype = Some(self.dtype).filter(|dtype| dtype.is_simulated())?;
        bits[..self.bytes().len()].copy_from_slice(self.bytes());
        Some((dtype, u64::from_le_bytes(bits)))
    }
}

/// Anything with a handle.
#[derive(Clone, Debug)]
pub(crate) enum Descriptor {
    Tensor(Tensor),
    Scalar(Arc<Scalar>),
    IntArray(Arc<[i64]>),
    FloatArray(Arc<[f32]>),
    BoolArray(Arc<[bool]>),
    TensorList(Arc<[(usize, Tensor)]>),
    ScalarList(Arc<[(usize, Arc<Scalar>)]>),
    Executor(Arc<crate::executor::Executor>),
}

impl Descriptor {
    /// As the vendor's headers call it.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Tensor(_) => "aclTensor",
            Self::Scalar(_) => "aclScalar",
            Self::IntArray(_) => "aclIntArray",
            Self::FloatArray(_) => "aclFloatArray",
            Self::BoolArray(_) => "aclBoolArray",
            Self::TensorList(_) => "aclTensorList",
            Self::ScalarList(_) => "aclScalarList",
            Self::Executor(_) => "aclOpExecutor",
        }
    }
}

/// Every descriptor that is alive.
#[derive(Default)]
struct Table {
    alive: HashMap<usize, Descriptor>,
    made: usize,
    /// The latest executors whose one launch used them up, and what they were planned for.
    spent: BTreeMap<usize, &'static str>,
}

/// How many spent executors are remembered.
const REMEMBERED: usize = 4096;

static TABLE: Mutex<Option<Table>> = Mutex::new(None);

/// Handles are odd multiples of 8 in a range that user space never has: following one faults at once.
const FIRST_HANDLE: usize = 0x5ca1_0000_0000_0008;

fn with_table<R>(f: impl FnOnce(&mut Table) -> R) -> R {
    f(TABLE.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// Gives a descriptor a handle.
pub(crate) fn register(descriptor: Descriptor) -> *mut c_void {
    with_table(|table| {
        let handle = FIRST_HANDLE + table.made * 16;
        table.made += 1;
        table.alive.insert(handle, descriptor);
        core::ptr::without_provenance_mut(handle)
    })
}

/// The descriptor with a handle.
pub(crate) fn lookup<T>(handle: *const T) -> Result<Descriptor> {
    with_table(|table| match table.alive.get(&handle.addr()) {
        Some(descriptor) => Ok(descriptor.clone()),
        None => Err(table.explain(handle.addr())),
    })
}

impl Table {
    fn explain(&self, handle: usize) -> Fail {
        if let Some(name) = self.spent.get(&handle) {
            let text = format!("executor {handle:#x} of {name} has been launched, and is good for once");
            return Fail::new(
                code::ACLNN_EXECUTOR_NOT_HANDED_OVER,
                format!("{text}; plan anew for every launch"),
            );
        }
        let made = handle.checked_sub(FIRST_HANDLE).filter(|n| n % 16 == 0 && n / 16 < self.made);
        Fail::invalid(match made {
            Some(n) => format!("descriptor {handle:#x} (number {}) was destroyed before this call", n / 16),
            None => format!("{handle:#x} is no descriptor that this driver made"),
        })
    }
}

/// Takes a descriptor out of the table.
pub(crate) fn unregister<T>(handle: *const T) -> Result<Descriptor> {
    let gone = with_table(|table| {
        let gone = table.alive.remove(&handle.addr()).ok_or_else(|| table.explain(handle.addr()))?;
        if let Descriptor::Executor(executor) = &gone
            && !executor.is_repeatable()
        {
            table.spent.insert(handle.addr(), executor.name);
            if table.spent.len() > REMEMBERED {
                table.spent.pop_first();
            }
        }
        Ok(gone)
    })?;
    if let Descriptor::Tensor(tensor) = &gone {
        tensor.0.destroyed.store(true, Ordering::Relaxed);
    }
    Ok(gone)
}

/// Puts another descriptor behind a living handle.
pub(crate) fn replace<T>(handle: *const T, descriptor: Descriptor) -> Result {
    with_table(|table| match table.alive.get_mut(&handle.addr()) {
        Some(old) => {
            *old = descriptor;
            Ok(())
        }
        None => Err(table.explain(handle.addr())),
    })
}

/// How many descriptors of each type are alive, in order of type names.
pub(crate) fn census() -> Vec<(&'static str, usize)> {
    let mut counts = std::collections::BTreeMap::new();
    with_table(|table| {
        for descriptor in table.alive.values() {
            *counts.entry(descriptor.type_name()).or_insert(0) += 1;
        }
    });
    counts.into_iter().collect()
}
