//! A write that a person asked for, tried until it is known to be done, or known not to be.
//!
//! A try without an answer may still commit later. It compares the revisions that it was decided on; so it
//! is closed by trying again: either the next try commits, and the earlier one never can, or a read shows
//! what was wanted. When neither comes about, that is what the person is told.

use std::cell::RefCell;

use shared::protocol::exchange::Commit;
use shared::store::{LeaseStore, Revision, StoreError};

use crate::arguments::Subject;
use crate::failure::Failure;
use crate::records::{Reading, Records};

/// So often a write is tried. Conflicts mean that a keeper writes the same records, and it rests in between.
const TRIES: u32 = 8;

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

/// What a command is about, as its first read showed it. A later try is about that and nothing else: a volume
/// that another host has taken meanwhile, or a host's next epoch, is not what the person meant.
#[derive(Debug)]
pub(crate) struct Meant<T>(RefCell<Option<T>>);

impl<T: Clone + PartialEq> Meant<T> {
    pub(crate) fn new() -> Self {
        Self(RefCell::new(None))
    }

    /// Whether this is what the first call was about.
    pub(crate) fn is(&self, now: T) -> bool {
        *self.0.borrow_mut().get_or_insert_with(|| now.clone()) == now
    }
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

/// As [`write()`], with a reading of its own.
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
            // What was decided on has changed, so that no try of before can be done any more.
            Decision::Refuse(why) if unanswered.is_some() => {
                return Err(Failure::Refused(format!(
                    "{why}. (A try before had no answer: if it was done, this is what came of it; it cannot happen any \
                     more.)"
                )));
            }
            Decision::Already(why) | Decision::Refuse(why) => return Err(Failure::Refused(why)),
        };
        let error = match records.commit(&reading, &commit).await {
            Ok(revision) => return Ok(Done::Committed(revision)),
            Err(error) => error,
        };
        match &error {
            // Somebody wrote in between. An unanswered try may have been it: the next read tells.
            StoreError::Conflict(_) => {}
            StoreError::Unknown(_) => {
                unanswered = Some(Failure::of_store(&error).to_string());
                tokio::time::sleep(records.pause() * attempt).await;
            }
            StoreError::Unavailable(_) if matches!(Failure::of_store(&error), Failure::Unreachable(_)) => {
                tokio::time::sleep(records.pause() * attempt).await;
            }
            _ => return Err(open(unanswered.as_ref(), Some(Failure::of_store(&error)))),
        }
        last = Some(match error {
            StoreError::Conflict(_) => Failure::Refused(format!(
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

#[cfg(test)]
mod tests {
    use shared::memory::CommitFault;
    use shared::protocol::exchange::{Commit, Key, Record, Storm};

    use super::*;
    use crate::fixture::{Fixture, holder};

    fn raise(reading: &Reading) -> Decision {
        match reading.view.entries.get(&Key::Storm) {
            Some((Record::Storm(Storm::Lifted), _)) => Decision::Already("lifted".into()),
            _ => {
                let at = reading.view.at(&Key::Storm);
                let commit = Commit::new(&reading.view.cluster);
                Decision::Write(commit.put(Key::Storm, at, Record::Storm(Storm::Lifted)))
            }
        }
    }

    async fn lift(fixture: &Fixture) -> Result<Done, Failure> {
        write_read(&fixture.records, async || fixture.records.read(&[Key::Storm]).await, raise).await
    }

    #[tokio::test]
    async fn a_conflict_is_read_again_and_not_for_ever() {
        let fixture = Fixture::new();
        fixture.race(3, &Key::Storm, &Record::Storm(Storm::Raised));
        assert!(matches!(lift(&fixture).await, Ok(Done::Committed(_))));
        assert_eq!(fixture.stored(&Key::Storm), Some(Record::Storm(Storm::Lifted)));
        assert_eq!(fixture.commits(), 4);

        let fixture = Fixture::new();
        fixture.race(100, &Key::Storm, &Record::Storm(Storm::Raised));
        let error = lift(&fixture).await.unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(
            error.to_string().contains("nothing was written: the records were written by somebody"),
            "{error}"
        );
        assert!(error.to_string().contains("8 times in a row"), "{error}");
        assert_eq!(fixture.commits(), 8);
    }

    #[tokio::test]
    async fn a_write_without_an_answer_counts_once_a_read_shows_it() {
        let fixture = Fixture::new();
        fixture.store.fail_next_commit(CommitFault::UnknownDone);
        assert!(matches!(lift(&fixture).await, Ok(Done::Seen(_))));
        assert_eq!(fixture.commits(), 1);
    }

    #[tokio::test]
    async fn a_write_without_an_answer_that_is_not_seen_is_sent_again_and_happens_once() {
        // Never done; or done after the next read has shown that it was not.
        for fault in
            [CommitFault::UnknownNotDone, CommitFault::UnknownDoneAfter(1), CommitFault::UnknownDoneAfter(2)]
        {
            let fixture = Fixture::new();
            let before = fixture.revision();
            fixture.store.fail_next_commit(fault);
            lift(&fixture).await.unwrap();
            assert_eq!(fixture.stored(&Key::Storm), Some(Record::Storm(Storm::Lifted)), "{fault:?}");
            assert_eq!(fixture.revision(), before + 1, "{fault:?}");
        }
    }

    #[tokio::test]
    async fn a_write_that_is_never_answered_may_still_happen_and_the_person_is_told_so() {
        let fixture = Fixture::new();
        (0..8).for_each(|_| fixture.store.fail_next_commit(CommitFault::UnknownNotDone));
        let error = lift(&fixture).await.unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("may have been done or may still happen"), "{error}");
        // Nor is it known when nothing can be read behind it.
        let fixture = Fixture::new();
        fixture.store.fail_next_commit(CommitFault::UnknownDone);
        fixture.fail_reads_after_a_commit();
        let error = lift(&fixture).await.unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("may still happen"), "{error}");
    }

    #[tokio::test]
    async fn a_write_that_certainly_was_not_done_is_tried_again_and_said_to_be_not_done() {
        let fixture = Fixture::new();
        fixture.store.fail_next_commit(CommitFault::Unavailable);
        assert!(matches!(lift(&fixture).await, Ok(Done::Committed(_))));
        let fixture = Fixture::new();
        (0..8).for_each(|_| fixture.store.fail_next_commit(CommitFault::Unavailable));
        let error = lift(&fixture).await.unwrap_err();
        assert_eq!((error.exit_code(), error.to_string().starts_with("nothing was written")), (3, true));
        assert_eq!(fixture.stored(&Key::Storm), None);
    }

    #[tokio::test]
    async fn an_installation_with_another_id_refuses_what_was_decided_before() {
        let fixture = Fixture::new();
        let decide = |reading: &Reading| {
            // Between reading and writing etcd gets the id of a restored installation.
            fixture.found("c2");
            raise(reading)
        };
        let read = async || fixture.records.read(&[Key::Session(holder("a"))]).await;
        let error = write_read(&fixture.records, read, decide).await;
        // The second try has read the new id, and is of that installation.
        assert!(matches!(error, Ok(Done::Committed(_))));
        assert_eq!(fixture.commits(), 2);
    }
}
