//! The vendor's descriptors as owned values: made, lent to a call, destroyed when they go.
//!
//! A descriptor may go as soon as the second phase of its operator has returned. What it describes is another matter:
//! memory stays valid until the stream has passed, which core's pool sees to.

use crate::driver::Driver;
use crate::product::Product;
use portolan_cann_sys::LoadError;
use portolan_cann_sys::bindings::{
    ACL_BF16, ACL_BOOL, ACL_DOUBLE, ACL_FLOAT, ACL_FLOAT4_E2M1, ACL_FLOAT8_E4M3FN, ACL_FLOAT8_E5M2,
    ACL_FLOAT8_E8M0, ACL_FLOAT16, ACL_FORMAT_ND, ACL_INT4, ACL_INT8, ACL_INT16, ACL_INT32, ACL_INT64,
    ACL_UINT8, aclDataType, aclIntArray, aclScalar, aclTensor, aclTensorList,
};
use portolan_ops::{DType, TensorSpec, Unsupported};
use smallvec::SmallVec;

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
    dims: SmallVec<[i64; 8]>,
    strides: SmallVec<[i64; 8]>,
    offset: i64,
    /// Elements from the first of the buffer to behind the last of the view.
    end: i64,
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
        view.end = (view.end + 1) / 2;
        if whole { Ok(view) } else { Err(PAIRS) }
    }

    fn of(spec: &TensorSpec, dtype: aclDataType) -> Self {
        let signed = |values: &[usize]| values.iter().map(|&n| n as i64).collect();
        let layout = spec.layout();
        let end = layout.end(spec.shape()).unwrap_or(0) as i64;
        Self {
            dtype,
            dims: signed(spec.dims()),
            strides: signed(layout.strides()),
            offset: layout.offset() as i64,
            end,
        }
    }
}

macro_rules! descriptors {
    ($( $(#[$doc:meta])* $name:ident, $raw:ty, $destroy:ident; )*) => {$(
        $(#[$doc])*
        pub(crate) struct $name<'a> {
            driver: &'a Driver,
            raw: *mut $raw,
        }

        impl Drop for $name<'_> {
            fn drop(&mut self) {
                // Nobody is left to be told of a driver that has this symbol no more.
                if let Ok(destroy) = self.driver.libraries.descriptors.$destroy() {
                    // SAFETY: made by this driver, owned by this value alone, and destroyed once.
                    unsafe { destroy(self.raw) };
                }
            }
        }

        impl Arg<*const $raw> for $name<'_> {
            fn raw(&self) -> *const $raw {
                self.raw
            }
        }

        impl Arg<*mut $raw> for $name<'_> {
            fn raw(&self) -> *mut $raw {
                self.raw
            }
        }
    )*};
}

descriptors! {
    /// A tensor's descriptor.
    AclTensor, aclTensor, aclDestroyTensor;
    /// A number.
    AclScalar, aclScalar, aclDestroyScalar;
    /// Numbers that the host hands over.
    AclInts, aclIntArray, aclDestroyIntArray;
    /// Several tensors; it owns its members' descriptors.
    AclTensors, aclTensorList, aclDestroyTensorList;
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
    pub(crate) fn tensor(&self, view: &View, address: usize) -> Result<AclTensor<'_>, NotMade> {
        let create = self.libraries.descriptors.aclCreateTensor()?;
        let rank = view.dims.len() as u64;
        let data = core::ptr::without_provenance_mut(address);
        let (dims, strides, end) = (view.dims.as_ptr(), view.strides.as_ptr(), &raw const view.end);
        // SAFETY: arrays as long as is said, which are copied; the device memory is not touched here.
        let raw =
            unsafe { create(dims, rank, view.dtype, strides, view.offset, ACL_FORMAT_ND, end, 1, data) };
        if raw.is_null() {
            Err(NotMade::Refused("aclCreateTensor"))
        } else {
            Ok(AclTensor { driver: self, raw })
        }
    }

    /// A number of a type, by its bytes.
    pub(crate) fn scalar<T: Copy>(&self, mut value: T, dtype: aclDataType) -> Result<AclScalar<'_>, NotMade> {
        let create = self.libraries.descriptors.aclCreateScalar()?;
        // SAFETY: a value of the type's size, which is copied.
        let raw = unsafe { create((&raw mut value).cast(), dtype) };
        if raw.is_null() {
            Err(NotMade::Refused("aclCreateScalar"))
        } else {
            Ok(AclScalar { driver: self, raw })
        }
    }

    /// Numbers.
    pub(crate) fn ints(&self, values: &[i64]) -> Result<AclInts<'_>, NotMade> {
        let create = self.libraries.descriptors.aclCreateIntArray()?;
        // SAFETY: so many numbers, which are copied.
        let raw = unsafe { create(values.as_ptr(), values.len() as u64) };
        if raw.is_null() {
            Err(NotMade::Refused("aclCreateIntArray"))
        } else {
            Ok(AclInts { driver: self, raw })
        }
    }

    /// A list that takes its members over.
    pub(crate) fn tensors(&self, members: Vec<AclTensor<'_>>) -> Result<AclTensors<'_>, NotMade> {
        let create = self.libraries.descriptors.aclCreateTensorList()?;
        let raws: SmallVec<[*const aclTensor; 4]> = members.iter().map(|m| m.raw.cast_const()).collect();
        // SAFETY: so many living descriptors.
        let raw = unsafe { create(raws.as_ptr(), raws.len() as u64) };
        if raw.is_null() {
            return Err(NotMade::Refused("aclCreateTensorList"));
        }
        // Destroying the list destroys them.
        members.into_iter().for_each(core::mem::forget);
        Ok(AclTensors { driver: self, raw })
    }
}

/// What an argument of an operator's first phase becomes in C.
pub(crate) trait Arg<C> {
    /// The C value; it may be used while `self` lives.
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

impl Arg<*mut core::ffi::c_char> for core::ffi::CStr {
    fn raw(&self) -> *mut core::ffi::c_char {
        self.as_ptr().cast_mut()
    }
}

impl Arg<*mut core::ffi::c_char> for &core::ffi::CStr {
    fn raw(&self) -> *mut core::ffi::c_char {
        self.as_ptr().cast_mut()
    }
}

macro_rules! plain {
    ($($ty:ty),*) => {$(
        impl Arg<$ty> for $ty {
            fn raw(&self) -> $ty {
                *self
            }
        }
    )*};
}
plain!(i8, i32, i64, u64, f64, bool);

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
