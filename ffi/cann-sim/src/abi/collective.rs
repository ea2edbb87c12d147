//! Collectives: each call says what its rank gives and takes, and enqueues that.

use crate::call::driver;
use crate::collective::{Element, Exchange, Place, Reduce, Share, Span, hccl, of_runtime, wrong};
use crate::error::{Fail, Result};
use crate::profile::Family;
use crate::stream::Work;
use crate::world::{State, world};
use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::{Arc, MutexGuard};

/// A call, checked as far as that goes for all of them.
struct Call {
    state: MutexGuard<'static, State>,
    comm: u64,
    stream: u64,
    exchange: Exchange,
    rank: u32,
    size: u32,
    family: Family,
}

/// What `HcclBatchSendRecv` takes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Item {
    direction: i32,
    buffer: *mut c_void,
    count: u64,
    element: i32,
    rank: u32,
}

impl Call {
    fn new(name: &'static str, comm: *mut c_void, element: i32, stream: *mut c_void) -> Result<Self> {
        let state = world().state();
        let comm = state.comm_of(comm)?;
        if stream.is_null() {
            return Err(Fail::new(hccl::E_PTR, "the stream is NULL; collectives need one of their own"));
        }
        let stream = state.stream_of(stream).map_err(of_runtime)?;
        let family = state.profile.family;
        let element = Element::new(element, family)?;
        let found = state.comms.get(&comm).ok_or_else(|| wrong("the communicator is gone"))?;
        if found.suspended {
            return Err(Fail::new(hccl::E_SUSPENDING, "the communicator is suspended"));
        }
        if found.error != 0 {
            return Err(Fail::new(
                found.error,
                "a collective of this communicator has failed; make a new one",
            ));
        }
        let (rank, device) = (found.rank, found.device);
        let clique = state.cliques.get(&found.clique).ok_or_else(|| wrong("the communicator is gone"))?;
        let (size, deterministic) = (clique.size, clique.settings.deterministic);
        let none = vec![Span::default(); size as usize];
        let (reduce, root, gives, takes) = (None, None, none.clone(), none);
        let exchange =
            Exchange { name, element, reduce, root, deterministic, device, send: 0, recv: 0, gives, takes };
        Ok(Self { state, comm, stream, exchange, rank, size, family })
    }

    fn buffers(mut self, send: *const c_void, recv: *const c_void) -> Self {
        (self.exchange.send, self.exchange.recv) = (send.addr(), recv.addr());
        self
    }

    fn root(mut self, root: u32) -> Result<Self> {
        if root >= self.size {
            return Err(wrong(format!("root {root} of {} ranks", self.size)));
        }
        self.exchange.root = Some(root);
        Ok(self)
    }

    fn reduce(mut self, operation: i32) -> Result<Self> {
        self.exchange.reduce = Some(Reduce::new(operation, self.exchange.element, self.family)?);
        Ok(self)
    }

    /// What each rank gets of this one's buffer.
    fn gives(mut self, span: impl Fn(u32) -> Span) -> Self {
        self.exchange.gives = (0..self.size).map(span).collect();
        self
    }

    /// Where this rank puts what it gets of each.
    fn takes(mut self, span: impl Fn(u32) -> Span) -> Self {
        self.exchange.takes = (0..self.size).map(span).collect();
        self
    }

    fn enqueue(self) -> Result {
        self.exchange.check(&self.state)?;
        let shares = [(Place::All, Share::Exchange(self.exchange.clone()))];
        submit(self.state, self.comm, self.stream, self.exchange.name, shares.into())
    }
}

fn submit(
    state: MutexGuard<'static, State>,
    comm: u64,
    stream: u64,
    name: &'static str,
    shares: Arc<[(Place, Share)]>,
) -> Result {
    let work = Work::Meet { comm, rank: 0, shares, keys: Vec::new() };
    world().submit(state, stream, name, work).map(drop).map_err(of_runtime)
}

fn whole(count: u64) -> Span {
    Span { first: 0, count }
}

