//! The host's mounts: what a driver mounted, whether it may be used, and the proof that it is gone.
//!
//! ```text
//! mod.rs       roots, what is mounted below them, and what was before a driver was called
//! identify.rs  what a driver's Mount has mounted, and whether it is this volume's
//! directory.rs the same, of drivers whose volumes are directories
//! storage.rs   what identifies the storage behind a mount
//! pin.rs       the keeper's own mount of a directory in a volume; nosuid and nodev
//! idle.rs      the proof that a volume is not in use
//! files.rs     processes that have files of a file system open
//! look.rs      whether a volume is still mounted as it was, and who else sees it
//! ```
//!
//! What a driver answers is a path, and no proof of anything: it may lead through a link that a task has made inside its volume, to
//! a mount that was there before, to another volume, or to a directory of the host's own disk. So what was mounted is told
//! by comparing the kernel's mount table with that of before the call.
//!
//! All of this may block for as long as a file system or device does: it runs in helper processes (`probe.rs`).

mod directory;
mod files;
mod identify;
mod idle;
mod look;
mod pin;
mod storage;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};
use shared::protocol::holder::MountedVolume;
use shared::volume::VolumeId;

pub(super) use self::directory::behind_pin;
pub(super) use self::files::{Scan, lives};
pub use self::identify::{MountCall, Refusal, Undo, identify};
pub use self::idle::{Proof, ProofCall, prove_idle};
pub use self::look::{ailing, look};
pub use self::pin::unpin;
pub(super) use self::storage::{disk_sequence, in_sys};
use super::mount_table::{self, Mount};
use super::{alive, fence};

/// Below a mount root: where the keeper's own mounts are.
const PINS: &str = ".extvol";

/// Where volumes are on this host, and what is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// The directories below which drivers mount.
    pub roots: Vec<PathBuf>,
    /// Paths on the host's own file systems, beside the usual ones.
    pub hosts_own: Vec<PathBuf>,
    /// The freezer cgroup below which the agent's containers are, such as `/mesos`.
    pub cgroup_root: Option<String>,
}

impl Places {
    /// The root that a path lies below, by its real path, and the rest of the path, of which no part was resolved. A
    /// link may lead to a root, and is the operator's; below it whoever writes to a volume could make one.
    fn below_root(&self, path: &Path) -> Option<(PathBuf, PathBuf)> {
        if path.components().any(|part| matches!(part, Component::ParentDir)) {
            return None;
        }
        let roots = self.real_roots();
        // The shortest first, so that nothing below a root is resolved.
        let mut ancestors: Vec<_> = path.ancestors().collect();
        ancestors.reverse();
        ancestors.into_iter().find_map(|ancestor| {
            let real = ancestor.canonicalize().ok()?;
            let rest = path.strip_prefix(ancestor).ok()?;
            roots.contains(&real).then(|| (real, rest.to_owned()))
        })
    }

    /// The roots' real paths, as mount tables have them.
    fn real_roots(&self) -> Vec<PathBuf> {
        self.roots.iter().map(|root| root.canonicalize().unwrap_or_else(|_| root.clone())).collect()
    }

    /// The host's own file systems by device number, each with a path that is on it.
    fn hosts_own(&self, table: &[Mount]) -> BTreeMap<String, PathBuf> {
        let paths: Vec<_> = self.hosts_own.iter().cloned().chain(self.real_roots()).collect();
        fence::usual_file_systems(table, &paths)
    }

    /// Whether a process is one of the agent's containers'.
    fn is_contained(&self, pid: u32) -> bool {
        self.cgroup_root.as_deref().is_some_and(|root| alive::is_below(pid, root))
    }
}

/// What was there before a driver was called: it was not mounted by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// By number, for each held volume has the host's whole table; shared by those who remember it.
    mounts: Arc<BTreeSet<u64>>,
    /// The highest sequence number that a disk had.
    last_disk: u64,
}

impl Before {
    /// What is there now.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    pub fn now() -> io::Result<Self> {
        let mounts = mount_table::own()?.iter().map(number).collect();
        Ok(Self { mounts: Arc::new(mounts), last_disk: storage::disks().into_keys().max().unwrap_or(0) })
    }

    fn has(&self, mount: &Mount) -> bool {
        self.mounts.contains(&number(mount))
    }
}

/// Tells a mount apart from others. The kernel gives a mount's id away again, so that an id alone would not do. All processes of
/// one program have the same numbers.
fn number(mount: &Mount) -> u64 {
    let Mount { id, device_number, root, mount_point, .. } = mount;
    let mut hasher = DefaultHasher::new();
    (id, device_number, root, mount_point).hash(&mut hasher);
    hasher.finish()
}

/// What this host's other volumes have mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Others {
    /// The mounts that are known.
    pub mounted: Vec<(VolumeId, MountedVolume)>,
    /// Those whose Mount is under way, as their drivers were asked: what is new may be theirs.
    pub mounting: Vec<VolumeId>,
}

