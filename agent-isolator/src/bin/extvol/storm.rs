//! `extvol storm`: the storm guard of the masters' modules (L18).

use std::io::Write;

use serde::Serialize;
use shared::protocol::exchange::{Commit, Key, Record, Storm};
use shared::quote;
use shared::store::{LeaseStore, Revision};

use crate::arguments::Output;
use crate::decided::{Decision, Done, Meant, write_read};
use crate::failure::Failure;
use crate::leases::json;
use crate::records::{Reading, Records};

/// The guard as it is shown. The field names of its JSON stay.
#[derive(Serialize)]
struct Row {
    /// `raised`, `lifted` or `over`.
    state: &'static str,
    since: Option<String>,
    /// None when it was never written.
    revision: Option<i64>,
}

/// Shows the guard, or lifts it.
///
/// # Errors
/// See [`Failure`]; [`Failure::Refused`] when there is nothing to lift.
pub(crate) async fn run<S: LeaseStore>(
    out: &mut dyn Write,
    output: Output,
    records: &Records<S>,
    lift: bool,
) -> Result<(), Failure> {
    if lift {
        return lift_it(out, records).await;
    }
    let everything = records.everything().await?;
    crate::leases::unreadable(&everything, &records.keys().storm())?;
    let storm = everything.storm;
    let state = storm.as_ref().map_or(Storm::Over, |storm| storm.record);
    if output == Output::Json {
        let since = storm.as_ref().and_then(|storm| storm.since.clone());
        return json(out, &Row { state: word(state), since, revision: storm.map(|storm| storm.at.0) });
    }
    let since = storm.and_then(|storm| storm.since);
    let since = since.map(|since| format!(" since {}", quote::line(&since))).unwrap_or_default();
    let told = match state {
        Storm::Over => "no storm: lost hosts are reclaimed",
        Storm::Raised => {
            "more than half of the hosts with leases are silent at once: nothing is reclaimed or revoked by the masters. \
             See whether etcd and the network are well; if those hosts are really gone, `extvol storm lift`"
        }
        Storm::Lifted => "the storm was lifted: lost hosts are reclaimed, though more than half are silent",
    };
    Ok(writeln!(out, "{}{since}: {told}", word(state))?)
}

fn word(storm: Storm) -> &'static str {
    match storm {
        Storm::Raised => "raised",
        Storm::Lifted => "lifted",
        Storm::Over => "over",
    }
}

async fn lift_it<S: LeaseStore>(out: &mut dyn Write, records: &Records<S>) -> Result<(), Failure> {
    let read = async || records.read(&[Key::Storm]).await;
    let meant = Meant::new();
    let done = write_read(records, read, |reading| decide(reading, &meant)).await?;
    let known = match done {
        Done::Committed(at) => format!("lifted at revision {at}"),
        Done::Seen(at) => format!("lifted; the write had no answer, and a read at revision {at} shows it"),
    };
    Ok(writeln!(
        out,
        "{known}: the masters' modules declare the silent hosts dead when each one's wait is over. It ends by \
         itself once no more than half are silent"
    )?)
}

fn decide(reading: &Reading, meant: &Meant<Revision>) -> Decision {
    match reading.view.entries.get(&Key::Storm) {
        Some((Record::Storm(Storm::Raised), at)) if !meant.is(*at) => Decision::Refuse(
            "another storm was raised since this began; if that is to be lifted too, run this again"
                .to_owned(),
        ),
        Some((Record::Storm(Storm::Raised), at)) => Decision::Write(Commit::new(&reading.view.cluster).put(
            Key::Storm,
            *at,
            Record::Storm(Storm::Lifted),
        )),
        Some((Record::Storm(Storm::Lifted), _)) => {
            Decision::Already("the storm guard is lifted already".to_owned())
        }
        _ => Decision::Refuse("there is nothing to lift: no storm is raised".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;

    async fn storm(fixture: &Fixture, output: Output, lift: bool) -> Result<String, Failure> {
        let mut out = Vec::new();
        run(&mut out, output, &fixture.records, lift).await?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[tokio::test]
    async fn only_a_raised_storm_is_lifted() {
        let fixture = Fixture::new();
        assert!(storm(&fixture, Output::Table, false).await.unwrap().starts_with("over: no storm"));
        for state in [None, Some(Storm::Over)] {
            if let Some(state) = state {
                fixture.put(&Key::Storm, &Record::Storm(state));
            }
            let error = storm(&fixture, Output::Table, true).await.unwrap_err();
            assert_eq!((error.exit_code(), error.to_string().contains("nothing to lift")), (1, true));
        }
        fixture.put(&Key::Storm, &Record::Storm(Storm::Raised));
        let shown = storm(&fixture, Output::Json, false).await.unwrap();
        assert!(shown.contains(r#""state": "raised""#) && shown.contains(r#""since": "then""#), "{shown}");
        let said = storm(&fixture, Output::Table, true).await.unwrap();
        assert!(said.starts_with("lifted at revision "), "{said}");
        assert_eq!(fixture.stored(&Key::Storm), Some(Record::Storm(Storm::Lifted)));
        let error = storm(&fixture, Output::Table, true).await.unwrap_err().to_string();
        assert!(error.contains("lifted already"), "{error}");
    }

    #[tokio::test]
    async fn a_guard_that_is_over_or_raised_anew_when_the_lift_arrives_is_left_alone() {
        let fixture = Fixture::new();
        fixture.put(&Key::Storm, &Record::Storm(Storm::Raised));
        fixture.race(1, &Key::Storm, &Record::Storm(Storm::Raised));
        let error = storm(&fixture, Output::Table, true).await.unwrap_err().to_string();
        assert!(error.contains("another storm was raised since"), "{error}");
        fixture.race(1, &Key::Storm, &Record::Storm(Storm::Over));
        assert!(storm(&fixture, Output::Table, true).await.is_err());
        assert_eq!(fixture.stored(&Key::Storm), Some(Record::Storm(Storm::Over)));
    }
}
