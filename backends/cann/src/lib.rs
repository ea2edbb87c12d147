//! The Ascend backend: the AscendCL runtime behind portolan's contract.
//!
//! The driver is opened while the program runs: from a given folder, `$ASCEND_HOME_PATH`, `$ASCEND_TOOLKIT_HOME` or
//! where the system looks. Without one, [`CannBackend`] has no devices and says what is missing.
//!
//! `context.rs` makes a device current for each call, `memory.rs` and `queue/` are the contract's memory, streams and
//! events, `error.rs` and `catalogue.rs` turn the vendor's codes into errors that say what to do. `aclnn.rs` is the vendor's
//! two-phase protocol, `descriptor.rs` what it takes and `version.rs` which version of an operator is called, `repeat.rs` the
//! executors that are kept; `op/` has a file for each operator, `comm/` those over ranks. `rehearsal.rs` finds out what a
//! launch would do.

mod aclnn;
mod catalogue;
mod comm;
mod context;
mod descriptor;
mod driver;
mod error;
mod fused;
mod kernels;
mod memory;
mod op;
mod options;
mod product;
mod queue;
mod rehearsal;
mod repeat;
mod version;

pub use catalogue::{CATALOGUE, Entry, explain};
pub use options::CannOptions;
pub use product::Product;

use driver::Driver;
use portolan_core::groups::Groups;
use portolan_core::{Backend, DeviceInfo, OpQuery, Ordinal, Support};
use portolan_ops::{DeviceId, OpError, Result, Unsupported};
use std::sync::{Arc, OnceLock};

/// The Ascend devices of this machine, `cann:0` and on.
pub struct CannBackend {
    options: CannOptions,
    driver: OnceLock<core::result::Result<Arc<Driver>, OpError>>,
    groups: Groups<comm::Group>,
}

impl CannBackend {
    /// A backend that opens its driver when a device is first asked for.
    pub fn new(options: CannOptions) -> Arc<Self> {
        Arc::new(Self { options, driver: OnceLock::new(), groups: Groups::default() })
    }

    /// The opened driver.
    fn driver(&self) -> Result<&Arc<Driver>> {
        let driver = self.driver.get_or_init(|| Driver::open(&self.options).map(Arc::new));
        driver.as_ref().map_err(Clone::clone)
    }

    /// What the devices are.
    ///
    /// # Errors
    /// `Unavailable` without a driver, or with devices that this library does not know.
    pub fn product(&self) -> Result<Product> {
        Ok(self.driver()?.product())
    }
}

impl Backend for CannBackend {
    fn name(&self) -> &'static str {
        "cann"
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        let driver = self.driver()?;
        (0..driver.device_count())
            .map(|ordinal| {
                Ok(DeviceInfo {
                    id: DeviceId::new("cann", ordinal),
                    name: driver.name().to_owned(),
                    memory_bytes: memory::info(driver, ordinal)?.total,
                    flushes_denormals: false,
                    keeps_data: true,
                })
            })
            .collect()
    }

    fn support(&self, _device: Ordinal, query: &OpQuery<'_>) -> Support {
        match self.driver() {
            Ok(driver) => rehearsal::support(driver, query),
            Err(_) => Support::No(Unsupported::NotImplemented),
        }
    }
}
