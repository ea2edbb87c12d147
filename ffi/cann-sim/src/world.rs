//! The one world of a loaded copy of the library: its devices, memory, streams, faults and log.

use crate::arena::PAGE;
use crate::capture::Capture;
use crate::collective::{Clique, Comm, Key, Meeting, Rendezvous, Root, Timeouts, timeouts};
use crate::context::Context;
use crate::error::{Fail, Result, code};
use crate::fault::Faults;
use crate::graph::{Graph, Group};
use crate::log::Log;
use crate::memory::{ALIGNMENT, Memory};
use crate::profile::Profile;
use crate::schedule::{Adversary, Schedule};
use crate::stream::{Event, HostCall, Stream};
use crate::tolerance::Rule;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::c_void;
use std::sync::{Condvar, Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::time::Duration;

/// What a world is made of.
pub(crate) struct Options {
    pub(crate) profile: Profile,
    pub(crate) devices: usize,
    /// Bytes each device has.
    pub(crate) memory_bytes: usize,
    /// What addresses of allocations are multiples of: 64 is what the vendor promises, and programs rely on more.
    pub(crate) alignment: usize,
    pub(crate) adversary: Adversary,
    pub(crate) seed: u64,
    pub(crate) faults: Faults,
    /// Tasks that one graph may hold.
    pub(crate) graph_tasks: usize,
    /// How long ranks wait for each other.
    pub(crate) timeouts: Timeouts,
    /// Rules that may be broken.
    pub(crate) tolerated: Vec<Rule>,
    /// Whether leaks are reported on standard error when the program finalises.
    pub(crate) reports: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            profile: Profile::default(),
            devices: 2,
            memory_bytes: 4 << 30,
            alignment: ALIGNMENT,
            adversary: Adversary::Late,
            seed: 0,
            faults: Faults::default(),
            // The vendor documents streams and events as the limit, and none of tasks.
            graph_tasks: usize::MAX,
            timeouts: timeouts(),
            tolerated: Vec::new(),
            reports: false,
        }
    }
}

impl Options {
    /// The options that an object describes; what it does not say is as in the default.
    pub(crate) fn parse(config: &Value) -> core::result::Result<Self, String> {
        let mut options = Self::default();
        let number = |key: &str| match &config[key] {
            Value::Null => Ok(None),
            value => value.as_u64().map(Some).ok_or_else(|| format!("`{key}` is {value}, expected a number")),
        };
        if let Some(name) = config["soc"].as_str() {
            options.profile = Profile::named(name).ok_or_else(|| {
                format!("`soc` is {name}, expected 310P, A2, A3 or 950, or the name of a chip")
            })?;
        }
        if let Some(devices) = number("devices")? {
            options.devices = usize::try_from(devices).unwrap_or(usize::MAX).clamp(1, 64);
        }
        if let Some(bytes) = number("memory_bytes")? {
            options.memory_bytes = usize::try_from(bytes).map_err(|error| error.to_string())?;
        }
        if let Some(alignment) = number("alignment")? {
            options.alignment = usize::try_from(alignment)
                .ok()
                .filter(|bytes| bytes.is_power_of_two() && (ALIGNMENT..PAGE).contains(bytes))
                .ok_or_else(|| {
                    format!("`alignment` is {alignment}, expected a power of two from 64 to 2048")
                })?;
        }
        if let Some(tasks) = number("graph_tasks")? {
            options.graph_tasks = usize::try_from(tasks).unwrap_or(usize::MAX);
        }
        if let Some(ms) = number("connection_timeout_ms")? {
            options.timeouts.connection = Duration::from_millis(ms);
        }
        if let Some(ms) = number("execution_timeout_ms")? {
            options.timeouts.execution = Duration::from_millis(ms);
        }
        if let Some(name) = config["adversary"].as_str() {
            options.adversary = Adversary::named(name)
                .ok_or_else(|| format!("`adversary` is {name}, expected late, early or seeded"))?;
        }
        options.seed = number("seed")?.unwrap_or(0);
        for name in config["tolerated"].as_array().into_iter().flatten() {
            let rule = name.as_str().and_then(Rule::named);
            options
                .tolerated
                .push(rule.ok_or_else(|| format!("`tolerated` names {name}, which is no rule"))?);
        }
        if !config["faults"].is_null() {
            options.faults = Faults::parse(&config["faults"], 0)?;
        }
        Ok(options)
    }
}

