//! How ranks become a group: they meet on the host, one of them makes HCCL's root information, and all join with it.

use super::member::{CannCommunicator, Link, Member};
use crate::context::OnDevice;
use crate::driver::Driver;
use crate::error;
use portolan_cann_sys::bindings::HcclRootInfo;
use portolan_core::groups::{self, Group as _, Groups};
use portolan_core::meeting::{At, Hub, Stop};
use portolan_core::{CommConfig, Ordinal};
use portolan_ops::comm::{Ranks, Signature};
use portolan_ops::{Determinism, Result};
use std::sync::Arc;
use std::time::Duration;

/// What ranks say when they join or split a group.
#[derive(Clone)]
pub(super) enum Word {
    /// The level, the device, and how long the rank waits for the others.
    Join(Determinism, Ordinal),
    Split {
        color: Option<u32>,
        key: u32,
    },
    /// The group of a color, from the rank that comes first in it.
    Formed(Option<Arc<Group>>),
    /// HCCL's information, from the first rank; why not, where it could not be made.
    Root(Option<core::result::Result<Arc<HcclRootInfo>, String>>),
}

/// One rank's call.
#[derive(Clone)]
pub(super) struct Announcement {
    pub(super) seq: u64,
    pub(super) signature: Signature,
}

/// What the ranks of one group share.
pub(crate) struct Group {
    /// Meetings of operators.
    pub(super) work: Hub<Announcement>,
    /// Meetings of hosts: join and split.
    pub(super) talk: Hub<Word>,
}

impl groups::Group for Group {
    fn new(world_size: usize) -> Self {
        Self { work: Hub::new(world_size), talk: Hub::new(world_size) }
    }

    fn stop(&self, stop: Stop) {
        self.talk.stop(stop.clone());
        self.work.stop(stop);
    }
}

/// One rank's place in a group, from joining to leaving.
pub(super) struct Place {
    pub(super) ranks: Ranks,
    pub(super) group: Arc<Group>,
    pub(super) device: Ordinal,
    pub(super) timeout: Duration,
    pub(super) determinism: Determinism,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.group.talk.leave(self.ranks.index());
        self.group.work.leave(self.ranks.index());
    }
}

const JOIN: At = At { op: "join", seq: 0 };
const SPLIT: At = At { op: "split", seq: 0 };

/// Joins a group, and waits until all its ranks have.
pub(super) fn join(
    groups: &Groups<Group>,
    driver: &Arc<Driver>,
    device: Ordinal,
    config: &CommConfig,
) -> Result<Arc<CannCommunicator>> {
    let ranks = Ranks::new(config.rank, config.world_size)?;
    let (timeout, determinism) = (config.timeout, config.determinism);
    let place = Place { ranks, group: groups.enter(ranks, config.id, JOIN)?, device, timeout, determinism };
    let told = place.say(JOIN, Word::Join(determinism, device)).and_then(|words| {
        let level = |word: &Word| matches!(word, Word::Join(level, _) if *level == determinism);
        if let Some(rank) = words.iter().position(|word| !level(word)) {
            let what = "joins with another determinism level than others".into();
            return Err(Stop { rank, at: Some(JOIN), what });
        }
        let devices = words.iter().map(|word| if let Word::Join(_, device) = word { *device } else { 0 });
        let devices: Vec<Ordinal> = devices.collect();
        match (1..devices.len()).find(|&rank| devices[..rank].contains(&devices[rank])) {
            None => Ok(()),
            Some(rank) => {
                let what =
                    format!("is on cann:{}, as another rank is; HCCL wants a device for each", devices[rank]);
                Err(Stop { rank, at: Some(JOIN), what })
            }
        }
    });
    place.or_stop(JOIN, told)?;
    place.link(driver, JOIN)
}

impl Place {
    /// Says something and hears what all say, in rank order.
    fn say(&self, at: At, word: Word) -> Result<Vec<Word>, Stop> {
        let (talk, me) = (&self.group.talk, self.ranks.index());
        let words = talk.meet(me, at, word, self.timeout)?;
        talk.fence(me, at, self.timeout)?;
        Ok(words)
    }

    /// Ends the group where this failed.
    fn or_stop<T>(&self, at: At, told: Result<T, Stop>) -> Result<T> {
        told.map_err(|stop| {
            self.group.stop(stop.clone());
            stop.error(self.ranks, at)
        })
    }

    /// Joins HCCL's communicator; all ranks do so at once.
    fn link(self, driver: &Arc<Driver>, at: At) -> Result<Arc<CannCommunicator>> {
        let on = OnDevice::enter(driver, self.device)?;
        let first = self.ranks.rank() == 0;
        let own = first.then(|| Link::root(&on).map(Arc::new).map_err(|error| error.to_string()));
        let words = self.say(at, Word::Root(own));
        let told = words.and_then(|words| match words.into_iter().next() {
            Some(Word::Root(Some(Ok(root)))) => Ok(root),
            Some(Word::Root(Some(Err(what)))) => Err(Stop { rank: 0, at: Some(at), what }),
            _ => Err(Stop { rank: 0, at: Some(at), what: "gave no root information".into() }),
        });
        let root = self.or_stop(at, told)?;
        let linked = Link::join(&on, self.ranks, &root).map_err(|error| {
            let what = format!("could not join: {error}");
            Stop { rank: self.ranks.index(), at: Some(at), what }
        });
        let link = self.or_stop(at, linked)?;
        Ok(CannCommunicator::new(Member::new(driver.clone(), self, link)))
    }

    /// Splits the group by color.
    pub(super) fn split(
        &self,
        driver: &Arc<Driver>,
        color: Option<u32>,
        key: u32,
    ) -> Result<Option<Arc<CannCommunicator>>> {
        let me = self.ranks.index();
        let words = self.or_stop(SPLIT, self.say(SPLIT, Word::Split { color, key }))?;
        let said = |word: &Word| match word {
            Word::Split { color, key } => (*color, *key),
            _ => (None, 0),
        };
        let members = groups::of_color(&words.iter().map(said).collect::<Vec<_>>(), color);
        let first = members.first().map_or(me, |&member| member);
        let formed = (color.is_some() && first == me).then(|| Arc::new(Group::new(members.len())));
        let words = self.or_stop(SPLIT, self.say(SPLIT, Word::Formed(formed)))?;
        let place = members.iter().position(|&member| member == me);
        let (Some(_), Word::Formed(Some(group)), Some(place)) = (color, &words[first], place) else {
            return Ok(None);
        };
        let ranks = Ranks::new(place as u32, members.len() as u32)?;
        let (device, timeout, determinism) = (self.device, self.timeout, self.determinism);
        let place = Place { ranks, group: group.clone(), device, timeout, determinism };
        place.link(driver, SPLIT).map(Some)
    }
}

/// The error for a call of HCCL that failed.
pub(super) fn failed(on: &OnDevice<'_>, call: &'static str, code: u32) -> Result<()> {
    let code = i32::try_from(code).unwrap_or(i32::MAX);
    on.driver.libraries.check(call, code).map_err(|failed| error::collective(on.device, failed))
}
