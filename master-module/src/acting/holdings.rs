//! What the core is shown: of each holder one lease that it really holds, its session and its heartbeat; and who waits
//! for which lease. Pure.
//!
//! The core needs to know of leases only who holds any, and of which epoch the newest is. Reading all leases
//! several times a second would be a hundred megabytes a second in a large installation; they are followed
//! instead (view.rs), and one of each holder's stands for all. It may be out of date. So every transaction about a
//! session also compares that lease ([`Sessions::compared`]): what is written is written while that very lease is
//! that holder's (docs/decisions/0013-how-the-master-reads.md).
//!
//! The leases that other hosts wait for are shown as well, as they are followed; before one is revoked the core reads it. That
//! they are waited for is in the sessions, which are read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;
use shared::exchange;
use shared::keys::Keys;
use shared::protocol::Now;
use shared::protocol::exchange::{
    ClusterId, Commit, Held, Key, Lease, Record, Session, SessionState, Stage, View,
};
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

/// A lease, as it is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Followed {
    pub(crate) holder: Holder,
    pub(crate) epoch: Epoch,
    /// The revision that last wrote it.
    pub(crate) written: Revision,
}

/// Leases that sessions of other hosts were seen to want.
pub(crate) type Wanted = BTreeMap<Arc<VolumeId>, Followed>;

/// A session as it was last decoded: most of ten thousand are the same from read to read.
#[derive(Clone, Debug)]
struct Decoded {
    at: Revision,
    /// `None` when nothing is to be decided about this holder: see [`Sessions::view`].
    session: Option<Session>,
    /// Whether the core is shown its lease.
    shown: bool,
    session_key: String,
    beat_key: String,
}

impl Decoded {
    fn none(keys: &Keys, holder: &Holder) -> Self {
        Self {
            at: Revision::ABSENT,
            session: None,
            shown: false,
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
    /// Holders whose session says that it wants something, by its key, as of the revision that was last read.
    wanting: BTreeMap<String, Holder>,
    through: Revision,
}

/// What stands in a session that wants something, and in no other.
const WANTS: &[u8] = br#""wants""#;

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
        wanted: &Wanted,
        cluster: ClusterId,
        snapshot: &Snapshot,
    ) -> Result<View, RecordError> {
        let storm = match snapshot.entries.get(&keys.storm()) {
            Some(entry) => {
                Some((Key::Storm, (exchange::from_bytes(&Key::Storm, &entry.value)?, entry.mod_revision)))
            }
            None => None,
        };
        self.look_for_wanting(keys, snapshot);
        let (mut leases, mut sessions, mut beats) = (Vec::new(), Vec::new(), Vec::new());
        let more: BTreeSet<_> = (self.kept.keys().chain(self.wanting.values()))
            .filter(|holder| !holdings.contains_key(holder))
            .cloned()
            .collect();
        if self.known.len() > holdings.len() + more.len() {
            self.known.retain(|holder, _| holdings.contains_key(holder) || more.contains(holder));
        }
        let held = holdings.iter().map(|(holder, newest)| (holder, Some(newest)));
        for (holder, newest) in held.chain(more.iter().map(|holder| (holder, None))) {
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
            decoded.shown = newest.is_some() && (is_missing || decoded.session.is_some());
            if let Some(newest) = newest.filter(|_| decoded.shown) {
                leases.push(lease(&newest.volume, holder, newest.epoch, newest.written));
                if let Some(beat) = beat {
                    beats.push((Key::Beat(holder.clone()), (Record::Beat, beat.mod_revision)));
                }
            }
            if let Some(session) = &decoded.session {
                sessions.push((holder, session.clone(), at));
            }
        }
        for (volume, followed) in self.waited_for(holdings, wanted, &mut sessions) {
            let Followed { holder, epoch, written } = followed;
            if holdings.get(holder).is_none_or(|newest| newest.volume != *volume) {
                leases.push(lease(volume, holder, *epoch, *written));
            }
        }
        // In the order of the keys, but for the leases: then a map is made of it at little cost.
        leases.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let session = |(holder, session, at): (&Holder, _, _)| {
            (Key::Session(holder.clone()), (Record::Session(session), at))
        };
        let sessions = sessions.into_iter().map(session);
        let entries = leases.into_iter().chain(sessions).chain(beats).chain(storm).collect();
        Ok(View { entries, ..View::new(cluster, snapshot.revision) })
    }

