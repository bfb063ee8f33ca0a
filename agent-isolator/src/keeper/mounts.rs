//! The host's mounts: what a driver mounted, and the proof that it is gone.
//!
//! "Unmounted" is a proof, not a return code. A container that was started while another one's
//! volume was mounted has a copy of that mount in its own namespace, and a plain umount on the host
//! removes that copy only where the mount is shared. So a device counts as idle only when the kernel
//! lets it be opened exclusively (`O_EXCL` fails while any mount in any namespace holds it), or, for
//! a file system without a device, when no process's mount table shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use shared::holder::{Idleness, MountedVolume};
use shared::volume::VolumeId;

/// One line of a mount table (proc(5), `/proc/[pid]/mountinfo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    id: u64,
    parent: u64,
    device_number: String,
    mount_point: PathBuf,
    shared: bool,
    source: String,
}

/// Reads a mount table.
fn parse(table: &str) -> Vec<Mount> {
    let line = |line: &str| {
        let mut fields = line.split(' ');
        let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let device_number = fields.next()?.to_owned();
        let mount_point = PathBuf::from(unescape(fields.nth(1)?));
        let mut optional = fields.by_ref().skip(1).take_while(|field| *field != "-");
        let shared = optional.by_ref().any(|field| field.starts_with("shared:"));
        optional.for_each(drop);
        let source = unescape(fields.nth(1)?);
        Some(Mount { id, parent, device_number, mount_point, shared, source })
    };
    table.lines().filter_map(line).collect()
}

/// The kernel writes space, tab, newline and backslash as octal escapes.
fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                text.push(char::from(code));
                rest = &after[3..];
            }
            None => {
                text.push('\\');
                rest = after;
            }
        }
    }
    text + rest
}

/// The mount that shows `path`: of the mounts at the longest mount point above it, the last made.
fn covering<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let above = mounts.iter().filter(|mount| path.starts_with(&mount.mount_point));
    above.max_by_key(|mount| (mount.mount_point.components().count(), mount.id))
}

fn own_table() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// Whether new mounts below `root` reach containers and leave them again when they are unmounted.
///
/// # Errors
/// A sentence with the command that mends it.
pub fn check_root(root: &Path) -> Result<(), String> {
    let mounts = own_table().map_err(|error| format!("the mount table could not be read: {error}"))?;
    let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    check_shared(&mounts, &root)
}

fn check_shared(mounts: &[Mount], path: &Path) -> Result<(), String> {
    match covering(mounts, path) {
        Some(mount) if mount.shared => Ok(()),
        Some(mount) => {
            let at = mount.mount_point.display();
            Err(format!(
                "the mount {at}, below which volumes are mounted at {}, is private: an unmount on this host \
                 would leave copies in running containers; mend it with `mount --make-shared {at}`",
                path.display()
            ))
        }
        None => Err(format!("nothing is mounted at or above {}", path.display())),
    }
}

/// What is mounted at `mount_point`, a driver's answer. It must lie below one of `roots`.
///
/// # Errors
/// A sentence, when nothing of its own is mounted there, or the mount above it is private.
pub fn identify(mount_point: &str, roots: &[PathBuf]) -> Result<MountedVolume, String> {
    let said = format!("the driver answered the mount point {mount_point:?}");
    let real = Path::new(mount_point)
        .canonicalize()
        .map_err(|error| format!("{said}, which cannot be opened: {error}"))?;
    let below = |root: &&PathBuf| root.canonicalize().is_ok_and(|root| real.starts_with(root));
    let root = roots.iter().find(below).ok_or_else(|| {
        let roots = roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(",");
        format!("{said}, which is not below mount_roots ({roots}); add its directory to that parameter")
    })?;
    let mounts = own_table().map_err(|error| format!("the mount table could not be read: {error}"))?;
    let mount = covering(&mounts, &real).ok_or_else(|| format!("{said}, where nothing is mounted"))?;
    let of_root = root.canonicalize().ok().and_then(|root| covering(&mounts, &root));
    if of_root.is_none_or(|of_root| of_root.id == mount.id) {
        return Err(format!("{said}, where nothing is mounted: that is the host's own file system"));
    }
    if let Some(parent) = mounts.iter().find(|parent| parent.id == mount.parent && !parent.shared) {
        check_shared(std::slice::from_ref(parent), &real)?;
    }
    Ok(of(mount, mount_point))
}

fn of(mount: &Mount, mount_point: &str) -> MountedVolume {
    let device = mount.source.starts_with("/dev/").then(|| mount.source.clone());
    MountedVolume {
        mount_point: mount_point.to_owned(),
        device_number: mount.device_number.clone(),
        disk_sequence: device.as_deref().and_then(disk_sequence),
        device,
    }
}

/// The mount at `mount_point`, if one is there now, and whether a process in another mount namespace
/// sees it too.
#[must_use]
pub fn look_up(mount_point: &str, roots: &[PathBuf]) -> (Option<MountedVolume>, bool) {
    let Ok(mounted) = identify(mount_point, roots) else { return (None, false) };
    let in_use = !others(&mounted.device_number).is_empty();
    (Some(mounted), in_use)
}

/// The kernel's number of the disk behind a device node, and of a partition's disk.
fn disk_sequence(device: &str) -> Option<u64> {
    let found = rustix::fs::stat(device).ok()?;
    let (major, minor) = (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev));
    let block = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let read = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse().ok();
    read(block.join("diskseq")).or_else(|| read(block.canonicalize().ok()?.parent()?.join("diskseq")))
}

/// A process that still sees a file system.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Witness {
    pid: u32,
    name: String,
    mount_point: PathBuf,
}

