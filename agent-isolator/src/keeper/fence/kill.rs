//! Kills containers: all in their freezer cgroups and nested ones, and whoever else of the agent's lives by a volume in a mount
//! namespace that is not the host's.
//!
//! Who that is beside the cgroup: a process that left it but stayed in the container's mount namespace (an orphan); and, of a volume
//! that could not be shut down, one of another of the agent's containers that has it at another place than the host has it: a bind
//! mount, as every container that uses the volume has, nested ones in cgroups of their own among them. A copy at the host's own
//! place proves no use: every namespace that was made while the volume was mounted has one, the host's services and all containers
//! among them, and the host's unmount takes it along. Where it does not, whoever pins the device is found when that is to be idle
//! (`idle.rs`). Nobody else is killed: not a monitor that has the host's mounts elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use shared::protocol::holder::MountedVolume;
use shared::volume::ContainerId;

use super::device::Device;
use super::witness::{self, Stranger, is_agents};
use crate::keeper::alive;
use crate::keeper::mount_table::{self, Mount};
use crate::keeper::mounts::is_of;
use crate::keeper::process::ProcessId;

/// For so long one attempt goes on: then who does not end is named, and it is tried again.
pub(super) const ATTEMPT: Duration = Duration::from_millis(500);

/// Between two rounds of freeze, kill and thaw.
pub(super) const PAUSE: Duration = Duration::from_millis(3);

/// Where the freezer hierarchy is mounted, as Mesos has it.
pub(super) const FREEZER: &str = "/sys/fs/cgroup/freezer";

/// Kills them; which could not be, and why.
pub(super) fn kill(
    containers: &BTreeMap<ContainerId, Option<String>>,
    volumes: &[MountedVolume],
    cgroup_root: Option<&str>,
) -> io::Result<BTreeMap<ContainerId, String>> {
    let until = Instant::now() + ATTEMPT;
    let mut namespaces = BTreeSet::new();
    let unrecorded: Vec<_> =
        containers.iter().filter(|(_, recorded)| recorded.is_none()).map(|(id, _)| id).collect();
    // Who is found without a look does not wait for it.
    for cgroup in containers.values().flatten().filter(|_| !unrecorded.is_empty()) {
        let _looked_at_below = round(cgroup, &mut namespaces)?;
    }
    // Once: what was not isolated before the fence is not isolated in it.
    let (found, all) = match alive::find_cgroups(&unrecorded, cgroup_root, until) {
        Ok(found) => (found, true),
        Err(found) => (found, false),
    };
    // A look can miss a process that was just forked by one that has just been killed: after a kill two looks must find nothing.
    let mut looks_left = 1;
    loop {
        let mut left = BTreeMap::new();
        for (container, recorded) in containers {
            let result = match recorded.as_ref().or_else(|| found.get(container)) {
                Some(cgroup) => round(cgroup, &mut namespaces)?,
                // It was never isolated: nothing of it runs.
                None if all => Ok(()),
                None => Err("there are too many cgroups to find its own in time".to_owned()),
            };
            if let Err(why) = result {
                left.insert(container.clone(), why);
            }
        }
        // Who looks before they are dead looks for nothing.
        let outside = if left.is_empty() { users(volumes, &namespaces, cgroup_root)? } else { Vec::new() };
        for stranger in &outside {
            stranger.kill();
        }
        if let Some(stranger) = outside.first() {
            let why = format!("{} has a volume and does not end", witness::in_words(stranger.id.pid));
            for container in containers.keys() {
                left.entry(container.clone()).or_insert_with(|| why.clone());
            }
        }
        looks_left = if left.is_empty() && outside.is_empty() { looks_left - 1 } else { 2 };
        if looks_left == 0 || Instant::now() >= until && !left.is_empty() {
            return Ok(left);
        }
        thread::sleep(PAUSE);
    }
}

