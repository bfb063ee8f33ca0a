//! The host's mounts: what a driver mounted, and the proof that it is gone.
//!
//! "Unmounted" is a proof, not a return code. A container that was started while another one's
//! volume was mounted has a copy of that mount in its own namespace, and a plain umount on the host
//! removes that copy only where the mount is shared. So a device counts as idle only when the kernel
//! lets it be opened exclusively (`O_EXCL` fails while any mount in any namespace holds it), or, for
//! a file system without a device, when no process's mount table shows it. What cannot be told is
//! never taken for a proof.
//!
//! All of this may block for as long as the file system or device does.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use shared::protocol::holder::{BlockDevice, Idleness, MountedVolume, Sight};
use shared::volume::VolumeId;

use super::alive;
use super::mount_table::{self, Mount, Witness};

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

/// A mount that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// A sentence.
    pub why: String,
    /// What is mounted where the driver said.
    pub mounted: Option<Box<MountedVolume>>,
}

/// What is mounted at `mount_point`, a driver's answer. It must lie below one of `roots`.
///
/// # Errors
/// When nothing of its own is mounted there, outside the roots, or the mount above it is private.
pub fn identify(mount_point: &str, roots: &[PathBuf]) -> Result<MountedVolume, Unusable> {
    let said = format!("the driver answered the mount point {mount_point:?}");
    let nothing = |why: String| Unusable { why, mounted: None };
    let opened = mount_table::showing(Path::new(mount_point))
        .and_then(|mount| Ok((mount, Path::new(mount_point).canonicalize()?)));
    let (mount, real) = match opened {
        Ok(opened) => opened,
        // What is mounted above it is remembered all the same.
        Err(error) => {
            let above = mount_above(mount_point, roots).map(|mount| Box::new(of(&mount, mount_point)));
            return Err(Unusable { why: format!("{said}, which cannot be opened: {error}"), mounted: above });
        }
    };
    let below = |root: &&PathBuf| root.canonicalize().is_ok_and(|root| real.starts_with(root));
    let root = roots.iter().find(below);
    let of_root = root.and_then(|root| mount_table::showing(root).ok());
    let is_hosts_own = match &of_root {
        Some(of_root) => of_root.id == mount.id,
        // Outside all roots: a mount that covers a root, or everything, is no volume.
        None => mount.mount_point == Path::new("/"),
    };
    if is_hosts_own {
        return Err(nothing(format!("{said}, where nothing is mounted: that is the host's own file system")));
    }
    let mounted = of(&mount, mount_point);
    let unusable = |why: String| Unusable { why, mounted: Some(Box::new(mounted.clone())) };
    if root.is_none() {
        let roots = roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(",");
        let why =
            format!("{said}, which is not below mount_roots ({roots}); add its directory to that parameter");
        return Err(unusable(why));
    }
    let table = mount_table::own().map_err(|error| unusable(format!("the mount table: {error}")))?;
    if let Some(parent) = table.iter().find(|parent| parent.id == mount.parent) {
        check_shared(parent, &real).map_err(unusable)?;
    }
    Ok(mounted)
}

/// Of the mounts above a path that cannot be opened the deepest, if that lies below a root: by the table alone.
fn mount_above(path: &str, roots: &[PathBuf]) -> Option<Mount> {
    let above = |mount: &Mount| {
        let of_volume =
            roots.iter().any(|root| mount.mount_point != *root && mount.mount_point.starts_with(root));
        of_volume && Path::new(path).starts_with(&mount.mount_point)
    };
    let table = mount_table::own().ok()?;
    table.into_iter().filter(above).max_by_key(|mount| mount.mount_point.components().count())
}

/// What is mounted, with what is needed to prove later that it is gone.
pub(super) fn of(mount: &Mount, mount_point: &str) -> MountedVolume {
    MountedVolume {
        mount_point: mount_point.into(),
        device_number: mount.device_number.as_str().into(),
        source: mount.source.as_str().into(),
        device: block_device(&mount.source),
    }
}

/// The block device that a mount's source names, if it is one.
fn block_device(source: &str) -> Option<BlockDevice> {
    let path = Path::new(source).canonicalize().ok().filter(|path| path.is_absolute())?;
    let found = rustix::fs::stat(&path).ok()?;
    if FileType::from_raw_mode(found.st_mode) != FileType::BlockDevice {
        return None;
    }
    let number = number(found.st_rdev);
    let disk_sequence = disk_sequence(&number);
    Some(BlockDevice { path: path.to_str()?.into(), number: number.into(), disk_sequence })
}

