//! Experts spread over the ranks of a group: rows of tokens go to the ranks that hold their experts, and back.
//!
//! Made of operators and no operator itself: a permutation whose experts are the ranks, then an exchange.

use crate::call::all_to_all::all_to_all;
use crate::call::copy::full;
use crate::call::expert_ffn::expert_ffn;
use crate::call::{
    AllToAll, Binary, ExpertFfn, ExpertParallelFfn, Fill, Gather, MoePermute, MoeUnpermute, Scatter,
};
use crate::comm::Communicator;
use crate::experts::Experts;
use crate::launch::Launch;
use crate::op::Op;
use crate::stream::Stream;
use crate::tensor::Tensor;
use core::ops::Range;
use portolan_ops::comm::Ranks;
use portolan_ops::kernel::{BinaryKind, ScatterMode};
use portolan_ops::moe::{ExpertFfnSpec, MoeUnpermuteSpec};
use portolan_ops::{DType, OpError, Result, Shape, TensorSpec};

/// The experts of a mixture shared out among the ranks of a group, in order and as equally as can be.
///
/// A layer is three steps on every rank, for its own tokens:
///
/// ```text
/// let sent = parallel.dispatch(&stream, &x, &expert_ids, capacity)?;         // or dispatch_counts and dispatch_v
/// let y = parallel.expert_ffn(&stream, &sent, &gate_up, &down)?;             // the experts of this rank only
/// let out = parallel.combine(&stream, &sent, &y, &weights)?;
/// ```
///
/// and gives what `expert_ffn` gives with all experts on one device, but for rows that were dropped. All ranks take the
/// same steps; they may have different numbers of tokens, or none.
///
/// [`ExpertParallel::dispatch`] only enqueues, and so can be captured. It sends a room of fixed capacity to every rank,
/// and drops and counts what finds no place. [`ExpertParallel::dispatch_counts`] and [`ExpertParallel::dispatch_v`] send
/// what there is and drop nothing; the first of them waits for the stream and reads the numbers back.
///
/// A token goes to a rank once for each of its experts there.
///
/// [`ExpertParallel::whole`] is all three in one operator, which a device may have kernels for; it drops nothing and can be
/// captured, and wants to know how many tokens a rank has at most.
///
/// Where every rank holds all tokens, as behind attention whose heads are spread over the ranks, nothing need be sent:
/// [`ExpertParallel::expert_ffn_of_all`] is one step, whose results the ranks sum.
#[derive(Clone, Debug)]
pub struct ExpertParallel {
    comm: Communicator,
    num_experts: usize,
    /// Of each expert, its rank and its place among the experts of that rank, both with 1 added: a gather gives 0 for
    /// padding.
    rank: Tensor,
    place: Tensor,
    /// Its place where it is this rank's, else 0; with 1 added too.
    here: Tensor,
}

/// How many rows go to each rank and come from each, known to the host: what [`ExpertParallel::dispatch_v`] sends by.
#[derive(Clone, Debug)]
pub struct DispatchCounts {
    send: Vec<usize>,
    recv: Vec<usize>,
    routes: Routes,
}

impl DispatchCounts {
    /// Rows that go to each rank.
    pub fn send(&self) -> &[usize] {
        &self.send
    }
    /// Rows that come from each rank.
    pub fn recv(&self) -> &[usize] {
        &self.recv
    }
}

/// Where each place of a token goes: a rank, and an expert of that rank; −1 for padding.
#[derive(Clone, Debug)]
pub(crate) struct Routes {
    rank: Tensor,
    place: Tensor,
}

impl Routes {
    /// Looked up in the tables of all experts.
    pub(crate) fn new(run: &impl Runner, rank: &Tensor, place: &Tensor, expert_ids: &Tensor) -> Result<Self> {
        Ok(Self { rank: look_up(run, rank, expert_ids)?, place: look_up(run, place, expert_ids)? })
    }
}

/// Of each expert its rank, and its place among the experts of that rank, both with 1 added: a gather gives 0 for
/// padding.
pub(crate) fn tables(ranks: Ranks, num_experts: usize) -> [Vec<i32>; 2] {
    let (mut on, mut places) = (Vec::new(), Vec::new());
    for (rank, number) in (0..ranks.count()).zip(1..) {
        let share = ranks.share(num_experts, rank);
        on.extend(std::iter::repeat_n(number, share.len()));
        places.extend((1..).take(share.len()));
    }
    [on, places]
}

