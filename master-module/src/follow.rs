//! All records below a prefix, for ever: read and watched. A watch that ends is opened again from the
//! last revision that it told, so that no change is missed while a connection is lost; only when that
//! history is no longer kept is everything read again.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use shared::retry::Retry;
use shared::store::{Change, LeaseStore, Revision, Snapshot, StoreError};
use tokio::time::{Instant, sleep};

const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// What is learned of the records.
#[derive(Debug)]
pub(crate) enum Followed {
    /// All of them.
    Read(Snapshot),
    /// What has changed since.
    Changed(Vec<Change>),
    /// They could not be read, and will be tried again.
    ReadFailed(StoreError),
    /// What changes will be told later.
    WatchEnded(StoreError),
}

type Watch<'s> = Pin<Box<dyn Stream<Item = Result<Vec<Change>, StoreError>> + Send + 's>>;

struct Follower<'s, S> {
    store: &'s S,
    prefix: &'s str,
    watch: Option<(Watch<'s>, Instant)>,
    /// The last revision that was told; `None` when everything must be read.
    told: Option<Revision>,
    retry: Retry,
    wait: Option<Duration>,
}

impl<'s, S: LeaseStore> Follower<'s, S> {
    async fn next(&mut self) -> Followed {
        loop {
            if let Some(wait) = self.wait.take() {
                sleep(wait).await;
            }
            let Some((watch, since)) = &mut self.watch else {
                let Some(told) = self.told else { return self.read().await };
                self.watch = Some((self.open(told), Instant::now()));
                continue;
            };
            match watch.next().await {
                Some(Ok(changes)) => {
                    // An answer holds whole revisions.
                    self.told = changes.iter().map(Change::revision).max().max(self.told);
                    return Followed::Changed(changes);
                }
                end => {
                    if let Some(Err(StoreError::Compacted { .. })) = end {
                        self.told = None;
                    }
                    // A watch that ends as soon as it is opened must not make this read all records in
                    // a tight loop; one that has lived a while may be opened again quickly.
                    if since.elapsed() > 2 * LONGEST_DELAY {
                        self.retry.reset();
                    }
                    self.wait = Some(self.retry.next_delay());
                    self.watch = None;
                    if let Some(Err(error)) = end {
                        return Followed::WatchEnded(error);
                    }
                }
            }
        }
    }

    async fn read(&mut self) -> Followed {
        match self.store.get_prefix(self.prefix).await {
            Ok(snapshot) => {
                self.told = Some(snapshot.revision);
                Followed::Read(snapshot)
            }
            Err(error) => {
                self.wait = Some(self.retry.next_delay());
                Followed::ReadFailed(error)
            }
        }
    }

    fn open(&self, after: Revision) -> Watch<'s> {
        Box::pin(self.store.watch(self.prefix, after))
    }
}

/// Follows the records whose keys begin with `prefix`. Never ends.
pub(crate) fn follow<'s, S: LeaseStore>(
    store: &'s S,
    prefix: &'s str,
) -> impl Stream<Item = Followed> + Unpin + use<'s, S> {
    let retry = Retry::new(FIRST_DELAY, LONGEST_DELAY);
    let follower = Follower { store, prefix, watch: None, told: None, retry, wait: None };
    Box::pin(stream::unfold(follower, |mut follower| async {
        let followed = follower.next().await;
        Some((followed, follower))
    }))
}

#[cfg(test)]
mod tests {
    use shared::memory::MemoryStore;

    use super::*;

    async fn next(records: &mut (impl Stream<Item = Followed> + Unpin)) -> Followed {
        tokio::time::timeout(Duration::from_secs(20), records.next()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn what_is_written_while_nobody_can_watch_is_told_by_the_next_watch() {
        let store = MemoryStore::new();
        store.fail_reads(true);
        let mut records = follow(&store, "/r/");
        assert!(matches!(next(&mut records).await, Followed::ReadFailed(StoreError::Unavailable(_))));
        store.fail_reads(false);
        let Followed::Read(snapshot) = next(&mut records).await else { panic!("it is read") };
        assert!(snapshot.entries.is_empty());
        store.plant("/r/a", "1");
        store.plant("/other", "1");
        let Followed::Changed(changes) = next(&mut records).await else { panic!("it is watched") };
        assert_eq!(changes.len(), 1);
        store.break_watches();
        store.plant("/r/b", "1");
        store.plant("/r/b", "2");
        assert!(matches!(next(&mut records).await, Followed::WatchEnded(StoreError::Unavailable(_))));
        for value in ["1", "2"] {
            let Followed::Changed(changes) = next(&mut records).await else { panic!("it is watched on") };
            let [Change::Put { key, entry }] = &changes[..] else { panic!("{changes:?}") };
            assert_eq!((key.as_str(), entry.value.as_slice()), ("/r/b", value.as_bytes()));
        }
    }

    #[tokio::test]
    async fn after_a_compaction_everything_is_read_again() {
        let store = MemoryStore::new();
        let mut records = follow(&store, "/r/");
        assert!(matches!(next(&mut records).await, Followed::Read(_)));
        store.plant("/r/a", "1");
        store.plant("/r/b", "1");
        let revision = store.get_prefix("/r/").await.unwrap().revision;
        store.compact(Revision(revision.0 + 1));
        assert!(matches!(next(&mut records).await, Followed::WatchEnded(StoreError::Compacted { .. })));
        let Followed::Read(snapshot) = next(&mut records).await else { panic!("it is read again") };
        assert_eq!(snapshot.entries.keys().collect::<Vec<_>>(), ["/r/a", "/r/b"]);
    }
}
