//! The input and output of [`crate::exchange`]: the protocol core's reads and commits, carried out on a store.
//! Keeper and master module use it alike. It decides nothing, tries nothing twice and remembers one thing: the
//! installation's record, byte for byte as it was last read, which every commit compares.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::timeout;

use crate::exchange;
use crate::keys::Keys;
use crate::protocol::Text;
use crate::protocol::exchange::{ClusterId, Commit, Key, Outcome, Reading, View};
use crate::record::{ClusterRecord, decode, encode};
use crate::store::{LeaseStore, OPERATIONS_MAX, Snapshot, StoreError};
use crate::transaction::found;
use crate::volume::{Holder, HostNames, RulesFault};

/// How many time-outs a read may take that is not one request: of everything, which comes in pages, 100,000 leases are some 50 of them.
/// That it is late does no harm; that it hangs would.
const REQUESTS_OF_A_LONG_READ: u32 = 60;

/// How often a holder's index is read, until it says what the one before said.
const INDEX_READS_MAX: u32 = 4;

/// Why there is no view.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// etcd did not answer, or with what cannot be.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// etcd did not answer in time.
    #[error("etcd did not answer within {after:?}")]
    Late {
        /// How long that was.
        after: Duration,
    },
    /// There is no installation's record: see [`Exchange::found`].
    #[error("etcd has no installation's record {key}: no keeper has started yet, or it was deleted")]
    NotFounded {
        /// Its key.
        key: String,
    },
    /// This host names volumes otherwise than the installation.
    #[error(transparent)]
    Naming(#[from] RulesFault),
    /// A holder's index was another one with each reading.
    #[error(
        "what is below {key} changes while it is read: another host uses this name, or somebody writes there"
    )]
    Restless {
        /// Its prefix.
        key: String,
    },
    /// A record is none, or of a later version.
    #[error("the record {key} cannot be read, and nothing is decided without it: {why}")]
    Unreadable {
        /// Its key.
        key: String,
        /// What is wrong with it.
        why: Text,
    },
}

/// The installation's record as it was read.
#[derive(Clone, Debug)]
struct Cluster {
    id: ClusterId,
    bytes: Vec<u8>,
}

/// The core's way to a store.
#[derive(Debug)]
pub struct Exchange<S> {
    store: S,
    keys: Keys,
    /// R.
    request: Duration,
    names: Option<HostNames>,
    cluster: Mutex<Option<Cluster>>,
    /// Why the last commit had no answer of etcd's.
    fault: Mutex<Option<Text>>,
}

