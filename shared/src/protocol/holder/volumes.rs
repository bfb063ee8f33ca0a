//! What follows for each volume: the results of effects, winding down, the next effect.

use std::collections::{BTreeMap, BTreeSet};

use super::lane::Job;
use super::{
    Container, Core, FoundLease, Idleness, MountFault, MountedVolume, Output, Phase, Step, UnmountFault,
    Volume,
};
use crate::protocol::{Now, Op, Text};
use crate::record::Token;
use crate::volume::{ContainerId, VolumeId};

impl Core {
    /// Takes in the leases that are this session's.
    pub(super) fn take_in(&mut self, mut found: BTreeMap<VolumeId, FoundLease>) {
        self.ready = true;
        self.table_changed = true;
        // An acquire of an older life that never committed, or a release that did. What is mounted without a
        // lease was lost: that is for the fence.
        let lost = |(id, volume): (&VolumeId, &Volume)| {
            (volume.mounted().is_some()
                && !found.contains_key(id)
                && !matches!(volume.phase, Phase::Detaching { step: Step::Release, .. }))
            .then(|| id.clone())
        };
        if let Some(id) = self.volumes.iter().find_map(lost) {
            return self.fence(&format!("etcd names another holder of volume {id}"));
        }
        self.volumes.retain(|id, _| found.contains_key(id));
        for (id, volume) in &mut self.volumes {
            if let Some(lease) = found.remove(id) {
                volume.adopt(&lease);
            }
        }
        for (id, lease) in found {
            let line = format!("the lease of {id} is this host's, and no container uses it: it is released");
            self.outputs.push_back(Output::Warn(line.into()));
            self.volumes.insert(id.clone(), Volume::found(&id, &lease));
        }
    }

    /// The leases are ours.
    pub(super) fn acquired(&mut self, volumes: &[VolumeId]) {
        self.table_changed = true;
        for id in volumes {
            let Some((held, at)) = self.leases.get(id) else { continue };
            let token = held.token.unwrap_or(Token(*at));
            let unsettled = held.unsettled;
            if let Some(volume) = self.volumes.get_mut(id) {
                volume.enter(if unsettled { Phase::Settling { token } } else { Phase::Mounting { token } });
            }
        }
    }

    /// The volume whose effect `op` is; none for the effect of a phase that was left.
    fn by_op(&mut self, op: Op) -> Option<(VolumeId, &mut Volume)> {
        let (id, volume) = self.volumes.iter_mut().find(|(_, volume)| volume.awaits == Some(op))?;
        volume.awaits = None;
        Some((id.clone(), volume))
    }

    pub(super) fn settled(&mut self, now: Now, op: Op, result: Result<(), Text>) {
        let bounds = self.settings.retry;
        let Some((id, volume)) = self.by_op(op) else { return };
        let Phase::Settling { token } = volume.phase else { return };
        match result {
            Ok(()) => {
                volume.settle();
                volume.enter(Phase::Mounting { token });
                self.table_changed = true;
            }
            Err(why) => {
                if volume.retry(now, why.clone(), bounds) {
                    let line = format!("the storage has not taken volume {id} from its last host: {why}");
                    self.outputs.push_back(Output::Warn(line.into()));
                }
            }
        }
    }