/// One round for one container. The namespaces of its processes, but for the host's, are added.
fn round(cgroup: &str, namespaces: &mut BTreeSet<PathBuf>) -> io::Result<Result<(), String>> {
    let hierarchy = Path::new(FREEZER);
    if !hierarchy.join("cgroup.procs").exists() {
        return Ok(Err(format!("the cgroup {cgroup} cannot be seen: no freezer at {FREEZER}")));
    }
    let relative = cgroup.trim_matches('/');
    if relative.is_empty() {
        return Ok(Err("its recorded cgroup is the root, in which everything is".to_owned()));
    }
    Ok(kill_cgroup(&hierarchy.join(relative), namespaces)?.map_or(Ok(()), Err))
}

/// Freezes, kills and thaws a cgroup and all nested ones; who was in it, in words.
pub(super) fn kill_cgroup(cgroup: &Path, namespaces: &mut BTreeSet<PathBuf>) -> io::Result<Option<String>> {
    let all = with_nested(cgroup);
    // Frozen, it makes no new processes behind our back. It is no matter if it does not freeze: then the next round finds them.
    set_state(cgroup, "FROZEN");
    let hosts = witness::hosts()?;
    let mut found = None;
    for one in &all {
        for pid in processes(one)? {
            let Some(process) = ProcessId::of(pid) else { continue };
            namespaces.extend(witness::namespace(pid).filter(|namespace| !hosts.contains(namespace)));
            process.kill();
            found.get_or_insert_with(|| format!("{} does not end", witness::in_words(pid)));
        }
    }
    // A kill acts only after the thaw: of each, for a nested one may have been frozen by itself; and of those above, if one
    // of them holds it.
    let held = |cgroup: &Path| {
        fs::read_to_string(cgroup.join("freezer.parent_freezing")).is_ok_and(|held| held.trim() == "1")
    };
    let mut above = cgroup.to_owned();
    while found.is_some() && held(&above) && above.pop() && above.starts_with(FREEZER) {
        set_state(&above, "THAWED");
    }
    for one in all.iter().rev() {
        set_state(one, "THAWED");
    }
    Ok(found)
}

/// The cgroup has gone, or cannot be frozen: the kill is what counts.
fn set_state(cgroup: &Path, state: &str) {
    let _gone = fs::write(cgroup.join("freezer.state"), state);
}

/// A cgroup and those nested in it, the deepest first.
pub(super) fn with_nested(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let nested = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut all: Vec<_> = nested.flat_map(|entry| with_nested(&entry.path())).collect();
    all.push(cgroup.to_owned());
    all
}

/// The processes of one cgroup.
///
/// # Errors
/// When they cannot be read though the cgroup is there.
pub(super) fn processes(cgroup: &Path) -> io::Result<Vec<u32>> {
    match fs::read_to_string(cgroup.join("cgroup.procs")) {
        Ok(listed) => {
            Ok(listed.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        // It was removed between opening and reading.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Who lives in one of the namespaces, or by one of the volumes in a container of the agent.
fn users(
    volumes: &[MountedVolume],
    namespaces: &BTreeSet<PathBuf>,
    cgroup_root: Option<&str>,
) -> io::Result<Vec<Stranger>> {
    let is_orphan = |stranger: &Stranger| namespaces.contains(&stranger.namespace);
    let mut users: Vec<_> = witness::strangers()?.into_iter().filter(is_orphan).collect();
    // The number may be another file system's by now.
    let volumes: Vec<_> = volumes
        .iter()
        .filter(|volume| Device::recorded(volume).is_none_or(|device| !device.is_gone()))
        .collect();
    if volumes.is_empty() {
        return Ok(users);
    }
    let own = mount_table::own()?;
    let has_it_elsewhere = |mount: &Mount| {
        volumes.iter().any(|volume| {
            let on_host = |own: &Mount| is_of(volume)(own) && own.mount_point == mount.mount_point;
            is_of(volume)(mount) && !own.iter().any(on_host)
        })
    };
    let agents = |pid: u32| is_agents(pid, cgroup_root);
    let look = witness::look(has_it_elsewhere, agents)?;
    users.extend(look.sees.into_iter().map(|(stranger, _)| stranger).filter(|s| agents(s.id.pid)));
    Ok(users)
}
