//! What the protocol needs of etcd: linearizable reads, transactions and watches. No etcd leases:
//! their renewals bypass raft (docs/decisions/0001-no-etcd-leases.md).

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use futures::Stream;
pub use protocol::ids::Revision;

/// One key as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its value.
    pub value: Vec<u8>,
    /// The revision that last wrote it.
    pub mod_revision: Revision,
}

/// Keys read at one revision. A key that is not in it did not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// By key.
    pub entries: BTreeMap<String, Entry>,
    /// The store's revision at the read.
    pub revision: Revision,
}

impl Snapshot {
    /// The revision that last wrote `key`; [`Revision::ABSENT`] when it does not exist.
    #[must_use]
    pub fn mod_revision(&self, key: &str) -> Revision {
        self.entries.get(key).map_or(Revision::ABSENT, |entry| entry.mod_revision)
    }
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key was last written at this revision: "unchanged since I read it". Equal values are no
    /// substitute, for a value can come back.
    Unchanged {
        /// The key.
        key: String,
        /// Its `mod_revision`; [`Revision::ABSENT`] for "does not exist".
        at: Revision,
    },
    /// The key has this value: for the installation's record alone, which must differ in *value*
    /// after a restore that turned revisions back.
    Value {
        /// The key.
        key: String,
        /// Its value.
        value: Vec<u8>,
    },
}

/// The most compares, and the most writes, of one transaction: etcd's default for `--max-txn-ops`.
pub const OPERATIONS_MAX: usize = 128;

/// A transaction that etcd would refuse for its size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a transaction with {compares} compares and {writes} writes: etcd takes at most {OPERATIONS_MAX} of each"
)]
pub struct TooManyOperations {
    /// How many conditions it has.
    pub compares: usize,
    /// How many writes it has; a deletion of a range counts as one.
    pub writes: usize,
}

/// All keys from `from` up to, and without, `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key.
    pub from: String,
    /// The first key that is not in it.
    pub to: String,
}

impl KeyRange {
    /// One key alone.
    #[must_use]
    pub fn of(key: &str) -> Self {
        Self { from: key.to_owned(), to: format!("{key}\0") }
    }
}

/// A transaction: all compares hold, then all puts and deletions happen; or nothing does.
///
/// There is no blind put: [`Transaction::put`] adds the compare of the key that it writes, and
/// [`Transaction::overwrite`] is for keys that their owner alone writes, under a compare of another. A range
/// cannot be compared key by key: who deletes one compares a record that every writer of a key in it
/// compares as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    compares: Vec<Compare>,
    puts: Vec<(String, Vec<u8>)>,
    deletions: Vec<KeyRange>,
    reads: Vec<String>,
}

impl Transaction {
    /// A transaction that does nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Adds the condition that `key` is unchanged since it was read at `at`.
    #[must_use]
    pub fn unchanged(self, key: &str, at: Revision) -> Self {
        self.when(Compare::Unchanged { key: key.to_owned(), at })
    }

    /// Writes `key`, if it is unchanged since it was read at `at`.
    #[must_use]
    pub fn put(mut self, key: &str, at: Revision, value: Vec<u8>) -> Self {
        self = self.unchanged(key, at);
        self.puts.push((key.to_owned(), value));
        self
    }

    /// Deletes every key of a range. Not a key that this transaction puts: etcd refuses that.
    #[must_use]
    pub fn delete_range(mut self, range: KeyRange) -> Self {
        self.deletions.push(range);
        self
    }

    /// Writes `key` whatever it holds: a heartbeat, in a transaction that compares its owner's session.
    #[must_use]
    pub fn overwrite(mut self, key: &str, value: Vec<u8>) -> Self {
        self.puts.push((key.to_owned(), value));
        self
    }

    /// Reads keys instead, when a condition does not hold: [`StoreError::Conflict`] has them.
    #[must_use]
    pub fn or_read(mut self, keys: impl IntoIterator<Item = String>) -> Self {
        self.reads.extend(keys);
        self
    }

    /// The keys that are read when a condition does not hold.
    #[must_use]
    pub fn reads(&self) -> &[String] {
        &self.reads
    }

    /// The conditions.
    #[must_use]
    pub fn compares(&self) -> &[Compare] {
        &self.compares
    }

    /// The keys that are written, with their values.
    #[must_use]
    pub fn puts(&self) -> &[(String, Vec<u8>)] {
        &self.puts
    }

