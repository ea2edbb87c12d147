//! Beginning, end, and what the driver says of itself.

use crate::call::{driver, enter, give, last_error, recent_message};
use crate::error::{Fail, Result, code};
use crate::world::world;
use std::cell::Cell;
use std::ffi::{CString, c_char};
use std::sync::OnceLock;

driver! {
    fn aclInit(config_path: *const c_char) {
        let mut state = world().state();
        if let Some(why) = &state.broken {
            return Err(Fail::new(code::INTERNAL, why.clone()));
        }
        state.initialized += 1;
        if state.initialized > 1 {
            return Err(Fail::new(code::REPEAT_INITIALIZE, "aclInit was called before"));
        }
        Ok(())
    }

    fn aclFinalize() {
        let mut state = world().state();
        if state.initialized == 0 {
            return Err(Fail::new(code::REPEAT_FINALIZE, "aclInit was not called, or everything was finalised"));
        }
        state.initialized = 0;
        if state.reports {
            eprintln!("simulated CANN: at aclFinalize: {}", state.report());
        }
        Ok(())
    }

    fn aclFinalizeReference(ref_count: *mut u64) {
        let mut state = world().state();
        if state.initialized == 0 {
            return Err(Fail::new(code::REPEAT_FINALIZE, "aclInit was not called, or everything was finalised"));
        }
        state.initialized -= 1;
        if !ref_count.is_null() {
            // SAFETY: not NULL, and the caller's place for it.
            unsafe { ref_count.write(state.initialized) };
        }
        Ok(())
    }

    fn aclnnInit(config_path: *const c_char) {
        Ok(())
    }

    fn aclnnFinalize() {
        Ok(())
    }

    fn aclrtGetVersion(major: *mut i32, minor: *mut i32, patch: *mut i32) {
        // SAFETY: the caller's places for the results.
        unsafe {
            give(major, 1, "major")?;
            give(minor, 17, "minor")?;
            give(patch, 0, "patch")
        }
    }
}

/// The packages that a driver consists of, as version queries name them, and the version that is simulated.
const PACKAGES: [&[u8]; 7] = [b"runtime", b"opp", b"toolkit", b"driver", b"hccl", b"hcomm", b"ops"];
const VERSION: &core::ffi::CStr = c"9.1.0";
const VERSION_NUMBER: i32 = 90_100_000;

/// # Safety
/// `name` is NULL or a text that ends in a zero byte.
unsafe fn known_package(name: *const c_char) -> Result {
    if name.is_null() {
        return Err(Fail::parameter("the package's name is NULL"));
    }
    // SAFETY: not NULL, and as the caller of this function says.
    let name = unsafe { core::ffi::CStr::from_ptr(name) };
    match PACKAGES.contains(&name.to_bytes()) {
        true => Ok(()),
        false => Err(Fail::parameter(format!("{name:?} is no package of this driver"))),
    }
}

driver! {
    fn aclsysGetVersionStr(package: *mut c_char, version: *mut c_char) {
        // SAFETY: the caller's text.
        unsafe { known_package(package) }?;
        if version.is_null() {
            return Err(Fail::parameter("the place for the version is NULL"));
        }
        let text = VERSION.to_bytes_with_nul();
        // SAFETY: not NULL, and the caller gives 128 bytes.
        unsafe { version.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len()) };
        Ok(())
    }

    fn aclsysGetVersionNum(package: *mut c_char, version: *mut i32) {
        // SAFETY: the caller's text, and its place for the result.
        unsafe {
            known_package(package)?;
            give(version, VERSION_NUMBER, "version")
        }
    }
}

/// The latest message of this thread, once; NULL when there is none.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
extern "C" fn aclGetRecentErrMsg() -> *const c_char {
    let message = Cell::new(core::ptr::null());
    enter("aclGetRecentErrMsg", Vec::new, || {
        message.set(recent_message());
        Ok(())
    });
    message.get()
}

/// The name of the first device's chip.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
extern "C" fn aclrtGetSocName() -> *const c_char {
    static NAME: OnceLock<Option<CString>> = OnceLock::new();
    let name = Cell::new(core::ptr::null());
    enter("aclrtGetSocName", Vec::new, || {
        let soc = NAME.get_or_init(|| CString::new(world().state().profile.soc).ok());
        name.set(soc.as_ref().map_or(core::ptr::null(), |soc| soc.as_ptr()));
        Ok(())
    });
    name.get()
}

/// The latest code of this thread that was not 0; it stays.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
extern "C" fn aclrtPeekAtLastError(level: i32) -> i32 {
    let last = last_error(false);
    enter("aclrtPeekAtLastError", || vec![("level", level.into())], || Ok(()));
    last
}

/// The latest code of this thread that was not 0, once.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
extern "C" fn aclrtGetLastError(level: i32) -> i32 {
    let last = last_error(true);
    enter("aclrtGetLastError", || vec![("level", level.into())], || Ok(()));
    last
}
