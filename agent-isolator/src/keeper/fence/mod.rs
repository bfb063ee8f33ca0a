//! Makes this host unable to write to its volumes: carries out what [`shared::protocol::fence::Fence`] decides, in its order (L17).
//!
//! ```text
//! mod.rs         the runner: acts become jobs of helper processes, their reports the acts' results
//! at_once.rs     its first part: freeze and shutdowns
//! pool.rs        helpers that exist before there is a fence
//! child.rs       one helper process: started, given jobs, polled, never waited for
//! job.rs         what a helper does, and its whole life
//! scheduling.rs  who must act in time runs before all others
//! strike.rs      what must be done at once: freeze, shut down through the host's own mounts
//! kill.rs        containers: freezer cgroups, orphans, nested containers
//! idle.rs        one volume: shut down, unmount, prove
//! shutdown.rs    the ioctl that stops a file system
//! device.rs      a device and its claim; which file systems are the host's own
//! sweep.rs       mounts that no table tells of
//! witness.rs     processes of other mount namespaces
//! reset.rs       sysrq and reboot
//! ```
//!
//! Nothing in the runner waits, and it makes no call that a volume, a device or a process could keep: each act is a process of its
//! own, for any of its steps may hang in the kernel. It is one thread's, without a runtime: the deadman polls it from its
//! loop, the worker runs it to its end on a thread where that may block.
//!
//! It sets no flag and kills no worker: who runs it has done so (`deadman.rs`).

mod at_once;
mod child;
mod device;
mod idle;
mod job;
mod kill;
mod pool;
mod reset;
mod scheduling;
mod shutdown;
mod strike;
mod sweep;
mod witness;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use shared::clock::holder_now;
use shared::protocol::fence::{Act, Fence};
use shared::protocol::holder::Table;
use shared::protocol::{Now, Text};
use shared::volume::{ContainerId, VolumeId};

pub use self::child::HELPER_MODE;
use self::child::Helper;
pub(super) use self::device::usual as usual_file_systems;
use self::idle::Limits;
pub use self::job::run_helper;
use self::job::{Job, Report};
use self::pool::MOST;
pub use self::pool::Pool;
pub use self::reset::Reset;
pub(super) use self::scheduling::{Priority, before_all_others, started_before_all_others};
pub use self::shutdown::can_be_shut_down;
pub(super) use self::witness::in_words as process_in_words;
pub use self::witness::{Pin, who_pins};

/// What failed is tried again after this: a fence has seconds.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// Once its time is over, the pauses double up to this.
const TRY_AGAIN_LATE: Duration = Duration::from_secs(5);

/// A freeze or a shutdown is not waited for any longer, nor is its start tried again: what comes after it does not depend on it.
const STRIKE: Duration = Duration::from_millis(150);

/// Between two polls of who runs a fence on a thread of its own.
const POLL: Duration = Duration::from_millis(10);

/// What a fence may do on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The directories below which drivers mount.
    pub roots: Vec<PathBuf>,
    /// Paths on the host's own file systems, beside the usual ones: the agent's work directory, the keeper's directories.
    pub hosts_own: Vec<PathBuf>,
    /// The freezer cgroup below which the agent's containers are, such as `/mesos`.
    pub cgroup_root: Option<String>,
    /// The keeper's program: `/proc/self/exe` from within it.
    pub program: PathBuf,
    /// How the host may be reset, if it may.
    pub reset: Option<Reset>,
}

/// What is known of what is to be fenced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// The stored table.
    Table(Box<Table>),
    /// Nothing: there is no table, or it cannot be read. Whatever is mounted below the roots is made idle, and all containers
    /// that see it are killed.
    Lost,
}

impl Known {
    /// What a stored table tells; nothing, where it says of itself that an earlier one was lost.
    #[must_use]
    pub fn of(table: Box<Table>) -> Self {
        if table.lost { Self::Lost } else { Self::Table(table) }
    }
}

