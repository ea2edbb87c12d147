//! The vendor's descriptors as owned values: made when a call needs them, lent to it, destroyed when they go.
//!
//! A descriptor may go as soon as the second phase of its operator has returned, unless the executor is kept: then its
//! descriptors are kept with it. What a descriptor describes is another matter: memory stays valid until the stream has
//! passed, which core's pool sees to.

use crate::driver::Driver;
use crate::product::Product;
use crate::repeat::{Kept, Question, Slot};
use core::cell::Cell;
use portolan_cann_sys::LoadError;
use portolan_cann_sys::bindings::{
    ACL_BF16, ACL_BOOL, ACL_DOUBLE, ACL_FLOAT, ACL_FLOAT4_E2M1, ACL_FLOAT8_E4M3FN, ACL_FLOAT8_E5M2,
    ACL_FLOAT8_E8M0, ACL_FLOAT16, ACL_FORMAT_FRACTAL_NZ, ACL_FORMAT_ND, ACL_INT4, ACL_INT8, ACL_INT16,
    ACL_INT32, ACL_INT64, ACL_UINT8, aclDataType, aclIntArray, aclScalar, aclTensor, aclTensorList,
};
use portolan_ops::{DType, TensorSpec, Unsupported};
use smallvec::SmallVec;
use std::ffi::c_void;

/// The vendor's number of an element type.
pub(crate) fn code(dtype: DType) -> Option<aclDataType> {
    Some(match dtype {
        DType::F64 => ACL_DOUBLE,
        DType::F32 => ACL_FLOAT,
        DType::F16 => ACL_FLOAT16,
        DType::BF16 => ACL_BF16,
        DType::F8E4M3 => ACL_FLOAT8_E4M3FN,
        DType::F8E5M2 => ACL_FLOAT8_E5M2,
        DType::F4E2M1 => ACL_FLOAT4_E2M1,
        DType::E8M0 => ACL_FLOAT8_E8M0,
        DType::I64 => ACL_INT64,
        DType::I32 => ACL_INT32,
        DType::I8 => ACL_INT8,
        DType::U8 => ACL_UINT8,
        DType::I4 => ACL_INT4,
        DType::Bool => ACL_BOOL,
        _ => return None,
    })
}

/// A view as descriptors have it: signed extents and strides, in elements of `dtype` from `address` on.
pub(crate) struct View {
    dtype: aclDataType,
    /// Bits of an element.
    bits: usize,
    dims: SmallVec<[i64; 8]>,
    strides: SmallVec<[i64; 8]>,
    offset: i64,
    /// Elements from the first of the buffer to behind the last of the view.
    end: i64,
    /// Extents of the memory of a matrix in blocks; `None` for elements that lie as the strides say.
    blocks: Option<[i64; 4]>,
}

/// A matrix in the vendor's blocks, FRACTAL_NZ: of 16 rows by 32 bytes, column of blocks after column of blocks, filled up
/// to whole ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) dtype: DType,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl Blocks {
    /// Rows of a block.
    pub(crate) const ROWS: usize = 16;

    /// Columns of a block.
    pub(crate) fn width(self) -> usize {
        256 / self.dtype.bits() as usize
    }

    /// Extents of its memory: columns of blocks, blocks of one, rows and columns of a block.
    pub(crate) fn storage(self) -> [usize; 4] {
        let (rows, width) = (Self::ROWS, self.width());
        [self.columns.div_ceil(width), self.rows.div_ceil(rows), rows, width]
    }
}

impl View {
    /// Elements of their own type.
    pub(crate) fn typed(spec: &TensorSpec) -> Result<Self, Unsupported> {
        let dtype = code(spec.dtype()).ok_or(Unsupported::DType(spec.dtype()))?;
        Ok(Self::of(spec, dtype))
    }

    /// Elements of their own type, the last two dimensions exchanged: also of pairs of elements in a byte, which are no
    /// tensor then.
    pub(crate) fn turned(spec: &TensorSpec) -> Result<Self, Unsupported> {
        let mut view = Self::typed(spec)?;
        if let Some(last) = view.dims.len().checked_sub(1).filter(|last| *last > 0) {
            view.dims.swap(last - 1, last);
            view.strides.swap(last - 1, last);
        }
        Ok(view)
    }

