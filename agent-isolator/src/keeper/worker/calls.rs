//! What is known of driver calls beside the core's table: what was there before the first of them, and what they left.
//!
//! It is of this life of the worker alone. A restarted one knows no more what was there before a call, and judges by the core's
//! table: below a mount root nothing belongs to nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shared::protocol::Now;
use shared::protocol::holder::{Idleness, MountedVolume};
use shared::record::Token;
use shared::volume::VolumeId;

use crate::keeper::limits::FORGOTTEN_LATER;
use crate::keeper::mounts::{Before, Proof};

/// The calls for one volume under one lease.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    token: Option<Token>,
    pub(super) before: Option<Before>,
    /// Whether it has yet to be looked what is there: no driver was called.
    wants_before: bool,
    pub(super) calls: u32,
    /// What they have mounted beside the volume's mount.
    pub(super) strays: Vec<MountedVolume>,
    /// What the last look found that was no volume's.
    pub(super) found: Vec<u64>,
    pinned_since: Option<Now>,
}

impl Known {
    /// Whether those who pin the volume had time to end.
    pub(super) fn had_time(&self, now: Now, grace: Duration) -> bool {
        self.pinned_since.is_some_and(|since| now.saturating_sub(since) >= grace)
    }
}

/// By volume, as its driver is asked for it.
#[derive(Debug, Default)]
pub(super) struct Calls {
    known: BTreeMap<VolumeId, Known>,
}

impl Calls {
    /// Forgets volumes that are not among these any more; not each time, for that is work for each of them.
    pub(super) fn forget<'a>(&mut self, still: impl ExactSizeIterator<Item = &'a VolumeId>) {
        if self.known.len() <= 2 * still.len() + FORGOTTEN_LATER {
            return;
        }
        let still: BTreeSet<_> = still.collect();
        self.known.retain(|asked, _| still.contains(asked));
    }

    /// A driver is about to be called. `again`: it may have been before, by another life of this keeper. Answers whether it
    /// has to be looked first what is there: [`Calls::found_before`] takes that in. Where a call may have been made, that would
    /// be too late: then nothing counts as mounted by the call that was there, but by name and place.
    #[must_use]
    pub(super) fn begin(&mut self, asked: &VolumeId, token: Token, again: bool) -> bool {
        let known = self.known.entry(asked.clone()).or_default();
        if known.token != Some(token) {
            *known = Known { token: Some(token), wants_before: !again, ..Known::default() };
        }
        known.calls += 1;
        known.wants_before
    }

    /// What was there before the first call under a lease. A later look counts for nothing: it may show what a call has mounted.
    pub(super) fn found_before(&mut self, asked: &VolumeId, token: Token, before: Before) {
        if let Some(known) = self.known.get_mut(asked).filter(|known| known.token == Some(token))
            && std::mem::take(&mut known.wants_before)
        {
            known.before = Some(before);
        }
    }

    pub(super) fn of(&self, asked: &VolumeId) -> Known {
        self.known.get(asked).cloned().unwrap_or_default()
    }

    pub(super) fn add_stray(&mut self, asked: &VolumeId, stray: Option<Box<MountedVolume>>) {
        let known = self.known.entry(asked.clone()).or_default();
        let is_new = |stray: &MountedVolume| !known.strays.iter().any(|other| other.is_same_storage(stray));
        if let Some(stray) = stray.filter(|stray| is_new(stray)) {
            known.strays.push(*stray);
        }
    }

    /// What came of a proof.
    pub(super) fn proved(&mut self, now: Now, asked: &VolumeId, proof: &Proof) {
        let known = self.known.entry(asked.clone()).or_default();
        known.strays.clone_from(&proof.strays);
        known.found.clone_from(&proof.found);
        known.pinned_since = match proof.idleness {
            Idleness::Pinned(_) | Idleness::Mounted => known.pinned_since.or(Some(now)),
            // Whoever makes it hard to tell gets no more time by that.
            Idleness::Unknown(_) => known.pinned_since,
            Idleness::Proved | Idleness::ProvedAttached => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use shared::store::Revision;
    use shared::volume::{Driver, VolumeName};

    use super::*;

    fn volume() -> VolumeId {
        VolumeId { driver: Driver::new("ebs").unwrap(), name: VolumeName::new("v").unwrap() }
    }

    #[test]
    fn what_was_there_is_of_before_the_first_call_under_a_lease_and_of_no_other_life() {
        let mut calls = Calls::default();
        let (lease, next) = (Token(Revision(7)), Token(Revision(8)));
        assert!(calls.begin(&volume(), lease, false));
        // The look failed, and no driver was called.
        assert!(calls.begin(&volume(), lease, true));
        calls.found_before(&volume(), next, Before::default());
        assert_eq!(calls.of(&volume()).before, None, "it is of another lease");
        calls.found_before(&volume(), lease, Before::now().unwrap());
        let first = calls.of(&volume());
        assert!(first.before.is_some() && first.before != Some(Before::default()));
        // A repeated call would find what the first has mounted.
        assert!(!calls.begin(&volume(), lease, true));
        calls.found_before(&volume(), lease, Before::default());
        let second = calls.of(&volume());
        assert_eq!((second.before, second.calls), (first.before, 3));
        assert!(!calls.begin(&volume(), next, true));
        calls.found_before(&volume(), next, Before::default());
        let restarted = calls.of(&volume());
        assert_eq!((restarted.before, restarted.calls), (None, 1));
    }

    #[test]
    fn of_volumes_that_are_held_no_more_few_are_remembered() {
        let mut calls = Calls::default();
        let named = |n: usize| VolumeId { name: VolumeName::new(format!("v{n}")).unwrap(), ..volume() };
        let held: Vec<_> = (0..10).map(named).collect();
        for n in 0..1_000 {
            calls.forget(held.iter());
            let _ = calls.begin(&named(n), Token(Revision(7)), false);
            assert!(calls.known.len() <= 2 * held.len() + FORGOTTEN_LATER + 1);
        }
        assert!(held.iter().all(|asked| calls.of(asked).calls == 1));
    }

    #[test]
    fn who_pins_a_volume_has_the_grace_to_end_from_when_it_was_first_seen() {
        let mut calls = Calls::default();
        let grace = Duration::from_secs(10);
        let at = Duration::from_secs;
        let mut sees = |now: u64, idleness: Idleness| {
            let proof = Proof { idleness, strays: vec![], found: vec![], killed: vec![] };
            calls.proved(at(now), &volume(), &proof);
            calls.of(&volume()).had_time(at(now), grace)
        };
        assert!(!sees(100, Idleness::Pinned("sh".into())) && !sees(109, Idleness::Mounted));
        // That it could not be told once changes nothing.
        assert!(!sees(109, Idleness::Unknown("no answer".into())));
        assert!(sees(110, Idleness::Pinned("sh".into())) && sees(111, Idleness::Unknown("no answer".into())));
        assert!(!sees(111, Idleness::Proved) && !sees(120, Idleness::Pinned("sh".into())));
    }

    #[test]
    fn one_stray_is_known_once() {
        let mut calls = Calls::default();
        let stray = MountedVolume { device_number: "7:1".into(), ..MountedVolume::default() };
        for _ in 0..2 {
            calls.add_stray(&volume(), Some(Box::new(stray.clone())));
        }
        assert_eq!(calls.of(&volume()).strays, [stray]);
    }
}
