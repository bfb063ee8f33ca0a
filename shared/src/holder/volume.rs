//! One volume on this host: its phase, its users, and the effect that is under way.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::table::MountedVolume;
use super::{FoundLease, Now, Op, RETRY_FIRST, RETRY_LONGEST, Wanted};
use crate::record::Token;
use crate::volume::{ContainerId, VolumeId};

/// How far a volume is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "lowercase")]
pub enum Phase {
    /// The lease was asked for, and is not known to be ours.
    Acquiring,
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
    /// The lease is not ours any more. No driver call is made for it, ever.
    Lost {
        /// How that was noticed.
        why: String,
    },
}

/// How far a volume is on its way to be released. Every failure goes back to `Announce`, so that
/// each Unmount follows a transaction that confirmed the lease (L3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug)]
pub struct Volume {
    /// As the first container asked for it.
    pub wanted: Wanted,
    /// How far it is.
    pub phase: Phase,
    /// The containers that use it or wait for it.
    pub users: BTreeSet<ContainerId>,
    /// What went wrong last, while it is tried again.
    pub trouble: Option<String>,
    /// Whether the lease in etcd names the present users and mount point.
    pub(super) recorded: bool,
    /// Whether a Mount may be under way, or have been done, that nobody has heard of.
    pub(super) unresolved: bool,
    pub(super) awaits: Option<Op>,
    pub(super) retry_at: Option<Now>,
    attempts: u32,
}

impl Volume {
    pub(super) fn restored(wanted: Wanted, phase: Phase, users: BTreeSet<ContainerId>) -> Self {
        Self {
            wanted,
            phase,
            users,
            trouble: None,
            recorded: false,
            unresolved: false,
            awaits: None,
            retry_at: None,
            attempts: 0,
        }
    }

    pub(super) fn acquiring(wanted: Wanted, user: ContainerId) -> Self {
        Self::restored(wanted, Phase::Acquiring, BTreeSet::from([user]))
    }

    /// A volume that only its lease tells of. Unused, it is mounted once more, which Mount allows on
    /// the host that has it: then its device is known, and its release can be proved.
    pub(super) fn found(id: &VolumeId, lease: FoundLease) -> Self {
        let wanted = Wanted { volume: id.clone(), asked: id.clone(), create: None };
        let FoundLease { token, containers, mounted, in_use } = lease;
        let phase = mounted.map_or(Phase::Mounting { token }, |mounted| Phase::Attached { token, mounted });
        let users = if in_use { containers } else { BTreeSet::new() };
        Self { unresolved: true, ..Self::restored(wanted, phase, users) }
    }

    /// Goes on with a lease that etcd names as ours.
    pub(super) fn adopt(&mut self, lease: &FoundLease) {
        let token = lease.token;
        self.unresolved = true;
        self.enter(match &self.phase {
            Phase::Acquiring | Phase::Mounting { .. } => Phase::Mounting { token },
            Phase::Attached { mounted, .. } => Phase::Attached { token, mounted: mounted.clone() },
            Phase::Detaching { mounted, .. } => {
                Phase::Detaching { token, mounted: mounted.clone(), step: Step::Announce }
            }
            // It was lost under an older session, and is ours again: nothing is known of its mount.
            Phase::Lost { .. } => Phase::Mounting { token },
        });
    }

    /// Enters a phase or step: whatever failed before counts no more.
    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.recorded = false;
        self.awaits = None;
        self.retry_at = None;
    }

    /// The last step is to be tried again after a pause that doubles. Answers whether this failure
    /// is worth a line: the first, the second, the fourth, and so on.
    pub(super) fn retry(&mut self, now: Now, trouble: String) -> bool {
        let pause = RETRY_FIRST.saturating_mul(1 << self.attempts.min(10)).min(RETRY_LONGEST);
        self.attempts = self.attempts.saturating_add(1);
        self.awaits = None;
        self.retry_at = Some(now + pause);
        self.trouble = Some(trouble);
        self.attempts.is_power_of_two()
    }

    /// The last step went well.
    pub(super) fn settle(&mut self) {
        self.attempts = 0;
        self.trouble = None;
    }

    pub(super) fn is_attached(&self) -> bool {
        matches!(self.phase, Phase::Attached { .. })
    }

    /// Whether a container may begin to use it; one that is being released must first be gone.
    pub(super) fn may_be_joined(&self) -> bool {
        matches!(self.phase, Phase::Acquiring | Phase::Mounting { .. } | Phase::Attached { .. })
    }

    pub(super) fn due(&self, now: Now) -> bool {
        self.awaits.is_none() && self.retry_at.is_none_or(|at| at <= now)
    }
}
