//! Which backends a program has. Explicit: there is no global registry and no list of backends.

use crate::backend::Backend;
use crate::device::{Device, DeviceInfo, DeviceInner};
use crate::sync::{Mutex, lock};
use portolan_ops::{DeviceId, OpError, Result};
use std::sync::{Arc, Weak};

/// Backends by name; the built-in ones enter by the same door as everybody else's.
#[derive(Default)]
pub struct Registry {
    backends: Vec<Arc<dyn Backend>>,
    open: Mutex<Vec<(DeviceId, Weak<DeviceInner>)>>,
}

impl Registry {
    /// A registry without backends.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a backend; it replaces an earlier one of the same name.
    pub fn with(mut self, backend: Arc<dyn Backend>) -> Self {
        self.backends.retain(|b| b.name() != backend.name());
        lock(&self.open).retain(|(id, _)| id.backend() != backend.name());
        self.backends.push(backend);
        self
    }

    /// Puts a backend around the one called `name`, if there is one: a decorator.
    pub fn wrap(mut self, name: &str, around: impl FnOnce(Arc<dyn Backend>) -> Arc<dyn Backend>) -> Self {
        match self.backends.iter().position(|b| b.name() == name) {
            Some(at) => {
                let inner = self.backends.remove(at);
                self.with(around(inner))
            }
            None => self,
        }
    }

    /// Every device of every backend that is available here.
    pub fn devices(&self) -> Vec<DeviceInfo> {
        self.backends.iter().filter_map(|b| b.devices().ok()).flatten().collect()
    }

    /// Backends that are not available here, and why.
    pub fn unavailable(&self) -> Vec<(&'static str, OpError)> {
        self.backends.iter().filter_map(|b| b.devices().err().map(|e| (b.name(), e))).collect()
    }

    /// Opens a device by name (`cpu:0`; a bare `cpu` is `cpu:0`). While a device is open, opening it again
    /// gives the same one.
    ///
    /// # Errors
    /// `Unavailable` naming what there is, when the name is unknown; the backend's own error otherwise.
    pub fn open(&self, id: &str) -> Result<Device> {
        let id: DeviceId = id.parse()?;
        let Some(backend) = self.backends.iter().find(|b| b.name() == id.backend()) else {
            let names: Vec<&str> = self.backends.iter().map(|b| b.name()).collect();
            let what = format!("no such backend; registered are: {}", names.join(", "));
            return Err(OpError::Unavailable { backend: id.backend().to_owned().into(), what });
        };
        let devices = backend.devices()?;
        let Some(info) = devices.iter().find(|info| info.id.ordinal() == id.ordinal()) else {
            let what = format!("{id} does not exist; {} has {} device(s)", backend.name(), devices.len());
            return Err(OpError::Unavailable { backend: backend.name().into(), what });
        };
        let mut open = lock(&self.open);
        open.retain(|(_, device)| device.strong_count() > 0);
        if let Some(device) =
            open.iter().find(|(known, _)| *known == id).and_then(|(_, device)| device.upgrade())
        {
            return Ok(Device::from_inner(device));
        }
        let device = DeviceInner::new(backend.clone(), id.ordinal(), info.clone());
        open.push((id, Arc::downgrade(&device)));
        Ok(Device::from_inner(device))
    }
}
