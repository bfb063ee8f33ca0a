//! What the core is told: how agents are listed, and which lease stands for all of a holder's.

use serde_json::{Value, json};

use super::*;
use crate::mesos::Agent;

#[path = "view_waiting_tests.rs"]
mod waiting;

fn view_of(records: usize) -> View {
    let mut view = View::new(Keys::default(), 100);
    let entries = |make: &dyn Fn(usize) -> (String, Value)| {
        let entries = (1..=records).map(make).map(|(key, value)| (key, entry(7, &value))).collect();
        Snapshot { entries, revision: Revision(9) }
    };
    let sessions = entries(&|n| (format!("/extvol/v1/sessions/agent-{n}"), session(n, &format!("S{n}"))));
    let leases = entries(&|n| (format!("/extvol/v1/leases/ebs/v{n}"), lease(n, 3)));
    let _ = (view.read_sessions(&sessions), view.read_leases(&leases));
    view
}

fn entry(at: i64, value: &Value) -> Entry {
    Entry { value: value.to_string().into_bytes(), mod_revision: Revision(at) }
}

fn session(n: usize, id: &str) -> Value {
    json!({"version": 1, "epoch": 3, "instance": "i", "state": "live", "machine_id": "m", "boot_id": "b",
        "agent_id": id, "agent_address": format!("slave(1)@10.0.0.{n}:5051"), "since": "x"})
}

fn lease(n: usize, epoch: u64) -> Value {
    json!({"version": 1, "state": "attached", "holder": format!("agent-{n}"), "epoch": epoch, "token": 42,
        "since": "x", "agent_id": format!("S{n}"), "containers": []})
}

fn agent(id: &str, hostname: &str, n: usize, registration: Registration) -> Agent {
    let address = AgentAddress::of_pid(&format!("slave(1)@10.0.0.{n}:5051"));
    Agent { id: id.to_owned(), hostname: hostname.to_owned(), registration, address }
}

/// All but `lost` are listed as active.
fn list(view: &mut View, records: usize, lost: &[usize]) {
    let listed = (1..=records).filter(|n| !lost.contains(n));
    let agents = listed.map(|n| agent(&format!("S{n}"), &format!("agent-{n}"), n, Registration::Active));
    view.listed(agents.collect());
    let _ = view.polled(None);
}

fn registry(view: &mut View, admitted: &[&str], unreachable: &[&str], gone: &[&str]) {
    let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
    let (admitted, unreachable, gone) = (set(admitted), set(unreachable), set(gone));
    let registry = Registry { asked: view.unlisted(), admitted, unreachable, gone };
    let _ = view.polled(Some(registry));
}

fn given_up(view: &View) -> Vec<String> {
    view.agents_for_the_core(true).0.given_up.iter().map(|id| id.to_string()).collect()
}

#[test]
fn given_up_is_who_is_in_no_list_and_unreachable_gone_or_unknown_to_the_registry() {
    let mut view = view_of(9);
    list(&mut view, 9, &[1, 2, 3, 4]);
    assert!(given_up(&view).is_empty(), "the registry was not asked");
    registry(&mut view, &["S4"], &["S1"], &["S2"]);
    assert_eq!(given_up(&view), ["S1", "S2", "S3"]);
    // The next list forgets nothing while its registry has not been asked.
    list(&mut view, 9, &[1, 2, 3, 4]);
    assert_eq!(given_up(&view), ["S1", "S2", "S3"]);
    // One is back.
    list(&mut view, 9, &[1, 3, 4]);
    assert_eq!(given_up(&view), ["S1", "S3"]);
    let core = view.agents_for_the_core(true).0;
    let connected: Vec<_> = core.connected.iter().map(|id| &**id).collect();
    assert_eq!(connected, ["S2", "S5", "S6", "S7", "S8", "S9"]);
}

#[test]
fn an_agent_that_has_just_registered_was_not_given_up_though_the_list_is_older() {
    let mut view = view_of(9);
    list(&mut view, 9, &[1]);
    registry(&mut view, &[], &["S1"], &[]);
    assert_eq!(given_up(&view), ["S1"]);
    // Its keeper serves another agent now; nothing is known of that one.
    let key = "/extvol/v1/sessions/agent-1".to_owned();
    let _ = view.changed(&[Change::Put { key, entry: entry(12, &session(1, "S10")) }]);
    assert!(given_up(&view).is_empty());
    list(&mut view, 9, &[1]);
    registry(&mut view, &["S10"], &["S1"], &[]);
    assert!(given_up(&view).is_empty(), "the registry has admitted it");
}

