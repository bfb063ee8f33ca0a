//! All that is read from and written to etcd here: the one file that knows bytes and keys.
//!
//! Listings read the parts one after the other, leases first: between two reads a session may have moved
//! on. What is going to be written is read at one revision, and compared.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use futures::Stream;
use serde_json::Value;
use shared::event::EventRecord;
use shared::exchange;
use shared::keys::Keys;
use shared::protocol::exchange::{ClusterId, Commit, Key, Lease, Record, Session, View};
use shared::record::{ClusterRecord, decode};
use shared::retry::Retry;
use shared::store::{Change, Entry, LeaseStore, Revision, Snapshot, StoreError};
use shared::volume::{Holder, VolumeId};

use crate::arguments::Subject;
use crate::failure::Failure;

/// For so many request time-outs a read is tried again. With the default of 1 s that is the longest E of a
/// profile: a change of etcd's leader must not fail a command.
const PATIENCE: u32 = 5;

/// Before a write is tried again after one that failed; grows with each.
const PAUSE: Duration = Duration::from_millis(200);

/// What a record says beside what the protocol core knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored<T> {
    pub(crate) record: T,
    /// The revision that last wrote it.
    pub(crate) at: Revision,
    /// Wall clock of what it tells, for people.
    pub(crate) since: Option<String>,
}

/// A session, and whether its keeper is of a release without heartbeat, revoke and fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredSession {
    pub(crate) stored: Stored<Session>,
    pub(crate) without_beats: bool,
}

/// A holder's last beat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Beat {
    pub(crate) at: Revision,
    /// The holder's wall clock, for people.
    pub(crate) time: Option<String>,
}

/// Everything but the events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Everything {
    pub(crate) cluster: Option<ClusterRecord>,
    pub(crate) leases: BTreeMap<VolumeId, Stored<Lease>>,
    pub(crate) sessions: BTreeMap<Holder, StoredSession>,
    pub(crate) beats: BTreeMap<Holder, Beat>,
    pub(crate) storm: Option<Stored<shared::protocol::exchange::Storm>>,
    /// By what each holder finds its leases.
    pub(crate) index: BTreeSet<(Holder, VolumeId)>,
    /// Keys of records that cannot be read, each with the reason.
    pub(crate) unreadable: Vec<(String, String)>,
}

/// What a write is decided on: records at one revision.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) view: View,
    /// The installation's record, byte for byte.
    cluster: Vec<u8>,
    /// Holders whose keeper is of a release without heartbeat.
    pub(crate) without_beats: BTreeSet<Holder>,
}

/// An event with its key's revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredEvent {
    pub(crate) revision: Revision,
    pub(crate) subject: String,
    pub(crate) event: Result<EventRecord, String>,
}

/// The records of one installation.
#[derive(Debug)]
pub(crate) struct Records<S> {
    store: S,
    keys: Keys,
    patience: Duration,
    pause: Duration,
}

impl<S: LeaseStore> Records<S> {
    pub(crate) fn new(store: S, keys: Keys, request_timeout: Duration) -> Self {
        Self { store, keys, patience: request_timeout * PATIENCE, pause: PAUSE }
    }

    pub(crate) fn store(&self) -> &S {
        &self.store
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Another patience, for a command that has something better to do than to wait.
    pub(crate) fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Without any pause before another try.
    #[cfg(test)]
    pub(crate) fn at_once(self) -> Self {
        Self { patience: Duration::ZERO, pause: Duration::ZERO, ..self }
    }

    /// Before a write is tried again after one that failed.
    pub(crate) fn pause(&self) -> Duration {
        self.pause
    }

    async fn patiently<F>(&self, read: impl Fn() -> F) -> Result<Snapshot, Failure>
    where
        F: Future<Output = Result<Snapshot, StoreError>>,
    {
        let deadline = tokio::time::Instant::now() + self.patience;
        let mut retry = Retry::new(Duration::from_millis(100), Duration::from_secs(1));
        loop {
            match read().await {
                Ok(snapshot) => return Ok(snapshot),
                Err(StoreError::Unavailable(_)) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(retry.next_delay()).await;
                }
                Err(error) => return Err(Failure::of_store(&error)),
            }
        }
    }

