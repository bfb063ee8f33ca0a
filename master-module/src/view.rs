//! What the module knows, and what is new in what it has just learned. Pure: no clock, no input or
//! output; the same inputs give the same events.
//!
//! Built for 10,000 agents and 100,000 leases: a round of polling looks at each agent and each holder
//! once, and at no lease; a change looks at one. Memory grows with held volumes, holders and agents,
//! and with nothing that only passes by.

mod agents;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as StdError;
use std::sync::Arc;

use shared::event::{Answering, EventKind, EventRecord, Listed, Seen, StandingRecord};
use shared::exchange;
use shared::keys::Keys;
use shared::protocol::exchange::{ByTime, Key, Record, SessionState, Storm};
use shared::record::{Epoch, HeldLease, LeaseRecord, RecordError, SessionRecord, Token, decode};
use shared::store::{Change, Entry, Revision, Snapshot};
use shared::volume::{Holder, VolumeId};

use crate::acting::holdings::{Holdings, Newest};
use crate::agents::AgentAddress;
use crate::event::{Containers, Event, Lease, Place, Stage, Told};
use crate::mesos::{Registration, Registry};

pub(crate) use self::agents::NotBelieved;
pub(crate) use self::waiting::Pressing;

/// Held volumes that are named at the first read; more are counted.
const HELD_NAMED: usize = 1_000;

/// Unreadable records that are remembered, so as to name each once.
const UNREADABLE_NAMED: usize = 1_000;

/// Bytes of a reason that are kept and logged.
const REASON_BYTES: usize = 300;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Session {
    epoch: Epoch,
    state: SessionState,
    agent_id: Option<Arc<str>>,
    /// Where that agent listens, as the keeper says.
    address: Option<AgentAddress>,
    /// Volumes of others that containers of this host wait for.
    wants: BTreeSet<VolumeId>,
    written: Revision,
}

/// A lease and the revision that last wrote it.
#[derive(Debug)]
struct Known {
    lease: Lease,
    written: Revision,
}

/// A holder of at least one volume.
#[derive(Debug, Default)]
struct Holding {
    volumes: BTreeSet<Arc<VolumeId>>,
    /// The lease that stands for all: one of the newest epoch.
    newest: Option<Newest>,
    /// How the leading master lists its agent; `NotAsked` before that is known.
    listed: Listed,
    /// What its agent answers.
    answering: Answering,
    /// Where that agent was last seen, whether or not the master still lists it.
    seen_at: Option<(Arc<str>, AgentAddress)>,
    /// Whether it was found there under its id, and has answered since.
    verified: bool,
    failures: u32,
}

/// The agents of the leading master.
#[derive(Debug, Default)]
struct Agents {
    by_id: BTreeMap<Arc<str>, (Registration, Option<AgentAddress>)>,
    /// The one agent to look at of each host: an active one, if there is one, or one that may be connected.
    by_host: BTreeMap<String, Arc<str>>,
}

/// All that is known.
#[derive(Debug)]
pub(crate) struct View {
    keys: Keys,
    /// Events that one read may bring, at most: of older changes the log tells nothing.
    found_max: usize,
    leases: BTreeMap<Arc<VolumeId>, Known>,
    holders: BTreeMap<Holder, Holding>,
    sessions: BTreeMap<Holder, Session>,
    /// Those whose session is live and wants something.
    wanting: BTreeSet<Holder>,
    wants_changed: bool,
    /// How agents stood when that was last told, of those that were ever told otherwise than well.
    standings: BTreeMap<Holder, StandingRecord>,
    /// `None` until a master was asked with success.
    agents: Option<Agents>,
    registry: Option<Registry>,
    /// Ids of agents that stand in no list, and that the registry had as unreachable, gone, or not at all.
    given_up: BTreeSet<Arc<str>>,
    /// Ids that the registry had as admitted though they stand in no list, and those of them that the next list did not
    /// have either: an agent that is just registering is in none for a moment.
    unlisted_once: BTreeSet<Arc<str>>,
    unlisted_twice: BTreeSet<Arc<str>>,
    /// Records of which the events said that they exist, until they are read.
    remembered: BTreeMap<String, (Revision, EventRecord)>,
    /// Keys of unreadable records, with the reason that was told.
    unreadable: BTreeMap<String, String>,
    more_unreadable: bool,
    leases_read: bool,
    sessions_read: bool,
    /// The storm guard, once it was read.
    storm: Option<Storm>,
}

