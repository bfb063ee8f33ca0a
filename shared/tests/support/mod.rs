//! What the tests of the store share.

pub(crate) mod cases;

use std::time::Duration;

use futures::{Stream, StreamExt};
use shared::store::{Change, StoreError};

/// A request's time-out in tests that are not about time-outs, on a busy machine.
pub(crate) const PATIENT: Duration = Duration::from_secs(10);

/// The next item of a watch, which must come soon.
pub(crate) async fn next<S>(watch: &mut S) -> Result<Vec<Change>, StoreError>
where
    S: Stream<Item = Result<Vec<Change>, StoreError>> + Unpin,
{
    tokio::time::timeout(testing::SOON, watch.next())
        .await
        .expect("the watch says something")
        .expect("a watch ends with an error first")
}
