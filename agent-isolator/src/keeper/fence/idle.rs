//! Makes one volume's file system unable to be written to, and proves it. Runs in a process of its own: any step may block for
//! ever on a device that hangs.
//!
//! 1. Shut the file system down, unless it was, by every handle on it that can be had: the host's mounts, and, where it is held
//!    elsewhere, the mounts and open files of others.
//! 2. Unmount it from the host; lazily, where it is busy. That is no proof of anything.
//! 3. The proof: the kernel lets the device be claimed as a whole, or the disk is gone, or the file system was shut down. Without
//!    one, who of the agent's containers pins it in another mount namespace is killed, and it is tried again. Whoever else does
//!    is named.
//!
//! What was shut down needs no look at anybody: however many mount namespaces pin it, it is not written to.
//!
//! The host's own file systems are refused, and whatever is mounted outside the mount roots.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};
use shared::protocol::holder::MountedVolume;

use super::device::{Claim, Device, hosts_own, is_below, number_of, real};
use super::strike::{refuse_hosts_own, shut_down_by};
use super::witness::{self, Look, is_agents};
use crate::keeper::mount_table::{self, Mount};
use crate::keeper::mounts::{self, is_of};
use crate::keeper::process;

/// For so long one attempt waits for the proof.
const ATTEMPT: Duration = Duration::from_millis(500);

/// A file system that is shut down and unmounted lets go of its device within this, unless something pins it.
const LETTING_GO: Duration = Duration::from_millis(100);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// So many of those who pin a volume are named.
const NAMED: usize = 5;

/// Within what a fence acts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Limits {
    /// Below these alone anything is shut down or unmounted.
    pub(super) roots: Vec<PathBuf>,
    /// Paths on the host's own file systems.
    pub(super) own: Vec<PathBuf>,
    /// The freezer cgroup below which the agent's containers are: nobody else is killed.
    pub(super) cgroup_root: Option<String>,
}

/// Makes the volume's file system idle. `shut`: it was shut down before.
///
/// # Errors
/// Why it is not proved, and what pins it.
pub(super) fn make_idle(mounted: &MountedVolume, shut: bool, limits: &Limits) -> Result<(), String> {
    let unreadable = |error: io::Error| format!("the mount tables: {error}");
    let device = Device::recorded(mounted);
    if device.as_ref().is_some_and(Device::is_gone) {
        // What has its number now, if anything, is another disk.
        return Ok(());
    }
    let table = mount_table::own().map_err(unreadable)?;
    refuse_hosts_own(mounted, &hosts_own(&table, &limits.own, &limits.roots))?;
    let mut volume = Volume { mounted, device, limits, roots: real(&limits.roots), shut };
    volume.shut_down_on_host(&table);
    volume.unmount_on_host(&table).map_err(unreadable)?;
    volume.prove().map_err(unreadable)?
}

struct Volume<'a> {
    mounted: &'a MountedVolume,
    device: Option<Device>,
    limits: &'a Limits,
    roots: Vec<PathBuf>,
    shut: bool,
}

