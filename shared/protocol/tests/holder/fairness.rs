//! What many volumes of some containers cost the others: counted in lease operations, and in the transactions that take some
//! of them together.

use std::time::Duration;

use protocol::holder::{Input, MountFault};

use crate::host::{Host, PREPARE, Step, acquire, place};

const CONTAINERS: usize = 50;
const VOLUMES: usize = 20;

fn names(container: usize) -> Vec<String> {
    (0..VOLUMES).map(|volume| format!("m{container}-{volume}")).collect()
}

fn prepare(host: &mut Host, container: usize) {
    let names = names(container);
    host.prepare(&format!("hostile-{container}"), &names.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Whether a step is a write of the lane.
fn is_lane(step: &Step) -> bool {
    matches!(step, Step::Acquire(_) | Step::Record(..) | Step::Release(_) | Step::Session(_))
}

/// The transactions of the queue since this was last asked.
fn transactions(host: &mut Host) -> Vec<Vec<Step>> {
    let mut transactions = std::mem::take(&mut host.transactions);
    transactions.retain(|steps| steps.iter().any(is_lane));
    transactions
}

/// A host of which 50 containers have named 20 missing volumes each: every Mount was refused, and 1,000 leases are to
/// be rewritten and released. The first of these writes is with etcd.
fn flooded() -> Host {
    let mut host = Host::new();
    for container in 0..CONTAINERS {
        prepare(&mut host, container);
    }
    assert_eq!(host.calls().len(), CONTAINERS * VOLUMES);
    host.all_steps();
    host.transactions.clear();
    host.held_back = Some(is_lane);
    for name in (0..CONTAINERS).flat_map(names) {
        host.mounts(&name, Err(MountFault::Refused("no such volume".into())));
    }
    host
}

#[test]
fn a_launch_is_served_by_the_next_transaction_though_a_thousand_leases_of_other_containers_wait() {
    let mut host = flooded();
    host.prepare("bystander", &["a"]);
    host.let_through();
    let transactions = transactions(&mut host);
    let at = transactions.iter().position(|steps| steps.contains(&acquire(&["a"])));
    assert_eq!(at, Some(1), "one was with etcd");
    // The others were not forgotten, and go together.
    let records = transactions.iter().flatten().filter(|step| matches!(step, Step::Record(..))).count();
    assert_eq!(records, CONTAINERS * VOLUMES);
    assert!(transactions.len() <= 2 + CONTAINERS * VOLUMES / 39, "{} transactions", transactions.len());
}

#[test]
fn launches_that_go_first_do_not_starve_what_is_to_be_released() {
    let mut host = flooded();
    for n in 0..10 {
        host.prepare(&format!("bystander-{n}"), &[&format!("b{n}")]);
    }
    host.let_through();
    let next = transactions(&mut host).swap_remove(1);
    let acquires = next.iter().filter(|step| matches!(step, Step::Acquire(_))).count();
    let records = next.iter().filter(|step| matches!(step, Step::Record(..))).count();
    assert!(acquires == 10 && records == 30, "{next:#?}");
}

#[test]
fn fifty_launches_before_it_cost_a_launch_no_more_than_a_transaction_for_each_forty_leases() {
    let mut host = Host::new();
    host.held_back = Some(is_lane);
    for container in 0..CONTAINERS {
        prepare(&mut host, container);
    }
    host.prepare("bystander", &["a"]);
    host.let_through();
    let transactions = transactions(&mut host);
    let at = transactions.iter().position(|steps| steps.contains(&acquire(&["a"]))).unwrap();
    assert!(at <= 1 + CONTAINERS * VOLUMES / 40, "{at} transactions came first");
}

#[test]
fn a_prepare_that_waited_in_a_long_queue_says_so_and_not_that_etcd_is_silent() {
    let mut host = Host::new();
    host.held_back = Some(is_lane);
    for container in 0..3 {
        prepare(&mut host, container);
    }
    let request = host.prepare("bystander", &["a"]);
    host.later(PREPARE);
    let why = host.refusal(request);
    assert!(why.contains("3 other lease operations of this host come before that of volume ebs/a"), "{why}");
    assert!(!why.contains("etcd has not answered"), "{why}");
}

#[test]
fn a_host_that_is_fenced_because_etcd_refuses_it_says_what_etcd_said() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.held_back = Some(|step| *step == Step::Beat);
    host.give(Input::Silent("10.0.0.9:2379 does not let this client read or write".into()));
    host.later(Duration::from_secs(10));
    let steps = host.all_steps();
    let told = |step: &Step| matches!(step, Step::Limit(_, why) if why.contains("does not let this client"));
    place(&steps, told);
    place(&steps, |step| matches!(step, Step::Fence(why) if why.contains("10.0.0.9:2379 does not let")));
}

#[test]
fn an_answer_of_etcd_ends_what_was_said_of_its_silence() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.give(Input::Silent("it was away once".into()));
    // Beats go through.
    host.later(Duration::from_secs(3));
    host.held_back = Some(|step| *step == Step::Beat);
    host.later(Duration::from_secs(10));
    let steps = host.all_steps();
    place(&steps, |step| matches!(step, Step::Fence(why) if !why.contains("away once")));
}
