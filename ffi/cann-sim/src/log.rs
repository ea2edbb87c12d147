//! The call log: every call with its arguments and what it returned, for tests to compare and people to read.

use serde_json::{Value, json};

/// One call.
pub(crate) struct Entry {
    /// The caller's thread, numbered in the order in which threads made their first call.
    thread: u64,
    name: &'static str,
    arguments: Vec<(&'static str, Value)>,
    /// Absent while the call has not returned.
    result: Option<(i32, String)>,
}

/// All calls, in the order in which they began.
#[derive(Default)]
pub(crate) struct Log {
    entries: Vec<Entry>,
    /// Calls that were forgotten when the log was cleared.
    cleared: u64,
}

impl Log {
    /// Books a call; its number counts from 1.
    pub(crate) fn begin(
        &mut self,
        thread: u64,
        name: &'static str,
        arguments: Vec<(&'static str, Value)>,
    ) -> u64 {
        self.entries.push(Entry { thread, name, arguments, result: None });
        self.cleared + self.entries.len() as u64
    }

    /// Books what a call returned.
    pub(crate) fn end(&mut self, call: u64, code: i32, text: &str) {
        if let Some(entry) = self.entry_mut(call) {
            entry.result = Some((code, text.to_owned()));
        }
    }

    fn entry_mut(&mut self, call: u64) -> Option<&mut Entry> {
        let index = call.checked_sub(self.cleared + 1)?;
        self.entries.get_mut(usize::try_from(index).ok()?)
    }

    /// Forgets everything so far; numbers go on.
    pub(crate) fn clear(&mut self) {
        self.cleared += self.entries.len() as u64;
        self.entries.clear();
    }

    /// The number of the latest call.
    pub(crate) fn last(&self) -> u64 {
        self.cleared + self.entries.len() as u64
    }

    /// An argument of the `at`-th call of a function after number `after`.
    pub(crate) fn argument(&self, after: u64, name: &str, at: u64, argument: &str) -> Option<&Value> {
        let numbered = self.entries.iter().zip(self.cleared + 1..).filter(|(_, n)| *n > after);
        let mut calls = numbered.map(|(entry, _)| entry).filter(|entry| entry.name == name);
        let entry = calls.nth(usize::try_from(at.checked_sub(1)?).ok()?)?;
        entry.arguments.iter().find(|(have, _)| *have == argument).map(|(_, value)| value)
    }

    /// The name of a call that is still remembered.
    pub(crate) fn name(&self, call: u64) -> Option<&'static str> {
        let index = usize::try_from(call.checked_sub(self.cleared + 1)?).ok()?;
        self.entries.get(index).map(|entry| entry.name)
    }

    /// Every call after number `after`.
    pub(crate) fn since(&self, after: u64) -> Value {
        let numbered = self.entries.iter().zip(self.cleared + 1..).filter(|(_, n)| *n > after);
        let rows = numbered.map(|(entry, n)| {
            let arguments: serde_json::Map<String, Value> =
                entry.arguments.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            let mut row =
                json!({ "n": n, "thread": entry.thread, "call": entry.name, "arguments": arguments });
            if let Some((code, text)) = &entry.result {
                row["result"] = (*code).into();
                if !text.is_empty() {
                    row["message"] = text.as_str().into();
                }
            }
            row
        });
        rows.collect()
    }
}
