//! `extvol sessions`: the hosts, and how their sessions stand.

use std::io::Write;
use std::time::Duration;

use serde::Serialize;
use shared::protocol::exchange::{ByTime, Proof, SessionState};
use shared::protocol::timing::Timing;
use shared::store::LeaseStore;
use shared::volume::Holder;

use crate::arguments::Output;
use crate::failure::Failure;
use crate::leases::{json, unreadable};
use crate::records::{Everything, Records, StoredSession};
use crate::table;

/// One session as it is shown. The field names of its JSON stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Row {
    holder: String,
    epoch: u64,
    state: &'static str,
    /// Of a dead session: what is known about its host.
    proof: Option<&'static str>,
    agent_id: Option<String>,
    agent_address: Option<String>,
    last_beat: Option<BeatRow>,
    /// None of a keeper without a heartbeat.
    times: Option<TimesRow>,
    /// Whether silence may end it: `allowed`, `unproved` or `never`.
    by_time: &'static str,
    /// What its host's fence rests on: `guard`, `supervisor`, `watchdog`, `storage`.
    means: Vec<&'static str>,
    /// Why its host cannot prove its fence.
    unproved: Option<String>,
    leases: usize,
    since: Option<String>,
    revision: i64,
    reason: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct BeatRow {
    /// The revision that it made.
    revision: i64,
    /// The holder's wall clock.
    at: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct TimesRow {
    ttl_ms: u128,
    beat_ms: u128,
    request_ms: u128,
    election_ms: u128,
    fence_ms: u128,
    kill_ms: u128,
}

/// Prints the sessions.
///
/// # Errors
/// See [`Failure`]; records that cannot be read are named after the others were printed.
pub(crate) async fn run<S: LeaseStore>(
    out: &mut dyn Write,
    output: Output,
    records: &Records<S>,
) -> Result<(), Failure> {
    let everything = records.everything().await?;
    render(out, output, &rows(&everything))?;
    unreadable(&everything, &records.keys().sessions())
}

fn rows(everything: &Everything) -> Vec<Row> {
    everything.sessions.iter().map(|(holder, session)| row(holder, session, everything)).collect()
}

fn row(
    holder: &Holder,
    StoredSession { stored, without_beats }: &StoredSession,
    everything: &Everything,
) -> Row {
    let session = &stored.record;
    let (state, proof) = state(session.state);
    let beat = everything.beats.get(holder);
    let leases = everything.leases.values().filter_map(|lease| lease.record.held());
    Row {
        holder: holder.to_string(),
        epoch: session.epoch.0,
        state,
        proof,
        agent_id: session.agent.as_ref().and_then(|agent| agent.id.as_deref()).map(str::to_owned),
        agent_address: session.agent.as_ref().map(|agent| agent.address.to_string()),
        last_beat: beat.map(|beat| BeatRow { revision: beat.at.0, at: beat.time.clone() }),
        times: (!without_beats).then(|| times(&session.timing)),
        by_time: match session.by_time {
            ByTime::Allowed => "allowed",
            ByTime::Unproved => "unproved",
            ByTime::Never => "never",
        },
        means: session.means.iter().map(|means| means.as_str()).collect(),
        unproved: session.unproved.as_deref().map(str::to_owned),
        leases: leases.filter(|held| held.holder == *holder).count(),
        since: stored.since.clone(),
        revision: stored.at.0,
        reason: session.reason.as_deref().map(str::to_owned),
    }
}

/// A session's state in words, with the proof of a dead one.
pub(crate) fn state(state: SessionState) -> (&'static str, Option<&'static str>) {
    match state {
        SessionState::Live => ("live", None),
        SessionState::Revoking => ("revoking", None),
        SessionState::Dead(Proof::Unmounted) => ("dead", Some("unmounted")),
        SessionState::Dead(Proof::Fenced) => ("dead", Some("fenced")),
        SessionState::Dead(Proof::Time) => ("dead", Some("time")),
    }
}

fn times(timing: &Timing) -> TimesRow {
    TimesRow {
        ttl_ms: timing.ttl.as_millis(),
        beat_ms: timing.beat.as_millis(),
        request_ms: timing.request.as_millis(),
        election_ms: timing.election.as_millis(),
        fence_ms: timing.fence.as_millis(),
        kill_ms: timing.kill.as_millis(),
    }
}

/// A time in seconds, as short as it can be.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

fn render(out: &mut dyn Write, output: Output, rows: &[Row]) -> Result<(), Failure> {
    if output == Output::Json {
        return json(out, &rows);
    }
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let state = match row.proof {
                Some(proof) => format!("{} ({proof})", row.state),
                None => row.state.to_owned(),
            };
            let beat = row.last_beat.as_ref().map(|beat| {
                let at = beat.at.as_deref().unwrap_or("at an unknown time");
                format!("{at} (revision {})", beat.revision)
            });
            let time = |ms: u128| {
                format!("{}s", Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX)).as_secs_f64())
            };
            let times = row.times.as_ref().map(|times| {
                let (ttl, beat) = (time(times.ttl_ms), time(times.beat_ms));
                let by_time = if row.by_time == "allowed" { "" } else { "; by time: " };
                let which = if by_time.is_empty() { "" } else { row.by_time };
                format!(
                    "T={ttl} hb={beat} F={} K={}{by_time}{which}",
                    time(times.fence_ms),
                    time(times.kill_ms)
                )
            });
            [
                row.holder.clone(),
                row.epoch.to_string(),
                state,
                row.leases.to_string(),
                row.agent_id.clone().unwrap_or_default(),
                beat.unwrap_or_default(),
                times.unwrap_or_else(|| "none: its keeper does not beat".to_owned()),
                match &row.unproved {
                    Some(why) => format!("unproved: {why}"),
                    None => row.means.join(","),
                },
                row.reason.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let heads = ["HOLDER", "EPOCH", "STATE", "LEASES", "AGENT", "LAST-BEAT", "TIMES", "FENCE", "REASON"];
    Ok(table::print(out, heads, &cells)?)
}

