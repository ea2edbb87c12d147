//! Executors that are planned once and launched many times, each time with its tensors somewhere else.
//!
//! What an operator was planned for is its question: its symbol, every number, the shape, strides and type of every tensor,
//! and which of them are one. The same question asked again has the same plan, which needs the addresses only. A stream keeps
//! its own answers: an executor has one set of addresses, so no two streams share one, and whoever launches one has taken it
//! out before. It is destroyed when its stream has passed what was launched with it, its descriptors after it.
//!
//! While a graph is recorded everything is planned anew: what the graph holds then belongs to it alone.

use crate::context::OnDevice;
use crate::driver::Driver;
use crate::error;
use portolan_cann_sys::bindings::{aclOpExecutor, aclTensor, aclTensorList};
use portolan_core::Ordinal;
use portolan_ops::Result;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

/// Operators that are planned for every launch, and why.
const PLANNED_ANEW: &[(&str, &str)] = &[
    ("aclnnFusedInferAttentionScoreV5", LENGTHS),
    ("aclnnFusedInferAttentionScoreV4", LENGTHS),
    ("aclnnFusedInferAttentionScoreV3", LENGTHS),
    ("aclnnFusedInferAttentionScoreV2", LENGTHS),
    ("aclnnTransMatmulWeight", "it changes the format that its descriptor has"),
];

/// Every step of a decoding would be a question of its own.
const LENGTHS: &str = "its lengths are the host's, and others at every step";

/// Executors that a stream keeps. A step of a large model asks about 50 questions; a few kinds of steps alternate.
pub(crate) const MOST: usize = 256;

/// What an executor is planned for.
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct Key {
    symbol: &'static str,
    words: Vec<u64>,
}

/// A call, described.
pub(crate) struct Question {
    key: Key,
    /// Each tensor's descriptor and address.
    tensors: Vec<(usize, usize)>,
}

impl Question {
    /// The question of an operator, by its second phase's symbol; `None` where the answer is not kept.
    pub(crate) fn of(symbol: &'static str) -> Option<Self> {
        let anew = PLANNED_ANEW.iter().any(|(name, _)| *name == symbol);
        let key = Key { symbol, words: Vec::with_capacity(32) };
        (!anew).then_some(Self { key, tensors: Vec::new() })
    }

    /// Adds a number.
    pub(crate) fn add(&mut self, word: u64) {
        self.key.words.push(word);
    }

    /// Adds a tensor, of which its view is added already: whether its descriptor or its memory is an earlier one's too.
    pub(crate) fn tensor(&mut self, descriptor: usize, address: usize) {
        let first = |same: &dyn Fn(&(usize, usize)) -> bool| {
            self.tensors.iter().position(same).unwrap_or(self.tensors.len()) as u64
        };
        let one = first(&|(other, _)| *other == descriptor) << 32 | first(&|(_, other)| *other == address);
        self.key.words.push(one);
        self.tensors.push((descriptor, address));
    }

    /// What executors are kept under, and where the tensors lie now.
    pub(crate) fn asked(self) -> (Key, Vec<usize>) {
        (self.key, self.tensors.into_iter().map(|(_, address)| address).collect())
    }
}

/// A descriptor that an executor needs as long as it lives.
pub(crate) struct Kept {
    pub(crate) raw: *mut c_void,
    pub(crate) destroy: fn(&Driver, *mut c_void),
}

/// A tensor of an executor, by its place among the operator's tensors and lists, and where it lies.
pub(crate) enum Slot {
    /// A tensor.
    Tensor { operand: usize, tensor: *mut aclTensor, address: usize },
    /// A tensor of a list.
    Member { operand: usize, member: usize, list: *mut aclTensorList, address: usize },
}

/// An executor that may be launched again, and its descriptors.
pub(crate) struct Planned {
    driver: Arc<Driver>,
    device: Ordinal,
    executor: *mut aclOpExecutor,
    /// Bytes of workspace of every launch.
    bytes: u64,
    slots: Vec<Slot>,
    kept: Vec<Kept>,
}

// SAFETY: handles of the driver, which takes them on any thread whose device is current: planning and launching may be on
// two threads.
unsafe impl Send for Planned {}

/// What a driver made of an executor.
pub(crate) enum Made {
    /// It may be launched many times.
    Repeatable,
    /// It may not, and is as it was.
    Once,
}

/// Whether a driver knows executors that repeat at all: all that they need is there.
pub(crate) fn is_known(driver: &Driver) -> bool {
    let functions = &driver.libraries.descriptors;
    let tensors = functions.aclSetTensorAddr().is_ok() || functions.AclSetTensorAddr().is_ok();
    let lists = functions.aclSetDynamicTensorAddr().is_ok() || functions.AclSetDynamicTensorAddr().is_ok();
    tensors
        && lists
        && functions.aclSetAclOpExecutorRepeatable().is_ok()
        && functions.aclDestroyAclOpExecutor().is_ok()
}

/// Asks for an executor that may be launched many times, directly behind its planning.
pub(crate) fn make_repeatable(driver: &Driver, executor: *mut aclOpExecutor) -> Made {
    let Ok(make) = driver.libraries.descriptors.aclSetAclOpExecutorRepeatable() else { return Made::Once };
    // SAFETY: an executor that was just planned, and not launched yet.
    match unsafe { make(executor) } {
        0 => Made::Repeatable,
        // The code tells that this operator cannot, and nothing else can go wrong here; the message is not anybody's.
        _ => {
            let _ = driver.libraries.recent_message();
            Made::Once
        }
    }
}

