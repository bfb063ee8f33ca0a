//! Leases and mounts.

use std::time::Duration;

use protocol::exchange::{Owed, Stage};
use protocol::holder::{Idleness, MountFault, Phase, Sight, UnmountFault};

use crate::host::{
    Host, ME, PAUSE, PREPARE, SETTLE, Step, acquire, container, mount, place, record, release, volume,
};

const SECOND: Duration = Duration::from_secs(1);

/// A host whose container `c1` waits for its Mount, with the request.
fn mounting() -> (Host, u64) {
    let mut host = Host::new();
    let request = host.prepare("c1", &["a"]);
    assert_eq!(host.steps(), [acquire(&["a"]), Step::Mount("a".into())]);
    (host, request)
}

fn unanswered() -> MountFault {
    MountFault::Unresolved("no answer within 120 s".into())
}

#[test]
fn all_volumes_of_a_container_are_acquired_at_once_and_mounted_after() {
    let mut host = Host::new();
    let request = host.prepare("c1", &["a", "b"]);
    assert_eq!(host.steps(), [acquire(&["a", "b"]), Step::Mount("a".into()), Step::Mount("b".into())]);
    host.mounts("b", Ok(mount("b")));
    host.mounts("a", Ok(mount("a")));
    let mount_points = vec!["/mnt/a/data".to_owned(), "/mnt/b/data".to_owned()];
    let steps = host.steps();
    assert!(steps.contains(&Step::Ready(request, mount_points)), "{steps:#?}");
    assert!(steps.contains(&record("a", Stage::Attached, &["c1"])), "{steps:#?}");
}

#[test]
fn a_refused_lease_is_the_answer_and_leaves_nothing() {
    let mut host = Host::impatient();
    host.etcd.hold_elsewhere("agent-2", "a");
    let request = host.prepare("c1", &["a", "b"]);
    let why = host.refusal(request);
    assert!(why.contains("volume ebs/a is held by agent-2"), "{why}");
    assert!(host.is_bare());
}

#[test]
fn when_the_second_mount_fails_the_first_is_undone_and_both_leases_are_released() {
    let mut host = Host::new();
    let request = host.prepare("c1", &["a", "b"]);
    host.mounts("a", Ok(mount("a")));
    host.mounts("b", Err(MountFault::Refused("not found".into())));
    let why = host.refusal(request);
    assert!(why.contains("ebs/b") && why.contains("not found"), "{why}");
    let steps = host.until_quiet();
    assert!(steps.contains(&release("a")) && steps.contains(&release("b")), "{steps:#?}");
    assert!(host.is_bare());
}

#[test]
fn two_containers_share_one_mount_and_the_last_one_releases_it() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    let request = host.prepare("c2", &["a"]);
    let steps = host.until_quiet();
    place(&steps, |step| matches!(step, Step::Ready(number, _) if *number == request));
    assert!(!steps.iter().any(|step| matches!(step, Step::Mount(_) | Step::Acquire(_))), "{steps:#?}");
    host.cleanup("c1");
    assert_eq!(host.until_quiet(), [record("a", Stage::Attached, &["c2"])]);
    host.cleanup("c2");
    host.until_quiet();
    assert!(host.is_bare());
}

#[test]
fn a_prepare_that_is_not_ready_in_time_is_refused_with_what_it_waits_for() {
    let (mut host, request) = mounting();
    host.later(PREPARE);
    let why = host.refusal(request);
    assert!(why.contains("45 s") && why.contains("the driver has not yet mounted volume ebs/a"), "{why}");
    // The driver's late yes is undone.
    host.mounts("a", Ok(mount("a")));
    host.until_quiet();
    assert!(host.is_bare());
}

