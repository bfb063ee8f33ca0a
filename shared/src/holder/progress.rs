//! What the core does next: which prepares can be answered, and which effects can start.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Answer, Core, LeaseState, MountedVolume, Now, Op, Output, Phase, Step, Volume, Waiting, Wanted};
use crate::volume::{ContainerId, VolumeId};

/// Within which a container that has its volumes must reach `isolate`. Mesos's own limit, which counts from before
/// `prepare`, is a minute by default (`executor_registration_timeout`); one that comes later is refused there.
pub(super) const ISOLATED_WITHIN: Duration = Duration::from_secs(15 * 60);

impl Core {
    fn op(&mut self) -> Op {
        self.next_op += 1;
        Op(self.next_op)
    }

    /// Starts every effect that can start, and answers every prepare that can be answered.
    pub(super) fn progress(&mut self, now: Now) {
        self.limit_users_of_lost_volumes();
        self.expire(now);
        if self.opened.is_ok() {
            for container in self.waiting.keys().cloned().collect::<Vec<_>>() {
                self.advance(now, &container);
            }
            for id in self.volumes.keys().cloned().collect::<Vec<_>>() {
                self.start_effect(now, &id);
            }
        }
    }

    fn limit_users_of_lost_volumes(&mut self) {
        for (id, volume) in &mut self.volumes {
            let Phase::Lost { why } = &volume.phase else { continue };
            let message = format!("the lease of volume {id} was lost: {why}");
            self.outputs.push_back(Output::Warn(format!("{message}; what is mounted here is left as it is")));
            for container in std::mem::take(&mut volume.users) {
                self.outputs.push_back(Output::Limit { container, message: message.clone() });
            }
        }
        // Nothing may be done for it any more, and nobody waits for it.
        self.volumes.retain(|_, volume| !matches!(volume.phase, Phase::Lost { .. }));
    }

    fn expire(&mut self, now: Now) {
        let late = |(id, w): (&ContainerId, &Waiting)| (w.deadline <= now).then(|| id.clone());
        for container in self.waiting.iter().filter_map(late).collect::<Vec<_>>() {
            let seconds = self.limits.prepare.as_secs_f64();
            let why =
                format!("its volumes were not ready within {seconds} s: {}", self.waits_for(&container));
            self.end(&container, &why);
        }
        let late = |(id, by): (&ContainerId, &Now)| (*by <= now).then(|| id.clone());
        for container in self.unisolated.iter().filter_map(late).collect::<Vec<_>>() {
            let warning =
                format!("container {container} has its volumes, and was never started: they are taken back");
            self.outputs.push_back(Output::Warn(warning));
            self.end(&container, "it was not started in time");
        }
    }

    fn waits_for(&self, container: &ContainerId) -> String {
        if let Err(why) = &self.opened {
            return format!("this host has no session in etcd yet: {why}");
        }
        let wanted = self.containers.get(container).map(|entry| entry.volumes.as_slice()).unwrap_or_default();
        let each = wanted.iter().filter_map(|wanted| {
            let volume = self.volumes.get(&wanted.volume)?;
            let doing = match &volume.phase {
                Phase::Acquiring => "etcd has not answered for the lease of",
                Phase::Mounting { .. } if !volume.confirmed && !volume.is_called() => {
                    "etcd has not yet confirmed the lease of"
                }
                Phase::Mounting { .. } => "the driver has not yet mounted",
                Phase::Attached { .. } if volume.gone => "somebody has unmounted, and others still use,",
                Phase::Attached { .. } if !volume.seen => "it cannot be told whether it is still mounted:",
                Phase::Detaching { .. } => "its last use is not over for",
                Phase::Attached { .. } | Phase::Lost { .. } => return None,
            };
            let trouble = volume.trouble.as_ref().map(|t| format!(" ({t})")).unwrap_or_default();
            Some(format!("{doing} volume {}{trouble}", wanted.volume))
        });
        each.collect::<Vec<_>>().join("; ")
    }

