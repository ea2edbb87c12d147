//! Faults that happen because a plan says so: data, and replayed exactly.

use crate::error::{Fail, code};
use serde_json::Value;
use std::collections::HashMap;

/// One planned fault.
enum Planned {
    /// The n-th call of a function (of any, for `*`) fails.
    Call { name: String, at: u64, code: i32 },
    /// The n-th kernel that a stream gets to fails.
    Kernel { at: u64, code: i32 },
    /// The n-th kernel that a stream gets to never ends.
    Hang { at: u64 },
    /// From the n-th call on, whatever reaches the device fails.
    Lost { at: u64, code: i32 },
}

/// What happens to a kernel.
pub(crate) enum KernelFault {
    Fails(Fail),
    Hangs,
}

/// The plan, and how far the program has come.
#[derive(Default)]
pub(crate) struct Faults {
    plan: Vec<Planned>,
    calls: HashMap<&'static str, u64>,
    total: u64,
    kernels: u64,
    lost: Option<i32>,
}

impl Faults {
    /// The plan that a list of objects describes; counting starts anew.
    pub(crate) fn parse(list: &Value) -> Result<Self, String> {
        let rows = list.as_array().ok_or("`faults` is a list")?;
        let plan = rows.iter().map(|row| {
            let number = |key: &str| row[key].as_u64();
            let code_or =
                |default: i32| number("code").and_then(|code| i32::try_from(code).ok()).unwrap_or(default);
            if let (Some(name), Some(at)) = (row["call"].as_str(), number("at")) {
                Ok(Planned::Call { name: name.into(), at, code: code_or(code::INTERNAL) })
            } else if let Some(at) = number("kernel") {
                Ok(Planned::Kernel { at, code: code_or(code::RT_AICORE_EXCEPTION) })
            } else if let Some(at) = number("hang") {
                Ok(Planned::Hang { at })
            } else if let Some(at) = number("lost") {
                Ok(Planned::Lost { at, code: code_or(code::DRV_INTERNAL) })
            } else {
                Err(format!("`{row}` is no fault: give call and at, kernel, hang or lost"))
            }
        });
        Ok(Self { plan: plan.collect::<Result<_, _>>()?, ..Self::default() })
    }

    /// Counts a call, and says whether it fails.
    pub(crate) fn at_call(&mut self, name: &'static str) -> Option<Fail> {
        self.total += 1;
        let count = self.calls.entry(name).or_insert(0);
        *count += 1;
        let (count, total) = (*count, self.total);
        for planned in &self.plan {
            match planned {
                Planned::Call { name: wanted, at, code } if wanted == "*" && *at == total => {
                    return Some(Fail::new(*code, format!("planned: call {total} fails")));
                }
                Planned::Call { name: wanted, at, code } if wanted == name && *at == count => {
                    return Some(Fail::new(*code, format!("planned: call {count} of {name} fails")));
                }
                Planned::Lost { at, code } if *at == total => self.lost = Some(*code),
                _ => {}
            }
        }
        None
    }

    /// The code of every call that needs the device, once it is lost.
    pub(crate) fn lost(&self) -> Option<Fail> {
        self.lost.map(|code| Fail::new(code, "planned: the device is lost"))
    }

    /// Counts a kernel that a stream got to, and says what becomes of it.
    pub(crate) fn at_kernel(&mut self) -> Option<KernelFault> {
        self.kernels += 1;
        let now = self.kernels;
        self.plan.iter().find_map(|planned| match planned {
            Planned::Kernel { at, code } if *at == now => {
                Some(KernelFault::Fails(Fail::new(*code, format!("planned: kernel {now} fails"))))
            }
            Planned::Hang { at } if *at == now => Some(KernelFault::Hangs),
            _ => None,
        })
    }
}
