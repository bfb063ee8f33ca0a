//! One keeper of a run directory at a time: the lock that its deadman holds, and the end of every process of an older one.

use std::collections::HashSet;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::keeper::process::{ProcessId, members};
use crate::keeper::shared_memory::SharedMemory;

/// In the run directory. Another than the worker's own `keeper.lock`: the two are held at once.
pub const LOCK: &str = "deadman.lock";

/// Takes the lock of a run directory's deadman, and makes the directory; none while another one holds it. Held until the file is
/// dropped, or the process ends; no child inherits it.
pub(super) fn lock(directory: &Path) -> io::Result<Option<File>> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let file = File::options().create(true).append(true).mode(0o600).open(directory.join(LOCK))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// All other processes of the keeper whose memory this is: worker, deadman and helpers of any kind, a guard's that died over
/// a fence among them. A living guard is none of them, nor are its helpers: it outlives keepers. One look, as
/// [`members`] does it.
pub(super) fn others(
    shared: &SharedMemory,
    seen: &mut HashSet<u32>,
    goes_on: impl Fn() -> bool,
) -> Option<Vec<ProcessId>> {
    let own = std::process::id();
    let guard = shared.guard();
    let dead = guard.filter(|guard| !guard.runs()).map(|guard| (guard.pid, guard.started));
    let sessions: Vec<_> = [shared.session()].into_iter().chain(dead).collect();
    let named = shared.worker().into_iter().chain(shared.deadman());
    let named = named.filter(|process| process.pid != own && process.runs());
    let mut all: Vec<_> = members(&sessions, seen, goes_on)?.into_iter().chain(named).collect();
    all.retain(|process| Some(*process) != guard);
    all.sort_unstable();
    all.dedup();
    Some(all)
}