impl Volume<'_> {
    /// Its mounts on the host, below the roots.
    fn is_on_host(&self, mount: &Mount) -> bool {
        is_of(self.mounted)(mount) && is_below(&mount.mount_point, &self.roots)
    }

    fn shut_down_on_host(&mut self, table: &[Mount]) {
        for mount in table {
            if self.shut {
                return;
            }
            if self.is_on_host(mount) {
                self.shut = shut_down_by(&mount.mount_point, self.mounted);
            }
        }
    }

    /// Takes all of the host's mounts of it away. Of stacked mounts the last one goes first.
    fn unmount_on_host(&self, table: &[Mount]) -> io::Result<()> {
        let mut mounts: Vec<_> = table.iter().filter(|mount| self.is_on_host(mount)).collect();
        mounts.sort_by_key(|mount| std::cmp::Reverse(mount.id));
        for mount in mounts {
            let path = &mount.mount_point;
            // Covered by another volume's mount, it waits until that is gone; already gone, there is nothing to do.
            if top(path)?.is_none_or(|top| top.id != mount.id) {
                continue;
            }
            let busy = unmount(path, UnmountFlags::NOFOLLOW) == Err(Errno::BUSY);
            // Without a device nobody could be seen who holds on to it after that.
            if busy && self.device.is_some() {
                let _proved_below = unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
            }
        }
        Ok(())
    }

    fn prove(&mut self) -> io::Result<Result<(), String>> {
        let began = Instant::now();
        loop {
            let why = match self.device.as_ref().map(|device| (device, device.claim())) {
                // Nothing reaches a disk that is gone; that of the record does not come back.
                Some((_, Claim::Idle | Claim::Gone)) => return Ok(Ok(())),
                Some((device, Claim::Busy)) => format!("{} is held", device.path.display()),
                Some((_, Claim::Unknown(why))) => why,
                None => format!("the file system {} is mounted", self.mounted.device_number),
            };
            if self.shut && began.elapsed() >= LETTING_GO {
                return Ok(Ok(()));
            }
            if self.shut {
                thread::sleep(PAUSE);
                continue;
            }
            let table = mount_table::own()?;
            let on_host = table.iter().find(|mount| is_of(self.mounted)(mount));
            let agents = |pid: u32| is_agents(pid, self.limits.cgroup_root.as_deref());
            let look = witness::look(|mount| is_of(self.mounted)(mount), agents)?;
            let is_unseen = on_host.is_none() && look.sees.is_empty() && look.is_whole();
            // Of such a file system's number there is another one by now: open files are that one's.
            let is_anothers = |mount: &Mount| {
                *mount.device_number == *self.mounted.device_number && !is_of(self.mounted)(mount)
            };
            let is_unheld = || table.iter().any(is_anothers) || self.open_files().is_empty();
            let is_gone = || match mounts::lives(self.mounted, &table) {
                Some(lives) => !lives,
                None => is_unheld(),
            };
            if self.device.is_none() && is_unseen && is_gone() {
                return Ok(Ok(()));
            }
            // While the host's mount is there, theirs may be copies that go with it.
            if on_host.is_none() {
                // Whose table is too long to be looked through may have it anywhere.
                let pins = look.sees.iter().map(|(stranger, _)| stranger).chain(&look.too_long);
                pins.filter(|stranger| agents(stranger.id.pid)).for_each(witness::Stranger::kill);
            }
            self.shut_down_elsewhere(&look);
            // However long this look took: what it has just shut down is not given up.
            if self.shut || began.elapsed() < ATTEMPT {
                thread::sleep(PAUSE);
                continue;
            }
            return Ok(Err(self.obstacles(why, on_host, &look)));
        }
    }

    /// What stands in the way, in words.
    fn obstacles(&self, mut why: String, on_host: Option<&Mount>, look: &Look) -> String {
        if let Some(mount) = on_host {
            why += &format!(", by the host's mount at {}", mount.mount_point.display());
        }
        for (stranger, point) in look.sees.iter().take(NAMED) {
            let name = witness::in_words(stranger.id.pid);
            why += &format!(", by {name}, which has it at {} in its own mount namespace", point.display());
        }
        for stranger in look.too_long.iter().take(NAMED) {
            why += &format!(
                ", maybe by {}, whose mounts are too many to be seen",
                witness::in_words(stranger.id.pid)
            );
        }
        if look.missed > 0 {
            why +=
                &format!(", maybe by one of {} mount namespaces that were not reached in time", look.missed);
        }
        why + &self.holders()
    }

    /// The host's mount is gone, and others hold on: by mounts of theirs, or by open files alone.
    fn shut_down_elsewhere(&mut self, look: &Look) {
        for (stranger, point) in &look.sees {
            if self.shut {
                return;
            }
            let root = PathBuf::from(format!("/proc/{}/root", stranger.id.pid));
            self.shut = shut_down_by(&root.join(point.strip_prefix("/").unwrap_or(point)), self.mounted);
        }
        // Of a directory there is nothing to shut down.
        let files = if self.mounted.directory.is_some() { Vec::new() } else { self.open_files() };
        for (_, file) in files {
            if self.shut {
                return;
            }
            self.shut = shut_down_by(&file, self.mounted);
        }
    }

    /// Open files and directories on it, of all processes, each with its pid; of a file system without a device, which nothing else
    /// tells of, mapped ones too.
    fn open_files(&self) -> Vec<(u32, PathBuf)> {
        let is_on_it = |path: &PathBuf| {
            // As O_PATH nothing is opened: neither a device nor a pipe takes notice.
            let Ok(handle) = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else {
                return false;
            };
            let is_other =
                |mode| !matches!(FileType::from_raw_mode(mode), FileType::RegularFile | FileType::Directory);
            let is_special = rustix::fs::fstat(&handle).is_ok_and(|found| is_other(found.st_mode));
            !is_special && number_of(&handle).is_ok_and(|number| number == *self.mounted.device_number)
        };
        // Of a directory nothing is shut down by them: that they are there is enough.
        if self.mounted.directory.is_some() {
            let mut scan = mounts::Scan::new(self.mounted, self.limits.cgroup_root.as_deref());
            let holds = |pid: &u32| *pid != std::process::id() && scan.holds(*pid).is_some();
            return process::pids().into_iter().filter(holds).map(|pid| (pid, PathBuf::new())).collect();
        }
        let of_process = |pid: u32| {
            let process = PathBuf::from(format!("/proc/{pid}"));
            let files =
                fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|file| file.path());
            let mapped =
                self.device.is_none().then(|| fs::read_dir(process.join("map_files")).ok()).flatten();
            let mapped = mapped.into_iter().flatten().flatten().map(|file| file.path());
            let files: Vec<_> =
                files.chain(mapped).chain(["cwd", "root"].map(|name| process.join(name))).collect();
            files.into_iter().filter(is_on_it).map(move |path| (pid, path))
        };
        process::pids().into_iter().flat_map(of_process).collect()
    }

    /// Who holds it open, in words.
    fn holders(&self) -> String {
        let holders: std::collections::BTreeSet<_> =
            self.open_files().into_iter().map(|(pid, _)| pid).collect();
        let words = holders.into_iter().map(|pid| format!(", by open files of {}", witness::in_words(pid)));
        words.take(NAMED).collect()
    }
}

/// The mount that a path shows; none where it has gone.
fn top(path: &Path) -> io::Result<Option<Mount>> {
    match mount_table::showing(path) {
        Ok(mount) => Ok(Some(mount)),
        // Shut down, it may refuse to be looked at: then the table tells which is the last one mounted there.
        Err(_) => {
            Ok(mount_table::own()?.into_iter().filter(|mount| mount.mount_point == path).max_by_key(|m| m.id))
        }
    }
}
