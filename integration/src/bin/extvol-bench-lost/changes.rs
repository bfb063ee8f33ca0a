//! A watch of etcd: each write of a lease, a session or a heartbeat, and when this program was told of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::StreamExt;
use integration::cluster::Cluster;
use integration::trial::SOON;
use serde::Deserialize;
use shared::etcd::{EtcdConfig, EtcdStore};
use shared::protocol::exchange::Proof;
use shared::record::{LeaseRecord, decode};
use shared::store::{Change as Write, LeaseStore, Revision};
use shared::volume::VolumeId;
use tokio::sync::oneshot;

use crate::{Failure, Result};

/// What is watched. Events lie below it, too, and are left out.
const PREFIX: &str = "/extvol/v1/";
const LEFT_OUT: &str = "/extvol/v1/event";

/// A write that was told.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// When.
    pub(crate) at: Instant,
    pub(crate) key: String,
    pub(crate) revision: Revision,
    /// None of it when the key was deleted.
    pub(crate) value: Vec<u8>,
}

/// Of a session what is looked at here.
#[derive(Debug, Deserialize)]
pub(crate) struct Session {
    #[serde(default)]
    pub(crate) revoking: bool,
    #[serde(default)]
    pub(crate) proof: Option<Proof>,
    #[serde(default)]
    pub(crate) wants: BTreeSet<VolumeId>,
}

impl Change {
    /// The session that was written.
    pub(crate) fn session(&self) -> Option<Session> {
        decode(&self.value).ok()
    }

    /// Whether it leaves a volume to nobody.
    pub(crate) fn frees(&self) -> bool {
        self.value.is_empty() || self.lease().is_some_and(|lease| lease.held().is_none())
    }

    /// The lease that was written.
    pub(crate) fn lease(&self) -> Option<LeaseRecord> {
        decode(&self.value).ok()
    }
}

/// What was told so far.
#[derive(Debug, Default)]
struct Board {
    told: Mutex<(Vec<Change>, Option<String>)>,
    more: Condvar,
}

impl Board {
    /// No code that holds the lock can leave it half changed, so poison means nothing here.
    fn lock(&self) -> MutexGuard<'_, (Vec<Change>, Option<String>)> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The watch. To be dropped before its cluster.
#[derive(Debug)]
pub(crate) struct Changes {
    board: Arc<Board>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Changes {
    /// Watches from now on.
    pub(crate) fn start(cluster: &Cluster) -> Result<Self> {
        let board = Arc::new(Board::default());
        let (end, ended) = oneshot::channel();
        let config = EtcdConfig {
            request_timeout: Duration::from_secs(10),
            ..EtcdConfig::new(cluster.etcd_endpoints())
        };
        let store = EtcdStore::new(config)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Before anything that is to be timed: what comes after this revision will be told.
        let after = runtime.block_on(store.get_prefix(PREFIX))?.revision;
        let told = Arc::clone(&board);
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    why = follow(&store, after, &told) => {
                        told.lock().1 = Some(why);
                        told.more.notify_all();
                    }
                    _ = ended => {}
                }
            });
        });
        Ok(Self { board, end: Some(end), thread: Some(thread) })
    }

    /// How many were told: a place to wait from.
    pub(crate) fn count(&self) -> usize {
        self.board.lock().0.len()
    }

    /// All from a place on.
    pub(crate) fn from(&self, place: usize) -> Vec<Change> {
        self.board.lock().0.get(place..).unwrap_or_default().to_vec()
    }

    /// Waits for the first change from a place on of which `find` makes something.
    pub(crate) fn wait<T>(
        &self,
        what: &str,
        place: usize,
        mut find: impl FnMut(&Change) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + SOON;
        let (mut told, mut next) = (self.board.lock(), place);
        loop {
            if let Some(found) = told.0.get(next..).unwrap_or_default().iter().find_map(&mut find) {
                return Ok(found);
            }
            next = told.0.len().max(place);
            if let Some(why) = &told.1 {
                return Err(format!("the watch of etcd has ended: {why}").into());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let last: Vec<_> =
                    told.0.iter().rev().take(5).map(|c| String::from_utf8_lossy(&c.value)).collect();
                return Err(format!("etcd did not tell of {what}; last were {last:?}").into());
            }
            told = self.board.more.wait_timeout(told, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// As [`Changes::wait`], for a lease's record.
    pub(crate) fn wait_lease(
        &self,
        key: &str,
        what: &str,
        place: usize,
        is: impl Fn(&LeaseRecord) -> bool,
    ) -> Result<Change> {
        self.wait(what, place, |change| {
            (change.key == key && change.lease().is_some_and(|lease| is(&lease))).then(|| change.clone())
        })
    }

    /// The last write of a key from a place on.
    pub(crate) fn last(&self, key: &str, place: usize) -> Result<Change> {
        let found = self.from(place).into_iter().rev().find(|change| change.key == key);
        found.ok_or_else(|| Failure::from(format!("{key} was not written")))
    }
}

/// Until the watch breaks: why.
async fn follow(store: &EtcdStore, after: Revision, board: &Board) -> String {
    let mut watch = store.watch(PREFIX, after);
    loop {
        let writes = match watch.next().await {
            Some(Ok(writes)) => writes,
            Some(Err(error)) => return error.to_string(),
            None => return "no reason is given".to_owned(),
        };
        let at = Instant::now();
        let changes = writes.into_iter().filter_map(|write| match write {
            Write::Put { key, entry } if !key.starts_with(LEFT_OUT) => {
                Some(Change { at, key, revision: entry.mod_revision, value: entry.value })
            }
            Write::Delete { key, at: revision } if !key.starts_with(LEFT_OUT) => {
                Some(Change { at, key, revision, value: Vec::new() })
            }
            Write::Put { .. } | Write::Delete { .. } => None,
        });
        board.lock().0.extend(changes);
        board.more.notify_all();
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A panic of that thread has been printed where it happened.
            let _ = thread.join();
        }
    }
}
