//! A world of the simulated driver: a folder that looks like a driver's, and the questions that only a simulator answers.
//!
//! A world is one copy of the simulator's library in a temporary folder, under the vendor's first name, with links for
//! the other names. Whoever opens that folder opens this world; worlds know nothing of each other. Nothing outside
//! tests and demonstrations needs any of this.

mod hide;

use crate::load::{Libraries, LoadError};
use serde_json::{Value, json};
use std::ffi::{CString, c_char};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The simulator's own file.
const FILE: &str = "libportolan_cann_sim.so";
/// What the copy is called, and what the links are.
const COPY: &str = "libascendcl.so";
const LINKS: [&str; 3] = ["libnnopbase.so", "libopapi.so", "libhccl.so"];

/// When work that nobody waits for runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Adversary {
    /// As late as legal.
    #[default]
    Late,
    /// As soon as it is enqueued.
    Early,
    /// A few pieces at a time, by the seed.
    Seeded,
}

impl Adversary {
    fn name(self) -> &'static str {
        match self {
            Self::Late => "late",
            Self::Early => "early",
            Self::Seeded => "seeded",
        }
    }
}

/// A fault that is to happen. Counts begin at 1, anew with each plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlannedFault {
    /// The `at`-th call of a function, or of any function for `*`, returns `code`.
    Call {
        /// The function.
        call: String,
        /// Which of its calls.
        at: u64,
        /// What it returns.
        code: i32,
    },
    /// The `at`-th call of a function is carried out with another argument: a mistake of the program's.
    Argument {
        /// The function.
        call: String,
        /// Which of its calls.
        at: u64,
        /// The parameter, by the name that the log uses.
        argument: String,
        /// What it is given.
        instead: Instead,
    },
    /// The `at`-th kernel that is run fails with `code`.
    Kernel {
        /// Which kernel.
        at: u64,
        /// What its stream reports.
        code: i32,
    },
    /// The `at`-th kernel that is run never ends.
    Hang {
        /// Which kernel.
        at: u64,
    },
    /// From its `at`-th collective on a rank never comes; the others wait for it in vain.
    DeadRank {
        /// The rank.
        rank: u32,
        /// Which of its collectives.
        at: u64,
    },
    /// A rank comes late to every collective.
    SlowRank {
        /// The rank.
        rank: u32,
        /// By so much.
        late: Duration,
    },
    /// The `at`-th collective that takes place fails on every rank with `code`.
    Link {
        /// Which collective.
        at: u64,
        /// What the streams report.
        code: i32,
    },
    /// From the `at`-th call of any function on the device is lost, and every call that needs it returns `code`.
    Lost {
        /// Which call.
        at: u64,
        /// What calls return.
        code: i32,
    },
}

/// What an argument is replaced by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instead {
    /// A number; bits of an address, for a pointer.
    Number(i64),
    /// What an argument was in an earlier call, moved by so much.
    Earlier {
        /// The function.
        call: String,
        /// Which of its calls since the plan was made.
        at: u64,
        /// The parameter.
        argument: String,
        /// What is added.
        plus: i64,
    },
}

impl Instead {
    fn json(&self) -> (&'static str, Value) {
        match self {
            Self::Number(number) => ("number", (*number).into()),
            Self::Earlier { call, at, argument, plus } => {
                ("earlier", json!({ "call": call, "at": at, "argument": argument, "plus": plus }))
            }
        }
    }
}

impl PlannedFault {
    fn json(&self) -> Value {
        match self {
            Self::Call { call, at, code } => json!({ "call": call, "at": at, "code": code }),
            Self::Argument { call, at, argument, instead } => {
                let (key, value) = instead.json();
                json!({ "call": call, "at": at, "argument": argument, key: value })
            }
            Self::Kernel { at, code } => json!({ "kernel": at, "code": code }),
            Self::Hang { at } => json!({ "hang": at }),
            Self::DeadRank { rank, at } => json!({ "rank": rank, "dead_at": at }),
            Self::SlowRank { rank, late } => json!({ "rank": rank, "slow_ms": milliseconds(Some(*late)) }),
            Self::Link { at, code } => json!({ "link": at, "code": code }),
            Self::Lost { at, code } => json!({ "lost": at, "code": code }),
        }
    }
}