    pub(super) fn mounted(&mut self, now: Now, op: Op, result: Result<MountedVolume, MountFault>) {
        let (bounds, settle) = (self.settings.retry, self.settings.settle);
        let Some((id, volume)) = self.by_op(op) else { return };
        let Phase::Mounting { token } = volume.phase else { return };
        let mut worth_a_line = true;
        let why = match result {
            Ok(mounted) => {
                volume.settle();
                volume.unresolved = false;
                volume.enter(Phase::Attached { token, mounted });
                self.table_changed = true;
                return;
            }
            // This call is not under way, but one before it may be, and the storage may have the volume
            // attached here: the driver has to say.
            Err(MountFault::Unreachable(why)) if volume.unresolved => {
                worth_a_line = volume.retry(now, why.clone(), bounds);
                why
            }
            Err(MountFault::Refused(why) | MountFault::Unreachable(why)) => {
                volume.unresolved = false;
                volume.enter(Phase::Detaching { token, mounted: None, step: Step::Announce });
                why
            }
            // The driver may still be at it. Mount is idempotent: it is asked until it answers, so
            // that the lease is never released under a call that can still land (L10).
            Err(MountFault::Unresolved(why)) => {
                volume.unresolved = true;
                volume.settles_at = Some(now + settle);
                worth_a_line = volume.retry(now, why.clone(), bounds);
                why
            }
        };
        let users = std::mem::take(&mut volume.users);
        self.table_changed = true;
        let why = format!("volume {id} could not be mounted: {why}");
        if users.is_empty() && worth_a_line {
            self.outputs.push_back(Output::Warn(why.as_str().into()));
        }
        for user in users {
            self.end(&user, &why);
        }
    }

