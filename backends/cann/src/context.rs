//! The guard that makes a device current: a matter of each thread, so of each call.

use crate::driver::{Driver, call};
use portolan_core::Ordinal;
use portolan_ops::Result;
use std::sync::Arc;

/// The right to call the driver for one device on this thread. Not `Send`: it stands for the thread's current context.
///
/// The context stays current afterwards; nothing here relies on one that an earlier call left.
pub(crate) struct OnDevice<'a> {
    pub(crate) driver: &'a Arc<Driver>,
    pub(crate) device: Ordinal,
    _thread: core::marker::PhantomData<*const ()>,
}

impl<'a> OnDevice<'a> {
    /// Makes `device` current on this thread.
    pub(crate) fn enter(driver: &'a Arc<Driver>, device: Ordinal) -> Result<Self> {
        let context = driver.context(device)?;
        call!(driver, device, aclrtSetCurrentContext(context.0))?;
        Ok(Self { driver, device, _thread: core::marker::PhantomData })
    }
}
