//! What the core says to etcd and hears from it: typed records, reads and commits. Their bytes and
//! key names are the shell's business (`crate::exchange`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Text;
use super::timing::Timing;
use crate::ids::Revision;
use crate::ids::{Epoch, Task, Token};
use crate::volume::{ContainerId, Holder, VolumeId};

/// The id of this installation, another one after etcd was restored from a backup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub Text);

/// Random, one per start of a worker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instance(pub Text);

/// A key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A volume's lease.
    Lease(VolumeId),
    /// A volume in a holder's index: its lease may name this holder, as who has it or as who owes it. Whose lease does, is there;
    /// so that a holder finds what is its own, however much there is of others. The holder alone writes it.
    Held(Holder, VolumeId),
    /// A holder's session.
    Session(Holder),
    /// A holder's heartbeat.
    Beat(Holder),
    /// The storm guard.
    Storm,
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    /// Of [`Key::Lease`].
    Lease(Lease),
    /// Of [`Key::Held`]. That it is there is all that counts.
    Held,
    /// Of [`Key::Session`].
    Session(Session),
    /// Of [`Key::Beat`]. That it was written is all that counts.
    Beat,
    /// Of [`Key::Storm`].
    Storm(Storm),
}

/// How a session can end that was declared dead, and so what is known about its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    /// Its holder unmounted everything, and proved every device idle.
    Unmounted,
    /// Its holder fenced itself, and proved it. Only earlier releases wrote this: now the next epoch says it.
    Fenced,
    /// It did not beat for a full wait: its processes cannot write, but what they handed to the block
    /// layer, or a host that was not running, still can (L20).
    Time,
}

/// Whether a session may hold leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionState {
    /// It may take and hold leases.
    Live,
    /// It takes no new leases, winds down what it has, and beats on until then.
    Revoking,
    /// Whatever it held may be taken over.
    Dead(Proof),
}

/// Whether a session may be declared dead because it is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ByTime {
    /// Its host fences itself in time, and can prove it.
    Allowed,
    /// Its host cannot prove its fence.
    Unproved,
    /// Its operator wants no fencing while etcd is away.
    Never,
}

/// What makes sure that a host writes no more when its keeper's processes die: each is established by the keeper itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Means {
    /// A process beside the keeper's, in a session and cgroups of its own, fences in their place.
    Guard,
    /// systemd starts the keeper again at once.
    Supervisor,
    /// A watchdog device resets the host.
    Watchdog,
    /// The storage takes its volumes away. It does not end what the host does, and so is none by itself.
    Storage,
}

impl Means {
    /// Its name in a record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guard => "guard",
            Self::Supervisor => "supervisor",
            Self::Watchdog => "watchdog",
            Self::Storage => "storage",
        }
    }

    /// Whether it acts when all of the keeper's processes are dead.
    #[must_use]
    pub fn outlives_keeper(self) -> bool {
        !matches!(self, Self::Storage)
    }
}

/// The Mesos agent of a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Agent {
    /// Its id; none before it registered.
    pub id: Option<Text>,
    /// Its libprocess address, `slave(1)@ip:port`.
    pub address: Text,
}

/// A holder's session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    /// Which life of the holder this is.
    pub epoch: Epoch,
    /// Which process owns it.
    pub instance: Instance,
    /// Whether it may hold leases.
    pub state: SessionState,
    /// The machine: a boot id is believed only of the same one.
    pub machine: Text,
    /// The machine's boot.
    pub boot: Text,
    /// The Mesos agent that it serves, once that has said so.
    pub agent: Option<Agent>,
    /// Its times.
    pub timing: Timing,
    /// Whether silence may end it.
    pub by_time: ByTime,
    /// What its host's fence rests on.
    pub means: BTreeSet<Means>,
    /// Why its host cannot prove its fence, for people.
    pub unproved: Option<Text>,
    /// Leases of this and earlier epochs are unsettled though a later one was opened: that was done by
    /// another machine, which has proved nothing about the one that held them (L19).
    pub unsettled_through: Epoch,
    /// Volumes of others that containers here wait for.
    pub wants: BTreeSet<VolumeId>,
    /// Why it was revoked or declared dead, for people.
    pub reason: Option<Text>,
    /// Wall clock of its beginning; `None` is filled in when it is written.
    pub since: Option<Text>,
}