impl View {
    pub(crate) fn new(keys: Keys, found_max: usize) -> Self {
        Self {
            keys,
            found_max,
            leases: BTreeMap::new(),
            holders: BTreeMap::new(),
            sessions: BTreeMap::new(),
            wanting: BTreeSet::new(),
            wants_changed: false,
            standings: BTreeMap::new(),
            agents: None,
            registry: None,
            given_up: BTreeSet::new(),
            unlisted_once: BTreeSet::new(),
            unlisted_twice: BTreeSet::new(),
            remembered: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            more_unreadable: false,
            leases_read: false,
            sessions_read: false,
            storm: None,
        }
    }

    /// Takes what the events in etcd say: of each record the newest one. To be called before leases
    /// and sessions are read: what was there and is not any more was deleted while nobody looked.
    pub(crate) fn remember(&mut self, events: &Snapshot) {
        for (key, entry) in &events.entries {
            let Some((at, subject)) = self.keys.event_of(key) else { continue };
            let Ok(event) = decode::<EventRecord>(&entry.value) else { continue };
            if let Some(record) = self.keys.record_of_subject(subject) {
                self.remembered.insert(record, (at, event));
            }
        }
        self.remembered.retain(|_, (_, event)| {
            matches!(
                event.what,
                EventKind::Granted
                    | EventKind::Attached
                    | EventKind::Detaching
                    | EventKind::Changed
                    | EventKind::SessionOpened
                    | EventKind::SessionRevoked
                    | EventKind::SessionReclaimed
                    | EventKind::SessionDead
            )
        });
    }

    /// Takes how agents stood when events last told it.
    pub(crate) fn remember_standings(&mut self, standings: &Snapshot) {
        for (key, entry) in &standings.entries {
            if let (Some(holder), Ok(standing)) =
                (self.keys.holder_of_standing(key), decode::<StandingRecord>(&entry.value))
            {
                self.standings.insert(holder, standing);
            }
        }
    }

    /// All leases were read.
    #[must_use]
    pub(crate) fn read_leases(&mut self, snapshot: &Snapshot) -> Vec<Told> {
        let mut told = Vec::new();
        let gone: Vec<_> = (self.leases.keys())
            .filter(|volume| !snapshot.entries.contains_key(&self.keys.lease(volume)))
            .cloned()
            .collect();
        for volume in gone {
            self.lease_deleted(&volume, snapshot.revision, Seen::ByALaterRead, &mut told);
        }
        self.forget_unreadable_but(&self.keys.leases(), snapshot);
        let first = !std::mem::replace(&mut self.leases_read, true);
        if first {
            self.tell_missing(&self.keys.leases(), snapshot, &mut told);
        }
        let oldest = oldest_found(snapshot, self.found_max);
        let (mut held, mut read) = (0, Vec::new());
        for (key, entry) in &snapshot.entries {
            self.lease_written(key, entry, Seen::ByALaterRead, &mut read);
            for mut one in read.drain(..) {
                if first && matches!(one.event, Event::Held { .. }) {
                    held += 1;
                    one.logged = held <= HELD_NAMED;
                }
                if entry.mod_revision < oldest && matches!(one.place, Place::Written { .. }) {
                    one.place = Place::LogAlone;
                }
                if one.logged || one.place != Place::LogAlone {
                    told.push(one);
                }
            }
        }
        if first {
            let read = Event::LeasesRead { held: self.leases.len(), records: snapshot.entries.len() };
            told.insert(0, for_log(read));
            if held > HELD_NAMED {
                told.push(for_log(Event::MoreHeld { volumes: held - HELD_NAMED }));
            }
        }
        told
    }

