//! The worker receives, handles, stores, and only then carries out. Everything of it runs on one thread that never waits
//! for a file system, a device or a plugin: it has to tick for the deadman, and to beat.
//!
//! ```text
//! mod.rs        the loop, and what tells nobody: clocks, flag, deadman, containers
//! isolators.rs  what isolators ask, and are told; admission.rs: the look before each prepare
//! effects.rs    what the core asks for
//! drivers.rs    calls of drivers, in their turns; calls.rs: what was there before them
//! etcd.rs       reads, commits and watches
//! ```

mod admission;
mod calls;
mod drivers;
mod effects;
mod etcd;
mod isolators;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shared::clock::{Reading as Clocks, SuspendWatch, holder_now};
use shared::exchange_io::Exchange;
use shared::protocol::exchange::{Instance, Means, Outcome};
use shared::protocol::holder::{
    Answer, Container, Core, Input, Life, MountFault, MountedVolume, Output, Phase, Settings, Volume, Wanted,
};
use shared::protocol::timing::LEAD;
use shared::protocol::{Now, Op, Request, Text};
use shared::record::Token;
use shared::store::LeaseStore;
use shared::volume::{ContainerId, VolumeId};
use tokio::sync::{Semaphore, mpsc};

use self::admission::{Admission, Look};
use self::calls::Calls;
use self::effects::needs_table;
use self::etcd::{Etcd, Hearing};
use super::checkpoint::{Checkpoint, Machine, StartError};
use super::deadman::DeadmanWatch;
use super::driver::VolumeDriver;
use super::fence::Policy;
use super::limits::{DriverCalls, Turn};
use super::links::Links;
use super::means::{Found, MeansWatch};
use super::mounts::{self, Before, Proof};
use super::probe::Prober;
use super::server::{ConnectionId, Lines};
use super::shared_memory::SharedMemory;
use super::volume_rules::VolumeRules;
use super::{alive, blocking, random_id};
use crate::parameters::KeeperParameters;
use crate::wire::Call;

/// How soon a table that could not be stored is stored again.
const STORE_AGAIN: Duration = Duration::from_millis(250);

/// How often the containers' processes are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How often it is looked whether a volume's disk is gone or its file system has turned read-only: by kernel tables alone.
const AILS_AGAIN: Duration = Duration::from_secs(5);

/// How often the worker looks at clock, flag and deadman. A kernel timer runs on a clock that can be slewed, and so is
/// trusted for no longer.
const POLL: Duration = Duration::from_millis(50);

