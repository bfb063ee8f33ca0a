//! The events that modules write to a real etcd, with masters and agents of a few lines.

#![expect(clippy::unwrap_used, reason = "a test that unwraps fails with a place and a value")]

mod support;

use support::events::{Event, events, wait_for, whats};
use support::log::Log;
use support::master::{Agent, AgentAnswer, Answer, Master};
use support::{found, nowhere, put_lease, start, start_with};
use testing::{EtcdCluster, wait_until};

/// An etcd with an installation's record, an agent that answers, and a master that lists it.
struct Scene {
    // Ends before the log of the next test begins.
    cluster: EtcdCluster,
    agent: Agent,
    master: Master,
    log: Log,
}

impl Scene {
    fn begin() -> Self {
        let log = Log::begin();
        let cluster = EtcdCluster::start(1);
        found(&cluster);
        let agent = Agent::start(AgentAnswer::Id("S0"));
        let master = Master::start(Answer::Leader(vec![agent.listed("S0", "agent-1", true)]));
        Self { cluster, agent, master, log }
    }

    fn start(&self) -> master_module::MasterModule {
        start(&self.cluster.endpoints(), Some(&self.master.address), nowhere)
    }

    fn list(&self, active: bool) {
        self.master.now(Answer::Leader(vec![self.agent.listed("S0", "agent-1", active)]));
    }

    fn put_session(&self, epoch: u64, state: &str) {
        put_session(&self.cluster, epoch, state);
    }

    fn wait_for(&self, expected: &[&str]) {
        wait_for(&self.cluster, expected);
    }

    /// The module has said so often that it has read everything.
    fn wait_until_it_follows(&self, times: usize) {
        wait_until("the module follows", || self.log.count("etcd has") >= times);
    }
}

fn put_session(cluster: &EtcdCluster, epoch: u64, state: &str) {
    let record = format!(
        r#"{{"version":1,"epoch":{epoch},"instance":"i","state":"{state}","machine_id":"m","boot_id":"b","agent_id":"S0","since":"x"}}"#
    );
    cluster.etcdctl(&["put", "/extvol/v1/sessions/agent-1", &record]);
}

fn last(cluster: &EtcdCluster) -> Event {
    events(cluster).pop().unwrap()
}

