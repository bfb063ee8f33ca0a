//! How leases, sessions and beats are written: how many transactions it takes, and what a copy of one does.

use protocol::exchange::{Commit, Key, Outcome, Record, Stage};
use protocol::holder::{Input, MountFault};

use crate::etcd::{Fate, holder};
use crate::host::{BEAT, Host, ME, PAUSE, SETTLE, Step, WAIT, acquire, place, record, release, volume};

/// What was written since this was last asked, without beats alone, and how often etcd was read.
fn trips(host: &mut Host) -> (Vec<Vec<Step>>, usize) {
    let mut transactions = std::mem::take(&mut host.transactions);
    transactions.retain(|steps| *steps != [Step::Beat]);
    (transactions, std::mem::take(&mut host.reads))
}

#[test]
fn a_launch_takes_one_transaction_before_its_mount_with_its_lease_its_beat_and_its_agent() {
    let mut host = Host::new();
    trips(&mut host);
    // This host holds nothing, beats for nothing, and has not told of its agent.
    host.prepare("c1", &["a", "b"]);
    let (wants, leases) = (Step::Session(vec![]), acquire(&["a", "b"]));
    assert_eq!(trips(&mut host), (vec![vec![wants.clone(), Step::Beat, leases]], 0));
    let mounting = [Step::Mount("a".into()), Step::Mount("b".into())];
    assert_eq!(host.steps().split_off(1), mounting);
    assert!(host.etcd.session(ME).agent.is_some());
    host.until_quiet();
    trips(&mut host);
    // It holds leases.
    host.prepare("c2", &["c"]);
    assert_eq!(trips(&mut host), (vec![vec![Step::Beat, acquire(&["c"])]], 0));
    host.until_quiet();
    trips(&mut host);
    // And another agent asks.
    host.ask("c3", "10.0.0.1:5052", Some("S1"), &["d"]);
    assert_eq!(trips(&mut host), (vec![vec![wants, Step::Beat, acquire(&["d"])]], 0));
}

#[test]
fn of_what_was_released_and_is_not_owed_no_record_is_left() {
    let mut host = Host::new();
    host.prepared("c1", &["a", "b"]);
    assert_eq!(host.etcd.leases(), 2);
    host.cleanup("c1");
    let steps = host.until_quiet();
    place(&steps, |step| *step == release("a"));
    assert_eq!(host.etcd.leases(), 0);
    host.prepared("c2", &["a"]);
}

#[test]
fn what_a_burst_writes_goes_together() {
    let mut host = Host::new();
    trips(&mut host);
    host.held_back = Some(|step| matches!(step, Step::Acquire(_)));
    let names: Vec<_> = (0..32).map(|n| format!("v{n}")).collect();
    for name in &names {
        host.prepare(&format!("of-{name}"), &[name]);
    }
    host.let_through();
    // The first was with etcd when the others came.
    let (taken, reads) = trips(&mut host);
    assert_eq!((taken.len(), reads), (2, 0), "{taken:#?}");
    let held = |step: &Step| matches!(step, Step::Record(..) | Step::Release(_));
    host.held_back = Some(held);
    for name in &names {
        host.succeed(name);
    }
    host.let_through();
    let (written, reads) = trips(&mut host);
    assert_eq!((written.len(), reads), (2, 0), "{written:#?}");
    assert_eq!(written.concat().iter().filter(|step| held(step)).count(), 32);
}

#[test]
fn a_lease_that_another_host_has_costs_one_reading_of_its_session() {
    let mut host = Host::new();
    host.etcd.hold_elsewhere("agent-2", "a");
    trips(&mut host);
    host.prepare("c1", &["a"]);
    let (written, reads) = trips(&mut host);
    assert_eq!((written, reads), (vec![vec![Step::Session(vec!["a".into()])]], 1));
}

#[test]
fn a_second_copy_of_a_taking_takes_nothing_though_the_volume_is_free_again() {
    let mut host = Host::new();
    host.etcd.sent.clear();
    host.prepared("c1", &["a"]);
    let taking = |put: &(Key, Record)| matches!(put, (Key::Lease(_), _));
    let copy = host.etcd.sent.iter().find(|commit| commit.puts.iter().any(taking)).cloned().unwrap();
    host.cleanup("c1");
    host.until_quiet();
    assert_eq!(host.etcd.leases(), 0);
    assert!(matches!(host.etcd.commit(&copy), Outcome::Conflict(_)));
}

