//! Descriptors and executors.

use crate::call::{Call, Show, begin, driver, give};
use crate::error::{Fail, Result};
use crate::executor::Side;
use crate::tensor::{Descriptor, Scalar, Tensor, lookup, register, replace, unregister};
use serde_json::Value;
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::Arc;

/// More elements than any array of a descriptor has.
const MOST: u64 = 1 << 24;

/// A caller's array.
///
/// # Safety
/// `values` is NULL, or `count` values may be read from it.
unsafe fn array<V: Copy>(values: *const V, count: u64, name: &str) -> Result<Vec<V>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if values.is_null() {
        return Err(Fail::null(name));
    }
    let count = usize::try_from(count.min(MOST + 1)).unwrap_or(usize::MAX);
    if count as u64 > MOST {
        return Err(Fail::invalid(format!("{name} has more than {MOST} elements")));
    }
    // SAFETY: as the caller of this function says; values of C's plain types.
    Ok(unsafe { core::slice::from_raw_parts(values, count) }.to_vec())
}

/// A tensor's descriptor from C's arguments.
///
/// # Safety
/// Each array is NULL or as long as its count says.
#[allow(clippy::too_many_arguments)]
unsafe fn tensor(
    view: *const i64,
    view_count: u64,
    dtype: i32,
    strides: *const i64,
    offset: i64,
    format: i32,
    storage: *const i64,
    storage_count: u64,
    data: *mut c_void,
) -> Result<Tensor> {
    // SAFETY: as the caller of this function says.
    let (view, strides, storage) = unsafe {
        let strides = (!strides.is_null()).then(|| array(strides, view_count, "stride")).transpose()?;
        (array(view, view_count, "viewDims")?, strides, array(storage, storage_count, "storageDims")?)
    };
    Tensor::new(dtype, format, &view, strides.as_deref(), offset, &storage, data.addr())
}

/// Runs a constructor: the handle, or NULL with a message.
fn construct(
    call: Call,
    arguments: impl FnOnce() -> Vec<(&'static str, Value)>,
    make: impl FnOnce() -> Result<Descriptor>,
) -> *mut c_void {
    let made = Cell::new(core::ptr::null_mut());
    call.run(arguments, || {
        made.set(register(make()?));
        Ok(())
    });
    made.get()
}

#[unsafe(no_mangle)]
#[allow(non_snake_case, clippy::too_many_arguments)]
unsafe extern "C" fn aclCreateTensor(
    view: *const i64,
    view_count: u64,
    dtype: i32,
    strides: *const i64,
    offset: i64,
    format: i32,
    storage: *const i64,
    storage_count: u64,
    data: *mut c_void,
) -> *mut c_void {
    let call = begin("aclCreateTensor");
    let (dtype, offset) = (call.argument("dataType", dtype), call.argument("offset", offset));
    let (format, data) = (call.argument("format", format), call.argument("deviceData", data));
    // SAFETY: the caller's arrays.
    let made =
        unsafe { tensor(view, view_count, dtype, strides, offset, format, storage, storage_count, data) };
    let shown = made.as_ref().map_or_else(|fail| fail.text.clone(), ToString::to_string);
    let arguments = || vec![("tensor", shown.into()), ("deviceData", data.show())];
    construct(call, arguments, || made.map(Descriptor::Tensor))
}

#[unsafe(no_mangle)]
#[allow(non_snake_case)]
unsafe extern "C" fn aclCreateScalar(value: *mut c_void, dtype: i32) -> *mut c_void {
    let call = begin("aclCreateScalar");
    let dtype = call.argument("dataType", dtype);
    construct(
        call,
        || vec![("dataType", dtype.into())],
        || {
            if value.is_null() {
                return Err(Fail::null("value"));
            }
            let size = crate::view::Dtype::from_code(i64::from(dtype)).map_or(0, |dtype| dtype.bits() / 8);
            let mut bytes = [0; 16];
            // SAFETY: the caller's value of this type.
            unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(value.cast(), size) };
            Scalar::new(dtype, bytes).map(|scalar| Descriptor::Scalar(Arc::new(scalar)))
        },
    )
}

macro_rules! arrays {
    ($( $create:ident, $size:ident, $destroy:ident, $variant:ident, $ty:ty, $convert:expr; )*) => {$(
        #[unsafe(no_mangle)]
        #[allow(non_snake_case)]
        unsafe extern "C" fn $create(values: *const $ty, count: u64) -> *mut c_void {
            construct(begin(stringify!($create)), || vec![("size", count.into())], || {
                // SAFETY: the caller's array.
                let values = unsafe { array(values, count, "value") }?;
                let convert: fn(Vec<$ty>) -> Result<Descriptor> = $convert;
                convert(values)
            })
        }

        driver! {
            fn $size(array: *const c_void, size: *mut u64) {
                match lookup(array)? {
                    // SAFETY: the caller's place for the result.
                    Descriptor::$variant(values) => unsafe { give(size, values.len() as u64, "size") },
                    other => Err(Fail::invalid(format!("{} is no {}", other.type_name(), stringify!($variant)))),
                }
            }

            fn $destroy(array: *const c_void) {
                destroy(array, |descriptor| matches!(descriptor, Descriptor::$variant(_)))
            }
        }
    )*};
}

