//! Makes one volume's file system unable to be written to, and proves it. Runs in a process of its own: any step may block for
//! ever on a device that hangs.
//!
//! 1. Shut the file system down, by every handle on it that can be had: the host's mounts, and, where it is held elsewhere, the
//!    mounts and open files of others.
//! 2. Unmount it from the host; lazily, where it is busy. That is no proof of anything.
//! 3. The proof: the kernel lets the device be claimed as a whole, or the disk is gone, or the file system was shut down. Without
//!    one, who pins it in another mount namespace is killed, and it is tried again.
//!
//! The host's own file systems are refused, by the device number of the very file that the shutdown is sent to.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use shared::protocol::holder::MountedVolume;

use super::device::{Claim, Device, hosts_own, number_of};
use super::shutdown::{Shutdown, shut_down, was_shut_down};
use super::witness::{self, Stranger};
use crate::keeper::mount_table::{self, Mount};
use crate::keeper::mounts::is_of;
use crate::keeper::process;

/// For so long one attempt waits for the proof.
const ATTEMPT: Duration = Duration::from_millis(500);

/// A file system that is shut down and unmounted lets go of its device within this, unless something pins it.
const LETTING_GO: Duration = Duration::from_millis(100);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Makes the volume's file system idle; `own` are paths on the host's own file systems.
///
/// # Errors
/// Why it is not proved, and what pins it.
pub(super) fn make_idle(mounted: &MountedVolume, own: &[PathBuf]) -> Result<(), String> {
    let unreadable = |error: io::Error| format!("the mount tables: {error}");
    let table = mount_table::own().map_err(unreadable)?;
    let hosts = hosts_own(&table, own);
    if let Some(path) = hosts.get(&*mounted.device_number) {
        let (number, path) = (&mounted.device_number, path.display());
        return Err(format!("device {number} is the host's own, with {path} on it: it is never shut down"));
    }
    let mut volume = Volume { mounted, device: Device::recorded(mounted), hosts, shut: false };
    if volume.device.as_ref().is_some_and(Device::is_gone) {
        // What has its number now, if anything, is another disk.
        return Ok(());
    }
    volume.shut_down_on_host(&table);
    volume.unmount_on_host(&table).map_err(unreadable)?;
    volume.prove().map_err(unreadable)?
}

struct Volume<'a> {
    mounted: &'a MountedVolume,
    device: Option<Device>,
    hosts: BTreeMap<String, PathBuf>,
    shut: bool,
}

impl Volume<'_> {
    /// Shuts down what an open file is on, if that is this volume's file system and none of the host's.
    fn shut_down(&mut self, file: &OwnedFd) {
        let Ok(number) = number_of(file) else { return };
        // btrfs gives each subvolume a number of its own; it has no shutdown to send either.
        if number != *self.mounted.device_number || self.hosts.contains_key(&number) {
            return;
        }
        self.shut |= shut_down(file) == Shutdown::Done;
    }

    fn shut_down_by(&mut self, path: &Path) {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => self.shut_down(&file),
            // An earlier attempt shut it down: xfs then opens nothing any more, and ext4 no file.
            Err(Errno::IO) => {
                let same =
                    |handle: &OwnedFd| number_of(handle).is_ok_and(|n| n == *self.mounted.device_number);
                let handle = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok();
                self.shut |= handle.filter(same).is_some_and(was_shut_down);
            }
            Err(_) => {}
        }
    }

    fn shut_down_on_host(&mut self, table: &[Mount]) {
        for mount in table.iter().filter(|mount| is_of(self.mounted)(mount)) {
            if self.shut {
                return;
            }
            self.shut_down_by(&mount.mount_point);
        }
    }

    /// Takes all of the host's mounts of it away. Of stacked mounts the last one goes first.
    fn unmount_on_host(&self, table: &[Mount]) -> io::Result<()> {
        let mut mounts: Vec<_> = table.iter().filter(|mount| is_of(self.mounted)(mount)).collect();
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
            let on_host = mount_table::own()?.into_iter().find(|mount| is_of(self.mounted)(mount));
            let strangers = self.strangers()?;
            let mut why = match (&self.device, &on_host) {
                (Some(device), _) => match device.claim() {
                    Claim::Idle => return Ok(Ok(())),
                    // Nothing reaches a disk that is gone; that of the record does not come back.
                    Claim::Gone => return Ok(Ok(())),
                    Claim::Busy => format!("{} is held", device.path.display()),
                    Claim::Unknown(why) => why,
                },
                (None, None) if strangers.is_empty() => return Ok(Ok(())),
                (None, _) => format!("the file system {} is mounted", self.mounted.device_number),
            };
            if self.shut && began.elapsed() >= LETTING_GO {
                return Ok(Ok(()));
            }
            if !self.shut {
                self.shut_down_elsewhere(&strangers);
            }
            // While the host's mount is there, theirs may be copies that go with it.
            if !self.shut && on_host.is_none() {
                strangers.iter().for_each(|(stranger, _)| stranger.kill());
            }
            if began.elapsed() < ATTEMPT {
                thread::sleep(PAUSE);
                continue;
            }
            if let Some(mount) = on_host {
                why += &format!(", by the host's mount at {}", mount.mount_point.display());
            }
            for (stranger, point) in &strangers {
                let name = witness::in_words(stranger.id.pid);
                why +=
                    &format!(", by {name}, which has it at {} in its own mount namespace", point.display());
            }
            why += &self.holders();
            return Ok(Err(why));
        }
    }

    /// Who has it mounted in another mount namespace than the host's, and where.
    fn strangers(&self) -> io::Result<Vec<(Stranger, PathBuf)>> {
        let sees = |stranger: Stranger| {
            let mount = stranger.mounts().into_iter().find(|mount| is_of(self.mounted)(mount))?;
            Some((stranger, mount.mount_point))
        };
        Ok(witness::strangers()?.into_iter().filter_map(sees).collect())
    }

    /// The host's mount is gone, and others hold on: by mounts of theirs, or by open files alone.
    fn shut_down_elsewhere(&mut self, strangers: &[(Stranger, PathBuf)]) {
        for (stranger, point) in strangers {
            let root = PathBuf::from(format!("/proc/{}/root", stranger.id.pid));
            self.shut_down_by(&root.join(point.strip_prefix("/").unwrap_or(point)));
        }
        for (_, file) in self.open_files() {
            if self.shut {
                return;
            }
            self.shut_down_by(&file);
        }
    }

    /// Open files and directories on it, of all processes, each with its pid.
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
        let of_process = |pid: u32| {
            let process = PathBuf::from(format!("/proc/{pid}"));
            let files =
                fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|file| file.path());
            let files: Vec<_> = files.chain(["cwd", "root"].map(|name| process.join(name))).collect();
            files.into_iter().filter(is_on_it).map(move |path| (pid, path))
        };
        process::pids().into_iter().flat_map(of_process).collect()
    }

    /// Who holds it open, in words.
    fn holders(&self) -> String {
        let holders: std::collections::BTreeSet<_> =
            self.open_files().into_iter().map(|(pid, _)| pid).collect();
        let words = holders.into_iter().map(|pid| format!(", by open files of {}", witness::in_words(pid)));
        words.take(5).collect()
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
