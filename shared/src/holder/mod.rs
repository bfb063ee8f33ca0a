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
//! the device is idle (docs/lease-protocol.md, L4).

mod table;
mod volume;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub use table::{Container, MountedVolume, Table, Wanted};
pub use volume::{Phase, Step, Volume};

use crate::record::Token;
use crate::volume::{ContainerId, VolumeId};

/// A call that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request(pub u64);

/// An effect under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Op(pub u64);

/// Time since some fixed moment, from a clock that only goes forward.
pub type Now = Duration;

/// The first and the longest pause before a failed step is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(10);

/// A lease that is this session's, found in etcd when the session was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundLease {
    /// Its fencing token.
    pub token: Token,
    /// The containers that the record names.
    pub containers: BTreeSet<ContainerId>,
    /// Its mount on this host, if the mount table has one where the record says.
    pub mounted: Option<MountedVolume>,
    /// Whether a process other than the host's own sees that mount: then it is in use, whatever the
    /// table says.
    pub in_use: bool,
}

/// Why a driver's Mount gave no mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountFault {
    /// The driver said no, and is done with it.
    Refused(String),
    /// The call did not reach the driver.
    Unreachable(String),
    /// No answer: the driver may still be at it.
    Unresolved(String),
}

/// Why a lease could not be rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseFault {
    /// etcd is out of reach; nothing was written.
    Unavailable(String),
    /// The lease or the session is no longer this keeper's.
    Lost(String),
}

/// What came of asking whether a volume's device is idle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Idleness {
    /// Proved: no mount in any namespace holds it.
    Proved,
    /// The host's own mount is still there: the driver has not unmounted.
    Mounted,
    /// The host's mount is gone, but something else still holds the device.
    Pinned(String),
    /// It could not be told.
    Unknown(String),
}

/// What happens to the core.
#[derive(Clone, Debug)]
pub enum Input {
    /// The session is open; these leases are its own.
    Opened {
        /// By canonical name.
        found: BTreeMap<VolumeId, FoundLease>,
    },
    /// There is no session yet, and this is why: for the text of refusals.
    NotOpened {
        /// A fragment.
        why: String,
    },
    /// Mesos is about to start a container that names volumes.
    Prepare {
        /// Whom to answer.
        request: Request,
        /// The container.
        container: ContainerId,
        /// The agent's address, which tells two agents of one host apart.
        agent: String,
        /// The agent's id, if the container's sandbox tells it.
        agent_id: Option<String>,
        /// Its volumes, in the order of the answer's mount points.
        volumes: Vec<Wanted>,
    },
    /// The container's process exists, and has not yet been let go.
    Isolate {
        /// Whom to answer.
        request: Request,
        /// The container.
        container: ContainerId,
        /// Its process on this host.
        pid: u32,
        /// Its freezer cgroup.
        cgroup: Option<String>,
    },
    /// All of the container's processes are dead, or it never had one.
    Cleanup {
        /// Whom to answer.
        request: Request,
        /// The container, maybe one that was never prepared.
        container: ContainerId,
    },
    /// Nothing of an isolated container runs any more, whether or not Mesos will say so.
    Ended {
        /// The container.
        container: ContainerId,
    },
    /// An agent has started, and knows these containers.
    Recover {
        /// Whom to answer.
        request: Request,
        /// The agent's address.
        agent: String,
        /// Containers that it goes on with.
        known: BTreeSet<ContainerId>,
        /// Containers that it will kill and clean up.
        orphans: BTreeSet<ContainerId>,
    },
    /// The result of [`Output::Acquire`]: the token of all of them, or why none was granted.
    Acquired(Op, Result<Token, String>),
    /// The result of [`Output::Mount`].
    Mounted(Op, Result<MountedVolume, MountFault>),
    /// The result of [`Output::Record`] and [`Output::Release`].
    Written(Op, Result<(), LeaseFault>),
    /// The result of [`Output::Unmount`].
    Unmounted(Op, Result<(), String>),
    /// The result of [`Output::ProveIdle`].
    Idle(Op, Idleness),
    /// Time has passed: see [`Core::next_deadline`].
    Tick,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Answer a call.
    Reply(Request, Result<Answer, String>),
    /// Take all these leases in one transaction, as `attaching`, for this container.
    Acquire {
        /// Under which number the result comes.
        op: Op,
        /// The leases.
        volumes: Vec<VolumeId>,
        /// Who asks.
        container: ContainerId,
        /// For whose sake.
        agent_id: Option<String>,
    },
    /// Have the driver mount.
    Mount {
        /// Under which number the result comes.
        op: Op,
        /// The lease.
        token: Token,
        /// What to mount.
        wanted: Wanted,
    },
    /// Rewrite the lease.
    Record {
        /// Under which number the result comes.
        op: Op,
        /// The lease.
        volume: VolumeId,
        /// Whether it is now being detached; else it is attached.
        detaching: bool,
        /// Who uses it.
        containers: BTreeSet<ContainerId>,
        /// Where it is mounted.
        mount_point: Option<String>,
    },
    /// Have the driver unmount. Comes only after the lease was rewritten as `detaching`, which
    /// confirmed that it is this session's.
    Unmount {
        /// Under which number the result comes.
        op: Op,
        /// The lease.
        token: Token,
        /// The volume, as the driver was asked for it.
        asked: VolumeId,
    },
    /// Find out whether the device is idle.
    ProveIdle {
        /// Under which number the result comes.
        op: Op,
        /// The volume, as the driver was asked for it.
        asked: VolumeId,
        /// What was mounted, if that is known.
        mounted: Option<MountedVolume>,
    },
    /// Free the lease.
    Release {
        /// Under which number the result comes.
        op: Op,
        /// The lease.
        volume: VolumeId,
    },
    /// Tell whoever watches the container that it must end, and why.
    Limit {
        /// The container.
        container: ContainerId,
        /// For the framework to show.
        message: String,
    },
    /// Something an operator should read.
    Warn(String),
}

