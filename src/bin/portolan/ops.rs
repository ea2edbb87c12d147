//! `portolan ops`: which operators a device runs, and how.

use crate::args::OpsArgs;
use crate::failure::Failure;
use portolan::support;
use std::io::Write;

pub(crate) fn run(args: &OpsArgs) -> Result<(), Failure> {
    let registry = portolan::registry()?;
    let devices = match &args.device {
        Some(id) => vec![registry.open(id)?],
        None => {
            let ids = registry.devices().into_iter().map(|info| info.id.to_string());
            ids.map(|id| registry.open(&id)).collect::<Result<Vec<_>, _>>()?
        }
    };
    let mut out = std::io::stdout().lock();
    if args.markdown {
        write!(out, "{}", support::markdown(&devices)?)?;
        return Ok(());
    }
    for device in &devices {
        match args.summary {
            true => write!(out, "{}\n{}", device.id(), support::summary(device)?)?,
            false => write!(out, "{}\n{}", device.id(), support::text(device)?)?,
        }
    }
    Ok(())
}
