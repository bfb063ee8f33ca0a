//! One volume on this host: its phase, its users, and the effect that is under way.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::FoundLease;
use super::table::{MountedVolume, Wanted};
use crate::protocol::exchange::Stage;
use crate::protocol::{Now, Op, Text};
use crate::record::Token;
use crate::volume::{ContainerId, VolumeId};

/// How far a volume is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "lowercase")]
pub enum Phase {
    /// The lease was asked for, and is not known to be ours.
    Acquiring,
    /// The lease is ours, and was another's whose driver calls or I/O may still land: the storage takes
    /// it away from the other first, or its settle time is waited for (L19).
    Settling {
        /// The lease's.
        token: Token,
    },
    /// The lease is ours; the driver was told to mount, or soon is.
    Mounting {
        /// The lease's.
        token: Token,
    },
    /// Mounted on this host.
    Attached {
        /// The lease's.
        token: Token,
        /// The mount.
        mounted: MountedVolume,
    },
    /// Without users, on its way to be released.
    Detaching {
        /// The lease's.
        token: Token,
        /// The mount, if it is known.
        mounted: Option<MountedVolume>,
        /// How far.
        step: Step,
    },
}

impl Phase {
    /// Whether a driver call may be under way.
    #[must_use]
    pub fn may_call_driver(&self) -> bool {
        matches!(self, Self::Mounting { .. } | Self::Detaching { .. })
    }
}

/// How far a volume is on its way to be released. Every failure goes back to `Announce`, so that
/// each Unmount follows a transaction that confirmed the lease (L3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Write `detaching` into the lease.
    Announce,
    /// Have the driver unmount.
    Unmount,
    /// Prove that the device is idle.
    Prove,
    /// Free the lease.
    Release,
}

/// A volume that this host has, gets or gives up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Volume {
    /// As the first container asked for it.
    pub wanted: Wanted,
    /// How far it is.
    pub phase: Phase,
    /// The containers that use it or wait for it.
    pub users: BTreeSet<ContainerId>,
    /// What went wrong last, while it is tried again.
    pub trouble: Option<Text>,
    /// Whether the lease in etcd names the present users and mount point.
    pub(super) recorded: bool,
    /// Whether a Mount may be under way, or have been done, that nobody has heard of.
    pub(super) unresolved: bool,
    /// Until when a driver call that had no answer may still happen: the lease is not released before.
    pub(in crate::protocol) settles_at: Option<Now>,
    /// Whether an older life of this host may have left such a call.
    pub(super) inherited: bool,
    /// Whether it alone was revoked: nobody may join.
    pub(super) revoked: bool,
    pub(in crate::protocol) awaits: Option<Op>,
    pub(in crate::protocol) retry_at: Option<Now>,
    /// The pause before the last step was tried again; none when it went well.
    pub(super) pause: Option<Duration>,
}

impl Volume {
    pub(super) fn new(wanted: Wanted, phase: Phase, users: BTreeSet<ContainerId>) -> Self {
        Self {
            wanted,
            phase,
            users,
            trouble: None,
            recorded: false,
            unresolved: false,
            settles_at: None,
            inherited: false,
            revoked: false,
            awaits: None,
            retry_at: None,
            pause: None,
        }
    }

    /// A volume that only its lease tells of. It is mounted once more, which Mount allows on the host
    /// that has it: then its device is known, and its release can be proved.
    pub(super) fn found(id: &VolumeId, lease: &FoundLease) -> Self {
        let wanted = Wanted { volume: id.clone(), asked: id.clone(), create: None };
        let mut volume = Self::new(wanted, Phase::Acquiring, BTreeSet::new());
        volume.adopt(lease);
        volume
    }

    /// Goes on with a lease that etcd names as ours. `unsettled` is what the lease itself says.
    pub(super) fn adopt(&mut self, lease: &FoundLease) {
        let token = lease.token;
        self.unresolved = true;
        // While a volume is attached no call is under way (L19).
        self.inherited = !matches!(self.phase, Phase::Attached { .. });
        let phase = match &self.phase {
            Phase::Attached { mounted, .. } => Phase::Attached { token, mounted: mounted.clone() },
            Phase::Detaching { mounted, .. } if !lease.unsettled => {
                Phase::Detaching { token, mounted: mounted.clone(), step: Step::Announce }
            }
            _ if lease.unsettled => Phase::Settling { token },
            _ => Phase::Mounting { token },
        };
        self.enter(phase);
    }

    /// Enters a phase or step: whatever failed before counts no more.
    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.recorded = false;
        self.awaits = None;
        self.retry_at = None;
    }

    /// The last step is to be tried again after a pause that doubles. Answers whether this failure is
    /// worth a line: one whose pause is still growing.
    pub(super) fn retry(&mut self, now: Now, trouble: Text, bounds: (Duration, Duration)) -> bool {
        let pause = self.pause.map_or(bounds.0, |pause| (pause * 2).min(bounds.1));
        let growing = self.pause != Some(pause);
        self.pause = Some(pause);
        self.awaits = None;
        self.retry_at = Some(now + pause);
        self.trouble = Some(trouble);
        growing
    }

    /// The last step went well.
    pub(super) fn settle(&mut self) {
        self.pause = None;
        self.trouble = None;
    }

    /// Whether a container may begin to use it; one that is being released must first be gone.
    pub(super) fn may_be_joined(&self) -> bool {
        !self.revoked && !matches!(self.phase, Phase::Detaching { .. })
    }

    pub(super) fn due(&self, now: Now) -> bool {
        self.awaits.is_none() && self.retry_at.is_none_or(|at| at <= now)
    }

    /// The mount, if it is known.
    #[must_use]
    pub fn mounted(&self) -> Option<&MountedVolume> {
        match &self.phase {
            Phase::Attached { mounted, .. } => Some(mounted),
            Phase::Detaching { mounted, .. } => mounted.as_ref(),
            _ => None,
        }
    }

    /// What the lease must say while the volume is in this phase, so that whoever takes it over knows
    /// whether a driver call may be under way (L19).
    pub(super) fn stage(&self) -> Stage {
        match self.phase {
            Phase::Attached { .. } => Stage::Attached,
            Phase::Detaching { .. } => Stage::Detaching,
            Phase::Acquiring | Phase::Settling { .. } | Phase::Mounting { .. } => Stage::Attaching,
        }
    }
}
