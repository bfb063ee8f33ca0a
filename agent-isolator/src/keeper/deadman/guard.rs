//! The guard: the process that is left when all of a keeper's processes are killed together, with the agent or without. It
//! watches the shared page, and when the deadline has passed and no deadman acts, it takes the deadman's lock and fences this host
//! in its place ([`Guarding`] does it; there is no second way). Then it steps back, and guards on.
//!
//! It has a session and cgroups of its own, so that what ends those of the agent or of the keeper's unit does not end it; its
//! memory is locked, and the kernel does not choose it when memory is short. The deadman starts it, replaces it when it
//! dies or hangs, and ends it when the keeper ends cleanly. It has helpers of its own that stand by: while no process can be started,
//! and among tens of thousands of processes, its fence is as soon as the deadman's.
//!
//! **One guard at a time.** Its name is one word of the shared page. A new guard, which each new keeper starts (it may be of
//! another version, or have other parameters), puts its name there once all is ready. A guard that is not named any more ends, and
//! takes its cgroups down; the new one kills it if it does not. Until the new one is ready, the old one guards on: so does it beside
//! a new keeper that refuses its parameters or cannot run at all.
//!
//! It never starts a worker: who runs keepers on this host (systemd, the agent) does.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use shared::clock::Reading;
use shared::protocol::Now;

use super::{
    DEADLINE, DEADMAN_SILENCE, DeadmanError, Guarding, POLL, POLL_CLOSELY, Part, Settings, TAKE_OVER, is_due,
    take_lock, undisturbed,
};
use crate::keeper::cgroups;
use crate::keeper::fence::Pool;
use crate::keeper::process::ProcessId;
use crate::keeper::sentence;
use crate::keeper::shared_memory::SharedMemory;
use crate::keeper::stored_table::TABLE;

/// The guard's log in the run directory.
pub const GUARD_LOG: &str = "guard.log";

/// Without a tick for this long the guard is taken for hung: twenty of its polls.
pub const GUARD_SILENCE: Duration = Duration::from_secs(1);

/// A deadman that ticks has set the flag long before: six of its polls. So has another one that took its place.
const PATIENCE: Duration = Duration::from_millis(300);

/// A deadman that hangs, beside no worker that would replace it, holds a lock that keeps every new keeper out.
const HUNG: Duration = Duration::from_secs(5);

/// A guard that is not named any more has so long to end by itself.
const STEPS_BACK: Duration = Duration::from_secs(1);

/// Where nothing is held and no keeper has run for this long, nothing is left to guard.
const DESERTED: Duration = Duration::from_secs(60);

/// How a deadman stands.
#[derive(Clone, Copy, Debug)]
struct Sight {
    now: Now,
    /// The deadline has passed or the flag is set, and no fence is proved since.
    due_since: Option<Now>,
    flagged: bool,
    runs: bool,
    ticked: Now,
}

/// Whether the guard has to fence: nobody else does.
fn must_fence(sight: Sight) -> bool {
    let Sight { now, due_since, flagged, runs, ticked } = sight;
    if due_since.is_none_or(|since| now < since + PATIENCE) {
        return false;
    }
    let silent_for = now.saturating_sub(ticked);
    let not_begun = !flagged;
    let gone = !runs && silent_for >= PATIENCE;
    // While it starts many helpers it may be late for a moment.
    let hung = silent_for >= DEADMAN_SILENCE;
    not_begun || gone || hung
}

/// Runs a guard. Returns when another one has taken its place, or nothing is left to guard.
///
/// # Errors
/// When the run directory cannot be used.
pub fn run_guard(settings: Settings) -> Result<(), DeadmanError> {
    // Which file it is: a page that was put in its place is another keeper's.
    let path = settings.directory.join(DEADLINE);
    let file = |source| DeadmanError::File { what: path.display().to_string(), source };
    let id = identity(&path).map_err(file)?;
    let shared = SharedMemory::open(&path)?;
    undisturbed("guard");
    // What it could not leave the worker sees for itself, and its session is unproved.
    match cgroups::enter(&settings.cgroup) {
        Ok(()) => tracing::info!("the guard is in cgroups of its own, {}", settings.cgroup),
        Err(why) => tracing::error!("the guard may end with the keeper's processes: {why}"),
    }
    let now = Reading::take().holder();
    shared.tick_guard(now);
    let older = shared.replace_guard(ProcessId::own());
    let older = older.filter(|older| older.pid != std::process::id());
    let pool = Pool::new(settings.policy.program.clone());
    let last_keeper = now;
    let older = older.map(|older| (older, now + STEPS_BACK));
    let mut guard =
        Guard { settings, shared, id, older, pool, due_since: None, kept_out: false, last_keeper };
    guard.watch();
    guard.pool.end();
    // So that they can be removed.
    if let Err(why) = cgroups::leave() {
        tracing::warn!("{why}");
    }
    cgroups::remove(&guard.settings.cgroup);
    Ok(())
}

