//! The master's half of mesos-extvol.
//!
//! It looks and tells: which agent host holds which volume, every change of that, whether the Mesos agent of
//! a holder still has a place with the leading master, and whether it answers itself. And it acts: it revokes
//! the session of a host whose agent Mesos has given up, declares one dead that was silent for its whole time to
//! live, and, if it is told to, has the agent of such a host marked gone. It writes sessions, the storm guard and
//! events; never a lease.
//!
//! ```text
//! start()      on Mesos's main thread: checks the parameters, starts one thread, returns
//! life.rs      that thread: runs the loop, again after a panic, until the module is dropped
//! watching.rs  the loop: what is learned goes into the view, what is new into the log and the queue
//! follow.rs    all records below a prefix: read and watched
//! mesos.rs     the leading master's list of agents, and its registry
//! elements.rs  the elements of arrays in a JSON document that is never in memory as a whole
//! agents.rs    what the agents' own processes answer
//! view.rs      pure: what is known, and what is new in what was just learned;
//!              view/agents.rs: of the agents; view/waiting.rs: who waits for whose volumes
//! pace.rs      pure: how often the leading master is asked
//! event.rs     what is worth an event or a line in the log, and both
//! queue.rs     pure: events that wait to be written
//! record.rs    writes each event once, and trims
//! acting.rs    the shell of shared::protocol::reclaimer, which decides;
//!              acting/holdings.rs: pure: what that is shown; acting/gone.rs: marks agents gone
//! clock.rs     elapsed time for its waits
//! ```
//!
//! No etcd client, no HTTP and no clock in `view.rs`, `event.rs`, `queue.rs` and `pace.rs`; no decision about
//! what is news in the others.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that unwraps fails with a place and a value"))]

mod acting;
mod agents;
mod clock;
mod elements;
mod event;
mod follow;
#[doc(hidden)]
pub mod fuzzing;
mod life;
mod mesos;
mod pace;
mod queue;
mod reach;
mod record;
mod settings;
mod view;
mod watching;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use shared::etcd::EtcdStore;
use tokio::sync::watch;

use crate::settings::Settings;

/// How long dropping the module waits for its thread. It stops within milliseconds unless it is
/// taking a large answer apart.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// The module at work in a Mesos master, leading or not.
#[derive(Debug)]
pub struct MasterModule {
    /// Dropped to stop the thread.
    stop: Option<watch::Sender<()>>,
    /// Ends when the thread does.
    ended: mpsc::Receiver<()>,
    thread: Option<thread::JoinHandle<()>>,
}

impl MasterModule {
    /// Starts the module. To be called once, when Mesos loads it: on the main thread of a master that
    /// may not yet have begun to serve. Returns at once, whether or not anything can be reached.
    ///
    /// `own_address` gives the address of this process as `<host>:<port>` or `http://<host>:<port>`,
    /// once it is known. It is called on the module's own thread, and not any more after it has given
    /// one.
    ///
    /// # Errors
    /// A sentence about the parameter that is wrong, with its name and value; or about the thread that
    /// the system refused to make.
    pub fn start(
        parameters: &[(String, String)],
        own_address: fn() -> Option<String>,
    ) -> Result<Self, String> {
        let settings = Settings::new(parameters).map_err(|error| error.to_string())?;
        // Refused now if ever: the thread makes a store of the same settings for each of its lives.
        EtcdStore::new(settings.etcd.clone()).map_err(|error| error.to_string())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            // For host names alone, whose resolver blocks.
            .max_blocking_threads(2)
            .thread_name("extvol-resolve")
            .build()
            .map_err(|error| format!("no runtime for the module's thread: {error}"))?;
        let (stop, stopped) = watch::channel(());
        let (alive, ended) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("extvol-master".to_owned())
            .spawn(move || {
                let _alive: mpsc::Sender<()> = alive;
                life::live(runtime, &settings, own_address, stopped);
            })
            .map_err(|error| format!("no thread for the module: {error}"))?;
        Ok(Self { stop: Some(stop), ended, thread: Some(thread) })
    }
}

impl Drop for MasterModule {
    fn drop(&mut self) {
        drop(self.stop.take());
        let Some(thread) = self.thread.take() else { return };
        match self.ended.recv_timeout(STOP_PATIENCE) {
            // It has let go of its end of the channel, and does nothing after that.
            Err(mpsc::RecvTimeoutError::Disconnected) | Ok(()) => {
                let _ = thread.join();
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                tracing::warn!(
                    "the module's thread has not stopped within {STOP_PATIENCE:?} and is left to itself"
                );
            }
        }
    }
}
