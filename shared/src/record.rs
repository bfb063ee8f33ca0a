//! The records in etcd, as JSON that an operator reads with `etcdctl`.
//!
//! Every record carries a `version`. One that is newer than this program is never interpreted: a
//! later release may have given a field another meaning.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use protocol::ids::{Epoch, Task, Token};

use crate::volume::{ContainerId, Holder, NamingRules};

/// The version of the records that this program writes, and the newest that it reads.
pub const RECORD_VERSION: u32 = 1;

/// Why a record's bytes are not a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not JSON, or not the JSON of this record.
    #[error("is not a valid record")]
    Json(#[from] serde_json::Error),
    /// Written by a later release.
    #[error("has version {found}, and this program reads up to {RECORD_VERSION}")]
    Newer {
        /// The version it has.
        found: u32,
    },
}

#[derive(Serialize)]
struct Written<'a, T> {
    version: u32,
    #[serde(flatten)]
    record: &'a T,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// A record's bytes.
///
/// # Panics
/// Never: records are made of strings, numbers and sets of strings, which all have a JSON form.
#[must_use]
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(&Written { version: RECORD_VERSION, record }).expect("a record has a JSON form")
}

/// The record in `bytes`.
///
/// # Errors
/// When they hold no such record, or one of a later version.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    let Version { version } = serde_json::from_slice(bytes)?;
    if version > RECORD_VERSION {
        return Err(RecordError::Newer { found: version });
    }
    Ok(serde_json::from_slice(bytes)?)
}

/// The installation's record. Compared by value in every transaction: after a restore from a
/// backup it is given another id, and no client of before can commit anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Random, made by whichever keeper starts first.
    pub id: String,
    /// Which spellings mean one volume.
    #[serde(default)]
    pub naming: NamingRules,
}

/// A volume's lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum LeaseRecord {
    /// Nobody holds it; its device was proved idle on the last holder's host. A field `owed` may stand beside it, for hosts
    /// that lost it before and have not given the volume back (`crate::protocol::exchange::Owed`).
    Free {
        /// Who held it last.
        last_holder: Option<Holder>,
        /// Wall clock of the release, for people; nothing is decided by it.
        since: String,
    },
    /// Granted; the driver may be attaching or mounting it.
    Attaching(HeldLease),
    /// Mounted on the holder's host.
    Attached(HeldLease),
    /// The driver may be unmounting or detaching it.
    Detaching(HeldLease),
}

/// What a lease says while somebody holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldLease {
    /// The agent host.
    pub holder: Holder,
    /// The holder's session.
    pub epoch: Epoch,
    /// The fencing token. Absent in the granting write, whose revision is the token.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token: Option<Token>,
    /// Wall clock of the grant, for people; nothing is decided by it.
    pub since: String,
    /// The Mesos agent on whose behalf it is held.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub agent_id: Option<String>,
    /// The containers that use it.
    pub containers: BTreeSet<ContainerId>,
    /// For whom they run, as far as Mesos said. For people: nothing is decided by it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub tasks: BTreeMap<ContainerId, Task>,
    /// Where the driver mounted it on the host.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mount_point: Option<String>,
}

impl LeaseRecord {
    /// The holder's part, unless the lease is free.
    #[must_use]
    pub fn held(&self) -> Option<&HeldLease> {
        match self {
            Self::Free { .. } => None,
            Self::Attaching(held) | Self::Attached(held) | Self::Detaching(held) => Some(held),
        }
    }

    /// The state as `etcdctl` shows it.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self {
            Self::Free { .. } => "free",
            Self::Attaching(_) => "attaching",
            Self::Attached(_) => "attached",
            Self::Detaching(_) => "detaching",
        }
    }
}

/// Whether a session may hold leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// It may take and hold leases.
    Live,
    /// It holds nothing, and whatever it held may be taken over.
    Dead,
}

/// A holder's session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Which life of the holder this is.
    pub epoch: Epoch,
    /// Random, one per start of the keeper's process.
    pub instance: String,
    /// Whether it may hold leases.
    pub state: SessionState,
    /// The machine, by an id that no other host has: a reboot is believed only of the same machine.
    pub machine_id: String,
    /// The kernel's boot id: another one on the same machine proves that all mounts are gone.
    pub boot_id: String,
    /// The Mesos agent that the keeper serves, once it has said so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub agent_id: Option<String>,
    /// Wall clock of the epoch's beginning, for people.
    pub since: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_flat_json_with_its_state_and_version() {
        let lease = LeaseRecord::Attaching(HeldLease {
            holder: Holder::new("agent-1").unwrap(),
            epoch: Epoch(3),
            token: None,
            since: "2026-01-01T00:00:00Z".into(),
            agent_id: Some("S0".into()),
            containers: BTreeSet::from([ContainerId::new("c1").unwrap()]),
            tasks: Default::default(),
            mount_point: None,
        });
        let text = String::from_utf8(encode(&lease)).unwrap();
        assert_eq!(
            text,
            r#"{"version":1,"state":"attaching","holder":"agent-1","epoch":3,"since":"2026-01-01T00:00:00Z","agent_id":"S0","containers":["c1"]}"#
        );
        assert_eq!(decode::<LeaseRecord>(text.as_bytes()).unwrap(), lease);
    }

    #[test]
    fn a_record_of_a_later_version_is_never_interpreted() {
        let newer = br#"{"version":2,"state":"free","since":"x"}"#;
        assert!(matches!(decode::<LeaseRecord>(newer), Err(RecordError::Newer { found: 2 })));
        assert!(matches!(decode::<LeaseRecord>(b"{}"), Err(RecordError::Json(_))));
    }

    #[test]
    fn an_unknown_field_of_this_version_is_ignored_and_a_name_is_checked() {
        let more = br#"{"version":1,"state":"free","last_holder":"a","since":"x","colour":"red"}"#;
        assert!(decode::<LeaseRecord>(more).is_ok());
        let bad = br#"{"version":1,"state":"free","last_holder":"a/b","since":"x"}"#;
        assert!(decode::<LeaseRecord>(bad).is_err());
    }
}