/// Who runs the steps: a program on its stream, or an operator that is composed of them.
pub(crate) trait Runner {
    fn make(&self, spec: &TensorSpec) -> Result<Tensor>;
    fn step(&self, op: impl Op) -> Result<()>;

    fn ints(&self, dims: &[usize]) -> Result<Tensor> {
        self.make(&TensorSpec::of(DType::I32, dims)?)
    }
}

impl Runner for Stream {
    fn make(&self, spec: &TensorSpec) -> Result<Tensor> {
        self.empty(spec)
    }
    fn step(&self, op: impl Op) -> Result<()> {
        self.run(op)
    }
}

impl Runner for Launch<'_> {
    fn make(&self, spec: &TensorSpec) -> Result<Tensor> {
        self.scratch(spec)
    }
    fn step(&self, op: impl Op) -> Result<()> {
        self.run(op)
    }
}

/// Sends rows into rooms of `capacity` rows for each rank.
pub(crate) fn send(
    run: &impl Runner,
    comm: &Communicator,
    routes: &Routes,
    x: &Tensor,
    capacity: usize,
) -> Result<Dispatched> {
    let (world, width) = (comm.ranks().count(), width(x)?);
    let mut rooms = run.make(&TensorSpec::of(x.dtype(), &[world, capacity, width])?)?;
    let mut row_map = run.ints(routes.rank.dims())?;
    let (mut counts, mut dropped) = (run.ints(&[world])?, run.ints(&[world])?);
    let rank = &routes.rank;
    run.step(MoePermute::masked(x, rank, &mut rooms, &mut row_map, &mut counts, &mut dropped)?)?;
    // Within the rank: the shape of the rooms was checked to have fewer than 2³¹ rows.
    let rows = world.saturating_mul(capacity);
    let places = places(run, routes, &row_map, rows)?;
    Ok(Dispatched {
        x: exchanged(run, comm, &rooms.reshape(&[rows, width])?)?,
        expert_ids: exchanged(run, comm, &places)?.reshape(&[rows, 1])?,
        row_map,
        dropped: Some(dropped),
        counts: None,
    })
}

/// Part p of the rows to rank p.
pub(crate) fn exchanged(run: &impl Runner, comm: &Communicator, rows: &Tensor) -> Result<Tensor> {
    let mut out = run.make(rows.spec())?;
    run.step(AllToAll::new(comm, rows, &mut out)?)?;
    Ok(out)
}

/// The expert of each of the rows, in the numbers of the rank that it goes to; −1 for rows that are not sent.
fn places(run: &impl Runner, routes: &Routes, row_map: &Tensor, rows: usize) -> Result<Tensor> {
    let mut places = run.ints(&[rows])?;
    run.step(Fill::new(&mut places, -1.0)?)?;
    let none = places.clone();
    run.step(Scatter::new(ScatterMode::Set, &none, 0, row_map, &routes.place, &mut places)?)?;
    Ok(places)
}

/// Rows that have come to the experts of this rank.
#[derive(Clone, Debug)]
pub struct Dispatched {
    x: Tensor,
    expert_ids: Tensor,
    row_map: Tensor,
    dropped: Option<Tensor>,
    /// Rows sent to and got from each rank; `None` where all rooms are alike.
    counts: Option<(Vec<usize>, Vec<usize>)>,
}

impl Dispatched {
    /// The rows `[R, H]`, rank by rank; with a capacity C, C of each rank, of which those behind the ones sent are 0.
    pub fn x(&self) -> &Tensor {
        &self.x
    }
    /// The expert of each row `[R, 1]`, counted from the first one of this rank; −1 for a row that nobody sent.
    pub fn expert_ids(&self) -> &Tensor {
        &self.expert_ids
    }
    /// Which of the rows that this rank sent each place of its tokens `[T, k]` went to; −1 for padding and what was
    /// dropped.
    pub fn row_map(&self) -> &Tensor {
        &self.row_map
    }
    /// How many rows of this rank's tokens found no room on each rank, `[world_size]`; `None` where none can be dropped.
    pub fn dropped(&self) -> Option<&Tensor> {
        self.dropped.as_ref()
    }
}

