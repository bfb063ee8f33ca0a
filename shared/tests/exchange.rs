//! The core's reads and commits against the store in memory and against a real etcd.

#![expect(clippy::unwrap_used, reason = "a test that unwraps fails with a place and a value")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shared::etcd::{EtcdConfig, EtcdStore};
use shared::exchange;
use shared::exchange_io::{Exchange, ReadError};
use shared::keys::Keys;
use shared::memory::{CommitFault, MemoryStore};
use shared::protocol::exchange::{
    ByTime, ClusterId, Commit, Held, Instance, Key, Lease, Outcome, Reading, Record, Session, SessionState,
    Stage, Storm,
};
use shared::protocol::timing::Profile;
use shared::record::{ClusterRecord, Epoch, encode};
use shared::store::{LeaseStore, Revision, Transaction};
use shared::volume::{Driver, Holder, HostNames, NamingRules, VolumeId, VolumeName};
use testing::EtcdCluster;

const PATIENT: Duration = Duration::from_secs(10);

fn me() -> Holder {
    Holder::new("agent-1").unwrap()
}

fn volume(name: &str) -> Key {
    Key::Lease(VolumeId { driver: Driver::new("ebs").unwrap(), name: VolumeName::new(name).unwrap() })
}

fn session() -> Record {
    Record::Session(Session {
        epoch: Epoch(1),
        instance: Instance("i".into()),
        state: SessionState::Live,
        machine: "m".into(),
        boot: "b".into(),
        agent: None,
        timing: Profile::Default.timing(),
        by_time: ByTime::Allowed,
        means: Default::default(),
        unproved: None,
        unsettled_through: Epoch(0),
        wants: Default::default(),
        reason: None,
        since: Some("then".into()),
    })
}

fn lease() -> Record {
    Record::Lease(Lease::Held(Held {
        stage: Stage::Attaching,
        holder: me(),
        epoch: Epoch(1),
        token: None,
        agent_id: None,
        containers: BTreeSet::new(),
        tasks: Default::default(),
        mount_point: None,
        unsettled: false,
        calls: false,
        owed: None,
        revoked: None,
        since: Some("then".into()),
    }))
}

fn is_conflict(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Conflict(_))
}

fn exchange_of<S: LeaseStore>(store: S) -> Exchange<S> {
    Exchange::new(store, Keys::default(), PATIENT, None)
}

async fn what_was_committed_is_read_at_one_revision<S: LeaseStore>(store: S) {
    let exchange = exchange_of(store);
    let cluster = ClusterId("one".into());
    // Before anything was read nothing can have been decided.
    assert_eq!(exchange.commit(&Commit::new(&cluster)).await, Outcome::NotSent);
    let nothing = exchange.try_read(&Reading::Everything).await;
    assert!(matches!(nothing, Err(ReadError::NotFounded { .. })), "{nothing:?}");
    exchange.found("one").await.unwrap();
    exchange.found("other").await.unwrap();
    let empty = exchange.read(&Reading::Everything).await.unwrap();
    assert_eq!((&empty.cluster, empty.entries.len()), (&cluster, 0));

    let (key, beat) = (Key::Session(me()), Key::Beat(me()));
    let open = Commit::new(&cluster).put(key.clone(), Revision::ABSENT, session());
    let Outcome::Done(at) = exchange.commit(&open).await else { panic!("it is done") };
    // It is there now; and a refused beat tells what the session is.
    assert!(is_conflict(&exchange.commit(&open).await));
    let Outcome::Conflict(Some(read)) =
        exchange.commit(&Commit::beat(&cluster, &me(), Revision::ABSENT)).await
    else {
        panic!("it compares the session")
    };
    assert_eq!((&read.cluster, read.session(&me()).map(|(_, at)| at)), (&cluster, Some(at)));
    let Outcome::Done(beaten) = exchange.commit(&Commit::beat(&cluster, &me(), at)).await else {
        panic!("it is done")
    };
    let grant = Commit::new(&cluster).unchanged(key.clone(), at).put(volume("v"), Revision::ABSENT, lease());
    let Outcome::Done(granted) = exchange.commit(&grant).await else { panic!("it is done") };
    let storm = Commit::new(&cluster).put(Key::Storm, Revision::ABSENT, Record::Storm(Storm::Over));
    let Outcome::Done(last) = exchange.commit(&storm).await else { panic!("it is done") };
    let elsewhere = exchange.commit(&Commit::beat(&ClusterId("other".into()), &me(), at)).await;
    assert_eq!(elsewhere, Outcome::Conflict(None), "decided in another installation");

    let view = exchange.read(&Reading::Everything).await.unwrap();
    assert_eq!((view.revision, view.entries.len()), (last, 4));
    assert_eq!(view.entries[&key], (session(), at));
    assert_eq!(view.entries[&beat], (Record::Beat, beaten));
    assert_eq!(view.entries[&volume("v")], (lease(), granted));
    assert_eq!(view.entries[&Key::Storm], (Record::Storm(Storm::Over), last));
    let some = exchange.read(&Reading::Keys(vec![beat.clone(), volume("none")])).await.unwrap();
    assert_eq!(some.entries.keys().collect::<Vec<_>>(), [&beat]);
    assert_eq!(some.at(&volume("none")), Revision::ABSENT);
}

