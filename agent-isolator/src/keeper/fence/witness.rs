//! Processes of other mount namespaces: who sees a volume, and is not the host. And which of them are the agent's, for nobody else is
//! killed: a monitor or a log shipper with copies of the host's mounts is the host's.
//!
//! Tenants can make namespaces and mount tables at will. So each namespace is looked at once in a look, by one of its processes;
//! a table is read only up to a length, a look has an end, and what was not seen is said.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use shared::protocol::holder::MountedVolume;

use crate::keeper::mount_table::{self, Mount};
use crate::keeper::mounts::is_of;
use crate::keeper::process::{self, ProcessId};

/// A look ends after this.
pub(super) const LOOK: Duration = Duration::from_millis(300);

/// A mount table is read up to here, some eight thousand mounts; or up to twice the host's own, if that is longer.
const LONGEST_TABLE: usize = 1 << 20;

/// The kernel's name of a mount namespace.
type Namespace = PathBuf;

/// A process of a mount namespace that is not the host's.
#[derive(Clone, Debug)]
pub(super) struct Stranger {
    pub(super) id: ProcessId,
    pub(super) namespace: Namespace,
}

/// The mount namespace of a process; none when it has ended.
pub(super) fn namespace(pid: u32) -> Option<Namespace> {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

/// The host's: this program's own, and that of the machine's first process.
pub(super) fn hosts() -> io::Result<BTreeSet<Namespace>> {
    let own = fs::read_link("/proc/self/ns/mnt")?;
    Ok(namespace(1).into_iter().chain([own]).collect())
}

/// All processes of other mount namespaces than the host's. Kernel threads are in the host's.
pub(super) fn strangers() -> io::Result<Vec<Stranger>> {
    let hosts = hosts()?;
    let stranger = |pid: u32| {
        // Most are the host's: of those nothing else is read. Whose pid was given away since is not killed for it (`kill`).
        let namespace = namespace(pid).filter(|namespace| pid != 1 && !hosts.contains(namespace))?;
        Some(Stranger { id: ProcessId::of(pid)?, namespace })
    };
    Ok(process::pids().into_iter().filter_map(stranger).collect())
}

/// The freezer cgroup of a process that is not in the hierarchy's root.
pub(super) fn freezer_cgroup(pid: u32) -> Option<PathBuf> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let cgroup = table.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|controller| controller == "freezer").then_some(path)
    })?;
    (cgroup != "/").then(|| PathBuf::from(cgroup))
}

/// Whether a process is of a container of the agent: its freezer cgroup lies below the one in which those are.
pub(super) fn is_agents(pid: u32, cgroup_root: Option<&str>) -> bool {
    let Some(root) = cgroup_root.map(|root| root.trim_matches('/')).filter(|root| !root.is_empty()) else {
        return false;
    };
    let root = Path::new("/").join(root);
    freezer_cgroup(pid).is_some_and(|cgroup| cgroup != root && cgroup.starts_with(&root))
}

/// A mount table of somebody else, as far as it was read.
pub(super) enum Shown {
    /// All of it.
    Whole(Vec<Mount>),
    /// It is longer than is read.
    TooLong(Vec<Mount>),
    /// The process has ended.
    Ended,
}

impl Stranger {
    /// Its mount table.
    pub(super) fn mounts(&self, longest: usize) -> Shown {
        let mut text = Vec::new();
        let limit = u64::try_from(longest).unwrap_or(u64::MAX);
        let read = File::open(format!("/proc/{}/mountinfo", self.id.pid))
            .and_then(|table| table.take(limit).read_to_end(&mut text));
        match read {
            Ok(length) if length >= longest => {
                // The last line is a piece of one.
                let whole = text.iter().rposition(|byte| *byte == b'\n').unwrap_or_default();
                Shown::TooLong(mount_table::parse(&text[..whole]))
            }
            Ok(length) if length > 0 => Shown::Whole(mount_table::parse(&text)),
            _ => Shown::Ended,
        }
    }

