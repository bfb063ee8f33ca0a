//! A write that a person asked for, tried until it is known to be done, or known not to be.
//!
//! A try without an answer may still commit later. It compares the revisions that it was decided on; so it
//! is closed by trying again: either the next try commits, and the earlier one never can, or a read shows
//! what was wanted. When neither comes about, that is what the person is told.

use std::time::Duration;

use shared::protocol::exchange::Commit;
use shared::store::{LeaseStore, Revision, StoreError};

use crate::arguments::Subject;
use crate::failure::Failure;
use crate::records::{Reading, Records};

/// So often a write is tried. Conflicts mean that a keeper writes the same records, and it rests in between.
const TRIES: u32 = 8;

/// Before a try after one without an answer; grows with each.
const PAUSE: Duration = Duration::from_millis(200);

/// What to do about what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// This is to be written.
    Write(Commit),
    /// It is so already, says the sentence.
    Already(String),
    /// It may not be done, says the sentence.
    Refuse(String),
}

/// A write that is known to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// By this transaction.
    Committed(Revision),
    /// A read showed it, after a try that had no answer.
    Seen(Revision),
}

/// Reads what `subject` is about, decides, and writes.
///
/// # Errors
/// When it may not be done, or it is not known to be done.
pub(crate) async fn write<S: LeaseStore>(
    records: &Records<S>,
    subject: &Subject,
    decide: impl Fn(&Reading) -> Decision,
) -> Result<Done, Failure> {
    write_read(records, async || records.about(subject).await, decide).await
}

/// As [`write`], with a reading of its own.
///
/// # Errors
/// As there.
pub(crate) async fn write_read<S: LeaseStore>(
    records: &Records<S>,
    read: impl AsyncFn() -> Result<Reading, Failure>,
    decide: impl Fn(&Reading) -> Decision,
) -> Result<Done, Failure> {
    let mut unanswered = None;
    let mut last = None;
    for attempt in 1..=TRIES {
        let reading = match read().await {
            Ok(reading) => reading,
            Err(failure) => return Err(open(unanswered.as_ref(), Some(failure))),
        };
        let commit = match decide(&reading) {
            Decision::Write(commit) => commit,
            Decision::Already(_) if unanswered.is_some() => return Ok(Done::Seen(reading.view.revision)),
            Decision::Already(why) | Decision::Refuse(why) => return Err(Failure::Refused(why)),
        };
        let error = match records.commit(&reading, &commit).await {
            Ok(revision) => return Ok(Done::Committed(revision)),
            Err(error) => error,
        };
        match &error {
            // Somebody wrote in between. An unanswered try may have been it: the next read tells.
            StoreError::Conflict => {}
            StoreError::Unknown(_) => {
                unanswered = Some(Failure::of_store(&error).to_string());
                tokio::time::sleep(PAUSE * attempt).await;
            }
            StoreError::Unavailable(_) if matches!(Failure::of_store(&error), Failure::Unreachable(_)) => {
                tokio::time::sleep(PAUSE * attempt).await;
            }
            _ => return Err(open(unanswered.as_ref(), Some(Failure::of_store(&error)))),
        }
        last = Some(match error {
            StoreError::Conflict => Failure::Refused(format!(
                "the records were written by somebody else between reading and writing, {attempt} times in a row"
            )),
            other => Failure::of_store(&other),
        });
    }
    Err(open(unanswered.as_ref(), last))
}

/// What a failure means when an earlier try may still be done.
fn open(unanswered: Option<&String>, failure: Option<Failure>) -> Failure {
    let failure = failure.unwrap_or_else(|| Failure::Refused("it was tried too often".to_owned()));
    match unanswered {
        None => match failure {
            Failure::Unreachable(why) => Failure::Unreachable(format!("nothing was written: {why}")),
            Failure::Refused(why) => Failure::Refused(format!("nothing was written: {why}")),
            other => other,
        },
        Some(before) => Failure::Unreachable(format!(
            "a write had no answer ({before}), and may have been done or may still happen. Look with \
             `extvol leases` and `extvol sessions` once etcd answers, and run this again: it does nothing twice. \
             The last try: {failure}"
        )),
    }
}
