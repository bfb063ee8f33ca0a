//! Unmounting, the proof that a device is idle, and the release of its lease.

use protocol::exchange::{Key, Owed, Stage};
use std::collections::BTreeSet;

use protocol::holder::{Idleness, MountFault, UnmountFault};
use protocol::holder::{Input, Sight};
use protocol::volume::Driver;

use crate::etcd::{Etcd, holder};
use crate::host::{
    AGENT, Host, ME, PAUSE, PREPARE, SETTLE, Step, acquire, container, place, record, release,
};

/// A host whose only container has ended, and whose driver is unmounting.
fn unmounting() -> Host {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.cleanup("c1");
    assert_eq!(host.steps(), [record("a", Stage::Detaching, &[]), Step::Unmount("a".into())]);
    host
}

#[test]
fn a_lease_is_released_only_when_the_device_was_proved_idle() {
    let mut host = unmounting();
    host.unmounts("a", Ok(()));
    // Pinned by another mount namespace: asked again, the driver is left alone, the lease stays.
    for _ in 0..5 {
        assert_eq!(host.steps(), [Step::Prove("a".into())]);
        host.finds("a", Idleness::Pinned("pid 77".into()));
        host.later(PAUSE);
    }
    assert_eq!(host.steps(), [Step::Prove("a".into())]);
    host.finds("a", Idleness::Unknown("no answer".into()));
    host.later(PAUSE);
    assert_eq!(host.steps(), [Step::Prove("a".into())]);
    host.finds("a", Idleness::Proved);
    assert_eq!(host.steps(), [release("a")]);
    assert!(host.is_bare());
}

#[test]
fn a_driver_that_did_not_unmount_is_asked_again_only_after_the_lease_was_confirmed_again() {
    let mut host = unmounting();
    host.unmounts("a", Err(UnmountFault::Refused("busy".into())));
    host.finds("a", Idleness::Mounted);
    host.steps();
    host.later(PAUSE);
    assert_eq!(host.steps(), [record("a", Stage::Detaching, &[]), Step::Unmount("a".into())]);
}

#[test]
fn an_unmount_is_never_sent_once_the_lease_is_lost() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.etcd.hold_elsewhere("agent-2", "a");
    host.cleanup("c1");
    let steps = host.steps();
    assert!(matches!(&steps[..], [Step::Fence(why)] if why.contains("another holder")), "{steps:#?}");
    host.later(PAUSE * 6);
    assert_eq!(host.steps(), []);
}

#[test]
fn a_lost_lease_fences_the_host_and_limits_the_containers_that_use_it() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.prepare("c2", &["a"]);
    host.etcd.hold_elsewhere("agent-2", "a");
    host.succeed("a");
    let steps = host.steps();
    let limited = |name: &str| steps.iter().any(|step| matches!(step, Step::Limit(it, _) if it == name));
    assert!(limited("c1") && limited("c2"), "{steps:#?}");
    place(&steps, |step| matches!(step, Step::Fence(_)));
}

#[test]
fn a_prepare_waits_while_the_volume_is_being_released_and_then_takes_it_anew() {
    let mut host = unmounting();
    let request = host.prepare("c2", &["a"]);
    assert_eq!(host.steps(), []);
    let steps = host.until_quiet();
    let anew = place(&steps, |step| *step == acquire(&["a"]));
    assert!(place(&steps, |step| *step == release("a")) < anew, "{steps:#?}");
    place(&steps, |step| matches!(step, Step::Ready(number, _) if *number == request));
}