    /// Elements as bits to be moved, in a type that the product moves: what it has no numbers of becomes integers, and
    /// two elements that share a byte become that byte.
    pub(crate) fn bits(spec: &TensorSpec, product: Product) -> Result<Self, Unsupported> {
        let dtype = match spec.dtype() {
            DType::BF16 if product == Product::P310 => ACL_INT16,
            DType::F8E4M3 | DType::F8E5M2 | DType::E8M0 => ACL_UINT8,
            DType::F4E2M1 | DType::I4 | DType::U4 => return Self::bytes(spec, false),
            dtype => code(dtype).ok_or(Unsupported::DType(dtype))?,
        };
        Ok(Self::of(spec, dtype))
    }

    /// The bytes that hold elements of at most 8 bits, as numbers from 0 to 255; the last byte of a row may hold an element
    /// more than there are.
    pub(crate) fn stored(spec: &TensorSpec) -> Result<Self, Unsupported> {
        match spec.dtype().bits() {
            8 => Ok(Self::of(spec, ACL_UINT8)),
            _ => Self::bytes(spec, true),
        }
    }

    /// Pairs of elements as bytes: every row has to be of whole ones, or may be filled up to such.
    fn bytes(spec: &TensorSpec, fills: bool) -> Result<Self, Unsupported> {
        const PAIRS: Unsupported = Unsupported::Shape("rows of 4-bit elements fill whole bytes");
        let mut view = Self::of(spec, ACL_UINT8);
        let inner = view.dims.len().checked_sub(1).ok_or(PAIRS)?;
        let halved = |n: &mut i64| {
            let even = *n % 2 == 0;
            *n /= 2;
            even
        };
        view.dims[inner] += i64::from(fills && view.dims[inner] % 2 == 1);
        let one_byte_apart = view.dims[inner] <= 1 || view.strides[inner] == 1;
        let mut whole = one_byte_apart && halved(&mut view.dims[inner]) && halved(&mut view.offset);
        view.strides[..inner].iter_mut().for_each(|stride| whole &= halved(stride));
        view.strides[inner] = 1;
        (view.end, view.bits) = ((view.end + 1) / 2, 8);
        if whole { Ok(view) } else { Err(PAIRS) }
    }

    fn of(spec: &TensorSpec, dtype: aclDataType) -> Self {
        let signed = |values: &[usize]| values.iter().map(|&n| n as i64).collect();
        let layout = spec.layout();
        let end = layout.end(spec.shape()).unwrap_or(0) as i64;
        Self {
            dtype,
            bits: spec.dtype().bits() as usize,
            dims: signed(spec.dims()),
            strides: signed(layout.strides()),
            offset: layout.offset() as i64,
            end,
            blocks: None,
        }
    }

    /// A matrix in blocks.
    pub(crate) fn blocks(blocks: Blocks) -> Result<Self, Unsupported> {
        let storage = blocks.storage().map(|n| n as i64);
        Ok(Self { blocks: Some(storage), ..Self::to_be_blocks(blocks)? })
    }

    /// The same matrix in rows, at the beginning of memory that its blocks have room in.
    pub(crate) fn to_be_blocks(blocks: Blocks) -> Result<Self, Unsupported> {
        const HUGE: Unsupported = Unsupported::Shape("more blocks than there are addresses");
        let spec = TensorSpec::of(blocks.dtype, &[blocks.rows, blocks.columns]).map_err(|_| HUGE)?;
        let end = blocks.storage().iter().try_fold(1i64, |all, &n| all.checked_mul(n as i64)).ok_or(HUGE)?;
        Ok(Self { end, ..Self::typed(&spec)? })
    }

    /// The same view of the memory from its own first element on, where an address may be: views of one kind that begin at
    /// different places are one view at different addresses, for which an executor is planned once.
    fn begun(self, address: usize) -> (Self, usize) {
        let offset = usize::try_from(self.offset).unwrap_or(0);
        let whole = (offset * self.bits).is_multiple_of(8 * ALIGNMENT);
        if !whole || self.end < self.offset {
            return (self, address);
        }
        let end = self.end - self.offset;
        (Self { offset: 0, end, ..self }, address + offset * self.bits / 8)
    }
}

