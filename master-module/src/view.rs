//! What the module knows, and what is new in what it has just learned. Pure: no clock, no input or
//! output; the same inputs give the same events.
//!
//! Built for 10,000 agents and 100,000 leases: a round of polling looks at each agent and each holder
//! once, and at no lease; a change looks at one. Memory grows with held volumes, holders and agents,
//! and with nothing that only passes by.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as StdError;
use std::sync::Arc;

use shared::keys::Keys;
use shared::record::{
    Epoch, HeldLease, LeaseRecord, RecordError, SessionRecord, SessionState, Token, decode,
};
use shared::store::{Change, Entry, Snapshot};
use shared::volume::{Holder, VolumeId};

use crate::event::{AgentView, Event, Lease, Stage, Standing};
use crate::mesos::{Agent, Registration};

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
    agent_id: Option<String>,
}

/// A holder of at least one volume.
#[derive(Debug)]
struct Holding {
    volumes: BTreeSet<Arc<VolumeId>>,
    /// How its agent stood when that was last told.
    told: Standing,
}

/// The agents of the leading master.
#[derive(Debug, Default)]
struct Agents {
    by_id: BTreeMap<String, Registration>,
    /// The one agent to look at of each host: an active one, if there is one.
    by_host: BTreeMap<String, String>,
}

/// All that is known.
#[derive(Debug)]
pub(crate) struct View {
    keys: Keys,
    leases: BTreeMap<Arc<VolumeId>, Lease>,
    holders: BTreeMap<Holder, Holding>,
    sessions: BTreeMap<Holder, Session>,
    /// `None` until a master was asked with success.
    agents: Option<Agents>,
    /// Keys of unreadable records, with the reason that was told.
    unreadable: BTreeMap<String, String>,
    more_unreadable: bool,
    leases_read: bool,
    sessions_read: bool,
}

impl View {
    pub(crate) fn new(keys: Keys) -> Self {
        Self {
            keys,
            leases: BTreeMap::new(),
            holders: BTreeMap::new(),
            sessions: BTreeMap::new(),
            agents: None,
            unreadable: BTreeMap::new(),
            more_unreadable: false,
            leases_read: false,
            sessions_read: false,
        }
    }

    /// All leases were read.
    #[must_use]
    pub(crate) fn read_leases(&mut self, snapshot: &Snapshot) -> Vec<Event> {
        let mut events = Vec::new();
        let gone: Vec<_> = (self.leases.keys())
            .filter(|volume| !snapshot.entries.contains_key(&self.keys.lease(volume)))
            .cloned()
            .collect();
        for volume in gone {
            self.lease_deleted(&volume, &mut events);
        }
        self.forget_unreadable_but(&self.keys.leases(), snapshot);
        let first = !std::mem::replace(&mut self.leases_read, true);
        let mut held = 0;
        for (key, entry) in &snapshot.entries {
            let known = events.len();
            self.lease_written(key, entry, &mut events);
            if first && matches!(events.get(known), Some(Event::Held { .. })) {
                held += 1;
                if held > HELD_NAMED {
                    events.truncate(known);
                }
            }
        }
        if first {
            events.insert(0, Event::LeasesRead { held: self.leases.len(), records: snapshot.entries.len() });
            if held > HELD_NAMED {
                events.push(Event::MoreHeld { volumes: held - HELD_NAMED });
            }
        }
        events
    }

    /// All sessions were read. The first time nothing is told of them: each is where it was.
    #[must_use]
    pub(crate) fn read_sessions(&mut self, snapshot: &Snapshot) -> Vec<Event> {
        let mut events = Vec::new();
        let gone: Vec<_> = (self.sessions.keys())
            .filter(|holder| !snapshot.entries.contains_key(&self.keys.session(holder)))
            .cloned()
            .collect();
        for holder in gone {
            self.session_deleted(&holder, &mut events);
        }
        self.forget_unreadable_but(&self.keys.sessions(), snapshot);
        for (key, entry) in &snapshot.entries {
            self.session_written(key, entry, &mut events);
        }
        if !std::mem::replace(&mut self.sessions_read, true) {
            events.retain(|event| !matches!(event, Event::Session { .. }));
        }
        events
    }

