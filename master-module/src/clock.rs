//! Elapsed time of a reclaimer (L11), which tests control.

use std::time::Duration;

/// Elapsed time from a fixed moment.
pub(crate) trait Elapsed {
    /// How much has passed.
    fn now(&mut self) -> Duration;
}

/// By the kernel's clock for a reclaimer: see [`shared::clock`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelClock;

impl Elapsed for KernelClock {
    fn now(&mut self) -> Duration {
        shared::clock::reclaimer_now()
    }
}