fn number(device: u64) -> String {
    format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
}

/// One entry for each block device of this kernel.
const SYS_BLOCK: &str = "/sys/dev/block";

pub(super) fn in_sys(number: &str) -> PathBuf {
    Path::new(SYS_BLOCK).join(number)
}

/// The kernel's sequence number of a disk, or of a partition's disk.
pub(super) fn disk_sequence(number: &str) -> Option<u64> {
    let block = in_sys(number);
    let read = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse().ok();
    read(block.join("diskseq")).or_else(|| read(block.canonicalize().ok()?.parent()?.join("diskseq")))
}

/// Whether a mount is of the volume's file system. A number alone is not enough: that of a file system
/// without a device is given away again.
pub(super) fn is_of<'a>(mounted: &'a MountedVolume) -> impl Fn(&Mount) -> bool + 'a {
    |mount| {
        *mount.device_number == *mounted.device_number
            && (!mounted.device_number.starts_with("0:") || *mount.source == *mounted.source)
    }
}

fn in_words(Witness { pid, name, mount_point }: &Witness) -> String {
    format!("process {pid} ({name}), which has it at {} in its own mount namespace,", mount_point.display())
}

/// A process that may use the volume: one that sees it at another place than the host, or a container's that
/// sees it at the same place. (The host's mounts are copied into the namespaces of services, too, and the host's umount
/// takes those copies along.)
fn user(mounted: &MountedVolume, on_host: &Path) -> io::Result<Option<Witness>> {
    let bound = mount_table::elsewhere(|_, mount| is_of(mounted)(mount) && mount.mount_point != on_host)?;
    match bound {
        Some(witness) => Ok(Some(witness)),
        None => mount_table::elsewhere(|pid, mount| is_of(mounted)(mount) && alive::is_contained(pid)),
    }
}

/// Looks whether a volume is still mounted where it was, and who else sees it.
#[must_use]
pub fn look(mounted: &MountedVolume) -> Sight {
    let point = Path::new(&*mounted.mount_point).display();
    let instead = match mount_table::showing(Path::new(&*mounted.mount_point)) {
        Ok(mount) if is_of(mounted)(&mount) => {
            return match user(mounted, &mount.mount_point) {
                Ok(witness) => {
                    Sight::Mounted { elsewhere: witness.as_ref().map(|witness| in_words(witness).into()) }
                }
                Err(error) => Sight::Unknown(format!("the mount tables: {error}").into()),
            };
        }
        Ok(mount) => format!("{point} is on {} now", mount.source),
        Err(error) if error.kind() == io::ErrorKind::NotFound => format!("{point} does not exist any more"),
        Err(error) => return Sight::Unknown(format!("{point}: {error}").into()),
    };
    // Covered by another mount, or its directory removed, it may be there all the same.
    match mount_table::own() {
        Ok(table) if !table.iter().any(is_of(mounted)) => Sight::Gone(instead.into()),
        Ok(_) => Sight::Unknown(format!("{instead}, though it is mounted").into()),
        Err(error) => Sight::Unknown(format!("the mount table: {error}").into()),
    }
}

/// Whether a volume's device is idle.
#[must_use]
pub fn prove_idle(asked: &VolumeId, mounted: Option<&MountedVolume>, roots: &[PathBuf]) -> Idleness {
    let table = match mount_table::own() {
        Ok(table) => table,
        Err(error) => return Idleness::Unknown(format!("the mount table could not be read: {error}").into()),
    };
    match mounted {
        None => prove_never_mounted(asked, &table, roots),
        Some(mounted) => match &mounted.device {
            Some(device) => prove_device_idle(asked, device, mounted, &table, roots),
            None => prove_unseen(mounted, &table),
        },
    }
}

