//! How long a failing app waits before it is tried again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Exponential delays with an upper bound.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Backoff {
    /// The delay after the first failure, in seconds.
    pub initial_seconds: f64,
    /// By how much each further failure lengthens it.
    pub factor: f64,
    /// No delay is longer than this, in seconds.
    pub max_seconds: f64,
    /// A task that ran for this long, in seconds, was no failure: the next delay is the first again.
    pub reset_after_seconds: f64,
}

impl Default for Backoff {
    /// Fifteen seconds at most: an app whose volume is still held elsewhere should be back soon after it is free.
    fn default() -> Self {
        Self { initial_seconds: 1.0, factor: 2.0, max_seconds: 15.0, reset_after_seconds: 30.0 }
    }
}

impl Backoff {
    /// The delay after one more failure when `failures` came before it.
    pub(super) fn delay(&self, failures: i32) -> Duration {
        let seconds = (self.initial_seconds * self.factor.powi(failures)).min(self.max_seconds);
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }

    pub(super) fn reset_after(&self) -> Duration {
        Duration::try_from_secs_f64(self.reset_after_seconds).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_their_bound_and_stay_there() {
        let backoff =
            Backoff { initial_seconds: 0.5, factor: 2.0, max_seconds: 3.0, reset_after_seconds: 1.0 };
        let delays: Vec<f64> = (0..5).map(|failures| backoff.delay(failures).as_secs_f64()).collect();
        assert_eq!(delays, [0.5, 1.0, 2.0, 3.0, 3.0]);
        assert_eq!(backoff.delay(i32::MAX).as_secs_f64(), 3.0);
    }
}