    /// Looks through the sessions that were written since the last read for those that want something.
    fn look_for_wanting(&mut self, keys: &Keys, snapshot: &Snapshot) {
        if snapshot.revision < self.through {
            // Another history.
            (self.wanting, self.through) = (BTreeMap::new(), Revision::ABSENT);
        }
        self.wanting.retain(|key, _| snapshot.entries.contains_key(key));
        let prefix = keys.sessions();
        let sessions =
            snapshot.entries.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        for (key, entry) in sessions.filter(|(_, entry)| entry.mod_revision > self.through) {
            let wants = entry.value.windows(WANTS.len()).any(|bytes| bytes == WANTS);
            let holder = keys.holder_of(key).filter(|holder| wants && keys.session(holder) == *key);
            match holder {
                Some(holder) => self.wanting.insert(key.clone(), holder),
                None => self.wanting.remove(key),
            };
        }
        self.through = snapshot.revision;
    }

    /// Of the leases that are followed as wanted, those that a live session wants; and leaves out of the sessions what
    /// they want of themselves: one that has just taken what it waited for has not said yet that it waits no more.
    fn waited_for<'w>(
        &self,
        holdings: &Holdings,
        wanted: &'w Wanted,
        sessions: &mut [(&Holder, Session, Revision)],
    ) -> BTreeMap<&'w Arc<VolumeId>, &'w Followed> {
        let mut waited_for = BTreeMap::new();
        for (holder, session, _) in sessions {
            if session.wants.is_empty() {
                continue;
            }
            session.wants.retain(|volume| {
                let stands_for_all = holdings.get(holder).is_some_and(|newest| *newest.volume == *volume);
                !stands_for_all && wanted.get(volume).is_none_or(|followed| followed.holder != **holder)
            });
            if session.state == SessionState::Live {
                let leases = session.wants.iter().filter_map(|volume| wanted.get_key_value(volume));
                let is_shown = |holder| self.known.get(holder).is_some_and(|decoded| decoded.shown);
                waited_for.extend(leases.filter(|(_, followed)| is_shown(&followed.holder)));
            }
        }
        waited_for
    }

    /// A commit of the core about a session, with the condition that its holder still holds the lease that stands for all.
    pub(crate) fn compared(commit: Commit, holdings: &Holdings) -> Commit {
        let mut put = commit.puts.iter().filter_map(|(key, record)| match (key, record) {
            (Key::Session(holder), Record::Session(_)) => Some(holder),
            _ => None,
        });
        match put.next().and_then(|holder| holdings.get(holder)) {
            Some(newest) => {
                let lease = Key::Lease((*newest.volume).clone());
                commit.unchanged(lease, newest.written)
            }
            None => commit,
        }
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

fn holder_of_session(key: &Key) -> Option<&Holder> {
    match key {
        Key::Session(holder) => Some(holder),
        Key::Lease(_) | Key::Held(..) | Key::Beat(_) | Key::Storm => None,
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
        Record::Lease(_) | Record::Held | Record::Beat | Record::Storm(_) => None,
    }
}

/// A lease as the core is shown it, who looks at holder and epoch alone.
fn lease(volume: &VolumeId, holder: &Holder, epoch: Epoch, written: Revision) -> (Key, (Record, Revision)) {
    let held = Held {
        stage: Stage::Attached,
        holder: holder.clone(),
        epoch,
        token: None,
        agent_id: None,
        containers: Default::default(),
        tasks: Default::default(),
        mount_point: None,
        unsettled: false,
        calls: false,
        owed: None,
        revoked: None,
        since: None,
    };
    (Key::Lease(volume.clone()), (Record::Lease(Lease::Held(held)), written))
}
