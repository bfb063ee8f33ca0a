//! What the protocol relies on in a store: the very same cases against the store in memory and
//! against a real etcd each.

#![expect(clippy::unwrap_used, reason = "a test that unwraps fails with a place and a value")]

mod support;

use shared::etcd::{EtcdConfig, EtcdStore};
use shared::memory::{MemoryBackup, MemoryStore};
use shared::store::{LeaseStore, Revision};
use testing::EtcdCluster;

/// A store, and what only a person or a fault does to it.
pub(crate) trait Subject {
    type Store: LeaseStore;
    fn store(&self) -> &Self::Store;
    fn delete(&mut self, key: &str);
    fn compact(&mut self, revision: Revision);
    fn take_backup(&mut self);
    fn restore_backup(&mut self);
}

struct Memory {
    store: MemoryStore,
    backup: Option<MemoryBackup>,
}

impl Memory {
    fn start() -> Self {
        Self { store: MemoryStore::new(), backup: None }
    }
}

impl Subject for Memory {
    type Store = MemoryStore;
    fn store(&self) -> &MemoryStore {
        &self.store
    }
    fn delete(&mut self, key: &str) {
        self.store.delete(key);
    }
    fn compact(&mut self, revision: Revision) {
        self.store.compact(revision);
    }
    fn take_backup(&mut self) {
        self.backup = Some(self.store.backup());
    }
    fn restore_backup(&mut self) {
        self.store.restore(self.backup.take().unwrap());
    }
}

struct Etcd {
    cluster: EtcdCluster,
    store: EtcdStore,
}

impl Etcd {
    fn start() -> Self {
        let cluster = EtcdCluster::start(1);
        let config = EtcdConfig { request_timeout: support::PATIENT, ..EtcdConfig::new(cluster.endpoints()) };
        Self { store: EtcdStore::new(config).unwrap(), cluster }
    }
}

impl Subject for Etcd {
    type Store = EtcdStore;
    fn store(&self) -> &EtcdStore {
        &self.store
    }
    fn delete(&mut self, key: &str) {
        self.cluster.etcdctl(&["del", key]);
    }
    fn compact(&mut self, revision: Revision) {
        self.cluster.etcdctl(&["compact", &revision.to_string()]);
    }
    fn take_backup(&mut self) {
        self.cluster.save_snapshot("backup");
    }
    fn restore_backup(&mut self) {
        self.cluster.restore_snapshot("backup");
    }
}

macro_rules! contract {
    ($($case:ident,)*) => {
        mod memory_store {
            $(#[tokio::test]
            async fn $case() {
                crate::support::cases::$case(&mut crate::Memory::start()).await;
            })*
        }
        mod etcd_store {
            $(#[tokio::test]
            async fn $case() {
                crate::support::cases::$case(&mut crate::Etcd::start()).await;
            })*
        }
    };
}

contract! {
    an_unchanged_key_is_written_and_the_answer_is_its_revision,
    a_key_that_must_not_exist_is_written_only_while_it_does_not,
    one_failed_compare_and_nothing_of_the_transaction_is_written,
    a_value_is_compared_only_with_a_key_that_exists,
    a_value_that_came_back_is_still_a_change,
    a_transaction_without_writes_checks_its_compares_and_changes_nothing,
    keys_are_read_at_one_revision_however_many,
    a_prefix_is_read_whole_beyond_one_page_and_nothing_beside_it,
    keys_and_prefixes_are_read_together_at_one_revision,
    a_watch_sees_every_write_after_its_revision_in_order,
    a_watch_of_one_key_tells_nothing_of_those_that_begin_with_it,
    a_watch_on_compacted_history_ends_with_an_error,
    a_range_is_deleted_whole_with_its_transaction_and_nothing_beside_it,
    too_large_and_contradictory_transactions_are_refused_undone,
    an_older_history_is_corrupt_to_whoever_saw_the_newer_one,
}