    /// Everything but the events.
    pub(crate) async fn everything(&self) -> Result<Everything, Failure> {
        let (leases, sessions) = ([self.keys.leases(), self.keys.indexes()], self.keys.sessions());
        // At one revision: each is in the other.
        let leases = self.patiently(|| self.store.get_all(&[], &leases)).await?;
        let sessions = self.patiently(|| self.store.get_prefix(&sessions)).await?;
        let beats: Vec<String> = sessions
            .entries
            .keys()
            .filter_map(|key| self.keys.holder_of(key))
            .map(|holder| self.keys.beat(&holder))
            .chain([self.keys.cluster(), self.keys.storm()])
            .collect();
        let others = self.patiently(|| self.store.get(&beats)).await?;
        let mut everything = Everything::default();
        let indexed = leases.entries.keys().filter_map(|key| self.keys.held_of(key));
        everything.index = indexed.collect();
        let is_lease = |(key, _): &(String, Entry)| self.keys.held_of(key).is_none();
        let leases = leases.entries.into_iter().filter(is_lease);
        for (key, entry) in leases.chain(sessions.entries).chain(others.entries) {
            if let Err(why) = self.take(&mut everything, &key, &entry) {
                everything.unreadable.push((key, why));
            }
        }
        Ok(everything)
    }

    fn take(&self, everything: &mut Everything, key: &str, entry: &Entry) -> Result<(), String> {
        if key == self.keys.cluster() {
            everything.cluster = Some(decode(&entry.value).map_err(|error| error.to_string())?);
            return Ok(());
        }
        let known = self.key_of(key).ok_or("is no key of this software")?;
        let record = exchange::from_bytes(&known, &entry.value).map_err(|error| sentence(&error))?;
        let at = entry.mod_revision;
        let json: Value = serde_json::from_slice(&entry.value).unwrap_or_default();
        let text = |name: &str| json.get(name).and_then(Value::as_str).map(str::to_owned);
        match (known, record) {
            (Key::Lease(volume), Record::Lease(record)) => {
                everything.leases.insert(volume, Stored { record, at, since: text("since") });
            }
            (Key::Session(holder), Record::Session(record)) => {
                let stored = Stored { record, at, since: text("since") };
                let without_beats = is_without_beats(&json);
                everything.sessions.insert(holder, StoredSession { stored, without_beats });
            }
            (Key::Beat(holder), Record::Beat) => {
                everything.beats.insert(holder, Beat { at, time: text("at") });
            }
            (Key::Storm, Record::Storm(record)) => {
                everything.storm = Some(Stored { record, at, since: text("since") });
            }
            _ => {}
        }
        Ok(())
    }

    fn key_of(&self, key: &str) -> Option<Key> {
        if key == self.keys.storm() {
            return Some(Key::Storm);
        }
        if let Some(volume) = self.keys.volume_of(key) {
            return Some(Key::Lease(volume));
        }
        if let Some(holder) = self.keys.holder_of(key) {
            return Some(Key::Session(holder));
        }
        // A beat's key has the form of a session's.
        let as_session = key.replacen("/beats/", "/sessions/", 1);
        let holder = self.keys.holder_of(&as_session)?;
        (self.keys.beat(&holder) == key).then_some(Key::Beat(holder))
    }

    /// The name under which a volume is leased, by the installation's own rules. One that they do not allow may have been
    /// leased under earlier rules.
    pub(crate) async fn canonical(&self, volume: &VolumeId) -> Result<VolumeId, Failure> {
        let (cluster, _) = self.cluster().await?;
        Ok(cluster.naming.leased(volume))
    }

    async fn cluster(&self) -> Result<(ClusterRecord, Vec<u8>), Failure> {
        let key = self.keys.cluster();
        let snapshot = self.patiently(|| self.store.get(std::slice::from_ref(&key))).await?;
        self.cluster_in(&snapshot)
    }

    fn cluster_in(&self, snapshot: &Snapshot) -> Result<(ClusterRecord, Vec<u8>), Failure> {
        let key = self.keys.cluster();
        let Some(entry) = snapshot.entries.get(&key) else {
            return Err(Failure::Refused(format!(
                "there is no installation under this prefix: etcd has no {key}; see --prefix, or start a keeper"
            )));
        };
        let record = decode(&entry.value)
            .map_err(|error| Failure::Refused(format!("the record {key} {}", sentence(&error))))?;
        Ok((record, entry.value.clone()))
    }

