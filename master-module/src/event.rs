//! What is worth a line in the master's log, and that line.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use shared::record::{Epoch, SessionState, Token};
use shared::volume::{ContainerId, Holder, VolumeId};
use tracing::{info, warn};

/// Containers named in one line; more are counted.
const CONTAINERS_NAMED: usize = 5;

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
    pub(crate) agent_id: Option<String>,
    pub(crate) containers: BTreeSet<ContainerId>,
}

/// How the leading master sees a holder's agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// No master has been asked with success yet.
    NotAsked,
    Active,
    Inactive,
    /// It has not registered again since the leader changed.
    Recovered,
    /// The leading master does not know it.
    Missing,
}

/// A holder's agent and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentView {
    /// Its id; `None` when neither the records nor the master say one.
    pub(crate) id: Option<String>,
    pub(crate) standing: Standing,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// All leases were read for the first time.
    LeasesRead { held: usize, records: usize },
    /// The rest of the volumes that are held at the first read.
    MoreHeld { volumes: usize },
    /// A volume is held, newly or otherwise than before.
    Held { volume: Arc<VolumeId>, lease: Lease, agent: AgentView },
    /// A volume is free now.
    Released { volume: Arc<VolumeId>, holder: Holder },
    /// A held volume's record is gone, which no part of this software does.
    Deleted { volume: Arc<VolumeId>, holder: Holder },
    /// A holder's session is new, or has changed.
    Session { holder: Holder, epoch: Epoch, state: SessionState },
    /// A session record is gone, which no part of this software does.
    SessionDeleted { holder: Holder },
    /// The agent of a holder stands otherwise than before.
    Agent { holder: Holder, volume: Arc<VolumeId>, more: usize, agent: AgentView, before: Standing },
    /// A record that cannot be read.
    Unreadable { key: String, reason: String },
    /// There are more of those than are named.
    MoreUnreadable,
}

impl Event {
    /// Writes the line.
    pub(crate) fn log(&self) {
        match self {
            Self::Deleted { .. }
            | Self::SessionDeleted { .. }
            | Self::Unreadable { .. }
            | Self::MoreUnreadable => warn!("{self}"),
            Self::Agent { agent, .. } if agent.standing != Standing::Active => warn!("{self}"),
            _ => info!("{self}"),
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
            Self::Held { volume, lease, agent } => {
                let Lease { holder, epoch, token, containers, .. } = lease;
                write!(
                    f,
                    "volume {volume}: {} {holder} ({agent}; epoch {epoch}, token {token}; ",
                    lease.stage
                )?;
                Containers(containers).fmt(f)?;
                f.write_str(")")
            }
            Self::Released { volume, holder } => write!(f, "volume {volume}: released by {holder}"),
            Self::Deleted { volume, holder } => {
                write!(f, "volume {volume}: its lease was deleted while {holder} held it")
            }
            Self::Session { holder, epoch, state } => {
                let state = match state {
                    SessionState::Live => "live",
                    SessionState::Dead => "dead",
                };
                write!(f, "holder {holder}: its session of epoch {epoch} is {state}")
            }
            Self::SessionDeleted { holder } => write!(f, "holder {holder}: its session was deleted"),
            Self::Agent { holder, volume, more, agent, before } => {
                write!(f, "holder {holder} of {volume}")?;
                if *more > 0 {
                    write!(f, " and {more} more")?;
                }
                match (&agent.id, agent.standing) {
                    (None, Standing::Missing) => {
                        return f.write_str(": no agent of that host is known to the leading master");
                    }
                    (None, _) => f.write_str(": its agent ")?,
                    (Some(id), _) => write!(f, ": agent {} ", Shown(id))?,
                }
                f.write_str(match (before, agent.standing) {
                    (Standing::NotAsked, Standing::Inactive) => "is not active",
                    (Standing::NotAsked, Standing::Missing) => "is not known to the leading master",
                    (Standing::NotAsked, Standing::Active) => "is active",
                    (_, Standing::Active) => "is active again",
                    (_, Standing::Inactive) => "is no longer active",
                    (_, Standing::Missing) => "is no longer known to the leading master",
                    (_, Standing::Recovered) => "has not registered again since the leading master changed",
                    (_, Standing::NotAsked) => "has not been asked for",
                })
            }
            Self::Unreadable { key, reason } => {
                write!(f, "the record {} cannot be read and is left alone: it {}", Shown(key), Shown(reason))
            }
            Self::MoreUnreadable => f.write_str("more records cannot be read, and are not named"),
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
        f.write_str(match self.standing {
            Standing::NotAsked => "not asked for yet",
            Standing::Active => "active",
            Standing::Inactive => "not active",
            Standing::Recovered => "not registered again since the leading master changed",
            Standing::Missing => "not known to the leading master",
        })
    }
}

/// The containers, or how many they are.
struct Containers<'a>(&'a BTreeSet<ContainerId>);

impl fmt::Display for Containers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no container");
        }
        let named: Vec<_> = self.0.iter().take(CONTAINERS_NAMED).map(ContainerId::as_str).collect();
        write!(f, "containers {}", named.join(", "))?;
        match self.0.len() - named.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Text that was not checked when it came in: no line of the log may be made to look like two.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}
