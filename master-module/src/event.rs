//! What is worth an event in etcd or a line in the master's log, and both.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use shared::event::{Answering, EventKind, EventRecord, Listed, Seen, StandingRecord};
use shared::protocol::Text;
use shared::protocol::exchange::{Proof, SessionState, Storm};
use shared::quote;
use shared::record::{Epoch, Task, Token};
use shared::store::Revision;
use shared::volume::{ContainerId, Holder, VolumeId};
use tracing::{info, warn};

/// Containers named in one line; more are counted.
const CONTAINERS_NAMED: usize = 5;

/// Bytes of an agent's id that an event takes; Mesos makes them of some 45.
const AGENT_ID_BYTES: usize = 255;

/// How far a held volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Attaching,
    Attached,
    Detaching,
}

/// Who holds a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) stage: Stage,
    pub(crate) holder: Holder,
    pub(crate) epoch: Epoch,
    pub(crate) token: Token,
    pub(crate) agent_id: Option<Arc<str>>,
    pub(crate) containers: Containers,
}

/// The containers of a volume. Of a hundred thousand volumes most have one or none, and a set takes
/// room for eleven.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Containers(Box<[(ContainerId, Option<Box<str>>)]>);

impl Containers {
    /// Each with its task in words.
    pub(crate) fn new(containers: BTreeSet<ContainerId>, tasks: &BTreeMap<ContainerId, Task>) -> Self {
        let with_task = |id: ContainerId| {
            let task = tasks.get(&id).and_then(Task::in_words);
            (id, task.map(String::into_boxed_str))
        };
        Self(containers.into_iter().map(with_task).collect())
    }
}

/// A holder's agent and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentView {
    /// Its id; `None` when neither the records nor the master say one.
    pub(crate) id: Option<Arc<str>>,
    pub(crate) listed: Listed,
    pub(crate) answering: Answering,
}

/// A holder, with what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Whose {
    pub(crate) holder: Holder,
    pub(crate) epoch: Option<Epoch>,
    /// The first of its volumes, and how many more it has.
    pub(crate) volume: Arc<VolumeId>,
    pub(crate) more: usize,
    pub(crate) agent_id: Option<Arc<str>>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// All leases were read for the first time.
    LeasesRead { held: usize, records: usize },
    /// The rest of the volumes that are held at the first read.
    MoreHeld { volumes: usize },
    /// A volume is held, newly or otherwise than before.
    Held {
        what: EventKind,
        volume: Arc<VolumeId>,
        lease: Lease,
        agent: AgentView,
        /// Whose it was, if it was taken over.
        taken_from: Option<(Holder, Epoch)>,
    },
    /// A volume is free now.
    Released { volume: Arc<VolumeId>, holder: Option<Holder>, of: Option<(Epoch, Token)> },
    /// The record of a volume that is in use is gone: `extvol free` does that, and a person.
    Deleted { volume: Arc<VolumeId>, holder: Holder, of: Option<(Epoch, Token)> },
    /// A holder's session is new, or has changed.
    Session {
        holder: Holder,
        epoch: Epoch,
        state: SessionState,
        agent_id: Option<Arc<str>>,
        /// Why it was revoked or declared dead.
        reason: Option<Text>,
        /// Its time to live; none of a keeper that publishes no times.
        ttl: Option<Duration>,
    },
    /// A session record is gone, which no part of this software does.
    SessionDeleted { holder: Holder, epoch: Option<Epoch> },
    /// The leading master lists a holder's agent otherwise than before.
    Listed { whose: Whose, listed: Listed, before: Option<Listed> },
    /// The agent of a holder answers otherwise than before.
    Answering { whose: Whose, answering: Answering, why: String },
    /// The storm guard has changed.
    Storm { state: Storm },
    /// The leading master has marked a holder's agent gone, at the request of a module.
    MarkedGone { holder: Holder, epoch: Epoch, agent_id: Arc<str> },
    /// A record that cannot be read.
    Unreadable { key: String, reason: String },
    /// There are more of those than are named.
    MoreUnreadable,
    /// Events were dropped, because they could not be written for too long.
    Dropped { events: u64 },
}

/// Where an event belongs in the order of etcd's revisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: it is for the log alone.
    LogAlone,
    /// A record was written at this revision.
    Written { at: Revision, seen: Seen },
    /// A record was deleted at this revision or, if that is seen by a later read, before it. It was
    /// last written at `written`.
    Deleted { at: Revision, written: Revision, seen: Seen },
    /// Outside etcd: it takes its place by the revision at which it can be written.
    Outside,
    /// At the last revision known when this module first dropped an event, for that many times.
    Dropped { at: Revision, number: u64 },
}

