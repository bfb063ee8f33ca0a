//! Whether a volume is still mounted as it was, and who else sees it.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use shared::protocol::holder::{MountedVolume, Sight};

use super::idle::in_words;
use super::mount_table::{self, Mount, Witness};
use super::{Places, is_of, pin, storage};

/// Looks at a volume's mount. Only where it is `doubted` whether somebody uses it, all mount namespaces are read: tasks can make
/// very many of them, and launches and releases must not wait for that.
#[must_use]
pub fn look(mounted: &MountedVolume, doubted: bool, places: &Places) -> Sight {
    // A directory is mounted by the keeper alone.
    let seat = if mounted.directory.is_some() { mounted.given() } else { &mounted.mount_point };
    let point = Path::new(&**seat).display();
    let table = match mount_table::own() {
        Ok(table) => table,
        Err(error) => return Sight::Unknown(format!("the mount table: {error}").into()),
    };
    let instead = match mount_table::showing(Path::new(&**seat)) {
        Ok(mount) if is_of(mounted)(&mount) => {
            if !pin::is_pinned(mounted, &table) {
                return Sight::Gone(format!("the keeper's own mount of {point} is gone").into());
            }
            if let Some(why) = ails(mounted, &table) {
                return Sight::Broken(why.into());
            }
            if !doubted {
                return Sight::Mounted { elsewhere: None };
            }
            return match user(mounted, &table, places) {
                Ok(witness) => Sight::Mounted {
                    elsewhere: witness
                        .map(|Witness { pid, mount_point, .. }| seen_by(pid, &mount_point).into()),
                },
                Err(error) => Sight::Unknown(format!("the mount tables: {error}").into()),
            };
        }
        Ok(mount) => format!("{point} is on {} now", mount.source),
        Err(error) if error.kind() == io::ErrorKind::NotFound => format!("{point} does not exist any more"),
        Err(error) => {
            // A file system without its disk may answer nothing any more.
            return match ails(mounted, &table) {
                Some(why) => Sight::Broken(why.into()),
                None => Sight::Unknown(format!("{point}: {error}").into()),
            };
        }
    };
    // Covered by another mount, or its directory removed, it may be there all the same. The keeper's own mount alone is not it:
    // the driver's is gone, and its disk may be detached at any time.
    let is_own =
        |mount: &Mount| mounted.pin.as_deref().is_some_and(|pin| mount.mount_point == Path::new(pin));
    if table.iter().any(|mount| is_of(mounted)(mount) && !is_own(mount)) {
        return Sight::Unknown(format!("{instead}, though it is mounted").into());
    }
    Sight::Gone(instead.into())
}

pub(super) fn seen_by(pid: u32, mount_point: &Path) -> String {
    format!("{}, which has it at {} in its own mount namespace,", in_words(pid), mount_point.display())
}

/// Why a volume that is mounted can be written no more, if that is so. By kernel tables alone: it asks nothing of the volume.
fn ails(mounted: &MountedVolume, table: &[Mount]) -> Option<String> {
    if let Some(device) = mounted.device.as_ref().filter(|device| storage::is_gone(device)) {
        return Some(format!("its disk {} is gone from this host", device.path));
    }
    let turned = |mount: &Mount| is_of(mounted)(mount) && has_turned_read_only(mount);
    let turned = !mounted.read_only && table.iter().any(turned);
    turned.then(|| {
        format!(
            "its file system on {} has turned read-only, which is what follows an error; see the kernel's log",
            mounted.source
        )
    })
}

fn has_turned_read_only(mount: &Mount) -> bool {
    // ext4 says so since Linux 6.16, without ro.
    mount.super_options.split(',').any(|option| matches!(option, "ro" | "emergency_ro" | "shutdown"))
}

/// Those of the mounted volumes whose disk is gone or whose file system has turned read-only.
///
/// # Errors
/// When the mount table cannot be read.
pub fn ailing<'a, K>(volumes: impl Iterator<Item = (K, &'a MountedVolume)>) -> io::Result<Vec<K>> {
    let table = mount_table::own()?;
    Ok(volumes.filter(|(_, mounted)| ails(mounted, &table).is_some()).map(|(key, _)| key).collect())
}

/// A process that may use the volume: one that sees it at another place than the host, or a container's that sees it at the
/// host's place. No user is who has a copy that goes when the host unmounts: services and monitors have the whole host below some
/// directory, and the host's mounts come and go there.
fn user(mounted: &MountedVolume, table: &[Mount], places: &Places) -> io::Result<Option<Witness>> {
    let hosts: Vec<_> = table.iter().filter(|mount| is_of(mounted)(mount)).collect();
    let points: BTreeSet<&PathBuf> = hosts.iter().map(|mount| &mount.mount_point).collect();
    // An unmount reaches those that get the unmounts of what it was mounted on.
    let parents = hosts.iter().filter_map(|mount| table.iter().find(|parent| parent.id == mount.parent));
    let groups: BTreeSet<u64> = parents.filter_map(|parent| parent.peers).collect();
    let goes_along = |mount: &Mount, table: &[Mount]| {
        let on = table.iter().find(|parent| parent.id == mount.parent);
        on.is_some_and(|on| [on.peers, on.master].into_iter().flatten().any(|group| groups.contains(&group)))
    };
    mount_table::elsewhere(|pid, mount, table| {
        is_of(mounted)(mount)
            && (places.is_contained(pid) || !points.contains(&mount.mount_point) && !goes_along(mount, table))
    })
}
