//! The faults of the store in memory are those of a real etcd.

#![expect(clippy::unwrap_used, reason = "a test that unwraps fails with a place and a value")]

use futures::StreamExt;
use shared::memory::{CommitFault, MemoryStore};
use shared::store::{LeaseStore, Revision, StoreError, Transaction};

fn create(key: &str) -> Transaction {
    Transaction::new().put(key, Revision::ABSENT, b"v".to_vec())
}

async fn exists(store: &MemoryStore, key: &str) -> bool {
    store.get(&[key.to_owned()]).await.unwrap().entries.contains_key(key)
}

#[tokio::test]
async fn an_unknown_commit_is_done_or_not_as_the_test_wants() {
    let store = MemoryStore::new();
    for (fault, done) in [(CommitFault::UnknownDone, true), (CommitFault::UnknownNotDone, false)] {
        let key = format!("/{fault:?}");
        store.fail_next_commit(fault);
        let answer = store.commit(create(&key)).await;
        assert!(matches!(answer, Err(StoreError::Unknown(_))), "{answer:?}");
        assert_eq!(exists(&store, &key).await, done);
    }
    store.fail_next_commit(CommitFault::Unavailable);
    let answer = store.commit(create("/k")).await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    store.commit(create("/k")).await.unwrap();
}

#[tokio::test]
async fn a_late_commit_is_done_after_a_read_that_showed_that_it_was_not() {
    let store = MemoryStore::new();
    store.fail_next_commit(CommitFault::UnknownDoneAfter(1));
    let answer = store.commit(create("/k")).await;
    assert!(matches!(answer, Err(StoreError::Unknown(_))), "{answer:?}");
    assert!(!exists(&store, "/k").await);
    assert!(exists(&store, "/k").await);
}

#[tokio::test]
async fn a_barrier_keeps_a_late_commit_from_being_done() {
    let store = MemoryStore::new();
    let session = store.commit(create("/session")).await.unwrap();
    store.fail_next_commit(CommitFault::UnknownDoneAfter(2));
    let _ = store.commit(create("/k").unchanged("/session", session)).await;
    store.commit(Transaction::new().put("/session", session, b"barrier".to_vec())).await.unwrap();
    for _ in 0..3 {
        assert!(!exists(&store, "/k").await);
    }
}

#[tokio::test]
async fn reads_fail_and_watches_end_when_the_test_wants() {
    let store = MemoryStore::new();
    store.fail_reads(true);
    assert!(matches!(store.get_prefix("/").await, Err(StoreError::Unavailable(_))));
    store.fail_reads(false);
    let revision = store.get_prefix("/").await.unwrap().revision;
    let mut watch = store.watch("/", revision);
    store.plant("/k", "v");
    assert_eq!(watch.next().await.unwrap().unwrap().len(), 1);
    store.break_watches();
    assert!(matches!(watch.next().await, Some(Err(StoreError::Unavailable(_)))));
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn another_client_has_not_seen_what_makes_a_restored_store_corrupt() {
    let store = MemoryStore::new();
    let backup = store.backup();
    store.commit(create("/k")).await.unwrap();
    store.restore(backup);
    assert!(matches!(store.get_prefix("/").await, Err(StoreError::Corrupt { .. })));
    assert!(store.another_client().get_prefix("/").await.is_ok());
}
