//! Processes of other mount namespaces: who sees a volume, and is not the host.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use crate::keeper::mount_table::{self, Mount};
use crate::keeper::process::{self, ProcessId};

/// The kernel's name of a mount namespace.
type Namespace = PathBuf;

/// A process of a mount namespace that is not the host's.
#[derive(Clone, Debug)]
pub(super) struct Stranger {
    pub(super) id: ProcessId,
    pub(super) namespace: Namespace,
}

/// The mount namespace of a process; none when it has ended.
pub(super) fn namespace(pid: u32) -> Option<Namespace> {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

/// The host's: this program's own, and that of the machine's first process.
pub(super) fn hosts() -> io::Result<BTreeSet<Namespace>> {
    let own = fs::read_link("/proc/self/ns/mnt")?;
    Ok(namespace(1).into_iter().chain([own]).collect())
}

/// All processes of other mount namespaces than the host's. Kernel threads are in the host's.
pub(super) fn strangers() -> io::Result<Vec<Stranger>> {
    let hosts = hosts()?;
    let stranger = |pid: u32| {
        let id = ProcessId::of(pid)?;
        let namespace = namespace(pid)?;
        (!hosts.contains(&namespace) && pid != 1).then_some(Stranger { id, namespace })
    };
    Ok(process::pids().into_iter().filter_map(stranger).collect())
}

impl Stranger {
    /// Its mount table; empty when it has ended.
    pub(super) fn mounts(&self) -> Vec<Mount> {
        fs::read(format!("/proc/{}/mountinfo", self.id.pid))
            .map(|table| mount_table::parse(&table))
            .unwrap_or_default()
    }

    /// Kills it, if it is still that process in that namespace: one that has just entered the host's is none of ours.
    pub(super) fn kill(&self) {
        if namespace(self.id.pid).as_ref() == Some(&self.namespace) {
            self.id.kill();
        }
    }
}

/// A process by name, for a message.
pub(super) fn in_words(pid: u32) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("process {pid} ({})", String::from_utf8_lossy(&name).trim())
}