/// Everything behind one lock.
pub(crate) struct State {
    pub(crate) profile: Profile,
    pub(crate) devices: usize,
    pub(crate) log: Log,
    pub(crate) faults: Faults,
    pub(crate) memory: Memory,
    pub(crate) schedule: Schedule,
    pub(crate) contexts: BTreeMap<u64, Context>,
    pub(crate) streams: BTreeMap<u64, Stream>,
    pub(crate) events: BTreeMap<u64, Event>,
    pub(crate) captures: BTreeMap<u64, Capture>,
    pub(crate) graphs: BTreeMap<u64, Graph>,
    /// Groups of tasks: the graph, and where in it.
    pub(crate) groups: BTreeMap<u64, (u64, Group)>,
    pub(crate) graph_tasks: usize,
    pub(crate) comms: BTreeMap<u64, Comm>,
    pub(crate) cliques: BTreeMap<u64, Clique>,
    /// Where ranks that come together find each other.
    pub(crate) roots: BTreeMap<Root, Rendezvous>,
    pub(crate) meetings: BTreeMap<Key, Meeting>,
    pub(crate) timeouts: Timeouts,
    /// How long a stream waits for an event where the wait does not say.
    pub(crate) wait_timeout: Option<Duration>,
    /// Functions of the program that were left for a thread, with their numbers; those that have not ended yet.
    pub(crate) callbacks: BTreeMap<u64, VecDeque<(HostCall, u64)>>,
    pub(crate) open_reports: BTreeSet<u64>,
    /// The thread that a stream's reports go to.
    pub(crate) subscribers: BTreeMap<u64, u64>,
    /// (from, to): devices that may read each other.
    pub(crate) peers: BTreeSet<(usize, usize)>,
    /// Calls of `aclInit` that were not taken back.
    pub(crate) initialized: u64,
    /// What the program did that hardware would not have told it.
    pub(crate) violations: Vec<String>,
    /// Pairs of streams whose work was found without an order.
    pub(crate) disordered: BTreeSet<(u64, u64)>,
    /// Rules that may be broken, and how often each function did.
    pub(crate) tolerated: BTreeMap<Rule, BTreeMap<String, u64>>,
    pub(crate) reports: bool,
    /// Why there are no devices.
    pub(crate) broken: Option<String>,
    numbers: u64,
}

impl State {
    /// A number that nothing else has.
    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Books what hardware would have let pass.
    pub(crate) fn violate(&mut self, what: String) {
        let call = self.log.last();
        let name = self.log.name(call).unwrap_or("a call");
        self.violations.push(format!("{name} (call {call}): {what}"));
    }
}

/// The world.
pub(crate) struct World {
    state: Mutex<State>,
    /// Told whenever work was enqueued or has run.
    pub(crate) changed: Condvar,
}

static WORLD: OnceLock<World> = OnceLock::new();

/// The world, made by whatever comes first: a configuration, or a call, which reads `PORTOLAN_SIM_CONFIG`.
pub(crate) fn world() -> &'static World {
    found(|| match from_environment() {
        Ok(options) => options,
        Err(why) => {
            // Nobody else is there to be told.
            eprintln!("simulated CANN: PORTOLAN_SIM_CONFIG: {why}; the defaults are used");
            Options::default()
        }
    })
}

/// Makes the world as configured; too late when it exists.
pub(crate) fn configure(options: Options) -> core::result::Result<(), String> {
    let mut options = Some(options);
    found(|| options.take().unwrap_or_default());
    match options {
        None => Ok(()),
        Some(_) => Err("the world exists already; configure it before the first call".into()),
    }
}

