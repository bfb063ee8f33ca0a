//! Looks for what a fence does not know of: a mount that a helper made at its last gasp, or everything, where the table was lost.
//!
//! Only mount tables are read: nothing in here blocks on a volume.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use shared::protocol::holder::MountedVolume;

use super::device::{describe, hosts_own, is_below, real};
use super::idle::Limits;
use super::kill::{FREEZER, kill_cgroup, processes, with_nested};
use super::witness::{LOOK, Shown, Stranger, hosts as hosts_namespaces, longest_table, namespace, strangers};
use crate::keeper::mount_table::{self, Mount};
use crate::keeper::mounts::{behind_pin, is_of};
use crate::keeper::process::ProcessId;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// File systems that are mounted below the roots, once each.
    pub(super) mounted: Vec<MountedVolume>,
    /// Who was killed, and has perhaps not ended yet.
    pub(super) alive: Option<String>,
}

/// Looks below the roots: in the host's table, and in those of processes in the freezer cgroups below the agent's, where its
/// containers run. Namespaces of others are others': a path there is not the host's. File systems of the numbers in `proved`
/// are no news. `lost`: the table of containers was lost, so that each container that sees such a mount is killed, or may see one:
/// its mount table is too long to be read.
pub(super) fn sweep(limits: &Limits, proved: &BTreeSet<String>, lost: bool) -> io::Result<Found> {
    let table = mount_table::own()?;
    let roots = real(&limits.roots);
    let below = |mount: &&Mount| is_below(&mount.mount_point, &roots);
    let hosts = hosts_own(&table, &limits.own, &limits.roots);
    let mut found = Found::default();
    let mut volumes: BTreeMap<String, Mount> = BTreeMap::new();
    // A directory of the host's own that is bound below a root is no volume, and no other host writes to it.
    for mount in table.iter().filter(below).filter(|mount| !hosts.contains_key(&mount.device_number)) {
        volumes.entry(mount.device_number.clone()).or_insert_with(|| mount.clone());
    }
    // But the keeper's own mount of one is a volume: nobody else makes such, and its storage may be many hosts'.
    let on_hosts = table.iter().filter(|mount| hosts.contains_key(&mount.device_number));
    let directories: Vec<_> = on_hosts.filter_map(|mount| behind_pin(mount, &roots)).collect();
    let cgroups = limits.cgroup_root.as_ref().map(|root| Path::new(FREEZER).join(root.trim_matches('/')));
    let (longest, until) = (longest_table(), Instant::now() + LOOK);
    let mut namespaces = BTreeSet::new();
    // Many processes have one namespace. One whose namespace was not reached in time is looked at by the next sweep.
    let mut judged: BTreeMap<PathBuf, bool> =
        hosts_namespaces()?.into_iter().map(|own| (own, false)).collect();
    for cgroup in cgroups.iter().flat_map(|root| with_nested(root)) {
        let mut sees = false;
        for pid in processes(&cgroup)? {
            let Some((id, namespace)) = ProcessId::of(pid).zip(namespace(pid)) else { continue };
            if let Some(judged) = judged.get(&namespace) {
                sees |= judged;
                continue;
            }
            if Instant::now() >= until {
                // Of a known table all is shut down, and proved.
                if lost {
                    found.alive.get_or_insert_with(|| "mount tables without end are being read".to_owned());
                }
                break;
            }
            let (mounts, whole) = match (Stranger { id, namespace: namespace.clone() }).mounts(longest) {
                Shown::Whole(mounts) => (mounts, true),
                Shown::TooLong(mounts) => (mounts, false),
                Shown::Ended => continue,
            };
            let shown = |mount: &&Mount| {
                let is_volume = below(mount) && !hosts.contains_key(&mount.device_number);
                is_volume && !proved.contains(&mount.device_number)
                    || volumes.get(&mount.device_number).is_some_and(|known| known.source == mount.source)
                    || directories.iter().any(|directory| is_of(directory)(mount))
            };
            let of_volumes: Vec<_> = mounts.iter().filter(shown).cloned().collect();
            let seen = !of_volumes.is_empty() || !whole;
            judged.insert(namespace, seen);
            sees |= seen;
            for mount in of_volumes.into_iter().filter(|mount| !hosts.contains_key(&mount.device_number)) {
                volumes.entry(mount.device_number.clone()).or_insert(mount);
            }
        }
        if sees && lost {
            found.alive = found.alive.or(kill_cgroup(&cgroup, &mut namespaces)?);
        }
    }
    if lost {
        for stranger in strangers()?.iter().filter(|stranger| namespaces.contains(&stranger.namespace)) {
            stranger.kill();
        }
    }
    found.mounted = volumes.values().map(describe).chain(directories).collect();
    Ok(found)
}
