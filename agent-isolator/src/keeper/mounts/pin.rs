//! The keeper's own mount of a directory in a volume.
//!
//! RexRay answers a directory in the volume, `<mount>/data`. Mesos's launch helper resolves that path when the container starts,
//! which is long after it was looked at; whoever writes to the volume by another way meanwhile (a server's other clients, what was
//! on it before) may have made a link of it, to another volume or to the host's own files. So the keeper mounts the very directory that it has
//! looked at, by its descriptor, at a place of its own below the root, and containers get that. It is taken away before the
//! driver is asked to unmount, and whatever is left of it is in the mount table like any other mount of the volume.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_bind, mount_remount};
use shared::protocol::holder::MountedVolume;
use shared::volume::VolumeId;

use super::{Mount, PINS, is_of, mount_table, take_away};

/// Of a volume's name, as much as stands in its pin's.
const NAME_BYTES_MAX: usize = 100;

/// Opens what is at a path below a root, without following any link.
pub(super) fn open_below(root: &Path, below: &Path) -> Result<OwnedFd, Errno> {
    let directory = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let root = rustix::fs::open(root, directory, Mode::empty())?;
    let no_links = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    openat2(&root, below, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), no_links)
}

/// An open file's path, which leads to that file whatever becomes of its name.
fn by_descriptor(file: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Where the pin of a volume is. The name is for people; the number tells apart what is cut or looks alike.
fn place(root: &Path, volume: &VolumeId) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    volume.hash(&mut hasher);
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let mut name: String = volume.to_string().chars().map(plain).collect();
    name.truncate(NAME_BYTES_MAX);
    root.join(PINS).join(format!("{name}-{:016x}", hasher.finish()))
}

/// Mounts an open directory of a volume at a place of its own, and answers where.
///
/// # Errors
/// A sentence.
pub(super) fn pin(root: &Path, volume: &VolumeId, directory: &OwnedFd) -> Result<String, String> {
    let place = place(root, volume);
    let shown = place.display();
    let fault = |error: Errno| format!("the keeper's own mount at {shown} could not be made: {error}");
    let below = place.strip_prefix(root).unwrap_or(&place);
    for part in [Path::new(PINS), below] {
        match mkdirat(open_below(root, Path::new("")).map_err(fault)?, part, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(fault(error)),
        }
    }
    // What an earlier life left; no container has it, for none has this volume yet.
    unmount_all(&place).map_err(|why| format!("what is mounted at {shown} is in the way: {why}"))?;
    let target = open_below(root, below).map_err(fault)?;
    mount_bind(by_descriptor(directory), by_descriptor(&target)).map_err(fault)?;
    place.into_os_string().into_string().map_err(|place| format!("{} is not UTF-8", place.display()))
}

/// Takes the pin of a volume away.
///
/// # Errors
/// A sentence.
pub fn unpin(mounted: &MountedVolume) -> Result<(), String> {
    let Some(pin) = &mounted.pin else { return Ok(()) };
    let place = Path::new(&**pin);
    let held = |why| format!("the keeper's own mount of it stays: {why}");
    unmount_all(place).map_err(held)?;
    // Its directory is of no account.
    let _left = fs::remove_dir(place);
    Ok(())
}

/// Takes away what is at the place of a volume's pin.
///
/// # Errors
/// A sentence.
pub(super) fn unpin_place(root: &Path, volume: &VolumeId) -> Result<(), String> {
    unmount_all(&place(root, volume)).map_err(|why| format!("the keeper's own mount of it stays: {why}"))
}

fn unmount_all(place: &Path) -> Result<(), String> {
    let table = mount_table::own().map_err(|error| format!("the mount table: {error}"))?;
    let at = table.iter().filter(|mount| mount.mount_point == place);
    take_away(at).map_or(Ok(()), Err)
}

/// Whether the pin is mounted.
pub(super) fn is_pinned(mounted: &MountedVolume, table: &[Mount]) -> bool {
    let at =
        |pin: &str| table.iter().any(|mount| mount.mount_point == Path::new(pin) && is_of(mounted)(mount));
    mounted.pin.as_deref().is_none_or(at)
}

/// Makes a mount one from which no program gains rights, and on which no file stands for a device: a volume's content is anybody's,
/// and tasks run on hosts that are not.
///
/// # Errors
/// A sentence.
pub(super) fn set_nosuid_nodev(root: &Path, mount: &Mount) -> Result<(), String> {
    let at = mount.mount_point.display();
    let fault = |error: Errno| format!("the mount at {at} could not be made nosuid and nodev: {error}");
    let below = mount.mount_point.strip_prefix(root).map_err(|_| fault(Errno::XDEV))?;
    let top = open_below(root, below).map_err(fault)?;
    let shown = mount_table::showing_file(&top).map_err(|error| format!("the mount at {at}: {error}"))?;
    if shown.is_none_or(|shown| shown.id != mount.id) {
        return Err(format!("another mount has covered that at {at}"));
    }
    // What is not named here is cleared, but for the times of access.
    let kept = [("ro", MountFlags::RDONLY), ("noexec", MountFlags::NOEXEC)];
    let kept = kept.into_iter().filter(|(name, _)| mount.options.split(',').any(|option| option == *name));
    let flags = kept.fold(MountFlags::empty(), |flags, (_, flag)| flags | flag);
    let flags = flags | MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount(by_descriptor(&top), flags, "").map_err(fault)
}