    /// The lease was rewritten.
    pub(super) fn recorded(&mut self, op: Op) {
        let Some((_, volume)) = self.by_op(op) else { return };
        match volume.phase.clone() {
            Phase::Detaching { token, mounted, step: Step::Announce } => {
                volume.enter(Phase::Detaching { token, mounted, step: Step::Unmount });
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
        let settle = self.settings.settle;
        let Some((_, volume)) = self.by_op(op) else { return };
        let Phase::Detaching { token, mounted, .. } = volume.phase.clone() else { return };
        // Whatever the driver says, the mount tables decide: RexRay's second Unmount is an error.
        volume.trouble = match result {
            Ok(()) => None,
            Err(UnmountFault::Answered(why)) => Some(why),
            Err(UnmountFault::Unresolved(why)) => {
                volume.settles_at = Some(now + settle);
                Some(why)
            }
        };
        volume.enter(Phase::Detaching { token, mounted, step: Step::Prove });
    }

    pub(super) fn idle(&mut self, now: Now, op: Op, idleness: Idleness) {
        let (bounds, settle) = (self.settings.retry, self.settings.settle);
        let Some((id, volume)) = self.by_op(op) else { return };
        let Phase::Detaching { token, mounted, .. } = volume.phase.clone() else { return };
        if idleness == Idleness::Proved {
            if std::mem::take(&mut volume.inherited) {
                volume.settles_at = Some(now + settle);
            }
            // A call without an answer is not to be seen at the device. Whoever mounts next would lose the volume
            // to a late unmount, or share it with a late mount (L10).
            if let Some(at) = volume.settles_at.filter(|at| now < *at) {
                volume.enter(Phase::Detaching { token, mounted, step: Step::Prove });
                volume.trouble = Some("a driver call that had no answer may still happen".into());
                volume.retry_at = Some(at);
                return;
            }
        }
        let driver = volume.trouble.take().map(|t| format!(" (the driver said: {t})")).unwrap_or_default();
        let (step, trouble) = match idleness {
            Idleness::Proved => (Step::Release, None),
            Idleness::Mounted => (Step::Announce, Some(format!("the driver has not unmounted it{driver}"))),
            Idleness::Pinned(by) => (Step::Prove, Some(format!("its device is not idle: {by}"))),
            Idleness::Unknown(why) => (Step::Prove, Some(format!("it cannot be proved idle: {why}"))),
        };
        volume.enter(Phase::Detaching { token, mounted, step });
        match trouble {
            None => volume.settle(),
            Some(trouble) if volume.retry(now, trouble.as_str().into(), bounds) => {
                let line = format!("volume {id} stays leased: {trouble}");
                self.outputs.push_back(Output::Warn(line.into()));
            }
            Some(_) => {}
        }
        self.table_changed = true;
    }

    // --- winding down ----------------------------------------------------------------------------

    /// When something is next due for a container that was told to end.
    pub(super) fn end_time(&self, container: &Container) -> Option<Now> {
        let since = container.ending?;
        Some(since + if container.killed { self.patience() } else { self.settings.grace })
    }

    /// Ends whoever uses what was revoked: a message first, then a kill, then the short path (L15).
    pub(super) fn wind_down(&mut self, now: Now) {
        let all = self.is_revoking();
        if !all && !self.volumes.values().any(|volume| volume.revoked) {
            return;
        }
        if self.revoke_ends().is_some_and(|at| at <= now) {
            return self.fence("it was revoked, and did not wind down in time");
        }
        let revoked = |container: &Container, volumes: &BTreeMap<VolumeId, Volume>| {
            container.volumes.iter().any(|w| volumes.get(&w.volume).is_some_and(|volume| volume.revoked))
        };
        let mut unprepared = Vec::new();
        let mut overdue = false;
        for (id, container) in &mut self.containers {
            if !all && !revoked(container, &self.volumes) {
                continue;
            }
            if self.waiting.contains_key(id) {
                unprepared.push(id.clone());
                continue;
            }
            let since = *container.ending.get_or_insert_with(|| {
                let message = "its volumes are revoked: this host must give them up".into();
                self.outputs.push_back(Output::Limit { container: id.clone(), message });
                now
            });
            if now >= since + self.settings.grace && !container.killed {
                container.killed = true;
                self.outputs.push_back(Output::Kill { container: id.clone() });
            }
            overdue |= now >= since + self.settings.grace + self.settings.timing.kill;
        }
        for id in unprepared {
            self.end(&id, "the volumes that it asks for are revoked from this host");
        }
        if overdue {
            self.fence("a container did not end after a revoke");
        }
    }

    // --- what follows ----------------------------------------------------------------------------

    pub(super) fn start_effect(&mut self, now: Now, id: &VolumeId) {
        let settings = &self.settings;
        let op = Op(self.next_op + 1);
        let Some(volume) = self.volumes.get_mut(id) else { return };
        if !volume.due(now) {
            return;
        }
        let unused = volume.users.is_empty();
        match &volume.phase {
            Phase::Attached { token, mounted } if unused => {
                let (token, mounted) = (*token, Some(mounted.clone()));
                volume.enter(Phase::Detaching { token, mounted, step: Step::Announce });
                self.table_changed = true;
            }
            // The storage cannot do it: the settle time is waited for, once.
            Phase::Settling { token } if !settings.storage_fencing => {
                let token = *token;
                if volume.retry_at.is_none() {
                    volume.retry_at = Some(now + settings.settle);
                    volume.trouble = Some("a driver call of its last host may still land".into());
                    return;
                }
                volume.settle();
                volume.enter(Phase::Mounting { token });
                self.table_changed = true;
            }
            _ => {}
        }
        let asked = volume.wanted.asked.clone();
        let effect = match &volume.phase {
            Phase::Acquiring => return,
            Phase::Attached { .. } if volume.recorded => return,
            Phase::Settling { token } => Some(Output::Settle { op, token: *token, asked }),
            Phase::Mounting { token } => {
                Some(Output::Mount { op, token: *token, wanted: volume.wanted.clone() })
            }
            Phase::Attached { .. } | Phase::Detaching { step: Step::Announce, .. } => {
                self.jobs.push_back(Job::Record { op, volume: id.clone() });
                None
            }
            Phase::Detaching { step: Step::Release, .. } => {
                self.jobs.push_back(Job::Release { op, volume: id.clone() });
                None
            }
            Phase::Detaching { mounted, step: Step::Prove, .. } => {
                Some(Output::ProveIdle { op, asked, mounted: mounted.clone() })
            }
            Phase::Detaching { token, .. } => Some(Output::Unmount { op, token: *token, asked }),
        };
        // What is being written now is what the users are now; a change in between writes again.
        volume.recorded = true;
        volume.retry_at = None;
        volume.awaits = Some(op);
        self.next_op = op.0;
        self.outputs.extend(effect);
    }

    /// Who uses volumes here, for people and tests.
    #[must_use]
    pub fn users(&self) -> BTreeSet<ContainerId> {
        self.volumes.values().flat_map(|volume| volume.users.iter().cloned()).collect()
    }
}