impl ExpertParallel {
    /// `num_experts` experts on the ranks of a group. Uploads three small tables to the device of `stream`.
    ///
    /// # Errors
    /// `Attribute` for more experts than an i32 names; as [`Stream::upload`].
    pub fn new(stream: &Stream, comm: &Communicator, num_experts: usize) -> Result<Self> {
        if num_experts >= i32::MAX as usize {
            let what = format!("is {num_experts}, expected fewer than 2^31 - 1");
            return Err(OpError::attribute("expert_parallel", "num_experts", what));
        }
        let [ranks, places] = tables(comm.ranks(), num_experts);
        let shape = Shape::new(&[num_experts])?;
        let upload = |table: &[i32]| stream.upload(table, &shape);
        let mine = (comm.ranks().index() + 1) as i32;
        let on_rank = ranks.iter().zip(&places);
        let here: Vec<i32> = on_rank.map(|(rank, place)| if *rank == mine { *place } else { 0 }).collect();
        let (rank, place, here) = (upload(&ranks)?, upload(&places)?, upload(&here)?);
        Ok(Self { comm: comm.clone(), num_experts, rank, place, here })
    }

    /// The group.
    pub fn communicator(&self) -> &Communicator {
        &self.comm
    }
    /// Experts on all ranks.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }
    /// The experts of this rank, among all.
    pub fn experts(&self) -> Range<usize> {
        self.comm.ranks().share(self.num_experts, self.comm.ranks().index())
    }

    /// Sends the rows of tokens to the ranks of their experts, at most `capacity` to each rank.
    ///
    /// # Shapes
    /// x `[T, H]`, expert_ids `[T, k]`; T may differ from rank to rank, H and `capacity` may not. Any extent may be zero.
    ///
    /// # DTypes
    /// x f32, f16 or bf16, the same on all ranks; expert_ids i32.
    ///
    /// # Determinism
    /// Every level; bits are moved. Of the rows for one rank the first `capacity` are sent, in the order of tokens.
    ///
    /// # Cost
    /// Beside the permutation each rank sends `(world_size − 1) · capacity · (H + 1)` elements, whatever the routing.
    ///
    /// # Errors
    /// `Shape`, `DType`; as [`Stream::run`]. An expert id below zero is padding; one beyond the experts is a data fault.
    ///
    /// # Composition
    /// Gather of each expert's rank and place, moe_permute with a room for each rank, scatter of the places into the
    /// same rows, all_to_all of both.
    ///
    /// # Source
    /// GShard (Lepikhin et al. 2020) for the capacity; the low-latency form of DeepEP for rooms of fixed size.
    pub fn dispatch(
        &self,
        stream: &Stream,
        x: &Tensor,
        expert_ids: &Tensor,
        capacity: usize,
    ) -> Result<Dispatched> {
        send(stream, &self.comm, &self.routes(stream, expert_ids)?, x, capacity)
    }

    /// Counts the rows that go from each rank to each, and waits until all ranks have.
    ///
    /// # Errors
    /// As [`ExpertParallel::dispatch`], and those of [`Stream::download`]: `Capture` during a capture, `Unsupported` on a
    /// device without data.
    ///
    /// # Composition
    /// As [`ExpertParallel::dispatch`] without rows, all_to_all of the counts, download.
    pub fn dispatch_counts(&self, stream: &Stream, expert_ids: &Tensor) -> Result<DispatchCounts> {
        let world = self.comm.ranks().count();
        let routes = self.routes(stream, expert_ids)?;
        // Rows without elements have places all the same.
        let nothing = stream.empty(&TensorSpec::of(DType::F32, &[expert_ids.dims()[0], 0])?)?;
        let (_, _, offsets) = self.permuted(stream, &nothing, &routes)?;
        let mut send = stream.empty(&TensorSpec::of(DType::I32, &[world])?)?;
        let (ends, starts) = (offsets.narrow(0, 1, world)?, offsets.narrow(0, 0, world)?);
        stream.run(Binary::new(BinaryKind::Sub, &ends, &starts, &mut send)?)?;
        let recv = all_to_all(stream, &self.comm, &send)?;
        let (send, recv) = (stream.download::<i32>(&send)?, stream.download::<i32>(&recv)?);
        let numbers =
            |counts: Vec<i32>| counts.into_iter().map(|n| usize::try_from(n).unwrap_or(0)).collect();
        Ok(DispatchCounts { send: numbers(send.wait()?), recv: numbers(recv.wait()?), routes })
    }

