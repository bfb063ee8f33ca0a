//! Writes down what happens to leases and sessions in etcd, and reads between which it happened. Runs as a service of the hub.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use shared::keys::Keys;
use shared::store::{Change, Entry, LeaseStore, Revision, StoreError};
use tokio::time::{Instant, sleep_until};

use super::Moment;
use super::history::Line;

/// Between two reads: so exactly is known when a revision was made.
const READ_EVERY: Duration = Duration::from_millis(50);

/// Before a watch that failed is opened again.
const AGAIN: Duration = Duration::from_millis(50);

/// The recorder's file.
#[derive(Debug)]
pub struct Recorder {
    file: File,
    keys: Keys,
}

impl Recorder {
    /// Appends to a file, which is made if need be.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn open(path: &Path, keys: Keys) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        Ok(Self { file: File::options().append(true).create(true).open(path)?, keys })
    }

    /// Records for ever.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn run(mut self, store: impl LeaseStore) -> io::Result<std::convert::Infallible> {
        loop {
            let mut after = self.begin(&store).await?;
            loop {
                let why = self.follow(&store, &mut after).await?;
                if let StoreError::Compacted { .. } = why {
                    self.say(&Line::Gap { why: why.to_string() })?;
                    break;
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// What is there, and at which revision.
    async fn begin(&mut self, store: &impl LeaseStore) -> io::Result<Revision> {
        loop {
            let sent = Moment::now();
            if let Ok(snapshot) = store.get_all(&[], &[self.keys.leases(), self.keys.sessions()]).await {
                let returned = Moment::now();
                self.say(&Line::Read { revision: snapshot.revision, sent, returned })?;
                for (key, entry) in snapshot.entries {
                    self.written(key, &entry, returned)?;
                }
                return Ok(snapshot.revision);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Follows a watch until it fails, and reads beside it; why it failed.
    async fn follow(&mut self, store: &impl LeaseStore, after: &mut Revision) -> io::Result<StoreError> {
        // One watch for all, so that what it tells is in order.
        let all = self.keys.leases();
        let all = all.strip_suffix("leases/").unwrap_or(&all).to_owned();
        let mut watch = store.watch(&all, *after);
        let mut next = Instant::now();
        loop {
            tokio::select! {
                changes = watch.next() => {
                    let seen = Moment::now();
                    match changes {
                        None => return Ok(StoreError::Unavailable("the watch ended".into())),
                        Some(Err(error)) => return Ok(error),
                        Some(Ok(changes)) => {
                            for change in changes {
                                *after = change.revision().max(*after);
                                self.change(change, seen)?;
                            }
                        }
                    }
                }
                () = sleep_until(next) => {
                    next = Instant::now() + READ_EVERY;
                    let sent = Moment::now();
                    // One without an answer shows nothing.
                    if let Ok(snapshot) = store.get(&[self.keys.cluster()]).await {
                        let returned = Moment::now();
                        self.say(&Line::Read { revision: snapshot.revision, sent, returned })?;
                    }
                }
            }
        }
    }

    fn change(&mut self, change: Change, seen: Moment) -> io::Result<()> {
        if !change.key().starts_with(&self.keys.leases()) && !change.key().starts_with(&self.keys.sessions())
        {
            return Ok(());
        }
        match change {
            Change::Put { key, entry } => self.written(key, &entry, seen),
            Change::Delete { key, at } => self.say(&Line::Deleted { key, revision: at, seen }),
        }
    }

    fn written(&mut self, key: String, entry: &Entry, seen: Moment) -> io::Result<()> {
        let value = String::from_utf8_lossy(&entry.value).into_owned();
        self.say(&Line::Written { key, value, revision: entry.mod_revision, seen })
    }

    fn say(&mut self, line: &Line) -> io::Result<()> {
        let text = serde_json::to_string(line)?;
        self.file.write_all(format!("{text}\n").as_bytes())
    }
}
