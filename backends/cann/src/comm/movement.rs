//! What each operator asks of HCCL. Elements are moved as bytes, whatever they are: only so may they be of any type on
//! every product.

use super::fold::fold;
use super::group::{Place, failed};
use super::member::{Engagement, Link};
use crate::aclnn::Run;
use crate::context::OnDevice;
use crate::driver::Driver;
use crate::error;
use crate::queue::CannStream;
use portolan_cann_sys::bindings::{HCCL_DATA_TYPE_INT8, HcclComm, HcclSendRecvItem, aclrtStream};
use portolan_core::call::Copy;
use portolan_core::meeting::At;
use portolan_core::{CollectiveCall, CollectiveDispatch, Launch, Op, Tensor};
use portolan_ops::comm::{
    AllGatherSpec, AllReduceSpec, AllToAllSpec, BarrierSpec, BroadcastSpec, ExchangeSpec, Leg, Ranks,
    ReduceScatterSpec, ReduceToSpec,
};
use portolan_ops::{DType, OpError, Result, TensorSpec};
use std::ffi::{CStr, CString, c_void};
use std::ops::Range;
use std::sync::Arc;

/// Longest name of a communicator, with its end.
const NAME: usize = 128;
/// `sendRecvType`.
const SEND: u32 = 0;
const RECV: u32 = 1;

/// An operator that all ranks have agreed on.
pub(super) struct Turn<'a, 'l> {
    launch: &'a Launch<'l>,
    stream: &'a CannStream,
    on: OnDevice<'a>,
    link: &'a Arc<Link>,
    place: &'a Place,
    at: At,
    ranks: Ranks,
}

/// What an operator does once the ranks agree.
pub(super) trait Movement: CollectiveDispatch {
    fn run(&self, turn: &Turn<'_, '_>, op: &CollectiveCall<Self>) -> Result<()>;
}

/// Elements' places in bytes.
struct Bytes {
    counts: Vec<u64>,
    places: Vec<u64>,
}

impl Bytes {
    fn of(ranks: Ranks, dtype: DType, part: impl Fn(usize) -> Range<usize>) -> Self {
        let width = dtype.bytes_for(1);
        let parts = (0..ranks.count()).map(part);
        let (counts, places) =
            parts.map(|part| ((part.len() * width) as u64, (part.start * width) as u64)).unzip();
        Self { counts, places }
    }
}

fn at(tensor: &Tensor) -> *mut c_void {
    core::ptr::without_provenance_mut(tensor.buffer().address() + tensor.spec().byte_range().0)
}

/// The operands, in order, as tensors; the last is the communicator's own.
fn tensors(op: &dyn Op) -> Result<Vec<Tensor>> {
    let mut made = Vec::new();
    op.operands(&mut |arg| made.push(Tensor::new(arg.buffer.clone(), *arg.spec)));
    made.into_iter().collect()
}

/// Calls HCCL on the turn's stream.
macro_rules! hccl {
    ($turn:expr, $name:ident($($arg:expr),* ; $comm:ident, $stream:ident)) => {{
        let turn: &Turn<'_, '_> = $turn;
        let function = turn.on.driver.libraries.collectives.$name().map_err(error::unavailable)?;
        turn.submit(|$comm, $stream| {
            // SAFETY: operands of this launch, which stream order protects until this work is done, with the lengths
            // that their specs have; arrays that live to the end of the call; a living communicator and stream of
            // the current device.
            failed(&turn.on, stringify!($name), unsafe { function($($arg,)* $comm, $stream) })
        })
    }};
}

impl<'a, 'l> Turn<'a, 'l> {
    pub(super) fn new(
        launch: &'a Launch<'l>,
        stream: &'a CannStream,
        driver: &'a Arc<Driver>,
        (link, place, at): (&'a Arc<Link>, &'a Place, At),
    ) -> Result<Self> {
        let on = OnDevice::enter(driver, place.device)?;
        Ok(Self { launch, stream, on, link, place, at, ranks: place.ranks })
    }

