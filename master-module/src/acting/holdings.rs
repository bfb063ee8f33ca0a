//! What the core is shown: of each holder one lease that it really holds, its session and its heartbeat. Pure.
//!
//! The core needs to know of leases only who holds any, and of which epoch the newest is. Reading all leases
//! several times a second would be a hundred megabytes a second in a large installation; they are followed
//! instead (view.rs), and one of each holder's stands for all. It may be out of date. So every transaction about a
//! session also compares that lease ([`Holdings::compared`]): what is written is written while that very lease is
//! that holder's (docs/decisions/0013-how-the-master-reads.md).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;
use shared::exchange;
use shared::keys::Keys;
use shared::protocol::Now;
use shared::protocol::exchange::{ClusterId, Commit, Held, Key, Lease, Record, Session, Stage, View};
use shared::record::{Epoch, RecordError};
use shared::store::{Entry, Revision, Snapshot};
use shared::volume::{Holder, VolumeId};

/// A lease that stands for all of its holder's: one of the newest epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Newest {
    pub(crate) epoch: Epoch,
    pub(crate) volume: Arc<VolumeId>,
    /// The revision that last wrote it.
    pub(crate) written: Revision,
}

/// Who holds leases.
pub(crate) type Holdings = BTreeMap<Holder, Newest>;

/// A session as it was last decoded: most of ten thousand are the same from read to read.
#[derive(Clone, Debug)]
struct Decoded {
    at: Revision,
    /// `None` when nothing is to be decided about this holder: see [`Sessions::view`].
    session: Option<Session>,
    session_key: String,
    beat_key: String,
}

impl Decoded {
    fn none(keys: &Keys, holder: &Holder) -> Self {
        Self {
            at: Revision::ABSENT,
            session: None,
            session_key: keys.session(holder),
            beat_key: keys.beat(holder),
        }
    }
}

/// The sessions of the last read.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    known: BTreeMap<Holder, Decoded>,
    /// Holders that are looked at also without a lease, and until when.
    kept: BTreeMap<Holder, Now>,
}

impl Sessions {
    /// What the core is to see of a read of the storm guard, all sessions and all heartbeats.
    ///
    /// Left out, with its leases, is a holder whose session cannot be read, for nobody knows what its times
    /// are; and one whose keeper does not beat, for it has no fence either, and does not understand a revoke. That
    /// is one whose session has no times, or whose session is missing and that never beat.
    ///
    /// # Errors
    /// When the storm guard cannot be read: then nothing is decided at all.
    pub(crate) fn view(
        &mut self,
        keys: &Keys,
        holdings: &Holdings,
        cluster: ClusterId,
        snapshot: &Snapshot,
    ) -> Result<View, RecordError> {
        let storm = match snapshot.entries.get(&keys.storm()) {
            Some(entry) => {
                Some((Key::Storm, (exchange::from_bytes(&Key::Storm, &entry.value)?, entry.mod_revision)))
            }
            None => None,
        };
        let (mut leases, mut sessions, mut beats) = (Vec::new(), Vec::new(), Vec::new());
        if self.known.len() > holdings.len() {
            self.known.retain(|holder, _| holdings.contains_key(holder));
        }
        let kept: BTreeSet<_> =
            self.kept.keys().filter(|holder| !holdings.contains_key(holder)).cloned().collect();
        let held = holdings.iter().map(|(holder, newest)| (holder, Some(newest)));
        for (holder, newest) in held.chain(kept.iter().map(|holder| (holder, None))) {
            if !self.known.contains_key(holder) {
                self.known.insert(holder.clone(), Decoded::none(keys, holder));
            }
            let Some(decoded) = self.known.get_mut(holder) else { continue };
            let entry = snapshot.entries.get(&decoded.session_key);
            let at = entry.map_or(Revision::ABSENT, |entry| entry.mod_revision);
            if decoded.at != at {
                decoded.at = at;
                decoded.session = entry.and_then(|entry| session(holder, entry));
            }
            // That a beat was written is all that counts, whatever release wrote it.
            let beat = snapshot.entries.get(&decoded.beat_key);
            let is_missing = at == Revision::ABSENT && beat.is_some();
            if let Some(newest) = newest
                && (is_missing || decoded.session.is_some())
            {
                leases.push((Key::Lease((*newest.volume).clone()), (lease(holder, newest), newest.written)));
                if let Some(beat) = beat {
                    beats.push((Key::Beat(holder.clone()), (Record::Beat, beat.mod_revision)));
                }
            }
            if let Some(session) = &decoded.session {
                sessions.push((Key::Session(holder.clone()), (Record::Session(session.clone()), at)));
            }
        }
        // In the order of the keys, but for the leases: then a map is made of it at little cost.
        leases.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let entries = leases.into_iter().chain(sessions).chain(beats).chain(storm).collect();
        Ok(View { cluster, revision: snapshot.revision, entries })
    }

    /// How many holders were looked at.
    pub(crate) fn holders(&self) -> u32 {
        u32::try_from(self.known.len()).unwrap_or(u32::MAX)
    }

    /// Looks at the holders of these sessions until then, also when they hold nothing any more.
    pub(crate) fn keep<'p>(&mut self, puts: impl Iterator<Item = &'p (Key, Record)>, until: Now) {
        let holders = puts.filter_map(|(key, _)| holder_of_session(key));
        self.kept.extend(holders.map(|holder| (holder.clone(), until)));
    }

    /// Looks no more at those whose time has passed.
    pub(crate) fn forget(&mut self, now: Now) {
        self.kept.retain(|_, until| now < *until);
    }

    /// The holder that serves an agent, with its session.
    pub(crate) fn of_agent(&self, agent_id: &str) -> Option<(&Holder, &Session)> {
        self.known.iter().find_map(|(holder, decoded)| {
            let session = decoded.session.as_ref()?;
            let id = session.agent.as_ref()?.id.as_deref()?;
            (id == agent_id).then_some((holder, session))
        })
    }
}

/// A commit of the core with the condition that its holder still holds the lease that stands for all.
pub(crate) fn compared(commit: Commit, holdings: &Holdings) -> Commit {
    let holder = commit.puts.iter().find_map(|(key, _)| holder_of_session(key));
    match holder.and_then(|holder| holdings.get(holder)) {
        Some(newest) => {
            let lease = Key::Lease((*newest.volume).clone());
            commit.unchanged(lease, newest.written)
        }
        None => commit,
    }
}

fn holder_of_session(key: &Key) -> Option<&Holder> {
    match key {
        Key::Session(holder) => Some(holder),
        Key::Lease(_) | Key::Beat(_) | Key::Storm => None,
    }
}

/// A session that may be judged.
fn session(holder: &Holder, entry: &Entry) -> Option<Session> {
    #[derive(Deserialize)]
    struct Times {
        timing: Option<IgnoredAny>,
    }
    let times: Times = serde_json::from_slice(&entry.value).ok()?;
    times.timing?;
    match exchange::from_bytes(&Key::Session(holder.clone()), &entry.value).ok()? {
        Record::Session(session) => Some(session),
        Record::Lease(_) | Record::Beat | Record::Storm(_) => None,
    }
}

/// Of a lease the core looks at holder and epoch alone.
fn lease(holder: &Holder, newest: &Newest) -> Record {
    Record::Lease(Lease::Held(Held {
        stage: Stage::Attached,
        holder: holder.clone(),
        epoch: newest.epoch,
        token: None,
        agent_id: None,
        containers: Default::default(),
        mount_point: None,
        unsettled: false,
        calls: false,
        revoked: None,
        since: None,
    }))
}