/// So many events are taken in together, and for so long, before what they ask for is done.
const TOGETHER: usize = 32;
const TOGETHER_FOR: Duration = Duration::from_millis(5);

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
    /// A driver has not answered a call, for this volume as it was asked.
    CallUnanswered(Turn, VolumeId),
    /// Such a call can happen no more.
    CallSettled(Turn, VolumeId),
    /// It was looked at what comes before prepares.
    LookedBefore(Box<Look>),
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
    admission: Admission,
    prober: Prober,
    links: Option<Links>,
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
    hearing: Hearing,
    events: mpsc::UnboundedSender<Event>,
    received: mpsc::UnboundedReceiver<Event>,
    /// Taken in before all else: a beat's answer that waits behind what tenants cause would fence the host.
    from_etcd: mpsc::UnboundedReceiver<Event>,
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
        let (to_worker, from_etcd) = mpsc::unbounded_channel();
        let mut table = checkpoint.load()?;
        for root in parameters.mount_roots.iter().chain(&parameters.drivers.directories()) {
            if let Err(why) = admission::close(root) {
                tracing::warn!("{why}");
            }
        }
        if let Some(Err(why)) = parameters.volume_rules.as_deref().map(VolumeRules::read) {
            tracing::error!("{why}; no container gets a volume here until they can");
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
        let links = parameters.link_directory.clone().and_then(|directory| {
            let kept = Links::keep(directory, parameters.mount_roots.clone());
            kept.inspect_err(|error| tracing::warn!("no links of volumes are kept: {error}")).ok()
        });
        Ok(Self {
            core,
            checkpoint,
            memory,
            guard,
            policy: parameters.policy(),
            guarded: true,
            means,
            etcd: Etcd::new(exchange, to_worker),
            driver,
            queue: DriverCalls::new(parameters.driver_calls_max, parameters.calls_max_of()),
            admission: Admission::new(),
            prober: Prober::new(parameters.places(), parameters.policy().program),
            links,
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
            hearing: Hearing::default(),
            events,
            received,
            from_etcd,
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
            let next = async {
                tokio::select! {
                    biased;
                    event = self.from_etcd.recv() => event,
                    event = self.received.recv() => event,
                }
            };
            if let Ok(Some(event)) = tokio::time::timeout(due, next).await {
                self.handle(event);
                self.take_in_what_waits(holder_now());
                // What was decided is done before the flag is looked at: a new epoch begins by clearing it.
                self.go_on();
            }
            self.poll();
        }
    }

    /// Takes in some of what came meanwhile, so that the table is stored once for all of it.
    fn take_in_what_waits(&mut self, began: Now) {
        for _ in 0..TOGETHER {
            if holder_now() >= began + TOGETHER_FOR {
                return;
            }
            let Ok(event) = self.from_etcd.try_recv().or_else(|_| self.received.try_recv()) else { return };
            self.handle(event);
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
            Event::CallUnanswered(turn, asked) => {
                let settle = self.parameters.settle_time(&asked.driver).as_secs();
                tracing::warn!(
                    "the driver has not ended a call for volume {asked}: for {settle} s, until that has settled \
                     (settle_time), it has one call less than driver_calls_max, but for that volume and for Unmounts"
                );
                self.queue.unanswered(&turn, asked);
                self.call_drivers();
            }
            Event::CallSettled(turn, asked) => {
                self.queue.settled(&turn, &asked);
                self.call_drivers();
            }
            Event::Connected(id, lines) => self.connected(id, lines),
            Event::Disconnected(id) => self.disconnected(id),
            Event::LookedBefore(look) => self.looked_before(*look),
            Event::Call(connection, call_id, call) => self.call(connection, call_id, call),
        }
    }

    /// Stores the table, and carries out what the core asks for: the table before the effect (L8).
    fn go_on(&mut self) {
        loop {
            self.unstored |= self.core.table_changed();
            self.store();
            let output = if self.unstored { None } else { self.held.pop_front() };
            let Some(output) = output.or_else(|| self.core.poll_output()) else { break };
            match (output, self.store_fault.clone()) {
                // Who waits for a yes that cannot be stored is told so: Mesos cleans up after it.
                (Output::Reply(request, Ok(Answer::Prepared { .. } | Answer::Isolated)), Some(why))
                    if self.unstored =>
                {
                    self.carry_out(Output::Reply(request, Err(why)));
                }
                (output, _) if self.unstored && needs_table(&output) => self.held.push_back(output),
                (output, _) => self.carry_out(output),
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
        let change = self.core.table_change();
        match self.checkpoint.store(change, || self.core.table()) {
            Ok(()) => {
                self.unstored = false;
                if let Some(links) = &mut self.links {
                    let at = |volume: &Volume| volume.mounted().map(|mounted| mounted.given().clone());
                    let volumes = self.core.volumes().iter();
                    links.set(volumes.filter_map(|(id, volume)| Some((id.clone(), at(volume)?))).collect());
                }
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
        let news = self.hearing.take(matches!(input, Input::Committed(..)), silent.is_some());
        match silent {
            Some(why) if news => tracing::warn!("etcd does not answer: {why}"),
            None if news => tracing::info!("etcd answers again"),
            _ => {}
        }
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
        settle_of: parameters.settle_time_of(),
        storage_fencing: parameters.drivers.preempt.keys().cloned().collect(),
        fencing_required: parameters.fencing_required,
    }
}

/// Whether something of a container has run, and can be told to have ended.
fn has_run(container: &Container) -> bool {
    container.cgroup.is_some()
}

fn is_alive(container: &Container) -> bool {
    container.cgroup.as_deref().is_none_or(alive::is_alive)
}