arrays! {
    aclCreateIntArray, aclGetIntArraySize, aclDestroyIntArray, IntArray, i64,
        |values| Ok(Descriptor::IntArray(values.into()));
    aclCreateFloatArray, aclGetFloatArraySize, aclDestroyFloatArray, FloatArray, f32,
        |values| Ok(Descriptor::FloatArray(values.into()));
    // As bytes: what C passes may be no bool.
    aclCreateBoolArray, aclGetBoolArraySize, aclDestroyBoolArray, BoolArray, u8,
        |values| Ok(Descriptor::BoolArray(values.into_iter().map(|value| value != 0).collect()));
    aclCreateTensorList, aclGetTensorListSize, aclDestroyTensorList, TensorList, *const c_void,
        |handles| {
            let members = handles.into_iter().map(|handle| match lookup(handle)? {
                Descriptor::Tensor(tensor) => Ok((handle.addr(), tensor)),
                other => Err(Fail::invalid(format!("a member of a tensor list is an {}", other.type_name()))),
            });
            Ok(Descriptor::TensorList(members.collect::<Result<Arc<[_]>>>()?))
        };
    aclCreateScalarList, aclGetScalarListSize, aclDestroyScalarList, ScalarList, *const c_void,
        |handles| {
            let members = handles.into_iter().map(|handle| match lookup(handle)? {
                Descriptor::Scalar(scalar) => Ok((handle.addr(), scalar)),
                other => Err(Fail::invalid(format!("a member of a scalar list is an {}", other.type_name()))),
            });
            Ok(Descriptor::ScalarList(members.collect::<Result<Arc<[_]>>>()?))
        };
}

/// Destroys a descriptor of the expected type, and a list's members with it. NULL is fine.
fn destroy(handle: *const c_void, is: impl Fn(&Descriptor) -> bool) -> Result {
    if handle.is_null() {
        return Ok(());
    }
    let found = lookup(handle)?;
    if !is(&found) {
        return Err(Fail::invalid(format!("{handle:p} is an {}", found.type_name())));
    }
    unregister(handle)?;
    let members: Vec<usize> = match &found {
        Descriptor::TensorList(list) => list.iter().map(|(handle, _)| *handle).collect(),
        Descriptor::ScalarList(list) => list.iter().map(|(handle, _)| *handle).collect(),
        _ => Vec::new(),
    };
    for member in members {
        unregister(core::ptr::without_provenance::<c_void>(member)).map_err(|fail| {
            Fail::invalid(format!("a list owns its members, and one is gone already: {}", fail.text))
        })?;
    }
    Ok(())
}

fn tensor_of(handle: *const c_void) -> Result<Tensor> {
    if handle.is_null() {
        return Err(Fail::null("tensor"));
    }
    match lookup(handle)? {
        Descriptor::Tensor(tensor) => Ok(tensor),
        other => Err(Fail::invalid(format!("{handle:p} is an {}", other.type_name()))),
    }
}

fn executor_of(handle: *const c_void) -> Result<Arc<crate::executor::Executor>> {
    if handle.is_null() {
        return Err(Fail::null("executor"));
    }
    match lookup(handle)? {
        Descriptor::Executor(executor) => Ok(executor),
        other => Err(Fail::invalid(format!("{handle:p} is an {}", other.type_name()))),
    }
}

/// Hands out a copy of numbers that the caller releases with `delete[]`, which is C's `free` in the vendor's libraries.
///
/// # Safety
/// Both places are NULL or may be written.
unsafe fn hand_out(numbers: &[i64], place: *mut *mut i64, count: *mut u64) -> Result {
    if place.is_null() {
        return Err(Fail::null("the place for the numbers"));
    }
    // SAFETY: a fresh piece of memory, as large as what is written; then the caller's places.
    unsafe {
        let copy: *mut i64 = libc::malloc(size_of_val(numbers).max(1)).cast();
        if copy.is_null() {
            return Err(Fail::new(crate::error::code::INTERNAL, "the host is out of memory"));
        }
        copy.copy_from_nonoverlapping(numbers.as_ptr(), numbers.len());
        give(count, numbers.len() as u64, "count").inspect_err(|_| libc::free(copy.cast()))?;
        give(place, copy, "place")
    }
}

