//! How often the leading master is asked for its list of agents. Pure.
//!
//! Every `poll_interval`. While something presses, which is what a revoke may follow from as soon as the list says
//! otherwise, the agents that it is about are looked at every `hasty_poll_interval`, each by a question about that agent
//! alone; when one of these is answered otherwise than before, the whole list is asked for. So what is decided on is
//! always a whole list, of which a large installation's has tens of megabytes. More than [`LOOKED_AT_MAX`] agents are
//! not looked at one by one.
//!
//! Two more bounds keep that cheap: nothing presses for longer than [`PRESSING_MAX`], and a quarter of the time is spent
//! in questions at most ([`REST`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::mesos::Registration;
use crate::view::Pressing;

/// How long one thing presses: what Mesos takes to give an agent up, 75 to 90 s by default, and as much again.
const PRESSING_MAX: Duration = Duration::from_secs(180);

/// In haste it is asked again when so many times as long as it took the last time have passed since that began.
const REST: u32 = 4;

/// Agents that are looked at one by one. More are worth a list.
pub(crate) const LOOKED_AT_MAX: usize = 16;

/// Agents to look at, and how each was listed.
pub(crate) type LookedAt = BTreeMap<Arc<str>, Option<Registration>>;

/// What presses, and since when.
#[derive(Debug, Default)]
pub(crate) struct Haste {
    since: BTreeMap<Pressing, Instant>,
}

impl Haste {
    /// The agents of what presses now and has begun to lately; none when there is no haste.
    pub(crate) fn look_at(
        &mut self,
        now: Instant,
        pressing: BTreeMap<Pressing, (Arc<str>, Option<Registration>)>,
    ) -> LookedAt {
        self.since.retain(|known, _| pressing.contains_key(known));
        let mut look_at = LookedAt::new();
        for (one, (id, registration)) in pressing {
            if now < *self.since.entry(one).or_insert(now) + PRESSING_MAX {
                look_at.insert(id, registration);
            }
        }
        look_at
    }
}

/// When the next round is due.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    interval: Duration,
    hasty: Duration,
    /// When the last round began that was due without any haste.
    ordinary: Option<Instant>,
    /// When the last one, or a look, began, and how long it took.
    last: Option<(Instant, Duration)>,
}

impl Pace {
    pub(crate) fn new(interval: Duration, hasty: Duration) -> Self {
        Self { interval, hasty, ordinary: None, last: None }
    }

    /// When the next one is due; `None` for at once.
    pub(crate) fn due(&self, in_haste: bool) -> Option<Instant> {
        let ordinary = self.ordinary? + self.interval;
        let (begun, took) = self.last?;
        let hasty = begun + self.hasty.max(took * REST);
        Some(if in_haste { hasty.min(ordinary) } else { ordinary })
    }

    /// A round or a look begins; whether a round would without any haste.
    pub(crate) fn begin(&mut self, now: Instant) -> bool {
        let is_ordinary = self.ordinary.is_none_or(|ordinary| now >= ordinary + self.interval);
        if is_ordinary {
            self.ordinary = Some(now);
        }
        self.last = Some((now, Duration::ZERO));
        is_ordinary
    }

    /// It has ended.
    pub(crate) fn end(&mut self, now: Instant) {
        if let Some((begun, took)) = &mut self.last {
            *took = now.saturating_duration_since(*begun);
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::volume::Holder;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn in_haste_rounds_are_more_frequent_and_the_others_come_when_they_did() {
        let (mut pace, begin) = (Pace::new(5_000 * MS, 500 * MS), Instant::now());
        assert_eq!(pace.due(false), None, "at once");
        assert!(pace.begin(begin));
        pace.end(begin + 40 * MS);
        assert_eq!(pace.due(false), Some(begin + 5_000 * MS));
        let mut now = begin;
        for _ in 1..10 {
            now = pace.due(true).unwrap();
            assert!(!pace.begin(now), "it would not be due");
            pace.end(now + 40 * MS);
        }
        assert_eq!((now, pace.due(true)), (begin + 4_500 * MS, Some(begin + 5_000 * MS)));
        assert!(pace.begin(begin + 5_000 * MS));
    }

    #[test]
    fn a_list_that_takes_long_is_not_asked_for_more_than_a_quarter_of_the_time() {
        let (mut pace, begin) = (Pace::new(5_000 * MS, 500 * MS), Instant::now());
        pace.begin(begin);
        pace.end(begin + 700 * MS);
        assert_eq!(pace.due(true), Some(begin + 2_800 * MS));
        pace.begin(begin + 2_800 * MS);
        pace.end(begin + 4_800 * MS);
        assert_eq!(pace.due(true), Some(begin + 5_000 * MS), "never later than without any haste");
    }

    #[test]
    fn nothing_presses_for_ever_and_what_has_ceased_may_press_again() {
        let (mut haste, begin) = (Haste::default(), Instant::now());
        let holder = Holder::new("agent-1").unwrap();
        let [inactive, wanted] = [Pressing::Inactive(holder.clone()), Pressing::Wanted(holder)];
        let mut is_on = |at: Duration, pressing: &[&Pressing]| {
            let agent = (Arc::from("S1"), Some(Registration::Inactive));
            let pressing = pressing.iter().map(|one| ((*one).clone(), agent.clone())).collect();
            let look_at = haste.look_at(begin + at, pressing);
            assert!(look_at.iter().all(|(id, how)| (&**id, *how) == ("S1", agent.1)) && look_at.len() < 2);
            !look_at.is_empty()
        };
        assert!(!is_on(Duration::ZERO, &[]));
        assert!(is_on(MS, &[&inactive]));
        assert!(is_on(PRESSING_MAX, &[&inactive]));
        assert!(!is_on(PRESSING_MAX + MS, &[&inactive]));
        assert!(is_on(PRESSING_MAX + 2 * MS, &[&inactive, &wanted]), "something else");
        assert!(!is_on(PRESSING_MAX + 3 * MS, &[&inactive]));
        assert!(!is_on(PRESSING_MAX + 4 * MS, &[]));
        assert!(is_on(PRESSING_MAX + 5 * MS, &[&inactive]), "again");
    }
}
