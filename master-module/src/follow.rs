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
