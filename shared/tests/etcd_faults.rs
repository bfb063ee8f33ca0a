//! The etcd store against members that hang, die, fill up or were never there.

#![expect(clippy::unwrap_used, reason = "a test that unwraps fails with a place and a value")]

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use shared::etcd::{EtcdConfig, EtcdFault, EtcdStore};
use shared::retry::Retry;
use shared::store::{LeaseStore, OPERATIONS_MAX, Revision, Snapshot, StoreError, Transaction};
use testing::{EtcdCluster, SOON, free_port, wait_until};

/// A request's time-out in these tests.
const R: Duration = Duration::from_secs(1);

/// What a busy machine may add to a bound.
const SLACK: Duration = Duration::from_millis(1500);

fn store_of(cluster: &EtcdCluster) -> EtcdStore {
    EtcdStore::new(EtcdConfig { request_timeout: R, ..EtcdConfig::new(cluster.endpoints()) }).unwrap()
}

async fn read(store: &EtcdStore) -> Result<Snapshot, StoreError> {
    store.get(&["/k".to_owned()]).await
}

/// Writes `/k`, whatever it takes; answers how long it took.
async fn write_until_done(store: &EtcdStore, value: &str) -> Duration {
    let begin = Instant::now();
    let mut retry = Retry::new(Duration::from_millis(10), Duration::from_millis(100));
    loop {
        assert!(begin.elapsed() < SOON, "no write within {SOON:?}");
        let written = match read(store).await {
            Ok(snapshot) => {
                let at = snapshot.mod_revision("/k");
                store.commit(Transaction::new().put("/k", at, value.into())).await
            }
            Err(error) => Err(error),
        };
        match written {
            Ok(_) => return begin.elapsed(),
            Err(StoreError::Corrupt { .. }) => panic!("{written:?}"),
            Err(_) => tokio::time::sleep(retry.next_delay()).await,
        }
    }
}

