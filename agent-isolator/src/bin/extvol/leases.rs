//! `extvol leases`: who holds which volume.

use std::collections::BTreeMap;
use std::io::Write;

use serde::Serialize;
use shared::protocol::exchange::{Held, Lease, Owed, Proof, SessionState, Stage};
use shared::quote;
use shared::record::{Task, Token};
use shared::store::LeaseStore;
use shared::volume::{ContainerId, VolumeId};

use crate::arguments::Output;
use crate::failure::Failure;
use crate::records::{Everything, Records, Stored, StoredSession};
use crate::table;

/// One lease as it is shown. The field names of its JSON stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Row {
    volume: String,
    driver: String,
    name: String,
    state: &'static str,
    /// Of a free lease the last one.
    holder: Option<String>,
    epoch: Option<u64>,
    token: Option<i64>,
    since: Option<String>,
    agent_id: Option<String>,
    containers: Vec<String>,
    /// For whom they run, as far as Mesos said.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tasks: BTreeMap<ContainerId, Task>,
    mount_point: Option<String>,
    /// The revision that last wrote the record.
    revision: i64,
    /// How the session stands that the lease names: `live`, `revoking`, `dead-unmounted`, `dead-fenced`,
    /// `dead-time`, `over` (a later epoch is open), `missing`, or `older` than the lease.
    session: Option<&'static str>,
    unsettled: bool,
    /// Who lost it without having given it back, if nobody has mounted it since.
    #[serde(skip_serializing_if = "Option::is_none")]
    owed: Option<Owed>,
    revoked: Option<String>,
}

/// Prints the leases.
///
/// # Errors
/// See [`Failure`]; records that cannot be read are named after the others were printed.
pub(crate) async fn run<S: LeaseStore>(
    out: &mut dyn Write,
    output: Output,
    records: &Records<S>,
    all: bool,
) -> Result<(), Failure> {
    let everything = records.everything().await?;
    render(out, output, &rows(&everything, all))?;
    unreadable(&everything, &records.keys().leases())
}

/// Names the records below `prefix` that cannot be read.
///
/// # Errors
/// [`Failure::Refused`] when there are some: what was printed is not everything.
pub(crate) fn unreadable(everything: &Everything, prefix: &str) -> Result<(), Failure> {
    let broken: Vec<_> = everything
        .unreadable
        .iter()
        .filter(|(key, _)| key.starts_with(prefix))
        .map(|(key, why)| format!("{key} {why}"))
        .collect();
    match broken.is_empty() {
        true => Ok(()),
        false => Err(Failure::Refused(format!(
            "not shown are records that cannot be read: {}; compare them with docs/lease-protocol.md",
            broken.join("; ")
        ))),
    }
}

fn rows(everything: &Everything, all: bool) -> Vec<Row> {
    // A free one that a lost host has not given back wants a person, or a storage that takes it away.
    let shown = |lease: &Lease| lease.held().is_some() || matches!(lease, Lease::Free { owed: Some(_), .. });
    let leases = everything.leases.iter().filter(|(_, lease)| all || shown(&lease.record));
    leases.map(|(volume, lease)| row(volume, lease, everything)).collect()
}

fn row(volume: &VolumeId, lease: &Stored<Lease>, everything: &Everything) -> Row {
    let free = Row {
        volume: volume.to_string(),
        driver: volume.driver.to_string(),
        name: volume.name.to_string(),
        state: "free",
        holder: None,
        epoch: None,
        token: None,
        since: lease.since.clone(),
        agent_id: None,
        containers: Vec::new(),
        tasks: BTreeMap::new(),
        mount_point: None,
        revision: lease.at.0,
        session: None,
        unsettled: false,
        owed: None,
        revoked: None,
    };
    match &lease.record {
        Lease::Free { last_holder, owed } => {
            Row { holder: last_holder.as_ref().map(ToString::to_string), owed: owed.clone(), ..free }
        }
        Lease::Held(held) => Row {
            state: stage(held.stage),
            holder: Some(held.holder.to_string()),
            epoch: Some(held.epoch.0),
            // The granting write's revision is the token.
            token: Some(held.token.unwrap_or(Token(lease.at)).0.0),
            agent_id: held.agent_id.as_deref().map(str::to_owned),
            containers: held.containers.iter().map(ToString::to_string).collect(),
            tasks: held.tasks.clone(),
            mount_point: held.mount_point.as_deref().map(str::to_owned),
            session: Some(standing(held, everything.sessions.get(&held.holder))),
            unsettled: held.unsettled,
            owed: held.owed.clone(),
            revoked: held.revoked.as_deref().map(str::to_owned),
            ..free
        },
    }
}

/// In a word.
pub(crate) fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Attaching => "attaching",
        Stage::Attached => "attached",
        Stage::Detaching => "detaching",
    }
}

