//! `extvol events`: what happened, oldest first, and what happens from now on.

use std::io::{self, Write};
use std::time::Duration;

use futures::StreamExt;
use serde::Serialize;
use shared::event::{EventKind, EventRecord, Seen};
use shared::quote;
use shared::retry::Retry;
use shared::store::{Change, LeaseStore, Revision, StoreError};

use crate::arguments::Output;
use crate::failure::Failure;
use crate::leases::json;
use crate::records::{Records, StoredEvent};
use crate::table;

/// A watch that was silent for so long is doubted: one on an etcd that was restored from a backup stays open and
/// silent until that has passed the revision asked for, and only a read finds that out.
const SILENCE: Duration = Duration::from_secs(10);

/// One event as JSON. The field names stay.
#[derive(Serialize)]
struct Row<'e> {
    /// Its place: the revision of etcd that it tells of.
    revision: i64,
    subject: &'e str,
    #[serde(flatten)]
    event: Option<&'e EventRecord>,
    /// Why the record cannot be read, if it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<&'e str>,
}

fn row(stored: &StoredEvent) -> Row<'_> {
    let event = stored.event.as_ref();
    Row {
        revision: stored.revision.0,
        subject: &stored.subject,
        event: event.ok(),
        unreadable: event.err().map(String::as_str),
    }
}

