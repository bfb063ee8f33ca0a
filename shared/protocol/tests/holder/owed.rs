//! What a host owes that lost a lease without having given the volume back, and how it is paid.

use std::collections::BTreeSet;
use std::time::Duration;

use protocol::exchange::{Owed, SessionState, Stage};
use protocol::holder::{Idleness, Input, MountFault, Settings, UnmountFault};
use protocol::ids::Epoch;
use protocol::volume::Driver;

use crate::etcd::Etcd;
use crate::host::{GRACE, Host, ME, PAUSE, PREPARE, SETTLE, Step, acquire, mount, place, record, release};

fn refused() -> MountFault {
    MountFault::Refused("docker-legacy: Mount: a: failed: resource not found".into())
}

fn takes_away(settings: &mut Settings) {
    settings.storage_fencing = BTreeSet::from([Driver::new("ebs").unwrap()]);
}

/// Whom the free lease of `a` names.
fn owing(host: &Host) -> Option<String> {
    host.etcd.owed("a").map(Owed::hosts)
}

/// A host that was asked for a volume which a dead host has not given back, and has waited for that one's calls.
fn waited() -> Host {
    let mut host = Host::new();
    host.etcd.hold_elsewhere("agent-2", "a");
    host.etcd.end_elsewhere("agent-2");
    let request = host.prepare("c1", &["a"]);
    host.later(PREPARE);
    assert!(host.refusal(request).contains("may still land"));
    host.later(SETTLE);
    assert_eq!(host.steps(), [record("a", Stage::Attaching, &[]), release("a")]);
    host
}

/// The driver refuses to mount, and has nothing to unmount; what the task is told.
fn refuses(host: &mut Host, name: &str) -> String {
    let request = host.prepare(name, &["a"]);
    assert_eq!(host.steps(), [acquire(&["a"]), Step::Mount("a".into())]);
    host.mounts("a", Err(refused()));
    let told = host.all_steps();
    let why = told.iter().find_map(|step| match step {
        Step::Refused(number, why) if *number == request => Some(why.clone()),
        _ => None,
    });
    host.unmounts("a", Err(UnmountFault::Refused("resource not found".into())));
    host.finds("a", Idleness::Proved);
    // That the driver has nothing to undo is no news.
    let steps = host.all_steps();
    assert!(!steps.iter().any(|step| matches!(step, Step::Warn(_))), "{steps:#?}");
    assert!(host.is_bare());
    why.unwrap()
}

/// A refusal behind a Mount without an answer counts once that has settled.
fn refused_at_last(host: &mut Host) {
    for _ in 0..20 {
        host.later(PAUSE);
        host.mounts("a", Err(refused()));
        if !host.calls().is_empty() {
            return;
        }
    }
    panic!("no refusal counts");
}

#[test]
fn what_a_dead_host_owes_outlives_everyone_who_could_not_mount_it() {
    let mut host = waited();
    assert_eq!(owing(&host).as_deref(), Some("agent-2"));
    // What was waited for is not waited for again; what the storage has attached stays known.
    for name in ["c2", "c3"] {
        let why = refuses(&mut host, name);
        for part in [
            "volume ebs/a could not be mounted: docker-legacy: Mount: a: failed: resource not found",
            "it was held by agent-2 since 2026-11-01T10:00:00Z, never released there, and may still be attached there",
            "detach it at the storage, then run `extvol free ebs/a --detached agent-2`",
            "preempt_plugin",
        ] {
            assert!(why.contains(part), "{part:?} is not in {why:?}");
        }
        assert_eq!(owing(&host).as_deref(), Some("agent-2"));
    }
    // The next worker knows it, too, and it is paid by a Mount.
    host.restart();
    host.prepare("c4", &["a"]);
    host.steps();
    host.mounts("a", Ok(mount("a")));
    assert_eq!(
        host.etcd.lease("a").map(|held| (held.stage, held.owed.clone())),
        Some((Stage::Attached, None))
    );
    host.cleanup("c4");
    host.until_quiet();
    assert_eq!(owing(&host), None);
}

#[test]
fn what_was_mounted_for_a_moment_is_owed_no_more() {
    let mut host = waited();
    host.prepare("c2", &["a"]);
    host.held_back = Some(|step| matches!(step, Step::Record(_, Stage::Attached, _)));
    host.mounts("a", Ok(mount("a")));
    host.cleanup("c2");
    host.let_through();
    host.until_quiet();
    assert_eq!(owing(&host), None);
}

#[test]
fn a_storage_that_can_takes_away_what_is_owed_though_the_lease_is_free() {
    let mut host = Host::with(Etcd::new(), takes_away);
    host.etcd.owe("a", "agent-2", true);
    host.prepare("c1", &["a"]);
    assert_eq!(host.steps(), [acquire(&["a"]), Step::Settle("a".into())]);
    host.until_quiet();
    host.cleanup("c1");
    host.until_quiet();
    assert_eq!(owing(&host), None);
}

