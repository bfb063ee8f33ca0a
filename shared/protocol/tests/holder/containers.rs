//! Containers, and the agents that run them.

use std::time::Duration;

use protocol::holder::Input;

use crate::etcd::Etcd;
use crate::host::{AGENT, Host, PREPARE, Step, container, volume};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_container_that_is_never_isolated_does_not_keep_its_volume() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.later(MINUTE * 14);
    assert_eq!(host.core.containers().len(), 1);
    host.later(MINUTE);
    host.until_quiet();
    assert!(host.is_bare());
}

#[test]
fn a_restart_gives_a_container_the_whole_time_to_start_again_and_not_more() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.later(MINUTE * 14);
    host.restart();
    host.until_quiet();
    host.later(MINUTE * 14);
    assert_eq!(host.core.containers().len(), 1);
    host.later(MINUTE);
    host.until_quiet();
    assert!(host.is_bare());
}

#[test]
fn a_container_that_was_isolated_stays_as_long_as_it_likes() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.isolate("c1");
    host.later(MINUTE * 600);
    assert_eq!(host.core.containers().len(), 1);
    host.restart();
    host.until_quiet();
    host.later(MINUTE * 60);
    assert_eq!(host.core.containers().len(), 1);
}

#[test]
fn isolate_is_refused_for_a_container_that_was_not_prepared() {
    let mut host = Host::new();
    let request = host.isolate("c1");
    assert!(host.refusal(request).contains("does not know container c1"));
}

#[test]
fn another_agents_container_of_the_same_id_is_left_alone() {
    let mut host = Host::new();
    host.prepared("db", &["a"]);
    let other = "10.0.0.1:6051";
    host.cleanup_by("db", other);
    host.until_quiet();
    assert_eq!(host.core.volumes().len(), 1);
    let request = host.ask("db", other, None, &["b"]);
    assert!(host.refusal(request).contains("another agent on this host, at 10.0.0.1:5051"));
}

#[test]
fn recovery_ends_containers_of_this_agent_that_it_does_not_know_and_no_others() {
    let mut host = Host::new();
    host.prepared("known", &["a"]);
    host.prepared("orphan", &["b"]);
    host.prepared("gone", &["c"]);
    host.recover("10.0.0.2:5051", &["known"], &["orphan"]);
    host.until_quiet();
    assert_eq!(host.core.volumes().len(), 3);
    // A task's container follows its agent to a new address; of what that did not name nothing is known.
    host.recover("10.0.0.2:5051", &["known"], &["orphan"]);
    host.recover(AGENT, &["known"], &["orphan"]);
    host.until_quiet();
    assert_eq!(host.core.volumes().keys().collect::<Vec<_>>(), [&volume("a"), &volume("b")]);
}

#[test]
fn without_a_session_nothing_is_done_and_the_refusal_says_why() {
    let mut etcd = Etcd::new();
    etcd.down = Some("etcd is unavailable");
    let mut host = Host::with(etcd, |_| {});
    let request = host.prepare("c1", &["a"]);
    assert_eq!(host.steps(), []);
    host.later(PREPARE);
    let why = host.refusal(request);
    assert!(why.contains("etcd is unavailable"), "{why}");
    assert!(host.is_bare());
}

#[test]
fn a_prepare_that_was_taken_in_before_there_is_a_session_is_served_when_there_is_one() {
    let mut etcd = Etcd::new();
    etcd.down = Some("etcd is unavailable");
    let mut host = Host::with(etcd, |_| {});
    let request = host.prepare("c1", &["a"]);
    host.later(Duration::from_secs(5));
    host.etcd.down = None;
    host.later(Duration::from_secs(2));
    let steps = host.until_quiet();
    assert!(
        steps.iter().any(|step| matches!(step, Step::Ready(number, _) if *number == request)),
        "{steps:#?}"
    );
}

#[test]
fn a_prepare_whose_table_cannot_be_stored_is_refused() {
    let mut host = Host::new();
    let request = host.prepare("c1", &["a"]);
    host.give(Input::Unstored { why: "no space left".into() });
    assert!(host.refusal(request).contains("no space left"));
    assert!(!host.core.containers().contains_key(&container("c1")));
    host.until_quiet();
    assert!(host.is_bare());
}