    /// The ranges that are deleted.
    #[must_use]
    pub fn deletions(&self) -> &[KeyRange] {
        &self.deletions
    }

    /// Whether etcd takes a transaction of this size.
    ///
    /// # Errors
    /// With its size, when it has more than [`OPERATIONS_MAX`] compares or writes.
    pub fn check_size(&self) -> Result<(), TooManyOperations> {
        let (compares, writes) = (self.compares.len(), self.puts.len() + self.deletions.len());
        if compares.max(writes).max(self.reads.len()) > OPERATIONS_MAX {
            return Err(TooManyOperations { compares, writes });
        }
        Ok(())
    }
}

/// A write that a watch reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key was written.
    Put {
        /// The key.
        key: String,
        /// What it holds now.
        entry: Entry,
    },
    /// The key was deleted.
    Delete {
        /// The key.
        key: String,
        /// The revision that deleted it.
        at: Revision,
    },
}

impl Change {
    /// The key that was written or deleted.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    /// The revision that wrote or deleted it.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put { entry, .. } => entry.mod_revision,
            Self::Delete { at, .. } => *at,
        }
    }
}

/// Why a store operation has no plain answer. One variant for each different reaction.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A compare did not hold; nothing was written. The keys that the transaction reads then, as they were.
    #[error("etcd has changed since it was read")]
    Conflict(Snapshot),
    /// A write may have been done, may be done later, or never. Close it by a barrier, never by a
    /// read: it may commit after a linearizable read that showed that it had not.
    #[error("etcd did not answer a write, which may have been done or may still be done")]
    Unknown(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A read got no answer, or a write was certainly not done. Try again, later.
    #[error("etcd is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The history that a watch asked for is no longer kept. Read everything, and watch from there.
    #[error("etcd no longer has its history after revision {after}")]
    Compacted {
        /// The revision after which it was asked for.
        after: Revision,
    },
    /// What etcd holds cannot be right: stop, tell a person.
    #[error("etcd holds what cannot be right: {what}")]
    Corrupt {
        /// Key and fault, as a fragment.
        what: String,
        /// The cause, if there is one.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

/// etcd, or what stands for it in a test.
pub trait LeaseStore: Send + Sync + 'static {
    /// Reads keys, all at one revision, linearizably.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] and [`StoreError::Corrupt`].
    fn get(&self, keys: &[String]) -> impl Future<Output = Result<Snapshot, StoreError>> + Send;

    /// Reads every key that begins with `prefix`, at one revision, linearizably.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] and [`StoreError::Corrupt`].
    fn get_prefix(&self, prefix: &str) -> impl Future<Output = Result<Snapshot, StoreError>> + Send;

    /// Reads keys and every key that begins with one of `prefixes`, all at one revision, linearizably.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] and [`StoreError::Corrupt`].
    fn get_all(
        &self,
        keys: &[String],
        prefixes: &[String],
    ) -> impl Future<Output = Result<Snapshot, StoreError>> + Send;

    /// Commits a transaction; answers its revision.
    ///
    /// # Errors
    /// Any [`StoreError`]. After [`StoreError::Unknown`] nothing may be concluded from a read alone.
    fn commit(&self, transaction: Transaction) -> impl Future<Output = Result<Revision, StoreError>> + Send;

    /// Follows all writes to keys that begin with `prefix`, which ends with a slash, or to one key, after revision `after`; an item
    /// holds whole revisions. The stream ends with an error: after [`StoreError::Compacted`] the caller reads again
    /// and watches on; after another, it may also watch on from the last revision that it was told.
    /// A silent watch proves nothing.
    fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> impl Stream<Item = Result<Vec<Change>, StoreError>> + Send + Unpin;
}

/// A store that several share is one itself.
impl<S: LeaseStore> LeaseStore for Arc<S> {
    async fn get(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        (**self).get(keys).await
    }

    async fn get_prefix(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        (**self).get_prefix(prefix).await
    }

    async fn get_all(&self, keys: &[String], prefixes: &[String]) -> Result<Snapshot, StoreError> {
        (**self).get_all(keys, prefixes).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        (**self).commit(transaction).await
    }

    fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> impl Stream<Item = Result<Vec<Change>, StoreError>> + Send + Unpin {
        (**self).watch(prefix, after)
    }
}