/// An event, where it belongs, and whether it is worth a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) event: Event,
    pub(crate) place: Place,
    pub(crate) logged: bool,
}

impl Event {
    /// Writes the line.
    pub(crate) fn log(&self) {
        match self {
            Self::Deleted { .. }
            | Self::SessionDeleted { .. }
            | Self::Unreadable { .. }
            | Self::MoreUnreadable
            | Self::MarkedGone { .. }
            | Self::Storm { state: Storm::Raised }
            | Self::Session { state: SessionState::Revoking | SessionState::Dead(Proof::Time), .. }
            | Self::Dropped { .. } => warn!("{self}"),
            Self::Listed { listed, .. } if *listed != Listed::Active => warn!("{self}"),
            Self::Answering { answering, .. } if *answering != Answering::Answers => warn!("{self}"),
            _ => info!("{self}"),
        }
    }

    /// The event's record; `None` for what is of the log alone.
    pub(crate) fn record(&self, seen: Seen, time: &str) -> Option<EventRecord> {
        let mut record = EventRecord {
            what: self.kind()?,
            seen,
            volume: None,
            holder: None,
            epoch: None,
            token: None,
            agent_id: None,
            dropped: None,
            // Names are foreign too.
            text: quote::line(&self.to_string()).into_owned(),
            time: time.to_owned(),
        };
        let short = |id: &Option<Arc<str>>| {
            id.as_ref().map(|id| id[..id.floor_char_boundary(AGENT_ID_BYTES)].to_owned())
        };
        match self {
            Self::LeasesRead { .. } | Self::MoreHeld { .. } | Self::MoreUnreadable => return None,
            Self::Held { volume, lease, agent, .. } => {
                record.volume = Some(volume.to_string());
                record.holder = Some(lease.holder.clone());
                (record.epoch, record.token) = (Some(lease.epoch), Some(lease.token));
                record.agent_id = short(&agent.id);
            }
            Self::Released { volume, holder, of } => {
                record.volume = Some(volume.to_string());
                record.holder.clone_from(holder);
                (record.epoch, record.token) = of.unzip();
            }
            Self::Deleted { volume, holder, of } => {
                record.volume = Some(volume.to_string());
                record.holder = Some(holder.clone());
                (record.epoch, record.token) = of.unzip();
            }
            Self::Session { holder, epoch, agent_id, .. } => {
                (record.holder, record.epoch) = (Some(holder.clone()), Some(*epoch));
                record.agent_id = short(agent_id);
            }
            Self::SessionDeleted { holder, epoch } => {
                (record.holder, record.epoch) = (Some(holder.clone()), *epoch);
            }
            Self::Listed { whose, .. } | Self::Answering { whose, .. } => {
                record.volume = Some(whose.volume.to_string());
                record.holder = Some(whose.holder.clone());
                record.epoch = whose.epoch;
                record.agent_id = short(&whose.agent_id);
            }
            Self::MarkedGone { holder, epoch, agent_id } => {
                (record.holder, record.epoch) = (Some(holder.clone()), Some(*epoch));
                record.agent_id = short(&Some(Arc::clone(agent_id)));
            }
            Self::Storm { .. } | Self::Unreadable { .. } => {}
            Self::Dropped { events } => record.dropped = Some(*events),
        }
        Some(record)
    }

