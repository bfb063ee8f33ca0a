//! What the isolator asks: prepare, isolate, cleanup, recover.

use std::collections::{BTreeMap, BTreeSet};

use super::write_queue::Acquire;
use super::{Answer, Container, Core, Output, Phase, Settings, Volume, Waiting, Wanted};
use crate::exchange::Agent;
use crate::volume::ContainerId;
use crate::{Now, Request, Text};

/// Why a task that asked to write does not get a volume.
pub const READ_ONLY: &str = "its driver has mounted it read-only here, and the task asked to write; set extvol.mode to ro, or \
                             have the driver mount it writable";

impl Core {
    pub(super) fn prepare(&mut self, now: Now, request: Request, container: ContainerId, asked: Container) {
        if let Some(known) = self.containers.get(&container) {
            let refusal = if !known.is_of(&asked.agent) {
                format!(
                    "another agent on this host, at {}, has volumes for a container {container}",
                    known.agent
                )
            } else if known.volumes != asked.volumes {
                format!("container {container} was prepared before, with other volumes")
            } else {
                // The same call again, from a connection that has replaced a lost one: who waits is new,
                // the deadlines are not.
                let known = self.waiting.remove(&container);
                let waiting = known.unwrap_or_else(|| self.waiting(now, request));
                self.waiting.insert(container, Waiting { request, ..waiting });
                return;
            };
            return self.outputs.push_back(Output::Reply(request, Err(refusal.into())));
        }
        self.serve(Agent { id: asked.agent_id.clone(), address: asked.agent.clone() });
        self.containers.insert(container.clone(), asked);
        let waiting = self.waiting(now, request);
        self.waiting.insert(container, waiting);
        self.table_changed = true;
    }

    fn waiting(&self, now: Now, request: Request) -> Waiting {
        let Settings { prepare_timeout, wait_timeout, .. } = self.settings;
        let (deadline, patience) = (now + prepare_timeout, now + wait_timeout);
        let (wants, owners) = (BTreeSet::new(), BTreeSet::new());
        Waiting { request, deadline, patience, others: None, wants, owners }
    }

    /// The session tells which agent it serves.
    fn serve(&mut self, agent: Agent) {
        let told = self.mine.as_ref().and_then(|mine| mine.record.agent.as_ref());
        // The sandbox of a standalone container does not tell the agent's id.
        let known = self.agent.as_ref().or(told).filter(|known| known.address == agent.address);
        let id = agent.id.or_else(|| known?.id.clone());
        self.agent = Some(Agent { id, ..agent });
    }

    /// The gate: a container is let go only while its volumes are mounted and no fence has begun. After
    /// the table was stored the shell looks at the shared flag once more.
    pub(super) fn isolate(
        &mut self,
        agent: &Text,
        id: &ContainerId,
        pid: u32,
        cgroup: Option<Text>,
    ) -> Result<(), Text> {
        if !self.is_open() {
            return Err(format!("container {id} cannot start: {}", self.obstacle).into());
        }
        let past_silence = self.is_past_silence();
        let Some(container) = self.containers.get_mut(id).filter(|container| container.is_of(agent)) else {
            return Err(
                format!("the keeper does not know container {id}: its volumes are not mounted").into()
            );
        };
        let attached = |wanted: &Wanted| {
            let volume = self.volumes.get(&wanted.volume);
            volume.is_some_and(|volume| volume.is_usable() && volume.users.contains(id))
        };
        if let Some(gone) = container.volumes.iter().find(|wanted| !attached(wanted)) {
            return Err(format!("volume {} is no longer mounted for container {id}", gone.volume).into());
        }
        let untold = |wanted: &&Wanted| {
            let mounted = self.volumes.get(&wanted.volume).and_then(Volume::mounted);
            !past_silence
                && mounted.is_some_and(|mounted| self.settings.leaves_unproved(&wanted.volume, mounted))
        };
        if let Some(untold) = container.volumes.iter().find(untold) {
            return Err(
                format!("container {id} cannot start: {} volume {}", not_told(), untold.volume).into()
            );
        }
        for wanted in container.volumes.iter().filter(|wanted| wanted.remove) {
            if let Some(volume) = self.volumes.get_mut(&wanted.volume) {
                volume.removes = true;
            }
        }
        container.pid = Some(pid);
        container.cgroup = cgroup;
        self.unisolated.remove(id);
        self.table_changed = true;
        Ok(())
    }

