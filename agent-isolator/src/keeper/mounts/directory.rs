//! Volumes that are plain directories: of a file system that is the host's own, or that many volumes are in.
//!
//! No such file system can be shut down, nor claimed as a whole. What stands for the volume is the keeper's own mount of its
//! directory, which containers get. Unmounted it is when no mount table shows that directory or a part of it, and no process has
//! anything in it open; fenced, when besides those who used it are dead. The latter has no bound in time, so that a host with such a
//! volume is never taken for fenced because it is silent.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use shared::protocol::holder::{Directory, MountedVolume, READ_ONLY, other_name_in_words};

use super::identify::{MountCall, Refusal, Undo, give};
use super::{Mount, PINS, check_shared, close_root, mount_table, of, pin, storage};

/// Where a driver says that the volume is.
pub(super) struct Place<'a> {
    pub(super) root: &'a Path,
    /// Below the root.
    pub(super) below: &'a Path,
    pub(super) opened: &'a OwnedFd,
    /// The mount that shows it.
    pub(super) mount: Mount,
    /// The one that shows the root.
    pub(super) of_root: Mount,
}

/// The volume that is the directory at `path` of a mount's file system; its files have the number `files`.
fn volume(mount: &Mount, path: &str, files: &str, mount_point: &str) -> MountedVolume {
    let path = path.trim_end_matches('/');
    let file_system = mount.device_number.as_str();
    MountedVolume {
        device_number: format!("{file_system} {path}").into(),
        device: None,
        identity: None,
        can_be_shut_down: false,
        directory: Some(Directory {
            file_system: file_system.into(),
            files: files.into(),
            path: path.into(),
        }),
        ..of(mount, mount_point)
    }
}

/// The volume behind a mount of the keeper's own, by the mount table alone: of a subvolume the files' number is not known then.
/// None of another mount.
pub(in crate::keeper) fn behind_pin(mount: &Mount, roots: &[PathBuf]) -> Option<MountedVolume> {
    let is_pin = roots.iter().any(|root| mount.is_below(&root.join(PINS)));
    let path = mount.root.to_str().filter(|_| is_pin)?;
    Some(volume(mount, path, &mount.device_number, mount.mount_point.to_str()?))
}

/// Whether a mount is the bind of the directory of this name among a plugin's.
fn bound(call: &MountCall, directories: &Path, mount: &Mount) -> Result<(), String> {
    let its = directories.display();
    let unknown = |error: io::Error| format!("and {its} cannot be looked at: {error}");
    // Else a task that sees the host's directories would find all volumes there.
    if close_root(directories).map_err(|why| format!("but {why}"))? {
        tracing::info!("the directory {its} belongs to root alone now (mode 0700)");
    }
    let shown = mount_table::showing(directories).map_err(unknown)?;
    let path = fs::canonicalize(directories).map_err(unknown)?;
    let rest = path.strip_prefix(&shown.mount_point).map_err(|error| unknown(io::Error::other(error)))?;
    let named = shown.root.join(rest).join(call.asked.as_str());
    match mount.device_number == shown.device_number && mount.root == named {
        true => Ok(()),
        false => Err(format!("where something else is bound than {its}/{}", call.asked)),
    }
}

/// Judges the directory that the driver answered, and makes a mount of it.
///
/// # Errors
/// Why it cannot be used, and what follows.
pub(super) fn identify(
    call: &MountCall,
    place: &Place<'_>,
    table: &[Mount],
) -> Result<MountedVolume, Refusal> {
    let said = format!("the driver answered the mount point {:?}", call.mount_point);
    let by_driver = |why: String| Refusal::new(format!("{said}, {why}"), Undo::ByDriver(None));
    let later = |why: String| Refusal::new(format!("{said}, {why}"), Undo::Later);
    let nothing = |why: String| Refusal::new(format!("{said}: {why}"), Undo::Nothing);
    let Place { root, below, opened, mount, of_root } = place;
    // One directory for each name: else two names, and two leases, could lead to one.
    if !below.starts_with(call.asked.as_str()) {
        let why = format!("which is not below {}", root.join(call.asked.as_str()).display());
        return Err(by_driver(why));
    }
    // A bind of whatever directory of the host would be one that the name does not tell.
    if mount.id != of_root.id {
        match &call.directories {
            None => {
                return Err(by_driver(format!(
                    "where {} is mounted: such a volume is no directory below the root; take the storage `directory` \
                     from this driver in `drivers`, or, if the plugin binds directories, name in `directories` where it \
                     keeps them",
                    mount.source
                )));
            }
            Some(directories) => bound(call, directories, mount).map_err(&by_driver)?,
        }
    }
    let at = root.join(below);
    let rest = at.strip_prefix(&mount.mount_point).map_err(|error| later(error.to_string()))?;
    let path = mount.root.join(rest);
    let path = path.to_str().ok_or_else(|| by_driver("whose path is not UTF-8".to_owned()))?;
    let files =
        rustix::fs::fstat(opened).map_err(|error| later(format!("which cannot be looked at: {error}")))?;
    let mut mounted = volume(mount, path, &storage::number(files.st_dev), &call.mount_point);
    if let Some((other, _)) = call.others.same(&mounted, mount, table) {
        return Err(nothing(other_name_in_words(other)));
    }
    if mounted.read_only && !call.read_only {
        return Err(by_driver(format!("but {READ_ONLY}")));
    }
    check_shared(of_root, root).map_err(|why| by_driver(format!("but {why}")))?;
    if let Some(owner) = call.owner {
        give(opened, owner).map_err(|why| by_driver(format!("but {why}")))?;
    }
    let pinned = pin::pin(root, &call.volume, opened).map_err(|why| by_driver(format!("but {why}")))?;
    mounted.pin = Some(pinned.as_str().into());
    let unusable = |why: String| {
        Refusal::new(format!("{said}, but {why}"), Undo::ByDriver(Some(Box::new(mounted.clone()))))
    };
    let shown = mount_table::showing(Path::new(&pinned)).map_err(|error| unusable(error.to_string()))?;
    if shown.root != Path::new(path) {
        return Err(unusable(format!(
            "the keeper's own mount shows {} of the file system",
            shown.root.display()
        )));
    }
    if !call.suid_dev {
        pin::set_nosuid_nodev(root, &shown).map_err(unusable)?;
    }
    Ok(mounted)
}