    /// Moves a waiting prepare on: joins what is there, acquires what is not, answers when all is
    /// mounted.
    fn advance(&mut self, now: Now, container: &ContainerId) {
        let Some(entry) = self.containers.get_mut(container) else { return };
        let mut missing: BTreeMap<VolumeId, Wanted> = BTreeMap::new();
        let mut mount_points = Vec::new();
        let mut blocked = false;
        for wanted in &entry.volumes {
            match self.volumes.get_mut(&wanted.volume) {
                None => {
                    missing.entry(wanted.volume.clone()).or_insert_with(|| wanted.clone());
                }
                Some(volume) if volume.may_be_joined() => {
                    if volume.users.insert(container.clone()) {
                        volume.recorded = false;
                        volume.seen = false;
                        self.table_changed = true;
                    }
                    if let Phase::Attached { mounted, .. } = &volume.phase
                        && volume.seen
                    {
                        mount_points.push(mounted.mount_point.clone());
                    }
                }
                Some(_) => blocked = true,
            }
        }
        if mount_points.len() == entry.volumes.len() {
            entry.prepared = true;
            self.table_changed = true;
            if let Some(waiting) = self.waiting.remove(container) {
                if entry.pid.is_none() && entry.cgroup.is_none() {
                    self.unisolated.insert(container.clone(), now + ISOLATED_WITHIN);
                }
                self.outputs.push_back(Output::Reply(waiting.request, Ok(Answer::Prepared { mount_points })));
            }
        } else if !blocked && !missing.is_empty() {
            let agent_id = entry.agent_id.clone();
            let volumes: Vec<_> = missing.keys().cloned().collect();
            for (id, wanted) in missing {
                self.volumes.insert(id, Volume::acquiring(wanted, container.clone()));
            }
            self.table_changed = true;
            let op = self.op();
            self.acquiring.insert(op, (volumes.clone(), container.clone()));
            self.outputs.push_back(Output::Acquire { op, volumes, container: container.clone(), agent_id });
        }
    }

    fn start_effect(&mut self, now: Now, id: &VolumeId) {
        let op = Op(self.next_op + 1);
        let Some(volume) = self.volumes.get_mut(id) else { return };
        if !volume.due(now) {
            return;
        }
        self.table_changed |= volume.settles(now) | volume.leave();
        let record = |state, mounted: Option<&MountedVolume>| Output::Record {
            op,
            volume: id.clone(),
            state,
            containers: volume.users.clone(),
            mount_point: mounted.map(|mounted| mounted.mount_point.clone()),
        };
        let asked = volume.wanted.asked.clone();
        let effect = match &volume.phase {
            Phase::Acquiring | Phase::Lost { .. } => return,
            // Nothing is asked of the driver while somebody may use it whom nobody knows.
            Phase::Mounting { .. } if volume.guarded && volume.recorded_point.is_some() => {
                let mount_point = volume.recorded_point.clone().unwrap_or_default();
                Output::Find { op, mount_point }
            }
            Phase::Mounting { .. } if !volume.confirmed => record(LeaseState::Attaching, None),
            Phase::Mounting { token } => Output::Mount { op, token: *token, wanted: volume.wanted.clone() },
            Phase::Attached { mounted, .. } if !volume.seen || volume.users.is_empty() => {
                Output::Look { op, mounted: mounted.clone() }
            }
            Phase::Attached { .. } if volume.recorded => return,
            Phase::Attached { mounted, .. } => record(LeaseState::Attached, Some(mounted)),
            Phase::Detaching { token, mounted, step } => match step {
                Step::Announce => record(LeaseState::Detaching, mounted.as_ref()),
                Step::Unmount => Output::Unmount { op, token: *token, asked },
                Step::Prove => Output::ProveIdle { op, asked, mounted: mounted.clone() },
                Step::Release => match volume.settled_at {
                    None => Output::Release { op, volume: id.clone() },
                    Some(settled_at) => {
                        let why = "a driver call without an answer may still be under way";
                        volume.trouble = Some(why.to_owned());
                        volume.retry_at = Some(settled_at);
                        return;
                    }
                },
            },
        };
        match &effect {
            // What is being written now is what the users are now; a change in between writes again.
            Output::Record { .. } => volume.recorded = true,
            Output::Mount { .. } | Output::Unmount { .. } => {
                volume.asked = true;
                volume.call();
                self.table_changed = true;
            }
            _ => {}
        }
        volume.retry_at = None;
        volume.awaits = Some(op);
        self.next_op = op.0;
        self.outputs.push_back(effect);
    }
}