#[cfg(test)]
pub(crate) mod tests {
    use shared::protocol::exchange::{Agent, Instance, Means, Session};
    use shared::protocol::timing::Profile;
    use shared::record::Epoch;
    use shared::store::Revision;

    use super::*;
    use crate::records::{Beat, Stored};

    pub(crate) fn session() -> Session {
        Session {
            epoch: Epoch(3),
            instance: Instance("i1".into()),
            state: SessionState::Live,
            machine: "m1".into(),
            boot: "b1".into(),
            agent: Some(Agent { id: Some("S1".into()), address: "slave(1)@10.0.0.1:5051".into() }),
            timing: Profile::Default.timing(),
            by_time: ByTime::Allowed,
            means: [Means::Guard, Means::Storage].into(),
            unproved: None,
            unsettled_through: Epoch(0),
            wants: Default::default(),
            reason: None,
            since: Some("2026-01-02T03:04:05Z".into()),
        }
    }

    pub(crate) fn stored(record: Session) -> StoredSession {
        let since = record.since.as_deref().map(str::to_owned);
        StoredSession { stored: Stored { record, at: Revision(8), since }, without_beats: false }
    }

    fn everything() -> Everything {
        let dead = Session {
            state: SessionState::Dead(Proof::Time),
            reason: Some("it was silent".into()),
            agent: None,
            by_time: ByTime::Never,
            ..session()
        };
        let unproved = Session {
            by_time: ByTime::Unproved,
            means: [].into(),
            unproved: Some("nothing is so".into()),
            ..session()
        };
        let old = Session { agent: None, means: [].into(), ..session() };
        let old = StoredSession { without_beats: true, ..stored(old) };
        let holder = |name: &str| Holder::new(name).unwrap();
        let beat = Beat { at: Revision(99), time: Some("2026-01-02T03:05:06Z".into()) };
        Everything {
            sessions: [
                (holder("a"), stored(session())),
                (holder("b"), stored(dead)),
                (holder("c"), old),
                (holder("d"), stored(unproved)),
            ]
            .into(),
            beats: [(holder("a"), beat)].into(),
            ..Everything::default()
        }
    }

    #[test]
    fn the_table_tells_state_proof_beat_and_times_of_each_host() {
        let mut out = Vec::new();
        render(&mut out, Output::Table, &rows(&everything())).unwrap();
        let expected = "\
HOLDER  EPOCH  STATE        LEASES  AGENT  LAST-BEAT                           TIMES                                       FENCE                    REASON
a       3      live         0       S1     2026-01-02T03:05:06Z (revision 99)  T=10s hb=1s F=6.5s K=3s                     guard,storage            -
b       3      dead (time)  0       -      -                                   T=10s hb=1s F=6.5s K=3s; by time: never     guard,storage            it was silent
c       3      live         0       -      -                                   none: its keeper does not beat              -                        -
d       3      live         0       S1     -                                   T=10s hb=1s F=6.5s K=3s; by time: unproved  unproved: nothing is so  -
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn the_json_of_a_session_keeps_its_field_names() {
        let mut out = Vec::new();
        render(&mut out, Output::Json, &rows(&everything())[..1]).unwrap();
        let expected = r#"[
  {
    "holder": "a",
    "epoch": 3,
    "state": "live",
    "proof": null,
    "agent_id": "S1",
    "agent_address": "slave(1)@10.0.0.1:5051",
    "last_beat": {
      "revision": 99,
      "at": "2026-01-02T03:05:06Z"
    },
    "times": {
      "ttl_ms": 10000,
      "beat_ms": 1000,
      "request_ms": 1000,
      "election_ms": 3000,
      "fence_ms": 6500,
      "kill_ms": 3000
    },
    "by_time": "allowed",
    "means": [
      "guard",
      "storage"
    ],
    "unproved": null,
    "leases": 0,
    "since": "2026-01-02T03:04:05Z",
    "revision": 8,
    "reason": null
  }
]
"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
