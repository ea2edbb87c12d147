//! A rank's membership: each operator meets the others, then goes to HCCL; whatever ends one before its time ends the
//! group.

use super::group::{Announcement, Group, Place, failed};
use super::movement::Movement;
use super::{fold, movement};
use crate::context::OnDevice;
use crate::driver::Driver;
use crate::error;
use crate::queue::CannStream;
use portolan_cann_sys::bindings::{HcclComm, HcclRootInfo};
use portolan_core::groups::{Group as _, disagreement};
use portolan_core::meeting::{At, Stop};
use portolan_core::sync::atomic::{AtomicU64, Ordering};
use portolan_core::{
    CollectiveCall, CollectiveDispatch, Fault, Launch, Op, Ordinal, RawCommunicator, RawStream, call, compose,
};
use portolan_ops::comm::Ranks;
use portolan_ops::{OpError, Result};
use std::sync::{Arc, Weak};

/// HCCL's communicator; streams hold it as long as work of it is under way.
pub(super) struct Link {
    handle: HcclComm,
    driver: Arc<Driver>,
    device: Ordinal,
}

// SAFETY: a handle; the driver takes it on any thread whose device is the communicator's.
unsafe impl Send for Link {}
// SAFETY: as above.
unsafe impl Sync for Link {}

impl Link {
    pub(super) fn root(on: &OnDevice<'_>) -> Result<HcclRootInfo> {
        let make = on.driver.libraries.collectives.HcclGetRootInfo().map_err(error::unavailable)?;
        let mut root = HcclRootInfo { internal: [0; 4108] };
        // SAFETY: a place of our own for the result; the device is current.
        failed(on, "HcclGetRootInfo", unsafe { make(&mut root) })?;
        Ok(root)
    }

    pub(super) fn join(on: &OnDevice<'_>, ranks: Ranks, root: &HcclRootInfo) -> Result<Arc<Self>> {
        let join = on.driver.libraries.collectives.HcclCommInitRootInfo().map_err(error::unavailable)?;
        let mut handle = core::ptr::null_mut();
        // SAFETY: the first rank's information, and a place of our own for the result; the device is current.
        failed(on, "HcclCommInitRootInfo", unsafe {
            join(ranks.world_size(), root, ranks.rank(), &mut handle)
        })?;
        Ok(Arc::new(Self { handle, driver: on.driver.clone(), device: on.device }))
    }

    pub(super) fn handle(&self) -> HcclComm {
        self.handle
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let (Ok(on), Ok(end)) =
            (OnDevice::enter(&self.driver, self.device), self.driver.libraries.collectives.HcclCommDestroy())
        {
            // SAFETY: alive until here, and nothing of it is under way: streams hold what they use. Nobody is left to
            // be told of what fails.
            let _ = failed(&on, "HcclCommDestroy", unsafe { end(self.handle) });
        }
    }
}

/// A stream's part in an operator of a group that is under way.
pub(crate) struct Engagement {
    _link: Arc<Link>,
    group: Arc<Group>,
    ranks: Ranks,
    at: At,
}

impl Engagement {
    pub(super) fn new(link: &Arc<Link>, place: &Place, at: At) -> Self {
        Self { _link: link.clone(), group: place.group.clone(), ranks: place.ranks, at }
    }

    /// Why the group has ended, if it has.
    pub(crate) fn ended(&self) -> Option<OpError> {
        self.group.work.stopped().map(|stop| stop.error(self.ranks, self.at))
    }
}

/// A rank in its group.
pub(crate) struct Member {
    driver: Arc<Driver>,
    place: Place,
    link: Arc<Link>,
}

impl Member {
    pub(super) fn new(driver: Arc<Driver>, place: Place, link: Arc<Link>) -> Arc<Self> {
        Arc::new(Self { driver, place, link })
    }

    fn stop(&self, what: String) {
        self.place.group.stop(Stop { rank: self.place.ranks.index(), at: None, what });
    }

    /// A stream that the group was used on has failed.
    pub(crate) fn stream_failed(&self, fault: &Fault) {
        self.stop(format!(
            "has a stream that failed in {} (submission {}): {}",
            fault.op, fault.seq, fault.source
        ));
    }
}

pub(crate) struct CannCommunicator {
    member: Arc<Member>,
    /// The number of the next operator.
    next: AtomicU64,
}

impl CannCommunicator {
    pub(super) fn new(member: Arc<Member>) -> Arc<Self> {
        Arc::new(Self { member, next: AtomicU64::new(0) })
    }

