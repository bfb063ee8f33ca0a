//! What follows from the result of an effect.

use std::collections::{BTreeMap, BTreeSet};

use super::progress::ISOLATED_WITHIN;
use super::{
    Container, Core, FoundLease, Idleness, LeaseFault, MountFault, MountedVolume, Now, Op, Output, Phase,
    Sight, Step, UnmountFault, Volume,
};
use crate::record::Token;
use crate::volume::{ContainerId, VolumeId};

/// How often a driver that refuses to detach an idle disk is asked again before the lease is released
/// all the same: another host's Mount then meets the storage's own refusal.
const DETACH_TRIES: u32 = 5;

impl Core {
    pub(super) fn opened(&mut self, now: Now, mut found: BTreeMap<VolumeId, FoundLease>) {
        self.opened = Ok(());
        self.table_changed = true;
        let settled_at = now + self.limits.settle;
        for (id, entry) in &self.containers {
            if entry.pid.is_none() && entry.cgroup.is_none() && !self.waiting.contains_key(id) {
                self.unisolated.insert(id.clone(), now + ISOLATED_WITHIN);
            }
        }
        // An acquire of an older life that never committed, or a release that did.
        let over =
            |phase: &Phase| matches!(phase, Phase::Acquiring | Phase::Detaching { step: Step::Release, .. });
        self.volumes.retain(|id, volume| !over(&volume.phase) || found.contains_key(id));
        for (id, volume) in &mut self.volumes {
            match found.remove(id) {
                Some(lease) => volume.adopt(&lease, settled_at),
                None => volume.enter(Phase::Lost { why: "etcd does not say that this host holds it".into() }),
            }
        }
        for (id, lease) in found {
            // Leased, but not in the table: that was lost, or is of an earlier boot.
            self.outputs.push_back(Output::Warn(format!(
                "the lease of {id} is this host's, and the keeper has no note of it: {}",
                match lease.in_use || !lease.containers.is_empty() {
                    true => "it may be in use, and stays until it is not",
                    false => "it is released",
                }
            )));
            for (container, cgroup) in &lease.containers {
                let entry = || Container::found(&id, cgroup.clone());
                self.containers.entry(container.clone()).or_insert_with(entry);
            }
            self.volumes.insert(id.clone(), Volume::found(&id, lease, settled_at));
        }
    }

    pub(super) fn acquired(&mut self, op: Op, result: Result<Token, String>) {
        let Some((volumes, container)) = self.acquiring.remove(&op) else { return };
        self.table_changed = true;
        for id in volumes {
            match &result {
                Ok(token) => {
                    if let Some(volume) = self.volumes.get_mut(&id) {
                        volume.enter(Phase::Mounting { token: *token });
                        volume.confirmed = true;
                    }
                }
                // Others that wait for it ask for themselves: the refusal may be of another volume.
                Err(_) => drop(self.volumes.remove(&id)),
            }
        }
        if let Err(why) = result {
            self.end(&container, &why);
        }
    }

    /// The volume whose effect `op` is; none for the effect of a phase that was left.
    fn by_op(&mut self, op: Op) -> Option<(VolumeId, &mut Volume)> {
        let (id, volume) = self.volumes.iter_mut().find(|(_, volume)| volume.awaits == Some(op))?;
        volume.awaits = None;
        Some((id.clone(), volume))
    }

