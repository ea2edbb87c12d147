//! Ranks that are threads of one process: they meet in memory, and read each other's windows where they lie.

use super::gate::Gate;
use super::transport::{Announcement, Transport, Window};
use portolan_core::CommConfig;
use portolan_core::groups::{self, Group as _, Groups};
use portolan_core::meeting::{At, Hub, Stop};
use portolan_ops::comm::Ranks;
use portolan_ops::{Determinism, Result};
use std::sync::Arc;
use std::time::Duration;

/// What ranks say when they join or split a group.
#[derive(Clone)]
enum Word {
    Join(Determinism),
    Split {
        color: Option<u32>,
        key: u32,
    },
    /// The group of a color, from the rank that comes first in it.
    Formed(Option<Arc<Group>>),
}

/// What the ranks of one group share.
pub(crate) struct Group {
    /// Meetings of operators.
    work: Hub<Arc<Announcement>>,
    /// Meetings of hosts: join and split.
    talk: Hub<Word>,
    /// Before the windows of each rank.
    gates: Vec<Gate>,
}

impl groups::Group for Group {
    fn new(world_size: usize) -> Self {
        let gates = (0..world_size).map(|_| Gate::new()).collect();
        Self { work: Hub::new(world_size), talk: Hub::new(world_size), gates }
    }

    fn stop(&self, stop: Stop) {
        self.talk.stop(stop.clone());
        self.work.stop(stop);
    }
}

/// One rank of a group in this process.
pub(super) struct Local {
    ranks: Ranks,
    group: Arc<Group>,
}

impl Local {
    /// Joins a group, and waits until all its ranks have.
    pub(super) fn join(groups: &Groups<Group>, config: &CommConfig) -> Result<Self> {
        const AT: At = At { op: "join", seq: 0 };
        let ranks = Ranks::new(config.rank, config.world_size)?;
        let local = Self { ranks, group: groups.enter(ranks, config.id, AT)? };
        let word = Word::Join(config.determinism);
        let words = local.group.talk.meet(ranks.index(), AT, word, config.timeout);
        let told = words.and_then(|words| {
            // Looked at before the fence: the next thing a rank says may be another word.
            let level = |word: &Word| matches!(word, Word::Join(level) if *level == config.determinism);
            let other = words.iter().position(|word| !level(word));
            local.group.talk.fence(ranks.index(), AT, config.timeout)?;
            let what = "joins with another determinism level than others".into();
            other.map_or(Ok(()), |rank| Err(Stop { rank, at: Some(AT), what }))
        });
        if let Err(stop) = told {
            local.group.stop(stop.clone());
            return Err(stop.error(ranks, AT));
        }
        Ok(local)
    }
}

impl Transport for Local {
    fn ranks(&self) -> Ranks {
        self.ranks
    }

    fn meet(
        &self,
        at: At,
        announcement: Announcement,
        timeout: Duration,
    ) -> Result<Vec<Arc<Announcement>>, Stop> {
        self.group.gates[self.ranks.index()].open();
        self.group.work.meet(self.ranks.index(), at, Arc::new(announcement), timeout)
    }

    fn fence(&self, at: At, timeout: Duration) -> Result<(), Stop> {
        self.group.work.fence(self.ranks.index(), at, timeout)
    }

    unsafe fn read(
        &self,
        peer: usize,
        window: Window,
        place: usize,
        into: *mut u8,
        bytes: usize,
    ) -> Result<(), Stop> {
        debug_assert!(place + bytes <= window.bytes, "{place} + {bytes} of {}", window.bytes);
        let from = window.address as *const u8;
        let copy = || {
            // SAFETY: the caller says that both are valid and that nobody writes; the peer's memory stays its
            // operand's until it has closed its gate, which it cannot while we are inside.
            unsafe { std::ptr::copy(from.add(place), into, bytes) };
        };
        if peer == self.ranks.index() {
            copy();
            return Ok(());
        }
        self.group.gates[peer].pass(copy).ok_or_else(|| {
            // Windows close early only behind a stop.
            let ended = || Stop { rank: peer, at: None, what: "ended its part early".into() };
            self.stopped().unwrap_or_else(ended)
        })
    }

    fn close(&self) {
        self.group.gates[self.ranks.index()].close();
    }

    fn stop(&self, stop: Stop) {
        self.group.stop(stop);
    }

    fn stopped(&self) -> Option<Stop> {
        self.group.work.stopped()
    }

    fn split(
        &self,
        color: Option<u32>,
        key: u32,
        timeout: Duration,
    ) -> Result<Option<Box<dyn Transport>>, Stop> {
        const AT: At = At { op: "split", seq: 0 };
        let (talk, me) = (&self.group.talk, self.ranks.index());
        let words = talk.meet(me, AT, Word::Split { color, key }, timeout)?;
        let said = |word: &Word| match word {
            Word::Split { color, key } => (*color, *key),
            _ => (None, 0),
        };
        let members = groups::of_color(&words.iter().map(said).collect::<Vec<_>>(), color);
        talk.fence(me, AT, timeout)?;
        let first = members.first().map_or(me, |&member| member);
        let formed = (color.is_some() && first == me).then(|| Arc::new(Group::new(members.len())));
        let words = talk.meet(me, AT, Word::Formed(formed), timeout)?;
        talk.fence(me, AT, timeout)?;
        let place = members.iter().position(|&member| member == me);
        let (Some(_), Word::Formed(Some(group)), Some(place)) = (color, &words[first], place) else {
            return Ok(None);
        };
        let ranks = Ranks::new(place as u32, members.len() as u32);
        let ranks = ranks.map_err(|error| Stop { rank: me, at: Some(AT), what: error.to_string() })?;
        Ok(Some(Box::new(Local { ranks, group: group.clone() })))
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.group.talk.leave(self.ranks.index());
        self.group.work.leave(self.ranks.index());
    }
}
