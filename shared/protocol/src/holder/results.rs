//! What follows from the result of an effect.

use std::collections::BTreeSet;

use super::{Core, Idleness, MountFault, MountedVolume, Output, Phase, Sight, Step, UnmountFault, Volume};
use crate::volume::{ContainerId, VolumeId};
use crate::{Now, Op};

/// How often a driver that refuses to detach an idle disk is asked again before the lease is released
/// all the same: another host's Mount then meets the storage's own refusal.
const DETACH_TRIES: u32 = 5;

/// So many times longer than what fails otherwise a plugin is waited for that is not there: after a boot it may come up minutes
/// after the keeper, and what this host owes is given back by it alone.
const UNREACHED: u32 = 6;

/// Says that two names lead to one volume.
#[must_use]
pub fn other_name_in_words(other: &VolumeId) -> String {
    format!(
        "it is the device of {other}, which this host holds under another name; let tasks name it {other} alone"
    )
}

impl Core {
    /// The volume whose effect `op` is; none for the effect of a phase that was left.
    fn by_op(&mut self, op: Op) -> Option<(VolumeId, &mut Volume)> {
        let (id, _) = self.volumes.iter().find(|(_, volume)| volume.awaits == Some(op))?;
        let id = id.clone();
        let volume = self.volumes.get_mut(&id)?;
        volume.awaits = None;
        Some((id, volume))
    }

    /// Until when the call of this effect may still land, if it had no answer.
    fn settled_at(&self, now: Now, op: Op) -> Now {
        let of = self.volumes.iter().find(|(_, volume)| volume.awaits == Some(op));
        now + of.map_or(self.settings.settle, |(id, _)| self.settings.settle(id))
    }

    pub(super) fn settled(&mut self, now: Now, op: Op, result: Result<(), MountFault>) {
        let (bounds, settled_at) = (self.settings.retry, self.settled_at(now, op));
        self.table_changed = true;
        let Some((id, volume)) = self.by_op(op) else { return };
        let Phase::Settling { token } = volume.phase else { return };
        volume.answered();
        if !matches!(result, Err(MountFault::Unreachable(_))) {
            volume.attached = true;
        }
        match result {
            Ok(()) => {
                volume.settle();
                volume.enter(Phase::Mounting { token });
            }
            Err(fault) => {
                // It is a Mount, and may take the volume from whoever has it by then (L10).
                if let MountFault::Unresolved(_) = &fault {
                    volume.unanswered(settled_at);
                }
                let (MountFault::Refused(why)
                | MountFault::Unreachable(why)
                | MountFault::Unresolved(why)
                | MountFault::Unusable { why, .. }
                | MountFault::NotItsOwn(why)) = fault;
                if volume.retry(now, why.clone(), bounds) {
                    let line = format!("the storage has not taken volume {id} from its last host: {why}");
                    self.outputs.push_back(Output::Warn(line.into()));
                }
            }
        }
    }

