//! Shuts a file system down: from then on nothing is written to it, by whomever, however many hold it open.
//!
//! The flag is NOLOGFLUSH: the file system is stopped as a power failure would stop it. What was synced is on the device; what was
//! not is dropped. The other flags write first: they would wait for the device, which may hang, and they would write to a
//! volume that this host is losing its right to.
//!
//! ext4, xfs and f2fs have it, under one number. btrfs has not.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

/// `FS_IOC_SHUTDOWN`, `EXT4_IOC_SHUTDOWN`, `XFS_IOC_GOINGDOWN`: `_IOR('X', 125, __u32)`.
const SHUTDOWN: Opcode = opcode::read::<u32>(b'X', 125);

/// `FS_SHUTDOWN_FLAGS_NOLOGFLUSH`.
const NOLOGFLUSH: u32 = 2;

/// A name that no file has.
const NO_ATTRIBUTE: &str = "trusted.extvol-none";

/// Their numbers in statfs(2): those whose refusals are known.
const XFS: u64 = 0x5846_5342;
const EXT4: u64 = 0xEF53;

/// Whether a file system of this kind, as mount tables name it, can be shut down. What cannot be is fenced by killing and
/// unmounting alone, and not within a time that holds whatever tenants do.
#[must_use]
pub fn can_be_shut_down(fs_type: &str) -> bool {
    // The kernel mounts ext3 by its ext4; of ext2 it may have another one, without it.
    matches!(fs_type, "ext3" | "ext4" | "xfs" | "f2fs")
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shutdown {
    /// It is shut down.
    Done,
    /// This kind of file system cannot be.
    Unsupported,
    /// It was not.
    Failed(Errno),
}

/// Shuts down the file system of an open file or directory. The caller has made sure, by this very descriptor, which one that
/// is: on a plain directory of the host this shuts down the host.
pub(super) fn shut_down(file: impl AsFd) -> Shutdown {
    #[expect(unsafe_code, reason = "an ioctl that rustix does not have")]
    // SAFETY: the opcode is one that takes a pointer to a u32 and reads it; `Setter` passes a pointer to the u32 that it owns,
    // which lives until the call returns; the kernel writes nothing through it, though the number's direction says so.
    // A driver or file system to which the number means something else is not called: 'X' 125 belongs to this, and all
    // others refuse it with ENOTTY, ENOTSUP or EINVAL.
    let called = unsafe { ioctl(&file, Setter::<SHUTDOWN, u32>::new(NOLOGFLUSH)) };
    match called {
        Ok(()) if refuses_changes(&file) => Shutdown::Done,
        Ok(()) => Shutdown::Failed(Errno::NOTTY),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL) => Shutdown::Unsupported,
        // Shut down before, and says so even to this.
        Err(Errno::IO) if refuses_changes(&file) => Shutdown::Done,
        Err(error) => Shutdown::Failed(error),
    }
}

/// Whether the file system of a path was shut down before: it refuses to open what is there, and refuses a change as well.
/// `handle` is of that path, as O_PATH: such a handle can be had all the same.
pub(super) fn was_shut_down(handle: impl AsFd) -> bool {
    let known = rustix::fs::fstatfs(&handle)
        .is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|kind| matches!(kind, XFS | EXT4)));
    // Of a handle that reads nothing the kernel takes attributes by its name alone.
    let path = format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd());
    known && rustix::fs::removexattr(&path, NO_ATTRIBUTE) == Err(Errno::IO)
}

/// Whether a change is refused as of a file system that was shut down. The change is to take away what is not there: a file
/// system that was not shut down writes nothing, and says so.
fn refuses_changes(file: impl AsFd) -> bool {
    !matches!(rustix::fs::fremovexattr(file, NO_ATTRIBUTE), Ok(()) | Err(Errno::NODATA))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_shutdown_is_told_apart() {
        assert!(["ext4", "xfs", "f2fs"].into_iter().all(can_be_shut_down));
        assert!(
            !["btrfs", "nfs", "nfs4", "tmpfs", "fuse.sshfs", "overlay", ""].into_iter().any(can_be_shut_down)
        );
    }
}
