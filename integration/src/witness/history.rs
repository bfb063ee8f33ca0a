//! What etcd held when: the recorder's lines, and the rights to volumes that follow from them. Pure.
//!
//! A revision was made after the last linearizable read that was sent before it and did not know it, and before the first sight of
//! it or of a later one. Between a record's latest and its successor's earliest moment it was certainly in force.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shared::exchange::from_bytes;
use shared::keys::Keys;
use shared::protocol::exchange::{Key, Lease, Record, SessionState, Stage};
use shared::record::{Epoch, Token};
use shared::store::Revision;
use shared::volume::{Holder, VolumeId};

use super::Moment;

/// One line of the recorder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A linearizable read showed this revision.
    Read {
        /// The store's revision.
        revision: Revision,
        /// When the read was sent.
        sent: Moment,
        /// When it was answered.
        returned: Moment,
    },
    /// A lease or a session was written.
    Written {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
        /// The revision that wrote it.
        revision: Revision,
        /// When the recorder saw it.
        seen: Moment,
    },
    /// A lease or a session was deleted.
    Deleted {
        /// Its key.
        key: String,
        /// The revision that deleted it.
        revision: Revision,
        /// When the recorder saw it.
        seen: Moment,
    },
    /// The history between the last line and the next is lost.
    Gap {
        /// Why.
        why: String,
    },
}

/// A session that may use a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The host.
    pub holder: Holder,
    /// Its session.
    pub epoch: Epoch,
    /// Whether the lease says that it has mounted it.
    pub mounted: bool,
}

/// Who had the right to a volume from one revision on. One step lasts until the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The right was changed after this,
    pub earliest: Moment,
    /// and before this.
    pub latest: Moment,
    /// Who has it.
    pub owner: Option<Owner>,
    /// The same for people.
    pub says: String,
}

/// A grant of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// To whom.
    pub holder: Holder,
    /// In which session.
    pub epoch: Epoch,
    /// With which token.
    pub token: Token,
    /// When it was seen.
    pub seen: Moment,
}

/// What is known of one volume.
#[derive(Clone, Debug, Default)]
pub struct VolumeHistory {
    /// The changes of the right to it, in order.
    pub steps: Vec<Step>,
    /// Each sight of a token: a grant, and each rewriting of a lease.
    pub tokens: Vec<Grant>,
}

/// All that the recorder's lines say.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// By the storage's name of the volume.
    pub volumes: BTreeMap<String, VolumeHistory>,
    /// Nothing is known of later moments.
    pub until: Moment,
    /// What could not be understood, and gaps.
    pub faults: Vec<String>,
}

#[derive(Clone, Copy)]
struct Life {
    epoch: Epoch,
    is_dead: bool,
}

#[derive(Default)]
struct Now {
    leases: BTreeMap<VolumeId, Lease>,
    sessions: BTreeMap<Holder, Life>,
}

impl Now {
    fn right(&self, volume: &VolumeId) -> (Option<Owner>, String) {
        let Some(held) = self.leases.get(volume).and_then(Lease::held) else {
            return (None, "nobody held its lease".to_owned());
        };
        let whose = format!("{} (epoch {})", held.holder.as_str(), held.epoch);
        match self.sessions.get(&held.holder) {
            Some(life) if life.epoch == held.epoch && life.is_dead => {
                (None, format!("its lease was that of {whose}, whose session was declared dead"))
            }
            Some(life) if life.epoch > held.epoch => {
                (None, format!("its lease was that of {whose}, whose session was over"))
            }
            _ => {
                let mounted = held.stage != Stage::Attaching;
                let says = if mounted { "had it mounted" } else { "held its lease" };
                let owner = Owner { holder: held.holder.clone(), epoch: held.epoch, mounted };
                (Some(owner), format!("{whose} {says}"))
            }
        }
    }
}

/// When revisions were made.
struct Bounds {
    /// Reads that were sent, and the revision that they did not go beyond.
    sent: Vec<(Moment, Revision)>,
    /// When a revision, and so each one before it, was there.
    there: BTreeMap<Revision, Moment>,
}

impl Bounds {
    fn of(lines: &[Line]) -> Self {
        let mut bounds = Self { sent: Vec::new(), there: BTreeMap::new() };
        let mut saw = |revision, at: Moment| {
            let first = bounds.there.entry(revision).or_insert(at);
            *first = at.min(*first);
        };
        for line in lines {
            match line {
                Line::Read { revision, sent, returned } => {
                    bounds.sent.push((*sent, *revision));
                    saw(*revision, *returned);
                }
                Line::Written { revision, seen, .. } | Line::Deleted { revision, seen, .. } => {
                    saw(*revision, *seen);
                }
                Line::Gap { .. } => {}
            }
        }
        bounds
    }

    fn earliest(&self, revision: Revision) -> Moment {
        let before = self.sent.iter().filter(|(_, showed)| *showed < revision).map(|(sent, _)| *sent);
        before.max().unwrap_or_default()
    }

