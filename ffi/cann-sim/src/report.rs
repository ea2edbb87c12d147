//! Reports: functions of the program that a stream leaves for a thread to call (`aclrtLaunchCallback`).

use crate::error::{Fail, Result, code};
use crate::stream::HostCall;
use crate::world::{State, World};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// The calling thread, as subscriptions name it.
fn this_thread() -> u64 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::pthread_self() }
}

impl State {
    /// From now on, a stream's reports go to a thread.
    pub(crate) fn subscribe(&mut self, stream: u64, thread: u64) -> Result {
        if self.subscribers.contains_key(&stream) {
            return Err(Fail::new(code::RT_STREAM_SUBSCRIBED, "the stream's reports go to a thread already"));
        }
        self.subscribers.insert(stream, thread);
        Ok(())
    }

    /// Takes a subscription back.
    pub(crate) fn unsubscribe(&mut self, stream: u64, thread: u64) -> Result {
        match self.subscribers.get(&stream) {
            Some(known) if *known == thread => {
                self.subscribers.remove(&stream);
                Ok(())
            }
            _ => Err(not_subscribed("the stream's reports do not go to that thread")),
        }
    }

    /// Leaves a function for the thread that a stream's reports go to: the report's number.
    pub(crate) fn leave_report(&mut self, stream: u64, call: HostCall) -> Result<u64> {
        let report = self.number();
        let Some(thread) = self.subscribers.get(&stream) else {
            return Err(not_subscribed("nobody was subscribed any more when the stream got there"));
        };
        self.callbacks.entry(*thread).or_default().push_back((call, report));
        self.open_reports.insert(report);
        Ok(report)
    }
}

pub(crate) fn not_subscribed(text: &str) -> Fail {
    Fail::new(code::RT_STREAM_NO_CALLBACK, format!("{text}; call aclrtSubscribeReport first"))
}

impl World {
    /// Waits for functions that were left for this thread, and calls them.
    pub(crate) fn process_reports(&'static self, timeout: Option<Duration>) -> Result {
        let me = this_thread();
        let mut state = self.state();
        if !state.subscribers.values().any(|thread| *thread == me) {
            let text = "no stream's reports go to this thread; call aclrtSubscribeReport first";
            return Err(Fail::new(code::RT_THREAD_SUBSCRIBE, text));
        }
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let calls = loop {
            if let Some(calls) = state.callbacks.remove(&me) {
                break calls;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => {
                    let text = format!("no report came within {timeout:?}");
                    return Err(Fail::new(code::RT_REPORT_TIMEOUT, text));
                }
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        };
        drop(state);
        for (call, report) in calls {
            // SAFETY: the program enqueued this function with this argument for exactly this.
            unsafe { (call.function)(call.argument) };
            self.state().open_reports.remove(&report);
            self.changed.notify_all();
        }
        Ok(())
    }
}
