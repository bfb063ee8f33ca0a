//! The index by which a holder finds its leases, however many others have.

use crate::etcd::Etcd;
use crate::host::{Host, ME, Step};
use crate::owed::owing_its_mount;

/// A host whose container has volume `a`.
fn using() -> Host {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.isolate("c1");
    host
}

#[test]
fn a_lease_is_in_the_index_from_its_grant_to_its_release() {
    let mut host = using();
    assert_eq!(host.etcd.index_of(ME), ["a"]);
    // A restart writes nothing there, and neither does who joins.
    host.restart();
    host.prepared("c2", &["a"]);
    assert_eq!(host.etcd.index_of(ME), ["a"]);
    host.cleanup("c1");
    host.cleanup("c2");
    host.until_quiet();
    assert!(host.is_bare() && host.etcd.index_of(ME).is_empty());
}

#[test]
fn what_this_host_owes_stays_in_its_index_and_is_given_back_from_there() {
    let mut host = owing_its_mount(Etcd::new());
    assert!(host.is_bare() && host.etcd.owed("a").is_some());
    assert_eq!(host.etcd.index_of(ME), ["a"]);
    host.reboot();
    let steps = host.until_quiet();
    assert!(steps.contains(&Step::Unmount("a".into())), "{steps:#?}");
    assert!(host.etcd.owed("a").is_none() && host.etcd.index_of(ME).is_empty());
}

#[test]
fn what_others_took_is_taken_out_by_the_next_epoch_which_touches_no_index_of_theirs() {
    let mut host = using();
    host.etcd.hold_elsewhere("agent-2", "a");
    host.etcd.free("b");
    host.reboot();
    let steps = host.until_quiet();
    assert!(!steps.iter().any(|step| matches!(step, Step::Unmount(_) | Step::Release(_))), "{steps:#?}");
    assert!(host.etcd.index_of(ME).is_empty());
    assert_eq!(host.etcd.index_of("agent-2"), ["a"]);
    assert!(host.etcd.lease("a").is_some_and(|held| held.holder.as_str() == "agent-2"));
}
