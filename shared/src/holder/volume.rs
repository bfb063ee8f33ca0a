//! One volume on this host: its phase, its users, and the effect that is under way.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::table::MountedVolume;
use super::{FoundLease, Now, Op, Wanted};
use crate::record::Token;
use crate::volume::{ContainerId, VolumeId};

/// The first and the longest pause before a failed step is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(10);

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

/// How far a volume is on its way to be released. Whatever needs another Unmount goes back to
/// `Announce`, so that each follows a transaction that confirmed the lease (L3).
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

/// What is stored of a volume beside its phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Notes {
    /// Whether the driver was ever asked to mount it under this lease.
    asked: bool,
    /// Whether a driver call may be under way of which no end is known.
    unsettled: bool,
    /// Whether somebody may use it of whom there is no note: it is not unmounted while another mount
    /// namespace shows it.
    guarded: bool,
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
    /// Whether a transaction has confirmed the lease since the driver was last called.
    pub(super) confirmed: bool,
    /// Whether the mount was looked at since the last container began to use it.
    pub(super) seen: bool,
    /// Whether it was found unmounted by somebody else.
    pub(super) gone: bool,
    /// Whether a Mount may have been done that nobody has heard of.
    pub(super) unresolved: bool,
    /// Whether an older life of this boot had it, and left no note of its mount.
    pub(super) unnoted: bool,
    /// Where its lease said that it is mounted, for one of which there is no note.
    pub(super) recorded_point: Option<String>,
    /// How often the driver refused to unmount or detach it, while its device was idle.
    pub(super) refusals: u32,
    pub(super) asked: bool,
    pub(super) guarded: bool,
    /// A driver call of this life has not ended.
    calling: bool,
    /// When no call without an answer can be under way any more.
    pub(super) settled_at: Option<Now>,
    /// An older life's note of such a call; its time begins with the session.
    unsettled_before: bool,
    pub(super) awaits: Option<Op>,
    pub(super) retry_at: Option<Now>,
    attempts: u32,
}

impl Volume {
    pub(super) fn restored(wanted: Wanted, phase: Phase, users: BTreeSet<ContainerId>, notes: Notes) -> Self {
        Self {
            wanted,
            phase,
            users,
            trouble: None,
            recorded: false,
            confirmed: false,
            seen: false,
            gone: false,
            unresolved: false,
            unnoted: false,
            recorded_point: None,
            refusals: 0,
            asked: notes.asked,
            guarded: notes.guarded,
            calling: false,
            settled_at: None,
            unsettled_before: notes.unsettled,
            awaits: None,
            retry_at: None,
            attempts: 0,
        }
    }

    pub(super) fn acquiring(wanted: Wanted, user: ContainerId) -> Self {
        Self::restored(wanted, Phase::Acquiring, BTreeSet::from([user]), Notes::default())
    }

    /// A volume that only its lease tells of. Unused, it is mounted once more, which Mount allows on
    /// the host that has it: then its device is known, and its release can be proved.
    pub(super) fn found(id: &VolumeId, lease: FoundLease, settled_at: Now) -> Self {
        let wanted = Wanted { volume: id.clone(), asked: id.clone(), create: None };
        let FoundLease { token, calling, same_boot, mount_point, containers, mounted, in_use } = lease;
        let phase = mounted.map_or(Phase::Mounting { token }, |mounted| Phase::Attached { token, mounted });
        let notes = Notes { asked: true, unsettled: false, guarded: in_use };
        let users = containers.into_keys().collect();
        let mut volume = Self::restored(wanted, phase, users, notes);
        volume.unresolved = true;
        volume.unnoted = same_boot;
        volume.recorded_point = mount_point;
        volume.settled_at = calling.then_some(settled_at);
        volume
    }

    /// Goes on with a lease that etcd names as ours.
    pub(super) fn adopt(&mut self, lease: &FoundLease, settled_at: Now) {
        let token = lease.token;
        self.unresolved = self.asked;
        if std::mem::take(&mut self.unsettled_before) || self.calling {
            self.calling = false;
            self.settled_at = Some(settled_at);
        }
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

    pub(super) fn notes(&self) -> Notes {
        let unsettled = self.calling || self.settled_at.is_some() || self.unsettled_before;
        Notes { asked: self.asked, unsettled, guarded: self.guarded }
    }

    /// Enters a phase or step: whatever failed before counts no more.
    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.recorded = false;
        self.confirmed = false;
        self.seen = false;
        self.awaits = None;
        self.retry_at = None;
    }

    /// The driver is called.
    pub(super) fn call(&mut self) {
        self.calling = true;
        self.confirmed = false;
    }

    /// Whether the driver was called and has not ended it.
    pub(super) fn is_called(&self) -> bool {
        self.calling
    }

    /// The driver has ended a call.
    pub(super) fn answered(&mut self) {
        self.calling = false;
    }

    /// A call ended without an answer: it may go on until then.
    pub(super) fn unanswered(&mut self, settled_at: Now) {
        self.calling = false;
        self.unresolved = true;
        self.settled_at = self.settled_at.max(Some(settled_at));
    }

    /// Notes that no call without an answer can be under way any more; answers whether that is new. What
    /// was proved before, such a call may have undone: it is proved again.
    pub(super) fn settles(&mut self, now: Now) -> bool {
        let settles = self.settled_at.take_if(|at| *at <= now).is_some();
        if settles && let Phase::Detaching { token, mounted, step: Step::Release } = self.phase.clone() {
            self.enter(Phase::Detaching { token, mounted, step: Step::Announce });
        }
        settles
    }

    /// Leaves a phase in which nobody needs it any more; answers whether that happened.
    pub(super) fn leave(&mut self) -> bool {
        match self.phase.clone() {
            // The lease came, and nobody waits for it any more: nothing was ever done under it.
            Phase::Mounting { token } if self.users.is_empty() && !self.asked => {
                self.enter(Phase::Detaching { token, mounted: None, step: Step::Release });
                true
            }
            Phase::Attached { token, mounted } if self.users.is_empty() && !self.guarded => {
                let mounted = Some(mounted);
                self.enter(Phase::Detaching { token, mounted, step: Step::Announce });
                true
            }
            _ => false,
        }
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

    /// Whether a container may begin to use it; one that is being released must first be gone.
    pub(super) fn may_be_joined(&self) -> bool {
        let coming = matches!(self.phase, Phase::Acquiring | Phase::Mounting { .. } | Phase::Attached { .. });
        coming && !self.gone
    }

    pub(super) fn due(&self, now: Now) -> bool {
        self.awaits.is_none() && self.retry_at.is_none_or(|at| at <= now)
    }
}
