//! An etcd of a few lines: it answers at once, unless a test holds a commit back or has its answer lost.

use std::collections::{BTreeMap, BTreeSet};

use protocol::exchange::{
    Agent, ByTime, ClusterId, Commit, Held, Instance, Key, Lease, Outcome, Owed, Proof, Reading, Record,
    Session, SessionState, Stage, View,
};
use protocol::ids::Epoch;
use protocol::ids::Revision;
use protocol::timing::Profile;
use protocol::volume::{ContainerId, Holder};

use crate::host::volume;

/// What becomes of the next commit that is no beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is done, and nobody hears of it.
    Unheard,
    /// Nobody hears of it, and it is done when the test says so.
    Late,
    /// It is not sent.
    NotSent,
}

pub(crate) struct Etcd {
    revision: Revision,
    entries: BTreeMap<Key, (Record, Revision)>,
    /// Why nothing is answered, while it is so.
    pub(crate) down: Option<&'static str>,
    pub(crate) fate: Option<Fate>,
    pub(crate) late: Vec<Commit>,
    /// How often a compare did not hold.
    pub(crate) refused: usize,
    /// What was committed, as it was sent.
    pub(crate) sent: Vec<Commit>,
    /// Records that nobody can read.
    pub(crate) spoilt: BTreeMap<Key, &'static str>,
}

pub(crate) fn holder(name: &str) -> Holder {
    Holder::new(name).unwrap()
}

impl Etcd {
    pub(crate) fn new() -> Self {
        let (entries, late, sent, spoilt, refused) = Default::default();
        Self { revision: Revision(1), entries, down: None, fate: None, late, refused, sent, spoilt }
    }

    pub(crate) fn read(&self, reading: &Reading) -> View {
        let (cluster, revision) = (ClusterId("c1".into()), self.revision);
        let mut view = View { entries: self.entries.clone(), ..View::new(cluster, revision) }.of(reading);
        for (key, why) in &self.spoilt {
            if view.entries.remove(key).is_some() {
                view.unreadable.insert(key.clone(), (*why).into());
            }
        }
        view
    }

    pub(crate) fn commit(&mut self, commit: &Commit) -> Outcome {
        let at = |key: &Key| self.entries.get(key).map_or(Revision::ABSENT, |(_, at)| *at);
        if !commit.compares.iter().all(|(key, expected)| at(key) == *expected) {
            self.refused += 1;
            return Outcome::Conflict(Some(Box::new(self.read(&Reading::Keys(commit.otherwise.clone())))));
        }
        self.revision.0 += 1;
        self.sent.push(commit.clone());
        for (key, record) in &commit.puts {
            self.entries.insert(key.clone(), (record.clone(), self.revision));
        }
        for key in &commit.deletes {
            self.entries.remove(key);
        }
        Outcome::Done(self.revision)
    }

    /// What the next commit comes to, unless it is a beat.
    pub(crate) fn answer(&mut self, commit: &Commit) -> Outcome {
        if self.down.is_some() {
            return Outcome::NotSent;
        }
        match self.fate.take() {
            None => self.commit(commit),
            Some(Fate::NotSent) => Outcome::NotSent,
            Some(Fate::Late) => {
                self.late.push(commit.clone());
                Outcome::Unknown
            }
            Some(Fate::Unheard) => {
                let _ = self.commit(commit);
                Outcome::Unknown
            }
        }
    }

    /// Somebody writes what is no record.
    pub(crate) fn spoil(&mut self, key: Key) {
        self.revision.0 += 1;
        if let Some((_, at)) = self.entries.get_mut(&key) {
            *at = self.revision;
        }
        self.spoilt.insert(key, "has version 9");
    }

    /// How many records there are of volumes.
    pub(crate) fn leases(&self) -> usize {
        self.entries.keys().filter(|key| matches!(key, Key::Lease(_))).count()
    }

    fn put(&mut self, key: Key, record: Record) {
        self.revision.0 += 1;
        if let (Key::Lease(volume), Record::Lease(lease)) = (&key, &record) {
            // As those have done whom it names.
            for holder in lease.named() {
                let index = Key::Held(holder.clone(), volume.clone());
                self.entries.insert(index, (Record::Held, self.revision));
            }
        }
        self.entries.insert(key, (record, self.revision));
    }

    /// What a holder finds its leases by.
    pub(crate) fn index_of(&self, me: &str) -> Vec<String> {
        let view = self.read(&Reading::Everything);
        view.index_of(&holder(me)).map(|volume| volume.name.as_str().to_owned()).collect()
    }

    pub(crate) fn lease(&self, name: &str) -> Option<&Held> {
        match self.entries.get(&Key::Lease(volume(name))) {
            Some((Record::Lease(lease), _)) => lease.held(),
            _ => None,
        }
    }

