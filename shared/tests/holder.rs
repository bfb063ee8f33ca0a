//! The holder's core, driven by hand: what it asks for, in which order, and what it never does.

mod holder_host;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holder_host::{Host, TIMEOUT, container, mount, op_of, volume, wanted};
use shared::holder::{
    Answer, Core, FoundLease, Idleness, Input, LeaseFault, MountFault, Output, Phase, Request, Table,
};
use shared::record::Token;
use shared::store::Revision;

#[test]
fn all_volumes_of_a_container_are_acquired_at_once_and_mounted_after() {
    let mut host = Host::new();
    let request = host.prepare("c1", &["a", "b"]);
    let acquire = host.only();
    let Output::Acquire { op, volumes, .. } = &acquire else { panic!("{acquire:?}") };
    assert_eq!(*volumes, [volume("a"), volume("b")]);
    host.give(Input::Acquired(*op, Ok(Token(Revision(7)))));
    let mounts = host.outputs();
    assert!(matches!(&mounts[..], [Output::Mount { .. }, Output::Mount { .. }]), "{mounts:?}");
    host.give(Input::Mounted(op_of(&mounts[1]), Ok(mount("b"))));
    host.give(Input::Mounted(op_of(&mounts[0]), Ok(mount("a"))));
    host.give(Input::Tick);
    let mount_points = vec!["/mnt/a/data".to_owned(), "/mnt/b/data".to_owned()];
    let answer = Output::Reply(request, Ok(Answer::Prepared { mount_points }));
    assert!(host.outputs().contains(&answer));
}

#[test]
fn a_refused_lease_is_the_answer_and_leaves_nothing() {
    let mut host = Host::new();
    let request = host.prepare("c1", &["a", "b"]);
    let op = op_of(&host.only());
    host.give(Input::Acquired(op, Err("volume ebs/a is held by agent-2".into())));
    assert_eq!(host.refusal(request), "volume ebs/a is held by agent-2");
    assert_eq!(host.core.table(), Table::default());
}

#[test]
fn when_the_second_mount_fails_the_first_is_undone_and_both_leases_are_released() {
    let mut host = Host::new();
    let request = host.prepare("c1", &["a", "b"]);
    let op = op_of(&host.only());
    host.give(Input::Acquired(op, Ok(Token(Revision(7)))));
    let mounts = host.outputs();
    host.give(Input::Mounted(op_of(&mounts[0]), Ok(mount("a"))));
    host.give(Input::Mounted(op_of(&mounts[1]), Err(MountFault::Refused("not found".into()))));
    let outputs = host.outputs();
    let said = |o: &Output| {
        matches!(o, Output::Reply(r, Err(why))
            if *r == request && why.contains("ebs/b") && why.contains("not found"))
    };
    assert!(outputs.iter().any(said), "{outputs:?}");
    outputs.into_iter().for_each(|output| host.succeed(output));
    host.until_quiet();
    assert_eq!(host.core.table(), Table::default());
}

#[test]
fn two_containers_share_one_mount_and_the_last_one_releases_it() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    let request = host.prepare("c2", &["a"]);
    let outputs = host.outputs();
    assert!(outputs.iter().any(|o| matches!(o, Output::Reply(r, Ok(_)) if *r == request)));
    assert!(!outputs.iter().any(|o| matches!(o, Output::Mount { .. } | Output::Acquire { .. })));
    outputs.into_iter().for_each(|output| host.succeed(output));
    host.cleanup("c1");
    let after = host.outputs();
    let leaves = |o: &Output| matches!(o, Output::Unmount { .. } | Output::Record { detaching: true, .. });
    assert!(!after.iter().any(leaves), "{after:?}");
    after.into_iter().for_each(|output| host.succeed(output));
    host.cleanup("c2");
    host.until_quiet();
    assert!(host.core.volumes().is_empty());
}

#[test]
fn a_lease_is_released_only_when_the_device_was_proved_idle() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    let announce = host.ended("c1");
    host.give(Input::Written(op_of(&announce), Ok(())));
    let unmount = host.only();
    assert!(matches!(unmount, Output::Unmount { .. }));
    host.give(Input::Unmounted(op_of(&unmount), Ok(())));
    // Pinned by another mount namespace: asked again, the driver is left alone, the lease stays.
    for _ in 0..5 {
        let prove = host.only();
        assert!(matches!(prove, Output::ProveIdle { .. }), "{prove:?}");
        host.give(Input::Idle(op_of(&prove), Idleness::Pinned("pid 77".into())));
        host.later(Duration::from_secs(60));
    }
    let prove = host.only();
    host.give(Input::Idle(op_of(&prove), Idleness::Proved));
    assert!(matches!(host.only(), Output::Release { .. }));
}