/// What addresses of tensors are multiples of.
const ALIGNMENT: usize = 32;

/// A descriptor's own, once it was made; destroyed with this value.
struct Made<'a, R> {
    driver: &'a Driver,
    raw: Cell<*mut R>,
    destroy: fn(&Driver, *mut c_void),
}

impl<'a, R> Made<'a, R> {
    fn not_yet(driver: &'a Driver, destroy: fn(&Driver, *mut c_void)) -> Self {
        Self { driver, raw: Cell::new(core::ptr::null_mut()), destroy }
    }

    /// Makes it by `create`, unless it is there.
    fn make(
        &self,
        function: &'static str,
        create: impl FnOnce() -> Result<*mut R, NotMade>,
    ) -> Result<(), NotMade> {
        if self.raw.get().is_null() {
            let raw = create()?;
            if raw.is_null() {
                return Err(NotMade::Refused(function));
            }
            self.raw.set(raw);
        }
        Ok(())
    }

    /// Gives it away, once.
    fn keep(&self, kept: &mut Vec<Kept>) {
        let raw = self.raw.replace(core::ptr::null_mut());
        kept.extend((!raw.is_null()).then_some(Kept { raw: raw.cast(), destroy: self.destroy }));
    }
}

impl<R> Drop for Made<'_, R> {
    fn drop(&mut self) {
        if !self.raw.get().is_null() {
            (self.destroy)(self.driver, self.raw.get().cast());
        }
    }
}

macro_rules! descriptors {
    ($( $(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty),* }, $raw:ty, $destroy:ident; )*) => {$(
        $(#[$doc])*
        pub(crate) struct $name<'a> {
            $($field: $ty,)*
            made: Made<'a, $raw>,
        }

        impl<'a> $name<'a> {
            fn new(driver: &'a Driver, $($field: $ty),*) -> Self {
                fn destroy(driver: &Driver, raw: *mut c_void) {
                    // Nobody is left to be told of a driver that has this symbol no more.
                    if let Ok(destroy) = driver.libraries.descriptors.$destroy() {
                        // SAFETY: made by this driver, owned by whoever calls this alone, and destroyed once.
                        unsafe { destroy(raw.cast()) };
                    }
                }
                Self { $($field,)* made: Made::not_yet(driver, destroy) }
            }
        }

        impl Arg<*const $raw> for $name<'_> {
            fn raw(&self) -> *const $raw {
                self.made.raw.get()
            }
        }

        impl Arg<*mut $raw> for $name<'_> {
            fn raw(&self) -> *mut $raw {
                self.made.raw.get()
            }
        }
    )*};
}

descriptors! {
    /// A tensor's descriptor.
    AclTensor { view: View, address: usize }, aclTensor, aclDestroyTensor;
    /// A number, by its bytes.
    AclScalar { bytes: [u8; 8], dtype: aclDataType }, aclScalar, aclDestroyScalar;
    /// Numbers that the host hands over.
    AclInts { values: SmallVec<[i64; 8]> }, aclIntArray, aclDestroyIntArray;
    /// Several tensors; the driver's list owns its members' descriptors.
    AclTensors { members: Vec<AclTensor<'a>> }, aclTensorList, aclDestroyTensorList;
}

/// Why there is no descriptor.
pub(crate) enum NotMade {
    /// The driver has no such function.
    Missing(LoadError),
    /// The driver gave none.
    Refused(&'static str),
}

impl From<LoadError> for NotMade {
    fn from(missing: LoadError) -> Self {
        NotMade::Missing(missing)
    }
}

impl Driver {
    /// A descriptor of the view of the memory at `address`.
    pub(crate) fn tensor(&self, view: View, address: usize) -> AclTensor<'_> {
        let (view, address) = view.begun(address);
        AclTensor::new(self, view, address)
    }

    /// A number of a type of as many bytes.
    pub(crate) fn scalar<const N: usize>(&self, value: [u8; N], dtype: aclDataType) -> AclScalar<'_> {
        const { assert!(N <= 8) };
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(&value);
        AclScalar::new(self, bytes, dtype)
    }

    /// Numbers.
    pub(crate) fn ints(&self, values: &[i64]) -> AclInts<'_> {
        AclInts::new(self, values.into())
    }

    /// A list that takes its members over.
    pub(crate) fn tensors<'a>(&'a self, members: Vec<AclTensor<'a>>) -> AclTensors<'a> {
        AclTensors::new(self, members)
    }
}