/// How the session stands that a lease names.
fn standing(held: &Held, session: Option<&StoredSession>) -> &'static str {
    let Some(session) = session.map(|session| &session.stored.record) else { return "missing" };
    if session.epoch > held.epoch {
        return "over";
    }
    if session.epoch < held.epoch {
        return "older";
    }
    match session.state {
        SessionState::Live => "live",
        SessionState::Revoking => "revoking",
        SessionState::Dead(Proof::Unmounted) => "dead-unmounted",
        SessionState::Dead(Proof::Fenced) => "dead-fenced",
        SessionState::Dead(Proof::Time) => "dead-time",
    }
}

fn notes(row: &Row) -> String {
    let session = row.session.filter(|how| *how != "live").map(|how| match how.split_once('-') {
        Some((state, proof)) => format!("session {state} ({proof})"),
        None if how == "older" => "session older than the lease".to_owned(),
        None => format!("session {how}"),
    });
    let unsettled = row.unsettled.then(|| "unsettled".to_owned());
    let owed = row.owed.as_ref().map(|owed| format!("may still be attached to {}", owed.hosts()));
    let revoked = row.revoked.as_ref().map(|why| format!("revoked: {why}"));
    [session, unsettled, owed, revoked].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn render(out: &mut dyn Write, output: Output, rows: &[Row]) -> Result<(), Failure> {
    if output == Output::Json {
        return json(out, &rows);
    }
    let text = |number: Option<String>| number.unwrap_or_default();
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let holder = match (row.state, &row.holder) {
                ("free", Some(last)) => format!("(last {last})"),
                (_, holder) => text(holder.clone()),
            };
            [
                row.volume.clone(),
                row.state.to_owned(),
                holder,
                text(row.epoch.map(|epoch| epoch.to_string())),
                text(row.token.map(|token| token.to_string())),
                text(row.since.clone()),
                table::listed(&row.containers),
                table::listed(&row.tasks.values().filter_map(Task::in_words).collect::<Vec<_>>()),
                text(row.mount_point.clone()),
                notes(row),
            ]
        })
        .collect();
    let heads = [
        "VOLUME",
        "STATE",
        "HOLDER",
        "EPOCH",
        "TOKEN",
        "SINCE",
        "CONTAINERS",
        "TASKS",
        "MOUNT-POINT",
        "NOTES",
    ];
    Ok(table::print(out, heads, &cells)?)
}

