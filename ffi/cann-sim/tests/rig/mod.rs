//! What the tests of the simulator share: worlds, and the calls that most of them make.
#![allow(dead_code, unused_imports, unused_macros)]

use portolan_cann_sys::Runtime;
use portolan_cann_sys::bindings::*;
use portolan_cann_sys::sim::{Adversary, SimOptions, SimWorld};
use std::ffi::c_void;
use std::ptr::{null, null_mut};

/// Calls a function of one of the driver's tables: its result.
macro_rules! call {
    ($table:expr, $name:ident($($arg:expr),* $(,)?)) => {
        // SAFETY: arguments as the interface asks for, or wrong ones that the simulator has to refuse.
        unsafe { ($table.$name().unwrap())($($arg),*) }
    };
}

pub(crate) use call;

/// Both phases of an operator on a stream: the code of the first that fails.
macro_rules! operator {
    ($world:expr, $stream:expr, $plan:ident, $launch:ident, $($arg:expr),* $(,)?) => {{
        let (mut size, mut executor) = (0, null_mut());
        match call!($world.0.libraries().operators, $plan($($arg,)* &mut size, &mut executor)) {
            0 => {
                let workspace = if size == 0 { null_mut() } else { $world.memory(size as usize) };
                call!($world.0.libraries().operators, $launch(workspace, size, executor, $stream))
            }
            code => code,
        }
    }};
}

pub(crate) use operator;

/// A world, with the calls that most tests make.
pub(crate) struct World(pub(crate) SimWorld);

impl World {
    /// A world of these options, with device 0 current.
    pub(crate) fn new(options: SimOptions) -> World {
        let world = World(SimWorld::new(&options).unwrap());
        assert_eq!(call!(world.runtime(), aclInit(null())), 0);
        assert_eq!(call!(world.runtime(), aclrtSetDevice(0)), 0);
        world
    }

    /// A small world of a product.
    pub(crate) fn of(soc: &str) -> World {
        World::new(SimOptions { soc: soc.into(), memory_bytes: 64 << 20, ..SimOptions::default() })
    }

    /// A small world of A3 with an adversary and its seed.
    pub(crate) fn against(adversary: Adversary, seed: u64) -> World {
        World::new(SimOptions { adversary, seed, memory_bytes: 64 << 20, ..SimOptions::default() })
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.0.libraries().runtime
    }

    pub(crate) fn memory(&self, bytes: usize) -> *mut c_void {
        let mut address = null_mut();
        let code = call!(self.runtime(), aclrtMalloc(&mut address, bytes, 0));
        assert_eq!(code, 0, "{}", self.message());
        address
    }

    pub(crate) fn message(&self) -> String {
        self.0.libraries().recent_message().unwrap_or_default()
    }

    pub(crate) fn stream(&self) -> aclrtStream {
        let mut stream = null_mut();
        assert_eq!(call!(self.runtime(), aclrtCreateStream(&mut stream)), 0);
        stream
    }

    pub(crate) fn synchronize(&self, stream: aclrtStream) -> i32 {
        call!(self.runtime(), aclrtSynchronizeStream(stream))
    }

    pub(crate) fn upload<V: Copy>(&self, values: &[V]) -> *mut c_void {
        let (bytes, from) = (size_of_val(values), values.as_ptr().cast());
        let to = self.memory(bytes);
        let code = call!(self.runtime(), aclrtMemcpy(to, bytes, from, bytes, ACL_MEMCPY_HOST_TO_DEVICE));
        assert_eq!(code, 0);
        to
    }

    pub(crate) fn event(&self) -> aclrtEvent {
        let mut event = null_mut();
        let flags = ACL_EVENT_SYNC | ACL_EVENT_TIME_LINE;
        assert_eq!(call!(self.runtime(), aclrtCreateEventExWithFlag(&mut event, flags)), 0);
        event
    }

    /// Pinned memory of the host with values in it.
    pub(crate) fn pinned<V: Copy>(&self, values: &[V]) -> *mut c_void {
        let mut address = null_mut();
        assert_eq!(call!(self.runtime(), aclrtMallocHost(&mut address, size_of_val(values))), 0);
        // SAFETY: just allocated, so long, and aligned to a page.
        unsafe { address.cast::<V>().copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        address
    }

    /// A copy from device to device, or from and to pinned memory, on a stream.
    pub(crate) fn copy(&self, to: *mut c_void, from: *mut c_void, bytes: usize, on: aclrtStream) -> i32 {
        call!(self.runtime(), aclrtMemcpyAsync(to, bytes, from, bytes, ACL_MEMCPY_DEFAULT, on))
    }

    pub(crate) fn read<V: Copy + Default>(&self, from: *mut c_void, count: usize) -> Vec<V> {
        let mut values = vec![V::default(); count];
        let (to, bytes) = (values.as_mut_ptr().cast(), size_of::<V>() * count);
        let code = call!(self.runtime(), aclrtMemcpy(to, bytes, from, bytes, ACL_MEMCPY_DEVICE_TO_HOST));
        assert_eq!(code, 0, "{}", self.message());
        values
    }

    pub(crate) fn floats(&self, from: *mut c_void, count: usize) -> Vec<f32> {
        self.read(from, count)
    }

    pub(crate) fn strided(
        &self,
        dtype: i32,
        shape: &[i64],
        strides: &[i64],
        format: i32,
        at: *mut c_void,
    ) -> *mut aclTensor {
        let (dims, rank) = (shape.as_ptr(), shape.len() as u64);
        let table = &self.0.libraries().descriptors;
        call!(table, aclCreateTensor(dims, rank, dtype, strides.as_ptr(), 0, format, dims, rank, at))
    }

    pub(crate) fn tensor(&self, dtype: i32, shape: &[i64], at: *mut c_void) -> *mut aclTensor {
        let strides: Vec<i64> = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
        self.strided(dtype, shape, &strides, ACL_FORMAT_ND, at)
    }

    pub(crate) fn scalar(&self, value: f32) -> *mut aclScalar {
        call!(
            self.0.libraries().descriptors,
            aclCreateScalar((&raw const value).cast_mut().cast(), ACL_FLOAT)
        )
    }
}
