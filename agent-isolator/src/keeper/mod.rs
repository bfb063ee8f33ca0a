//! The keeper: it owns an agent host's session, leases, driver calls and mounts. It outlives the agent, so that an
//! agent's restart changes nothing for running tasks.
//!
//! ```text
//! mod.rs       the worker: the shell around shared::protocol::holder
//! etcd.rs      its reads, commits and watches
//! driver.rs    the plugins' protocol; endpoints.rs where they listen, and which of them must not be one
//! survey.rs    whether they do what the parameters say of them
//! probe.rs     looks at mounts and devices, each in a helper process
//! deadman/     the other processes; fence/ what they do; shared_memory.rs what all share
//! means.rs     what a fence of this host rests on; cgroups.rs
//! mounts/      what those looks are; mount_table.rs: the kernel's tables
//! calls.rs     what was there before a driver was called
//! roots.rs     whether volumes may be mounted where drivers mount
//! limits.rs    what tenants can have of it at once
//! checkpoint.rs, server.rs, alive.rs, log.rs, process.rs
//! ```
//!
//! The worker receives, handles, stores, and only then carries out. Everything of it runs on one thread that never waits
//! for a file system, a device or a plugin: it has to tick for the deadman, and to beat.

pub mod alive;
mod calls;
pub mod cgroups;
pub mod checkpoint;
pub mod deadman;
pub mod driver;
mod endpoints;
mod etcd;
pub mod fence;
pub mod flock;
pub mod limits;
pub mod log;
pub mod means;
pub(crate) mod mount_table;
pub mod mounts;
pub mod probe;
pub mod process;
mod roots;
pub mod server;
pub mod shared_memory;
pub mod stored_table;
pub mod survey;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shared::clock::{Reading as Clocks, SuspendWatch, holder_now};
use shared::exchange_io::Exchange;
use shared::protocol::exchange::{Instance, Key, Means, Outcome};
use shared::protocol::holder::{
    Answer, Container, Core, Input, Life, MountFault, MountedVolume, Output, Phase, Settings, UnmountFault,
    Wanted,
};
use shared::protocol::timing::LEAD;
use shared::protocol::{Now, Op, Request, Text};
use shared::record::Token;
use shared::store::LeaseStore;
use shared::volume::{ContainerId, VolumeId};
use tokio::sync::{Semaphore, mpsc};

use self::calls::Calls;
use self::checkpoint::{Checkpoint, Machine, StartError};
use self::deadman::DeadmanWatch;
use self::driver::VolumeDriver;
use self::etcd::Etcd;
use self::fence::{FenceRunner, Known, Policy};
use self::limits::DriverCalls;
pub use self::limits::Turn;
use self::means::{Found, MeansWatch};
use self::mounts::{Before, MountCall, Others, Proof, ProofCall};
use self::probe::Prober;
use self::roots::{Roots, Waiting};
use self::server::{ConnectionId, Lines};
use self::shared_memory::SharedMemory;
use self::stored_table::{Stored, read_table};
use crate::parameters::KeeperParameters;
use crate::wire::{self, Call, KeeperLine, Limit, line};

/// How soon a table that could not be stored is stored again.
const STORE_AGAIN: Duration = Duration::from_millis(250);

/// How often the containers' processes are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How often it is looked whether a volume's disk is gone or its file system has turned read-only: by kernel tables alone.
const AILS_AGAIN: Duration = Duration::from_secs(5);

/// How often the worker looks at clock, flag and deadman. A kernel timer runs on a clock that can be slewed, and so is
/// trusted for no longer.
const POLL: Duration = Duration::from_millis(50);

/// A container that has its volumes has to start within this. Mesos's own limit, which counts from before the
/// prepare, is a minute by default (`executor_registration_timeout`).
const START_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The first and the longest pause before what failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// A deadman that ticks has killed this process long before: six of its polls. One that died right now is not waited for.
const FENCE_PATIENCE: Duration = Duration::from_millis(300);

/// How long making this host safe may take, beside the driver calls that are waited for, before it is told why it is not
/// done, and begun again.
const SAFE_WITHIN: Duration = Duration::from_secs(30);

/// A random id, from the kernel.
///
/// # Panics
/// When /proc is not mounted: nothing of this program works then.
#[must_use]
pub fn random_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("/proc is mounted");
    id.trim().to_owned()
}

