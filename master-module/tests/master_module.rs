//! The module as a Mesos master loads it: real etcd, a master of a few lines, and the log.

#![expect(clippy::unwrap_used, reason = "a test that unwraps fails with a place and a value")]

mod support;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use master_module::MasterModule;
use support::log::Log;
use support::master::{Agent, AgentAnswer, Answer, Master};
use support::{nowhere, put_lease, start};
use testing::{EtcdCluster, wait_until};

const HELD: &str =
    "volume ebs/vol-7b: attached to agent-1 (agent S0, active; epoch 3, token 42; containers c1)";

/// An agent that answers, and the list of a leader that has it.
fn leader() -> (Agent, Answer) {
    let agent = Agent::start(AgentAnswer::Id("S0"));
    let listed = Answer::Leader(vec![agent.listed("S0", "agent-1", true)]);
    (agent, listed)
}

#[test]
fn etcd_a_volumes_way_is_told_line_by_line() {
    let log = Log::begin();
    let cluster = EtcdCluster::start(1);
    let (agent, listed) = leader();
    let leading = Master::start(listed.clone());
    let standby = Master::start(Answer::Redirect(leading.address.clone()));
    put_lease(&cluster, "ebs/vol-7b", "attached");
    cluster.etcdctl(&["put", "/extvol/v1/leases/ebs/broken", "{"]);
    cluster.etcdctl(&["put", "/extvol/v1/leases/stray", "{}"]);
    let _module = start(&cluster.endpoints(), Some(&standby.address), nowhere);
    log.wait_for(HELD);
    log.wait_for(
        "the record /extvol/v1/leases/ebs/broken cannot be read and is left alone: it is not a valid record",
    );
    assert!(standby.requests() > 0 && leading.requests() > 0);

    leading.now(Answer::Leader(vec![agent.listed("S0", "agent-1", false)]));
    log.wait_for("holder agent-1 of ebs/vol-7b: agent S0 is no longer active");
    leading.now(listed);
    log.wait_for("holder agent-1 of ebs/vol-7b: agent S0 is active again");
    put_lease(&cluster, "ebs/vol-7b", "detaching");
    log.wait_for("volume ebs/vol-7b: detaching from agent-1");
    put_lease(&cluster, "ebs/vol-7b", "free");
    log.wait_for("volume ebs/vol-7b: released by agent-1");
    assert_eq!(log.count("broken"), 1);
    assert_eq!(log.count(HELD), 1);
}

#[test]
fn etcd_that_is_away_at_the_start_and_later_is_told_and_waited_for() {
    let log = Log::begin();
    let mut cluster = EtcdCluster::start(1);
    let (_agent, listed) = leader();
    let master = Master::start(listed);
    put_lease(&cluster, "ebs/vol-7b", "attached");
    cluster.kill(0);
    let _module = start(&cluster.endpoints(), Some(&master.address), nowhere);
    log.wait_for("no answer from etcd, asking again: etcd is unavailable: no connection to http://127.0.0.1");
    cluster.restart(0);
    log.wait_for("etcd answers again, after");
    log.wait_for(HELD);
    // What changes while it is away is told when it is back.
    cluster.kill(0);
    wait_until("it is missed again", || log.count("no answer from etcd, asking again") == 2);
    cluster.restart(0);
    put_lease(&cluster, "ebs/vol-7b", "free");
    log.wait_for("volume ebs/vol-7b: released by agent-1");
    assert_eq!(log.count(HELD), 1, "what is known is not told again");
}

#[test]
fn etcd_a_master_that_cannot_say_is_told_by_its_fault_and_polled_on() {
    let log = Log::begin();
    let cluster = EtcdCluster::start(1);
    let master = Master::start(Answer::NoLeader);
    put_lease(&cluster, "ebs/vol-7b", "attached");
    let _module = start(&cluster.endpoints(), Some(&master.address), nowhere);
    log.wait_for("no master is leading");
    // Leases are told all the same.
    log.wait_for("volume ebs/vol-7b: attached to agent-1 (agent S0, not asked for yet; epoch 3");
    master.now(Answer::Garbage);
    log.wait_for("is not what was asked for: it is not a JSON object");
    master.now(Answer::Hang);
    log.wait_for("cannot be asked: ");
    master.now(Answer::Redirect(master.address.clone()));
    log.wait_for("redirect");
    master.now(Answer::Leader(vec![]));
    log.wait_for("the leading master answers again, after");
    log.wait_for("holder agent-1 of ebs/vol-7b: agent S0 is not known to the leading master");
    assert_eq!(log.count("no master is leading"), 1, "once, not with each poll");
}

