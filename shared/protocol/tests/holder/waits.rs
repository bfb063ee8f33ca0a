//! Prepares that wait for a lease which another host has.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::exchange::Key;
use protocol::holder::Input;
use protocol::ids::Revision;

use crate::etcd::holder;
use crate::host::{BEAT, Host, ME, Step, WAIT, acquire, place, volume};

/// A host whose container `c1` waits for `a`, which `agent-2` has.
fn waiting() -> (Host, u64) {
    let mut host = Host::new();
    host.etcd.hold_elsewhere("agent-2", "a");
    let request = host.prepare("c1", &["a"]);
    host.later(BEAT);
    assert_eq!(host.steps(), []);
    (host, request)
}

/// What is watched beside this host's own session.
fn others(host: &Host) -> BTreeMap<Key, Revision> {
    let mut watching = host.core.watching();
    watching.remove(&Key::Session(holder(ME)));
    watching
}

fn told(host: &mut Host, key: Key) {
    host.give(Input::Changed(key));
}

#[test]
fn a_prepare_waits_for_a_lease_of_another_host_and_takes_it_the_moment_it_is_free() {
    let (mut host, request) = waiting();
    host.later(Duration::from_secs(3));
    assert_eq!(host.steps(), []);
    host.etcd.free("a");
    let now = host.now;
    told(&mut host, Key::Lease(volume("a")));
    assert_eq!(host.steps(), [acquire(&["a"]), Step::Mount("a".into())]);
    assert_eq!(host.now, now);
    let steps = host.until_quiet();
    place(&steps, |step| matches!(step, Step::Ready(number, _) if *number == request));
}

#[test]
fn a_change_that_frees_nothing_changes_nothing() {
    let (mut host, _) = waiting();
    host.etcd.hold_elsewhere("agent-2", "a");
    told(&mut host, Key::Lease(volume("a")));
    told(&mut host, Key::Session(holder("agent-2")));
    host.later(BEAT);
    assert_eq!(host.steps(), []);
    assert!(host.core.volumes().is_empty());
    assert_eq!(host.etcd.lease("a").map(|held| held.holder.as_str()), Some("agent-2"));
}

#[test]
fn when_its_patience_ends_a_prepare_is_refused_with_who_since_when_and_for_how_long() {
    let (mut host, request) = waiting();
    host.later(WAIT - BEAT - Duration::from_millis(1));
    assert_eq!(host.steps(), []);
    host.later(Duration::from_millis(1));
    let why = host.refusal(request);
    for part in [
        "volume ebs/a is held by agent-2",
        "live",
        "since 2026-11-01T10:00:00Z",
        "agent S2",
        "container db",
        "`extvol revoke ebs/a`",
        "waited for 20 s",
    ] {
        assert!(why.contains(part), "{part:?} is not in {why:?}");
    }
    assert!(host.is_bare() && others(&host).is_empty());
}

#[test]
fn a_container_that_ends_while_it_waits_leaves_nothing() {
    let (mut host, request) = waiting();
    host.cleanup("c1");
    host.refusal(request);
    assert!(host.is_bare() && others(&host).is_empty());
    host.etcd.free("a");
    told(&mut host, Key::Lease(volume("a")));
    host.later(WAIT);
    assert_eq!(host.steps(), []);
}

#[test]
fn what_may_free_a_lease_is_watched_from_where_it_was_read() {
    let (mut host, _) = waiting();
    let watching = others(&host);
    let keys: Vec<_> = watching.keys().cloned().collect();
    assert_eq!(keys, [Key::Lease(volume("a")), Key::Session(holder("agent-2"))]);
    let read = watching[&keys[0]];
    assert!(read > Revision::ABSENT && watching[&keys[1]] == read);
    // After the next reading it is from there.
    host.etcd.beat_elsewhere("agent-2");
    told(&mut host, Key::Lease(volume("a")));
    assert!(host.core.watching()[&keys[0]] > read);
}

#[test]
fn the_session_says_what_is_waited_for_as_long_as_it_is() {
    let (mut host, _) = waiting();
    assert_eq!(host.etcd.session(ME).wants.iter().collect::<Vec<_>>(), [&volume("a")]);
    host.etcd.free("a");
    told(&mut host, Key::Lease(volume("a")));
    host.until_quiet();
    assert!(host.etcd.session(ME).wants.is_empty());

    let (mut host, _) = waiting();
    host.later(WAIT);
    assert!(host.etcd.session(ME).wants.is_empty());
}

#[test]
fn a_lease_is_asked_for_again_though_its_watch_says_nothing() {
    let (mut host, request) = waiting();
    host.etcd.free("a");
    // Half of T.
    host.later(Duration::from_millis(3_899));
    assert_eq!(host.steps(), []);
    host.later(Duration::from_millis(1));
    let steps = host.until_quiet();
    place(&steps, |step| matches!(step, Step::Ready(number, _) if *number == request));
}

#[test]
fn one_that_waits_holds_nothing_and_needs_no_beats() {
    let mut host = Host::new();
    host.etcd.hold_elsewhere("agent-2", "a");
    host.prepare("c1", &["a", "b"]);
    assert!(host.etcd.lease("b").is_none());
    host.all_steps();
    host.later(Duration::from_secs(4));
    assert_eq!(host.all_steps(), []);
    // Somebody else has the other volume meanwhile.
    host.prepared("c2", &["b"]);
    host.etcd.free("a");
    told(&mut host, Key::Lease(volume("a")));
    let steps = host.until_quiet();
    place(&steps, |step| matches!(step, Step::Ready(_, mount_points) if mount_points.len() == 2));
}

#[test]
fn a_worker_that_is_restarted_goes_on_waiting_when_it_is_asked_again() {
    let (mut host, _) = waiting();
    host.restart();
    let request = host.prepare("c1", &["a"]);
    host.later(BEAT);
    assert_eq!(host.steps(), []);
    assert_eq!(others(&host).len(), 2);
    host.etcd.free("a");
    told(&mut host, Key::Lease(volume("a")));
    let steps = host.until_quiet();
    place(&steps, |step| matches!(step, Step::Ready(number, _) if *number == request));
}