/// An error and its causes in one line.
pub fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What happens in the worker.
#[derive(Debug)]
pub enum Event {
    /// An isolator connected.
    Connected(ConnectionId, Lines),
    /// It is gone.
    Disconnected(ConnectionId),
    /// It asks something.
    Call(ConnectionId, u64, Call),
    /// An effect has ended.
    Core(Input),
    /// It was looked at what is there before the first call of a driver under a lease: then that is made.
    Before(Turn, Box<Output>, Result<Before, Text>),
    /// A driver has answered a Mount.
    DriverMounted(Op, Box<Wanted>, Result<String, MountFault>),
    /// It was looked at what a driver has mounted; and what of it is outside the roots.
    Identified(Op, VolumeId, Result<MountedVolume, MountFault>, Option<Box<MountedVolume>>),
    /// It was looked whether a volume, as its driver was asked for it, is idle.
    Proved(Op, VolumeId, Proof),
    /// A driver has ended a call, whatever its answer is.
    CallEnded(Turn),
    /// The mount roots were looked at.
    RootsChecked(Result<(), String>),
}

/// The running worker.
pub struct Worker<S, D> {
    parameters: KeeperParameters,
    core: Core,
    checkpoint: Checkpoint,
    memory: Arc<SharedMemory>,
    guard: DeadmanWatch,
    policy: Policy,
    guarded: bool,
    means: MeansWatch,
    etcd: Etcd<S>,
    driver: D,
    queue: DriverCalls,
    roots: Roots,
    prober: Prober,
    calls: Calls,
    /// Volumes of an earlier life, as their drivers were asked, and under which leases: a call may have been made of which this one
    /// does not know.
    restored: BTreeMap<VolumeId, Token>,
    /// Whether the table has to be stored before what depends on it is carried out.
    unstored: bool,
    /// Why it could not be, the last time.
    store_fault: Option<Text>,
    store_again: Now,
    /// Outputs that wait for the table to be stored.
    held: VecDeque<Output>,
    /// A fence that the deadman should have begun by then.
    fence_by: Option<(Op, Now)>,
    /// When the containers' processes are looked at again.
    look_again: Now,
    look_at_ending: Now,
    /// When volumes are looked at for what ails them.
    ails_again: Now,
    /// One look for that at a time: each takes a thread, and may take long.
    ailing_looks: Arc<Semaphore>,
    suspends: SuspendWatch,
    /// What was last said of the session, so that each change is said once.
    said: String,
    etcd_silent: bool,
    events: mpsc::UnboundedSender<Event>,
    received: mpsc::UnboundedReceiver<Event>,
    connections: BTreeMap<ConnectionId, Lines>,
    requests: BTreeMap<Request, (ConnectionId, u64)>,
    next_request: u64,
    /// Told to every isolator that connects, until the container is cleaned up.
    limits: BTreeMap<ContainerId, Text>,
}