/// What a world is like.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// The product: `310P`, `A2`, `A3` or `950`.
    pub soc: String,
    /// How many devices it has.
    pub devices: u32,
    /// Bytes each device has.
    pub memory_bytes: u64,
    /// When work runs.
    pub adversary: Adversary,
    /// Chooses among legal orders.
    pub seed: u64,
    /// What is to go wrong.
    pub faults: Vec<PlannedFault>,
    /// Tasks that one captured graph may hold; `None` is without a limit.
    pub graph_tasks: Option<u64>,
    /// How long ranks wait for each other in the making of a communicator; `None` as the environment says.
    pub connection_timeout: Option<Duration>,
    /// How long ranks wait for each other in a collective; `None` as the environment says.
    pub execution_timeout: Option<Duration>,
    /// Symbols that this driver lacks, as an older one would.
    pub hidden: Vec<String>,
    /// The simulator's library, where it is not near the program.
    pub library: Option<PathBuf>,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            soc: "A3".into(),
            devices: 2,
            memory_bytes: 4 << 30,
            adversary: Adversary::default(),
            seed: 0,
            faults: Vec::new(),
            graph_tasks: None,
            connection_timeout: None,
            execution_timeout: None,
            hidden: Vec::new(),
            library: None,
        }
    }
}

/// Why there is no such world.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SimError {
    /// The simulator's library is not there.
    #[error("{FILE} is in none of {looked}; build it with `cargo build -p portolan-cann-sim`")]
    NotBuilt {
        /// The folders that were looked in.
        looked: String,
    },
    /// The folder cannot be made.
    #[error("{what}: {why}")]
    Folder {
        /// What was done.
        what: String,
        /// What the system said.
        why: String,
    },
    /// The copy cannot be opened.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The simulator refused.
    #[error("the simulator: {0}")]
    Refused(String),
}

/// A call that the world has seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Its number: calls are counted from 1.
    pub number: u64,
    /// The calling thread, by the order of first calls.
    pub thread: u64,
    /// The function.
    pub name: String,
    /// What it was given, by parameter.
    pub arguments: Value,
    /// What it returned; `None` while it has not.
    pub code: Option<i32>,
    /// What went wrong, if anything did.
    pub message: String,
}

/// What a world still holds, and what was wrong in it. Empty is good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimReport(Vec<String>);

impl SimReport {
    /// One line for each thing that is left or was wrong.
    pub fn lines(&self) -> &[String] {
        &self.0
    }

    /// Whether nothing is left and nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.0.is_empty()
    }

    fn read(answer: &Value) -> Self {
        let mut lines = Vec::new();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        for block in list(&answer["memory"]["device"]) {
            let (number, bytes, device) = (&block["number"], &block["bytes"], &block["device"]);
            lines.push(format!(
                "allocation {number} of {bytes} bytes on device {device}, made by call {}",
                block["call"]
            ));
        }
        for block in list(&answer["memory"]["host"]) {
            lines.push(format!("{} bytes of pinned memory", block["bytes"]));
        }
        for (kind, what) in [("reserved", "ranges of addresses"), ("physical", "pieces of physical memory")] {
            let count = answer["memory"][kind].as_u64().unwrap_or(0);
            lines.extend((count > 0).then(|| format!("{count} {what}")));
        }
        for kind in ["streams", "events", "graphs", "captures", "communicators", "contexts", "pending"] {
            let count = answer[kind].as_u64().unwrap_or(0);
            let what = if kind == "pending" { "pieces of pending work" } else { kind };
            lines.extend((count > 0).then(|| format!("{count} {what}")));
        }
        let descriptors = answer["descriptors"].as_object().into_iter().flatten();
        lines.extend(descriptors.map(|(name, count)| format!("{count} {name}")));
        for line in list(&answer["damage"]).iter().chain(&list(&answer["violations"])) {
            lines.push(line.as_str().unwrap_or_default().to_owned());
        }
        Self(lines)
    }
}