    pub(crate) fn session(&self, name: &str) -> &Session {
        match self.entries.get(&Key::Session(holder(name))) {
            Some((Record::Session(session), _)) => session,
            other => panic!("{name} has no session: {other:?}"),
        }
    }

    /// Has another host hold a volume for its container `db`.
    pub(crate) fn hold_elsewhere(&mut self, owner: &str, name: &str) {
        let held = Held {
            stage: Stage::Attached,
            holder: holder(owner),
            epoch: Epoch(1),
            token: None,
            agent_id: Some("S2".into()),
            containers: BTreeSet::from([ContainerId::new("db").unwrap()]),
            tasks: Default::default(),
            mount_point: None,
            unsettled: false,
            calls: false,
            owed: None,
            revoked: None,
            since: Some("2026-11-01T10:00:00Z".into()),
        };
        self.put(Key::Lease(volume(name)), Record::Lease(Lease::Held(held)));
        self.open_elsewhere(owner, &[]);
    }

    /// Has another host have a live session, and wait for volumes.
    pub(crate) fn open_elsewhere(&mut self, owner: &str, wants: &[&str]) {
        let session = Session {
            epoch: Epoch(1),
            instance: Instance("i2".into()),
            state: SessionState::Live,
            machine: format!("machine of {owner}").into(),
            boot: "b2".into(),
            agent: Some(Agent {
                id: Some(format!("agent of {owner}").into()),
                address: "10.0.0.2:5051".into(),
            }),
            timing: Profile::Default.timing(),
            by_time: ByTime::Allowed,
            means: Default::default(),
            unproved: None,
            unsettled_through: Epoch(0),
            wants: wants.iter().map(|name| volume(name)).collect(),
            reason: None,
            since: None,
        };
        self.put(Key::Session(holder(owner)), Record::Session(session));
    }

    pub(crate) fn beat_elsewhere(&mut self, owner: &str) {
        self.put(Key::Beat(holder(owner)), Record::Beat);
    }

    pub(crate) fn free(&mut self, name: &str) {
        self.revision.0 += 1;
        self.entries.remove(&Key::Lease(volume(name)));
    }

    /// What is owed of a free lease.
    pub(crate) fn owed(&self, name: &str) -> Option<&Owed> {
        match self.entries.get(&Key::Lease(volume(name))) {
            None => None,
            Some((Record::Lease(Lease::Free { owed, .. }), _)) => owed.as_ref(),
            other => panic!("the lease of {name} is not free: {other:?}"),
        }
    }

    /// A free lease whose volume another host has not given back.
    pub(crate) fn owe(&mut self, name: &str, from: &str, by_time: bool) {
        let since = "2026-11-01T10:00:00Z".into();
        let owed = Some(Owed::and(None, &holder(from), Some(&since), by_time));
        let last_holder = Some(holder("agent-3"));
        self.put(Key::Lease(volume(name)), Record::Lease(Lease::Free { last_holder, owed }));
    }

    /// Another host owes a held volume, too.
    pub(crate) fn owes_too(&mut self, name: &str, from: &str) {
        let held = self.lease(name).unwrap().clone();
        let owed = Some(Owed::and(held.owed.clone(), &holder(from), None, true));
        self.put(Key::Lease(volume(name)), Record::Lease(Lease::Held(Held { owed, ..held })));
    }

    /// Another host was made safe, lives, and has opened its next epoch.
    pub(crate) fn reopen_elsewhere(&mut self, owner: &str) {
        let before = self.session(owner);
        let session = Session { epoch: Epoch(before.epoch.0 + 1), ..before.clone() };
        self.put(Key::Session(holder(owner)), Record::Session(session));
    }

    /// Another host's session is declared dead, after its silence alone.
    pub(crate) fn end_elsewhere(&mut self, owner: &str) {
        let session = Session { state: SessionState::Dead(Proof::Time), ..self.session(owner).clone() };
        self.put(Key::Session(holder(owner)), Record::Session(session));
    }

    /// Revokes a session, as `extvol revoke` and the master's module do.
    pub(crate) fn revoke_session(&mut self, name: &str, reason: &str) {
        let (state, reason) = (SessionState::Revoking, Some(reason.into()));
        let session = Session { state, reason, ..self.session(name).clone() };
        self.put(Key::Session(holder(name)), Record::Session(session));
    }

    /// Revokes one volume, as `extvol revoke` does: the session is rewritten with it, so that the next beat tells.
    pub(crate) fn revoke_volume(&mut self, name: &str, reason: &str) {
        let held = self.lease(name).unwrap().clone();
        let session = self.session(held.holder.as_str()).clone();
        let key = Key::Session(held.holder.clone());
        let key_of_lease = Key::Lease(volume(name));
        let held = held.revoked(self.entries[&key_of_lease].1, reason);
        self.put(key_of_lease, Record::Lease(Lease::Held(held)));
        self.put(key, Record::Session(session));
    }
}
