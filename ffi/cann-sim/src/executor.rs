//! Executors: what phase 1 hands to phase 2, and to nobody else.

use crate::aclnn::Plan;
use crate::error::{Fail, Result, code};
use crate::tensor::Tensor;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A planned operator.
pub(crate) struct Executor {
    /// The operator's symbol of phase 2.
    pub(crate) name: &'static str,
    pub(crate) plan: Plan,
    state: Mutex<State>,
}

/// What may still be done with an executor.
struct State {
    repeatable: bool,
    launches: u64,
    /// Addresses that took the place of the descriptors' own, by operand.
    addresses: Vec<Option<usize>>,
}

impl core::fmt::Debug for Executor {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Executor").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Executor {
    pub(crate) fn new(name: &'static str, plan: Plan) -> Self {
        let addresses = vec![None; plan.operands.len()];
        let state = Mutex::new(State { repeatable: false, launches: 0, addresses });
        Self { name, plan, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Phase 2 may follow more than once.
    pub(crate) fn make_repeatable(&self) -> Result {
        if !self.plan.repeatable {
            return Err(Fail::new(
                code::ACLNN_EXECUTOR_NOT_HANDED_OVER,
                format!("{} cannot be repeated; plan it anew for every launch", self.name),
            ));
        }
        self.state().repeatable = true;
        Ok(())
    }

    pub(crate) fn is_repeatable(&self) -> bool {
        self.state().repeatable
    }

    /// The next launches find a tensor elsewhere.
    pub(crate) fn set_address(&self, tensor: &Tensor, address: usize) -> Result {
        let mut state = self.state();
        if !state.repeatable {
            return Err(Fail::invalid(format!("the executor of {} is not repeatable", self.name)));
        }
        let mut found = false;
        for ((operand, _), place) in self.plan.operands.iter().zip(&mut state.addresses) {
            if operand.same(tensor) {
                *place = Some(address);
                found = true;
            }
        }
        if found { Ok(()) } else { Err(Fail::invalid(format!("{tensor} is no operand of {}", self.name))) }
    }

    /// Books a launch, and gives the addresses of the operands for it.
    pub(crate) fn launch(&self) -> Result<Vec<usize>> {
        let mut state = self.state();
        if state.launches > 0 && !state.repeatable {
            return Err(Fail::new(
                code::ACLNN_EXECUTOR_NOT_HANDED_OVER,
                format!("the executor of {} has run already; plan it anew for every launch", self.name),
            ));
        }
        let operands = self.plan.operands.iter().zip(&state.addresses);
        let addresses = operands.map(|((tensor, _), place)| {
            if tensor.is_destroyed() {
                return Err(Fail::invalid(format!(
                    "{tensor}, an operand of {}, was destroyed before its launch",
                    self.name
                )));
            }
            Ok(place.unwrap_or_else(|| tensor.address()))
        });
        let addresses = addresses.collect::<Result<Vec<_>>>()?;
        state.launches += 1;
        Ok(addresses)
    }
}
