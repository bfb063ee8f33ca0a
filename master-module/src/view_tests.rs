//! Scenes: what is learned, and the lines that it makes.

use serde_json::{Value, json};
use shared::store::Revision;

use super::*;
use crate::mesos::Agent;

/// The view and the last revision of an etcd that plays along.
struct Scene {
    view: View,
    keys: Keys,
    revision: i64,
}

fn lines(told: &[Told]) -> Vec<String> {
    told.iter().filter(|one| one.logged).map(|one| one.event.to_string()).collect()
}

fn agent(id: &str, hostname: &str, registration: Registration) -> Agent {
    Agent { id: id.to_owned(), hostname: hostname.to_owned(), registration, address: None }
}

fn lease(state: &str, holder: &str, containers: &[&str]) -> Value {
    json!({"version": 1, "state": state, "holder": holder, "epoch": 3, "token": 42, "since": "x",
        "agent_id": "S0", "containers": containers})
}

fn free(last_holder: &str) -> Value {
    json!({"version": 1, "state": "free", "last_holder": last_holder, "since": "x"})
}

fn session(epoch: u64, state: &str, agent_id: Option<&str>) -> Value {
    json!({"version": 1, "epoch": epoch, "instance": "i", "state": state, "machine_id": "m", "boot_id": "b",
        "agent_id": agent_id, "since": "x"})
}

impl Scene {
    fn new() -> Self {
        let keys = Keys::default();
        Self { view: View::new(keys.clone(), 5_000), keys, revision: 1 }
    }

    /// A view that has read an etcd without leases and sessions, and a master with agent S0.
    fn begun() -> Self {
        let mut scene = Self::new();
        scene.polled(&[agent("S0", "agent-1", Registration::Active)]);
        scene.read_sessions(&[]);
        assert_eq!(scene.read_leases(&[]), ["etcd has 0 leases, 0 of them held"]);
        scene
    }

    fn snapshot(&mut self, prefix: &str, records: &[(&str, Value)]) -> Snapshot {
        self.revision += 1;
        let entry = |value: &Value| Entry {
            value: value.to_string().into_bytes(),
            mod_revision: Revision(self.revision),
        };
        let entries = records.iter().map(|(name, value)| (format!("{prefix}{name}"), entry(value))).collect();
        Snapshot { entries, revision: Revision(self.revision) }
    }

    fn read_leases(&mut self, records: &[(&str, Value)]) -> Vec<String> {
        let snapshot = self.snapshot(&self.keys.leases(), records);
        lines(&self.view.read_leases(&snapshot))
    }

    fn read_sessions(&mut self, records: &[(&str, Value)]) -> Vec<String> {
        let snapshot = self.snapshot(&self.keys.sessions(), records);
        lines(&self.view.read_sessions(&snapshot))
    }

    fn put(&mut self, key: String, value: &str) -> Vec<String> {
        self.revision += 1;
        let entry = Entry { value: value.into(), mod_revision: Revision(self.revision) };
        lines(&self.view.changed(&[Change::Put { key, entry }]))
    }

    fn put_lease(&mut self, name: &str, value: &Value) -> Vec<String> {
        self.put(self.keys.leases() + name, &value.to_string())
    }

    fn put_session(&mut self, holder: &str, value: &Value) -> Vec<String> {
        self.put(self.keys.sessions() + holder, &value.to_string())
    }

    fn delete(&mut self, key: String) -> Vec<String> {
        self.revision += 1;
        lines(&self.view.changed(&[Change::Delete { key, at: Revision(self.revision) }]))
    }

    /// A round of polling, with a registry that says this of those that are not listed.
    fn polled_with(&mut self, agents: &[Agent], unreachable: &[&str], gone: &[&str]) -> Vec<String> {
        self.view.listed(agents.to_vec());
        let mut told = self.view.polled(None);
        let asked = self.view.unlisted();
        if !asked.is_empty() {
            let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
            let admitted = BTreeSet::new();
            let registry = Registry { asked, admitted, unreachable: set(unreachable), gone: set(gone) };
            told.extend(self.view.polled(Some(registry)));
        }
        lines(&told)
    }

