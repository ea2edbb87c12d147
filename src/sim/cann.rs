//! A simulated Ascend driver.

use portolan_cann_sys::sim::{SimError, SimOptions, SimWorld};
use portolan_ops::{OpError, Result};

/// Makes a world of simulated Ascend devices.
///
/// The backend opens its folder like any driver's. Worlds know nothing of each other, so several products live side by
/// side in one process. Dropping a world says on standard error what was left in it.
///
/// # Errors
/// `Unavailable` when the simulator's library is neither beside the program, in `deps` beside it, in `../lib` nor where
/// the options say, with the command that builds it; or for options that make no sense.
///
/// # Examples
/// ```no_run
/// use portolan::cann::{CannBackend, CannOptions};
/// use portolan::{Registry, sim};
///
/// let world = sim::cann(sim::SimOptions { soc: "A2".into(), ..Default::default() })?;
/// let backend = CannBackend::new(CannOptions { folder: Some(world.folder().to_owned()), ..CannOptions::default() });
/// let device = Registry::new().with(backend).open("cann:0")?;
/// println!("{}", device.info().name); // Ascend910B3 SIMULATED
/// # Ok::<(), portolan::OpError>(())
/// ```
pub fn cann(options: SimOptions) -> Result<SimWorld> {
    SimWorld::new(&options).map_err(|error: SimError| OpError::Unavailable {
        backend: "simulated cann".into(),
        what: error.to_string(),
    })
}
