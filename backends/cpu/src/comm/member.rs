//! A rank's membership: takes operators from the queue through announcement, movement and the last fence, and sees to
//! it that whatever ends one before its time ends the group.

use super::dying::{Doom, Dying};
use super::transport::{Announcement, Transport, Window};
use super::turn::Turn;
use super::{all_gather, all_reduce, all_to_all, broadcast, exchange, reduce_scatter, reduce_to};
use crate::queue::{CpuStream, Exec, Witness};
use portolan_core::groups::disagreement;
use portolan_core::meeting::{At, Stop};
use portolan_core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use portolan_core::sync::{Mutex, lock};
use portolan_core::{
    CollectiveCall, CollectiveDispatch, Fault, Launch, RawCommunicator, RawStream, Upstream, call, compose,
};
use portolan_ops::comm::{BarrierSpec, Ranks};
use portolan_ops::{OpError, Result, Unsupported};
use smallvec::SmallVec;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// What is in the queue holds this, so that a rank has left when its last operator has run and nobody can run another.
struct Member {
    transport: Box<dyn Transport>,
    timeout: Duration,
    /// The dead tell nobody: the others have to find out.
    is_dead: AtomicBool,
}

impl Member {
    fn stop(&self, what: String) {
        if self.is_dead.load(Ordering::Acquire) {
            return;
        }
        self.transport.stop(Stop { rank: self.transport.ranks().index(), at: None, what });
    }

    fn error(&self, stop: Stop, at: At) -> OpError {
        stop.error(self.transport.ranks(), at)
    }
}

impl Witness for Member {
    fn stream_failed(&self, fault: &Fault) {
        self.stop(format!(
            "has a stream that failed in {} (submission {}): {}",
            fault.op, fault.seq, fault.source
        ));
    }
}

pub(super) struct CpuCommunicator {
    member: Arc<Member>,
    /// The number of the next operator.
    next: AtomicU64,
    /// How this rank is to die in that operator.
    doom: Mutex<Option<Doom>>,
}