    fn polled(&mut self, agents: &[Agent]) -> Vec<String> {
        self.polled_with(agents, &[], &[])
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_lease_is_told_at_each_step_of_its_way_and_only_then() {
    let mut scene = Scene::begun();
    for (value, line) in [
        (
            json!({"version": 1, "state": "attaching", "holder": "agent-1", "epoch": 3, "since": "x", "containers": []}),
            // The granting write cannot name its token: it is the revision of that write.
            "volume ebs/vol-7b: attaching to agent-1 (agent S0, active; epoch 3, token 4; no container)",
        ),
        (
            lease("attached", "agent-1", &["c1"]),
            "volume ebs/vol-7b: attached to agent-1 (agent S0, active; epoch 3, token 42; containers c1)",
        ),
        (
            lease("attached", "agent-1", &["c1", "c2"]),
            "volume ebs/vol-7b: attached to agent-1 (agent S0, active; epoch 3, token 42; containers c1, c2)",
        ),
        (
            lease("detaching", "agent-1", &[]),
            "volume ebs/vol-7b: detaching from agent-1 (agent S0, active; epoch 3, token 42; no container)",
        ),
        (free("agent-1"), "volume ebs/vol-7b: released by agent-1"),
    ] {
        assert_eq!(scene.put_lease("ebs/vol-7b", &value), [line]);
        // A second granting write would be a second grant.
        if value["state"] != "attaching" {
            assert_eq!(scene.put_lease("ebs/vol-7b", &value), NOTHING, "written again, and nothing new");
        }
    }
    assert_eq!(scene.delete(scene.keys.leases() + "ebs/vol-7b"), NOTHING, "nobody held it");
    let many: Vec<_> = (0..8).map(|n| format!("c{n}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let line = scene.put_lease("ebs/vol-7b", &lease("attached", "agent-2", &many)).remove(0);
    assert!(line.ends_with("containers c0, c1, c2, c3, c4 and 3 more)"), "{line}");
    let deleted = "volume ebs/vol-7b: its lease was deleted while agent-2 held it";
    assert_eq!(scene.delete(scene.keys.leases() + "ebs/vol-7b"), [deleted]);
}

#[test]
fn what_was_missed_between_two_reads_is_told_by_the_second() {
    let mut scene = Scene::begun();
    scene.put_lease("ebs/a", &lease("attached", "agent-1", &[]));
    scene.put_lease("ebs/b", &lease("attached", "agent-1", &[]));
    scene.put_lease("ebs/c", &lease("attached", "agent-1", &[]));
    let told = scene.read_leases(&[
        ("ebs/a", lease("attached", "agent-1", &[])),
        ("ebs/b", free("agent-1")),
        ("ebs/d", lease("attached", "agent-1", &[])),
    ]);
    assert_eq!(
        told,
        [
            "volume ebs/c: released by agent-1",
            "volume ebs/b: released by agent-1",
            "volume ebs/d: attached to agent-1 (agent S0, active; epoch 3, token 42; no container)",
        ]
    );
}

#[test]
fn an_agent_that_goes_and_comes_is_told_once_for_all_volumes_of_its_host() {
    let mut scene = Scene::begun();
    for name in ["ebs/vol-7b", "ebs/vol-8c", "scaleio/x"] {
        scene.put_lease(name, &lease("attached", "agent-1", &["c1"]));
    }
    for (registration, line) in [
        (Some(Registration::Inactive), "agent S0 is no longer active"),
        (Some(Registration::Active), "agent S0 is active again"),
        (Some(Registration::Recovered), "agent S0 has not registered again since the leading master changed"),
        (None, "agent S0 is no longer known to the leading master"),
    ] {
        let agents: Vec<_> = registration.map(|r| agent("S0", "agent-1", r)).into_iter().collect();
        assert_eq!(scene.polled(&agents), [format!("holder agent-1 of ebs/vol-7b and 2 more: {line}")]);
        assert_eq!(scene.polled(&agents), NOTHING);
    }
    assert_eq!(scene.polled(&[agent("S9", "agent-9", Registration::Inactive)]), NOTHING, "it holds nothing");
}

#[test]
fn a_holder_is_matched_by_its_sessions_agent_then_its_leases_then_its_host_name() {
    let agents = [
        agent("S0", "other-name", Registration::Active),
        agent("S1", "agent-1", Registration::Inactive),
        agent("S2", "agent-2", Registration::Inactive),
        // Came back under another id.
        agent("S3", "agent-2", Registration::Active),
    ];
    let mut anonymous = lease("attached", "agent-2", &[]);
    anonymous.as_object_mut().unwrap().remove("agent_id");
    for (sessions, record, agent) in [
        (vec![], lease("attached", "agent-1", &[]), "agent S0, active"),
        (
            vec![("agent-1", session(3, "live", Some("S1")))],
            lease("attached", "agent-1", &[]),
            "agent S1, not active",
        ),
        (vec![("agent-2", session(3, "live", Some("lost")))], anonymous.clone(), "agent S3, active"),
        (vec![], anonymous, "agent S3, active"),
        (
            vec![("elsewhere", session(3, "live", Some("lost")))],
            lease("attached", "elsewhere", &[]),
            "agent lost, not known to the leading master",
        ),
    ] {
        let mut scene = Scene::new();
        scene.polled(&agents);
        assert_eq!(scene.read_sessions(&sessions), NOTHING);
        scene.read_leases(&[("ebs/v", record.clone())]);
        scene.polled(&agents);
        let told = scene.put_lease("ebs/w", &record);
        assert!(told[0].contains(&format!("({agent};")), "{agent}: {told:?}");
    }
}

#[test]
fn before_a_master_was_asked_an_agent_is_neither_here_nor_gone() {
    let mut scene = Scene::new();
    scene.read_sessions(&[]);
    let told = scene.read_leases(&[("ebs/v", lease("attached", "agent-1", &[])), ("ebs/w", free("agent-2"))]);
    let held =
        "volume ebs/v: attached to agent-1 (agent S0, not asked for yet; epoch 3, token 42; no container)";
    assert_eq!(told, ["etcd has 2 leases, 1 of them held", held]);
    assert_eq!(scene.polled(&[agent("S0", "agent-1", Registration::Active)]), NOTHING);

    let mut scene = Scene::new();
    scene.read_leases(&[("ebs/v", lease("attached", "agent-1", &[]))]);
    let told = scene.polled(&[]);
    assert_eq!(told, ["holder agent-1 of ebs/v: agent S0 is not known to the leading master"]);
}

#[test]
fn a_session_is_told_when_its_epoch_or_state_changes() {
    let mut scene = Scene::begun();
    let live = "holder agent-1: its session of epoch 3 is live";
    assert_eq!(scene.put_session("agent-1", &session(3, "live", None)), [live]);
    assert_eq!(scene.put_session("agent-1", &session(3, "live", Some("S0"))), NOTHING);
    let dead = "holder agent-1: its session of epoch 3 is dead";
    assert_eq!(scene.put_session("agent-1", &session(3, "dead", Some("S0"))), [dead]);
    let deleted = "holder agent-1: its session was deleted";
    assert_eq!(scene.delete(scene.keys.sessions() + "agent-1"), [deleted]);
}

#[test]
fn an_unreadable_record_is_told_once_with_key_and_reason_and_again_when_it_differs() {
    let mut scene = Scene::begun();
    let key = "/extvol/v1/leases/ebs/v";
    scene.put_lease("ebs/v", &lease("attached", "agent-1", &[]));
    let told = scene.put(key.to_owned(), r#"{"version":7,"state":"quantum"}"#);
    let newer = format!(
        "the record {key} cannot be read and is left alone: it has version 7, and this program reads up to 1"
    );
    assert_eq!(told, [newer]);
    assert_eq!(scene.put(key.to_owned(), r#"{"version":7,"state":"other"}"#), NOTHING);
    let told = scene.put(key.to_owned(), "\u{7}{");
    assert!(told.len() == 1 && told[0].contains("is not a valid record: "), "{told:?}");
    // Readable again: told as new, for nothing was known of it meanwhile.
    assert_eq!(scene.put_lease("ebs/v", &lease("attached", "agent-1", &[])).len(), 1);

    for (key, reason) in [
        ("/extvol/v1/leases/noslash", "names no volume"),
        ("/extvol/v1/leases/%65bs/v", "names no volume"),
        ("/extvol/v1/leases/ebs/%2e%2e", "names no volume"),
        ("/extvol/v1/sessions/a%2Fb", "names no holder"),
        ("/extvol/v1/sessions/agent-1", "is not a valid record"),
    ] {
        let told = scene.put(key.to_owned(), "[]");
        assert!(told.len() == 1 && told[0].contains(key) && told[0].contains(reason), "{key}: {told:?}");
        assert_eq!(scene.put(key.to_owned(), "[]"), NOTHING);
    }
}

#[test]
fn no_text_from_outside_makes_a_line_look_like_two() {
    let mut scene = Scene::begun();
    let mut record = lease("attached", "agent-1", &[]);
    record["agent_id"] = "S0\nvolume ebs/x: released".into();
    let told = scene.put_lease("ebs/v", &record);
    assert!(told.iter().all(|line| !line.contains('\n')), "{told:?}");
    let told = scene.put("/extvol/v1/leases/\n".to_owned(), "x");
    assert!(told.iter().all(|line| !line.contains('\n')), "{told:?}");
}

#[test]
fn the_first_read_names_a_thousand_volumes_and_counts_the_rest() {
    let mut scene = Scene::begun();
    scene.view.leases_read = false;
    let names: Vec<_> = (0..HELD_NAMED + 5).map(|n| format!("ebs/v{n:05}")).collect();
    let records: Vec<_> =
        names.iter().map(|name| (name.as_str(), lease("attached", "agent-1", &[]))).collect();
    let told = scene.read_leases(&records);
    assert_eq!(told.len(), 1 + HELD_NAMED + 1);
    assert_eq!(told[0], "etcd has 1005 leases, 1005 of them held");
    assert_eq!(told.last().unwrap(), "and 5 more volumes are held");
    assert_eq!(scene.read_leases(&records), NOTHING);
}

#[test]
fn unreadable_records_without_end_take_memory_with_an_end() {
    let mut scene = Scene::begun();
    let told = (0..UNREADABLE_NAMED + 50)
        .flat_map(|n| scene.put(format!("/extvol/v1/leases/ebs/v{n}"), "x"))
        .count();
    assert_eq!(told, UNREADABLE_NAMED + 1);
    assert_eq!(scene.view.unreadable.len(), UNREADABLE_NAMED);
    // A read forgets those that are gone.
    scene.read_leases(&[]);
    assert!(scene.view.unreadable.is_empty());
}

#[test]
fn a_round_over_ten_thousand_agents_with_a_hundred_thousand_leases_is_short() {
    const AGENTS: usize = 10_000;
    let mut scene = Scene::new();
    let records: Vec<_> = (0..10 * AGENTS)
        .map(|n| (format!("ebs/vol-{n:06}"), lease("attached", &format!("agent-{}", n % AGENTS), &["c1"])))
        .collect();
    let records: Vec<_> = records.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let snapshot = scene.snapshot("/extvol/v1/leases/", &records);
    let begin = std::time::Instant::now();
    let _ = scene.view.read_leases(&snapshot);
    eprintln!("{} leases: taken in {:?}", records.len(), begin.elapsed());
    let agents: Vec<_> =
        (0..AGENTS).map(|n| agent(&format!("S{n}"), &format!("agent-{n}"), Registration::Active)).collect();
    let begin = std::time::Instant::now();
    scene.view.listed(agents.clone());
    let _ = scene.view.polled(None);
    scene.view.listed(agents);
    let again = scene.view.polled(None);
    let took = begin.elapsed();
    eprintln!("{AGENTS} agents: two rounds in {took:?}");
    assert!(again.is_empty());
    assert!(took.as_secs() < 2, "{took:?}");
}
