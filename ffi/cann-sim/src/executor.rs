//! Executors: what phase 1 hands to phase 2, and to nobody else.

use crate::aclnn::{Access, Plan};
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

/// Which of an operator's tensors an index counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Both,
    Inputs,
    Outputs,
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

    /// The next launches find a tensor elsewhere: the one with this number among the operator's tensors and lists, or among
    /// those of one side, counted also where they are left out; of a list, a member.
    ///
    /// That indices count so is how their parameters are called (`irIndex`), and nothing that was seen on a device.
    pub(crate) fn set_address(
        &self,
        side: Side,
        (index, member): (usize, usize),
        tensor: &Tensor,
        address: usize,
    ) -> Result {
        let mut state = self.state();
        if !state.repeatable {
            return Err(Fail::invalid(format!("the executor of {} is not repeatable", self.name)));
        }
        let parameters = self.plan.parameters.iter().filter(|(access, _)| match side {
            Side::Both => true,
            Side::Inputs => *access != Access::Write,
            Side::Outputs => *access != Access::Read,
        });
        let operand = parameters.clone().nth(index).and_then(|(_, members)| members.get(member).copied());
        match operand.map(|operand| (operand, &self.plan.operands[operand].0)) {
            Some((operand, own)) if own.same(tensor) => {
                state.addresses[operand] = Some(address);
                Ok(())
            }
            Some((_, own)) => {
                Err(Fail::invalid(format!("index {index} of {} is {own}, not {tensor}", self.name)))
            }
            None => Err(Fail::invalid(format!(
                "{tensor} is no operand of {}, which has none at index {index} of {}",
                self.name,
                parameters.count()
            ))),
        }
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
