//! Communicators: who is in them, and how ranks find each other.

use super::{Place, hccl, wrong};
use crate::aclnn::Together;
use crate::error::{Fail, Result};
use crate::world::{Kind, State, World, handle, number_of};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long ranks wait for each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// In the making of a communicator: `HCCL_CONNECT_TIMEOUT`.
    pub(crate) connection: Duration,
    /// In a collective: `HCCL_EXEC_TIMEOUT`.
    pub(crate) execution: Duration,
}

/// The timeouts that the environment names, in seconds, or the vendor's own.
pub(crate) fn timeouts() -> Timeouts {
    let seconds = |variable: &str, default: u64| {
        let given = std::env::var(variable).ok().and_then(|text| text.trim().parse().ok());
        Duration::from_secs(given.unwrap_or(default))
    };
    Timeouts {
        connection: seconds("HCCL_CONNECT_TIMEOUT", 120),
        execution: seconds("HCCL_EXEC_TIMEOUT", 1836),
    }
}

/// How many meetings of each kind a rank has been in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns {
    all: u64,
    to: BTreeMap<u32, u64>,
    from: BTreeMap<u32, u64>,
}

impl Turns {
    /// The number of the next meeting of a kind.
    pub(crate) fn next(&mut self, place: Place) -> u64 {
        let turn = match place {
            Place::All => &mut self.all,
            Place::To(rank) => self.to.entry(rank).or_default(),
            Place::From(rank) => self.from.entry(rank).or_default(),
        };
        *turn += 1;
        *turn
    }
}

/// A rank's membership.
pub(crate) struct Comm {
    pub(crate) clique: u64,
    pub(crate) rank: u32,
    pub(crate) device: usize,
    pub(crate) turns: Turns,
    pub(crate) suspended: bool,
    /// What `HcclGetCommAsyncError` answers.
    pub(crate) error: i32,
}

/// The ranks that belong together.
pub(crate) struct Clique {
    pub(crate) size: u32,
    pub(crate) settings: Settings,
}

/// What a configuration says of a communicator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Bytes of the buffers that operators with communication in them use.
    pub(crate) buffer: u64,
    pub(crate) deterministic: bool,
    pub(crate) name: String,
}

/// What is said where a configuration does not.
const UNSET: u32 = u32::MAX;
/// Begins every configuration, after its size.
const MAGIC: u32 = 0xf0f0_f0f0;

impl Settings {
    /// As the environment has them.
    pub(crate) fn new(name: String) -> Self {
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        let megabytes = variable("HCCL_BUFFSIZE").trim().parse().unwrap_or(200);
        let deterministic = matches!(variable("HCCL_DETERMINISTIC").as_str(), "true" | "TRUE" | "strict");
        Self { buffer: megabytes << 20, deterministic, name }
    }

    /// Changes what a configuration says: its size, magic number, version, a reserve, then megabytes, order and name.
    ///
    /// # Safety
    /// `config` is NULL or a configuration as long as its first field says.
    pub(crate) unsafe fn read(&mut self, config: *const c_void) -> Result {
        if config.is_null() {
            return Err(Fail::new(hccl::E_PTR, "the configuration is NULL"));
        }
        let base = config.cast::<u8>();
        // SAFETY: at least the header is there, as the caller says.
        let (size, magic) =
            unsafe { (base.cast::<usize>().read_unaligned(), base.add(8).cast::<u32>().read_unaligned()) };
        if magic != MAGIC {
            return Err(wrong(format!("the configuration's magic number is {magic:#x}, not {MAGIC:#x}")));
        }
        if size < 32 {
            return Err(wrong(format!("a configuration of {size} bytes has no fields")));
        }
        // SAFETY: within the size that the configuration gives for itself.
        let (megabytes, order) = unsafe {
            (base.add(24).cast::<u32>().read_unaligned(), base.add(28).cast::<u32>().read_unaligned())
        };
        if megabytes != UNSET {
            if megabytes == 0 {
                return Err(wrong("a buffer of 0 MB"));
            }
            self.buffer = u64::from(megabytes) << 20;
        }
        match order {
            UNSET => {}
            0..=2 => self.deterministic = order > 0,
            _ => return Err(wrong(format!("deterministic = {order}; it is 0, 1 or 2"))),
        }
        if size >= 32 + 128 {
            // SAFETY: 128 bytes within the configuration's size.
            let name = unsafe { core::slice::from_raw_parts(base.add(32), 128) };
            let end = name
                .iter()
                .position(|&byte| byte == 0)
                .ok_or_else(|| wrong("a name of more than 127 bytes"))?;
            if end > 0 {
                self.name = String::from_utf8_lossy(&name[..end]).into_owned();
            }
        }
        Ok(())
    }
}

/// Where ranks find each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Root {
    /// The information that one rank made.
    Info(u64),
    /// A number that the ranks of a part of a clique agree on.
    Part { clique: u64, number: u64 },
}

/// Ranks on their way to be a clique.
pub(crate) struct Rendezvous {
    size: u32,
    settings: Option<Settings>,
    /// Devices by rank.
    joined: BTreeMap<u32, usize>,
    /// Communicators by rank, once everybody has come.
    made: BTreeMap<u32, u64>,
}

impl State {
    /// A place where ranks may meet.
    pub(crate) fn open_root(&mut self, root: Root) {
        let (size, settings, joined, made) = (0, None, BTreeMap::new(), BTreeMap::new());
        self.roots.entry(root).or_insert(Rendezvous { size, settings, joined, made });
    }

