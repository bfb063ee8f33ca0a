//! The deadman's side of the guard: starts it, replaces one that died or hangs, ends it with the keeper.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use shared::clock::Reading;
use shared::protocol::Now;

use super::guard::{GUARD_LOG, GUARD_SILENCE};
use super::{BETWEEN_STARTS, POLL_CLOSELY};
use crate::keeper::cgroups;
use crate::keeper::fence::started_before_all_others;
use crate::keeper::process::ProcessId;
use crate::keeper::shared_memory::SharedMemory;

/// For so long a guard that was just started may take until it ticks, on a host that is busy.
const BEGINS_WITHIN: Duration = Duration::from_secs(3);

/// For so long one may take to end by itself, and to take its cgroups down.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// What a deadman knows of the guard.
pub(super) struct GuardKeeper {
    /// Whether the one that is there is to be replaced, as soon as another one is ready: a new keeper's may be another version, with
    /// other parameters.
    replaces: bool,
    started: Option<(Child, Now)>,
    /// Those that it started before, until they are reaped.
    older: Vec<Child>,
    start_at: Now,
    /// Since when none of its own ticks.
    without: Option<Now>,
    said: bool,
}

impl GuardKeeper {
    pub(super) fn new(replaces: bool) -> Self {
        Self { replaces, started: None, older: Vec::new(), start_at: Now::ZERO, without: None, said: false }
    }

    /// Sees to it that there is a guard that ticks. To be called by the deadman's loop.
    pub(super) fn keep(&mut self, now: Now, shared: &SharedMemory, arguments: &[OsString]) {
        self.older.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        if self.started.as_mut().is_some_and(|(child, _)| !matches!(child.try_wait(), Ok(None))) {
            self.started = None;
        }
        let named = shared.guard();
        let runs = named.is_some_and(ProcessId::runs);
        let ticks = runs && now < shared.guard_tick() + GUARD_SILENCE;
        let is_own =
            self.started.as_ref().is_some_and(|(child, _)| named.is_some_and(|g| g.pid == child.id()));
        if ticks && (is_own || !self.replaces) {
            self.replaces = false;
            self.without = None;
            if std::mem::take(&mut self.said) {
                tracing::info!("a guard runs again");
            }
            return;
        }
        let without = *self.without.get_or_insert(now);
        if self.replaces && !self.said && now >= without + BEGINS_WITHIN {
            tracing::warn!(
                "this keeper's guard has not begun within {BEGINS_WITHIN:?}, see {GUARD_LOG}: another one is started"
            );
            self.said = true;
        }
        let begins = self.started.as_ref().is_some_and(|(_, at)| now < *at + BEGINS_WITHIN && !is_own);
        if begins || now < self.start_at {
            return;
        }
        // One of its own that hangs; another keeper's guards on until the new one has taken its name.
        if let Some((mut child, _)) = self.started.take() {
            let _ended = child.kill();
            self.older.push(child);
        } else if !self.replaces
            && let Some(guard) = named
        {
            guard.kill();
        }
        if !self.replaces && !self.said {
            tracing::warn!("the guard does not tick: another one is started");
            self.said = true;
        }
        self.start_at = now + BETWEEN_STARTS;
        let mut guard = Command::new("/proc/self/exe");
        guard
            .arg0("extvol-keeper")
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        match started_before_all_others(|| guard.spawn()) {
            Ok(child) => self.started = Some((child, now)),
            Err(error) => tracing::error!("no guard could be started: {error}"),
        }
    }

    /// The keeper ends: so does its guard, and nothing of it is left.
    pub(super) fn end(&mut self, shared: &SharedMemory, cgroup: &str) {
        let guard = shared.replace_guard(None);
        let began = Reading::take().holder();
        let own = self.started.take().map(|(child, _)| child);
        self.older.extend(own);
        loop {
            self.older.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
            let late = Reading::take().holder() >= began + ENDS_WITHIN;
            if late {
                guard.into_iter().for_each(ProcessId::kill);
                self.older.iter_mut().for_each(|child| drop(child.kill()));
            }
            let gone = self.older.is_empty() && !guard.is_some_and(ProcessId::runs);
            if gone || Reading::take().holder() >= began + ENDS_WITHIN * 2 {
                break;
            }
            shared.tick_deadman(Reading::take().holder());
            std::thread::sleep(POLL_CLOSELY);
        }
        cgroups::remove(cgroup);
    }
}