impl<S: LeaseStore> Exchange<S> {
    /// One whose requests take no longer than `request`. With `names`, an installation that does not admit this host is
    /// refused by every read; a master module, which names no volumes, has none.
    #[must_use]
    pub fn new(store: S, keys: Keys, request: Duration, names: Option<HostNames>) -> Self {
        Self { store, keys, request, names, cluster: Mutex::new(None), fault: Mutex::new(None) }
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The key layout.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Makes the installation's record, if there is none: the duty of whichever keeper comes first. `id` is
    /// random. Whatever the answer, the next read tells what is there now.
    ///
    /// # Errors
    /// When etcd was certainly not written and nobody else has written it.
    pub async fn found(&self, id: &str) -> Result<(), StoreError> {
        let naming = self.names.clone().unwrap_or_default().rules;
        let record = encode(&ClusterRecord { id: id.to_owned(), naming });
        match timeout(self.request, self.store.commit(found(&self.keys, record))).await {
            // Somebody else was first, or this may have been: it is created only where there is none.
            Ok(Ok(_) | Err(StoreError::Conflict(_) | StoreError::Unknown(_))) | Err(_) => Ok(()),
            Ok(Err(error)) => Err(error),
        }
    }

    /// What the core asked for: linearizable, all at one revision, with the installation's id.
    ///
    /// # Errors
    /// A sentence. See [`Exchange::try_read`].
    pub async fn read(&self, reading: &Reading) -> Result<View, Text> {
        self.try_read(reading).await.map_err(|error| sentence(&error).into())
    }

    /// The same, with an error that can be told apart.
    ///
    /// One among single keys that cannot be read is told as such: it hurts its own volume or holder alone. In any other reading
    /// it makes the whole fail, by its key: left out, a session would look missing, which a reclaimer may end, and an epoch that
    /// is chosen above all epochs in the own leases is not compared with one that nobody could read. Keys that are not of this layout are nobody's record, and no obstacle.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn try_read(&self, reading: &Reading) -> Result<View, ReadError> {
        let keys = &self.keys;
        let (cluster, snapshot, wanted) = match reading {
            Reading::Keys(wanted) => {
                let names: Vec<_> = wanted.iter().map(|wanted| exchange::key(keys, wanted)).collect();
                let (cluster, snapshot) = self.snapshot(names, &[]).await?;
                (cluster, snapshot, wanted.clone())
            }
            Reading::Own(holder) => {
                let (cluster, snapshot) = self.own(holder).await?;
                let wanted = snapshot.entries.keys().filter_map(|name| self.key_of(name)).collect();
                (cluster, snapshot, wanted)
            }
            Reading::Everything => {
                let prefixes = [keys.leases(), keys.sessions(), keys.beats()];
                let (cluster, snapshot) = self.snapshot(vec![keys.storm()], &prefixes).await?;
                let wanted = snapshot.entries.keys().filter_map(|name| self.key_of(name)).collect();
                (cluster, snapshot, wanted)
            }
        };
        let view = self.view(cluster, &snapshot, wanted);
        match view.unreadable.iter().next() {
            // Whoever looks at single keys can leave out what another has spoilt.
            Some((key, why)) if !matches!(reading, Reading::Keys(_)) => {
                Err(ReadError::Unreadable { key: exchange::key(keys, key), why: why.clone() })
            }
            _ => Ok(view),
        }
    }

    fn view(&self, cluster: ClusterId, snapshot: &Snapshot, wanted: impl IntoIterator<Item = Key>) -> View {
        let mut view = View::new(cluster, snapshot.revision);
        for wanted in wanted {
            let name = exchange::key(&self.keys, &wanted);
            let Some(entry) = snapshot.entries.get(&name) else { continue };
            match exchange::from_bytes(&wanted, &entry.value) {
                Ok(record) => {
                    view.entries.insert(wanted, (record, entry.mod_revision));
                }
                Err(why) => _ = view.unreadable.insert(wanted, sentence(&why).into()),
            }
        }
        view
    }

    /// What is a holder's, at one revision: its index says which leases to read, and the index that is read with them is the same. The
    /// holder alone writes it, and reads when no write of its own is under way.
    async fn own(&self, holder: &Holder) -> Result<(ClusterId, Snapshot), ReadError> {
        let keys = &self.keys;
        let index = [keys.held_by(holder)];
        let mut leases = Vec::new();
        for _ in 0..INDEX_READS_MAX {
            let mut wanted = vec![keys.session(holder), keys.beat(holder)];
            wanted.extend(leases.iter().cloned());
            let (cluster, snapshot) = self.snapshot(wanted, &index).await?;
            let held = snapshot.entries.keys().filter_map(|name| keys.held_of(name));
            let found: Vec<_> = held.map(|(_, volume)| keys.lease(&volume)).collect();
            if found == leases {
                return Ok((cluster, snapshot));
            }
            leases = found;
        }
        Err(ReadError::Restless { key: keys.held_by(holder) })
    }

    /// Keys as they are stored, and all keys below some prefixes, at one revision; the installation's id as it
    /// was at that revision, which the next commits compare.
    ///
    /// # Errors
    /// See [`ReadError`]; [`ReadError::Unreadable`] for the installation's record alone.
    pub async fn snapshot(
        &self,
        mut keys: Vec<String>,
        prefixes: &[String],
    ) -> Result<(ClusterId, Snapshot), ReadError> {
        keys.push(self.keys.cluster());
        let is_long = !prefixes.is_empty() || keys.len() > OPERATIONS_MAX;
        let after = if is_long { self.request * REQUESTS_OF_A_LONG_READ } else { self.request };
        let answer = timeout(after, self.store.get_all(&keys, prefixes)).await;
        let mut snapshot = answer.map_err(|_| ReadError::Late { after })??;
        let id = self.whose(&mut snapshot)?;
        Ok((id, snapshot))
    }

