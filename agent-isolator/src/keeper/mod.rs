//! The keeper: one process per agent host, which owns the host's session, leases, driver calls and
//! mounts. It outlives the agent, so that an agent's restart changes nothing for running tasks.
//!
//! This file is the shell around [`shared::holder::Core`]: receive, handle, store, then carry out.
//! Everything runs on one thread, but for what may block (`mounts`).

pub mod alive;
pub mod checkpoint;
pub mod deadman;
pub mod driver;
pub mod fence;
mod lease_task;
pub mod leases;
pub mod log;
mod mount_table;
pub mod mounts;
pub mod process;
pub mod server;
pub mod shared_memory;
pub mod stored_table;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use shared::holder::{
    Answer, Container, Core, FoundLease, Input, Limits, MountFault, Now, Output, Request, Wanted,
};
use shared::store::LeaseStore;
use shared::volume::{ContainerId, NameError, VolumeId};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::checkpoint::{Checkpoint, StartError};
use self::driver::VolumeDriver;
use self::lease_task::{LeaseCall, Recorded, keep_leases};
use self::leases::{Leases, Noted};
use self::server::{ConnectionId, Lines};
use crate::parameters::KeeperParameters;
use crate::wire::{self, Call, KeeperLine, Limit, line};

/// How soon a table that could not be stored is stored again.
const STORE_AGAIN: Duration = Duration::from_millis(250);

/// How often the containers' processes are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A random id, from the kernel.
///
/// # Panics
/// When /proc is not mounted: nothing of this program works then.
#[must_use]
pub fn random_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("/proc is mounted");
    id.trim().to_owned()
}

/// What happens in the keeper.
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
    /// The session was opened.
    Opened {
        /// The installation's id.
        cluster: Option<String>,
        /// The leases that are its own.
        found: BTreeMap<VolumeId, FoundLease>,
    },
}

/// The running keeper.
pub struct Keeper<D> {
    parameters: KeeperParameters,
    core: Core,
    checkpoint: Checkpoint,
    /// Outputs that wait for the table to be stored.
    held: VecDeque<Output>,
    store_again: Option<Instant>,
    /// When the containers' processes are looked at again.
    look_again: Instant,
    unstored: Option<String>,
    driver: D,
    started: Instant,
    events: mpsc::UnboundedSender<Event>,
    received: mpsc::UnboundedReceiver<Event>,
    lease_calls: mpsc::UnboundedSender<LeaseCall>,
    connections: BTreeMap<ConnectionId, Lines>,
    requests: BTreeMap<Request, (ConnectionId, u64)>,
    next_request: u64,
    /// Told to every isolator that connects, until the container is cleaned up.
    limits: BTreeMap<ContainerId, String>,
}

