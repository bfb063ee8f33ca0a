//! What a holder stores before each effect (L8): what a restarted worker adopts, and what has to be
//! fenced. It lives where a reboot empties it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::volume::{Notes, Phase, Volume};
use crate::exchange::{ByTime, ClusterId};
use crate::ids::{Epoch, Task};
use crate::quote;
use crate::timing::Timing;
use crate::volume::{ContainerId, VolumeId};
use crate::{Now, Text};

/// A volume as a container asks for it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Wanted {
    /// The canonical name, under which it is leased.
    pub volume: VolumeId,
    /// The name as the task gave it, for the driver.
    pub asked: VolumeId,
    /// Options for the driver to create it with when it does not exist; `None`: it must exist.
    pub create: Option<BTreeMap<String, String>>,
    /// Whether the container may only read.
    #[serde(default)]
    pub read_only: bool,
    /// Whether the driver is to remove it when it is released.
    #[serde(default)]
    pub remove: bool,
    /// To whom it is given when nobody has used it yet.
    #[serde(default)]
    pub owner: Option<Owner>,
}

/// A user and a group, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The user's.
    pub uid: u32,
    /// The group's.
    pub gid: u32,
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { volume, asked, create, read_only, remove, owner } = self;
        let create = quote::options(create.as_ref());
        f.debug_struct("Wanted")
            .field("volume", volume)
            .field("asked", asked)
            .field("create", &create)
            .field("read_only", read_only)
            .field("remove", remove)
            .field("owner", owner)
            .finish()
    }
}

/// A volume's mount on this host, with what is needed to prove later that it is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MountedVolume {
    /// What the driver answered: a directory at or below the mount.
    pub mount_point: Text,
    /// The keeper's own mount of that directory, which containers get instead: nobody who writes to the volume can make
    /// a link of it. `None` where the driver answered the mount itself.
    #[serde(default)]
    pub pin: Option<Text>,
    /// The file system's device number, `major:minor`; of a directory that and its path, which is no number of any device:
    /// nothing takes the one for the other.
    pub device_number: Text,
    /// The source in the mount table, such as `/dev/xvdf` or `server:/export`.
    pub source: Text,
    /// The block device; `None` for a file system without one, such as NFS.
    pub device: Option<BlockDevice>,
    /// The volume is a directory of a file system that others use as well.
    #[serde(default)]
    pub directory: Option<Directory>,
    /// Whether the kernel can end all writes to this file system at once, as a fence does; a row that does not tell is of before
    /// it was looked at.
    #[serde(default)]
    pub can_be_shut_down: bool,
    /// The file system's type, such as `ext4`.
    #[serde(default)]
    pub file_system: Text,
    /// What identifies the storage beyond this host's numbers: a disk's WWID or serial number, a loop device's file, a
    /// remote's source. `None`: nothing was found.
    #[serde(default)]
    pub identity: Option<Text>,
    /// The file system's own UUID, which a copy of the volume has as well.
    #[serde(default)]
    pub uuid: Option<Text>,
    /// Whether it is mounted so that nobody can write.
    #[serde(default)]
    pub read_only: bool,
}

impl MountedVolume {
    /// The directory that containers get.
    #[must_use]
    pub fn given(&self) -> &Text {
        self.pin.as_ref().unwrap_or(&self.mount_point)
    }

    /// Whether another mount is of the same storage: then two names lead to one volume.
    #[must_use]
    pub fn is_same_storage(&self, other: &Self) -> bool {
        let same_disk = |a: &BlockDevice, b: &BlockDevice| {
            let sequences = a.disk_sequence.zip(b.disk_sequence);
            a.number == b.number && sequences.is_none_or(|(a, b)| a == b)
        };
        let same_number = self.device_number == other.device_number;
        let same = match (&self.device, &other.device) {
            (Some(a), Some(b)) => same_disk(a, b),
            // The number of a file system without a device is given away again.
            (None, None) => same_number && self.source == other.source,
            _ => same_number,
        };
        let nested =
            self.directory.as_ref().zip(other.directory.as_ref()).is_some_and(|(a, b)| a.overlaps(b));
        same || nested || self.identity.is_some() && self.identity == other.identity
    }
}

