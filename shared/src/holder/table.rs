//! What a holder stores on its own disk: which containers use which volumes, and how far each is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::volume::{Notes, Phase, Volume};
use crate::volume::{ContainerId, VolumeId};

/// A volume as a container asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The canonical name, under which it is leased.
    pub volume: VolumeId,
    /// The name as the task gave it, for the driver.
    pub asked: VolumeId,
    /// Options for the driver to create it with when it does not exist; `None`: it must exist.
    pub create: Option<BTreeMap<String, String>>,
}

/// A volume's mount on this host, with what is needed to prove later that it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedVolume {
    /// What the driver answered: a directory at or below the mount.
    pub mount_point: String,
    /// The file system's device number, `major:minor`.
    pub device_number: String,
    /// The source in the mount table, such as `/dev/xvdf` or `server:/export`.
    pub source: String,
    /// The block device; `None` for a file system without one, such as NFS.
    pub device: Option<BlockDevice>,
}

/// A disk, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// Its node's real path.
    pub path: String,
    /// Its own number, `major:minor`.
    pub number: String,
    /// The kernel's sequence number of that disk, since Linux 5.15: a disk that was detached and
    /// another one that was made under the same number differ in it.
    pub disk_sequence: Option<u64>,
}

/// A container that uses volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The address of the agent that runs it; empty when only etcd told of the container.
    pub agent: String,
    /// The agent's id, where the container's sandbox told it.
    pub agent_id: Option<String>,
    /// Its volumes, in the order asked.
    pub volumes: Vec<Wanted>,
    /// Its first process on this host, once isolated.
    pub pid: Option<u32>,
    /// Its freezer cgroup, once isolated.
    pub cgroup: Option<String>,
    /// Whether its prepare was answered with yes.
    pub prepared: bool,
}

impl Container {
    /// One that only a lease in etcd and its own cgroup tell of.
    pub(super) fn found(volume: &VolumeId, cgroup: String) -> Self {
        let wanted = Wanted { volume: volume.clone(), asked: volume.clone(), create: None };
        Self {
            agent: String::new(),
            agent_id: None,
            volumes: vec![wanted],
            pid: None,
            cgroup: Some(cgroup),
            prepared: true,
        }
    }

    /// Whether a call of the agent at this address may be about this container: ids of standalone
    /// containers are chosen by users, and two agents of a host may have the same.
    pub(super) fn is_of(&self, agent: &str) -> bool {
        self.agent.is_empty() || self.agent == agent
    }
}

/// The stored form of a holder's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    containers: BTreeMap<ContainerId, Container>,
    volumes: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    wanted: Wanted,
    #[serde(flatten)]
    phase: Phase,
    users: Vec<ContainerId>,
    #[serde(flatten)]
    notes: Notes,
}

impl Table {
    pub(super) fn of(
        containers: &BTreeMap<ContainerId, Container>,
        volumes: &BTreeMap<VolumeId, Volume>,
    ) -> Self {
        let row = |volume: &Volume| Row {
            wanted: volume.wanted.clone(),
            phase: volume.phase.clone(),
            users: volume.users.iter().cloned().collect(),
            notes: volume.notes(),
        };
        Self { containers: containers.clone(), volumes: volumes.values().map(row).collect() }
    }

    pub(super) fn into_parts(self) -> (BTreeMap<ContainerId, Container>, BTreeMap<VolumeId, Volume>) {
        let volume = |row: Row| {
            let id = row.wanted.volume.clone();
            (id, Volume::restored(row.wanted, row.phase, row.users.into_iter().collect(), row.notes))
        };
        (self.containers, self.volumes.into_iter().map(volume).collect())
    }

    /// The volumes in it.
    pub fn volumes(&self) -> impl Iterator<Item = &VolumeId> {
        self.volumes.iter().map(|row| &row.wanted.volume)
    }
}
