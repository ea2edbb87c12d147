//! An opened driver: its libraries, its devices, and one context for each device that is used.

use crate::error;
use crate::options::CannOptions;
use crate::product::Product;
use portolan_cann_sys::bindings::{ACL_OPT_DETERMINISTIC, aclrtContext, aclrtEvent};
use portolan_cann_sys::{CallFailed, Libraries};
use portolan_core::Ordinal;
use portolan_core::sync::atomic::AtomicUsize;
use portolan_core::sync::{Mutex, lock};
use portolan_ops::{OpError, Result};
use std::ffi::CStr;
use std::sync::OnceLock;

/// `aclInit` was called before, by whoever else uses the driver in this process.
const REPEAT_INITIALIZE: i32 = 100002;

/// A driver and its devices.
pub(crate) struct Driver {
    pub(crate) libraries: Libraries,
    product: Product,
    name: String,
    devices: Vec<PerDevice>,
    /// Whether products of f32 may be rounded to f16 where there are no others.
    pub(crate) half_products: bool,
}

/// What is kept of a device.
#[derive(Default)]
pub(crate) struct PerDevice {
    context: OnceLock<core::result::Result<Context, OpError>>,
    /// Events that nobody uses: making one costs a call, and some products have few.
    pub(crate) idle_events: Mutex<Vec<Event>>,
    /// Streams that this library has there, and those of the graphs it holds: a driver has so many and no more.
    pub(crate) streams: AtomicUsize,
    /// Bytes of pinned memory that copies use.
    pub(crate) staged: AtomicUsize,
    /// Pinned host memory that nobody uses.
    pub(crate) idle_pinned: Mutex<Vec<crate::memory::PinnedBytes>>,
    /// Where the mask of causal attention is, once it was needed.
    pub(crate) triangle: Mutex<Option<usize>>,
}

/// A context's handle.
#[derive(Clone, Copy)]
pub(crate) struct Context(pub(crate) aclrtContext);

// SAFETY: a handle; the driver takes it on any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// An event's handle.
#[derive(Clone, Copy)]
pub(crate) struct Event(pub(crate) aclrtEvent);

// SAFETY: a handle; the driver takes it on any thread whose context is the event's.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

/// Calls a function of the runtime: `Err` with the vendor's text for every code but 0.
macro_rules! call {
    ($driver:expr, $device:expr, $name:ident($($arg:expr),* $(,)?)) => {
        match $crate::driver::try_call!($driver, $name($($arg),*)) {
            Ok(done) => done.map_err(|failed| $crate::error::driver($device, failed)),
            Err(missing) => Err($crate::error::unavailable(missing)),
        }
    };
}
pub(crate) use call;

/// As [`call!`], with the failure as it is, and the missing symbol apart.
macro_rules! try_call {
    ($driver:expr, $name:ident($($arg:expr),* $(,)?)) => {
        $driver.libraries.runtime.$name().map(|function| {
            // SAFETY: the arguments are what this function takes: handles of this driver that are alive, addresses of
            // its memory, places of our own for results. The context was made current by the guard.
            let code = unsafe { function($($arg),*) };
            $driver.libraries.check(stringify!($name), code)
        })
    };
}
pub(crate) use try_call;

