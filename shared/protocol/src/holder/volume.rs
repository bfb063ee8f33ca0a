//! One volume on this host: its phase, its users, and the effect that is under way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::FoundLease;
use super::table::{MountedVolume, Wanted};
use crate::exchange::Stage;
use crate::ids::Token;
use crate::volume::{ContainerId, VolumeId};
use crate::{Now, Op, Text};

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

/// How far a volume is on its way to be released. Whatever needs another Unmount goes back to
/// `Announce`, so that each follows a transaction that confirmed the lease (L3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Write `detaching` into the lease.
    Announce,
    /// Have the driver unmount.
    Unmount,
    /// Prove that the device is idle.
    Prove,
    /// Write `detaching` into the lease once more, before the volume is removed.
    Condemn,
    /// Have the driver remove it.
    Remove,
    /// Free the lease.
    Release,
}

/// What is stored of a volume beside its phase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Notes {
    /// Whether the driver was ever asked to mount it under this lease.
    pub(super) asked: bool,
    /// Whether a driver call may be under way of which no end is known.
    pub(crate) unsettled: bool,
    /// Users that ended without Mesos having said so, with their agents: while there are any, the volume is not
    /// unmounted as long as another mount namespace shows it.
    pub(super) doubts: BTreeMap<ContainerId, Text>,
    /// Whether what the driver mounts under this name is another volume's: it is not asked to unmount it.
    pub(super) not_its_own: bool,
    /// Whether a container that was let go asked for its removal.
    pub(super) removes: bool,
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
    /// Whether a transaction has confirmed the lease since the driver was last called.
    pub(super) confirmed: bool,
    /// Whether the mount was looked at since the last container began to use it.
    pub(super) seen: bool,
    /// Whether it was found unmounted by somebody else.
    pub(super) gone: bool,
    /// Whether a Mount may have been done that nobody has heard of.
    pub(super) unresolved: bool,
    /// Whether the storage may have it attached to this host because of what the driver was asked.
    pub(super) attached: bool,
    /// How often the driver refused to unmount or detach it, while its device was idle.
    pub(super) refusals: u32,
    /// Since when it alone is known to be revoked: nobody may join.
    pub(crate) revoked: Option<Now>,
    asked: bool,
    pub(super) doubts: BTreeMap<ContainerId, Text>,
    pub(super) not_its_own: bool,
    /// Whether a container that was let go asked for its removal: what nobody used is nobody's to remove.
    pub(super) removes: bool,
    /// A driver call of this life has not ended.
    calling: bool,
    /// Until when a driver call that had no answer may still happen: the driver is not asked to unmount before, and the
    /// lease not released.
    pub(crate) settled_at: Option<Now>,
    /// An older life's note of such a call; its time begins when the lease is taken in.
    unsettled_before: bool,
    pub(crate) awaits: Option<Op>,
    pub(crate) retry_at: Option<Now>,
    /// The pause before the last step was tried again; none when it went well.
    pub(super) pause: Option<Duration>,
}

