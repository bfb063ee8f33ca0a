//! What has happened to tasks, as the scheduler saw it.

use std::{
    fmt,
    time::{Instant, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::app::AppId;

/// Mesos's task states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "&'static str")]
pub enum TaskState {
    /// The launch was sent. The scheduler notes this itself, when it accepts the offer.
    Staging,
    /// The executor has the task.
    Starting,
    /// The task's process runs.
    Running,
    /// The task was told to end.
    Killing,
    /// The command exited with status 0.
    Finished,
    /// The command, or the launch of its container, failed.
    Failed,
    /// It ended because it was told to.
    Killed,
    /// The master refused the task's definition.
    Error,
    /// Lost, told to frameworks that are not partition-aware.
    Lost,
    /// It was never launched.
    Dropped,
    /// Its agent does not answer; the task may well be running.
    Unreachable,
    /// Its agent is there and does not have it.
    Gone,
    /// An operator said that its agent is gone for good.
    GoneByOperator,
    /// The master knows neither task nor agent, or the state is one of a later Mesos.
    Unknown,
}

/// Each state and Mesos's name for it.
const NAMES: [(TaskState, &str); 14] = [
    (TaskState::Staging, "TASK_STAGING"),
    (TaskState::Starting, "TASK_STARTING"),
    (TaskState::Running, "TASK_RUNNING"),
    (TaskState::Killing, "TASK_KILLING"),
    (TaskState::Finished, "TASK_FINISHED"),
    (TaskState::Failed, "TASK_FAILED"),
    (TaskState::Killed, "TASK_KILLED"),
    (TaskState::Error, "TASK_ERROR"),
    (TaskState::Lost, "TASK_LOST"),
    (TaskState::Dropped, "TASK_DROPPED"),
    (TaskState::Unreachable, "TASK_UNREACHABLE"),
    (TaskState::Gone, "TASK_GONE"),
    (TaskState::GoneByOperator, "TASK_GONE_BY_OPERATOR"),
    (TaskState::Unknown, "TASK_UNKNOWN"),
];

impl From<String> for TaskState {
    fn from(name: String) -> Self {
        NAMES.iter().find(|(_, known)| *known == name).map_or(Self::Unknown, |(state, _)| *state)
    }
}

impl From<TaskState> for &'static str {
    fn from(state: TaskState) -> Self {
        NAMES.iter().find(|(known, _)| *known == state).map_or("TASK_UNKNOWN", |(_, name)| name)
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str((*self).into())
    }
}

impl TaskState {
    /// On its way or running, as far as the master knows.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(self, Self::Staging | Self::Starting | Self::Running | Self::Killing)
    }

    /// Lost with its agent (or with the launch message) rather than ended by itself.
    #[must_use]
    pub fn is_loss(self) -> bool {
        matches!(
            self,
            Self::Lost
                | Self::Dropped
                | Self::Unreachable
                | Self::Gone
                | Self::GoneByOperator
                | Self::Unknown
        )
    }
}

/// One thing that happened to a task.
#[derive(Debug, Clone)]
pub struct TaskEvent {
    /// The app whose task it is.
    pub app_id: AppId,
    /// The task; each attempt has its own.
    pub task_id: String,
    /// The agent, where it is known.
    pub agent_id: Option<String>,
    /// The agent's host name, where it is known.
    pub hostname: Option<String>,
    /// The state that it has now.
    pub state: TaskState,
    /// Mesos's reason, for example `REASON_CONTAINER_LAUNCH_FAILED`.
    pub reason: Option<String>,
    /// Who says so: `SOURCE_MASTER`, `SOURCE_AGENT` or `SOURCE_EXECUTOR`; `None` for the scheduler's own notes.
    pub source: Option<String>,
    /// What Mesos or the executor says about it.
    pub message: Option<String>,
    /// When the scheduler learnt it, for measuring.
    pub at: Instant,
    /// The same moment on the wall clock, for printing.
    pub wall: SystemTime,
}
