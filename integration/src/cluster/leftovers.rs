//! What outlives the processes of a cluster: cgroups and loop devices; found and removed. Mounts do not: hosts
//! mount in their own namespaces only.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// The kernel finishes with a namespace shortly after its last process.
const KERNEL: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const CGROUPS: &str = "/sys/fs/cgroup";

/// The name of the cgroup root of one host's agent, in every hierarchy that the agent uses.
pub(super) fn cgroup_root(id: &str, host: &str) -> String {
    format!("extvol_{id}_{host}")
}

/// What a keeper puts before the name of its agent's cgroup root, for its guard's cgroup.
const GUARD: &str = "extvol-guard.";

/// The cgroups that the agents of a cluster made, and its keepers' guards.
pub(super) struct Cgroups {
    prefix: String,
    whole_name: bool,
}

impl Cgroups {
    pub(super) fn of_cluster(id: &str) -> Self {
        Self { prefix: cgroup_root(id, ""), whole_name: false }
    }

    pub(super) fn of_host(id: &str, host: &str) -> Self {
        Self { prefix: cgroup_root(id, host), whole_name: true }
    }

    /// Lets frozen processes run, that is, die.
    pub(super) fn thaw(&self) {
        for cgroup in self.roots().iter().flat_map(|root| depth_first(root)) {
            // No such file in a hierarchy other than the freezer's.
            let _no_freezer = fs::write(cgroup.join("freezer.state"), "THAWED");
        }
    }

    /// Removes them; a cgroup is busy until the kernel has forgotten its last process.
    pub(super) fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + KERNEL;
        loop {
            let mut failed = None;
            for cgroup in self.roots().iter().flat_map(|root| depth_first(root)) {
                if let Err(error) = fs::remove_dir(&cgroup) {
                    failed = Some(io::Error::new(error.kind(), format!("{}: {error}", cgroup.display())));
                }
            }
            match failed {
                None => return Ok(()),
                Some(error) if Instant::now() > deadline => return Err(error),
                Some(_) => thread::sleep(LOOK_AGAIN),
            }
        }
    }

    fn roots(&self) -> Vec<PathBuf> {
        let hierarchies = subdirectories(Path::new(CGROUPS));
        let all = hierarchies.iter().flat_map(|hierarchy| subdirectories(hierarchy));
        all.filter(|root| {
            let name = root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let name = name.strip_prefix(GUARD).unwrap_or(&name);
            if self.whole_name { name == self.prefix } else { name.starts_with(&self.prefix) }
        })
        .collect()
    }
}

fn subdirectories(of: &Path) -> Vec<PathBuf> {
    // One that is gone by now has none.
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn depth_first(root: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = subdirectories(root).iter().flat_map(|child| depth_first(child)).collect();
    all.push(root.to_path_buf());
    all
}

/// Detaches the loop devices whose backing file lies below the cluster's directory. The path that the
/// kernel tells depends on the mount through which the file was opened, so files are known by inode.
pub(super) fn detach_loop_devices(directory: &Path) -> io::Result<()> {
    let deadline = Instant::now() + KERNEL;
    let mut files = BTreeSet::new();
    collect_files(directory, &mut files);
    loop {
        let left = loop_devices_of(&files, directory)?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("loop devices {left:?} stay attached")));
        }
        for device in &left {
            // Busy for as long as a dead namespace holds a mount: tried again.
            let _busy = Command::new("losetup").args(["--detach", device]).output()?;
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// The regular files below a directory, as `losetup` names them: inode and device number.
fn collect_files(directory: &Path, files: &mut BTreeSet<(String, String)>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            collect_files(&entry.path(), files);
        } else if metadata.is_file() {
            let (major, minor) = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
            files.insert((metadata.ino().to_string(), format!("{major}:{minor}")));
        }
    }
}

fn loop_devices_of(files: &BTreeSet<(String, String)>, directory: &Path) -> io::Result<Vec<String>> {
    let columns = "NAME,BACK-INO,BACK-MAJ:MIN,BACK-FILE";
    let list =
        Command::new("losetup").args(["--list", "--noheadings", "--raw", "--output", columns]).output()?;
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let ours = |line: &&str| {
        let mut fields = line.split(' ').skip(1);
        let file =
            (fields.next().unwrap_or_default().to_owned(), fields.next().unwrap_or_default().to_owned());
        files.contains(&file) || fields.next().is_some_and(|path| Path::new(path).starts_with(directory))
    };
    Ok(list.lines().filter(ours).filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}