/// The good answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Input::Prepare`]: where each volume is mounted, in the order asked.
    Prepared {
        /// Host paths.
        mount_points: Vec<String>,
    },
    /// To anything else.
    Done,
}

#[derive(Clone, Debug)]
struct Waiting {
    request: Request,
    deadline: Now,
}

/// The core. See the module's head.
#[derive(Debug)]
pub struct Core {
    prepare_timeout: Duration,
    containers: BTreeMap<ContainerId, Container>,
    volumes: BTreeMap<VolumeId, Volume>,
    /// Prepares that are not yet answered.
    waiting: BTreeMap<ContainerId, Waiting>,
    /// Acquires under way: by number, the volumes and the container.
    acquiring: BTreeMap<Op, (Vec<VolumeId>, ContainerId)>,
    opened: Result<(), String>,
    outputs: VecDeque<Output>,
    next_op: u64,
    table_changed: bool,
}

impl Core {
    /// A core that goes on from a stored table. A prepare is answered within `prepare_timeout`.
    #[must_use]
    pub fn new(table: Table, prepare_timeout: Duration) -> Self {
        let (containers, volumes) = table.into_parts();
        Self {
            prepare_timeout,
            containers,
            volumes,
            waiting: BTreeMap::new(),
            acquiring: BTreeMap::new(),
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
        prepares.chain(self.volumes.values().filter_map(|volume| volume.retry_at)).min()
    }

    /// The volumes and who uses them, for people and tests.
    #[must_use]
    pub fn volumes(&self) -> &BTreeMap<VolumeId, Volume> {
        &self.volumes
    }

    /// The containers whose processes are known, with first process and freezer cgroup: the shell tells by
    /// [`Input::Ended`] when they are gone.
    pub fn isolated(&self) -> impl Iterator<Item = (&ContainerId, u32, Option<&str>)> {
        self.containers.iter().filter_map(|(id, entry)| Some((id, entry.pid?, entry.cgroup.as_deref())))
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Now, input: Input) {
        match input {
            Input::Opened { found } => self.opened(found),
            Input::NotOpened { why } => self.opened = Err(why),
            Input::Prepare { request, container, agent, agent_id, volumes } => {
                self.prepare(now, request, container, agent, agent_id, volumes);
            }
            Input::Isolate { request, container, pid, cgroup } => {
                let answer = self.isolate(&container, pid, cgroup);
                self.outputs.push_back(Output::Reply(request, answer.map(|()| Answer::Done)));
            }
            Input::Cleanup { request, container } => {
                self.end(&container, "the container was destroyed while its volumes were prepared");
                self.outputs.push_back(Output::Reply(request, Ok(Answer::Done)));
            }
            Input::Ended { container } => self.end(&container, "its processes have ended"),
            Input::Recover { request, agent, known, orphans } => {
                self.recover(&agent, &known, &orphans);
                self.outputs.push_back(Output::Reply(request, Ok(Answer::Done)));
            }
            Input::Acquired(op, result) => self.acquired(op, result),
            Input::Mounted(op, result) => self.mounted(now, op, result),
            Input::Written(op, result) => self.written(now, op, result),
            Input::Unmounted(op, result) => self.unmounted(op, result),
            Input::Idle(op, idleness) => self.idle(now, op, idleness),
            Input::Tick => {}
        }
        self.progress(now);
    }

    // --- calls -----------------------------------------------------------------------------------

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
            if known.volumes != volumes {
                let refusal = format!("container {container} was prepared before, with other volumes");
                self.outputs.push_back(Output::Reply(request, Err(refusal)));
                return;
            }
            // The same call again, from a connection that has replaced a lost one: who waits is new,
            // the deadline is not.
            let deadline = self.waiting.get(&container).map_or(now + self.prepare_timeout, |w| w.deadline);
            self.waiting.insert(container, Waiting { request, deadline });
            return;
        }
        let entry = Container { agent, agent_id, volumes, pid: None, cgroup: None, prepared: false };
        self.containers.insert(container.clone(), entry);
        self.waiting.insert(container, Waiting { request, deadline: now + self.prepare_timeout });
        self.table_changed = true;
    }

    fn isolate(&mut self, container: &ContainerId, pid: u32, cgroup: Option<String>) -> Result<(), String> {
        let Some(entry) = self.containers.get_mut(container) else {
            return Err(format!(
                "the keeper does not know container {container}: its volumes are not mounted"
            ));
        };
        let attached = |wanted: &Wanted| {
            self.volumes.get(&wanted.volume).is_some_and(|v| matches!(v.phase, Phase::Attached { .. }))
        };
        if let Some(gone) = entry.volumes.iter().find(|wanted| !attached(wanted)) {
            return Err(format!("volume {} is no longer mounted for container {container}", gone.volume));
        }
        entry.pid = Some(pid);
        entry.cgroup = cgroup;
        self.table_changed = true;
        Ok(())
    }

    fn recover(&mut self, agent: &str, known: &BTreeSet<ContainerId>, orphans: &BTreeSet<ContainerId>) {
        for container in known.iter().chain(orphans) {
            if let Some(entry) = self.containers.get_mut(container) {
                // A container follows its agent to a new address.
                if entry.agent != agent {
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
        if self.containers.remove(container).is_some() {
            self.table_changed = true;
            for volume in self.volumes.values_mut() {
                if volume.users.remove(container) {
                    volume.recorded = false;
                }
            }
        }
    }

    // --- results ---------------------------------------------------------------------------------

    fn opened(&mut self, mut found: BTreeMap<VolumeId, FoundLease>) {
        self.opened = Ok(());
        self.table_changed = true;
        // An acquire of an older life that never committed, or a release that did.
        let ours = |id: &VolumeId, volume: &mut Volume| volume.is_attached() || found.contains_key(id);
        self.volumes.retain(ours);
        for (id, volume) in &mut self.volumes {
            match found.remove(id) {
                Some(lease) => volume.adopt(&lease),
                None => volume.enter(Phase::Lost { why: "etcd names another holder".into() }),
            }
        }
        for (id, lease) in found {
            // Leased, but not in the table: that was lost, or is of an earlier boot.
            self.outputs.push_back(Output::Warn(format!(
                "the lease of {id} is this host's, and the keeper has no note of it: {}",
                if lease.in_use { "it is in use and stays" } else { "it is cleaned up and released" }
            )));
            if lease.in_use {
                for container in &lease.containers {
                    self.containers.entry(container.clone()).or_insert_with(|| Container::unknown(&id));
                }
            }
            self.volumes.insert(id.clone(), Volume::found(&id, lease));
        }
    }

    fn acquired(&mut self, op: Op, result: Result<Token, String>) {
        let Some((volumes, container)) = self.acquiring.remove(&op) else { return };
        self.table_changed = true;
        let mut refused = BTreeSet::from([container]);
        for id in volumes {
            match &result {
                Ok(token) => {
                    if let Some(volume) = self.volumes.get_mut(&id) {
                        volume.enter(Phase::Mounting { token: *token });
                    }
                }
                Err(_) => refused.extend(self.volumes.remove(&id).into_iter().flat_map(|v| v.users)),
            }
        }
        if let Err(why) = result {
            for container in refused {
                self.end(&container, &why);
            }
        }
    }

    /// The volume whose effect `op` is; none for the effect of a phase that was left.
    fn by_op(&mut self, op: Op) -> Option<(VolumeId, &mut Volume)> {
        let (id, volume) = self.volumes.iter_mut().find(|(_, volume)| volume.awaits == Some(op))?;
        volume.awaits = None;
        Some((id.clone(), volume))
    }

    fn mounted(&mut self, now: Now, op: Op, result: Result<MountedVolume, MountFault>) {
        let Some((id, volume)) = self.by_op(op) else { return };
        let Phase::Mounting { token } = volume.phase else { return };
        let mut worth_a_line = true;
        let why = match result {
            Ok(mounted) => {
                volume.settle();
                volume.enter(Phase::Attached { token, mounted });
                self.table_changed = true;
                return;
            }
            // This call is not under way, but one before it may be, and the storage may have the volume
            // attached here: the driver has to say.
            Err(MountFault::Unreachable(why)) if volume.unresolved => {
                worth_a_line = volume.retry(now, why.clone());
                why
            }
            Err(MountFault::Refused(why) | MountFault::Unreachable(why)) => {
                volume.enter(Phase::Detaching { token, mounted: None, step: Step::Announce });
                why
            }
            // The driver may still be at it. Mount is idempotent: it is asked until it answers, so
            // that the lease is never released under a call that can still land.
            Err(MountFault::Unresolved(why)) => {
                volume.unresolved = true;
                worth_a_line = volume.retry(now, why.clone());
                why
            }
        };
        let users = std::mem::take(&mut volume.users);
        self.table_changed = true;
        let why = format!("volume {id} could not be mounted: {why}");
        if users.is_empty() && worth_a_line {
            self.outputs.push_back(Output::Warn(why.clone()));
        }
        for user in users {
            self.end(&user, &why);
        }
    }

    fn written(&mut self, now: Now, op: Op, result: Result<(), LeaseFault>) {
        let Some((id, volume)) = self.by_op(op) else { return };
        let mut warning = None;
        match (result, volume.phase.clone()) {
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

    fn unmounted(&mut self, op: Op, result: Result<(), String>) {
        let Some((_, volume)) = self.by_op(op) else { return };
        let Phase::Detaching { token, mounted, .. } = volume.phase.clone() else { return };
        // Whatever the driver says, the mount tables decide: RexRay's second Unmount is an error.
        volume.trouble = result.err();
        volume.enter(Phase::Detaching { token, mounted, step: Step::Prove });
    }

    fn idle(&mut self, now: Now, op: Op, idleness: Idleness) {
        let Some((id, volume)) = self.by_op(op) else { return };
        let Phase::Detaching { token, mounted, .. } = volume.phase.clone() else { return };
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
            Some(trouble) if volume.retry(now, trouble.clone()) => {
                self.outputs.push_back(Output::Warn(format!("volume {id} stays leased: {trouble}")));
            }
            Some(_) => {}
        }
        self.table_changed = true;
    }

    // --- what follows ----------------------------------------------------------------------------

    fn op(&mut self) -> Op {
        self.next_op += 1;
        Op(self.next_op)
    }

    /// Starts every effect that can start, and answers every prepare that can be answered.
    fn progress(&mut self, now: Now) {
        self.limit_users_of_lost_volumes();
        self.expire(now);
        if self.opened.is_ok() {
            for container in self.waiting.keys().cloned().collect::<Vec<_>>() {
                self.advance(&container);
            }
            for id in self.volumes.keys().cloned().collect::<Vec<_>>() {
                self.start_effect(now, &id);
            }
        }
    }

    fn limit_users_of_lost_volumes(&mut self) {
        for (id, volume) in &mut self.volumes {
            let Phase::Lost { why } = &volume.phase else { continue };
            for container in std::mem::take(&mut volume.users) {
                let message = format!("the lease of volume {id} was lost: {why}");
                self.outputs.push_back(Output::Warn(message.clone()));
                self.outputs.push_back(Output::Limit { container, message });
            }
        }
        // Nothing may be done for it any more, and nobody waits for it.
        self.volumes.retain(|_, volume| !matches!(volume.phase, Phase::Lost { .. }));
    }

    fn expire(&mut self, now: Now) {
        let late = |(id, w): (&ContainerId, &Waiting)| (w.deadline <= now).then(|| id.clone());
        for container in self.waiting.iter().filter_map(late).collect::<Vec<_>>() {
            let seconds = self.prepare_timeout.as_secs_f64();
            let why =
                format!("its volumes were not ready within {seconds} s: {}", self.waits_for(&container));
            self.end(&container, &why);
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
                Phase::Mounting { .. } => "the driver has not yet mounted",
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
    fn advance(&mut self, container: &ContainerId) {
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
                        self.table_changed = true;
                    }
                    if let Phase::Attached { mounted, .. } = &volume.phase {
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
        if let Phase::Attached { token, mounted } = &volume.phase
            && volume.users.is_empty()
        {
            let (token, mounted) = (*token, Some(mounted.clone()));
            volume.enter(Phase::Detaching { token, mounted, step: Step::Announce });
            self.table_changed = true;
        }
        let record = |detaching, mounted: Option<&MountedVolume>| Output::Record {
            op,
            volume: id.clone(),
            detaching,
            containers: volume.users.clone(),
            mount_point: mounted.map(|mounted| mounted.mount_point.clone()),
        };
        let asked = volume.wanted.asked.clone();
        let effect = match &volume.phase {
            Phase::Acquiring | Phase::Lost { .. } => return,
            Phase::Attached { .. } if volume.recorded => return,
            Phase::Attached { mounted, .. } => record(false, Some(mounted)),
            Phase::Mounting { token } => Output::Mount { op, token: *token, wanted: volume.wanted.clone() },
            Phase::Detaching { token, mounted, step } => match step {
                Step::Announce => record(true, mounted.as_ref()),
                Step::Unmount => Output::Unmount { op, token: *token, asked },
                Step::Prove => Output::ProveIdle { op, asked, mounted: mounted.clone() },
                Step::Release => Output::Release { op, volume: id.clone() },
            },
        };
        // What is being written now is what the users are now; a change in between writes again.
        volume.recorded = true;
        volume.retry_at = None;
        volume.awaits = Some(op);
        self.next_op = op.0;
        self.outputs.push_back(effect);
    }
}
