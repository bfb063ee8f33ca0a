//! The holder's core, driven by hand: what it asks for, in which order, and what it never does.

mod holder_host;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holder_host::{AGENT, Host, LIMITS, SETTLE, TIMEOUT, container, mount, op_of, volume, wanted};
use shared::holder::{
    Answer, Core, FoundLease, Idleness, Input, LeaseFault, LeaseState, MountFault, Output, Phase, Request,
    Sight, Table, UnmountFault,
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
    let outputs = host.until_quiet();
    assert!(outputs.iter().any(|o| matches!(o, Output::Reply(r, Ok(_)) if *r == request)));
    assert!(!outputs.iter().any(|o| matches!(o, Output::Mount { .. } | Output::Acquire { .. })));
    host.cleanup("c1");
    let after = host.outputs();
    let leaves = |o: &Output| {
        matches!(o, Output::Unmount { .. } | Output::Record { state: LeaseState::Detaching, .. })
    };
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
    host.give(Input::Unmounted(op_of(&unmount), Err(UnmountFault::Refused("busy".into()))));
    let prove = host.only();
    host.give(Input::Idle(op_of(&prove), Idleness::Mounted));
    host.later(Duration::from_secs(60));
    let again = host.only();
    assert!(matches!(again, Output::Record { state: LeaseState::Detaching, .. }), "{again:?}");
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
    let look = host.only();
    host.succeed(look);
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

/// A host whose container waits for its Mount, with the request.
fn mounting() -> (Host, Request) {
    let mut host = Host::new();
    let request = host.prepare("c1", &["a"]);
    let op = op_of(&host.only());
    host.give(Input::Acquired(op, Ok(Token(Revision(7)))));
    (host, request)
}

#[test]
fn an_unanswered_mount_is_asked_again_until_it_is_answered_each_time_under_a_confirmed_lease() {
    let (mut host, request) = mounting();
    let op = op_of(&host.only());
    host.give(Input::Mounted(op, Err(MountFault::Unresolved("no answer within 120 s".into()))));
    assert!(host.refusal(request).contains("no answer within 120 s"));
    for _ in 0..3 {
        host.later(Duration::from_secs(10));
        let confirm = host.only();
        // It no longer names the container that failed.
        let Output::Record { state: LeaseState::Attaching, containers, .. } = &confirm else {
            panic!("{confirm:?}")
        };
        assert!(containers.is_empty());
        host.succeed(confirm);
        let again = host.only();
        assert!(matches!(again, Output::Mount { .. }), "{again:?}");
        host.give(Input::Mounted(op_of(&again), Err(MountFault::Unresolved("none".into()))));
    }
    host.later(Duration::from_secs(10));
    let seen = host.until_quiet();
    // Unmounted, yet one of the calls may still be under way.
    assert!(seen.iter().any(|o| matches!(o, Output::ProveIdle { .. })), "{seen:?}");
    assert!(!seen.iter().any(|o| matches!(o, Output::Release { .. })), "{seen:?}");
    host.later(SETTLE);
    // That call may have mounted it again meanwhile: unmounted and proved once more.
    let seen = host.until_quiet();
    let place = |wanted: fn(&Output) -> bool| seen.iter().position(wanted).unwrap();
    let unmount = place(|o| matches!(o, Output::Unmount { .. }));
    let prove = place(|o| matches!(o, Output::ProveIdle { .. }));
    assert!(unmount < prove && prove < place(|o| matches!(o, Output::Release { .. })), "{seen:?}");
    assert!(host.core.volumes().is_empty());
}

#[test]
fn a_container_that_is_never_isolated_does_not_keep_its_volume() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    let table = host.core.table();
    host.later(Duration::from_secs(14 * 60));
    assert_eq!(host.core.containers().len(), 1);
    host.later(Duration::from_secs(60));
    host.until_quiet();
    assert!(host.core.containers().is_empty() && host.core.volumes().is_empty());
    // A restart gives it the whole time again, and not more.
    let mut host = Host::restored(table.clone(), found(true, false));
    host.later(Duration::from_secs(15 * 60));
    host.until_quiet();
    assert!(host.core.volumes().is_empty());
    // One that was isolated stays as long as it likes.
    let mut host = Host::restored(table, found(true, false));
    let (request, agent, cgroup) = (Request(70), AGENT.to_owned(), Some("/m/c1".to_owned()));
    host.give(Input::Isolate { request, agent, container: container("c1"), pid: 4, cgroup });
    host.until_quiet();
    host.later(Duration::from_secs(100 * 3600));
    assert_eq!(host.core.containers().len(), 1);
}

