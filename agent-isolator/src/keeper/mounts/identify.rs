//! What a driver's Mount has mounted, and whether it may be used as this volume.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use shared::protocol::holder::{MountedVolume, Owner, READ_ONLY, other_name_in_words};
use shared::volume::{VolumeId, VolumeName};

use super::mount_table::{self, Mount};
use super::{
    Before, Others, PINS, Places, check_shared, close_root, directory, is_of, of, pin, storage, take_away,
};
use crate::parameters::Storage;

/// File systems of which a directory can be mounted as one: btrfs's subvolumes, a share's directories.
const MOUNT_DIRECTORIES: [&str; 3] = ["btrfs", "cifs", "smb3"];

/// A driver's answer to Mount, and what is needed to judge it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountCall {
    /// The volume, as it is leased.
    pub volume: VolumeId,
    /// The name that the driver was asked for.
    pub asked: VolumeName,
    /// The driver's answer.
    pub mount_point: String,
    /// What the driver's volumes are.
    pub storage: Storage,
    /// Where its driver keeps the directories that it binds to where it answers.
    pub directories: Option<PathBuf>,
    /// Whether the container may only read.
    pub read_only: bool,
    /// Whether the mount is left as the driver made it: set-user-id programs and device files work on it.
    pub suid_dev: bool,
    /// To whom the volume is given, if nobody has used it yet.
    pub owner: Option<Owner>,
    /// What was there before the driver was first called under this lease; `None`: that was in another life of this keeper.
    pub before: Option<Before>,
    /// What this host's other volumes have.
    pub others: Others,
}

/// What follows for a mount that is not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Undo {
    /// The driver unmounts it; then it is proved gone. What is mounted is named if it is below the roots, and this volume's.
    ByDriver(Option<Box<MountedVolume>>),
    /// Nothing is left of the call, and the driver's Unmount would hit somebody else's mount.
    Nothing,
    /// It cannot be told or undone yet: it is tried again.
    Later,
}

/// A mount that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// A sentence.
    pub why: String,
    /// What follows.
    pub undo: Undo,
    /// What the call has mounted outside the roots: it is unmounted and proved gone, and never fenced.
    pub stray: Option<Box<MountedVolume>>,
}

impl Refusal {
    pub(super) fn new(why: String, undo: Undo) -> Self {
        Self { why, undo, stray: None }
    }
}

/// Judges what is mounted where the driver said, and makes it ready to be used.
///
/// # Errors
/// Why it cannot be used, and what follows.
pub fn identify(call: &MountCall, places: &Places) -> Result<MountedVolume, Refusal> {
    let said = format!("the driver answered the mount point {:?}", call.mount_point);
    let by_driver = |why: String| Refusal::new(format!("{said}, {why}"), Undo::ByDriver(None));
    let later = |why: String| Refusal::new(format!("{said}, {why}"), Undo::Later);
    let nothing = |why: String| Refusal::new(format!("{said}: {why}"), Undo::Nothing);
    let table = mount_table::own().map_err(|error| later(format!("and the mount table: {error}")))?;
    let Some((root, below)) = places.below_root(Path::new(&call.mount_point)) else {
        return Err(outside(call, places, &table, &said));
    };
    // The driver may have made it just now.
    match close_root(&root) {
        Ok(true) => tracing::info!("the mount root {} belongs to root alone now (mode 0700)", root.display()),
        Ok(false) => {}
        Err(why) => return Err(by_driver(format!("but {why}"))),
    }
    let opened = pin::open_below(&root, &below).map_err(|error| match error {
        Errno::LOOP => by_driver(format!(
            "in which a part below the mount root {} is a symbolic link: links below a root are not followed",
            root.display()
        )),
        error => by_driver(format!("which cannot be opened: {error}")),
    })?;
    let unknown = |error: std::io::Error| later(format!("which cannot be looked at: {error}"));
    let shown = mount_table::showing_file(&opened).map_err(unknown)?;
    let mount = shown.ok_or_else(|| later("whose mount is not in the mount table".to_owned()))?;
    let of_root = mount_table::showing(&root).map_err(unknown)?;
    let is_directory = rustix::fs::fstat(&opened)
        .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory);
    if !is_directory {
        return Err(by_driver("which is no directory".to_owned()));
    }
    if call.storage == Storage::Directory {
        let place = directory::Place { root: &root, below: &below, opened: &opened, mount, of_root };
        return directory::identify(call, &place, &table);
    }
    if of_root.id == mount.id {
        let why = format!("where nothing is mounted; it is the host's own file system. {AS_DIRECTORIES}");
        return Err(match call.storage {
            // Nothing is attached, and an Unmount that no Mount made breaks the counts of some plugins: their next Mount does nothing.
            Storage::Shared => Refusal::new(format!("{said}, {why}"), Undo::Nothing),
            Storage::Attached | Storage::Directory => by_driver(why),
        });
    }
    if places.hosts_own(&table).contains_key(&mount.device_number) {
        return Err(by_driver(directory_of_host("of this host's own disk")));
    }
    let mut mounted = of(&mount, &call.mount_point);
    if let Some((other, known)) = call.others.same(&mounted, &mount, &table) {
        // It would keep the mount busy.
        drop(opened);
        undo_second(call, &root, &mount, known).map_err(&later)?;
        return Err(nothing(other_name_in_words(other)));
    }
    if call.before.as_ref().is_some_and(|before| before.has(&mount)) {
        let (source, at) = (&mount.source, mount.mount_point.display());
        return Err(nothing(format!(
            "{source} was mounted at {at} before the driver was asked, by somebody else than this keeper; unmount it"
        )));
    }
    let roots = places.real_roots();
    let beside = |other: &&Mount| is_of(&mounted)(other) && !roots.iter().any(|root| other.is_below(root));
    if let Some(other) = table.iter().find(beside) {
        let at = other.mount_point.display();
        return Err(by_driver(directory_of_host(&format!("of what is mounted at {at}"))));
    }
    if mount.root != Path::new("/") && !MOUNT_DIRECTORIES.contains(&mount.file_system.as_str()) {
        let what = format!("({}) of the file system {}", mount.root.display(), mount.source);
        return Err(by_driver(directory_of_host(&what)));
    }
    // From here on it is this volume's, and is remembered as such.
    let unusable = |why: String, mounted: &MountedVolume| {
        Refusal::new(format!("{said}, {why}"), Undo::ByDriver(Some(Box::new(mounted.clone()))))
    };
    if mounted.read_only && !call.read_only {
        return Err(unusable(format!("but {READ_ONLY}"), &mounted));
    }
    if let Some(parent) = table.iter().find(|parent| parent.id == mount.parent) {
        check_shared(parent, &root.join(&below)).map_err(|why| unusable(format!("but {why}"), &mounted))?;
    }
    mounted.uuid = mounted.device.as_ref().and_then(storage::uuid).map(Into::into);
    // A driver that took the volume from another host, or was asked twice, may have mounted it elsewhere as well.
    // While others are mounted, one of them may turn out to be this one's second name: the proof takes away what is left.
    let pins: Vec<_> = roots.iter().map(|root| root.join(PINS)).collect();
    let extra = table.iter().filter(|other| {
        call.others.mounting.is_empty()
            && !pins.iter().any(|pins| other.is_below(pins))
            && is_of(&mounted)(other)
            && other.mount_point != mount.mount_point
            && call.before.as_ref().is_none_or(|before| !before.has(other))
    });
    if let Some(why) = take_away(extra) {
        return Err(unusable(format!("and mounted it elsewhere as well: {why}"), &mounted));
    }
    if !call.suid_dev {
        pin::set_nosuid_nodev(&root, &mount).map_err(|why| unusable(format!("but {why}"), &mounted))?;
    }
    if let Some(owner) = call.owner {
        give(&opened, owner).map_err(|why| unusable(format!("but {why}"), &mounted))?;
    }
    if mount.mount_point != root.join(&below) {
        let pinned = pin::pin(&root, &call.volume, &opened);
        mounted.pin = Some(pinned.map_err(|why| unusable(format!("but {why}"), &mounted))?.into());
    }
    Ok(mounted)
}

