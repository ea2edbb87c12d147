//! `portolan devices`: what this machine can run on.

use crate::failure::Failure;
use std::io::Write;

const GIB: f64 = (1u64 << 30) as f64;

pub(crate) fn run() -> Result<(), Failure> {
    let registry = portolan::registry()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:<10} {:>10}  name", "device", "memory")?;
    for device in registry.devices() {
        let memory = match device.keeps_data {
            true => format!("{:.1} GiB", device.memory_bytes as f64 / GIB),
            false => "none".into(),
        };
        writeln!(out, "{:<10} {memory:>10}  {}", device.id.to_string(), device.name)?;
    }
    for (backend, why) in registry.unavailable() {
        writeln!(out, "{backend:<10} {:>10}  not available: {why}", "-")?;
    }
    Ok(())
}