/// Kills one container, outside a fence: its freezer cgroup and those nested in it. Blocks: for a thread that may.
///
/// # Errors
/// Who does not end.
pub fn kill_container(
    policy: &Policy,
    container: &ContainerId,
    cgroup: Option<String>,
) -> Result<(), String> {
    let containers = BTreeMap::from([(container.clone(), cgroup)]);
    let cgroup_root = policy.cgroup_root.clone();
    let job = Job::Kill { containers, volumes: Vec::new(), cgroup_root, fences: false };
    let mut helper = Pool::new(policy.program.clone()).start(&job).map_err(|error| error.to_string())?;
    loop {
        match helper.poll() {
            Some(Report::Killed(left)) => return left.into_values().next().map_or(Ok(()), Err),
            Some(Report::Failed(why)) => return Err(why),
            Some(other) => return Err(format!("the helper answered {other:?}")),
            None => std::thread::sleep(POLL),
        }
    }
}

/// How far a fence is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It goes on.
    Running,
    /// Nothing on this host writes to a volume any more.
    Proved,
    /// Its time is over without a proof, and why. It goes on all the same, and may be proved yet.
    NotProved(Text),
}

/// One fence. See the module's head.
pub struct FenceRunner {
    policy: Policy,
    pool: Pool,
    fence: Fence,
    /// The freeze, and since when.
    freezing: Option<(Helper, Now)>,
    shutting: BTreeMap<VolumeId, (Helper, Now)>,
    /// Volumes whose shutdown waits for a helper.
    waiting: VecDeque<VolumeId>,
    /// Since when no process can be started for what must be done at once.
    refused: Option<Now>,
    /// Volumes whose file systems were shut down.
    shut: BTreeSet<VolumeId>,
    /// Those whose file systems were not, and why.
    unshut: BTreeMap<VolumeId, String>,
    lost: bool,
    containers: BTreeMap<ContainerId, Option<String>>,
    volumes: Vec<VolumeId>,
    /// Containers that no helper kills yet.
    to_kill: BTreeSet<ContainerId>,
    killing: Option<(BTreeSet<ContainerId>, Helper)>,
    /// By volume; one that only a sweep found has no act of its own.
    idling: BTreeMap<Idle, Helper>,
    /// What is made idle when one of those is done: each is a process that may hang, and cannot be ended then.
    to_idle: VecDeque<(Idle, Job)>,
    sweep: Sweep,
    settle: Option<Now>,
    /// Acts that failed, and when they are tried again.
    again: BTreeMap<Act, Now>,
    failures: BTreeMap<Act, String>,
    over: bool,
    /// How often an act has failed since.
    late: BTreeMap<Act, u32>,
    /// Device numbers of what was made idle.
    proved: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Idle {
    Known(VolumeId),
    /// By its device number.
    Found(Text),
}

enum Sweep {
    No,
    Looking(Helper),
    /// What was found is made idle, of which this failed; then it looks again.
    Idling(Option<String>),
}

impl FenceRunner {
    /// A fence of what is known, with helpers that are started as it goes. See [`Fence::new`] for `give_up` and `settle`.
    #[must_use]
    pub fn new(known: &Known, give_up: Option<Now>, settle: Option<Now>, policy: Policy) -> Self {
        let pool = Pool::new(policy.program.clone());
        Self::with_pool(known, give_up, settle, policy, pool)
    }

    /// The same, with helpers that stand by.
    #[must_use]
    pub fn with_pool(
        known: &Known,
        give_up: Option<Now>,
        settle: Option<Now>,
        policy: Policy,
        pool: Pool,
    ) -> Self {
        Self::carrying_out(known, |table| Fence::new(table, give_up, settle), policy, pool)
    }

    /// Only what must be done at once: freeze and shutdowns of what is known. It never proves anything.
    #[must_use]
    pub fn strike(known: &Known, policy: Policy, pool: Pool) -> Self {
        Self::carrying_out(known, Fence::strike, policy, pool)
    }

    fn carrying_out(known: &Known, fence: impl FnOnce(&Table) -> Fence, policy: Policy, pool: Pool) -> Self {
        // Of a lost table everything is possible.
        let nothing = Table { lost: true, ..Table::default() };
        let (table, lost) = match known {
            Known::Table(table) => (&**table, false),
            Known::Lost => (&nothing, true),
        };
        let cgroup = |cgroup: &Option<Text>| cgroup.as_deref().map(str::to_owned);
        Self {
            fence: fence(table),
            policy,
            pool,
            freezing: None,
            shutting: BTreeMap::new(),
            waiting: VecDeque::new(),
            refused: None,
            shut: BTreeSet::new(),
            unshut: BTreeMap::new(),
            lost,
            containers: table.containers.iter().map(|(id, c)| (id.clone(), cgroup(&c.cgroup))).collect(),
            volumes: table.volumes.iter().map(|row| row.wanted.volume.clone()).collect(),
            to_kill: BTreeSet::new(),
            killing: None,
            idling: BTreeMap::new(),
            to_idle: VecDeque::new(),
            sweep: Sweep::No,
            settle: None,
            again: BTreeMap::new(),
            failures: BTreeMap::new(),
            over: false,
            late: BTreeMap::new(),
            proved: BTreeSet::new(),
        }
    }

