//! What a helper process of a fence does, and what it says of it: a line of JSON each, by pipes that the starter never waits for.
//!
//! What it needs it has before it is given a job: its memory is locked, with some to spare, it runs before all usual processes, and
//! the kernel does not end it for want of memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use shared::protocol::holder::MountedVolume;
use shared::volume::{ContainerId, VolumeId};

use super::device::hosts_own;
use super::pool::Hosts;
use super::scheduling::Priority;
use super::{idle, kill, scheduling, strike, sweep};
use crate::keeper::mount_table;

/// So much memory a helper has to spare: what it reads is no longer than some mount tables.
const SPARE_PIECES: usize = 256;
const PIECE: usize = 4096;

/// One act.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Job {
    /// Freeze these cgroups.
    Freeze { cgroups: Vec<String> },
    /// Shut a volume's file system down through the host's own mount.
    Shutdown {
        mounted: MountedVolume,
        roots: Vec<PathBuf>,
        own: Vec<PathBuf>,
        /// By what the starter knows it may be one of the host's own: then the mount table is read.
        may_be_hosts: bool,
    },
    /// Kill these containers, each with its cgroup if that was recorded, and those of the agent's who live by the volumes, which
    /// could not be shut down.
    Kill {
        containers: BTreeMap<ContainerId, Option<String>>,
        volumes: Vec<MountedVolume>,
        cgroup_root: Option<String>,
        /// Whether this host is fenced; else one container has to end, as many others may, and no time is set for that.
        fences: bool,
    },
    /// Make a volume idle.
    MakeIdle {
        volume: VolumeId,
        mounted: Option<MountedVolume>,
        /// Whether its file system was shut down.
        shut: bool,
        limits: idle::Limits,
    },
    /// Make idle what a sweep found.
    MakeFoundIdle { mounted: MountedVolume, limits: idle::Limits },
    /// Look for what is left.
    Sweep { limits: idle::Limits, proved: BTreeSet<String>, lost: bool },
    /// Look for the host's own file systems.
    Look { roots: Vec<PathBuf>, own: Vec<PathBuf> },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    /// Frozen, or being frozen; or why not.
    Frozen(Result<(), String>),
    /// Whether it is shut down: it may be of a kind that cannot be, or not be mounted; or why not.
    Shut(Result<bool, String>),
    /// Which containers could not be killed yet, and why.
    Killed(BTreeMap<ContainerId, String>),
    /// Idle, or why not.
    Idle(Result<(), String>),
    /// What is mounted below the roots.
    Swept(Vec<MountedVolume>),
    /// The host's own file systems.
    Hosts(Hosts),
    /// It could not be tried.
    Failed(String),
}

impl Job {
    /// Whether it is of those that nothing may delay. The others look through all of /proc, and at real-time priority would
    /// take the processors from the deadman's other helpers, and from the host.
    fn is_at_once(&self) -> bool {
        matches!(self, Self::Freeze { .. } | Self::Shutdown { .. } | Self::Kill { fences: true, .. })
    }

    /// The same, at the priority that is its own; afterwards this helper is ready for one that nothing may delay.
    fn run_in_turn(self) -> Report {
        if self.is_at_once() {
            return self.run();
        }
        scheduling::before_usual_ones();
        let report = self.run();
        let _refused_as_before = scheduling::before_all_others(Priority::Helper);
        report
    }

