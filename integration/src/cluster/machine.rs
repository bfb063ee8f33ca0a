//! What of the machine's mounts the hosts of a cluster inherit: the guardian arranges it in a mount
//! namespace of its own, which every host's is a copy of.

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Changes the calling process's mount namespace, which must be its own and send nothing to the machine's.
pub(super) fn prepare() -> io::Result<()> {
    forget_volumes()?;
    mount_freezer()
}

/// A volume mounted elsewhere on this machine, by another test say, is copied into every new namespace, and a
/// copy keeps its device busy after the unmount.
fn forget_volumes() -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    // The latest first: mounts lie upon each other.
    for mount in mounts.lines().rev() {
        let mut fields = mount.split(' ');
        let (Some(source), Some(place)) = (fields.next(), fields.next()) else { continue };
        if source.starts_with("/dev/loop") && place != "/" {
            // The kernel writes a blank as \040.
            unmount(place.replace("\\040", " "), UnmountFlags::DETACH)?;
        }
    }
    Ok(())
}

/// Mesos 1.11 wants the freezer of cgroups v1, which a machine with systemd's unified hierarchy still has, but
/// does not mount.
fn mount_freezer() -> io::Result<()> {
    let cgroups = Path::new("/sys/fs/cgroup");
    let freezer = cgroups.join("freezer");
    if freezer.join("cgroup.procs").exists() {
        return Ok(());
    }
    mount("tmpfs", cgroups, "tmpfs", MountFlags::empty(), c"mode=755")?;
    fs::create_dir(&freezer)?;
    mount("cgroup", &freezer, "cgroup", MountFlags::empty(), c"freezer")?;
    Ok(())
}
