//! What identifies the storage behind a mount.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use shared::protocol::holder::BlockDevice;

use super::Mount;

/// One entry for each block device of this kernel.
const SYS_BLOCK: &str = "/sys/dev/block";

/// The block device that a mount's source names, if it is one.
pub(super) fn block_device(source: &str) -> Option<BlockDevice> {
    let path = Path::new(source).canonicalize().ok().filter(|path| path.is_absolute())?;
    let found = rustix::fs::stat(&path).ok()?;
    if FileType::from_raw_mode(found.st_mode) != FileType::BlockDevice {
        return None;
    }
    let number = number(found.st_rdev);
    let disk_sequence = disk_sequence(&number);
    Some(BlockDevice { path: path.to_str()?.into(), number: number.into(), disk_sequence })
}

/// `major:minor`, as mount tables have it.
pub(super) fn number(device: u64) -> String {
    format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
}

pub(in crate::keeper) fn in_sys(number: &str) -> PathBuf {
    Path::new(SYS_BLOCK).join(number)
}

/// The kernel's sequence number of a disk, or of a partition's disk.
pub(in crate::keeper) fn disk_sequence(number: &str) -> Option<u64> {
    let block = in_sys(number);
    let read = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse().ok();
    read(block.join("diskseq")).or_else(|| read(block.canonicalize().ok()?.parent()?.join("diskseq")))
}

/// All disks by their sequence numbers; none where the kernel has no such numbers.
pub(super) fn disks() -> BTreeMap<u64, PathBuf> {
    let disks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let sequence = |disk: fs::DirEntry| {
        let number = fs::read_to_string(disk.path().join("diskseq")).ok()?.trim().parse().ok()?;
        Some((number, disk.path()))
    };
    disks.filter_map(sequence).collect()
}

/// Whether the disk of a record is not there any more, or another one has its number. The kernel gives no number away while a
/// file system holds the disk.
pub(super) fn is_gone(device: &BlockDevice) -> bool {
    let now = disk_sequence(&device.number);
    let replaced = device.disk_sequence.is_some() && now.is_some() && device.disk_sequence != now;
    let listed = fs::read_dir(SYS_BLOCK).is_ok_and(|mut all| all.next().is_some());
    replaced || (listed && !in_sys(&device.number).exists())
}

/// What identifies the storage beyond this host's numbers, so that two ways to it are seen to be one. A file system's UUID does
/// not: a copy has it as well.
pub(super) fn identity(mount: &Mount, device: Option<&BlockDevice>) -> Option<String> {
    let Some(device) = device else {
        // server:/export, //server/share, user@host:/path.
        let remote = mount.source.contains(":/") || mount.source.starts_with("//");
        return remote.then(|| format!("remote {}", mount.source));
    };
    let entry = in_sys(&device.number).canonicalize().ok()?;
    let read = |path: PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    // A partition's number stands beside its disk's names.
    let (disk, part) = match read(entry.join("partition")) {
        Some(part) => (entry.parent()?.to_owned(), format!(" part {part}")),
        None => (entry, String::new()),
    };
    if let Some(file) = read(disk.join("loop/backing_file")) {
        let offset = read(disk.join("loop/offset")).unwrap_or_default();
        return Some(format!("file {file} at {offset}{part}"));
    }
    let names = [("wwid", "wwid"), ("device/wwid", "wwid"), ("dm/uuid", "dm"), ("serial", "serial")];
    let (kind, name) = names.iter().find_map(|(file, kind)| Some((kind, read(disk.join(file))?)))?;
    Some(format!("{kind} {name}{part}"))
}

/// Where file systems have their UUID: kind, place of the magic, magic, place of the UUID.
const UUIDS: [(&str, u64, &[u8], u64); 3] =
    [("ext", 0x438, b"\x53\xef", 0x468), ("xfs", 0, b"XFSB", 32), ("btrfs", 0x1_0040, b"_BHRfS_M", 0x1_0020)];

/// The UUID of the file system on a device.
pub(super) fn uuid(device: &BlockDevice) -> Option<String> {
    let mut file = fs::File::open(&*device.path).ok().filter(|file| is_node_of(file, device))?;
    let mut read = |at: u64, length: usize| {
        let mut bytes = vec![0; length];
        file.seek(SeekFrom::Start(at)).ok()?;
        file.read_exact(&mut bytes).ok()?;
        Some(bytes)
    };
    let (_, _, _, at) =
        UUIDS.iter().find(|(_, at, magic, _)| read(*at, magic.len()).is_some_and(|found| found == *magic))?;
    let bytes = read(*at, 16)?;
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(super) fn is_node_of(node: impl AsFd, device: &BlockDevice) -> bool {
    rustix::fs::fstat(node).is_ok_and(|found| {
        FileType::from_raw_mode(found.st_mode) == FileType::BlockDevice
            && *number(found.st_rdev) == *device.number
    })
}