#[test]
fn nothing_is_taken_while_no_deadman_ticks_nor_while_a_beat_is_under_way() {
    let mut host = Host::new();
    host.give(Input::Guarded(false));
    host.prepare("c1", &["a"]);
    host.later(BEAT);
    assert_eq!(host.steps(), []);
    host.give(Input::Guarded(true));
    assert_eq!(host.steps(), [acquire(&["a"]), Step::Mount("a".into())]);
    host.until_quiet();
    host.held_back = Some(|step| *step == Step::Beat);
    host.later(BEAT);
    host.prepare("c2", &["b"]);
    assert_eq!(host.steps(), []);
    host.let_through();
    assert_eq!(host.steps(), [acquire(&["b"]), Step::Mount("b".into())]);
}

#[test]
fn an_idle_host_is_not_fenced_for_a_lease_that_it_asks_for_in_vain() {
    let mut host = Host::new();
    host.etcd.fate = Some(Fate::Late);
    host.held_back =
        Some(|step| matches!(step, Step::Session(_) | Step::Beat) && *step != Step::Session(vec![]));
    host.prepare("c1", &["a"]);
    host.later(SETTLE);
    let steps = host.steps();
    assert!(!steps.iter().any(|step| matches!(step, Step::Fence(_))), "{steps:#?}");
}

#[test]
fn a_lease_that_cannot_be_read_refuses_who_wants_it_and_nobody_else() {
    let mut host = Host::new();
    host.etcd.hold_elsewhere("agent-2", "a");
    host.etcd.spoil(Key::Lease(volume("a")));
    let request = host.prepare("c1", &["a"]);
    let other = host.prepare("c2", &["b"]);
    let why = host.until_quiet();
    let refused = |step: &Step| {
        matches!(step, Step::Refused(number, why) if *number == request
        && why.contains("the lease of volume ebs/a in etcd cannot be read: has version 9"))
    };
    place(&why, refused);
    place(&why, |step| matches!(step, Step::Ready(number, _) if *number == other));
}

#[test]
fn a_session_that_cannot_be_read_keeps_the_volumes_of_its_holder_from_others_and_nothing_else() {
    let mut host = Host::new();
    host.etcd.hold_elsewhere("agent-2", "a");
    host.etcd.spoil(Key::Session(holder("agent-2")));
    host.prepare("c1", &["a"]);
    host.prepared("c2", &["b"]);
    assert!(host.etcd.lease("a").is_some_and(|held| held.holder == holder("agent-2")));
}

#[test]
fn an_own_lease_that_cannot_be_read_holds_up_itself_alone_until_it_can() {
    let mut host = Host::new();
    host.prepared("c1", &["a", "b"]);
    host.etcd.spoil(Key::Lease(volume("a")));
    host.cleanup("c1");
    let steps = host.until_quiet();
    assert!(
        steps.contains(&release("b")) && !steps.contains(&record("a", Stage::Detaching, &[])),
        "{steps:#?}"
    );
    assert!(!steps.iter().any(|step| matches!(step, Step::Fence(_))), "{steps:#?}");
    // A person puts back what was there.
    host.etcd.spoilt.clear();
    host.later(PAUSE);
    let steps = host.until_quiet();
    assert!(steps.contains(&release("a")), "{steps:#?}");
}

#[test]
fn an_own_session_that_cannot_be_read_ends_in_a_fence_that_says_so() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.etcd.spoil(Key::Session(holder(ME)));
    host.later(BEAT * 20);
    let steps = host.steps();
    place(
        &steps,
        |step| matches!(step, Step::Fence(why) if why.contains("session cannot be read: has version 9")),
    );
    assert!(host.reads < 200, "{} readings", host.reads);
}

#[test]
fn a_refused_mount_is_released_with_its_neighbours() {
    let mut host = Host::new();
    host.prepare("c1", &["a", "b"]);
    host.steps();
    for name in ["a", "b"] {
        host.mounts(name, Err(MountFault::Refused("no such volume".into())));
    }
    let steps = host.until_quiet();
    assert!(steps.contains(&release("a")) && steps.contains(&release("b")), "{steps:#?}");
    assert_eq!(host.etcd.leases(), 0);
}