    pub(super) fn run(self) -> Report {
        match self {
            Self::Freeze { cgroups } => Report::Frozen(strike::freeze(&cgroups)),
            Self::Shutdown { mounted, roots, own, may_be_hosts } => {
                Report::Shut(strike::shut_down_at_once(&mounted, &roots, &own, may_be_hosts))
            }
            Self::Kill { containers, volumes, cgroup_root, fences: _ } => {
                match kill::kill(&containers, &volumes, cgroup_root.as_deref()) {
                    Ok(left) => Report::Killed(left),
                    Err(error) => Report::Failed(format!("processes could not be looked for: {error}")),
                }
            }
            Self::MakeIdle { volume, mounted, shut, limits } => {
                Report::Idle(make_idle(&volume, mounted.as_ref(), shut, &limits))
            }
            Self::MakeFoundIdle { mounted, limits } => {
                Report::Idle(idle::make_idle(&mounted, false, &limits))
            }
            Self::Sweep { limits, proved, lost } => {
                let until = Instant::now() + kill::ATTEMPT;
                loop {
                    match sweep::sweep(&limits, &proved, lost) {
                        Ok(sweep::Found { mounted, alive: None }) => return Report::Swept(mounted),
                        Ok(_) if Instant::now() < until => std::thread::sleep(kill::PAUSE),
                        // No file system is touched before all are dead.
                        Ok(found) => return Report::Failed(found.alive.unwrap_or_default()),
                        Err(error) => {
                            return Report::Failed(format!("the mount tables could not be read: {error}"));
                        }
                    }
                }
            }
            Self::Look { roots, own } => match mount_table::own() {
                Ok(table) => Report::Hosts(hosts_own(&table, &own, &roots)),
                Err(error) => Report::Failed(format!("the mount table: {error}")),
            },
        }
    }
}

/// Without a recorded mount all that bears the volume's name below the roots is made idle.
fn make_idle(
    volume: &VolumeId,
    mounted: Option<&MountedVolume>,
    shut: bool,
    limits: &idle::Limits,
) -> Result<(), String> {
    if let Some(mounted) = mounted {
        return idle::make_idle(mounted, shut, limits);
    }
    let table = mount_table::own().map_err(|error| format!("the mount table: {error}"))?;
    let hosts = hosts_own(&table, &limits.own, &limits.roots);
    let bears_name = |mount: &&mount_table::Mount| {
        let below = limits.roots.iter().find_map(|root| mount.mount_point.strip_prefix(root).ok());
        below.is_some_and(|below| volume.name.is_in(below))
    };
    // A directory of the host's own file system that was bound there is no volume.
    for mount in table.iter().filter(bears_name).filter(|mount| !hosts.contains_key(&mount.device_number)) {
        idle::make_idle(&super::device::describe(mount), false, limits)?;
    }
    Ok(())
}

/// The helper process's whole life: `parent` started it, gives it jobs and reads what it says of them, and takes it along when it
/// dies.
#[must_use]
pub fn run_helper(parent: u32) -> ExitCode {
    let _name_is_for_people = rustix::thread::set_name(c"extvol-fence");
    let parent = i32::try_from(parent).ok().and_then(Pid::from_raw);
    // Asked for first: a parent that died before is seen by the pid, one that dies after by the signal.
    if set_parent_process_death_signal(Some(Signal::KILL)).is_err() || parent != getppid() {
        return ExitCode::FAILURE;
    }
    provide();
    let mut line = String::new();
    loop {
        line.clear();
        match std::io::stdin().lock().read_line(&mut line) {
            Ok(0) => return ExitCode::SUCCESS,
            Ok(_) => {}
            Err(_) => return ExitCode::FAILURE,
        }
        let report = match serde_json::from_str::<Job>(&line) {
            Ok(job) => job.run_in_turn(),
            Err(error) => Report::Failed(format!("the helper did not understand its job: {error}")),
        };
        let Ok(mut said) = serde_json::to_vec(&report) else { return ExitCode::FAILURE };
        said.push(b'\n');
        let mut out = std::io::stdout().lock();
        if out.write_all(&said).and_then(|()| out.flush()).is_err() {
            return ExitCode::FAILURE;
        }
    }
}

/// What this helper needs is there before it is needed. Nobody reads a helper's complaints: what is refused, the deadman was refused
/// as well, and has said so.
fn provide() {
    let _refused = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE);
    let _refused = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let _refused = scheduling::before_all_others(Priority::Helper);
    let mut pieces: Vec<_> = (0..SPARE_PIECES).map(|_| vec![1_u8; PIECE]).collect();
    // While the last one is held, the others' memory is not given back to the kernel.
    std::mem::forget(pieces.pop());
}
