//! The worker's side: it ticks, sees whether the deadman does, and starts another one when that has died or hangs (L16).

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use shared::protocol::Now;

use crate::keeper::shared_memory::SharedMemory;

/// Without a tick for this long the deadman is taken for hung: twenty of its polls.
pub const DEADMAN_SILENCE: Duration = Duration::from_secs(1);

/// The worker's watch of its deadman.
pub struct DeadmanWatch {
    shared: Arc<SharedMemory>,
    arguments: Vec<OsString>,
    started: Option<(Child, Now)>,
    /// Those that it started before, until they are reaped.
    older: Vec<Child>,
}

impl DeadmanWatch {
    /// `arguments`: of this very program, to start another deadman with.
    #[must_use]
    pub fn new(shared: Arc<SharedMemory>, arguments: Vec<OsString>) -> Self {
        Self { shared, arguments, started: None, older: Vec::new() }
    }

    /// Whether the deadman ticks: without, the worker must not beat.
    #[must_use]
    pub fn deadman_ticks(&self, now: Now) -> bool {
        ticks(&self.shared, now)
    }

    /// Ticks, and starts another deadman if there is none that does. To be called every 50 ms, by the very loop whose life is to
    /// be shown. Whether the deadman ticks.
    ///
    /// # Errors
    /// When none could be started; it is tried again.
    pub fn tick(&mut self, now: Now) -> io::Result<bool> {
        self.shared.tick_worker(now);
        self.older.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        if self.started.as_mut().is_some_and(|(child, _)| !matches!(child.try_wait(), Ok(None))) {
            self.started = None;
        }
        if self.deadman_ticks(now) {
            return Ok(true);
        }
        // One that was just started has its time to begin.
        if self.started.as_ref().is_none_or(|(_, at)| now >= *at + DEADMAN_SILENCE) {
            let child = Command::new("/proc/self/exe")
                .arg0("extvol-keeper")
                .args(&self.arguments)
                .stdin(Stdio::null())
                .spawn()?;
            self.older.extend(self.started.replace((child, now)).map(|(older, _)| older));
        }
        Ok(false)
    }
}

/// Whether the deadman has ticked lately.
#[must_use]
pub(super) fn ticks(shared: &SharedMemory, now: Now) -> bool {
    now < shared.deadman_tick() + DEADMAN_SILENCE
}
