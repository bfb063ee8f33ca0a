//! The proof that a volume is not in use on this host.
//!
//! "Unmounted" is a proof, not a return code. A container that was started while another one's
//! volume was mounted has a copy of that mount in its own namespace, and a plain umount on the host
//! removes that copy only where the mount is shared. So a device counts as idle only when the kernel
//! lets it be opened exclusively (`O_EXCL` fails while any mount in any namespace holds it), or, for
//! a file system without a device, when no process's mount table shows it and no process has a file of it open. What
//! cannot be told is never taken for a proof.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use shared::protocol::holder::{BlockDevice, Idleness, MountedVolume};
use shared::volume::VolumeId;

use super::look::seen_by;
use super::mount_table::{self, Mount, Witness};
use super::{Before, Others, Places, files, is_of, mount_above, number, of, storage, take_away};
use crate::keeper::alive;
use crate::keeper::fence;
use crate::keeper::process::{self, ProcessId};

/// What is to be proved, after the driver was asked to unmount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofCall {
    /// The volume, as the driver was asked for it.
    pub asked: VolumeId,
    /// What was mounted, if that is known.
    pub mounted: Option<MountedVolume>,
    /// What was there before the driver was first called under this lease; `None`: that was in another life of this keeper.
    pub before: Option<Before>,
    /// Whether a Mount of it was repeated: one had no answer, and may have attached what it did not mount.
    pub repeated: bool,
    /// What this volume's calls have mounted beside it, as far as is known.
    pub strays: Vec<MountedVolume>,
    /// What the last look found below the roots that was no volume's.
    pub found: Vec<u64>,
    /// What this host's other volumes have.
    pub others: Others,
    /// Whether processes of the agent's containers that pin it are killed: they had time to end.
    pub end: bool,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Whether the volume is idle.
    pub idleness: Idleness,
    /// What this volume's calls have mounted beside it.
    pub strays: Vec<MountedVolume>,
    /// What was found below the roots that is no volume's, as far as was known when it was asked.
    pub found: Vec<u64>,
    /// Who was killed for it, in words.
    pub killed: Vec<String>,
}

impl Proof {
    fn new(idleness: Idleness, strays: &[MountedVolume]) -> Self {
        Self { idleness, strays: strays.to_vec(), found: Vec::new(), killed: Vec::new() }
    }
}

/// Whether a volume is idle. Takes away what is still mounted of it beside what the driver has to unmount.
#[must_use]
pub fn prove_idle(call: &ProofCall, places: &Places) -> Proof {
    let unknown = |error: std::io::Error| {
        let idleness = Idleness::Unknown(format!("the mount table could not be read: {error}").into());
        Proof::new(idleness, &call.strays)
    };
    let table = match mount_table::own() {
        Ok(table) => table,
        Err(error) => return unknown(error),
    };
    match &call.mounted {
        None => prove_nothing_left(call, &table, places),
        Some(mounted) => {
            // The driver unmounts what it has answered.
            let beside = |mount: &&Mount| {
                is_of(mounted)(mount)
                    && places.real_roots().iter().any(|root| mount.is_below(root))
                    && !is_drivers(mounted, mount)
            };
            let _met_below = take_away(table.iter().filter(beside));
            let mut proof = match mount_table::own() {
                Ok(table) => prove_mounted_idle(call, mounted, &table, places),
                Err(error) => return unknown(error),
            };
            proof.killed = if call.end { end_pinning(mounted, &proof.idleness, places) } else { Vec::new() };
            proof
        }
    }
}

fn is_drivers(mounted: &MountedVolume, mount: &Mount) -> bool {
    let answered = Path::new(&*mounted.mount_point);
    let real = answered.canonicalize().unwrap_or_else(|_| answered.to_owned());
    answered.starts_with(&mount.mount_point) || real.starts_with(&mount.mount_point)
}