    /// The containers whose prepare was answered: they run, or soon do.
    fn prepared(&self) -> BTreeSet<ContainerId> {
        let prepared = self.containers.iter().filter(|(_, entry)| entry.prepared);
        prepared.map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn mounted(&mut self, now: Now, op: Op, result: Result<MountedVolume, MountFault>) {
        let settled_at = now + self.limits.settle;
        let prepared = self.prepared();
        let Some((id, volume)) = self.by_op(op) else { return };
        let Phase::Mounting { token } = volume.phase else { return };
        volume.answered();
        // Nothing is unmounted under who runs already, or may.
        let kept = volume.guarded || volume.users.iter().any(|user| prepared.contains(user));
        let (why, undo) = match result {
            Ok(mounted) => {
                volume.settle();
                volume.enter(Phase::Attached { token, mounted });
                volume.seen = true;
                self.table_changed = true;
                return;
            }
            // The driver may still be at it. Mount is idempotent: it is asked until it answers, so
            // that the lease is never released under a call that can still land.
            Err(MountFault::Unresolved(why)) => {
                volume.unanswered(settled_at);
                (why, None)
            }
            // This call is not under way, but one before it may be, and the storage may have the
            // volume attached here: the driver has to say.
            Err(MountFault::Unreachable(why)) if volume.unresolved => (why, None),
            Err(MountFault::Refused(why)) if volume.settled_at.is_some() => (why, None),
            // An older life of this boot had it mounted, or not: its device is not known, and so not proved idle.
            Err(MountFault::Refused(why)) if volume.unnoted => (why, None),
            Err(MountFault::Refused(why) | MountFault::Unreachable(why)) => (why, Some(None)),
            Err(MountFault::Unusable { why, mounted }) => (why, Some(mounted.map(|mounted| *mounted))),
        };
        let mut worth_a_line = true;
        match undo {
            Some(mounted) if !kept => {
                volume.enter(Phase::Detaching { token, mounted, step: Step::Announce });
            }
            _ => worth_a_line = volume.retry(now, why.clone()),
        }
        let (running, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut volume.users).into_iter().partition(|user| prepared.contains(user));
        volume.users.extend(running);
        self.table_changed = true;
        let why = format!("volume {id} could not be mounted: {why}");
        if waiting.is_empty() && worth_a_line {
            self.outputs.push_back(Output::Warn(why.clone()));
        }
        for user in waiting {
            self.end(&user, &why);
        }
    }

    pub(super) fn written(&mut self, now: Now, op: Op, result: Result<(), LeaseFault>) {
        let Some((id, volume)) = self.by_op(op) else { return };
        let mut warning = None;
        match (result, volume.phase.clone()) {
            (Ok(()), Phase::Mounting { .. }) => volume.confirmed = true,
            (Ok(()), Phase::Detaching { token, mounted, step: Step::Announce }) => {
                volume.enter(Phase::Detaching { token, mounted, step: Step::Unmount });
                self.table_changed = true;
            }
            (Ok(()), Phase::Detaching { step: Step::Release, .. }) => {
                self.volumes.remove(&id);
                self.table_changed = true;
            }
            (Ok(()), _) => volume.settle(),
            (Err(LeaseFault::Unavailable(why)), _) => {
                volume.recorded = false;
                if volume.retry(now, why.clone()) {
                    warning = Some(format!("the lease of {id} could not be written: {why}"));
                }
            }
            (Err(LeaseFault::Lost(why)), _) => {
                volume.enter(Phase::Lost { why });
                self.table_changed = true;
            }
        }
        self.outputs.extend(warning.map(Output::Warn));
    }

    pub(super) fn unmounted(&mut self, now: Now, op: Op, result: Result<(), UnmountFault>) {
        let settled_at = now + self.limits.settle;
        self.table_changed = true;
        let Some((id, volume)) = self.by_op(op) else { return };
        let Phase::Detaching { token, mounted, .. } = volume.phase.clone() else { return };
        volume.answered();
        // Whatever the driver says, the mount tables decide: RexRay's second Unmount is an error.
        let step = match result {
            Ok(()) => {
                volume.trouble = None;
                Step::Prove
            }
            Err(UnmountFault::Refused(why)) => {
                volume.refusals += 1;
                volume.trouble = Some(why);
                Step::Prove
            }
            Err(UnmountFault::Unreachable(why)) => {
                volume.trouble = Some(why);
                Step::Prove
            }
            // It may be idle by now, and yet be detached later, under whoever has it then.
            Err(UnmountFault::Unresolved(why)) => {
                volume.unanswered(settled_at);
                volume.enter(Phase::Detaching { token, mounted, step: Step::Announce });
                if volume.retry(now, why.clone()) {
                    let warning =
                        format!("volume {id} stays leased: the driver has not ended its Unmount: {why}");
                    self.outputs.push_back(Output::Warn(warning));
                }
                return;
            }
        };
        volume.enter(Phase::Detaching { token, mounted, step });
    }

    pub(super) fn seen(&mut self, now: Now, op: Op, sight: Sight) {
        let prepared = self.prepared();
        self.table_changed = true;
        let Some((id, volume)) = self.by_op(op) else { return };
        match sight {
            Sight::Mounted { elsewhere: Some(by) } if volume.guarded && volume.users.is_empty() => {
                volume.seen = true;
                let trouble = format!("{by} still sees it, and no note tells whose it is");
                if volume.retry(now, trouble.clone()) {
                    self.outputs.push_back(Output::Warn(format!("volume {id} stays mounted: {trouble}")));
                }
            }
            Sight::Mounted { .. } => {
                volume.seen = true;
                volume.settle();
                if volume.users.is_empty() {
                    volume.guarded = false;
                }
            }
            Sight::Unknown(why) => {
                if volume.retry(now, why.clone()) {
                    self.outputs
                        .push_back(Output::Warn(format!("volume {id} could not be looked at: {why}")));
                }
            }
            Sight::Gone(why) => {
                volume.seen = true;
                volume.gone = true;
                volume.guarded = false;
                let users = volume.users.clone();
                let message = format!("volume {id} was unmounted behind the keeper's back: {why}");
                self.outputs.push_back(Output::Warn(message.clone()));
                for container in users {
                    if prepared.contains(&container) {
                        // It would go on in the empty directory beneath.
                        self.outputs.push_back(Output::Limit { container, message: message.clone() });
                    } else {
                        self.end(&container, &message);
                    }
                }
            }
        }
    }

    pub(super) fn found(
        &mut self,
        now: Now,
        op: Op,
        found: Result<Option<(Box<MountedVolume>, bool)>, String>,
    ) {
        self.table_changed = true;
        let Some((id, volume)) = self.by_op(op) else { return };
        let Phase::Mounting { token } = volume.phase else { return };
        match found {
            Ok(Some((mounted, in_use))) => {
                volume.guarded = in_use;
                volume.enter(Phase::Attached { token, mounted: *mounted });
            }
            Ok(None) => volume.guarded = false,
            Err(why) => {
                if volume.retry(now, why.clone()) {
                    self.outputs
                        .push_back(Output::Warn(format!("volume {id} could not be looked at: {why}")));
                }
            }
        }
    }

    pub(super) fn idle(&mut self, now: Now, op: Op, idleness: Idleness) {
        let Some((id, volume)) = self.by_op(op) else { return };
        let Phase::Detaching { token, mounted, .. } = volume.phase.clone() else { return };
        let said = volume.trouble.take();
        let driver = said.as_ref().map(|said| format!(" (the driver said: {said})")).unwrap_or_default();
        let mut warning = None;
        let (step, trouble) = match idleness {
            Idleness::ProvedAttached if said.is_some() && volume.refusals <= DETACH_TRIES => {
                (Step::Announce, Some(format!("it is idle, but still attached to this host{driver}")))
            }
            Idleness::Proved | Idleness::ProvedAttached => {
                if said.is_some() {
                    warning = Some(format!("volume {id} is idle, and its lease is released{driver}"));
                }
                (Step::Release, None)
            }
            Idleness::Mounted => (Step::Announce, Some(format!("the driver has not unmounted it{driver}"))),
            Idleness::Pinned(by) => (Step::Prove, Some(format!("its device is not idle: {by}"))),
            Idleness::Unknown(why) => (Step::Prove, Some(format!("it cannot be proved idle: {why}"))),
        };
        volume.enter(Phase::Detaching { token, mounted, step });
        match trouble {
            None => volume.settle(),
            Some(trouble) if volume.retry(now, trouble.clone()) => {
                warning = Some(format!("volume {id} stays leased: {trouble}"));
            }
            Some(_) => {}
        }
        self.outputs.extend(warning.map(Output::Warn));
        self.table_changed = true;
    }
}
