//! What tests of groups share: ranks as threads, each with a device, a stream and a membership of its own.

use crate::rig::{Check, Rig, Stop};
use portolan_core::{CommConfig, CommId, Communicator, Stream};
use portolan_ops::{Determinism, OpError};
use std::time::Duration;

/// Long beyond what any of these tests takes: only a rank that nobody told of a failure waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(50);

/// One rank of a group.
pub(crate) struct Peer {
    pub(crate) rig: Rig,
    pub(crate) stream: Stream,
    pub(crate) comm: Communicator,
}

impl Peer {
    pub(crate) fn rank(&self) -> usize {
        self.comm.ranks().index()
    }
    pub(crate) fn world(&self) -> usize {
        self.comm.ranks().count()
    }
}

/// A fresh identity; unsupported where the backend has no collectives, or ranks that never meet.
pub(crate) fn new_id(rig: &Rig) -> Check<CommId> {
    if !rig.keeps_data() {
        return Err(Stop::Unsupported("without data each rank of a group is counted by itself".into()));
    }
    match rig.backend.new_id() {
        Err(error @ (OpError::Unavailable { .. } | OpError::Unsupported { .. })) => {
            Err(Stop::Unsupported(error.to_string()))
        }
        id => Ok(id?),
    }
}

pub(crate) fn config(id: CommId, rank: u32, world_size: u32, timeout: Duration) -> CommConfig {
    CommConfig { id, rank, world_size, timeout, determinism: Determinism::RunToRun }
}

/// Runs `body` on a thread for each rank of a group of `world_size`, and gives what they return, in rank order.
pub(crate) fn on_ranks<T: Send>(
    rig: &Rig,
    world_size: u32,
    timeout: Duration,
    body: impl Fn(Peer) -> Check<T> + Sync,
) -> Check<Vec<T>> {
    let id = new_id(rig)?;
    on_threads(world_size, |rank| {
        let peer = Rig::on(rig.backend.clone(), rank as usize % rig.backend.devices()?.len().max(1))?;
        let stream = peer.stream()?;
        let comm = Communicator::join(&stream, &config(id, rank, world_size, timeout))?;
        body(Peer { rig: peer, stream, comm })
    })
}

/// Runs `body` on a thread for each rank; failures are told with their ranks.
pub(crate) fn on_threads<T: Send>(world_size: u32, body: impl Fn(u32) -> Check<T> + Sync) -> Check<Vec<T>> {
    let outcomes: Vec<Check<T>> = std::thread::scope(|scope| {
        let body = &body;
        let threads: Vec<_> = (0..world_size).map(|rank| scope.spawn(move || body(rank))).collect();
        let panicked = |_| Err(Stop::Broken("panicked".into()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    if let Some(Err(stop @ Stop::Unsupported(_))) =
        outcomes.iter().find(|outcome| matches!(outcome, Err(Stop::Unsupported(_))))
    {
        return Err(stop.clone());
    }
    let broken: Vec<String> = (0..)
        .zip(&outcomes)
        .filter_map(|(rank, outcome)| match outcome {
            Err(Stop::Broken(what)) => Some(format!("rank {rank}: {what}")),
            _ => None,
        })
        .collect();
    match broken.is_empty() {
        true => outcomes.into_iter().collect(),
        false => Err(Stop::Broken(broken.join("; "))),
    }
}

/// How a collective failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) op: String,
    pub(crate) seq: u64,
    pub(crate) rank: u32,
    pub(crate) what: String,
}

/// What a call of a group that has ended reports, be it refused or found by whoever waits for its stream.
pub(crate) fn failed(result: Result<(), OpError>, what: &str) -> Check<Failed> {
    let error = crate::rig::refused(result, what)?;
    let source = match &error {
        OpError::Poisoned { source, .. } => source.as_ref(),
        other => other,
    };
    match source {
        OpError::Collective { op, seq, rank, what, .. } => {
            Ok(Failed { op: op.to_string(), seq: *seq, rank: *rank, what: what.clone() })
        }
        other => Err(Stop::Broken(format!("{what}: not Collective: {other}"))),
    }
}