fn prove_mounted_idle(call: &ProofCall, mounted: &MountedVolume, table: &[Mount], places: &Places) -> Proof {
    if let Some(device) = &mounted.device
        && storage::is_gone(device)
    {
        // A call without an answer may have attached it again, as another disk.
        let above =
            |table: &[Mount]| mount_above(&mounted.mount_point, &places.real_roots(), table).is_some();
        if !above(table) {
            return prove_nothing_left(call, table, places);
        }
        // RexRay does not unmount what is attached no more. Nothing can be written through it.
        let roots = places.real_roots();
        let is_its = |mount: &&Mount| {
            is_of(mounted)(mount)
                && is_drivers(mounted, mount)
                && roots.iter().any(|root| mount.is_below(root))
        };
        let _met_below = take_away(table.iter().filter(is_its));
        return match mount_table::own() {
            Ok(table) if !above(&table) => prove_nothing_left(call, &table, places),
            _ => Proof::new(Idleness::Mounted, &call.strays),
        };
    }
    let all = std::iter::once(mounted).chain(&call.strays);
    let idleness = all.map(|one| prove_one(one, table, places)).reduce(worse).unwrap_or(Idleness::Proved);
    Proof::new(idleness, &call.strays)
}

/// The worse of two answers.
fn worse(first: Idleness, second: Idleness) -> Idleness {
    match (first, second) {
        (Idleness::Proved, other) | (other, Idleness::Proved) => other,
        (Idleness::ProvedAttached, other) => other,
        (other, _) => other,
    }
}

/// For a Mount of which no mount is known: whatever it may have done, nothing is left that is no other volume's.
fn prove_nothing_left(call: &ProofCall, table: &[Mount], places: &Places) -> Proof {
    let roots = places.real_roots();
    let hosts = places.hosts_own(table);
    let was_there = |mount: &Mount| call.before.as_ref().is_some_and(|before| before.has(mount));
    let is_stray = |mount: &&Mount| {
        roots.iter().any(|root| mount.is_below(root)) && !was_there(mount) && !call.others.have(mount)
    };
    let mut left: Vec<_> = table.iter().filter(is_stray).collect();
    // Of strays outside the roots it is known that this call made them.
    let known = |mount: &&Mount| call.strays.iter().any(|stray| is_of(stray)(mount));
    left.extend(table.iter().filter(|mount| known(mount) && !is_stray(mount) && !was_there(mount)));
    // The roots' own names are nobody's.
    let bears_name = |mount: &&&Mount| {
        let below = roots.iter().find_map(|root| mount.mount_point.strip_prefix(root).ok());
        below.is_some_and(|below| call.asked.name.is_in(below) && !call.others.may_be_mounting(below))
    };
    let mut strays = call.strays.clone();
    for mount in &left {
        let stray = of(mount, &mount.mount_point.to_string_lossy());
        // A directory of the host's own, or of what somebody else has mounted, is gone with its mount: its device never is idle.
        let is_elsewhere = |other: &Mount| is_of(&stray)(other) && !left.contains(&other);
        let proved_by_device = !hosts.contains_key(&mount.device_number) && !table.iter().any(is_elsewhere);
        if proved_by_device && !strays.iter().any(|known| known.is_same_storage(&stray)) {
            strays.push(stray);
        }
    }
    if !call.others.mounting.is_empty()
        && let Some(mount) = left.iter().find(|mount| !known(mount) && !bears_name(mount))
    {
        let at = mount.mount_point.display();
        let why = format!("{at} was mounted while other volumes are; whose it is shows when these are");
        return Proof::new(Idleness::Unknown(why.into()), &call.strays);
    }
    // What was mounted since the other volumes were asked about may be one of theirs: it is taken away when it is nobody's once more.
    let found: Vec<_> = left.iter().map(|mount| number(mount)).collect();
    if let Some(mount) = left.iter().find(|mount| !known(mount) && !call.found.contains(&number(mount))) {
        let why = format!("{} is mounted, and no volume's: looked at once more", mount.mount_point.display());
        return Proof { found, ..Proof::new(Idleness::Unknown(why.into()), &call.strays) };
    }
    if take_away(left.iter().copied()).is_some() {
        return Proof::new(Idleness::Mounted, &strays);
    }
    let table = match mount_table::own() {
        Ok(table) => table,
        Err(error) => {
            let idleness = Idleness::Unknown(format!("the mount table could not be read: {error}").into());
            return Proof::new(idleness, &strays);
        }
    };
    let proofs = strays.iter().map(|stray| prove_one(stray, &table, places));
    let idleness = proofs.reduce(worse).unwrap_or(Idleness::Proved);
    // A Mount that was given up may have attached a disk, and mounted nothing: the driver is to detach it.
    let last = call.before.as_ref().map(|before| before.last_disk).filter(|_| call.repeated);
    let is_others = |disk: u64| {
        let of = |mounted: &MountedVolume| mounted.device.as_ref().and_then(|device| device.disk_sequence);
        call.others.mounted.iter().any(|(_, mounted)| of(mounted) == Some(disk))
    };
    let attached =
        last.is_some_and(|last| storage::disks().into_keys().any(|disk| disk > last && !is_others(disk)));
    let idleness = match idleness {
        Idleness::Proved if attached => Idleness::ProvedAttached,
        other => other,
    };
    Proof::new(idleness, &strays)
}