    /// All sessions were read. The first time no line is made of them: each is where it was.
    #[must_use]
    pub(crate) fn read_sessions(&mut self, snapshot: &Snapshot) -> Vec<Told> {
        let mut told = Vec::new();
        let gone: Vec<_> = (self.sessions.keys())
            .filter(|holder| !snapshot.entries.contains_key(&self.keys.session(holder)))
            .cloned()
            .collect();
        for holder in gone {
            self.session_deleted(&holder, snapshot.revision, Seen::ByALaterRead, &mut told);
        }
        self.forget_unreadable_but(&self.keys.sessions(), snapshot);
        let first = !std::mem::replace(&mut self.sessions_read, true);
        if first {
            self.tell_missing(&self.keys.sessions(), snapshot, &mut told);
        }
        let oldest = oldest_found(snapshot, self.found_max);
        for (key, entry) in &snapshot.entries {
            let known = told.len();
            self.session_written(key, entry, Seen::ByALaterRead, &mut told);
            for one in &mut told[known..] {
                one.logged &= !(first && matches!(one.event, Event::Session { .. }));
                if entry.mod_revision < oldest && matches!(one.place, Place::Written { .. }) {
                    one.place = Place::LogAlone;
                }
            }
        }
        told.retain(|one| one.logged || one.place != Place::LogAlone);
        told
    }

    /// The storm guard was read, or has changed; `None` when there is no record of it.
    #[must_use]
    pub(crate) fn storm(&mut self, entry: Option<&Entry>, seen: Seen) -> Vec<Told> {
        let Some(entry) = entry else { return Vec::new() };
        let key = self.keys.storm();
        let mut told = Vec::new();
        match exchange::from_bytes(&Key::Storm, &entry.value) {
            Ok(Record::Storm(state)) => {
                self.unreadable.remove(&key);
                // That it is over is no news to who knew of none.
                let is_news = self.storm.map_or(state != Storm::Over, |before| before != state);
                self.storm = Some(state);
                if is_news {
                    let place = Place::Written { at: entry.mod_revision, seen };
                    told.push(Told { event: Event::Storm { state }, place, logged: true });
                }
            }
            Ok(_) => {}
            Err(error) => self.tell_unreadable(&key, reason(&error), entry, seen, &mut told),
        }
        told
    }

    /// Whether the leases have been read.
    #[must_use]
    pub(crate) fn has_leases(&self) -> bool {
        self.leases_read
    }

    /// Whether the sessions have been read.
    #[must_use]
    pub(crate) fn has_sessions(&self) -> bool {
        self.sessions_read
    }

    /// Leases or sessions were written or deleted.
    #[must_use]
    pub(crate) fn changed(&mut self, changes: &[Change]) -> Vec<Told> {
        let (mut told, seen) = (Vec::new(), Seen::AtOnce);
        for change in changes {
            match change {
                Change::Put { key, entry } if key.starts_with(&self.keys.leases()) => {
                    self.lease_written(key, entry, seen, &mut told);
                }
                Change::Put { key, entry } => self.session_written(key, entry, seen, &mut told),
                Change::Delete { key, at } => {
                    self.unreadable.remove(key);
                    if let Some(volume) = self.keys.volume_of(key) {
                        self.lease_deleted(&volume, *at, seen, &mut told);
                    } else if let Some(holder) = self.keys.holder_of(key) {
                        self.session_deleted(&holder, *at, seen, &mut told);
                    }
                }
            }
        }
        told
    }