    /// Kills it, if it is still that process in that namespace: one that has just entered the host's is none of ours.
    pub(super) fn kill(&self) {
        if namespace(self.id.pid).as_ref() == Some(&self.namespace) {
            self.id.kill();
        }
    }
}

/// How much of another's mount table is read.
pub(super) fn longest_table() -> usize {
    let own = fs::read("/proc/self/mountinfo").map_or(0, |table| table.len());
    LONGEST_TABLE.max(2 * own)
}

/// What a look through the other mount namespaces has shown.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Who sees what is looked for, and where.
    pub(super) sees: Vec<(Stranger, PathBuf)>,
    /// Whose mount table is longer than is read.
    pub(super) too_long: Vec<Stranger>,
    /// How many namespaces were not reached in time.
    pub(super) missed: usize,
}

impl Look {
    /// Whether nobody was left out.
    pub(super) fn is_whole(&self) -> bool {
        self.too_long.is_empty() && self.missed == 0
    }
}

/// Looks for mounts in all other mount namespaces: all processes of a namespace that has one, with its place. `first` tells whose
/// namespaces are looked at before all others'.
pub(super) fn look(wanted: impl Fn(&Mount) -> bool, first: impl Fn(u32) -> bool) -> io::Result<Look> {
    let longest = longest_table();
    let mut namespaces: BTreeMap<Namespace, Vec<Stranger>> = BTreeMap::new();
    for stranger in strangers()? {
        namespaces.entry(stranger.namespace.clone()).or_default().push(stranger);
    }
    let mut in_turn: Vec<_> = namespaces.into_values().collect();
    in_turn.sort_by_cached_key(|processes| !processes.iter().any(|process| first(process.id.pid)));
    // Its time is for the tables: with ten thousand processes finding the namespaces takes as long.
    let until = Instant::now() + LOOK;
    let mut look = Look::default();
    for processes in in_turn {
        if Instant::now() >= until {
            look.missed += 1;
            continue;
        }
        let shown = processes.iter().map(|process| process.mounts(longest));
        let (mounts, whole) = match shown.into_iter().find(|shown| !matches!(shown, Shown::Ended)) {
            Some(Shown::Whole(mounts)) => (mounts, true),
            Some(Shown::TooLong(mounts)) => (mounts, false),
            Some(Shown::Ended) | None => continue,
        };
        match mounts.into_iter().find(|mount| wanted(mount)) {
            Some(mount) => {
                look.sees.extend(processes.into_iter().map(|process| (process, mount.mount_point.clone())));
            }
            None if whole => {}
            None => look.too_long.extend(processes),
        }
    }
    Ok(look)
}

/// Somebody who keeps a volume's file system from going.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The process.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Where it has the volume in its own mount namespace.
    pub mount_point: PathBuf,
    /// Its freezer cgroup, if it is in a container of the agent.
    pub cgroup: Option<String>,
}

/// Who has a volume mounted in a mount namespace other than the host's, those of the agent's containers (below `cgroup_root`)
/// first; and whether all was seen: a look has an end, and does not read a mount table of any length. May block: for a helper.
///
/// # Errors
/// When there are no processes to be seen.
pub fn who_pins(mounted: &MountedVolume, cgroup_root: Option<&str>) -> io::Result<(Vec<Pin>, bool)> {
    let look = look(|mount| is_of(mounted)(mount), |pid| is_agents(pid, cgroup_root))?;
    let pin = |(stranger, mount_point): &(Stranger, PathBuf)| {
        let pid = stranger.id.pid;
        let cgroup = freezer_cgroup(pid).filter(|_| is_agents(pid, cgroup_root));
        let cgroup = cgroup.map(|cgroup| cgroup.display().to_string());
        Pin { pid, name: name(pid), mount_point: mount_point.clone(), cgroup }
    };
    Ok((look.sees.iter().map(pin).collect(), look.is_whole()))
}

fn name(pid: u32) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(&name).trim().escape_default().to_string()
}

/// A process by name, for a message.
pub(in crate::keeper) fn in_words(pid: u32) -> String {
    format!("process {pid} ({})", name(pid))
}
