//! Events that wait to be written, in order. Pure: whoever calls says what time it is.
//!
//! While etcd cannot be written the queue is full at some time. Then the oldest event is dropped and
//! counted: what etcd itself holds is found again by a read, and of an agent that comes and goes the
//! last turn is the one that says how it stands.

use std::collections::VecDeque;
use std::time::Duration;

use shared::store::Revision;
use shared::transaction::EVENTS_MAX;
use tokio::time::Instant;

use crate::event::{Event, Place, Told};

/// How long a module whose master does not lead waits for the one that does to write an event. All
/// could write at once: the compares keep an event from being written twice. But then all but one
/// would write in vain, each time.
pub(crate) const STANDBY_DELAY: Duration = Duration::from_secs(2);

/// An event that waits.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    since: Instant,
    /// Grows from event to event.
    pub(crate) number: u64,
    pub(crate) event: Event,
    pub(crate) place: Place,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Queue {
    waiting: VecDeque<Pending>,
    most: usize,
    /// How many of them, from the first on, are being written now.
    in_flight: usize,
    next: u64,
    dropped: u64,
    /// The last revision known when the first of them was dropped.
    dropped_at: Revision,
    drops: u64,
}

impl Queue {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            most,
            in_flight: 0,
            next: 1,
            dropped: 0,
            dropped_at: Revision::ABSENT,
            drops: 0,
        }
    }

    /// Adds an event. `revision` is the last one of etcd that is known.
    pub(crate) fn push(&mut self, told: Told, now: Instant, revision: Revision) {
        let Told { event, place, .. } = told;
        if self.waiting.len() >= self.most {
            self.drop_oldest(revision);
        }
        let pending = self.pending(now, event, place);
        self.waiting.push_back(pending);
    }

    fn pending(&mut self, since: Instant, event: Event, place: Place) -> Pending {
        let number = self.next;
        self.next += 1;
        Pending { since, number, event, place }
    }

    fn drop_oldest(&mut self, revision: Revision) {
        // That some were dropped is never dropped: it may be written already.
        let may_go = |pending: &Pending| !matches!(pending.event, Event::Dropped { .. });
        let oldest = self.waiting.iter().skip(self.in_flight).position(may_go);
        if oldest.is_some_and(|oldest| self.waiting.remove(self.in_flight + oldest).is_some()) {
            if self.dropped == 0 {
                self.dropped_at = revision;
            }
            self.dropped += 1;
        }
    }

    /// The events to write now, if it is time; nothing while others are being written.
    pub(crate) fn batch(&mut self, now: Instant, leading: bool) -> Vec<Pending> {
        if self.in_flight > 0 || self.due(leading).is_none_or(|due| now < due) {
            return Vec::new();
        }
        // At most one such event waits: the next one counts until it is written.
        let told = self.waiting.front().is_some_and(|first| matches!(first.event, Event::Dropped { .. }));
        if self.dropped > 0 && !told {
            let event = Event::Dropped { events: std::mem::take(&mut self.dropped) };
            event.log();
            self.drops += 1;
            let place = Place::Dropped { at: self.dropped_at, number: self.drops };
            let pending = self.pending(now, event, place);
            self.waiting.push_front(pending);
        }
        let batch: Vec<_> = self.waiting.iter().take(EVENTS_MAX).cloned().collect();
        self.in_flight = batch.len();
        batch
    }

    /// When the first event is to be written; `None` without one, or while others are being written.
    pub(crate) fn due(&self, leading: bool) -> Option<Instant> {
        let first = self.waiting.front().filter(|_| self.in_flight == 0)?;
        Some(if leading { first.since } else { first.since + STANDBY_DELAY })
    }

    /// So many of the events of the last batch, from the first on, are in etcd; the others are to be
    /// written again.
    pub(crate) fn written(&mut self, count: usize) {
        self.waiting.drain(..count.min(self.in_flight));
        self.in_flight = 0;
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(n: usize) -> Told {
        let event = Event::MoreHeld { volumes: n };
        Told { event, place: Place::Outside, logged: false }
    }

    fn numbers(batch: &[Pending]) -> Vec<usize> {
        let number = |pending: &Pending| match pending.event {
            Event::MoreHeld { volumes } => volumes,
            Event::Dropped { events } => 1_000 * usize::try_from(events).unwrap(),
            _ => 0,
        };
        batch.iter().map(number).collect()
    }

    #[test]
    fn beside_the_leader_events_are_written_at_once_and_elsewhere_later() {
        let (mut queue, now) = (Queue::new(10), Instant::now());
        assert_eq!(queue.due(true), None);
        queue.push(told(1), now, Revision(5));
        assert!(queue.batch(now, false).is_empty());
        assert_eq!(queue.due(false), Some(now + STANDBY_DELAY));
        assert_eq!(numbers(&queue.batch(now + STANDBY_DELAY, false)), [1]);
        assert!(queue.batch(now, true).is_empty(), "they are being written");
        queue.written(0);
        assert_eq!(numbers(&queue.batch(now, true)), [1], "again");
        queue.written(1);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_full_queue_drops_the_oldest_that_is_not_being_written_and_counts() {
        let (mut queue, now) = (Queue::new(100), Instant::now());
        for n in 0..100 {
            queue.push(told(n), now, Revision(5));
        }
        assert_eq!(queue.batch(now, true).len(), EVENTS_MAX);
        for n in 100..103 {
            queue.push(told(n), now, Revision(6));
        }
        assert_eq!(queue.len(), 100);
        queue.written(EVENTS_MAX);
        // First that three are missing, then what comes behind them.
        let batch = queue.batch(now, true);
        assert_eq!(numbers(&batch)[..3], [3_000, EVENTS_MAX + 3, EVENTS_MAX + 4]);
        assert_eq!(batch[0].place, Place::Dropped { at: Revision(6), number: 1 });
        queue.written(0);
        for n in 103..200 {
            queue.push(told(n), now, Revision(7));
        }
        let batch = queue.batch(now, true);
        assert!(matches!(batch[0].event, Event::Dropped { .. }), "what is dropped next has its own count");
        assert_eq!(batch[0].place, Place::Dropped { at: Revision(6), number: 1 });
        assert!(
            batch.iter().skip(1).all(|one| one.place == Place::Outside),
            "and waits until this is written"
        );
        queue.written(EVENTS_MAX);
        let batch = queue.batch(now, true);
        assert_eq!(batch[0].place, Place::Dropped { at: Revision(7), number: 2 });
        assert!(queue.len() <= 101, "{}", queue.len());
    }
}