    pub(super) fn launch(&self) -> &'a Launch<'l> {
        self.launch
    }

    /// The launch for operators of one device.
    pub(super) fn run(&self) -> Result<Run<'_, 'l>> {
        let on = OnDevice::enter(self.on.driver, self.on.device)?;
        Ok(Run::on(self.on.driver, self.launch, self.stream, on))
    }

    /// What operators that communicate know the group by.
    pub(super) fn group_name(&self) -> Result<CString> {
        let tell = self.on.driver.libraries.collectives.HcclGetCommName().map_err(error::unavailable)?;
        let mut name = [0u8; NAME];
        // SAFETY: a living communicator of the current device, and room for the longest name.
        failed(&self.on, "HcclGetCommName", unsafe { tell(self.link.handle(), name.as_mut_ptr().cast()) })?;
        let name = CStr::from_bytes_until_nul(&name).map_err(|_| {
            OpError::internal(self.at.op, "HcclGetCommName gave a name without an end".to_owned())
        })?;
        Ok(name.to_owned())
    }

    /// The stream holds the communicator until what was submitted is done, and hears of the group's end.
    pub(super) fn engage(&self) {
        self.stream.engage(Engagement::new(self.link, self.place, self.at));
    }

    fn submit(&self, call: impl FnOnce(HcclComm, aclrtStream) -> Result<()>) -> Result<()> {
        self.stream.submit(self.launch, |stream| call(self.link.handle(), stream))?;
        self.engage();
        Ok(())
    }

    fn scratch(&self, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        self.launch.scratch(&TensorSpec::of(dtype, dims)?)
    }

    /// What each rank holds, a row of each.
    fn gather(&self, x: &Tensor) -> Result<Tensor> {
        let rows = self.scratch(x.dtype(), &[self.ranks.count(), x.numel()])?;
        let bytes = x.spec().bytes() as u64;
        if bytes > 0 {
            hccl!(self, HcclAllGather(at(x), at(&rows), bytes, HCCL_DATA_TYPE_INT8; comm, stream))?;
        }
        Ok(rows)
    }

    fn all_to_all(&self, x: &Tensor, send: &Bytes, out: &Tensor, recv: &Bytes) -> Result<()> {
        let array = |numbers: &[u64]| numbers.as_ptr().cast::<c_void>();
        // Tensors without elements may have one address, which HCCL refuses for two buffers.
        let (no_x, no_out) = (self.scratch(DType::U8, &[1])?, self.scratch(DType::U8, &[1])?);
        let x = if x.numel() == 0 { &no_x } else { x };
        let out = if out.numel() == 0 { &no_out } else { out };
        hccl!(self, HcclAlltoAllV(
            at(x).cast_const(), array(&send.counts), array(&send.places), HCCL_DATA_TYPE_INT8,
            at(out).cast_const(), array(&recv.counts), array(&recv.places), HCCL_DATA_TYPE_INT8; comm, stream
        ))
    }
}

impl Movement for AllReduceSpec {
    fn run(&self, turn: &Turn<'_, '_>, op: &CollectiveCall<Self>) -> Result<()> {
        let [x, out, _] = &tensors(op)?[..] else { return Ok(()) };
        let rows = turn.gather(x)?;
        if out.numel() == 0 { Ok(()) } else { fold(turn, self.reduce(), &rows, out) }
    }
}

impl Movement for ReduceToSpec {
    fn run(&self, turn: &Turn<'_, '_>, op: &CollectiveCall<Self>) -> Result<()> {
        let operands = tensors(op)?;
        let rows = turn.gather(&operands[0])?;
        match (self.out(), operands.get(1)) {
            (Some(spec), Some(out)) if spec.numel() > 0 => fold(turn, self.reduce(), &rows, out),
            _ => Ok(()),
        }
    }
}

