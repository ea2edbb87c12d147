//! The frame around every exported function: log, planned faults, error message, and no panic beyond the ABI.

use crate::error::{Fail, Result, code};
use crate::fault::Fate;
use crate::mistake::Plain;
use crate::world::{State, world};
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    /// What `aclGetRecentErrMsg` gives next on this thread.
    static MESSAGE: RefCell<Option<CString>> = const { RefCell::new(None) };
    /// What it gave last: valid until the next call.
    static GIVEN: RefCell<Option<CString>> = const { RefCell::new(None) };
    /// The latest code that was not 0 (`aclrtGetLastError`).
    static LAST: Cell<i32> = const { Cell::new(0) };
    static THREAD: Cell<u64> = const { Cell::new(0) };
}

/// This thread's number in the log.
pub(crate) fn thread() -> u64 {
    static THREADS: AtomicU64 = AtomicU64::new(0);
    THREAD.with(|thread| {
        if thread.get() == 0 {
            thread.set(THREADS.fetch_add(1, Ordering::Relaxed) + 1);
        }
        thread.get()
    })
}

/// An exported function that was called: counted, and not yet run.
pub(crate) struct Call {
    name: &'static str,
    fate: Fate,
}

/// Counts a call of an exported function.
pub(crate) fn begin(name: &'static str) -> Call {
    let mut state = world().state();
    let State { faults, log, .. } = &mut *state;
    Call { name, fate: faults.at_call(name, log) }
}

impl Call {
    /// An argument of the call: what the program gave, unless a mistake is planned.
    #[inline(never)]
    pub(crate) fn argument<A: Plain>(&self, name: &str, given: A) -> A {
        let instead = self.fate.instead.iter().find(|(which, _)| which == name);
        instead.map_or(given, |(_, bits)| given.replaced(*bits))
    }

    /// Runs the function.
    pub(crate) fn run(
        self,
        arguments: impl FnOnce() -> Vec<(&'static str, Value)>,
        body: impl FnOnce() -> Result,
    ) -> i32 {
        let Self { name, fate } = self;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let (thread, arguments) = (thread(), arguments());
            let call = world().state().log.begin(thread, name, arguments);
            let outcome = match fate.fail {
                Some(fail) => Err(fail),
                None => body(),
            };
            let (code, text) = match &outcome {
                Ok(()) => (0, ""),
                Err(fail) => (fail.code, fail.text.as_str()),
            };
            world().state().log.end(call, code, text);
            outcome
        }));
        let outcome = outcome.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(Fail::new(code::INTERNAL, format!("the simulator panicked: {text}")))
        });
        match outcome {
            Ok(()) => 0,
            Err(fail) => {
                let text = format!("{name}: {} [{} {}]", fail.text, fail.code, crate::error::name(fail.code));
                MESSAGE.set(CString::new(text.replace('\0', " ")).ok());
                LAST.set(fail.code);
                fail.code
            }
        }
    }
}

/// Runs one exported function whose arguments cannot be mistaken.
pub(crate) fn enter(
    name: &'static str,
    arguments: impl FnOnce() -> Vec<(&'static str, Value)>,
    body: impl FnOnce() -> Result,
) -> i32 {
    begin(name).run(arguments, body)
}

/// The latest message of this thread, once.
pub(crate) fn recent_message() -> *const c_char {
    GIVEN.set(MESSAGE.take());
    GIVEN.with_borrow(|given| given.as_ref().map_or(core::ptr::null(), |text| text.as_ptr()))
}

/// The latest code of this thread that was not 0.
pub(crate) fn last_error(clear: bool) -> i32 {
    if clear { LAST.replace(0) } else { LAST.get() }
}

/// What the log shows of an argument of C.
pub(crate) trait Show {
    fn show(&self) -> Value;
}

macro_rules! shown_as_numbers {
    ($($ty:ty),*) => {$(
        impl Show for $ty {
            fn show(&self) -> Value {
                (*self).into()
            }
        }
    )*};
}
shown_as_numbers!(i32, i64, u32, u64, usize);

impl<P> Show for *const P {
    fn show(&self) -> Value {
        match self.is_null() {
            true => Value::Null,
            false => format!("{:p}", *self).into(),
        }
    }
}

impl<P> Show for *mut P {
    fn show(&self) -> Value {
        self.cast_const().show()
    }
}

impl Show for Option<unsafe extern "C" fn(*mut core::ffi::c_void)> {
    fn show(&self) -> Value {
        match self {
            None => Value::Null,
            Some(_) => "function".into(),
        }
    }
}

/// Puts a result where the caller wants it.
///
/// # Safety
/// `place` is NULL or may be written.
pub(crate) unsafe fn give<V>(place: *mut V, value: V, argument: &str) -> Result {
    if place.is_null() {
        return Err(Fail::parameter(format!("{argument} is NULL")));
    }
    // SAFETY: not NULL, and the caller vouches for the rest; C does not promise alignment beyond the type's.
    unsafe { place.write(value) };
    Ok(())
}

/// Exports functions of the driver that return a code: each is logged, may be made to fail, and never unwinds.
macro_rules! driver {
    ($( fn $name:ident ( $( $arg:ident : $ty:ty ),* $(,)? ) $body:block )*) => {$(
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, clippy::too_many_arguments)]
        unsafe extern "C" fn $name($( $arg: $ty ),*) -> i32 {
            let call = $crate::call::begin(stringify!($name));
            $( let $arg = call.argument(stringify!($arg), $arg); )*
            let arguments = || vec![$( (stringify!($arg), $crate::call::Show::show(&$arg)) ),*];
            call.run(arguments, || $body)
        }
    )*};
}
pub(crate) use driver;