impl Others {
    /// The volume that has the same storage under another name. `mount` is the one that is looked at, of this table.
    fn same(
        &self,
        mounted: &MountedVolume,
        mount: &Mount,
        table: &[Mount],
    ) -> Option<&(VolumeId, MountedVolume)> {
        // Without a device the number is given away again with the unmount, which a volume that is being released may be
        // behind already; and the sources of some kinds are all alike (s3fs).
        let is_there = |other: &MountedVolume| {
            let elsewhere = |found: &Mount| is_of(other)(found) && found.mount_point != mount.mount_point;
            let here = Path::new(&*other.mount_point).starts_with(&mount.mount_point);
            other.device.is_some() || here || table.iter().any(elsewhere)
        };
        self.mounted.iter().find(|(_, other)| other.is_same_storage(mounted) && is_there(other))
    }

    /// Whether a mount is, by its name below a root, that of a volume which is being mounted.
    fn may_be_mounting(&self, below: &Path) -> bool {
        self.mounting.iter().any(|volume| volume.name.is_in(below))
    }

    fn have(&self, mount: &Mount) -> bool {
        self.mounted.iter().any(|(_, other)| is_of(other)(mount))
    }
}

/// Whether new mounts below `root` reach containers and leave them again when they are unmounted.
///
/// # Errors
/// A sentence with the command that mends it.
pub fn check_root(root: &Path) -> Result<(), String> {
    // The directory itself may not be there before the first mount.
    let there = root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let mount = mount_table::showing(there)
        .map_err(|error| format!("the mount at {} could not be told: {error}", root.display()))?;
    check_shared(&mount, root)
}

fn check_shared(mount: &Mount, path: &Path) -> Result<(), String> {
    if mount.shared {
        return Ok(());
    }
    let at = mount.mount_point.display();
    Err(format!(
        "the mount {at}, below which volumes are mounted at {}, is private: an unmount on this host \
         would leave copies in running containers; mend it with `mount --make-shared {at}`",
        path.display()
    ))
}

/// Closes a mount root to all but root: a task without an image sees the host's directories, and would read and write
/// the volumes of all others. Answers whether something was changed; a root that is not there yet is not made.
///
/// # Errors
/// A sentence.
pub fn close_root(root: &Path) -> Result<bool, String> {
    let fault = |error: io::Error| {
        format!("the mount root {} cannot be closed to other users: {error}", root.display())
    };
    let found = match std::fs::metadata(root) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(fault(error)),
    };
    if (found.uid(), found.gid(), found.mode() & 0o7777) == (0, 0, 0o700) {
        return Ok(false);
    }
    std::os::unix::fs::chown(root, Some(0), Some(0)).map_err(fault)?;
    std::fs::set_permissions(root, Permissions::from_mode(0o700)).map_err(fault)?;
    Ok(true)
}

/// What is mounted, with what is needed to prove later that it is gone.
pub(super) fn of(mount: &Mount, mount_point: &str) -> MountedVolume {
    let device = storage::block_device(&mount.source);
    MountedVolume {
        mount_point: mount_point.into(),
        pin: None,
        device_number: mount.device_number.as_str().into(),
        source: mount.source.as_str().into(),
        identity: storage::identity(mount, device.as_ref()).map(Into::into),
        uuid: None,
        device,
        directory: None,
        file_system: mount.file_system.as_str().into(),
        read_only: mount.is_read_only(),
        can_be_shut_down: fence::can_be_shut_down(&mount.file_system),
    }
}

/// Whether a mount is of the volume's file system, or shows its directory or a part of that. A number alone is not enough: that of
/// a file system without a device is given away again.
pub(super) fn is_of<'a>(mounted: &'a MountedVolume) -> impl Fn(&Mount) -> bool + 'a {
    |mount| {
        if let Some(directory) = &mounted.directory {
            return directory.holds(&mount.device_number, &mount.root);
        }
        *mount.device_number == *mounted.device_number
            && (!mounted.device_number.starts_with("0:") || *mount.source == *mounted.source)
    }
}

/// Of the mounts above a path the deepest, if that lies below a root: by the table alone.
fn mount_above(path: &str, roots: &[PathBuf], table: &[Mount]) -> Option<Mount> {
    let above = |mount: &&Mount| {
        roots.iter().any(|root| mount.is_below(root)) && Path::new(path).starts_with(&mount.mount_point)
    };
    table.iter().filter(above).max_by_key(|mount| mount.mount_point.components().count()).cloned()
}

/// Takes mounts away, the last that was mounted first; never lazily, which would hide them and go on. Which could not be, and
/// why.
fn take_away<'a>(mounts: impl Iterator<Item = &'a Mount>) -> Option<String> {
    let mut mounts: Vec<_> = mounts.collect();
    mounts.sort_by_key(|mount| std::cmp::Reverse(mount.id));
    let mut left = None;
    for Mount { mount_point, .. } in mounts {
        if let Err(error) = unmount(mount_point, UnmountFlags::NOFOLLOW) {
            left = Some(format!("{} could not be unmounted: {error}", mount_point.display()));
        }
    }
    left
}