/// The `index`-th of equal parts.
fn part(index: u32, count: u64) -> Span {
    Span { first: u64::from(index).saturating_mul(count), count }
}

/// The spans that arrays of counts and places describe.
///
/// # Safety
/// The arrays are NULL or have `size` numbers of 64 bits.
unsafe fn spans(counts: *const c_void, places: *const c_void, size: u32) -> Result<Vec<Span>> {
    // SAFETY: as the caller of this function says.
    let (counts, places) = unsafe { (numbers(counts, size as usize)?, numbers(places, size as usize)?) };
    Ok(counts.into_iter().zip(places).map(|(count, first)| Span { first, count }).collect())
}

/// # Safety
/// `array` is NULL or has `count` numbers of 64 bits.
unsafe fn numbers(array: *const c_void, count: usize) -> Result<Vec<u64>> {
    if array.is_null() {
        return Err(Fail::new(hccl::E_PTR, "an array of counts or places is NULL"));
    }
    // SAFETY: as the caller of this function says; C aligns numbers of 64 bits.
    Ok(unsafe { core::slice::from_raw_parts(array.cast::<u64>(), count) }.to_vec())
}

/// A send or receive between HcclGroupStart and HcclGroupEnd: communicator, stream and item.
type Kept = (*mut c_void, *mut c_void, Item);

thread_local! {
    /// How deep groups are, and what they hold.
    static GROUP: RefCell<(u32, Vec<Kept>)> = const { RefCell::new((0, Vec::new())) };
}

/// A send or a receive: kept while a group is open.
fn one(name: &'static str, item: Item, comm: *mut c_void, stream: *mut c_void) -> Result {
    let kept = GROUP.with_borrow_mut(|(depth, items)| {
        if *depth > 0 {
            items.push((comm, stream, item));
        }
        *depth > 0
    });
    if kept { Ok(()) } else { batch(name, &[item], comm, stream) }
}

/// Sends and receives as one piece of work, which none of them holds up.
fn batch(name: &'static str, items: &[Item], comm: *mut c_void, stream: *mut c_void) -> Result {
    let mut shares = Vec::new();
    let mut first = None;
    for item in items {
        let call = Call::new(name, comm, item.element, stream)?;
        let (rank, peer, to_peer) = (call.rank, item.rank, item.direction == 0);
        if peer >= call.size || peer == rank {
            return Err(wrong(format!("rank {rank} of {} cannot exchange with rank {peer}", call.size)));
        }
        let at = |me: bool| move |to: u32| if me && to == peer { whole(item.count) } else { Span::default() };
        let call = match item.direction {
            0 => call.buffers(item.buffer, core::ptr::null()).gives(at(true)),
            1 => call.buffers(core::ptr::null(), item.buffer).takes(at(true)),
            other => return Err(wrong(format!("sendRecvType {other}; 0 sends and 1 receives"))),
        };
        call.exchange.check(&call.state)?;
        let place = if to_peer { Place::To(peer) } else { Place::From(peer) };
        shares.push((place, Share::Exchange(call.exchange)));
        first.get_or_insert((call.comm, call.stream));
    }
    let Some((comm, stream)) = first else { return Err(wrong("no items")) };
    submit(world().state(), comm, stream, name, shares.into())
}

