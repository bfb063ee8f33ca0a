//! The deadman process: restarts the worker, and fences this host when the deadline passes that the worker extends, whatever has
//! become of the worker (L16). It carries out what [`shared::protocol::deadman::Deadman`] decides.
//!
//! ```text
//! mod.rs           the process: its start, its loop
//! predecessors.rs  the lock, and the end of older keepers
//! beside.rs        the worker's side: ticks, and another deadman when this one dies
//! guard.rs         the process that is left when all of these are killed at once
//! keep_guard.rs    the deadman's side of that: starts it, replaces it, ends it
//! watchdog.rs      a watchdog device, where there is one
//! ```
//!
//! ```text
//! <run_directory>/
//!   deadman.lock     held by the deadman while it lives
//!   deadline         what worker and deadman share (shared_memory.rs)
//!   table.json       the table that tells what is to be fenced (stored_table.rs)
//!   deadman.log      what it has to say
//! ```
//!
//! One thread, no runtime, its memory locked. It polls every 50 ms, by a clock that nobody can slew. In its loop there is no call
//! that a volume, etcd, a driver or a reader of its log could keep: it reads /proc and the run directory, both in memory, and starts
//! processes from its own program, which is locked in memory, too. Everything that may hang is in those.
//!
//! All processes of a keeper are in the session that its first deadman opens: that is how an older keeper's are found.

mod beside;
mod guard;
mod keep_guard;
mod predecessors;
mod watchdog;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use shared::clock::{Reading, SuspendWatch};
use shared::protocol::deadman::{Deadman, Input, Output, WORKER_SILENCE};
use shared::protocol::holder::Deadline;
use shared::protocol::{Now, Text};

pub use self::beside::{DEADMAN_SILENCE, DeadmanWatch};
pub use self::guard::{GUARD_LOG, GUARD_SILENCE, run_guard};
use self::keep_guard::GuardKeeper;
pub use self::predecessors::LOCK;
use self::predecessors::{lock, others};
pub use self::watchdog::{
    Watchdog, check as check_watchdog, is_armed as watchdog_is_armed, timeout_of as watchdog_timeout,
};
use super::fence::{
    FenceRunner, Known, Policy, Pool, Priority, Progress, before_all_others, process_in_words,
};
use super::process::{ProcessId, own_session};
use super::shared_memory::{SharedMemory, SharedMemoryError};
use super::stored_table::{Stored, TABLE, read_table};

/// The name of the shared memory in the run directory.
pub const DEADLINE: &str = "deadline";

const POLL: Duration = Duration::from_millis(50);

/// While a fence or the end of a process is waited for.
const POLL_CLOSELY: Duration = Duration::from_millis(5);

/// Between two starts of a worker: one that ends at once is no reason to start twenty a second.
const BETWEEN_STARTS: Duration = Duration::from_millis(500);

/// A killed process that is not gone after this hangs in the kernel: a fence that is due begins without it, and is not called
/// proved before it has gone and all was looked at again.
const HANGS: Duration = Duration::from_millis(200);

/// Between two looks at a strike's answers.
const STRIKE_POLL: Duration = Duration::from_millis(1);

/// A strike is not waited for any longer: the fence goes on with what it has not done.
const STRIKE: Duration = Duration::from_millis(400);

/// For so long a deadman beside a worker waits for the lock of one that it killed.
const TAKE_OVER: Duration = Duration::from_secs(2);

/// What the deadman is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The run directory, on a file system that a reboot empties.
    pub directory: PathBuf,
    /// Arguments to start this program with as a worker.
    pub worker: Vec<OsString>,
    /// Arguments to start this program with as a guard.
    pub guard: Vec<OsString>,
    /// The guard's cgroup in each hierarchy.
    pub cgroup: String,
    /// What a fence may do.
    pub policy: Policy,
    /// K, where the table does not tell it.
    pub kill: Duration,
    /// A watchdog device.
    pub watchdog: Option<PathBuf>,
}