#[test]
fn a_driver_that_did_not_unmount_is_asked_again_only_after_the_lease_was_confirmed_again() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    let announce = host.ended("c1");
    host.succeed(announce);
    let unmount = host.only();
    host.give(Input::Unmounted(op_of(&unmount), Err("busy".into())));
    let prove = host.only();
    host.give(Input::Idle(op_of(&prove), Idleness::Mounted));
    host.later(Duration::from_secs(60));
    let again = host.only();
    assert!(matches!(again, Output::Record { detaching: true, .. }), "{again:?}");
}

#[test]
fn an_unmount_is_never_sent_once_the_lease_is_lost() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    let announce = host.ended("c1");
    host.give(Input::Written(op_of(&announce), Err(LeaseFault::Lost("moved".into()))));
    host.later(Duration::from_secs(60));
    let outputs = host.outputs();
    assert!(outputs.iter().all(|o| matches!(o, Output::Warn(_))), "{outputs:?}");
}

#[test]
fn a_lost_lease_limits_the_containers_that_use_it() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.prepare("c2", &["a"]);
    let outputs = host.outputs();
    let record = outputs.iter().find(|o| matches!(o, Output::Record { .. })).unwrap();
    host.give(Input::Written(op_of(record), Err(LeaseFault::Lost("moved".into()))));
    let outputs = host.outputs();
    let limited = |name| {
        let id = container(name);
        outputs.iter().any(|o| matches!(o, Output::Limit { container, .. } if *container == id))
    };
    assert!(limited("c1") && limited("c2"), "{outputs:?}");
}

#[test]
fn a_prepare_waits_while_the_volume_is_being_released_and_then_takes_it_anew() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    let announce = host.ended("c1");
    let request = host.prepare("c2", &["a"]);
    assert_eq!(host.outputs(), []);
    host.succeed(announce);
    let seen = host.until_quiet();
    let release = seen.iter().position(|o| matches!(o, Output::Release { .. })).unwrap();
    let acquire = seen.iter().position(|o| matches!(o, Output::Acquire { .. })).unwrap();
    assert!(release < acquire);
    assert!(seen.iter().any(|o| matches!(o, Output::Reply(r, Ok(_)) if *r == request)));
}

#[test]
fn a_prepare_that_is_not_ready_in_time_is_refused_with_what_it_waits_for() {
    let mut host = Host::new();
    let request = host.prepare("c1", &["a"]);
    let op = op_of(&host.only());
    host.give(Input::Acquired(op, Ok(Token(Revision(7)))));
    let mount_op = op_of(&host.only());
    assert_eq!(host.core.next_deadline(), Some(TIMEOUT));
    host.later(TIMEOUT);
    let why = host.refusal(request);
    assert!(why.contains("45 s") && why.contains("the driver has not yet mounted volume ebs/a"), "{why}");
    // The driver's late yes is undone.
    host.give(Input::Mounted(mount_op, Ok(mount("a"))));
    host.until_quiet();
    assert_eq!(host.core.table(), Table::default());
}

#[test]
fn an_unanswered_mount_is_asked_again_until_it_is_answered() {
    let mut host = Host::new();
    let request = host.prepare("c1", &["a"]);
    let op = op_of(&host.only());
    host.give(Input::Acquired(op, Ok(Token(Revision(7)))));
    let op = op_of(&host.only());
    host.give(Input::Mounted(op, Err(MountFault::Unresolved("no answer within 120 s".into()))));
    assert!(host.refusal(request).contains("no answer within 120 s"));
    host.later(Duration::from_secs(60));
    let again = host.only();
    assert!(matches!(again, Output::Mount { .. }), "{again:?}");
    host.succeed(again);
    host.until_quiet();
    assert!(host.core.volumes().is_empty());
}

#[test]
fn without_a_session_nothing_is_done_and_the_refusal_says_why() {
    let mut core = Core::new(Table::default(), TIMEOUT);
    core.handle(Duration::ZERO, Input::NotOpened { why: "etcd is unavailable".into() });
    let input = Input::Prepare {
        request: Request(1),
        container: container("c1"),
        agent: String::new(),
        agent_id: None,
        volumes: vec![wanted("a")],
    };
    core.handle(Duration::ZERO, input);
    assert_eq!(core.poll_output(), None);
    core.handle(TIMEOUT, Input::Tick);
    let Some(Output::Reply(Request(1), Err(why))) = core.poll_output() else { panic!() };
    assert!(why.contains("etcd is unavailable"), "{why}");
}

