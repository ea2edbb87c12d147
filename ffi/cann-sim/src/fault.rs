//! Faults that happen because a plan says so: data, and replayed exactly.

use crate::error::{Fail, code};
use crate::log::Log;
use crate::mistake::Mistake;
use serde_json::Value;
use std::collections::HashMap;
use std::time::Duration;

/// One planned fault.
enum Planned {
    /// The n-th call of a function (of any, for `*`) fails.
    Call { name: String, at: u64, code: i32 },
    /// The n-th kernel that a stream gets to fails.
    Kernel { at: u64, code: i32 },
    /// The n-th kernel that a stream gets to never ends.
    Hang { at: u64 },
    /// From its n-th collective on a rank never comes.
    Dead { rank: u32, at: u64 },
    /// A rank comes to every collective so many milliseconds late.
    Slow { rank: u32, milliseconds: u64 },
    /// The n-th collective that takes place fails.
    Link { at: u64, code: i32 },
    /// From the n-th call on, whatever reaches the device fails.
    Lost { at: u64, code: i32 },
    /// A call is given another argument.
    Mistaken(Mistake),
}

/// What was planned for one call.
#[derive(Default)]
pub(crate) struct Fate {
    pub(crate) fail: Option<Fail>,
    /// Arguments by name, and what they are instead.
    pub(crate) instead: Vec<(String, i64)>,
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
    /// The last call before the plan was made.
    planned_at: u64,
    calls: HashMap<&'static str, u64>,
    total: u64,
    kernels: u64,
    /// Collectives that each rank has called, and those that took place.
    collectives: HashMap<u32, u64>,
    meetings: u64,
    lost: Option<i32>,
}

impl Faults {
    /// The plan that a list of objects describes; counting starts anew behind a call.
    pub(crate) fn parse(list: &Value, planned_at: u64) -> Result<Self, String> {
        let rows = list.as_array().ok_or("`faults` is a list")?;
        let plan = rows.iter().map(|row| {
            let number = |key: &str| row[key].as_u64();
            let rank = number("rank").and_then(|rank| u32::try_from(rank).ok());
            let code_or =
                |default: i32| number("code").and_then(|code| i32::try_from(code).ok()).unwrap_or(default);
            if !row["argument"].is_null() {
                let mistake = Mistake::parse(row).map(Planned::Mistaken);
                mistake.ok_or_else(|| format!("`{row}`: give call, at, argument, and number or earlier"))
            } else if let (Some(name), Some(at)) = (row["call"].as_str(), number("at")) {
                Ok(Planned::Call { name: name.into(), at, code: code_or(code::INTERNAL) })
            } else if let Some(at) = number("kernel") {
                Ok(Planned::Kernel { at, code: code_or(code::RT_AICORE_EXCEPTION) })
            } else if let Some(at) = number("hang") {
                Ok(Planned::Hang { at })
            } else if let (Some(rank), Some(at)) = (rank, number("dead_at")) {
                Ok(Planned::Dead { rank, at })
            } else if let (Some(rank), Some(milliseconds)) = (rank, number("slow_ms")) {
                Ok(Planned::Slow { rank, milliseconds })
            } else if let Some(at) = number("link") {
                Ok(Planned::Link { at, code: code_or(code::RT_LINK_ERROR) })
            } else if let Some(at) = number("lost") {
                Ok(Planned::Lost { at, code: code_or(code::DRV_INTERNAL) })
            } else {
                Err(format!("`{row}` is no fault: give call and at, with argument or without, kernel, hang, lost, link, or rank with dead_at or slow_ms"))
            }
        });
        Ok(Self { plan: plan.collect::<Result<_, _>>()?, planned_at, ..Self::default() })
    }

    /// Counts a call, and says what becomes of it.
    pub(crate) fn at_call(&mut self, name: &'static str, log: &Log) -> Fate {
        self.total += 1;
        let count = self.calls.entry(name).or_insert(0);
        *count += 1;
        let (count, total) = (*count, self.total);
        let mut fate = Fate::default();
        for planned in &self.plan {
            match planned {
                Planned::Call { name: wanted, at, code } if wanted == "*" && *at == total => {
                    let fail = || Fail::new(*code, format!("planned: call {total} fails"));
                    fate.fail.get_or_insert_with(fail);
                }
                Planned::Call { name: wanted, at, code } if wanted == name && *at == count => {
                    let fail = || Fail::new(*code, format!("planned: call {count} of {name} fails"));
                    fate.fail.get_or_insert_with(fail);
                }
                Planned::Lost { at, code } if *at == total => self.lost = Some(*code),
                Planned::Mistaken(mistake) if mistake.call == name && mistake.at == count => {
                    match mistake.replacement(log, self.planned_at) {
                        Ok(instead) => fate.instead.push(instead),
                        Err(why) => {
                            fate.fail.get_or_insert_with(|| Fail::new(code::INTERNAL, why));
                        }
                    }
                }
                _ => {}
            }
        }
        fate
    }

    /// The code of every call that needs the device, once it is lost.
    pub(crate) fn lost(&self) -> Option<Fail> {
        self.lost.map(|code| Fail::new(code, "planned: the device is lost"))
    }

    /// Counts a rank's collective: why the rank never comes to it, and how late it does.
    pub(crate) fn at_collective(&mut self, rank: u32) -> (Option<String>, Option<Duration>) {
        let count = self.collectives.entry(rank).or_insert(0);
        *count += 1;
        let dead = |planned: &Planned| match planned {
            Planned::Dead { rank: dead, at } => *dead == rank && *count >= *at,
            _ => false,
        };
        let absent = self.plan.iter().any(dead).then(|| format!("planned: rank {rank} is dead"));
        let delay = self.plan.iter().find_map(|planned| match planned {
            Planned::Slow { rank: slow, milliseconds } if *slow == rank => {
                Some(Duration::from_millis(*milliseconds))
            }
            _ => None,
        });
        (absent, delay)
    }

    /// Counts a collective that takes place, and says whether it fails.
    pub(crate) fn at_meeting(&mut self) -> Option<Fail> {
        self.meetings += 1;
        let now = self.meetings;
        self.plan.iter().find_map(|planned| match planned {
            Planned::Link { at, code } if *at == now => {
                Some(Fail::new(*code, format!("planned: the link fails in collective {now}")))
            }
            _ => None,
        })
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