/// Why there is no deadman.
#[derive(Debug, thiserror::Error)]
pub enum DeadmanError {
    /// Another one runs.
    #[error("another keeper runs here: it holds the lock in {}", directory.display())]
    Running {
        /// The run directory.
        directory: PathBuf,
    },
    /// Something of its own cannot be used.
    #[error("{what} cannot be used")]
    File {
        /// What.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The shared memory cannot.
    #[error("the shared deadline cannot be used")]
    Memory(#[from] SharedMemoryError),
}

/// Runs a keeper: opens a session, ends every process of an older keeper, starts a worker and guards it. Returns when it was asked
/// to stop and nothing is held.
///
/// # Errors
/// When another keeper runs, or the run directory cannot be used.
pub fn run(settings: Settings) -> Result<(), DeadmanError> {
    let lock = take_lock(&settings)?
        .ok_or_else(|| DeadmanError::Running { directory: settings.directory.clone() })?;
    let shared = SharedMemory::create(&settings.directory.join(DEADLINE))?;
    let pool = Pool::new(settings.policy.program.clone());
    let mut guarding = Guarding::new(settings, shared, lock, Part::Keeper, pool)?;
    // The old session's processes are found by the old session's number: only when all are gone is it forgotten.
    guarding.end_older_keeper();
    let own = ProcessId::own();
    guarding.shared.set_session(own_session(), own.map_or(0, |own| own.started));
    guarding.shared.set_deadman(own);
    guarding.shared.set_worker(None);
    guarding.shared.set_stop(false);
    guarding.guard();
    Ok(())
}

/// Runs a deadman in place of one that died or hangs, beside the worker that started it.
///
/// # Errors
/// When there is one that ticks, or the run directory cannot be used.
pub fn run_beside(settings: Settings) -> Result<(), DeadmanError> {
    let running = || DeadmanError::Running { directory: settings.directory.clone() };
    let shared = SharedMemory::open(&settings.directory.join(DEADLINE))?;
    let began = Reading::take().holder();
    if beside::ticks(&shared, began) {
        return Err(running());
    }
    let older = shared.deadman().filter(|older| older.pid != std::process::id());
    let lock = loop {
        // It may be stopped, not dead, and then holds the lock.
        older.into_iter().for_each(ProcessId::kill);
        match take_lock(&settings)? {
            Some(lock) if older.is_none_or(|older| !older.runs()) => break lock,
            _ if Reading::take().holder() >= began + TAKE_OVER => return Err(running()),
            _ => std::thread::sleep(POLL_CLOSELY),
        }
    };
    shared.set_deadman(ProcessId::own());
    let pool = Pool::new(settings.policy.program.clone());
    let mut guarding = Guarding::new(settings, shared, lock, Part::Beside, pool)?;
    guarding.guard();
    Ok(())
}

fn take_lock(settings: &Settings) -> Result<Option<File>, DeadmanError> {
    let what = || format!("the run directory {}", settings.directory.display());
    lock(&settings.directory).map_err(|source| DeadmanError::File { what: what(), source })
}

/// As what a deadman's work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// By a new keeper.
    Keeper,
    /// By one that a worker has started beside it.
    Beside,
    /// By the guard, until the fence is proved: no worker is started.
    Guard,
}

/// Keeps this process from what an overloaded host does to it.
fn undisturbed(name: &str) {
    // What was paged out could not be read back when the disk hangs.
    let flags = rustix::mm::MlockAllFlags::CURRENT | rustix::mm::MlockAllFlags::FUTURE;
    if let Err(error) = rustix::mm::mlockall(flags) {
        tracing::warn!("the {name}'s memory could not be locked: {error}");
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        tracing::warn!("the {name} could not be kept from the kernel's killing for want of memory: {error}");
    }
    if let Err(error) = before_all_others(Priority::Deadman) {
        tracing::warn!("the {name} has no real-time priority, but the greatest usual weight: {error}");
    }
}

struct Guarding {
    settings: Settings,
    part: Part,
    shared: SharedMemory,
    _lock: File,
    core: Deadman,
    suspends: SuspendWatch,
    watchdog: Option<Watchdog>,
    child: Option<Child>,
    /// The last tick of the worker that was told to the core.
    ticked: Now,
    /// Since when the worker and its helpers are on their way out.
    ending: Option<Now>,
    /// A fence began while some of them hung.
    hanging: bool,
    /// It was said that some of them hang.
    said_hanging: bool,
    /// Processes of an older keeper, of another session, that hang.
    hung: Vec<ProcessId>,
    /// All of an older keeper's were found gone, and none of this one has been started since.
    none_left: bool,
    start_at: Option<Now>,
    started: Option<Now>,
    fence: Option<FenceRunner>,
    /// The helpers, but for those of a fence under way.
    pool: Pool,
    /// The generation that was struck for.
    struck: Option<u64>,
    /// The generation whose fence is proved.
    proved: Option<u64>,
    said: Option<Text>,
    guard: GuardKeeper,
    /// The guard's part is done.
    over: bool,
}

impl Guarding {
    fn new(
        settings: Settings,
        shared: SharedMemory,
        lock: File,
        part: Part,
        pool: Pool,
    ) -> Result<Self, DeadmanError> {
        undisturbed("deadman");
        let open = |path: &PathBuf| {
            let what = format!("the watchdog {}", path.display());
            Watchdog::open(path).map_err(|source| DeadmanError::File { what, source })
        };
        let watchdog = settings.watchdog.as_ref().map(open).transpose()?;
        let now = Reading::take().holder();
        let core = match part {
            Part::Keeper => Deadman::new(now),
            Part::Beside | Part::Guard => Deadman::beside_worker(now),
        };
        Ok(Self {
            guard: GuardKeeper::new(part == Part::Keeper),
            over: false,
            pool,
            settings,
            part,
            shared,
            _lock: lock,
            core,
            suspends: SuspendWatch::default(),
            watchdog,
            child: None,
            ticked: Now::ZERO,
            ending: (part == Part::Keeper).then_some(now),
            hanging: false,
            said_hanging: false,
            hung: Vec::new(),
            none_left: false,
            start_at: None,
            started: None,
            fence: None,
            struck: None,
            proved: None,
            said: None,
        })
    }