/// What others have, and that a record of theirs cannot be read, is nothing to who asks for its own.
async fn what_is_a_holders_own_is_read_alone<S: LeaseStore>(store: S) {
    let exchange = exchange_of(store);
    exchange.found("one").await.unwrap();
    let own = Reading::Own(me());
    let cluster = exchange.read(&own).await.unwrap().cluster;
    let other = Holder::new("agent-2").unwrap();
    let id = |name: &str| match volume(name) {
        Key::Lease(id) => id,
        key => panic!("{key:?}"),
    };
    let mut granted = Commit::new(&cluster).put(Key::Session(me()), Revision::ABSENT, session()).put(
        Key::Session(other.clone()),
        Revision::ABSENT,
        session(),
    );
    for (name, holder) in [("a", me()), ("b", me()), ("c", other.clone()), ("d", other.clone())] {
        granted = granted.put(volume(name), Revision::ABSENT, lease()).index(&holder, &id(name));
    }
    // A stale entry, and a holder whose name begins like this one's.
    let longer = Holder::new("agent-12").unwrap();
    granted = granted.index(&me(), &id("gone")).index(&longer, &id("c"));
    let Outcome::Done(at) = exchange.commit(&granted).await else { panic!("it is done") };
    assert!(matches!(exchange.commit(&Commit::beat(&cluster, &me(), at)).await, Outcome::Done(_)));
    let view = exchange.read(&own).await.unwrap();
    assert_eq!(view.index_of(&me()).collect::<Vec<_>>(), [&id("a"), &id("b"), &id("gone")]);
    let expected = [
        volume("a"),
        volume("b"),
        Key::Held(me(), id("a")),
        Key::Held(me(), id("b")),
        Key::Held(me(), id("gone")),
        Key::Session(me()),
        Key::Beat(me()),
    ];
    assert_eq!(view.entries.keys().collect::<BTreeSet<_>>(), expected.iter().collect());
    let freed = Commit::new(&cluster).unchanged(Key::Session(me()), at).unindex(&me(), &id("a"));
    assert!(matches!(exchange.commit(&freed).await, Outcome::Done(_)));
    let keys = Keys::default();
    let bad = Transaction::new().put(&keys.lease(&id("x")), Revision::ABSENT, b"{".to_vec()).put(
        &format!("{}zz%zz/v", keys.held_by(&me())),
        Revision::ABSENT,
        b"{".to_vec(),
    );
    exchange.store().commit(bad).await.unwrap();
    let view = exchange.read(&own).await.unwrap();
    assert_eq!(view.index_of(&me()).collect::<Vec<_>>(), [&id("b"), &id("gone")]);
    assert!(!view.entries.contains_key(&volume("a")));
}