/// An argument of an operator's first phase, whatever its type.
pub(crate) trait Argument {
    /// Says what an executor planned with this argument is planned for.
    fn describe(&self, question: &mut Question);

    /// Makes the descriptor, unless it is there.
    fn make(&self) -> Result<(), NotMade> {
        Ok(())
    }

    /// Whether it is one of the operator's tensors, or lists of them: those are counted, also where they are left out.
    fn is_operand(&self) -> bool {
        false
    }

    /// What of it may lie elsewhere at another launch, as the operand of that number.
    fn slots(&self, _operand: usize, _slots: &mut Vec<Slot>) {}

    /// Gives its descriptor away: to whoever keeps the executor.
    fn keep(&self, _kept: &mut Vec<Kept>) {}
}

/// Whether descriptors of a type are operands.
pub(crate) trait Operand {
    /// See [`Argument::is_operand`].
    const IS_OPERAND: bool;
}

impl AclTensor<'_> {
    fn describe_view(&self, question: &mut Question) {
        let View { dtype, dims, strides, offset, end, blocks, .. } = &self.view;
        question.add(
            u64::from(dtype.cast_unsigned()) << 32 | dims.len() as u64 | u64::from(blocks.is_some()) << 16,
        );
        dims.iter().chain(strides).chain([offset, end]).for_each(|&n| question.add(n.cast_unsigned()));
        question.tensor(core::ptr::from_ref(self).addr(), self.address);
    }
}

impl Argument for AclTensor<'_> {
    fn describe(&self, question: &mut Question) {
        self.describe_view(question);
    }

    fn make(&self) -> Result<(), NotMade> {
        self.made.make("aclCreateTensor", || {
            let create = self.made.driver.libraries.descriptors.aclCreateTensor()?;
            let View { dtype, dims, strides, offset, end, blocks, .. } = &self.view;
            let rank = dims.len() as u64;
            let data = core::ptr::without_provenance_mut(self.address);
            let (dims, strides) = (dims.as_ptr(), strides.as_ptr());
            let (format, storage) = match blocks {
                Some(blocks) => (ACL_FORMAT_FRACTAL_NZ, blocks.as_slice()),
                None => (ACL_FORMAT_ND, core::slice::from_ref(end)),
            };
            let (memory, memory_rank) = (storage.as_ptr(), storage.len() as u64);
            // SAFETY: arrays as long as is said, which are copied; the device memory is not touched here.
            Ok(unsafe { create(dims, rank, *dtype, strides, *offset, format, memory, memory_rank, data) })
        })
    }

    fn is_operand(&self) -> bool {
        true
    }

    fn slots(&self, operand: usize, slots: &mut Vec<Slot>) {
        slots.push(Slot::Tensor { operand, tensor: self.raw(), address: self.address });
    }

    fn keep(&self, kept: &mut Vec<Kept>) {
        self.made.keep(kept);
    }
}

impl Operand for AclTensor<'_> {
    const IS_OPERAND: bool = true;
}

impl Argument for AclTensors<'_> {
    fn describe(&self, question: &mut Question) {
        question.add(self.members.len() as u64);
        self.members.iter().for_each(|member| member.describe_view(question));
    }

    fn make(&self) -> Result<(), NotMade> {
        self.made.make("aclCreateTensorList", || {
            self.members.iter().try_for_each(Argument::make)?;
            let create = self.made.driver.libraries.descriptors.aclCreateTensorList()?;
            let raws: SmallVec<[*const aclTensor; 4]> = self.members.iter().map(Arg::raw).collect();
            // SAFETY: so many living descriptors.
            let list = unsafe { create(raws.as_ptr(), raws.len() as u64) };
            if !list.is_null() {
                // Destroying the list destroys them.
                self.members.iter().for_each(|member| member.made.raw.set(core::ptr::null_mut()));
            }
            Ok(list)
        })
    }

    fn is_operand(&self) -> bool {
        true
    }

    fn slots(&self, operand: usize, slots: &mut Vec<Slot>) {
        slots.extend(self.members.iter().enumerate().map(|(member, tensor)| Slot::Member {
            operand,
            member,
            list: self.raw(),
            address: tensor.address,
        }));
    }

    fn keep(&self, kept: &mut Vec<Kept>) {
        self.made.keep(kept);
    }
}