    pub(super) fn mounted(&mut self, now: Now, op: Op, result: Result<MountedVolume, MountFault>) {
        let (bounds, settled_at) = (self.settings.retry, self.settled_at(now, op));
        let another = result.as_ref().ok().and_then(|mounted| self.other_name(op, mounted));
        let another = another.as_ref().map(other_name_in_words);
        let copy = result.as_ref().ok().and_then(|mounted| self.copy(op, mounted));
        let where_it_is = matches!(result, Err(MountFault::Refused(_))).then(|| self.where_it_may_be(op));
        let Some((id, volume)) = self.by_op(op) else { return };
        let Phase::Mounting { token } = volume.phase else { return };
        volume.answered();
        if !matches!(result, Err(MountFault::Unreachable(_))) {
            volume.attached = true;
        }
        let unreached = matches!(result, Err(MountFault::Unreachable(_))) && volume.users.is_empty();
        let bounds = if unreached { (bounds.0, bounds.1 * UNREACHED) } else { bounds };
        // Nobody waits for it, and the driver was asked for as long as the pause was growing: others may have it.
        let given_up = volume.users.is_empty() && volume.pause == Some(bounds.1);
        let (why, undo) = match result {
            // Two names came to be mounted at once: looked at again, it is seen for what it is, and undone.
            Ok(_) if another.is_some() => {
                volume.unresolved = true;
                (another.unwrap_or_default().into(), None)
            }
            Ok(mounted) => {
                if let Some(other) = copy {
                    let line = format!(
                        "volume {id} has the file system of {other}, by its UUID: a copy, or the same storage by another way"
                    );
                    self.outputs.push_back(Output::Warn(line.into()));
                }
                let Some(volume) = self.volumes.get_mut(&id) else { return };
                volume.settle();
                volume.enter(Phase::Attached { token, mounted });
                volume.seen = true;
                self.table_changed = true;
                return;
            }
            // The driver may still be at it. Mount is idempotent: it is asked until it answers, or until nobody waits any
            // more. Then its last call is waited for before anything is unmounted or released (L10), and what the
            // storage may have attached here is owed.
            Err(MountFault::Unresolved(why)) => {
                volume.unanswered(settled_at);
                (why, given_up.then_some(None))
            }
            // No call is under way: what the storage may have attached here is owed with the freed lease.
            Err(MountFault::Unreachable(why)) if given_up && volume.settled_at.is_none() => (why, Some(None)),
            // This call is not under way, but one before it may be, and the storage may have the volume
            // attached here: the driver has to say.
            Err(MountFault::Unreachable(why)) if volume.unresolved => (why, None),
            Err(MountFault::Refused(why)) if volume.settled_at.is_some() => (why, None),
            Err(MountFault::Refused(why) | MountFault::Unreachable(why)) => (why, Some(None)),
            Err(MountFault::Unusable { why, mounted }) => (why, Some(mounted.map(|mounted| *mounted))),
            Err(MountFault::NotItsOwn(why)) if volume.settled_at.is_some() => (why, None),
            Err(MountFault::NotItsOwn(why)) => {
                volume.not_its_own = true;
                // It is attached for another name of it: whoever takes this one may not take it away from there.
                volume.attached = false;
                (why, Some(None))
            }
        };
        let worth_a_line = match undo {
            // Nothing of its own is mounted: there is nothing to unmount, and nothing to prove.
            Some(mounted) if volume.not_its_own => {
                volume.enter(Phase::Detaching { token, mounted, step: Step::Release });
                true
            }
            Some(mounted) => {
                volume.enter(Phase::Detaching { token, mounted, step: Step::Announce });
                true
            }
            None => volume.retry(now, why.clone(), bounds),
        };
        let users = std::mem::take(&mut volume.users);
        self.table_changed = true;
        let where_it_is = where_it_is.flatten().unwrap_or_default();
        let why = format!("volume {id} could not be mounted: {why}{where_it_is}");
        if users.is_empty() && worth_a_line {
            self.outputs.push_back(Output::Warn(why.as_str().into()));
        }
        for user in users {
            self.end(&user, &why);
        }
    }

    /// The volume under whose name this host has the same storage already.
    fn other_name(&self, op: Op, mounted: &MountedVolume) -> Option<VolumeId> {
        // Of a file system without a device the number may be given away again by now; the look behind the Mount has seen whether
        // it was.
        let is_there =
            |volume: &Volume| mounted.device.is_some() || !matches!(volume.phase, Phase::Detaching { .. });
        let same = |(_, volume): &(&VolumeId, &Volume)| {
            volume.awaits != Some(op)
                && is_there(volume)
                && volume.mounted().is_some_and(|other| other.is_same_storage(mounted))
        };
        self.volumes.iter().find(same).map(|(id, _)| id.clone())
    }

    /// A volume with the same file system, by its UUID, on other storage.
    fn copy(&self, op: Op, mounted: &MountedVolume) -> Option<VolumeId> {
        let uuid = mounted.uuid.as_ref()?;
        let same = |(_, volume): &(&VolumeId, &Volume)| {
            volume.awaits != Some(op)
                && volume.mounted().is_some_and(|other| other.uuid.as_ref() == Some(uuid))
        };
        self.volumes.iter().find(same).map(|(id, _)| id.clone())
    }

    /// For a task whose Mount the driver refused: which other hosts may have the volume, and what to do.
    fn where_it_may_be(&self, op: Op) -> Option<String> {
        let (id, _) = self.volumes.iter().find(|(_, volume)| volume.awaits == Some(op))?;
        let owed = self.leases.get(id)?.0.owed.as_ref()?;
        let others: Vec<_> = owed.from.iter().filter(|from| **from != self.settings.holder).collect();
        let first = others.first()?;
        let since = owed.since.as_deref().map(|since| format!(" since {since}")).unwrap_or_default();
        let or = match self.can_take_away(id) {
            true => String::new(),
            false => format!(
                "; or name a preempt_plugin of driver {} that takes its volumes away by itself",
                id.driver
            ),
        };
        Some(format!(
            "; it was held by {}{since}, never released there, and may still be attached there: detach it at the \
             storage, then run `extvol free {id} --detached {first}`{or}",
            owed.hosts()
        ))
    }

    /// The lease was rewritten, and so confirmed.
    pub(super) fn recorded(&mut self, op: Op) {
        let is_revoking = self.is_revoking();
        let Some((_, volume)) = self.by_op(op) else { return };
        match volume.phase.clone() {
            Phase::Mounting { .. } => volume.confirmed = true,
            Phase::Detaching { token, mounted, step: Step::Announce } => {
                volume.enter(Phase::Detaching { token, mounted, step: Step::Unmount });
                self.table_changed = true;
            }
            Phase::Detaching { token, mounted, step: Step::Condemn } => {
                // Meanwhile a person may have spoken.
                let is_revoked = is_revoking || volume.revoked.is_some();
                let step = if is_revoked { Step::Release } else { Step::Remove };
                volume.enter(Phase::Detaching { token, mounted, step });
                self.table_changed = true;
            }
            _ => volume.settle(),
        }
    }

