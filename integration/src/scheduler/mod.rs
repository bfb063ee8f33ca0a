//! A small v1 HTTP scheduler that keeps named apps running: what Marathon does for users of Mesos, for demonstrations
//! and tests. One instance of each app; a lost one is started again at once, a failing one with growing delays.
//!
//! It is not a product: no persistence of its own, no authentication, no health checks; task groups and executors
//! of several tasks as tests need them.
//!
//! `core.rs` decides and is pure; `run.rs` is the loop that receives, asks it and does what it says; `master.rs` alone
//! knows HTTP. [`Scheduler`] is a handle to that loop, which runs on a thread of its own: the thread is started by the
//! caller's thread, so it lives in the caller's network namespace. All waits have deadlines and none of them polls.

mod app;
mod backoff;
mod container;
mod core;
mod entry;
mod executor;
mod handle;
mod history;
mod master;
mod offer;
mod protocol;
mod run;

pub use self::{
    app::{App, AppError, AppId, Constraints, RestartPolicy},
    backoff::Backoff,
    container::{Container, DockerVolume, HostPath, Volume, VolumeMode},
    core::RunError,
    executor::Executor,
    handle::{Scheduler, SchedulerError, WaitError},
    history::{TaskEvent, TaskState},
};

use std::time::Duration;

/// How the scheduler presents itself to the master, and how it behaves.
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    /// The framework's name.
    pub name: String,
    /// The user whom tasks run as unless an app says otherwise.
    pub user: String,
    /// The role whose offers are wanted.
    pub role: String,
    /// Whether agents keep executors and tasks across their own restart. Off, a killed agent means `TASK_LOST` at once
    /// while the old container may live on: only good for showing that.
    pub checkpoint: bool,
    /// How long the master keeps tasks after the scheduler went away without teardown.
    pub failover_timeout: Duration,
    /// Whether lost agents are told as `TASK_UNREACHABLE` (as Marathon has it) in place of `TASK_LOST`.
    pub partition_aware: bool,
    /// Whether a task that was given up and replaced is killed when it returns, as Marathon does. Off, both run: only
    /// good for showing that.
    pub kill_returning_tasks: bool,
    /// For how long a declined offer is not made again. Short, because a waiting app is worth more than a few messages.
    pub refuse: Duration,
    /// Between two questions to the master about the tasks that should be running.
    pub reconcile_every: Duration,
    /// Delays of apps that do not name their own.
    pub backoff: Backoff,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            name: "extvol-scheduler".into(),
            user: "root".into(),
            role: "*".into(),
            checkpoint: true,
            failover_timeout: Duration::from_secs(7 * 24 * 3600),
            partition_aware: true,
            kill_returning_tasks: true,
            refuse: Duration::from_secs(1),
            reconcile_every: Duration::from_secs(30),
            backoff: Backoff::default(),
        }
    }
}