#[test]
fn a_host_with_an_active_agent_of_its_name_or_address_was_not_given_up() {
    for (hostname, n) in [("agent-1", 77), ("other", 1)] {
        let mut view = view_of(9);
        list(&mut view, 9, &[1]);
        registry(&mut view, &[], &["S1"], &[]);
        let mut agents: Vec<_> = (2..=9)
            .map(|n| agent(&format!("S{n}"), &format!("agent-{n}"), n, Registration::Active))
            .collect();
        agents.push(agent("S11", hostname, n, Registration::Active));
        view.listed(agents);
        let _ = view.polled(None);
        registry(&mut view, &[], &["S1"], &[]);
        assert!(given_up(&view).is_empty(), "{hostname}");
    }
}

#[test]
fn when_most_are_given_up_at_once_none_is() {
    let mut view = view_of(9);
    let lost = [1, 2, 3, 4, 5];
    list(&mut view, 9, &lost);
    registry(&mut view, &[], &["S1"], &[]);
    let (core, too_many) = view.agents_for_the_core(true);
    assert_eq!((core.given_up.len(), too_many), (0, NotBelieved { given_up: 5, inactive: 0 }));
    assert_eq!(core.connected.len(), 4);
    list(&mut view, 9, &[1, 2, 3, 4]);
    assert_eq!((given_up(&view).len(), view.agents_for_the_core(true).1), (4, NotBelieved::default()));
    // Of two hosts both may be lost.
    let mut view = view_of(2);
    list(&mut view, 2, &[1, 2]);
    registry(&mut view, &[], &["S1", "S2"], &[]);
    assert_eq!(given_up(&view), ["S1", "S2"]);
}

#[test]
fn without_a_list_every_agent_may_be_connected_and_none_was_given_up() {
    let mut view = view_of(3);
    assert!(view.may_be_connected("S1"));
    list(&mut view, 3, &[1]);
    registry(&mut view, &[], &["S1"], &[]);
    let (core, _) = view.agents_for_the_core(false);
    let connected: Vec<_> = core.connected.iter().map(|id| &**id).collect();
    assert_eq!((connected, core.given_up.len()), (vec!["S1", "S2", "S3"], 0));
}

#[test]
fn one_that_has_not_registered_again_may_be_connected_and_an_inactive_one_is_not() {
    let mut view = view_of(2);
    view.listed(vec![
        agent("S1", "agent-1", 1, Registration::Recovered),
        agent("S2", "agent-2", 2, Registration::Inactive),
    ]);
    let _ = view.polled(None);
    let core = view.agents_for_the_core(true).0;
    let connected: Vec<_> = core.connected.iter().map(|id| &**id).collect();
    assert_eq!((connected, core.given_up.len()), (vec!["S1"], 0));
    assert_eq!([view.may_be_connected("S1"), view.may_be_connected("S2")], [true, false]);
}

#[test]
fn one_lease_of_the_newest_epoch_stands_for_all_of_a_holder() {
    let mut view = view_of(1);
    let newest = |view: &View| {
        let holdings = view.holdings().unwrap();
        holdings.values().map(|n| (n.volume.to_string(), n.epoch.0, n.written.0)).collect::<Vec<_>>()
    };
    let put = |view: &mut View, name: &str, at: i64, value: &Value| {
        let key = format!("/extvol/v1/leases/ebs/{name}");
        let _ = view.changed(&[Change::Put { key, entry: entry(at, value) }]);
    };
    assert_eq!(newest(&view), [("ebs/v1".to_owned(), 3, 7)]);
    put(&mut view, "a", 10, &lease(1, 4));
    put(&mut view, "b", 11, &lease(1, 2));
    assert_eq!(newest(&view), [("ebs/a".to_owned(), 4, 10)], "an older epoch changes nothing");
    // Rewritten as it was: only its revision is another.
    put(&mut view, "a", 12, &lease(1, 4));
    assert_eq!(newest(&view), [("ebs/a".to_owned(), 4, 12)]);
    let free = json!({"version": 1, "state": "free", "last_holder": "agent-1", "since": "x"});
    put(&mut view, "a", 13, &free);
    assert_eq!(newest(&view), [("ebs/v1".to_owned(), 3, 7)], "the newest of those that are left");
    put(&mut view, "v1", 14, &lease(2, 9));
    assert_eq!(newest(&view), [("ebs/b".to_owned(), 2, 11), ("ebs/v1".to_owned(), 9, 14)]);
    put(&mut view, "b", 15, &json!({"version": 2}));
    assert_eq!(newest(&view), [("ebs/v1".to_owned(), 9, 14)], "nobody knows whose it is");
}
