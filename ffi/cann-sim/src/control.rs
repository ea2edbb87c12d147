//! `portolan_sim_control`: the one door that the vendor's interface does not have.
//!
//! A request is an object with `do`; the answer is an object, with `error` where something is wrong:
//!
//! | `do` | with | answers |
//! | --- | --- | --- |
//! | `configure` | `soc`, `devices`, `memory_bytes`, `alignment`, `adversary`, `seed`, `graph_tasks`, `connection_timeout_ms`, `execution_timeout_ms`, `tolerated`, `faults`; before any other call | `{}` |
//! | `schedule` | `adversary`, `seed` | `{}` |
//! | `faults` | `faults`: a list (see `fault.rs`, and `mistake.rs` for arguments); counting starts anew | `{}` |
//! | `log` | `after`: a call's number | `calls` |
//! | `clear_log` | | `{}` |
//! | `report` | | `memory`, `streams`, `events`, `graphs`, `captures`, `communicators`, `contexts`, `descriptors`, `damage`, `violations`, `tolerated` |
//! | `again` | | the latest answer of this thread |

use crate::fault::Faults;
use crate::schedule::{Adversary, Schedule};
use crate::stream::Stream;
use crate::tensor::census;
use crate::world::{Options, State, configure, world};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::panic::catch_unwind;

thread_local! {
    static LATEST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Answers a request, and gives the answer's length. An answer that does not fit, with its final zero byte, in `size`
/// bytes is kept for `again`. Negative when there is no request.
#[unsafe(no_mangle)]
unsafe extern "C" fn portolan_sim_control(json: *const c_char, reply: *mut c_char, size: usize) -> i64 {
    if json.is_null() {
        return -1;
    }
    // SAFETY: not NULL, and the caller passes text that ends in a zero byte.
    let request = unsafe { CStr::from_ptr(json) }.to_string_lossy().into_owned();
    LATEST.with_borrow_mut(|latest| {
        let answer = catch_unwind(|| match serde_json::from_str::<Value>(&request) {
            Ok(request) if request["do"] == "again" => None,
            Ok(request) => Some(answer(&request).unwrap_or_else(|why| json!({ "error": why }))),
            Err(error) => Some(json!({ "error": format!("the request is no JSON: {error}") })),
        });
        if let Some(answer) = answer.unwrap_or_else(|_| Some(json!({ "error": "the simulator panicked" }))) {
            *latest = answer.to_string();
        }
        if !reply.is_null() && latest.len() < size {
            // SAFETY: the caller gives `size` bytes, of which one more than the answer has are written.
            unsafe {
                reply.cast::<u8>().copy_from_nonoverlapping(latest.as_ptr(), latest.len());
                reply.add(latest.len()).write(0);
            }
        }
        i64::try_from(latest.len()).unwrap_or(i64::MAX)
    })
}

fn answer(request: &Value) -> Result<Value, String> {
    match request["do"].as_str() {
        Some("configure") => configure(Options::parse(request)?)?,
        Some("schedule") => {
            let adversary = request["adversary"].as_str().unwrap_or("late");
            let adversary = Adversary::named(adversary).ok_or("`adversary` is late, early or seeded")?;
            let seed = request["seed"].as_u64().unwrap_or(0);
            let mut state = world().state();
            let Schedule { adversary: a, seed: s, .. } = &mut state.schedule;
            (*a, *s) = (adversary, seed);
        }
        Some("faults") => {
            let mut state = world().state();
            state.faults = Faults::parse(&request["faults"], state.log.last())?;
        }
        Some("log") => {
            let after = request["after"].as_u64().unwrap_or(0);
            return Ok(json!({ "calls": world().state().log.since(after) }));
        }
        Some("clear_log") => world().state().log.clear(),
        Some("report") => return Ok(world().state().report()),
        other => return Err(format!("`do` is {other:?}; see control.rs for what there is")),
    }
    Ok(json!({}))
}

impl State {
    /// Everything that is held, and everything that was wrong.
    pub(crate) fn report(&self) -> Value {
        let default: Vec<u64> = self.contexts.values().map(|context| context.default_stream).collect();
        let own = |(id, stream): &(&u64, &Stream)| !default.contains(id) && !stream.is_lane;
        let streams = self.streams.iter().filter(own).count();
        let pending: usize = self.streams.values().map(|stream| stream.queue.len()).sum();
        let contexts = self.contexts.values().filter(|context| context.shared.is_none()).count();
        let descriptors: serde_json::Map<String, Value> =
            census().into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect();
        json!({
            "memory": self.memory.leaks(),
            "streams": streams,
            "events": self.events.len(),
            "graphs": self.graphs.len(),
            "captures": self.captures.len(),
            "communicators": self.comms.len(),
            "contexts": contexts,
            "pending": pending,
            "descriptors": descriptors,
            "damage": self.memory.all_damage(),
            "violations": self.violations,
            "tolerated": self.tolerated(),
        })
    }
}