impl<S: LeaseStore, D: VolumeDriver + Clone + Send + Sync + 'static> Worker<S, D> {
    /// A worker that goes on from the stored table and the shared deadline.
    ///
    /// # Errors
    /// When the table is another holder's.
    pub fn start(
        parameters: KeeperParameters,
        checkpoint: Checkpoint,
        machine: Machine,
        memory: Arc<SharedMemory>,
        exchange: Exchange<S>,
        driver: D,
        guard: DeadmanWatch,
    ) -> Result<Self, StartError> {
        let (events, received) = mpsc::unbounded_channel();
        let mut table = checkpoint.load()?;
        for root in &parameters.mount_roots {
            if let Err(why) = roots::close(root) {
                tracing::warn!("{why}");
            }
        }
        let now = holder_now();
        memory.tick_worker(now);
        // An epoch was open in this boot: somebody took the table away.
        table.lost |= !checkpoint.path().exists() && memory.read().generation > 0;
        let lost = table.lost;
        let mut means = MeansWatch::new(&parameters, Arc::clone(&memory));
        let found = means.look(now).map(|found| found.means).unwrap_or_default();
        let core = Core::new(now, settings(&parameters, machine, found), table, memory.read());
        let token = |phase: &Phase| match phase {
            Phase::Acquiring => None,
            Phase::Settling { token }
            | Phase::Mounting { token }
            | Phase::Attached { token, .. }
            | Phase::Detaching { token, .. } => Some(*token),
        };
        let rows = core.volumes().values();
        let restored = rows.filter_map(|row| Some((row.wanted.asked.clone(), token(&row.phase)?))).collect();
        Ok(Self {
            core,
            checkpoint,
            memory,
            guard,
            policy: parameters.policy(),
            guarded: true,
            means,
            etcd: Etcd::new(exchange, events.clone()),
            driver,
            queue: DriverCalls::new(parameters.driver_calls_max),
            roots: Roots::default(),
            prober: Prober::new(parameters.places(), parameters.policy().program),
            calls: Calls::default(),
            restored,
            // That it was lost has to be known to the next one, too.
            unstored: lost,
            store_fault: None,
            store_again: now,
            held: VecDeque::new(),
            fence_by: None,
            look_again: now,
            look_at_ending: now,
            ails_again: now + AILS_AGAIN,
            ailing_looks: Arc::new(Semaphore::new(1)),
            suspends: SuspendWatch::default(),
            said: String::new(),
            etcd_silent: false,
            events,
            received,
            connections: BTreeMap::new(),
            requests: BTreeMap::new(),
            next_request: 0,
            limits: BTreeMap::new(),
            parameters,
        })
    }

    /// With another program than this one for the helpers, where this one is no keeper.
    #[must_use]
    pub fn with_helpers(mut self, program: PathBuf) -> Self {
        self.prober = Prober::new(self.parameters.places(), program.clone());
        self.policy.program = program;
        self
    }

    /// Where connections send their events.
    #[must_use]
    pub fn events(&self) -> mpsc::UnboundedSender<Event> {
        self.events.clone()
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        self.core.handle(holder_now(), Input::Tick);
        loop {
            self.go_on();
            let now = holder_now();
            let due = self.core.next_deadline().map_or(POLL, |at| at.saturating_sub(now).min(POLL));
            // A deadline that is due now must not keep what is received from being taken in.
            if let Ok(Some(event)) = tokio::time::timeout(due, self.received.recv()).await {
                self.handle(event);
                // What was decided is done before the flag is looked at: a new epoch begins by clearing it.
                self.go_on();
            }
            self.poll();
        }
    }

    /// Looks at what tells nobody: the clocks, the flag, the deadman, the containers.
    fn poll(&mut self) {
        let clocks = Clocks::take();
        let now = clocks.holder();
        if let Some(slept) = self.suspends.observe(clocks) {
            tracing::warn!("this host was suspended for {} ms: its time went on", slept.as_millis());
        }
        if self.core.is_open() && self.memory.read().fenced {
            self.core.handle(now, Input::Flagged);
        }
        let guarded = self.guard.tick(now).unwrap_or_else(|error| {
            tracing::error!("no deadman could be started: {error}");
            false
        });
        if guarded != self.guarded {
            self.guarded = guarded;
            self.core.handle(now, Input::Guarded(guarded));
        }
        if let Some(Found { means, lacking }) = self.means.look(now) {
            self.core.handle(now, Input::Means { means, lacking });
        }
        // Whatever keeps the deadman from it: a host that is to be fenced does not wait.
        if let Some((op, _)) = self.fence_by.take_if(|(_, at)| *at <= now) {
            tracing::error!("the deadman does not fence this host: the worker does");
            self.make_safe(op);
        }
        if self.look_again <= now {
            self.look_at_containers(now, false);
            // Counted from its end: among thousands of containers it takes its time.
            self.look_again = holder_now() + LOOK_AGAIN;
        } else if self.look_at_ending <= now {
            // Others wait for the end of those.
            self.look_at_containers(now, true);
            self.look_at_ending = holder_now() + POLL;
        }
        if self.ails_again <= now {
            self.ails_again = now + AILS_AGAIN;
            self.look_for_ailing();
        }
        if self.core.next_deadline().is_some_and(|at| at <= now) {
            self.core.handle(now, Input::Tick);
        }
    }

    /// Has volumes looked at whose disk is gone, or whose file system has turned read-only, under those who use them.
    fn look_for_ailing(&self) {
        let Ok(turn) = Arc::clone(&self.ailing_looks).try_acquire_owned() else { return };
        let used = self.core.volumes().iter().filter(|(_, volume)| !volume.users.is_empty());
        let used = used.filter_map(|(id, volume)| Some((id.clone(), volume.mounted()?.clone())));
        let used: Vec<_> = used.collect();
        if used.is_empty() {
            return;
        }
        let events = self.events.clone();
        tokio::spawn(async move {
            let look = move || {
                let found = mounts::ailing(used.iter().map(|(id, m)| (id.clone(), m)));
                drop(turn);
                found
            };
            let found = blocking(look).await;
            for volume in found.unwrap_or_default() {
                let _ = events.send(Event::Core(Input::Suspect { volume }));
            }
        });
    }

    /// Ends the use of volumes by containers of which nothing runs any more.
    fn look_at_containers(&mut self, now: Now, only_ending: bool) {
        let looked_at = |id: &ContainerId| !only_ending || self.limits.contains_key(id);
        let gone =
            |(id, entry): &(&ContainerId, &Container)| looked_at(id) && has_run(entry) && !is_alive(entry);
        let ended: Vec<_> = self.core.containers().iter().filter(gone).map(|(id, _)| id.clone()).collect();
        for container in ended {
            self.core.handle(now, Input::Ended { container });
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Core(input) => {
                self.hear(&input);
                self.core.handle(holder_now(), input);
            }
            Event::Before(turn, call, before) => self.call_first(turn, *call, before),
            Event::DriverMounted(op, wanted, Ok(path)) => self.identify(op, *wanted, path),
            Event::DriverMounted(op, _, Err(fault)) => {
                self.core.handle(holder_now(), Input::Mounted(op, Err(fault)));
            }
            Event::Identified(op, asked, result, stray) => {
                self.calls.add_stray(&asked, stray);
                self.core.handle(holder_now(), Input::Mounted(op, result));
            }
            Event::Proved(op, asked, proof) => {
                let now = holder_now();
                self.calls.proved(now, &asked, &proof);
                for who in &proof.killed {
                    tracing::warn!("{who} held volume {asked}, which no container here uses: it was killed");
                }
                self.core.handle(now, Input::Idle(op, proof.idleness));
            }
            Event::CallEnded(turn) => {
                self.queue.ended(&turn);
                self.call_drivers();
            }
            Event::Connected(id, lines) => {
                for (container, message) in &self.limits {
                    let limit = Limit { container: container.clone(), message: message.to_string() };
                    let _ = lines.send(line(&KeeperLine::Limit { limit }));
                }
                self.connections.insert(id, lines);
            }
            Event::Disconnected(id) => {
                self.connections.remove(&id);
                self.requests.retain(|_, (connection, _)| *connection != id);
                // It is asked again over the next one.
                let _forgotten = self.roots.remove(|waiting| waiting.connection == id);
            }
            Event::RootsChecked(checked) => {
                for Waiting { connection, call_id, call, .. } in self.roots.ended() {
                    match &checked {
                        Ok(()) => self.take_in(connection, call_id, call),
                        Err(why) => self.answer(connection, call_id, Err(why.as_str().into())),
                    }
                }
                self.look_at_roots();
            }
            Event::Call(connection, call_id, call) => self.call(connection, call_id, call),
        }
    }

    fn call(&mut self, connection: ConnectionId, call_id: u64, call: Call) {
        if let Call::Hello { version, parameters } = &call {
            let answer = self.hello(*version, parameters).map(|()| Answer::Done).map_err(Text::from);
            return self.answer(connection, call_id, answer);
        }
        match &call {
            Call::Prepare { container, .. } => {
                let container = container.clone();
                self.roots.add(Waiting { connection, call_id, container, call });
                return self.look_at_roots();
            }
            Call::Cleanup { container, .. } => {
                for prepare in self.roots.remove(|waiting| waiting.container == *container) {
                    let why = format!("container {container} has ended");
                    self.answer(prepare.connection, prepare.call_id, Err(why.into()));
                }
            }
            _ => {}
        }
        self.take_in(connection, call_id, call);
    }

    fn take_in(&mut self, connection: ConnectionId, call_id: u64, call: Call) {
        self.next_request += 1;
        let request = Request(self.next_request);
        self.requests.insert(request, (connection, call_id));
        let input = match call {
            Call::Hello { .. } => return,
            Call::Prepare { container, agent, agent_id, volumes } => {
                if let Some(why) = self.store_fault.clone() {
                    self.requests.remove(&request);
                    return self.answer(connection, call_id, Err(why));
                }
                if let Some(why) = self.has_too_many(&container) {
                    self.requests.remove(&request);
                    return self.answer(connection, call_id, Err(why));
                }
                let volumes = match self.wanted(volumes) {
                    Ok(volumes) => volumes,
                    Err(why) => {
                        self.requests.remove(&request);
                        return self.answer(connection, call_id, Err(why.into()));
                    }
                };
                self.limits.remove(&container);
                let (agent, agent_id) = (agent.into(), agent_id.map(Text::from));
                Input::Prepare { request, container, agent, agent_id, volumes }
            }
            Call::Isolate { agent, container, pid } => {
                let Some(cgroup) = alive::own_cgroup(pid, &container) else {
                    let refused = format!(
                        "container {container} (process {pid}) is in no freezer cgroup of its own below {}: a fence \
                         could not end it, so it may have no volumes; the agent needs --launcher=linux",
                        alive::FREEZER
                    );
                    self.requests.remove(&request);
                    return self.answer(connection, call_id, Err(refused.into()));
                };
                Input::Isolate { request, agent: agent.into(), container, pid, cgroup: Some(cgroup.into()) }
            }
            Call::Cleanup { agent, container } => {
                self.limits.remove(&container);
                Input::Cleanup { request, agent: agent.into(), container }
            }
            Call::Recover { agent, mut known, orphans } => {
                // An agent with another runtime directory or cgroups root may not see what still runs.
                let unseen = |(id, entry): &(&ContainerId, &Container)| {
                    *entry.agent == *agent
                        && !known.contains(*id)
                        && !orphans.contains(*id)
                        && has_run(entry)
                        && is_alive(entry)
                };
                let running: Vec<_> =
                    self.core.containers().iter().filter(unseen).map(|(id, _)| id.clone()).collect();
                for id in running {
                    tracing::warn!("the agent at {agent} does not know container {id}, which still runs");
                    known.insert(id);
                }
                Input::Recover { request, agent: agent.into(), known, orphans }
            }
        };
        self.core.handle(holder_now(), input);
    }

    /// Why another prepare has to wait for its next try. One that is asked again, over another connection, does not.
    fn has_too_many(&self, container: &ContainerId) -> Option<Text> {
        let (preparing, this_one) = self.core.preparing(container);
        let max = self.parameters.prepares_max;
        (preparing >= max && !this_one).then(|| {
            format!(
                "this host is already preparing the volumes of {preparing} containers, the most that its keeper does at \
                 once (prepares_max): start it again when some of them have started or failed"
            )
            .into()
        })
    }

    /// The volumes by their canonical names.
    fn wanted(&self, volumes: Vec<wire::VolumeCall>) -> Result<Vec<Wanted>, String> {
        let wanted = |call: wire::VolumeCall| {
            let volume = self.parameters.drivers.canonical(&call.volume)?;
            let mut asked = call.volume;
            // A plugin's long name stands in no socket's name.
            if asked.driver.as_str().contains('/') {
                asked.driver = volume.driver.clone();
            }
            Ok(Wanted { volume, asked, create: call.create, read_only: call.read_only })
        };
        volumes.into_iter().map(wanted).collect()
    }

    fn hello(&self, version: u32, theirs: &BTreeMap<String, String>) -> Result<(), String> {
        if version != wire::VERSION {
            return Err(format!(
                "the keeper speaks version {} of the module's protocol, and the module version {version}; \
                 upgrade the older one",
                wire::VERSION
            ));
        }
        for (name, value) in theirs {
            let ours = self.parameters.given.get(name);
            if ours != Some(value) {
                let ours = ours.map_or("nothing".into(), |ours| format!("`{ours}`"));
                return Err(format!(
                    "the module's parameter `{name}` is `{value}`, and the keeper that runs was given {ours}"
                ));
            }
        }
        Ok(())
    }

    fn look_at_roots(&mut self) {
        if !self.roots.begin() {
            return;
        }
        let (roots, events) = (self.parameters.mount_roots.clone(), self.events.clone());
        tokio::spawn(async move {
            let _ = events.send(Event::RootsChecked(blocking(move || roots::check(&roots)).await));
        });
    }

    fn answer(&self, connection: ConnectionId, id: u64, answer: Result<Answer, Text>) {
        let Some(lines) = self.connections.get(&connection) else { return };
        let reply = match answer {
            Ok(Answer::Prepared { mount_points }) => {
                let mount_points = mount_points.iter().map(|point| point.to_string()).collect();
                KeeperLine::Answer { id, answer: wire::Answer::Prepared { mount_points } }
            }
            Ok(Answer::Done | Answer::Isolated) => KeeperLine::Answer { id, answer: wire::Answer::Done },
            Err(refused) => KeeperLine::Refused { id, refused: refused.to_string() },
        };
        // A connection that has just ended: the isolator asks again over the next one.
        let _ = lines.send(line(&reply));
    }

    /// Stores the table, and carries out what the core asks for: the table before the effect (L8).
    fn go_on(&mut self) {
        loop {
            self.unstored |= self.core.table_changed();
            self.store();
            let output = if self.unstored { None } else { self.held.pop_front() };
            let Some(output) = output.or_else(|| self.core.poll_output()) else { break };
            if self.unstored && needs_table(&output) {
                self.held.push_back(output);
            } else {
                self.carry_out(output);
            }
        }
        self.etcd.watch(self.core.watching());
        self.say();
    }

    fn store(&mut self) {
        let now = holder_now();
        if !self.unstored || (self.store_fault.is_some() && now < self.store_again) {
            return;
        }
        match self.checkpoint.store(&self.core.table()) {
            Ok(()) => {
                self.unstored = false;
                if self.store_fault.take().is_some() {
                    tracing::info!("the table in {} is stored again", self.checkpoint.path().display());
                }
            }
            Err(error) => {
                let path = self.checkpoint.path().display();
                let why: Text = format!("the keeper cannot store its table in {path}: {error}").into();
                if self.store_fault.is_none() {
                    tracing::error!("{why}; nothing is mounted or unmounted until it can");
                }
                self.store_fault = Some(why.clone());
                self.store_again = now + STORE_AGAIN;
                self.core.handle(now, Input::Unstored { why });
            }
        }
    }

    /// Tells once that etcd does not answer, and once that it does again.
    fn hear(&mut self, input: &Input) {
        let silent = match input {
            Input::Read(_, Err(why)) => Some(why.clone()),
            Input::Committed(_, Outcome::Unknown) => Some("a write got no answer".into()),
            Input::Committed(_, Outcome::NotSent) => Some("a write could not be sent".into()),
            Input::Read(_, Ok(_)) | Input::Committed(..) => None,
            _ => return,
        };
        let silent = silent.map(|why: Text| match self.etcd.fault() {
            Some(fault) if matches!(input, Input::Committed(..)) => format!("{why}: {fault}").into(),
            _ => why,
        });
        if let Some(why) = silent.clone().filter(|_| matches!(input, Input::Committed(..))) {
            self.core.handle(holder_now(), Input::Silent(why));
        }
        match silent {
            Some(why) if !self.etcd_silent => tracing::warn!("etcd does not answer: {why}"),
            None if self.etcd_silent => tracing::info!("etcd answers again"),
            _ => {}
        }
        self.etcd_silent = matches!(
            input,
            Input::Read(_, Err(_)) | Input::Committed(_, Outcome::Unknown | Outcome::NotSent)
        );
    }

    /// Tells each change of the session once.
    fn say(&mut self) {
        let holder = &self.parameters.holder;
        let now = match (self.core.life(), self.core.epoch()) {
            (Life::Open, Some(epoch)) if self.core.is_ready() => {
                format!("the session of holder {holder} is open, epoch {epoch}")
            }
            (Life::Open, _) => return,
            _ => format!("holder {holder} has no session: {}", self.core.obstacle()),
        };
        if self.said != now {
            tracing::info!("{now}");
            self.said = now;
        }
    }

    /// What runs elsewhere tells its result as an event.
    fn tell(&self) -> impl FnOnce(Input) + Send + use<S, D> {
        let events = self.events.clone();
        move |input| {
            // The receiver lives as long as the worker runs.
            let _ = events.send(Event::Core(input));
        }
    }

    fn carry_out(&mut self, output: Output) {
        let tell = self.tell();
        match output {
            // The gate: the table with pid and cgroup is stored, the flag is looked at last.
            Output::Reply(request, Ok(Answer::Isolated)) if self.memory.read().fenced => {
                self.reply(request, Err("this host is being fenced".into()));
            }
            Output::Reply(request, answer) => self.reply(request, answer),
            Output::Read { op, reading } => self.etcd.read(op, reading),
            Output::Commit { op, commit } => self.etcd.commit(op, commit),
            Output::Extend(fence_at) => {
                if self.memory.extend(fence_at).is_err() {
                    self.drop_held();
                    self.core.handle(holder_now(), Input::Flagged);
                }
            }
            Output::Reset => self.memory.reset(),
            Output::Settle { .. } | Output::Mount { .. } | Output::Unmount { .. } => self.queue_call(output),
            Output::Look { op, mounted, doubted } => {
                let prober = self.prober.clone();
                tokio::spawn(async move { tell(Input::Seen(op, prober.look(mounted, doubted).await)) });
            }
            Output::ProveIdle { op, volume, asked, mounted } => {
                let (others, known) = (self.others(&volume), self.calls.of(&asked));
                let end = known.had_time(holder_now(), self.parameters.grace);
                let call = ProofCall {
                    asked: asked.clone(),
                    mounted,
                    before: known.before,
                    repeated: known.calls > 1,
                    strays: known.strays,
                    found: known.found,
                    others,
                    end,
                };
                let (prober, events) = (self.prober.clone(), self.events.clone());
                tokio::spawn(async move {
                    let _ = events.send(Event::Proved(op, asked, prober.prove_idle(call).await));
                });
            }
            Output::MakeSafe { op } => self.make_safe(op),
            Output::Fence { op, why } => {
                tracing::error!("this host is fenced: {why}");
                self.memory.flag();
                self.drop_held();
                // A deadman that ticks does it, beginning with this process.
                if self.guarded {
                    self.fence_by = Some((op, holder_now() + FENCE_PATIENCE));
                } else {
                    self.make_safe(op);
                }
            }
            Output::Kill { container } => self.kill(container),
            Output::Limit { container, message } => {
                // Without an agent nobody else asks it to end before it is killed.
                let cgroup = self.core.containers().get(&container).and_then(|entry| entry.cgroup.clone());
                if let Some(cgroup) = cgroup.filter(|_| self.core.is_open() && self.connections.is_empty()) {
                    alive::terminate(&cgroup);
                }
                self.limit(container, message);
            }
            Output::Warn(text) => tracing::warn!("{text}"),
        }
    }

    /// Notes a call of a driver. Answers whether it has to be looked first what is there.
    fn begin_call(&mut self, asked: &VolumeId, token: Token, again: bool) -> bool {
        let rows = self.core.volumes();
        self.calls.forget(rows.values().map(|row| &row.wanted.asked));
        self.queue.forget_users(rows.values().map(|row| &row.wanted.asked));
        self.calls.begin(asked, token, again)
    }

    /// Looks at what a driver has mounted, beside what this host's other volumes have by now.
    fn identify(&self, op: Op, wanted: Wanted, mount_point: String) {
        let call = MountCall {
            others: self.others(&wanted.volume),
            before: self.calls.of(&wanted.asked).before,
            suid_dev: self.parameters.allow_suid_dev.contains(&wanted.volume.driver),
            read_only: wanted.read_only,
            volume: wanted.volume,
            mount_point,
        };
        let (prober, events) = (self.prober.clone(), self.events.clone());
        tokio::spawn(async move {
            let (result, stray) = prober.identify(call).await;
            let _ = events.send(Event::Identified(op, wanted.asked, result, stray));
        });
    }

    /// What this host's other volumes have mounted.
    fn others(&self, volume: &VolumeId) -> Others {
        let others = || self.core.volumes().iter().filter(|(id, _)| *id != volume);
        let is_mounting = |phase: &Phase| matches!(phase, Phase::Mounting { .. } | Phase::Settling { .. });
        let mounting = others().filter(|(_, row)| is_mounting(&row.phase));
        let mounting = mounting.map(|(_, row)| row.wanted.asked.clone()).collect();
        let mounted = others().filter_map(|(id, row)| Some((id.clone(), row.mounted()?.clone()))).collect();
        Others { mounted, mounting }
    }

    /// A call of a driver: it is made at once, or when that driver has ended others.
    fn queue_call(&mut self, call: Output) {
        let asked = match &call {
            Output::Mount { wanted, .. } => &wanted.asked,
            Output::Settle { asked, .. } | Output::Unmount { asked, .. } => asked,
            _ => return,
        };
        let (driver, user) = self.parameters.drivers.canonical(asked).map_or_else(
            |_| (asked.driver.clone(), None),
            |volume| (volume.driver.clone(), self.user_of(&volume)),
        );
        let caller = self.queue.caller(asked, user);
        self.queue.add(driver, caller, call);
        self.call_drivers();
    }

    fn user_of(&self, volume: &VolumeId) -> Option<ContainerId> {
        self.core.volumes().get(volume)?.users.first().cloned()
    }

    fn call_drivers(&mut self) {
        while let Some((turn, call)) = self.queue.next() {
            self.call_driver(turn, call);
        }
    }

    fn call_driver(&mut self, turn: Turn, call: Output) {
        let (Output::Settle { op, .. } | Output::Mount { op, .. } | Output::Unmount { op, .. }) = call else {
            return;
        };
        if !self.may_call(op) {
            return self.queue.ended(&turn);
        }
        let looks_first = match &call {
            // Of a row of an earlier life the take-away may have been made before.
            Output::Settle { token, asked, .. } => {
                let again = self.restored.get(asked) == Some(token);
                self.begin_call(asked, *token, again)
            }
            Output::Mount { token, wanted, again, .. } => self.begin_call(&wanted.asked, *token, *again),
            _ => false,
        };
        if !looks_first {
            return self.make_call(turn, call);
        }
        let (prober, events) = (self.prober.clone(), self.events.clone());
        tokio::spawn(async move {
            let before = prober.before().await;
            // The receiver lives as long as the worker runs.
            let _ = events.send(Event::Before(turn, Box::new(call), before));
        });
    }

    /// The first call of a driver under a lease, when it is known what is there before.
    fn call_first(&mut self, turn: Turn, call: Output, before: Result<Before, Text>) {
        let (Output::Settle { op, token, asked, .. }
        | Output::Mount { op, token, wanted: Wanted { asked, .. }, .. }) = &call
        else {
            return;
        };
        let op = *op;
        let refused = match before {
            Ok(before) => {
                self.calls.found_before(asked, *token, before);
                if self.may_call(op) {
                    return self.make_call(turn, call);
                }
                None
            }
            // No driver was called.
            Err(why) => Some(MountFault::Unreachable(why)),
        };
        self.queue.ended(&turn);
        if let Some(fault) = refused {
            let input = match call {
                Output::Settle { .. } => Input::Settled(op, Err(fault)),
                _ => Input::Mounted(op, Err(fault)),
            };
            self.core.handle(holder_now(), input);
        }
        self.call_drivers();
    }

    fn make_call(&self, turn: Turn, call: Output) {
        let (Output::Settle { op, .. } | Output::Mount { op, .. } | Output::Unmount { op, .. }) = call else {
            return;
        };
        let (tell, events) = (self.tell(), self.events.clone());
        let (driver, prober) = (self.driver.clone(), self.prober.clone());
        // The receiver lives as long as the worker runs.
        let send = move |event| drop(events.send(event));
        tokio::spawn(async move {
            match call {
                Output::Settle { token, asked, .. } => {
                    let result = driver.take_away(&asked, token).await;
                    send(Event::CallEnded(turn));
                    tell(Input::Settled(op, result));
                }
                Output::Mount { token, wanted, .. } => {
                    let mounted = driver.mount(&wanted.asked, wanted.create.as_ref(), token).await;
                    send(Event::CallEnded(turn));
                    send(Event::DriverMounted(op, Box::new(wanted), mounted));
                }
                Output::Unmount { token, asked, mounted, .. } => {
                    // Else the driver would detach a disk that is mounted.
                    let unpinned = match mounted.filter(|mounted| mounted.pin.is_some()) {
                        Some(mounted) => prober.unpin(mounted).await,
                        None => Ok(()),
                    };
                    let result = match unpinned {
                        Ok(()) => driver.unmount(&asked, token).await,
                        Err(why) => Err(UnmountFault::Unreachable(why)),
                    };
                    send(Event::CallEnded(turn));
                    tell(Input::Unmounted(op, result));
                }
                _ => {}
            }
        });
    }

    /// The last look before a driver is called: time passed while the table was stored, and while others were called.
    fn may_call(&self, op: Op) -> bool {
        !self.memory.read().fenced && self.core.may_call_driver(holder_now(), op)
    }

    /// Ends every container and mount that an older life of this host left, or that this one has, and proves it.
    fn make_safe(&self, op: Op) {
        let (tell, policy) = (self.tell(), self.policy.clone());
        let begun = self.memory.read().fence_at.unwrap_or_else(holder_now);
        let settle = begun + self.parameters.settle_time;
        let path = self.checkpoint.path().to_owned();
        tokio::spawn(async move {
            let work = move || {
                let known = match read_table(&path) {
                    Stored::Table(table) => Known::of(table),
                    Stored::Missing => Known::Table(Box::default()),
                    Stored::Broken(_) => Known::Lost,
                };
                let until = holder_now().max(settle) + SAFE_WITHIN;
                FenceRunner::new(&known, None, Some(settle), policy).run_until_proved(until)
            };
            tell(Input::Safe(op, blocking(work).await));
        });
    }

    fn kill(&self, container: ContainerId) {
        let Some(entry) = self.core.containers().get(&container) else { return };
        let (cgroup, policy) = (entry.cgroup.as_deref().map(str::to_owned), self.policy.clone());
        tokio::spawn(async move {
            let name = container.clone();
            if let Err(why) = blocking(move || fence::kill_container(&policy, &container, cgroup)).await {
                tracing::warn!("container {name} could not be killed yet: {why}");
            }
        });
    }

    /// What waited for the table is of an epoch that is over.
    fn drop_held(&mut self) {
        self.queue.forget();
        for output in std::mem::take(&mut self.held) {
            if let Output::Reply(request, _) = output {
                self.reply(request, Err("this host is being fenced".into()));
            }
        }
    }

    fn reply(&mut self, request: Request, answer: Result<Answer, Text>) {
        if let Some((connection, id)) = self.requests.remove(&request) {
            self.answer(connection, id, answer);
        }
    }

    fn limit(&mut self, container: ContainerId, message: Text) {
        tracing::warn!("container {container} has to end: {message}");
        let limit = Limit { container: container.clone(), message: message.to_string() };
        let text = line(&KeeperLine::Limit { limit });
        for lines in self.connections.values() {
            let _ = lines.send(text.clone());
        }
        self.limits.insert(container, message);
        self.look_at_ending = holder_now() + POLL;
    }
}

