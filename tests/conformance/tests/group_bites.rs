//! The suite bites where ranks are concerned, too: groups of a correct backend pass, and each fault planted in them fails
//! the tests that are about it, and no others.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan_conformance::Suite;
use portolan_core::call::AllReduce;
use portolan_core::decorate::{Decorate, DecorateMember, Decorated, DecoratedMember};
use portolan_core::{
    Backend, CollectiveCall, CollectiveDispatch, CollectiveKind, CommConfig, CommId, HostBuffer, Launch,
    Ordinal, RawCommunicator, RawCopy,
};
use portolan_cpu::{CpuBackend, CpuOptions, Executor};
use portolan_ops::comm::{AllReduceSpec, ReduceOp};
use portolan_ops::{DType, Result};
use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// What is wrong with the groups.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Plant {
    Nothing,
    /// Sums are formed from the last rank to the first, whatever order was asked for.
    WrongOrder,
    /// What rank 1 gives to an all_reduce is lost.
    LostContribution,
    /// Whoever is at a barrier goes along with what others call, so that nobody notices a rank that left one out.
    NoSequenceCheck,
}

/// Longer than ranks of one process need to come; shorter than any timeout of the tests.
const TOGETHER: Duration = Duration::from_millis(200);

/// What a rank has come to: a sum with its numbers, or something else.
type Post = Option<(AllReduceSpec, Vec<f32>)>;

/// What the ranks of a group have come to at one number, with gaps where some have not.
type Posts = Vec<Option<Post>>;

/// What all ranks have come to, by group and number.
#[derive(Default)]
struct Board {
    posts: Mutex<HashMap<(CommId, u64), Posts>>,
    came: Condvar,
}

impl Board {
    /// Posts, and waits a while for the others.
    fn post(&self, key: (CommId, u64), (rank, world): (usize, usize), post: Post) -> Posts {
        let end = Instant::now() + TOGETHER;
        let mut posts = self.posts.lock().unwrap();
        posts.entry(key).or_insert_with(|| vec![None; world])[rank] = Some(post);
        self.came.notify_all();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let all = &posts[&key];
            if left.is_zero() || all.iter().all(Option::is_some) {
                return all.clone();
            }
            posts = self.came.wait_timeout(posts, left).unwrap().0;
        }
    }
}

/// The CPU with faulty groups. Its work is done when the next is launched, so that a fault can look at numbers.
struct Planted {
    cpu: Arc<CpuBackend>,
    plant: Plant,
    board: Arc<Board>,
}

impl Planted {
    fn suite(plant: Plant) -> Suite {
        Suite::new(move || {
            let options =
                CpuOptions { executor: Executor::Inline, threads: Some(1), ..CpuOptions::default() };
            let cpu = CpuBackend::new(options)?;
            Ok(Decorated::new(Planted { cpu, plant, board: Arc::default() }))
        })
    }
}

impl Decorate for Planted {
    fn inner(&self) -> &dyn Backend {
        self.cpu.as_ref()
    }

    fn communicator(&self, device: Ordinal, config: &CommConfig) -> Result<Arc<dyn RawCommunicator>> {
        let inner = portolan_core::Collectives::communicator(self.cpu.as_ref(), device, config)?;
        let (cpu, plant, board) = (self.cpu.clone(), self.plant, self.board.clone());
        Ok(DecoratedMember::new(Member { inner, cpu, plant, board, group: config.id }))
    }
}

struct Member {
    inner: Arc<dyn RawCommunicator>,
    cpu: Arc<CpuBackend>,
    plant: Plant,
    board: Arc<Board>,
    group: CommId,
}

impl Member {
    /// Writes behind everything enqueued so far.
    fn write(&self, launch: &Launch<'_>, address: usize, bytes: &[u8]) -> Result<()> {
        let copy = RawCopy::Upload { host: HostBuffer::from_bytes(bytes)?, address };
        portolan_core::Memory::copy(self.cpu.as_ref(), launch, copy)
    }

    fn post(&self, seq: u64, post: Post) -> Posts {
        let ranks = self.inner.ranks();
        self.board.post((self.group, seq), (ranks.index(), ranks.count()), post)
    }

    /// Sums in the wrong order, when all ranks come in time.
    fn backwards(
        &self,
        launch: &Launch<'_>,
        seq: u64,
        op: &AllReduce,
        forward: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let (x, out) = addresses(op);
        let numbers = bytes(x, op.spec().x().bytes());
        let numbers: Vec<f32> =
            numbers.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
        let posts = self.post(seq, Some((op.spec().clone(), numbers)));
        let all: Option<Vec<Vec<f32>>> = posts.into_iter().map(|post| Some(post??.1)).collect();
        forward()?;
        let Some(all) = all.filter(|all| all.iter().all(|x| x.len() == all[0].len())) else { return Ok(()) };
        let sum = |i: usize| all.iter().rev().map(|x| x[i]).reduce(|sum, x| sum + x).unwrap();
        let sums: Vec<u8> = (0..all[0].len()).flat_map(|i| sum(i).to_le_bytes()).collect();
        self.write(launch, out, &sums)
    }