impl core::fmt::Display for SimReport {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// A world. Dropping it says on standard error what is left in it; its library stays loaded.
pub struct SimWorld {
    folder: PathBuf,
    libraries: Arc<Libraries>,
    control: Control,
}

type Control = unsafe extern "C" fn(*const c_char, *mut c_char, usize) -> i64;

impl SimWorld {
    /// Makes a world.
    ///
    /// # Errors
    /// `NotBuilt` when the simulator's library is not beside the program, in `deps` beside it, in `../lib` or where the
    /// options say; `Refused` for options that make no sense.
    pub fn new(options: &SimOptions) -> Result<Self, SimError> {
        let library = find(options.library.as_deref())?;
        let folder = furnish(&library, &options.hidden)?;
        let opened = Libraries::open(Some(&folder)).map_err(SimError::from).and_then(|libraries| {
            let address = libraries.runtime.address("portolan_sim_control");
            let address =
                address.ok_or_else(|| SimError::Refused(format!("{} is no simulator", library.display())))?;
            // SAFETY: the simulator's own function of this name, which is declared so.
            let control = unsafe { core::mem::transmute::<*mut core::ffi::c_void, Control>(address) };
            Ok(Self { folder: folder.clone(), libraries: Arc::new(libraries), control })
        });
        let world = opened.inspect_err(|_| {
            let _ = std::fs::remove_dir_all(&folder);
        })?;
        world.ask(&json!({
            "do": "configure",
            "soc": options.soc,
            "devices": options.devices,
            "memory_bytes": options.memory_bytes,
            "adversary": options.adversary.name(),
            "seed": options.seed,
            "graph_tasks": options.graph_tasks,
            "connection_timeout_ms": milliseconds(options.connection_timeout),
            "execution_timeout_ms": milliseconds(options.execution_timeout),
            "faults": options.faults.iter().map(PlannedFault::json).collect::<Value>(),
        }))?;
        Ok(world)
    }

    /// The folder to open as a driver.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its libraries, opened.
    pub fn libraries(&self) -> &Arc<Libraries> {
        &self.libraries
    }

    /// Every call after number `after`.
    ///
    /// # Errors
    /// `Refused`, by a simulator of another version.
    pub fn calls(&self, after: u64) -> Result<Vec<Call>, SimError> {
        let answer = self.ask(&json!({ "do": "log", "after": after }))?;
        let rows = answer["calls"].as_array().cloned().unwrap_or_default();
        let calls = rows.into_iter().map(|row| Call {
            number: row["n"].as_u64().unwrap_or(0),
            thread: row["thread"].as_u64().unwrap_or(0),
            name: row["call"].as_str().unwrap_or_default().to_owned(),
            arguments: row["arguments"].clone(),
            code: row["result"].as_i64().and_then(|code| i32::try_from(code).ok()),
            message: row["message"].as_str().unwrap_or_default().to_owned(),
        });
        Ok(calls.collect())
    }

    /// What is held now, and what was wrong so far.
    ///
    /// # Errors
    /// `Refused`, by a simulator of another version.
    pub fn report(&self) -> Result<SimReport, SimError> {
        Ok(SimReport::read(&self.ask(&json!({ "do": "report" }))?))
    }

    /// Plans other faults; counting begins anew.
    ///
    /// # Errors
    /// `Refused`, by a simulator of another version.
    pub fn plan(&self, faults: &[PlannedFault]) -> Result<(), SimError> {
        let faults: Value = faults.iter().map(PlannedFault::json).collect();
        self.ask(&json!({ "do": "faults", "faults": faults })).map(drop)
    }