async fn a_record_that_cannot_be_read_is_never_taken_for_free<S: LeaseStore>(store: S) {
    let exchange = exchange_of(store);
    exchange.found("one").await.unwrap();
    let keys = Keys::default();
    let newer = br#"{"version":2,"state":"free","since":"x"}"#.to_vec();
    let name = exchange::key(&keys, &volume("v"));
    let beside = Transaction::new()
        .put(&name, Revision::ABSENT, newer)
        .put(&format!("{}stray", keys.leases()), Revision::ABSENT, b"{".to_vec())
        .put(&format!("{}agent%2D1", keys.sessions()), Revision::ABSENT, b"{".to_vec());
    exchange.store().commit(beside).await.unwrap();
    let refused = exchange.read(&Reading::Everything).await.unwrap_err();
    assert!(refused.contains(&*name) && refused.contains("has version 2"), "{refused}");
    // Among single keys it hurts itself alone.
    let view = exchange.read(&Reading::Keys(vec![volume("v"), volume("w")])).await.unwrap();
    assert!(view.unreadable[&volume("v")].contains("has version 2") && view.entries.is_empty(), "{view:?}");
    let commit = Commit::new(&view.cluster).unchanged(volume("v"), Revision::ABSENT).or_read([volume("v")]);
    let Outcome::Conflict(Some(view)) = exchange.commit(&commit).await else { panic!("it is there") };
    assert!(view.unreadable[&volume("v")].contains("has version 2"), "{view:?}");
    // Another's is no obstacle to who does not ask for it.
    assert!(exchange.read(&Reading::Keys(vec![volume("w")])).await.is_ok());
    let at = exchange.store().get(std::slice::from_ref(&name)).await.unwrap().mod_revision(&name);
    let mended = Transaction::new().put(&name, at, exchange::to_bytes(&lease(), "now"));
    exchange.store().commit(mended).await.unwrap();
    // What is no key of this layout, or another spelling of one, is nobody's record.
    let view = exchange.read(&Reading::Everything).await.unwrap();
    assert_eq!(view.entries.keys().collect::<Vec<_>>(), [&volume("v")]);
    // Of a beat the revision counts alone, whatever it says: it keeps nobody from beating.
    let beat =
        Transaction::new().put(&exchange::key(&keys, &Key::Beat(me())), Revision::ABSENT, b"{".to_vec());
    let at = exchange.store().commit(beat).await.unwrap();
    let view = exchange.read(&Reading::Own(me())).await.unwrap();
    assert_eq!((view.at(&Key::Beat(me())), view.unreadable.len()), (at, 0));
}