    /// What a write about `subject` is decided on: its lease, and the session of whoever holds that.
    pub(crate) async fn about(&self, subject: &Subject) -> Result<Reading, Failure> {
        let mut wanted = match subject {
            Subject::Holder(holder) => return self.read(&[Key::Session(holder.clone())]).await,
            Subject::Volume(volume) => vec![Key::Lease(volume.clone())],
        };
        // Whoever holds it may change between two reads; each reads what the one before it showed.
        loop {
            let reading = self.read(&wanted).await?;
            let holder = match reading.view.entries.get(&wanted[0]) {
                Some((Record::Lease(Lease::Held(held)), _)) => Key::Session(held.holder.clone()),
                _ => return Ok(reading),
            };
            if wanted.contains(&holder) {
                return Ok(reading);
            }
            wanted.truncate(1);
            wanted.push(holder);
        }
    }

    /// These records, and the installation's, at one revision.
    pub(crate) async fn read(&self, wanted: &[Key]) -> Result<Reading, Failure> {
        let names: Vec<String> =
            wanted.iter().map(|key| exchange::key(&self.keys, key)).chain([self.keys.cluster()]).collect();
        let snapshot = self.patiently(|| self.store.get(&names)).await?;
        let (record, cluster) = self.cluster_in(&snapshot)?;
        let mut without_beats = BTreeSet::new();
        let mut entries = BTreeMap::new();
        for (key, name) in wanted.iter().zip(&names) {
            let Some(entry) = snapshot.entries.get(name) else { continue };
            let record = exchange::from_bytes(key, &entry.value).map_err(|error| {
                Failure::Refused(format!(
                    "the record {name} {}; it is left alone, compare it with docs/lease-protocol.md",
                    sentence(&error)
                ))
            })?;
            let json: Value = serde_json::from_slice(&entry.value).unwrap_or_default();
            if let Key::Session(holder) = key
                && is_without_beats(&json)
            {
                without_beats.insert(holder.clone());
            }
            entries.insert(key.clone(), (record, entry.mod_revision));
        }
        let view = View { entries, ..View::new(ClusterId(record.id.into()), snapshot.revision) };
        Ok(Reading { view, cluster, without_beats })
    }

    /// Commits what was decided on `reading`, once.
    pub(crate) async fn commit(&self, reading: &Reading, commit: &Commit) -> Result<Revision, StoreError> {
        let transaction = exchange::transaction(&self.keys, &reading.cluster, commit, &now());
        self.store.commit(transaction).await
    }

    /// All events, in order, with the revision of the read; only those written after `after`.
    pub(crate) async fn events(&self, after: Revision) -> Result<(Vec<StoredEvent>, Revision), Failure> {
        let prefix = self.keys.events();
        let snapshot = self.patiently(|| self.store.get_prefix(&prefix)).await?;
        let written = snapshot.entries.iter().filter(|(_, entry)| entry.mod_revision > after);
        let events = written.filter_map(|(key, entry)| self.event(key, &entry.value)).collect();
        Ok((events, snapshot.revision))
    }

    /// The events that are written after `after`; `prefix` is that of all events' keys.
    pub(crate) fn follow<'r>(
        &'r self,
        prefix: &'r str,
        after: Revision,
    ) -> impl Stream<Item = Result<Vec<Change>, StoreError>> + Send + Unpin + 'r {
        self.store.watch(prefix, after)
    }

    /// The event that a key holds; none for a key that is no event's.
    pub(crate) fn event(&self, key: &str, value: &[u8]) -> Option<StoredEvent> {
        let (revision, subject) = self.keys.event_of(key)?;
        let event = decode(value).map_err(|error| sentence(&error));
        Some(StoredEvent { revision, subject: subject.to_owned(), event })
    }
}

/// Sessions have times since keepers beat.
fn is_without_beats(session: &Value) -> bool {
    session.get("timing").is_none()
}

fn sentence(error: &dyn std::error::Error) -> String {
    agent_isolator::keeper::sentence(error)
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
