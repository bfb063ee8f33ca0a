//! A writer's journal, which lies beside the volume and not on it, so that a fenced file system does not stop it: JSON lines.

use serde::{Deserialize, Serialize};

use super::record::Reading;
use super::{Moment, WriterId};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The writer has read the file, and begins or goes on.
    Found {
        /// Who writes.
        writer: WriterId,
        /// The volume, by the storage's name.
        volume: String,
        /// The file on it.
        file: String,
        /// When it began to read.
        at: Moment,
        /// What was there.
        reading: Reading,
    },
    /// It cannot begin: the directory is no volume, or the file does not continue.
    Refused {
        /// Who.
        writer: WriterId,
        /// Which volume it wanted.
        volume: String,
        /// When.
        at: Moment,
        /// Why.
        why: String,
    },
    /// A record is about to be written.
    Tried {
        /// Its number.
        number: u64,
        /// When.
        at: Moment,
    },
    /// It was written and synced.
    Acknowledged {
        /// Its number.
        number: u64,
        /// When that was known.
        at: Moment,
    },
    /// It was not, or nobody knows.
    Failed {
        /// Its number.
        number: u64,
        /// When.
        at: Moment,
        /// The kernel's error.
        error: String,
    },
}

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable since some moment before this.
    Acknowledged(Moment),
    /// It failed at this moment, and may be on the volume all the same.
    Failed(Moment),
    /// The writer ended before it knew.
    Unknown,
}

/// One record that a writer tried to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its number.
    pub number: u64,
    /// When it began.
    pub tried: Moment,
    /// What became of it.
    pub outcome: Outcome,
}

/// The journal of one start of a writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriterJournal {
    /// Who.
    pub writer: WriterId,
    /// The volume, by the storage's name.
    pub volume: String,
    /// The file on it.
    pub file: String,
    /// What it found: at its start, and again after each failure.
    pub found: Vec<(Moment, Reading)>,
    /// What it tried, in order.
    pub attempts: Vec<Attempt>,
}

/// An acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// The record's number.
    pub number: u64,
    /// It became durable not before this,
    pub tried: Moment,
    /// and not after this.
    pub acknowledged: Moment,
}

impl WriterJournal {
    /// Reads the lines of one writer. A last line without its end tells nothing. `None`: it never began.
    ///
    /// # Errors
    /// Names a whole line that is none of a writer's, or not in its place.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let mut journal: Option<Self> = None;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            let read = serde_json::from_str(line).map_err(|error| format!("{line}: {error}"))?;
            match (read, &mut journal) {
                (Line::Refused { .. }, _) => {}
                (Line::Found { at, reading, .. }, Some(journal)) => journal.found.push((at, reading)),
                (Line::Found { writer, volume, file, at, reading }, None) => {
                    let found = vec![(at, reading)];
                    journal = Some(Self { writer, volume, file, found, attempts: Vec::new() });
                }
                (Line::Tried { number, at }, Some(journal)) => {
                    journal.attempts.push(Attempt { number, tried: at, outcome: Outcome::Unknown });
                }
                (Line::Acknowledged { number, at }, Some(journal)) => {
                    journal.ends(number, Outcome::Acknowledged(at)).ok_or_else(|| line.to_owned())?;
                }
                (Line::Failed { number, at, .. }, Some(journal)) => {
                    journal.ends(number, Outcome::Failed(at)).ok_or_else(|| line.to_owned())?;
                }
                (_, None) => return Err(format!("{line}: before anything was found")),
            }
        }
        Ok(journal)
    }

    fn ends(&mut self, number: u64, outcome: Outcome) -> Option<()> {
        let attempt = self.attempts.last_mut()?;
        if attempt.number != number || attempt.outcome != Outcome::Unknown {
            return None;
        }
        attempt.outcome = outcome;
        Some(())
    }

    /// The acknowledged writes, in order.
    pub fn writes(&self) -> impl DoubleEndedIterator<Item = Write> {
        self.attempts.iter().filter_map(|attempt| match attempt.outcome {
            Outcome::Acknowledged(acknowledged) => {
                Some(Write { number: attempt.number, tried: attempt.tried, acknowledged })
            }
            Outcome::Failed(_) | Outcome::Unknown => None,
        })
    }

    /// Whether it ever tried to write this record.
    #[must_use]
    pub fn tried(&self, number: u64) -> bool {
        self.attempts.iter().any(|attempt| attempt.number == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_read_line_by_line_and_a_torn_last_line_tells_nothing() {
        let writer = WriterId { host: "a".into(), container: "c".into(), pid: 1 };
        let reading = Reading::default();
        let found = Line::Found {
            writer,
            volume: "v".into(),
            file: "log".into(),
            at: Moment(1),
            reading: reading.clone(),
        };
        let lines = [
            found,
            Line::Tried { number: 1, at: Moment(2) },
            Line::Acknowledged { number: 1, at: Moment(3) },
            Line::Tried { number: 2, at: Moment(4) },
            Line::Failed { number: 2, at: Moment(5), error: "EIO".into() },
            Line::Tried { number: 2, at: Moment(6) },
        ];
        let text = |line| format!("{}\n", serde_json::to_string(line).unwrap());
        let text: String = lines.iter().map(text).collect();
        let journal = WriterJournal::parse(&format!("{text}{{\"acknowl")).unwrap().unwrap();
        let outcomes: Vec<_> = journal.attempts.iter().map(|attempt| attempt.outcome.clone()).collect();
        assert_eq!(
            outcomes,
            [Outcome::Acknowledged(Moment(3)), Outcome::Failed(Moment(5)), Outcome::Unknown]
        );
        let write = Write { number: 1, tried: Moment(2), acknowledged: Moment(3) };
        assert_eq!(journal.writes().collect::<Vec<_>>(), [write]);

        for bad in ["{\"acknowledged\":{\"number\":9,\"at\":7}}\n", "{}\n"] {
            assert!(WriterJournal::parse(&format!("{text}{bad}")).is_err(), "{bad}");
        }
        assert!(WriterJournal::parse("{\"tried\":{\"number\":1,\"at\":7}}\n").is_err());
    }
}