#[test]
fn an_unanswered_mount_is_asked_again_until_it_is_answered_each_time_under_a_confirmed_lease() {
    let (mut host, request) = mounting();
    host.mounts("a", Err(unanswered()));
    assert!(host.refusal(request).contains("no answer within 120 s"));
    for _ in 0..3 {
        host.later(PAUSE);
        // It no longer names the container that failed.
        assert_eq!(host.steps(), [record("a", Stage::Attaching, &[]), Step::Mount("a".into())]);
        host.mounts("a", Err(unanswered()));
    }
    host.later(PAUSE);
    let steps = host.until_quiet();
    // Mounted and not needed; yet one of the calls may still be under way, and mount it behind an Unmount.
    let early = |step: &Step| matches!(step, Step::Unmount(_) | Step::Release(_));
    assert!(!steps.iter().any(early), "{steps:#?}");
    host.later(SETTLE);
    let steps = host.until_quiet();
    let unmount = place(&steps, |step| matches!(step, Step::Unmount(_)));
    let prove = place(&steps, |step| matches!(step, Step::Prove(_)));
    assert!(unmount < prove && prove < place(&steps, |step| *step == release("a")), "{steps:#?}");
    assert!(host.is_bare());
}

#[test]
fn a_mount_that_never_answers_is_given_up_once_nobody_waits_and_its_last_call_has_settled() {
    let (mut host, _) = mounting();
    let (mut asked, mut since) = (0, host.now);
    while host.calls().iter().any(|(_, step)| matches!(step, Step::Mount(_))) {
        asked += 1;
        assert!(asked < 20, "it is asked for ever");
        since = host.now;
        host.mounts("a", Err(unanswered()));
        host.later(PAUSE);
    }
    assert!(asked >= 5, "asked {asked} times");
    host.steps();
    // The call may still mount it: it is neither unmounted nor released before, and nobody joins.
    host.later(SETTLE - (host.now - since) - SECOND);
    assert_eq!(host.steps(), []);
    let request = host.prepare("c2", &["a"]);
    host.later(SECOND * 2);
    assert_eq!(host.steps(), [record("a", Stage::Detaching, &[]), Step::Unmount("a".into())]);
    host.unmounts("a", Err(UnmountFault::Refused("resource not found".into())));
    assert_eq!(host.steps(), [Step::Prove("a".into())]);
    host.finds("a", Idleness::Proved);
    // The storage may have attached it all the same. It is had anew here, and mounted.
    assert_eq!(host.steps(), [release("a"), acquire(&["a"]), Step::Mount("a".into())]);
    assert_eq!(
        host.etcd.lease("a").and_then(|held| held.owed.as_ref()).map(Owed::hosts).as_deref(),
        Some(ME)
    );
    let steps = host.until_quiet();
    place(&steps, |step| matches!(step, Step::Ready(number, _) if *number == request));
}

#[test]
fn a_lease_does_not_say_attached_while_an_unanswered_mount_may_still_happen() {
    let (mut host, _) = mounting();
    host.mounts("a", Err(unanswered()));
    host.prepare("c2", &["a"]);
    host.later(PAUSE);
    let steps = host.until_quiet();
    place(&steps, |step| matches!(step, Step::Ready(..)));
    assert_eq!(steps.last(), Some(&record("a", Stage::Attaching, &["c2"])), "{steps:#?}");
    host.later(SETTLE);
    assert_eq!(host.steps(), [record("a", Stage::Attached, &["c2"])]);
}

#[test]
fn a_mount_that_waits_for_its_lease_to_be_confirmed_says_so() {
    let (mut host, _) = mounting();
    host.mounts("a", Err(unanswered()));
    let request = host.prepare("c2", &["a"]);
    host.held_back = Some(|step| matches!(step, Step::Record(..)));
    host.later(PREPARE);
    let why = host.refusal(request);
    assert!(why.contains("etcd has not yet confirmed the lease of volume ebs/a"), "{why}");
    assert_eq!(host.calls(), []);
}

#[test]
fn a_refusal_behind_an_unanswered_mount_counts_only_once_that_has_settled() {
    let (mut host, request) = mounting();
    let since = host.now;
    host.mounts("a", Err(unanswered()));
    host.refusal(request);
    for _ in 0..20 {
        if !matches!(host.core.volumes()[&volume("a")].phase, Phase::Mounting { .. }) {
            break;
        }
        host.later(PAUSE);
        host.mounts("a", Err(MountFault::Refused("resource not found".into())));
    }
    assert!(host.now >= since + SETTLE, "{:?}", host.now - since);
    host.until_quiet();
    assert!(host.is_bare());
}