    fn launch<C: CollectiveDispatch + Movement>(
        &self,
        launch: &Launch<'_>,
        op: &CollectiveCall<C>,
    ) -> Result<()> {
        let (stream, spec, place) = (CannStream::of(launch)?, op.spec(), &self.member.place);
        let driver = &self.member.driver;
        if let Err(why) = fold::plan(driver, launch.determinism(), &op.query(launch.determinism())) {
            return Err(launch.unsupported(op.op_name(), why, "convert to a type that the device has"));
        }
        self.watch(stream);
        let at = At { op: spec.name(), seq: self.next.fetch_add(1, Ordering::Relaxed) };
        if let Some(fault) = launch.upstream().fault() {
            let (op, seq, source) = (fault.op, fault.seq, fault.source);
            self.member.stop(format!("depends on {op} (submission {seq}), which failed: {source}"));
        }
        let (work, me, timeout) = (&place.group.work, place.ranks.index(), place.timeout);
        let announcement = Announcement { seq: at.seq, signature: spec.signature() };
        let met = work.meet(me, at, announcement, timeout).and_then(|peers| {
            let calls: Vec<_> = peers.iter().map(|peer| (peer.seq, &peer.signature)).collect();
            disagreement(&calls).map_or(Ok(()), |(rank, what)| Err(Stop { rank, at: Some(at), what }))
        });
        if let Err(stop) = met {
            return Err(self.ended(stop, at));
        }
        // From here on the others' devices wait for this one.
        let moved = movement::Turn::new(launch, stream, driver, (&self.member.link, place, at))
            .and_then(|turn| spec.run(&turn, op));
        if let Err(error) = &moved {
            self.member.stop(format!("could not take part in {}: {error}", at.op));
        }
        match (moved, work.fence(me, at, timeout)) {
            (Ok(()), Ok(())) => Ok(()),
            (moved, fenced) => {
                // Behind a call that not all have made, the stream would wait for the driver's own timeout.
                stream.abandon();
                match (moved, fenced) {
                    (_, Err(stop)) => Err(self.ended(stop, at)),
                    (moved, Ok(())) => moved,
                }
            }
        }
    }

    fn ended(&self, stop: Stop, at: At) -> OpError {
        let group = &self.member.place.group;
        group.stop(stop.clone());
        group.work.stopped().unwrap_or(stop).error(self.member.place.ranks, at)
    }

    fn watch(&self, stream: &CannStream) {
        stream.watch(Arc::downgrade(&self.member));
    }
}

impl RawCommunicator for CannCommunicator {
    fn ranks(&self) -> Ranks {
        self.member.place.ranks
    }

    fn bind(&self, stream: &dyn RawStream) {
        if let Some(stream) = stream.as_any().downcast_ref::<CannStream>() {
            self.watch(stream);
        }
    }

    fn split(&self, color: Option<u32>, key: u32) -> Result<Option<Arc<dyn RawCommunicator>>> {
        let made = self.member.place.split(&self.member.driver, color, key)?;
        Ok(made.map(|made| -> Arc<dyn RawCommunicator> { made }))
    }

    fn abort(&self, why: &str) {
        self.member.stop(why.into());
    }

    fn health(&self) -> Result<()> {
        let at = At { op: "communicator", seq: self.next.load(Ordering::Relaxed) };
        let Place { group, ranks, .. } = &self.member.place;
        group.work.stopped().map_or(Ok(()), |stop| Err(stop.error(*ranks, at)))
    }

    fn all_reduce(&self, launch: &Launch<'_>, op: &call::AllReduce) -> Result<()> {
        self.launch(launch, op)
    }
    fn reduce_to(&self, launch: &Launch<'_>, op: &call::ReduceTo) -> Result<()> {
        self.launch(launch, op)
    }
    fn reduce_scatter(&self, launch: &Launch<'_>, op: &call::ReduceScatter) -> Result<()> {
        self.launch(launch, op)
    }
    fn all_gather(&self, launch: &Launch<'_>, op: &call::AllGather) -> Result<()> {
        self.launch(launch, op)
    }
    fn all_to_all(&self, launch: &Launch<'_>, op: &call::AllToAll) -> Result<()> {
        self.launch(launch, op)
    }
    fn broadcast(&self, launch: &Launch<'_>, op: &call::Broadcast) -> Result<()> {
        self.launch(launch, op)
    }
    fn exchange(&self, launch: &Launch<'_>, op: &call::Exchange) -> Result<()> {
        self.launch(launch, op)
    }
    fn barrier(&self, launch: &Launch<'_>, op: &call::Barrier) -> Result<()> {
        self.launch(launch, op)
    }
    fn expert_parallel_ffn(&self, launch: &Launch<'_>, op: &call::ExpertParallelFfn) -> Result<()> {
        match fold::plan(&self.member.driver, launch.determinism(), &op.query(launch.determinism())) {
            Ok(()) => self.launch(launch, op),
            Err(why) => compose::expert_parallel_ffn(launch, op, why),
        }
    }
}

/// Members that want to hear of a stream's fault.
pub(crate) type Watchers = Vec<Weak<Member>>;