    /// Gives zeros, which x holds only meanwhile.
    fn give_nothing(
        &self,
        launch: &Launch<'_>,
        op: &AllReduce,
        forward: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let (x, out) = addresses(op);
        let given = bytes(x, op.spec().x().bytes());
        self.write(launch, x, &vec![0; given.len()])?;
        forward()?;
        if x == out { Ok(()) } else { self.write(launch, x, &given) }
    }
}

/// Of the first elements of x and of out.
fn addresses(op: &AllReduce) -> (usize, usize) {
    let mut addresses = op.addresses();
    let (x, out) = (addresses.next().unwrap(), addresses.next().unwrap());
    (x + op.spec().x().byte_range().0, out + op.spec().out().byte_range().0)
}

/// Device memory, as the work before has left it.
fn bytes(address: usize, len: usize) -> Vec<u8> {
    if len == 0 {
        return Vec::new();
    }
    // SAFETY: an operand of the operator that is being launched, whose memory lives; the inline executor has finished
    // what was enqueued before, and nothing else of this rank is submitted meanwhile.
    unsafe { std::slice::from_raw_parts(address as *const u8, len) }.to_vec()
}

impl DecorateMember for Member {
    fn inner(&self) -> &dyn RawCommunicator {
        self.inner.as_ref()
    }

    fn launch<C: CollectiveDispatch>(
        &self,
        launch: &Launch<'_>,
        seq: u64,
        op: &CollectiveCall<C>,
        forward: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let any: &dyn Any = op;
        let sum = any.downcast_ref::<AllReduce>();
        match (self.plant, sum) {
            (Plant::WrongOrder, Some(sum)) => {
                let plain = sum.spec().reduce() == ReduceOp::Sum && sum.spec().x().dtype() == DType::F32;
                if plain { self.backwards(launch, seq, sum, forward) } else { forward() }
            }
            (Plant::LostContribution, Some(sum)) if self.inner.ranks().rank() == 1 => {
                self.give_nothing(launch, sum, forward)
            }
            (Plant::NoSequenceCheck, Some(sum)) => {
                self.post(seq, Some((sum.spec().clone(), Vec::new())));
                forward()
            }
            (Plant::NoSequenceCheck, None) => {
                let posts = self.post(seq, None);
                let other = posts.into_iter().flatten().flatten().next().map(|(spec, _)| spec);
                match other.filter(|_| C::KIND == CollectiveKind::Barrier) {
                    None => forward(),
                    Some(spec) => {
                        let nothing = launch.scratch(&spec.x().to_contiguous())?;
                        let along =
                            AllReduce::new(op.communicator(), spec.reduce(), &nothing, &mut nothing.clone())?;
                        self.inner.all_reduce(launch, &along)
                    }
                }
            }
            _ => forward(),
        }
    }

    fn split(&self, color: Option<u32>, key: u32) -> Result<Option<Arc<dyn RawCommunicator>>> {
        self.inner.split(color, key)
    }
}

/// The tests of groups that fail.
fn failed(plant: Plant) -> Vec<String> {
    let suite = Planted::suite(plant);
    let mut names = Vec::new();
    for area in ["collectives/*", "comm/*", "expert_parallel/*"] {
        let report = suite.contract(area);
        assert!(report.outcomes.len() > 2, "{area}");
        names.extend(report.failures().map(|outcome| format!("{}: {:?}", outcome.name, outcome.verdict)));
    }
    println!("{plant:?}: {names:#?}");
    names
}

/// A planted fault fails each of `by`, and none but these and `also`.
fn assert_caught(plant: Plant, by: &[&str], also: &[&str]) {
    let names = failed(plant);
    for wanted in by {
        assert!(names.iter().any(|name| name.starts_with(wanted)), "{plant:?} was not caught by {wanted}");
    }
    for name in &names {
        let relevant = by.iter().chain(also).any(|prefix| name.starts_with(prefix));
        assert!(relevant, "{plant:?} failed {name}, which is about something else");
    }
}

#[test]
fn with_no_fault_planted_every_test_of_groups_passes() {
    assert_eq!(failed(Plant::Nothing), [""; 0]);
}

#[test]
fn a_wrong_order_is_caught_by_the_test_of_fixed_order_and_by_no_oracle() {
    let by = ["comm/fixed_order_reductions_have_the_bits_of_rank_order_whoever_comes_late"];
    assert_caught(Plant::WrongOrder, &by, &["comm/a_sum_may_take_the_place_of_what_it_is_formed_of"]);
}

#[test]
fn a_lost_contribution_is_caught_by_the_oracle_and_whatever_needs_a_sum() {
    let by = ["collectives/all_reduce", "comm/a_sum_may_take_the_place_of_what_it_is_formed_of"];
    let also = [
        "comm/fixed_order_reductions",
        "comm/operators_of_one_communicator_run_in_the_order",
        "comm/a_collective_waits_for_the_write_of_another_stream",
        "comm/collectives_are_captured_and_replayed",
        "comm/a_rank_that_left_is_named_on_every_survivor",
        "comm/a_group_that_ended_refuses_and_others_still_work",
    ];
    assert_caught(Plant::LostContribution, &by, &also);
}

#[test]
fn a_missing_check_of_the_sequence_is_caught_by_the_test_of_ranks_of_different_minds() {
    assert_caught(Plant::NoSequenceCheck, &["comm/ranks_of_different_minds_are_told_so_and_who"], &[]);
}