fn settings(parameters: &KeeperParameters, machine: Machine, means: BTreeSet<Means>) -> Settings {
    Settings {
        holder: parameters.holder.clone(),
        instance: Instance(random_id().into()),
        machine: machine.id.into(),
        boot: machine.boot_id.into(),
        timing: parameters.timing,
        by_time: parameters.by_time,
        means,
        grace: parameters.grace,
        prepare_timeout: parameters.prepare_timeout,
        wait_timeout: parameters.wait_timeout,
        start_timeout: START_TIMEOUT,
        lead: LEAD,
        retry: RETRY,
        settle: parameters.settle_time,
        storage_fencing: parameters.drivers.preempt.keys().cloned().collect(),
        fencing_required: parameters.fencing_required,
    }
}

/// Whether an output promises what the table has to know first. A refusal promises nothing; nor does a beat, without
/// which the host would be fenced because a disk is full.
fn needs_table(output: &Output) -> bool {
    match output {
        Output::Reply(_, answer) => answer.is_ok(),
        Output::Commit { commit, .. } => !commit.puts.iter().all(|(key, _)| matches!(key, Key::Beat(_))),
        Output::Settle { .. } | Output::Mount { .. } | Output::Unmount { .. } => true,
        Output::Read { .. }
        | Output::Extend(_)
        | Output::Reset
        | Output::Look { .. }
        | Output::ProveIdle { .. }
        | Output::MakeSafe { .. }
        | Output::Fence { .. }
        | Output::Kill { .. }
        | Output::Limit { .. }
        | Output::Warn(_) => false,
    }
}

/// Runs what may block on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

/// Whether something of a container has run, and can be told to have ended.
fn has_run(container: &Container) -> bool {
    container.cgroup.is_some()
}

fn is_alive(container: &Container) -> bool {
    container.cgroup.as_deref().is_none_or(alive::is_alive)
}
