//! What is known of driver calls beside the core's table: what was there before the first of them, and what they left.
//!
//! It is of this life of the worker alone. A restarted one knows no more what was there before a call, and judges by the core's
//! table: below a mount root nothing belongs to nobody.

use std::collections::BTreeMap;
use std::time::Duration;

use shared::protocol::Now;
use shared::protocol::holder::{Idleness, MountedVolume};
use shared::record::Token;
use shared::volume::VolumeId;

use super::mounts::{Before, Proof};

/// The calls for one volume under one lease.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    token: Option<Token>,
    pub(super) before: Option<Before>,
    pub(super) calls: u32,
    /// What they have mounted beside the volume's mount.
    pub(super) strays: Vec<MountedVolume>,
    /// What the last look found that was no volume's.
    pub(super) found: Vec<String>,
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
    /// Forgets volumes that are not among these any more.
    pub(super) fn forget(&mut self, still: impl Fn(&VolumeId) -> bool) {
        self.known.retain(|asked, _| still(asked));
    }

    /// A driver is about to be called. `again`: it may have been before, by another life of this keeper.
    pub(super) fn begin(&mut self, asked: &VolumeId, token: Token, again: bool) {
        let known = self.known.entry(asked.clone()).or_default();
        if known.token != Some(token) {
            // Without it nothing counts as mounted by the call that was there, but by name and place.
            let before = if again { None } else { Before::now().ok() };
            *known = Known { token: Some(token), before, ..Known::default() };
        }
        known.calls += 1;
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
            _ => None,
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
        calls.begin(&volume(), Token(Revision(7)), false);
        let first = calls.of(&volume());
        assert!(first.before.is_some() && first.calls == 1);
        // A repeated call finds what the first has mounted.
        calls.begin(&volume(), Token(Revision(7)), true);
        let second = calls.of(&volume());
        assert_eq!((second.before, second.calls), (first.before, 2));
        calls.begin(&volume(), Token(Revision(8)), true);
        let restarted = calls.of(&volume());
        assert_eq!((restarted.before, restarted.calls), (None, 1));
        calls.forget(|_| false);
        assert_eq!(calls.of(&volume()).calls, 0);
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
        assert!(sees(110, Idleness::Pinned("sh".into())));
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