/// The revision that last wrote or made a key, as etcdctl tells it.
fn mod_revision(cluster: &EtcdCluster, key: &str) -> i64 {
    let text = cluster.etcdctl(&["get", key, "--write-out", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    answer["kvs"][0]["mod_revision"].as_i64().unwrap()
}

#[test]
fn etcd_the_way_of_a_lease_is_recorded_in_order_with_all_that_it_names() {
    let scene = Scene::begin();
    let _module = scene.start();
    scene.wait_until_it_follows(1);
    scene.put_session(3, "live");
    let attaching = r#"{"version":1,"state":"attaching","holder":"agent-1","epoch":3,"since":"x","agent_id":"S0","containers":["c1"]}"#;
    scene.cluster.etcdctl(&["put", "/extvol/v1/leases/ebs/vol-7b", attaching]);
    let granted = mod_revision(&scene.cluster, "/extvol/v1/leases/ebs/vol-7b");
    put_lease(&scene.cluster, "ebs/vol-7b", "attached");
    put_lease(&scene.cluster, "ebs/vol-7b", "detaching");
    put_lease(&scene.cluster, "ebs/vol-7b", "free");
    put_lease(&scene.cluster, "ebs/vol-8c", "attached");
    scene.cluster.etcdctl(&["del", "/extvol/v1/leases/ebs/vol-8c"]);
    scene.cluster.etcdctl(&["put", "/extvol/v1/leases/ebs/broken", "{"]);
    scene.put_session(3, "dead");
    scene.cluster.etcdctl(&["del", "/extvol/v1/sessions/agent-1"]);
    let expected = [
        "session-opened",
        "granted",
        "attached",
        "detaching",
        "released",
        "attached",
        "lease-deleted",
        "record-unreadable",
        "session-dead",
        "session-deleted",
    ];
    scene.wait_for(&expected);
    let all = events(&scene.cluster);
    assert!(all.is_sorted_by_key(|event| event.revision));
    let grant = &all[1];
    assert_eq!((grant.revision, grant.subject.as_str()), (granted, "leases/ebs/vol-7b"));
    for (field, value) in [
        ("volume", "ebs/vol-7b".into()),
        ("holder", "agent-1".into()),
        ("epoch", 3.into()),
        ("token", granted.into()),
        ("agent_id", "S0".into()),
        ("seen", serde_json::Value::from("at-once")),
    ] {
        assert_eq!(grant.value[field], value, "{field} of {grant:?}");
    }
    assert!(grant.value["text"].as_str().unwrap().contains("attaching to agent-1 (agent S0, active;"));
    assert!(humantime_is_utc(grant.value["time"].as_str().unwrap()), "{grant:?}");
    assert_eq!(all[6].value["token"], 42);
}

fn humantime_is_utc(time: &str) -> bool {
    time.len() == "2026-01-01T00:00:00.000Z".len() && time.ends_with('Z')
}

#[test]
fn etcd_two_modules_at_once_record_each_change_once_in_the_order_of_revisions() {
    const CHANGES: usize = 150;
    let scene = Scene::begin();
    // Both have the same master, and so both take themselves for the one that writes first.
    let _one = scene.start();
    let _other = scene.start();
    scene.wait_until_it_follows(2);
    let mut expected = Vec::new();
    for n in 0..CHANGES / 3 {
        for (state, what) in [("attached", "attached"), ("detaching", "detaching"), ("free", "released")] {
            put_lease(&scene.cluster, &format!("ebs/vol-{}", n % 5), state);
            expected.push(what);
        }
    }
    scene.wait_for(&expected);
    put_lease(&scene.cluster, "ebs/vol-7b", "attached");
    expected.push("attached");
    scene.wait_for(&expected);
    scene.list(false);
    wait_until("both see it", || scene.log.count("agent S0 is no longer active") == 2);
    expected.push("agent-inactive");
    scene.wait_for(&expected);
    scene.list(true);
    // Both tell it, and one writes it.
    wait_until("both see it", || scene.log.count("agent S0 is active again") == 2);
    expected.push("agent-active");
    scene.wait_for(&expected);
    put_lease(&scene.cluster, "ebs/vol-7b", "free");
    expected.push("released");
    scene.wait_for(&expected);
    let all = events(&scene.cluster);
    assert!(all.is_sorted_by_key(|event| event.revision));
    // What came to pass outside etcd stands between the changes that it came between.
    let attached = all.iter().rposition(|event| event.what() == "attached").unwrap();
    assert!(all[attached].revision <= all[attached + 1].revision);
    assert_eq!(all[attached + 1].subject, "then/holders/agent-1");
}

#[test]
fn etcd_a_module_beside_a_standby_writes_when_the_leaders_does_not() {
    let scene = Scene::begin();
    let standby = Master::start(Answer::Redirect(scene.master.address.clone()));
    let _module = start(&scene.cluster.endpoints(), Some(&standby.address), nowhere);
    scene.wait_until_it_follows(1);
    put_lease(&scene.cluster, "ebs/vol-7b", "attached");
    scene.log.wait_for("volume ebs/vol-7b: attached");
    assert!(whats(&scene.cluster).is_empty(), "the leader's comes first");
    scene.wait_for(&["attached"]);
}

#[test]
fn etcd_a_module_that_is_restarted_in_between_records_what_it_missed_and_nothing_twice() {
    let scene = Scene::begin();
    let module = scene.start();
    scene.wait_until_it_follows(1);
    scene.put_session(3, "live");
    for volume in ["ebs/kept", "ebs/freed", "ebs/deleted"] {
        put_lease(&scene.cluster, volume, "attached");
    }
    let mut expected = vec!["session-opened", "attached", "attached", "attached"];
    scene.wait_for(&expected);
    scene.list(false);
    expected.push("agent-inactive");
    scene.wait_for(&expected);
    drop(module);
    put_lease(&scene.cluster, "ebs/freed", "detaching");
    put_lease(&scene.cluster, "ebs/freed", "free");
    let freed = mod_revision(&scene.cluster, "/extvol/v1/leases/ebs/freed");
    scene.cluster.etcdctl(&["del", "/extvol/v1/leases/ebs/deleted"]);
    scene.list(true);
    // Two at once: what both find is recorded once.
    let _one = scene.start();
    let _other = scene.start();
    scene.wait_until_it_follows(3);
    wait_until("all is recorded", || whats(&scene.cluster).len() >= expected.len() + 3);
    put_lease(&scene.cluster, "ebs/kept", "free");
    wait_until("and what comes next", || last(&scene.cluster).value["volume"] == "ebs/kept");
    let all = events(&scene.cluster);
    let missed: Vec<_> = all[expected.len()..].iter().map(|event| event.what()).collect();
    let mut sorted = missed.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ["agent-active", "released", "released", "released"], "{all:#?}");
    let released = &all[expected.len()];
    assert_eq!((released.what(), released.revision), ("released", freed));
    assert_eq!(released.value["seen"], "by-a-later-read");
    // A release that nobody owes leaves no record: a lease that is gone was released.
    let is_of = |event: &&Event| event.subject == "leases/ebs/deleted" && event.what() == "released";
    let deleted = all.iter().find(is_of).unwrap();
    assert!(deleted.revision > freed);
    assert_eq!((&deleted.value["seen"], &deleted.value["token"]), (&"by-a-later-read".into(), &42.into()));
}

#[test]
fn etcd_killed_and_restarted_in_between_loses_no_event_and_doubles_none() {
    let mut scene = Scene::begin();
    let _one = scene.start();
    let _other = scene.start();
    scene.wait_until_it_follows(2);
    put_lease(&scene.cluster, "ebs/vol-7b", "attached");
    scene.wait_for(&["attached"]);
    scene.cluster.kill(0);
    wait_until("etcd is missed by both", || scene.log.count("no answer from etcd") >= 2);
    scene.list(false);
    wait_until("both see it", || scene.log.count("agent S0 is no longer active") == 2);
    scene.list(true);
    wait_until("both see it", || scene.log.count("agent S0 is active again") == 2);
    scene.agent.now(AgentAnswer::Hang);
    wait_until("both see it", || scene.log.count("agent S0 does not answer") == 2);
    scene.cluster.restart(0);
    put_lease(&scene.cluster, "ebs/vol-7b", "detaching");
    put_lease(&scene.cluster, "ebs/vol-7b", "free");
    wait_until("all is recorded", || whats(&scene.cluster).len() >= 6);
    put_lease(&scene.cluster, "ebs/vol-7b", "attached");
    wait_until("and what comes next", || last(&scene.cluster).what() == "attached");
    let all = whats(&scene.cluster);
    let (agent, lease): (Vec<_>, Vec<_>) = all.iter().partition(|what| what.starts_with("agent-"));
    assert_eq!(agent, ["agent-inactive", "agent-active", "agent-silent"], "{all:?}");
    assert_eq!(lease, ["attached", "detaching", "released", "attached"], "{all:?}");
}

#[test]
fn etcd_restored_from_a_backup_is_recorded_on_from_there() {
    let mut scene = Scene::begin();
    let module = scene.start();
    scene.wait_until_it_follows(1);
    put_lease(&scene.cluster, "ebs/vol-7b", "attached");
    scene.wait_for(&["attached"]);
    scene.cluster.save_snapshot("backup");
    put_lease(&scene.cluster, "ebs/vol-7b", "detaching");
    put_lease(&scene.cluster, "ebs/vol-8c", "attached");
    scene.wait_for(&["attached", "detaching", "attached"]);
    scene.cluster.restore_snapshot("backup");
    scene.log.wait_for("etcd holds what cannot be right");
    wait_until("it begins again", || scene.log.count("etcd has 1 leases, 1 of them held") == 1);
    assert_eq!(whats(&scene.cluster), ["attached"], "as it was then, and nothing of what is undone");
    put_lease(&scene.cluster, "ebs/vol-7b", "free");
    scene.wait_for(&["attached", "released"]);
    assert_eq!(last(&scene.cluster).revision, mod_revision(&scene.cluster, "/extvol/v1/leases/ebs/vol-7b"));
    drop(module);
}

#[test]
fn etcd_two_that_trim_at_once_leave_the_newest_events() {
    const KEPT: usize = 100;
    const CHANGES: usize = 420;
    let scene = Scene::begin();
    let kept = KEPT.to_string();
    let start = || {
        let parameters = [("events_kept", kept.as_str())];
        start_with(&scene.cluster.endpoints(), Some(&scene.master.address), nowhere, &parameters)
    };
    let (_one, _other) = (start(), start());
    scene.wait_until_it_follows(2);
    let mut revisions = Vec::new();
    for n in 0..CHANGES {
        put_lease(&scene.cluster, "ebs/vol-7b", if n % 2 == 0 { "attached" } else { "free" });
        revisions.push(mod_revision(&scene.cluster, "/extvol/v1/leases/ebs/vol-7b"));
    }
    let newest = *revisions.last().unwrap();
    wait_until("the last is recorded", || last(&scene.cluster).revision == newest);
    // One more than is tolerated was there at some time: so it was trimmed, and no newer one is missing.
    let there: Vec<_> = events(&scene.cluster).iter().map(|event| event.revision).collect();
    assert!((KEPT..KEPT + 200).contains(&there.len()), "{} of {CHANGES}", there.len());
    assert_eq!(there, revisions[CHANGES - there.len()..]);
    let trimmed = scene.cluster.etcdctl(&["get", "--print-value-only", "/extvol/v1/eventlog/trimmed"]);
    let trimmed: serde_json::Value = serde_json::from_str(&trimmed).unwrap();
    assert_eq!(trimmed["revision"], revisions[CHANGES - there.len() - 1]);
}

#[test]
fn etcd_an_agent_that_hangs_recovers_or_is_another_is_told_from_one_that_answers() {
    let scene = Scene::begin();
    put_lease(&scene.cluster, "ebs/vol-7b", "attached");
    let _module = scene.start();
    scene.wait_for(&["attached"]);
    wait_until("its health is asked", || scene.agent.asked("health") > 2);
    assert!(scene.agent.asked("state") <= 2, "its state only until it is known");

    scene.agent.now(AgentAnswer::Hang);
    scene.log.wait_for("holder agent-1 of ebs/vol-7b: agent S0 does not answer: ");
    let mut expected = vec!["attached", "agent-silent"];
    scene.wait_for(&expected);
    for (answer, what, line) in [
        (AgentAnswer::Id("S0"), "agent-answers", "agent S0 answers again"),
        (AgentAnswer::Hang, "agent-silent", "agent S0 does not answer: "),
        (AgentAnswer::Recovering, "agent-recovering", "agent S0 is recovering"),
        (
            AgentAnswer::Id("S7"),
            "agent-other-id",
            "agent S0 is not what answers at its address: agent S7 answers there",
        ),
        // Of a state without end no more is read than its id.
        (AgentAnswer::Endless("S0"), "agent-answers", "agent S0 answers again"),
    ] {
        scene.agent.now(answer);
        expected.push(what);
        scene.wait_for(&expected);
        scene.log.wait_for(line);
    }
    let silent = &events(&scene.cluster)[1].value;
    assert_eq!((&silent["agent_id"], &silent["volume"]), (&"S0".into(), &"ebs/vol-7b".into()));
}

#[test]
fn etcd_agents_that_are_not_listed_are_looked_up_in_the_registry_and_asked_where_they_were() {
    let scene = Scene::begin();
    put_lease(&scene.cluster, "ebs/vol-7b", "attached");
    let _module = scene.start();
    scene.wait_for(&["attached"]);
    wait_until("it is asked", || scene.agent.asked("health") > 0);
    scene.master.registry(&["S5", "S0"], &["S6"]);
    scene.master.now(Answer::Leader(vec![]));
    scene.wait_for(&["attached", "agent-unreachable"]);
    scene.log.wait_for("agent S0 was given up by the masters: it is unreachable");
    // It is asked on, under its last address, for its id.
    let asked = scene.agent.asked("state");
    wait_until("it is asked on", || scene.agent.asked("state") > asked + 1);
    scene.agent.now(AgentAnswer::Hang);
    scene.wait_for(&["attached", "agent-unreachable", "agent-silent"]);
    scene.master.registry(&["S5"], &["S6", "S0"]);
    let mut expected = vec!["attached", "agent-unreachable", "agent-silent", "agent-gone"];
    scene.wait_for(&expected);
    scene.master.registry(&["S5"], &["S6"]);
    expected.push("agent-unknown");
    scene.wait_for(&expected);
}

#[test]
fn etcd_a_fail_over_from_one_master_to_another_is_followed_and_its_agents_are_waited_for() {
    let scene = Scene::begin();
    let next = Master::start(Answer::Redirect(scene.master.address.clone()));
    put_lease(&scene.cluster, "ebs/vol-7b", "attached");
    // The module of the one that leads, and that of the one that will.
    let _first = scene.start();
    let _next = start(&scene.cluster.endpoints(), Some(&next.address), nowhere);
    scene.wait_until_it_follows(2);
    scene.wait_for(&["attached"]);

    scene.master.now(Answer::NoLeader);
    next.now(Answer::NoLeader);
    wait_until("both miss it", || scene.log.count("no master is leading") >= 2);
    next.now(Answer::Recovering(vec![("S0", "agent-1")]));
    scene.master.now(Answer::Redirect(next.address.clone()));
    scene.wait_for(&["attached", "agent-recovered"]);
    next.now(Answer::Leader(vec![scene.agent.listed("S0", "agent-1", true)]));
    scene.wait_for(&["attached", "agent-recovered", "agent-active"]);
    put_lease(&scene.cluster, "ebs/vol-7b", "free");
    scene.wait_for(&["attached", "agent-recovered", "agent-active", "released"]);
}

#[test]
fn etcd_without_an_installations_record_is_waited_for_and_what_waited_is_written_then() {
    let scene = Scene::begin();
    scene.cluster.etcdctl(&["del", "/extvol/v1/cluster"]);
    put_lease(&scene.cluster, "ebs/vol-7b", "attached");
    let _module = scene.start();
    scene.log.wait_for("no keeper has started");
    assert!(whats(&scene.cluster).is_empty());
    found(&scene.cluster);
    scene.wait_for(&["attached"]);
}

#[test]
fn etcd_that_is_away_for_long_costs_the_oldest_events_and_says_how_many() {
    let mut scene = Scene::begin();
    let parameters = [("events_kept", "100")];
    let _module = start_with(&scene.cluster.endpoints(), Some(&scene.master.address), nowhere, &parameters);
    scene.wait_until_it_follows(1);
    put_lease(&scene.cluster, "ebs/vol-7b", "attached");
    scene.wait_for(&["attached"]);
    scene.cluster.kill(0);
    scene.log.wait_for("no answer from etcd");
    for n in 0..120 {
        scene.list(n % 2 == 1);
        let line = if n % 2 == 1 { "agent S0 is active again" } else { "agent S0 is no longer active" };
        wait_until("it is seen", || scene.log.count(line) == n / 2 + 1);
    }
    scene.cluster.restart(0);
    wait_until("the last turn is recorded", || {
        whats(&scene.cluster).iter().filter(|what| *what == "agent-active").count() >= 50
    });
    let all = events(&scene.cluster);
    assert_eq!(all[1].what(), "events-dropped", "{all:#?}");
    let (dropped, turns): (Vec<_>, Vec<_>) =
        all[1..].iter().partition(|event| event.what() == "events-dropped");
    // Each try to write may count what was dropped until then.
    let count: i64 = dropped.iter().map(|event| event.value["dropped"].as_i64().unwrap()).sum();
    assert_eq!((count, turns.len()), (20, 100));
    assert!(turns.is_sorted_by_key(|event| event.revision));
}