impl Operand for AclTensors<'_> {
    const IS_OPERAND: bool = true;
}

impl Argument for AclScalar<'_> {
    fn describe(&self, question: &mut Question) {
        question.add(u64::from(self.dtype.cast_unsigned()));
        question.add(u64::from_le_bytes(self.bytes));
    }

    fn make(&self) -> Result<(), NotMade> {
        self.made.make("aclCreateScalar", || {
            let create = self.made.driver.libraries.descriptors.aclCreateScalar()?;
            let mut bytes = self.bytes;
            // SAFETY: a value of the type's size, which is copied.
            Ok(unsafe { create(bytes.as_mut_ptr().cast(), self.dtype) })
        })
    }

    fn keep(&self, kept: &mut Vec<Kept>) {
        self.made.keep(kept);
    }
}

impl Argument for AclInts<'_> {
    fn describe(&self, question: &mut Question) {
        question.add(self.values.len() as u64);
        self.values.iter().for_each(|&value| question.add(value.cast_unsigned()));
    }

    fn make(&self) -> Result<(), NotMade> {
        self.made.make("aclCreateIntArray", || {
            let create = self.made.driver.libraries.descriptors.aclCreateIntArray()?;
            // SAFETY: so many numbers, which are copied.
            Ok(unsafe { create(self.values.as_ptr(), self.values.len() as u64) })
        })
    }

    fn keep(&self, kept: &mut Vec<Kept>) {
        self.made.keep(kept);
    }
}

impl Operand for AclInts<'_> {
    const IS_OPERAND: bool = false;
}

impl<A: Argument> Argument for &A {
    fn describe(&self, question: &mut Question) {
        (**self).describe(question);
    }

    fn make(&self) -> Result<(), NotMade> {
        (**self).make()
    }

    fn is_operand(&self) -> bool {
        (**self).is_operand()
    }

    fn slots(&self, operand: usize, slots: &mut Vec<Slot>) {
        (**self).slots(operand, slots);
    }

    fn keep(&self, kept: &mut Vec<Kept>) {
        (**self).keep(kept);
    }
}

impl<A: Operand> Operand for &A {
    const IS_OPERAND: bool = A::IS_OPERAND;
}

impl<A: Argument + Operand> Argument for Option<A> {
    fn describe(&self, question: &mut Question) {
        question.add(u64::from(self.is_some()));
        self.iter().for_each(|given| given.describe(question));
    }

    fn make(&self) -> Result<(), NotMade> {
        self.iter().try_for_each(Argument::make)
    }

    fn is_operand(&self) -> bool {
        A::IS_OPERAND
    }

    fn slots(&self, operand: usize, slots: &mut Vec<Slot>) {
        self.iter().for_each(|given| given.slots(operand, slots));
    }

    fn keep(&self, kept: &mut Vec<Kept>) {
        self.iter().for_each(|given| given.keep(kept));
    }
}

impl Argument for &core::ffi::CStr {
    fn describe(&self, question: &mut Question) {
        let bytes = self.to_bytes();
        question.add(bytes.len() as u64);
        bytes.iter().for_each(|&byte| question.add(byte.into()));
    }
}

/// What an argument of an operator's first phase becomes in C.
pub(crate) trait Arg<C> {
    /// The C value; it may be used while `self` lives. A descriptor's is NULL until it was made.
    fn raw(&self) -> C;
}

impl<C, A: Arg<C>> Arg<C> for &A {
    fn raw(&self) -> C {
        (**self).raw()
    }
}

/// Pointers have a null.
pub(crate) trait Nullable {
    /// It.
    const NULL: Self;
}

