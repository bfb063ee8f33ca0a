//! A volume's device, and which file systems are the host's own. Whether a device is idle is asked of the kernel (L4).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use shared::protocol::holder::{BlockDevice, MountedVolume};

use crate::keeper::mount_table::Mount;
use crate::keeper::mounts;

/// Whose file systems are never shut down, wherever else they are mounted.
const HOSTS_OWN: [&str; 13] = [
    "/", "/boot", "/dev", "/dev/shm", "/etc", "/home", "/proc", "/root", "/run", "/sys", "/tmp", "/usr",
    "/var",
];

/// `major:minor`, as mount tables have it.
pub(super) fn number(device: u64) -> String {
    format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
}

/// xfs's number in statfs(2).
const XFS: u64 = 0x5846_5342;

/// The device number of the file system of an open file. For btrfs it is another one than the mount table's.
pub(super) fn number_of(file: impl AsFd) -> Result<String, Errno> {
    match rustix::fs::fstat(&file) {
        Ok(found) => Ok(number(found.st_dev)),
        // An xfs that is shut down tells nothing of its files, but still its id, which is its device's number.
        Err(Errno::IO) => {
            let kind = rustix::fs::fstatfs(&file)?.f_type;
            let id = rustix::fs::fstatvfs(&file)?.f_fsid;
            if u64::try_from(kind) == Ok(XFS) { Ok(encoded_number(id)) } else { Err(Errno::IO) }
        }
        Err(error) => Err(error),
    }
}

/// A device number as the kernel writes it into one word: twelve bits of the major between the minor's low eight and the rest.
fn encoded_number(word: u64) -> String {
    format!("{}:{}", word >> 8 & 0xfff, word & 0xff | word >> 12 & 0xf_ff00)
}

/// The host's own file systems by device number, each with a path that is on it: those of the usual paths and of `paths`, and
/// whatever is mounted outside the mount roots. By the mount table alone.
pub(super) fn hosts_own(table: &[Mount], paths: &[PathBuf], roots: &[PathBuf]) -> BTreeMap<String, PathBuf> {
    let roots = real(roots);
    let outside = table.iter().filter(|mount| !is_below(&mount.mount_point, &roots));
    let outside = outside.map(|mount| (mount.device_number.clone(), mount.mount_point.clone()));
    let paths: Vec<_> = paths.iter().chain(&roots).cloned().collect();
    // The usual paths last: they are the better names.
    outside.chain(usual(table, &paths)).collect()
}

/// The file systems of the usual paths and of `paths` by device number, each with a path that is on it. By the mount table alone.
pub(in crate::keeper) fn usual(table: &[Mount], paths: &[PathBuf]) -> BTreeMap<String, PathBuf> {
    let shown = |path: PathBuf| {
        let covering = table.iter().filter(|mount| path.starts_with(&mount.mount_point));
        // The deepest; of stacked ones the last that was mounted.
        let top = covering.max_by_key(|mount| (mount.mount_point.components().count(), mount.id))?;
        Some((top.device_number.clone(), path))
    };
    real(paths).into_iter().chain(HOSTS_OWN.iter().map(PathBuf::from)).filter_map(shown).collect()
}

/// Paths as mount tables have them, without links.
pub(super) fn real(paths: &[PathBuf]) -> Vec<PathBuf> {
    paths.iter().map(|path| path.canonicalize().unwrap_or_else(|_| path.clone())).collect()
}

/// Whether a mount point lies below one of the roots, which are real paths; a root itself does not.
pub(super) fn is_below(mount_point: &Path, roots: &[PathBuf]) -> bool {
    roots.iter().any(|root| mount_point != root && mount_point.starts_with(root))
}

/// A block device, told apart from a later one of the same name or number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) path: PathBuf,
    pub(super) number: String,
    disk_sequence: Option<u64>,
}

/// What the kernel says to a claim of the whole device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// Nothing holds it.
    Idle,
    /// The disk that was mounted is not there any more.
    Gone,
    /// A mount in some namespace holds it, or another device does.
    Busy,
    /// It cannot be told.
    Unknown(String),
}

impl Device {
    /// That which a record names; none for a file system without one.
    pub(super) fn recorded(mounted: &MountedVolume) -> Option<Self> {
        if let Some(BlockDevice { path, number, disk_sequence }) = &mounted.device {
            let (path, number) = (PathBuf::from(&**path), number.to_string());
            return Some(Self { path, number, disk_sequence: *disk_sequence });
        }
        let uevent = fs::read_to_string(mounts::in_sys(&mounted.device_number).join("uevent")).ok()?;
        let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
        let path = Path::new("/dev").join(name);
        Some(Self { path, number: mounted.device_number.to_string(), disk_sequence: None })
    }

    /// Whether the disk that was mounted is not there any more: none has its sequence number, which is never given twice. What
    /// shows its device number is none of the volume's.
    pub(super) fn is_gone(&self) -> bool {
        let Some(recorded) = self.disk_sequence else { return false };
        // On a host with many disks looking at all takes its time, and nearly always it is where it was.
        if mounts::disk_sequence(&self.number) == Some(recorded) {
            return false;
        }
        let all = disk_sequences();
        !all.is_empty() && !all.contains(&recorded)
    }

    /// Asks the kernel for the device as a whole, and gives it back at once.
    pub(super) fn claim(&self) -> Claim {
        if self.is_gone() {
            return Claim::Gone;
        }
        if !self.number.is_empty() && !mounts::in_sys(&self.number).exists() && mounts::in_sys("").is_dir() {
            return Claim::Gone;
        }
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::open(&self.path, flags, Mode::empty()) {
            Ok(node) if self.is_node(&node) => Claim::Idle,
            Ok(_) => Claim::Unknown(format!("{} is another device now", self.path.display())),
            Err(Errno::BUSY) => Claim::Busy,
            Err(Errno::NXIO | Errno::NODEV | Errno::NOMEDIUM) => Claim::Gone,
            Err(error) => Claim::Unknown(format!("{} could not be opened: {error}", self.path.display())),
        }
    }

    fn is_node(&self, node: impl AsFd) -> bool {
        rustix::fs::fstat(node).is_ok_and(|found| {
            FileType::from_raw_mode(found.st_mode) == FileType::BlockDevice
                && number(found.st_rdev) == self.number
        })
    }
}

/// What is mounted, in the words of a record. Its device number is what counts: a mount point that is not UTF-8 is told as near
/// as it can be.
pub(super) fn describe(mount: &Mount) -> MountedVolume {
    mounts::of(mount, &mount.mount_point.to_string_lossy())
}

/// The sequence numbers of all disks; none where the kernel has no such numbers.
fn disk_sequences() -> BTreeSet<u64> {
    let disks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    disks
        .filter_map(|disk| fs::read_to_string(disk.path().join("diskseq")).ok()?.trim().parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_number_in_one_word_is_read_as_the_kernel_writes_it() {
        let written = |major: u64, minor: u64| minor & 0xff | major << 8 | (minor & !0xff) << 12;
        for (major, minor) in [(7, 3), (259, 0), (259, 255), (259, 256), (4095, 0xf_ffff)] {
            assert_eq!(encoded_number(written(major, minor)), format!("{major}:{minor}"));
        }
    }
}
