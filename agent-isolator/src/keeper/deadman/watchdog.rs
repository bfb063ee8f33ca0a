//! A watchdog device beside the deadman: it resets the host when nobody pets it. Against what nothing else is any good for: worker
//! and deadman killed together, or a kernel that stands still.
//!
//! It is petted only before the fence's time, and after the fence's proof. Its time-out W must fit twice between F and the end of
//! the holder's right to write: `F + 2W <= T(1 - 2 rho)`, once for the time-out and once for how coarsely drivers keep it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use shared::protocol::timing::Timing;

/// An open, and so armed, watchdog.
pub struct Watchdog(File);

impl Watchdog {
    /// Opens it, which arms it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Whatever stands there, no write to it waits.
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
        File::options().write(true).custom_flags(flags).open(path).map(Self)
    }

    /// Puts the reset off by its time-out.
    pub fn pet(&mut self) {
        let _tried_again_in_50_ms = self.0.write(b"1");
    }

    /// Disarms it: the magic close.
    pub fn disarm(mut self) {
        let _resets_the_host_then = self.0.write(b"V");
    }
}

/// The time-out that the kernel shows for a watchdog device such as `/dev/watchdog0`, if it does.
#[must_use]
pub fn timeout_of(path: &Path) -> Option<Duration> {
    let text = fs::read_to_string(device(path)?.join("timeout")).ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// Whether the kernel says that this watchdog runs: somebody has opened it, and it counts.
#[must_use]
pub fn is_armed(path: &Path) -> bool {
    let state = || fs::read_to_string(device(path)?.join("state")).ok();
    state().is_some_and(|state| state.trim() == "active")
}

/// Where the kernel tells of a watchdog device.
fn device(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let name = if name == "watchdog" { "watchdog0" } else { name };
    Some(Path::new("/sys/class/watchdog").join(name))
}

/// Whether a watchdog of that time-out resets this host before its right to write ends.
///
/// # Errors
/// A sentence with the longest that would.
pub fn check(timing: &Timing, timeout: Duration) -> Result<(), String> {
    let longest = timing.write_span().saturating_sub(timing.fence) / 2;
    if timeout <= longest {
        return Ok(());
    }
    Err(format!(
        "the watchdog's time-out of {timeout:?} is longer than {longest:?}, half of what is left after the fence time"
    ))
}

#[cfg(test)]
mod tests {
    use shared::protocol::timing::Profile;

    use super::*;

    #[test]
    fn a_watchdog_fits_twice_behind_the_fence_time() {
        let timing = Profile::Default.timing();
        // 10 s less 2 in a thousand, less 6.5 s, halved.
        assert_eq!(check(&timing, Duration::from_millis(1_740)), Ok(()));
        let error = check(&timing, Duration::from_millis(1_741)).unwrap_err();
        assert!(error.contains("1.74s"), "{error}");
        let why = check(&Profile::Fast.timing(), Duration::from_secs(1));
        assert!(why.is_err(), "whole seconds do not fit the fast profile: {why:?}");
    }
}