fn found(mounted: bool, in_use: bool) -> BTreeMap<shared::volume::VolumeId, FoundLease> {
    let lease = FoundLease {
        token: Token(Revision(7)),
        containers: BTreeSet::from([container("c1")]),
        mounted: mounted.then(|| mount("a")),
        in_use,
    };
    BTreeMap::from([(volume("a"), lease)])
}

#[test]
fn a_restarted_keeper_goes_on_with_what_it_had() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    let stored = serde_json::to_vec(&host.core.table()).unwrap();
    let table: Table = serde_json::from_slice(&stored).unwrap();
    let mut host = Host::restored(table.clone(), found(true, true));
    // The record is written again; no driver call is made.
    let record = host.only();
    assert!(matches!(record, Output::Record { detaching: false, .. }), "{record:?}");
    host.succeed(record);
    assert_eq!(host.core.table(), table);
    host.cleanup("c1");
    host.until_quiet();
    assert!(host.core.volumes().is_empty());
}

#[test]
fn a_prepare_that_a_keeper_restart_interrupted_is_taken_up_when_it_is_asked_again() {
    let mut host = Host::new();
    host.prepare("c1", &["a"]);
    let op = op_of(&host.only());
    host.give(Input::Acquired(op, Ok(Token(Revision(7)))));
    let mut host = Host::restored(host.core.table(), found(false, false));
    let request = host.prepare("c1", &["a"]);
    let seen = host.until_quiet();
    assert!(seen.iter().any(|o| matches!(o, Output::Reply(r, Ok(_)) if *r == request)), "{seen:?}");
}

#[test]
fn a_lease_that_the_table_does_not_know_is_cleaned_up_unless_it_is_in_use() {
    let mut host = Host::restored(Table::default(), found(false, false));
    host.until_quiet();
    assert!(host.core.volumes().is_empty());
    let mut host = Host::restored(Table::default(), found(true, true));
    host.until_quiet();
    assert!(matches!(host.core.volumes()[&volume("a")].phase, Phase::Attached { .. }));
    host.cleanup("c1");
    host.until_quiet();
    assert!(host.core.volumes().is_empty());
}

#[test]
fn after_a_reboot_a_lease_is_kept_until_its_driver_can_be_asked() {
    let mut host = Host::restored(Table::default(), found(false, false));
    for _ in 0..3 {
        let op = op_of(&host.only());
        host.give(Input::Mounted(op, Err(MountFault::Unreachable("no socket yet".into()))));
        host.later(Duration::from_secs(60));
    }
    // A volume that was never mounted here is another matter.
    let mut fresh = Host::new();
    fresh.prepare("c1", &["a"]);
    let op = op_of(&fresh.only());
    fresh.give(Input::Acquired(op, Ok(Token(Revision(7)))));
    let op = op_of(&fresh.only());
    fresh.give(Input::Mounted(op, Err(MountFault::Unreachable("no such plugin".into()))));
    fresh.until_quiet();
    assert!(fresh.core.volumes().is_empty());
    host.until_quiet();
    assert!(host.core.volumes().is_empty());
}

#[test]
fn recovery_ends_containers_of_this_agent_that_it_does_not_know_and_no_others() {
    let mut host = Host::new();
    host.prepared("known", &["a"]);
    host.prepared("orphan", &["b"]);
    host.prepared("gone", &["c"]);
    let recover = |agent: &str| Input::Recover {
        request: Request(99),
        agent: agent.into(),
        known: BTreeSet::from([container("known")]),
        orphans: BTreeSet::from([container("orphan")]),
    };
    host.give(recover("10.0.0.2:5051"));
    host.until_quiet();
    assert_eq!(host.core.volumes().len(), 3);
    host.give(recover(holder_host::AGENT));
    host.until_quiet();
    assert_eq!(host.core.volumes().keys().collect::<Vec<_>>(), [&volume("a"), &volume("b")]);
}

#[test]
fn isolate_is_refused_for_a_container_that_was_not_prepared() {
    let mut host = Host::new();
    let (request, pid, cgroup) = (Request(50), 4, None);
    host.give(Input::Isolate { request, container: container("c1"), pid, cgroup });
    assert!(host.refusal(request).contains("does not know container c1"));
}
