//! All records below a prefix, for ever: read, watched, and read again when the watch ends.

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
    /// Changes may be missed; they will be read again.
    WatchEnded(StoreError),
}

type Watch<'s> = Pin<Box<dyn Stream<Item = Result<Vec<Change>, StoreError>> + Send + 's>>;

struct Follower<'s, S> {
    store: &'s S,
    prefix: &'s str,
    watch: Option<(Watch<'s>, Instant)>,
    retry: Retry,
    wait: Option<Duration>,
}

impl<'s, S: LeaseStore> Follower<'s, S> {
    async fn next(&mut self) -> Followed {
        loop {
            if let Some(wait) = self.wait.take() {
                sleep(wait).await;
            }
            let Some((watch, since)) = &mut self.watch else { return self.read().await };
            match watch.next().await {
                Some(Ok(changes)) => return Followed::Changed(changes),
                end => {
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
                self.watch = Some((self.open(snapshot.revision), Instant::now()));
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
    let follower = Follower { store, prefix, watch: None, retry, wait: None };
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
    async fn what_is_written_while_nobody_can_watch_is_found_by_the_next_read() {
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
        assert!(matches!(next(&mut records).await, Followed::WatchEnded(StoreError::Unavailable(_))));
        let Followed::Read(snapshot) = next(&mut records).await else { panic!("it is read again") };
        assert_eq!(snapshot.entries.keys().collect::<Vec<_>>(), ["/r/a", "/r/b"]);
    }
}
