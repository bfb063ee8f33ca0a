//! How far the job is, for a person: a line on standard output twice a second. And how fast it may be.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(500);
/// The speed that is shown is that of so many lines.
const LINES: usize = 10;

/// Rows that are done, of all.
#[derive(Debug)]
pub(crate) struct Progress {
    done: i64,
    total: i64,
    /// Rows that were done at moments before.
    before: VecDeque<(Instant, i64)>,
}

impl Progress {
    pub(crate) fn new(done: i64, total: i64, now: Instant) -> Self {
        Self { done, total, before: VecDeque::from([(now, done)]) }
    }

    /// More rows are done; the line, when it is time for one.
    pub(crate) fn add(&mut self, rows: i64, now: Instant) -> Option<String> {
        self.done += rows;
        let last = self.before.back().map(|(at, _)| *at);
        if last.is_some_and(|last| now.duration_since(last) < EVERY) && self.done < self.total {
            return None;
        }
        let first = self.before.front().copied().unwrap_or((now, self.done));
        self.before.push_back((now, self.done));
        if self.before.len() > LINES {
            self.before.pop_front();
        }
        Some(self.line(first, now))
    }

    fn line(&self, (since, at): (Instant, i64), now: Instant) -> String {
        let millis = i64::try_from(now.duration_since(since).as_millis()).unwrap_or(i64::MAX).max(1);
        let per_second = (self.done - at) * 1000 / millis;
        let left = (self.total - self.done).max(0).checked_div(per_second);
        let left = left.map_or_else(|| "?".to_owned(), |seconds| seconds.to_string());
        let percent = self.done * 100 / self.total.max(1);
        let (done, total) = (self.done, self.total);
        format!("{done} of {total} rows ({percent} %), {per_second} rows/s, {left} s left")
    }
}

/// Holds the job back, so that the source has time for others.
#[derive(Debug)]
pub(crate) struct Pace {
    rows_per_second: Option<u32>,
    next: Instant,
}

impl Pace {
    /// As fast as it goes if no speed is given.
    pub(crate) fn new(rows_per_second: Option<u32>, now: Instant) -> Self {
        Self { rows_per_second, next: now }
    }

    /// These rows were done: waits for the time of the next. What was late is not made up for.
    pub(crate) fn keep(&mut self, rows: u32) {
        let Some(per_second) = self.rows_per_second else { return };
        let now = Instant::now();
        self.next = self.next.max(now - EVERY) + Duration::from_secs(1) * rows / per_second.max(1);
        thread::sleep(self.next.saturating_duration_since(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_rows_speed_and_time_left() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut progress = Progress::new(1000, 5000, start);
        assert_eq!(progress.add(100, at(400)), None);
        let expected = "2000 of 5000 rows (40 %), 1000 rows/s, 3 s left";
        assert_eq!(progress.add(900, at(1000)).as_deref(), Some(expected));
        // The last comes at once.
        let expected = "5000 of 5000 rows (100 %), 3636 rows/s, 0 s left";
        assert_eq!(progress.add(3000, at(1100)).as_deref(), Some(expected));
    }

    #[test]
    fn without_rows_there_is_no_speed() {
        let start = Instant::now();
        let mut progress = Progress::new(0, 10, start);
        let expected = "0 of 10 rows (0 %), 0 rows/s, ? s left";
        assert_eq!(progress.add(0, start + EVERY).as_deref(), Some(expected));
    }
}