    /// The communicators of a new clique, rank by rank.
    pub(crate) fn make_clique(&mut self, devices: &[usize], settings: Settings) -> Vec<u64> {
        let clique = self.number();
        self.cliques
            .insert(clique, Clique { size: u32::try_from(devices.len()).unwrap_or(u32::MAX), settings });
        let ranks = devices.iter().enumerate().map(|(rank, &device)| {
            let (number, turns) = (self.number(), Turns::default());
            let rank = u32::try_from(rank).unwrap_or(u32::MAX);
            self.comms.insert(number, Comm { clique, rank, device, turns, suspended: false, error: 0 });
            number
        });
        ranks.collect()
    }

    /// A name that no clique has.
    pub(crate) fn clique_name(&mut self) -> String {
        format!("simulated-group-{}", self.number())
    }

    /// The communicator behind a handle, whose device is current.
    pub(crate) fn comm_of(&self, comm: *mut c_void) -> Result<u64> {
        let id = self.any_comm(comm)?;
        let (_, device) = self.current().map_err(super::of_runtime)?;
        match self.comms.get(&id) {
            Some(comm) if comm.device != device => {
                let text = format!(
                    "rank {} is on device {}, and device {device} is current",
                    comm.rank, comm.device
                );
                Err(wrong(text))
            }
            _ => Ok(id),
        }
    }

    /// The communicator behind a handle.
    pub(crate) fn any_comm(&self, comm: *mut c_void) -> Result<u64> {
        if comm.is_null() {
            return Err(Fail::new(hccl::E_PTR, "the communicator is NULL"));
        }
        let id = number_of(Kind::Comm, comm).map_err(|fail| wrong(fail.text))?;
        match self.comms.contains_key(&id) {
            true => Ok(id),
            false => Err(wrong(format!("communicator {comm:p} was destroyed"))),
        }
    }

    /// The communicator of the current device in the group that an operator names, which has to fit.
    pub(crate) fn comm_named(&self, wanted: &Together) -> Result<u64> {
        let (_, device) = self.current()?;
        let name = &wanted.group;
        let mine = self.comms.iter().filter(|(_, comm)| comm.device == device);
        let mut known = mine.filter_map(|(id, comm)| Some((*id, comm, self.cliques.get(&comm.clique)?)));
        let found = known.find(|(_, _, clique)| clique.settings.name == *name);
        let (id, comm, clique) = found.ok_or_else(|| {
            Fail::invalid(format!("device {device} is in no group of the name {name:?} (HcclGetCommName)"))
        })?;
        if (i64::from(comm.rank), i64::from(clique.size)) != (wanted.rank, wanted.size) {
            return Err(Fail::invalid(format!(
                "rank {} of {} in group {name}, which has this device as rank {} of {}",
                wanted.rank, wanted.size, comm.rank, clique.size
            )));
        }
        if clique.settings.buffer < wanted.buffer as u64 {
            return Err(Fail::invalid(format!(
                "the buffer of group {name} has {} bytes, {} are needed (HCCL_BUFFSIZE)",
                clique.settings.buffer, wanted.buffer
            )));
        }
        Ok(id)
    }

    /// Ends a rank's membership.
    pub(crate) fn end_comm(&mut self, id: u64) {
        let Some(comm) = self.comms.remove(&id) else { return };
        let pending = self.has_pending_meetings(comm.clique, comm.rank);
        if !pending.is_empty() {
            self.violate(format!("{} collectives of rank {} were pending", pending.len(), comm.rank));
            self.miss_meetings(&pending, comm.rank, "its communicator was destroyed");
        }
        if !self.comms.values().any(|other| other.clique == comm.clique) {
            self.cliques.remove(&comm.clique);
        }
    }
}

impl World {
    /// Waits until every rank has come, and gives this one's communicator.
    pub(crate) fn join(
        &'static self,
        mut state: MutexGuard<'static, State>,
        root: Root,
        size: u32,
        rank: u32,
        settings: &Settings,
    ) -> Result<*mut c_void> {
        let (_, device) = state.current().map_err(super::of_runtime)?;
        let patience = state.timeouts.connection;
        let Some(place) = state.roots.get_mut(&root) else {
            return Err(wrong("the root information is not of this driver, or was used before"));
        };
        if !place.joined.is_empty() && place.size != size {
            return Err(wrong(format!("{size} ranks, and others say {}", place.size)));
        }
        if let Some(other) = place.joined.get(&rank) {
            return Err(wrong(format!("rank {rank} has come already, on device {other}")));
        }
        if let Some((other, _)) = place.joined.iter().find(|(_, taken)| **taken == device) {
            return Err(wrong(format!(
                "device {device} is rank {other}'s already; every rank needs its own"
            )));
        }
        if place.settings.as_ref().is_some_and(|other| other != settings) {
            return Err(wrong("ranks give different configurations"));
        }
        place.size = size;
        place.settings = Some(settings.clone());
        place.joined.insert(rank, device);
        if place.joined.len() == size as usize {
            let devices: Vec<usize> = place.joined.values().copied().collect();
            let made = state.make_clique(&devices, settings.clone());
            if let Some(place) = state.roots.get_mut(&root) {
                place.made = (0..size).zip(made).collect();
            }
            self.changed.notify_all();
        }
        let deadline = Instant::now().checked_add(patience);
        loop {
            let Some(place) = state.roots.get_mut(&root) else {
                return Err(wrong("the root information is gone"));
            };
            if let Some(made) = place.made.remove(&rank) {
                if place.made.is_empty() {
                    state.roots.remove(&root);
                }
                return Ok(handle(Kind::Comm, made));
            }
            let left =
                deadline.map_or(patience, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                let have: Vec<u32> = place.joined.keys().copied().collect();
                place.joined.remove(&rank);
                let text =
                    format!("of {size} ranks only {have:?} came within {patience:?} (HCCL_CONNECT_TIMEOUT)");
                return Err(Fail::new(hccl::E_TIMEOUT, text));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
