//! Elapsed time of a reclaimer (L11): never ahead of true time by more than the clocks' rate error, whatever
//! somebody does to the wall clock.
//!
//! MONOTONIC_RAW is not slewed, and stands still while the host is suspended; BOOTTIME counts that, and may be
//! slewed by several per cent. Of each stretch between two looks the shorter measure counts. (The smaller of the
//! two *sums* would not do: while the one that is behind catches up, it is the smaller one and too fast.)

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Elapsed time from a fixed moment.
pub(crate) trait Elapsed {
    /// How much has passed.
    fn now(&mut self) -> Duration;
}

/// By the kernel's clocks.
#[derive(Debug)]
pub(crate) struct KernelClocks {
    elapsed: Duration,
    last: [Duration; 2],
}

impl KernelClocks {
    pub(crate) fn new() -> Self {
        Self { elapsed: Duration::ZERO, last: read() }
    }

    fn advance(&mut self, read: [Duration; 2]) -> Duration {
        let [boot, raw] = [0, 1].map(|n: usize| read[n].saturating_sub(self.last[n]));
        self.elapsed += boot.min(raw);
        self.last = read;
        self.elapsed
    }
}

impl Elapsed for KernelClocks {
    fn now(&mut self) -> Duration {
        self.advance(read())
    }
}

fn read() -> [Duration; 2] {
    [ClockId::Boottime, ClockId::MonotonicRaw].map(|clock| {
        let time = clock_gettime(clock);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_stretch_the_shorter_measure_counts_also_while_one_clock_catches_up() {
        let seconds = Duration::from_secs;
        let mut clocks = KernelClocks { elapsed: Duration::ZERO, last: [seconds(100), seconds(7)] };
        let mut advance = |boot, raw| clocks.advance([seconds(boot), seconds(raw)]).as_secs();
        assert_eq!(advance(108, 17), 8, "BOOTTIME is slewed to be slower");
        assert_eq!(advance(120, 27), 18, "and catches up: ten seconds are ten seconds");
        assert_eq!(advance(180, 28), 19, "the host was suspended");
        assert_eq!(advance(170, 29), 19, "no clock goes back");
    }

    #[test]
    fn the_kernels_clocks_go_on() {
        let mut clocks = KernelClocks::new();
        let first = clocks.now();
        let mut last = clocks.now();
        for _ in 0..1_000_000 {
            last = clocks.now();
            if last > first {
                break;
            }
        }
        assert!(last > first && last < Duration::from_secs(60), "{first:?} {last:?}");
    }
}