/// A word as its JSON spells it.
fn word(kind: EventKind) -> String {
    serde_json::to_value(kind).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Time, revision, kind and text; all but the last padded to what is usual, for lines come one by one.
fn line(stored: &StoredEvent) -> [String; 4] {
    match &stored.event {
        Ok(event) => {
            let late = if event.seen == Seen::ByALaterRead { " (seen by a later read)" } else { "" };
            let text = format!("{}{late}", event.text);
            [event.time.clone(), stored.revision.to_string(), word(event.what), text]
        }
        Err(why) => {
            let text = format!("the event about {} {why}", stored.subject);
            [String::new(), stored.revision.to_string(), "unreadable".to_owned(), text]
        }
    }
}

/// Prints the events; with `follow` it goes on until it is ended.
///
/// # Errors
/// See [`Failure`].
pub(crate) async fn run<S: LeaseStore>(
    out: &mut dyn Write,
    output: Output,
    records: &Records<S>,
    follow: bool,
    limit: Option<usize>,
) -> Result<(), Failure> {
    let (mut events, at) = records.events(Revision::ABSENT).await?;
    if let Some(limit) = limit {
        events.drain(..events.len().saturating_sub(limit));
    }
    if !follow {
        return match output {
            Output::Json => json(out, &events.iter().map(row).collect::<Vec<_>>()),
            Output::Table => {
                let rows: Vec<_> = events.iter().map(line).collect();
                Ok(table::print(out, ["TIME", "REVISION", "WHAT", "TEXT"], &rows)?)
            }
        };
    }
    print_each(out, output, &events)?;
    go_on(out, &mut io::stderr(), output, records, at, SILENCE).await
}

/// One line an event, which is all that can be said of a list without an end; JSON likewise.
fn print_each(out: &mut dyn Write, output: Output, events: &[StoredEvent]) -> Result<(), Failure> {
    for stored in events {
        match output {
            Output::Json => {
                let text = serde_json::to_string(&row(stored)).map_err(io::Error::from)?;
                writeln!(out, "{}", quote::json(&text))?;
            }
            Output::Table => {
                let cells = line(stored);
                let [time, revision, what, text] = cells.each_ref().map(|cell| quote::line(cell));
                writeln!(out, "{time:<24}  {revision:>8}  {what:<17}  {text}")?;
            }
        }
    }
    Ok(out.flush()?)
}

/// Follows, over whatever becomes of etcd. `after` is the revision up to which all was printed.
async fn go_on<S: LeaseStore>(
    out: &mut dyn Write,
    warn: &mut dyn Write,
    output: Output,
    records: &Records<S>,
    mut after: Revision,
    silence: Duration,
) -> Result<(), Failure> {
    let mut retry = Retry::new(Duration::from_millis(200), Duration::from_secs(5));
    let prefix = records.keys().events();
    let mut broken = false;
    loop {
        let ended = {
            let mut watch = records.follow(&prefix, after);
            loop {
                match tokio::time::timeout(silence, watch.next()).await {
                    Err(_) => break None,
                    Ok(Some(Ok(changes))) => {
                        let (events, newest) = of_changes(records, &changes);
                        print_each(out, output, &events)?;
                        after = after.max(newest);
                    }
                    Ok(Some(Err(error))) => break Some(error),
                    // A stream ends with an error; one that does not is asked again.
                    Ok(None) => break Some(StoreError::Unavailable("the watch ended".into())),
                }
            }
        };
        match &ended {
            None | Some(StoreError::Compacted { .. }) => {}
            Some(error @ StoreError::Corrupt { .. }) => return Err(Failure::of_store(error)),
            Some(error) => {
                if !std::mem::replace(&mut broken, true) {
                    // A closed standard error must not end what standard output is for.
                    let why = Failure::of_store(error).to_string();
                    let _ = writeln!(warn, "extvol: {}; asking again", quote::line(&why));
                }
            }
        }
        // A read tells whether etcd is back, and what the watch missed: a silent watch tells nothing.
        loop {
            match records.events(after).await {
                Ok((mut missed, newest)) if newest >= after => {
                    missed.sort_by_key(|stored| stored.revision);
                    print_each(out, output, &missed)?;
                    after = newest;
                    if std::mem::take(&mut broken) {
                        let _ = writeln!(warn, "extvol: etcd answers again");
                    }
                    retry.reset();
                    break;
                }
                Ok((_, newest)) => {
                    return Err(Failure::Refused(format!(
                        "etcd's revision is {newest}, and it was {after} before: etcd was restored from a backup; \
                         run this again to see its events"
                    )));
                }
                Err(Failure::Unreachable(_)) => tokio::time::sleep(retry.next_delay()).await,
                Err(failure) => return Err(failure),
            }
        }
    }
}

/// The events among changes, in the order in which they were written, and the newest revision. A deletion
/// is a trimming.
fn of_changes<S: LeaseStore>(records: &Records<S>, changes: &[Change]) -> (Vec<StoredEvent>, Revision) {
    let events = changes.iter().filter_map(|change| match change {
        Change::Put { key, entry } => records.event(key, &entry.value),
        Change::Delete { .. } => None,
    });
    let newest = changes.iter().map(Change::revision).max().unwrap_or_default();
    (events.collect(), newest)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use shared::volume::Holder;

    use super::*;
    use crate::fixture::Fixture;

    fn stored(seen: Seen) -> StoredEvent {
        let event = EventRecord {
            what: EventKind::SessionDead,
            seen,
            volume: None,
            holder: Some(Holder::new("a").unwrap()),
            epoch: None,
            token: None,
            agent_id: None,
            dropped: None,
            text: "a is\ndead".into(),
            time: "2026-01-02T03:04:05.678Z".into(),
        };
        StoredEvent { revision: Revision(42), subject: "sessions/a".into(), event: Ok(event) }
    }

    /// What is written to it can be read while it is written.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        async fn holds(&self, words: &str) {
            let soon = tokio::time::Instant::now() + testing::SOON;
            while !self.text().contains(words) {
                assert!(tokio::time::Instant::now() < soon, "{words:?} is not in {:?}", self.text());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    #[tokio::test]
    async fn what_happens_while_etcd_is_away_or_compacted_is_told_once_when_it_is_back() {
        let fixture = Fixture::new();
        let (out, warn) = (Shared::default(), Shared::default());
        let silence = testing::SOON;
        fixture.put_event(1, "one");
        let (mut to_out, mut to_warn) = (out.clone(), warn.clone());
        let after = Revision(fixture.revision());
        let follow = go_on(&mut to_out, &mut to_warn, Output::Table, &fixture.records, after, silence);
        let script = async {
            fixture.put_event(2, "two");
            out.holds("two").await;
            let now = fixture.revision();
            fixture.store.fail_reads(true);
            fixture.store.break_watches();
            warn.holds("asking again").await;
            fixture.put_event(3, "three");
            fixture.store.compact(Revision(now + 2));
            fixture.store.fail_reads(false);
            out.holds("three").await;
            warn.holds("etcd answers again").await;
            fixture.put_event(4, "four");
            out.holds("four").await;
        };
        tokio::select! {
            ended = follow => panic!("{ended:?}"),
            () = script => {}
        }
        let texts: Vec<_> =
            out.text().lines().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect();
        assert_eq!(texts, ["two", "three", "four"]);
    }

    #[tokio::test]
    async fn an_etcd_that_was_restored_ends_the_following_though_its_watch_is_silent() {
        let silence = Duration::from_millis(20);
        let fixture = Fixture::new();
        let backup = fixture.store.backup();
        fixture.put_event(1, "one");
        let after = Revision(fixture.revision());
        let (mut out, mut warn) = (Shared::default(), Shared::default());
        let follow = go_on(&mut out, &mut warn, Output::Table, &fixture.records, after, silence);
        fixture.store.restore(backup);
        let ended = tokio::time::timeout(testing::SOON, follow).await.unwrap().unwrap_err();
        assert_eq!(ended.exit_code(), 1, "{ended}");
    }

    #[test]
    fn a_followed_event_is_one_line_in_either_form() {
        let broken = StoredEvent { event: Err("is not a valid record".into()), ..stored(Seen::AtOnce) };
        let events = [stored(Seen::ByALaterRead), broken];
        let print = |output| {
            let mut out = Vec::new();
            print_each(&mut out, output, &events).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            print(Output::Table),
            "2026-01-02T03:04:05.678Z        42  session-dead       a is\\ndead (seen by a later read)\n                \
             \u{20}               42  unreadable         the event about sessions/a is not a valid record\n"
        );
        assert_eq!(
            print(Output::Json),
            concat!(
                r#"{"revision":42,"subject":"sessions/a","what":"session-dead","seen":"by-a-later-read","#,
                r#""holder":"a","text":"a is\ndead","time":"2026-01-02T03:04:05.678Z"}"#,
                "\n",
                r#"{"revision":42,"subject":"sessions/a","unreadable":"is not a valid record"}"#,
                "\n"
            )
        );
    }
}