/// A directory that is a volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Directory {
    /// The device number of its file system, as mount tables have it.
    pub file_system: Text,
    /// The number that its files have: of a btrfs subvolume it is another one.
    pub files: Text,
    /// Its path in the file system.
    pub path: Text,
}

impl Directory {
    /// Whether a path in a file system of this number is of this directory.
    #[must_use]
    pub fn holds(&self, device_number: &str, path: &Path) -> bool {
        *self.file_system == *device_number && path.starts_with(&*self.path)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.holds(&other.file_system, Path::new(&*other.path))
            || other.holds(&self.file_system, Path::new(&*self.path))
    }
}

/// A disk, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockDevice {
    /// Its node's real path.
    pub path: Text,
    /// Its own number, `major:minor`.
    pub number: Text,
    /// The kernel's sequence number of that disk, since Linux 5.15: a disk that was detached and
    /// another one that was made under the same number differ in it.
    pub disk_sequence: Option<u64>,
}

/// A container that uses volumes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Container {
    /// The address of the agent that runs it.
    pub agent: Text,
    /// The agent's id, where the container's sandbox told it.
    pub agent_id: Option<Text>,
    /// For whom it runs.
    #[serde(default)]
    pub task: Option<Task>,
    /// Its volumes, in the order asked.
    pub volumes: Vec<Wanted>,
    /// Its first process on this host, once isolated.
    pub pid: Option<u32>,
    /// Its freezer cgroup, once isolated.
    pub cgroup: Option<Text>,
    /// Whether its prepare was answered with yes.
    pub prepared: bool,
    /// Since when it was told to end, because of a revoke. Not stored: a restarted worker learns of the
    /// revoke again, and gives the grace again.
    #[serde(skip)]
    pub(crate) ending: Option<Now>,
    #[serde(skip)]
    pub(super) killed: bool,
}

impl Container {
    pub(crate) fn new(agent: Text, agent_id: Option<Text>, task: Option<Task>, volumes: Vec<Wanted>) -> Self {
        let (pid, cgroup, ending) = (None, None, None);
        Self { agent, agent_id, task, volumes, pid, cgroup, prepared: false, ending, killed: false }
    }

    /// As it is after it was stored.
    pub(super) fn forget_revoke(&mut self) {
        (self.ending, self.killed) = (None, false);
    }

    /// Whether a call of the agent at this address may be about this container: ids of standalone
    /// containers are chosen by users, and two agents of a host may have the same.
    pub(super) fn is_of(&self, agent: &Text) -> bool {
        self.agent == *agent
    }

    /// Whether its process exists, or did.
    pub(super) fn is_isolated(&self) -> bool {
        self.pid.is_some() || self.cgroup.is_some()
    }
}

/// A volume's row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Row {
    /// As the first container asked for it.
    pub wanted: Wanted,
    /// How far it is.
    #[serde(flatten)]
    pub phase: Phase,
    /// Who uses it.
    pub users: Vec<ContainerId>,
    /// What else must be known of it.
    #[serde(flatten)]
    pub notes: Notes,
}

/// What a restarted worker must know of the open epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OpenEpoch {
    /// The installation that it was opened in.
    pub cluster: ClusterId,
    /// Its number.
    pub epoch: Epoch,
    /// The times that it was opened with.
    pub timing: Timing,
    /// Whether silence ends it.
    pub by_time: ByTime,
}