fn prove_device_idle(
    asked: &VolumeId,
    device: &BlockDevice,
    mounted: &MountedVolume,
    table: &[Mount],
    roots: &[PathBuf],
) -> Idleness {
    let now = disk_sequence(&device.number);
    // Another disk has that number, or none: the one that was mounted is gone, and nothing holds it, for
    // the kernel gives no number away while a file system does.
    let replaced = device.disk_sequence.is_some() && now.is_some() && device.disk_sequence != now;
    let listed = fs::read_dir(SYS_BLOCK).is_ok_and(|mut all| all.next().is_some());
    if replaced || (listed && !in_sys(&device.number).exists()) {
        // A call without an answer may have attached it again, as another disk.
        return match mount_above(&mounted.mount_point, roots) {
            Some(_) => Idleness::Mounted,
            None => prove_never_mounted(asked, table, roots),
        };
    }
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::open(&*device.path, flags, Mode::empty()) {
        Ok(exclusive) if is_node_of(&exclusive, device) => Idleness::ProvedAttached,
        Ok(_) => Idleness::Unknown(format!("{} is another device now", device.path).into()),
        Err(Errno::BUSY) => match prove_unseen(mounted, table) {
            Idleness::Proved => Idleness::Pinned(
                format!(
                    "{} is busy, though no process's mount table shows it: an open file or another device \
                 holds it",
                    device.path
                )
                .into(),
            ),
            seen => seen,
        },
        // The node is there and has no disk behind it any more.
        Err(Errno::NXIO | Errno::NODEV | Errno::NOMEDIUM) => prove_unseen(mounted, table),
        Err(error) => Idleness::Unknown(format!("{} could not be opened: {error}", device.path).into()),
    }
}

fn is_node_of(node: impl AsFd, device: &BlockDevice) -> bool {
    rustix::fs::fstat(node).is_ok_and(|found| {
        FileType::from_raw_mode(found.st_mode) == FileType::BlockDevice
            && *number(found.st_rdev) == *device.number
    })
}

/// No process's mount table shows the file system.
fn prove_unseen(mounted: &MountedVolume, table: &[Mount]) -> Idleness {
    if table.iter().any(is_of(mounted)) {
        return Idleness::Mounted;
    }
    match mount_table::elsewhere(|_, mount| is_of(mounted)(mount)) {
        Ok(None) => Idleness::Proved,
        Ok(Some(witness)) => Idleness::Pinned(format!("{} still holds it", in_words(&witness)).into()),
        Err(error) => Idleness::Unknown(format!("the mount tables: {error}").into()),
    }
}