fn identity(path: &std::path::Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

struct Guard {
    settings: Settings,
    shared: SharedMemory,
    id: (u64, u64),
    /// The guard before this one, and when it is killed.
    older: Option<(ProcessId, Now)>,
    /// Helpers for a fence.
    pool: Pool,
    due_since: Option<Now>,
    /// It had to fence, and somebody else had the lock.
    kept_out: bool,
    /// When a keeper was last seen, or something was held.
    last_keeper: Now,
}

impl Guard {
    fn watch(&mut self) {
        loop {
            let now = Reading::take().holder();
            self.shared.tick_guard(now);
            if self.shared.guard() != ProcessId::own() {
                return tracing::info!(
                    "another guard has taken over, or the keeper has ended: the guard ends"
                );
            }
            let deadline = self.shared.read();
            let held = self.shared.proved() != Some(deadline.generation);
            let due = held && is_due(deadline, now);
            let replaced = identity(&self.settings.directory.join(DEADLINE)).is_ok_and(|id| id != self.id);
            if replaced && (!due || self.kept_out) {
                return tracing::warn!("another keeper's page is in the run directory: the guard ends");
            }
            self.due_since = if due { self.due_since.or(Some(now)) } else { None };
            let deadman = self.shared.deadman().filter(|deadman| deadman.runs());
            let ticked = self.shared.deadman_tick();
            let flagged = deadline.fenced;
            let sight = Sight { now, due_since: self.due_since, flagged, runs: deadman.is_some(), ticked };
            if must_fence(sight) {
                self.fence();
                continue;
            }
            let ticks = now < ticked + DEADMAN_SILENCE;
            let worker_ticks = now < self.shared.worker_tick() + DEADMAN_SILENCE;
            if ticks || worker_ticks || held && (due || deadline.fence_at.is_some()) {
                self.last_keeper = now;
            }
            if let Some(deadman) = deadman.filter(|_| now >= ticked + HUNG && !worker_ticks && !due) {
                tracing::warn!("the deadman hangs, and no worker runs that would replace it: it is killed");
                deadman.kill();
            }
            if let Some((older, _)) = self.older.take_if(|(_, at)| now >= *at) {
                older.kill();
            }
            if self.due_since.is_none() {
                self.pool.tend(now, &self.settings.directory.join(TABLE), &self.settings.policy);
            }
            if now >= self.last_keeper + DESERTED {
                return tracing::info!("nothing is left to guard: the guard ends");
            }
            std::thread::sleep(POLL);
        }
    }

    /// Fences in place of a deadman that does not.
    fn fence(&mut self) {
        tracing::error!("the deadline has passed, and no deadman fences this host: the guard does");
        self.shared.flag();
        let began = Reading::take().holder();
        let older = self.shared.deadman().filter(|older| older.pid != std::process::id());
        let mut fault = None;
        let lock = loop {
            older.into_iter().for_each(ProcessId::kill);
            match take_lock(&self.settings) {
                Ok(Some(lock)) if older.is_none_or(|older| !older.runs()) => break lock,
                Ok(_) => {}
                Err(error) => fault = Some(sentence(&error)),
            }
            let now = Reading::take().holder();
            self.shared.tick_guard(now);
            if now >= began + TAKE_OVER {
                // Somebody else has it by now, or has hung in the kernel: all is looked at again.
                self.kept_out = true;
                let why = fault.unwrap_or_else(|| "another process holds it".to_owned());
                return tracing::error!("the guard cannot take the deadman's lock: {why}");
            }
            std::thread::sleep(POLL_CLOSELY);
        };
        self.shared.tick_deadman(Reading::take().holder());
        self.shared.set_deadman(ProcessId::own());
        let shared = self.shared.another();
        // A watchdog that the dead deadman had armed resets this host in its own time: that is what it is for.
        let settings = Settings { watchdog: None, ..self.settings.clone() };
        let pool = std::mem::replace(&mut self.pool, Pool::new(settings.policy.program.clone()));
        match shared
            .map_err(DeadmanError::from)
            .and_then(|shared| Guarding::new(settings, shared, lock, Part::Guard, pool))
        {
            Ok(mut guarding) => guarding.guard(),
            Err(error) => tracing::error!("{}", sentence(&error)),
        }
        self.shared.set_deadman(None);
        (self.due_since, self.kept_out) = (None, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// Due since 10 s; it is `now` ms later, and the deadman ticked `silent` ms ago.
    fn fences(later: u64, silent: u64, flagged: bool, runs: bool) -> bool {
        let since = MS(10_000);
        let now = since + MS(later);
        must_fence(Sight { now, due_since: Some(since), flagged, runs, ticked: now - MS(silent) })
    }

    #[test]
    fn a_guard_fences_when_nobody_else_does() {
        for (later, silent, flagged, runs, expected, why) in [
            (0, 9_000, false, false, false, "the deadman may be about to"),
            (300, 5, true, true, false, "the deadman is at it"),
            (2_000, 700, true, true, false, "it is late, and at it"),
            (300, 300, true, false, true, "it was flagged, and killed"),
            (300, 299, true, false, false, "another one may have begun just now"),
            (300, 5, false, true, true, "it ticks, and does not begin"),
            (300, 300, false, true, true, "it was stopped right before"),
            (1_000, 1_000, true, true, true, "it was stopped in the midst"),
        ] {
            assert_eq!(fences(later, silent, flagged, runs), expected, "{why}");
        }
        let idle = Sight { now: MS(99), due_since: None, flagged: false, runs: false, ticked: MS(0) };
        assert!(!must_fence(idle), "nothing is due");
    }
}
