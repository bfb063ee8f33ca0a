//! What the checker found: violations, breaches that harmed nobody, and counts.

use std::fmt;

use super::WriterId;
use crate::storage::journal;

/// Writes of one writer, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Who wrote.
    pub writer: WriterId,
    /// How many.
    pub writes: u64,
    /// The number of the first.
    pub from: u64,
    /// The number of the last.
    pub to: u64,
    /// When the first was tried, in seconds since the first entry of any journal.
    pub began: f64,
    /// When the last was acknowledged.
    pub ended: f64,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { writer, writes, from, to, began, ended } = self;
        write!(f, "{writes} writes of {writer}, records {from} to {to}, from {began:.3} s to {ended:.3} s")
    }
}

/// A promise that was broken. Times are seconds since the first entry of any journal.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Violation {
    /// Two hosts could write: acknowledged writes of a host while another session had the volume mounted.
    #[error("two writers to volume {volume}: {span}, were acknowledged while {owner}")]
    SecondWriter {
        /// The volume.
        volume: String,
        /// The writes.
        span: Span,
        /// Who had it then, for people.
        owner: String,
    },
    /// Two hosts could write: a host wrote before and after another's writes, in one life of its writer.
    #[error("two writers to volume {volume}: {other}, are between writes of {writer}")]
    Interleaved {
        /// The volume.
        volume: String,
        /// Who went on.
        writer: WriterId,
        /// What was written meanwhile.
        other: Span,
    },
    /// Writes were acknowledged to a host from which the storage had taken the volume.
    #[error("volume {volume} was not attached to {}: {span}", span.writer.host)]
    Unattached {
        /// The volume.
        volume: String,
        /// The writes.
        span: Span,
    },
    /// The storage's own rules, above all one host at a time.
    #[error("{0}")]
    Storage(#[from] journal::Violation),
    /// The storage took a volume from the host that had the right to it.
    #[error(
        "at {at:.3} s the storage took volume {volume} from {victim} (journal entry {seq}), as {by} asked, while {owner}"
    )]
    TakenFromOwner {
        /// The volume.
        volume: String,
        /// Whose it was.
        victim: String,
        /// Who asked.
        by: String,
        /// The entry.
        seq: u64,
        /// When.
        at: f64,
        /// Who had the right, for people.
        owner: String,
    },
    /// A lease was granted with a token that is not greater than one before, or a lease changed its token.
    #[error("at {at:.3} s the lease of volume {volume} has token {token} for {holder}, after token {before}")]
    TokenWentBack {
        /// The volume.
        volume: String,
        /// Who holds it.
        holder: String,
        /// The token.
        token: i64,
        /// The greatest one before.
        before: i64,
        /// When.
        at: f64,
    },
    /// The storage was asked under an older token than before.
    #[error(
        "at {at:.3} s {host} attached volume {volume} under {mount_id} (journal entry {seq}), after token {before}"
    )]
    TokenWentBackAtStorage {
        /// The volume.
        volume: String,
        /// Who asked.
        host: String,
        /// The Mount's ID.
        mount_id: String,
        /// The greatest token before.
        before: i64,
        /// The entry.
        seq: u64,
        /// When.
        at: f64,
    },
    /// Acknowledged records are not on the volume.
    #[error("lost from {file} on volume {volume}: {span}; {reader} did not find them at {at:.3} s")]
    Lost {
        /// The volume.
        volume: String,
        /// The file.
        file: String,
        /// The writes.
        span: Span,
        /// Who looked.
        reader: String,
        /// When.
        at: f64,
    },
    /// The records on the volume are not one after the other.
    #[error("{file} on volume {volume} is broken: {fault}; found by {reader} at {at:.3} s")]
    Broken {
        /// The volume.
        volume: String,
        /// The file.
        file: String,
        /// The first fault.
        fault: String,
        /// Who looked.
        reader: String,
        /// When.
        at: f64,
    },
    /// A record on the volume that nobody tried to write.
    #[error(
        "record {number} of {writer} is on volume {volume}, and was never tried; found by {reader} at {at:.3} s"
    )]
    Unexplained {
        /// The volume.
        volume: String,
        /// Whose it is, by its own words.
        writer: WriterId,
        /// Its number.
        number: u64,
        /// Who looked.
        reader: String,
        /// When.
        at: f64,
    },
}

/// The protocol was broken, and nobody was harmed: nobody else had the volume mounted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("without the right to volume {volume}: {span}, were acknowledged while {owner}")]
pub struct Breach {
    /// The volume.
    pub volume: String,
    /// The writes.
    pub span: Span,
    /// How it stood with the lease.
    pub owner: String,
}

/// The longest time without an acknowledged write to a volume that was written again.
#[derive(Clone, Debug, PartialEq)]
pub struct Gap {
    /// The volume.
    pub volume: String,
    /// How long, in seconds.
    pub seconds: f64,
    /// When it began.
    pub at: f64,
    /// Who wrote before it.
    pub from: String,
    /// Who wrote after it.
    pub to: String,
}

/// Counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Acknowledged writes.
    pub writes: u64,
    /// Writes that failed.
    pub failed: u64,
    /// Starts of writers.
    pub writers: usize,
    /// Hosts that wrote.
    pub hosts: usize,
    /// Volumes that were written to.
    pub volumes: usize,
    /// How often a volume's writes went on on another host.
    pub moves: u64,
    /// The longest gap.
    pub gap: Option<Gap>,
    /// How often the storage refused a host a volume, or to take one away.
    pub refused: u64,
}

/// The verdict.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// What must never be.
    pub violations: Vec<Violation>,
    /// What must not be either, and harmed nobody this time.
    pub breaches: Vec<Breach>,
    /// Why the journals do not tell everything; then nothing is proved.
    pub incomplete: Vec<String>,
    /// Counts.
    pub summary: Summary,
}

impl Verdict {
    /// Whether everything was seen, and all of it was right.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.violations.is_empty() && self.breaches.is_empty() && self.incomplete.is_empty()
    }
}

/// One line, and one more for each violation, breach and gap of the journals.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { writes, failed, writers, hosts, volumes, moves, gap, refused } = &self.summary;
        write!(
            f,
            "witness: {writes} acknowledged writes to {volumes} volume(s) by {writers} writer(s) on {hosts} host(s), \
             {moves} move(s), {failed} failed write(s)"
        )?;
        if let Some(Gap { volume, seconds, at, from, to }) = gap {
            write!(f, "; longest gap {seconds:.2} s at {at:.1} s ({volume}, {from} to {to})")?;
        }
        if *refused > 0 {
            write!(f, "; the storage refused {refused} call(s)")?;
        }
        let counts = [
            (self.violations.len(), "violation(s)"),
            (self.breaches.len(), "breach(es) that harmed nobody"),
            (self.incomplete.len(), "hole(s) in the journals"),
        ];
        let found: Vec<_> =
            counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        if found.is_empty() {
            return f.write_str("; no violation");
        }
        write!(f, "; {}", found.join(", "))?;
        for violation in &self.violations {
            write!(f, "\n  VIOLATION: {violation}")?;
        }
        for breach in &self.breaches {
            write!(f, "\n  breach: {breach}")?;
        }
        for hole in &self.incomplete {
            write!(f, "\n  incomplete: {hole}")?;
        }
        Ok(())
    }
}
