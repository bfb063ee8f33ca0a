//! Processes that have files of a volume open, by its device number, or by the path of its directory: after a lazy unmount no
//! mount table shows it, and writes go on.
//!
//! What no process shows is not found: a file that is under way in a socket's queue or belongs to an `io_uring` alone, a loop device or swap on
//! a file of it, what a kernel's NFS server exports, and what a FUSE daemon has not yet written to its storage.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use shared::protocol::holder::{Directory, MountedVolume};

use super::is_of;
use crate::keeper::mount_table;
use crate::keeper::process;

/// How a process holds the file system; none when it does not.
pub(in crate::keeper) fn holds(pid: u32, mounted: &MountedVolume) -> Option<String> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    // Threads may have files and directories of their own.
    let threads = fs::read_dir(process.join("task")).into_iter().flatten().flatten();
    let by_thread = |thread: &Path| {
        let named = ["cwd", "root", "exe"].map(|name| (name, thread.join(name)));
        let files = fs::read_dir(thread.join("fd")).into_iter().flatten().flatten();
        let files = files.map(|file| ("open file", file.path()));
        named.into_iter().chain(files).find(|(_, path)| is_on(path, pid, mounted)).map(|(what, _)| what)
    };
    let what = threads.map(|thread| thread.path()).find_map(|thread| by_thread(&thread));
    what.or_else(|| maps(&process, pid, mounted).then_some("map")).map(|what| match what {
        "cwd" => "its working directory".to_owned(),
        "root" => "its root directory".to_owned(),
        "exe" => "its program".to_owned(),
        "map" => "a mapped file".to_owned(),
        _ => "an open file".to_owned(),
    })
}

/// Whether what a link of /proc leads to is on the file system. Nothing is opened, and no server is asked.
fn is_on(link: &Path, pid: u32, mounted: &MountedVolume) -> bool {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    // It has ended, was closed, or is a kernel thread's.
    let Ok(found) = statx(CWD, link, flags, StatxFlags::TYPE | StatxFlags::MNT_ID) else { return false };
    if let Some(directory) = &mounted.directory {
        let number = format!("{}:{}", found.stx_dev_major, found.stx_dev_minor);
        return *number == *directory.files && is_in(link, pid, found.stx_mnt_id, directory);
    }
    if format!("{}:{}", found.stx_dev_major, found.stx_dev_minor) != *mounted.device_number {
        return false;
    }
    // Several mounts of one server may share a number: what is on another one, which is still mounted, is not this volume's.
    let table = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let mount = mount_table::parse(&table).into_iter().find(|mount| mount.id == found.stx_mnt_id);
    mount.is_none_or(|mount| is_of(mounted)(&mount))
}

/// Whether what a link of /proc leads to, by this mount, is in the directory. Of a mount that is in no table it cannot be told, and
/// is taken so.
fn is_in(link: &Path, pid: u32, mount: u64, directory: &Directory) -> bool {
    let by = |table: &[u8]| mount_table::parse(table).into_iter().find(|found| found.id == mount);
    let read = |whose: &str| fs::read(format!("/proc/{whose}/mountinfo")).unwrap_or_default();
    // An agent's containers have files of its own mount namespace.
    let Some(mount) = by(&read(&pid.to_string())).or_else(|| by(&read("self"))) else { return true };
    if directory.holds(&mount.device_number, &mount.root) {
        return true;
    }
    let Ok(path) = fs::read_link(link) else { return false };
    let below = path.strip_prefix(&mount.mount_point).map(|rest| mount.root.join(rest));
    below.is_ok_and(|path| directory.holds(&mount.device_number, &path))
}

/// Whether a file of it is mapped: a map outlives its descriptor.
fn maps(process: &Path, pid: u32, mounted: &MountedVolume) -> bool {
    let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
    maps.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let range = fields.next().unwrap_or_default();
        let number = fields.nth(2).and_then(|number| {
            let (major, minor) = number.split_once(':')?;
            Some((u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?))
        });
        let is_its = number.is_some_and(|(major, minor)| {
            let number = format!("{major}:{minor}");
            match &mounted.directory {
                // Which of the two the kernel writes there depends on the file system.
                Some(Directory { file_system, files, .. }) => *number == **file_system || *number == **files,
                None => number == *mounted.device_number,
            }
        });
        // The kernel writes the range without leading zeros in the one, and as here in the other.
        let file = process.join("map_files").join(range);
        is_its && (is_on(&file, pid, mounted) || !file.exists())
    })
}

/// A process that holds the file system, in words.
pub(super) fn holder(mounted: &MountedVolume) -> Option<String> {
    let own = std::process::id();
    // A process that was made by one that has ended since may have been missed: the second look finds it.
    for _ in 0..2 {
        for pid in process::pids().into_iter().filter(|pid| *pid != own) {
            if let Some(how) = holds(pid, mounted) {
                return Some(format!("{}, by {how},", super::idle::in_words(pid)));
            }
        }
    }
    None
}