    fn lease_written(&mut self, key: &str, entry: &Entry, seen: Seen, told: &mut Vec<Told>) {
        // Only under its own key: another spelling of it could be another record.
        let Some(volume) = self.keys.volume_of(key).filter(|volume| self.keys.lease(volume) == key) else {
            return self.tell_unreadable(key, "has a key that names no volume".to_owned(), entry, seen, told);
        };
        let record = match decode::<LeaseRecord>(&entry.value) {
            Ok(record) => record,
            Err(error) => {
                // What it said before is not what it says now.
                self.remove_lease(&volume);
                return self.tell_unreadable(key, reason(&error), entry, seen, told);
            }
        };
        self.unreadable.remove(key);
        let (stage, held) = match record {
            LeaseRecord::Free { last_holder, .. } => {
                let known = self.remove_lease(&volume);
                // Of one that was not known to be held there is nothing to say in the log.
                let logged = known.is_some();
                let (volume, holder, of) = match known {
                    Some((volume, Known { lease, .. })) => {
                        (volume, last_holder.or(Some(lease.holder)), Some((lease.epoch, lease.token)))
                    }
                    None if last_holder.is_none() => return,
                    None => (Arc::new(volume), last_holder, None),
                };
                let place = Place::Written { at: entry.mod_revision, seen };
                told.push(Told { event: Event::Released { volume, holder, of }, place, logged });
                return;
            }
            LeaseRecord::Attaching(held) => (Stage::Attaching, held),
            LeaseRecord::Attached(held) => (Stage::Attached, held),
            LeaseRecord::Detaching(held) => (Stage::Detaching, held),
        };
        let HeldLease { holder, epoch, token, agent_id, containers, tasks, .. } = held;
        // The granting write cannot contain its own revision.
        let token = token.unwrap_or(Token(entry.mod_revision));
        let agent_id = agent_id.map(|id| self.interned(&holder, id));
        let lease =
            Lease { stage, holder, epoch, token, agent_id, containers: Containers::new(containers, &tasks) };
        self.hold(volume, Known { lease, written: entry.mod_revision }, seen, told);
    }

    /// One text for the agent's id in all leases of a holder.
    fn interned(&self, holder: &Holder, id: String) -> Arc<str> {
        let first = self.holders.get(holder).and_then(|holding| self.agent_of_first_lease(holding));
        first.filter(|first| **first == *id).unwrap_or_else(|| id.into())
    }

    fn hold(&mut self, volume: VolumeId, known: Known, seen: Seen, told: &mut Vec<Told>) {
        if let Some(before) = self.leases.get_mut(&volume)
            && before.lease == known.lease
        {
            before.written = known.written;
            let holding = self.holders.get_mut(&known.lease.holder);
            if let Some(newest) = holding.and_then(|holding| holding.newest.as_mut())
                && *newest.volume == volume
            {
                newest.written = known.written;
            }
            return;
        }
        let (volume, before) = match self.remove_lease(&volume) {
            Some((volume, before)) => (volume, Some(before.lease)),
            None => (Arc::new(volume), None),
        };
        let Known { lease, written } = known;
        let granted = before.as_ref().is_none_or(|before| before.token != lease.token);
        let what = match lease.stage {
            Stage::Attaching if granted => EventKind::Granted,
            stage if before.as_ref().is_some_and(|before| before.stage == stage && !granted) => {
                EventKind::Changed
            }
            Stage::Attaching | Stage::Attached => EventKind::Attached,
            Stage::Detaching => EventKind::Detaching,
        };
        let taken_from = before
            .filter(|before| (&before.holder, before.epoch) != (&lease.holder, lease.epoch))
            .map(|before| (before.holder, before.epoch));
        let holder = lease.holder.clone();
        let of_lease = lease.agent_id.clone();
        self.leases.insert(Arc::clone(&volume), Known { lease: lease.clone(), written });
        let is_new = !self.holders.contains_key(&holder);
        let holding = self.holders.entry(holder.clone()).or_insert_with(|| Holding {
            listed: Listed::NotAsked,
            answering: Answering::NotAsked,
            ..Holding::default()
        });
        holding.volumes.insert(Arc::clone(&volume));
        if holding.newest.as_ref().is_none_or(|newest| newest.epoch <= lease.epoch) {
            holding.newest = Some(Newest { epoch: lease.epoch, volume: Arc::clone(&volume), written });
        }
        let agent = self.agent_of(&holder, of_lease);
        let event = Event::Held { what, volume, lease, agent, taken_from };
        told.push(Told { event, place: Place::Written { at: written, seen }, logged: true });
        if is_new {
            self.tell_agent(&holder, told);
        }
    }