    /// Whether freeze and shutdowns are behind it, whatever came of them.
    #[must_use]
    pub fn has_struck(&self) -> bool {
        self.fence.has_struck()
    }

    /// Its helpers, for the next fence; those that still have a job finish it.
    #[must_use]
    pub fn into_pool(self) -> Pool {
        let mut pool = self.pool;
        pool.hung.extend(self.shutting.keys().cloned());
        let sweep = if let Sweep::Looking(helper) = self.sweep { Some(helper) } else { None };
        let strike = self.shutting.into_values().chain(self.freezing).map(|(helper, _)| helper);
        let killing = self.killing.map(|(_, helper)| helper);
        strike
            .chain(self.idling.into_values())
            .chain(killing)
            .chain(sweep)
            .for_each(|helper| pool.leave(helper));
        pool
    }

    /// Goes on; to be called every 50 ms at the latest. Does not block.
    pub fn poll(&mut self, now: Now) -> Progress {
        self.fence.tick(now);
        let due: Vec<_> =
            self.again.iter().filter(|(_, at)| **at <= now).map(|(act, _)| act.clone()).collect();
        for act in due {
            self.again.remove(&act);
            self.begin(&act, now);
        }
        self.take_acts(now);
        self.poll_strike(now);
        self.poll_kill(now);
        self.poll_idling(now);
        self.poll_sweep(now);
        if let Some(at) = self.settle.filter(|at| *at <= now) {
            self.settle = None;
            self.finish(&Act::Settle(at), Ok(()), now);
        }
        self.start_kill(now);
        match (self.fence.is_proved(), self.over) {
            (true, _) => Progress::Proved,
            (false, false) => Progress::Running,
            (false, true) => Progress::NotProved(self.why().into()),
        }
    }

    /// Polls until it is proved, or until `deadline`. Blocks: for a thread that may.
    ///
    /// # Errors
    /// What is not proved, and what pins it.
    pub fn run_until_proved(&mut self, deadline: Now) -> Result<(), Text> {
        loop {
            let now = holder_now();
            match self.poll(now) {
                Progress::Proved => return Ok(()),
                _ if now >= deadline => return Err(self.why().into()),
                _ => std::thread::sleep(POLL),
            }
        }
    }

    /// All its helper processes.
    #[must_use]
    pub fn helpers(&self) -> Vec<u32> {
        let sweep = if let Sweep::Looking(helper) = &self.sweep { Some(helper) } else { None };
        let killing = self.killing.as_ref().map(|(_, helper)| helper);
        let strike = self.shutting.values().chain(&self.freezing).map(|(helper, _)| helper);
        let busy = self.idling.values().chain(killing).chain(sweep).chain(strike).map(Helper::pid);
        busy.chain(self.pool.pids()).collect()
    }

    /// What stands in the way of the proof.
    fn why(&self) -> String {
        let under_way = |what: String| format!("{what}: {NO_ANSWER}");
        let killing = self.killing.iter().flat_map(|(containers, _)| containers);
        let killing = killing.map(|container| Act::Kill(container.clone()));
        let idling = self.idling.keys().filter_map(|idle| match idle {
            Idle::Known(volume) => Some(Act::MakeIdle(volume.clone())),
            Idle::Found(_) => None,
        });
        let hanging = killing.chain(idling).filter(|act| !self.failures.contains_key(act));
        let hanging: Vec<_> = hanging.map(|act| under_way(in_words(&act))).collect();
        let failed = self.failures.iter().map(|(act, why)| format!("{}: {why}", in_words(act)));
        let all: Vec<_> = failed.chain(hanging).collect();
        if all.is_empty() { "the fence is not at its end".to_owned() } else { all.join("; ") }
    }

    fn take_acts(&mut self, now: Now) {
        while let Some(act) = self.fence.poll_act() {
            // One that failed waits.
            if !self.again.contains_key(&act) {
                self.begin(&act, now);
            }
        }
    }