/// The stored form of a holder's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Table {
    /// The epoch that is open, for a restarted worker to adopt.
    pub open: Option<OpenEpoch>,
    /// Why no epoch is adopted, until the next one was opened: somebody else used this holder's name.
    pub refused: Option<Text>,
    /// An earlier table of this boot could not be read, and the host was not made safe since: everything may be mounted.
    #[serde(default)]
    pub lost: bool,
    /// All containers that use volumes: fencing kills them.
    pub containers: BTreeMap<ContainerId, Container>,
    /// All volumes that are, or may be, mounted here: fencing unmounts them.
    pub volumes: Vec<Row>,
}

/// What has changed of a stored table. What is not in it is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableChange {
    /// As in [`Table`].
    pub open: Option<OpenEpoch>,
    /// As in [`Table`].
    pub refused: Option<Text>,
    /// As in [`Table`].
    pub lost: bool,
    /// Containers as they are now; `None`: no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<(ContainerId, Option<Container>)>,
    /// Volumes as they are now; `None`: no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<(VolumeId, Option<Row>)>,
}

impl Table {
    /// The table after these changes, one after the other.
    #[must_use]
    pub fn after(self, changes: impl IntoIterator<Item = TableChange>) -> Self {
        let mut stored = StoredTable::from(self);
        changes.into_iter().for_each(|change| stored.apply(change));
        let StoredTable { open, refused, lost, containers, volumes } = stored;
        Self { open, refused, lost, containers, volumes: volumes.into_values().collect() }
    }
}

/// A table by its rows, as changes find them.
#[derive(Clone, Debug)]
pub struct StoredTable {
    open: Option<OpenEpoch>,
    refused: Option<Text>,
    lost: bool,
    containers: BTreeMap<ContainerId, Container>,
    volumes: BTreeMap<VolumeId, Row>,
}

impl From<Table> for StoredTable {
    fn from(Table { open, refused, lost, containers, volumes }: Table) -> Self {
        let volumes = volumes.into_iter().map(|row| (row.wanted.volume.clone(), row)).collect();
        Self { open, refused, lost, containers, volumes }
    }
}

impl StoredTable {
    /// What of a change is one; none when nothing is.
    #[must_use]
    pub fn differs(&self, mut change: TableChange) -> Option<TableChange> {
        change.containers.retain(|(id, is)| self.containers.get(id) != is.as_ref());
        change.volumes.retain(|(id, is)| self.volumes.get(id) != is.as_ref());
        let is_same = self.open == change.open && self.refused == change.refused && self.lost == change.lost;
        (!is_same || !change.containers.is_empty() || !change.volumes.is_empty()).then_some(change)
    }

    /// Takes in a change.
    pub fn apply(&mut self, TableChange { open, refused, lost, containers, volumes }: TableChange) {
        (self.open, self.refused, self.lost) = (open, refused, lost);
        containers.into_iter().for_each(|(id, is)| set(&mut self.containers, id, is));
        volumes.into_iter().for_each(|(id, is)| set(&mut self.volumes, id, is));
    }

    /// Whether there is neither a container nor a volume.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.containers.is_empty() && self.volumes.is_empty()
    }
}

fn set<K: Ord, V>(rows: &mut BTreeMap<K, V>, id: K, is: Option<V>) {
    match is {
        Some(is) => _ = rows.insert(id, is),
        None => _ = rows.remove(&id),
    }
}

impl Row {
    /// Whether a driver call for it may be under way.
    #[must_use]
    pub fn may_call_driver(&self) -> bool {
        self.phase.may_call_driver() || self.notes.unsettled
    }

    pub(super) fn of(volume: &Volume) -> Self {
        Self {
            wanted: volume.wanted.clone(),
            phase: volume.phase.clone(),
            users: volume.users.iter().cloned().collect(),
            notes: volume.notes(),
        }
    }

    pub(super) fn volume(self) -> (VolumeId, Volume) {
        let id = self.wanted.volume.clone();
        (id, Volume::restored(self.wanted, self.phase, self.users.into_iter().collect(), self.notes))
    }
}
