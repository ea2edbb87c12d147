//! The one world of a loaded copy of the library: its devices, memory, streams, faults and log.

use crate::fault::Faults;
use crate::log::Log;
use crate::profile::Profile;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Everything behind one lock.
pub(crate) struct State {
    pub(crate) profile: Profile,
    pub(crate) log: Log,
    pub(crate) faults: Faults,
}

/// The world.
pub(crate) struct World {
    state: Mutex<State>,
}

static WORLD: OnceLock<World> = OnceLock::new();

/// The world, made by whatever comes first: a configuration or a call.
pub(crate) fn world() -> &'static World {
    WORLD.get_or_init(|| World {
        state: Mutex::new(State {
            profile: Profile::default(),
            log: Log::default(),
            faults: Faults::default(),
        }),
    })
}

impl World {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
