//! The pure core of a holder: what the keeper of one agent host does about its volumes.
//!
//! It has no clock, file, thread or async of its own. The shell calls [`Core::handle`] with one
//! [`Input`], stores [`Core::table`] when [`Core::table_changed`] says so, and only then carries out
//! what [`Core::poll_output`] gives: *the table is written before the effect*. Each effect has an
//! [`Op`], and its result comes back as an input under that number; a result under an older number
//! changes nothing.
//!
//! One volume has at most one effect under way, so that no two driver calls for it ever overlap:
//!
//! ```text
//!          acquire ok          mount ok          last user gone
//! Acquiring ------> Mounting ----------> Attached ----------> Detaching
//!     | refused        | definite error                        announce -> unmount -> prove -> release
//!     v                v                                                     ^          |
//!   (gone)          Detaching                                                +-- busy --+
//! ```
//!
//! A lease is released from one place, `Step::Release`, which is entered only with the proof that
//! the device is idle (docs/lease-protocol.md, L4), and left only when no driver call for it can be
//! under way (L10).

mod io;
mod progress;
mod results;
mod table;
mod volume;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub use io::{
    Answer, FoundLease, Idleness, Input, LeaseFault, LeaseState, MountFault, Now, Op, Output, Request, Sight,
    UnmountFault,
};
pub use table::{BlockDevice, Container, MountedVolume, Table, Wanted};
pub use volume::{Phase, Step, Volume};

use crate::volume::{ContainerId, VolumeId};

#[derive(Clone, Debug)]
struct Waiting {
    request: Request,
    deadline: Now,
}

/// The core's time limits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Within it a prepare is answered.
    pub prepare: Duration,
    /// For how long a driver call without an answer may still be under way.
    pub settle: Duration,
}

/// The core. See the module's head.
#[derive(Debug)]
pub struct Core {
    limits: Limits,
    containers: BTreeMap<ContainerId, Container>,
    volumes: BTreeMap<VolumeId, Volume>,
    /// Prepares that are not yet answered.
    waiting: BTreeMap<ContainerId, Waiting>,
    /// Acquires under way: by number, the volumes and the container.
    acquiring: BTreeMap<Op, (Vec<VolumeId>, ContainerId)>,
    /// Until when containers must be isolated that have their volumes, or did before a restart.
    unisolated: BTreeMap<ContainerId, Now>,
    opened: Result<(), String>,
    outputs: VecDeque<Output>,
    next_op: u64,
    table_changed: bool,
}

impl Core {
    /// A core that goes on from a stored table.
    #[must_use]
    pub fn new(table: Table, limits: Limits) -> Self {
        let (containers, volumes) = table.into_parts();
        Self {
            limits,
            containers,
            volumes,
            waiting: BTreeMap::new(),
            acquiring: BTreeMap::new(),
            unisolated: BTreeMap::new(),
            opened: Err("the keeper has just started".into()),
            outputs: VecDeque::new(),
            next_op: 0,
            table_changed: false,
        }
    }

    /// What to store before the next output is carried out.
    #[must_use]
    pub fn table(&self) -> Table {
        Table::of(&self.containers, &self.volumes)
    }

    /// Whether [`Core::table`] differs from what it was when this was last called.
    #[must_use]
    pub fn table_changed(&mut self) -> bool {
        std::mem::take(&mut self.table_changed)
    }