    /// Chooses another schedule for what is enqueued from now on.
    ///
    /// # Errors
    /// `Refused`, by a simulator of another version.
    pub fn reschedule(&self, adversary: Adversary, seed: u64) -> Result<(), SimError> {
        self.ask(&json!({ "do": "schedule", "adversary": adversary.name(), "seed": seed })).map(drop)
    }

    fn ask(&self, request: &Value) -> Result<Value, SimError> {
        let mut reply = vec![0u8; 1 << 16];
        let mut request = request.to_string();
        loop {
            let text = CString::new(request).map_err(|error| SimError::Refused(error.to_string()))?;
            // SAFETY: a text with its zero byte, and a buffer with its size.
            let length = unsafe { (self.control)(text.as_ptr(), reply.as_mut_ptr().cast(), reply.len()) };
            let Ok(length) = usize::try_from(length) else {
                return Err(SimError::Refused("the request was refused".into()));
            };
            if length < reply.len() {
                let answer: Value = serde_json::from_slice(&reply[..length])
                    .map_err(|error| SimError::Refused(format!("an answer that is no JSON: {error}")))?;
                return match answer["error"].as_str() {
                    Some(why) => Err(SimError::Refused(why.to_owned())),
                    None => Ok(answer),
                };
            }
            reply.resize(length + 1, 0);
            request = json!({ "do": "again" }).to_string();
        }
    }
}

impl Drop for SimWorld {
    fn drop(&mut self) {
        if let Ok(report) = self.report()
            && !report.is_clean()
        {
            eprintln!("simulated CANN, at its end: {report}");
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn milliseconds(time: Option<Duration>) -> Option<u64> {
    time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// The simulator's library: the given one, or one near the program.
fn find(given: Option<&Path>) -> Result<PathBuf, SimError> {
    if let Some(given) = given {
        return match given.is_file() {
            true => Ok(given.to_owned()),
            false => Err(SimError::NotBuilt { looked: given.display().to_string() }),
        };
    }
    let beside = std::env::current_exe().ok().and_then(|program| program.parent().map(Path::to_owned));
    let beside = beside.unwrap_or_default();
    let folders = [beside.clone(), beside.join("deps"), beside.join("../lib"), beside.join("../deps")];
    let found = folders.iter().map(|folder| folder.join(FILE)).find(|file| file.is_file());
    found.ok_or_else(|| {
        let looked: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        SimError::NotBuilt { looked: looked.join(", ") }
    })
}

/// A new folder with one copy of the library, and links.
fn furnish(library: &Path, hidden: &[String]) -> Result<PathBuf, SimError> {
    static WORLDS: AtomicU64 = AtomicU64::new(0);
    let failed = |what: String| move |why: std::io::Error| SimError::Folder { what, why: why.to_string() };
    let folder = loop {
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("portolan-cann-sim-{}-{number}", std::process::id()));
        match std::fs::create_dir(&folder) {
            Ok(()) => break folder,
            // Left by an earlier process of the same number.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(format!("making {}", folder.display()))(error)),
        }
    };
    let fill = || {
        let copy = folder.join(COPY);
        let reading = failed(format!("reading {}", library.display()));
        let mut bytes = std::fs::read(library).map_err(reading)?;
        hide::symbols(&mut bytes, hidden)
            .map_err(|why| SimError::Folder { what: "hiding symbols".into(), why })?;
        std::fs::write(&copy, bytes).map_err(failed(format!("writing {}", copy.display())))?;
        LINKS.iter().try_for_each(|name| {
            std::fs::hard_link(&copy, folder.join(name)).map_err(failed(format!("linking {name}")))
        })
    };
    fill().inspect_err(|_| {
        let _ = std::fs::remove_dir_all(&folder);
    })?;
    Ok(folder)
}