    /// The lease is free, or another's by now.
    pub(super) fn released(&mut self, op: Op, id: &VolumeId) {
        if self.volumes.get(id).is_some_and(|volume| volume.awaits == Some(op)) {
            self.volumes.remove(id);
            self.table_changed = true;
        }
    }

    pub(super) fn unmounted(&mut self, now: Now, op: Op, result: Result<(), UnmountFault>) {
        let (bounds, settled_at) = (self.settings.retry, self.settled_at(now, op));
        self.table_changed = true;
        let Some((id, volume)) = self.by_op(op) else { return };
        let Phase::Detaching { token, mounted, .. } = volume.phase.clone() else { return };
        volume.answered();
        // Whatever the driver says, the mount tables decide: RexRay's second Unmount is an error.
        volume.trouble = match result {
            Ok(()) => {
                volume.attached = false;
                None
            }
            Err(UnmountFault::Refused(why)) => {
                volume.refusals += 1;
                // A refused Mount may have attached it, so that the driver is asked to undo that (EBS, a file system that
                // cannot be mounted). RexRay refuses when there is nothing to undo.
                volume.attached &= mounted.is_some() || volume.unresolved;
                Some(why)
            }
            Err(UnmountFault::Unreachable(why)) => Some(why),
            // It may be idle by now, and yet be detached later, under whoever has it then.
            Err(UnmountFault::Unresolved(why)) => {
                volume.unanswered(settled_at);
                volume.enter(Phase::Detaching { token, mounted, step: Step::Announce });
                if volume.retry(now, why.clone(), bounds) {
                    let line =
                        format!("volume {id} stays leased: the driver has not ended its Unmount: {why}");
                    self.outputs.push_back(Output::Warn(line.into()));
                }
                return;
            }
        };
        volume.enter(Phase::Detaching { token, mounted, step: Step::Prove });
    }

    pub(super) fn removed(&mut self, now: Now, op: Op, result: Result<(), UnmountFault>) {
        let (bounds, settled_at) = (self.settings.retry, self.settled_at(now, op));
        self.table_changed = true;
        let Some((id, volume)) = self.by_op(op) else { return };
        let Phase::Detaching { token, mounted, step: Step::Remove } = volume.phase.clone() else { return };
        volume.answered();
        let told = match result {
            Ok(()) => {
                volume.attached = false;
                Output::Note(format!("volume {id} was removed, as its task had asked").into())
            }
            Err(UnmountFault::Refused(why) | UnmountFault::Unreachable(why)) => {
                let line = format!("volume {id} was not removed, though its task had asked for that: {why}");
                Output::Warn(line.into())
            }
            // It may be removed later, under whoever has it then, or another of its name.
            Err(UnmountFault::Unresolved(why)) => {
                volume.unanswered(settled_at);
                volume.enter(Phase::Detaching { token, mounted, step: Step::Announce });
                if volume.retry(now, why.clone(), bounds) {
                    let line =
                        format!("volume {id} stays leased: the driver has not ended its Remove: {why}");
                    self.outputs.push_back(Output::Warn(line.into()));
                }
                return;
            }
        };
        volume.settle();
        volume.enter(Phase::Detaching { token, mounted, step: Step::Release });
        self.outputs.push_back(told);
    }

    /// A driver was not called: the time of fencing had come, or a person had revoked what was to be removed. What is known of earlier
    /// calls stays. If the epoch goes on, so does this volume, from the confirmation of its lease.
    pub(super) fn not_made(&mut self, now: Now, op: Op) {
        let (bounds, is_revoking) = (self.settings.retry, self.is_revoking());
        let Some((_, volume)) = self.by_op(op) else { return };
        volume.answered();
        if let Phase::Detaching { token, mounted, step } = volume.phase.clone() {
            let step = match step {
                Step::Remove if is_revoking || volume.revoked.is_some() => Step::Release,
                Step::Remove => Step::Condemn,
                _ => Step::Announce,
            };
            volume.enter(Phase::Detaching { token, mounted, step });
        }
        let why = "the driver was not asked: no heartbeat had got through to etcd in time, or it was revoked";
        let _grows = volume.retry(now, why.into(), bounds);
        self.table_changed = true;
    }