driver! {
    fn HcclAllReduce(send: *mut c_void, recv: *mut c_void, count: u64, element: i32, operation: i32, comm: *mut c_void, stream: *mut c_void) {
        let call = Call::new("HcclAllReduce", comm, element, stream)?.reduce(operation)?.buffers(send, recv);
        call.gives(|_| whole(count)).takes(|_| whole(count)).enqueue()
    }

    fn HcclBroadcast(buffer: *mut c_void, count: u64, element: i32, root: u32, comm: *mut c_void, stream: *mut c_void) {
        let call = Call::new("HcclBroadcast", comm, element, stream)?.root(root)?.buffers(buffer, buffer);
        let me = call.rank;
        let call = call.gives(|to| if me == root && to != root { whole(count) } else { Span::default() });
        call.takes(|from| if me != root && from == root { whole(count) } else { Span::default() }).enqueue()
    }

    fn HcclReduce(send: *mut c_void, recv: *mut c_void, count: u64, element: i32, operation: i32, root: u32, comm: *mut c_void, stream: *mut c_void) {
        let call = Call::new("HcclReduce", comm, element, stream)?.reduce(operation)?.root(root)?.buffers(send, recv);
        let me = call.rank;
        let call = call.gives(|to| if to == root { whole(count) } else { Span::default() });
        call.takes(|_| if me == root { whole(count) } else { Span::default() }).enqueue()
    }

    fn HcclReduceScatter(send: *mut c_void, recv: *mut c_void, count: u64, element: i32, operation: i32, comm: *mut c_void, stream: *mut c_void) {
        let call = Call::new("HcclReduceScatter", comm, element, stream)?.reduce(operation)?.buffers(send, recv);
        call.gives(|to| part(to, count)).takes(|_| whole(count)).enqueue()
    }

    fn HcclReduceScatterV(send: *mut c_void, counts: *const c_void, places: *const c_void, recv: *mut c_void, count: u64, element: i32, operation: i32, comm: *mut c_void, stream: *mut c_void) {
        let call = Call::new("HcclReduceScatterV", comm, element, stream)?.reduce(operation)?.buffers(send, recv);
        // SAFETY: the caller's arrays, one number a rank.
        let parts = unsafe { spans(counts, places, call.size) }?;
        call.gives(|to| parts[to as usize]).takes(|_| whole(count)).enqueue()
    }

    fn HcclAllGather(send: *mut c_void, recv: *mut c_void, count: u64, element: i32, comm: *mut c_void, stream: *mut c_void) {
        let call = Call::new("HcclAllGather", comm, element, stream)?.buffers(send, recv);
        call.gives(|_| whole(count)).takes(|from| part(from, count)).enqueue()
    }

    fn HcclAllGatherV(send: *mut c_void, count: u64, recv: *mut c_void, counts: *const c_void, places: *const c_void, element: i32, comm: *mut c_void, stream: *mut c_void) {
        let call = Call::new("HcclAllGatherV", comm, element, stream)?.buffers(send, recv);
        // SAFETY: the caller's arrays, one number a rank.
        let parts = unsafe { spans(counts, places, call.size) }?;
        call.gives(|_| whole(count)).takes(|from| parts[from as usize]).enqueue()
    }

    fn HcclScatter(send: *mut c_void, recv: *mut c_void, count: u64, element: i32, root: u32, comm: *mut c_void, stream: *mut c_void) {
        let call = Call::new("HcclScatter", comm, element, stream)?.root(root)?.buffers(send, recv);
        let me = call.rank;
        let call = call.gives(|to| if me == root { part(to, count) } else { Span::default() });
        call.takes(|from| if from == root { whole(count) } else { Span::default() }).enqueue()
    }

    fn HcclAlltoAll(send: *const c_void, send_count: u64, send_element: i32, recv: *const c_void, recv_count: u64, recv_element: i32, comm: *mut c_void, stream: *mut c_void) {
        let call = Call::new("HcclAlltoAll", comm, send_element, stream)?.buffers(send, recv);
        apart(send, recv)?;
        if (send_count, send_element) != (recv_count, recv_element) {
            return Err(wrong("what is sent and what is received differ in count or type"));
        }
        call.gives(|to| part(to, send_count)).takes(|from| part(from, recv_count)).enqueue()
    }

    fn HcclAlltoAllV(send: *const c_void, send_counts: *const c_void, send_places: *const c_void, send_element: i32, recv: *const c_void, recv_counts: *const c_void, recv_places: *const c_void, recv_element: i32, comm: *mut c_void, stream: *mut c_void) {
        let call = Call::new("HcclAlltoAllV", comm, send_element, stream)?.buffers(send, recv);
        apart(send, recv)?;
        if send_element != recv_element {
            return Err(wrong("what is sent and what is received differ in type"));
        }
        // SAFETY: the caller's arrays, one number a rank.
        let (given, taken) = unsafe {
            (spans(send_counts, send_places, call.size)?, spans(recv_counts, recv_places, call.size)?)
        };
        call.gives(|to| given[to as usize]).takes(|from| taken[from as usize]).enqueue()
    }

    fn HcclAlltoAllVC(send: *const c_void, matrix: *const c_void, send_element: i32, recv: *const c_void, recv_element: i32, comm: *mut c_void, stream: *mut c_void) {
        let call = Call::new("HcclAlltoAllVC", comm, send_element, stream)?.buffers(send, recv);
        apart(send, recv)?;
        if send_element != recv_element {
            return Err(wrong("what is sent and what is received differ in type"));
        }
        let (size, me) = (call.size as usize, call.rank as usize);
        // SAFETY: the caller's matrix of counts, a row for each sender.
        let counts = unsafe { numbers(matrix, size * size) }?;
        // What is for or from each rank lies behind what is for or from those before it.
        let spans = |count: &dyn Fn(usize) -> u64| {
            let mut first = 0;
            let span = |peer| {
                let span = Span { first, count: count(peer) };
                first += span.count;
                span
            };
            (0..size).map(span).collect::<Vec<Span>>()
        };
        let (given, taken) = (spans(&|to| counts[me * size + to]), spans(&|from| counts[from * size + me]));
        call.gives(|to| given[to as usize]).takes(|from| taken[from as usize]).enqueue()
    }

    fn HcclSend(buffer: *mut c_void, count: u64, element: i32, rank: u32, comm: *mut c_void, stream: *mut c_void) {
        one("HcclSend", Item { direction: 0, buffer, count, element, rank }, comm, stream)
    }

    fn HcclRecv(buffer: *mut c_void, count: u64, element: i32, rank: u32, comm: *mut c_void, stream: *mut c_void) {
        one("HcclRecv", Item { direction: 1, buffer, count, element, rank }, comm, stream)
    }

    fn HcclBatchSendRecv(items: *mut c_void, count: u32, comm: *mut c_void, stream: *mut c_void) {
        if items.is_null() {
            return Err(Fail::new(hccl::E_PTR, "the items are NULL"));
        }
        // SAFETY: not NULL, and as many as the count says.
        let items = unsafe { core::slice::from_raw_parts(items.cast::<Item>(), count as usize) };
        batch("HcclBatchSendRecv", items, comm, stream)
    }

    fn HcclBarrier(comm: *mut c_void, stream: *mut c_void) {
        // Of no elements, their type means nothing.
        Call::new("HcclBarrier", comm, 0, stream)?.enqueue()
    }

    fn HcclGroupStart() {
        GROUP.with_borrow_mut(|(depth, _)| *depth += 1);
        Ok(())
    }

    fn HcclGroupEnd() {
        let items = GROUP.with_borrow_mut(|(depth, items)| match *depth {
            0 => Err(wrong("HcclGroupStart was not called on this thread")),
            1 => {
                *depth = 0;
                Ok(std::mem::take(items))
            }
            _ => {
                *depth -= 1;
                Ok(Vec::new())
            }
        })?;
        let mut queues: Vec<(*mut c_void, *mut c_void)> = Vec::new();
        for (comm, stream, _) in &items {
            if !queues.contains(&(*comm, *stream)) {
                queues.push((*comm, *stream));
            }
        }
        queues.into_iter().try_for_each(|(comm, stream)| {
            let of = |(c, s, item): &Kept| ((*c, *s) == (comm, stream)).then_some(*item);
            batch("HcclBatchSendRecv", &items.iter().filter_map(of).collect::<Vec<_>>(), comm, stream)
        })
    }
}

/// The vendor's all-to-all does not work in place.
fn apart(send: *const c_void, recv: *const c_void) -> Result {
    match send == recv && !send.is_null() {
        true => Err(wrong("send and recv are one buffer")),
        false => Ok(()),
    }
}