#[test]
fn an_unmount_without_an_answer_may_still_detach_whoever_comes_next() {
    let mut host = unmounting();
    host.unmounts("a", Err(UnmountFault::Unresolved("no answer within 60 s".into())));
    let request = host.prepare("c2", &["a"]);
    host.later(PAUSE);
    // Nor is it asked again meanwhile: that would be a second call beside the first.
    assert_eq!(host.until_quiet(), []);
    host.later(PAUSE);
    assert_eq!(host.steps(), []);
    host.later(SETTLE);
    let steps = host.until_quiet();
    // It waited too long, and was told for what.
    let told = |why: &String| why.contains("its last use is not over for volume ebs/a");
    place(&steps, |step| matches!(step, Step::Refused(number, why) if *number == request && told(why)));
    let prove = place(&steps, |step| matches!(step, Step::Prove(_)));
    assert!(prove < place(&steps, |step| *step == release("a")), "{steps:#?}");
    assert!(host.is_bare());
}

#[test]
fn a_worker_that_is_killed_during_an_unmount_leaves_a_note_and_the_next_one_waits_for_its_end() {
    let mut host = unmounting();
    host.restart();
    // The plugin may still be at the call of before.
    assert_eq!(host.until_quiet(), []);
    host.restart();
    assert_eq!(host.until_quiet(), []);
    host.later(SETTLE);
    let steps = host.until_quiet();
    let prove = place(&steps, |step| matches!(step, Step::Prove(_)));
    assert!(prove < place(&steps, |step| *step == release("a")), "{steps:#?}");
    assert!(host.is_bare());
}

#[test]
fn a_volume_that_the_driver_cannot_detach_is_asked_for_again_before_it_is_released() {
    let mut host = unmounting();
    let mut unmounts = 0;
    for _ in 0..20 {
        match host.calls().first().map(|(_, step)| step.clone()) {
            Some(Step::Unmount(_)) => {
                unmounts += 1;
                host.unmounts("a", Err(UnmountFault::Refused("throttled".into())));
            }
            Some(Step::Prove(_)) => {
                host.finds("a", Idleness::ProvedAttached);
                host.later(PAUSE);
            }
            _ => break,
        }
    }
    assert_eq!(unmounts, 6);
    assert_eq!(host.etcd.owed("a").map(Owed::hosts).as_deref(), Some(ME));
    assert!(host.steps().contains(&release("a")));
    assert!(host.is_bare());
}

#[test]
fn a_yes_that_left_the_mount_is_no_detach() {
    let mut host = unmounting();
    // RexRay counts Mounts, and says yes to an Unmount that it only counted down.
    host.unmounts("a", Ok(()));
    host.finds("a", Idleness::Mounted);
    host.later(PAUSE);
    for _ in 0..20 {
        match host.calls().first().map(|(_, step)| step.clone()) {
            Some(Step::Unmount(_)) => host.unmounts("a", Err(UnmountFault::Refused("throttled".into()))),
            Some(Step::Prove(_)) => {
                host.finds("a", Idleness::ProvedAttached);
                host.later(PAUSE);
            }
            _ => break,
        }
    }
    assert!(host.steps().contains(&release("a")));
    assert_eq!(host.etcd.owed("a").map(Owed::hosts).as_deref(), Some(ME));
}

#[test]
fn a_volume_whose_container_seems_to_have_ended_is_looked_for_elsewhere_before_it_is_unmounted() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.give(Input::Ended { container: container("c1") });
    for _ in 0..3 {
        assert_eq!(host.steps(), [Step::Look("a".into())]);
        host.sees("a", Sight::Mounted { elsewhere: Some("process 77 (sh)".into()) });
        host.later(PAUSE);
    }
    host.until_quiet();
    assert!(host.is_bare());
}

#[test]
fn mesos_word_that_a_container_has_ended_ends_the_doubt() {
    for tell in [|host: &mut Host| host.cleanup("c1"), |host: &mut Host| host.recover(AGENT, &[], &[])] {
        let mut host = Host::new();
        host.prepared("c1", &["a"]);
        host.give(Input::Ended { container: container("c1") });
        for _ in 0..2 {
            assert_eq!(host.steps(), [Step::Look("a".into())]);
            host.sees("a", Sight::Mounted { elsewhere: Some("process 77 (sh)".into()) });
            // Only its own agent knows.
            host.cleanup_by("c1", "another agent");
            host.later(PAUSE);
        }
        tell(&mut host);
        assert_eq!(host.steps(), [Step::Look("a".into())]);
        host.sees("a", Sight::Mounted { elsewhere: Some("process 77 (sh)".into()) });
        assert_eq!(host.steps(), [record("a", Stage::Detaching, &[]), Step::Unmount("a".into())]);
        host.unmounts("a", Ok(()));
        host.until_quiet();
        assert!(host.is_bare());
    }
}

