//! A store in memory, for tests: the semantics of etcd that the protocol relies on, and faults on
//! demand. Nothing in it depends on time or chance; `shared/tests/store_contract.rs` runs the same
//! cases against it and against real etcd.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{Stream, stream};
use tokio::sync::watch;

use crate::store::{
    Change, Compare, Entry, KeyRange, LeaseStore, Revision, Snapshot, StoreError, Transaction,
};

/// What happens to the next commit instead of a plain answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitFault {
    /// It is done, and the answer is [`StoreError::Unknown`].
    UnknownDone,
    /// It is never done, and the answer is [`StoreError::Unknown`].
    UnknownNotDone,
    /// The answer is [`StoreError::Unknown`]; it is done, if its compares hold *then*, right after
    /// this many further reads and commits, by whichever client.
    UnknownDoneAfter(usize),
    /// It is not done, and the answer is [`StoreError::Unavailable`].
    Unavailable,
}

/// The cause in an error that a test asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryFault {
    /// The test switched this on.
    #[error("switched on by a test")]
    Switched,
    /// A transaction that writes a key twice, or writes and deletes one, which etcd refuses.
    #[error("refused, as it will be again: a transaction that writes a key twice")]
    DuplicateKey,
}

/// What was stored at some moment: see [`MemoryStore::restore`].
#[derive(Clone, Debug)]
pub struct MemoryBackup {
    entries: BTreeMap<String, Entry>,
    revision: i64,
}

#[derive(Debug, Default)]
struct Server {
    entries: BTreeMap<String, Entry>,
    revision: i64,
    /// Each write's revision and changes, in order.
    history: Vec<(i64, Vec<Change>)>,
    /// History before this revision is gone.
    compacted: i64,
    faults: VecDeque<CommitFault>,
    reads_fail: bool,
    /// Sent and not yet done: what, and after how many further operations.
    in_flight: Vec<(usize, Transaction)>,
    /// Grows whenever the open watches are to end.
    watch_life: u64,
}

impl Server {
    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Unchanged { key, at } => {
                self.entries.get(key).map_or(Revision::ABSENT, |entry| entry.mod_revision) == *at
            }
            Compare::Value { key, value } => self.entries.get(key).is_some_and(|entry| entry.value == *value),
        }
    }

    fn apply(&mut self, transaction: &Transaction) -> Option<Revision> {
        if !transaction.compares().iter().all(|compare| self.holds(compare)) {
            return None;
        }
        self.write(transaction.puts(), transaction.deletions());
        Some(Revision(self.revision))
    }

    /// As in etcd, what writes nothing and deletes nothing that exists makes no revision.
    fn write(&mut self, puts: &[(String, Vec<u8>)], deletions: &[KeyRange]) {
        let deleted: Vec<_> = deletions
            .iter()
            .flat_map(|KeyRange { from, to }| self.entries.range(from.clone()..to.clone()))
            .map(|(key, _)| key.clone())
            .collect();
        if puts.is_empty() && deleted.is_empty() {
            return;
        }
        self.revision += 1;
        let mut changes = Vec::new();
        for (key, value) in puts {
            let entry = Entry { value: value.clone(), mod_revision: Revision(self.revision) };
            self.entries.insert(key.clone(), entry.clone());
            changes.push(Change::Put { key: key.clone(), entry });
        }
        for key in deleted {
            self.entries.remove(&key);
            changes.push(Change::Delete { key, at: Revision(self.revision) });
        }
        self.history.push((self.revision, changes));
    }

    /// One more operation has been done: what was waiting for it is done now.
    fn operation_done(&mut self) {
        let mut due = Vec::new();
        self.in_flight.retain_mut(|(operations, transaction)| {
            *operations = operations.saturating_sub(1);
            if *operations == 0 {
                due.push(transaction.clone());
            }
            *operations > 0
        });
        for transaction in due {
            self.apply(&transaction);
        }
    }
}

