//! [`Random`]: a pure function of seed and counter.

use super::Random;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::kernel::{RandomKind, RandomSpec};

impl Random {
    /// Fills `out`; element `i` depends on the seed and on its place only.
    ///
    /// # Errors
    /// As [`RandomSpec::new`] and [`crate::Call::bind`].
    pub fn new(kind: RandomKind, seed: u64, out: &mut Tensor) -> Result<Self> {
        Self::bind(RandomSpec::new(kind, seed, out.spec())?, &[out])
    }

    /// Starts at a counter that lies on the device, so that a captured call draws new numbers every replay.
    ///
    /// # Errors
    /// As [`RandomSpec::with_counter`] and [`crate::Call::bind`].
    pub fn counter(self, counter: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_counter(counter.spec())?, &[("counter", counter)])
    }
}