/// For a Mount that the driver refused: whatever it may have done, no mount below the roots bears the
/// volume's name.
fn prove_never_mounted(asked: &VolumeId, table: &[Mount], roots: &[PathBuf]) -> Idleness {
    let bears_name = |mount: &&Mount| {
        let below = roots.iter().find_map(|root| mount.mount_point.strip_prefix(root).ok());
        below.is_some_and(|below| asked.name.is_in(below))
    };
    match table.iter().find(bears_name) {
        None => Idleness::Proved,
        Some(_) => Idleness::Mounted,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use shared::volume::{Driver, VolumeName};

    use super::*;

    fn volume(name: &str) -> VolumeId {
        VolumeId { driver: Driver::new("ebs").unwrap(), name: VolumeName::new(name).unwrap() }
    }

    fn run(program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {error}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// What is mounted there, below the mount roots or not.
    fn mounted(point: &Path) -> MountedVolume {
        of(&mount_table::showing(point).unwrap(), point.to_str().unwrap())
    }

    /// A loop device with an ext4 on it; detached when dropped, unless something holds it.
    struct Disk {
        directory: tempfile::TempDir,
        device: String,
    }

    impl Disk {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let image = directory.path().join("image");
            fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
            let image = image.to_str().unwrap();
            run("mkfs.ext4", &["-q", image]);
            Self { device: run("losetup", &["--find", "--show", image]), directory }
        }

        fn mount(&self) -> PathBuf {
            let point = self.directory.path().join("mnt");
            fs::create_dir_all(&point).unwrap();
            run("mount", &[&self.device, point.to_str().unwrap()]);
            point
        }

        fn umount(&self, flags: &[&str]) {
            let point = self.directory.path().join("mnt").to_str().unwrap().to_owned();
            run("umount", &[flags, &[point.as_str()]].concat());
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            let point = self.directory.path().join("mnt");
            let _not_mounted = Command::new("umount").arg("-q").arg(point).status();
            let _detached_already = Command::new("losetup").args(["-d", &self.device]).status();
        }
    }

    #[test]
    fn root_a_device_is_idle_when_nothing_holds_it_and_gone_when_it_is_another_disk() {
        let disk = Disk::new();
        let point = disk.mount();
        let roots = [disk.directory.path().to_owned()];
        let mounted = mounted(&point);
        let device = mounted.device.clone().unwrap();
        assert_eq!(*device.path, *disk.device);
        let proof = || prove_idle(&volume("v"), Some(&mounted), &roots);
        assert_eq!(proof(), Idleness::Mounted);
        assert!(matches!(look(&mounted), Sight::Mounted { .. }));
        // Lazily unmounted, with a file open: no table shows it, and writes go on.
        let file = fs::File::create(point.join("file")).unwrap();
        disk.umount(&["--lazy"]);
        assert!(matches!(proof(), Idleness::Pinned(_)), "{:?}", proof());
        assert!(matches!(look(&mounted), Sight::Gone(_)));
        drop(file);
        assert_eq!(proof(), Idleness::ProvedAttached);
        run("losetup", &["-d", &disk.device]);
        let other = MountedVolume {
            device: Some(BlockDevice { disk_sequence: Some(0), ..device }),
            ..mounted.clone()
        };
        assert_eq!(prove_idle(&volume("v"), Some(&other), &roots), Idleness::Proved);
    }

    #[test]
    fn root_a_device_whose_node_is_gone_or_another_one_is_never_proved_idle_by_that() {
        let disk = Disk::new();
        let point = disk.mount();
        let roots = [disk.directory.path().to_owned()];
        let mounted = mounted(&point);
        let device = mounted.device.clone().unwrap();
        for path in ["/dev/no-such-node", "/dev/null"] {
            let device = Some(BlockDevice { path: path.into(), ..device.clone() });
            let proof = prove_idle(&volume("v"), Some(&MountedVolume { device, ..mounted.clone() }), &roots);
            assert!(matches!(proof, Idleness::Unknown(_)), "{path}: {proof:?}");
        }
        assert_eq!(block_device("/dev/null"), None, "a character device has no O_EXCL");
        assert_eq!(block_device("tmpfs"), None);
    }

    #[test]
    fn root_of_stacked_mounts_the_one_on_top_counts() {
        let (below, above) = (Disk::new(), Disk::new());
        let point = below.mount();
        run("mount", &[&above.device, point.to_str().unwrap()]);
        let mounted = mounted(&point);
        assert_eq!(mounted.device.unwrap().path, above.device.as_str().into());
        run("umount", &[point.to_str().unwrap()]);
    }

    #[test]
    fn root_a_mount_outside_the_roots_is_unusable_and_remembered() {
        let disk = Disk::new();
        let point = disk.mount();
        let roots = [PathBuf::from("/var/lib/rexray/volumes")];
        let unusable = identify(point.to_str().unwrap(), &roots).unwrap_err();
        assert!(unusable.why.contains("not below mount_roots"), "{}", unusable.why);
        assert_eq!(unusable.mounted.unwrap().device.unwrap().path, disk.device.as_str().into());
    }

    #[test]
    fn a_private_root_is_refused_with_the_command_that_mends_it() {
        let mount = |shared| Mount {
            id: 1,
            parent: 0,
            device_number: "0:1".into(),
            mount_point: "/run".into(),
            shared,
            source: "tmpfs".into(),
        };
        assert_eq!(check_shared(&mount(true), Path::new("/run/volumes")), Ok(()));
        let error = check_shared(&mount(false), Path::new("/run/volumes")).unwrap_err();
        assert!(error.contains("`mount --make-shared /run`"), "{error}");
    }

    #[test]
    fn a_mount_point_without_a_mount_of_its_own_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let roots = [root.path().to_owned()];
        let inside = root.path().join("vol1");
        fs::create_dir(&inside).unwrap();
        let refused = |path: &Path| identify(path.to_str().unwrap(), &roots).unwrap_err();
        assert!(refused(&inside).why.contains("nothing is mounted"));
        assert_eq!(refused(&inside).mounted, None);
        assert!(refused(&root.path().join("vol2")).why.contains("cannot be opened"));
    }

    #[test]
    fn a_volume_that_was_never_mounted_is_looked_for_below_the_roots_alone() {
        let roots = [PathBuf::from("/var/lib/rexray/volumes")];
        assert_eq!(prove_idle(&volume("proc"), None, &roots), Idleness::Proved);
        assert_eq!(prove_idle(&volume("proc"), None, &["/".into()]), Idleness::Mounted);
    }
}