    /// Its own sight counts at least, so there is one.
    fn latest(&self, revision: Revision) -> Moment {
        self.there.range(revision..).map(|(_, at)| *at).min().unwrap_or(Moment(u64::MAX))
    }
}

impl History {
    /// Reads the recorder's lines, which hold all that was written before `until`.
    #[must_use]
    pub fn of(lines: &[Line], keys: &Keys, until: Moment) -> Self {
        let bounds = Bounds::of(lines);
        let mut history = Self { until, ..Self::default() };
        let (mut now, mut known) = (Now::default(), BTreeSet::new());
        // What is there at the recorder's start comes in the order of its keys.
        let mut ordered: Vec<_> = lines.iter().collect();
        ordered.sort_by_key(|line| revision(line));
        for line in ordered {
            let (key, revision, seen) = match line {
                Line::Read { .. } => continue,
                Line::Gap { why } => {
                    history.faults.push(format!("the history of leases has a gap: {why}"));
                    continue;
                }
                Line::Written { key, revision, seen, .. } | Line::Deleted { key, revision, seen } => {
                    (key, *revision, *seen)
                }
            };
            // A watch that is opened again repeats nothing, but a snapshot may.
            if !known.insert((key.clone(), revision)) {
                continue;
            }
            let volume = keys.volume_of(key);
            let (Some(key), value) = (
                volume.clone().map(Key::Lease).or_else(|| keys.holder_of(key).map(Key::Session)),
                if let Line::Written { value, .. } = line { Some(value) } else { None },
            ) else {
                continue;
            };
            let record = match value.map(|value| from_bytes(&key, value.as_bytes())).transpose() {
                Ok(record) => record,
                Err(error) => {
                    history.faults.push(format!("a record of revision {revision} {error}"));
                    continue;
                }
            };
            if let (Some(volume), Some(Record::Lease(Lease::Held(held)))) = (&volume, &record) {
                let token = held.token.unwrap_or(Token(revision));
                let (holder, epoch) = (held.holder.clone(), held.epoch);
                history.volume(volume).tokens.push(Grant { holder, epoch, token, seen });
            }
            let concerned = now.take(key, record);
            let (earliest, latest) = (bounds.earliest(revision), bounds.latest(revision));
            for volume in &concerned {
                let (owner, says) = now.right(volume);
                let steps = &mut history.volume(volume).steps;
                if steps.last().is_none_or(|last| last.owner != owner || last.says != says) {
                    steps.push(Step { earliest, latest, owner, says });
                }
            }
        }
        history
    }

    fn volume(&mut self, volume: &VolumeId) -> &mut VolumeHistory {
        self.volumes.entry(volume.name.as_str().to_ascii_lowercase()).or_default()
    }
}

fn revision(line: &Line) -> Revision {
    match line {
        Line::Read { revision, .. } | Line::Written { revision, .. } | Line::Deleted { revision, .. } => {
            *revision
        }
        Line::Gap { .. } => Revision(i64::MAX),
    }
}

impl Now {
    /// Takes in a write; answers the volumes of which it may change who has a right to them.
    fn take(&mut self, key: Key, record: Option<Record>) -> Vec<VolumeId> {
        match (key, record) {
            (Key::Lease(volume), record) => {
                let lease = match record {
                    Some(Record::Lease(lease)) => lease,
                    _ => Lease::Free { last_holder: None, owed: None },
                };
                self.leases.insert(volume.clone(), lease);
                vec![volume]
            }
            (Key::Session(holder), Some(Record::Session(session))) => {
                let is_dead = matches!(session.state, SessionState::Dead(_));
                self.sessions.insert(holder.clone(), Life { epoch: session.epoch, is_dead });
                self.held_by(&holder)
            }
            (Key::Session(holder), _) => {
                // Without its session a holder has no right, as it must not open an epoch either.
                if let Some(life) = self.sessions.get_mut(&holder) {
                    life.is_dead = true;
                }
                self.held_by(&holder)
            }
            (Key::Held(..) | Key::Beat(_) | Key::Storm, _) => Vec::new(),
        }
    }

    fn held_by(&self, holder: &Holder) -> Vec<VolumeId> {
        let is_its = |lease: &Lease| lease.held().is_some_and(|held| held.holder == *holder);
        self.leases.iter().filter(|(_, lease)| is_its(lease)).map(|(volume, _)| volume.clone()).collect()
    }
}

impl VolumeHistory {
    /// Whether, for the whole time from `from` to `to`, each step in force satisfies `is`; the step in force at `from`.
    /// `None` also where this is not certain.
    pub(super) fn throughout(
        &self,
        (from, to): (Moment, Moment),
        until: Moment,
        is: impl Fn(&Step) -> bool,
    ) -> Option<&Step> {
        if to > until {
            return None;
        }
        // The last one that was certainly in force at `from`, and all that may have come before `to`.
        let first = self.steps.iter().rposition(|step| step.latest <= from)?;
        let within = self.steps[first..].iter().enumerate();
        let mut within =
            within.take_while(|(index, step)| *index == 0 || step.earliest <= to).map(|(_, step)| step);
        within.all(&is).then(|| &self.steps[first])
    }
}
