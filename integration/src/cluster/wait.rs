//! Waiting for a condition, with a deadline; never for a time alone.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::error::{ClusterError, Result};

const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Asks again and again until the answer is `Ok`; an `Err` says what was seen instead.
///
/// # Errors
/// [`ClusterError::TimedOut`] with the last answer.
pub fn until<T>(
    what: &str,
    within: Duration,
    logs: &Path,
    mut ask: impl FnMut() -> std::result::Result<T, String>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(last) if Instant::now() > deadline => {
                let (what, logs) = (what.to_owned(), logs.to_path_buf());
                return Err(ClusterError::TimedOut { what, after: within, last, logs });
            }
            Err(_) => thread::sleep(LOOK_AGAIN),
        }
    }
}