/// Prints a value as indented JSON.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn json(out: &mut dyn Write, value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(std::io::Error::from)?;
    Ok(writeln!(out, "{}", quote::json(&text))?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use shared::protocol::exchange::Session;
    use shared::record::Epoch;
    use shared::store::Revision;
    use shared::volume::{ContainerId, Holder};

    use super::*;
    use crate::sessions::tests::{session, stored};
    use crate::table::listed;

    fn volume(name: &str) -> VolumeId {
        VolumeId {
            driver: shared::volume::Driver::new("ebs").unwrap(),
            name: shared::volume::VolumeName::new(name).unwrap(),
        }
    }

    fn task() -> Task {
        Task { framework: Some("m".into()), task_id: Some("t1".into()), ..Task::default() }
    }

    fn held(holder: &str, epoch: u64) -> Held {
        Held {
            stage: Stage::Attached,
            holder: Holder::new(holder).unwrap(),
            epoch: Epoch(epoch),
            token: Some(Token(Revision(7))),
            agent_id: Some("S1".into()),
            containers: BTreeSet::from([ContainerId::new("c1").unwrap(), ContainerId::new("c2").unwrap()]),
            tasks: [(ContainerId::new("c1").unwrap(), task())].into(),
            mount_point: Some("/m/a".into()),
            unsettled: false,
            calls: false,
            owed: None,
            revoked: None,
            since: Some("2026-01-02T03:04:05Z".into()),
        }
    }

    fn lease(record: Lease, at: i64) -> Stored<Lease> {
        Stored { record, at: Revision(at), since: Some("2026-01-02T03:04:05Z".into()) }
    }

    fn everything() -> Everything {
        let revoking = Session { state: SessionState::Revoking, ..session() };
        let dead = Session { state: SessionState::Dead(Proof::Time), ..session() };
        let of = |name: &str, session: Session| (Holder::new(name).unwrap(), stored(session));
        let new = Held {
            stage: Stage::Attaching,
            token: None,
            mount_point: None,
            unsettled: true,
            calls: false,
            owed: None,
            ..held("h-live", 3)
        };
        let alone = Held { revoked: Some("asked for".into()), ..held("h-live", 3) };
        let owed = Owed::and(None, &Holder::new("h-dead").unwrap(), None, true);
        let leases = [
            ("a", lease(Lease::Held(held("h-live", 3)), 9)),
            ("b", lease(Lease::Held(new), 12)),
            ("c", lease(Lease::Held(alone), 9)),
            ("d", lease(Lease::Held(held("h-revoking", 3)), 9)),
            ("e", lease(Lease::Held(held("h-dead", 3)), 9)),
            ("f", lease(Lease::Held(held("h-live", 2)), 9)),
            ("g", lease(Lease::Held(held("h-none", 3)), 9)),
            ("h", lease(Lease::Free { last_holder: Some(Holder::new("h-live").unwrap()), owed: None }, 9)),
            (
                "i",
                lease(Lease::Free { last_holder: Some(Holder::new("h-live").unwrap()), owed: Some(owed) }, 9),
            ),
        ];
        Everything {
            leases: leases.into_iter().map(|(name, lease)| (volume(name), lease)).collect(),
            sessions: [of("h-live", session()), of("h-revoking", revoking), of("h-dead", dead)].into(),
            ..Everything::default()
        }
    }

    #[test]
    fn the_table_marks_every_lease_whose_holder_is_not_plainly_live() {
        let mut out = Vec::new();
        render(&mut out, Output::Table, &rows(&everything(), true)).unwrap();
        let expected = "\
VOLUME  STATE      HOLDER         EPOCH  TOKEN  SINCE                 CONTAINERS  TASKS         MOUNT-POINT  NOTES
ebs/a   attached   h-live         3      7      2026-01-02T03:04:05Z  c1,c2       task t1 of m  /m/a         -
ebs/b   attaching  h-live         3      12     2026-01-02T03:04:05Z  c1,c2       task t1 of m  -            unsettled
ebs/c   attached   h-live         3      7      2026-01-02T03:04:05Z  c1,c2       task t1 of m  /m/a         revoked: asked for
ebs/d   attached   h-revoking     3      7      2026-01-02T03:04:05Z  c1,c2       task t1 of m  /m/a         session revoking
ebs/e   attached   h-dead         3      7      2026-01-02T03:04:05Z  c1,c2       task t1 of m  /m/a         session dead (time)
ebs/f   attached   h-live         2      7      2026-01-02T03:04:05Z  c1,c2       task t1 of m  /m/a         session over
ebs/g   attached   h-none         3      7      2026-01-02T03:04:05Z  c1,c2       task t1 of m  /m/a         session missing
ebs/h   free       (last h-live)  -      -      2026-01-02T03:04:05Z  -           -             -            -
ebs/i   free       (last h-live)  -      -      2026-01-02T03:04:05Z  -           -             -            may still be attached to h-dead
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        assert_eq!(rows(&everything(), false).len(), 8);
    }

    #[test]
    fn the_json_of_a_lease_keeps_its_field_names() {
        let mut out = Vec::new();
        render(&mut out, Output::Json, &rows(&everything(), true)[2..3]).unwrap();
        let expected = r#"[
  {
    "volume": "ebs/c",
    "driver": "ebs",
    "name": "c",
    "state": "attached",
    "holder": "h-live",
    "epoch": 3,
    "token": 7,
    "since": "2026-01-02T03:04:05Z",
    "agent_id": "S1",
    "containers": [
      "c1",
      "c2"
    ],
    "tasks": {
      "c1": {
        "framework": "m",
        "task_id": "t1"
      }
    },
    "mount_point": "/m/a",
    "revision": 9,
    "session": "live",
    "unsettled": false,
    "revoked": "asked for"
  }
]
"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn records_that_cannot_be_read_make_the_listing_fail_by_their_keys() {
        let mut everything = everything();
        everything.unreadable.push(("/x/leases/ebs/z".into(), "is not a valid record".into()));
        assert!(unreadable(&everything, "/x/sessions/").is_ok());
        let error = unreadable(&everything, "/x/leases/").unwrap_err();
        assert!(error.to_string().contains("/x/leases/ebs/z is not a valid record"), "{error}");
    }

    #[tokio::test]
    async fn a_record_under_a_key_that_nobody_writes_is_unreadable_and_not_held() {
        let fixture = crate::fixture::Fixture::holding();
        let lease = fixture.store.get(&["/x/leases/ebs/v".to_owned()]).await.unwrap();
        let record = lease.entries.into_values().next().unwrap().value;
        fixture.store.plant("/x/leases/evil/zz%zz", record.clone());
        fixture.store.plant("/x/leases/ebs/\u{1b}[2J\n", record);
        let mut out = Vec::new();
        let ended = run(&mut out, Output::Table, &fixture.records, true).await.unwrap_err();
        let text = String::from_utf8(out).unwrap();
        assert!(text.lines().count() == 2 && text.contains("ebs/v ") && !text.contains("zz"), "{text}");
        assert!(ended.to_string().contains("leases/evil/zz%zz is no key of this software"), "{ended}");
    }

    #[test]
    fn two_thousand_containers_are_a_line_and_all_of_them_json() {
        let containers =
            (0..2_000).map(|n| ContainerId::new(format!("container-{n:04}-{}", "x".repeat(30))).unwrap());
        let held = Held { containers: containers.collect(), ..held("h-live", 3) };
        let leases = [(volume("a"), lease(Lease::Held(held), 9))].into();
        let everything = Everything { leases, ..everything() };
        let print = |output| {
            let mut out = Vec::new();
            render(&mut out, output, &rows(&everything, true)).unwrap();
            String::from_utf8(out).unwrap()
        };
        let table = print(Output::Table);
        assert!(table.lines().all(|line| line.chars().count() < 500), "{table}");
        let listed = listed(&rows(&everything, true)[0].containers);
        assert!(listed.ends_with(" and 1992 more"), "{listed}");
        assert_eq!(print(Output::Json).matches("container-").count(), 2_000);
    }
}