    /// Takes the installation's record out of what was read.
    fn whose(&self, snapshot: &mut Snapshot) -> Result<ClusterId, ReadError> {
        let key = self.keys.cluster();
        let Some(entry) = snapshot.entries.remove(&key) else { return Err(ReadError::NotFounded { key }) };
        let ClusterRecord { id, naming } = decode(&entry.value)
            .map_err(|error| ReadError::Unreadable { key, why: sentence(&error).into() })?;
        if let Some(names) = &self.names {
            naming.admit(names)?;
        }
        let id = ClusterId(id.into());
        *self.cluster() = Some(Cluster { id: id.clone(), bytes: entry.value });
        Ok(id)
    }

    /// What became of a commit. Sent once; [`Outcome::Unknown`] whenever it may have been sent and its answer is
    /// not known. Why it is not is told by [`Exchange::fault`].
    pub async fn commit(&self, commit: &Commit) -> Outcome {
        let Some(cluster) = self.cluster().clone() else {
            // Nothing was read yet, so that it cannot have been decided on anything.
            return Outcome::NotSent;
        };
        if cluster.id != commit.cluster {
            // Another installation's record has been read since: the compare does not hold any more.
            return Outcome::Conflict(None);
        }
        let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let transaction = exchange::transaction(&self.keys, &cluster.bytes, commit, &now);
        let answer = timeout(self.request, self.store.commit(transaction)).await;
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = match &answer {
            Ok(Ok(_) | Err(StoreError::Conflict(_))) => None,
            Ok(Err(error)) => Some(sentence(error).into()),
            Err(_) => Some(ReadError::Late { after: self.request }.to_string().into()),
        };
        match answer {
            Ok(Ok(revision)) => Outcome::Done(revision),
            Ok(Err(StoreError::Conflict(snapshot))) => Outcome::Conflict(self.otherwise(commit, snapshot)),
            Ok(Err(StoreError::Unavailable(_))) => Outcome::NotSent,
            // An answer from another history comes from a store that may have done it.
            Ok(Err(StoreError::Unknown(_) | StoreError::Corrupt { .. } | StoreError::Compacted { .. }))
            | Err(_) => Outcome::Unknown,
        }
    }

    /// What a refused commit has read; `None` when it asked for nothing, or that cannot be read.
    fn otherwise(&self, commit: &Commit, mut snapshot: Snapshot) -> Option<Box<View>> {
        if commit.otherwise.is_empty() {
            return None;
        }
        let cluster = self.whose(&mut snapshot).ok()?;
        Some(Box::new(self.view(cluster, &snapshot, commit.otherwise.iter().cloned())))
    }

    /// Why the last commit had no answer of etcd's, in words; `None` when it had one.
    #[must_use]
    pub fn fault(&self) -> Option<Text> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn cluster(&self) -> MutexGuard<'_, Option<Cluster>> {
        // Each change of it is whole.
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key with this name; `None` for one that is not of this layout, or of another spelling than this
    /// program's: two spellings would be two records under one key.
    #[must_use]
    pub fn key_of(&self, name: &str) -> Option<Key> {
        let keys = &self.keys;
        let held = |name| keys.held_of(name).map(|(holder, volume)| Key::Held(holder, volume));
        let key = (keys.volume_of(name).map(Key::Lease))
            .or_else(|| held(name))
            .or_else(|| keys.holder_of(name).map(Key::Session))
            .or_else(|| keys.holder_of_beat(name).map(Key::Beat))
            .or_else(|| (name == keys.storm()).then_some(Key::Storm))?;
        (exchange::key(keys, &key) == name).then_some(key)
    }
}

/// An error with its causes, in one line.
fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