    fn begin(&mut self, act: &Act, now: Now) {
        match act {
            Act::Freeze => self.start_freeze(now),
            Act::Shutdown(volume) => self.wait_for_shutdown(volume),
            Act::Kill(container) => {
                let runs = self.killing.as_ref().is_some_and(|(batch, _)| batch.contains(container));
                if !runs {
                    self.to_kill.insert(container.clone());
                }
            }
            Act::MakeIdle(volume) => {
                let mounted = self.fence.mounted(volume).cloned();
                let shut = self.shut.contains(volume);
                let job = Job::MakeIdle { volume: volume.clone(), mounted, shut, limits: self.limits() };
                let idle = (Idle::Known(volume.clone()), job);
                // Those that hang would keep the places: they come last.
                let hung = &self.pool.hung;
                let hangs = |idle: &Idle| matches!(idle, Idle::Known(volume) if hung.contains(volume));
                let others = if hangs(&idle.0) {
                    self.to_idle.len()
                } else {
                    self.to_idle.partition_point(|(idle, _)| !hangs(idle))
                };
                self.to_idle.insert(others, idle);
            }
            Act::Sweep => self.start_sweep(now),
            Act::Settle(at) => self.settle = Some(*at),
            Act::Reset => {
                self.over = true;
                let result = self.policy.reset.as_ref().map_or(Ok(()), Reset::now);
                if let Err(why) = result {
                    self.failures.insert(Act::Reset, why);
                }
                self.fence.done(&Act::Reset, Ok(()));
            }
        }
    }

    fn finish(&mut self, act: &Act, result: Result<(), String>, now: Now) {
        match &result {
            Ok(()) => {
                self.failures.remove(act);
            }
            // Nothing waits for these two: what they did not do is found by what follows.
            Err(_) if matches!(act, Act::Freeze | Act::Shutdown(_)) => {}
            Err(why) => {
                self.failures.insert(act.clone(), why.clone());
                let tries = self.late.entry(act.clone()).or_default();
                self.again.insert(act.clone(), now + pause(*tries));
                *tries += u32::from(self.over);
            }
        }
        self.fence.done(act, result.map_err(Into::into));
        self.take_acts(now);
    }

    fn limits(&self) -> Limits {
        let Policy { roots, hosts_own, cgroup_root, .. } = self.policy.clone();
        Limits { roots, own: hosts_own, cgroup_root }
    }

    fn start_kill(&mut self, now: Now) {
        if self.to_kill.is_empty() || self.killing.is_some() {
            return;
        }
        let batch = std::mem::take(&mut self.to_kill);
        let containers =
            batch.iter().map(|id| (id.clone(), self.containers.get(id).cloned().flatten())).collect();
        // What was shut down takes no writes, whoever has it.
        let writable = self.volumes.iter().filter(|volume| !self.shut.contains(volume));
        let volumes = writable.filter_map(|volume| self.fence.mounted(volume).cloned()).collect();
        let cgroup_root = self.policy.cgroup_root.clone();
        let job = Job::Kill { containers, volumes, cgroup_root, fences: true };
        match self.pool.start(&job) {
            Ok(helper) => self.killing = Some((batch, helper)),
            Err(error) => {
                for container in batch {
                    self.finish(&Act::Kill(container), Err(not_started(&error)), now);
                }
            }
        }
    }

    fn poll_kill(&mut self, now: Now) {
        let Some(report) = self.killing.as_mut().and_then(|(_, helper)| helper.poll()) else { return };
        let Some((batch, helper)) = self.killing.take() else { return };
        self.pool.put_back(helper);
        for container in batch {
            let result = match &report {
                Report::Killed(left) => left.get(&container).map_or(Ok(()), |why| Err(why.clone())),
                other => Err(unexpected(other)),
            };
            self.finish(&Act::Kill(container), result, now);
        }
    }

    fn start_idling(&mut self, now: Now) {
        while self.idling.len() < MOST
            && let Some((idle, job)) = self.to_idle.pop_front()
        {
            match self.pool.start(&job) {
                Ok(helper) => {
                    self.idling.insert(idle, helper);
                }
                Err(error) => self.idled(idle, Err(not_started(&error)), now),
            }
        }
    }