    /// Nothing of what a look shows is in the table but who is doubted; and who is doubted no more leaves.
    pub(super) fn looked(&mut self, now: Now, op: Op, sight: Sight) {
        let bounds = self.settings.retry;
        let Some((id, volume)) = self.by_op(op) else { return };
        match sight {
            Sight::Mounted { elsewhere: Some(by) }
                if !volume.doubts.is_empty() && volume.users.is_empty() =>
            {
                volume.seen = true;
                let trouble = format!("{by} still sees it, and no container is known that uses it");
                if volume.retry(now, trouble.as_str().into(), bounds) {
                    let line = format!("volume {id} stays mounted: {trouble}");
                    self.outputs.push_back(Output::Warn(line.into()));
                }
            }
            Sight::Mounted { .. } => {
                volume.seen = true;
                volume.settle();
                if volume.users.is_empty() {
                    volume.doubts.clear();
                }
            }
            Sight::Unknown(why) => {
                if volume.retry(now, why.clone(), bounds) {
                    let line = format!("volume {id} could not be looked at: {why}");
                    self.outputs.push_back(Output::Warn(line.into()));
                }
            }
            Sight::Gone(why) => {
                (volume.seen, volume.gone) = (true, true);
                volume.doubts.clear();
                let users = volume.users.clone();
                self.gone(&users, &format!("volume {id} was unmounted behind the keeper's back: {why}"));
            }
            Sight::Broken(why) => {
                (volume.seen, volume.gone) = (true, true);
                // Whether somebody still has it is proved before it is released; who has is to end like its users.
                volume.doubts.clear();
                let users = volume.users.clone();
                self.gone(&users, &format!("volume {id} can be written no more: {why}"));
            }
        }
    }

    /// A mounted volume is looked at, though nobody new wants it.
    pub(super) fn suspect(&mut self, id: &VolumeId) {
        if let Some(volume) = self.volumes.get_mut(id).filter(|volume| !volume.gone) {
            volume.seen = false;
        }
    }

    /// Ends the users of a volume that somebody else has unmounted, for they would go on in the empty directory
    /// beneath; or of one that can be written no more.
    fn gone(&mut self, users: &BTreeSet<ContainerId>, message: &str) {
        self.outputs.push_back(Output::Warn(message.into()));
        for container in users {
            if self.containers.get(container).is_some_and(|container| container.prepared) {
                let (container, message) = (container.clone(), message.into());
                self.outputs.push_back(Output::Limit { container, message });
            } else {
                self.end(container, message);
            }
        }
    }

    pub(super) fn idle(&mut self, now: Now, op: Op, idleness: Idleness) {
        let (bounds, may_remove) = (self.settings.retry, !self.is_revoking());
        let Some((id, volume)) = self.by_op(op) else { return };
        let Phase::Detaching { token, mounted, .. } = volume.phase.clone() else { return };
        let said = volume.trouble.take();
        let driver = said.as_ref().map(|said| format!(" (the driver said: {said})")).unwrap_or_default();
        // A yes that left the mount was no detach, whatever it counted down (RexRay); nor was one before a refusal.
        volume.attached |= match idleness {
            Idleness::Mounted => true,
            Idleness::ProvedAttached => said.is_some(),
            _ => false,
        };
        let mut line = None;
        let (step, trouble) = match idleness {
            Idleness::ProvedAttached if said.is_some() && volume.refusals <= DETACH_TRIES => {
                (Step::Announce, Some(format!("it is idle, but still attached to this host{driver}")))
            }
            Idleness::Proved | Idleness::ProvedAttached => {
                // Its disk is gone from this host.
                volume.attached &= mounted.is_none() || idleness == Idleness::ProvedAttached;
                line = said.filter(|_| mounted.is_some() || volume.attached).map(|_| match volume.attached {
                    true => format!(
                        "volume {id} is idle, and its lease is released, though the storage may still have it attached \
                         to this host{driver}"
                    ),
                    false => format!("volume {id} is idle, and its lease is released{driver}"),
                });
                // What is wanted elsewhere at a person's word, or has failed, is nobody's to remove.
                let removes = volume.removes && may_remove && volume.revoked.is_none() && !volume.gone;
                (if removes { Step::Condemn } else { Step::Release }, None)
            }
            Idleness::Mounted => (Step::Announce, Some(format!("the driver has not unmounted it{driver}"))),
            Idleness::Pinned(by) => (Step::Prove, Some(format!("its device is not idle: {by}"))),
            Idleness::Unknown(why) => (Step::Prove, Some(format!("it cannot be proved idle: {why}"))),
        };
        volume.enter(Phase::Detaching { token, mounted, step });
        match trouble {
            None => volume.settle(),
            Some(trouble) if volume.retry(now, trouble.as_str().into(), bounds) => {
                line = Some(format!("volume {id} stays leased: {trouble}"));
            }
            Some(_) => {}
        }
        self.outputs.extend(line.map(|line| Output::Warn(line.into())));
        self.table_changed = true;
    }
}