/// The tensor of a handle: of a list, its member.
fn operand_of(handle: *mut c_void, member: Option<usize>) -> Result<Tensor> {
    let Some(member) = member else { return tensor_of(handle) };
    match lookup(handle.cast_const())? {
        Descriptor::TensorList(members) => match members.get(member) {
            Some((_, tensor)) => Ok(tensor.clone()),
            None => Err(Fail::invalid(format!("the list has {} members, not {member}", members.len()))),
        },
        other => Err(Fail::invalid(format!("the list is an {}", other.type_name()))),
    }
}

macro_rules! address_setters {
    ($($side:ident: $($name:ident)* | $($dynamic:ident)*;)*) => {
        driver! {
            $($(
                fn $name(executor: *mut c_void, index: usize, tensor: *mut c_void, address: *mut c_void) {
                    let own = operand_of(tensor, None)?;
                    executor_of(executor)?.set_address(Side::$side, (index, 0), &own, address.addr())
                }
            )*)*
            $($(
                fn $dynamic(
                    executor: *mut c_void,
                    index: usize,
                    member: usize,
                    list: *mut c_void,
                    address: *mut c_void,
                ) {
                    let own = operand_of(list, Some(member))?;
                    executor_of(executor)?.set_address(Side::$side, (index, member), &own, address.addr())
                }
            )*)*
        }
    };
}

address_setters! {
    Both: aclSetTensorAddr AclSetTensorAddr | aclSetDynamicTensorAddr AclSetDynamicTensorAddr;
    Inputs: aclSetInputTensorAddr AclSetInputTensorAddr | aclSetDynamicInputTensorAddr AclSetDynamicInputTensorAddr;
    Outputs: aclSetOutputTensorAddr AclSetOutputTensorAddr | aclSetDynamicOutputTensorAddr AclSetDynamicOutputTensorAddr;
}

driver! {
    fn aclDestroyTensor(tensor: *const c_void) {
        destroy(tensor, |descriptor| matches!(descriptor, Descriptor::Tensor(_)))
    }

    fn aclDestroyScalar(scalar: *const c_void) {
        destroy(scalar, |descriptor| matches!(descriptor, Descriptor::Scalar(_)))
    }

    fn aclInitTensor(
        handle: *mut c_void,
        view: *const i64,
        view_count: u64,
        dtype: i32,
        strides: *const i64,
        offset: i64,
        format: i32,
        storage: *const i64,
        storage_count: u64,
        data: *mut c_void,
    ) {
        tensor_of(handle)?;
        // SAFETY: the caller's arrays.
        let made = unsafe {
            tensor(view, view_count, dtype, strides, offset, format, storage, storage_count, data)
        }?;
        replace(handle.cast_const(), Descriptor::Tensor(made))
    }

    fn aclGetViewShape(tensor: *const c_void, dims: *mut *mut i64, count: *mut u64) {
        // SAFETY: the caller's places for the results.
        unsafe { hand_out(&tensor_of(tensor)?.found_shape(), dims, count) }
    }

    fn aclGetStorageShape(tensor: *const c_void, dims: *mut *mut i64, count: *mut u64) {
        // SAFETY: the caller's places for the results.
        unsafe { hand_out(tensor_of(tensor)?.storage_shape(), dims, count) }
    }

    fn aclGetViewStrides(tensor: *const c_void, strides: *mut *mut i64, count: *mut u64) {
        // SAFETY: the caller's places for the results.
        unsafe { hand_out(tensor_of(tensor)?.strides(), strides, count) }
    }

    fn aclGetViewOffset(tensor: *const c_void, offset: *mut i64) {
        // SAFETY: the caller's place for the result.
        unsafe { give(offset, tensor_of(tensor)?.offset(), "offset") }
    }

    fn aclGetFormat(tensor: *const c_void, format: *mut i32) {
        // SAFETY: the caller's place for the result.
        unsafe { give(format, tensor_of(tensor)?.format(), "format") }
    }

    fn aclGetDataType(tensor: *const c_void, dtype: *mut i32) {
        // SAFETY: the caller's place for the result.
        unsafe { give(dtype, tensor_of(tensor)?.dtype() as i32, "dataType") }
    }

    fn aclGetRawTensorAddr(tensor: *const c_void, address: *mut *mut c_void) {
        let at = core::ptr::without_provenance_mut(tensor_of(tensor)?.address());
        // SAFETY: the caller's place for the result.
        unsafe { give(address, at, "address") }
    }

    fn aclSetRawTensorAddr(tensor: *mut c_void, address: *mut c_void) {
        tensor_of(tensor)?.set_address(address.addr());
        Ok(())
    }

    fn aclSetAclOpExecutorRepeatable(executor: *mut c_void) {
        executor_of(executor)?.make_repeatable()
    }

    fn aclDestroyAclOpExecutor(executor: *mut c_void) {
        let found = executor_of(executor)?;
        if !found.is_repeatable() {
            return Err(Fail::invalid(format!(
                "the executor of {} is not repeatable: its one launch releases it",
                found.name
            )));
        }
        unregister(executor.cast_const()).map(drop)
    }
}
