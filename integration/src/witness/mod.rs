//! The witness: journals of storage, writers and leases in, one verdict out.
//!
//! ```text
//! storage stand-in   who was attached when, who asked, under which Mount ID      storage::journal
//! test writers       what was tried, acknowledged, failed; what was found        writer.rs, attempt.rs
//! etcd               every write to leases and sessions, and when it was made    recorder.rs, history.rs
//! the volume itself  numbered records, each with the checksum of all before it   record.rs
//!        |
//!        v
//! check.rs           the rules, one file each in rules/                          verdict.rs
//! ```
//!
//! All hosts of a cluster are namespaces of one kernel, so that all times are of one clock: `CLOCK_MONOTONIC_RAW`. What cannot be
//! known is not judged: a write was made somewhere between its start and its acknowledgement, a record of etcd somewhere between
//! the last read that did not show it and the first sight of it. A rule is broken only where it is broken for every moment that
//! is possible; so a verdict is never a guess, and a lapse shorter than these bounds is not seen.
//!
//! [`check`] is pure. [`writer`], [`recorder`] and [`collect`] do the reading and writing.

pub mod attempt;
mod check;
pub mod collect;
pub mod history;
pub mod record;
pub mod recorder;
mod rules;
mod verdict;
pub mod writer;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::storage::journal::Entry;
pub use check::check;
pub use verdict::{Breach, Gap, Span, Summary, Verdict, Violation};

/// A moment of `CLOCK_MONOTONIC_RAW`, in nanoseconds: one clock for all hosts of this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicRaw);
        // Neither part of this clock is ever negative.
        Self(time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs())
    }

    /// Seconds since `other`, which is not later.
    #[must_use]
    pub fn seconds_since(self, other: Self) -> f64 {
        std::time::Duration::from_nanos(self.0.saturating_sub(other.0)).as_secs_f64()
    }
}

/// One start of a test writer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WriterId {
    /// The host's name.
    pub host: String,
    /// The container, by the last part of its sandbox's path.
    pub container: String,
    /// Its process id as it sees it itself.
    pub pid: u32,
}

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let container = self.container.get(..8).unwrap_or(&self.container);
        write!(f, "{} (container {container}, process {})", self.host, self.pid)
    }
}

/// What a volume held when all of its file was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastReading {
    /// The volume, by the storage's name.
    pub volume: String,
    /// The file on it.
    pub file: String,
    /// When the reading began.
    pub at: Moment,
    /// What was found.
    pub reading: record::Reading,
}

/// Everything that the checker judges by.
#[derive(Clone, Debug, Default)]
pub struct Journals {
    /// The storage's.
    pub storage: Vec<Entry>,
    /// One for each start of a writer.
    pub writers: Vec<attempt::WriterJournal>,
    /// etcd's, line by line.
    pub leases: Vec<history::Line>,
    /// The volumes at the end.
    pub last: Vec<LastReading>,
    /// All leases and sessions that were written before this are in the journals; of later ones nothing is judged.
    pub until: Moment,
}

#[cfg(test)]
mod tests;
