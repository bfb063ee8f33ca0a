//! Looks for what a fence does not know of: a mount that a helper made at its last gasp, or everything, where the table was lost.
//!
//! Only mount tables are read: nothing in here blocks on a volume.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use shared::protocol::holder::MountedVolume;

use super::device::{describe, hosts_own};
use super::kill::{FREEZER, kill_cgroup, processes, with_nested};
use super::witness::{Stranger, namespace, strangers};
use crate::keeper::mount_table::{self, Mount};
use crate::keeper::process::ProcessId;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// File systems that are mounted below the roots, once each.
    pub(super) mounted: Vec<MountedVolume>,
    /// Who was killed, and has perhaps not ended yet.
    pub(super) alive: Option<String>,
}

/// Looks below `roots`: in the host's table, and in those of processes in the freezer cgroups below `cgroup_root`, where the agent's
/// containers run. Namespaces of others are others': a path there is not the host's. File systems of the numbers in `proved`
/// are no news. `lost`: the table of containers was lost, so that each container that sees such a mount is killed.
pub(super) fn sweep(
    roots: &[PathBuf],
    own: &[PathBuf],
    cgroup_root: Option<&str>,
    proved: &BTreeSet<String>,
    lost: bool,
) -> io::Result<Found> {
    let table = mount_table::own()?;
    let roots: Vec<_> =
        roots.iter().map(|root| root.canonicalize().unwrap_or_else(|_| root.clone())).collect();
    let below = |mount: &&Mount| {
        roots.iter().any(|root| mount.mount_point != *root && mount.mount_point.starts_with(root))
    };
    let all_own: Vec<_> = own.iter().chain(&roots).cloned().collect();
    let hosts = hosts_own(&table, &all_own);
    let mut found = Found::default();
    let mut volumes: BTreeMap<String, Mount> = BTreeMap::new();
    // A directory of the host's own that is bound below a root is no volume, and no other host writes to it.
    for mount in table.iter().filter(below).filter(|mount| !hosts.contains_key(&mount.device_number)) {
        volumes.entry(mount.device_number.clone()).or_insert_with(|| mount.clone());
    }
    let cgroups = cgroup_root.map(|root| Path::new(FREEZER).join(root.trim_matches('/')));
    let mut namespaces = BTreeSet::new();
    for cgroup in cgroups.iter().flat_map(|root| with_nested(root)) {
        let mut sees = false;
        for pid in processes(&cgroup)? {
            let Some((id, namespace)) = ProcessId::of(pid).zip(namespace(pid)) else { continue };
            let mounts = Stranger { id, namespace }.mounts();
            let shown = |mount: &&Mount| {
                let is_volume = below(mount) && !hosts.contains_key(&mount.device_number);
                is_volume && !proved.contains(&mount.device_number)
                    || volumes.get(&mount.device_number).is_some_and(|known| known.source == mount.source)
            };
            let of_volumes: Vec<_> = mounts.iter().filter(shown).cloned().collect();
            sees |= !of_volumes.is_empty();
            for mount in of_volumes {
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
    found.mounted = volumes.values().map(describe).collect();
    Ok(found)
}