fn found(options: impl FnOnce() -> Options) -> &'static World {
    static SCHEDULER: Once = Once::new();
    let world = WORLD.get_or_init(|| World::new(options()));
    SCHEDULER.call_once(|| {
        let spawned = std::thread::Builder::new().name("cann-sim".into()).spawn(move || world.run_schedule());
        if let Err(error) = spawned {
            let mut state = world.state();
            state.devices = 0;
            state.broken = Some(format!("no thread to run work on: {error}"));
        }
    });
    world
}

fn from_environment() -> core::result::Result<Options, String> {
    let Some(path) = std::env::var_os("PORTOLAN_SIM_CONFIG") else { return Ok(Options::default()) };
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let config: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let options = Options::parse(&config)?;
    eprintln!("simulated CANN: {config}");
    Ok(Options { reports: true, ..options })
}

impl World {
    fn new(options: Options) -> Self {
        let Options {
            profile,
            memory_bytes,
            alignment,
            adversary,
            seed,
            faults,
            graph_tasks,
            timeouts,
            reports,
            ..
        } = options;
        let memory = Memory::new(options.devices, memory_bytes, profile.padding(), alignment);
        let (memory, broken) = match memory {
            Ok(memory) => (memory, None),
            Err(why) => (Memory::none(), Some(format!("device memory cannot be mapped: {why}"))),
        };
        let devices = if broken.is_some() { 0 } else { options.devices };
        let state = State {
            profile,
            devices,
            log: Log::default(),
            faults,
            memory,
            schedule: Schedule::new(adversary, seed),
            contexts: BTreeMap::new(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            captures: BTreeMap::new(),
            graphs: BTreeMap::new(),
            groups: BTreeMap::new(),
            graph_tasks,
            comms: BTreeMap::new(),
            cliques: BTreeMap::new(),
            roots: BTreeMap::new(),
            meetings: BTreeMap::new(),
            timeouts,
            wait_timeout: None,
            callbacks: BTreeMap::new(),
            open_reports: BTreeSet::new(),
            subscribers: BTreeMap::new(),
            peers: BTreeSet::new(),
            initialized: 0,
            violations: Vec::new(),
            disordered: BTreeSet::new(),
            tolerated: options.tolerated.into_iter().map(|rule| (rule, BTreeMap::new())).collect(),
            reports,
            broken,
            numbers: 0,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says what a device address is, from a signal handler: takes no memory, and does not wait.
pub(crate) fn explain_fault(address: usize, out: &mut impl core::fmt::Write) {
    let Some(world) = WORLD.get() else { return };
    if let Ok(state) = world.state.try_lock() {
        state.memory.explain(address, out);
        let last = state.log.last();
        let _ = write!(out, "; the last call was {} (call {last})", state.log.name(last).unwrap_or("none"));
    }
}

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Context = 1,
    Stream = 2,
    Event = 3,
    Graph = 4,
    Group = 5,
    Comm = 6,
    Physical = 7,
}

/// Handles are numbers that no process maps: following one faults at once.
const HANDLES: u64 = 0x5cb0_0000_0000_0000;

/// The handle of something with a number.
pub(crate) fn handle(kind: Kind, number: u64) -> *mut c_void {
    let value = HANDLES | (kind as u64) << 48 | number << 4;
    core::ptr::without_provenance_mut(value as usize)
}

/// The number behind a handle.
pub(crate) fn number_of(kind: Kind, handle: *mut c_void) -> Result<u64> {
    let value = handle.addr() as u64;
    let number = value & 0xffff_ffff_ffff;
    if value & !0xffff_ffff_ffff == HANDLES | (kind as u64) << 48 && number.is_multiple_of(16) {
        return Ok(number >> 4);
    }
    Err(Fail::new(code::RT_INVALID_HANDLE, format!("{handle:p} is no {kind:?} that this driver made")))
}