static OWN: OnceLock<String> = OnceLock::new();

#[test]
fn etcd_without_a_master_parameter_its_own_address_is_asked_once_it_is_known() {
    let log = Log::begin();
    let cluster = EtcdCluster::start(1);
    let (_agent, listed) = leader();
    let master = Master::start(listed);
    put_lease(&cluster, "ebs/vol-7b", "attached");
    let _module = start(&cluster.endpoints(), None, || OWN.get().cloned());
    log.wait_for("the address of this master is not known yet");
    OWN.set(master.address.clone()).unwrap();
    log.wait_for("the leading master answers");
    assert!(master.requests() > 0);
}

static PANICKED: AtomicBool = AtomicBool::new(false);

#[test]
fn etcd_a_panic_stays_in_the_thread_and_the_module_begins_again() {
    fn own_address() -> Option<String> {
        assert!(PANICKED.swap(true, Ordering::SeqCst), "a fault for this test");
        None
    }
    let log = Log::begin();
    let cluster = EtcdCluster::start(1);
    put_lease(&cluster, "ebs/vol-7b", "attached");
    let _module = start(&cluster.endpoints(), None, own_address);
    log.wait_for("a fault in this module: a fault for this test; beginning again");
    log.wait_for("volume ebs/vol-7b: attached to agent-1");
}

#[test]
fn etcd_restored_from_a_backup_is_told_and_watched_on() {
    let log = Log::begin();
    let mut cluster = EtcdCluster::start(1);
    let (_agent, listed) = leader();
    let master = Master::start(listed);
    put_lease(&cluster, "ebs/vol-7b", "attached");
    cluster.save_snapshot("backup");
    put_lease(&cluster, "ebs/vol-8c", "attached");
    let _module = start(&cluster.endpoints(), Some(&master.address), nowhere);
    log.wait_for("volume ebs/vol-8c: attached");
    cluster.restore_snapshot("backup");
    log.wait_for("etcd holds what cannot be right");
    assert!(log.count("its revision is") > 0, "{}", log.text());
    wait_until("it begins again", || log.count(HELD) == 2);
    put_lease(&cluster, "ebs/vol-7b", "free");
    log.wait_for("volume ebs/vol-7b: released by agent-1");
}

#[test]
fn dropping_the_module_does_not_wait_for_what_hangs() {
    let log = Log::begin();
    let master = Master::start(Answer::Hang);
    let etcd = Master::start(Answer::Hang);
    let module = start(std::slice::from_ref(&etcd.address), Some(&master.address), nowhere);
    wait_until("the master is asked", || master.requests() > 0);
    let begin = Instant::now();
    drop(module);
    assert!(begin.elapsed() < Duration::from_millis(800), "{:?}", begin.elapsed());
    let text = log.text();
    assert!(!text.contains("left to itself"), "{text}");
}

#[test]
fn a_wrong_parameter_is_refused_at_once_by_name_and_value() {
    let refused = |name: &str, value: &str| {
        let given = [("etcd_endpoints", "127.0.0.1:1"), (name, value)];
        let given: Vec<_> = given.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        MasterModule::start(&given, nowhere).unwrap_err()
    };
    let error = refused("poll_interval", "5s");
    assert_eq!(
        error,
        "the parameter `poll_interval` has the value `5s`, which has the unit \"s\"; Mesos knows ns, us, ms, secs, mins, hrs, days, weeks"
    );
    assert!(refused("colour", "red").contains("no parameter `colour`"));
    assert!(MasterModule::start(&[], nowhere).unwrap_err().contains("`etcd_endpoints` is missing"));
}
