//! The cases of the contract.

use futures::StreamExt;
use shared::store::{
    Change, Compare, KeyRange, LeaseStore, OPERATIONS_MAX, Revision, StoreError, Transaction,
};

use super::next;
use crate::Subject;

async fn put(store: &impl LeaseStore, key: &str, value: &str) -> Revision {
    let at = store.get(&[key.to_owned()]).await.unwrap().mod_revision(key);
    store.commit(Transaction::new().put(key, at, value.into())).await.unwrap()
}

async fn value(store: &impl LeaseStore, key: &str) -> Option<String> {
    let snapshot = store.get(&[key.to_owned()]).await.unwrap();
    snapshot.entries.get(key).map(|entry| String::from_utf8(entry.value.clone()).unwrap())
}

pub(crate) async fn an_unchanged_key_is_written_and_the_answer_is_its_revision(subject: &mut impl Subject) {
    let store = subject.store();
    let first = put(store, "/k", "1").await;
    let second = store.commit(Transaction::new().put("/k", first, b"2".to_vec())).await.unwrap();
    assert!(second > first);
    let snapshot = store.get(&["/k".to_owned(), "/none".to_owned()]).await.unwrap();
    assert_eq!(snapshot.mod_revision("/k"), second);
    assert_eq!(snapshot.revision, second, "nothing else writes");
    assert_eq!(snapshot.entries["/k"].value, b"2");
    assert_eq!(snapshot.mod_revision("/none"), Revision::ABSENT);
    // Who is refused is told what it asked for.
    let stale = Transaction::new().put("/k", first, b"3".to_vec());
    let asking = stale.clone().or_read(["/k".to_owned(), "/none".to_owned()]);
    for (stale, told) in [(stale, None), (asking, Some("2"))] {
        let Err(StoreError::Conflict(read)) = store.commit(stale).await else { panic!("it has changed") };
        let value = read.entries.get("/k").map(|entry| std::str::from_utf8(&entry.value).unwrap());
        assert_eq!((value, read.revision, read.mod_revision("/none")), (told, second, Revision::ABSENT));
        assert_eq!(read.mod_revision("/k"), told.map_or(Revision::ABSENT, |_| second));
    }
    assert_eq!(value(store, "/k").await.as_deref(), Some("2"));
}

pub(crate) async fn a_key_that_must_not_exist_is_written_only_while_it_does_not(subject: &mut impl Subject) {
    let create = || Transaction::new().put("/k", Revision::ABSENT, b"new".to_vec());
    subject.store().commit(create()).await.unwrap();
    let again = subject.store().commit(create()).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
    subject.delete("/k");
    subject.store().commit(create()).await.unwrap();
}

pub(crate) async fn one_failed_compare_and_nothing_of_the_transaction_is_written(subject: &mut impl Subject) {
    let store = subject.store();
    let revision = put(store, "/guard", "x").await;
    let transaction = Transaction::new()
        .put("/a", Revision::ABSENT, b"1".to_vec())
        .unchanged("/guard", Revision(revision.0 + 1))
        .put("/b", Revision::ABSENT, b"1".to_vec());
    let answer = store.commit(transaction).await;
    assert!(matches!(answer, Err(StoreError::Conflict(_))), "{answer:?}");
    let snapshot = store.get_prefix("/").await.unwrap();
    assert_eq!(snapshot.entries.keys().collect::<Vec<_>>(), ["/guard"]);
    assert_eq!(snapshot.revision, revision);
}

pub(crate) async fn a_value_is_compared_only_with_a_key_that_exists(subject: &mut impl Subject) {
    let store = subject.store();
    let guarded = |value: &str, key: &str| {
        let compare = Compare::Value { key: "/cluster".to_owned(), value: value.into() };
        Transaction::new().when(compare).put(key, Revision::ABSENT, Vec::new())
    };
    for value in ["", "id"] {
        let missing = store.commit(guarded(value, "/a")).await;
        assert!(matches!(missing, Err(StoreError::Conflict(_))), "{missing:?}");
    }
    put(store, "/cluster", "id").await;
    let other = store.commit(guarded("other", "/a")).await;
    assert!(matches!(other, Err(StoreError::Conflict(_))), "{other:?}");
    store.commit(guarded("id", "/a")).await.unwrap();
    assert_eq!(value(store, "/a").await.as_deref(), Some(""));
}

