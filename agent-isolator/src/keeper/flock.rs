//! Who holds a lock file, told without touching the lock: one who tried it to see would keep its owner out for a moment.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The process that holds the exclusive lock (flock(2)) on this file; none where there is no such file, or it is free.
#[must_use]
pub fn holder_of(file: &Path) -> Option<String> {
    let found = fs::metadata(file).ok()?;
    locked_by(&fs::read_to_string("/proc/locks").ok()?, found.dev(), found.ino())
}

fn locked_by(locks: &str, device: u64, inode: u64) -> Option<String> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        // 1: FLOCK ADVISORY WRITE <pid> <file> 0 EOF; who waits for it has an arrow behind the number.
        match fields[..] {
            [_, "FLOCK", _, "WRITE", pid, on, ..] if on == file => Some(pid.to_owned()),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_who_waits_for_a_lock_does_not_hold_it() {
        let locks =
            "1: -> FLOCK  ADVISORY  WRITE 7 08:01:42 0 EOF\n2: FLOCK  ADVISORY  WRITE 9 08:01:42 0 EOF\n";
        assert_eq!(locked_by(locks, rustix::fs::makedev(8, 1), 42).as_deref(), Some("9"));
        assert_eq!(locked_by(locks, rustix::fs::makedev(8, 2), 42), None);
    }
}
