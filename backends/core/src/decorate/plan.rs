//! Faults as data: what goes wrong, when, and where. A plan is a text that can be stored beside a test.

use core::fmt;
use core::str::FromStr;
use portolan_ops::{OpError, Result, philox_block};
use std::time::Duration;

/// What goes wrong in a run.
///
/// Prints and parses as `seed=7; oom@3; refused@5:linear; wrong(0.001)@1:linear:layers.3`: what, at which occurrence
/// (counted from 1, among those of the operator and within the scope that follow it), and `?100` for one of the first
/// hundred, chosen by the seed.
///
/// | fault | counts | what happens |
/// | --- | --- | --- |
/// | `oom` | allocations | this one is `OutOfMemory` |
/// | `refused` | launches | `run` gives a `Driver` error, the stream stays well |
/// | `failed` | launches | the kernel does not run and its stream is poisoned |
/// | `lost` | launches | the device is gone: every stream is poisoned, every later call a `Driver` error |
/// | `wrong(x)` | launches with a float result | one element of the result is off by x, silently |
/// | `dead(rank)` | collectives of that rank in a group | the rank takes no part any more and tells nobody |
/// | `killed(rank)` | collectives of that rank in a group | the rank dies while data moves, as far in as the seed says, and tells nobody |
/// | `slow(rank,ms)` | collectives of that rank in a group | the rank comes so much later |
///
/// Every group counts for itself, so that a plan does not depend on how threads meet: a rank dies in the group in which
/// its count is reached. Launches count operators over ranks, too.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FaultPlan {
    /// Chooses occurrences and elements that the plan leaves open.
    pub seed: u64,
    /// The faults.
    pub faults: Vec<PlannedFault>,
}

/// One fault of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedFault {
    /// What goes wrong.
    pub kind: FaultKind,
    /// At which occurrence.
    pub at: Moment,
    /// Counts launches of this operator only, by name; `None`: of all.
    pub op: Option<String>,
    /// Counts launches within this scope only; `None`: everywhere.
    pub path: Option<String>,
}

/// What goes wrong; see [`FaultPlan`].
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FaultKind {
    /// An allocation is `OutOfMemory`.
    OutOfMemory,
    /// A launch is refused by the driver.
    Refused,
    /// A kernel fails when it runs.
    Failed,
    /// The device is gone.
    Lost,
    /// A result is off by so much in one element.
    Wrong(f64),
    /// A rank dies.
    Dead {
        /// Which.
        rank: u32,
    },
    /// A rank dies within an operator, having met the others.
    Killed {
        /// Which.
        rank: u32,
    },
    /// A rank is late.
    Slow {
        /// Which.
        rank: u32,
        /// By how much.
        delay: Duration,
    },
}

/// At which occurrence a fault strikes, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Exactly here.
    Nth(u64),
    /// At one of the first so many, by the plan's seed.
    Within(u64),
}

impl FaultPlan {
    /// A plan without faults.
    pub fn new(seed: u64) -> Self {
        Self { seed, faults: Vec::new() }
    }

    /// Adds a fault at an occurrence of any operator.
    pub fn with(self, kind: FaultKind, at: Moment) -> Self {
        self.with_fault(PlannedFault { kind, at, op: None, path: None })
    }

    /// Adds a fault.
    pub fn with_fault(mut self, fault: PlannedFault) -> Self {
        self.faults.push(fault);
        self
    }

    /// The occurrence that fault `index` strikes at.
    pub fn occurrence(&self, index: usize) -> u64 {
        match self.faults.get(index).map(|fault| fault.at) {
            Some(Moment::Nth(n)) => n,
            Some(Moment::Within(n)) => 1 + self.choose(index as u64, n),
            None => 0,
        }
    }