    fn remove_lease(&mut self, volume: &VolumeId) -> Option<(Arc<VolumeId>, Known)> {
        let (volume, known) = self.leases.remove_entry(volume)?;
        if let Some(holding) = self.holders.get_mut(&known.lease.holder) {
            holding.volumes.remove(&volume);
            if holding.volumes.is_empty() {
                self.holders.remove(&known.lease.holder);
            } else if holding.newest.as_ref().is_some_and(|newest| newest.volume == volume) {
                holding.newest = newest(&self.leases, &holding.volumes, known.lease.epoch);
            }
        }
        Some((volume, known))
    }

    /// Who holds leases, each with the lease that stands for all of its own; `None` before they were read.
    pub(crate) fn holdings(&self) -> Option<Holdings> {
        let newest = |(holder, holding): (&Holder, &Holding)| Some((holder.clone(), holding.newest.clone()?));
        self.leases_read.then(|| self.holders.iter().filter_map(newest).collect())
    }

    fn lease_deleted(&mut self, volume: &VolumeId, at: Revision, seen: Seen, told: &mut Vec<Told>) {
        if let Some((volume, Known { lease, written })) = self.remove_lease(volume) {
            let of = Some((lease.epoch, lease.token));
            // A keeper frees what it is giving back, or never mounted. What happened between two reads is not known.
            let is_released = lease.stage != Stage::Attached || seen == Seen::ByALaterRead;
            let event = match is_released {
                true => Event::Released { volume, holder: Some(lease.holder), of },
                false => Event::Deleted { volume, holder: lease.holder, of },
            };
            // The place of what each module sees at once is the same.
            let place = match (is_released, seen) {
                (true, Seen::AtOnce) => Place::Written { at, seen },
                _ => Place::Deleted { at, written, seen },
            };
            told.push(Told { event, place, logged: true });
        }
    }

    fn session_written(&mut self, key: &str, entry: &Entry, seen: Seen, told: &mut Vec<Told>) {
        let Some(holder) = self.keys.holder_of(key).filter(|holder| self.keys.session(holder) == key) else {
            return self.tell_unreadable(key, "has a key that names no holder".to_owned(), entry, seen, told);
        };
        let read = decode::<SessionRecord>(&entry.value).and_then(|record| {
            let session = exchange::from_bytes(&Key::Session(holder.clone()), &entry.value)?;
            Ok((record.agent_id, session))
        });
        let (agent_id, session) = match read {
            Ok((agent_id, Record::Session(session))) => (agent_id, session),
            Ok((_, Record::Lease(_) | Record::Held | Record::Beat | Record::Storm(_))) => return,
            Err(error) => {
                self.sessions.remove(&holder);
                self.wanting.remove(&holder);
                return self.tell_unreadable(key, reason(&error), entry, seen, told);
            }
        };
        self.unreadable.remove(key);
        let (epoch, state) = (session.epoch, session.state);
        // The times stand for a keeper that has any: see `exchange::from_bytes`.
        let ttl = (session.by_time != ByTime::Never).then_some(session.timing.ttl);
        let address = session.agent.as_ref().and_then(|agent| AgentAddress::of_pid(&agent.address));
        let agent_id: Option<Arc<str>> = agent_id.map(Into::into);
        let written = entry.mod_revision;
        let wants = if state == SessionState::Live { session.wants } else { BTreeSet::new() };
        let wanted_before = self.sessions.get(&holder).map(|before| &before.wants);
        self.wants_changed |= wanted_before.map_or(!wants.is_empty(), |before| *before != wants);
        if wants.is_empty() {
            self.wanting.remove(&holder);
        } else {
            self.wanting.insert(holder.clone());
        }
        let known = Session { epoch, state, agent_id: agent_id.clone(), address, wants, written };
        let before = self.sessions.insert(holder.clone(), known);
        if before.is_none_or(|before| (before.epoch, before.state) != (epoch, state)) {
            let reason = session.reason;
            let event = Event::Session { holder: holder.clone(), epoch, state, agent_id, reason, ttl };
            told.push(Told { event, place: Place::Written { at: written, seen }, logged: true });
        }
        self.tell_agent(&holder, told);
    }