/// etcd, in memory. A clone is the same client; [`MemoryStore::another_client`] is another one.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    server: Arc<Mutex<Server>>,
    /// Told of whatever may concern a watch.
    changed: Arc<watch::Sender<()>>,
    /// The highest revision that this client has seen.
    highest: Arc<Mutex<i64>>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store, at revision 1 as a new etcd is.
    #[must_use]
    pub fn new() -> Self {
        let server = Server { revision: 1, ..Server::default() };
        Self {
            server: Arc::new(Mutex::new(server)),
            changed: Arc::new(watch::Sender::new(())),
            highest: Arc::default(),
        }
    }

    /// Another client of the same store, which has seen nothing yet.
    #[must_use]
    pub fn another_client(&self) -> Self {
        Self { highest: Arc::default(), ..self.clone() }
    }

    /// Makes the next commit that has no fault yet, by whichever client, go wrong.
    pub fn fail_next_commit(&self, fault: CommitFault) {
        self.server().faults.push_back(fault);
    }

    /// Makes all reads fail, or work again.
    pub fn fail_reads(&self, fail: bool) {
        self.server().reads_fail = fail;
    }

    /// Ends all watches that are open.
    pub fn break_watches(&self) {
        self.server().watch_life += 1;
        self.changed.send_replace(());
    }

    /// Forgets the history before `revision`. Watches that need it end.
    pub fn compact(&self, revision: Revision) {
        let mut server = self.server();
        server.compacted = server.compacted.max(revision.0);
        server.history.retain(|(at, _)| *at >= revision.0);
        drop(server);
        self.changed.send_replace(());
    }

    /// Writes `key`, whatever it holds: what only a person does.
    pub fn plant(&self, key: &str, value: impl Into<Vec<u8>>) {
        self.server().write(&[(key.to_owned(), value.into())], &[]);
        self.changed.send_replace(());
    }

    /// Deletes `key`: what only a person does.
    pub fn delete(&self, key: &str) {
        let range = KeyRange { from: key.to_owned(), to: format!("{key}\0") };
        self.server().write(&[], &[range]);
        self.changed.send_replace(());
    }

    /// What is stored now.
    #[must_use]
    pub fn backup(&self) -> MemoryBackup {
        let server = self.server();
        MemoryBackup { entries: server.entries.clone(), revision: server.revision }
    }

    /// Stores what was stored then, at the revision of then. Ends all watches.
    pub fn restore(&self, backup: MemoryBackup) {
        let mut server = self.server();
        server.entries = backup.entries;
        server.revision = backup.revision;
        server.compacted = backup.revision + 1;
        server.history.clear();
        server.in_flight.clear();
        drop(server);
        self.break_watches();
    }

    fn server(&self) -> MutexGuard<'_, Server> {
        // A test that panicked has been told so already.
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks an answer's revision against what this client has seen. Nothing can come in between
    /// here, so what was seen at the answer was seen at the request.
    fn seen(&self, revision: i64) -> Result<Revision, StoreError> {
        let mut highest = self.highest.lock().unwrap_or_else(PoisonError::into_inner);
        if revision < *highest {
            let what = format!("its revision is {revision}, and it was {highest} before");
            return Err(StoreError::Corrupt { what, source: None });
        }
        *highest = revision;
        Ok(Revision(revision))
    }

    fn read(&self, wanted: impl Fn(&str) -> bool) -> Result<Snapshot, StoreError> {
        let mut server = self.server();
        if server.reads_fail {
            return Err(StoreError::Unavailable(Box::new(MemoryFault::Switched)));
        }
        let revision = self.seen(server.revision)?;
        let entries = server.entries.iter().filter(|(key, _)| wanted(key));
        let entries = entries.map(|(key, entry)| (key.clone(), entry.clone())).collect();
        server.operation_done();
        drop(server);
        self.changed.send_replace(());
        Ok(Snapshot { entries, revision })
    }

    fn do_commit(&self, transaction: &Transaction) -> Result<Revision, StoreError> {
        let unknown = || Err(StoreError::Unknown(Box::new(MemoryFault::Switched)));
        let unavailable = |fault| Err(StoreError::Unavailable(Box::new(fault)));
        transaction.check_size().map_err(|error| StoreError::Unavailable(Box::new(error)))?;
        let mut server = self.server();
        let keys: BTreeSet<_> = transaction.puts().iter().map(|(key, _)| key).collect();
        let deleted = |key: &String| {
            transaction.deletions().iter().any(|range| (&range.from..&range.to).contains(&key))
        };
        if keys.len() < transaction.puts().len() || keys.into_iter().any(deleted) {
            return unavailable(MemoryFault::DuplicateKey);
        }
        match server.faults.pop_front() {
            Some(CommitFault::Unavailable) => unavailable(MemoryFault::Switched),
            Some(CommitFault::UnknownNotDone) => unknown(),
            Some(CommitFault::UnknownDone | CommitFault::UnknownDoneAfter(0)) => {
                server.apply(transaction);
                server.operation_done();
                unknown()
            }
            Some(CommitFault::UnknownDoneAfter(operations)) => {
                server.in_flight.push((operations, transaction.clone()));
                unknown()
            }
            None => {
                let applied = server.apply(transaction);
                let answer = self.seen(server.revision);
                let found = |key: &String| Some((key.clone(), server.entries.get(key)?.clone()));
                let entries = transaction.reads().iter().filter_map(found).collect();
                server.operation_done();
                answer
                    .and_then(|revision| applied.ok_or(StoreError::Conflict(Snapshot { entries, revision })))
            }
        }
    }
}