    fn poll_idling(&mut self, now: Now) {
        let ended: Vec<_> = self
            .idling
            .iter_mut()
            .filter_map(|(idle, helper)| Some((idle.clone(), helper.poll()?)))
            .collect();
        for (idle, _) in &ended {
            self.idling.remove(idle).into_iter().for_each(|helper| self.pool.put_back(helper));
        }
        for (idle, report) in ended {
            let result = match report {
                Report::Idle(result) => result,
                other => Err(unexpected(&other)),
            };
            self.idled(idle, result, now);
        }
        self.start_idling(now);
    }

    fn idled(&mut self, idle: Idle, result: Result<(), String>, now: Now) {
        match idle {
            Idle::Known(volume) => {
                if result.is_ok() {
                    self.proved
                        .extend(self.fence.mounted(&volume).map(|mounted| mounted.device_number.to_string()));
                }
                self.finish(&Act::MakeIdle(volume), result, now);
            }
            Idle::Found(number) => match result {
                Ok(()) => {
                    self.proved.insert(number.to_string());
                }
                Err(why) => {
                    if let Sweep::Idling(obstacle) = &mut self.sweep {
                        obstacle.get_or_insert(why);
                    }
                }
            },
        }
    }

    fn start_sweep(&mut self, now: Now) {
        if !matches!(self.sweep, Sweep::No) {
            return;
        }
        let job = Job::Sweep { limits: self.limits(), proved: self.proved.clone(), lost: self.lost };
        match self.pool.start(&job) {
            Ok(helper) => self.sweep = Sweep::Looking(helper),
            Err(error) => self.finish(&Act::Sweep, Err(not_started(&error)), now),
        }
    }

    fn poll_sweep(&mut self, now: Now) {
        match &mut self.sweep {
            Sweep::No => {}
            Sweep::Looking(helper) => {
                let Some(report) = helper.poll() else { return };
                if let Sweep::Looking(helper) = std::mem::replace(&mut self.sweep, Sweep::No) {
                    self.pool.put_back(helper);
                }
                match report {
                    Report::Swept(mounted) if mounted.is_empty() => self.finish(&Act::Sweep, Ok(()), now),
                    Report::Swept(mounted) => {
                        self.sweep = Sweep::Idling(None);
                        for mounted in mounted {
                            let idle = Idle::Found(Text::clone(&mounted.device_number));
                            let job = Job::MakeFoundIdle { mounted, limits: self.limits() };
                            self.to_idle.push_back((idle, job));
                        }
                    }
                    other => self.finish(&Act::Sweep, Err(unexpected(&other)), now),
                }
            }
            Sweep::Idling(obstacle) => {
                let mut under_way = self.idling.keys().chain(self.to_idle.iter().map(|(idle, _)| idle));
                if under_way.any(|idle| matches!(idle, Idle::Found(_))) {
                    return;
                }
                let result = obstacle.take().map_or(Ok(()), Err);
                self.sweep = Sweep::No;
                match result {
                    // Only a look that finds nothing is a sweep that is done.
                    Ok(()) => self.start_sweep(now),
                    Err(why) => self.finish(&Act::Sweep, Err(why), now),
                }
            }
        }
    }
}

/// How long an act waits that failed: a fence has seconds, and one whose time is over need not keep a processor busy.
fn pause(late_failures: u32) -> Duration {
    (TRY_AGAIN * (1 << late_failures.min(6))).min(TRY_AGAIN_LATE)
}

const NO_ANSWER: &str = "no answer of the kernel yet";

fn not_started(error: &std::io::Error) -> String {
    format!("no helper process could be started: {error}")
}

fn unexpected(report: &Report) -> String {
    match report {
        Report::Failed(why) => why.clone(),
        other => format!("the helper answered something else: {other:?}"),
    }
}

fn in_words(act: &Act) -> String {
    match act {
        Act::Freeze => "the containers' freeze".to_owned(),
        Act::Shutdown(volume) => format!("the shutdown of volume {volume}"),
        Act::Kill(container) => format!("container {container}"),
        Act::MakeIdle(volume) => format!("volume {volume}"),
        Act::Sweep => "what else is mounted".to_owned(),
        Act::Settle(_) => "driver calls under way".to_owned(),
        Act::Reset => "the reset".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_its_time_is_over_a_fence_tries_less_and_less_often() {
        let pauses: Vec<_> = (0..8).map(|failures| pause(failures).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        assert_eq!(pause(u32::MAX), TRY_AGAIN_LATE);
    }
}
