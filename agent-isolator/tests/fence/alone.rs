//! Runs a test as a host of its own: in a mount and a pid namespace that end with it, so that neither a mount nor a process is
//! left of it, however it ends, and so that nothing else on this machine gets copies of its mounts. Loop devices and cgroups are
//! the machine's, and are taken down here afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const INSIDE: &str = "EXTVOL_TEST_INSIDE";

/// Written at the end of a test's body: a name that selects no test would pass, too.
const RAN: &str = "ran";

/// Where the freezer hierarchy is.
pub(crate) const FREEZER: &str = "/sys/fs/cgroup/freezer";

/// What a test has for itself.
pub(crate) struct Alone {
    /// An empty directory.
    pub(crate) directory: PathBuf,
    /// The name of a freezer cgroup, below the hierarchy's root.
    pub(crate) cgroup: String,
}

/// Runs `body` in the process that is alone, and waits for that in the one that is not.
pub(crate) fn alone(test: &str, body: impl FnOnce(&Alone)) {
    if let Some(directory) = std::env::var_os(INSIDE) {
        let directory = PathBuf::from(directory);
        let cgroup = cgroup_of(&directory);
        body(&Alone { directory: directory.clone(), cgroup });
        fs::write(directory.join(RAN), "").unwrap();
        return;
    }
    let directory = tempfile::Builder::new().prefix("extvol-fence-").tempdir().unwrap();
    let _taken_down = Remains(directory.path().to_owned());
    fs::create_dir_all(Path::new(FREEZER).join(cgroup_of(directory.path()))).unwrap();
    let status = Command::new("setpriv")
        .args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .args(["--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(INSIDE, directory.path())
        .status()
        .unwrap();
    assert!(status.success(), "{test}: {status}; see above");
    assert!(directory.path().join(RAN).exists(), "{test} is not the name of this test");
}

fn cgroup_of(directory: &Path) -> String {
    directory.file_name().unwrap().to_str().unwrap().replace('.', "")
}

/// Loop devices and cgroups of a test whose processes and mounts are gone.
struct Remains(PathBuf);

impl Drop for Remains {
    fn drop(&mut self) {
        let listed =
            Command::new("losetup").args(["--noheadings", "--list", "--output", "NAME,BACK-FILE"]).output();
        let listed =
            listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        for line in listed.lines().filter(|line| line.contains(self.0.to_str().unwrap_or("nowhere"))) {
            let device = line.split_whitespace().next().unwrap_or_default();
            let _gone = Command::new("losetup").args(["-d", device]).status();
        }
        for cgroup in cgroups(&cgroup_of(&self.0)) {
            remove_cgroup(&cgroup);
        }
    }
}

/// The cgroups of all hierarchies whose names end with a test's own, or go on behind it.
pub(crate) fn cgroups(own: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let below =
        hierarchies.flat_map(|hierarchy| fs::read_dir(hierarchy.path()).into_iter().flatten().flatten());
    below
        .filter(|entry| entry.file_name().to_string_lossy().contains(own) && entry.path().is_dir())
        .map(|entry| entry.path())
        .collect()
}

fn remove_cgroup(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _thawed = fs::write(cgroup.join("freezer.state"), "THAWED");
    // The last process may still be on its way out.
    let _removed = (0..500).any(|_| {
        let gone = fs::remove_dir(cgroup).is_ok() || !cgroup.exists();
        if !gone {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        gone
    });
}