impl Movement for ReduceScatterSpec {
    fn run(&self, turn: &Turn<'_, '_>, op: &CollectiveCall<Self>) -> Result<()> {
        let [x, out, _] = &tensors(op)?[..] else { return Ok(()) };
        let (ranks, dtype, len) = (turn.ranks, x.dtype(), out.numel());
        let rows = turn.scratch(dtype, &[ranks.count(), len])?;
        let send = Bytes::of(ranks, dtype, |rank| self.part(rank));
        let recv = Bytes::of(ranks, dtype, |rank| rank * len..(rank + 1) * len);
        turn.all_to_all(x, &send, &rows, &recv)?;
        if len == 0 { Ok(()) } else { fold(turn, self.reduce(), &rows, out) }
    }
}

impl Movement for AllGatherSpec {
    fn run(&self, turn: &Turn<'_, '_>, op: &CollectiveCall<Self>) -> Result<()> {
        let [x, out, _] = &tensors(op)?[..] else { return Ok(()) };
        let recv = Bytes::of(turn.ranks, x.dtype(), |rank| self.part(rank));
        // The same bytes to all.
        let send = Bytes::of(turn.ranks, x.dtype(), |_| 0..x.numel());
        turn.all_to_all(x, &send, out, &recv)
    }
}

impl Movement for AllToAllSpec {
    fn run(&self, turn: &Turn<'_, '_>, op: &CollectiveCall<Self>) -> Result<()> {
        let [x, out, _] = &tensors(op)?[..] else { return Ok(()) };
        let send = Bytes::of(turn.ranks, x.dtype(), |rank| self.sent_to(rank));
        let recv = Bytes::of(turn.ranks, x.dtype(), |rank| self.received_from(rank));
        turn.all_to_all(x, &send, out, &recv)
    }
}

impl Movement for BroadcastSpec {
    fn run(&self, turn: &Turn<'_, '_>, op: &CollectiveCall<Self>) -> Result<()> {
        let [x, _] = &tensors(op)?[..] else { return Ok(()) };
        let bytes = x.spec().bytes() as u64;
        if bytes == 0 {
            return Ok(());
        }
        hccl!(turn, HcclBroadcast(at(x), bytes, HCCL_DATA_TYPE_INT8, self.root(); comm, stream))
    }
}

impl Movement for ExchangeSpec {
    fn run(&self, turn: &Turn<'_, '_>, op: &CollectiveCall<Self>) -> Result<()> {
        let operands = tensors(op)?;
        let legs: Vec<(&Leg, &Tensor)> = self.legs().iter().zip(&operands).collect();
        let own = |sends: bool| {
            legs.iter().filter(move |(leg, _)| leg.is_send() == sends && leg.peer() == turn.ranks.rank())
        };
        // What a rank sends itself is none of HCCL's concern.
        for ((_, from), (_, to)) in own(true).zip(own(false)) {
            let mut to = to.reshape(from.dims())?;
            turn.launch.run(Copy::new(from, &mut to)?)?;
        }
        let mut items: Vec<HcclSendRecvItem> = legs
            .iter()
            .filter(|(leg, tensor)| leg.peer() != turn.ranks.rank() && tensor.numel() > 0)
            .map(|(leg, tensor)| HcclSendRecvItem {
                sendRecvType: if leg.is_send() { SEND } else { RECV },
                buf: at(tensor),
                count: tensor.spec().bytes() as u64,
                dataType: HCCL_DATA_TYPE_INT8,
                remoteRank: leg.peer(),
            })
            .collect();
        if items.is_empty() {
            return Ok(());
        }
        hccl!(turn, HcclBatchSendRecv(items.as_mut_ptr(), items.len() as u32; comm, stream))
    }
}

impl Movement for BarrierSpec {
    fn run(&self, turn: &Turn<'_, '_>, _op: &CollectiveCall<Self>) -> Result<()> {
        hccl!(turn, HcclBarrier(; comm, stream))
    }
}