#[test]
fn a_volume_whose_container_seems_to_have_ended_is_looked_for_elsewhere_before_it_is_unmounted() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.give(Input::Ended { container: container("c1") });
    for _ in 0..3 {
        let look = host.only();
        assert!(matches!(look, Output::Look { .. }), "{look:?}");
        let elsewhere = Some("process 77 (sh)".to_owned());
        host.give(Input::Seen(op_of(&look), Sight::Mounted { elsewhere }));
        host.later(Duration::from_secs(20));
    }
    host.until_quiet();
    assert!(host.core.volumes().is_empty());
}

#[test]
fn a_found_volume_that_could_not_be_looked_at_is_looked_for_before_the_driver_is_asked() {
    let mut found = found(false, true);
    found.get_mut(&volume("a")).unwrap().containers.clear();
    let mut host = Host::restored(Table::default(), found);
    let find = host.only();
    assert!(matches!(&find, Output::Find { mount_point, .. } if mount_point == "/mnt/a/data"), "{find:?}");
    host.give(Input::Found(op_of(&find), Err("no answer".into())));
    host.later(Duration::from_secs(20));
    let find = host.only();
    host.give(Input::Found(op_of(&find), Ok(Some((Box::new(mount("a")), true)))));
    let look = host.only();
    assert!(matches!(look, Output::Look { .. }), "{look:?}");
}

#[test]
fn a_volume_of_this_boot_without_a_note_is_not_released_because_the_driver_refuses_it() {
    let mut found = found(false, false);
    found.get_mut(&volume("a")).unwrap().same_boot = true;
    let mut host = Host::restored(Table::default(), found);
    for _ in 0..3 {
        let confirm = host.only();
        host.succeed(confirm);
        let op = op_of(&host.only());
        host.give(Input::Mounted(op, Err(MountFault::Refused("resource not found".into()))));
        host.later(Duration::from_secs(20));
    }
    host.until_quiet();
    assert!(host.core.volumes().is_empty());
}

#[test]
fn a_refusal_behind_an_unanswered_mount_counts_only_once_that_has_settled() {
    let (mut host, request) = mounting();
    let op = op_of(&host.only());
    host.give(Input::Mounted(op, Err(MountFault::Unresolved("none".into()))));
    host.refusal(request);
    host.later(Duration::from_secs(60));
    let confirm = host.only();
    host.succeed(confirm);
    let op = op_of(&host.only());
    host.give(Input::Mounted(op, Err(MountFault::Refused("resource not found".into()))));
    assert!(matches!(host.core.volumes()[&volume("a")].phase, Phase::Mounting { .. }));
    host.later(SETTLE);
    let confirm = host.only();
    host.succeed(confirm);
    let op = op_of(&host.only());
    host.give(Input::Mounted(op, Err(MountFault::Refused("resource not found".into()))));
    host.until_quiet();
    assert!(host.core.volumes().is_empty());
}