    /// The next thing to do.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Tick`] is wanted, if nothing happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Now> {
        let prepares = self.waiting.values().map(|waiting| waiting.deadline);
        let retries = self.volumes.values().filter_map(|volume| volume.retry_at);
        prepares.chain(retries).chain(self.unisolated.values().copied()).min()
    }

    /// The volumes and who uses them, for people and tests.
    #[must_use]
    pub fn volumes(&self) -> &BTreeMap<VolumeId, Volume> {
        &self.volumes
    }

    /// The containers that use volumes. The shell looks at those of which something has run, and
    /// tells by [`Input::Ended`] when nothing does any more.
    #[must_use]
    pub fn containers(&self) -> &BTreeMap<ContainerId, Container> {
        &self.containers
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Now, input: Input) {
        match input {
            Input::Opened { found } => self.opened(now, found),
            Input::NotOpened { why } => self.opened = Err(why),
            Input::Prepare { request, container, agent, agent_id, volumes } => {
                self.prepare(now, request, container, agent, agent_id, volumes);
            }
            Input::Isolate { request, agent, container, pid, cgroup } => {
                let answer = self.isolate(&agent, &container, pid, cgroup);
                self.outputs.push_back(Output::Reply(request, answer.map(|()| Answer::Done)));
            }
            Input::Cleanup { request, agent, container } => {
                if self.containers.get(&container).is_some_and(|entry| entry.is_of(&agent)) {
                    self.end(&container, "the container was destroyed while its volumes were prepared");
                }
                self.outputs.push_back(Output::Reply(request, Ok(Answer::Done)));
            }
            Input::Unstored { why } => {
                for container in self.waiting.keys().cloned().collect::<Vec<_>>() {
                    self.end(&container, &why);
                }
            }
            Input::Ended { container } => {
                // Mesos has not said so: look for others who see the volume before it is unmounted.
                for volume in self.volumes.values_mut().filter(|volume| volume.users.contains(&container)) {
                    volume.guarded = true;
                }
                self.end(&container, "its processes have ended");
            }
            Input::Recover { request, agent, known, orphans } => {
                self.recover(&agent, &known, &orphans);
                self.outputs.push_back(Output::Reply(request, Ok(Answer::Done)));
            }
            Input::Acquired(op, result) => self.acquired(op, result),
            Input::Mounted(op, result) => self.mounted(now, op, result),
            Input::Written(op, result) => self.written(now, op, result),
            Input::Unmounted(op, result) => self.unmounted(now, op, result),
            Input::Seen(op, sight) => self.seen(now, op, sight),
            Input::Found(op, found) => self.found(now, op, found),
            Input::Idle(op, idleness) => self.idle(now, op, idleness),
            Input::Tick => {}
        }
        self.progress(now);
    }

    fn prepare(
        &mut self,
        now: Now,
        request: Request,
        container: ContainerId,
        agent: String,
        agent_id: Option<String>,
        volumes: Vec<Wanted>,
    ) {
        if let Some(known) = self.containers.get(&container) {
            let refusal = if !known.is_of(&agent) {
                format!(
                    "another agent on this host, at {}, has volumes for a container {container}",
                    known.agent
                )
            } else if known.volumes != volumes {
                format!("container {container} was prepared before, with other volumes")
            } else {
                // The same call again, from a connection that has replaced a lost one: who waits is
                // new, the deadline is not.
                let before = self.waiting.get(&container).map(|waiting| waiting.deadline);
                let deadline = before.unwrap_or(now + self.limits.prepare);
                self.waiting.insert(container, Waiting { request, deadline });
                return;
            };
            self.outputs.push_back(Output::Reply(request, Err(refusal)));
            return;
        }
        let entry = Container { agent, agent_id, volumes, pid: None, cgroup: None, prepared: false };
        self.containers.insert(container.clone(), entry);
        self.waiting.insert(container, Waiting { request, deadline: now + self.limits.prepare });
        self.table_changed = true;
    }

    fn isolate(
        &mut self,
        agent: &str,
        container: &ContainerId,
        pid: u32,
        cgroup: Option<String>,
    ) -> Result<(), String> {
        let Some(entry) = self.containers.get_mut(container).filter(|entry| entry.is_of(agent)) else {
            return Err(format!(
                "the keeper does not know container {container}: its volumes are not mounted"
            ));
        };
        let attached = |wanted: &Wanted| {
            let volume = self.volumes.get(&wanted.volume);
            volume.is_some_and(|volume| {
                let mounted = matches!(volume.phase, Phase::Attached { .. }) && !volume.gone;
                mounted && volume.users.contains(container)
            })
        };
        if let Some(gone) = entry.volumes.iter().find(|wanted| !attached(wanted)) {
            return Err(format!("volume {} is no longer mounted for container {container}", gone.volume));
        }
        entry.pid = Some(pid);
        entry.cgroup = cgroup;
        self.unisolated.remove(container);
        self.table_changed = true;
        Ok(())
    }

    fn recover(&mut self, agent: &str, known: &BTreeSet<ContainerId>, orphans: &BTreeSet<ContainerId>) {
        for container in known.iter().chain(orphans) {
            if let Some(entry) = self.containers.get_mut(container) {
                // A task's container follows its agent to a new address. A standalone one's id was
                // chosen by a user, and may be another agent's as well.
                if entry.agent != agent && (entry.agent.is_empty() || entry.agent_id.is_some()) {
                    agent.clone_into(&mut entry.agent);
                    self.table_changed = true;
                }
            }
        }
        let ended = |(id, entry): (&ContainerId, &Container)| {
            (entry.agent == agent && !known.contains(id) && !orphans.contains(id)).then(|| id.clone())
        };
        for container in self.containers.iter().filter_map(ended).collect::<Vec<_>>() {
            self.end(&container, "the agent restarted while its volumes were prepared");
        }
    }

    /// Forgets a container, answering its prepare with `why` if it still waits.
    fn end(&mut self, container: &ContainerId, why: &str) {
        if let Some(waiting) = self.waiting.remove(container) {
            self.outputs.push_back(Output::Reply(waiting.request, Err(why.to_owned())));
        }
        self.unisolated.remove(container);
        if self.containers.remove(container).is_some() {
            self.table_changed = true;
            for volume in self.volumes.values_mut() {
                if volume.users.remove(container) {
                    volume.recorded = false;
                }
            }
        }
    }
}
