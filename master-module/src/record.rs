//! Events go to etcd, each once, whoever else writes them and however often it is tried.
//!
//! | an event about | its key | why it is there once |
//! | --- | --- | --- |
//! | a record that was written | revision and key of that write | it is created only if absent |
//! | an agent | the revision at which it is written | how the agent stood when that was last told is compared and rewritten with it |
//! | a record that was deleted | the revision of that, or of the read that missed it | those who write such events rewrite one record, and read all events before |
//! | events that were dropped | the last revision known | it is created only if absent, and nobody else has that key |
//!
//! Two modules that both saw an agent come and go, while etcd was away, have the same turns to tell. So
//! one that finds that another has told something of an agent since it last looked tells only how the
//! agent stands now.
//!
//! All compare what was trimmed: a write that is late, of an event that is trimmed by then, is not done.
//! So an outcome that is not known is closed by trying again.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use shared::event::{EventKind, EventRecord, Seen, StandingRecord, TrimmedRecord};
use shared::keys::{Keys, Subject};
use shared::record::{RecordError, decode};
use shared::store::{Change, LeaseStore, Revision, Snapshot, StoreError};
use shared::transaction::EventWriter;
use shared::volume::Holder;

use crate::event::{Event, Place};
use crate::queue::Pending;

/// How often a batch is read and written again because something changed in between, before it waits.
const CONFLICTS_MAX: usize = 5;

/// Why events are not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordingError {
    #[error("there is no installation's record yet: no keeper has started")]
    NotFounded,
    #[error("the record {key} cannot be read")]
    Unreadable { key: String, source: RecordError },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Writes events.
#[derive(Debug)]
pub(crate) struct Recorder<'s, S> {
    pub(crate) store: &'s S,
    pub(crate) keys: &'s Keys,
    /// Random: no other module has it.
    process: u64,
    /// The revision of each agent's standing when this module last wrote or read it; none of those that
    /// were never told.
    known: Mutex<BTreeMap<Holder, Revision>>,
}

/// What is to be compared, and what may be written.
struct Ground {
    writer: EventWriter,
    trimmed: TrimmedRecord,
    snapshot: Snapshot,
}

impl<'s, S: LeaseStore> Recorder<'s, S> {
    pub(crate) fn new(store: &'s S, keys: &'s Keys) -> Self {
        Self { store, keys, process: RandomState::new().build_hasher().finish(), known: Mutex::default() }
    }

