//! What queued work waits for, and so which of it could run now.

use crate::stream::{Point, Stream, Task, Work};
use crate::world::State;
use std::time::Instant;

/// How much of a queue is looked through for what it will wait for; all of it would cost the square of long ones.
const LOOKAHEAD: usize = 256;

impl State {
    /// What a wait at the head of a queue is for; `None` when it has nothing to wait for any more, no points where
    /// waiting for others brings nothing.
    fn awaited(&self, work: &Work) -> Option<Vec<Point>> {
        let (event, point) = match work {
            Work::Wait { event, point, .. } => (event, *point),
            Work::Join { point, .. } => return (!self.reached(*point)).then(|| vec![*point]),
            Work::Meet { keys, .. } => return self.meetings_await(keys),
            Work::Await { report } => return self.open_reports.contains(report).then(Vec::new),
            _ => return None,
        };
        match point.or_else(|| self.events.get(event).and_then(|event| event.latest)) {
            Some(point) => (!self.reached(point)).then(|| vec![point]),
            // Its event was destroyed: nothing will ever come.
            None => self.events.contains_key(event).then(Vec::new),
        }
    }

    /// Whether the head of a stream could run now.
    pub(crate) fn head_is_ready(&self, id: u64) -> bool {
        let Some(stream) = self.streams.get(&id) else { return false };
        let head = stream.queue.front().filter(|_| !stream.hung);
        head.is_some_and(|task| self.head_awaits(stream, task).is_none())
    }

    /// What the head of a stream waits for; nothing any more where that has taken too long, or the stream takes part in
    /// nothing since an error.
    fn head_awaits(&self, stream: &Stream, head: &Task) -> Option<Vec<Point>> {
        let misses = stream.has_stopped() && matches!(head.work, Work::Meet { .. });
        if misses || stream.expired == Some(stream.done + 1) { None } else { self.awaited(&head.work) }
    }

    /// Notes which waits have begun, and gives up on those that have taken too long. When to look again.
    pub(crate) fn watch_waits(&mut self) -> Option<Instant> {
        let (now, mut next) = (Instant::now(), None);
        let ids: Vec<u64> = self.streams.keys().copied().collect();
        for id in ids {
            let Some((stream, head)) = self.streams.get(&id).and_then(|s| Some((s, s.queue.front()?))) else {
                continue;
            };
            let Work::Wait { event, point, patience: Some(patience) } = head.work else { continue };
            let seq = stream.done + 1;
            if stream.expired == Some(seq) || self.awaited(&head.work).is_none() {
                continue;
            }
            // As long as nobody asks, work that was recorded is merely late.
            let recorded =
                point.is_some() || self.events.get(&event).is_some_and(|event| event.latest.is_some());
            if recorded && !self.schedule.is_awaited(Point { stream: id, seq }) {
                continue;
            }
            let since = stream.waiting.filter(|(at, _)| *at == seq).map_or(now, |(_, since)| since);
            let deadline = since.checked_add(patience);
            let expired = deadline.is_some_and(|deadline| deadline <= now);
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.waiting = Some((seq, since));
                stream.expired = if expired { Some(seq) } else { stream.expired };
            }
            next = next.into_iter().chain(if expired { Some(now) } else { deadline }).min();
        }
        next
    }

    /// The heads that a point depends on and that could run now: those that queued work will wait for too, so that
    /// two branches of what is required come in either order.
    pub(crate) fn heads_for(&self, goals: &[Point]) -> Vec<u64> {
        let (mut open, mut seen, mut ready) = (goals.to_vec(), Vec::<Point>::new(), Vec::new());
        while let Some(point) = open.pop() {
            let covers = |other: &Point| other.stream == point.stream && other.seq >= point.seq;
            if self.reached(point) || seen.iter().any(covers) {
                continue;
            }
            seen.push(point);
            let Some(stream) = self.streams.get(&point.stream).filter(|stream| !stream.hung) else {
                continue;
            };
            let needed = usize::try_from(point.seq - stream.done).unwrap_or(usize::MAX).min(LOOKAHEAD);
            for (at, task) in stream.queue.iter().take(needed).enumerate() {
                let awaited = if at == 0 { self.head_awaits(stream, task) } else { self.awaited(&task.work) };
                match awaited {
                    None if at == 0 => ready.push(point.stream),
                    Some(points) => open.extend(points),
                    None => {}
                }
            }
        }
        ready.sort_unstable();
        ready.dedup();
        ready
    }
}