impl<T> Nullable for *const T {
    const NULL: Self = core::ptr::null();
}

impl<T> Nullable for *mut T {
    const NULL: Self = core::ptr::null_mut();
}

impl<C: Nullable, A: Arg<C>> Arg<C> for Option<A> {
    fn raw(&self) -> C {
        self.as_ref().map_or(C::NULL, Arg::raw)
    }
}

/// An optional argument that is left out.
pub(crate) const NONE: Option<AclTensor<'static>> = None;

impl Arg<*mut core::ffi::c_char> for &core::ffi::CStr {
    fn raw(&self) -> *mut core::ffi::c_char {
        self.as_ptr().cast_mut()
    }
}

impl Arg<*const core::ffi::c_char> for &core::ffi::CStr {
    fn raw(&self) -> *const core::ffi::c_char {
        self.as_ptr()
    }
}

macro_rules! plain {
    ($($ty:ty, |$value:ident| $bits:expr;)*) => {$(
        impl Arg<$ty> for $ty {
            fn raw(&self) -> $ty {
                *self
            }
        }

        impl Argument for $ty {
            fn describe(&self, question: &mut Question) {
                let $value = *self;
                question.add($bits);
            }
        }
    )*};
}
plain! {
    i8, |value| i64::from(value).cast_unsigned();
    i32, |value| i64::from(value).cast_unsigned();
    i64, |value| value.cast_unsigned();
    u64, |value| value;
    f64, |value| value.to_bits();
    bool, |value| value.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(dtype: DType, dims: &[usize]) -> TensorSpec {
        TensorSpec::of(dtype, dims).unwrap()
    }

    #[test]
    fn pairs_of_small_elements_are_moved_as_bytes() {
        let wide = spec(DType::I4, &[6, 54]);
        let window = wide.narrow(1, 2, 36).unwrap().narrow(0, 1, 4).unwrap();
        let view = View::bits(&window, Product::A3).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!((view.dims.as_slice(), view.strides.as_slice()), (&[4, 18][..], &[27, 1][..]));
        assert_eq!((view.offset, view.dtype), (28, ACL_UINT8));
        for cut in [wide.narrow(1, 0, 35).unwrap(), spec(DType::U4, &[7]), spec(DType::U4, &[])] {
            assert!(View::bits(&cut, Product::A3).is_err(), "{cut}");
        }
    }

    #[test]
    fn views_begin_where_an_address_may_be() {
        let whole = spec(DType::BF16, &[4, 24]);
        let begun = |row: usize, column: usize| {
            let part = whole.narrow(0, row, 1).unwrap().narrow(1, column, 8).unwrap();
            let view = View::typed(&part).unwrap_or_else(|why| panic!("{why}"));
            let (view, address) = view.begun(4096);
            (view.offset, view.end, address)
        };
        // 16 elements are 32 bytes.
        assert_eq!(begun(2, 16), (0, 8, 4096 + 128));
        assert_eq!(begun(0, 0), (0, 8, 4096));
        assert_eq!(begun(1, 0), (24, 32, 4096));
        let empty = spec(DType::F32, &[8, 0]).narrow(0, 8, 0).unwrap();
        assert_eq!(View::typed(&empty).unwrap_or_else(|why| panic!("{why}")).begun(64).1, 64);
    }

    #[test]
    fn pairs_of_small_elements_can_be_turned() {
        let view = View::turned(&spec(DType::I4, &[3, 6, 64])).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!((view.dims.as_slice(), view.strides.as_slice()), (&[3, 64, 6][..], &[384, 1, 64][..]));
        let flat = View::turned(&spec(DType::I4, &[8])).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(flat.dims.as_slice(), &[8]);
    }

    #[test]
    fn numbers_that_a_product_does_not_have_are_moved_as_integers() {
        let bf16 = spec(DType::BF16, &[3]);
        let moved = |product| View::bits(&bf16, product).map(|view| view.dtype);
        assert_eq!((moved(Product::P310), moved(Product::A2)), (Ok(ACL_INT16), Ok(ACL_BF16)));
        assert_eq!(View::typed(&spec(DType::U4, &[2])).err(), Some(Unsupported::DType(DType::U4)));
    }
}