    /// Whether the sessions have been read.
    #[must_use]
    pub(crate) fn has_sessions(&self) -> bool {
        self.sessions_read
    }

    /// Leases or sessions were written or deleted.
    #[must_use]
    pub(crate) fn changed(&mut self, changes: &[Change]) -> Vec<Event> {
        let mut events = Vec::new();
        for change in changes {
            match change {
                Change::Put { key, entry } if key.starts_with(&self.keys.leases()) => {
                    self.lease_written(key, entry, &mut events);
                }
                Change::Put { key, entry } => self.session_written(key, entry, &mut events),
                Change::Delete { key } => {
                    self.unreadable.remove(key);
                    if let Some(volume) = self.keys.volume_of(key) {
                        self.lease_deleted(&volume, &mut events);
                    } else if let Some(holder) = self.keys.holder_of(key) {
                        self.session_deleted(&holder, &mut events);
                    }
                }
            }
        }
        events
    }

    /// The leading master was asked for its agents.
    #[must_use]
    pub(crate) fn polled(&mut self, agents: Vec<Agent>) -> Vec<Event> {
        let mut known = Agents::default();
        for Agent { id, hostname, registration } in agents {
            let active = registration == Registration::Active;
            if active || !known.by_host.contains_key(&hostname) {
                known.by_host.insert(hostname, id.clone());
            }
            known.by_id.insert(id, registration);
        }
        self.agents = Some(known);
        let holders: Vec<_> = self.holders.keys().cloned().collect();
        let mut events = Vec::new();
        for holder in holders {
            self.tell_agent(&holder, &mut events);
        }
        events
    }

    fn lease_written(&mut self, key: &str, entry: &Entry, events: &mut Vec<Event>) {
        // Only under its own key: another spelling of it could be another record.
        let Some(volume) = self.keys.volume_of(key).filter(|volume| self.keys.lease(volume) == key) else {
            return self.tell_unreadable(key, "has a key that names no volume".to_owned(), events);
        };
        let record = match decode::<LeaseRecord>(&entry.value) {
            Ok(record) => record,
            Err(error) => {
                // What it said before is not what it says now.
                self.remove_lease(&volume);
                return self.tell_unreadable(key, reason(&error), events);
            }
        };
        self.unreadable.remove(key);
        let (stage, held) = match record {
            LeaseRecord::Free { last_holder, .. } => {
                if let Some((volume, lease)) = self.remove_lease(&volume) {
                    let holder = last_holder.unwrap_or(lease.holder);
                    events.push(Event::Released { volume, holder });
                }
                return;
            }
            LeaseRecord::Attaching(held) => (Stage::Attaching, held),
            LeaseRecord::Attached(held) => (Stage::Attached, held),
            LeaseRecord::Detaching(held) => (Stage::Detaching, held),
        };
        let HeldLease { holder, epoch, token, agent_id, containers, .. } = held;
        // The granting write cannot contain its own revision.
        let token = token.unwrap_or(Token(entry.mod_revision));
        let lease = Lease { stage, holder, epoch, token, agent_id, containers };
        self.hold(volume, lease, events);
    }

    fn hold(&mut self, volume: VolumeId, lease: Lease, events: &mut Vec<Event>) {
        if self.leases.get(&volume) == Some(&lease) {
            return;
        }
        let volume = match self.remove_lease(&volume) {
            Some((volume, _)) => volume,
            None => Arc::new(volume),
        };
        self.leases.insert(Arc::clone(&volume), lease.clone());
        let agent = self.agent_of(&lease.holder, lease.agent_id.as_deref());
        let holding = self
            .holders
            .entry(lease.holder.clone())
            .or_insert_with(|| Holding { volumes: BTreeSet::new(), told: agent.standing });
        holding.volumes.insert(Arc::clone(&volume));
        events.push(Event::Held { volume, lease, agent });
    }

    fn remove_lease(&mut self, volume: &VolumeId) -> Option<(Arc<VolumeId>, Lease)> {
        let (volume, lease) = self.leases.remove_entry(volume)?;
        if let Some(holding) = self.holders.get_mut(&lease.holder) {
            holding.volumes.remove(&volume);
            if holding.volumes.is_empty() {
                self.holders.remove(&lease.holder);
            }
        }
        Some((volume, lease))
    }