    /// A number below `n` (0 below 1), the same for the same plan and `about`.
    pub(crate) fn choose(&self, about: u64, n: u64) -> u64 {
        let [low, high, ..] = philox_block(self.seed, about);
        (u64::from(high) << 32 | u64::from(low)).checked_rem(n).unwrap_or(0)
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed={}", self.seed)?;
        self.faults.iter().try_for_each(|fault| write!(f, "; {fault}"))
    }
}

impl fmt::Display for PlannedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            FaultKind::OutOfMemory => f.write_str("oom")?,
            FaultKind::Refused => f.write_str("refused")?,
            FaultKind::Failed => f.write_str("failed")?,
            FaultKind::Lost => f.write_str("lost")?,
            FaultKind::Wrong(by) => write!(f, "wrong({by:?})")?,
            FaultKind::Dead { rank } => write!(f, "dead({rank})")?,
            FaultKind::Killed { rank } => write!(f, "killed({rank})")?,
            FaultKind::Slow { rank, delay } => write!(f, "slow({rank},{})", delay.as_millis())?,
        }
        match self.at {
            Moment::Nth(n) => write!(f, "@{n}")?,
            Moment::Within(n) => write!(f, "@?{n}")?,
        }
        match (&self.op, &self.path) {
            (None, None) => Ok(()),
            (op, None) => write!(f, ":{}", op.as_deref().unwrap_or_default()),
            (op, Some(path)) => write!(f, ":{}:{path}", op.as_deref().unwrap_or_default()),
        }
    }
}

impl FromStr for FaultPlan {
    type Err = OpError;

    fn from_str(text: &str) -> Result<Self> {
        let mut plan = Self::default();
        for item in text.split(';').map(str::trim).filter(|item| !item.is_empty()) {
            match item.strip_prefix("seed=") {
                Some(seed) => plan.seed = seed.trim().parse().map_err(|_| unread(item))?,
                None => plan.faults.push(item.parse()?),
            }
        }
        Ok(plan)
    }
}

impl FromStr for PlannedFault {
    type Err = OpError;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).ok_or_else(|| unread(text))
    }
}

fn parse(text: &str) -> Option<PlannedFault> {
    let (what, rest) = text.trim().split_once('@')?;
    let (name, given) = match what.split_once('(') {
        Some((name, given)) => (name, given.strip_suffix(')')?.split(',').map(str::trim).collect()),
        None => (what, Vec::new()),
    };
    let kind = match (name.trim(), given.as_slice()) {
        ("oom", []) => FaultKind::OutOfMemory,
        ("refused", []) => FaultKind::Refused,
        ("failed", []) => FaultKind::Failed,
        ("lost", []) => FaultKind::Lost,
        ("wrong", [by]) => FaultKind::Wrong(by.parse().ok()?),
        ("dead", [rank]) => FaultKind::Dead { rank: rank.parse().ok()? },
        ("killed", [rank]) => FaultKind::Killed { rank: rank.parse().ok()? },
        ("slow", [rank, ms]) => {
            FaultKind::Slow { rank: rank.parse().ok()?, delay: Duration::from_millis(ms.parse().ok()?) }
        }
        _ => return None,
    };
    let mut rest = rest.splitn(3, ':').map(str::trim);
    let count = rest.next()?;
    let at = match count.strip_prefix('?') {
        Some(n) => Moment::Within(n.parse().ok().filter(|&n| n > 0)?),
        None => Moment::Nth(count.parse().ok().filter(|&n| n > 0)?),
    };
    let mut name = || rest.next().filter(|name| !name.is_empty()).map(str::to_owned);
    Some(PlannedFault { kind, at, op: name(), path: name() })
}

fn unread(item: &str) -> OpError {
    let what = format!(
        "has `{item}`; write what@count, as in oom@3, refused@5:linear, failed@?100, lost@9, wrong(0.001)@1:linear:layers.3, \
         dead(2)@4, killed(0)@?9:all_reduce, slow(1,50)@2 or seed=7, with `;` between"
    );
    OpError::attribute("fault plan", "text", what)
}
