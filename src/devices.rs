//! The built-in backends as a registry.

use portolan_core::{Device, Registry};
use portolan_ops::Result;

/// A registry of every built-in backend, with default options.
///
/// # Errors
/// `Unavailable` when a backend cannot start its threads.
pub fn registry() -> Result<Registry> {
    let registry = Registry::new();
    #[cfg(feature = "cpu")]
    let registry = registry.with(portolan_cpu::CpuBackend::new(portolan_cpu::CpuOptions::default())?);
    #[cfg(feature = "meta")]
    let registry = registry.with(portolan_meta::MetaBackend::new(portolan_meta::MetaOptions::default()));
    #[cfg(feature = "cann")]
    let registry = registry.with(portolan_cann::CannBackend::new(portolan_cann::CannOptions::default()));
    Ok(registry)
}

/// Opens a device of a built-in backend by name: `cpu:0`.
///
/// Every call makes a registry of its own; a program that opens several devices, or adds a backend, keeps
/// one from [`registry`].
///
/// # Errors
/// `Unavailable` for a name that is unknown or absent here.
pub fn open(id: &str) -> Result<Device> {
    registry()?.open(id)
}