pub(crate) async fn a_value_that_came_back_is_still_a_change(subject: &mut impl Subject) {
    let store = subject.store();
    let read = put(store, "/k", "a").await;
    put(store, "/k", "b").await;
    put(store, "/k", "a").await;
    let answer = store.commit(Transaction::new().put("/k", read, b"c".to_vec())).await;
    assert!(matches!(answer, Err(StoreError::Conflict(_))), "{answer:?}");
}

pub(crate) async fn a_transaction_without_writes_checks_its_compares_and_changes_nothing(
    subject: &mut impl Subject,
) {
    let store = subject.store();
    let revision = put(store, "/k", "a").await;
    assert_eq!(store.commit(Transaction::new().unchanged("/k", revision)).await.unwrap(), revision);
    let answer = store.commit(Transaction::new().unchanged("/k", Revision::ABSENT)).await;
    assert!(matches!(answer, Err(StoreError::Conflict(_))), "{answer:?}");
}

pub(crate) async fn keys_are_read_at_one_revision_however_many(subject: &mut impl Subject) {
    let store = subject.store();
    let keys: Vec<_> = (0..3 * OPERATIONS_MAX).map(|n| format!("/k/{n:04}")).collect();
    let mut last = Revision::ABSENT;
    for chunk in keys.chunks(OPERATIONS_MAX) {
        let transaction = chunk.iter().fold(Transaction::new(), |transaction, key| {
            transaction.put(key, Revision::ABSENT, key.clone().into_bytes())
        });
        let revision = store.commit(transaction).await.unwrap();
        assert!(revision > last, "revisions only grow");
        last = revision;
    }
    let snapshot = store.get(&keys).await.unwrap();
    assert_eq!((snapshot.entries.len(), snapshot.revision), (keys.len(), last));
    assert!(store.get(&[]).await.unwrap().entries.is_empty());
}

pub(crate) async fn a_prefix_is_read_whole_beyond_one_page_and_nothing_beside_it(subject: &mut impl Subject) {
    const KEYS: usize = 4_500;
    let store = subject.store();
    for beside in ["/k", "/k0", "/j/z", "/l/a"] {
        put(store, beside, "beside").await;
    }
    let keys: Vec<_> = (0..KEYS).map(|n| format!("/k/{n}")).collect();
    let mut last = Revision::ABSENT;
    for chunk in keys.chunks(OPERATIONS_MAX) {
        // Nearly a kilobyte each, so that all of it is more than gRPC's default limit of 4 MiB.
        let transaction = chunk.iter().fold(Transaction::new(), |transaction, key| {
            transaction.put(key, Revision::ABSENT, key.repeat(150).into_bytes())
        });
        last = store.commit(transaction).await.unwrap();
    }
    let snapshot = store.get_prefix("/k/").await.unwrap();
    assert_eq!((snapshot.entries.len(), snapshot.revision), (KEYS, last));
    for key in keys {
        assert_eq!(snapshot.entries[&key].value, key.repeat(150).into_bytes());
    }
    assert!(store.get_prefix("/none/").await.unwrap().entries.is_empty());
}

pub(crate) async fn keys_and_prefixes_are_read_together_at_one_revision(subject: &mut impl Subject) {
    const KEYS: usize = 2_500;
    let store = subject.store();
    for beside in ["/k", "/k0", "/l/a", "/a"] {
        put(store, beside, "beside").await;
    }
    let keys: Vec<_> = (0..KEYS).map(|n| format!("/k/{n:04}")).collect();
    for chunk in keys.chunks(OPERATIONS_MAX) {
        let transaction = chunk.iter().fold(Transaction::new(), |transaction, key| {
            transaction.put(key, Revision::ABSENT, key.clone().into_bytes())
        });
        store.commit(transaction).await.unwrap();
    }
    let last = put(store, "/m/a", "1").await;
    let wanted = ["/a", "/none"].map(str::to_owned);
    let prefixes = ["/k/", "/m/", "/none/"].map(str::to_owned);
    let snapshot = store.get_all(&wanted, &prefixes).await.unwrap();
    assert_eq!(snapshot.revision, last);
    let mut expected: Vec<_> = keys.iter().map(String::as_str).chain(["/a", "/m/a"]).collect();
    expected.sort_unstable();
    assert_eq!(snapshot.entries.keys().collect::<Vec<_>>(), expected);
    assert_eq!(store.get_all(&wanted, &[]).await.unwrap().entries.len(), 1);
    assert_eq!(store.get_all(&[], &prefixes).await.unwrap().entries.len(), KEYS + 1);
}