/// Gives a volume that nobody has used to its first user: its top directory is root's, and empty but for what mkfs makes.
///
/// # Errors
/// A sentence.
pub(super) fn give(opened: &OwnedFd, owner: Owner) -> Result<(), String> {
    let fault = |error: std::io::Error| format!("it could not be given to user {}: {error}", owner.uid);
    let top = format!("/proc/self/fd/{}", opened.as_raw_fd());
    let found = rustix::fs::fstat(opened).map_err(|error| fault(error.into()))?;
    let mut entries = fs::read_dir(&top).map_err(fault)?;
    let is_new = (found.st_uid, found.st_gid) == (0, 0)
        && entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == "lost+found"));
    match is_new {
        true => std::os::unix::fs::chown(&top, Some(owner.uid), Some(owner.gid)).map_err(fault),
        false => Ok(()),
    }
}

/// Outside the roots nothing is a volume. What the call has mounted there is undone, and nothing else.
fn outside(call: &MountCall, places: &Places, table: &[Mount], said: &str) -> Refusal {
    let roots = places.roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(",");
    let why =
        format!("{said}, which is not below mount_roots ({roots}); add its directory to that parameter");
    let mut refusal = Refusal::new(why, Undo::ByDriver(None));
    let Ok(mount) = mount_table::showing(Path::new(&call.mount_point)) else { return refusal };
    if places.hosts_own(table).contains_key(&mount.device_number) {
        refusal.why = format!("{said}, {}", directory_of_host("of this host's own disk"));
        return refusal;
    }
    let mounted = of(&mount, &mount.mount_point.to_string_lossy());
    if let Some((other, _)) = call.others.same(&mounted, &mount, table) {
        return Refusal::new(format!("{said}: {}", other_name_in_words(other)), Undo::Nothing);
    }
    if call.before.as_ref().is_some_and(|before| !before.has(&mount)) {
        refusal.stray = Some(Box::new(mounted));
    }
    refusal
}

/// What to do where a driver's volumes are directories.
const AS_DIRECTORIES: &str = "Where that is how this driver's volumes are (buttervolume, convoy's vfs and local-persist make such), say \
                              so with the storage `directory` in `drivers`";

/// Says why a directory is no volume. `what` names what it is a directory of.
fn directory_of_host(what: &str) -> String {
    format!("which is a directory {what}, and no file system of its own. {AS_DIRECTORIES}")
}

/// Takes away what a Mount under a second name has mounted, and leaves what the first has. The driver is not asked: it may take
/// the two for one.
fn undo_second(call: &MountCall, root: &Path, mount: &Mount, first: &MountedVolume) -> Result<(), String> {
    // Made when the first was not known yet.
    pin::unpin_place(root, &call.volume)?;
    let at = |path: &str| mount_table::showing(Path::new(path)).ok().map(|mount| mount.id);
    let firsts = [Some(&first.mount_point), first.pin.as_ref()].into_iter().flatten();
    let is_firsts = firsts.filter_map(|path| at(path)).any(|id| id == mount.id);
    if is_firsts || call.before.as_ref().is_some_and(|before| before.has(mount)) {
        return Ok(());
    }
    take_away(std::iter::once(mount))
        .map_or(Ok(()), |why| Err(format!("where another volume's storage is mounted once more: {why}")))
}