impl Phase {
    /// Whether a driver call may be under way.
    #[must_use]
    pub fn may_call_driver(&self) -> bool {
        matches!(self, Self::Mounting { .. } | Self::Detaching { .. })
    }
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
            attached: false,
            refusals: 0,
            revoked: None,
            asked: notes.asked,
            doubts: notes.doubts,
            not_its_own: notes.not_its_own,
            removes: notes.removes,
            calling: false,
            settled_at: None,
            unsettled_before: notes.unsettled,
            awaits: None,
            retry_at: None,
            pause: None,
        }
    }

    pub(super) fn acquiring(wanted: Wanted, user: ContainerId) -> Self {
        Self::restored(wanted, Phase::Acquiring, BTreeSet::from([user]), Notes::default())
    }

    /// A volume that only its lease tells of, on a host that was made safe. It is mounted once more, which
    /// Mount allows on the host that has it: then its device is known, and its release can be proved. A call of
    /// before, of which nothing but the lease tells, may happen until `settled_at`.
    pub(super) fn found(id: &VolumeId, lease: &FoundLease, settled_at: Now) -> Self {
        let wanted = Wanted {
            volume: id.clone(),
            asked: id.clone(),
            create: None,
            read_only: false,
            remove: false,
            owner: None,
        };
        let notes = Notes { asked: true, ..Notes::default() };
        let mut volume = Self::restored(wanted, Phase::Acquiring, BTreeSet::new(), notes);
        volume.settled_at = lease.calling.then_some(settled_at);
        volume.adopt(lease, settled_at);
        volume
    }

    /// Goes on with a lease that etcd names as ours. `unsettled` is what the lease itself says.
    pub(super) fn adopt(&mut self, lease: &FoundLease, settled_at: Now) {
        let token = lease.token;
        self.unresolved = self.asked;
        self.attached = self.asked;
        if std::mem::take(&mut self.unsettled_before) || lease.unsettled {
            self.settled_at = Some(settled_at);
        }
        let phase = match &self.phase {
            Phase::Attached { mounted, .. } => Phase::Attached { token, mounted: mounted.clone() },
            Phase::Detaching { mounted, .. } => {
                let step = if self.not_its_own { Step::Release } else { Step::Announce };
                Phase::Detaching { token, mounted: mounted.clone(), step }
            }
            _ if lease.unsettled => Phase::Settling { token },
            _ => Phase::Mounting { token },
        };
        self.enter(phase);
    }

    pub(super) fn notes(&self) -> Notes {
        let unsettled = self.calling || self.settled_at.is_some() || self.unsettled_before;
        let (doubts, not_its_own, removes) = (self.doubts.clone(), self.not_its_own, self.removes);
        Notes { asked: self.asked, unsettled, doubts, not_its_own, removes }
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
        self.asked = true;
        self.calling = true;
        // What this call mounts may be its own.
        self.not_its_own = false;
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

    /// Notes that no call without an answer can be under way any more; answers whether that is new.
    pub(super) fn settles(&mut self, now: Now) -> bool {
        let settles = self.settled_at.take_if(|at| *at <= now).is_some();
        // The lease may say `attached` now.
        self.recorded &= !settles;
        settles
    }

    /// Leaves a phase in which nobody needs it any more; answers whether that happened. Until `settled_at` I/O of
    /// the last host is waited for that the storage does not take it away from.
    pub(super) fn leave(&mut self, settled_at: Now) -> bool {
        if !self.users.is_empty() {
            return false;
        }
        let phase = match self.phase.clone() {
            // The lease came, and nobody waits for it any more: nothing was ever done under it.
            Phase::Mounting { token } if !self.asked => {
                Phase::Detaching { token, mounted: None, step: Step::Release }
            }
            // The storage does not take it away: what is owed goes with the freed lease, and the next taker tries. That
            // one may be a host without a plugin to do so, which waits for nothing.
            Phase::Settling { token } if self.settled_at.is_none() && self.pause.is_some() => {
                self.settled_at = Some(settled_at);
                Phase::Detaching { token, mounted: None, step: Step::Announce }
            }
            Phase::Attached { token, mounted } if self.doubts.is_empty() => {
                Phase::Detaching { token, mounted: Some(mounted), step: Step::Announce }
            }
            _ => return false,
        };
        self.enter(phase);
        true
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
        self.revoked.is_none() && !self.gone && !matches!(self.phase, Phase::Detaching { .. })
    }

    /// Whether a container that has it may start.
    pub(super) fn is_usable(&self) -> bool {
        matches!(self.phase, Phase::Attached { .. }) && !self.gone
    }

    /// Whether it is mounted here, so that a lease that is lost fences (L3).
    pub(super) fn needs_its_lease(&self) -> bool {
        self.mounted().is_some() && !matches!(self.phase, Phase::Detaching { step: Step::Release, .. })
    }

    /// Whether nothing is to be done for it whatever the time: nearly all volumes of a host, at each event.
    pub(super) fn is_at_rest(&self) -> bool {
        let is_used = matches!(self.phase, Phase::Attached { .. }) && !self.users.is_empty();
        is_used && self.recorded && self.seen && self.settled_at.is_none()
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
            Phase::Attached { .. } if self.settled_at.is_some() => Stage::Attaching,
            Phase::Attached { .. } => Stage::Attached,
            Phase::Detaching { .. } => Stage::Detaching,
            Phase::Acquiring | Phase::Settling { .. } | Phase::Mounting { .. } => Stage::Attaching,
        }
    }
}