/// A volume's lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Lease {
    /// Nobody holds it; its device was proved idle on the last holder's host.
    Free {
        /// Who held it last.
        last_holder: Option<Holder>,
        /// Who lost it without having given it back, if nobody has mounted it since.
        owed: Option<Owed>,
    },
    /// Somebody holds it.
    Held(Held),
}

/// Hosts that lost a lease and have not given the volume back: the storage may still have it attached to one of them.
/// It stays with the lease, held or free, until the volume was mounted somewhere, or a person says that it was detached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owed {
    /// The hosts.
    pub from: BTreeSet<Holder>,
    /// Since when the first of them had held it; a wall clock, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Text>,
    /// Whether one of them was declared dead by time alone: what its kernel had not yet written may still be (L20).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_time: bool,
}

impl Owed {
    /// One host more that has not given the volume back.
    #[must_use]
    pub fn and(owed: Option<Self>, from: &Holder, since: Option<&Text>, by_time: bool) -> Self {
        let mut owed =
            owed.unwrap_or_else(|| Self { from: BTreeSet::new(), since: since.cloned(), by_time: false });
        owed.from.insert(from.clone());
        owed.by_time |= by_time;
        owed
    }

    /// What is left when this host owes no more.
    #[must_use]
    pub fn without(mut self, from: &Holder) -> Option<Self> {
        self.from.remove(from);
        (!self.from.is_empty()).then_some(self)
    }

    /// The hosts, in words.
    #[must_use]
    pub fn hosts(&self) -> String {
        self.from.iter().map(|holder| holder.as_str()).collect::<Vec<_>>().join(" or ")
    }
}

/// How far the holder of a lease is. The driver is called only in the first and the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// The driver may be attaching or mounting it.
    Attaching,
    /// Mounted; no driver call is under way.
    Attached,
    /// The driver may be unmounting or detaching it.
    Detaching,
}

/// A lease that somebody holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    /// How far.
    pub stage: Stage,
    /// The agent host.
    pub holder: Holder,
    /// The holder's session.
    pub epoch: Epoch,
    /// The fencing token. Absent in the granting write, whose revision is the token.
    pub token: Option<Token>,
    /// The Mesos agent on whose behalf it is held.
    pub agent_id: Option<Text>,
    /// The containers that use it.
    pub containers: BTreeSet<ContainerId>,
    /// For whom they run.
    pub tasks: BTreeMap<ContainerId, Task>,
    /// Where it is mounted.
    pub mount_point: Option<Text>,
    /// Whether an earlier holder's driver calls or I/O may still land: written with the grant, gone with
    /// the mount, so that a taker that dies in between leaves the next one warned (L19).
    pub unsettled: bool,
    /// Whether those include driver calls: then their settle time is waited for, even where the storage can take
    /// the volume away.
    pub calls: bool,
    /// Who lost it before without having given it back, until it is mounted.
    pub owed: Option<Owed>,
    /// Why it alone was revoked, if it was.
    pub revoked: Option<Text>,
    /// Wall clock of the grant; `None` is filled in when it is written.
    pub since: Option<Text>,
}

/// Why a master's module revokes a lease alone. Its host is not fenced for it: its agent may be back.
pub const WAITED_FOR: &str = "its agent is disconnected from the master, and another host waits for it";

impl Held {
    /// The same, revoked alone; `at` is the revision that last wrote it. The granting write does not say the token: it is that write's
    /// revision, and this write makes another one. Who writes it rewrites the session, too, so that the holder's next beat is refused
    /// and tells.
    #[must_use]
    pub fn revoked(&self, at: Revision, reason: &str) -> Self {
        Self { token: Some(self.token.unwrap_or(Token(at))), revoked: Some(reason.into()), ..self.clone() }
    }