#[tokio::test]
async fn etcd_that_was_never_there_leaves_no_write_unknown_and_is_found_when_it_comes() {
    let port = free_port();
    let config = EtcdConfig::new(vec![format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", free_port())]);
    let store = EtcdStore::new(config).unwrap();
    let begin = Instant::now();
    let write = store.commit(Transaction::new().put("/k", Revision::ABSENT, Vec::new())).await;
    assert!(matches!(write, Err(StoreError::Unavailable(_))), "{write:?}");
    assert!(matches!(read(&store).await, Err(StoreError::Unavailable(_))));
    assert!(begin.elapsed() < R, "a refused connection is no time-out");

    // One member of two that are named is there: found within the one request.
    let cluster = EtcdCluster::start(1);
    let config = EtcdConfig::new(vec![format!("127.0.0.1:{port}"), cluster.endpoint(0)]);
    let store = EtcdStore::new(config).unwrap();
    store.commit(Transaction::new().put("/k", Revision::ABSENT, Vec::new())).await.unwrap();
    assert_eq!(store.current_endpoint(), cluster.endpoint(0));
}

#[tokio::test]
async fn etcd_that_is_stopped_leaves_a_write_unknown_and_a_read_unavailable() {
    let cluster = EtcdCluster::start(1);
    let store = store_of(&cluster);
    write_until_done(&store, "1").await;
    let at = read(&store).await.unwrap().mod_revision("/k");
    cluster.stop(0);
    let begin = Instant::now();
    let write = store.commit(Transaction::new().put("/k", at, b"2".to_vec())).await;
    assert!(matches!(write, Err(StoreError::Unknown(_))), "{write:?}");
    assert!(begin.elapsed() < R + SLACK, "{:?}", begin.elapsed());
    let answer = read(&store).await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    assert!(begin.elapsed() < 2 * R + SLACK, "{:?}", begin.elapsed());
    cluster.resume(0);
    write_until_done(&store, "3").await;
}

#[tokio::test]
async fn etcd_with_one_member_stopped_costs_one_time_out() {
    let cluster = EtcdCluster::start(3);
    let follower = (cluster.leader() + 1) % 3;
    let config =
        EtcdConfig { request_timeout: R, first_member: follower, ..EtcdConfig::new(cluster.endpoints()) };
    let store = EtcdStore::new(config).unwrap();
    write_until_done(&store, "1").await;
    assert_eq!(store.current_endpoint(), cluster.endpoint(follower));
    cluster.stop(follower);
    let begin = Instant::now();
    let hung = read(&store).await;
    assert!(matches!(hung, Err(StoreError::Unavailable(_))), "{hung:?}");
    assert_ne!(store.current_endpoint(), cluster.endpoint(follower));
    write_until_done(&store, "2").await;
    let took = begin.elapsed();
    eprintln!("a stopped follower: writing again after {took:?}");
    assert!(took < R + SLACK, "{took:?}");
    for n in 0..20 {
        let took = write_until_done(&store, &n.to_string()).await;
        assert!(took < R, "the stopped member is asked again: {took:?}");
    }
    cluster.resume(follower);
}

#[tokio::test]
async fn etcd_with_its_leader_killed_is_written_again_within_a_bounded_time() {
    let mut cluster = EtcdCluster::start(3);
    let leader = cluster.leader();
    let config =
        EtcdConfig { request_timeout: R, first_member: leader, ..EtcdConfig::new(cluster.endpoints()) };
    let store = EtcdStore::new(config).unwrap();
    write_until_done(&store, "1").await;
    cluster.kill(leader);
    let took = write_until_done(&store, "2").await;
    eprintln!("a killed leader: written again after {took:?}");
    // An election takes one to two election time-outs of 1 s, and another round if votes split.
    assert!(took < Duration::from_secs(5) + SLACK, "{took:?}");
}

#[tokio::test]
async fn etcd_with_its_leader_stopped_is_written_again_within_a_bounded_time() {
    let cluster = EtcdCluster::start(3);
    let leader = cluster.leader();
    let config =
        EtcdConfig { request_timeout: R, first_member: leader, ..EtcdConfig::new(cluster.endpoints()) };
    let store = EtcdStore::new(config).unwrap();
    write_until_done(&store, "1").await;
    cluster.stop(leader);
    let took = write_until_done(&store, "2").await;
    eprintln!("a stopped leader: written again after {took:?}");
    assert!(took < Duration::from_secs(5) + SLACK, "{took:?}");
    cluster.resume(leader);
}

#[tokio::test]
async fn etcd_watch_stays_open_through_a_long_silence() {
    let cluster = EtcdCluster::start(1);
    let store = store_of(&cluster);
    write_until_done(&store, "0").await;
    let after = read(&store).await.unwrap().revision;
    let mut watch = store.watch("/k", after);
    // Longer than etcd lets a client live that asks too often for signs of life.
    let silent = tokio::time::timeout(Duration::from_secs(7), watch.next()).await;
    assert!(silent.is_err(), "{silent:?}");
    write_until_done(&store, "1").await;
    let changes = tokio::time::timeout(SOON, watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(changes.len(), 1);
}

#[tokio::test]
async fn etcd_watch_on_a_member_that_stops_ends_and_the_next_is_elsewhere() {
    let cluster = EtcdCluster::start(3);
    let store = store_of(&cluster);
    write_until_done(&store, "0").await;
    let mut after = read(&store).await.unwrap().revision;
    let stopped = cluster.index_of(store.current_endpoint());
    let mut watch = store.watch("/k", after);
    after = store.commit(Transaction::new().put("/k", after, b"1".to_vec())).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().len(), 1);
    cluster.stop(stopped);
    let begin = Instant::now();
    let end = tokio::time::timeout(SOON, watch.next()).await.unwrap().unwrap();
    let took = begin.elapsed();
    eprintln!("a watch on a stopped member: ended after {took:?}, {end:?}");
    assert!(matches!(end, Err(StoreError::Unavailable(_))), "{end:?}");
    // Silence until it is asked, and a request's time-out.
    assert!(took < Duration::from_secs(1) + R + SLACK, "{took:?}");
    assert_ne!(store.current_endpoint(), cluster.endpoint(stopped));
    drop(watch);
    let mut watch = store.watch("/k", after);
    write_until_done(&store, "2").await;
    let changes = tokio::time::timeout(SOON, watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(changes.len(), 1);
    cluster.resume(stopped);
}

#[tokio::test]
async fn etcd_that_is_full_takes_no_writes_until_there_is_room() {
    let cluster = EtcdCluster::start_with(1, &["--quota-backend-bytes", "2000000"]);
    let store = store_of(&cluster);
    let begin = Instant::now();
    let refused = loop {
        assert!(begin.elapsed() < SOON, "the quota is never reached");
        let at = read(&store).await.unwrap().mod_revision("/k");
        match store.commit(Transaction::new().put("/k", at, vec![b'x'; 400_000])).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    let StoreError::Unknown(cause) = refused else { panic!("{refused:?}") };
    let fault = cause.downcast_ref::<EtcdFault>().unwrap();
    assert!(fault.is_final() && fault.to_string().contains("space exceeded"), "{fault}");
    assert!(read(&store).await.is_ok(), "a full etcd still reads");
}

/// Of writes that cross the quota together one is refused, and done all the same.
#[tokio::test]
async fn etcd_that_becomes_full_says_of_no_write_that_it_was_not_done_which_was() {
    let cluster = EtcdCluster::start_with(1, &["--quota-backend-bytes", "20000000"]);
    let config = EtcdConfig { request_timeout: SOON, ..EtcdConfig::new(cluster.endpoints()) };
    let store = Arc::new(EtcdStore::new(config).unwrap());
    let (begin, mut written) = (Instant::now(), Vec::<(String, Result<Revision, StoreError>)>::new());
    // etcd measures its data base now and then.
    while written.iter().all(|(_, result)| result.is_ok()) {
        assert!(begin.elapsed() < SOON, "the quota is never reached");
        let from = written.len();
        let puts = (from..from + 24).map(|n| {
            let (store, key) = (Arc::clone(&store), format!("/k{n}"));
            async move {
                let put = Transaction::new().put(&key, Revision::ABSENT, vec![b'x'; 600_000]);
                (key, store.commit(put).await)
            }
        });
        let round: Vec<_> = futures::stream::iter(puts).buffer_unordered(12).collect().await;
        written.extend(round);
    }
    let (mut crossed, mut refused) = (0, 0);
    for (key, result) in written {
        let there = store.get(std::slice::from_ref(&key)).await.unwrap().entries.contains_key(&key);
        match result {
            Ok(_) => assert!(there, "{key}"),
            Err(StoreError::Unknown(_)) => (crossed, refused) = (crossed + usize::from(there), refused + 1),
            Err(error) => assert!(!there, "{key}: {error:?}"),
        }
    }
    eprintln!("{refused} writes were refused, of which {crossed} were done");
}

#[tokio::test]
async fn etcd_with_a_hundred_thousand_leases_is_read_in_pages() {
    const LEASES: usize = 100_000;
    let cluster = EtcdCluster::start(1);
    let config = EtcdConfig { request_timeout: SOON, ..EtcdConfig::new(cluster.endpoints()) };
    let store = EtcdStore::new(config).unwrap();
    let keys: Vec<_> = (0..LEASES).map(|n| format!("/leases/ebs/vol-{n:06}")).collect();
    for chunk in keys.chunks(OPERATIONS_MAX) {
        let transaction = chunk.iter().fold(Transaction::new(), |transaction, key| {
            transaction.put(key, Revision::ABSENT, vec![b'x'; 300])
        });
        store.commit(transaction).await.unwrap();
    }
    let begin = Instant::now();
    let snapshot = store.get_prefix("/leases/").await.unwrap();
    eprintln!("{LEASES} leases: read in {:?}", begin.elapsed());
    assert_eq!(snapshot.entries.len(), LEASES);
}

/// Set for the process that is killed in the next test.
const DOOMED: &str = "EXTVOL_TEST_DOOMED";

#[test]
fn etcd_and_its_directory_are_gone_after_the_test_process_was_killed() {
    const SELF: &str = "etcd_and_its_directory_are_gone_after_the_test_process_was_killed";
    if let Some(report) = std::env::var_os(DOOMED) {
        let cluster = EtcdCluster::start(1);
        let text = format!("{}\n{}\n", cluster.pid(0), cluster.directory().display());
        let draft = std::path::Path::new(&report).with_extension("draft");
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(&draft, &report).unwrap();
        std::thread::park_timeout(SOON);
        return;
    }
    let report = std::env::temp_dir().join(format!("extvol-doomed-{}", std::process::id()));
    let mut doomed = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", SELF])
        .env(DOOMED, &report)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the doomed process has an etcd", || report.exists());
    doomed.kill().unwrap();
    doomed.wait().unwrap();
    let text = std::fs::read_to_string(&report).unwrap();
    std::fs::remove_file(&report).unwrap();
    let (pid, directory) = text.trim_end().split_once('\n').unwrap();
    wait_until("its etcd is gone", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
    });
    wait_until("its directory is gone", || !std::path::Path::new(directory).exists());
}

#[tokio::test]
async fn etcd_that_wants_to_know_who_asks_refuses_reads_and_writes_by_that_name_and_does_neither() {
    let cluster = EtcdCluster::start(1);
    let store = store_of(&cluster);
    write_until_done(&store, "1").await;
    let at = read(&store).await.unwrap().mod_revision("/k");
    cluster.etcdctl(&["user", "add", "root:secret"]);
    cluster.etcdctl(&["user", "grant-role", "root", "root"]);
    cluster.etcdctl(&["auth", "enable"]);
    let is_told = |error: &StoreError| {
        let StoreError::Unavailable(cause) = error else { panic!("{error:?}") };
        let fault = cause.downcast_ref::<EtcdFault>().unwrap();
        assert!(fault.is_denied() && fault.is_final(), "{fault:?}");
        let text = fault.to_string();
        assert!(text.contains("authentication is on") && text.contains("user name is empty"), "{text}");
    };
    let refused = store.commit(Transaction::new().put("/k", at, b"2".to_vec())).await.unwrap_err();
    is_told(&refused);
    is_told(&read(&store).await.unwrap_err());
    is_told(&store.get_prefix("/").await.unwrap_err());
    cluster.etcdctl(&["--user", "root:secret", "auth", "disable"]);
    assert_eq!(read(&store).await.unwrap().mod_revision("/k"), at);
}
