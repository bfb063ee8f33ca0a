//! etcd as the protocol sees it: a store whose transactions happen one after the other. Members, time-outs
//! and late commits are the scheduler's business.

use std::collections::BTreeMap;

use protocol::exchange::{ClusterId, Commit, Key, Lease, Outcome, Reading, Record, SessionState, View};
use protocol::ids::Revision;
use protocol::volume::{Holder, VolumeId};

/// The store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Etcd {
    /// The installation.
    pub cluster: ClusterId,
    /// The present revision.
    pub revision: Revision,
    /// What is stored.
    pub entries: BTreeMap<Key, (Record, Revision)>,
}

impl Etcd {
    /// A new installation.
    #[must_use]
    pub fn new() -> Self {
        Self { cluster: ClusterId("c1".into()), revision: Revision(1), entries: BTreeMap::new() }
    }

    /// A linearizable read.
    #[must_use]
    pub fn read(&self, reading: &Reading) -> View {
        let (cluster, revision) = (self.cluster.clone(), self.revision);
        if let Reading::Keys(keys) = reading {
            let found = |key: &Key| Some((key.clone(), self.entries.get(key)?.clone()));
            return View { entries: keys.iter().filter_map(found).collect(), ..View::new(cluster, revision) };
        }
        View { entries: self.entries.clone(), ..View::new(cluster, revision) }.of(reading)
    }

    /// The revision that last wrote `key`.
    #[must_use]
    pub fn at(&self, key: &Key) -> Revision {
        self.entries.get(key).map_or(Revision::ABSENT, |(_, at)| *at)
    }

    /// Whether all compares hold.
    #[must_use]
    pub fn would_commit(&self, commit: &Commit) -> bool {
        commit.cluster == self.cluster && commit.compares.iter().all(|(key, at)| self.at(key) == *at)
    }

    /// Commits, or does nothing.
    pub fn commit(&mut self, commit: &Commit) -> Outcome {
        if !self.would_commit(commit) {
            let read =
                (!commit.otherwise.is_empty()).then(|| self.read(&Reading::Keys(commit.otherwise.clone())));
            return Outcome::Conflict(read.map(Box::new));
        }
        self.revision.0 += 1;
        for (key, record) in &commit.puts {
            // Nobody compares an index: what differs by its revision alone is one state.
            let at = if let Key::Held(..) = key { Revision(1) } else { self.revision };
            self.entries.insert(key.clone(), (record.clone(), at));
        }
        for key in &commit.deletes {
            self.entries.remove(key);
        }
        Outcome::Done(self.revision)
    }

    /// A volume's lease.
    #[must_use]
    pub fn lease(&self, volume: &VolumeId) -> Option<&Lease> {
        match self.entries.get(&Key::Lease(volume.clone())) {
            Some((Record::Lease(lease), _)) => Some(lease),
            _ => None,
        }
    }

    /// Whether a lease is in the index of each whom it names.
    #[must_use]
    pub fn is_indexed(&self, volume: &VolumeId) -> bool {
        let Some(lease) = self.lease(volume) else { return true };
        lease
            .named()
            .into_iter()
            .all(|holder| self.entries.contains_key(&Key::Held(holder.clone(), volume.clone())))
    }

    /// Whether somebody may take the volume now, where the storage can take it away or not.
    #[must_use]
    pub fn is_takeable(&self, volume: &VolumeId, takes_away: bool) -> bool {
        let Some(held) = self.lease(volume).and_then(Lease::held) else { return true };
        self.session(&held.holder).is_some_and(|(epoch, state)| {
            let dead = matches!(state, SessionState::Dead(_));
            epoch > held.epoch.0 && (dead || takes_away) || epoch == held.epoch.0 && dead
        })
    }

    /// Whether a volume's holder was made safe, lives in a later epoch, and will give it back.
    #[must_use]
    pub fn is_given_back(&self, volume: &VolumeId) -> Option<&Holder> {
        let held = self.lease(volume)?.held()?;
        let Some((Record::Session(session), _)) = self.entries.get(&Key::Session(held.holder.clone())) else {
            return None;
        };
        let lives = matches!(session.state, SessionState::Live | SessionState::Revoking);
        let proved = session.epoch > held.epoch && held.epoch > session.unsettled_through;
        (lives && proved).then_some(&held.holder)
    }

    /// A holder's session.
    #[must_use]
    pub fn session(&self, holder: &Holder) -> Option<(u64, SessionState)> {
        match self.entries.get(&Key::Session(holder.clone())) {
            Some((Record::Session(session), _)) => Some((session.epoch.0, session.state)),
            _ => None,
        }
    }
}

impl Default for Etcd {
    fn default() -> Self {
        Self::new()
    }
}
