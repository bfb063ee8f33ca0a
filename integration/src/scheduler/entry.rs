//! One app within the scheduler's core: how far it is, and what follows when its task ends.

use std::time::{Duration, Instant};

use super::{
    app::{App, RestartPolicy},
    backoff::Backoff,
    history::TaskState,
};

/// The task that counts.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) task_id: String,
    pub(super) agent_id: String,
    pub(super) running_since: Option<Instant>,
    /// Set once the app was told to stop: when to send the next kill.
    pub(super) kill_at: Option<Instant>,
}

/// How far an app is.
#[derive(Debug)]
pub(super) enum Phase {
    /// For its delay, then for an offer that fits.
    Waiting {
        until: Instant,
        /// Whether the master was asked for offers since `until`.
        revived: bool,
    },
    /// One task counts.
    Active(Active),
    /// The restart policy wants no more.
    Ended,
}

/// An app and its state.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) app: App,
    pub(super) phase: Phase,
    /// Failures in a row.
    pub(super) failures: i32,
}

impl Entry {
    pub(super) fn active(&self) -> Option<&Active> {
        match &self.phase {
            Phase::Active(active) => Some(active),
            _ => None,
        }
    }

    /// The task that counted has ended or is lost: decides whether and when another one follows. A task lost with its
    /// agent did nothing wrong, and is replaced at once, unless launches are being lost one after the other.
    pub(super) fn ended(&mut self, now: Instant, state: TaskState, default: Backoff) {
        let again = match self.app.restart {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => state != TaskState::Finished,
            RestartPolicy::Never => false,
        };
        if !again {
            self.phase = Phase::Ended;
            return;
        }
        let backoff = self.app.backoff.unwrap_or(default);
        let running_since = self.active().and_then(|active| active.running_since);
        if running_since.is_some_and(|since| now.duration_since(since) >= backoff.reset_after()) {
            self.failures = 0;
        }
        let at_once = state.is_loss() && (running_since.is_some() || self.failures == 0);
        let delay = if at_once { Duration::ZERO } else { backoff.delay(self.failures) };
        if !(state.is_loss() && running_since.is_some()) {
            self.failures = self.failures.saturating_add(1);
        }
        self.phase = Phase::Waiting { until: now + delay, revived: false };
    }
}