#[test]
fn where_the_storage_has_to_take_it_away_and_cannot_a_free_lease_that_is_owed_is_refused() {
    let mut host = Host::with(Etcd::new(), |settings| settings.fencing_required = true);
    host.etcd.owe("a", "agent-2", true);
    let request = host.prepare("c1", &["a"]);
    let why = host.refusal(request);
    assert!(
        why.contains("was held by agent-2") && why.ends_with("`extvol free ebs/a --detached agent-2`"),
        "{why}"
    );
    // Its host proved that it writes no more: then the storage's own refusal is enough.
    host.etcd.owe("a", "agent-2", false);
    host.prepare("c2", &["a"]);
    assert_eq!(host.steps(), [acquire(&["a"]), Step::Mount("a".into())]);
}

#[test]
fn a_person_is_told_of_each_host_that_owes() {
    let mut host = Host::with(Etcd::new(), |settings| settings.fencing_required = true);
    host.etcd.hold_elsewhere("agent-3", "a");
    host.etcd.owes_too("a", "agent-2");
    host.etcd.end_elsewhere("agent-3");
    let request = host.prepare("c1", &["a"]);
    let why = host.refusal(request);
    assert!(why.contains("was held by agent-2 or agent-3"), "{why}");
    assert!(why.ends_with("`extvol free ebs/a --detached agent-2`, once for each of them"), "{why}");
}

#[test]
fn a_take_away_that_fails_holds_no_lease_for_which_nobody_waits() {
    for fault in [refused(), MountFault::Unreachable("no socket".into())] {
        let mut host = Host::with(Etcd::new(), takes_away);
        host.etcd.owe("a", "agent-2", true);
        let request = host.prepare("c1", &["a"]);
        assert_eq!(host.steps(), [acquire(&["a"]), Step::Settle("a".into())]);
        host.settles("a", Err(fault.clone()));
        // As long as somebody waits, it is asked again.
        host.later(PAUSE);
        assert_eq!(host.steps(), [Step::Settle("a".into())]);
        host.settles("a", Err(fault));
        host.later(PREPARE);
        assert!(host.refusal(request).contains("the storage has not yet taken from its last host"));
        while host.calls().iter().any(|(_, step)| matches!(step, Step::Settle(_))) {
            host.settles("a", Err(refused()));
            host.later(PAUSE);
        }
        // A taker without such a plugin waits for nothing: what may still land is waited for here.
        assert!(!host.steps().contains(&release("a")));
        host.later(SETTLE);
        assert_eq!(host.steps(), [record("a", Stage::Detaching, &[]), Step::Unmount("a".into())]);
        host.unmounts("a", Err(UnmountFault::Refused("resource not found".into())));
        host.finds("a", Idleness::Proved);
        assert_eq!(host.steps(), [Step::Prove("a".into()), release("a")]);
        assert_eq!(owing(&host).as_deref(), Some("agent-2"));
        // Whoever takes it next has the storage take it away again.
        host.prepare("c2", &["a"]);
        assert_eq!(host.steps(), [acquire(&["a"]), Step::Settle("a".into())]);
    }
}

#[test]
fn what_a_host_owes_and_cannot_give_back_is_left_to_others() {
    for fault in [MountFault::Unreachable("no socket".into()), MountFault::Unresolved("no words".into())] {
        let mut host = Host::new();
        host.prepared("c1", &["a"]);
        host.etcd.owe("a", ME, true);
        host.reboot();
        host.steps();
        let unresolved = matches!(fault, MountFault::Unresolved(_));
        let mut asked = 0;
        while host.calls().iter().any(|(_, step)| matches!(step, Step::Mount(_))) {
            asked += 1;
            assert!(asked < 20, "the lease is never left");
            host.mounts("a", Err(fault.clone()));
            host.later(if unresolved { PAUSE } else { PAUSE * 6 });
        }
        // A plugin may come up minutes after the keeper: pauses of up to a minute, each twice the one before.
        assert!(asked >= if unresolved { 5 } else { 8 }, "asked {asked} times");
        // An unanswered call may still land.
        let unmounts = |host: &mut Host| host.steps().contains(&Step::Unmount("a".into()));
        assert_eq!(unmounts(&mut host), !unresolved);
        host.later(SETTLE);
        assert_eq!(unmounts(&mut host), unresolved);
        host.unmounts("a", Err(UnmountFault::Unreachable("no socket".into())));
        host.finds("a", Idleness::Proved);
        assert_eq!(owing(&host).as_deref(), Some(ME));
        assert!(host.is_bare());
    }
}

/// A host whose Mount came to no known end: RexRay's task ends after 60 s, and its attach goes on.
pub(crate) fn owing_its_mount(etcd: Etcd) -> Host {
    let mut host = Host::with(etcd, |_| {});
    host.prepare("c1", &["a"]);
    host.mounts("a", Err(MountFault::Unresolved("no words".into())));
    refused_at_last(&mut host);
    host.unmounts("a", Err(UnmountFault::Refused("resource not found".into())));
    host.finds("a", Idleness::Proved);
    host
}