    pub(super) fn recover(
        &mut self,
        agent: &Text,
        known: &BTreeSet<ContainerId>,
        orphans: &BTreeSet<ContainerId>,
    ) {
        for container in known.iter().chain(orphans) {
            if let Some(entry) = self.containers.get_mut(container) {
                // A task's container follows its agent to a new address. A standalone one's id was
                // chosen by a user, and may be another agent's as well.
                if entry.agent != *agent && entry.agent_id.is_some() {
                    entry.agent = agent.clone();
                    self.table_changed = true;
                }
            }
        }
        let ended = |(id, entry): (&ContainerId, &Container)| {
            (entry.agent == *agent && !known.contains(id) && !orphans.contains(id)).then(|| id.clone())
        };
        for container in self.containers.iter().filter_map(ended).collect::<Vec<_>>() {
            self.end(&container, "the agent restarted while its volumes were prepared");
        }
        self.mesos_ended(agent, |id| !known.contains(id) && !orphans.contains(id));
    }

    /// Mesos says that these containers of an agent have ended, though the keeper may have seen it before.
    pub(super) fn mesos_ended(&mut self, agent: &Text, ended: impl Fn(&ContainerId) -> bool) {
        let is_over = |id: &ContainerId, of: &Text| of == agent && ended(id);
        let told = |volume: &Volume| volume.doubts.iter().any(|(id, of)| is_over(id, of));
        let told: Vec<_> =
            self.volumes.iter().filter(|(_, volume)| told(volume)).map(|(id, _)| id.clone()).collect();
        for id in told {
            if let Some(volume) = self.volumes.get_mut(&id) {
                volume.doubts.retain(|id, of| !is_over(id, of));
                self.table_changed = true;
            }
        }
    }

    /// Forgets a container, answering its prepare with `why` if it still waits.
    pub(super) fn end(&mut self, container: &ContainerId, why: &str) {
        if let Some(waiting) = self.waiting.remove(container) {
            self.outputs.push_back(Output::Reply(waiting.request, Err(why.into())));
        }
        self.unisolated.remove(container);
        // While the host is fenced the table says what has to be killed; a container that ended stays in it.
        let keep = matches!(self.life, super::Life::Fencing { .. });
        if let Some(entry) = (!keep).then(|| self.containers.remove(container)).flatten() {
            self.table_changed = true;
            for wanted in &entry.volumes {
                if let Some(volume) = self.volumes.get_mut(&wanted.volume)
                    && volume.users.remove(container)
                {
                    volume.recorded = false;
                }
            }
        }
    }

    pub(super) fn expire(&mut self, now: Now) {
        let late = |(id, w): (&ContainerId, &Waiting)| (w.deadline <= now).then(|| id.clone());
        for container in self.waiting.iter().filter_map(late).collect::<Vec<_>>() {
            let seconds = self.settings.prepare_timeout.as_secs_f64();
            let waits_for = self.waits_for(&container);
            self.end(&container, &format!("its volumes were not ready within {seconds} s: {waits_for}"));
        }
        let late = |(id, by): (&ContainerId, &Now)| (*by <= now).then(|| id.clone());
        for container in self.unisolated.iter().filter_map(late).collect::<Vec<_>>() {
            let warning =
                format!("container {container} has its volumes, and was never started: they are taken back");
            self.outputs.push_back(Output::Warn(warning.into()));
            self.end(&container, "it was not started in time");
        }
        self.stop_waiting(now);
    }

    /// Notes that a container which has its volumes has to start.
    pub(super) fn expect_start(&mut self, now: Now, id: &ContainerId) {
        let isolated = self.containers.get(id).is_none_or(Container::is_isolated);
        if let Some(by) = now.checked_add(self.settings.start_timeout).filter(|_| !isolated) {
            self.unisolated.insert(id.clone(), by);
        }
    }