    /// Sends the rows of tokens to the ranks of their experts, as many as there are; `counts` are those of the tokens'
    /// experts.
    ///
    /// # Shapes
    /// x `[T, H]` with the T of the expert ids that were counted; H is the same on all ranks.
    ///
    /// # Cost
    /// Beside the permutation each rank sends `H + 1` elements for each row that goes to another rank.
    ///
    /// # Errors
    /// `Shape`, `DType`; as [`Stream::run`]. Expert ids that were changed since they were counted: `Collective`, or rows
    /// at wrong experts.
    ///
    /// # Composition
    /// moe_permute without a capacity, scatter, all_to_all of ragged parts.
    ///
    /// # Source
    /// The all-to-all of GShard; the high-throughput form of DeepEP.
    pub fn dispatch_v(&self, stream: &Stream, x: &Tensor, counts: &DispatchCounts) -> Result<Dispatched> {
        let DispatchCounts { send, recv, routes } = counts;
        let (sent, got): (usize, usize) = (send.iter().sum(), recv.iter().sum());
        let (rows, row_map, _) = self.permuted(stream, x, routes)?;
        let places = places(stream, routes, &row_map, rows.dims()[0])?;
        let exchange = |rows: &Tensor| -> Result<Tensor> {
            let mut dims = rows.dims().to_vec();
            dims[0] = got;
            let mut out = stream.empty(&TensorSpec::of(rows.dtype(), &dims)?)?;
            let rows = rows.narrow(0, 0, sent)?;
            stream.run(AllToAll::ragged(&self.comm, send, recv, &rows, &mut out)?)?;
            Ok(out)
        };
        Ok(Dispatched {
            x: exchange(&rows)?,
            expert_ids: exchange(&places)?.reshape(&[got, 1])?,
            row_map,
            dropped: None,
            counts: Some((send.clone(), recv.clone())),
        })
    }

    /// What the experts of this rank make of the rows that came, one expert a row: `y [R, N]`, 0 for rows that nobody
    /// sent. `gate_up` and `down` are the experts of this rank only.
    ///
    /// # Errors
    /// As [`crate::ops::expert_ffn`].
    pub fn expert_ffn(
        &self,
        stream: &Stream,
        sent: &Dispatched,
        gate_up: &Experts,
        down: &Experts,
    ) -> Result<Tensor> {
        // Weights of routing are the tokens' ranks' to apply.
        let ones = full(stream, DType::F32, sent.expert_ids.shape(), 1.0)?;
        expert_ffn(stream, &sent.x, &sent.expert_ids, &ones, gate_up, down)
    }

    /// The whole layer in one operator: what dispatch with room for everything, expert_ffn and combine give. `gate_up` and
    /// `down` are the experts of this rank only, of which every rank has as many; no rank has more than `most_tokens`
    /// tokens.
    ///
    /// # Errors
    /// `Attribute` for experts that the ranks cannot share out equally; as [`ExpertParallelFfn::new`] and [`Stream::run`].
    pub fn whole(
        &self,
        stream: &Stream,
        most_tokens: usize,
        (x, expert_ids, weights): (&Tensor, &Tensor, &Tensor),
        gate_up: &Experts,
        down: &Experts,
    ) -> Result<Tensor> {
        let mut out = stream.empty(&ExpertFfnSpec::out_spec(x.spec(), gate_up.spec(), down.spec())?)?;
        let network = ExpertFfn::new(x, expert_ids, weights, gate_up, down, &mut out)?;
        let (here, ranks) = (gate_up.spec().count(), self.comm.ranks().count());
        if here.saturating_mul(ranks) != self.num_experts {
            let what = format!(
                "is {} on {ranks} ranks, of which this one gave {here}; expected as many on each, dispatch and combine take others",
                self.num_experts
            );
            return Err(OpError::attribute("expert_parallel_ffn", "num_experts", what));
        }
        stream.run(ExpertParallelFfn::new(&self.comm, most_tokens, &network)?)?;
        Ok(out)
    }

    /// This rank's part of what the experts make of tokens that every rank holds: the parts of all ranks add up to the
    /// whole, rank by rank in the order of experts. `gate_up` and `down` are the experts of this rank only.
    ///
    /// # Shapes
    /// As [`crate::ops::expert_ffn`], the same on all ranks.
    ///
    /// # Cost
    /// As `expert_ffn` of this rank's share of the places, routing taken to be even. Sends nothing; the sum of the parts
    /// sends `2·(world_size − 1)/world_size` of the result, whatever the number of experts a token goes to.
    ///
    /// # Errors
    /// `Shape`, `DType`; as [`Stream::run`]. An expert id below zero is padding; one beyond the experts is a data fault.
    ///
    /// # Composition
    /// Gather of each expert's place on this rank, −1 for those of others, expert_ffn.
    ///
    /// # Source
    /// Tensor parallelism (Shoeybi et al. 2019) with experts in the place of columns.
    pub fn expert_ffn_of_all(
        &self,
        stream: &Stream,
        (x, expert_ids, weights): (&Tensor, &Tensor, &Tensor),
        gate_up: &Experts,
        down: &Experts,
    ) -> Result<Tensor> {
        let here = look_up(stream, &self.here, expert_ids)?;
        let mut out = stream.empty(&ExpertFfnSpec::out_spec(x.spec(), gate_up.spec(), down.spec())?)?;
        let call = ExpertFfn::new(x, &here, weights, gate_up, down, &mut out)?;
        let share = self.experts().len() as u128 * expert_ids.numel() as u128;
        let places = share.div_ceil(self.num_experts.max(1) as u128) as usize;
        stream.run(call.expected_places(places)?)?;
        Ok(out)
    }