/// A host that waits for the storage to take `a` from a dead host.
fn taking_away() -> Host {
    let mut host = Host::with(Etcd::new(), |settings| {
        settings.storage_fencing = BTreeSet::from([Driver::new("ebs").unwrap()]);
    });
    host.etcd.hold_elsewhere("agent-2", "a");
    host.etcd.end_elsewhere("agent-2");
    host.prepare("c1", &["a"]);
    assert_eq!(host.steps(), [acquire(&["a"]), Step::Settle("a".into())]);
    host
}

#[test]
fn what_a_take_away_has_mounted_is_unmounted_and_proved_though_nobody_needs_it_any_more() {
    let mut host = taking_away();
    host.cleanup("c1");
    let steps = host.until_quiet();
    let at = |wanted: Step| place(&steps, |step| *step == wanted);
    assert!(at(Step::Unmount("a".into())) < at(Step::Prove("a".into())), "{steps:#?}");
    assert!(at(Step::Prove("a".into())) < at(release("a")), "{steps:#?}");
    assert!(host.is_bare());
}

#[test]
fn a_take_away_without_an_answer_is_waited_for_before_the_lease_is_released() {
    let mut host = taking_away();
    host.settles("a", Err(MountFault::Unresolved("no answer".into())));
    host.cleanup("c1");
    let began = host.now;
    while host.etcd.lease("a").is_some_and(|held| held.holder.as_str() == ME) {
        host.later(PAUSE);
        host.until_quiet();
    }
    assert!(host.now - began >= SETTLE);
    assert!(host.is_bare());
}

#[test]
fn a_task_is_told_what_the_plugin_said_that_did_not_take_its_volume_away() {
    let mut host = taking_away();
    host.settles("a", Err(MountFault::Unresolved("no answer from the plugin rexray".into())));
    host.later(PREPARE);
    let why = host.steps();
    let told = |why: &String| why.ends_with("(no answer from the plugin rexray)");
    place(&why, |step| matches!(step, Step::Refused(_, why) if told(why)));
}

#[test]
fn what_was_read_before_a_release_does_not_bring_the_lease_back() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.cleanup("c1");
    host.steps();
    host.unmounts("a", Ok(()));
    host.held_back = Some(|step| matches!(step, Step::Release(_)));
    host.finds("a", Idleness::Proved);
    host.readings_are_late = true;
    host.give(Input::Changed(Key::Session(holder(ME))));
    host.let_through();
    assert!(host.core.volumes().is_empty() && host.etcd.lease("a").is_none());
    // Another host takes it, and a container here waits for it.
    host.etcd.hold_elsewhere("agent-2", "a");
    host.prepare("c2", &["a"]);
    host.readings_arrive();
    let steps = host.until_quiet();
    let harmed = |step: &Step| matches!(step, Step::Mount(_) | Step::Fence(_));
    assert!(!steps.iter().any(harmed), "{steps:#?}");
    assert!(host.core.volumes().is_empty());
}

#[test]
fn what_is_in_doubt_is_in_doubt_for_the_next_worker_too() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.give(Input::Ended { container: container("c1") });
    host.restart();
    assert_eq!(host.steps(), [Step::Look("a".into())]);
    host.sees("a", Sight::Mounted { elsewhere: Some("process 77 (sh)".into()) });
    host.later(PAUSE);
    assert_eq!(host.steps(), [Step::Look("a".into())]);
    host.until_quiet();
    assert!(host.is_bare());
}
