//! The clocks by which a host's elapsed time is told (L11). No wall clock, and none whose rate anybody can change.
//!
//! A holder's time is `MONOTONIC_RAW` and what the host has slept, which is `BOOTTIME` less `MONOTONIC`. RAW is not slewed,
//! but stands still in a suspend; the other two are slewed alike, so that their difference is not. The sum counts both, starts at
//! boot, needs no state, and so is one clock for all processes of one boot.
//!
//! It is not the greater of the two readings of `BOOTTIME` and RAW. After weeks those are minutes apart, for one is
//! disciplined and the other is not: the greater is always the same one, and when that is `BOOTTIME`, a daemon that slews it by
//! 8 % slows the holder down by as much, far beyond what the waits of L13 allow.
//!
//! A reclaimer's time is RAW alone: what it slept was no wait.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::protocol::Now;

/// Two readings that are further apart than this had an interruption in between, and are taken again.
const CLOSE: Duration = Duration::from_micros(200);

/// How often they are taken again. The error that is left makes a holder early, never late.
const READINGS: u32 = 8;

/// What the clocks show at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// `CLOCK_MONOTONIC_RAW`.
    raw: Duration,
    /// How long the host was suspended since boot.
    slept: Duration,
}

impl Reading {
    /// Reads the clocks. Makes no system call that could block.
    #[must_use]
    pub fn take() -> Self {
        let mut slept = None;
        for _ in 0..READINGS {
            let before = read(ClockId::Monotonic);
            let boottime = read(ClockId::Boottime);
            let apart = read(ClockId::Monotonic).saturating_sub(before);
            // Not less than it was: the clock that is subtracted was read first.
            let upper = boottime.saturating_sub(before);
            slept = Some(slept.map_or(upper, |least: Duration| least.min(upper)));
            if apart <= CLOSE {
                break;
            }
        }
        // Read last, so that time that passed in here counts.
        Self { raw: read(ClockId::MonotonicRaw), slept: slept.unwrap_or_default() }
    }

    /// A holder's elapsed time since boot.
    #[must_use]
    pub fn holder(&self) -> Now {
        self.raw + self.slept
    }

    /// A reclaimer's elapsed time since boot.
    #[must_use]
    pub fn reclaimer(&self) -> Now {
        self.raw
    }
}

/// A holder's elapsed time, comparable between all processes of one boot.
#[must_use]
pub fn holder_now() -> Now {
    Reading::take().holder()
}

/// A reclaimer's elapsed time. Not to be compared with a holder's.
#[must_use]
pub fn reclaimer_now() -> Now {
    Reading::take().reclaimer()
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    // None of these clocks is ever below zero, and nanoseconds are below 10^9.
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Sees that the host was suspended, by its clocks jumping apart: it wrote nothing meanwhile, but its storage may have been given
/// away, and what the block layer held goes out when it wakes (L20).
#[derive(Clone, Debug, Default)]
pub struct SuspendWatch {
    slept: Option<Duration>,
}

impl SuspendWatch {
    /// A shorter one is not told from the errors of reading two clocks one after the other.
    const SHORTEST: Duration = Duration::from_millis(100);

    /// Takes in a reading; for how long the host slept since the last one, if it did.
    pub fn observe(&mut self, reading: Reading) -> Option<Duration> {
        let slept = reading.slept.saturating_sub(*self.slept.get_or_insert(reading.slept));
        if slept < Self::SHORTEST {
            return None;
        }
        self.slept = Some(reading.slept);
        Some(slept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(raw: u64, slept: u64) -> Reading {
        Reading { raw: Duration::from_millis(raw), slept: Duration::from_millis(slept) }
    }

    #[test]
    fn a_suspend_ages_a_holder_and_not_a_reclaimer() {
        let (before, after) = (reading(5_000, 0), reading(5_100, 60_000));
        assert_eq!(after.holder() - before.holder(), Duration::from_millis(60_100));
        assert_eq!(after.reclaimer() - before.reclaimer(), Duration::from_millis(100));
    }

    #[test]
    fn a_suspend_is_seen_once_and_an_error_of_reading_never() {
        let mut watch = SuspendWatch::default();
        assert_eq!(
            watch.observe(reading(1_000, 7_000)),
            None,
            "what was before the first reading is history"
        );
        assert_eq!(watch.observe(reading(1_050, 7_003)), None);
        assert_eq!(watch.observe(reading(1_100, 9_000)), Some(Duration::from_millis(2_000)));
        assert_eq!(watch.observe(reading(1_150, 9_000)), None);
    }

    #[test]
    fn both_clocks_of_this_machine_go_on_together() {
        let mut watch = SuspendWatch::default();
        let first = Reading::take();
        assert_eq!(watch.observe(first), None);
        let mut last = first;
        while last.reclaimer() < first.reclaimer() + Duration::from_millis(20) {
            last = Reading::take();
            assert_eq!(watch.observe(last), None);
        }
        let (holder, reclaimer) = (last.holder() - first.holder(), last.reclaimer() - first.reclaimer());
        assert!(holder.abs_diff(reclaimer) < Duration::from_millis(10), "{holder:?} {reclaimer:?}");
        // The sum is what BOOTTIME would be if nobody had ever slewed it: 10 % is what chrony may.
        let boottime = read(ClockId::Boottime);
        assert!(last.holder().abs_diff(boottime) <= boottime / 10 + Duration::from_millis(10));
    }
}