#[test]
fn a_mount_of_which_nobody_knows_the_end_is_owed_by_the_host_that_asked_for_it() {
    let mut host = owing_its_mount(Etcd::new());
    assert_eq!(owing(&host).as_deref(), Some(ME));
    assert!(host.all_steps().iter().any(
        |step| matches!(step, Step::Warn(line) if line.contains("may still have it attached to this host"))
    ));
    // It is asked for here again, and mounted: it was attached here.
    host.prepare("c2", &["a"]);
    host.until_quiet();
    host.cleanup("c2");
    host.until_quiet();
    assert_eq!(owing(&host), None);
}

#[test]
fn two_hosts_may_owe_one_volume() {
    let mut etcd = Etcd::new();
    etcd.owe("a", "agent-2", true);
    let host = owing_its_mount(etcd);
    assert_eq!(owing(&host).as_deref(), Some("agent-1 or agent-2"));
    assert!(host.etcd.owed("a").is_some_and(|owed| owed.by_time));
}

#[test]
fn the_lease_of_a_host_that_was_fenced_and_lives_is_left_to_it() {
    let mut host = Host::new();
    host.etcd.hold_elsewhere("agent-2", "a");
    host.etcd.reopen_elsewhere("agent-2");
    let request = host.prepare("c1", &["a"]);
    assert_eq!(host.steps(), []);
    host.later(PREPARE);
    let why = host.refusal(request);
    assert!(why.contains("agent-2, which was fenced, lives, and is about to give it back"), "{why}");
    // It dies before it has: then nobody else will.
    host.etcd.end_elsewhere("agent-2");
    host.prepare("c2", &["a"]);
    assert_eq!(host.steps(), [acquire(&["a"]), Step::Mount("a".into())]);
    // And a storage that takes volumes away needs not wait.
    let mut host = Host::with(Etcd::new(), takes_away);
    host.etcd.hold_elsewhere("agent-2", "a");
    host.etcd.reopen_elsewhere("agent-2");
    host.prepare("c1", &["a"]);
    assert_eq!(host.steps(), [acquire(&["a"]), Step::Settle("a".into())]);
}

#[test]
fn a_fenced_host_that_lives_gives_its_volumes_back_through_the_driver_in_its_next_epoch() {
    let mut host = Host::new();
    host.prepared("c1", &["a", "b"]);
    host.isolate("c1");
    host.give(Input::Flagged);
    place(&host.steps(), |step| matches!(step, Step::Fence(_)));
    host.fence_is_proved();
    host.later(PAUSE);
    // It was never dead in between: nobody else was let to a volume that is attached here.
    let session = host.etcd.session(ME);
    assert_eq!((session.epoch, session.state), (Epoch(2), SessionState::Live));
    let steps = host.until_quiet();
    for name in ["a", "b"] {
        let unmount = place(&steps, |step| *step == Step::Unmount(name.into()));
        assert!(unmount < place(&steps, |step| *step == release(name)), "{steps:#?}");
    }
    assert!(host.is_bare());
    assert_eq!(owing(&host), None);
}

#[test]
fn what_a_host_lost_and_still_owes_it_gives_back_when_it_opens_an_epoch() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.etcd.owe("a", ME, true);
    host.etcd.owe("b", "agent-2", true);
    host.reboot();
    let steps = host.until_quiet();
    // Nothing was under way: nothing is waited for.
    assert_eq!(steps[..3], [acquire(&["a"]), record("a", Stage::Attaching, &[]), Step::Mount("a".into())]);
    let unmount = place(&steps, |step| *step == Step::Unmount("a".into()));
    assert!(unmount < place(&steps, |step| *step == release("a")), "{steps:#?}");
    assert_eq!(owing(&host), None);
    assert_eq!(host.etcd.owed("b").map(Owed::hosts).as_deref(), Some("agent-2"));
    assert!(host.is_bare());
}

#[test]
fn a_container_that_was_never_started_ends_with_the_revoke_and_its_volume_is_given_back() {
    for revoke in [
        |host: &mut Host| host.etcd.revoke_session(ME, "its agent was given up"),
        |host: &mut Host| host.etcd.revoke_volume("a", "maintenance"),
    ] {
        let mut host = Host::new();
        host.prepared("c1", &["a"]);
        revoke(&mut host);
        host.later(Duration::from_secs(2));
        assert!(host.core.users().is_empty());
        let steps = host.until_quiet();
        let unmount = place(&steps, |step| *step == Step::Unmount("a".into()));
        assert!(unmount < place(&steps, |step| *step == release("a")), "{steps:#?}");
        // It is let go no more.
        let request = host.isolate("c1");
        assert!(host.refusal(request).contains("does not know container c1"));
        host.later(GRACE * 2);
        let harmed = |step: &Step| matches!(step, Step::Kill(_) | Step::Fence(_));
        assert!(!host.steps().iter().any(harmed));
    }
}
