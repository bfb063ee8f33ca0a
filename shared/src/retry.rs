//! How long to wait before something is tried again. The one file that names the crate `backoff`,
//! which nobody maintains any more: what replaces it replaces this file.

use std::time::Duration;

use backoff::backoff::Backoff;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};

/// Part of a delay that is left to chance, both ways: hosts that lost the same etcd member at the
/// same moment must not all come back at the same moment.
const JITTER: f64 = 0.3;

/// Delays that double from try to try, with jitter, up to a maximum.
#[derive(Debug)]
pub struct Retry {
    delays: ExponentialBackoff,
    max: Duration,
}

impl Retry {
    /// Delays from about `initial` up to `max`.
    #[must_use]
    pub fn new(initial: Duration, max: Duration) -> Self {
        let delays = ExponentialBackoffBuilder::new()
            .with_initial_interval(initial)
            .with_max_interval(max)
            .with_multiplier(2.0)
            .with_randomization_factor(JITTER)
            .with_max_elapsed_time(None)
            .build();
        Self { delays, max }
    }

    /// How long to wait before the next try. Never more than the maximum.
    pub fn next_delay(&mut self) -> Duration {
        // Without a maximal elapsed time there always is a next delay.
        self.delays.next_backoff().unwrap_or(self.max).min(self.max)
    }

    /// A try succeeded: the next delay is the first one again.
    pub fn reset(&mut self) {
        self.delays.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_up_to_the_maximum_and_start_again_after_a_success() {
        let mut retry = Retry::new(Duration::from_millis(100), Duration::from_secs(1));
        let first = retry.next_delay();
        assert!((Duration::from_millis(69)..=Duration::from_millis(131)).contains(&first), "{first:?}");
        for _ in 0..20 {
            assert!(retry.next_delay() <= Duration::from_secs(1));
        }
        assert!(retry.next_delay() >= Duration::from_millis(699), "it has grown");
        retry.reset();
        assert!(retry.next_delay() <= Duration::from_millis(131));
    }
}