    /// Takes the standings as they were read at the beginning.
    pub(crate) fn remember_standings(&self, standings: &Snapshot) {
        let known = standings
            .entries
            .iter()
            .filter_map(|(key, entry)| Some((self.keys.holder_of_standing(key)?, entry.mod_revision)));
        self.known().extend(known);
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Holder, Revision>> {
        // Each change of it is whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self) -> String {
        format!("{:016x}", self.process)
    }

    /// The key of an event, if it does not depend on when it is written.
    pub(crate) fn fixed_key(&self, event: &Event, place: Place) -> Option<String> {
        let (at, subject) = match place {
            Place::LogAlone | Place::Outside => return None,
            Place::Written { at, .. } | Place::Deleted { at, .. } => (at, self.subject(event)?),
            Place::Dropped { at, number } => (at, Keys::subject_of_dropped(self.process, number)),
        };
        Some(self.keys.event(at, &subject))
    }

    fn subject(&self, event: &Event) -> Option<Subject> {
        let record = match event {
            Event::Held { volume, .. } | Event::Released { volume, .. } | Event::Deleted { volume, .. } => {
                self.keys.lease(volume)
            }
            Event::Session { holder, .. } | Event::SessionDeleted { holder, .. } => self.keys.session(holder),
            Event::Storm { .. } => self.keys.storm(),
            Event::MarkedGone { holder, .. } => return Some(Keys::subject_of_mark(holder)),
            Event::Unreadable { key, .. } => key.clone(),
            Event::Listed { whose, .. } | Event::Answering { whose, .. } => {
                return Some(Keys::subject_of_agent(&whose.holder));
            }
            Event::LeasesRead { .. }
            | Event::MoreHeld { .. }
            | Event::MoreUnreadable
            | Event::Dropped { .. } => return None,
        };
        Some(self.keys.subject_of_record(&record))
    }

    /// Sees to it that events are in etcd; answers how many of the batch, from the first on, are now.
    pub(crate) async fn write(&self, batch: &[Pending]) -> Result<usize, RecordingError> {
        let mut conflicts = 0;
        loop {
            match self.write_once(batch).await {
                Err(RecordingError::Store(StoreError::Conflict(_))) if conflicts < CONFLICTS_MAX => {
                    conflicts += 1
                }
                result => return result,
            }
        }
    }

    async fn write_once(&self, batch: &[Pending]) -> Result<usize, RecordingError> {
        let mut wanted = Vec::new();
        for Pending { event, place, .. } in batch {
            wanted.extend(self.fixed_key(event, *place));
            if let Some((holder, _)) = event.applied_to(&StandingRecord::default()) {
                wanted.push(self.keys.standing(&holder));
            }
        }
        let ground = self.ground(wanted).await?;
        let deletes = batch.iter().any(|one| matches!(one.place, Place::Deleted { .. }));
        let events = if deletes { Some(self.store.get_prefix(&self.keys.events()).await?) } else { None };
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();

        let (mut writes, mut keys) = (Vec::new(), BTreeSet::new());
        let mut standings: BTreeMap<Holder, (Revision, StandingRecord)> = BTreeMap::new();
        let mut taken = 0;
        let mut looked: BTreeMap<Holder, Revision> = BTreeMap::new();
        for (n, Pending { number, event, place, .. }) in batch.iter().enumerate() {
            let seen = match place {
                Place::Written { seen, .. } | Place::Deleted { seen, .. } => *seen,
                _ => Seen::AtOnce,
            };
            let Some(record) = event.record(seen, &time) else {
                taken += 1;
                continue;
            };
            let key = match self.fixed_key(event, *place) {
                Some(key) => {
                    let told_as_deleted = match (place, &events) {
                        (Place::Deleted { written, .. }, Some(events)) => {
                            self.told_as_deleted(event, *written, events)
                        }
                        _ => false,
                    };
                    if ground.snapshot.entries.contains_key(&key)
                        || told_as_deleted
                        || ground.is_trimmed(self.keys, &key)
                    {
                        taken += 1;
                        continue;
                    }
                    key
                }
                None => {
                    let Some(holder) = event.applied_to(&StandingRecord::default()).map(|(h, _)| h) else {
                        taken += 1;
                        continue;
                    };
                    // A second turn of the same agent needs a place of its own.
                    if standings.contains_key(&holder) {
                        break;
                    }
                    let (at, before) = ground.standing(self.keys, &holder)?;
                    let after = event.applied_to(&before).map(|(_, after)| after);
                    let is_last = !batch[n + 1..].iter().any(|later| later.event.is_later_turn_of(event));
                    let is_mine = before.by == self.name();
                    let is_alone = is_mine || self.known().get(&holder).copied().unwrap_or_default() == at;
                    // Its answer may have been lost.
                    let is_written = is_mine && *number <= before.turn;
                    let is_told = !is_written && (is_last || is_alone);
                    looked.insert(holder.clone(), at);
                    let Some(after) = after.filter(|after| is_told && *after != before) else {
                        taken += 1;
                        continue;
                    };
                    let after = StandingRecord { by: self.name(), turn: *number, ..after };
                    let key = self.keys.event(ground.snapshot.revision, &Keys::subject_of_agent(&holder));
                    standings.insert(holder, (at, after));
                    key
                }
            };
            taken += 1;
            // Twice in one batch it can only be the same event.
            if keys.insert(key.clone()) {
                writes.push((key, record));
            }
        }
        if !writes.is_empty() {
            let standings: Vec<_> =
                standings.into_iter().map(|(holder, (at, standing))| (holder, at, standing)).collect();
            let rewritten = deletes.then_some(&ground.trimmed);
            let at = self.store.commit(ground.writer.write(&writes, &standings, rewritten)).await?;
            looked.extend(standings.into_iter().map(|(holder, ..)| (holder, at)));
        }
        self.known().extend(looked);
        Ok(taken)
    }

    /// Whether the first event about a record after it was last written is that of its end.
    fn told_as_deleted(&self, event: &Event, written: Revision, events: &Snapshot) -> bool {
        let Some(subject) = self.subject(event) else { return false };
        let from = self.keys.event(Revision(written.0 + 1), &Keys::least_subject());
        let next = events
            .entries
            .range(from..)
            .find(|(key, _)| self.keys.event_of(key).is_some_and(|(_, other)| other == subject.as_str()));
        let Some((_, entry)) = next else { return false };
        decode::<EventRecord>(&entry.value).is_ok_and(|event| {
            let gone = [EventKind::Released, EventKind::LeaseDeleted, EventKind::SessionDeleted];
            gone.contains(&event.what)
        })
    }

    /// Trims all events up to `trimmed`, and answers it; nothing, if others have trimmed meanwhile.
    pub(crate) async fn trim(&self, trimmed: TrimmedRecord) -> Result<Option<TrimmedRecord>, RecordingError> {
        let ground = self.ground(Vec::new()).await?;
        if ground.trimmed.through >= trimmed.through {
            return Ok(None);
        }
        match self.store.commit(ground.writer.trim(&trimmed)).await {
            Ok(_) => Ok(Some(trimmed)),
            // Somebody else trims, or writes what only one may write at a time.
            Err(StoreError::Conflict(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads what every transaction compares, and `wanted`, at one revision. A store whose history has
    /// changed is found out here, before anything is written to it.
    async fn ground(&self, wanted: Vec<String>) -> Result<Ground, RecordingError> {
        let (cluster, trimmed) = (self.keys.cluster(), self.keys.events_trimmed());
        let mut wanted = wanted;
        wanted.extend([cluster.clone(), trimmed.clone()]);
        let snapshot = self.store.get(&wanted).await?;
        let Some(cluster) = snapshot.entries.get(&cluster) else { return Err(RecordingError::NotFounded) };
        let writer = EventWriter {
            keys: self.keys.clone(),
            cluster: cluster.value.clone(),
            trimmed_at: snapshot.mod_revision(&trimmed),
        };
        let trimmed = read(&snapshot, &trimmed)?;
        Ok(Ground { writer, trimmed, snapshot })
    }
}

impl Ground {
    fn standing(&self, keys: &Keys, holder: &Holder) -> Result<(Revision, StandingRecord), RecordingError> {
        let key = keys.standing(holder);
        Ok((self.snapshot.mod_revision(&key), read(&self.snapshot, &key)?))
    }

    fn is_trimmed(&self, keys: &Keys, key: &str) -> bool {
        key.strip_prefix(&keys.events()).is_some_and(|key| key <= self.trimmed.through.as_str())
    }
}

fn read<T: serde::de::DeserializeOwned + Default>(
    snapshot: &Snapshot,
    key: &str,
) -> Result<T, RecordingError> {
    match snapshot.entries.get(key).map(|entry| decode(&entry.value)) {
        None => Ok(T::default()),
        Some(Ok(record)) => Ok(record),
        Some(Err(source)) => Err(RecordingError::Unreadable { key: key.to_owned(), source }),
    }
}

/// Which events there are, by their keys.
#[derive(Debug)]
pub(crate) struct Recorded {
    keys: Keys,
    events: BTreeSet<Box<str>>,
}

impl Recorded {
    pub(crate) fn new(keys: Keys) -> Self {
        Self { keys, events: BTreeSet::new() }
    }

    pub(crate) fn read(&mut self, snapshot: &Snapshot) {
        self.events = snapshot
            .entries
            .keys()
            .filter(|key| self.keys.event_of(key).is_some())
            .map(|key| key.as_str().into())
            .collect();
    }

    pub(crate) fn changed(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Put { key, .. } if self.keys.event_of(key).is_some() => {
                    self.events.insert(key.as_str().into());
                }
                Change::Put { .. } => {}
                Change::Delete { key, .. } => {
                    self.events.remove(key.as_str());
                }
            }
        }
    }

    /// Events up to here were trimmed.
    pub(crate) fn trimmed(&mut self, trimmed: &TrimmedRecord) {
        let from = format!("{}{}\0", self.keys.events(), trimmed.through);
        self.events = self.events.split_off(from.as_str());
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        self.events.contains(key)
    }

    /// What to trim so that `kept` events are left, if there are more than `tolerated`.
    pub(crate) fn excess(&self, kept: usize, tolerated: usize) -> Option<TrimmedRecord> {
        if self.events.len() <= tolerated.max(kept) {
            return None;
        }
        let last = self.events.iter().nth(self.events.len() - kept - 1)?;
        let (revision, _) = self.keys.event_of(last)?;
        Some(TrimmedRecord { through: last.strip_prefix(&self.keys.events())?.to_owned(), revision })
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