    /// Whether it was revoked because another host waits for it.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.revoked.as_deref() == Some(WAITED_FOR)
    }
}

impl Lease {
    /// The holders that have the volume, or owe it: it is in the index of each.
    #[must_use]
    pub fn named(&self) -> BTreeSet<&Holder> {
        let owed = match self {
            Self::Free { owed, .. } => owed,
            Self::Held(held) => &held.owed,
        };
        let owing = owed.iter().flat_map(|owed| &owed.from);
        self.held().map(|held| &held.holder).into_iter().chain(owing).collect()
    }

    /// The holder's part, unless the lease is free.
    #[must_use]
    pub fn held(&self) -> Option<&Held> {
        match self {
            Self::Free { .. } => None,
            Self::Held(held) => Some(held),
        }
    }
}

/// The storm guard, kept in etcd so that a person sees and lifts it, and a new leader knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storm {
    /// Too many holders fell silent at once: nobody reclaims or revokes.
    Raised,
    /// They are really gone, says a person or a reclaimer whose own reads were never late.
    Lifted,
    /// It is over.
    Over,
}

/// What to read, always at one revision and linearizably, and always with the installation's id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reading {
    /// These keys.
    Keys(Vec<Key>),
    /// What is this holder's: its session, its heartbeat, its index, and the leases of the volumes in that.
    Own(Holder),
    /// All of them.
    Everything,
}

/// What was read. A key that is not in it did not exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The installation.
    pub cluster: ClusterId,
    /// The store's revision at the read.
    pub revision: Revision,
    /// By key: the record, and the revision that last wrote it.
    pub entries: BTreeMap<Key, (Record, Revision)>,
    /// Records that are there and cannot be read, with what is wrong.
    pub unreadable: BTreeMap<Key, Text>,
}

impl View {
    /// One without any key.
    #[must_use]
    pub fn new(cluster: ClusterId, revision: Revision) -> Self {
        Self { cluster, revision, entries: BTreeMap::new(), unreadable: BTreeMap::new() }
    }

    /// What a reading shows, of all that there is.
    #[must_use]
    pub fn of(mut self, reading: &Reading) -> Self {
        match reading {
            Reading::Everything => {}
            Reading::Keys(keys) => self.entries.retain(|key, _| keys.contains(key)),
            Reading::Own(me) => {
                let own: BTreeSet<_> = self.index_of(me).cloned().collect();
                self.entries.retain(|key, _| match key {
                    Key::Session(holder) | Key::Beat(holder) | Key::Held(holder, _) => holder == me,
                    Key::Lease(volume) => own.contains(volume),
                    Key::Storm => false,
                });
            }
        }
        self
    }

    /// The volumes in a holder's index.
    pub fn index_of(&self, me: &Holder) -> impl Iterator<Item = &VolumeId> {
        self.entries.keys().filter_map(move |key| match key {
            Key::Held(holder, volume) if holder == me => Some(volume),
            _ => None,
        })
    }

    /// A session, with the revision to compare.
    #[must_use]
    pub fn session(&self, holder: &Holder) -> Option<(&Session, Revision)> {
        match self.entries.get(&Key::Session(holder.clone())) {
            Some((Record::Session(session), at)) => Some((session, *at)),
            _ => None,
        }
    }

    /// A lease, with the revision to compare.
    #[must_use]
    pub fn lease(&self, volume: &VolumeId) -> Option<(&Lease, Revision)> {
        match self.entries.get(&Key::Lease(volume.clone())) {
            Some((Record::Lease(lease), at)) => Some((lease, *at)),
            _ => None,
        }
    }

    /// All leases that somebody holds, with the revisions to compare.
    pub fn held(&self) -> impl Iterator<Item = (&VolumeId, &Held, Revision)> {
        self.entries.iter().filter_map(|(key, (record, at))| match (key, record) {
            (Key::Lease(volume), Record::Lease(Lease::Held(held))) => Some((volume, held, *at)),
            _ => None,
        })
    }