    fn lease_deleted(&mut self, volume: &VolumeId, events: &mut Vec<Event>) {
        if let Some((volume, lease)) = self.remove_lease(volume) {
            events.push(Event::Deleted { volume, holder: lease.holder });
        }
    }

    fn session_written(&mut self, key: &str, entry: &Entry, events: &mut Vec<Event>) {
        let Some(holder) = self.keys.holder_of(key).filter(|holder| self.keys.session(holder) == key) else {
            return self.tell_unreadable(key, "has a key that names no holder".to_owned(), events);
        };
        let SessionRecord { epoch, state, agent_id, .. } = match decode(&entry.value) {
            Ok(record) => record,
            Err(error) => {
                self.sessions.remove(&holder);
                return self.tell_unreadable(key, reason(&error), events);
            }
        };
        self.unreadable.remove(key);
        let session = Session { epoch, state, agent_id };
        let before = self.sessions.insert(holder.clone(), session);
        if before.is_none_or(|before| (before.epoch, before.state) != (epoch, state)) {
            events.push(Event::Session { holder: holder.clone(), epoch, state });
        }
        self.tell_agent(&holder, events);
    }

    fn session_deleted(&mut self, holder: &Holder, events: &mut Vec<Event>) {
        if self.sessions.remove(holder).is_some() {
            events.push(Event::SessionDeleted { holder: holder.clone() });
        }
    }

    /// The agent of a holder: that which its session names, else its lease, else one of that host.
    /// An id that the master does not know gives way to a host that it does: an agent that lost its
    /// working directory comes back under another id.
    fn agent_of(&self, holder: &Holder, of_lease: Option<&str>) -> AgentView {
        let of_session = self.sessions.get(holder).and_then(|session| session.agent_id.as_deref());
        let named = of_session.or(of_lease);
        let Some(agents) = &self.agents else {
            return AgentView { id: named.map(str::to_owned), standing: Standing::NotAsked };
        };
        let by_id = named.and_then(|id| agents.by_id.get_key_value(id));
        let by_host = || agents.by_id.get_key_value(agents.by_host.get(holder.as_str())?);
        match by_id.or_else(by_host) {
            None => AgentView { id: named.map(str::to_owned), standing: Standing::Missing },
            Some((id, registration)) => {
                let standing = match registration {
                    Registration::Active => Standing::Active,
                    Registration::Inactive => Standing::Inactive,
                    Registration::Recovered => Standing::Recovered,
                };
                AgentView { id: Some(id.clone()), standing }
            }
        }
    }

    fn tell_agent(&mut self, holder: &Holder, events: &mut Vec<Event>) {
        let Some(holding) = self.holders.get(holder) else { return };
        let Some(volume) = holding.volumes.first().cloned() else { return };
        let of_lease = self.leases.get(&volume).and_then(|lease| lease.agent_id.as_deref());
        let agent = self.agent_of(holder, of_lease);
        let (before, more) = (holding.told, holding.volumes.len() - 1);
        if before == agent.standing {
            return;
        }
        if let Some(holding) = self.holders.get_mut(holder) {
            holding.told = agent.standing;
        }
        // That an agent is as it should be is no news at the first poll.
        if (before, agent.standing) != (Standing::NotAsked, Standing::Active) {
            events.push(Event::Agent { holder: holder.clone(), volume, more, agent, before });
        }
    }

    fn tell_unreadable(&mut self, key: &str, reason: String, events: &mut Vec<Event>) {
        if self.unreadable.get(key) == Some(&reason) {
            return;
        }
        if self.unreadable.len() >= UNREADABLE_NAMED && !self.unreadable.contains_key(key) {
            if !std::mem::replace(&mut self.more_unreadable, true) {
                events.push(Event::MoreUnreadable);
            }
            return;
        }
        self.unreadable.insert(key.to_owned(), reason.clone());
        events.push(Event::Unreadable { key: key.to_owned(), reason });
    }

    fn forget_unreadable_but(&mut self, prefix: &str, snapshot: &Snapshot) {
        self.unreadable.retain(|key, _| !key.starts_with(prefix) || snapshot.entries.contains_key(key));
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
