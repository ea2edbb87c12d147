//! Traces in the Trace Event Format (Chrome's JSON), which Perfetto, chrome://tracing and speedscope open.

use portolan_core::OpKind;
use portolan_core::decorate::{GroupStep, Lane, Span, TraceLog};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// Writes everything a log has as one JSON object: a process for each device, a thread for each stream, a complete
/// event (`"ph": "X"`) for each operator and copy, times in microseconds.
///
/// # Errors
/// Those of `out`.
pub fn write_trace(log: &TraceLog, out: &mut dyn Write) -> io::Result<()> {
    let (spans, lanes) = (log.spans(), log.lanes());
    let used = |lane: usize| spans.iter().any(|span| span.lane == lane);
    let other =
        json!({ "writer": concat!("portolan ", env!("CARGO_PKG_VERSION")), "spans_lost": log.lost() });
    write!(out, "{{\"displayTimeUnit\":\"ns\",\"otherData\":{other},\"traceEvents\":[")?;
    let mut comma = "\n";
    let mut event = |value: Value| -> io::Result<()> {
        write!(out, "{comma}{value}")?;
        comma = ",\n";
        Ok(())
    };
    for (at, lane) in lanes.iter().enumerate().filter(|(at, _)| used(*at)) {
        let (pid, tid) = (process(&lanes, lane), at + 1);
        let name = |kind: &str, name: String| json!({ "ph": "M", "name": kind, "pid": pid, "tid": tid, "args": { "name": name } });
        event(name("process_name", lane.device.to_string()))?;
        event(name("thread_name", format!("stream {}", lane.stream)))?;
    }
    for span in &spans {
        if let Some(lane) = lanes.get(span.lane) {
            event(complete(span, lane, process(&lanes, lane)))?;
        }
    }
    writeln!(out, "\n]}}")
}

/// [`write_trace`] into a file, whole or not at all.
///
/// # Errors
/// Those of the system, among them a full disk.
pub fn save_trace(log: &TraceLog, path: &Path) -> io::Result<()> {
    super::save(path, |out| write_trace(log, out))
}

/// Numbers devices from 1, in the order they began.
fn process(lanes: &[Lane], of: &Lane) -> usize {
    1 + lanes.iter().position(|lane| lane.device == of.device).unwrap_or(0)
}

fn complete(span: &Span, lane: &Lane, pid: usize) -> Value {
    let (category, way) = match (&span.kind, &span.composed) {
        (None, _) => ("copy", "copy"),
        (Some(OpKind::Collective(_)), None) => ("collective", "native"),
        (Some(_), None) => ("operator", "native"),
        (Some(_), Some(_)) => ("operator", "composed"),
    };
    let mut args = json!({
        "operands": &*span.operands,
        "way": way,
        "flops": span.cost.flops,
        "bytes_read": span.cost.bytes_read,
        "bytes_written": span.cost.bytes_written,
        "stream": lane.stream,
        "submission": span.seq,
        "depth": span.depth,
    });
    if let Some(why) = &span.composed {
        args["why"] = why.to_string().into();
    }
    if span.cost.bytes_comm != 0 {
        args["bytes_comm"] = span.cost.bytes_comm.into();
    }
    if let Some(GroupStep { ranks, seq }) = span.step {
        // What ranks that wait for each other have in common.
        args["rank"] = ranks.rank().into();
        args["world_size"] = ranks.world_size().into();
        args["sequence"] = seq.into();
        args["bytes_comm"] = span.cost.bytes_comm.into();
    }
    if !span.path.is_empty() {
        args["path"] = span.path.to_string().into();
    }
    json!({
        "ph": "X",
        "name": span.op,
        "cat": category,
        "ts": micros(span.start),
        "dur": micros(span.took),
        "pid": pid,
        "tid": span.lane + 1,
        "args": args,
    })
}

/// Exact to the nanosecond for runs of weeks.
fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}