    /// All free leases whose volume this holder has not given back, with the revisions to compare.
    pub fn owed_by(&self, holder: &Holder) -> impl Iterator<Item = (&VolumeId, &Owed, Revision)> {
        self.entries.iter().filter_map(move |(key, (record, at))| match (key, record) {
            (Key::Lease(volume), Record::Lease(Lease::Free { owed: Some(owed), .. }))
                if owed.from.contains(holder) =>
            {
                Some((volume, owed, *at))
            }
            _ => None,
        })
    }

    /// The revision that last wrote `key`; [`Revision::ABSENT`] when it does not exist.
    #[must_use]
    pub fn at(&self, key: &Key) -> Revision {
        self.entries.get(key).map_or(Revision::ABSENT, |(_, at)| *at)
    }
}

/// A transaction: all compares hold, then all puts happen; or nothing does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Commit {
    /// The installation's id, compared by value.
    pub cluster: ClusterId,
    /// Keys that must be unchanged since they were read.
    pub compares: Vec<(Key, Revision)>,
    /// What is written then.
    pub puts: Vec<(Key, Record)>,
    /// What is deleted then. None of it is put as well.
    pub deletes: Vec<Key>,
    /// What is read if a compare does not hold, so that who is refused knows why.
    pub otherwise: Vec<Key>,
}

impl Commit {
    /// One that does nothing yet.
    #[must_use]
    pub fn new(cluster: &ClusterId) -> Self {
        let (compares, puts, deletes, otherwise) = Default::default();
        Self { cluster: cluster.clone(), compares, puts, deletes, otherwise }
    }

    /// Adds the condition that `key` is unchanged since it was read at `at`.
    #[must_use]
    pub fn unchanged(mut self, key: Key, at: Revision) -> Self {
        self.compares.push((key, at));
        self
    }

    /// Writes `key`, if it is unchanged since it was read at `at`.
    #[must_use]
    pub fn put(mut self, key: Key, at: Revision, record: Record) -> Self {
        self.compares.push((key.clone(), at));
        self.puts.push((key, record));
        self
    }

    /// Deletes `key`, if it is unchanged since it was read at `at`.
    #[must_use]
    pub fn delete(mut self, key: Key, at: Revision) -> Self {
        self.compares.push((key.clone(), at));
        self.deletes.push(key);
        self
    }

    /// Reads these keys instead, if a compare does not hold.
    #[must_use]
    pub fn or_read(mut self, keys: impl IntoIterator<Item = Key>) -> Self {
        self.otherwise.extend(keys);
        self
    }

    /// Puts a volume into the index of the holder that takes its lease in this transaction, which compares that holder's session.
    #[must_use]
    pub fn index(mut self, holder: &Holder, volume: &VolumeId) -> Self {
        self.puts.push((Key::Held(holder.clone(), volume.clone()), Record::Held));
        self
    }

    /// Takes a volume out of a holder's index.
    #[must_use]
    pub fn unindex(mut self, holder: &Holder, volume: &VolumeId) -> Self {
        self.deletes.push(Key::Held(holder.clone(), volume.clone()));
        self
    }

    /// Beats, in a transaction that compares the holder's session (L14).
    #[must_use]
    pub fn with_beat(mut self, holder: &Holder) -> Self {
        self.puts.push((Key::Beat(holder.clone()), Record::Beat));
        self
    }

    /// A beat: the one write that does not compare its own key. It compares the session, whose owner
    /// alone beats, and an own beat that commits late does no harm (L12 counts from the sending).
    #[must_use]
    pub fn beat(cluster: &ClusterId, holder: &Holder, session: Revision) -> Self {
        let key = Key::Session(holder.clone());
        Self::new(cluster).unchanged(key.clone(), session).with_beat(holder).or_read([key])
    }
}

/// What became of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Committed, as this revision.
    Done(Revision),
    /// A compare did not hold; nothing was written. With it comes what the commit reads then, if it could be read.
    Conflict(Option<Box<View>>),
    /// It may have been done, may be done later, or never.
    Unknown,
    /// It certainly was not sent.
    NotSent,
}