    /// Sends what became of the rows back to their tokens, and sums it there.
    ///
    /// `out[t, ..] = Σ_j weights[t, j] · y of the row that (t, j) was sent as`, over places that were sent
    ///
    /// # Shapes
    /// y `[R, N]`, a row for each of [`Dispatched::x`]; weights `[T, k]`; the result `[T, N]`, of y's type.
    ///
    /// # DTypes
    /// y f32, f16 or bf16, the same on all ranks; weights f32. Summed in f32, rounded once.
    ///
    /// # Determinism
    /// `BatchInvariant`: the sum goes through j in rising order.
    ///
    /// # Cost
    /// As many rows as were dispatched go back; then `2·T·k·N` operations.
    ///
    /// # Errors
    /// `Shape`, `DType`, `Layout` (y with gaps); as [`Stream::run`].
    ///
    /// # Composition
    /// all_to_all, moe_unpermute.
    pub fn combine(
        &self,
        stream: &Stream,
        sent: &Dispatched,
        y: &Tensor,
        weights: &Tensor,
    ) -> Result<Tensor> {
        let rows = sent.x.dims()[0];
        if y.dims().first() != Some(&rows) || y.dims().len() != 2 {
            let what = format!("y is {}, expected the {rows} rows that were dispatched", y.shape());
            return Err(OpError::shape("combine", what));
        }
        let back = match &sent.counts {
            None => all_to_all(stream, &self.comm, y)?,
            Some((send, recv)) => {
                let dims = [send.iter().sum(), y.dims()[1]];
                let mut back = stream.empty(&TensorSpec::of(y.dtype(), &dims)?)?;
                stream.run(AllToAll::ragged(&self.comm, recv, send, y, &mut back)?)?;
                back
            }
        };
        let mut out = stream.empty(&MoeUnpermuteSpec::out_spec(back.spec(), sent.row_map.spec())?)?;
        stream.run(MoeUnpermute::new(&back, &sent.row_map, &mut out)?.weights(weights)?)?;
        Ok(out)
    }

    /// Looks the experts up.
    fn routes(&self, stream: &Stream, expert_ids: &Tensor) -> Result<Routes> {
        if expert_ids.dims().len() != 2 {
            let what = format!("expert_ids is {}, expected [tokens, places]", expert_ids.shape());
            return Err(OpError::shape("dispatch", what));
        }
        Routes::new(stream, &self.rank, &self.place, expert_ids)
    }

    /// Rows by rank, one rank's behind the other's; where each place of a token went, and where each rank's rows begin.
    fn permuted(&self, stream: &Stream, x: &Tensor, routes: &Routes) -> Result<(Tensor, Tensor, Tensor)> {
        let empty = |dtype, dims: &[usize]| stream.empty(&TensorSpec::of(dtype, dims)?);
        let mut rows = empty(x.dtype(), &[routes.rank.numel(), width(x)?])?;
        let mut row_map = empty(DType::I32, routes.rank.dims())?;
        let mut offsets = empty(DType::I32, &[self.comm.ranks().count() + 1])?;
        stream.run(MoePermute::contiguous(x, &routes.rank, &mut rows, &mut row_map, &mut offsets)?)?;
        Ok((rows, row_map, offsets))
    }
}

/// What a table says of each expert; −1 for padding.
fn look_up(run: &impl Runner, table: &Tensor, expert_ids: &Tensor) -> Result<Tensor> {
    let mut found = run.ints(expert_ids.dims())?;
    run.step(Gather::slices(table, 0, expert_ids, &mut found)?)?;
    run.step(Binary::scalar(BinaryKind::Sub, &found.clone(), 1.0, &mut found)?)?;
    Ok(found)
}

/// Elements of a row.
fn width(x: &Tensor) -> Result<usize> {
    match x.dims() {
        [_, width] => Ok(*width),
        _ => Err(OpError::shape("dispatch", format!("x is {}, expected [tokens, width]", x.shape()))),
    }
}