    /// Kills every process of an older keeper, and waits until they are gone, or until a fence is due.
    fn end_older_keeper(&mut self) {
        loop {
            let now = self.sense();
            let left = self.kill_others();
            if left.is_empty() {
                self.none_left = true;
                return;
            }
            let hangs = self.ending.is_some_and(|since| now >= since + HANGS);
            if hangs {
                self.say_hanging(&left);
            }
            if hangs && is_due(self.shared.read(), now) {
                self.hung = left;
                return;
            }
            std::thread::sleep(POLL_CLOSELY);
        }
    }

    /// Who was killed and does not end keeps the next worker out: without a word nobody would know what the keeper waits for.
    fn say_hanging(&mut self, left: &[ProcessId]) {
        if !std::mem::replace(&mut self.said_hanging, true) {
            let who: Vec<_> = left.iter().map(|process| process_in_words(process.pid)).collect();
            tracing::warn!(
                "{} hangs in the kernel; no worker is started before it ends, and the host is fenced when its time is over",
                who.join(", ")
            );
        }
    }

    /// Kills all processes of this keeper, or of an older one, but this; who has not ended yet.
    fn kill_others(&mut self) -> Vec<ProcessId> {
        self.hung.retain(|process| process.runs());
        loop {
            self.strike_if_due(Reading::take().holder());
            // Without an answer there is to be struck, which is once: the next look is one to the end.
            if let Some(left) = self.look_for_others() {
                left.iter().for_each(|process| process.kill());
                return left;
            }
        }
    }

    /// All of them. Among a hundred thousand processes that takes seconds, in which this ticks, and which end, without an answer, when
    /// there is to be struck.
    fn look_for_others(&self) -> Option<Vec<ProcessId>> {
        let mut own = self.pool.pids();
        own.extend(self.fence.iter().flat_map(FenceRunner::helpers));
        let is_others = |process: &ProcessId| !own.contains(&process.pid);
        let goes_on = || {
            let now = Reading::take().holder();
            self.tick(now);
            self.to_strike(now).is_none()
        };
        let mut seen = HashSet::new();
        let mut look = || {
            let all = others(&self.shared, &mut seen, goes_on)?.into_iter().chain(self.hung.iter().copied());
            Some(all.filter(is_others).collect::<Vec<_>>())
        };
        let left = look()?;
        // One look can miss a process that was forked during it, by one that ended right after. It has a pid that was not seen: nobody
        // joins a session later, and before a pid is given away again the kernel goes through all others.
        if left.is_empty() { look() } else { Some(left) }
    }

    fn tick(&self, now: Now) {
        self.shared.tick_deadman(now);
        if self.part == Part::Guard {
            self.shared.tick_guard(now);
        }
    }

    /// Looks at the clock, ticks and pets.
    fn sense(&mut self) -> Now {
        let reading = Reading::take();
        let now = reading.holder();
        self.tick(now);
        let deadline = self.shared.read();
        if let Some(slept) = self.suspends.observe(reading).filter(|_| deadline.fence_at.is_some()) {
            // It did not write meanwhile; but what it had handed to the block layer goes out now (L20).
            tracing::error!("this host was suspended for {slept:?} while it held volumes: it is fenced");
            self.shared.flag();
        }
        let safe = !is_due(deadline, now) || self.proved == Some(deadline.generation) && self.fence.is_none();
        if let Some(watchdog) = self.watchdog.as_mut().filter(|_| safe) {
            watchdog.pet();
        }
        now
    }

