//! Whether anything of a container still runs. Mesos never calls `cleanup` for a container whose processes it could
//! not kill in time, and not before its agent is back; the keeper sees for itself when they are gone.
//!
//! Only an empty freezer cgroup tells: of a container without one nothing is said here. The answer must be right: a
//! task sees its volume as a bind mount in its own namespace, which does not keep the host's mount busy. So a volume is
//! looked for in all namespaces once more before it is unmounted on this word (`holder::Input::Ended`).

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{fs, io};

use rustix::process::{Pid, Signal, kill_process};
use shared::volume::ContainerId;

/// Deep enough for an agent's root in a cgroup of its own, and for nesting.
const DEEPEST: usize = 12;

/// Where the freezer hierarchy is mounted, as Mesos has it.
pub const FREEZER: &str = "/sys/fs/cgroup/freezer";

/// Whether this host has the freezer hierarchy.
#[must_use]
pub fn has_freezer() -> bool {
    Path::new(FREEZER).join("cgroup.procs").exists()
}

/// The freezer cgroup of a process, as its path below the hierarchy's root; none for the root itself, or where this
/// program sees the hierarchy otherwise than the process's own entry tells.
#[must_use]
pub fn freezer_cgroup(pid: u32) -> Option<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = table.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|controller| controller == "freezer").then_some(path)
    })?;
    let path = path.trim_matches('/');
    let processes = fs::read_to_string(Path::new(FREEZER).join(path).join("cgroup.procs")).ok()?;
    let listed = processes.lines().any(|line| line.parse() == Ok(pid));
    (listed && !path.is_empty()).then(|| format!("/{path}"))
}

/// The freezer cgroup of a container's first process, if it is the container's own: `<root>/<id>`, nested
/// `<root>/<parent>/mesos/<child>`. In another one a fence would miss the container, or hit what is not it.
#[must_use]
pub fn own_cgroup(pid: u32, container: &ContainerId) -> Option<String> {
    freezer_cgroup(pid).filter(|cgroup| Path::new(cgroup).ends_with(relative_cgroup(container)))
}

fn relative_cgroup(container: &ContainerId) -> PathBuf {
    container.as_str().split('.').collect::<Vec<_>>().join("/mesos/").into()
}

/// Whether a process is in a freezer cgroup below `root`, such as `/mesos`: in one of the agent's containers.
#[must_use]
pub fn is_below(pid: u32, root: &str) -> bool {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    table.lines().any(|line| {
        let parts = line.split_once(':').and_then(|(_, rest)| rest.split_once(':'));
        parts.is_some_and(|(controllers, path)| {
            controllers.split(',').any(|controller| controller == "freezer")
                && Path::new(path.trim_matches('/')).starts_with(root.trim_matches('/'))
                && !root.trim_matches('/').is_empty()
        })
    })
}

/// Whether a process is in a container's freezer cgroup, or in one nested in it. What cannot be read counts as there.
#[must_use]
pub fn is_alive(cgroup: &str) -> bool {
    // Without the hierarchy a missing cgroup means nothing.
    !has_freezer() || has_processes(&Path::new(FREEZER).join(cgroup.trim_matches('/')))
}

/// Asks all processes of a container's freezer cgroup, and of those nested in it, to end (SIGTERM).
pub fn terminate(cgroup: &str) {
    terminate_below(&Path::new(FREEZER).join(cgroup.trim_matches('/')));
}

fn terminate_below(cgroup: &Path) {
    let listed = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let pids = listed.lines().filter_map(|line| line.parse().ok().and_then(Pid::from_raw));
    for pid in pids {
        // One that has just ended needs nothing; one that stays is killed after the grace.
        let _ended = kill_process(pid, Signal::TERM);
    }
    for nested in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if nested.file_type().is_ok_and(|kind| kind.is_dir()) {
            terminate_below(&nested.path());
        }
    }
}

/// The freezer cgroups of containers, found by their names alone, below `root` where that is known: `<root>/<id>`, nested
/// `<root>/<parent>/mesos/<child>`. One look for all, in which those come first that are nested least: what a tenant nests in its own
/// delays the others' by nothing.
///
/// # Errors
/// The look was not at its end at `until`; those that it has found.
pub fn find_cgroups(
    containers: &[&ContainerId],
    root: Option<&str>,
    until: Instant,
) -> Result<BTreeMap<ContainerId, String>, BTreeMap<ContainerId, String>> {
    let hierarchy = Path::new(FREEZER);
    below(&hierarchy.join(root.unwrap_or_default().trim_matches('/')), containers, until, |found| {
        format!("/{}", found.strip_prefix(hierarchy).unwrap_or(found).display())
    })
}