/// Whether one file system is idle.
fn prove_one(mounted: &MountedVolume, table: &[Mount], places: &Places) -> Idleness {
    let Some(device) = mounted.device.as_ref() else {
        return prove_unheld(mounted, table, places);
    };
    if storage::is_gone(device) {
        return Idleness::Proved;
    }
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::open(&*device.path, flags, Mode::empty()) {
        Ok(exclusive) if storage::is_node_of(&exclusive, device) => Idleness::ProvedAttached,
        Ok(_) => Idleness::Unknown(format!("{} is another device now", device.path).into()),
        Err(Errno::BUSY) => match prove_unheld(mounted, table, places) {
            Idleness::Proved => {
                Idleness::Pinned(format!("{} is busy{}", device.path, by_device(device)).into())
            }
            seen => seen,
        },
        // The node is there and has no disk behind it any more.
        Err(Errno::NXIO | Errno::NODEV | Errno::NOMEDIUM) => prove_unheld(mounted, table, places),
        Err(error) => Idleness::Unknown(format!("{} could not be opened: {error}", device.path).into()),
    }
}

/// Another device that is made of this one, in words.
fn by_device(device: &BlockDevice) -> String {
    let holders = fs::read_dir(storage::in_sys(&device.number).join("holders")).into_iter().flatten();
    let names: Vec<_> =
        holders.flatten().map(|holder| holder.file_name().to_string_lossy().into_owned()).collect();
    match names.as_slice() {
        [] => ", though no process shows it".to_owned(),
        names => format!(": the device {} is made of it", names.join(", ")),
    }
}