    fn guard(&mut self) {
        loop {
            let now = self.sense();
            let deadline = self.shared.read();
            if self.shared.stop() && deadline.fence_at.is_none() && !deadline.fenced {
                return self.stop();
            }
            let tick = self.shared.worker_tick();
            if tick != self.ticked {
                self.ticked = tick;
                if now < tick + WORKER_SILENCE {
                    self.tell(now, Input::WorkerTicked);
                }
            }
            // Before it is looked who of the worker's still lives, which takes long among many processes.
            self.strike_if_due(now);
            self.watch_worker(now);
            self.end_worker(now);
            self.go_on_fencing(now);
            // Before the worker is gone there is nothing that only time would bring about.
            if self.ending.is_none() {
                self.tell(now, Input::Tick);
            } else if is_due(self.shared.read(), now) {
                self.flag();
            }
            if self.over {
                return;
            }
            // While others of this session are killed, one that has yet to leave it would be killed with them.
            if self.part != Part::Guard && self.ending.is_none() {
                self.guard.keep(now, &self.shared, &self.settings.guard);
            }
            self.start_worker(now);
            if self.fence.is_none() && self.ending.is_none() {
                self.pool.tend(now, &self.settings.directory.join(TABLE), &self.settings.policy);
            }
            let busy = self.fence.is_some() || self.ending.is_some();
            std::thread::sleep(if busy { POLL_CLOSELY } else { POLL });
        }
    }