pub(crate) async fn a_watch_sees_every_write_after_its_revision_in_order(subject: &mut impl Subject) {
    let before = put(subject.store(), "/w/old", "0").await;
    // Written before the watch opens, and after its revision.
    let mut revisions = vec![put(subject.store(), "/w/a", "1").await];
    subject.delete("/w/a");
    put(subject.store(), "/other", "x").await;
    let both = Transaction::new().put("/w/b", Revision::ABSENT, b"2".to_vec()).put(
        "/w/c",
        Revision::ABSENT,
        b"2".to_vec(),
    );
    revisions.push(subject.store().commit(both).await.unwrap());

    let store = subject.store();
    let mut watch = store.watch("/w/", before);
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.extend(next(&mut watch).await.unwrap());
    }
    // And after it has caught up.
    for n in 0..5 {
        revisions.push(put(store, "/w/d", &n.to_string()).await);
        let changes = next(&mut watch).await.unwrap();
        assert_eq!(changes.len(), 1);
        seen.extend(changes);
    }
    let key = |change: &Change| match change {
        Change::Put { key, .. } => format!("put {key}"),
        Change::Delete { key, at } => {
            assert!(revisions[0] < *at && *at < revisions[1], "the revision that deleted it: {at}");
            format!("delete {key}")
        }
    };
    let expected = ["put /w/a", "delete /w/a", "put /w/b", "put /w/c"];
    let expected: Vec<_> = expected.into_iter().chain(["put /w/d"; 5]).map(str::to_owned).collect();
    assert_eq!(seen.iter().map(key).collect::<Vec<_>>(), expected);
    let mut puts: Vec<_> = seen
        .iter()
        .filter_map(|change| match change {
            Change::Put { entry, .. } => Some(entry.mod_revision),
            Change::Delete { .. } => None,
        })
        .collect();
    puts.dedup();
    assert_eq!(puts, revisions);
}

pub(crate) async fn a_watch_of_one_key_tells_nothing_of_those_that_begin_with_it(subject: &mut impl Subject) {
    let before = put(subject.store(), "/w/agent-1", "1").await;
    put(subject.store(), "/w/agent-10", "1").await;
    put(subject.store(), "/w/agent-1/x", "1").await;
    let last = put(subject.store(), "/w/agent-1", "2").await;
    let mut watch = subject.store().watch("/w/agent-1", before);
    let changes = next(&mut watch).await.unwrap();
    assert_eq!(
        changes.iter().map(|change| (change.key(), change.revision())).collect::<Vec<_>>(),
        [("/w/agent-1", last)]
    );
}

pub(crate) async fn a_watch_on_compacted_history_ends_with_an_error(subject: &mut impl Subject) {
    let first = put(subject.store(), "/w/a", "1").await;
    put(subject.store(), "/w/a", "2").await;
    let last = put(subject.store(), "/w/a", "3").await;
    subject.compact(last);
    let store = subject.store();
    let mut watch = store.watch("/w/", first);
    let end = next(&mut watch).await;
    assert!(matches!(end, Err(StoreError::Compacted { after }) if after == first), "{end:?}");
    assert!(watch.next().await.is_none());
    // What is left can be watched, and everything can be read.
    let mut watch = store.watch("/w/", last);
    put(store, "/w/a", "4").await;
    assert_eq!(next(&mut watch).await.unwrap().len(), 1);
    assert_eq!(store.get_prefix("/w/").await.unwrap().entries["/w/a"].value, b"4");
}