#[test]
fn an_unmount_without_an_answer_may_still_detach_whoever_comes_next() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    let announce = host.ended("c1");
    host.succeed(announce);
    let unmount = host.only();
    // A keeper that is killed now knows of the call from its table.
    let table = host.core.table();
    host.give(Input::Unmounted(
        op_of(&unmount),
        Err(UnmountFault::Unresolved("no answer within 60 s".into())),
    ));
    let request = host.prepare("c2", &["a"]);
    host.later(Duration::from_secs(10));
    let seen = host.until_quiet();
    assert!(!seen.iter().any(|o| matches!(o, Output::Release { .. } | Output::Acquire { .. })), "{seen:?}");
    host.later(Duration::from_secs(20));
    assert_eq!(host.outputs(), []);
    host.later(SETTLE);
    host.until_quiet();
    // It waited too long, and was told for what.
    assert!(!host.core.volumes().contains_key(&volume("a")), "{request:?}");

    let mut host = Host::restored(table, found(false, false));
    let seen = host.until_quiet();
    assert!(!seen.iter().any(|o| matches!(o, Output::Release { .. })), "{seen:?}");
    host.later(SETTLE);
    host.until_quiet();
    assert!(host.core.volumes().is_empty());
}

#[test]
fn a_volume_that_the_driver_cannot_detach_is_asked_for_again_before_it_is_released() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    let announce = host.ended("c1");
    host.succeed(announce);
    let mut unmounts = 0;
    let release = loop {
        let output = host.only();
        match &output {
            Output::Unmount { op, .. } => {
                unmounts += 1;
                host.give(Input::Unmounted(*op, Err(UnmountFault::Refused("throttled".into()))));
            }
            Output::ProveIdle { op, .. } => {
                host.give(Input::Idle(*op, Idleness::ProvedAttached));
                host.later(Duration::from_secs(20));
            }
            Output::Release { .. } => break output,
            _ => host.succeed(output),
        }
    };
    assert_eq!(unmounts, 6);
    host.succeed(release);
    assert!(host.core.volumes().is_empty());
}

#[test]
fn what_is_mounted_where_it_cannot_be_used_is_unmounted_and_proved_idle_as_what_it_is() {
    let (mut host, request) = mounting();
    let op = op_of(&host.only());
    let mounted = Some(mount("elsewhere"));
    let why = "not below mount_roots".into();
    host.give(Input::Mounted(op, Err(MountFault::Unusable { why, mounted: mounted.clone().map(Box::new) })));
    let outputs = host.outputs();
    let refused =
        |o: &Output| matches!(o, Output::Reply(r, Err(why)) if *r == request && why.contains("below"));
    assert!(outputs.iter().any(refused), "{outputs:?}");
    outputs.into_iter().for_each(|output| host.succeed(output));
    let seen = host.until_quiet();
    let proved = |o: &Output| matches!(o, Output::ProveIdle { mounted: m, .. } if *m == mounted);
    assert!(seen.iter().any(proved) && host.core.volumes().is_empty(), "{seen:?}");
}

#[test]
fn a_container_that_joins_finds_a_volume_that_somebody_unmounted_gone_and_so_do_its_users() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    let request = host.prepare("c2", &["a"]);
    let look = host.only();
    assert!(matches!(look, Output::Look { .. }), "{look:?}");
    host.give(Input::Seen(op_of(&look), Sight::Gone("/mnt/a/data is on /dev/vda now".into())));
    let outputs = host.outputs();
    let refused =
        |o: &Output| matches!(o, Output::Reply(r, Err(why)) if *r == request && why.contains("back"));
    let limited = |o: &Output| matches!(o, Output::Limit { container: id, .. } if *id == container("c1"));
    assert!(outputs.iter().any(refused) && outputs.iter().any(limited), "{outputs:?}");
    outputs.into_iter().for_each(|output| host.succeed(output));
    // Until the last user has ended nobody joins; then it is released and had anew.
    host.prepare("c3", &["a"]);
    assert!(!host.until_quiet().iter().any(|o| matches!(o, Output::Mount { .. } | Output::Unmount { .. })));
    host.cleanup("c1");
    let seen = host.until_quiet();
    assert!(seen.iter().any(|o| matches!(o, Output::Reply(_, Ok(Answer::Prepared { .. })))), "{seen:?}");
}