/// What one operator does once the ranks agree, given this rank's windows.
type Movement<C> = fn(&Turn<'_>, &C, &[Window]) -> Result<(), Stop>;

impl CpuCommunicator {
    pub(super) fn new(transport: Box<dyn Transport>, timeout: Duration) -> Arc<Self> {
        let member = Arc::new(Member { transport, timeout, is_dead: AtomicBool::new(false) });
        Arc::new(Self { member, next: AtomicU64::new(0), doom: Mutex::new(None) })
    }

    fn enqueue<C: CollectiveDispatch>(
        &self,
        launch: &Launch<'_>,
        op: &CollectiveCall<C>,
        movement: Movement<C>,
    ) -> Result<()> {
        self.watch(launch.raw());
        let (mut read, mut written) = (SmallVec::<[Window; 2]>::new(), SmallVec::<[Window; 2]>::new());
        let mut addresses = op.addresses();
        op.spec().operands(&mut |operand| {
            let start = operand.spec.byte_range().0;
            let address = addresses.next().unwrap_or(0).wrapping_add(start);
            let window = Window { address, bytes: operand.spec.bytes() };
            if operand.access.writes() { &mut written } else { &mut read }.push(window);
        });
        read.append(&mut written);
        // The submission lock is held, so this rank's numbers follow the order of its queue.
        let at = At { op: op.spec().name(), seq: self.next.fetch_add(1, Ordering::Relaxed) };
        let (member, doom) = (self.member.clone(), lock(&self.doom).take());
        let part = Part { member, at, upstream: launch.upstream(), windows: read, doom, done: false };
        let spec = op.spec().clone();
        CpuStream::enqueue(launch, move |exec| part.run(exec, &spec, movement))
    }

    fn watch(&self, stream: &dyn RawStream) {
        let member: Weak<Member> = Arc::downgrade(&self.member);
        CpuStream::watch(stream, member);
    }
}

/// One operator on its way through the queue.
struct Part {
    member: Arc<Member>,
    at: At,
    upstream: Upstream,
    windows: SmallVec<[Window; 2]>,
    doom: Option<Doom>,
    done: bool,
}

impl Part {
    fn run<C: CollectiveDispatch>(mut self, exec: &Exec, spec: &C, movement: Movement<C>) -> Result<()> {
        if let Some(fault) = self.upstream.fault() {
            let what =
                format!("depends on {} (submission {}), which failed: {}", fault.op, fault.seq, fault.source);
            self.member.stop(what);
        }
        let outcome = self.meet_and_move(exec, spec, movement);
        let Err(stop) = outcome else {
            self.done = true;
            return Ok(());
        };
        // Stopped before the windows close, so that whoever finds them closed finds the reason.
        if !self.member.is_dead.load(Ordering::Acquire) {
            self.member.transport.stop(stop.clone());
        }
        let stop = self.member.transport.stopped().unwrap_or(stop);
        Err(self.member.error(stop, self.at))
    }

    fn meet_and_move<C: CollectiveDispatch>(
        &self,
        exec: &Exec,
        spec: &C,
        movement: Movement<C>,
    ) -> Result<(), Stop> {
        let Member { transport, timeout, .. } = self.member.as_ref();
        let seq = self.at.seq;
        let announcement = Announcement { seq, signature: spec.signature(), windows: self.windows.clone() };
        let peers = transport.meet(self.at, announcement, *timeout)?;
        let calls: Vec<_> = peers.iter().map(|peer| (peer.seq, &peer.signature)).collect();
        if let Some((rank, what)) = disagreement(&calls) {
            return Err(Stop { rank, at: Some(self.at), what });
        }
        let (at, timeout) = (self.at, *timeout);
        let Some(doom) = self.doom else {
            let turn = Turn { transport: transport.as_ref(), at, timeout, peers: &peers, exec };
            movement(&turn, spec, &self.windows)?;
            return transport.fence(at, timeout);
        };
        self.member.is_dead.store(true, Ordering::Release);
        let dying = Dying::new(transport.as_ref(), doom);
        let turn = Turn { transport: &dying, at, timeout, peers: &peers, exec };
        movement(&turn, spec, &self.windows)?;
        // With nothing more to move, before the others hear that it has.
        Err(dying.death(at))
    }
}

impl Drop for Part {
    /// Also when it is skipped because its stream has failed, and when it panics half way.
    fn drop(&mut self) {
        if !self.done {
            self.member.stop(format!("gave up {} #{}", self.at.op, self.at.seq));
        }
        self.member.transport.close();
    }
}

impl RawCommunicator for CpuCommunicator {
    fn ranks(&self) -> Ranks {
        self.member.transport.ranks()
    }

    fn bind(&self, stream: &dyn RawStream) {
        self.watch(stream);
    }

    fn split(&self, color: Option<u32>, key: u32) -> Result<Option<Arc<dyn RawCommunicator>>> {
        let timeout = self.member.timeout;
        match self.member.transport.split(color, key, timeout) {
            Ok(transport) => {
                Ok(transport.map(|transport| -> Arc<dyn RawCommunicator> { Self::new(transport, timeout) }))
            }
            Err(stop) => {
                self.member.transport.stop(stop.clone());
                Err(self.member.error(stop, At { op: "split", seq: 0 }))
            }
        }
    }

    fn abort(&self, why: &str) {
        self.member.stop(why.into());
    }

    fn die_within_next(&self, moves: u64, why: &'static str) -> bool {
        *lock(&self.doom) = Some(Doom { moves, why });
        true
    }

    fn health(&self) -> Result<()> {
        let at = At { op: "communicator", seq: self.next.load(Ordering::Relaxed) };
        self.member.transport.stopped().map_or(Ok(()), |stop| Err(self.member.error(stop, at)))
    }

    fn all_reduce(&self, launch: &Launch<'_>, op: &call::AllReduce) -> Result<()> {
        self.enqueue(launch, op, all_reduce::run)
    }
    fn reduce_to(&self, launch: &Launch<'_>, op: &call::ReduceTo) -> Result<()> {
        self.enqueue(launch, op, reduce_to::run)
    }
    fn reduce_scatter(&self, launch: &Launch<'_>, op: &call::ReduceScatter) -> Result<()> {
        self.enqueue(launch, op, reduce_scatter::run)
    }
    fn all_gather(&self, launch: &Launch<'_>, op: &call::AllGather) -> Result<()> {
        self.enqueue(launch, op, all_gather::run)
    }
    fn all_to_all(&self, launch: &Launch<'_>, op: &call::AllToAll) -> Result<()> {
        self.enqueue(launch, op, all_to_all::run)
    }
    fn broadcast(&self, launch: &Launch<'_>, op: &call::Broadcast) -> Result<()> {
        self.enqueue(launch, op, broadcast::run)
    }
    fn exchange(&self, launch: &Launch<'_>, op: &call::Exchange) -> Result<()> {
        self.enqueue(launch, op, exchange::run)
    }
    fn barrier(&self, launch: &Launch<'_>, op: &call::Barrier) -> Result<()> {
        // To meet is all.
        self.enqueue(launch, op, |_, _: &BarrierSpec, _| Ok(()))
    }
    fn expert_parallel_ffn(&self, launch: &Launch<'_>, op: &call::ExpertParallelFfn) -> Result<()> {
        compose::expert_parallel_ffn(launch, op, Unsupported::NotImplemented)
    }
}
