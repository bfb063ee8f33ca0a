//! The module's thread. Whatever goes wrong in it stays in it: a panic, or an etcd whose history has
//! changed, ends one life of the loop and, after a pause, begins the next, which knows nothing.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use shared::etcd::EtcdStore;
use shared::retry::Retry;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{error, info};

use crate::agents::Agents;
use crate::mesos::Mesos;
use crate::reach::chain;
use crate::settings::Settings;
use crate::watching::watching;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Lives until the other end of `stopped` is dropped.
pub(crate) fn live(
    runtime: Runtime,
    settings: &Settings,
    own_address: fn() -> Option<String>,
    mut stopped: watch::Receiver<()>,
) {
    info!("watching the leases in etcd at {}", settings.etcd.endpoints.join(", "));
    let mut retry = Retry::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        let begin = Instant::now();
        let life = async {
            tokio::select! {
                end = one_life(settings, own_address) => Some(end),
                _ = stopped.changed() => None,
            }
        };
        // Nothing that the life has touched is used after a panic: it owns all of it.
        match catch_unwind(AssertUnwindSafe(|| runtime.block_on(life))) {
            Ok(None) => break,
            Ok(Some(reason)) => error!("{reason}; beginning again"),
            Err(panic) => error!("a fault in this module: {}; beginning again", words(&*panic)),
        }
        if begin.elapsed() > LONGEST_PAUSE {
            retry.reset();
        }
        let pause = retry.next_delay();
        if runtime.block_on(async { timeout(pause, stopped.changed()).await }).is_ok() {
            break;
        }
    }
    // A resolver that hangs must not keep the thread.
    runtime.shutdown_background();
}

/// One life of the loop; the answer is why it ended.
async fn one_life(settings: &Settings, own_address: fn() -> Option<String>) -> String {
    // A new store has no memory of the revisions that the last one saw.
    let store = match EtcdStore::new(settings.etcd.clone()) {
        Ok(store) => Arc::new(store),
        Err(error) => return chain(&error),
    };
    let mesos = match Mesos::new(settings.master.clone(), own_address, settings.poll_timeout()) {
        Ok(mesos) => mesos,
        Err(error) => return chain(&error),
    };
    let agents = match Agents::new(settings.etcd.request_timeout) {
        Ok(agents) => agents,
        Err(error) => return chain(&error),
    };
    chain(&watching(&store, mesos, &agents, settings).await)
}

/// What a panic says.
fn words(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}
