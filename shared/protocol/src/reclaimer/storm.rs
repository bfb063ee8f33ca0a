//! The storm guard: when more than half, and at least three, of the lease-holding sessions fall silent at
//! once, it is more likely that something is wrong with the one who watches, or with etcd, than that so
//! many hosts died. Nobody reclaims or revokes then, until a person lifts it, or a reclaimer whose own
//! reads were never late for a full wait does.

use std::time::Duration;

use super::Settings;
use crate::exchange::{Key, Record, Storm, View};
use crate::ids::Revision;
use crate::{Now, Text};

/// The fewest silent sessions that make a storm: one or two hosts do die together.
const STORM_MIN: usize = 3;

/// What one module knows of the storm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Guard {
    /// The raised storm, and when this module first saw it.
    pub(crate) raised: Option<(Revision, Now)>,
    /// Since when this module's reads were never late, and when the last one returned.
    pub(crate) good: Option<(Now, Now)>,
}

/// What follows from it.
pub(super) struct Verdict {
    pub(super) may_act: bool,
    pub(super) write: Option<Storm>,
    pub(super) alarm: Option<Text>,
}

impl Guard {
    /// A read failed.
    pub(super) fn late(&mut self) {
        self.good = None;
    }

    /// Judges a read that has just returned, which shows `lost` of `holding` sessions as silent for their
    /// whole wait.
    pub(super) fn judge(
        &mut self,
        now: Now,
        settings: &Settings,
        span: Duration,
        view: &View,
        lost: usize,
        holding: usize,
    ) -> Verdict {
        let late = settings.poll + settings.timing.request * 2;
        let since = self.good.filter(|(_, last)| now <= *last + late).map_or(now, |(since, _)| since);
        self.good = Some((since, now));
        let storm = lost >= STORM_MIN && lost * 2 > holding;
        let (known, at) = match view.entries.get(&Key::Storm) {
            Some((Record::Storm(known), at)) => (*known, *at),
            _ => (Storm::Over, Revision::ABSENT),
        };
        if known != Storm::Raised {
            self.raised = None;
        } else if self.raised.is_none_or(|(raised, _)| raised != at) {
            self.raised = Some((at, now));
        }
        let verdict = |may_act, write, alarm| Verdict { may_act, write, alarm };
        match (known, storm) {
            (Storm::Over, true) => {
                let alarm = format!(
                    "{lost} of {holding} hosts with leases are silent at once: nothing is reclaimed or revoked; \
                     `extvol storm lift` lifts this, or it lifts itself after {} ms of timely reads",
                    span.as_millis()
                );
                verdict(false, Some(Storm::Raised), Some(alarm.into()))
            }
            (Storm::Over, false) | (Storm::Lifted, true) => verdict(true, None, None),
            (Storm::Lifted | Storm::Raised, false) => verdict(false, Some(Storm::Over), None),
            (Storm::Raised, true) => {
                let seen = self.raised.map_or(now, |(_, seen)| seen);
                let lift = now >= seen.max(since) + span;
                verdict(false, lift.then_some(Storm::Lifted), None)
            }
        }
    }
}