pub(crate) async fn a_range_is_deleted_whole_with_its_transaction_and_nothing_beside_it(
    subject: &mut impl Subject,
) {
    let store = subject.store();
    let range = |from: &str, to: &str| KeyRange { from: from.to_owned(), to: to.to_owned() };
    let mut last = Revision::ABSENT;
    for key in ["/e/1", "/e/2", "/e/2/x", "/e/3", "/f"] {
        last = put(store, key, key).await;
    }
    // A compare that fails deletes nothing.
    let refused = Transaction::new().unchanged("/f", Revision(1)).delete_range(range("/e/", "/e/3"));
    assert!(matches!(store.commit(refused).await, Err(StoreError::Conflict(_))));
    let mut watch = store.watch("/e/", last);
    let trim = Transaction::new().put("/trimmed", Revision::ABSENT, b"3".to_vec());
    let at = store.commit(trim.delete_range(range("/e/", "/e/3"))).await.unwrap();
    let snapshot = store.get_prefix("/").await.unwrap();
    assert_eq!(snapshot.entries.keys().collect::<Vec<_>>(), ["/e/3", "/f", "/trimmed"]);
    assert_eq!((snapshot.revision, snapshot.mod_revision("/trimmed")), (at, at));
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(next(&mut watch).await.unwrap());
    }
    let deleted = |key: &str| Change::Delete { key: key.to_owned(), at };
    assert_eq!(seen, ["/e/1", "/e/2", "/e/2/x"].map(deleted));
    // A range without keys makes no revision; a key that is written again is as new.
    let empty = Transaction::new().delete_range(range("/none/", "/none0"));
    assert_eq!(store.commit(empty).await.unwrap(), at);
    store.commit(Transaction::new().put("/e/1", Revision::ABSENT, Vec::new())).await.unwrap();
}

pub(crate) async fn too_large_and_contradictory_transactions_are_refused_undone(subject: &mut impl Subject) {
    let store = subject.store();
    let large = (0..=OPERATIONS_MAX).fold(Transaction::new(), |transaction, n| {
        transaction.put(&format!("/k/{n}"), Revision::ABSENT, Vec::new())
    });
    let error = store.commit(large).await.unwrap_err();
    let StoreError::Unavailable(cause) = error else { panic!("{error:?}") };
    assert!(cause.to_string().contains("at most 128"), "{cause}");

    let twice = Transaction::new().put("/k", Revision::ABSENT, b"1".to_vec()).put(
        "/k",
        Revision::ABSENT,
        b"2".to_vec(),
    );
    let error = store.commit(twice).await.unwrap_err();
    let StoreError::Unavailable(cause) = error else { panic!("{error:?}") };
    assert!(cause.to_string().contains("as it will be again"), "{cause}");

    let range = KeyRange { from: "/k".to_owned(), to: "/l".to_owned() };
    let both = Transaction::new().put("/k", Revision::ABSENT, b"1".to_vec()).delete_range(range);
    let error = store.commit(both).await.unwrap_err();
    let StoreError::Unavailable(cause) = error else { panic!("{error:?}") };
    assert!(cause.to_string().contains("as it will be again"), "{cause}");
    assert!(store.get_prefix("/").await.unwrap().entries.is_empty());
}

pub(crate) async fn an_older_history_is_corrupt_to_whoever_saw_the_newer_one(subject: &mut impl Subject) {
    put(subject.store(), "/k", "1").await;
    subject.take_backup();
    let newest = put(subject.store(), "/k", "2").await;
    subject.restore_backup();
    let store = subject.store();
    // The first answers may be of the connection that broke.
    let deadline = std::time::Instant::now() + testing::SOON;
    let read = loop {
        match store.get(&["/k".to_owned()]).await {
            Err(StoreError::Unavailable(_)) if std::time::Instant::now() < deadline => {}
            answer => break answer,
        }
    };
    assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
    let read = store.get_prefix("/").await;
    assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
    let write = store.commit(Transaction::new().put("/k", newest, b"3".to_vec())).await;
    assert!(matches!(write, Err(StoreError::Corrupt { .. })), "{write:?}");
}
