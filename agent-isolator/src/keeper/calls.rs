//! What is known of driver calls beside the core's table: what was there before the first of them, and what they left.
//!
//! It is of this life of the worker alone. A restarted one knows no more what was there before a call, and judges by the core's
//! table: below a mount root nothing belongs to nobody.

use std::collections::BTreeMap;
use std::time::Duration;

use shared::protocol::Now;
use shared::protocol::holder::{Core, Idleness, MountedVolume};
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
    /// A driver is about to be called. `again`: it may have been before, by another life of this keeper.
    pub(super) fn begin(&mut self, asked: &VolumeId, token: Token, again: bool, core: &Core) {
        self.known.retain(|asked, _| core.volumes().values().any(|row| row.wanted.asked == *asked));
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
        known.pinned_since = match proof.idleness {
            Idleness::Pinned(_) | Idleness::Mounted => known.pinned_since.or(Some(now)),
            _ => None,
        };
    }
}