#[test]
fn what_is_mounted_where_it_cannot_be_used_is_unmounted_and_proved_idle_as_what_it_is() {
    let (mut host, request) = mounting();
    let mounted = mount("elsewhere");
    let why = "not below mount_roots".into();
    host.mounts("a", Err(MountFault::Unusable { why, mounted: Some(Box::new(mounted.clone())) }));
    assert!(host.refusal(request).contains("not below mount_roots"));
    assert_eq!(host.core.volumes()[&volume("a")].mounted(), Some(&mounted));
    let steps = host.until_quiet();
    let unmount = place(&steps, |step| matches!(step, Step::Prove(_)));
    assert!(unmount < place(&steps, |step| *step == release("a")), "{steps:#?}");
    assert!(host.is_bare());
}

#[test]
fn a_volume_that_was_never_mounted_here_is_given_back_when_its_driver_cannot_be_reached() {
    let (mut host, request) = mounting();
    host.mounts("a", Err(MountFault::Unreachable("no such plugin".into())));
    assert!(host.refusal(request).contains("no such plugin"));
    host.until_quiet();
    assert!(host.is_bare());
}

#[test]
fn a_container_that_joins_finds_a_volume_that_somebody_unmounted_gone_and_so_do_its_users() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    let request = host.prepare("c2", &["a"]);
    assert_eq!(host.steps(), [Step::Look("a".into())]);
    host.sees("a", Sight::Gone("/mnt/a/data is on /dev/vda now".into()));
    let steps = host.steps();
    place(&steps, |step| matches!(step, Step::Refused(r, why) if *r == request && why.contains("back")));
    place(&steps, |step| matches!(step, Step::Limit(name, _) if name == "c1"));
    // Until the last user has ended nobody joins; then it is released and had anew.
    let request = host.prepare("c3", &["a"]);
    let steps = host.until_quiet();
    assert!(!steps.iter().any(|step| matches!(step, Step::Mount(_) | Step::Unmount(_))), "{steps:#?}");
    host.cleanup("c1");
    let steps = host.until_quiet();
    let anew = place(&steps, |step| *step == acquire(&["a"]));
    assert!(place(&steps, |step| *step == release("a")) < anew, "{steps:#?}");
    place(&steps, |step| matches!(step, Step::Ready(number, _) if *number == request));
}

#[test]
fn a_mount_that_cannot_be_looked_at_is_handed_to_nobody_until_it_can() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    let request = host.prepare("c2", &["a"]);
    for _ in 0..2 {
        assert_eq!(host.steps(), [Step::Look("a".into())]);
        host.sees("a", Sight::Unknown("it hangs".into()));
        host.later(PAUSE);
    }
    let steps = host.until_quiet();
    place(&steps, |step| matches!(step, Step::Ready(number, _) if *number == request));
}

#[test]
fn one_who_only_joined_an_acquire_is_not_refused_for_a_volume_that_he_did_not_want() {
    let mut host = Host::impatient();
    host.etcd.hold_elsewhere("agent-2", "b");
    // Both ask before anything is read of the leases.
    host.held_back = Some(|step| *step == Step::Beat);
    let both = host.prepare("c1", &["a", "b"]);
    let one = host.prepare("c2", &["a"]);
    assert_eq!(host.steps(), []);
    host.let_through();
    let steps = host.until_quiet();
    place(&steps, |step| matches!(step, Step::Refused(number, _) if *number == both));
    place(&steps, |step| matches!(step, Step::Ready(number, _) if *number == one));
    assert_eq!(steps.iter().filter(|step| matches!(step, Step::Acquire(_))).count(), 1, "{steps:#?}");
    place(&steps, |step| *step == acquire(&["a"]));
}

#[test]
fn a_lease_that_came_too_late_is_given_back_without_a_driver_call() {
    let mut host = Host::new();
    host.held_back = Some(|step| matches!(step, Step::Acquire(_)));
    host.prepare("c1", &["a"]);
    host.cleanup("c1");
    host.steps();
    host.let_through();
    assert_eq!(host.steps(), [acquire(&["a"]), release("a")]);
    assert!(host.is_bare());
}

#[test]
fn a_container_may_name_one_volume_twice() {
    let mut host = Host::new();
    let request = host.prepare("c1", &["a", "a"]);
    let steps = host.until_quiet();
    let mount_points = vec!["/mnt/a/data".to_owned(); 2];
    assert!(steps.contains(&Step::Ready(request, mount_points)), "{steps:#?}");
    assert_eq!(host.core.containers()[&container("c1")].volumes.len(), 2);
}