    fn kind(&self) -> Option<EventKind> {
        Some(match self {
            Self::LeasesRead { .. } | Self::MoreHeld { .. } | Self::MoreUnreadable => return None,
            Self::Held { what, .. } => *what,
            Self::Released { .. } => EventKind::Released,
            Self::Deleted { .. } => EventKind::LeaseDeleted,
            Self::Session { state: SessionState::Live, .. } => EventKind::SessionOpened,
            Self::Session { state: SessionState::Revoking, .. } => EventKind::SessionRevoked,
            // Without a reason it was ended by hand, before there were proofs.
            Self::Session { state: SessionState::Dead(Proof::Time), reason: Some(_), .. } => {
                EventKind::SessionReclaimed
            }
            Self::Session { state: SessionState::Dead(_), .. } => EventKind::SessionDead,
            Self::Storm { state: Storm::Raised } => EventKind::StormRaised,
            Self::Storm { state: Storm::Lifted } => EventKind::StormLifted,
            Self::Storm { state: Storm::Over } => EventKind::StormOver,
            Self::MarkedGone { .. } => EventKind::AgentMarkedGone,
            Self::SessionDeleted { .. } => EventKind::SessionDeleted,
            Self::Listed { listed, .. } => match listed {
                Listed::NotAsked => return None,
                Listed::Active => EventKind::AgentActive,
                Listed::Inactive => EventKind::AgentInactive,
                Listed::Recovered => EventKind::AgentRecovered,
                Listed::Unreachable => EventKind::AgentUnreachable,
                Listed::Gone => EventKind::AgentGone,
                Listed::Unknown => EventKind::AgentUnknown,
            },
            Self::Answering { answering, .. } => match answering {
                Answering::NotAsked => return None,
                Answering::Answers => EventKind::AgentAnswers,
                Answering::Recovering => EventKind::AgentRecovering,
                Answering::OtherId => EventKind::AgentOtherId,
                Answering::Unclear => EventKind::AgentUnclear,
                Answering::Silent => EventKind::AgentSilent,
            },
            Self::Unreadable { .. } => EventKind::RecordUnreadable,
            Self::Dropped { .. } => EventKind::EventsDropped,
        })
    }

    /// Whether this tells of the same side of the same agent as `other`.
    pub(crate) fn is_later_turn_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Listed { whose, .. }, Self::Listed { whose: others, .. })
            | (Self::Answering { whose, .. }, Self::Answering { whose: others, .. }) => {
                whose.holder == others.holder
            }
            _ => false,
        }
    }

    /// What the event makes of a standing that was told before.
    pub(crate) fn applied_to(&self, before: &StandingRecord) -> Option<(Holder, StandingRecord)> {
        match self {
            Self::Listed { whose, listed, .. } => {
                Some((whose.holder.clone(), StandingRecord { listed: *listed, ..before.clone() }))
            }
            Self::Answering { whose, answering, .. } => {
                Some((whose.holder.clone(), StandingRecord { answering: *answering, ..before.clone() }))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeasesRead { held, records } => {
                write!(f, "etcd has {records} leases, {held} of them held")
            }
            Self::MoreHeld { volumes } => write!(f, "and {volumes} more volumes are held"),
            Self::Held { volume, lease, agent, taken_from, .. } => {
                let Lease { holder, epoch, token, containers, .. } = lease;
                write!(
                    f,
                    "volume {volume}: {} {holder} ({agent}; epoch {epoch}, token {token}; {containers}",
                    lease.stage
                )?;
                if let Some((holder, epoch)) = taken_from {
                    write!(f, "; taken over from {holder}, epoch {epoch}")?;
                }
                f.write_str(")")
            }
            Self::Released { volume, holder: Some(holder), .. } => {
                write!(f, "volume {volume}: released by {holder}")
            }
            Self::Released { volume, holder: None, .. } => write!(f, "volume {volume}: free"),
            Self::Deleted { volume, holder, .. } => {
                write!(f, "volume {volume}: its lease was deleted while {holder} held it")
            }
            Self::Session { holder, epoch, state, reason, ttl, .. } => {
                write!(f, "holder {holder}: its session of epoch {epoch} ")?;
                match (state, reason) {
                    (SessionState::Live, _) => f.write_str("is live")?,
                    (SessionState::Revoking, _) => f.write_str("was revoked")?,
                    (SessionState::Dead(Proof::Unmounted), _) => {
                        f.write_str("is dead: it unmounted everything, and proved every device idle")?;
                    }
                    (SessionState::Dead(Proof::Fenced), _) => {
                        f.write_str("is dead: it fenced itself, and proved that")?;
                    }
                    (SessionState::Dead(Proof::Time), None) => f.write_str("is dead")?,
                    (SessionState::Dead(Proof::Time), Some(_)) => {
                        f.write_str("was declared dead, with time as the proof")?;
                    }
                }
                match (state, reason, ttl) {
                    (SessionState::Live, ..) | (_, None, _) => Ok(()),
                    (SessionState::Dead(Proof::Time), Some(why), Some(ttl)) => {
                        write!(f, ": {} (ttl {} ms)", Shown(why), ttl.as_millis())
                    }
                    (_, Some(why), _) => write!(f, ": {}", Shown(why)),
                }
            }
            Self::Storm { state } => f.write_str(match state {
                Storm::Raised => {
                    "too many holders are silent at once: nothing is reclaimed or revoked until a person lifts this, \
                     or a module whose reads were never late"
                }
                Storm::Lifted => "the storm guard was lifted: silent holders are declared dead",
                Storm::Over => "the storm is over",
            }),
            Self::MarkedGone { holder, agent_id, .. } => {
                write!(f, "holder {holder}: its agent {} was marked gone, for its host was silent", Shown(agent_id))
            }
            Self::SessionDeleted { holder, .. } => write!(f, "holder {holder}: its session was deleted"),
            Self::Listed { whose, listed, before } => {
                write!(f, "{whose}")?;
                if whose.agent_id.is_none() && *listed == Listed::Unknown {
                    return f.write_str("no agent of that host is known to the leading master");
                }
                write!(f, "{}", OfAgent(whose))?;
                f.write_str(match (before, listed) {
                    (None, Listed::Inactive) => "is not active",
                    (None, Listed::Unknown) => "is not known to the leading master",
                    (_, Listed::Active) => "is active again",
                    (_, Listed::Inactive) => "is no longer active",
                    (_, Listed::Unknown) => "is no longer known to the leading master",
                    (_, Listed::Recovered) => "has not registered again since the leading master changed",
                    (_, Listed::Unreachable) => "was given up by the masters: it is unreachable",
                    (_, Listed::Gone) => "was marked gone",
                    (_, Listed::NotAsked) => "has not been asked for",
                })
            }
            Self::Answering { whose, answering, why } => {
                write!(f, "{whose}{}", OfAgent(whose))?;
                let why = Shown(why);
                match answering {
                    Answering::Answers => f.write_str("answers again"),
                    Answering::Recovering => f.write_str("is recovering"),
                    Answering::OtherId => write!(f, "is not what answers at its address: {why}"),
                    Answering::Unclear => write!(f, "gives no clear answer: {why}"),
                    Answering::Silent => write!(f, "does not answer: {why}"),
                    Answering::NotAsked => f.write_str("has not been asked"),
                }
            }
            Self::Unreadable { key, reason } => {
                write!(f, "the record {} cannot be read and is left alone: it {}", Shown(key), Shown(reason))
            }
            Self::MoreUnreadable => f.write_str("more records cannot be read, and are not named"),
            Self::Dropped { events } => {
                write!(
                    f,
                    "{events} events were dropped, the oldest ones: etcd could not be written for too long"
                )
            }
        }
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "holder {} of {}", self.holder, self.volume)?;
        if self.more > 0 {
            write!(f, " and {} more", self.more)?;
        }
        f.write_str(": ")
    }
}