#[test]
fn a_second_copy_of_what_cleans_the_index_leaves_what_is_held_again() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    // A person frees it; the host comes back, and takes what is stale out of its index.
    host.etcd.free("a");
    host.etcd.sent.clear();
    host.reboot();
    host.until_quiet();
    let cleans = |commit: &Commit| commit.puts.is_empty() && !commit.deletes.is_empty();
    let copy = host.etcd.sent.iter().find(|commit| cleans(commit)).cloned().unwrap();
    assert_eq!(host.etcd.index_of(ME), [] as [String; 0]);
    host.prepared("c2", &["a"]);
    assert!(matches!(host.etcd.commit(&copy), Outcome::Conflict(_)));
    assert_eq!(host.etcd.index_of(ME), ["a"]);
}

#[test]
fn a_lease_that_is_found_lost_while_its_volume_is_mounted_fences_though_nothing_was_to_be_written() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.isolate("c1");
    host.until_quiet();
    // Somebody deletes it, another host takes it, and something makes this one look.
    host.etcd.free("a");
    host.etcd.hold_elsewhere("agent-2", "a");
    host.give(Input::Changed(Key::Session(holder(ME))));
    let steps = host.steps();
    place(&steps, |step| matches!(step, Step::Fence(why) if why.contains("another holder of volume ebs/a")));
}

#[test]
fn who_waits_for_another_host_reads_before_it_asks_again_and_its_neighbours_lose_nothing_by_it() {
    let mut host = Host::new();
    host.etcd.hold_elsewhere("agent-2", "a");
    host.prepare("c1", &["a"]);
    trips(&mut host);
    let refused = host.etcd.refused;
    host.give(Input::Changed(Key::Lease(volume("a"))));
    assert_eq!((trips(&mut host), host.etcd.refused), ((vec![], 1), refused));
}

#[test]
fn who_is_overtaken_reads_whose_the_lease_is_now() {
    let mut host = Host::new();
    host.etcd.hold_elsewhere("agent-2", "a");
    let request = host.prepare("c1", &["a"]);
    // It is free for a moment, and taken again while this host asks for it.
    host.etcd.free("a");
    host.held_back = Some(|step| matches!(step, Step::Acquire(_)));
    host.give(Input::Changed(Key::Lease(volume("a"))));
    host.etcd.hold_elsewhere("agent-2", "a");
    trips(&mut host);
    host.let_through();
    assert_eq!(trips(&mut host).1, 1, "its session is read with what the lease says now");
    host.later(WAIT);
    let why = host.refusal(request);
    assert!(why.contains("held by agent-2 (live,"), "{why}");
}

#[test]
fn a_beat_follows_at_once_on_a_taking_that_had_no_answer() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.held_back = Some(|step| matches!(step, Step::Acquire(_)));
    host.prepare("c2", &["b"]);
    host.transactions.clear();
    host.give_up_held_back();
    assert!(host.transactions.contains(&vec![Step::Beat]), "{:#?}", host.transactions);
}

#[test]
fn the_deadline_is_set_before_the_first_mount_is_asked_for() {
    let mut host = Host::new();
    host.order.clear();
    host.prepare("c1", &["a"]);
    let at = |wanted: fn(&Step) -> bool| host.order.iter().position(wanted).unwrap();
    assert!(
        at(|step| matches!(step, Step::Note(_))) < at(|step| matches!(step, Step::Mount(_))),
        "{:?}",
        host.order
    );
}

#[test]
fn a_worker_that_dies_as_its_idle_host_asks_for_a_lease_is_adopted_and_gives_back_what_it_got() {
    let mut host = Host::new();
    host.held_back = Some(|step| matches!(step, Step::Acquire(_)));
    host.prepare("c1", &["a"]);
    let epoch = host.etcd.session(ME).epoch;
    host.hold_nothing_back_and_forget_who_asked();
    host.restart();
    assert_eq!(host.etcd.session(ME).epoch, epoch);
    host.recover(crate::host::AGENT, &[], &[]);
    // Nothing of it is waited for: no call of before can be under way.
    host.until_quiet();
    assert_eq!(host.etcd.leases(), 0);
}
