//! What is done next for each volume: what a session finds, which effect can start.

use std::collections::{BTreeMap, BTreeSet};

use super::write_queue::Job;
use super::{Core, FoundLease, Output, Phase, Step, Volume};
use crate::ids::Token;
use crate::volume::{ContainerId, VolumeId};
use crate::{Now, Op};

impl Core {
    /// Takes in the leases that are this session's.
    pub(super) fn take_in(&mut self, now: Now, mut found: BTreeMap<VolumeId, FoundLease>) {
        self.ready = true;
        self.table_changed = true;
        // An acquire of an older life that never committed, or a release that did. What is mounted without a
        // lease was lost: that is for the fence.
        let lost = |(id, volume): (&VolumeId, &Volume)| {
            (volume.needs_its_lease() && !found.contains_key(id)).then(|| id.clone())
        };
        if let Some(id) = self.volumes.iter().find_map(lost) {
            return self.fence(&format!("etcd names another holder of volume {id}"));
        }
        self.volumes.retain(|id| found.contains_key(id));
        for (id, volume) in self.volumes.iter_mut() {
            if let Some(lease) = found.remove(id) {
                volume.adopt(&lease, now + self.settings.settle(id));
            }
        }
        for (id, lease) in found {
            let line = format!("the lease of {id} is this host's, and no container uses it: it is released");
            self.outputs.push_back(Output::Warn(line.into()));
            let settled_at = now + self.settings.settle(&id);
            self.volumes.insert(id.clone(), Volume::found(&id, &lease, settled_at));
        }
        let waits = |id: &&ContainerId| !self.waiting.contains_key(*id);
        for id in self.containers.keys().filter(waits).cloned().collect::<Vec<_>>() {
            self.expect_start(now, &id);
        }
    }

    /// The leases are ours.
    pub(super) fn acquired(&mut self, now: Now, volumes: &[VolumeId]) {
        self.table_changed = true;
        for id in volumes {
            let Some((held, at)) = self.leases.get(id) else { continue };
            let token = held.token.unwrap_or(Token(*at));
            let unsettled = held.unsettled;
            let settles = (held.calls || !self.can_take_away(id)).then(|| now + self.settings.settle(id));
            if let Some(volume) = self.volumes.get_mut(id) {
                volume.enter(if unsettled { Phase::Settling { token } } else { Phase::Mounting { token } });
                volume.confirmed = true;
                if unsettled {
                    volume.settled_at = volume.settled_at.max(settles);
                }
            }
        }
    }

    /// Starts the effect that a volume is due for, if there is one.
    pub(super) fn start_effect(&mut self, now: Now, id: &VolumeId) {
        let op = Op(self.next_op + 1);
        let (takes_away, settled_at) = (self.can_take_away(id), now + self.settings.settle(id));
        let Some(volume) = self.volumes.get_mut(id) else { return };
        if !volume.due(now) {
            return;
        }
        self.table_changed |= volume.settles(now) | volume.leave(settled_at);
        if let Phase::Settling { token } = volume.phase {
            // Calls are waited for; the storage takes away what is left, where it can.
            if let Some(at) = volume.settled_at {
                // Or it is this host's own take-away that gave no answer: what was said then is told.
                if volume.pause.is_none() {
                    volume.trouble = Some("a driver call of its last host may still land".into());
                }
                volume.retry_at = Some(at);
                return;
            }
            if !takes_away {
                volume.settle();
                volume.enter(Phase::Mounting { token });
                self.table_changed = true;
            }
        }
        let asked = volume.wanted.asked.clone();
        let effect = match &volume.phase {
            Phase::Acquiring => return,
            Phase::Settling { token } => Some(Output::Settle { op, token: *token, asked }),
            Phase::Mounting { token } if volume.confirmed => {
                let (wanted, again) = (volume.wanted.clone(), volume.unresolved);
                Some(Output::Mount { op, token: *token, wanted, again })
            }
            Phase::Attached { mounted, .. } if !volume.seen || volume.users.is_empty() => {
                let doubted = !volume.doubts.is_empty() && volume.users.is_empty();
                Some(Output::Look { op, mounted: mounted.clone(), doubted })
            }
            Phase::Attached { .. } if volume.recorded => return,
            // A call without an answer is not to be seen at the device. An Unmount beside it would be a second one under
            // way (L9); and whoever mounts next would lose the volume to a late unmount, or share it with a late mount
            // (L10). The lease says `attaching` or `detaching` all the while.
            Phase::Detaching { step: Step::Announce, .. } if volume.settled_at.is_some() => {
                volume.trouble = Some(
                    "a driver call without an answer, or I/O of its last host, may still be under way".into(),
                );
                volume.retry_at = volume.settled_at;
                return;
            }
            Phase::Mounting { .. }
            | Phase::Attached { .. }
            | Phase::Detaching { step: Step::Announce | Step::Condemn, .. } => {
                self.jobs.push_back(Job::Record { op, volume: id.clone() });
                None
            }
            Phase::Detaching { token, mounted, step: Step::Unmount } => {
                Some(Output::Unmount { op, token: *token, asked, mounted: mounted.clone() })
            }
            Phase::Detaching { mounted, step: Step::Prove, .. } => {
                Some(Output::ProveIdle { op, volume: id.clone(), asked, mounted: mounted.clone() })
            }
            Phase::Detaching { token, step: Step::Remove, .. } => {
                Some(Output::Remove { op, token: *token, asked })
            }
            Phase::Detaching { step: Step::Release, .. } => {
                self.jobs.push_back(Job::Release { op, volume: id.clone() });
                None
            }
        };
        match &effect {
            // What is being written now is what the users are now; a change in between writes again.
            None => volume.recorded = true,
            // A take-away is a Mount: what it leaves is unmounted and proved before the lease is released (L4).
            Some(
                Output::Mount { .. } | Output::Unmount { .. } | Output::Settle { .. } | Output::Remove { .. },
            ) => {
                volume.call();
                self.table_changed = true;
            }
            Some(_) => {}
        }
        volume.retry_at = None;
        volume.awaits = Some(op);
        self.next_op = op.0;
        self.outputs.extend(effect);
    }

    /// Whether the storage can take this volume away from another host.
    pub(super) fn can_take_away(&self, id: &VolumeId) -> bool {
        self.settings.storage_fencing.contains(&id.driver)
    }

    /// Who uses volumes here, for people and tests.
    #[must_use]
    pub fn users(&self) -> BTreeSet<ContainerId> {
        self.volumes.values().flat_map(|volume| volume.users.iter().cloned()).collect()
    }
}