async fn the_record_of_the_installation_is_compared_byte_for_byte<S: LeaseStore>(store: S) {
    let exchange = exchange_of(store);
    exchange.found("one").await.unwrap();
    let cluster = exchange.read(&Reading::Everything).await.unwrap().cluster;
    let key = Keys::default().cluster();
    let rewrite = async |value: &str| {
        let at = exchange.store().get(std::slice::from_ref(&key)).await.unwrap().mod_revision(&key);
        exchange.store().commit(Transaction::new().put(&key, at, value.into())).await.unwrap();
    };
    // The same id, with a blank: only a read may say that this is what is meant now.
    rewrite(r#"{"version":1, "id":"one"}"#).await;
    let put = Commit::new(&cluster).put(Key::Storm, Revision::ABSENT, Record::Storm(Storm::Over));
    assert!(is_conflict(&exchange.commit(&put).await));
    exchange.read(&Reading::Keys(Vec::new())).await.unwrap();
    assert!(matches!(exchange.commit(&put).await, Outcome::Done(_)));
    rewrite(r#"{"version":1,"id":"two"}"#).await;
    assert_eq!(&*exchange.read(&Reading::Keys(Vec::new())).await.unwrap().cluster.0, "two");
    assert!(is_conflict(&exchange.commit(&put).await), "decided before");
}

macro_rules! on_both_stores {
    ($($case:ident,)*) => {
        mod memory_store {
            $(#[tokio::test]
            async fn $case() {
                crate::$case(shared::memory::MemoryStore::new()).await;
            })*
        }
        mod etcd_store {
            $(#[tokio::test]
            async fn $case() {
                let cluster = crate::EtcdCluster::start(1);
                crate::$case(crate::etcd(&cluster)).await;
            })*
        }
    };
}

fn etcd(cluster: &EtcdCluster) -> EtcdStore {
    let config = EtcdConfig { request_timeout: PATIENT, ..EtcdConfig::new(cluster.endpoints()) };
    EtcdStore::new(config).unwrap()
}

on_both_stores! {
    what_was_committed_is_read_at_one_revision,
    what_is_a_holders_own_is_read_alone,
    a_record_that_cannot_be_read_is_never_taken_for_free,
    the_record_of_the_installation_is_compared_byte_for_byte,
}

fn driver(name: &str) -> Driver {
    Driver::new(name).unwrap()
}

#[tokio::test]
async fn hosts_with_other_naming_rules_get_no_view() {
    let store = MemoryStore::new();
    let rules = NamingRules {
        driver_aliases: BTreeMap::from([(driver("rexray"), driver("ebs"))]),
        preempting: Some([driver("ebs-preempt")].into()),
        ..NamingRules::default()
    };
    let ours = |rules, drivers: &[&str]| {
        let names = HostNames { rules, drivers: drivers.iter().map(|name| driver(name)).collect() };
        Exchange::new(store.clone(), Keys::default(), PATIENT, Some(names))
    };
    ours(rules.clone(), &["ebs"]).found("one").await.unwrap();
    assert!(ours(rules.clone(), &["ebs"]).read(&Reading::Everything).await.is_ok());
    for other in [ours(NamingRules::default(), &["ebs"]), ours(rules, &["ebs", "ebs-preempt"])] {
        let view = other.try_read(&Reading::Everything).await;
        assert!(matches!(view, Err(ReadError::Naming(_))), "{view:?}");
    }
    // Who names no volumes does not care.
    assert!(exchange_of(store).read(&Reading::Everything).await.is_ok());
}

/// As an operator does it before a preempting plugin is given to the hosts, one after the other.
#[tokio::test]
async fn a_preempting_plugin_is_added_to_the_installation_while_its_hosts_work() {
    let store = MemoryStore::new();
    let of = |preempting: &[&str]| NamingRules {
        preempting: Some(preempting.iter().map(|name| driver(name)).collect()),
        ..NamingRules::default()
    };
    let names = HostNames { rules: of(&[]), drivers: [driver("ebs")].into() };
    let exchange = Exchange::new(store.clone(), Keys::default(), PATIENT, Some(names));
    exchange.found("one").await.unwrap();
    let view = exchange.read(&Reading::Everything).await.unwrap();
    let grown = ClusterRecord { id: "one".into(), naming: of(&["ebs-preempt"]) };
    store.plant(&Keys::default().cluster(), encode(&grown));
    let put = Commit::new(&view.cluster).put(Key::Storm, Revision::ABSENT, Record::Storm(Storm::Over));
    assert!(is_conflict(&exchange.commit(&put).await), "the record has changed");
    exchange.read(&Reading::Everything).await.unwrap();
    assert!(matches!(exchange.commit(&put).await, Outcome::Done(_)));
}

#[tokio::test]
async fn each_kind_of_answer_is_its_own_outcome() {
    let store = MemoryStore::new();
    let exchange = exchange_of(store.clone());
    exchange.found("one").await.unwrap();
    let cluster = exchange.read(&Reading::Everything).await.unwrap().cluster;
    let put = Commit::new(&cluster).put(Key::Storm, Revision::ABSENT, Record::Storm(Storm::Over));
    for (fault, outcome) in [
        (CommitFault::Unavailable, Outcome::NotSent),
        (CommitFault::UnknownNotDone, Outcome::Unknown),
        (CommitFault::UnknownDoneAfter(1), Outcome::Unknown),
    ] {
        store.fail_next_commit(fault);
        assert_eq!(exchange.commit(&put).await, outcome, "{fault:?}");
    }
    exchange.read(&Reading::Everything).await.unwrap();
    assert!(is_conflict(&exchange.commit(&put).await), "the last of these was done late");
}

#[tokio::test]
async fn etcd_a_hung_member_makes_a_commit_unknown_within_the_time_out() {
    let cluster = EtcdCluster::start(1);
    let exchange = Exchange::new(etcd(&cluster), Keys::default(), Duration::from_millis(300), None);
    exchange.found("one").await.unwrap();
    let id = exchange.read(&Reading::Everything).await.unwrap().cluster;
    cluster.stop(0);
    let put = Commit::new(&id).put(Key::Storm, Revision::ABSENT, Record::Storm(Storm::Over));
    // Its own request would be given up only after ten seconds.
    let begin = std::time::Instant::now();
    assert_eq!(exchange.commit(&put).await, Outcome::Unknown);
    let late = exchange.try_read(&Reading::Keys(vec![Key::Storm])).await;
    assert!(matches!(late, Err(ReadError::Late { .. })), "{late:?}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    cluster.resume(0);
}
