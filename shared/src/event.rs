//! The records of the event log: what happened to leases, sessions and agents, for people and
//! programs that read them with `etcdctl get --prefix`.
//!
//! An event has its place by a revision of etcd, which is in its key (`Keys::event`); never by a
//! clock. The time in it is for people.

use serde::{Deserialize, Serialize};

use crate::record::{Epoch, Token};
use crate::store::Revision;
use crate::volume::Holder;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A lease was granted, or taken over; the driver may be attaching the volume.
    Granted,
    /// The volume is mounted on its holder's host.
    Attached,
    /// The volume is being unmounted.
    Detaching,
    /// Other containers use the volume than before, or its agent has another id.
    Changed,
    /// The lease is free; the device was proved idle.
    Released,
    /// The record of a held lease was deleted, which no part of this software does.
    LeaseDeleted,
    /// A holder's session of a new epoch is live.
    SessionOpened,
    /// A holder's session is dead: what it held may be taken over.
    SessionDead,
    /// A master module or an operator revoked a holder's session: it takes no new leases, and winds down what
    /// it has.
    SessionRevoked,
    /// A master module declared a holder's session dead, for it was silent for its whole time to live: what it
    /// held may be taken over.
    SessionReclaimed,
    /// A session's record was deleted, which no part of this software does.
    SessionDeleted,
    /// The leading master lists the agent as connected.
    AgentActive,
    /// The agent's connection to the leading master is gone.
    AgentInactive,
    /// The agent has not registered again since the leading master changed.
    AgentRecovered,
    /// The masters have given the agent up.
    AgentUnreachable,
    /// An operator has marked the agent gone.
    AgentGone,
    /// The leading master does not know the agent, and its registry says nothing of it.
    AgentUnknown,
    /// The agent's own process answers, under the id that is expected.
    AgentAnswers,
    /// The agent's own process does not answer.
    AgentSilent,
    /// The agent's own process is recovering.
    AgentRecovering,
    /// The agent's own process has another id than the one that holds the volumes.
    AgentOtherId,
    /// The agent's address answers what no agent should.
    AgentUnclear,
    /// A master module had the leading master mark the agent gone, which kills whatever it still ran.
    AgentMarkedGone,
    /// Too many holders fell silent at once: nobody reclaims or revokes.
    StormRaised,
    /// They are really gone, says a person or a module whose own reads were never late.
    StormLifted,
    /// The storm is over.
    StormOver,
    /// A record cannot be read, and is left alone.
    RecordUnreadable,
    /// Events were dropped, because etcd could not be written for too long.
    EventsDropped,
}

/// How the writer of an event learned of what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seen {
    /// When it happened.
    AtOnce,
    /// By a later read: what happened before the last change of the record, and when a record was
    /// deleted, is not known.
    ByALaterRead,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// What happened.
    pub what: EventKind,
    /// How it is known.
    pub seen: Seen,
    /// The volume, as `<driver>/<name>`; of an agent's event the first that its host holds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub volume: Option<String>,
    /// The holder.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub holder: Option<Holder>,
    /// The holder's session.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub epoch: Option<Epoch>,
    /// The lease's fencing token.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token: Option<Token>,
    /// The Mesos agent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub agent_id: Option<String>,
    /// How many events were dropped.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dropped: Option<u64>,
    /// What happened and why, in a sentence.
    pub text: String,
    /// Wall clock of whoever wrote this, for people; nothing is decided by it.
    pub time: String,
}

/// How the leading master lists an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Listed {
    /// No master has been asked with success yet.
    NotAsked,
    /// Connected.
    #[default]
    Active,
    /// Known, and its connection is gone.
    Inactive,
    /// It has not registered again since the leader changed.
    Recovered,
    /// In the registry's list of unreachable agents.
    Unreachable,
    /// In the registry's list of agents that are gone.
    Gone,
    /// In no list.
    Unknown,
}

/// What the agent's own process answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answering {
    /// It has not been asked: no address of it is known, or there was no time yet.
    NotAsked,
    /// As the agent that is expected.
    #[default]
    Answers,
    /// It is recovering.
    Recovering,
    /// With another agent's id.
    OtherId,
    /// With what no agent should answer.
    Unclear,
    /// Nothing.
    Silent,
}

/// How a holder's agent stood when an event last told it. A holder without this record has an agent
/// that was always active and always answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandingRecord {
    /// In the eyes of the leading master.
    pub listed: Listed,
    /// By its own answer.
    pub answering: Answering,
    /// Which process wrote this, and for which of the turns that it had to tell: so it knows its own
    /// writing, whose answer it may never have got.
    #[serde(default)]
    pub by: String,
    /// The number of that turn.
    #[serde(default)]
    pub turn: u64,
}

/// Up to where events were trimmed. Compared by every transaction that writes an event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrimmedRecord {
    /// The last event that was trimmed, as its key continues behind `events/`; empty before the first.
    pub through: String,
    /// The revision of that event. Of changes up to here events are not written any more.
    pub revision: Revision,
}