    fn tell(&mut self, now: Now, input: Input) {
        self.core.handle(now, self.shared.read(), input);
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Flag => self.flag(),
                Output::Kill => {
                    tracing::warn!("the worker is killed");
                    self.ending = Some(now);
                    self.strike_if_due(now);
                }
                Output::Fence => self.begin_fence(now),
                Output::Start if self.part == Part::Guard => self.over = true,
                Output::Start => {
                    let soonest = self.started.map_or(now, |started| started + BETWEEN_STARTS);
                    self.start_at = Some(soonest.max(now));
                }
            }
        }
    }

    /// Sees that the worker has ended by itself.
    fn watch_worker(&mut self, now: Now) {
        if self.reap_worker() {
            self.ending.get_or_insert(now);
        }
        let gone = self.child.is_none() && !self.shared.worker().is_some_and(ProcessId::runs);
        if gone && self.start_at.is_none() && self.fence.is_none() {
            self.ending.get_or_insert(now);
        }
    }

    /// Whether the worker has ended, which is told once.
    fn reap_worker(&mut self) -> bool {
        let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        if let Some(status) = ended {
            self.child = None;
            tracing::warn!("the worker has ended: {status}");
        }
        ended.is_some()
    }

    /// Kills the worker and all its helpers until none is left.
    fn end_worker(&mut self, now: Now) {
        let Some(since) = self.ending else { return };
        let left = if std::mem::take(&mut self.none_left) { Vec::new() } else { self.kill_others() };
        // Seen later, its end would be taken for another one.
        let _told = self.reap_worker();
        let is_over = left.is_empty();
        if is_over {
            self.said_hanging = false;
        } else if now >= since + HANGS {
            self.say_hanging(&left);
        }
        let cannot_wait = is_due(self.shared.read(), now) && now >= since + HANGS;
        if is_over || cannot_wait {
            self.hanging = !is_over;
            self.ending = None;
            self.tell(now, Input::WorkerGone);
        }
    }

    fn flag(&self) {
        if !self.shared.read().fenced {
            tracing::error!("the deadline has passed: this host is fenced");
        }
        self.shared.flag();
    }

    /// Sets the flag and strikes, once for each generation, when the deadline has passed: whoever has ended the worker.
    fn strike_if_due(&mut self, now: Now) {
        if let Some(generation) = self.to_strike(now) {
            self.struck = Some(generation);
            self.flag();
            self.strike();
        }
    }

    /// The generation for which there is to be struck now.
    fn to_strike(&self, now: Now) -> Option<u64> {
        let deadline = self.shared.read();
        let strikes =
            is_due(deadline, now) && self.fence.is_none() && self.struck != Some(deadline.generation);
        strikes.then_some(deadline.generation)
    }

    /// Freezes the containers and shuts the file systems down that the table tells of now. Before anything that
    /// tenants can make long: who ends the worker looks through all processes.
    fn strike(&mut self) {
        self.shared.worker().into_iter().for_each(ProcessId::kill);
        let Stored::Table(table) = read_table(&self.settings.directory.join(TABLE)) else { return };
        let pool = std::mem::replace(&mut self.pool, Pool::new(self.settings.policy.program.clone()));
        let mut strike = FenceRunner::strike(&Known::of(table), self.settings.policy.clone(), pool);
        let until = self.sense() + STRIKE;
        loop {
            let now = self.sense();
            let _never_a_proof = strike.poll(now);
            if strike.has_struck() {
                tracing::error!("the fence has struck: {}", strike.what_was_struck());
                break;
            }
            if now >= until {
                let struck = strike.what_was_struck();
                tracing::error!("containers and file systems do not answer to the fence yet: {struck}");
                break;
            }
            std::thread::sleep(STRIKE_POLL);
        }
        self.pool = strike.into_pool();
    }

    fn begin_fence(&mut self, now: Now) {
        let deadline = self.shared.read();
        let (known, kill) = match read_table(&self.settings.directory.join(TABLE)) {
            Stored::Table(table) => {
                let kill = table.open.as_ref().map_or(self.settings.kill, |open| open.timing.kill);
                (Known::of(table), kill)
            }
            Stored::Missing => {
                tracing::error!("there is no table: whatever is mounted below the mount roots is fenced");
                (Known::Lost, self.settings.kill)
            }
            Stored::Broken(why) => {
                tracing::error!("the table cannot be read, so that whatever is mounted is fenced: {why}");
                (Known::Lost, self.settings.kill)
            }
        };
        let give_up = deadline.fence_at.unwrap_or(now) + kill;
        self.said = None;
        // Whoever opens an epoch waits for driver calls itself; this fence is about F + K.
        let pool = std::mem::replace(&mut self.pool, Pool::new(self.settings.policy.program.clone()));
        self.fence =
            Some(FenceRunner::with_pool(&known, Some(give_up), None, self.settings.policy.clone(), pool));
    }

    fn go_on_fencing(&mut self, now: Now) {
        let Some(fence) = self.fence.as_mut() else { return };
        match fence.poll(now) {
            Progress::Running => {}
            Progress::NotProved(why) => {
                if self.said.as_ref() != Some(&why) {
                    tracing::error!("it is not proved that this host does not write: {why}");
                    self.said = Some(why);
                }
            }
            Progress::Proved => {
                self.pool = self
                    .fence
                    .take()
                    .map_or_else(|| Pool::new(self.settings.policy.program.clone()), FenceRunner::into_pool);
                // A helper of the worker's that hung may have mounted something since: all is looked at again after it.
                if self.hanging {
                    self.hanging = !self.kill_others().is_empty();
                    return self.begin_fence(now);
                }
                tracing::error!("this host is fenced: nothing of it writes to a volume any more");
                let generation = self.shared.read().generation;
                self.proved = Some(generation);
                self.shared.set_proved(generation);
                self.tell(now, Input::Fenced);
            }
        }
    }

    fn start_worker(&mut self, now: Now) {
        if self.start_at.is_none_or(|at| now < at) || self.ending.is_some() {
            return;
        }
        let worker = Command::new("/proc/self/exe")
            .arg0("extvol-keeper")
            .args(&self.settings.worker)
            .process_group(0)
            .stdin(Stdio::null())
            .spawn();
        self.started = Some(now);
        match worker {
            Ok(child) => {
                self.start_at = None;
                self.shared.set_worker(ProcessId::of(child.id()));
                self.child = Some(child);
            }
            Err(error) => {
                tracing::error!("no worker could be started: {error}");
                self.start_at = Some(now + BETWEEN_STARTS);
            }
        }
        // Its silence counts from here.
        self.tell(now, Input::WorkerTicked);
    }

    /// Nothing is held: worker and guard end, the watchdog is disarmed.
    fn stop(&mut self) {
        tracing::info!("the keeper ends");
        while !self.kill_others().is_empty() {
            self.sense();
            std::thread::sleep(POLL_CLOSELY);
        }
        self.guard.end(&self.shared, &self.settings.cgroup);
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.disarm();
        }
    }
}

fn is_due(deadline: Deadline, now: Now) -> bool {
    deadline.fenced || deadline.fence_at.is_some_and(|at| at <= now)
}
