//! Whether anything of a container still runs. Mesos never calls `cleanup` for a container whose processes it could
//! not kill in time, and not before its agent is back; the keeper sees for itself when they are gone.
//!
//! This only ever ends a container's use of its volumes, never the container. Were it wrong, the driver's umount would
//! fail as busy, and the device would not be proved idle.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// Where the freezer hierarchy is mounted, as Mesos has it.
const FREEZER: &str = "/sys/fs/cgroup/freezer";

/// The freezer cgroup of a process, as its path below the hierarchy's root.
#[must_use]
pub fn freezer_cgroup(pid: u32) -> Option<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    table.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|controller| controller == "freezer").then(|| path.to_owned())
    })
}

/// Whether a container's first process, or any in its cgroup or one nested in it, is there. What cannot be read counts
/// as there.
#[must_use]
pub fn is_alive(pid: u32, cgroup: Option<&str>) -> bool {
    // The root is no container's: one without a cgroup of its own is known by its first process alone.
    match cgroup.map(|path| path.trim_matches('/')).filter(|path| !path.is_empty()) {
        Some(path) => has_processes(&PathBuf::from(FREEZER).join(path)),
        None => Path::new(&format!("/proc/{pid}")).exists(),
    }
}

fn has_processes(cgroup: &Path) -> bool {
    match fs::read(cgroup.join("cgroup.procs")) {
        Ok(processes) if processes.is_empty() => {}
        // Mesos removes the cgroup when all has ended.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
        _ => return true,
    }
    match fs::read_dir(cgroup) {
        Ok(nested) => nested.flatten().any(|entry| {
            entry.file_type().is_ok_and(|kind| kind.is_dir()) && has_processes(&entry.path())
        }),
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
    fn a_process_without_a_cgroup_of_its_own_is_known_by_its_number() {
        let own = std::process::id();
        assert!(is_alive(own, None) && is_alive(own, Some("/")));
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        assert!(!is_alive(ended.id(), None));
    }
}
