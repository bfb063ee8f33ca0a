//! The keeper: it owns an agent host's session, leases, driver calls and mounts. It outlives the agent, so that an
//! agent's restart changes nothing for running tasks.
//!
//! ```text
//! worker/      the worker: the shell around shared::protocol::holder
//! server.rs    its connections to isolators
//! driver/      the plugins: their protocol, and where they are found
//! survey.rs    whether they do what the parameters say of them
//! probe.rs     looks at mounts and devices, each in a helper process
//! deadman/     the other processes; fence/ what they do; shared_memory.rs what all share
//! means.rs     what a fence of this host rests on; cgroups.rs
//! mounts/      what those looks are; mount_table.rs: the kernel's tables
//! volume_rules.rs who may use which volumes
//! limits.rs    what tenants can have of it at once
//! links.rs     a link for each mounted volume, by its name
//! checkpoint.rs, alive.rs, log.rs, process.rs
//! ```

pub mod alive;
pub mod cgroups;
pub mod checkpoint;
pub mod deadman;
pub mod driver;
pub mod fence;
pub mod flock;
pub mod limits;
mod links;
pub mod log;
pub mod means;
pub(crate) mod mount_table;
pub mod mounts;
pub mod probe;
pub mod process;
pub mod server;
pub mod shared_memory;
pub mod stored_table;
pub mod survey;
pub(crate) mod volume_rules;
mod worker;

pub use self::limits::Turn;
pub use self::worker::{Event, Worker};

/// A random id, from the kernel; without a file, of which a process may have none left.
///
/// # Panics
/// When the kernel has no randomness: it has since it started.
#[must_use]
pub fn random_id() -> String {
    let mut bytes = [0_u8; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    assert_eq!(filled, Ok(bytes.len()), "the kernel gives random bytes");
    format!("{:032x}", u128::from_be_bytes(bytes))
}

/// An error and its causes in one line.
pub fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Runs what may block on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}
