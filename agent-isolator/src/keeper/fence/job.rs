//! What one helper process of a fence does, and what it says of it. Both are JSON in a file without a name: no pipe that either
//! side could wait for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use shared::protocol::holder::MountedVolume;
use shared::volume::{ContainerId, VolumeId};

use super::{idle, kill, sweep};
use crate::keeper::mount_table;

/// One act.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Job {
    /// Kill these containers, each with its cgroup if that was recorded, and who else lives by the volumes.
    Kill { containers: BTreeMap<ContainerId, Option<String>>, volumes: Vec<MountedVolume> },
    /// Make a volume idle.
    MakeIdle { volume: VolumeId, mounted: Option<MountedVolume>, roots: Vec<PathBuf>, own: Vec<PathBuf> },
    /// Make idle what a sweep found.
    MakeFoundIdle { mounted: MountedVolume, own: Vec<PathBuf> },
    /// Look for what is left.
    Sweep {
        roots: Vec<PathBuf>,
        own: Vec<PathBuf>,
        cgroup_root: Option<String>,
        proved: BTreeSet<String>,
        lost: bool,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    /// Which containers could not be killed yet, and why.
    Killed(BTreeMap<ContainerId, String>),
    /// Idle, or why not.
    Idle(Result<(), String>),
    /// What is mounted below the roots.
    Swept(Vec<MountedVolume>),
    /// It could not be tried.
    Failed(String),
}

impl Job {
    pub(super) fn run(self) -> Report {
        match self {
            Self::Kill { containers, volumes } => match kill::kill(&containers, &volumes) {
                Ok(left) => Report::Killed(left),
                Err(error) => Report::Failed(format!("processes could not be looked for: {error}")),
            },
            Self::MakeIdle { volume, mounted, roots, own } => {
                Report::Idle(make_idle(&volume, mounted.as_ref(), &roots, own))
            }
            Self::MakeFoundIdle { mounted, own } => Report::Idle(idle::make_idle(&mounted, &own)),
            Self::Sweep { roots, own, cgroup_root, proved, lost } => {
                let until = Instant::now() + kill::ATTEMPT;
                loop {
                    match sweep::sweep(&roots, &own, cgroup_root.as_deref(), &proved, lost) {
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
        }
    }
}

/// Without a recorded mount all that bears the volume's name below the roots is made idle.
fn make_idle(
    volume: &VolumeId,
    mounted: Option<&MountedVolume>,
    roots: &[PathBuf],
    mut own: Vec<PathBuf>,
) -> Result<(), String> {
    own.extend_from_slice(roots);
    if let Some(mounted) = mounted {
        return idle::make_idle(mounted, &own);
    }
    let table = mount_table::own().map_err(|error| format!("the mount table: {error}"))?;
    let bears_name = |mount: &&mount_table::Mount| {
        let below = roots.iter().find_map(|root| mount.mount_point.strip_prefix(root).ok());
        below.is_some_and(|below| volume.name.is_in(below))
    };
    for mount in table.iter().filter(bears_name) {
        idle::make_idle(&super::device::describe(mount), &own)?;
    }
    Ok(())
}

/// The helper process's whole life: `parent` started it, reads what it says, and takes it along when it dies.
#[must_use]
pub fn run_helper(parent: u32) -> ExitCode {
    let _name_is_for_people = rustix::thread::set_name(c"extvol-fence");
    let parent = i32::try_from(parent).ok().and_then(Pid::from_raw);
    // Asked for first: a parent that died before is seen by the pid, one that dies after by the signal.
    if set_parent_process_death_signal(Some(Signal::KILL)).is_err() || parent != getppid() {
        return ExitCode::FAILURE;
    }
    let mut text = String::new();
    let report = match std::io::stdin().read_to_string(&mut text).map(|_| serde_json::from_str::<Job>(&text))
    {
        Ok(Ok(job)) => job.run(),
        Ok(Err(error)) => Report::Failed(format!("the helper did not understand its job: {error}")),
        Err(error) => Report::Failed(format!("the helper could not read its job: {error}")),
    };
    let said = serde_json::to_vec(&report).map(|text| std::io::stdout().write_all(&text));
    match said {
        Ok(Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