impl Planned {
    /// Takes over an executor that was made repeatable, and the descriptors that it was planned with.
    pub(crate) fn new(
        on: &OnDevice<'_>,
        (executor, bytes): (*mut aclOpExecutor, u64),
        slots: Vec<Slot>,
        kept: Vec<Kept>,
    ) -> Self {
        Self { driver: on.driver.clone(), device: on.device, executor, bytes, slots, kept }
    }

    pub(crate) fn executor(&self) -> (*mut aclOpExecutor, u64) {
        (self.executor, self.bytes)
    }

    /// Points it at where the tensors lie now. After an error it may point anywhere, and is not launched again.
    pub(crate) fn point_at(&mut self, addresses: &[usize]) -> Result<()> {
        let (driver, executor) = (&self.driver, self.executor);
        let functions = &driver.libraries.descriptors;
        for (slot, &new) in self.slots.iter_mut().zip(addresses) {
            let (Slot::Tensor { address, .. } | Slot::Member { address, .. }) = slot;
            if *address == new {
                continue;
            }
            *address = new;
            let new = core::ptr::without_provenance_mut(new);
            // Older drivers spell these with a capital.
            let (name, code) = match *slot {
                Slot::Tensor { operand, tensor, .. } => {
                    let set = functions.aclSetTensorAddr().or_else(|_| functions.AclSetTensorAddr());
                    let set = set.map_err(error::unavailable)?;
                    // SAFETY: the executor and its own descriptor, both alive; the device memory is not touched here.
                    ("aclSetTensorAddr", unsafe { set(executor, operand, tensor, new) })
                }
                Slot::Member { operand, member, list, .. } => {
                    let set = functions.aclSetDynamicTensorAddr();
                    let set =
                        set.or_else(|_| functions.AclSetDynamicTensorAddr()).map_err(error::unavailable)?;
                    // SAFETY: as above; the list has so many members.
                    ("aclSetDynamicTensorAddr", unsafe { set(executor, operand, member, list, new) })
                }
            };
            driver.libraries.check(name, code).map_err(|failed| error::driver(self.device, failed))?;
        }
        Ok(())
    }
}

impl Drop for Planned {
    fn drop(&mut self) {
        // Nobody is left to be told of what fails here.
        let Ok(on) = OnDevice::enter(&self.driver, self.device) else { return };
        if let Ok(destroy) = on.driver.libraries.descriptors.aclDestroyAclOpExecutor() {
            // SAFETY: a repeatable executor, which this value owns alone and which nothing is launched with any more.
            unsafe { destroy(self.executor) };
        }
        for Kept { raw, destroy } in self.kept.drain(..) {
            destroy(on.driver, raw);
        }
    }
}

/// The executors of a stream.
#[derive(Default)]
pub(crate) struct Executors {
    kept: HashMap<Key, (u64, Planned)>,
    uses: u64,
    /// Operators whose executors the driver would not repeat.
    once: Vec<&'static str>,
}

impl Executors {
    /// Takes out the executor that a question was answered with.
    pub(crate) fn take(&mut self, key: &Key) -> Option<Planned> {
        self.kept.remove(key).map(|(_, planned)| planned)
    }

    /// Keeps an executor, and gives those that go for it: its twin, or the one that was not used for the longest time.
    #[must_use]
    pub(crate) fn keep(&mut self, key: Key, planned: Planned) -> Vec<Planned> {
        self.uses += 1;
        let mut gone: Vec<Planned> =
            self.kept.insert(key, (self.uses, planned)).map(|(_, twin)| twin).into_iter().collect();
        if self.kept.len() > MOST {
            let oldest = self.kept.values().map(|(used, _)| *used).min();
            gone.extend(
                self.kept.extract_if(|_, (used, _)| Some(*used) == oldest).map(|(_, (_, gone))| gone),
            );
        }
        gone
    }

    /// Whether an operator's executor may turn out to be repeatable.
    pub(crate) fn may_repeat(&self, key: &Key) -> bool {
        !self.once.contains(&key.symbol)
    }

    /// Remembers that it does not.
    pub(crate) fn is_once(&mut self, key: &Key) {
        self.once.push(key.symbol);
    }

    /// All of them.
    pub(crate) fn drain(&mut self) -> Vec<Planned> {
        self.kept.drain().map(|(_, (_, planned))| planned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tensors: &[(usize, usize)]) -> Key {
        let mut question = Question::of("aclnnAdd").unwrap();
        tensors.iter().for_each(|&(descriptor, address)| question.tensor(descriptor, address));
        question.asked().0
    }

    #[test]
    fn questions_tell_which_tensors_are_one_and_not_where_they_are() {
        let apart = key(&[(1, 64), (2, 128), (3, 192)]);
        assert!(apart == key(&[(5, 1024), (4, 64), (6, 128)]));
        // The third lies where the first does; the third is the first; the second and the third lie in one place.
        for other in
            [[(1, 64), (2, 128), (3, 64)], [(1, 64), (2, 128), (1, 64)], [(1, 64), (2, 128), (3, 128)]]
        {
            assert!(apart != key(&other), "{other:?}");
        }
        assert!(key(&[(1, 64), (2, 128), (3, 64)]) != key(&[(1, 64), (2, 128), (1, 64)]));
    }

    #[test]
    fn operators_whose_lengths_are_the_hosts_are_planned_anew() {
        for (name, why) in PLANNED_ANEW {
            assert!(portolan_cann_sys::Operators::NAMES.contains(name) && !why.is_empty());
            assert!(Question::of(name).is_none());
        }
        assert!(Question::of("aclnnMatmul").is_some());
    }
}
