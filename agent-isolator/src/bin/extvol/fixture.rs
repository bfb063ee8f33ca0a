//! An installation in memory, and what comes in between a read and a write, for the tests of this program.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use futures::{FutureExt, Stream};
use shared::event::{EventKind, EventRecord, Seen};
use shared::exchange::{from_bytes, key, to_bytes};
use shared::keys::Keys;
use shared::memory::MemoryStore;
use shared::protocol::exchange::{Held, Key, Lease, Record, Stage};
use shared::record::{ClusterRecord, Epoch, Token, encode};
use shared::store::{Change, LeaseStore, Revision, Snapshot, StoreError, Transaction};
use shared::volume::{ContainerId, Driver, Holder, NamingRules, VolumeId, VolumeName};

use crate::records::Records;
use crate::sessions::tests::session;

pub(crate) fn holder(name: &str) -> Holder {
    Holder::new(name).unwrap()
}

pub(crate) fn volume(name: &str) -> VolumeId {
    VolumeId { driver: Driver::new("ebs").unwrap(), name: VolumeName::new(name).unwrap() }
}

/// What holder `a` holds in its epoch 3.
pub(crate) fn held() -> Held {
    let container = |name: &str| ContainerId::new(name).unwrap();
    Held {
        stage: Stage::Attached,
        holder: holder("a"),
        epoch: Epoch(3),
        token: Some(Token(Revision(7))),
        agent_id: Some("S1".into()),
        containers: BTreeSet::from([container("c1"), container("c2")]),
        tasks: Default::default(),
        mount_point: Some("/m/v".into()),
        unsettled: false,
        calls: false,
        owed: None,
        revoked: None,
        since: Some("then".into()),
    }
}

/// A store in which others write, or which goes away, right before a commit.
#[derive(Debug)]
pub(crate) struct Contended {
    inner: MemoryStore,
    state: Arc<Mutex<Contention>>,
}

#[derive(Debug, Default)]
struct Contention {
    /// Written before the next commits, one each.
    races: VecDeque<(String, Vec<u8>)>,
    commits: usize,
    fail_reads_after: bool,
}

impl LeaseStore for Contended {
    async fn get(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        self.inner.get(keys).await
    }

    async fn get_prefix(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.inner.get_prefix(prefix).await
    }

    async fn get_all(&self, keys: &[String], prefixes: &[String]) -> Result<Snapshot, StoreError> {
        self.inner.get_all(keys, prefixes).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        let fail = {
            let mut state = self.state.lock().unwrap();
            state.commits += 1;
            if let Some((key, value)) = state.races.pop_front() {
                self.inner.plant(&key, value);
            }
            state.fail_reads_after
        };
        let committed = self.inner.commit(transaction).await;
        self.inner.fail_reads(fail);
        committed
    }

    fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> impl Stream<Item = Result<Vec<Change>, StoreError>> + Send + Unpin {
        self.inner.watch(prefix, after)
    }
}

/// An installation.
pub(crate) struct Fixture {
    pub(crate) store: MemoryStore,
    pub(crate) records: Records<Contended>,
    state: Arc<Mutex<Contention>>,
    keys: Keys,
}

impl Fixture {
    /// With id `c1`, and nothing else.
    pub(crate) fn new() -> Self {
        let (store, keys) = (MemoryStore::new(), Keys::new("/x"));
        let state: Arc<Mutex<Contention>> = Arc::default();
        let contended = Contended { inner: store.another_client(), state: state.clone() };
        let records = Records::new(contended, keys.clone(), std::time::Duration::ZERO).at_once();
        let fixture = Self { store, records, state, keys };
        fixture.found("c1");
        fixture
    }

    /// In which holder `a` is live, and holds `ebs/v`.
    pub(crate) fn holding() -> Self {
        let fixture = Self::new();
        fixture.put(&Key::Session(holder("a")), &Record::Session(session()));
        fixture.put(&Key::Lease(volume("v")), &Record::Lease(Lease::Held(held())));
        fixture
    }

    /// Gives the installation an id.
    pub(crate) fn found(&self, id: &str) {
        self.plant_cluster(id, NamingRules::default());
    }

    pub(crate) fn found_with_alias(&self, id: &str, alias: &str, driver: &str) {
        let driver_aliases = [(Driver::new(alias).unwrap(), Driver::new(driver).unwrap())].into();
        self.plant_cluster(id, NamingRules { driver_aliases, ..NamingRules::default() });
    }

    fn plant_cluster(&self, id: &str, naming: NamingRules) {
        self.store.plant(&self.keys.cluster(), encode(&ClusterRecord { id: id.to_owned(), naming }));
    }

    pub(crate) fn put(&self, at: &Key, record: &Record) {
        self.store.plant(&key(&self.keys, at), to_bytes(record, "then"));
    }

    /// A session as keepers without a heartbeat write it.
    pub(crate) fn put_old_session(&self, name: &str, state: &str) {
        let json = format!(
            r#"{{"version":1,"epoch":3,"instance":"i","state":"{state}","machine_id":"m","boot_id":"b","since":"then"}}"#
        );
        self.store.plant(&self.keys.session(&holder(name)), json);
    }

    pub(crate) fn put_event(&self, revision: i64, text: &str) {
        let event = EventRecord {
            what: EventKind::Granted,
            seen: Seen::AtOnce,
            volume: None,
            holder: None,
            epoch: None,
            token: None,
            agent_id: None,
            dropped: None,
            text: text.to_owned(),
            time: "then".to_owned(),
        };
        let subject = self.keys.subject_of_record(&self.keys.lease(&volume("v")));
        self.store.plant(&self.keys.event(Revision(revision), &subject), encode(&event));
    }

    pub(crate) fn delete(&self, at: &Key) {
        self.store.delete(&key(&self.keys, at));
    }

    /// Somebody writes this before each of the next `times` commits.
    pub(crate) fn race(&self, times: usize, at: &Key, record: &Record) {
        let race = (key(&self.keys, at), to_bytes(record, "then"));
        self.state.lock().unwrap().races.extend(std::iter::repeat_n(race, times));
    }

    pub(crate) fn fail_reads_after_a_commit(&self) {
        self.state.lock().unwrap().fail_reads_after = true;
    }

    /// How often a commit was tried.
    pub(crate) fn commits(&self) -> usize {
        self.state.lock().unwrap().commits
    }

    fn snapshot(&self, at: &Key) -> Snapshot {
        let name = key(&self.keys, at);
        // Memory answers at once.
        self.store.another_client().get(&[name]).now_or_never().unwrap().unwrap()
    }

    pub(crate) fn stored(&self, at: &Key) -> Option<Record> {
        let snapshot = self.snapshot(at);
        let entry = snapshot.entries.get(&key(&self.keys, at))?;
        Some(from_bytes(at, &entry.value).unwrap())
    }

    /// The revision that last wrote a key.
    pub(crate) fn at(&self, at: &Key) -> i64 {
        self.snapshot(at).mod_revision(&key(&self.keys, at)).0
    }

    /// The store's revision.
    pub(crate) fn revision(&self) -> i64 {
        self.snapshot(&Key::Storm).revision.0
    }
}
