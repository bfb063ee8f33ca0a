//! The part of Mesos's v1 executor protocol that the executors here use, in its JSON form. Unknown fields are skipped.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// An event from the agent.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Event {
    Subscribed {
        subscribed: Subscribed,
    },
    Launch {
        launch: Launch,
    },
    LaunchGroup {
        launch_group: LaunchGroup,
    },
    Kill {
        kill: Kill,
    },
    Acknowledged {
        acknowledged: Acknowledged,
    },
    Error {
        error: ErrorEvent,
    },
    Shutdown,
    /// `HEARTBEAT`, `MESSAGE`, and what a later Mesos may add.
    #[serde(other)]
    Other,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Subscribed {
    pub(super) framework_info: FrameworkInfo,
    /// The executor's own container.
    #[serde(default)]
    pub(super) container_id: Option<Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct FrameworkInfo {
    #[serde(default)]
    pub(super) capabilities: Vec<Capability>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Capability {
    #[serde(rename = "type")]
    pub(super) kind: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Launch {
    /// Kept as it came, because an unacknowledged task is sent back to a restarted agent as it came.
    pub(super) task: Value,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct LaunchGroup {
    pub(super) task_group: TaskGroup,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct TaskGroup {
    /// As in [`Launch`].
    pub(super) tasks: Vec<Value>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Kill {
    pub(super) task_id: Id,
    #[serde(default)]
    pub(super) kill_policy: Option<KillPolicy>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Acknowledged {
    /// Base64, as the agent writes it; compared as text with what was sent.
    pub(super) uuid: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct ErrorEvent {
    pub(super) message: String,
}

/// The fields of a `TaskInfo` that matter here.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct TaskInfo {
    pub(super) task_id: Id,
    #[serde(default)]
    pub(super) command: Option<CommandInfo>,
    #[serde(default)]
    pub(super) kill_policy: Option<KillPolicy>,
    #[serde(default)]
    pub(super) max_completion_time: Option<DurationInfo>,
    #[serde(default)]
    pub(super) resources: Vec<Resource>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Resource {
    #[serde(default)]
    pub(super) allocation_info: Option<AllocationInfo>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct AllocationInfo {
    #[serde(default)]
    pub(super) role: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Id {
    pub(super) value: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct KillPolicy {
    #[serde(default)]
    pub(super) grace_period: Option<DurationInfo>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct DurationInfo {
    /// May be negative on the wire; that counts as zero.
    pub(super) nanoseconds: i64,
}

impl DurationInfo {
    pub(super) fn duration(self) -> std::time::Duration {
        std::time::Duration::from_nanos(u64::try_from(self.nanoseconds).unwrap_or(0))
    }
}

/// What to execute: `value` for a shell, or an executable with all of its `argv`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CommandInfo {
    #[serde(default = "yes")]
    pub(super) shell: bool,
    #[serde(default)]
    pub(super) value: Option<String>,
    #[serde(default)]
    pub(super) arguments: Vec<String>,
    #[serde(default)]
    pub(super) environment: Environment,
}

/// Protobuf's default of `CommandInfo.shell`.
fn yes() -> bool {
    true
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Environment {
    #[serde(default)]
    pub(super) variables: Vec<Variable>,
}

/// A variable without a `value` is a secret that nobody resolved; it is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Variable {
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<String>,
}

impl Environment {
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&String, &String)> {
        self.variables.iter().filter_map(|variable| Some((&variable.name, variable.value.as_ref()?)))
    }
}

/// What a status says.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Status<'a> {
    pub(super) state: &'a str,
    pub(super) reason: Option<&'a str>,
    pub(super) message: Option<&'a str>,
}

/// Who calls: both ids stand in every call.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) framework_id: String,
    pub(super) executor_id: String,
}

impl Caller {
    /// `SUBSCRIBE`, with what the agent may have missed or forgotten.
    pub(super) fn subscribe(&self, unacknowledged_tasks: Vec<Value>, statuses: Vec<Value>) -> Value {
        let updates: Vec<Value> = statuses.into_iter().map(|status| json!({ "status": status })).collect();
        let mut call = self.call("SUBSCRIBE");
        call["subscribe"] =
            json!({ "unacknowledged_tasks": unacknowledged_tasks, "unacknowledged_updates": updates });
        call
    }

    /// A task's status, to be sent as an update.
    pub(super) fn status(&self, task: &str, uuid: &str, unix: f64, what: &Status<'_>) -> Value {
        let mut status = json!({
            "task_id": { "value": task },
            "executor_id": { "value": self.executor_id },
            "state": what.state,
            "source": "SOURCE_EXECUTOR",
            "timestamp": unix,
            "uuid": uuid,
        });
        for (key, value) in [("reason", what.reason), ("message", what.message)] {
            if let Some(value) = value {
                status[key] = value.into();
            }
        }
        status
    }

    /// `UPDATE` with one task status.
    pub(super) fn update(&self, status: &Value) -> Value {
        let mut call = self.call("UPDATE");
        call["update"] = json!({ "status": status });
        call
    }

    fn call(&self, kind: &str) -> Value {
        json!({
            "type": kind,
            "framework_id": { "value": self.framework_id },
            "executor_id": { "value": self.executor_id },
        })
    }
}