impl<D: VolumeDriver + Clone + Send + Sync + 'static> Keeper<D> {
    /// A keeper that goes on from the stored table. Opens its session in the background.
    ///
    /// # Errors
    /// When the table is another holder's.
    pub fn start<S: LeaseStore>(
        parameters: KeeperParameters,
        mut checkpoint: Checkpoint,
        leases: Leases<S>,
        driver: D,
    ) -> Result<Self, StartError> {
        let (events, received) = mpsc::unbounded_channel();
        let (lease_calls, calls) = mpsc::unbounded_channel();
        let table = checkpoint.load()?;
        let noted = Noted {
            cluster: checkpoint.cluster().map(str::to_owned),
            volumes: table.volumes().cloned().collect(),
        };
        tokio::spawn(keep_leases(leases, noted, calls, events.clone(), parameters.mount_roots.clone()));
        let limits = Limits { prepare: parameters.prepare_timeout, settle: parameters.settle_time };
        Ok(Self {
            core: Core::new(table, limits),
            parameters,
            checkpoint,
            held: VecDeque::new(),
            store_again: None,
            look_again: Instant::now(),
            unstored: None,
            driver,
            started: Instant::now(),
            events,
            received,
            lease_calls,
            connections: BTreeMap::new(),
            requests: BTreeMap::new(),
            next_request: 0,
            limits: BTreeMap::new(),
        })
    }

    /// Where connections send their events.
    #[must_use]
    pub fn events(&self) -> mpsc::UnboundedSender<Event> {
        self.events.clone()
    }

    fn now(&self) -> Now {
        self.started.elapsed()
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        loop {
            let deadline = self.core.next_deadline().map(|deadline| self.started + deadline);
            let look = self.core.containers().values().any(has_run).then_some(self.look_again);
            let wake = [deadline, self.store_again, look].into_iter().flatten().min();
            let event = match wake {
                Some(wake) => tokio::time::timeout_at(wake, self.received.recv()).await.ok().flatten(),
                None => self.received.recv().await,
            };
            match event {
                Some(event) => self.handle(event),
                None => self.core.handle(self.now(), Input::Tick),
            }
            if self.look_again <= Instant::now() {
                self.look_at_containers();
            }
            self.store_then_carry_out();
        }
    }

    /// Ends the use of volumes by containers of which nothing runs any more.
    fn look_at_containers(&mut self) {
        self.look_again = Instant::now() + LOOK_AGAIN;
        let gone = |(_, entry): &(&ContainerId, &Container)| has_run(entry) && !is_alive(entry);
        let ended: Vec<_> = self.core.containers().iter().filter(gone).map(|(id, _)| id.clone()).collect();
        for container in ended {
            self.core.handle(self.now(), Input::Ended { container });
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Core(input) => {
                self.core.handle(self.now(), input);
            }
            Event::Opened { cluster, found } => {
                tracing::info!(
                    "the session of holder {} is open; {} leases are its own",
                    self.parameters.holder,
                    found.len()
                );
                if let Some(cluster) = cluster {
                    self.checkpoint.belongs_to(cluster);
                }
                self.core.handle(self.now(), Input::Opened { found });
            }
            Event::Connected(id, lines) => {
                for (container, message) in &self.limits {
                    let limit = Limit { container: container.clone(), message: message.clone() };
                    let _ = lines.send(line(&KeeperLine::Limit { limit }));
                }
                self.connections.insert(id, lines);
            }
            Event::Disconnected(id) => {
                self.connections.remove(&id);
                self.requests.retain(|_, (connection, _)| *connection != id);
            }
            Event::Call(connection, call_id, call) => self.call(connection, call_id, call),
        }
    }

    fn call(&mut self, connection: ConnectionId, call_id: u64, call: Call) {
        if let Call::Hello { version, parameters } = &call {
            let answer = self.hello(*version, parameters).map(|()| Answer::Done);
            return self.answer(connection, call_id, answer);
        }
        self.next_request += 1;
        let request = Request(self.next_request);
        self.requests.insert(request, (connection, call_id));
        let input = match call {
            Call::Hello { .. } => return,
            Call::Prepare { container, agent, agent_id, volumes } => {
                if let Some(why) = &self.unstored {
                    let why = why.clone();
                    self.requests.remove(&request);
                    return self.answer(connection, call_id, Err(why));
                }
                if let Err(why) = self.check_mount_roots() {
                    self.requests.remove(&request);
                    return self.answer(connection, call_id, Err(why));
                }
                let volumes = match self.wanted(volumes) {
                    Ok(volumes) => volumes,
                    Err(why) => {
                        self.requests.remove(&request);
                        return self.answer(connection, call_id, Err(why));
                    }
                };
                self.limits.remove(&container);
                Input::Prepare { request, container, agent, agent_id, volumes }
            }
            Call::Isolate { agent, container, pid } => {
                Input::Isolate { request, agent, container, pid, cgroup: alive::freezer_cgroup(pid) }
            }
            Call::Cleanup { agent, container } => {
                self.limits.remove(&container);
                Input::Cleanup { request, agent, container }
            }
            Call::Recover { agent, mut known, orphans } => {
                // An agent with another runtime directory or cgroups root may not see what still runs.
                let unseen = |(id, entry): &(&ContainerId, &Container)| {
                    entry.agent == agent
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
                Input::Recover { request, agent, known, orphans }
            }
        };
        self.core.handle(self.now(), input);
    }

    /// The volumes by their canonical names.
    fn wanted(&self, volumes: Vec<wire::VolumeCall>) -> Result<Vec<Wanted>, String> {
        let wanted = |call: wire::VolumeCall| {
            let volume = self.parameters.naming.canonical(&call.volume).map_err(|fault| match fault {
                NameError::LongDriver { .. } => format!("the driver name {} {fault}", call.volume.driver),
                _ => format!("the volume name {:?} {fault}", call.volume.name.as_str()),
            })?;
            let mut asked = call.volume;
            // A plugin's long name stands in no socket's name.
            if asked.driver.as_str().contains('/') {
                asked.driver = volume.driver.clone();
            }
            Ok(Wanted { volume, asked, create: call.create })
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

    /// Looked at for each prepare: somebody may mend it, or break it, while the keeper runs.
    fn check_mount_roots(&self) -> Result<(), String> {
        self.parameters.mount_roots.iter().try_for_each(|root| mounts::check_root(root))
    }

    fn answer(&self, connection: ConnectionId, id: u64, answer: Result<Answer, String>) {
        let Some(lines) = self.connections.get(&connection) else { return };
        let reply = match answer {
            Ok(Answer::Prepared { mount_points }) => {
                KeeperLine::Answer { id, answer: wire::Answer::Prepared { mount_points } }
            }
            Ok(Answer::Done) => KeeperLine::Answer { id, answer: wire::Answer::Done },
            Err(refused) => KeeperLine::Refused { id, refused },
        };
        // A connection that has just ended: the isolator asks again over the next one.
        let _ = lines.send(line(&reply));
    }

    /// The table before the effect.
    fn store_then_carry_out(&mut self) {
        self.held.extend(std::iter::from_fn(|| self.core.poll_output()));
        if self.core.table_changed() || self.unstored.is_some() {
            match self.checkpoint.store(&self.core.table()) {
                Ok(()) => {
                    if self.unstored.take().is_some() {
                        tracing::info!("the table in {} is stored again", self.checkpoint.path().display());
                    }
                    self.store_again = None;
                }
                Err(error) => {
                    let path = self.checkpoint.path().display();
                    let why = format!("the keeper cannot store its table in {path}: {error}");
                    if self.unstored.is_none() {
                        tracing::error!("{why}; nothing is mounted or unmounted until it can");
                    }
                    self.core.handle(self.now(), Input::Unstored { why: why.clone() });
                    self.held.extend(std::iter::from_fn(|| self.core.poll_output()));
                    self.unstored = Some(why);
                    self.store_again = Some(Instant::now() + STORE_AGAIN);
                }
            }
        }
        if self.unstored.is_none() {
            for output in std::mem::take(&mut self.held) {
                self.carry_out(output);
            }
        } else {
            // A refusal promises nothing, and needs no note; nor does the end of a container.
            let (now, later) = std::mem::take(&mut self.held).into_iter().partition(|output| {
                matches!(output, Output::Reply(_, Err(_)) | Output::Warn(_) | Output::Limit { .. })
            });
            self.held = later;
            let now: VecDeque<Output> = now;
            now.into_iter().for_each(|output| self.carry_out(output));
        }
    }

    fn carry_out(&mut self, output: Output) {
        let events = self.events.clone();
        let tell = move |input| {
            // The receiver lives as long as the keeper runs.
            let _ = events.send(Event::Core(input));
        };
        let ask = |call| {
            if self.lease_calls.send(call).is_err() {
                tracing::error!("the lease task has ended");
            }
        };
        match output {
            Output::Reply(request, answer) => {
                if let Some((connection, id)) = self.requests.remove(&request) {
                    self.answer(connection, id, answer);
                }
            }
            Output::Acquire { op, volumes, container, agent_id } => {
                ask(LeaseCall::Acquire { op, volumes, container, agent_id });
            }
            Output::Record { op, volume, state, containers, mount_point } => {
                let record = Recorded { state, containers, mount_point };
                ask(LeaseCall::Record { op, volume, record });
            }
            Output::Release { op, volume } => ask(LeaseCall::Release { op, volume }),
            Output::Mount { op, token, wanted } => {
                let (driver, roots) = (self.driver.clone(), self.parameters.mount_roots.clone());
                tokio::spawn(async move {
                    let mounted = driver.mount(&wanted.asked, wanted.create.as_ref(), token).await;
                    let result = match mounted {
                        Ok(path) => {
                            blocking(move || mounts::identify(&path, &roots)).await.map_err(|unusable| {
                                MountFault::Unusable { why: unusable.why, mounted: unusable.mounted }
                            })
                        }
                        Err(fault) => Err(fault),
                    };
                    tell(Input::Mounted(op, result));
                });
            }
            Output::Unmount { op, token, asked } => {
                let driver = self.driver.clone();
                tokio::spawn(async move {
                    tell(Input::Unmounted(op, driver.unmount(&asked, token).await));
                });
            }
            Output::Look { op, mounted } => {
                tokio::spawn(async move {
                    tell(Input::Seen(op, blocking(move || mounts::look(&mounted)).await));
                });
            }
            Output::Find { op, mount_point } => {
                let roots = self.parameters.mount_roots.clone();
                tokio::spawn(async move {
                    let found = blocking(move || mounts::look_up(&mount_point, &roots)).await;
                    let found = found.map(|found| found.map(|(mounted, in_use)| (Box::new(mounted), in_use)));
                    tell(Input::Found(op, found.map_err(|error| error.to_string())));
                });
            }
            Output::ProveIdle { op, asked, mounted } => {
                let roots = self.parameters.mount_roots.clone();
                tokio::spawn(async move {
                    let proof = blocking(move || mounts::prove_idle(&asked, mounted.as_ref(), &roots)).await;
                    tell(Input::Idle(op, proof));
                });
            }
            Output::Limit { container, message } => {
                let limit = Limit { container: container.clone(), message: message.clone() };
                let text = line(&KeeperLine::Limit { limit });
                for lines in self.connections.values() {
                    let _ = lines.send(text.clone());
                }
                self.limits.insert(container, message);
            }
            Output::Warn(text) => tracing::warn!("{text}"),
        }
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