    fn waits_for(&self, container: &ContainerId) -> String {
        if !self.is_open() || !self.ready {
            return format!("this host has no session in etcd yet: {}", self.obstacle);
        }
        if let Some(others) = self.waiting.get(container).and_then(|waiting| waiting.others.as_ref()) {
            return others.why.to_string();
        }
        let wanted = self.containers.get(container).map(|entry| entry.volumes.as_slice()).unwrap_or_default();
        let each = wanted.iter().filter_map(|wanted| {
            let volume = self.volumes.get(&wanted.volume)?;
            let queued;
            let doing = match &volume.phase {
                _ if volume.revoked.is_some() => "a revoke is ending the use of",
                Phase::Acquiring => match self.before_acquire(&wanted.volume) {
                    None | Some(0) => "etcd has not answered for the lease of",
                    Some(before) => {
                        queued = format!("{before} other lease operations of this host come before that of");
                        &queued
                    }
                },
                Phase::Mounting { .. } if !volume.confirmed && !volume.is_called() => {
                    "etcd has not yet confirmed the lease of"
                }
                Phase::Settling { .. } => "the storage has not yet taken from its last host",
                Phase::Mounting { .. } => "the driver has not yet mounted",
                Phase::Detaching { .. } => "its last use is not over for",
                Phase::Attached { .. } if volume.gone => "somebody has unmounted, and others still use,",
                Phase::Attached { .. } if !volume.seen => "it cannot be told whether it is still mounted:",
                Phase::Attached { mounted, .. }
                    if !self.is_past_silence() && self.settings.leaves_unproved(&wanted.volume, mounted) =>
                {
                    not_told()
                }
                Phase::Attached { .. } => return None,
            };
            let asking = matches!(volume.phase, Phase::Acquiring);
            let untold = doing == not_told();
            let fault = self.fault.as_ref().filter(|_| asking || untold);
            let trouble = volume.trouble.as_ref().or(fault).map(|t| format!(" ({t})")).unwrap_or_default();
            Some(format!("{doing} volume {}{trouble}", wanted.volume))
        });
        each.collect::<Vec<_>>().join("; ")
    }

    /// Moves a waiting prepare on: joins what is there, acquires what is not, answers when all is
    /// mounted.
    pub(super) fn advance(&mut self, now: Now, id: &ContainerId) {
        if self.waiting.get(id).is_some_and(|waiting| waiting.others.is_some()) {
            return;
        }
        let past_silence = self.is_past_silence();
        let Some(container) = self.containers.get_mut(id) else { return };
        let mut missing: BTreeMap<_, Wanted> = BTreeMap::new();
        let mut mount_points = Vec::new();
        let mut blocked = false;
        let read_only = container.volumes.iter().find(|wanted| {
            let mounted = self.volumes.get(&wanted.volume).and_then(Volume::mounted);
            !wanted.read_only && mounted.is_some_and(|mounted| mounted.read_only)
        });
        if let Some(wanted) = read_only {
            let why = format!("volume {}: {READ_ONLY}", wanted.volume);
            return self.end(id, &why);
        }
        for wanted in &container.volumes {
            match self.volumes.get_mut(&wanted.volume) {
                None => {
                    missing.entry(wanted.volume.clone()).or_insert_with(|| wanted.clone());
                }
                Some(volume) if volume.may_be_joined() => {
                    if volume.users.insert(id.clone()) {
                        (volume.recorded, volume.seen) = (false, false);
                        self.table_changed = true;
                    }
                    if let Phase::Attached { mounted, .. } = &volume.phase
                        && volume.seen
                        // Who takes a silent host's volumes must know before anybody writes to one that cannot be fenced in time.
                        && (past_silence || !self.settings.leaves_unproved(&wanted.volume, mounted))
                    {
                        mount_points.push(mounted.given().clone());
                    }
                }
                Some(_) => blocked = true,
            }
        }
        if mount_points.len() == container.volumes.len() {
            container.prepared = true;
            self.table_changed = true;
            self.expect_start(now, id);
            if let Some(waiting) = self.waiting.remove(id) {
                self.outputs.push_back(Output::Reply(waiting.request, Ok(Answer::Prepared { mount_points })));
            }
        } else if !blocked && !missing.is_empty() {
            let agent_id = container.agent_id.clone();
            let volumes = missing.keys().cloned().collect();
            for (volume, wanted) in missing {
                self.volumes.insert(volume, Volume::acquiring(wanted, id.clone()));
            }
            self.table_changed = true;
            let container = id.clone();
            let owners = self.waiting.get(id).map(|waiting| waiting.owners.clone()).unwrap_or_default();
            self.queue_acquire(Acquire { volumes, container, agent_id, seen: None, owners });
        }
    }
}

/// Why a volume whose file system cannot be shut down is not handed out yet.
fn not_told() -> &'static str {
    "etcd has not confirmed yet that silence does not end this host, as is due for a file system that cannot be shut down:"
}