#[test]
fn one_who_only_joined_an_acquire_is_not_refused_for_a_volume_that_he_did_not_want() {
    let mut host = Host::new();
    let both = host.prepare("c1", &["a", "b"]);
    let op = op_of(&host.only());
    let one = host.prepare("c2", &["a"]);
    assert_eq!(host.outputs(), []);
    host.give(Input::Acquired(op, Err("volume ebs/b is held by agent-2".into())));
    let outputs = host.outputs();
    let refused = |request| outputs.iter().any(|o| matches!(o, Output::Reply(r, Err(_)) if *r == request));
    assert!(refused(both) && !refused(one), "{outputs:?}");
    let acquires =
        outputs.iter().filter(|o| matches!(o, Output::Acquire { volumes, .. } if volumes.len() == 1));
    assert_eq!(acquires.count(), 1);
}

#[test]
fn a_lease_that_came_too_late_is_given_back_without_a_driver_call() {
    let mut host = Host::new();
    host.prepare("c1", &["a"]);
    let op = op_of(&host.only());
    host.cleanup("c1");
    let _ = host.outputs();
    host.give(Input::Acquired(op, Ok(Token(Revision(7)))));
    let seen = host.until_quiet();
    assert!(matches!(&seen[..], [Output::Release { .. }]), "{seen:?}");
    assert!(host.core.volumes().is_empty());
}

#[test]
fn another_agents_container_of_the_same_id_is_left_alone() {
    let mut host = Host::new();
    host.prepared("db", &["a"]);
    let agent = || "10.0.0.1:6051".to_owned();
    host.give(Input::Cleanup { request: Request(90), agent: agent(), container: container("db") });
    host.until_quiet();
    assert_eq!(host.core.volumes().len(), 1);
    let request = Request(91);
    let (agent, agent_id, volumes) = (agent(), None, vec![wanted("b")]);
    host.give(Input::Prepare { request, container: container("db"), agent, agent_id, volumes });
    assert!(host.refusal(request).contains("another agent on this host, at 10.0.0.1:5051"));
}

#[test]
fn without_a_session_nothing_is_done_and_the_refusal_says_why() {
    let mut core = Core::new(Table::default(), LIMITS);
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
    let containers =
        if in_use { BTreeMap::from([(container("c1"), "/mesos/c1".to_owned())]) } else { BTreeMap::new() };
    let lease = FoundLease {
        token: Token(Revision(7)),
        calling: false,
        same_boot: in_use,
        mount_point: Some("/mnt/a/data".into()),
        containers,
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
    // It is looked at, and the record is written again; no driver call is made.
    let look = host.only();
    host.succeed(look);
    let record = host.only();
    assert!(matches!(record, Output::Record { state: LeaseState::Attached, .. }), "{record:?}");
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
    host.give(Input::Ended { container: container("c1") });
    // Somebody may use it of whom there is no note: as long as it is seen elsewhere, it stays mounted.
    for _ in 0..3 {
        let outputs = host.outputs();
        let look = outputs.iter().find(|o| matches!(o, Output::Look { .. })).unwrap();
        host.give(Input::Seen(op_of(look), Sight::Mounted { elsewhere: Some("process 77 (sh)".into()) }));
        host.later(Duration::from_secs(20));
    }
    host.until_quiet();
    assert!(host.core.volumes().is_empty());
}

#[test]
fn after_a_reboot_a_lease_is_kept_until_its_driver_can_be_asked() {
    let mut host = Host::restored(Table::default(), found(false, false));
    for _ in 0..3 {
        let confirm = host.only();
        host.succeed(confirm);
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
    host.give(recover(AGENT));
    host.until_quiet();
    assert_eq!(host.core.volumes().keys().collect::<Vec<_>>(), [&volume("a"), &volume("b")]);
}

#[test]
fn isolate_is_refused_for_a_container_that_was_not_prepared() {
    let mut host = Host::new();
    let (request, agent, pid, cgroup) = (Request(50), AGENT.to_owned(), 4, None);
    host.give(Input::Isolate { request, agent, container: container("c1"), pid, cgroup });
    assert!(host.refusal(request).contains("does not know container c1"));
}
