//! What a holder stores on its own disk: which containers use which volumes, and how far each is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::volume::{Phase, Volume};
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
    /// The block device's path; `None` for a file system without one, such as NFS.
    pub device: Option<String>,
    /// The kernel's sequence number of that disk: a device that was detached and made again under
    /// the same number has another one.
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
    /// One that only a lease in etcd tells of.
    pub(super) fn unknown(volume: &VolumeId) -> Self {
        let wanted = Wanted { volume: volume.clone(), asked: volume.clone(), create: None };
        Self {
            agent: String::new(),
            agent_id: None,
            volumes: vec![wanted],
            pid: None,
            cgroup: None,
            prepared: true,
        }
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
        };
        Self { containers: containers.clone(), volumes: volumes.values().map(row).collect() }
    }

    pub(super) fn into_parts(self) -> (BTreeMap<ContainerId, Container>, BTreeMap<VolumeId, Volume>) {
        let volume = |row: Row| {
            let id = row.wanted.volume.clone();
            (id, Volume::restored(row.wanted, row.phase, row.users.into_iter().collect()))
        };
        (self.containers, self.volumes.into_iter().map(volume).collect())
    }
}