    fn session_deleted(&mut self, holder: &Holder, at: Revision, seen: Seen, told: &mut Vec<Told>) {
        self.wanting.remove(holder);
        if let Some(Session { epoch, written, .. }) = self.sessions.remove(holder) {
            let event = Event::SessionDeleted { holder: holder.clone(), epoch: Some(epoch) };
            told.push(Told { event, place: Place::Deleted { at, written, seen }, logged: true });
        }
    }

    /// Records of which events say that they were there, and that the first read did not show.
    fn tell_missing(&mut self, prefix: &str, snapshot: &Snapshot, told: &mut Vec<Told>) {
        let (here, rest) = std::mem::take(&mut self.remembered)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(key, _)| key.starts_with(prefix));
        self.remembered = rest;
        for (key, (written, event)) in here {
            if snapshot.entries.contains_key(&key) {
                continue;
            }
            let event = match (self.keys.volume_of(&key), event.holder) {
                (Some(volume), Some(holder)) => {
                    let of = event.epoch.zip(event.token);
                    Event::Released { volume: Arc::new(volume), holder: Some(holder), of }
                }
                (None, Some(holder)) => Event::SessionDeleted { holder, epoch: event.epoch },
                (_, None) => continue,
            };
            let place = Place::Deleted { at: snapshot.revision, written, seen: Seen::ByALaterRead };
            told.push(Told { event, place, logged: true });
        }
    }

    fn tell_unreadable(
        &mut self,
        key: &str,
        reason: String,
        entry: &Entry,
        seen: Seen,
        told: &mut Vec<Told>,
    ) {
        if self.unreadable.get(key) == Some(&reason) {
            return;
        }
        if self.unreadable.len() >= UNREADABLE_NAMED && !self.unreadable.contains_key(key) {
            if !std::mem::replace(&mut self.more_unreadable, true) {
                told.push(for_log(Event::MoreUnreadable));
            }
            return;
        }
        self.unreadable.insert(key.to_owned(), reason.clone());
        let event = Event::Unreadable { key: key.to_owned(), reason };
        told.push(Told { event, place: Place::Written { at: entry.mod_revision, seen }, logged: true });
    }

    fn forget_unreadable_but(&mut self, prefix: &str, snapshot: &Snapshot) {
        self.unreadable.retain(|key, _| !key.starts_with(prefix) || snapshot.entries.contains_key(key));
    }
}

/// Of some volumes the lease with the newest epoch; the first with `enough`, for there is no newer one.
fn newest(
    leases: &BTreeMap<Arc<VolumeId>, Known>,
    volumes: &BTreeSet<Arc<VolumeId>>,
    enough: Epoch,
) -> Option<Newest> {
    let mut found: Option<Newest> = None;
    for volume in volumes {
        let Some(Known { lease, written }) = leases.get(volume) else { continue };
        if found.as_ref().is_none_or(|found| found.epoch < lease.epoch) {
            found = Some(Newest { epoch: lease.epoch, volume: Arc::clone(volume), written: *written });
        }
        if lease.epoch >= enough {
            break;
        }
    }
    found
}

fn for_log(event: Event) -> Told {
    Told { event, place: Place::LogAlone, logged: true }
}

fn outside(event: Event) -> Told {
    Told { event, place: Place::Outside, logged: true }
}

/// The revision of the oldest record of a read that may still make an event, if only the newest `most`
/// may.
fn oldest_found(snapshot: &Snapshot, most: usize) -> Revision {
    let mut revisions: Vec<_> = snapshot.entries.values().map(|entry| entry.mod_revision).collect();
    match revisions.len().checked_sub(most) {
        None | Some(0) => Revision::ABSENT,
        Some(older) => Revision(revisions.select_nth_unstable(older - 1).1.0 + 1),
    }
}

fn reason(error: &RecordError) -> String {
    let mut text = error.to_string();
    if let Some(cause) = error.source() {
        text = format!("{text}: {cause}");
    }
    text.truncate(text.floor_char_boundary(REASON_BYTES));
    text
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "view_agent_tests.rs"]
mod agent_tests;

#[cfg(test)]
#[path = "view_core_tests.rs"]
mod core_tests;