/// The subject of a sentence.
struct OfAgent<'a>(&'a Whose);

impl fmt::Display for OfAgent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.agent_id {
            None => f.write_str("its agent "),
            Some(id) => write!(f, "agent {} ", Shown(id)),
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attaching => "attaching to",
            Self::Attached => "attached to",
            Self::Detaching => "detaching from",
        })
    }
}

impl fmt::Display for AgentView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.id {
            Some(id) => write!(f, "agent {}, ", Shown(id))?,
            None => f.write_str("its agent ")?,
        }
        f.write_str(match self.listed {
            Listed::NotAsked => "not asked for yet",
            Listed::Active => "active",
            Listed::Inactive => "not active",
            Listed::Recovered => "not registered again since the leading master changed",
            Listed::Unreachable => "unreachable",
            Listed::Gone => "gone",
            Listed::Unknown => "not known to the leading master",
        })?;
        f.write_str(match self.answering {
            Answering::NotAsked | Answering::Answers => "",
            Answering::Recovering => ", recovering",
            Answering::OtherId => ", another one at its address",
            Answering::Unclear => ", no clear answer",
            Answering::Silent => ", silent",
        })
    }
}

/// The containers, or how many they are.
impl fmt::Display for Containers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no container");
        }
        let named = self.0.iter().take(CONTAINERS_NAMED).map(|(id, task)| match task {
            Some(task) => format!("{id} ({task})"),
            None => id.to_string(),
        });
        let named: Vec<_> = named.collect();
        write!(f, "containers {}", named.join(", "))?;
        match self.0.len() - named.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Longest text from outside that is shown.
const SHOWN_CHARS: usize = 600;

/// Text that was not checked when it came in: no line of the log may be made to look like two, and
/// none is without end.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = self.0.char_indices().nth(SHOWN_CHARS).map(|(end, _)| &self.0[..end]);
        let dots = if head.is_some() { "..." } else { "" };
        write!(f, "{}{dots}", quote::line(head.unwrap_or(self.0)))
    }
}