impl Driver {
    /// Opens the driver in the folder of the options, or where the environment says.
    pub(crate) fn open(options: &CannOptions) -> Result<Self> {
        let unavailable = |what: String| OpError::Unavailable { backend: "cann".into(), what };
        let libraries = Libraries::open(options.folder.as_deref()).map_err(error::unavailable)?;
        let init = libraries.runtime.aclInit().map_err(error::unavailable)?;
        // SAFETY: NULL means no configuration file.
        let code = unsafe { init(core::ptr::null()) };
        if code != REPEAT_INITIALIZE {
            let started = libraries.check("aclInit", code);
            started.map_err(|CallFailed { code, message, .. }| {
                let cause = crate::explain(code).map(ToString::to_string).unwrap_or_default();
                unavailable(format!("aclInit failed with {code}: {message} {cause}").trim_end().to_owned())
            })?;
        }
        let mut count = 0u32;
        let counting = libraries.runtime.aclrtGetDeviceCount().map_err(error::unavailable)?;
        // SAFETY: a place of our own for the result.
        let code = unsafe { counting(&mut count) };
        libraries.check("aclrtGetDeviceCount", code).map_err(|failed| unavailable(failed.to_string()))?;
        if count == 0 {
            return Err(unavailable("the driver has no devices; compare with npu-smi info".into()));
        }
        let chip = chip_name(&libraries)?;
        let product = Product::of_chip(&chip).ok_or_else(|| {
            unavailable(format!("{chip} is none of the products this library knows: 310P, 910B, 910_93, 950"))
        })?;
        // For people only: nothing here depends on it.
        let simulated = libraries.runtime.address("portolan_sim_control").is_some();
        let name = if simulated { format!("{chip} SIMULATED") } else { chip };
        let devices = (0..count).map(|_| PerDevice::default()).collect();
        Ok(Self { libraries, product, name, devices, half_products: options.half_products })
    }

    pub(crate) fn product(&self) -> Product {
        self.product
    }

    /// What people call the devices.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn device_count(&self) -> Ordinal {
        self.devices.len() as Ordinal
    }

    /// What is kept of a device.
    pub(crate) fn device(&self, device: Ordinal) -> Result<&PerDevice> {
        self.devices.get(device as usize).ok_or_else(|| {
            OpError::internal("cann", format!("device {device} of {} was asked for", self.devices.len()))
        })
    }

    /// The device's context, made when it is first used.
    pub(crate) fn context(&self, device: Ordinal) -> Result<Context> {
        let made = self.device(device)?.context.get_or_init(|| {
            let id = i32::try_from(device).unwrap_or(i32::MAX);
            call!(self, device, aclrtSetDevice(id))?;
            let mut context = core::ptr::null_mut();
            call!(self, device, aclrtGetCurrentContext(&mut context))?;
            // Streams promise the same bits for the same call unless they are asked for less; the switch is the
            // context's. Drivers without it have no kernels that it would change.
            if let Ok(switched) = try_call!(self, aclrtCtxSetSysParamOpt(ACL_OPT_DETERMINISTIC, 1)) {
                switched.map_err(|failed| error::driver(device, failed))?;
            }
            Ok(Context(context))
        });
        made.clone()
    }
}

/// What the driver calls its first device's chip.
fn chip_name(libraries: &Libraries) -> Result<String> {
    let name = libraries.runtime.aclrtGetSocName().map_err(error::unavailable)?;
    // SAFETY: gives NULL, or a text that lives as long as the driver.
    let name = unsafe {
        let name = name();
        (!name.is_null()).then(|| CStr::from_ptr(name))
    };
    let name = name.map(|name| name.to_string_lossy().into_owned());
    name.ok_or_else(|| OpError::Unavailable {
        backend: "cann".into(),
        what: "aclrtGetSocName gives no name; compare with npu-smi info".into(),
    })
}

impl Drop for Driver {
    fn drop(&mut self) {
        for device in 0..self.device_count() {
            let Some(PerDevice { context, idle_events, idle_pinned, triangle, .. }) =
                self.devices.get(device as usize)
            else {
                continue;
            };
            let Some(Ok(context)) = context.get().cloned() else { continue };
            // Nobody is left to be told of what fails here.
            let _ = call!(self, device, aclrtSetCurrentContext(context.0));
            for event in lock(idle_events).drain(..) {
                let _ = call!(self, device, aclrtDestroyEvent(event.0));
            }
            for pinned in lock(idle_pinned).drain(..) {
                let _ = call!(self, device, aclrtFreeHost(pinned.address.cast()));
            }
            if let Some(address) = lock(triangle).take() {
                let _ = call!(self, device, aclrtFree(core::ptr::without_provenance_mut(address)));
            }
            let id = i32::try_from(device).unwrap_or(i32::MAX);
            let _ = call!(self, device, aclrtResetDevice(id));
        }
    }
}