impl LeaseStore for MemoryStore {
    async fn get(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        if keys.is_empty() {
            return Ok(Snapshot::default());
        }
        self.read(|key| keys.iter().any(|wanted| wanted == key))
    }

    async fn get_prefix(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.read(|key| key.starts_with(prefix))
    }

    async fn get_all(&self, keys: &[String], prefixes: &[String]) -> Result<Snapshot, StoreError> {
        if keys.is_empty() && prefixes.is_empty() {
            return Ok(Snapshot::default());
        }
        self.read(|key| {
            keys.iter().any(|wanted| wanted == key) || prefixes.iter().any(|prefix| key.starts_with(prefix))
        })
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        let answer = self.do_commit(&transaction);
        self.changed.send_replace(());
        answer
    }

    fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> impl Stream<Item = Result<Vec<Change>, StoreError>> + Send + Unpin {
        let watching = Watching {
            life: self.server().watch_life,
            store: self,
            prefix: prefix.to_owned(),
            after: after.0,
            changed: self.changed.subscribe(),
        };
        Box::pin(stream::unfold(Some(watching), |watching| async {
            let mut watching = watching?;
            loop {
                match watching.next() {
                    Err(error) => return Some((Err(error), None)),
                    Ok(Some(changes)) => return Some((Ok(changes), Some(watching))),
                    Ok(None) => watching.changed.changed().await.ok()?,
                }
            }
        }))
    }
}

struct Watching<'s> {
    store: &'s MemoryStore,
    prefix: String,
    /// The last revision that was reported, or that did not concern this watch.
    after: i64,
    life: u64,
    changed: watch::Receiver<()>,
}

impl Watching<'_> {
    /// The next revision's changes, if there are any yet.
    fn next(&mut self) -> Result<Option<Vec<Change>>, StoreError> {
        self.changed.mark_unchanged();
        let server = self.store.server();
        if server.watch_life != self.life {
            return Err(StoreError::Unavailable(Box::new(MemoryFault::Switched)));
        }
        // The revision of the compaction itself is still there, as in etcd. etcd also spares a watch
        // that is up to date though its reader is not; this one does not.
        if self.after + 1 < server.compacted {
            return Err(StoreError::Compacted { after: Revision(self.after) });
        }
        for (revision, changes) in &server.history {
            if *revision <= self.after {
                continue;
            }
            self.after = *revision;
            let is_prefix = self.prefix.ends_with('/');
            let concerns = |change: &&Change| match is_prefix {
                true => change.key().starts_with(&self.prefix),
                false => change.key() == self.prefix,
            };
            let changes: Vec<_> = changes.iter().filter(concerns).cloned().collect();
            if !changes.is_empty() {
                return Ok(Some(changes));
            }
        }
        self.after = self.after.max(server.revision);
        Ok(None)
    }
}