fn below<T>(
    root: &Path,
    containers: &[&ContainerId],
    until: Instant,
    name: impl Fn(&Path) -> T,
) -> Result<BTreeMap<ContainerId, T>, BTreeMap<ContainerId, T>> {
    // By the last part of their names: most cgroups are none of them, and not looked at any further.
    let mut wanted: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for container in containers {
        let end = relative_cgroup(container);
        let last = end.file_name().unwrap_or_default().to_owned();
        wanted.entry(last).or_default().push((end, *container));
    }
    let mut found = BTreeMap::new();
    let mut directories = VecDeque::from([(root.to_owned(), 0)]);
    while let Some((directory, depth)) = directories.pop_front() {
        if found.len() == containers.len() {
            break;
        }
        if Instant::now() >= until {
            return Err(found);
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = entry.path();
            for (_, container) in
                wanted.get(&entry.file_name()).into_iter().flatten().filter(|(end, _)| path.ends_with(end))
            {
                found.entry((*container).clone()).or_insert_with(|| name(&path));
            }
            if depth < DEEPEST {
                directories.push_back((path, depth + 1));
            }
        }
    }
    Ok(found)
}

fn has_processes(cgroup: &Path) -> bool {
    match fs::read(cgroup.join("cgroup.procs")) {
        Ok(processes) if processes.is_empty() => {}
        // Mesos removes the cgroup when all has ended.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
        _ => return true,
    }
    match fs::read_dir(cgroup) {
        Ok(nested) => nested
            .flatten()
            .any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && has_processes(&entry.path())),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_lives_as_long_as_a_process_in_it_or_below() {
        let root = tempfile::tempdir().unwrap();
        let (outer, inner) = (root.path().join("outer"), root.path().join("outer/mesos/inner"));
        fs::create_dir_all(&inner).unwrap();
        for cgroup in [&outer, &root.path().join("outer/mesos"), &inner] {
            fs::write(cgroup.join("cgroup.procs"), "").unwrap();
        }
        assert!(!has_processes(&outer));
        fs::write(inner.join("cgroup.procs"), "7\n").unwrap();
        assert!(has_processes(&outer) && has_processes(&inner));
        fs::remove_dir_all(&outer).unwrap();
        assert!(!has_processes(&outer));
    }

    #[test]
    fn one_look_finds_the_cgroups_of_all_containers_and_ends_when_its_time_is_over() {
        let root = tempfile::tempdir().unwrap();
        let paths = ["agent/mesos/a", "agent/mesos/a/mesos/b", "agent/mesos/c", "agent/mesos/a/own/c"]
            .map(|path| root.path().join(path));
        paths.iter().for_each(|path| fs::create_dir_all(path).unwrap());
        let ids = ["a", "a.b", "c", "other"].map(|id| ContainerId::new(id).unwrap());
        let wanted: Vec<_> = ids.iter().collect();
        let look = |until| below(root.path(), &wanted, until, Path::to_owned);
        let long = Instant::now() + std::time::Duration::from_secs(60);
        let mut found = look(long).unwrap();
        // Of one name the least nested.
        for (id, path) in ids.iter().zip([&paths[0], &paths[1], &paths[2]]) {
            assert_eq!(found.remove(id), Some(path.clone()));
        }
        assert_eq!(found, BTreeMap::new());
        assert_eq!(look(Instant::now()), Err(BTreeMap::new()));
    }

    #[test]
    fn a_process_in_the_root_cgroup_is_in_no_containers() {
        let own = std::process::id();
        let cgroup = freezer_cgroup(own);
        assert!(cgroup.is_none_or(|cgroup| is_below(own, &cgroup)));
        assert!(!is_below(own, "/") && !is_below(own, "/extvol-no-such-cgroup"));
        assert!(!is_alive("/extvol-no-such-cgroup") || !Path::new(FREEZER).join("cgroup.procs").exists());
    }
}