/// A process of each other mount namespace whose mount table shows the file system.
fn others(device_number: &str) -> BTreeSet<Witness> {
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    let mut namespaces: BTreeMap<PathBuf, Vec<u32>> = BTreeMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        if let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt"))
            && Some(&namespace) != own.as_ref()
        {
            namespaces.entry(namespace).or_default().push(pid);
        }
    }
    let witness = |pids: Vec<u32>| {
        // Some may have ended by now: any one that is left speaks for its namespace.
        let read = |pid: u32| Some((pid, fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok()?));
        let (pid, table) = pids.into_iter().find_map(read)?;
        let mount = parse(&table).into_iter().find(|mount| mount.device_number == device_number)?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Some(Witness { pid, name: name.trim().to_owned(), mount_point: mount.mount_point })
    };
    namespaces.into_values().filter_map(witness).collect()
}

/// Whether a volume's device is idle. May block for as long as opening the device does.
#[must_use]
pub fn prove_idle(asked: &VolumeId, mounted: Option<&MountedVolume>) -> Idleness {
    let mounts = match own_table() {
        Ok(mounts) => mounts,
        Err(error) => return Idleness::Unknown(format!("the mount table could not be read: {error}")),
    };
    let Some(mounted) = mounted else { return prove_never_mounted(asked, &mounts) };
    if let Some(device) = &mounted.device {
        // Another disk by that name now: the one that was mounted is gone, and nothing holds it, for the
        // kernel gives neither name nor number away while a file system does.
        let (then, now) = (mounted.disk_sequence, disk_sequence(device));
        if then.is_some() && now.is_some() && then != now {
            return Idleness::Proved;
        }
        return prove_device_idle(device, mounted, &mounts);
    }
    prove_unseen(mounted, &mounts)
}

fn prove_device_idle(device: &str, mounted: &MountedVolume, mounts: &[Mount]) -> Idleness {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::open(device, flags, Mode::empty()) {
        Ok(_exclusive) => Idleness::Proved,
        // The disk was detached.
        Err(Errno::NOENT | Errno::NXIO | Errno::NODEV) => prove_unseen(mounted, mounts),
        Err(Errno::BUSY) => match prove_unseen(mounted, mounts) {
            Idleness::Proved => Idleness::Pinned(format!(
                "{device} is busy, though no process's mount table shows it: an open file or another device \
                 holds it"
            )),
            seen => seen,
        },
        Err(error) => Idleness::Unknown(format!("{device} could not be opened: {error}")),
    }
}

/// No process's mount table shows the file system.
fn prove_unseen(mounted: &MountedVolume, mounts: &[Mount]) -> Idleness {
    if mounts.iter().any(|mount| mount.device_number == mounted.device_number) {
        return Idleness::Mounted;
    }
    match others(&mounted.device_number).first() {
        None => Idleness::Proved,
        Some(Witness { pid, name, mount_point }) => Idleness::Pinned(format!(
            "process {pid} ({name}) still has it mounted at {} in its own mount namespace",
            mount_point.display()
        )),
    }
}

/// For a Mount that the driver refused: whatever it may have done, no mount bears the volume's name.
fn prove_never_mounted(asked: &VolumeId, mounts: &[Mount]) -> Idleness {
    let name = asked.name.as_str().to_lowercase();
    let bears_name = |mount: &&Mount| {
        let mut parts = mount.mount_point.iter().filter_map(|part| part.to_str());
        parts.any(|part| part.to_lowercase() == name)
    };
    match mounts.iter().find(bears_name) {
        None => Idleness::Proved,
        Some(_) => Idleness::Mounted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:33 / /run rw - tmpfs tmpfs rw
50 22 7:3 / /var/lib/rexray/volumes/a\\040b rw,relatime shared:9 master:2 - ext4 /dev/loop3 rw
51 50 7:4 / /var/lib/rexray/volumes/a\\040b rw - ext4 /dev/loop4 rw
";

    #[test]
    fn a_mount_table_is_read_with_its_escapes_and_optional_fields() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[2].mount_point, Path::new("/var/lib/rexray/volumes/a b"));
        assert_eq!(mounts.iter().map(|m| m.shared).collect::<Vec<_>>(), [true, false, true, false]);
        assert_eq!(mounts[3].source, "/dev/loop4");
        assert_eq!(unescape("a\\134b\\"), "a\\b\\");
    }

    #[test]
    fn a_path_belongs_to_the_last_mount_at_the_longest_mount_point() {
        let mounts = parse(TABLE);
        let at = |path: &str| covering(&mounts, Path::new(path)).unwrap().device_number.clone();
        assert_eq!(at("/var/lib/rexray/volumes/a b/data"), "7:4");
        assert_eq!(at("/var/lib/rexray/volumes/ab"), "254:0");
        assert_eq!(at("/run/x"), "0:33");
    }

    #[test]
    fn a_private_root_is_refused_with_the_command_that_mends_it() {
        let mounts = parse(TABLE);
        assert_eq!(check_shared(&mounts, Path::new("/var/lib")), Ok(()));
        let error = check_shared(&mounts, Path::new("/run/volumes")).unwrap_err();
        assert!(error.contains("`mount --make-shared /run`"), "{error}");
    }

    #[test]
    fn a_mount_point_without_a_mount_of_its_own_below_a_root_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let roots = [root.path().to_owned()];
        let inside = root.path().join("vol1");
        fs::create_dir(&inside).unwrap();
        let refused = |path: &Path| identify(path.to_str().unwrap(), &roots).unwrap_err();
        assert!(refused(&inside).contains("nothing is mounted"));
        assert!(refused(Path::new("/usr")).contains("not below mount_roots"));
        assert!(refused(&root.path().join("vol2")).contains("cannot be opened"));
    }
}
