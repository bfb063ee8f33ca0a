//! What is on a device, making a file system on an empty one, and the mount system calls. All of it blocks.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Up to the end of the farthest magic looked for, that of btrfs.
const PROBED: usize = 0x1_0048;

/// What the beginning of a device says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contents {
    /// Nothing: it may be formatted.
    Empty,
    /// A file system to be mounted as this type.
    FileSystem(&'static str),
    /// Something else, which is not ours to overwrite.
    Unknown,
}

/// Mounts `device` at `target`, after a first ext4 was made on it if it is empty, and makes `target/data`. A
/// device that is already mounted there is left as it is.
pub(super) fn mount_volume(device: &Path, target: &Path) -> io::Result<()> {
    std::fs::create_dir_all(target)?;
    if !is_mounted(device, target)? {
        let kind = match probe(device)? {
            Contents::FileSystem(kind) => kind,
            Contents::Empty => {
                make_ext4(device)?;
                "ext4"
            }
            Contents::Unknown => {
                return Err(io::Error::other(format!(
                    "{} holds data but no known file system; not formatted",
                    device.display()
                )));
            }
        };
        // Else ext4 fills the inode tables in the background, in a sparse file: bytes written without a writer.
        let options = (kind == "ext4").then_some(c"noinit_itable");
        mount(device, target, kind, MountFlags::empty(), options)?;
    }
    match std::fs::create_dir(target.join("data")) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// A plain umount of `device` at `target`, if it is mounted there.
pub(super) fn unmount_volume(device: &Path, target: &Path) -> io::Result<()> {
    if is_mounted(device, target)? {
        unmount(target, UnmountFlags::empty())?;
    }
    Ok(())
}

/// Whether `device` is the uppermost mount at `target`.
fn is_mounted(device: &Path, target: &Path) -> io::Result<bool> {
    match target.metadata() {
        Ok(target) => Ok(target.dev() == device.metadata()?.rdev()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn probe(device: &Path) -> io::Result<Contents> {
    let mut start = vec![0; PROBED];
    File::open(device)?.read_exact(&mut start)?;
    Ok(recognise(&start))
}

fn recognise(start: &[u8]) -> Contents {
    let has = |offset: usize, magic: &[u8]| start.get(offset..offset + magic.len()) == Some(magic);
    if has(0x438, b"\x53\xEF") {
        Contents::FileSystem("ext4")
    } else if has(0, b"XFSB") {
        Contents::FileSystem("xfs")
    } else if has(0x1_0040, b"_BHRfS_M") {
        Contents::FileSystem("btrfs")
    } else if start.iter().take(4096).all(|byte| *byte == 0) {
        // Only the first block: mke2fs writes it last, so a host that died in the middle of formatting has left it
        // empty and the rest not. Partition tables, LVM, LUKS and swap all show in it.
        Contents::Empty
    } else {
        Contents::Unknown
    }
}

/// A few milliseconds: no discard, no zeroing of tables (the backing file reads as zero), and the smallest journal.
fn make_ext4(device: &Path) -> io::Result<()> {
    let outcome = Command::new("/sbin/mke2fs")
        .args(["-F", "-q", "-t", "ext4", "-m", "0", "-J", "size=4"])
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"])
        .arg(device)
        .output()?;
    if outcome.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "mke2fs {}: {}: {}",
        device.display(),
        outcome.status,
        String::from_utf8_lossy(&outcome.stderr).trim()
    )))
}

#[cfg(test)]
mod tests {
    use super::{Contents, PROBED, recognise};

    #[test]
    fn only_a_device_without_a_trace_of_data_in_its_first_block_is_formatted() {
        for (offset, bytes, contents) in [
            (0, &b""[..], Contents::Empty),
            (0x438, b"\x53\xEF", Contents::FileSystem("ext4")),
            (0, b"XFSB", Contents::FileSystem("xfs")),
            (0x1_0040, b"_BHRfS_M", Contents::FileSystem("btrfs")),
            (510, b"\x55\xAA", Contents::Unknown),
            (512, b"LABELONE", Contents::Unknown),
            (4086, b"SWAPSPACE2", Contents::Unknown),
            (8192, b"half an mke2fs", Contents::Empty),
        ] {
            let mut start = vec![0; PROBED];
            start[offset..offset + bytes.len()].copy_from_slice(bytes);
            assert_eq!(recognise(&start), contents, "{bytes:?} at {offset}");
        }
    }
}
