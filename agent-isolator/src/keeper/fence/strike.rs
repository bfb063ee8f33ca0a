//! What must be done at once: freeze the known containers, and shut the known file systems down through the host's own mounts.
//!
//! Nothing in here takes longer because of what a tenant does: no process is looked for, and no mount table is read, neither
//! another namespace's nor, where it can be helped, the host's own, whose lock tenants can make us wait for. A path
//! is followed from the host's root to the first directory that is on the volume, and never into the volume.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use shared::protocol::holder::MountedVolume;

use super::device::{Device, hosts_own, is_below, number_of, real};
use super::kill::FREEZER;
use super::pool::Hosts;
use super::shutdown::{Shutdown, shut_down, was_shut_down};
use crate::keeper::mount_table;
use crate::keeper::mounts::is_of;

/// Freezes cgroups with all that is nested in them: the kernel does that with one write, and goes on by itself.
pub(super) fn freeze(cgroups: &[String]) -> Result<(), String> {
    let mut refused = Vec::new();
    for cgroup in cgroups {
        let relative = cgroup.trim_matches('/');
        if relative.is_empty() {
            continue;
        }
        let state = Path::new(FREEZER).join(relative).join("freezer.state");
        match fs::write(&state, "FROZEN") {
            Ok(()) => {}
            // It has gone with its container.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => refused.push(format!("{}: {error}", state.display())),
        }
    }
    if refused.is_empty() { Ok(()) } else { Err(refused.join(", ")) }
}

/// Shuts a volume's file system down through the host's own mount of it, and answers whether it is shut down: its kind may have no
/// shutdown, or it is not mounted. `may_be_hosts`: it is not known that it is none of the host's own.
///
/// # Errors
/// Why it was not, and must not be, shut down.
pub(super) fn shut_down_at_once(
    mounted: &MountedVolume,
    roots: &[PathBuf],
    own: &[PathBuf],
    may_be_hosts: bool,
) -> Result<bool, String> {
    // A directory's file system is not the volume's.
    if mounted.directory.is_some() {
        return Ok(false);
    }
    if Device::recorded(mounted).as_ref().is_some_and(Device::is_gone) {
        // What has its number now, if anything, is another disk.
        return Ok(false);
    }
    let unreadable = |error: std::io::Error| format!("the mount table: {error}");
    // What was the host's at the last look may have become a volume since.
    if may_be_hosts {
        refuse_hosts_own(mounted, &hosts_own(&mount_table::own().map_err(unreadable)?, own, roots))?;
    }
    let below = roots.iter().any(|root| Path::new(&*mounted.mount_point).starts_with(root));
    if below && let Some(found) = first_on(mounted) {
        return Ok(shut_down_by(&found, mounted));
    }
    // Reached by a link, covered by another mount, or unmounted: the table tells.
    let roots = real(roots);
    let table = mount_table::own().map_err(unreadable)?;
    let mounts = table.iter().filter(|mount| is_of(mounted)(mount) && is_below(&mount.mount_point, &roots));
    Ok(mounts.map(|mount| &mount.mount_point).any(|path| shut_down_by(path, mounted)))
}

/// # Errors
/// When the volume's device is one of the host's own.
pub(super) fn refuse_hosts_own(mounted: &MountedVolume, hosts: &Hosts) -> Result<(), String> {
    let Some(path) = hosts.get(&*mounted.device_number) else { return Ok(()) };
    let (number, path) = (&mounted.device_number, path.display());
    Err(format!(
        "device {number} is the host's own, or is mounted outside mount_roots as well, at {path}: it is never shut down or unmounted"
    ))
}

/// The first directory on the way to the recorded mount point that is on the volume's file system.
fn first_on(mounted: &MountedVolume) -> Option<PathBuf> {
    let mut ancestors: Vec<_> = Path::new(&*mounted.mount_point).ancestors().collect();
    ancestors.reverse();
    for path in ancestors {
        let handle = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
        if number_of(&handle).is_ok_and(|number| number == *mounted.device_number) {
            return Some(path.to_owned());
        }
    }
    None
}

/// Whether what is at `path` is the volume's file system, and is shut down now.
pub(super) fn shut_down_by(path: &Path, mounted: &MountedVolume) -> bool {
    // btrfs gives each subvolume a number of its own; it has no shutdown to send either.
    let is_it = |file: &OwnedFd| number_of(file).is_ok_and(|number| number == *mounted.device_number);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => is_it(&file) && shut_down(&file) == Shutdown::Done,
        // An earlier attempt shut it down: xfs then opens nothing any more, and ext4 no file.
        Err(Errno::IO) => {
            let handle = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok();
            handle.filter(is_it).is_some_and(was_shut_down)
        }
        Err(_) => false,
    }
}