/// No process's mount table shows the file system, and no process has anything of it open.
fn prove_unheld(mounted: &MountedVolume, table: &[Mount], places: &Places) -> Idleness {
    if table.iter().any(is_of(mounted)) {
        return Idleness::Mounted;
    }
    // Who is found is the answer, and this look has an end, however many namespaces tasks make. Only that nobody holds it needs
    // them all.
    let lives = files::lives(mounted, table);
    if lives == Some(false) {
        return Idleness::Proved;
    }
    let cgroup_root = places.cgroup_root.as_deref();
    let pins = fence::who_pins(mounted, places.cgroup_root.as_deref()).map(|(pins, _)| pins);
    let pins = pins.unwrap_or_default();
    let held = match pins.first() {
        Some(pin) => Some(seen_by(pin.pid, &pin.mount_point)),
        None => match mount_table::elsewhere(|_, mount, _| is_of(mounted)(mount)) {
            Ok(Some(Witness { pid, mount_point, .. })) => Some(seen_by(pid, &mount_point)),
            Ok(None) => files::holder(mounted, cgroup_root),
            Err(error) => return Idleness::Unknown(format!("the mount tables: {error}").into()),
        },
    };
    let held = match held {
        None if lives == Some(true) => {
            let why = "its FUSE connection lives, though no process shows it (/sys/fs/fuse/connections)";
            return Idleness::Pinned(why.into());
        }
        None => return Idleness::Proved,
        Some(held) => held,
    };
    let mut why = format!("{held} still holds it");
    let (mut tables, mut scan) = (Tables::default(), files::Scan::new(mounted, cgroup_root));
    let mut has = |pid: u32| tables.have(pid, mounted) || scan.holds(pid).is_some_and(|hold| hold.sure);
    if pins.iter().any(|pin| pin.cgroup.is_some())
        || process::pids().into_iter().any(|pid| places.is_contained(pid) && has(pid))
    {
        why +=
            "; no container here uses it, so processes of containers that hold it are killed after the grace";
    }
    Idleness::Pinned(why.into())
}

/// By mount namespace, whether it shows a volume: each is read once, for a task may have thousands of processes in it.
#[derive(Default)]
struct Tables(BTreeMap<PathBuf, bool>);

impl Tables {
    fn have(&mut self, pid: u32, mounted: &MountedVolume) -> bool {
        // It has ended.
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else { return false };
        if let Some(known) = self.0.get(&namespace) {
            return *known;
        }
        // Of a process that ends meanwhile nothing is learned.
        let Ok(table) = fs::read(format!("/proc/{pid}/mountinfo")) else { return false };
        let found = mount_table::parse(&table).iter().any(is_of(mounted));
        self.0.insert(namespace, found);
        found
    }
}

/// Kills processes of the agent's containers that hold a volume which none of these uses: by a copy of the host's mount in a
/// namespace that they made private, by a directory or a file. Another host may wait for the volume, and a task could keep it from
/// everybody. While the host's mount is there all containers have copies, which go with it: then only files count.
fn end_pinning(mounted: &MountedVolume, idleness: &Idleness, places: &Places) -> Vec<String> {
    let mut tables = Tables::default();
    let mut scan = files::Scan::new(mounted, places.cgroup_root.as_deref());
    let mut pins = |pid: u32| match idleness {
        Idleness::Pinned(_) => tables.have(pid, mounted) || scan.holds(pid).is_some_and(|hold| hold.sure),
        Idleness::Mounted => scan.holds(pid).is_some_and(|hold| hold.sure),
        _ => false,
    };
    let mut killed = Vec::new();
    for pid in process::pids().into_iter().filter(|pid| places.is_contained(*pid)) {
        let Some(process) = ProcessId::of(pid).filter(|_| pins(pid)) else { continue };
        killed.push(in_words(pid));
        process.kill();
    }
    killed
}

/// A process and where it belongs, in words.
pub(super) fn in_words(pid: u32) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = String::from_utf8_lossy(&name);
    match alive::freezer_cgroup(pid) {
        Some(cgroup) => format!("process {pid} ({}) of the cgroup {cgroup}", name.trim()),
        None => format!("process {pid} ({})", name.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_answers_the_one_that_proves_less_counts() {
        let order = [
            Idleness::Proved,
            Idleness::ProvedAttached,
            Idleness::Pinned("by a process".into()),
            Idleness::Mounted,
            Idleness::Unknown("unread".into()),
        ];
        let is_proof = |idleness: &Idleness| matches!(idleness, Idleness::Proved | Idleness::ProvedAttached);
        for (place, less) in order.iter().enumerate() {
            for more in &order[..place] {
                for found in [worse(less.clone(), more.clone()), worse(more.clone(), less.clone())] {
                    assert!(found == *less || !is_proof(more) && !is_proof(&found), "{less:?} {more:?}");
                }
            }
        }
    }
}
