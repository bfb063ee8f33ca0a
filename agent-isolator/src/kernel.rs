//! Whether this host's kernel can do what isolator and keeper rest on. Checked when the module is
//! loaded: an older kernel would fail each task, with a text that explains nothing.

use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// What was found out about the kernel.
#[derive(Clone, Copy, Debug)]
struct Found<'a> {
    /// openat2(2), since 5.6: mount targets are made with it, and no link leads out of a sandbox.
    openat2: bool,
    /// Disk sequence numbers, since 5.15: they tell a device from a later one of the same name.
    /// Unknown on a host that has no block device yet.
    disk_sequences: Option<bool>,
    /// As `uname -r` prints it.
    release: &'a str,
}

/// Whether this host's kernel is good enough.
///
/// # Errors
/// A sentence to refuse loading with.
pub fn check() -> Result<(), String> {
    let probe = openat2(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty());
    let uname = rustix::system::uname();
    judge(Found {
        // A filter of system calls answers EPERM: as bad.
        openat2: !matches!(probe, Err(Errno::NOSYS | Errno::PERM)),
        disk_sequences: disk_sequences(Path::new("/sys/block")),
        release: &uname.release().to_string_lossy(),
    })
}

fn disk_sequences(block_devices: &Path) -> Option<bool> {
    let mut devices = block_devices.read_dir().ok()?.filter_map(Result::ok);
    Some(devices.next()?.path().join("diskseq").exists())
}

fn judge(found: Found<'_>) -> Result<(), String> {
    let lacks = |what: &str, since: &str| {
        let release = found.release;
        Err(format!("this host's kernel ({release}) has no {what}; extvol needs Linux 5.15, {since}"))
    };
    if !found.openat2 {
        return lacks("openat2(2)", "and no filter of system calls that refuses it to the agent");
    }
    if !found.disk_sequences.unwrap_or_else(|| at_least(found.release, (5, 15))) {
        return lacks("disk sequence numbers", "or a kernel with /sys/block/*/diskseq");
    }
    Ok(())
}

/// Whether a release such as `6.1.0-18-amd64` is not older; one that cannot be read is not.
fn at_least(release: &str, (major, minor): (u32, u32)) -> bool {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(a)), Some(Ok(b))) => (a, b) >= (major, minor),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_lacks_something_is_refused_with_its_release() {
        let found = |openat2, disk_sequences, release| Found { openat2, disk_sequences, release };
        assert_eq!(judge(found(true, Some(true), "5.14.0-362.el9")), Ok(()));
        assert_eq!(judge(found(true, None, "6.1.0-18-amd64")), Ok(()));
        assert_eq!(judge(found(true, None, "unreadable")), Ok(()));
        let table = [
            (found(false, None, "5.4.0"), "kernel (5.4.0) has no openat2(2); extvol needs Linux 5.15"),
            (found(true, Some(false), "5.10.0-28"), "kernel (5.10.0-28) has no disk sequence numbers"),
            (found(true, None, "5.10.0-28"), "has no disk sequence numbers"),
            (found(true, None, "4.19.0"), "has no disk sequence numbers"),
        ];
        for (found, expected) in table {
            let error = judge(found).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn one_block_device_tells_of_all() {
        let sys = tempfile::tempdir().unwrap();
        assert_eq!(disk_sequences(sys.path()), None);
        let device = sys.path().join("loop0");
        std::fs::create_dir(&device).unwrap();
        assert_eq!(disk_sequences(sys.path()), Some(false));
        std::fs::write(device.join("diskseq"), "7").unwrap();
        assert_eq!(disk_sequences(sys.path()), Some(true));
    }

    #[test]
    fn this_kernel_is_good_enough() {
        assert_eq!(check(), Ok(()));
    }
}
